"""Ways to break the guard on purpose, to see that simulation and chaos find each of them out."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import httpx

from tinker_guard import faults, telemetry
from tinker_guard.control_plane import shared
from tinker_guard.control_plane.fireworks import FireworksControlPlane
from tinker_guard.control_plane.shared import SharedControlPlane
from tinker_guard.core import attempts, guarded_request, probe, probing, recovery
from tinker_guard.core.guarded_request import GuardedRequest
from tinker_guard.core.recovery import Recovery
from tinker_guard.core.routes import Flights, RouteState, RouteTable
from tinker_guard.core.single_flight import SingleFlight
from tinker_guard.observability import actions, metrics
from tinker_guard.policy import judgement, pacing, reach
from tinker_guard.policy.judgement import (
    CONTROL_PLANE_TIMEOUT,
    JOB_MISSING,
    JOB_NOT_RUNNING,
    JOB_RUNNING,
    NO_CONTROL_PLANE,
    JobAnswer,
)
from tinker_guard.policy.not_found import Source
from tinker_guard.policy.route import Route
from tinker_guard.transport import GuardTransport
from tinker_guard.transports import body_prefix, cleanup, draining, renewable, runtime
from tinker_guard.transports.draining import DrainingTransport
from tinker_guard.transports.renewable import RenewableTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Hashable

    from tinker_guard.policy.answer import Answer

    Put: TypeAlias = Callable[[Any, str, Any], None]


@dataclass(frozen=True)
class Sabotage:
    """One way to break the guard.

    Args:
        apply: Breaks it, by something that sets an attribute of an object (`setattr`).
        breaks: The invariants of the simulation that do not hold then; none where it cannot tell.
        needs: The kind of event without which nothing goes wrong, if it is a rare one; or `alone`,
            that there is no control plane.
    """

    apply: Callable[[Put], None]
    breaks: frozenset[int]
    needs: str = ""


SABOTAGE: Final[dict[str, Sabotage]] = {}
"""Each way by its name."""


def _add(function: Any, apply: Callable[[Put], None], breaks: set[int], needs: str) -> None:
    name = function.__name__.removeprefix("_").replace("_", "-")
    SABOTAGE[name] = Sabotage(apply, frozenset(breaks), needs)


def _breaking(*breaks: int, needs: str = "") -> Callable[[Any], Any]:
    """Let a function that is given `put` break the guard."""

    def add(function: Any) -> Any:
        _add(function, function, set(breaks), needs)
        return function

    return add


def _around(owner: Any, name: str, *breaks: int, needs: str = "") -> Callable[[Any], Any]:
    """Put a function, which is given the original first, in the place of another."""

    def add(function: Any) -> Any:
        def apply(put: Put) -> None:
            original = getattr(owner, name)
            put(owner, name, lambda *args, **named: function(original, *args, **named))

        _add(function, apply, set(breaks), needs)
        return function

    return add


def _value(
    name: str, owner: Any, attribute: str, value: Any, *breaks: int, needs: str = ""
) -> None:
    """Put a value in the place of another."""
    SABOTAGE[name] = Sabotage(lambda put: put(owner, attribute, value), frozenset(breaks), needs)


async def _nothing(*_: object) -> None: ...


# -- what is sent --------------------------------------------------------------------------------


@_around(Recovery, "_resend", 1)
async def _changed_resend(original: Any, self: Recovery, *args: Any) -> None:
    self._guarded.request.headers["x-idempotency-key"] += "-again"
    await original(self, *args)


@_around(GuardedRequest, "send", 1)
async def _other_body(original: Any, self: GuardedRequest, *args: Any, **named: Any) -> Any:
    if named.get("pause") is not None:
        content = self.request.content + b" "
        self.request.stream = httpx.ByteStream(content)
        self.request.headers["content-length"] = str(len(content))
    return await original(self, *args, **named)


@_around(guarded_request, "with_cookies", 1)
def _foreign_cookies(original: Any, request: httpx.Request, cookies: reach.Cookies) -> Any:
    return original(request, tuple((name, b"99") for name, _ in cookies))


@_around(guarded_request, "with_cookies", 1)
def _cookies_not_added(original: Any, request: httpx.Request, cookies: reach.Cookies) -> Any:
    return original(request, cookies) if "cookie" in request.headers else request


_value("cookies-not-swapped", guarded_request, "with_cookies", lambda request, _: request, 1)


# -- what the caller gets ------------------------------------------------------------------------


# What is raised in its place is taken for a bug, and the 404 is handed back unjudged.
@_around(Recovery, "run", 2, 6)
async def _swallowed_cancel(original: Any, self: Recovery) -> Any:
    try:
        return await original(self)
    except asyncio.CancelledError:
        raise httpx.ReadError("cancelled") from None


class JobGoneError(Exception):
    """Looks like an exception of the guard's."""

    __module__ = "tinker_guard.recovery"


@_around(GuardTransport, "handle_async_request", 2)
async def _own_exception(original: Any, self: GuardTransport, request: httpx.Request) -> Any:
    response = await original(self, request)
    if response.status_code == 404:
        await response.aclose()
        raise JobGoneError
    return response


@_around(Recovery, "_find_route", 2)
async def _error_in_a_callback(original: Any, self: Recovery, **named: Any) -> Any:
    asyncio.get_running_loop().call_soon(int, "no number")
    return await original(self, **named)


@_breaking(2)
def _loud_closing(put: Put) -> None:
    async def close(close: Callable[[], Awaitable[None]], _: str) -> None:
        async with asyncio.timeout(cleanup.CLOSE_SECONDS):
            await close()

    for module in (cleanup, body_prefix, draining):
        put(module, "close_quietly", close)


@_around(probing, "probe", 2)
async def _probes_in_tasks(original: Any, guarded: GuardedRequest) -> Any:
    return await asyncio.ensure_future(original(guarded))


# -- how long it takes ---------------------------------------------------------------------------


_value("endless-resends", attempts._StopAt, "__call__", lambda *_: False, 3)
# Those in line wait for ever.
_value("no-hand-over", SingleFlight, "_promote_next", lambda _: None, 3)
_value("patience-in-the-background", recovery, "waits_once", lambda _: False, 3)
_value("patient-closing", cleanup, "CLOSE_SECONDS", 1e9, 3, needs="CloseFault")


@_around(Recovery, "_resend", 3)
async def _slow_hand_back(original: Any, self: Recovery, *args: Any) -> None:
    await original(self, *args)
    await asyncio.sleep(0.5)


@_around(recovery, "attempts", 3)
def _budget_of_pauses(original: Any, settings: Any, *args: Any, **named: Any) -> Any:
    retrying = original(settings, *args, **named)
    retrying.stop = lambda call: call.idle_for >= settings.retry_timeout
    return retrying


@_breaking(3)
def _waits_for_ever(put: Put) -> None:
    original = Recovery.run
    runs: list[None] = []

    async def run(self: Recovery) -> httpx.Response:
        runs.append(None)
        if len(runs) % 100 == 0:
            await asyncio.Event().wait()
        return await original(self)

    put(Recovery, "run", run)


# -- what is asked, and what is kept ---------------------------------------------------------------


@_around(SharedControlPlane, "ask", 4)
async def _a_question_each(
    _: Any, self: SharedControlPlane, state: Any, request: Any, line: Any = None, **__: Any
) -> Any:
    return await self._look_up(state, request, line)


@_around(SingleFlight, "run", 4)
async def _a_flight_each(_: Any, self: SingleFlight[Any], lead: Any, *to: Any, **__: Any) -> Any:
    return await lead(*to)


@_around(RouteTable, "_make_room", 4)
def _first_in_first_out(_: Any, self: RouteTable) -> None:
    for key in list(self._states)[: max(len(self._states) + 1 - self._limit, 0)]:
        del self._states[key]


# -- what is left ----------------------------------------------------------------------------------


_value("open-404s", recovery, "discard", _nothing, 5)
_value("open-spans", actions, "_close", lambda *_: None, 5)
_value("open-transports", DrainingTransport, "drain", _nothing, 5)


@_around(DrainingTransport, "aclose", 5)
async def _leaks_connections(_: Any, self: DrainingTransport) -> None:
    _LEFT.append(self.transport)
    self.is_closed = True


_LEFT: Final[list[object]] = []


@_around(RenewableTransport, "aclose", 5)
async def _forgotten_transports(_: Any, self: RenewableTransport) -> None:
    await self._original.aclose()


@_around(Recovery, "run", 5)
async def _leaks_tasks(original: Any, self: Recovery) -> Any:
    asyncio.ensure_future(asyncio.sleep(1e9))  # noqa: RUF006 - forgotten on purpose
    return await original(self)


# Only the machine's memory tells.
@_around(GuardTransport, "handle_async_request")
async def _leaks_memory(original: Any, self: GuardTransport, request: httpx.Request) -> Any:
    _LEFT.append(bytes(20_000))
    return await original(self, request)


@_around(RenewableTransport, "lookup_transport", 5)
@asynccontextmanager
async def _open_question_transports(
    _: Any, self: RenewableTransport
) -> AsyncIterator[httpx.AsyncBaseTransport | None]:
    if isinstance(renewable._innermost(self.transport), httpx.AsyncHTTPTransport):
        yield self._build() or self.transport
    else:
        yield None


@_around(RouteState, "flights", 5)
def _dead_loops_kept(_: Any, self: RouteState, key: Hashable) -> Flights:
    by_key = self._flights.setdefault(asyncio.get_running_loop(), {})
    return by_key.setdefault(key, Flights(key))


@_around(cleanup.unless_abandoned, "__aexit__", 2, 5, needs="LoopEnd")
async def _cleaning_up_without_a_loop(_: Any, self: cleanup.unless_abandoned, *__: object) -> None:
    await self._clean_up()


# -- what is found -------------------------------------------------------------------------------


@_around(Recovery, "run", 6)
async def _no_resend(_: Any, self: Recovery) -> httpx.Response:
    return self.response


@_around(SharedControlPlane, "ask", 6)
async def _never_asks(*_: Any, **__: Any) -> JobAnswer:
    return JobAnswer(state="JOB_STATE_RUNNING")


@_around(Recovery, "_judge", 6)
async def _no_verdict(*_: Any) -> Any:
    return JOB_RUNNING


@_around(Recovery, "_judge", 6)
async def _false_verdict(original: Any, self: Recovery) -> Any:
    judged = await original(self)
    return JOB_NOT_RUNNING if judged is JOB_RUNNING else judged


@_around(shared, "is_in_force", 6)
def _reused_negatives(
    _: Any, answer: JobAnswer, *, now: float, not_found_at: float, ttl: float
) -> bool:
    return answer.asked_at >= not_found_at or now - answer.answered_at < ttl


@_around(recovery, "author_of", 6)
def _believing_any_detail(original: Any, answer: Answer, **named: Any) -> Source:
    source: Source = original(answer, **named)
    is_odd = source is Source.UNKNOWN and b"detail" in answer.body
    return Source.TRAINER if is_odd else source


_value(
    "believing-any-router",
    recovery,
    "is_essential_to_sdks",
    lambda _: False,
    6,
    needs="Outage",
)
_value("believing-an-edge", probe, "is_from_trainer", lambda *_, **__: True, 6)


@_around(guarded_request, "judge", 6)
def _one_missing_answer(original: Any, answer: JobAnswer, **named: Any) -> Any:
    return JOB_MISSING if answer.is_missing else original(answer, **named)


_value("no-second-look", judgement, "SETTLING", 0.0, 6)


# Where there is no control plane.
_value(
    "never-a-race",
    guarded_request,
    "judge_by_reach",
    lambda **_: NO_CONTROL_PLANE,
    6,
    needs="alone",
)
_value("remembers-for-ever", guarded_request, "REMEMBERED_FOR", float("inf"), 6, needs="alone")


@_breaking(6)
def _no_patience(put: Put) -> None:
    async def look_up(*_: Any, **__: Any) -> Any:
        return judgement.CONTROL_PLANE_ERROR

    put(GuardedRequest, "look_up", look_up)
    put(Recovery, "_may_resend", False)


@_breaking(6)
def _one_lock_for_all_loops(put: Put) -> None:
    """Let one loop take the other one's answers."""
    # Never running, never closed, and older than all others.
    everybody = runtime.Threads()

    def flights(self: RouteState, key: Hashable) -> Flights:
        return self._flights.setdefault(everybody, {}).setdefault(key, Flights(key))

    put(RouteState, "flights", flights)


@_around(telemetry.RequestReport, "waited", 6)
def _wrong_wait(original: Any, self: telemetry.RequestReport, seconds: float) -> None:
    original(self, 2 * seconds)


@_around(recovery, "attempts", 6, needs="ClockJump")
def _wall_clock_budget(original: Any, *args: Any, **named: Any) -> Any:
    retrying = original(*args, **named)
    loop_time_then, wall_time_then = retrying.stop._clock(), time.time()
    retrying.stop._clock = lambda: time.time() + loop_time_then - wall_time_then
    retrying.wait._clock = retrying.stop._clock
    return retrying


_value(
    "wall-clock-spans",
    *(actions.Stopwatch, "now_ns", property(lambda _: time.time_ns()), 6),
    needs="ClockJump",
)
_value("own-clock-for-dates", pacing, "_sent_at", lambda _, now: now, 6, needs="ClockJump")
_value("direct-resends-without-end", recovery, "_DIRECT_RESENDS", 1_000_000, 6)
_value("direct-resends-everywhere", RouteState, "is_balanced_per_request", lambda *_: True, 6)


@_around(Recovery, "_judge", 6)
async def _direct_resends_unjudged(original: Any, self: Recovery) -> Any:
    if self._race is None or not self._direct_resends:
        return await original(self)
    self._route, self._met_at = None, self._clock()
    self._is_held = (await body_prefix.read_prefix(self.response)).is_complete
    return self._race


# It takes two that ask, one of whom is cancelled: the simulation's tests say when.
@_around(SharedControlPlane, "_look_up")
async def _word_of_the_gone(
    original: Any, self: SharedControlPlane, state: Any, request: Any, line: Any
) -> JobAnswer:
    asked_at = asyncio.get_running_loop().time()
    try:
        answer: JobAnswer = await original(self, state, request, line)
    except asyncio.CancelledError:
        # Whoever waits is told that there is no answer, and does not ask.
        now = asyncio.get_running_loop().time()
        answer = JobAnswer(failure=CONTROL_PLANE_TIMEOUT).timed(asked_at, now)
        state.flights(self.key_for(request)).lookup._result = answer
        raise
    return answer


# -- where keys go, and what is told ---------------------------------------------------------------


@_around(FireworksControlPlane, "url_for", 7)
def _evil_control_plane(_: Any, __: object, account: str, job: str, *, origin: str) -> httpx.URL:
    return httpx.URL(f"http://evil.test/v1/accounts/{account}/rlorTrainerJobs/{job}")


_value("evil-probes", Route, "url", property(lambda route: f"http://evil.test{route.path}"), 7)
_value("crossing-keys", SharedControlPlane, "key_for", lambda self, _: self._identity, 7)


# The simulation builds its control plane itself, and gives it its key.
@_around(SharedControlPlane, "__init__")
def _key_to_strangers(
    original: Any, self: SharedControlPlane, settings: Any, control_plane: Any = None
) -> None:
    original(self, settings.model_copy(update={"control_plane_api_key": None}), control_plane)


@_around(SharedControlPlane, "key_for", 7)
def _kept_key(_: Any, self: SharedControlPlane, request: httpx.Request) -> Hashable:
    return self._identity, request.headers["x-api-key"]


@_around(RenewableTransport, "lookup_transport", 7)
@asynccontextmanager
async def _questions_on_the_line(
    _: Any, self: RenewableTransport
) -> AsyncIterator[httpx.AsyncBaseTransport | None]:
    yield self.transport


# The simulation knows of no question then, and so of no reason to resend.
@_around(RenewableTransport, "lookup_transport", 2, 6)
@asynccontextmanager
async def _questions_past_the_line(*_: Any) -> AsyncIterator[httpx.AsyncBaseTransport | None]:
    yield None


@_around(Recovery, "_judge", 7)
async def _told_key(original: Any, self: Recovery) -> Any:
    faults.logger.info("asking with %s", self._guarded.request.headers["x-api-key"])
    return await original(self)


@_around(GuardTransport, "handle_async_request", 7)
async def _told_error(original: Any, self: GuardTransport, request: httpx.Request) -> Any:
    try:
        return await original(self, request)
    except Exception as error:
        faults.logger.info("failed: %s", error)
        raise


@_around(telemetry.RequestReport, "answered", 7)
def _told_body(original: Any, self: telemetry.RequestReport, response: httpx.Response) -> Any:
    if self._observed is not None:
        self._observed.set("http.request.body", str(self._request.stream))
        self._observed.set("url.query", str(self._request.url.query))
    return original(self, response)


@_around(telemetry.RequestReport, "judged", 7)
def _told_metric(original: Any, self: telemetry.RequestReport, judgement: Any) -> None:
    metrics.count(metrics.VERDICTS, {"user": self._request.headers["x-user"]})
    original(self, judgement)
