"""The operation of a request: its low-cardinality name, and the attributes that it implies."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

import httpx

from tinker_guard.observability import attributes as names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.util.types import AttributeValue

    from tinker_guard.policy.route import Route

# Matches `forward_backward` and `v1`. A word with other characters is an id, and so is a word after
# the name of a collection (such as `sessions`) in the SDK's paths.
_PATH_WORD: Final = re.compile(r"[a-z_]*|v\d")
_COLLECTIONS: Final = frozenset({"checkpoints", "samplers", "sessions", "training_runs"})

_PREFIX: Final = "/api/v1/"
_OPERATIONS: Final = frozenset(
    {
        *("asample", "audit", "auth/apikey/me", "auth/token", "billing/usage/checkpoints/{id}"),
        *("billing/usage/events", "cancel_future", "checkpoints", "client/config"),
        *("client/dynamic_config", "copy_weights", "create_custom_loss", "create_model"),
        *("create_sampling_route", "create_sampling_session", "create_session", "forward"),
        *("forward_backward", "get_info", "get_server_capabilities", "healthz"),
        *("join_sampling_session", "list_checkpoints", "load_adapter", "load_weights"),
        *("optim_step", "retrieve_future", "retrieve_futures", "sample", "samplers/{id}"),
        *("save_weights", "save_weights_external", "save_weights_for_sampler"),
        *("session_heartbeat", "sessions", "sessions/search", "sessions/{id}"),
        *("sessions/{id}/finish", "sessions/{id}/project", "sessions/{id}/trace_export"),
        *("telemetry", "training_runs", "training_runs/{id}", "training_runs/{id}/checkpoints"),
        "training_runs/{id}/checkpoints/{id}",
        # Below the routes of a deployment.
        *("chat/completions", "completions", "hot_load"),
        *(
            f"training_runs/{{id}}/checkpoints/{{id}}/{what}"
            for what in ("archive", "external_weights_urls", "publish", "ttl")
        ),
        *("unload_model", "weight_sync", "weights_info"),
    }
)
"""The operations of tinker 0.1.5 to 0.38.0 and fireworks-ai 1.2.30 below `/api/v1/`."""

_BACKGROUND: Final = frozenset(
    {"retrieve_future", "retrieve_futures", "session_heartbeat", "telemetry"}
)
"""Polls, heartbeats and the SDK's own telemetry: most of a run's requests, but no work."""

_METHODS: Final = frozenset(
    {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"}
)


class Operation(NamedTuple):
    """The operation of one request, with the attributes that are known before it is sent."""

    span_name: str
    """Such as `POST /api/v1/forward_backward`. For paths outside `/api/v1/` of a trainer route only
    the method, as the HTTP conventions require for paths without a template."""
    is_background: bool
    label: Mapping[str, AttributeValue]
    """Its name, such as `forward_backward`; nothing off trainer routes."""
    of_http: Mapping[str, AttributeValue]
    """Of every HTTP span and metric."""
    of_exchange: Mapping[str, AttributeValue]
    """Of the CLIENT span of an exchange."""
    of_request: Mapping[str, AttributeValue]
    """Of the INTERNAL span of a request."""
    of_both: Mapping[str, AttributeValue]
    """Of a CLIENT span that is the whole request's too."""


def operation_of(method: str, url: httpx.URL, route: Route | None) -> Operation:
    """The operation of a request.

    Args:
        method: The request's method.
        url: Its URL.
        route: The trainer route of the request, or None.
    """
    path = url.raw_path
    if b"?" in path:
        # Signed URLs all have different queries, which would fill the cache.
        path = path.partition(b"?")[0]
    if route is not None:
        return _on_route(method, path, route)
    return _off_routes(method, url.scheme, url.host, url.port, path)


@lru_cache(maxsize=1024)
def _on_route(method: str, raw_path: bytes, route: Route) -> Operation:
    url = httpx.URL(route.origin)
    return _operation(method, url.scheme, url.host, url.port, raw_path, route)


@lru_cache(maxsize=1024)
def _off_routes(
    method: str, scheme: str, host: str, port: int | None, raw_path: bytes
) -> Operation:
    return _operation(method, scheme, host, port, raw_path, None)


def _operation(
    method: str, scheme: str, host: str, port: int | None, raw_path: bytes, route: Route | None
) -> Operation:
    verb = method if method in _METHODS else "HTTP"
    path = raw_path.decode("ascii", "replace")
    base, recorded_base = ("", "") if route is None else (route.path, route.recorded_path)
    below = path[len(base) :]
    template = _template(below[1:])
    if route is not None and (below.startswith(_PREFIX) or template in {"", *_OPERATIONS}):
        name, recorded = f"{verb} /{template}", below
        label: dict[str, AttributeValue] = {names.OPERATION: template.removeprefix("api/v1/")}
    else:
        # A configured route may be a whole server, with such a key in the paths below it.
        _, prefix, tail = below.rpartition(_PREFIX)
        template = _template(tail)
        name, recorded = verb, prefix + template if prefix and template in _OPERATIONS else ""
        label = {}
    original = {} if verb == method else {names.METHOD_ORIGINAL: method}
    http = _of_http(method, scheme, host, port)
    url = {names.URL_FULL: _url(scheme, host, port, recorded_base + recorded)}
    request = original | label | ({} if route is None else route_labels(route))
    return Operation(
        name,
        path.rpartition("/")[2] in _BACKGROUND,
        label,
        of_http=http,
        of_exchange=http | original | url,
        of_request=http | request,
        of_both=http | request | url,
    )


def lookup_of(url: httpx.URL, template: str) -> Operation:
    """The operation of a lookup.

    Args:
        url: Its URL.
        template: Its path, with ids replaced; empty if the path may not be recorded.
    """
    path = ""
    if template:
        # Without the path of the control plane's base URL: it may contain a key.
        segments = url.raw_path.decode("ascii", "replace").split("/")
        path = "/".join(["", *segments[-template.count("/") :]])
    http = _of_http("GET", url.scheme, url.host, url.port)
    exchange = http | {names.URL_FULL: _url(url.scheme, url.host, url.port, path)}
    return Operation(
        f"GET {template}".rstrip(),
        is_background=False,
        label={},
        of_http=http,
        of_exchange=exchange,
        of_request=http,
        of_both=exchange,
    )


def _of_http(method: str, scheme: str, host: str, port: int | None) -> dict[str, AttributeValue]:
    return {
        names.METHOD: method if method in _METHODS else "_OTHER",
        names.SERVER_ADDRESS: host,
        names.SERVER_PORT: port or (443 if scheme == "https" else 80),
    }


def _url(scheme: str, host: str, port: int | None, path: str) -> str:
    """A URL without user name, password, query and fragment."""
    authority = f"[{host}]" if ":" in host else host
    return f"{scheme}://{authority}{'' if port is None else f':{port}'}{path}"


def route_labels(route: Route) -> dict[str, AttributeValue]:
    """The attributes that name a route: account and job, or its base URL as it may be shown."""
    found: dict[str, AttributeValue] = {}
    if not route.is_named_by_job:
        found[names.ROUTE] = route.recorded_url
    if route.account is not None:
        found[names.ACCOUNT] = route.account
    if route.job is not None:
        found[names.JOB] = route.job
    return found


def _template(path: str) -> str:
    """A path below a base URL, with its ids replaced."""
    words: list[str] = []
    for word in path.split("/"):
        is_id = words[-1:] and words[-1] in _COLLECTIONS and word != "search"
        words.append("{id}" if is_id or not _PATH_WORD.fullmatch(word) else word)
    return "/".join(words)
