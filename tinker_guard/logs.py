"""Log lines for the person at the terminal, all on the logger `tinker_guard`.

A line that is written while a trace is active carries its ids, named as OpenTelemetry's own logging
instrumentation names them: `otelTraceID`, `otelSpanID`, `otelTraceSampled`.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from functools import wraps
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar, assert_never

from opentelemetry import trace

from tinker_guard.verdict import TRAINER_ANSWERED, Judgement, Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from tinker_guard.route import RouteState
    from tinker_guard.verdict import Answer

logger: Final = logging.getLogger("tinker_guard")

_P = ParamSpec("_P")
_T = TypeVar("_T")

_REPEAT_AFTER: Final = 10.0


def _add_trace_ids(record: logging.LogRecord) -> bool:
    """Put the ids of the active trace on a record; a filter that lets everything pass."""
    context = trace.get_current_span().get_span_context()
    record.otelTraceID = f"{context.trace_id:032x}" if context.is_valid else "0"
    record.otelSpanID = f"{context.span_id:016x}" if context.is_valid else "0"
    record.otelTraceSampled = context.trace_flags.sampled
    return True


logger.addFilter(_add_trace_ids)

_faults_logged: set[str] = set()


def log_fault(where: str) -> None:
    """Log a fault of the guard's own, once per place; the request goes on without it."""
    _log_once(
        where,
        "tinker_guard: a fault of its own in %s; requests go on without it. Please report it.",
    )


def log_unclosed(what: str) -> None:
    """Log, once for each kind of thing, that one did not close; whoever waited goes on."""
    _log_once(f"closing {what}", "tinker_guard: %s failed or took too long; it is left to itself.")


def _log_once(where: str, message: str) -> None:
    if where not in _faults_logged:
        _faults_logged.add(where)
        # A handler of the program's own may raise, whatever it is given.
        with suppress(Exception):
            logger.warning(message, where, exc_info=True)


def harmless(function: Callable[_P, _T]) -> Callable[_P, _T | None]:
    """Make a function of telemetry one that never raises: what it was for goes on without it."""

    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T | None:
        try:
            return function(*args, **kwargs)
        except Exception:
            log_fault(f"telemetry ({function.__name__})")
            return None

    return call


@harmless
def log_race_met(state: RouteState) -> None:
    """Say once per race that a running job's route is not known everywhere yet."""
    now = asyncio.get_running_loop().time()
    if state.race_met_at is None:
        state.race_met_at = now
        logger.warning(
            "routing race: the gateway answers 404 for job %s, but the control plane says that it "
            "runs. Resending until the route is known.",
            state.route,
        )


@harmless
def log_race_over(state: RouteState, resends: int) -> None:
    """Say once per race that it is over, and how long it took."""
    met_at, state.race_met_at = state.race_met_at, None
    if met_at is not None:
        logger.warning(
            "routing race over: job %s answers again after %.2f s (resends of this request: %d).",
            state.route,
            asyncio.get_running_loop().time() - met_at,
            resends,
        )


@harmless
def log_waiting(state: RouteState, what: str, seconds: float) -> None:
    """Say that something waits, and for what."""
    logger.info("job %s: %s; next look in %.2f s.", state.route, what, seconds)


@harmless
def log_warm(state: RouteState, seconds: float, probes: int) -> None:
    """Say that a route's gate opened."""
    logger.info("job %s: route is warm after %.2f s and %d probes.", state.route, seconds, probes)


@harmless
def log_handed_back(
    state: RouteState,
    judgement: Judgement,
    answer: Answer | None,
    seconds: float,
    *,
    is_replayable: bool = True,
) -> None:
    """Say why a 404 is handed back, after how long, and what a person can do about it.

    Requests that fail together say it once: the same verdict on the same route is repeated at
    the DEBUG level only, for `_REPEAT_AFTER` seconds.
    """
    state.race_met_at = None
    now = asyncio.get_running_loop().time()
    said, said_at = state.said
    is_news = said != judgement or now - said_at >= _REPEAT_AFTER
    if judgement is TRAINER_ANSWERED:
        # A trainer's own 404 is part of normal traffic (a server without an endpoint, say).
        level = logging.DEBUG
    elif is_news:
        level = logging.WARNING
        state.said = (judgement, now)
    else:
        level = logging.DEBUG
    logger.log(
        level,
        "404 for job %s handed back after %.2f s (%s, %s): %s",
        state.route,
        seconds,
        judgement.verdict.value,
        judgement.reason.value,
        _explanation(judgement, answer, is_replayable=is_replayable),
    )


def _explanation(judgement: Judgement, answer: Answer | None, *, is_replayable: bool) -> str:
    match judgement.reason:
        case Reason.JOB_RUNNING if not is_replayable:
            return (
                "the job runs, but the request's body is a stream and cannot be sent again. Give "
                "it as bytes."
            )
        case Reason.JOB_RUNNING:
            return (
                "the job runs, but the gateway has not learnt its route. If this lasts, tell the "
                "operator of the gateway; a longer TINKER_GUARD_RETRY_TIMEOUT waits longer."
            )
        case Reason.JOB_NOT_RUNNING:
            return f"the control plane says that it is {answer.state if answer else 'stopped'}."
        case Reason.JOB_MISSING:
            return (
                "the control plane knows no such job. Check the account and job in base_url, and "
                "TINKER_GUARD_CONTROL_PLANE_URL if the control plane lives elsewhere."
            )
        case Reason.TRAINER_ANSWERED:
            return "the trainer itself answered."
        case Reason.NO_CONTROL_PLANE:
            return "there is nobody to ask."
        case Reason.CONTROL_PLANE_ERROR | Reason.CONTROL_PLANE_TIMEOUT:
            return f"it could not be verified: {answer.detail if answer else 'see above'}"
        case _:
            assert_never(judgement.reason)
