"""Records of spans: a small one for each kind of span that the guard writes."""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple, TypeAlias

import msgspec

from tinker_guard.policy.judgement import Outcome, Reason

OUTCOMES: Final = tuple(outcome.value for outcome in Outcome)
REASONS: Final = tuple(reason.value for reason in Reason)
OTHER: Final = "other"
"""The name under which unknown outcomes and reasons are counted."""

_LONGEST_TEXT: Final = 160


def clean(text: str) -> str:
    """Make untrusted text safe to show: of bounded length, without control characters."""
    return _printable(text[:_LONGEST_TEXT])


@lru_cache(maxsize=1024)
def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


class Process(NamedTuple):
    """The process that exported a span, from its resource; each field may be missing."""

    instance: str | None = None
    """`service.instance.id`."""
    host: str | None = None
    """`host.name`."""
    pid: str | None = None
    """`process.pid`."""

    @property
    def is_known(self) -> bool:
        """Whether it distinguishes two processes."""
        return self.instance is not None or self.pid is not None

    def __str__(self) -> str:
        if self.pid is not None:
            return f"{self.pid} on {self.host}" if self.host else self.pid
        if self.instance is None:
            return "-"
        # The first characters of a UUID are enough.
        return self.instance[:8] if len(self.instance) == _UUID_LENGTH else self.instance


_UUID_LENGTH: Final = 36
UNKNOWN_PROCESS: Final = Process()
FURTHER_PROCESSES: Final = Process("(further)")
"""Stands for all processes beyond the limit."""


class Request(msgspec.Struct, gc=False):
    """One guarded request, resends included. Times are nanoseconds since the epoch, everywhere."""

    span_id: int
    trace_id: str
    name: str
    account: str | None
    """None off trainer routes."""
    job: str | None
    start: int
    end: int
    outcome: str
    resends: int
    is_race: bool
    """Whether the verdict on its last 404, or on those of its route's warmup, was a race."""
    reason: str | None
    """The reason of that verdict; None if it met no 404."""
    gate_wait: int | None = None
    """How long it waited for its route's warmup; None if it did not, or if the span lacks this."""
    error: str | None = None
    """The class of the final exception, or the final status code."""
    process: Process = UNKNOWN_PROCESS


class Resend(msgspec.Struct, gc=False):
    """One resend of a request."""

    parent_id: int | None
    number: int
    """1 for the first one."""
    start: int
    end: int = 0
    result: str = ""
    """The status code, or the class of the exception."""


class Question(msgspec.Struct, gc=False):
    """One question to the control plane."""

    parent_id: int | None
    account: str | None
    job: str | None
    reason: str | None
    """The reason of the verdict from its answer; None if there was no answer."""
    start: int
    end: int


class Probe(msgspec.Struct, gc=False):
    """One probe of a route."""

    parent_id: int | None
    start: int
    end: int
    result: str
    """`reached`, `not_found` or `failed`."""


class Warmup(msgspec.Struct, gc=False):
    """The wait before the first request on a route."""

    span_id: int
    parent_id: int | None
    account: str | None
    job: str | None
    start: int
    end: int
    is_refused: bool
    """Whether it ended with the 404 instead of an open gate."""
    process: Process = UNKNOWN_PROCESS


Record: TypeAlias = Request | Resend | Question | Probe | Warmup
