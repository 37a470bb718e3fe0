"""The guard of sync clients in the model: its threads take turns, as the world's event loop says.

Each call of the program runs in a thread of its own, and one thread runs at a time: either the
loop's or the one that it waits for. What would block a thread (an exchange, a sleep, a condition)
is awaited on the loop instead, in virtual time. So a run is the same each time, and the world, the
schedules and the invariants are those of the async guard.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
import threading
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from queue import SimpleQueue
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, TypeVar

import httpx

from proof.simulation.plane import control_plane
from proof.simulation.schedule import (
    Caller,
    Cancel,
    CloseFault,
    ExchangeFault,
    LoopEnd,
    PlaneFault,
)
from proof.simulation.stand_ins import put
from tinker_guard import SyncGuardTransport
from tinker_guard.control_plane.fireworks import FireworksControlPlane
from tinker_guard.core import single_flight
from tinker_guard.transports import runtime
from tinker_guard.transports.blocking import BlockingTransport

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterator,
        Awaitable,
        Callable,
        Coroutine,
        Iterator,
        Mapping,
    )

    from proof.simulation.model import ModelWorld
    from proof.simulation.schedule import Event, Schedule
    from tinker_guard import GuardSettings
    from tinker_guard.control_plane.protocol import ControlPlane

_T = TypeVar("_T")


# -- threads that take turns -----------------------------------------------------------------------


class _Turns:
    """A thread and the loop, of which one waits for the other."""

    def __init__(self) -> None:
        self.of_loop, self.of_thread = threading.Lock(), threading.Lock()
        self.of_loop.acquire()
        self.of_thread.acquire()
        self.awaited: Coroutine[Any, Any, Any] | None = None
        """What the thread waits for; None when it has ended."""
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self, call: Callable[[], Any]) -> None:
        """Call something, in the thread that it is called from."""
        _in_thread.turns = self
        try:
            self.result, self.error = call(), None
        except BaseException as error:
            self.result, self.error = None, error
        self.awaited = None
        self.of_loop.release()


class _InThread(threading.local):
    turns: _Turns


_in_thread: Final = _InThread()


def block(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Wait for a coroutine that the loop runs, in a thread of `in_thread`."""
    turns = _in_thread.turns
    turns.awaited = coroutine
    turns.of_loop.release()
    turns.of_thread.acquire()
    if turns.error is not None:
        raise turns.error
    result: _T = turns.result
    return result


class _Thread:
    """A thread that calls one thing after another, and may be idle between them.

    To start one takes longer than most calls.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def begin(self, call: Callable[[], None]) -> None:
        """Call something as soon as what went before has ended."""
        self._calls.put(call)

    def _run(self) -> None:
        while True:
            self._calls.get()()


_idle: Final[list[_Thread]] = []


async def in_thread(call: Callable[[], _T]) -> _T:
    """Call something in a thread of its own, and await in its place what it waits for."""
    turns = _Turns()
    context = contextvars.copy_context()
    thread = _idle.pop() if _idle else _Thread()
    thread.begin(partial(context.run, turns.run, call))
    is_abandoned = False
    while True:
        turns.of_loop.acquire()
        if turns.awaited is None:
            break
        try:
            if is_abandoned:
                turns.awaited.close()
                raise GeneratorExit
            turns.result, turns.error = await turns.awaited, None
        except BaseException as error:
            # Nothing can be awaited any more where the loop was closed.
            is_abandoned |= isinstance(error, GeneratorExit)
            turns.result, turns.error = None, error
        turns.of_thread.release()
    _idle.append(thread)
    if turns.error is not None:
        raise turns.error
    result: _T = turns.result
    return result


class Condition:
    """In the place of `threading.Condition`. A thread may lose its turn before it has the lock."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._waiting: list[asyncio.Event] = []

    def __enter__(self) -> None:
        while self._chance.random() < 0.3:
            block(asyncio.sleep(0))

    def __exit__(self, *_: object) -> None: ...

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until notified; whether that was within the time."""
        return block(self._wait(timeout))

    async def _wait(self, seconds: float | None) -> bool:
        notified = asyncio.Event()
        self._waiting.append(notified)
        try:
            async with asyncio.timeout(seconds):
                await notified.wait()
        except TimeoutError:
            return False
        return True

    def notify_all(self) -> None:
        """Let all go on that wait."""
        waiting, self._waiting = self._waiting, []
        for notified in waiting:
            notified.set()


@contextmanager
def virtual_threads(loop: asyncio.AbstractEventLoop, seed: int) -> Iterator[None]:
    """Have the guard's threads wait on a loop."""
    chance = random.Random(f"{seed}, threads")
    stand_in = SimpleNamespace(Condition=lambda: Condition(chance))
    with put(
        (single_flight, "threading", stand_in),
        (runtime.THREADS, "clock", loop.time),
        (runtime.THREADS, "sleep", lambda seconds: block(asyncio.sleep(seconds))),
    ):
        yield


# -- between the world and the guard ---------------------------------------------------------------


class _Below(httpx.BaseTransport):
    """A transport of the world, as one that blocks and keeps to timeouts as httpx does."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self.transport = transport

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        # Of a probe or a question it is the guard's. The program's own are never over here.
        seconds = request.extensions["timeout"]["read"] if request.method == "GET" else None
        response = block(_as_httpx(self.transport.handle_async_request(request), seconds))
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _StreamBelow(response.stream)
        return response

    def close(self) -> None:
        block(self.transport.aclose())


async def _as_httpx(awaited: Awaitable[_T], seconds: float | None) -> _T:
    try:
        return await _in_time(awaited, seconds)
    except TimeoutError:
        raise httpx.ReadTimeout("no answer in time") from None


class _StreamBelow(httpx.SyncByteStream):
    def __init__(self, stream: httpx.AsyncByteStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        chunks = aiter(self._stream)
        while True:
            try:
                chunk = block(_next(chunks))
            except StopAsyncIteration:
                return
            yield chunk

    def close(self) -> None:
        block(self._stream.aclose())


async def _next(chunks: AsyncIterator[bytes]) -> bytes:
    return await anext(chunks)


class _StreamAbove(httpx.AsyncByteStream):
    def __init__(self, stream: httpx.SyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunks = iter(self._stream)
        while (chunk := await in_thread(lambda: next(chunks, None))) is not None:
            yield chunk

    async def aclose(self) -> None:
        await in_thread(self._stream.close)


class ThreadedGuard:
    """The guard of a sync client, as the program of the model uses one."""

    def __init__(
        self, world: ModelWorld, slot: int, settings: GuardSettings, plane: ControlPlane | None
    ) -> None:
        def new_transport() -> httpx.BaseTransport:
            return _Below(world.new_transport(slot))

        self._guard = SyncGuardTransport(
            _Below(world.add_transport(slot)),
            settings=settings,
            control_plane=plane,
            new_transport=new_transport if world.setup.renewable else None,
        )
        self.configure = self._guard.configure
        self.release = self._guard.release

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request from a thread of its own."""
        response = await in_thread(lambda: self._guard.handle_request(request))
        assert isinstance(response.stream, httpx.SyncByteStream)
        response.stream = _StreamAbove(response.stream)
        return response

    @property
    def transport(self) -> Any:
        """The transport of the world that requests are sent on now."""
        transport: Any = self._guard._guard.transport
        while hasattr(transport, "transport"):
            transport = transport.transport
        return transport

    async def aclose(self) -> None:
        """Close it, and what it has built."""
        await in_thread(self._guard.close)


async def _in_time(awaited: Awaitable[_T], seconds: float | None) -> _T:
    # Not `asyncio.wait_for`, which runs it in another task than the caller's.
    async with asyncio.timeout(seconds):
        return await awaited


class _BlockingPlane:
    """A control plane object of the user's that blocks, but not for ever."""

    def __init__(self, plane: ControlPlane, timeout: float) -> None:
        self._plane = plane
        self._timeout = timeout

    async def job_state(
        self, account: str, job: str, *, origin: str, credentials: Mapping[str, str]
    ) -> str | None:
        """Say what state a job is in."""
        asked = self._plane.job_state(account, job, origin=origin, credentials=credentials)
        return block(_in_time(asked, self._timeout))


def blocking_control_plane(world: ModelWorld, timeout: float) -> ControlPlane | None:
    """The control plane that the schedule asks for, as threads use it."""
    plane = control_plane(world, timeout)
    if isinstance(plane, FireworksControlPlane):
        assert plane.transport is not None
        return replace(plane, transport=BlockingTransport(_Below(plane.transport)))
    return None if plane is None else _BlockingPlane(plane, timeout)


# -- schedules -------------------------------------------------------------------------------------


def for_threads(schedule: Schedule) -> Schedule:
    """A schedule without what threads do not have: cancellation, a second loop, and more."""
    setup = replace(schedule.setup, in_threads=True, has_two_loops=False)
    if setup.plane == "line":
        setup = replace(setup, plane="origin")
    events: list[Event] = []
    for event in schedule.events:
        match event:
            case Cancel() | LoopEnd() | CloseFault(kind="hang") | PlaneFault(kind="hang"):
                continue
            case ExchangeFault(kind="slow body"):
                # httpx's timeout breaks it off.
                events.append(replace(event, kind="broken body"))
            case Caller():
                asks = "info" if event.asks == "upload" else event.asks
                events.append(replace(event, asks=asks, timeout=None))
            case _:
                events.append(event)
    return replace(schedule, setup=setup, events=tuple(events))
