"""Virtual time and scripted transports for sync clients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx

from tinker_guard.transports import runtime
from tinker_guard.transports.blocking import response_of_client

if TYPE_CHECKING:
    from testkit.fakes import FakeTransport


class VirtualTime:
    """A clock that moves when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def clock(self) -> float:
        """The time, seconds."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let the time pass."""
        self.now += seconds


class SyncFakeTransport(httpx.BaseTransport):
    """A transport of the fake gateway, for a sync client."""

    def __init__(self, transport: FakeTransport) -> None:
        self.transport = transport

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Answer as the gateway's script says."""
        return response_of_client(
            runtime.run_blocking(self.transport.handle_async_request(request))
        )

    def close(self) -> None:
        """Close the gateway's transport."""
        runtime.run_blocking(self.transport.aclose())
