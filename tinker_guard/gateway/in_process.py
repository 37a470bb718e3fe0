"""Drives a world on an event loop, and serves it below httpx, without a socket."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import TYPE_CHECKING, Self

import httpx

from .wire import Call, Reply

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from .world import World


class LoopedWorld:
    """A world that waits on the running event loop.

    Args:
        world: The world.
        clock: The source of its times; by default the event loop's clock.
    """

    def __init__(self, world: World, clock: Callable[[], float] | None = None) -> None:
        self.world = world
        self._clock = clock
        self._waiting: set[asyncio.Future[None]] = set()

    async def answer(self, call: Call) -> Reply:
        """Answer a call; a bug of the world's is a 500, recorded in `trainer.unexpected`."""
        try:
            return await self._answer(call)
        except Exception as error:
            self.world.trainer.unexpected.append(f"{call.method} {call.path}: {error!r}")
            return Reply.json({"error": {"message": "Internal error", "code": "INTERNAL"}}, 500)
        finally:
            self.look_again()

    def close(self) -> None:
        """End all waits. Must be called on the event loop."""
        self.world.close()
        self.look_again()

    async def _answer(self, call: Call) -> Reply:
        now = self._now()
        steps = self.world.answer(call, now)
        try:
            until = next(steps)
            while True:
                is_due = await self._wait(until - now)
                now = max(self._now(), until) if is_due else self._now()
                until = steps.send(now)
        except StopIteration as ended:
            reply: Reply = ended.value
            return reply

    def _now(self) -> float:
        return asyncio.get_running_loop().time() if self._clock is None else self._clock()

    async def _wait(self, seconds: float) -> bool:
        """Wait until another call was answered; True if the time was over first."""
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.add(waiting)
        try:
            async with asyncio.timeout(seconds):
                await waiting
        except TimeoutError:
            return True
        finally:
            self._waiting.discard(waiting)
        return False

    def look_again(self) -> None:
        """Wake all waits to check their condition again. Must be called on the event loop."""
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)


class InProcessGateway:
    """A world whose connections are httpx transports.

    Args:
        world: The world.
        latency: Seconds that each exchange takes at the least. Default none.
    """

    origin = "https://gateway.test"

    def __init__(self, world: World, *, latency: float = 0.0) -> None:
        self.world = world
        self.latency = latency
        self.looped: LoopedWorld = LoopedWorld(world)
        self._numbers = count()

    @property
    def base_url(self) -> str:
        """The trainer route."""
        return f"{self.origin}/training/v1/rlorTrainerJobs/{self.world.account}/{self.world.job}"

    def new_transport(self) -> InProcessTransport:
        """Open another connection."""
        return InProcessTransport(self, next(self._numbers))


class InProcessTransport(httpx.AsyncHTTPTransport):
    """One connection to an in-process gateway.

    It counts as one of httpx's own transports: it follows no redirect.
    """

    def __init__(self, gateway: InProcessGateway, number: int) -> None:
        self._gateway = gateway
        self._number = number

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection."""
        self._gateway.world.connections.pop(self._number, None)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer a request."""
        headers = {name.lower(): value for name, value in request.headers.items()}
        body = await request.aread()
        call = Call(request.method, request.url.path, headers, body, self._number)
        if self._gateway.latency:
            await asyncio.sleep(self._gateway.latency)
        reply = await self._gateway.looped.answer(call)
        if not reply.status:
            raise httpx.RemoteProtocolError("the connection was dropped", request=request)
        sent = [("content-type", reply.media_type), *reply.headers]
        return httpx.Response(reply.status, headers=sent, content=reply.content)
