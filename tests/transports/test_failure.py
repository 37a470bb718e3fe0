from __future__ import annotations

import itertools
import socket
import ssl

import httpx
import pytest

from tinker_guard.transports.failure import Failure, failure_of


def chained(*errors: BaseException, by_cause: bool = True) -> BaseException:
    """Each error comes from the next one."""
    for error, cause in itertools.pairwise(errors):
        if by_cause:
            error.__cause__ = cause
        else:
            error.__context__ = cause
    return errors[0]


@pytest.mark.parametrize("by_cause", [True, False])
@pytest.mark.parametrize(
    ("errors", "failure"),
    [
        ([httpx.ConnectError("x"), OSError(), socket.gaierror()], ("unknown_name", "gaierror")),
        ([httpx.ConnectError("x"), ssl.SSLEOFError()], ("tls", "SSLEOFError")),
        (
            [httpx.ConnectError("x"), ConnectionRefusedError()],
            ("refused", "ConnectionRefusedError"),
        ),
        ([ConnectionRefusedError()], ("refused", "ConnectionRefusedError")),
        ([httpx.ConnectTimeout("x"), OSError()], ("late", "ConnectTimeout")),
        ([TimeoutError()], ("late", "TimeoutError")),
        ([httpx.ReadError("x"), TimeoutError()], ("other", "ReadError")),
        ([OSError(113, "tml-secret")], ("other", "OSError")),
    ],
)
def test_the_cause_says_why(
    errors: list[BaseException], failure: tuple[str, str], by_cause: bool
) -> None:
    assert failure_of(chained(*errors, by_cause=by_cause)) == Failure(*failure)  # type: ignore[arg-type]


def test_errors_that_come_from_each_other_end() -> None:
    one, other = httpx.ReadError("one"), httpx.ReadError("other")
    one.__context__, other.__context__ = other, one
    assert failure_of(one) == Failure("other", "ReadError")
