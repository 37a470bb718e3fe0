"""Log lines, all on the logger `tinker_guard`.

A line that is written during an active trace has its ids, under the names of OpenTelemetry's own
logging instrumentation: `otelTraceID`, `otelSpanID`, `otelTraceSampled`.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final, NamedTuple, assert_never

from opentelemetry import trace

from tinker_guard.faults import fail_open, logger
from tinker_guard.policy.job import JobPhase
from tinker_guard.policy.judgement import TRAINER_ANSWERED, Judgement, Reason
from tinker_guard.settings import variable
from tinker_guard.transports import runtime

if TYPE_CHECKING:
    from tinker_guard.core.routes import RouteState
    from tinker_guard.policy.judgement import JobAnswer

_REPEAT_AFTER: Final = 10.0
"""Seconds between two lines on the same wait, or the same verdict."""
_SAME_RACE: Final = 60.0
"""Seconds without a race after which the next race is logged as a new one."""


def _add_trace_ids(record: logging.LogRecord) -> bool:
    """A filter that adds the ids of the active trace to each record, and drops none."""
    context = trace.get_current_span().get_span_context()
    record.otelTraceID = f"{context.trace_id:032x}" if context.is_valid else "0"
    record.otelSpanID = f"{context.span_id:016x}" if context.is_valid else "0"
    record.otelTraceSampled = context.trace_flags.sampled
    return True


logger.addFilter(_add_trace_ids)


class Wait(NamedTuple):
    """A wait for a route, and its budget."""

    asked: str
    """The request, such as `POST /api/v1/forward_backward`; empty if there is none."""
    seconds: float = 0.0
    """The whole budget."""
    setting: str = ""
    """The variable that raises the budget."""

    def within(self, setting: str, seconds: float) -> Wait:
        """The same, with a setting as its budget."""
        return Wait(self.asked, seconds, variable(setting))


class RouteLog:
    """The last log lines of one route, so that not every request writes a line.

    A *race* lasts until no request has met one for `_SAME_RACE` seconds: if one of two replicas
    stays stale, every other request meets the race.
    """

    __slots__ = (
        "conflict_at",
        "is_open",
        "judgement",
        "judgement_at",
        "last_said",
        "met_at",
        "more",
        "said_at",
        "since",
    )

    def __init__(self) -> None:
        self.is_open: bool = False
        """Whether the last line reports a waiting request."""
        self.since: float | None = None
        """When the current wait began; None if no request waits."""
        self.met_at: float = float("-inf")
        """When a wait was recorded last."""
        self.said_at: float = float("-inf")
        """When a line was written last."""
        self.last_said: str = ""
        """The last answer of the control plane."""
        self.more: int = 0
        """Number of requests that have recovered since the last line, without their own line."""
        self.judgement: Judgement | None = None
        """The last verdict that was logged with a 404 handed back."""
        self.judgement_at: float = 0.0
        """When that verdict was logged."""
        self.conflict_at: float = float("-inf")
        """When a resend that ended in a conflict was logged last."""


@fail_open
def log_waiting(state: RouteState, wait: Wait, why: str, *, left: float, is_race: bool) -> None:
    """Log a wait for a route: when it begins, and every `_REPEAT_AFTER` seconds.

    Between these lines, a new reason for the wait is logged at the INFO level.

    Args:
        state: The route.
        wait: The wait.
        why: The reason.
        left: Seconds left of the budget.
        is_race: Whether the reason is known to be a race.
    """
    log, now = state.log, runtime.now()
    is_new, log.since = log.since is None, now if log.since is None else log.since
    is_same_race, log.met_at = now - log.met_at < _SAME_RACE, now
    last_said, log.last_said = log.last_said, why
    if is_new and not is_same_race:
        log.is_open, log.said_at, log.more = True, now, 0
        logger.warning(
            "%s%s up to %g s (%s) for the route of %s: %s.",
            "routing race: " if is_race else "",
            f"{wait.asked} waits" if wait.asked else "waiting",
            wait.seconds,
            wait.setting,
            state.route.subject,
            why,
        )
    elif not is_new:
        is_due = now - max(log.said_at, log.since) >= _REPEAT_AFTER
        if not is_due and why == last_said:
            return
        if is_due:
            log.is_open, log.said_at = True, now
        logger.log(
            logging.WARNING if is_due else logging.INFO,
            "%s: still waiting for its route after %.0f s, %.0f s left; %s.",
            state.route.subject,
            now - log.since,
            left,
            why,
        )


def say_why(
    answer: JobAnswer | None, race: Judgement | None, *, has_control_plane: bool = True
) -> str:
    """The reason why a request waits after a 404, its own or one of its probes.

    Args:
        answer: The last answer of the control plane.
        race: The verdict, if the 404s are known to come from a race.
        has_control_plane: Whether there is one.
    """
    if not has_control_plane:
        said = "nothing has" if race is None else "a request or probe has"
        said += " reached its trainer"
    elif race is not None and race.reason is Reason.TRAINER_REACHED:
        said = "a probe has reached its trainer"
    elif answer is None or answer.failure is not None:
        said = "the control plane gives no usable answer"
    else:
        said = f"the control plane says {answer.state or 'that there is no such job'}"
    return f"the gateway answers 404, {'but' if race is not None else 'and'} {said}"


@fail_open
def log_race_over(state: RouteState, resends: int) -> None:
    """Log the first answered request after a race; count the later ones.

    Args:
        state: The route.
        resends: How often the request was sent again.
    """
    log, now = state.log, runtime.now()
    _forget_handed_back(log)
    since, log.since = log.since, None
    if log.is_open and since is not None:
        log.is_open, log.said_at = False, now
        logger.warning(
            "%s: its route answers after %.2f s (resends of this request: %d).",
            state.route.subject,
            now - since,
            resends,
        )
    elif resends:
        log.more += 1
        if now - log.said_at >= _REPEAT_AFTER:
            logger.warning(
                "%s: %d more %s met a 404 of the gateway and recovered; some replica "
                "still lacks the route.",
                state.route.subject,
                log.more,
                "request" if log.more == 1 else "requests",
            )
            log.said_at, log.more = now, 0


@fail_open
def log_conflict(state: RouteState, wait: Wait) -> None:
    """Log a resend that was answered 409; for `_REPEAT_AFTER` seconds, others only at DEBUG.

    Args:
        state: The route.
        wait: The request's wait.
    """
    log, now = state.log, runtime.now()
    is_news = now - log.conflict_at >= _REPEAT_AFTER
    if is_news:
        log.conflict_at = now
    logger.log(
        logging.WARNING if is_news else logging.DEBUG,
        "%s: %s was sent again after a 404, and the trainer answers that it conflicts (409). It "
        "has probably done it the first time: only the answer was lost, and asking once more will "
        "not help.",
        state.route.subject,
        wait.asked,
    )


@fail_open
def log_warm(state: RouteState, seconds: float, probes: int) -> None:
    """Log that a route's gate opened; at WARNING only if a line at WARNING announced the wait."""
    log = state.log
    level = logging.WARNING if log.is_open else logging.INFO
    log.is_open, log.since = False, None
    logger.log(
        level,
        "%s: its route answers after %.2f s and %d probes.",
        state.route.subject,
        seconds,
        probes,
    )


@fail_open
def log_not_probed(state: RouteState, why: str) -> None:
    """Log why a route cannot be probed, where waiting does not help."""
    logger.warning("%s: its route cannot be probed: %s.", state.route.subject, why)


_MOST: Final = 0.9
"""A request that has waited for so much of its budget has used it up."""


class HandedBack(NamedTuple):
    """A warning about a 404 that was handed back."""

    line: str
    at: float
    """When it was written, by `time.monotonic()`."""
    log: RouteLog
    """The log of the 404's route."""


last_handed_back: list[HandedBack] = []
"""The last such warning, for the end of a traceback; empty if its route has answered since, or a
trainer's own 404 has come."""


def _forget_handed_back(log: RouteLog) -> None:
    """Forget the 404 of a route that answers again: a later 404 of the program is another one."""
    last_handed_back[:] = [said for said in last_handed_back if said.log is not log]


@fail_open
def log_handed_back(
    state: RouteState,
    judgement: Judgement,
    answer: JobAnswer | None,
    seconds: float,
    wait: Wait,
    *,
    is_replayable: bool = True,
) -> None:
    """Log a 404 that is handed back: the verdict, the time, and the remedy.

    Requests that fail together write one line: for `_REPEAT_AFTER` seconds, the same verdict on the
    same route is repeated only at the DEBUG level.
    """
    log, now = state.log, runtime.now()
    if judgement is TRAINER_ANSWERED:
        log_race_over(state, 0)
    else:
        log.since, log.is_open, log.met_at = None, False, float("-inf")
    is_repeated = log.judgement == judgement and now - log.judgement_at < _REPEAT_AFTER
    # A trainer's own 404 is normal traffic, for instance of a server that lacks an endpoint.
    is_news = judgement is not TRAINER_ANSWERED and not is_repeated
    # A 404 that is handed back at once, on a route that was warm, is so with any setting. Without a
    # probe, the request does not wait for the route.
    would_wait = state.route.has_probe and seconds >= _MOST * wait.seconds
    explanation = _explanation(
        judgement, answer, wait, is_replayable=is_replayable, would_wait=would_wait
    )
    if state.route.deployment is not None:
        # The texts, and those of the control plane's errors, mention a job and the base URL.
        # The leading space protects host names.
        explanation = explanation.replace(" in base_url", "").replace(" job", " deployment")
    line = (
        f"404 for {state.route.subject} handed back after {seconds:.2f} s "
        f"({judgement.verdict.value}, {judgement.reason.value}): {explanation}"
    )
    if is_news:
        log.judgement, log.judgement_at = judgement, now
    if judgement is TRAINER_ANSWERED:
        last_handed_back.clear()
    elif is_news or not last_handed_back:
        last_handed_back[:] = [HandedBack(line, time.monotonic(), log)]
    logger.log(logging.WARNING if is_news else logging.DEBUG, "%s", line)


def _explanation(
    judgement: Judgement,
    answer: JobAnswer | None,
    wait: Wait,
    *,
    is_replayable: bool,
    would_wait: bool,
) -> str:
    match judgement.reason:
        case Reason.JOB_RUNNING | Reason.TRAINER_REACHED if not is_replayable:
            return (
                "the job runs, but the request's body is a stream and cannot be sent again. Give "
                "it as bytes."
            )
        case Reason.JOB_RUNNING | Reason.TRAINER_REACHED:
            return (
                "the job runs, but the gateway has not learnt its route. If this lasts, tell the "
                f"operator of the gateway; a longer {wait.setting} waits longer."
            )
        case Reason.JOB_NOT_RUNNING:
            is_starting = answer is not None and answer.phase is JobPhase.STARTING
            advice = f" It is on its way: a longer {wait.setting} waits longer."
            said = f"the control plane says that it is {answer.state if answer else 'stopped'}."
            return said + advice if is_starting and would_wait else said
        case Reason.JOB_MISSING:
            return (
                "the control plane knows no such job. Check the account and job in base_url, and "
                "TINKER_GUARD_CONTROL_PLANE_URL if the control plane lives elsewhere."
            )
        case Reason.TRAINER_ANSWERED:
            return "the trainer itself answered."
        case Reason.CONTROL_PLANE_ERROR | Reason.CONTROL_PLANE_TIMEOUT | Reason.NO_CONTROL_PLANE:
            detail = (
                answer.detail
                if answer is not None and answer.detail
                else (
                    "the control plane gave no usable answer in time. A longer "
                    f"{wait.setting} asks it longer."
                )
            )
            return f"it could not be verified: {detail}"
        case _:
            assert_never(judgement.reason)
