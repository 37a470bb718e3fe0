"""A few thousand of the schedules of `make simulate`, and proof that its checks can fail."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections import Counter
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from simulation.coverage import IMPORTANT
from simulation.run import run
from simulation.schedule import Caller, ClockJump, CloseFault, LoopEnd, Schedule, draw
from simulation.shrink import shrink
from tinker_guard import GuardTransport, closing, line, logs, peek, recovery, spans, telemetry
from tinker_guard.control_plane import FireworksControlPlane, SharedControlPlane
from tinker_guard.line import Line, _Spare
from tinker_guard.recovery import Recovery
from tinker_guard.route import LoopState, Route, RouteState
from tinker_guard.single_flight import SingleFlight
from tinker_guard.verdict import JOB_NOT_RUNNING, ROUTING_RACE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    from tenacity import RetryCallState

SCHEDULES = 2_000
ENOUGH_TO_FAIL = 400
"""Schedules within which a broken guard must be found out."""


@pytest.mark.timeout(300)
def test_no_schedule_breaks_an_invariant_and_all_that_matters_is_met() -> None:
    met: Counter[str] = Counter()
    for seed in range(SCHEDULES):
        result = run(draw(seed))
        assert result.violations == [], f"python -m simulation --replay {seed}"
        met += result.situations
    assert [name for name in IMPORTANT if not met[name]] == []


def test_the_same_seed_gives_the_same_trace() -> None:
    for seed in range(100):
        schedule = draw(seed)
        assert schedule == draw(seed)
        first, again = run(schedule), run(Schedule.from_json(schedule.to_json()))
        assert first.trace == again.trace
        assert first.situations == again.situations


def test_traces_are_the_same_in_another_process() -> None:
    program = (
        "from simulation.run import run; from simulation.schedule import draw\n"
        "for seed in range(100, 140): print(run(draw(seed)).trace)"
    )
    root = Path(__file__).parent.parent
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=root,
            env={"PYTHONPATH": str(root), "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert outputs != {b""}


def _changed_resend(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Recovery._resend

    async def resend(self: Recovery, pause: float) -> None:
        self._request.headers["x-idempotency-key"] += "-again"
        await original(self, pause)

    monkeypatch.setattr(Recovery, "_resend", resend)


def _swallowed_cancel(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Recovery.run

    async def run_on(self: Recovery, *args: Any) -> httpx.Response:
        try:
            return await original(self, *args)
        except asyncio.CancelledError:
            raise httpx.ReadError("cancelled") from None

    monkeypatch.setattr(Recovery, "run", run_on)


def _own_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Recovery.run

    async def run_on(self: Recovery, *args: Any) -> httpx.Response:
        response = await original(self, *args)
        if response.status_code == 404:
            await response.aclose()
            raise LookupError("the job is gone")
        return response

    monkeypatch.setattr(Recovery, "run", run_on)


def _endless_resends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recovery, "_is_budget_spent", lambda *_: False)


def _slow_hand_back(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Recovery._resend

    async def resend(self: Recovery, pause: float) -> None:
        await original(self, pause)
        await asyncio.sleep(0.5)

    monkeypatch.setattr(Recovery, "_resend", resend)


def _no_hand_over(monkeypatch: pytest.MonkeyPatch) -> None:
    original: Any = SingleFlight.run

    async def run_on(self: SingleFlight[Any], lead: Any, *, ttl: float = 0.0) -> Any:
        async def lead_and_forget() -> Any:
            try:
                return await lead()
            except asyncio.CancelledError:
                # Somebody else holds it now, for ever.
                self._lock = asyncio.Lock()
                await self._lock.acquire()
                raise

        return await original(self, lead_and_forget, ttl=ttl)

    monkeypatch.setattr(SingleFlight, "run", run_on)


def _a_question_each(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask(
        self: SharedControlPlane, state: Any, headers: httpx.Headers, line: Line | None = None
    ) -> Any:
        return await self._question(state, {"x-api-key": headers["x-api-key"]}, line)

    monkeypatch.setattr(SharedControlPlane, "ask", ask)


def _a_flight_each(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run_on(self: SingleFlight[Any], lead: Any, *, ttl: float = 0.0) -> Any:
        return await lead()

    monkeypatch.setattr(SingleFlight, "run", run_on)


def _open_404s(monkeypatch: pytest.MonkeyPatch) -> None:
    async def discard(_: httpx.Response) -> None: ...

    monkeypatch.setattr(recovery, "discard", discard)


def _open_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "_close", lambda *_: None)


def _open_transports(monkeypatch: pytest.MonkeyPatch) -> None:
    async def retire(self: _Spare) -> None: ...

    monkeypatch.setattr(_Spare, "retire", retire)


def _forgotten_transports(monkeypatch: pytest.MonkeyPatch) -> None:
    async def aclose(self: Line) -> None:
        await self._original.aclose()

    monkeypatch.setattr(Line, "aclose", aclose)


def _a_task_left(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Recovery.run

    async def run_on(self: Recovery, *args: Any) -> httpx.Response:
        asyncio.ensure_future(asyncio.sleep(1e9))  # noqa: RUF006 - forgotten on purpose
        return await original(self, *args)

    monkeypatch.setattr(Recovery, "run", run_on)


def _no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    async def judge(_: Recovery) -> Any:
        return ROUTING_RACE

    monkeypatch.setattr(Recovery, "_judge", judge)


def _false_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Recovery._judge

    async def judge(self: Recovery) -> Any:
        judgement = await original(self)
        return JOB_NOT_RUNNING if judgement is ROUTING_RACE else judgement

    monkeypatch.setattr(Recovery, "_judge", judge)


def _too_little_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinker_guard.verdict.EVIDENCE_NEEDED", 1)


def _evil_control_plane(monkeypatch: pytest.MonkeyPatch) -> None:
    def url_for(_: object, account: str, job: str, *, origin: str) -> httpx.URL:
        return httpx.URL(f"http://evil.test/v1/accounts/{account}/rlorTrainerJobs/{job}")

    monkeypatch.setattr(FireworksControlPlane, "url_for", url_for)


def _evil_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Route, "url", property(lambda route: f"http://evil.test{route.path}"))


def _told_key(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Recovery._judge

    async def judge(self: Recovery) -> Any:
        logs.logger.info("asking with %s", self._request.headers["x-api-key"])
        return await original(self)

    monkeypatch.setattr(Recovery, "_judge", judge)


def _error_in_a_callback(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Recovery._wait_for_route

    async def wait(self: Recovery) -> None:
        asyncio.get_running_loop().call_soon(int, "no number")
        await original(self)

    monkeypatch.setattr(Recovery, "_wait_for_route", wait)


def _wall_clock_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Recovery.__init__

    def init(self: Recovery, *args: Any) -> None:
        original(self, *args)
        self._clock = lambda: time.time() + loop_time_then - wall_time_then
        loop_time_then, wall_time_then = self._started_at, time.time()

    monkeypatch.setattr(Recovery, "__init__", init)


def _budget_of_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_budget_spent(self: Recovery, call: RetryCallState) -> bool:
        return call.idle_for + call.upcoming_sleep >= self._settings.retry_timeout

    monkeypatch.setattr(Recovery, "_is_budget_spent", is_budget_spent)


def _wall_clock_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans.Stopwatch, "now_ns", property(lambda _: time.time_ns()))


def _wrong_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    original = telemetry.RequestReport.waited

    def waited(self: telemetry.RequestReport, seconds: float) -> None:
        original(self, 2 * seconds)

    monkeypatch.setattr(telemetry.RequestReport, "waited", waited)


def _own_clock_for_dates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinker_guard.verdict._sent_at", lambda _, now: now)


def _patient_closing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closing, "CLOSE_SECONDS", 1e9)


def _loud_closing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def close(close: Callable[[], Awaitable[None]], _: str) -> None:
        async with asyncio.timeout(closing.CLOSE_SECONDS):
            await close()

    monkeypatch.setattr(closing, "close_quietly", close)
    monkeypatch.setattr(peek, "close_quietly", close)
    monkeypatch.setattr(line, "close_quietly", close)


def _open_question_transports(monkeypatch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def question_transport(self: Line) -> AsyncIterator[httpx.AsyncBaseTransport | None]:
        yield self._build()

    monkeypatch.setattr(Line, "question_transport", question_transport)


def _questions_on_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def question_transport(self: Line) -> AsyncIterator[httpx.AsyncBaseTransport | None]:
        yield line._LentTransport(self.transport)

    monkeypatch.setattr(Line, "question_transport", question_transport)


def _one_lock_for_all_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    # Never running, and older than all others.
    loop = asyncio.new_event_loop()
    loop.close()

    def here(self: RouteState) -> LoopState:
        return self._loops.setdefault(loop, LoopState())

    monkeypatch.setattr(RouteState, "here", property(here))


def _dead_loops_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def here(self: RouteState) -> LoopState:
        return self._loops.setdefault(asyncio.get_running_loop(), LoopState())

    monkeypatch.setattr(RouteState, "here", property(here))


def _cleaning_up_without_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    async def clean_up(self: closing.Afterwards, *_: object) -> None:
        await self._clean_up()

    monkeypatch.setattr(closing.Afterwards, "__aexit__", clean_up)


def _complaints_of_a_dead_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinker_guard.single_flight._ends_with_its_loop", nullcontext)


def _kept_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinker_guard.control_plane._digest", repr)


def _told_error(monkeypatch: pytest.MonkeyPatch) -> None:
    original = GuardTransport.handle_async_request

    async def handle(self: GuardTransport, request: httpx.Request) -> httpx.Response:
        try:
            return await original(self, request)
        except Exception as error:
            logs.logger.info("failed: %s", error)
            raise

    monkeypatch.setattr(GuardTransport, "handle_async_request", handle)


def _told_body(monkeypatch: pytest.MonkeyPatch) -> None:
    original = telemetry.RequestReport.answered

    def answered(self: telemetry.RequestReport, response: httpx.Response) -> httpx.Response:
        if self._observed is not None:
            self._observed.set("http.request.body", str(self._request.stream))
            self._observed.set("url.query", str(self._request.url.query))
        return original(self, response)

    monkeypatch.setattr(telemetry.RequestReport, "answered", answered)


def _told_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    def labels(self: telemetry._Observed) -> dict[str, Any]:
        return {"user": self._request.headers["x-user"]}

    monkeypatch.setattr(telemetry._Observed, "_labels", property(labels))


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("break_guard", "broken"),
    [
        (_changed_resend, {1}),
        (_swallowed_cancel, {2}),
        (_own_exception, {2}),
        (_endless_resends, {3}),
        (_slow_hand_back, {3}),
        # Those in line wait for ever, and what they wait for stays locked.
        (_no_hand_over, {3, 5}),
        (_a_question_each, {4}),
        (_a_flight_each, {4}),
        (_open_404s, {5}),
        (_open_spans, {5}),
        (_open_transports, {5}),
        (_forgotten_transports, {5}),
        (_a_task_left, {5}),
        (_no_verdict, {6}),
        (_false_verdict, {6}),
        (_too_little_evidence, {6}),
        (_evil_control_plane, {7}),
        (_evil_probes, {7}),
        (_told_key, {7}),
        (_kept_key, {7}),
        (_told_error, {7}),
        (_told_body, {7}),
        (_told_metric, {7}),
        (_error_in_a_callback, {2}),
        (_wrong_wait, {6}),
        (_budget_of_pauses, {3}),
        (_loud_closing, {2}),
        (_open_question_transports, {5}),
        (_questions_on_the_line, {7}),
        (_one_lock_for_all_loops, {2}),
        (_dead_loops_kept, {5}),
    ],
)
def test_a_broken_guard_breaks_exactly_its_invariant(
    monkeypatch: pytest.MonkeyPatch,
    break_guard: Callable[[pytest.MonkeyPatch], None],
    broken: set[int],
) -> None:
    break_guard(monkeypatch)
    assert _first_broken(map(draw, range(ENOUGH_TO_FAIL))) == broken


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("break_guard", "broken", "kind"),
    [
        (_wall_clock_budget, {6}, ClockJump),
        (_wall_clock_spans, {6}, ClockJump),
        (_own_clock_for_dates, {6}, ClockJump),
        (_patient_closing, {3}, CloseFault),
        (_cleaning_up_without_a_loop, {2, 5}, LoopEnd),
        (_complaints_of_a_dead_loop, {2}, LoopEnd),
    ],
)
def test_one_that_only_a_rare_fault_shows_breaks_exactly_its_invariant(
    monkeypatch: pytest.MonkeyPatch,
    break_guard: Callable[[pytest.MonkeyPatch], None],
    broken: set[int],
    kind: type,
) -> None:
    break_guard(monkeypatch)
    schedules = (
        schedule
        for schedule in map(draw, range(SCHEDULES))
        if any(isinstance(event, kind) for event in schedule.events)
    )
    assert _first_broken(schedules) == broken


def _first_broken(schedules: Iterable[Schedule]) -> set[int]:
    for schedule in schedules:
        result = run(schedule)
        if result.violations:
            return result.broken
    pytest.fail("the simulation found nothing")


def test_probes_in_step_with_a_balancer_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first bug that the simulation found; it takes a rare schedule."""
    schedule = draw(1395)
    assert run(schedule).violations == []
    monkeypatch.setattr(recovery, "_DISTANCES", 1)
    assert run(schedule).broken == {6}


def test_a_failing_schedule_shrinks_to_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    _open_404s(monkeypatch)
    failing = next(
        schedule
        for schedule in map(draw, range(ENOUGH_TO_FAIL))
        if len(schedule.events) > 5 and run(schedule).violations
    )
    small = shrink(failing)
    assert run(small).broken == {5}
    assert 2 <= len(small.events) <= 3
    assert sum(isinstance(event, Caller) for event in small.events) == 1
    assert not any(run(small.without(index)).violations for index in range(len(small.events)))


def test_a_failing_seed_is_printed_with_the_command_to_replay_it() -> None:
    pytest.importorskip("rich", reason="comes with the extra demo")
    program = (
        "from tinker_guard.route import Route\n"
        "Route.url = property(lambda route: 'http://evil.test' + route.path)\n"
        "from simulation.__main__ import main; main()"
    )
    root = Path(__file__).parent.parent
    failed = next(seed for seed in range(ENOUGH_TO_FAIL) if _sends_probes_away(seed))
    done = subprocess.run(
        [sys.executable, "-c", program, "--replay", str(failed)],
        cwd=root,
        env={"PYTHONPATH": str(root), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "invariant 7: " in done.stdout
    assert f"python -m simulation --replay {failed}" in done.stdout


def _sends_probes_away(seed: int) -> bool:
    with pytest.MonkeyPatch.context() as monkeypatch:
        _evil_probes(monkeypatch)
        return 7 in run(draw(seed)).broken
