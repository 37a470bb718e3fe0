"""What answers look like: 404s of gateways and trainers, codings, and what edges say to probes."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, Final

import zstandard

if TYPE_CHECKING:
    from proof.simulation.schedule import Body, Coding

SECRET: Final = "keep-this-secret"  # noqa: S105 - the model's
"""In every header, query, body, and text of an error that is not the guard's."""

JSON: Final = {"content-type": "application/json", "x-debug": SECRET}

_GATEWAY_404: Final = (
    b'{"error": {"message": "Trainer job not found or not running", "param": "jobId", '
    b'"code": "NOT_FOUND", "trace": "keep-this-secret"}}'
)
_PROBLEM: Final = (
    b'{"type": "about:blank", "title": "Not Found", "status": 404, '
    b'"detail": "no route: keep-this-secret"}'
)
_HTML: Final = b"<html><body>404 page not found: keep-this-secret</body></html>"
_PLAIN: Final = b"404 page not found: keep-this-secret"
MUCH: Final = 1024 * 1024
"""As many bytes are read ahead, but no more."""
_LARGE: Final = b"keep-this-secret" * (MUCH // 16 + 16 * 1024)

OWN_404: Final = b'{"detail": "Not Found: keep-this-secret"}'
"""What a trainer says that looked for something and did not find it."""
ROUTER_404: Final = b'{"detail": "Not Found"}'
"""What the trainer's framework says of a path that it does not know, in whatever server."""
ODD_404: Final = b"nothing here but keep-this-secret"
CONTROL_PLANE_404: Final = b'{"code": 5, "message": "no such job: keep-this-secret", "details": []}'
"""What the control plane says of a job that does not exist."""


def coded(body: bytes, coding: Coding) -> bytes:
    """A body in its coding."""
    match coding:
        case "gzip":
            return gzip.compress(body, mtime=0)
        case "zstd":
            return zstandard.compress(body)
        case "gzip, gzip":
            return gzip.compress(gzip.compress(body, mtime=0), mtime=0)
        case "":
            return body


OWN_404S: Final[dict[Coding, tuple[dict[str, str], bytes]]] = {
    coding: (JSON | ({"content-encoding": coding} if coding else {}), coded(OWN_404, coding))
    for coding in ("", "gzip", "zstd", "gzip, gzip")
}
"""The trainer's own 404 in each coding."""

LOST: Final[dict[Body, tuple[dict[str, str], bytes, bytes]]] = {
    "gateway": (JSON, _GATEWAY_404, _GATEWAY_404),
    **{
        coding: (JSON | {"content-encoding": coding}, coded(_GATEWAY_404, coding), _GATEWAY_404)
        for coding in ("gzip", "zstd", "gzip, gzip")
    },
    "plain": ({"content-type": "text/plain"}, _PLAIN, _PLAIN),
    "empty": ({}, b"", b""),
    "problem": ({"content-type": "application/problem+json"}, _PROBLEM, _PROBLEM),
    "problem as json": (JSON, _PROBLEM, _PROBLEM),
    "router": ({"content-type": "application/json"}, ROUTER_404, ROUTER_404),
    "large": ({"content-type": "application/json"}, _LARGE, _LARGE),
}
"""A gateway's 404s: headers, body, and the body decoded."""

GATEWAYS_OWN: Final = ("gateway", "gzip", "zstd", "gzip, gzip")
"""Those of them that only a gateway writes."""

CODED: Final = ("gzip", "zstd", "gzip, gzip")

EDGE: Final[dict[str, tuple[int, dict[str, str], bytes]]] = {
    "429": (429, JSON | {"retry-after": "1"}, b'{"detail": "slow down, keep-this-secret"}'),
    "503": (503, {"content-type": "text/html"}, _HTML),
    "401": (401, JSON, b'{"detail": "keep-this-secret"}'),
    "302": (302, {"location": f"http://evil.test/{SECRET}"}, b""),
    "html": (200, {"content-type": "text/html"}, _HTML),
    "empty": (200, {}, b""),
    "cached": (200, JSON | {"age": "30"}, b'{"ok": true}'),
}
"""What something in front of a gateway says to a probe: status, headers, body."""

PLANE_404: Final[dict[str, tuple[dict[str, str], bytes]]] = {
    "gateway 404": (JSON, _GATEWAY_404),
    "html 404": ({"content-type": "text/html"}, _HTML),
    "empty 404": ({}, b""),
}
"""404s to a question that no control plane wrote."""
