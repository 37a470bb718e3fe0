"""How long to wait before something is sent again."""

from __future__ import annotations

import re
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


GROWTH: Final = 1.15
"""By which factor each wait between two resends exceeds the one before."""


def backoff(resend: int, *, initial: float, maximum: float, jitter: float) -> float:
    """How long to wait before the n-th resend of one request.

    The delays grow by 15 %, so that, but for jitter, the wait that is under way when the route
    comes up is about a seventh of the time already waited, where doubling would cost up to all
    of it again. With the defaults, before jitter: 0, 0.10, 0.12, 0.13, ... 3.00 s.

    Args:
        resend: 1 for the first resend, which is sent at once: over a new connection, another
            replica may know the route already.
        initial: Seconds before the second resend.
        maximum: Seconds that no delay exceeds.
        jitter: A random number from 0 to 1; 1 halves the delay, so that processes that failed
            together do not come back together.

    Returns:
        Seconds to wait.
    """
    if resend <= 1:
        return 0.0
    # Beyond 200 steps every delay is at its maximum, and 1.15**n would overflow in the end.
    delay = min(initial * GROWTH ** min(resend - 2, 200), maximum)
    return delay * (1 - 0.5 * jitter)


def spread(waited: float, *, initial: float, jitter: float) -> float:
    """How long a request stays back after another one has found that its route answers again.

    Requests of many processes wait for the same route, and all find it at about the same time. By
    default they are spread over up to 0.2 s. Over less, a gateway that cannot take them all at once
    sheds most of them, is idle until they come back, and then sheds again.

    Args:
        waited: Seconds since the request met its 404. It stays back for a quarter of them at most.
        initial: Seconds before the second resend; it stays back for twice as long at most.
        jitter: A random number from 0 to 1.

    Returns:
        Seconds to wait.
    """
    return min(2 * initial, waited / 4) * jitter


def retry_after(headers: Mapping[str, str], *, now: float) -> float:
    """Seconds that a 404 itself asks to wait; 0 if it asks for nothing that can be read.

    Args:
        headers: The response's headers; `retry-after-ms` wins over `Retry-After` (RFC 9110,
            10.2.3), which holds seconds or a date. Of several numbers the greatest counts.
        now: The wall clock, seconds since the epoch. Without effect if the answer has a `Date`:
            it is taken to be of the same clock as the other date, and this machine's may be wrong.
    """
    for name, units in (("retry-after-ms", 1000), ("retry-after", 1)):
        # Proxies add the header where there is one already.
        numbers = [number for text in headers.get(name, "").split(",") for number in _numbers(text)]
        if numbers:
            return max(*numbers, 0.0) / units
    try:
        seconds = _timestamp(headers.get("retry-after", "")) - _sent_at(headers, now)
    except (ValueError, OverflowError):
        return 0.0
    return max(seconds, 0.0)


def is_over(date: str, headers: Mapping[str, str]) -> bool:
    """Whether a date is past, by the clock of whoever wrote an answer; no if that is not told.

    Args:
        date: The date, as `Retry-After` and cookies have it.
        headers: The answer's headers, its `Date` among them.
    """
    try:
        return _timestamp(date) <= _timestamp(headers["date"])
    except (KeyError, ValueError, OverflowError):
        return False


def _numbers(text: str) -> tuple[float, ...]:
    """The number that a text is, such as 3 or 1.5; none if it is none."""
    return (min(float(text), _LONGEST),) if _NUMBER.fullmatch(text) else ()


# Python would read more: 1_0, 1e3, other scripts' digits.
_NUMBER: Final = re.compile(r"\s*[+-]?\d+(?:\.\d*)?\s*", re.ASCII)
_LONGEST: Final = 1e9
"""Seconds; every budget is over by then."""


def _sent_at(headers: Mapping[str, str], now: float) -> float:
    try:
        return _timestamp(headers["date"])
    except (KeyError, ValueError, OverflowError):
        return now


def _timestamp(date: str) -> float:
    parsed = parsedate_to_datetime(date)
    # One of the forms has no zone, and stands for UTC (RFC 9110, 5.6.7).
    return (parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=UTC)).timestamp()
