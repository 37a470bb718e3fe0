"""The bounded reader of bodies: for a request's 404, a probe and a control plane's answer."""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING, NamedTuple

import httpx

from tinker_guard.policy.answer import Answer
from tinker_guard.policy.json_body import BODY_LIMIT
from tinker_guard.transports import runtime
from tinker_guard.transports.cleanup import close_quietly

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


class BodyPrefix(NamedTuple):
    """The beginning of a response's body."""

    content: bytes
    is_complete: bool
    """Whether `content` is the whole body: the response then holds no connection any more."""
    is_decoded: bool = False
    """Whether Content-Encoding has been undone already."""
    is_broken: bool = False
    """Whether the rest is missing because the transport raised an error, which is raised where the
    response is read. The error itself refers to the frames of those who read, and they to this."""

    def __repr__(self) -> str:
        """How long it is, and nothing of it."""
        return f"BodyPrefix({len(self.content)} bytes, is_complete={self.is_complete})"

    def of(self, response: httpx.Response) -> Answer:
        """The answer that it is the beginning of."""
        return Answer(
            response.headers,
            self.content,
            status_code=response.status_code,
            is_decoded=self.is_decoded,
        )

    @property
    def is_held(self) -> bool:
        """Whether all that came is in memory, so that the response can be read after a wait."""
        return self.is_complete or self.is_broken


async def read_prefix(
    response: httpx.Response,
    limit: int = BODY_LIMIT,
    *,
    until: float = math.inf,
    clock: Callable[[], float] = time.monotonic,
) -> BodyPrefix:
    """Read a response's body up to a limit, and leave the response as if nothing had been read.

    The body is read in the caller's task, and for as long as the transport allows: a read that was
    given up in the middle could not be taken up again. What the transport raises meanwhile is kept
    and raised where the caller meets it, after the bytes that came before.

    Args:
        response: The response. One that a transport below has read is judged by what was read.
        limit: Bytes after which reading stops, at the next chunk's end.
        until: When it stops, at the next chunk's end too.
        clock: The time.
    """
    try:
        return BodyPrefix(response.content, is_complete=True, is_decoded=True)
    except httpx.ResponseNotRead:
        pass
    stream = response.stream
    if response.is_stream_consumed or response.is_closed:
        return BodyPrefix(b"", is_complete=False)
    if not isinstance(stream, httpx.AsyncByteStream):
        return BodyPrefix(b"", is_complete=False)
    replayed = response.stream = _ReplayedStream(stream)
    is_complete = await replayed.read_ahead(limit, until, clock)
    return BodyPrefix(b"".join(replayed.chunks), is_complete, is_broken=replayed.error is not None)


class _ReplayedStream(httpx.AsyncByteStream):
    """A stream whose beginning has been read, and which gives that beginning again."""

    def __init__(self, stream: httpx.AsyncByteStream) -> None:
        self.chunks: list[bytes] = []
        self._stream = stream
        self._iterator: AsyncIterator[bytes] = aiter(stream)
        self.error: BaseException | None = None
        """What the transport raised while the body was read."""
        self._is_closed = False

    async def read_ahead(self, limit: int, until: float, clock: Callable[[], float]) -> bool:
        """Read up to a limit or a time; whether that was all."""
        size = 0
        try:
            async for chunk in self._iterator:
                self.chunks.append(chunk)
                size += len(chunk)
                if size > limit or clock() > until:
                    return False
        except GeneratorExit:
            # The event loop was closed under it: nothing can be awaited any more.
            raise
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and runtime.is_cancelled():
                await close_quietly(self.aclose, "a 404")
                raise
            self.error = error
        # Given back at once: the caller has all that came, however badly the closing goes.
        await close_quietly(self.aclose, "a 404")
        return self.error is None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            yield chunk
        if self.error is not None:
            try:
                raise self.error
            finally:
                # It refers to this frame, and so to all that the caller's frames hold.
                self.error = None
        async for chunk in self._iterator:
            yield chunk

    async def aclose(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            await self._stream.aclose()
