"""Which gateway wrote an answer, by what it shows of itself."""

from __future__ import annotations

import gzip
import json
from typing import Any, NamedTuple

import httpx
import pytest

from tests.policy.answers import CLOUDFLARE_BODY, GATEWAY_BODY, HTML, JSON, PROBLEM, TEXT, Case
from tinker_guard.policy.answer import Answer
from tinker_guard.policy.gateways import gateway_of
from tinker_guard.policy.not_found import Source, is_from_trainer, source_of

NGINX_PAGE = (
    "<html>\r\n<head><title>404 Not Found</title></head>\r\n<body>\r\n"
    "<center><h1>404 Not Found</h1></center>\r\n<hr><center>{}</center>\r\n</body>\r\n</html>\r\n"
)
HAPROXY_PAGE = (
    "<html><body><h1>404 Not Found</h1>\nThe resource could not be found.\n</body></html>\n"
)
RAY_TEXT = "Path '/api/v1/x' not found. Ping http://127.0.0.1:8000/-/routes for available routes."


class Met(NamedTuple):
    """A 404 as it comes over the wire."""

    gateway: str | None
    headers: dict[str, str]
    body: bytes | str | dict[str, Any] = b""

    @property
    def wire(self) -> bytes:
        return Case("", self.body).wire


MET = {
    "dstack": Met("dstack", {"content-type": JSON}, {"detail": "Service main/run-1 not found"}),
    "fireworks": Met("fireworks", {"content-type": JSON}, GATEWAY_BODY),
    "nginx": Met(
        "nginx", {"content-type": HTML, "server": "nginx/1.22.1"}, NGINX_PAGE.format("nginx/1.22.1")
    ),
    "nginx-silent": Met(
        "nginx", {"content-type": HTML, "server": "nginx"}, NGINX_PAGE.format("nginx")
    ),
    "ingress-nginx": Met("ingress-nginx", {"content-type": HTML}, NGINX_PAGE.format("nginx")),
    "nginx-behind-another": Met(
        "nginx", {"content-type": HTML, "server": "cloudflare"}, NGINX_PAGE.format("nginx")
    ),
    "openresty": Met("openresty", {"content-type": HTML}, NGINX_PAGE.format("openresty/1.25.3.1")),
    "nginx-in-a-text": Met(None, {"content-type": HTML}, "<p>We use nginx"),
    "envoy": Met("envoy", {"server": "envoy", "connection": "close"}),
    "envoy-of-an-upstream": Met(None, {"server": "envoy", "x-envoy-upstream-service-time": "1"}),
    "istio": Met("istio", {"server": "istio-envoy"}),
    "nameless": Met(None, {}),
    "empty-json": Met(None, {"server": "envoy", "content-type": JSON}),
    "gke": Met("gcp", {"content-type": TEXT, "via": "1.1 google"}, "fault filter abort"),
    "fault-filter": Met("envoy", {"content-type": TEXT}, "fault filter abort"),
    "gke-rules": Met(
        "gcp",
        {"content-type": TEXT},
        "response 404 (backend NotFound), service rules for the path non-existent \n",
    ),
    "kubernetes": Met("kubernetes-backend", {"content-type": TEXT}, "default backend - 404"),
    "traefik": Met(
        "traefik-or-go",
        {"content-type": TEXT, "x-content-type-options": "nosniff"},
        "404 page not found\n",
    ),
    "traefiks-text": Met(None, {"content-type": TEXT}, "404 page not found\n"),
    "haproxy": Met("haproxy", {"content-type": HTML}, HAPROXY_PAGE),
    "haproxy-empty": Met(None, {}),
    "caddy": Met("caddy", {"server": "Caddy"}),
    "caddy-of-an-upstream": Met(None, {"server": "Caddy", "via": "1.1 Caddy"}),
    "kong": Met(
        "kong",
        {"content-type": "application/json; charset=utf-8"},
        {"message": "no Route matched with those values", "request_id": "1a"},
    ),
    "apisix": Met("apisix", {"content-type": JSON}, {"error_msg": "404 Route Not Found"}),
    "apisix-number": Met(None, {"content-type": JSON}, {"error_msg": 404}),
    "ray-serve": Met("ray-serve", {"content-type": "text/plain", "server": "uvicorn"}, RAY_TEXT),
    "ray-parent": Met(None, {"content-type": JSON}, {"detail": "Not Found"}),
    "knative": Met(
        "knative", {"content-type": TEXT}, 'Error getting active endpoint: revision "r" not found\n'
    ),
    "modal": Met("modal", {"content-type": TEXT}, "modal-http: invalid function call"),
    "modal-stopped": Met(
        "modal", {"content-type": TEXT}, "modal-http: app for invoked web endpoint is stopped"
    ),
    "modal-disabled": Met("modal", {"content-type": TEXT}, "workspace w is disabled"),
    "aws-http-api": Met(
        "aws-http-api", {"content-type": JSON, "apigw-requestid": "Jx="}, {"message": "Not Found"}
    ),
    "aws-without-a-trace": Met(None, {"content-type": JSON}, {"message": "Not Found"}),
    "cloudflare": Met("cloudflare", {"content-type": JSON}, CLOUDFLARE_BODY),
    "cloudflare-problem": Met("cloudflare", {"content-type": PROBLEM}, CLOUDFLARE_BODY),
    "cloudflare-false": Met(None, {"content-type": JSON}, {"cloudflare_error": False}),
    # A tunnel's rule `http_status:404`; an origin behind the edge may write the same.
    "cloudflare-tunnel": Met(None, {"server": "cloudflare", "cf-ray": "9d99a4434fz2d168-FRA"}),
    "trainer": Met(None, {"content-type": JSON}, {"detail": "Model not found"}),
    "no-json": Met(None, {"content-type": JSON}, "nothing"),
    "too-long": Met(
        None, {"content-type": TEXT, "via": "1.1 google"}, "fault filter abort" + " " * 5000
    ),
    "unknown-coding": Met(
        None, {"content-type": TEXT, "content-encoding": "rot13"}, "default backend - 404"
    ),
}


@pytest.mark.parametrize("met", MET.values(), ids=[*MET])
def test_which_gateway_wrote_a_404(met: Met) -> None:
    headers = httpx.Headers(met.headers)
    assert gateway_of(Answer(headers, met.wire)) == met.gateway
    if "content-encoding" in headers:
        assert gateway_of(Answer(headers, met.wire, is_decoded=True)) == "kubernetes-backend"
    elif met.wire:
        coded = httpx.Headers(met.headers | {"content-encoding": "gzip"})
        assert gateway_of(Answer(coded, gzip.compress(met.wire))) == met.gateway
        assert gateway_of(Answer(coded, met.wire, is_decoded=True)) == met.gateway


def test_of_a_document_no_more_is_read_than_the_limit_says() -> None:
    headers, body = httpx.Headers({"content-type": JSON}), json.dumps(GATEWAY_BODY).encode()
    assert gateway_of(Answer(headers, body, limit=len(body))) == "fireworks"
    assert gateway_of(Answer(headers, body, limit=len(body) - 1)) is None


@pytest.mark.parametrize(
    ("name", "length"),
    [("nginx", 153), ("nginx-silent", 146), ("ingress-nginx", 146), ("haproxy", 83), ("envoy", 0)],
)
def test_pages_are_as_long_as_they_were_measured(name: str, length: int) -> None:
    assert len(MET[name].wire) == length


# What gateways say of the same race, or in the place of a 404, with another status.
OTHER_STATUSES = {
    "nginx": (502, HTML, "<html><center><h1>502 Bad Gateway</h1></center><hr>nginx</html>"),
    "ingress-nginx": (503, HTML, "<html><h1>503 Service Temporarily Unavailable</h1></html>"),
    "envoy": (503, TEXT, "no healthy upstream"),
    "envoy-reset": (503, TEXT, "upstream connect error or disconnect/reset before headers"),
    "traefik": (502, TEXT, "Bad Gateway"),
    "traefik-no-server": (503, TEXT, "no available server\n"),
    "haproxy": (503, HTML, "<html><body><h1>503 Service Unavailable</h1></body></html>"),
    "caddy": (502, "", ""),
    "caddy-no-route": (200, "", ""),
    "kong": (503, JSON, '{"message": "name resolution failed"}'),
    "ray-serve": (503, TEXT, "Route table is not populated yet."),
    "knative": (503, TEXT, "Error getting active endpoint: context deadline exceeded"),
    "aws-rest-api": (403, JSON, '{"message": "Missing Authentication Token"}'),
    "aws-load-balancer": (503, HTML, "<html><h1>503 Service Temporarily Unavailable</h1></html>"),
    "cloudflare": (503, JSON, '{"status": 503, "title": "Error", "cloudflare_error": true}'),
    "azure-front-door": (400, HTML, "<h2>Our services aren't available right now</h2>"),
    "miles-not-ready": (503, JSON, '{"detail": "not ready"}'),
    "spindle-lost-model": (410, JSON, '{"error": "gone", "message": "model m was lost"}'),
}


@pytest.mark.parametrize("answer", OTHER_STATUSES.values(), ids=[*OTHER_STATUSES])
def test_no_other_answer_of_a_gateway_shows_the_trainer(answer: tuple[int, str, str]) -> None:
    status_code, content_type, body = answer
    headers = httpx.Headers({"content-type": content_type} if content_type else {})
    assert is_from_trainer(Answer(headers, body.encode(), status_code=status_code)) is False


@pytest.mark.parametrize("met", MET.values(), ids=[*MET])
def test_no_gateways_404_is_the_trainers(met: Met) -> None:
    if met.gateway is not None:
        source = source_of(Answer(httpx.Headers(met.headers), met.wire))
        assert source is (Source.GATEWAY if met.gateway == "fireworks" else Source.UNKNOWN)


@pytest.mark.parametrize(("length", "gateway"), [(4096, "nginx"), (4097, None)])
def test_a_page_longer_than_any_gateways_own_names_none(length: int, gateway: str | None) -> None:
    page = b"<html><center>nginx</center></html>"
    headers = httpx.Headers({"content-type": "text/html", "server": "nginx"})
    assert gateway_of(Answer(headers, page + b" " * (length - len(page)))) == gateway


@pytest.mark.parametrize("server", ["Caddy", "caddy", "CADDY"])
def test_a_gateway_is_named_however_its_header_is_written(server: str) -> None:
    assert gateway_of(Answer(httpx.Headers({"server": server}), b"")) == "caddy"
