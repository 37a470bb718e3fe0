"""Looks at the beginning of a 404's body, and still gives the caller all of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import httpx

from tinker_guard import logs
from tinker_guard.closing import close_quietly
from tinker_guard.verdict import PEEK_LIMIT, Source, source_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PEEK_SECONDS: Final = 1.0
"""How long a body may take to show its beginning; a slower one counts as unknown."""


async def read_source(response: httpx.Response) -> Source:
    """Tell who wrote a 404, reading a bounded part of its body for a bounded time.

    Afterwards `response.stream` gives the whole body as if nothing had been read. A body that
    has been read to its end holds no connection any more.
    """
    assert isinstance(response.stream, httpx.AsyncByteStream)
    peeked = _PeekedStream(response.stream)
    response.stream = peeked
    headers = response.headers
    try:
        if not await peeked.read_ahead():
            return Source.UNKNOWN
        return source_of(
            headers.get("content-type", ""), headers.get("content-encoding", ""), peeked.seen
        )
    except Exception:
        # The body is still there for the caller.
        logs.log_fault("looking at a 404")
        return Source.UNKNOWN
    except GeneratorExit:
        # The event loop was closed under it: nothing can be waited for any more.
        raise
    except BaseException:
        await close_quietly(peeked.aclose, "a 404")
        raise


class _PeekedStream(httpx.AsyncByteStream):
    """A stream whose beginning has been read, and which is read on from there."""

    def __init__(self, stream: httpx.AsyncByteStream) -> None:
        self._stream = stream
        self._iterator: AsyncIterator[bytes] = aiter(stream)
        self._chunks: list[bytes] = []
        # The chunk that is being waited for. A task, so that giving up the wait for it does not
        # break the stream in the middle of a read.
        self._next: asyncio.Task[bytes | None] | None = None
        self._is_closed = False

    @property
    def seen(self) -> bytes:
        """What has been read ahead."""
        return b"".join(self._chunks)

    async def read_ahead(self) -> bool:
        """Read until the end, the limit or the time; True if the end was reached."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PEEK_SECONDS
        size = 0
        while size <= PEEK_LIMIT:
            self._next = loop.create_task(self._read())
            done, _ = await asyncio.wait({self._next}, timeout=deadline - loop.time())
            if not done or self._next.exception() is not None:
                # Too slow, or broken: whoever reads on gets the chunk or the error.
                return False
            chunk, self._next = self._next.result(), None
            if chunk is None:
                # The caller has all of it, however badly this goes.
                await close_quietly(self.aclose, "a 404")
                return True
            self._chunks.append(chunk)
            size += len(chunk)
        return False

    async def _read(self) -> bytes | None:
        return await anext(self._iterator, None)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            yield chunk
        if self._next is not None:
            chunk_or_end = await self._next
            self._next = None
            if chunk_or_end is None:
                return
            yield chunk_or_end
        async for chunk in self._iterator:
            yield chunk

    async def aclose(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        pending, self._next = self._next, None
        try:
            if pending is not None:
                pending.cancel()
                await asyncio.wait({pending})
        finally:
            await self._stream.aclose()
