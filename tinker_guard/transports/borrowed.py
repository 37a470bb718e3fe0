"""A transport that belongs to a client of its own."""

from __future__ import annotations

import httpx


class BorrowedTransport(httpx.AsyncBaseTransport):
    """A transport that belongs to a client, which is kept alive and closed with it.

    Args:
        transport: The transport.
        owner: The client. One of the SDK closes itself once there is no reference to it.
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
