"""Low-cardinality names of the SDK's operations, and the set of background operations."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
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
    """The operation of one request."""

    method: str
    """The HTTP method; `_OTHER` for a non-standard one."""
    span_name: str
    """Such as `POST /api/v1/forward_backward`. For paths outside `/api/v1/` of a trainer route only
    the method, as the HTTP conventions require for paths without a template."""
    label: str | None
    """Such as `forward_backward`; None off trainer routes."""
    path: str
    """The part of the path that may be recorded: below `/api/v1/` of a trainer route, all but the
    query. Elsewhere the template of a known operation of the SDK, or nothing: some servers have the
    API key in the path."""
    is_background: bool


def operation_of(method: str, raw_path: bytes, route: Route | None) -> Operation:
    """The operation of a request.

    Args:
        method: The request's method.
        raw_path: Its path and query.
        route: The trainer route of the request, or None.
    """
    # Without the query: signed URLs all have different ones, which would fill the cache.
    path = raw_path.partition(b"?")[0]
    if route is None:
        return _operation(method, path, None, "")
    return _operation(method, path, route.path, route.recorded_path)


@lru_cache(maxsize=1024)
def _operation(method: str, raw_path: bytes, base: str | None, recorded_base: str) -> Operation:
    known = method if method in _METHODS else "_OTHER"
    verb = known if known == method else "HTTP"
    path = raw_path.decode("ascii", "replace")
    is_background = path.rpartition("/")[2] in _BACKGROUND
    below = path if base is None else path[len(base) :]
    template = _template(below[1:])
    if base is None or not (below.startswith(_PREFIX) or template in {"", *_OPERATIONS}):
        # A configured route may be a whole server, with such a key in the paths below it.
        _, prefix, tail = below.rpartition(_PREFIX)
        template = _template(tail)
        recorded = prefix + template if prefix and template in _OPERATIONS else ""
        return Operation(known, verb, None, recorded_base + recorded, is_background)
    label = template.removeprefix("api/v1/")
    return Operation(known, f"{verb} /{template}", label, recorded_base + below, is_background)


def _template(path: str) -> str:
    """A path below a base URL, with its ids replaced."""
    words: list[str] = []
    for word in path.split("/"):
        is_id = words[-1:] and words[-1] in _COLLECTIONS and word != "search"
        words.append("{id}" if is_id or not _PATH_WORD.fullmatch(word) else word)
    return "/".join(words)
