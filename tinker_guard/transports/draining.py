"""A transport that can be replaced: it closes once its last response is closed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import httpx

from tinker_guard.transports.cleanup import close_quietly, unless_abandoned
from tinker_guard.transports.locked import Locked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


class _ClosedTransport(httpx.AsyncBaseTransport):
    """In the place of a transport that is closed."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        raise httpx.TransportError("the client was closed", request=request)

    def __reduce__(self) -> str:
        """Copies and pickles are the only one there is, which is known by its identity."""
        return "CLOSED"


CLOSED: Final = _ClosedTransport()
"""Refuses every request."""


class DrainingTransport(Locked, httpx.AsyncBaseTransport):
    """Counts its requests in flight; after `drain()` it closes with the last of them.

    Args:
        transport: The transport that it wraps, and closes.
    """

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        # Threads of a sync client count at the same time.
        super().__init__()
        self.transport: httpx.AsyncBaseTransport = transport
        """Where a request is sent that comes now."""
        self.is_closed: bool = False
        self._to_close: httpx.AsyncBaseTransport = transport
        self._successor: httpx.AsyncBaseTransport = CLOSED
        self._is_draining = False
        self._in_flight = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; it is in flight until its response is closed."""
        with self._lock:
            self._in_flight += 1
            sent_on = self.transport
        try:
            response = await sent_on.handle_async_request(request)
        except GeneratorExit:
            # See `unless_abandoned`. If it was the last one, the guard's end closes this transport.
            with self._lock:
                self._in_flight -= 1
            raise
        except BaseException:
            await self._finish_one()
            raise
        if response.is_closed:
            # A transport below has read it.
            await self._finish_one()
        else:
            assert isinstance(response.stream, httpx.AsyncByteStream)
            response.stream = _CountedStream(response.stream, self._finish_one)
        return response

    def make_way_for(self, successor: httpx.AsyncBaseTransport) -> None:
        """Close with the last request in flight.

        Args:
            successor: Sends what comes after that, from a thread that looked up where to send its
                request before this one was replaced.
        """
        self._successor, self._is_draining = successor, True

    async def drain(self, successor: httpx.AsyncBaseTransport = CLOSED) -> None:
        """The same, and close at once if no request is in flight."""
        self.make_way_for(successor)
        await self._close_if_done()

    async def aclose(self) -> None:
        """Close the wrapped transport at once; again if that was cancelled before."""
        await self._close_if_done(is_due=True)

    async def _finish_one(self) -> None:
        with self._lock:
            self._in_flight -= 1
        await self._close_if_done()

    async def _close_if_done(self, *, is_due: bool = False) -> None:
        with self._lock:
            is_done = self._is_draining and self._in_flight == 0
            if self.is_closed or not (is_due or is_done):
                return
            # Drop the references too: pyqwest's transport closes its connections when it has none,
            # and a response that went through here may keep this object for long.
            transport, self._to_close = self._to_close, CLOSED
            self.transport = self._successor
        if transport is CLOSED:
            # Another one is closing it.
            return
        try:
            await close_quietly(transport.aclose, "a replaced transport")
        except BaseException:
            self._to_close = transport
            raise
        self.is_closed = True


class _CountedStream(httpx.AsyncByteStream):
    def __init__(
        self, stream: httpx.AsyncByteStream, finish: Callable[[], Awaitable[None]]
    ) -> None:
        self._stream = stream
        self._finish = finish
        self._is_closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            yield chunk

    async def aclose(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            async with unless_abandoned(self._finish):
                await self._stream.aclose()
