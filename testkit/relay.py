"""TCP relays on loopback: a balancer, a line with a delay, and a forward proxy."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from tinker_guard.gateway.server import stop_accepting

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator


class Relay:
    """Accepts connections on a thread of its own. Use it as a context manager."""

    def __init__(self) -> None:
        self.port = 0
        """Where to connect to."""
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.result(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop_requested.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop_requested = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set_result(None)
        async with server:
            await self._stop_requested.wait()
            for listener in server.sockets:
                await stop_accepting(listener)
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # At the end of a cancelled task, asyncio would log it as a fault of its own.
        ended = (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError)
        with closing(writer), suppress(*ended):
            await self._forward(reader, writer)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward what comes on one connection; all of it goes to one place."""
        raise NotImplementedError


class Balancer(Relay):
    """Forwards each connection to the port whose turn it is, on the loopback address.

    Args:
        turns: The ports, one for each connection.
    """

    def __init__(self, turns: Iterator[int]) -> None:
        super().__init__()
        self.turns: Iterator[int] = turns

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there = await asyncio.open_connection("127.0.0.1", next(self.turns))
        with closing(there):
            await _first_of(_carry(reader, there), _carry(there_reader, writer))


class SlowLine(Relay):
    """Forwards to another port, each way late.

    A connection is accepted at once, so its handshake would cost nothing; its first bytes are
    therefore held back for another round trip.

    Args:
        to: Where the connections go, on the loopback address.
        round_trip: Seconds for there and back.
    """

    def __init__(self, to: int, round_trip: float) -> None:
        super().__init__()
        self._to = to
        self._round_trip = round_trip

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there = await asyncio.open_connection("127.0.0.1", self._to)
        one_way = self._round_trip / 2
        with closing(there):
            await _first_of(
                _carry(reader, there, one_way, first_extra=self._round_trip),
                _carry(there_reader, writer, one_way),
            )


@dataclass(frozen=True)
class Forwarded:
    """One request that the proxy was asked to forward; for CONNECT, one tunnel."""

    method: str
    host: str
    port: int
    path: str
    source_port: int
    """From which local port the proxy went on: what the server sees as its peer's."""


class ForwardProxy(Relay):
    """Takes requests in absolute form, and CONNECT.

    Forwards to loopback, whatever the host's name; so it reaches hosts that nothing else can.
    """

    def __init__(self) -> None:
        super().__init__()
        self.forwarded: list[Forwarded] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def hosts(self) -> set[str]:
        """Where requests were forwarded to."""
        return {forwarded.host for forwarded in list(self.forwarded)}

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
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
                outwards = _carry(reader, there)
            else:
                outwards = self._rewrite(head, reader, there, source_port)
            await _first_of(outwards, _carry(there_reader, writer))

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


async def _carry(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    delay: float = 0.0,
    *,
    first_extra: float = 0.0,
) -> None:
    """Copy until the reader's end, each piece late, and the first one still later."""
    clock = asyncio.get_running_loop().time
    on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def collect() -> None:
        extra, data = first_extra, b"-"
        while data:
            data = await reader.read(65536)
            on_the_way.put_nowait((clock() + delay + extra, data))
            extra = 0.0

    collecting = asyncio.create_task(collect())
    try:
        while True:
            due_at, data = await on_the_way.get()
            await asyncio.sleep(due_at - clock())
            if not data:
                break
            writer.write(data)
            await writer.drain()
    finally:
        collecting.cancel()


async def _first_of(*directions: Coroutine[None, None, None]) -> None:
    """Run both directions of a connection until one ends."""
    tasks = [asyncio.ensure_future(direction) for direction in directions]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
