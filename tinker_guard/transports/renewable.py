"""The transport below the guard, and how one that is stuck to a stale replica is replaced.

A connection can stick to one gateway replica for its whole life. While that replica lacks the
route, every resend over the connection meets the same 404; a new connection may not.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import httpx

from tinker_guard import faults
from tinker_guard.transports.blocking import BlockingTransport
from tinker_guard.transports.borrowed import BorrowedTransport
from tinker_guard.transports.cleanup import unless_abandoned
from tinker_guard.transports.draining import CLOSED, DrainingTransport
from tinker_guard.transports.locked import Locked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator


class RenewableTransport(Locked):
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
        # Threads of a sync client replace it at the same time. Nothing is awaited under the lock.
        super().__init__()
        self.transport: httpx.AsyncBaseTransport = transport
        # Whether this one is idle cannot be told without a price on every request, so that it
        # stays open to the end even if it is replaced.
        self._original = transport
        self.may_change_requests: bool = may_change_requests(transport)
        """Whether a request may be another one after it was sent over it."""
        self._new_transport = new_transport
        self._draining: list[DrainingTransport] = []
        self.is_closed: bool = False
        """Whether what is sent over it is refused."""
        self.left_by: tuple[Any, ...] | None = None
        """What the `__aexit__` was given by which it is left; None where it is only closed."""
        self._next: RenewableTransport | None = None

    async def replace(self, stale: httpx.AsyncBaseTransport) -> None:
        """Put a new transport in the place of one that proved stale.

        Does nothing if another request has replaced it already. Requests in flight on the old
        one finish undisturbed; it is closed with the last of them.
        """
        with self._lock:
            spare = self._build() if self.transport is stale else None
            if spare is None:
                return
            self.transport = spare
            if isinstance(stale, DrainingTransport):
                left = [other for other in self._draining if not other.is_closed]
                self._draining = [*left, stale]
        if isinstance(stale, DrainingTransport):
            await stale.drain(_Current(self))

    @asynccontextmanager
    async def lookup_transport(self) -> AsyncIterator[httpx.AsyncBaseTransport | None]:
        """A transport for the time of one question to the route's own origin; it is only lent.

        It has the requests' proxy and certificates, and connections of its own where that can be
        had. None unless it is one of httpx's, or above one: others may follow redirects by
        themselves, as pyqwest's does, and would take the key along.
        """
        if self.is_closed:
            # What one builds without a transport would go past the requests' proxy.
            yield CLOSED
            return
        if not isinstance(_innermost(self.transport), _HTTPXS):
            yield None
            return
        spare = self._build()
        if spare is None:
            yield self.transport
            return
        async with unless_abandoned(spare.aclose):
            yield spare

    def release(self) -> httpx.AsyncBaseTransport:
        """Go back to the first transport for good, and return it; it is not closed from here.

        If it was closed already, what still waits is refused as before.
        """
        with self._lock:
            self._new_transport = None
            if self.is_closed:
                return self._original
            spare, self.transport = self.transport, self._original
            if isinstance(spare, DrainingTransport):
                spare.make_way_for(_Current(self))
                # If nothing is in flight on it, nothing ends that could close it.
                self._draining.append(spare)
        return self._original

    async def enter(self) -> None:
        """Enter the first transport, as the client that it belongs to is entered."""
        await self._original.__aenter__()

    def reopened(self) -> RenewableTransport:
        """Another one, for requests that come after this one was closed; itself if it is open.

        A transport of httpx can be used again after it was closed, by another client. Threads that
        come at the same time get the same one: what one of two is replaced by would stay open.
        """
        with self._lock:
            if not self.is_closed:
                return self
            if self._next is None:
                self._next = RenewableTransport(self._original, self._new_transport)
            following = self._next
        return following.reopened()

    async def aclose(self) -> None:
        """Close the transport in use and those that it replaced; what still waits is refused."""
        with self._lock:
            self.is_closed = True
            current, self.transport = self.transport, CLOSED
            left_by, self.left_by = self.left_by, None
        async with AsyncExitStack() as stack:
            # The last one pushed is closed first, and an error keeps none of the others open.
            if left_by is None:
                stack.push_async_callback(self._original.aclose)
            else:
                stack.push_async_callback(self._original.__aexit__, *left_by)
            for spare in (current, *self._draining):
                if spare is not self._original:
                    stack.push_async_callback(spare.aclose)

    def _build(self) -> DrainingTransport | None:
        if self._new_transport is None or self.is_closed:
            return None
        try:
            in_use = _unwrapped(self._original), _unwrapped(self.transport)
            # From here on a fault would leave open what was built, so that nothing else is called.
            transport = self._new_transport()
            if not isinstance(transport, httpx.AsyncBaseTransport):
                raise TypeError("new_transport must return an httpx.AsyncBaseTransport")
            if getattr(transport, "transport", transport) in in_use or transport in in_use:
                # It is no other one, and to close it would end the requests in flight.
                return None
            return DrainingTransport(transport)
        except Exception:
            faults.log_fault("building a new transport")
            return None


class _Current(httpx.AsyncBaseTransport):
    """Sends on what a line sends on now, however often that was replaced meanwhile."""

    def __init__(self, line: RenewableTransport) -> None:
        self._line = line

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._line.transport.handle_async_request(request)


def emits_client_span(transport: httpx.AsyncBaseTransport) -> bool:
    """Whether a transport traces each exchange with a CLIENT span of its own, as pyqwest's does."""
    kind: Any = type(_innermost(transport))
    return _is_pyqwests(kind)


def may_change_requests(transport: httpx.AsyncBaseTransport) -> bool:
    """Whether a transport may change the requests that it is given.

    Those that move, sign, compress or count them do; those of httpx and pyqwest do not. A
    `MockTransport` has a function of the program's own.
    """
    below = _unwrapped(transport)
    is_known = type(below).__module__.partition(".")[0] in ("httpx", "pyqwest")
    return not is_known or isinstance(below, httpx.MockTransport)


def _unwrapped(transport: Any) -> object:
    """What is below the guard's own wrappers."""
    while isinstance(transport, (DrainingTransport, BorrowedTransport, BlockingTransport)):
        transport = transport.transport
    return transport


@lru_cache(maxsize=64)
def _is_pyqwests(kind: type) -> bool:
    return any(base.__module__.startswith("pyqwest.") for base in kind.__mro__)


_DEPTH: Final = 8
_TRANSPORTS: Final = (httpx.AsyncBaseTransport, httpx.BaseTransport)
_HTTPXS: Final = (
    *(httpx.AsyncHTTPTransport, httpx.HTTPTransport),
    *(httpx.ASGITransport, httpx.WSGITransport, httpx.MockTransport),
)
"""For the network, an application, a test: none of them follows a redirect."""


def _innermost(
    transport: httpx.AsyncBaseTransport,
) -> httpx.AsyncBaseTransport | httpx.BaseTransport:
    """What is below the guard's own wrappers, and those of others, such as one that retries."""
    *_, found = layers(transport)
    return found


def layers(
    transport: httpx.AsyncBaseTransport,
) -> Iterator[httpx.AsyncBaseTransport | httpx.BaseTransport]:
    """A transport, and what it sends over, and so on; not below a transport of httpx or pyqwest."""
    found: httpx.AsyncBaseTransport | httpx.BaseTransport = transport
    for _ in range(_DEPTH):
        yield found
        if isinstance(found, _HTTPXS) or type(found).__module__.startswith("pyqwest."):
            return
        # A transport need not be of httpx's classes, and another thread may change it meanwhile.
        members = list(getattr(found, "__dict__", {}).values())
        held = [each for each in members if isinstance(each, _TRANSPORTS)]
        if not held:
            return
        # Of two, the one of the same kind is sent over.
        kind = next((kind for kind in _TRANSPORTS if isinstance(found, kind)), _TRANSPORTS)
        found = next((each for each in held if isinstance(each, kind)), held[0])
    yield found
