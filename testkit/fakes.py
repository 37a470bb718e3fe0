"""A gateway, a control plane and a trainer of a few lines, one layer below the guard."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import httpx

from tinker_guard import GuardSettings, GuardTransport
from tinker_guard.transports import runtime

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

ORIGIN = "https://gateway.test"
BASE = f"{ORIGIN}/training/v1/rlorTrainerJobs/acc/job-1"
KEY = "tml-very-secret"

GATEWAY_BODY = (
    b'{"error": {"message": "Trainer job not found or not running", "param": "jobId", '
    b'"code": "NOT_FOUND"}}'
)
TRAINER_BODY = b'{"detail": "Model not found"}'


def loop_time() -> float:
    return runtime.now()


def gateway_404() -> httpx.Response:
    return tracked(404, GATEWAY_BODY, "application/json")


def trainer_404() -> httpx.Response:
    return tracked(404, TRAINER_BODY, "application/json")


def router_404() -> httpx.Response:
    """What any FastAPI application says of an unknown path."""
    return tracked(404, b'{"detail": "Not Found"}', "application/json")


def plain_404() -> httpx.Response:
    return tracked(404, b"404 page not found", "text/plain")


def ok() -> httpx.Response:
    return tracked(200, b'{"ok": true}', "application/json")


class TrackedStream(httpx.AsyncByteStream):
    """A body in chunks that knows whether it was closed, and may dawdle or break."""

    def __init__(
        self, chunks: list[bytes], *, pause: float = 0.0, error: Exception | None = None
    ) -> None:
        self._chunks = chunks
        self._pause = pause
        self._error = error
        self.is_closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            if self._pause:
                await runtime.sleep(self._pause)
            assert not self.is_closed
            yield chunk
        if self._error is not None:
            raise self._error

    async def aclose(self) -> None:
        self.is_closed = True


def tracked(status_code: int, body: bytes, content_type: str) -> httpx.Response:
    return httpx.Response(
        status_code, headers={"content-type": content_type}, stream=TrackedStream([body])
    )


def post(path: str = "/api/v1/forward_backward", body: bytes = b'{"seq_id": 1}') -> httpx.Request:
    return httpx.Request(
        "POST",
        f"{BASE}{path}",
        content=body,
        headers={"X-Api-Key": KEY, "X-Idempotency-Key": "idem-1"},
        extensions={"timeout": httpx.Timeout(60).as_dict()},
    )


@dataclass
class Exchange:
    """One request as a gateway saw it."""

    at: float
    connection: int
    method: str
    path: str
    body: bytes
    headers: httpx.Headers
    extensions: Mapping[str, object]
    response: httpx.Response | None = None

    @property
    def is_probe(self) -> bool:
        return self.path.endswith("/get_server_capabilities")


@dataclass
class FakeGateway:
    """Answers by its `answer`; every transport it hands out is one sticky connection."""

    answer: Callable[[Exchange], httpx.Response | Awaitable[httpx.Response]] = lambda _: ok()
    exchanges: list[Exchange] = field(default_factory=list)
    transports: list[FakeTransport] = field(default_factory=list)
    control_plane: FakeControlPlane = field(default_factory=lambda: FakeControlPlane())
    """Says that the job runs. One for all guards: only those that ask the same one share probes."""

    def new_transport(self) -> FakeTransport:
        transport = FakeTransport(self, len(self.transports))
        self.transports.append(transport)
        return transport

    @property
    def sent(self) -> list[Exchange]:
        """The exchanges that were no probes."""
        return [exchange for exchange in self.exchanges if not exchange.is_probe]

    @property
    def probes(self) -> list[Exchange]:
        return [exchange for exchange in self.exchanges if exchange.is_probe]

    def unclosed(self) -> list[Exchange]:
        """Exchanges whose answer was neither read to its end nor closed."""
        return [
            exchange
            for exchange in self.exchanges
            if exchange.response is not None
            and isinstance(stream := exchange.response.extensions["tracked"], TrackedStream)
            and not stream.is_closed
        ]


class FakeTransport(httpx.AsyncBaseTransport):
    def __init__(self, gateway: FakeGateway, connection: int) -> None:
        self._gateway = gateway
        self.connection = connection
        self.is_entered = False
        self.is_closed = False

    async def __aenter__(self) -> Self:
        self.is_entered = True
        return self

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        assert not self.is_closed
        assert isinstance(request.stream, httpx.AsyncByteStream)
        body = b"".join([chunk async for chunk in request.stream])
        exchange = Exchange(
            loop_time(),
            self.connection,
            request.method,
            request.url.path,
            body,
            request.headers.copy(),
            dict(request.extensions),
        )
        self._gateway.exchanges.append(exchange)
        answer = self._gateway.answer(exchange)
        response = answer if isinstance(answer, httpx.Response) else await answer
        response.extensions["tracked"] = response.stream
        exchange.response = response
        return response

    async def aclose(self) -> None:
        self.is_closed = True


class ReadingTransport(FakeTransport):
    """Reads each answer, as transports do that log or keep them."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await super().handle_async_request(request)
        await response.aread()
        return response


class FakeHTTPTransport(FakeTransport, httpx.AsyncHTTPTransport):
    """Known to follow no redirect, so that a question to the control plane may go over it too."""


def known_from(at: float) -> Callable[[Exchange], httpx.Response]:
    """Every replica learns the route at this time."""
    return lambda exchange: ok() if exchange.at >= at else gateway_404()


class FakeControlPlane:
    """Says what it is told to, and counts how often it was asked."""

    def __init__(
        self,
        state: str | Exception | None = "JOB_STATE_RUNNING",
        *,
        states: Sequence[tuple[float, str | Exception | None]] = (),
        takes: float = 0.0,
    ) -> None:
        self.state = state
        self.states = states
        self.takes = takes
        self.asked: list[tuple[float, str, str, str]] = []
        self.credentials: list[dict[str, str]] = []

    @property
    def questions(self) -> int:
        return len(self.asked)

    async def job_state(
        self, account: str, job: str, *, origin: str, credentials: Mapping[str, str]
    ) -> str | None:
        self.asked.append((loop_time(), account, job, origin))
        self.credentials.append(dict(credentials))
        await runtime.sleep(self.takes)
        state = self.state
        for since, later in self.states:
            if loop_time() >= since:
                state = later
        if isinstance(state, Exception):
            raise state
        return state


async def settle() -> None:
    """Let every task run until it waits for something."""
    for _ in range(20):
        await asyncio.sleep(0)


def guard(gateway: FakeGateway, control_plane: Any = None, **settings: Any) -> GuardTransport:
    """A guard before this gateway; unless given, with its control plane."""
    return GuardTransport(
        gateway.new_transport(),
        settings=GuardSettings(**settings),
        control_plane=control_plane or gateway.control_plane,
        new_transport=gateway.new_transport,
    )


ungated = partial(guard, warmup_successes=0)
"""A guard whose gate is open."""


async def send(transport: GuardTransport, request: httpx.Request | None = None) -> httpx.Response:
    """Send a request and read the whole answer, which closes it."""
    response = await transport.handle_async_request(request or post())
    await response.aread()
    return response


def judged(verdict: str, reason: str) -> dict[str, Any]:
    """What a span, or a metric, says of a 404."""
    return {"tinker_guard.verdict": verdict, "tinker_guard.verdict.reason": reason}
