"""Why an exchange failed, as data: an exception would keep alive all that it came through."""

from __future__ import annotations

import socket
import ssl
from typing import Literal, NamedTuple

import httpx


class Failure(NamedTuple):
    """Why an exchange failed."""

    kind: Literal["unknown_name", "tls", "refused", "late", "other"]
    error_type: str
    """Name of the exception's type."""


def failure_of(error: BaseException) -> Failure:
    """Read out of what a transport raised, and what that came from, why an exchange failed."""
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        error_type = type(cause).__name__
        if isinstance(cause, socket.gaierror):
            return Failure("unknown_name", error_type)
        if isinstance(cause, ssl.SSLError):
            return Failure("tls", error_type)
        if isinstance(cause, ConnectionRefusedError):
            return Failure("refused", error_type)
        cause = cause.__cause__ or cause.__context__
    is_late = isinstance(error, httpx.TimeoutException | TimeoutError)
    return Failure("late" if is_late else "other", type(error).__name__)
