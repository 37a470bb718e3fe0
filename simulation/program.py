"""The program above the guard: callers that send as the SDK does, and that may be cancelled."""

from __future__ import annotations

import asyncio
import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import httpx

from simulation.model import CALL, ELSEWHERE, KEYS, Call, base_of
from simulation.schedule import Cancel, ClockJump, SlotChange

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Generator

    from simulation.model import World
    from simulation.schedule import Caller
    from tests.virtual_time import VirtualTimeLoop
    from tinker_guard import GuardSettings, GuardTransport
    from tinker_guard.control_plane import ControlPlane

_SDK_TRIES: Final = 11
_SDK_PAUSE: Final = 0.5
_POLLS: Final = 4
_PATHS: Final = {
    "info": "/api/v1/get_info",
    "missing": "/api/v1/missing",
    "odd": "/api/v1/odd",
    "upload": "/api/v1/upload",
}


class Program:
    """The callers of one schedule, and what is done to them."""

    def __init__(
        self,
        world: World,
        guards: list[GuardTransport],
        others: GuardSettings,
        plane: ControlPlane,
    ) -> None:
        self._world = world
        self._guards = guards
        self._others = others
        self._plane = plane
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._in_guard: dict[int, tuple[Call, Coroutine[Any, Any, Any]]] = {}
        self._steps: dict[int, int] = {}
        self._cancels: dict[tuple[int, int], Cancel] = {}
        self._changes: list[asyncio.Task[None]] = []

    async def run(self, callers: list[Caller]) -> bool:
        """Let everything happen; whether all callers came to an end."""
        loop = self._world.loop
        for caller in callers:
            task = loop.create_task(self._call(caller), name=f"caller {caller.number}")
            self._tasks[caller.number] = task
        if not self._tasks:
            return True
        for event in self._world.schedule.events:
            match event:
                case Cancel(caller=number, step=int(step)):
                    self._cancels[number, step] = event
                case Cancel(at=at):
                    loop.call_at(at, self._cancel, event, 0)
                case ClockJump(at=at):
                    loop.call_at(at, self._jump, event)
                case SlotChange(at=at):
                    loop.call_at(at, self._change, event)
        # Much later than any budget: whoever still waits then, waits for ever.
        _, pending = await asyncio.wait(self._tasks.values(), timeout=100_000)
        for call, _ in self._in_guard.values():
            call.waits_for_ever = True
        for task in pending:
            task.cancel()
        return not pending

    async def settle(self) -> None:
        """Let what was begun by timers come to its end."""
        tasks = [task for task in self._changes if not task.done()]
        if tasks:
            await asyncio.wait(tasks)

    async def _call(self, caller: Caller) -> None:
        await asyncio.sleep(caller.at)
        match caller.asks:
            case "train":
                content = json.dumps({"seq_id": caller.seq_id}).encode()
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
        world = self._world
        number = len(world.calls)
        base = ELSEWHERE if caller.asks == "elsewhere" else base_of(caller.route)
        url = _url(base + path)
        key = KEYS[caller.key]
        request = httpx.Request(
            "POST",
            url,
            content=_streamed() if caller.asks == "upload" else content,
            headers={
                "x-api-key": key,
                "x-idempotency-key": f"{caller.number}{path}",
                "x-call": str(number),
            },
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
        )
        world.calls.append(call)
        return call

    async def _send_once(self, call: Call) -> None:
        world, number = self._world, call.caller.number
        CALL.set(call)
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
            del self._in_guard[number]
            call.ended_at = world.loop.time()
            call.ended = world.note(
                "ended",
                call.number,
                call.response.status_code if call.response else type(call.error).__name__,
            )
        try:
            call.body = await call.response.aread()
        except BaseException as error:
            call.read_error = error
            raise
        finally:
            await call.response.aclose()

    def on_step(self, number: int) -> None:
        """A caller's task waits for something in the guard."""
        step = self._steps.get(number, 0)
        self._steps[number] = step + 1
        if (event := self._cancels.get((number, step))) is not None:
            self._world.loop.call_soon(self._cancel, event, event.turns)

    def _cancel(self, event: Cancel, turns: int) -> None:
        if turns > 0:
            self._world.loop.call_soon(self._cancel, event, turns - 1)
            return
        task = self._tasks.get(event.caller)
        if task is None or task.done():
            return
        if event.caller in self._in_guard:
            call, coroutine = self._in_guard[event.caller]
            where = _where(coroutine)
            call.cancels.append((self._world.loop.time(), where))
            self._world.note("cancel", call.number, where)
        task.cancel()
        if event.again:
            # The first one has been delivered by then, and what it began is under way.
            self._world.loop.call_soon(self._world.loop.call_soon, self._cancel_again, event)

    def _cancel_again(self, event: Cancel) -> None:
        task = self._tasks[event.caller]
        if not task.done():
            if event.caller in self._in_guard:
                self._in_guard[event.caller][0].is_cancelled_twice = True
            task.cancel()

    def _jump(self, event: ClockJump) -> None:
        loop: VirtualTimeLoop = self._world.loop  # type: ignore[assignment]
        loop.now += event.seconds
        self._world.jumped += event.seconds
        self._world.jumps.append(loop.now)
        self._world.note("clock jumps", event.seconds)

    def _change(self, event: SlotChange) -> None:
        guard = self._guards[event.slot]
        now = self._world.loop.time()
        self._world.note(event.kind, event.slot)
        match event.kind:
            case "close":
                self._world.closed_slots.setdefault(event.slot, now)
                self._changes.append(self._world.loop.create_task(_close(guard)))
            case "release":
                self._world.released_slots.setdefault(event.slot, now)
                guard.release()
            case "reconfigure":
                self._world.reconfigured.setdefault(event.slot, now)
                guard.configure(self._others, self._plane)


@lru_cache
def _url(url: str) -> httpx.URL:
    # Parsing one takes as long as a whole exchange.
    return httpx.URL(url)


async def _close(guard: GuardTransport) -> None:
    await guard.aclose()


async def _streamed() -> AsyncIterator[bytes]:
    yield b"once"


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
