"""Runs one schedule: the real guard between the program and the world, in virtual time."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import time
from collections import Counter
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from httpx import _urlparse, _urls
from opentelemetry import metrics, trace
from opentelemetry.sdk import trace as sdk_trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator

from proof.simulation.coverage import situations
from proof.simulation.invariants import EndedSpan, Remains, Violation, check
from proof.simulation.loops import LivelockError, MainLoop, SideLoop, abandon
from proof.simulation.model import Clock, ModelWorld
from proof.simulation.plane import control_plane
from proof.simulation.program import Program
from proof.simulation.record import CALL
from proof.simulation.schedule import Caller
from proof.simulation.stand_ins import put
from proof.simulation.threads import ThreadedGuard, blocking_control_plane, virtual_threads
from tinker_guard import GuardSettings, GuardTransport, faults
from tinker_guard.core.attempts import JITTER
from tinker_guard.core.routes import ROUTES
from tinker_guard.observability import metrics as guard_metrics
from tinker_guard.observability import providers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan, Span

    from proof.simulation.schedule import Schedule


@dataclass
class Run:
    """What came of one schedule."""

    schedule: Schedule
    violations: list[Violation] = field(default_factory=list)
    situations: Counter[str] = field(default_factory=Counter)
    trace: list[tuple[Any, ...]] = field(default_factory=list)

    @property
    def broken(self) -> set[int]:
        """The numbers of the invariants that did not hold."""
        return {violation.invariant for violation in self.violations}


def run(schedule: Schedule) -> Run:
    """Run a schedule and check what it left; the same one gives the same trace each time."""
    result = Run(schedule)
    loop = MainLoop(schedule.seed)
    clock = Clock(loop)
    is_sync = schedule.setup.in_threads
    threads = virtual_threads(loop, schedule.seed) if is_sync else nullcontext()
    with _clean_process(schedule, clock) as watched, threads:
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(_play(schedule, watched, clock, result))
        except LivelockError:
            result.violations.append(Violation(3, "somebody spins, and lets no time pass"))
        except RuntimeError as error:
            if "deadlock" not in str(error):
                raise
            result.violations.append(Violation(3, "deadlock: everything waits, and for no timer"))
        finally:
            asyncio.set_event_loop(None)
            if loop.side is not None:
                abandon(loop.side)
            abandon(loop)
    return result


async def _play(schedule: Schedule, watched: _Watched, clock: Clock, result: Run) -> None:
    callers = [event for event in schedule.events if isinstance(event, Caller)]
    world = ModelWorld(schedule, callers, clock)
    result.trace = world.trace
    values = schedule.setup.settings
    is_alone = schedule.setup.plane == "none"
    settings = _settings(values, is_alone=is_alone)
    others = {
        "warmup_successes": 3 - values["warmup_successes"],
        "retry_timeout": values["retry_timeout"] + 1,
    }
    is_sync = schedule.setup.in_threads
    find_plane = blocking_control_plane if is_sync else control_plane
    plane = find_plane(world, settings.control_plane_timeout)
    guards: list[GuardTransport | ThreadedGuard] = [
        ThreadedGuard(world, slot, settings, plane)
        if is_sync
        else GuardTransport(
            world.add_transport(slot),
            settings=settings,
            control_plane=plane,
            new_transport=partial(world.new_transport, slot) if schedule.setup.renewable else None,
        )
        for slot in range(schedule.setup.slots)
    ]
    program = Program(world, guards, settings, others, plane)
    have_all_ended = await program.run(callers)
    await program.settle()
    for _ in range(10):
        await asyncio.sleep(0)
    this_task = {asyncio.current_task()}
    loops = [world.loop, *([world.loop.side] if world.loop.side else [])]
    remains = Remains(
        have_all_ended=have_all_ended,
        tasks=sorted(
            task.get_name() for loop in loops for task in asyncio.all_tasks(loop) - this_task
        ),
        in_use={id(guard.transport) for guard in guards},
        open_before_close=[transport for transport in world.transports if not transport.is_closed],
        held=_held_flights(),
        routes=len(ROUTES._states),
        faults=set(faults.already_logged),
        errors=world.loop.errors,
        said=watched.said.lines,
        kept=_kept_keys(),
        measured=watched.meter.measured,
        open_spans=len(watched.spans.open),
        ended_spans=watched.spans.ended,
        still_running=program.still_running,
    )
    world.closing_guards.began_at = world.loop.time()
    for guard in guards:
        await guard.aclose()
    world.closing_guards.ended_at = world.loop.time()
    result.violations += check(world, settings, remains)
    result.situations = situations(world, settings, remains)


def _kept_keys() -> list[str]:
    """What tells those apart who share what they find out."""
    return [
        repr(key)
        for state in ROUTES._states.values()
        for flights in state._flights.values()
        for key in flights
    ]


def _held_flights() -> list[str]:
    held = []
    for state in ROUTES._states.values():
        loops = dict(state._flights)
        for loop, flights in loops.items():
            if loop.is_closed():
                # Nobody is there to let go. The next loop that meets the route clears it away.
                if any(isinstance(other, SideLoop) and not other.is_closed() for other in loops):
                    held.append(f"{state.route}: a loop that was closed")
                continue
            held += [
                f"{state.route}: {name}"
                for known in flights.values()
                for name in ("warmup", "probing", "lookup")
                if getattr(known, name).is_under_way
            ]
        if state.under_way:
            held.append(f"{state.route}: a request that has ended")
    return held


_DEFAULTS: Final = GuardSettings.model_construct()
"""Neither the environment nor the time that it takes to read it belongs into a schedule."""


def _settings(values: dict[str, float], *, is_alone: bool) -> GuardSettings:
    return _DEFAULTS.model_copy(update=values | {"control_plane": "none"} if is_alone else values)


_parsed: Final = lru_cache(1_000)(_urlparse.urlparse)
"""Parsing a URL takes as long as a whole exchange, and there are few of them."""
_NO_TRACERS: Final = trace.NoOpTracerProvider()
_NO_METERS: Final = metrics.NoOpMeterProvider()
_OF_CONTEXTS: Final = logging.getLogger("opentelemetry.context")


class _Said(logging.Handler):
    """Keeps the guard's log lines."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


class _Spans(SpanProcessor):
    """Keeps the guard's spans."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.open: dict[int, tuple[int, float]] = {}
        self.ended: list[EndedSpan] = []

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        call = CALL.get(None)
        number = -1 if call is None else call.number
        self.open[_id_of(span)] = number, self._clock.monotonic()

    def on_end(self, span: ReadableSpan) -> None:
        call, began_at = self.open.pop(_id_of(span))
        self.ended.append(EndedSpan(call, span, self._clock.monotonic() - began_at))


class _Ids(IdGenerator):
    """Ids of spans and traces, the same in each run."""

    def __init__(self, seed: int) -> None:
        # Not the module `random`: to restore its state takes longer than a schedule's drawing.
        self._chance = random.Random(seed)

    def generate_span_id(self) -> int:
        return self._chance.getrandbits(64)

    def generate_trace_id(self) -> int:
        return self._chance.getrandbits(128)

    def is_trace_id_random(self) -> bool:
        return True


def _id_of(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.span_id


class _Meter:
    """Keeps what the guard measures; OpenTelemetry's own would take longer than the guard."""

    def __init__(self) -> None:
        self.measured: list[tuple[float, dict[str, Any]]] = []

    def create_histogram(self, *_: Any, **__: Any) -> _Meter:
        return self

    create_counter = create_histogram

    def record(self, amount: float, attributes: Mapping[str, Any]) -> None:
        self.measured.append((amount, dict(attributes)))

    add = record


class _Watched(NamedTuple):
    said: _Said
    spans: _Spans
    meter: _Meter


@contextmanager
def _clean_process(schedule: Schedule, clock: Clock) -> Iterator[_Watched]:
    """A process that has met no route, and watches the guard if the schedule says so."""
    watched = _Watched(_Said(), _Spans(clock), _Meter())
    provider: trace.TracerProvider = _NO_TRACERS
    if schedule.setup.is_recorded:
        provider = TracerProvider(
            shutdown_on_exit=False,
            resource=Resource.get_empty(),
            id_generator=_Ids(schedule.seed),
        )
        provider.add_span_processor(watched.spans)

    def get_tracer_provider() -> trace.TracerProvider:
        return provider

    is_recorded = schedule.setup.is_recorded

    def get_meter_provider() -> Any:
        return watched.meter if is_recorded else _NO_METERS

    def get_meter(*_: str) -> _Meter:
        return watched.meter

    ROUTES.clear()
    faults.already_logged.clear()
    _forget_telemetry()
    JITTER.seed(schedule.seed)
    # The collector would end forgotten generators at any time, each with a task of its own.
    had_collector = gc.isenabled()
    gc.disable()
    try:
        with put(
            (faults.logger, "handlers", [watched.said]),
            (faults.logger, "propagate", False),
            (faults.logger, "level", logging.DEBUG),
            # What it was asked before about levels; `setLevel` would clear it for all loggers.
            (faults.logger, "_cache", {}),
            (trace, "get_tracer_provider", get_tracer_provider),
            (metrics, "get_meter_provider", get_meter_provider),
            (metrics, "get_meter", get_meter),
            (time, "time", clock.time),
            (time, "time_ns", clock.time_ns),
            (time, "perf_counter", clock.monotonic),
            (sdk_trace, "time_ns", clock.time_ns),
            # It complains of spans that the garbage collector ends with a closed loop's tasks.
            (_OF_CONTEXTS, "disabled", True),
            (_urls, "urlparse", _parsed),
            (ROUTES, "_limit", schedule.setup.routes_kept),
        ):
            providers.refresh()
            yield watched
    finally:
        if had_collector:
            gc.enable()
        ROUTES.clear()
        faults.already_logged.clear()
        _forget_telemetry()


def _forget_telemetry() -> None:
    for cached in (guard_metrics._histogram, guard_metrics._counter):
        cached.cache_clear()
