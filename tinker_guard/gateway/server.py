"""Serves a gateway on a local port, on a thread of its own."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

import uvicorn

from .app import App
from .faults import FAULTS, Fault
from .in_process import LoopedWorld
from .world import Exchange, World

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from .trainer import Applied, Sampled

START_TIMEOUT = 10.0
"""Time-out in seconds for the start of the server's thread, which takes a few milliseconds."""
_BETWEEN_LOOKS: Final = 0.005
"""Seconds between two looks at whether all connections are closed."""


class LocalGateway:
    """A gateway with a fault, a control plane and a trainer on one local port.

    Use it as a context manager, or call `start` and `stop`. Each object serves once.

    Args:
        fault: The faults. Default none.
        host: Address to serve on. Default the loopback address.
        port: Port to serve on; 0, the default, takes a free one.
        account: Account in the route. Default `demo`.
        job: Job in the route. Default `job-1`.
        hold_seconds: How long the trainer holds a poll for unfinished work open. Default 2 s.
        sample_seconds: How long samples take. Default 0.05 s.
        clock: The clock of the fault's times; by default the monotonic clock. Tests
            pass their own to move time without waiting.
    """

    api_key = "tml-local-gateway-key"
    """The key that the control plane accepts. It opens nothing but this gateway."""

    def __init__(
        self,
        fault: Fault = FAULTS["none"],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        account: str = "demo",
        job: str = "job-1",
        hold_seconds: float = 2.0,
        sample_seconds: float = 0.05,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.fault = fault
        self._host = host
        self._port = port
        self._path = f"/training/v1/rlorTrainerJobs/{account}/{job}"
        self.world: World = World(
            fault,
            account=account,
            job=job,
            api_key=self.api_key,
            hold_seconds=hold_seconds,
            sample_seconds=sample_seconds,
        )
        self.app: App = App(LoopedWorld(self.world, clock))
        """The ASGI application that is served."""
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Bind the port and serve; returns when requests are answered.

        Raises:
            OSError: The port is taken.
        """
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listener = socket.create_server((self._host, self._port), family=family)
        # Inherited by its connections. Without it, the second packet of an answer waits for the
        # client's delayed ACK, 40 ms.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        address, self._port, *_ = listener.getsockname()
        if ipaddress.ip_address(address).is_unspecified:
            # All addresses of this machine, none of which is one that a client can use.
            self._host = "::1" if family is socket.AF_INET6 else "127.0.0.1"
        # Without uvicorn's logging set-up, which would change the caller's; and with a keep-alive
        # longer than any test, so that only the client ends a sticky connection.
        config = uvicorn.Config(
            self.app,
            http="h11",
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_keep_alive=600,
            timeout_graceful_shutdown=2,
        )
        self._server = _Server(config, listener, on_stop=self.app.looped.close)
        self._thread = threading.Thread(
            target=self._server.run_until_stopped, name="tinker-guard-gateway", daemon=True
        )
        self._thread.start()
        if not self._server.is_serving.wait(START_TIMEOUT):
            raise RuntimeError("the gateway did not start")

    def stop(self) -> None:
        """Stop serving; returns when the port is free and the thread has ended."""
        if self._server is not None and self._thread is not None:
            self._server.stop()
            self._thread.join()
            self._server = self._thread = None

    def __enter__(self) -> LocalGateway:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    @property
    def base_url(self) -> str:
        """The trainer route: what goes into `tinker.ServiceClient(base_url=...)`."""
        return self.origin + self._path

    @property
    def applied(self) -> list[Applied]:
        """The work that the trainer has applied, in order."""
        return list(self.world.trainer.applied)

    @property
    def sampled(self) -> list[Sampled]:
        """The drawn samples, in order."""
        return list(self.world.trainer.sampled)

    @property
    def questions(self) -> int:
        """Number of questions to the control plane."""
        return self.world.questions

    @property
    def requests(self) -> list[Exchange]:
        """Every finished exchange, in the order of arrival."""
        return self.world.exchanges

    @property
    def unexpected(self) -> list[str]:
        """Requests that the trainer did not understand."""
        return list(self.world.trainer.unexpected)


class _Listener(Protocol):
    def fileno(self) -> int: ...


class _Server(uvicorn.Server):
    """A uvicorn server that signals its start and can be stopped from another thread."""

    def __init__(
        self, config: uvicorn.Config, listener: socket.socket, *, on_stop: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self.is_serving = threading.Event()
        self._listener = listener
        self._on_stop = on_stop
        self._stop_requested: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def run_until_stopped(self) -> None:
        """Serve on a new event loop; returns after `stop`."""
        asyncio.run(self.serve(sockets=[self._listener]))

    def stop(self) -> None:
        """Ask the server to stop, from any thread."""
        assert self._loop is not None
        assert self._stop_requested is not None
        self._loop.call_soon_threadsafe(self._stop_requested.set)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start as uvicorn does, then signal the waiting thread."""
        await super().startup(sockets=sockets)
        self._loop = asyncio.get_running_loop()
        self._stop_requested = asyncio.Event()
        self.is_serving.set()

    async def main_loop(self) -> None:
        """Wait for `stop`, without uvicorn's polling interval of a tenth of a second."""
        assert self._stop_requested is not None
        await self.on_tick(0)
        await self._stop_requested.wait()
        self._on_stop()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close idle connections at once, and those in use after uvicorn's time-out.

        uvicorn itself looks every tenth of a second, and waits for one in any case.
        """
        await stop_accepting(self._listener)
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        with suppress(TimeoutError):
            async with asyncio.timeout(self.config.timeout_graceful_shutdown):
                while self.server_state.connections:  # noqa: ASYNC110  # uvicorn sets no event
                    await asyncio.sleep(_BETWEEN_LOOKS)
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()
        await asyncio.sleep(0)


async def stop_accepting(listener: _Listener) -> None:
    """Accept no further connection, and finish the set-up of accepted ones.

    asyncio leaks a connection if its server is closed after the accept and before the creation of
    the transport, because `Server._attach` then refuses it. Call this before closing the server.
    """
    asyncio.get_running_loop().remove_reader(listener.fileno())
    for _ in range(_TURNS_OF_AN_ACCEPT):
        await asyncio.sleep(0)


_TURNS_OF_AN_ACCEPT: Final = 3
"""Iterations of asyncio's event loop from the accept of a connection to `connection_made`."""
