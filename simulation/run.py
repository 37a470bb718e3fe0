"""Runs one schedule: the real guard between the program and the world, in virtual time."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from unittest import mock

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from simulation.coverage import situations
from simulation.invariants import Remains, Violation, check
from simulation.model import CALL, World, control_plane
from simulation.program import Program
from simulation.schedule import Caller
from tests.virtual_time import VirtualTimeLoop
from tinker_guard import GuardSettings, GuardTransport, logs, observers, spans
from tinker_guard.route import ROUTES

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan, Span

    from simulation.schedule import Schedule
    from tinker_guard.single_flight import SingleFlight


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
    with _clean_process(schedule) as watched:
        loop = _Loop()
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(_play(schedule, watched, result))
        except _LivelockError:
            result.violations.append(Violation(3, "somebody spins, and lets no time pass"))
        except RuntimeError as error:
            if "deadlock" not in str(error):
                raise
            result.violations.append(Violation(3, "deadlock: everything waits, and for no timer"))
        finally:
            _abandon(loop)
    return result


async def _play(schedule: Schedule, watched: _Watched, result: Run) -> None:
    callers = [event for event in schedule.events if isinstance(event, Caller)]
    world = World(schedule, callers)
    result.trace = world.trace
    values = schedule.setup.settings
    settings = _settings(values)
    others = _settings(
        values
        | {
            "warmup_successes": 3 - values["warmup_successes"],
            "retry_timeout": values["retry_timeout"] + 1,
        }
    )
    plane = control_plane(world, settings.control_plane_timeout)
    guards = [
        GuardTransport(
            world.add_transport(slot),
            settings=settings,
            control_plane=plane,
            new_transport=partial(world.new_transport, slot) if schedule.setup.renewable else None,
        )
        for slot in range(schedule.setup.slots)
    ]
    program = Program(world, guards, others, plane)
    have_all_ended = await program.run(callers)
    await program.settle()
    for _ in range(10):
        await asyncio.sleep(0)
    remains = Remains(
        have_all_ended=have_all_ended,
        tasks=sorted(
            task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()
        ),
        in_use={id(guard.transport) for guard in guards},
        open_before_close=[transport for transport in world.transports if not transport.is_closed],
        held=_held_flights(),
        routes=len(ROUTES._states),
        faults=set(logs._faults_logged),
        said=watched.said.lines,
        open_spans=len(watched.spans.open),
        ended_spans=watched.spans.ended,
    )
    for guard in guards:
        try:
            await guard.aclose()
        except OSError:
            world.note("closes badly")
    result.violations += check(world, settings, remains)
    result.situations = situations(world, settings, remains)


def _held_flights() -> list[str]:
    held = []
    for state in ROUTES._states.values():
        here = state.here
        flights: list[tuple[str, SingleFlight[Any]]] = [
            ("warmup", here.warmup),
            ("scouting", here.scouting),
            *(("question", flight) for flight in here._questions.values()),
        ]
        held += [f"{state.route}: {name}" for name, flight in flights if flight._lock.locked()]
    return held


def _settings(values: dict[str, float]) -> GuardSettings:
    # Neither the environment nor the time that it takes to read it belongs into a schedule.
    return GuardSettings.model_construct(None, **values)


class _Task(asyncio.Task[Any]):
    """One whose hash is its number: asyncio keeps tasks in sets, whose order must not change."""

    def __init__(self, coro: Coroutine[Any, Any, Any], *, number: int, **kwargs: Any) -> None:
        self._number = number
        super().__init__(coro, **kwargs)

    def __hash__(self) -> int:
        return self._number


_TURNS: Final = 20_000
"""Turns of the event loop that no schedule needs; most need some hundreds."""


class _LivelockError(Exception):
    pass


class _Loop(VirtualTimeLoop):
    def __init__(self) -> None:
        super().__init__()
        self._turns = 0
        numbers = count()

        def numbered(
            loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **kwargs: Any
        ) -> _Task:
            return _Task(coro, number=next(numbers), loop=loop, **kwargs)

        self.set_task_factory(numbered)  # type: ignore[arg-type]

    def _run_once(self) -> None:
        self._turns += 1
        if self._turns > _TURNS:
            raise _LivelockError
        super()._run_once()  # type: ignore[misc]


def _abandon(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(None)
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()


class _Said(logging.Handler):
    """Keeps the guard's log lines."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


class _Spans(SpanProcessor):
    """Keeps the guard's spans, each with the number of the call that it belongs to."""

    def __init__(self) -> None:
        self.open: dict[int, int] = {}
        self.ended: list[tuple[int, ReadableSpan]] = []

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        self.open[_id_of(span)] = CALL.get().number

    def on_end(self, span: ReadableSpan) -> None:
        self.ended.append((self.open.pop(_id_of(span)), span))


def _id_of(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.span_id


class _Watched(NamedTuple):
    said: _Said
    spans: _Spans


@contextmanager
def _clean_process(schedule: Schedule) -> Iterator[_Watched]:
    """A process that has met no route, and watches the guard if the schedule says so."""
    watched = _Watched(_Said(), _Spans())
    provider: trace.TracerProvider = trace.NoOpTracerProvider()
    if schedule.setup.is_recorded:
        provider = TracerProvider(shutdown_on_exit=False, resource=Resource.get_empty())
        provider.add_span_processor(watched.spans)

    def get_tracer_provider() -> trace.TracerProvider:
        return provider

    logger = logs.logger
    handlers, level, propagate = logger.handlers, logger.level, logger.propagate
    logger.handlers = [watched.said]
    logger.setLevel(logging.DEBUG if schedule.setup.is_recorded else logging.CRITICAL)
    logger.propagate = False
    ROUTES.clear()
    logs._faults_logged.clear()
    spans.tracer.cache_clear()
    randomness = random.getstate()
    random.seed(schedule.seed)
    # The collector would end forgotten generators at any time, each with a task of its own.
    had_collector = gc.isenabled()
    gc.disable()
    try:
        with (
            mock.patch.object(trace, "get_tracer_provider", get_tracer_provider),
            mock.patch.object(ROUTES, "_limit", schedule.setup.routes_kept),
        ):
            observers.look_again()
            yield watched
    finally:
        if had_collector:
            gc.enable()
        random.setstate(randomness)
        ROUTES.clear()
        logs._faults_logged.clear()
        spans.tracer.cache_clear()
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)
