"""The reader of a 404's body: in the caller's task, up to a limit, and as if nothing was read."""

from __future__ import annotations

import asyncio
import contextvars
import gzip
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import anyio
import httpx
import pytest

from testkit.fakes import (
    GATEWAY_BODY,
    TRAINER_BODY,
    FakeControlPlane,
    FakeGateway,
    TrackedStream,
    loop_time,
    ok,
    post,
    settle,
)
from tinker_guard import GuardSettings, GuardTransport
from tinker_guard.policy.json_body import BODY_LIMIT
from tinker_guard.transports.body_prefix import BodyPrefix, read_prefix
from tinker_guard.transports.cleanup import CLOSE_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

pytestmark = pytest.mark.anyio


def not_found(stream: httpx.AsyncByteStream, **headers: str) -> httpx.Response:
    return httpx.Response(
        404, headers={"content-type": "application/json"} | headers, stream=stream
    )


async def raw(response: httpx.Response) -> bytes:
    """What the caller reads, its coding not undone."""
    return b"".join([chunk async for chunk in response.aiter_raw()])


# -- what is read, and what is left ----------------------------------------------------------------


async def test_a_short_body_is_read_once_and_still_whole() -> None:
    stream = TrackedStream([GATEWAY_BODY[:10], GATEWAY_BODY[10:]])
    response = not_found(stream)
    assert await read_prefix(response) == BodyPrefix(GATEWAY_BODY, is_complete=True)
    # The connection has been given back, though the caller has read nothing yet.
    assert stream.is_closed
    assert not response.is_stream_consumed
    assert await response.aread() == GATEWAY_BODY


async def test_an_empty_body_is_read_too() -> None:
    stream = TrackedStream([])
    response = not_found(stream)
    assert await read_prefix(response) == BodyPrefix(b"", is_complete=True)
    assert stream.is_closed
    assert await response.aread() == b""


async def test_a_coded_body_reaches_the_caller_as_it_came() -> None:
    wire = gzip.compress(GATEWAY_BODY, mtime=0)
    response = not_found(TrackedStream([wire]), **{"content-encoding": "gzip"})
    assert await read_prefix(response) == BodyPrefix(wire, is_complete=True)
    assert isinstance(response.stream, httpx.AsyncByteStream)
    assert b"".join([chunk async for chunk in response.stream]) == wire
    assert await response.aread() == GATEWAY_BODY


@pytest.mark.parametrize("limit", [None, 10])
async def test_a_body_of_exactly_the_limit_is_read_to_its_end(limit: int | None) -> None:
    given = () if limit is None else (limit,)
    body = b"x" * (limit or BODY_LIMIT)
    assert await read_prefix(not_found(TrackedStream([body])), *given) == (body, True, False, False)
    longer = TrackedStream([body, b"y", b"z"])
    response = not_found(longer)
    assert await read_prefix(response, *given) == (body + b"y", False, False, False)
    assert not longer.is_closed
    assert await response.aread() == body + b"yz"


async def test_of_a_huge_body_no_more_is_read_than_needed() -> None:
    """At most one chunk beyond the limit is held; the caller streams the rest."""
    chunk = b"x" * 10_000
    given: list[int] = []

    class Counted(TrackedStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            for number in range(5000):
                given.append(number)
                yield chunk

    stream = Counted([])
    response = not_found(stream)
    prefix = await read_prefix(response)
    assert BODY_LIMIT < len(prefix.content) <= BODY_LIMIT + len(chunk)
    assert len(given) * len(chunk) == len(prefix.content)
    assert not prefix.is_complete
    assert not stream.is_closed
    assert len(await response.aread()) == 50_000_000
    assert len(given) == 5000
    await response.aclose()
    assert stream.is_closed


async def test_what_is_too_long_is_closed_where_nobody_reads_it() -> None:
    stream = TrackedStream([b"x" * (BODY_LIMIT + 1), b"y"])
    response = not_found(stream)
    await read_prefix(response)
    await response.aclose()
    assert stream.is_closed


# -- in the caller's task, however long ------------------------------------------------------------


async def test_a_dripping_body_is_waited_for() -> None:
    """A read that was given up in the middle could not be taken up again."""
    stream = TrackedStream([bytes([byte]) for byte in GATEWAY_BODY], pause=0.3)
    response = not_found(stream)
    assert (await read_prefix(response)).content == GATEWAY_BODY
    assert loop_time() == pytest.approx(0.3 * len(GATEWAY_BODY))
    assert await response.aread() == GATEWAY_BODY
    assert loop_time() == pytest.approx(0.3 * len(GATEWAY_BODY))


async def test_a_dripping_body_is_read_until_a_time_and_goes_on_from_there() -> None:
    stream = TrackedStream([bytes([byte]) for byte in GATEWAY_BODY], pause=0.3)
    response = not_found(stream)
    prefix = await read_prefix(response, until=1.0, clock=loop_time)
    assert prefix == BodyPrefix(GATEWAY_BODY[:4], is_complete=False)
    assert loop_time() == pytest.approx(1.2)
    assert await response.aread() == GATEWAY_BODY
    assert stream.is_closed


async def test_nothing_of_it_runs_in_another_task() -> None:
    who: contextvars.ContextVar[str] = contextvars.ContextVar("who")
    tasks = asyncio.all_tasks()
    seen: list[tuple[asyncio.Task[Any] | None, str]] = []

    class Watched(TrackedStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            for chunk in (b"a" * BODY_LIMIT, b"b", b"c"):
                assert asyncio.all_tasks() == tasks
                seen.append((asyncio.current_task(), who.get()))
                yield chunk

        async def aclose(self) -> None:
            seen.append((asyncio.current_task(), who.get()))
            await super().aclose()

    who.set("caller")
    response = not_found(Watched([]))
    await read_prefix(response)
    await response.aread()
    await response.aclose()
    assert seen == [(asyncio.current_task(), "caller")] * 4


async def test_cancelled_while_reading() -> None:
    tasks = asyncio.all_tasks()
    stream = TrackedStream([b"x"], pause=100)
    task = asyncio.create_task(read_prefix(not_found(stream)))
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stream.is_closed
    assert asyncio.all_tasks() == tasks


# -- what the transport raises ---------------------------------------------------------------------


@asynccontextmanager
async def overall_limit(seconds: float) -> AsyncIterator[None]:
    """A transport's own limit, as those that count redirects and retries have."""
    async with asyncio.timeout(seconds):
        yield


@asynccontextmanager
async def grouped(_: float) -> AsyncIterator[None]:
    async with asyncio.TaskGroup():
        yield


@asynccontextmanager
async def scoped(seconds: float) -> AsyncIterator[None]:
    with anyio.fail_after(seconds):
        yield


class Around(TrackedStream):
    """Reads under a limit, a group or a scope that must be left in the task that entered it."""

    def __init__(self, around: Callable[[float], Any], limit: float, chunks: list[bytes]) -> None:
        super().__init__(chunks)
        self._around = around
        self._limit = limit

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async with self._around(self._limit):
            for chunk in self._chunks:
                yield chunk
                await asyncio.sleep(1.3)


async def outcome(reading: Awaitable[bytes]) -> bytes | str:
    """What comes of a read: its bytes, or the name of what is raised."""
    try:
        return await reading
    except Exception as error:
        return type(error).__name__


@pytest.mark.parametrize("around", [overall_limit, grouped, scoped])
@pytest.mark.parametrize("size", [7, BODY_LIMIT])
@pytest.mark.parametrize("limit", [60.0, 2.0, 0.5])
async def test_scopes_of_the_transports_own_are_entered_and_left_in_one_task(
    around: Callable[[float], Any], size: int, limit: float
) -> None:
    """Whether all of the body is read, or the caller reads on."""
    chunks = [b'{"detail":', b"x" * size, b'"y"}']
    bare = await outcome(raw(not_found(Around(around, limit, chunks))))
    response = not_found(Around(around, limit, chunks))
    began = loop_time()
    prefix = await read_prefix(response)
    assert await outcome(raw(response)) == bare
    takes = 3.9 if around is grouped else min(limit, 3.9)
    assert loop_time() - began == pytest.approx(takes)
    assert prefix.is_complete is (size == 7 and takes == 3.9)
    assert (bare == "TimeoutError") is (takes < 3.9)


class LibraryError(Exception):
    pass


ERRORS = [
    httpx.ReadError("cut"),
    httpx.RemoteProtocolError("incomplete chunked read"),
    TimeoutError(),
    OSError("reset"),
    LibraryError("a library's own"),
    ExceptionGroup("a task group's", [LibraryError("first"), httpx.ReadError("second")]),
    # One that cancels no request, such as that of a connection's own task.
    asyncio.CancelledError("of the transport's own"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("sizes", [(), (1,), (10, 20)])
async def test_a_body_that_breaks_breaks_for_the_caller_at_the_same_place(
    error: BaseException, sizes: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    chunks = [b"x" * size for size in sizes]
    stream = TrackedStream(chunks, error=error)  # type: ignore[arg-type]
    response = not_found(stream)
    prefix = await read_prefix(response)
    assert prefix == BodyPrefix(b"".join(chunks), is_complete=False, is_broken=True)
    read: list[bytes] = []

    async def read_on() -> None:
        async for chunk in response.aiter_raw():
            read.append(chunk)  # noqa: PERF401 - what came before the error counts

    with pytest.raises(type(error)) as caught:
        await read_on()
    assert caught.value is error
    assert read == chunks
    # The error is let go, and the stream is at its end.
    assert isinstance(response.stream, httpx.AsyncByteStream)
    assert [chunk async for chunk in response.stream] == chunks
    await response.aclose()
    assert stream.is_closed
    assert caplog.messages == []


async def test_what_ends_a_program_is_not_kept_for_later() -> None:
    class Stop(BaseException):
        pass

    class Stopping(TrackedStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"{"
            raise Stop

    with pytest.raises(Stop):
        await read_prefix(not_found(Stopping([])))


# -- what does not close well ----------------------------------------------------------------------


class _BadToClose(TrackedStream):
    """One that hangs as it is closed, or raises."""

    closings = 0
    close_error: BaseException | None = None

    async def aclose(self) -> None:
        await super().aclose()
        self.closings += 1
        if self.close_error is not None:
            raise self.close_error
        await asyncio.Event().wait()


async def test_a_body_that_was_read_and_hangs_as_it_is_closed() -> None:
    """Found by the simulation: whoever met such a 404 waited for ever."""
    response = not_found(_BadToClose([GATEWAY_BODY]))
    assert await read_prefix(response) == BodyPrefix(GATEWAY_BODY, is_complete=True)
    assert loop_time() == pytest.approx(CLOSE_SECONDS)
    assert await response.aread() == GATEWAY_BODY
    assert loop_time() == pytest.approx(CLOSE_SECONDS)


@pytest.mark.parametrize(
    "error", [OSError("reset"), LibraryError(), asyncio.CancelledError("of the transport's own")]
)
async def test_a_body_that_was_read_and_does_not_close_well(error: BaseException) -> None:
    """Found by the simulation: such a 404 of a trainer's was taken for a race."""
    stream = _BadToClose([TRAINER_BODY])
    stream.close_error = error
    response = not_found(stream)
    assert await read_prefix(response) == BodyPrefix(TRAINER_BODY, is_complete=True)
    assert await response.aread() == TRAINER_BODY
    await response.aclose()
    assert stream.closings == 1


async def test_cancelled_while_reading_one_that_hangs_as_it_is_closed() -> None:
    """Found by the simulation: the cancellation waited for ever."""
    stream = _BadToClose([b"x"], pause=100)
    gateway = FakeGateway(lambda _: not_found(stream))
    transport = GuardTransport(
        gateway.new_transport(),
        settings=GuardSettings(warmup_successes=0),
        control_plane=FakeControlPlane(),
    )
    task = asyncio.create_task(transport.handle_async_request(post()))
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert loop_time() == pytest.approx(0.1 + CLOSE_SECONDS)
    assert stream.closings == 1


def test_where_the_event_loop_is_gone_nothing_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    """The garbage collector ends the coroutine, within whatever runs by then."""

    class Step:
        def __await__(self) -> Any:
            yield

    class Waiting(TrackedStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            await Step()
            yield b"never"

    stream = Waiting([])
    reading = read_prefix(not_found(stream))
    reading.send(None)
    reading.close()
    assert not stream.is_closed
    assert caplog.messages == []


# -- what something below has read -----------------------------------------------------------------


async def test_a_response_that_was_read_below_is_judged_by_its_content() -> None:
    """As by wrappers that log the bodies of errors. It stays as it is."""
    response = not_found(TrackedStream([TRAINER_BODY]))
    await response.aread()
    stream = response.stream
    assert await read_prefix(response) == BodyPrefix(
        TRAINER_BODY, is_complete=True, is_decoded=True
    )
    assert response.stream is stream
    assert await response.aread() == TRAINER_BODY


async def test_its_content_is_decoded_already() -> None:
    wire = gzip.compress(TRAINER_BODY, mtime=0)
    response = not_found(TrackedStream([wire]), **{"content-encoding": "gzip"})
    await response.aread()
    assert await read_prefix(response) == BodyPrefix(
        TRAINER_BODY, is_complete=True, is_decoded=True
    )


@pytest.mark.parametrize("limit", [1, 10, BODY_LIMIT])
async def test_a_response_made_of_bytes_has_its_content(limit: int) -> None:
    response = httpx.Response(404, content=TRAINER_BODY)
    assert (await read_prefix(response, limit)).content == TRAINER_BODY


async def test_of_a_response_whose_stream_was_consumed_below_nothing_is_known() -> None:
    response = not_found(TrackedStream([TRAINER_BODY]))
    assert await raw(response) == TRAINER_BODY
    stream = response.stream
    assert await read_prefix(response) == BodyPrefix(b"", is_complete=False)
    assert response.stream is stream
    with pytest.raises(httpx.StreamConsumed):
        await raw(response)


async def test_of_a_response_that_was_closed_below_nothing_is_known() -> None:
    response = not_found(TrackedStream([TRAINER_BODY]))
    await response.aclose()
    assert await read_prefix(response) == BodyPrefix(b"", is_complete=False)
    with pytest.raises(httpx.StreamClosed):
        await raw(response)


async def test_a_stream_for_threads_is_left_alone() -> None:
    class Sync(httpx.SyncByteStream):
        def __iter__(self) -> NoReturn:
            raise AssertionError

    response = httpx.Response(404, stream=Sync())
    assert await read_prefix(response) == BodyPrefix(b"", is_complete=False)


@pytest.mark.parametrize("body", [TRAINER_BODY, b'{"detail": ["no", "model"]}', b'{"detail": 1}'])
@pytest.mark.parametrize("coding", ["", "gzip"])
async def test_the_trainers_own_404_is_sent_once_where_something_below_has_read_it(
    body: bytes, coding: str
) -> None:
    """Over the whole way, as without the guard."""
    wire = gzip.compress(body, mtime=0) if coding else body

    async def answer(_: Any) -> httpx.Response:
        response = not_found(TrackedStream([wire]), **{"content-encoding": coding})
        await response.aread()
        return response

    gateway = FakeGateway(answer)
    plane = FakeControlPlane()
    guard = GuardTransport(
        gateway.new_transport(), settings=GuardSettings(warmup_successes=0), control_plane=plane
    )
    response = await guard.handle_async_request(post())
    assert (response.status_code, response.content) == (404, body)
    assert (len(gateway.exchanges), plane.questions, loop_time()) == (1, 0, 0.0)


async def test_a_race_recovers_where_something_below_has_read_it() -> None:
    async def answer(exchange: Any) -> httpx.Response:
        if exchange.at >= 1.0:
            return ok()
        response = not_found(TrackedStream([GATEWAY_BODY]))
        await response.aread()
        return response

    gateway = FakeGateway(answer)
    guard = GuardTransport(
        gateway.new_transport(),
        settings=GuardSettings(warmup_successes=0),
        control_plane=FakeControlPlane(),
    )
    response = await guard.handle_async_request(post())
    assert response.status_code == 200
    assert 1.0 <= loop_time() < 1.5


async def test_it_shows_nothing_of_the_body() -> None:
    shown = repr(BodyPrefix(b"geheim", is_complete=True))
    assert shown == "BodyPrefix(6 bytes, is_complete=True)"
