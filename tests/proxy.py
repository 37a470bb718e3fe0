"""A forward proxy on loopback, for requests in absolute form and for CONNECT."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from types import TracebackType


@dataclass(frozen=True)
class Forwarded:
    """One request that the proxy was asked to forward; for CONNECT, one tunnel."""

    method: str
    host: str
    port: int
    path: str
    source_port: int
    """From which local port the proxy went on: what the server sees as its peer's."""


class ForwardProxy:
    """Forwards to loopback, whatever the host's name; so it reaches hosts that nobody else can.

    Use it as a context manager.
    """

    def __init__(self) -> None:
        self.forwarded: list[Forwarded] = []
        self.url = ""
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> ForwardProxy:
        self._thread.start()
        self._ready.result(10)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop_requested.set)
        self._thread.join()

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 0

    @property
    def hosts(self) -> set[str]:
        """Where requests were forwarded to."""
        return {forwarded.host for forwarded in list(self.forwarded)}

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop_requested = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set_result(None)
        async with server:
            await self._stop_requested.wait()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with closing(writer), suppress(ConnectionError, asyncio.IncompleteReadError):
            await self._forward(reader, writer)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward what comes on one connection; all of it goes to one place."""
        head = await reader.readuntil(b"\r\n\r\n")
        method, target, _ = head.split(b" ", 2)
        is_tunnel = method == b"CONNECT"
        url = urlsplit(("//" if is_tunnel else "") + target.decode())
        assert url.hostname is not None
        there_reader, there = await asyncio.open_connection("127.0.0.1", url.port)
        source_port: int = there.get_extra_info("sockname")[1]
        with closing(there):
            if is_tunnel:
                self._note(method, target, is_tunnel=True, source_port=source_port)
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                outwards = self._copy(reader, there)
            else:
                outwards = self._rewrite(head, reader, there, source_port)
            await _first_of(outwards, self._copy(there_reader, writer))

    async def _rewrite(
        self,
        head: bytes,
        reader: asyncio.StreamReader,
        there: asyncio.StreamWriter,
        source_port: int,
    ) -> None:
        """Forward requests in absolute form, one after the other."""
        while True:
            method, target, rest = head.split(b" ", 2)
            path = self._note(method, target, is_tunnel=False, source_port=source_port)
            headers = dict(line.lower().split(b": ", 1) for line in rest.split(b"\r\n")[1:] if line)
            assert b"transfer-encoding" not in headers, "the SDK says how long its bodies are"
            body = await reader.readexactly(int(headers.get(b"content-length", 0)))
            there.write(b" ".join([method, path.encode(), rest]) + body)
            await there.drain()
            head = await reader.readuntil(b"\r\n\r\n")

    def _note(self, method: bytes, target: bytes, *, is_tunnel: bool, source_port: int) -> str:
        url = urlsplit(("//" if is_tunnel else "") + target.decode())
        path = url.path + (f"?{url.query}" if url.query else "")
        self.forwarded.append(
            Forwarded(method.decode(), url.hostname or "", url.port or 80, path, source_port)
        )
        return path

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()


async def _first_of(*directions: object) -> None:
    """Run both directions of a connection until one ends."""
    tasks = [asyncio.ensure_future(direction) for direction in directions]  # type: ignore[call-overload]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
