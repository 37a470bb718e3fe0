"""The transport below the guard, and how one that is stuck to a stale replica is replaced.

A connection can stick to one gateway replica for its whole life. While that replica lacks the
route, every resend over the connection meets the same 404; a new connection may not.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final

import httpx

from tinker_guard import logs
from tinker_guard.closing import Afterwards, close_quietly

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


class Line:
    """The transport that requests are sent on now.

    Args:
        transport: The transport to begin with.
        new_transport: Builds another one to the same places, with connections of its own; None
            if that cannot be had, in which case `transport` is never replaced.
    """

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport,
        new_transport: Callable[[], httpx.AsyncBaseTransport] | None = None,
    ) -> None:
        self.transport = transport
        # Whether this one is idle cannot be told without a price on every request, so that it
        # stays open to the end even if it is replaced.
        self._original = transport
        self._new_transport = new_transport
        self._retired: list[_Spare] = []
        self._is_closed = False

    async def replace(self, stale: httpx.AsyncBaseTransport) -> None:
        """Put a new transport in the place of one that proved stale.

        Does nothing if another request has replaced it already. Requests in flight on the old
        one finish undisturbed; it is closed with the last of them.
        """
        if self.transport is not stale:
            return
        spare = self._build()
        if spare is None:
            return
        self.transport = spare
        if isinstance(stale, _Spare):
            self._retired = [retired for retired in self._retired if not retired.is_closed]
            self._retired.append(stale)
            await stale.retire()

    @asynccontextmanager
    async def probe_transport(self) -> AsyncIterator[httpx.AsyncBaseTransport]:
        """A transport with connections of its own, for the time of one probe."""
        spare = self._build()
        if spare is None:
            yield self.transport
            return
        async with Afterwards(spare.aclose):
            yield spare

    @asynccontextmanager
    async def question_transport(self) -> AsyncIterator[httpx.AsyncBaseTransport | None]:
        """A transport for the time of one question to the route's own origin.

        It has the requests' proxy and certificates. None unless it is known to follow no
        redirect, which would take the key along.
        """
        if not isinstance(_innermost(self.transport), httpx.AsyncHTTPTransport):
            yield None
            return
        async with self.probe_transport() as transport:
            yield _LentTransport(transport)

    def release(self) -> httpx.AsyncBaseTransport:
        """Go back to the first transport for good, and return it; it is not closed from here."""
        self._new_transport = None
        spare, self.transport = self.transport, self._original
        if isinstance(spare, _Spare):
            spare.is_retired = True
            # If nothing is in flight on it, nothing ends that could close it.
            self._retired.append(spare)
        return self._original

    async def aclose(self) -> None:
        """Close the transport in use and those that it replaced."""
        self._is_closed = True
        async with AsyncExitStack() as stack:
            # The last one pushed is closed first, and an error keeps none of the others open.
            stack.push_async_callback(self._original.aclose)
            for spare in (self.transport, *self._retired):
                if spare is not self._original:
                    stack.push_async_callback(spare.aclose)

    def _build(self) -> _Spare | None:
        if self._new_transport is None or self._is_closed:
            return None
        try:
            transport = self._new_transport()
            if not isinstance(transport, httpx.AsyncBaseTransport):
                raise TypeError("new_transport must return an httpx.AsyncBaseTransport")
            return _Spare(transport)
        except Exception:
            logs.log_fault("building a new transport")
            return None


class _ClosedTransport(httpx.AsyncBaseTransport):
    """In the place of a transport that is closed."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        raise httpx.TransportError("the client was closed", request=request)


_NOWHERE: Final = _ClosedTransport()


class _Spare(httpx.AsyncBaseTransport):
    """A transport that knows what is in flight on it, and so when it can be closed."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self.transport = transport
        self.is_closed = False
        self._in_flight = 0
        self.is_retired = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self._in_flight += 1
        try:
            response = await self.transport.handle_async_request(request)
        except GeneratorExit:
            # See `Afterwards`. If it was the last one, the guard's end closes this transport.
            self._in_flight -= 1
            raise
        except BaseException:
            await self._finish_one()
            raise
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _CountedStream(response.stream, self._finish_one)
        return response

    async def retire(self) -> None:
        """Take no new request; close when the last body in flight is closed."""
        self.is_retired = True
        await self._close_if_done()

    async def aclose(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            # Let go of it too: pyqwest's closes its connections when nobody refers to it, and an
            # answer that went through here may refer to this object for long.
            transport, self.transport = self.transport, _NOWHERE
            await close_quietly(transport.aclose, "a replaced transport")

    async def _finish_one(self) -> None:
        self._in_flight -= 1
        await self._close_if_done()

    async def _close_if_done(self) -> None:
        if self.is_retired and self._in_flight == 0:
            await self.aclose()


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
            async with Afterwards(self._finish):
                await self._stream.aclose()


class BorrowedTransport(httpx.AsyncBaseTransport):
    """A transport that belongs to a client, which is kept alive and closed with it.

    Args:
        transport: The transport.
        owner: The client; one of the SDK's closes itself when nobody refers to it any more.
    """

    def __init__(self, transport: httpx.AsyncBaseTransport, owner: httpx.AsyncClient) -> None:
        self.transport = transport
        self._owner = owner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request on the borrowed transport."""
        return await self.transport.handle_async_request(request)

    async def aclose(self) -> None:
        """Close the client, and with it the transport."""
        await self._owner.aclose()


class _LentTransport(httpx.AsyncBaseTransport):
    """A transport that whoever is lent it does not close."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._transport.handle_async_request(request)


def emits_client_span(transport: httpx.AsyncBaseTransport) -> bool:
    """Whether a transport traces each exchange with a CLIENT span of its own, as pyqwest's does."""
    return type(_innermost(transport)).__module__.startswith("pyqwest.")


def _innermost(transport: httpx.AsyncBaseTransport) -> httpx.AsyncBaseTransport:
    while isinstance(transport, _Spare | BorrowedTransport):
        transport = transport.transport
    return transport
