"""Pure decisions: what a 404 means, and how long to wait before asking again.

Nothing here performs I/O, reads a clock or draws a random number; everything a decision
depends on is an argument.
"""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple, assert_never

if TYPE_CHECKING:
    from collections.abc import Mapping

    import httpx


class Verdict(StrEnum):
    """What a 404 on a guarded request turned out to be."""

    ROUTING_RACE = "routing_race"
    """The job runs; the gateway replica that answered has not learnt its route yet."""
    GENUINE_NOT_FOUND = "genuine_not_found"
    """The 404 is true: the job is gone or stopped, or the trainer itself wrote it."""
    UNVERIFIED = "unverified"
    """Nobody could be asked, so the 404 is handed back as it came."""


class Reason(StrEnum):
    """Why a verdict was reached; each reason belongs to exactly one verdict."""

    JOB_RUNNING = "job_running"
    JOB_NOT_RUNNING = "job_not_running"
    JOB_MISSING = "job_missing"
    TRAINER_ANSWERED = "trainer_answered"
    CONTROL_PLANE_ERROR = "control_plane_error"
    CONTROL_PLANE_TIMEOUT = "control_plane_timeout"
    NO_CONTROL_PLANE = "no_control_plane"


class Outcome(StrEnum):
    """How a whole guarded request ended, resends included."""

    OK = "ok"
    RECOVERED = "recovered"
    NOT_FOUND = "not_found"
    EXHAUSTED = "exhausted"
    UNVERIFIED = "unverified"
    ERROR = "error"
    CANCELLED = "cancelled"


class Source(StrEnum):
    """Who wrote a 404, as far as its body tells."""

    GATEWAY = "gateway"
    TRAINER = "trainer"
    UNKNOWN = "unknown"


class JobPhase(StrEnum):
    """What a control plane's job state means for a request that waits for its route."""

    RUNNING = "running"
    STARTING = "starting"
    """On the way to running, or a state this version does not know."""
    STOPPED = "stopped"
    """Ended, ending or paused: the route will not come up by waiting."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """One verdict with its one reason."""

    verdict: Verdict
    reason: Reason


ROUTING_RACE: Final = Judgement(Verdict.ROUTING_RACE, Reason.JOB_RUNNING)
JOB_NOT_RUNNING: Final = Judgement(Verdict.GENUINE_NOT_FOUND, Reason.JOB_NOT_RUNNING)
JOB_MISSING: Final = Judgement(Verdict.GENUINE_NOT_FOUND, Reason.JOB_MISSING)
TRAINER_ANSWERED: Final = Judgement(Verdict.GENUINE_NOT_FOUND, Reason.TRAINER_ANSWERED)
CONTROL_PLANE_ERROR: Final = Judgement(Verdict.UNVERIFIED, Reason.CONTROL_PLANE_ERROR)
CONTROL_PLANE_TIMEOUT: Final = Judgement(Verdict.UNVERIFIED, Reason.CONTROL_PLANE_TIMEOUT)
NO_CONTROL_PLANE: Final = Judgement(Verdict.UNVERIFIED, Reason.NO_CONTROL_PLANE)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the control plane said about a job, or why it said nothing."""

    state: str | None = None
    """The job's state; None says that there is no such job (or, with `failure`, nothing)."""
    failure: Judgement | None = None
    """Set when the question failed: `CONTROL_PLANE_ERROR` or `CONTROL_PLANE_TIMEOUT`."""
    detail: str = ""
    """For the log, when the question failed: what happened and what to do about it."""
    status_code: int | None = None
    """The HTTP status of the answer, where there was one."""

    @property
    def phase(self) -> JobPhase:
        """What the state means for a waiting request; a missing job counts as stopped."""
        return JobPhase.STOPPED if self.state is None else phase_of(self.state)


class NotFound(NamedTuple):
    """A probe's 404 that the trainer did not write."""

    source: Source
    headers: httpx.Headers
    body: bytes


class Refusal(NamedTuple):
    """Why probing ended without reaching the trainer."""

    judgement: Judgement
    not_found: NotFound
    answer: Answer


_STOPPED_STATES: Final = frozenset(
    f"JOB_STATE_{name}"
    for name in (
        "FAILED",
        "CANCELLED",
        "CANCELLING",
        "COMPLETED",
        "EARLY_STOPPED",
        "DELETING",
        "DELETED",
        "ARCHIVED",
        "PAUSED",
    )
)


def phase_of(state: str) -> JobPhase:
    """Sort a control plane's state name into the three phases that matter to a request."""
    if state == "JOB_STATE_RUNNING":
        return JobPhase.RUNNING
    return JobPhase.STOPPED if state in _STOPPED_STATES else JobPhase.STARTING


def judge(source: Source, answer: Answer | None) -> Judgement | None:
    """Give a 404 on a trainer route its verdict.

    Args:
        source: Who wrote the 404, from `source_of`.
        answer: What the control plane said, or None if it has not been asked yet.

    Returns:
        The verdict with its reason; None when the control plane has to be asked first.
    """
    if source is Source.TRAINER:
        return TRAINER_ANSWERED
    if answer is None:
        return None
    if answer.failure is not None:
        return answer.failure
    if answer.state is None:
        return JOB_MISSING
    return ROUTING_RACE if answer.phase is JobPhase.RUNNING else JOB_NOT_RUNNING


EVIDENCE_NEEDED: Final = 12
"""After how many resends in a row an unknown 404 counts as the trainer's.

Each was sent right after probes that all reached the trainer over the same connection. Were it a
race after all, a replica would have to know the route for each probe and lack it for each
request: at worst one chance in 4**12. It is up to three probes in turn, since replicas may be
taken in turn too.
"""


def weigh(source: Source, reached_in_a_row: int) -> Source:
    """Take evidence into account where the body names nobody.

    Args:
        source: Who wrote the 404, from `source_of`.
        reached_in_a_row: How many resends in a row met an unknown 404 although a probe right
            before them reached the trainer.
    """
    if source is Source.UNKNOWN and reached_in_a_row >= EVIDENCE_NEEDED:
        return Source.TRAINER
    return source


def outcome_of(status_code: int, resends: int, judgement: Judgement | None) -> Outcome:
    """The outcome of a request that was answered.

    Args:
        status_code: The status handed back.
        resends: How often the request was sent again.
        judgement: The verdict on its last 404, or None if it met none.
    """
    if status_code != 404 or judgement is None:
        return Outcome.RECOVERED if resends else Outcome.OK
    match judgement.verdict:
        case Verdict.ROUTING_RACE:
            return Outcome.EXHAUSTED
        case Verdict.GENUINE_NOT_FOUND:
            return Outcome.NOT_FOUND
        case Verdict.UNVERIFIED:
            return Outcome.UNVERIFIED
        case _:
            assert_never(judgement.verdict)


def source_of(content_type: str, content_encoding: str, body: bytes) -> Source:
    """Tell from a 404's body who wrote it.

    The gateway answers `{"error": {"code": "NOT_FOUND", "param": "jobId", ...}}`, a trainer
    (FastAPI) `{"detail": ...}`. Everything else is unknown and never taken for the trainer's,
    since handing back a 404 that was only a race would kill a healthy run.

    Args:
        content_type: The response's Content-Type, or an empty string.
        content_encoding: The response's Content-Encoding, or an empty string.
        body: The body as it came over the wire, possibly only its beginning.
    """
    if "json" not in content_type.lower():
        return Source.UNKNOWN
    try:
        # `json.loads` finds UTF-8, UTF-16 and UTF-32 by itself, whatever the charset claims.
        document = json.loads(decompressed(content_encoding, body, PEEK_LIMIT))
    except (ValueError, RecursionError, zlib.error):
        return Source.UNKNOWN
    if not isinstance(document, dict):
        return Source.UNKNOWN
    error = document.get("error")
    if isinstance(error, dict) and error.get("code") == "NOT_FOUND" and "param" in error:
        return Source.GATEWAY
    if "detail" in document and "error" not in document:
        return Source.TRAINER
    return Source.UNKNOWN


PEEK_LIMIT: Final = 64 * 1024
"""How many bytes of a 404's body are looked at, before and after decompression."""


def decompressed(content_encoding: str, body: bytes, limit: int) -> bytes:
    """Undo a body's Content-Encoding, up to a limit: a few bytes can stand for gigabytes.

    Args:
        content_encoding: The header's value, or an empty string.
        body: The body as it came over the wire, possibly only its beginning.
        limit: How many bytes the result has at the most.

    Raises:
        ValueError: Another coding than gzip and deflate.
        zlib.error: The body is not in its coding.
    """
    coding = content_encoding.strip().lower()
    if coding in ("", "identity"):
        return body[:limit]
    if coding in ("gzip", "deflate"):
        # 47: zlib finds out by itself whether the header is gzip's or zlib's.
        return zlib.decompressobj(wbits=47).decompress(body, limit)
    raise ValueError("a coding that is not looked into")


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


def retry_after(headers: Mapping[str, str], *, now: float) -> float:
    """Seconds that a 404 itself asks to wait; 0 if it asks for nothing that can be read.

    Args:
        headers: The response's headers; `retry-after-ms` wins over `Retry-After` (RFC 9110,
            10.2.3), which holds seconds or a date.
        now: The wall clock, seconds since the epoch. Without effect if the answer has a `Date`:
            it is taken to be of the same clock as the other date, and this machine's may be wrong.
    """
    try:
        if "retry-after-ms" in headers:
            seconds = float(headers["retry-after-ms"]) / 1000
        elif (value := headers.get("retry-after", "0")).strip().isdigit():
            seconds = float(value)
        else:
            seconds = _timestamp(value) - _sent_at(headers, now)
    except (ValueError, OverflowError):
        return 0.0
    return max(seconds, 0.0) if math.isfinite(seconds) else 0.0


def _sent_at(headers: Mapping[str, str], now: float) -> float:
    try:
        return _timestamp(headers["date"])
    except (KeyError, ValueError, OverflowError):
        return now


def _timestamp(date: str) -> float:
    parsed = parsedate_to_datetime(date)
    # One of the forms has no zone, and stands for UTC (RFC 9110, 5.6.7).
    return (parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=UTC)).timestamp()


def may_begin(*, elapsed: float, delay: float, budget: float) -> bool:
    """Whether a resend after `delay` would still begin within the budget (all in seconds)."""
    return elapsed + delay < budget
