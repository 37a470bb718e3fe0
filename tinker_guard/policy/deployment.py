"""Which deployment of Fireworks a request is for: its URL is the same for all of them."""

from __future__ import annotations

import re
from typing import Final

import httpx

from tinker_guard.policy.route import DEPLOYMENT_HEADER, HOT_LOAD, INFERENCE, leads_elsewhere

_HOT_LOADS: Final = f"{HOT_LOAD}/"
_COMPLETIONS: Final = frozenset({f"{INFERENCE}/completions", f"{INFERENCE}/chat/completions"})

_MODEL: Final = re.compile(rb'"model"\s*:\s*"([^"\\]*)"')
"""A member of an object, at any depth: within a string, its quotes would be escaped. Where members
of that name say different things, it is not told which one is meant."""


def named_deployment(request: httpx.Request) -> tuple[str, str] | None:
    """The base path of a hot-load or a completion, and what it names; None for other requests.

    Args:
        request: The request. Its body is read only if it is a completion's, and in memory.
    """
    path = request.url._uri_reference.path
    if path.startswith(_HOT_LOADS) and not leads_elsewhere(path):
        return HOT_LOAD, request.headers.get(DEPLOYMENT_HEADER, "")
    if path in _COMPLETIONS and isinstance(request.stream, httpx.ByteStream):
        named = set(_MODEL.findall(b"".join(request.stream)))
        return (INFERENCE, named.pop().decode("ascii", "replace")) if len(named) == 1 else None
    return None
