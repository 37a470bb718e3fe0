"""Names of low cardinality for what the SDK asks for, and which of it is only background."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, NamedTuple

# `forward_backward` or `v1`; anything with other characters in it is an id of something, and so
# is what follows the name of a collection in the SDK's paths.
_PATH_WORD: Final = re.compile(r"[a-z_]*|v\d")
_COLLECTIONS: Final = frozenset({"checkpoints", "samplers", "sessions", "training_runs"})

_BACKGROUND: Final = frozenset(
    {"retrieve_future", "retrieve_futures", "session_heartbeat", "telemetry"}
)
"""Polls, signs of life and the SDK's own telemetry: most of a run's requests, and no work."""

_METHODS: Final = frozenset(
    {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"}
)


class Operation(NamedTuple):
    """What one request asks for."""

    method: str
    """The HTTP method; `_OTHER` for one that no standard knows."""
    span_name: str
    """Such as `POST /api/v1/forward_backward`. Off trainer routes the method alone, as the HTTP
    conventions ask for where no template is known."""
    label: str | None
    """Such as `forward_backward`; None off trainer routes."""
    path: str
    """The path with its ids, without a query."""
    is_background: bool


def operation_of(method: str, raw_path: bytes, base: str | None) -> Operation:
    """Name a request.

    Args:
        method: The request's method.
        raw_path: Its path and query.
        base: The path of the trainer route that it lies on, or None.
    """
    # Without the query, which is different each time in a signed URL, and none of the cache's.
    return _operation(method, raw_path.partition(b"?")[0], base)


@lru_cache(maxsize=1024)
def _operation(method: str, raw_path: bytes, base: str | None) -> Operation:
    known = method if method in _METHODS else "_OTHER"
    verb = known if known == method else "HTTP"
    path = raw_path.decode("ascii", "replace")
    is_background = path.rpartition("/")[2] in _BACKGROUND
    if base is None:
        return Operation(known, verb, None, path, is_background)
    words: list[str] = []
    for word in path[len(base) :].split("/")[1:]:
        is_id = words[-1:] and words[-1] in _COLLECTIONS and word != "search"
        words.append("{id}" if is_id or not _PATH_WORD.fullmatch(word) else word)
    below = "/".join(words)
    return Operation(known, f"{verb} /{below}", below.removeprefix("api/v1/"), path, is_background)
