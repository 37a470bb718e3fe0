"""Transports of sync clients, as transports that coroutines use, and their responses back again."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, Self

import httpx

from tinker_guard import faults
from tinker_guard.transports import runtime
from tinker_guard.transports.interrupts import Interrupted, interruptible, is_by_signal_handler

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable, Iterator


class BlockingTransport(httpx.AsyncBaseTransport):
    """A sync transport, for coroutines that `run_blocking` drives.

    Args:
        transport: The transport; closed with this one.
    """

    def __init__(self, transport: httpx.BaseTransport) -> None:
        self.transport = transport

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and block the thread until it is answered.

        What is under way is not ended by the timeouts around; what has not begun in time is.
        """
        runtime.begin()
        handled = sys.exception()
        # Without a function of the guard's own around it, which could fail.
        try:
            response = self.transport.handle_request(request)
        except (Exception, asyncio.CancelledError) as error:
            if is_by_signal_handler(error, since=handled):
                raise Interrupted(error) from None
            raise
        return response_for_coroutines(response)

    async def __aenter__(self) -> Self:
        self.transport.__enter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        self.transport.__exit__(*error)

    async def aclose(self) -> None:
        """Close the transport."""
        self.transport.close()


def blocking_factory(
    new_transport: Callable[[], httpx.BaseTransport] | None,
) -> Callable[[], httpx.AsyncBaseTransport] | None:
    """What builds the transports of a sync client, for coroutines; None where nothing does."""
    if new_transport is None:
        return None

    def build() -> httpx.AsyncBaseTransport:
        with interruptible():
            transport = new_transport()
        if not isinstance(transport, httpx.BaseTransport):
            raise TypeError("new_transport must return an httpx.BaseTransport")
        return BlockingTransport(transport)

    return build


def environment_transport(verify: ssl.SSLContext | bool) -> httpx.AsyncBaseTransport | None:
    """What carries a lookup as the environment says; None where an async client does by itself.

    Args:
        verify: What is trusted.
    """
    if not runtime.is_blocking():
        return None
    return BlockingTransport(_ClientTransport(httpx.Client(verify=verify)))


def response_for_coroutines(response: httpx.Response) -> httpx.Response:
    """The same response of a sync transport, for coroutines that `run_blocking` drives."""
    assert isinstance(response.stream, httpx.SyncByteStream)
    response.stream = _BlockingStream(response.stream)
    return response


def response_of_client(response: httpx.Response) -> httpx.Response:
    """The same response, for a sync client."""
    if not isinstance(response.stream, httpx.SyncByteStream):
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _StreamOfClient(response.stream)
    return response


class _ClientTransport(httpx.BaseTransport):
    """Sends over what a client sends over: a transport of httpx itself knows of no proxy.

    The client itself would write the whole URL to httpx's log.
    """

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self._client._transport_for_url(request.url).handle_request(request)

    def close(self) -> None:
        self._client.close()


class _BlockingStream(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A sync stream that can be read in both ways."""

    def __init__(self, stream: httpx.SyncByteStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._stream)

    def close(self) -> None:
        self._stream.close()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunks, handled = iter(self._stream), sys.exception()
        while True:
            try:
                chunk = next(chunks)
            except StopIteration:
                return
            except (Exception, asyncio.CancelledError) as error:
                if is_by_signal_handler(error, since=handled):
                    raise Interrupted(error) from None
                raise
            # Each chunk renews the transport's own timeout, so that a body which drips has no end.
            try:
                runtime.go_on()
            except Exception:
                # It may be the body of the caller's own answer, which no fault here shall break.
                faults.log_fault("reading a body")
            yield chunk

    async def aclose(self) -> None:
        self._stream.close()


class _StreamOfClient(httpx.SyncByteStream):
    """A stream of the guard's own, read by a thread: a request's answer, as the request was."""

    def __init__(self, stream: httpx.AsyncByteStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        chunks = aiter(self._stream)
        while True:
            try:
                chunk = runtime.run_blocking(_next(chunks), is_request=True)
            except StopAsyncIteration:
                return
            yield chunk

    def close(self) -> None:
        runtime.run_blocking(self._stream.aclose(), is_request=True)


async def _next(chunks: AsyncIterator[bytes]) -> bytes:
    return await anext(chunks)
