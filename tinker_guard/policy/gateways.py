"""Which gateway wrote a 404, for people to read: as data, each with where it was seen."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tinker_guard.policy.codings import CodingError, decoded
from tinker_guard.policy.json_body import media_type_of
from tinker_guard.policy.not_found import Source, source_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tinker_guard.policy.answer import Answer


class GatewayShape(NamedTuple):
    """A 404 as one gateway writes it. What is None is not looked at."""

    gateway: str
    """What spans call it."""
    seen: str
    """The version that was measured, or where this was read."""
    media_type: str | None
    """None takes any; an empty text says that there is no Content-Type."""
    body: str
    """A pattern of the whole body."""
    headers: Mapping[str, str] = {}
    """Patterns of headers; an empty one says that the header is not there."""
    members: Mapping[str, Any] | None = None
    """Of a JSON object, in place of the body's text: patterns of texts, or equal values."""


_CENTER: Final = r"(?s)\s*<html>.*<center>{}(?:/[\d.]+)?</center>.*"

_NGINX: Final = _CENTER.format("nginx")

GATEWAYS: Final = (
    # Also behind another proxy, whose name stands in Server then.
    GatewayShape(
        "ingress-nginx", "kubernetes/ingress-nginx#12206", "text/html", _NGINX, {"server": ""}
    ),
    GatewayShape("nginx", "1.22.1 and 1.31.3", "text/html", _NGINX),
    GatewayShape(
        "openresty", "the same page of nginx's fork", "text/html", _CENTER.format("openresty")
    ),
    # Envoy writes its name on what an upstream answers too, and then the upstream's time.
    *(
        GatewayShape(gateway, seen, "", "", {"server": server, "x-envoy-upstream-service-time": ""})
        for gateway, seen, server in (
            ("envoy", "1.40.0", "envoy"),
            ("istio", "istio/istio#1038", "istio-envoy"),
        )
    ),
    GatewayShape(
        "gcp", "GKE's load balancer", "text/plain", "fault filter abort", {"via": ".*google.*"}
    ),
    GatewayShape("envoy", "its fault filter", "text/plain", "fault filter abort"),
    GatewayShape(
        "gcp",
        "GKE's ingress controller",
        "text/plain",
        r"(?s)response 404 \(backend NotFound\), service rules for .*",
    ),
    GatewayShape(
        "kubernetes-backend", "its default backend", "text/plain", r"default backend - 404\s*"
    ),
    GatewayShape(
        # Traefik answers with Go's own handler, without a trace of itself.
        "traefik-or-go",
        "Traefik 3.7.15",
        "text/plain",
        r"404 page not found\n",
        {"x-content-type-options": "nosniff"},
    ),
    GatewayShape(
        "haproxy",
        "2.6.12, errorfiles/404.http",
        "text/html",
        r"<html><body><h1>404 Not Found</h1>\s+The resource could not be found\.\s+"
        r"</body></html>\s*",
    ),
    GatewayShape("caddy", "2.6.2 and 2.11.7, error 404", "", "", {"server": "Caddy", "via": ""}),
    GatewayShape(
        "kong",
        "Kong/kong, kong/runloop/handler.lua",
        "application/json",
        "",
        members={"message": "(?i)no route matched with those values"},
    ),
    GatewayShape(
        "apisix",
        "apache/apisix, apisix/init.lua",
        "application/json",
        "",
        members={"error_msg": "404 Route Not Found"},
    ),
    # Older releases write text/plain, or no type and JSON's text without a handler.
    GatewayShape(
        "ray-serve",
        "Ray 2.60.0",
        "text/plain",
        r"(?is)Path '.*' not found\. (?:Please )?ping .*/-/routes for .*",
    ),
    GatewayShape(
        "knative",
        "knative/serving, the activator",
        "text/plain",
        r"(?s)Error getting active endpoint: .*",
    ),
    GatewayShape(
        "dstack",
        "dstackai/dstack, proxy/lib/errors.py and the service proxy",
        "application/json",
        "",
        members={"detail": r"Service [^\s/]+/[^\s/]+ not found"},
    ),
    GatewayShape(
        "modal", "modal.com/docs", "text/plain", r"(?s)modal-http: .*|workspace .* is disabled\s*"
    ),
    # The body alone is what many servers write.
    GatewayShape(
        "aws-http-api",
        "docs.aws.amazon.com, HTTP APIs; unverified",
        "application/json",
        "",
        {"apigw-requestid": ".+"},
        {"message": "Not Found"},
    ),
    *(
        GatewayShape(
            "cloudflare",
            "developers.cloudflare.com",
            media_type,
            "",
            members={"cloudflare_error": True},
        )
        for media_type in ("application/json", "application/problem+json")
    ),
)


def gateway_of(answer: Answer) -> str | None:
    """The gateway that writes such a 404, for people to read; None if none is known. Never raises.

    It is no evidence: a server behind the gateway may write the same.
    """
    if source_of(answer) is Source.GATEWAY:
        return "fireworks"
    headers, document, text = answer.headers, answer.json, _text(answer)
    media_type = media_type_of(headers)
    for shape in GATEWAYS:
        if shape.media_type not in (None, media_type) or not _has_headers(shape, headers):
            continue
        if shape.members is None:
            is_alike = text is not None and re.fullmatch(shape.body, text) is not None
        else:
            is_alike = document is not None and all(
                _is_like(pattern, document.members.get(name))
                for name, pattern in shape.members.items()
            )
        if is_alike:
            return shape.gateway
    return None


_PAGE: Final = 4096
"""Bytes of the longest page that is looked at: a gateway's own have some hundred."""


def _text(answer: Answer) -> str | None:
    body = answer.body
    try:
        if not answer.is_decoded:
            body = decoded(answer.headers.get("content-encoding", ""), body, _PAGE + 1)
    except CodingError:
        return None
    return None if len(body) > _PAGE else body.decode("utf-8", "replace")


def _has_headers(shape: GatewayShape, headers: Mapping[str, str]) -> bool:
    return all(
        re.fullmatch(pattern, headers.get(name, ""), re.IGNORECASE) is not None
        for name, pattern in shape.headers.items()
    )


def _is_like(pattern: object, value: object) -> bool:
    """Whether a member's value has the pattern; what is no text must be equal."""
    if isinstance(pattern, str):
        return isinstance(value, str) and re.fullmatch(pattern, value[:_PAGE]) is not None
    return value is pattern
