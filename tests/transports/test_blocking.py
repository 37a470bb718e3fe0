"""Sync transports under coroutines, and their responses in the hands of sync clients."""

from __future__ import annotations

import logging
import ssl
from typing import TYPE_CHECKING

import httpx
import pytest

from testkit.fakes import FakeGateway, TrackedStream, post
from testkit.threads import SyncFakeTransport
from tinker_guard.transports import runtime
from tinker_guard.transports.blocking import (
    BlockingTransport,
    blocking_factory,
    environment_transport,
    response_for_coroutines,
    response_of_client,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from testkit.threads import VirtualTime


class _Stream(httpx.SyncByteStream):
    is_closed = False

    def __iter__(self) -> Iterator[bytes]:
        yield from (b"ab", b"cd")

    def close(self) -> None:
        self.is_closed = True


class _Transport(httpx.BaseTransport):
    def __init__(self, stream: httpx.SyncByteStream) -> None:
        self.stream = stream
        self.is_closed = False

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=self.stream)

    def close(self) -> None:
        self.is_closed = True


async def _answer(stream: httpx.SyncByteStream) -> httpx.Response:
    return await BlockingTransport(_Transport(stream)).handle_async_request(post())


def test_an_answer_is_read_and_closed_by_a_coroutine() -> None:
    stream = _Stream()

    async def read() -> bytes:
        return await (await _answer(stream)).aread()

    assert runtime.run_blocking(read()) == b"abcd"
    assert stream.is_closed


@pytest.mark.parametrize("error", [MemoryError, RecursionError, RuntimeError])
@pytest.mark.meets_fault
def test_a_fault_while_a_body_is_read_leaves_the_body_alone(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def read() -> bytes:
        response = await _answer(_Stream())

        def fail() -> None:
            raise error

        monkeypatch.setattr(runtime, "go_on", fail)
        return await response.aread()

    assert runtime.run_blocking(read()) == b"abcd"
    assert "a fault of its own in reading a body" in caplog.text


def test_the_same_answer_is_read_and_closed_by_a_client() -> None:
    stream = _Stream()
    response = response_of_client(runtime.run_blocking(_answer(stream)))
    assert response.read() == b"abcd"
    assert stream.is_closed


def test_a_stream_of_coroutines_is_read_and_closed_by_a_client() -> None:
    stream = TrackedStream([b"ab", b"cd"])
    response = response_of_client(httpx.Response(200, stream=stream))
    assert [*response.iter_raw()] == [b"ab", b"cd"]
    assert stream.is_closed


def test_what_a_stream_raises_reaches_the_client() -> None:
    stream = TrackedStream([b"ab"], error=httpx.ReadError("cut"))
    chunks = response_of_client(httpx.Response(200, stream=stream)).iter_raw()
    assert next(chunks) == b"ab"
    with pytest.raises(httpx.ReadError, match="cut"):
        next(chunks)


def test_no_timeout_around_ends_the_reading_of_another_requests_answer(
    virtual_time: VirtualTime,
) -> None:
    """A transport below, or a signal handler, may send one with a client of its own."""

    class Drips(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            for _ in range(3):
                virtual_time.sleep(1.0)
                yield b"x"

    class Nested(httpx.BaseTransport):
        def handle_request(self, _: httpx.Request) -> httpx.Response:
            answer = response_for_coroutines(httpx.Response(200, stream=Drips()))
            assert isinstance(answer.stream, httpx.AsyncByteStream)
            answer.stream = _Wrapped(answer.stream)
            return httpx.Response(200, stream=httpx.ByteStream(response_of_client(answer).read()))

    async def send_with_a_timeout() -> httpx.Response:
        async with runtime.timeout(1.5):
            return await BlockingTransport(Nested()).handle_async_request(post())

    response = response_of_client(runtime.run_blocking(send_with_a_timeout()))
    assert response.read() == b"xxx"


class _Wrapped(httpx.AsyncByteStream):
    """A stream of the guard's own, as what counts a response is."""

    def __init__(self, stream: httpx.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            yield chunk


def test_a_factory_is_one_of_sync_transports() -> None:
    gateway = FakeGateway()
    build = blocking_factory(lambda: SyncFakeTransport(gateway.new_transport()))
    assert build is not None
    built = build()
    assert isinstance(built, BlockingTransport)
    runtime.run_blocking(built.aclose())
    assert gateway.transports[0].is_closed
    assert blocking_factory(None) is None


def test_a_lookup_goes_as_a_client_goes_and_follows_no_redirect(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    verified: list[object] = []
    clients: list[httpx.Client] = []

    class Client(httpx.Client):
        def __init__(self, *, verify: ssl.SSLContext) -> None:
            elsewhere = httpx.Response(302, headers={"location": "https://else.where/"})
            mounts = {
                "https://": httpx.MockTransport(lambda _: elsewhere),
                "all://": httpx.MockTransport(lambda _: pytest.fail("past the proxy")),
            }
            super().__init__(mounts=mounts)
            verified.append(verify)
            clients.append(self)

    async def look_up() -> None:
        transport = environment_transport(context)
        assert transport is not None
        request = httpx.Request("GET", "https://api.test/?key=secret")
        response = await transport.handle_async_request(request)
        assert response.status_code == 302
        await response.aclose()
        assert not clients[0].is_closed
        await transport.aclose()

    context = ssl.create_default_context()
    monkeypatch.setattr(httpx, "Client", Client)
    runtime.run_blocking(look_up())
    assert verified == [context]
    assert clients[0].is_closed
    assert caplog.messages == []


@pytest.mark.anyio
async def test_on_an_event_loop_an_async_client_does_that_by_itself() -> None:
    assert environment_transport(False) is None
