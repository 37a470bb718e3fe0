"""A TCP line with a delay, to see what a benchmark on loopback would hide: round trips."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Coroutine

_CHUNK = 65536


class SlowLine:
    """Forwards a local port to another one, each way late.

    A connection is accepted at once, so its handshake would cost nothing; its first bytes are
    therefore held back for another round trip.

    Args:
        port: Where the connections go, on the loopback address.
        round_trip: Seconds for there and back.
    """

    def __init__(self, port: int, round_trip: float) -> None:
        self.port = 0
        """Where to connect to."""
        self._to = port
        self._round_trip = round_trip
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._do(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _end(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._to)
        one_way = self._round_trip / 2
        try:
            await asyncio.gather(
                _carry(reader, there_writer, one_way, first_extra=self._round_trip),
                _carry(there_reader, writer, one_way),
            )
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            there_writer.close()
            writer.close()


async def _carry(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    delay: float,
    *,
    first_extra: float = 0.0,
) -> None:
    clock = asyncio.get_running_loop().time
    on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def deliver() -> None:
        while True:
            due, data = await on_the_way.get()
            await asyncio.sleep(due - clock())
            if not data:
                writer.close()
                return
            writer.write(data)
            await writer.drain()

    delivery = asyncio.create_task(deliver())
    try:
        extra = first_extra
        while True:
            data = await reader.read(_CHUNK)
            on_the_way.put_nowait((clock() + delay + extra, data))
            extra = 0.0
            if not data:
                break
        await delivery
    finally:
        delivery.cancel()
