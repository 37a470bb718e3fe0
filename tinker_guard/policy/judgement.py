"""Pure decisions: what a 404 on a trainer route means, and how a request ended.

Nothing here performs I/O, reads a clock or draws a random number; everything that a decision
depends on is an argument.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import EnumType, StrEnum
from typing import Final, TypeAlias, assert_never

from tinker_guard.policy.job import JobPhase, phase_of
from tinker_guard.policy.route import last_segment


class _ShortHelp(EnumType):
    """`help()` and completion show the members, not what every string can do."""

    def __dir__(cls) -> list[str]:
        return list(cls.__members__)


class Verdict(StrEnum, metaclass=_ShortHelp):
    """What a 404 on a guarded request turned out to be."""

    ROUTING_RACE = "routing_race"
    """The job runs; the gateway replica that answered has not learnt its route yet."""
    GENUINE_NOT_FOUND = "genuine_not_found"
    """The 404 is true: the job is gone or stopped, or the trainer itself wrote it."""
    UNVERIFIED = "unverified"
    """There is no proof in either direction, so the 404 is handed back as it came."""


class Reason(StrEnum):
    """Why a verdict was reached; each reason belongs to exactly one verdict."""

    JOB_RUNNING = "job_running"
    TRAINER_REACHED = "trainer_reached"
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


@dataclass(frozen=True, slots=True)
class Judgement:
    """One verdict with its one reason."""

    verdict: Verdict
    reason: Reason

    @property
    def is_race(self) -> bool:
        """Whether the request may be sent again."""
        return self.verdict is Verdict.ROUTING_RACE


JOB_RUNNING: Final = Judgement(Verdict.ROUTING_RACE, Reason.JOB_RUNNING)
TRAINER_REACHED: Final = Judgement(Verdict.ROUTING_RACE, Reason.TRAINER_REACHED)
JOB_NOT_RUNNING: Final = Judgement(Verdict.GENUINE_NOT_FOUND, Reason.JOB_NOT_RUNNING)
JOB_MISSING: Final = Judgement(Verdict.GENUINE_NOT_FOUND, Reason.JOB_MISSING)
TRAINER_ANSWERED: Final = Judgement(Verdict.GENUINE_NOT_FOUND, Reason.TRAINER_ANSWERED)
CONTROL_PLANE_ERROR: Final = Judgement(Verdict.UNVERIFIED, Reason.CONTROL_PLANE_ERROR)
CONTROL_PLANE_TIMEOUT: Final = Judgement(Verdict.UNVERIFIED, Reason.CONTROL_PLANE_TIMEOUT)
NO_CONTROL_PLANE: Final = Judgement(Verdict.UNVERIFIED, Reason.NO_CONTROL_PLANE)


@dataclass(frozen=True, slots=True)
class JobAnswer:
    """What the control plane said about a job, or why it said nothing that can be used."""

    state: str | None = None
    """The job's state; None says that there is no such job (or, with `failure`, nothing)."""
    failure: Judgement | None = None
    """Set when there is no usable answer; one of the `UNVERIFIED` judgements."""
    detail: str = ""
    """For the log, when there is no usable answer: what happened and what to do about it."""
    status_code: int | None = None
    """The HTTP status of the answer, where there was one."""
    retry_after: float = 0.0
    """Seconds for which the control plane asks not to be asked again."""
    asked_at: float = 0.0
    """When the lookup began, by the clock of its event loop."""
    answered_at: float = 0.0
    """When it was answered."""
    stated_phase: JobPhase | None = None
    """What the state means, if the control plane has states of its own."""

    @property
    def phase(self) -> JobPhase:
        """What the state means for a waiting request; a missing job counts as stopped."""
        if self.state is None:
            return JobPhase.STOPPED
        return self.stated_phase or phase_of(self.state)

    @property
    def is_running(self) -> bool:
        """Whether the control plane says that the job runs."""
        return self.failure is None and self.phase is JobPhase.RUNNING

    @property
    def is_missing(self) -> bool:
        """Whether the control plane says that there is no such job."""
        return self.failure is None and self.state is None

    @property
    def earliest_later(self) -> float:
        """The earliest time at which a later lookup may have begun."""
        return math.nextafter(self.asked_at, math.inf)

    def timed(self, asked_at: float, answered_at: float) -> JobAnswer:
        """The same answer with its times."""
        return replace(self, asked_at=asked_at, answered_at=answered_at)


def is_in_force(answer: JobAnswer, *, now: float, not_found_at: float, ttl: float) -> bool:
    """Whether an answer of the control plane may judge a 404.

    RUNNING may be reused for a while. Anything else must have been asked after the 404, since a
    state can change at any moment; unless the control plane has asked not to be asked again yet.

    Args:
        answer: The answer.
        now: The present time, seconds.
        not_found_at: When the 404 came.
        ttl: Seconds for which RUNNING is reused.
    """
    if answer.is_running:
        return answer.asked_at >= not_found_at or now - answer.answered_at < ttl
    return answer.asked_at >= not_found_at or now < answer.answered_at + answer.retry_after


@dataclass(frozen=True, slots=True)
class AskAgain:
    """One answer is not enough for a verdict: the control plane is to be asked again."""

    seconds: float
    """How long to wait before that."""


class KeepWaiting:
    """The job is on its way, and its route has never answered."""


Judged: TypeAlias = Judgement | AskAgain | KeepWaiting

MISSING_AGAIN_AFTER: Final = 2.0
"""Seconds between the two lookups that must find no job: a control plane that reads from a replica
may not know a job that was just created, or lose its row for a moment."""

_LEAST_PAUSE: Final = 0.01
SETTLING: Final = 1.0
"""Seconds after a route has come up for which its control plane may still say CREATING."""


def judge(answer: JobAnswer, *, was_missing: bool, warm_for: float | None) -> Judged:
    """Judge a 404 on a trainer route that the trainer did not write.

    Args:
        answer: What the control plane said, in force for this 404.
        was_missing: Whether an earlier lookup for this 404 found no job.
        warm_for: Seconds for which the route had been answering when the lookup began; None if it
            had not come up when the 404 came.
    """
    if answer.failure is not None:
        return answer.failure
    if answer.is_missing:
        return JOB_MISSING if was_missing else AskAgain(MISSING_AGAIN_AFTER)
    match answer.phase:
        case JobPhase.RUNNING:
            return JOB_RUNNING
        case JobPhase.STOPPED:
            return JOB_NOT_RUNNING
        case JobPhase.STARTING:
            if warm_for is None:
                return KeepWaiting()
            if warm_for >= SETTLING:
                return JOB_NOT_RUNNING
            # Not less, or rounding could make it ask again at once, and again.
            return AskAgain(max(SETTLING - warm_for, _LEAST_PAUSE))
        case _:
            assert_never(answer.phase)


REMEMBERED_FOR: Final = 60.0
"""Seconds for which later requests on a route without a control plane are spared a budget that was
spent there in vain."""


def judge_by_reach(*, has_reached: bool) -> Judgement:
    """Judge a 404 that the trainer did not write on a route without a control plane.

    Args:
        has_reached: Whether this process has ever reached the route's trainer. If so, something
            on the way has lost it, until that lasts for a whole budget.
    """
    return TRAINER_REACHED if has_reached else NO_CONTROL_PLANE


def outcome_of(status_code: int, judgement: Judgement | None) -> Outcome:
    """The outcome of a request that was answered.

    Args:
        status_code: The status handed back.
        judgement: The verdict on the last 404 that the request, or its warmup, met; None if there
            was none.
    """
    if judgement is None:
        return Outcome.OK
    if status_code != 404:
        return Outcome.ERROR if status_code >= 500 else Outcome.RECOVERED
    match judgement.verdict:
        case Verdict.ROUTING_RACE:
            return Outcome.EXHAUSTED
        case Verdict.GENUINE_NOT_FOUND:
            return Outcome.NOT_FOUND
        case Verdict.UNVERIFIED:
            return Outcome.UNVERIFIED
        case _:
            assert_never(judgement.verdict)


_ESSENTIAL: Final = frozenset(
    {
        *(b"create_model", b"create_session", b"forward", b"forward_backward", b"optim_step"),
        *(b"load_weights", b"save_weights", b"save_weights_for_sampler", b"weights_info"),
        *(b"asample", b"create_sampling_session", b"join_sampling_session"),
        *(b"retrieve_future", b"retrieve_futures"),
        # Of `client/config`, which a constructor asks for, and of `auth/token`.
        *(b"config", b"get_info", b"token"),
    }
)
"""Without these no run begins, trains, samples, saves or resumes: an SDK that asks for one cannot
go on without it, so that a trainer which lacks it does not speak with that SDK. Not what an SDK
can do without, such as `client/dynamic_config`, heartbeats and lists of checkpoints."""


def is_essential_to_sdks(raw_path: bytes) -> bool:
    """Whether a request is for an operation that its SDK cannot do without.

    Args:
        raw_path: The request's path and query.
    """
    return last_segment(raw_path) in _ESSENTIAL


_BACKGROUND: Final = frozenset({b"telemetry", b"session_heartbeat", b"finish"})
_REPEATED: Final = frozenset({b"healthz", b"completions", b"hot_load"})
"""What clients repeat by themselves: Fireworks' SDK polls health and the state of a hot-load, and
retries completions. A hot-load itself has the same path as its state."""


def waits_once(raw_path: bytes) -> bool:
    """Whether a request gets its 404 at once on a route where another one has waited in vain.

    Telemetry, heartbeats and ends of sessions, with which no run fails; and requests that their
    clients repeat after a 404, whose own waits the guard would multiply otherwise.

    Args:
        raw_path: The request's path and query.
    """
    return last_segment(raw_path) in _BACKGROUND | _REPEATED
