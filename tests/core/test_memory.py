"""What is known of a route outlives its requests, and must not keep what they were sent over."""

from __future__ import annotations

import gc
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING

import httpx
import pytest

from testkit.fakes import (
    Exchange,
    FakeControlPlane,
    FakeGateway,
    TrackedStream,
    gateway_404,
    ok,
    plain_404,
    post,
    router_404,
    settle,
    trainer_404,
)
from tinker_guard import ControlPlaneError, GuardSettings, GuardTransport
from tinker_guard.core.routes import ROUTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

pytestmark = pytest.mark.anyio


def raises(make: Callable[[str], Exception]) -> Callable[[Exchange], httpx.Response]:
    def answer(_: Exchange) -> httpx.Response:
        try:
            raise ConnectionResetError("below")
        except ConnectionResetError as cause:
            # A new one each time: it refers to all that it came through.
            raise make("why") from cause

    return answer


def breaks_off(_: Exchange) -> httpx.Response:
    stream = TrackedStream([b'{"error'], error=httpx.ReadError("broke off"))
    return httpx.Response(404, stream=stream)


def probes_only(answer: Callable[[Exchange], httpx.Response]) -> Callable[..., httpx.Response]:
    return lambda exchange: answer(exchange) if exchange.is_probe else ok()


ANSWERS = {
    "ok": lambda _: ok(),
    "gateway's 404": lambda _: gateway_404(),
    "an unknown 404": lambda _: plain_404(),
    "a router's 404": lambda _: router_404(),
    "the trainer's 404": lambda _: trainer_404(),
    "503": lambda _: httpx.Response(503, stream=TrackedStream([b"busy"])),
    "a body that breaks off": breaks_off,
    "refused": raises(httpx.ConnectError),
    "too late": raises(httpx.ReadTimeout),
    "an error of a layer below": raises(OSError),
}


class FailingPlane(FakeControlPlane):
    def __init__(self, kind: type[Exception]) -> None:
        super().__init__()
        self._kind = kind

    async def job_state(self, account: str, job: str, **_: object) -> str | None:
        raise self._kind(f"{account}/{job}")


PLANES: dict[str, Callable[[], FakeControlPlane]] = {
    "runs": FakeControlPlane,
    "stopped": lambda: FakeControlPlane("JOB_STATE_FAILED"),
    "missing": lambda: FakeControlPlane(None),
    "no answer": lambda: FailingPlane(ControlPlaneError),
    "a user's bug": lambda: FailingPlane(ValueError),
}


@pytest.mark.parametrize("of_probes_only", [True, False])
@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("answer", ANSWERS)
async def test_a_route_keeps_no_transport_alive(
    answer: str, plane: str, of_probes_only: bool
) -> None:
    """Some transports close their connections only when they are collected."""
    answers = ANSWERS[answer]
    gateway = FakeGateway(probes_only(answers) if of_probes_only else answers)
    used: list[weakref.ref[httpx.AsyncBaseTransport]] = []

    def new_transport() -> httpx.AsyncBaseTransport:
        transport = gateway.new_transport()
        used.append(weakref.ref(transport))
        return transport

    guard = GuardTransport(
        new_transport(),
        settings=GuardSettings(retry_timeout=2.0, warmup_timeout=2.0),
        control_plane=PLANES[plane](),
        new_transport=new_transport,
    )
    for _ in range(2):
        with suppress(httpx.HTTPError, OSError):
            response = await guard.handle_async_request(post())
            with suppress(httpx.HTTPError):
                await response.aread()
            await response.aclose()
    await guard.aclose()
    response = None  # type: ignore[assignment]
    gateway.transports.clear()
    gateway.exchanges.clear()
    del guard
    # What asyncio threw into this task is kept until the task waits again.
    await settle()
    gc.collect()
    assert ROUTES.find(post().url) is not None
    assert [reference() for reference in used if reference() is not None] == []


class Batch:
    """What the frames of a program hold while a request is under way."""


def breaks_off_anew(_: Exchange) -> httpx.Response:
    class Broken(TrackedStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b'{"detail'
            raise httpx.ReadError("broke off")

    return httpx.Response(404, stream=Broken([]))


ERRORS: dict[str, list[Callable[[Exchange], httpx.Response]]] = {
    "of the first try": [raises(httpx.ConnectError)],
    "of a resend": [lambda _: gateway_404(), raises(httpx.ReadTimeout)],
    "in a 404's body": [breaks_off_anew],
}


@pytest.mark.parametrize("is_warm", [False, True])
@pytest.mark.parametrize("error", ERRORS)
async def test_an_error_frees_what_it_came_through_once_it_is_dealt_with(
    error: str, is_warm: bool
) -> None:
    """A program that keeps the garbage collector out of its steps would keep every batch."""
    answers = [*([lambda _: ok()] if is_warm else []), *ERRORS[error]]
    gateway = FakeGateway(lambda exchange: ok() if exchange.is_probe else answers.pop(0)(exchange))
    plane = FakeControlPlane("JOB_STATE_FAILED" if "body" in error else "JOB_STATE_RUNNING")
    guard = GuardTransport(
        gateway.new_transport(), control_plane=plane, new_transport=gateway.new_transport
    )
    if is_warm:
        await guard.handle_async_request(post())

    async def step(batch: Batch) -> None:
        response = await guard.handle_async_request(post())
        await response.aread()

    async def steps() -> weakref.ref[Batch]:
        batch = Batch()
        with pytest.raises(httpx.TransportError):
            await step(batch)
        return weakref.ref(batch)

    gc.collect()
    gc.disable()
    try:
        assert (await steps())() is None
    finally:
        gc.enable()
    await guard.aclose()
