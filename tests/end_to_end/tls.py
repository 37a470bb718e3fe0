"""The local gateway behind TLS, with a throw-away certificate, speaking HTTP/1.1 or HTTP/2."""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import hypercorn
import trustme
from hypercorn.asyncio import serve

from tests.end_to_end.sdk import Gateway
from tinker_guard.control_plane import question
from tinker_guard.gateway import FAULTS, Fault

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest


HOST = "127.0.0.1"
NAMES = (HOST, "trainer.test", "control-plane.test", "storage.test")


@functools.cache
def _authority() -> trustme.CA:
    return trustme.CA()


def trust(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """Let this process trust the throw-away authority, in the way that a user would."""
    path = directory / "authority.pem"
    _authority().cert_pem.write_to_path(path)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    question.ssl_context.cache_clear()


@dataclass(frozen=True)
class Carried:
    """How one request came."""

    http_version: str
    peer: Any
    path: str


class _Config(hypercorn.Config):
    """Has a certificate without a file."""

    ssl_enabled = True

    def create_ssl_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.set_alpn_protocols(self.alpn_protocols)
        _authority().issue_cert(*NAMES).configure_cert(context)
        return context


class _Loop(asyncio.SelectorEventLoop):
    """Does not wait for half a minute for a client that never says goodbye."""

    async def create_server(self, *args: Any, **kwargs: Any) -> asyncio.Server:
        return await super().create_server(*args, ssl_shutdown_timeout=0.1, **kwargs)


class TlsServer:
    """Serves an ASGI application over TLS, on a thread of its own.

    Args:
        app: The application.
        alpn: What the server offers to speak, the best first.
        on_stop: Called on the server's event loop before it stops.
        requests_per_connection: After how many the server sends a GOAWAY, over HTTP/2.
    """

    def __init__(
        self,
        app: Any,
        *,
        alpn: tuple[str, ...] = ("h2", "http/1.1"),
        on_stop: Callable[[], None] = lambda: None,
        requests_per_connection: int = 1_000_000,
    ) -> None:
        self.carried: list[Carried] = []
        self._app = app
        self._on_stop = on_stop
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self._config = config = _Config()
        config.bind = [f"fd://{self._listener.fileno()}"]
        config.alpn_protocols = list(alpn)
        config.errorlog = None
        config.graceful_timeout = 2
        config.keep_alive_timeout = 600
        config.keep_alive_max_requests = requests_per_connection
        self._loop = _Loop()
        self._stop_requested = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="tls-server", daemon=True)

    def start(self) -> None:
        # The kernel keeps connections waiting that come before the thread serves.
        self._thread.start()

    def stop(self) -> None:
        self.call_soon(self._stop_requested.set)
        self._thread.join()

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Call something on the server's event loop."""
        self._loop.call_soon_threadsafe(callback)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            # It owns the socket from here on, and closes it.
            self._listener.detach()
            # Raised where a client went away in the middle of an answer.
            with suppress(ssl.SSLError):
                runner.run(serve(self._note, self._config, shutdown_trigger=self._wait))

    async def _wait(self) -> None:
        await self._stop_requested.wait()
        self._on_stop()

    async def _note(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            how = Carried(scope["http_version"], tuple(scope["client"]), scope["path"])
            self.carried.append(how)
        await self._app(scope, receive, send)


class TlsGateway(Gateway):
    """The gateway over https; takes what `TlsServer` takes."""

    def __init__(self, fault: Fault = FAULTS["none"], **server: Any) -> None:
        super().__init__(fault)
        self._tls = TlsServer(self.app, on_stop=self.app.looped.close, **server)

    def start(self) -> None:
        self._tls.start()

    def stop(self) -> None:
        self._tls.stop()

    @property
    def origin(self) -> str:
        return f"https://{HOST}:{self._tls.port}"

    @property
    def carried(self) -> list[Carried]:
        """How each request came, in the order of coming."""
        return list(self._tls.carried)
