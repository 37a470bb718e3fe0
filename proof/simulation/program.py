"""The program above the guard: callers that send as the SDK does, and that may be cancelled."""

from __future__ import annotations

import asyncio
import json
from contextvars import Context
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final

import httpx

from proof.simulation.bodies import SECRET
from proof.simulation.loops import abandon
from proof.simulation.model import ELSEWHERE, QUERY
from proof.simulation.record import CALL, KEYS, Call, Span, base_of
from proof.simulation.schedule import Cancel, ClockJump, LoopEnd, SlotChange, Stall

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Generator

    from proof.simulation.model import ModelWorld
    from proof.simulation.schedule import Caller
    from proof.simulation.threads import ThreadedGuard
    from tinker_guard import GuardSettings, GuardTransport
    from tinker_guard.control_plane.protocol import ControlPlane

_SDK_TRIES: Final = 11
_SDK_PAUSE: Final = 0.5
_POLLS: Final = 4
_PATHS: Final = {
    "info": "/api/v1/get_info",
    "missing": "/api/v1/missing",
    "unrouted": "/api/v1/unrouted",
    "telemetry": "/api/v1/telemetry",
    "odd": "/api/v1/odd",
    "upload": "/api/v1/upload",
}


class Program:
    """The callers of one schedule, and what is done to them."""

    def __init__(
        self,
        world: ModelWorld,
        guards: list[GuardTransport | ThreadedGuard],
        settings: GuardSettings,
        others: dict[str, float],
        plane: ControlPlane | None,
    ) -> None:
        self._world = world
        self._guards = guards
        self._settings, self._others = settings, others
        self._plane = plane
        self._loop = world.loop
        self._callers: dict[int, Caller] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._ended: dict[int, asyncio.Future[None]] = {}
        """On the main loop, for callers on any."""
        self._in_guard: dict[int, tuple[Call, Coroutine[Any, Any, Any]]] = {}
        self._steps: dict[int, int] = {}
        self._cancels: dict[tuple[int, int], Cancel] = {}
        self._changes: list[asyncio.Task[None]] = []
        # What each client's cookie jar holds of a balancer that set a cookie long ago.
        has_its_cookie = world.setup.cookies == "all"
        self._affinities = [
            str(slot % world.setup.replicas) if has_its_cookie else ""
            for slot in range(len(guards))
        ]
        self._dead: list[Coroutine[Any, Any, Any]] = []
        """What ran on a loop that was closed, for the garbage collector to find."""
        self.still_running: list[str] = []
        """What of it would not end."""

    async def run(self, callers: list[Caller]) -> bool:
        """Let everything happen; whether all callers came to an end."""
        loop = self._loop
        if self._world.setup.has_two_loops:
            loop.new_side()
        for caller in callers:
            self._callers[caller.number] = caller
            self._ended[caller.number] = loop.create_future()
            self._start(caller)
        if not callers:
            return True
        for event in self._world.schedule.events:
            match event:
                case Cancel(caller=number, step=int(step)):
                    self._cancels[number, step] = event
                case Cancel(at=at, caller=number):
                    loop.call_at(at, self._cancel_where_it_runs, event)
                case Stall(at=at):
                    loop.call_at(at, self._stall, event)
                case ClockJump(at=at):
                    loop.call_at(at, self._set_clock, event)
                case SlotChange(at=at):
                    loop.call_at(at, self._change, event)
                case LoopEnd(at=at) if loop.side is not None:
                    loop.call_at(at, self._end_loop, event)
        # Much later than any budget: whoever still waits then, waits for ever.
        _, pending = await asyncio.wait(self._ended.values(), timeout=100_000)
        for call, _ in self._in_guard.values():
            call.waits_for_ever = True
        for task in self._tasks.values():
            task.cancel()
        return not pending

    async def settle(self) -> None:
        """Let what was begun by timers come to its end."""
        await self._wait_for([x for x in self._changes if not x.get_loop().is_closed()])
        self._collect()

    def _loop_of(self, slot: int) -> asyncio.AbstractEventLoop:
        side = self._loop.side
        return side if side is not None and slot % 2 else self._loop

    def _start(self, caller: Caller) -> None:
        task = self._loop_of(caller.slot).create_task(
            self._call(caller), name=f"caller {caller.number}"
        )
        self._tasks[caller.number] = task
        task.add_done_callback(partial(self._on_end, caller.number))

    def _on_end(self, number: int, task: asyncio.Task[None]) -> None:
        # One that is to begin again is not among them.
        if task is self._tasks.get(number) and not self._ended[number].done():
            self._ended[number].set_result(None)

    async def _call(self, caller: Caller) -> None:
        await asyncio.sleep(max(caller.at - self._world.loop.time(), 0.0))
        match caller.asks:
            case "train":
                content = json.dumps({"seq_id": caller.seq_id, "text": SECRET}).encode()
                if await self._send(caller, "/api/v1/forward_backward", content) != 200:
                    return
                for _ in range(_POLLS):
                    if await self._send(caller, "/api/v1/retrieve_future", content) != 408:
                        return
                    await asyncio.sleep(0.2)
            case "elsewhere":
                await self._send(caller, "/api/v1/info", b"")
            case asks:
                await self._send(caller, _PATHS[asks], b"")

    async def _send(self, caller: Caller, path: str, content: bytes) -> int:
        """Send one request of the SDK's: the same bytes again after an error or a 5xx."""
        status_code = 0
        for _ in range(_SDK_TRIES):
            call = self._begin(caller, path, content)
            try:
                async with asyncio.timeout(caller.timeout) as limit:
                    call.limit = limit
                    await self._send_once(call)
            except TimeoutError:
                if limit.expired():
                    call.has_timed_out = True
                    return 0
            except Exception:
                status_code = 0
            else:
                assert call.response is not None
                status_code = call.response.status_code
                if call.body is not None and status_code < 500:
                    return status_code
            if caller.asks == "upload":
                # What was streamed is gone; nobody can send it again.
                return status_code
            await asyncio.sleep(_SDK_PAUSE)
        return status_code

    def _begin(self, caller: Caller, path: str, content: bytes) -> Call:
        self._collect()
        world = self._world
        number = len(world.calls)
        base = ELSEWHERE if caller.asks == "elsewhere" else base_of(caller.route)
        url = _url(base + path + QUERY)
        key = KEYS[caller.key]
        headers = {
            "x-api-key": key,
            "x-idempotency-key": f"{caller.number}{path}",
            "x-user": SECRET,
        }
        if cookies := self._cookies(caller.slot):
            headers["cookie"] = cookies
        request = httpx.Request(
            "POST",
            url,
            content=_streamed() if caller.asks == "upload" else content,
            headers=headers,
            extensions={"timeout": {"read": 60.0}},
        )
        call = Call(
            number=number,
            caller=caller,
            slot=caller.slot,
            request=request,
            key=key,
            seq_id=caller.seq_id,
            path=path,
            loop=getattr(asyncio.get_running_loop(), "number", 0),
        )
        world.calls.append(call)
        return call

    def _cookies(self, slot: int) -> str:
        """What a client's cookie jar says; empty if it says nothing."""
        setup, affinity = self._world.setup, self._affinities[slot]
        if setup.balance != "cookie":
            return ""
        cookies = [] if setup.cookies == "none" else [f"session={SECRET}"]
        return "; ".join([*cookies, f"affinity={affinity}"] if affinity else cookies)

    async def _send_once(self, call: Call) -> None:
        world, number = self._world, call.caller.number
        CALL.set(call)
        call.task = asyncio.current_task()
        call.began_at = world.loop.time()
        call.began = world.note("call", call.number, number, call.path)
        coroutine = self._guards[call.slot].handle_async_request(call.request)
        self._in_guard[number] = call, coroutine
        try:
            call.response = await _Stepped(coroutine, self, number)
        except BaseException as error:
            call.error = error
            raise
        finally:
            if self._in_guard.get(number, (None,))[0] is call:
                del self._in_guard[number]
            call.ended_at = world.loop.time()
            call.ended = world.note(
                "ended",
                call.number,
                call.response.status_code if call.response else type(call.error).__name__,
            )
        for cookie in call.response.headers.get_list("set-cookie"):
            self._affinities[call.slot] = cookie.partition("=")[2].partition(";")[0]
        try:
            call.body = await call.response.aread()
        except BaseException as error:
            call.read_error = error
            raise
        finally:
            if not isinstance(call.read_error, GeneratorExit):
                await call.response.aclose()

    def on_step(self, number: int) -> None:
        """A caller's task waits for something in the guard."""
        step = self._steps.get(number, 0)
        self._steps[number] = step + 1
        if (event := self._cancels.get((number, step))) is not None:
            asyncio.get_running_loop().call_soon(self._cancel, event, event.turns)

    def _cancel_where_it_runs(self, event: Cancel) -> None:
        task = self._tasks.get(event.caller)
        if task is not None and not task.done():
            task.get_loop().call_soon(self._cancel, event, 0)

    def _cancel(self, event: Cancel, turns: int) -> None:
        loop = asyncio.get_running_loop()
        if turns > 0:
            loop.call_soon(self._cancel, event, turns - 1)
            return
        task = self._tasks.get(event.caller)
        if task is None or task.done() or task.get_loop() is not loop:
            return
        self._note_cancel(event.caller)
        task.cancel()
        if event.again:
            # The first one has been delivered by then, and what it began is under way.
            loop.call_soon(loop.call_soon, self._cancel_again, event)

    def _note_cancel(self, number: int) -> None:
        if number in self._in_guard:
            call, coroutine = self._in_guard[number]
            where = _where(coroutine)
            call.cancels.append((self._world.loop.time(), where))
            self._world.note("cancel", call.number, where)

    def _cancel_again(self, event: Cancel) -> None:
        task = self._tasks.get(event.caller)
        if task is not None and not task.done():
            if event.caller in self._in_guard:
                self._in_guard[event.caller][0].is_cancelled_twice = True
            task.cancel()

    def _stall(self, event: Stall) -> None:
        stall = Span(began_at=self._loop.now)
        self._loop.now += event.seconds
        stall.ended_at = self._loop.now
        self._world.stalls.append(stall)
        self._world.note("stalls", event.seconds)

    def _set_clock(self, event: ClockJump) -> None:
        self._world.clock.is_wrong_by += event.seconds
        self._world.clock_set_at.append(self._loop.now)
        self._world.note("clock set", event.seconds)

    def _end_loop(self, event: LoopEnd) -> None:
        self._changes.append(self._loop.create_task(self._end_side(event)))

    async def _end_side(self, event: LoopEnd) -> None:
        """End the loop on the side, and let its callers begin again on another one."""
        world, side = self._world, self._loop.side
        assert side is not None
        world.note("loop ends", event.kind)
        world.loop_ends.append(event.kind)
        callers = [
            caller
            for caller in self._callers.values()
            if self._tasks[caller.number].get_loop() is side
            and not self._tasks[caller.number].done()
        ]
        tasks = [self._tasks.pop(caller.number) for caller in callers]
        for number, task in self._tasks.items():
            if task.get_loop() is side:
                # Its own callback may not come any more.
                self._on_end(number, task)
        if event.kind == "cancel":
            for caller in callers:
                self._note_cancel(caller.number)
                if caller.number in self._in_guard:
                    self._in_guard[caller.number][0].is_cancelled_with_its_loop = True
            everything = sorted(asyncio.all_tasks(side), key=hash)
            for task in everything:
                task.cancel()
            await self._wait_for([*tasks, *everything])
            side.close()
        else:
            world.orphans |= {x for x in world.transports if x.slot % 2}
            for caller in callers:
                self._in_guard.pop(caller.number, None)
            self._dead += abandon(side)
        self._loop.new_side()
        for caller in callers:
            self._start(caller)

    async def _wait_for(self, tasks: list[asyncio.Task[Any]]) -> None:
        """Wait for tasks of any loop."""
        left = {task for task in tasks if not task.done()}
        all_done = self._loop.create_future()

        def done(task: asyncio.Task[Any]) -> None:
            left.discard(task)
            if not left:
                all_done.set_result(None)

        for task in list(left):
            task.add_done_callback(done)
        if left:
            await all_done

    def _collect(self) -> None:
        """End what ran on a loop that was closed, wherever the garbage collector happens to run."""
        dead, self._dead = self._dead, []
        for coroutine in dead:
            where = _where(coroutine)
            for _ in range(10):
                try:
                    # Whose context that is, nobody knows.
                    Context().run(coroutine.close)
                    break
                except RuntimeError as error:
                    self.still_running.append(f"{where}: {error}")

    def _change(self, event: SlotChange) -> None:
        guard = self._guards[event.slot]
        now = self._world.loop.time()
        self._world.note(event.kind, event.slot)
        match event.kind:
            case "close":
                self._world.closed_slots.setdefault(event.slot, now)
                self._changes.append(self._loop_of(event.slot).create_task(_close(guard)))
            case "release":
                self._world.released_slots.setdefault(event.slot, now)
                guard.release()
            case "reconfigure":
                self._world.reconfigured.setdefault(event.slot, now)
                settings = self._settings.model_copy(update=self._others)
                guard.configure(settings, self._plane)


@lru_cache
def _url(url: str) -> httpx.URL:
    # Parsing one takes as long as a whole exchange.
    return httpx.URL(url)


async def _close(guard: GuardTransport | ThreadedGuard) -> None:
    await guard.aclose()


async def _streamed() -> AsyncIterator[bytes]:
    yield f"once, and {SECRET}".encode()


class _Stepped:
    """Awaits a coroutine, and tells the program of each time that it waits."""

    def __init__(
        self, coroutine: Coroutine[Any, Any, httpx.Response], program: Program, number: int
    ) -> None:
        self._coroutine = coroutine
        self._program = program
        self._number = number

    def __await__(self) -> Generator[Any, Any, httpx.Response]:
        coroutine = self._coroutine
        thrown: BaseException | None = None
        while True:
            try:
                waits_for = coroutine.send(None) if thrown is None else coroutine.throw(thrown)
            except StopIteration as stop:
                response: httpx.Response = stop.value
                return response
            self._program.on_step(self._number)
            try:
                yield waits_for
                thrown = None
            except BaseException as error:
                # The coroutine's to handle.
                thrown = error


def _where(coroutine: Any) -> str:
    """The names of the functions in which a coroutine waits, from the outermost on."""
    names = []
    while (code := getattr(coroutine, "cr_code", None)) is not None:
        names.append(code.co_qualname)
        coroutine = coroutine.cr_await
    return " > ".join(names)
