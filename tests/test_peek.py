from __future__ import annotations

import asyncio
import gzip
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.fakes import (
    GATEWAY_BODY,
    FakeControlPlane,
    FakeGateway,
    TrackedStream,
    loop_time,
    post,
    settle,
)
from tinker_guard import GuardSettings, GuardTransport
from tinker_guard.closing import CLOSE_SECONDS, close_quietly
from tinker_guard.peek import PEEK_SECONDS, read_source
from tinker_guard.verdict import PEEK_LIMIT, Source

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio


def not_found(stream: TrackedStream, **headers: str) -> httpx.Response:
    return httpx.Response(
        404, headers={"content-type": "application/json"} | headers, stream=stream
    )


async def test_a_short_body_is_read_once_and_still_whole() -> None:
    stream = TrackedStream([GATEWAY_BODY[:10], GATEWAY_BODY[10:]])
    response = not_found(stream)
    assert await read_source(response) is Source.GATEWAY
    assert stream.is_closed
    assert await response.aread() == GATEWAY_BODY


async def test_a_compressed_body_reaches_the_caller_as_it_came() -> None:
    wire = gzip.compress(GATEWAY_BODY)
    response = not_found(TrackedStream([wire]), **{"content-encoding": "gzip"})
    assert await read_source(response) is Source.GATEWAY
    assert isinstance(response.stream, httpx.AsyncByteStream)
    assert b"".join([chunk async for chunk in response.stream]) == wire
    assert await response.aread() == GATEWAY_BODY


async def test_a_body_of_exactly_the_limit_is_read_to_its_end() -> None:
    body = GATEWAY_BODY.ljust(PEEK_LIMIT)
    assert await read_source(not_found(TrackedStream([body]))) is Source.GATEWAY
    assert await read_source(not_found(TrackedStream([body, b" "]))) is Source.UNKNOWN


async def test_a_body_of_no_type_names_nobody(caplog: pytest.LogCaptureFixture) -> None:
    response = httpx.Response(404, stream=TrackedStream([GATEWAY_BODY]))
    assert await read_source(response) is Source.UNKNOWN
    assert caplog.messages == []


async def test_a_huge_body_is_read_to_the_limit_only() -> None:
    chunk = b"x" * 10_000
    stream = TrackedStream([chunk] * 5000)
    response = not_found(stream)
    assert await read_source(response) is Source.UNKNOWN
    assert isinstance(response.stream, httpx.AsyncByteStream)
    seen = response.stream.seen  # type: ignore[attr-defined]
    assert PEEK_LIMIT < len(seen) <= PEEK_LIMIT + len(chunk)
    assert not stream.is_closed
    assert len(await response.aread()) == 50_000_000
    await response.aclose()
    assert stream.is_closed


async def test_a_dripping_body_is_given_up_in_time_and_loses_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stream = TrackedStream([bytes([byte]) for byte in GATEWAY_BODY], pause=0.3)
    response = not_found(stream)
    assert await read_source(response) is Source.UNKNOWN
    assert loop_time() == pytest.approx(PEEK_SECONDS)
    assert await response.aread() == GATEWAY_BODY
    await response.aclose()
    assert stream.is_closed
    assert caplog.messages == []


async def test_a_dripping_body_that_nobody_wants_is_closed_with_its_task() -> None:
    tasks = asyncio.all_tasks()
    stream = TrackedStream([b"x"], pause=100)
    response = not_found(stream)
    assert await read_source(response) is Source.UNKNOWN
    await response.aclose()
    assert loop_time() == PEEK_SECONDS
    assert stream.is_closed
    assert asyncio.all_tasks() == tasks


async def test_a_body_that_breaks_breaks_for_the_caller(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stream = TrackedStream([b"{"], error=httpx.ReadError("cut"))
    response = not_found(stream)
    assert await read_source(response) is Source.UNKNOWN
    with pytest.raises(httpx.ReadError, match="cut"):
        await response.aread()
    await response.aclose()
    assert stream.is_closed
    assert caplog.messages == []


async def test_a_body_that_ends_just_as_it_is_given_up() -> None:
    stream = TrackedStream([b"{"], pause=2 * PEEK_SECONDS)
    response = not_found(stream)
    assert await read_source(response) is Source.UNKNOWN
    await asyncio.sleep(10)
    assert await response.aread() == b"{"


class _BadToClose(TrackedStream):
    """One that hangs as it is closed, or raises."""

    closings = 0
    close_error: Exception | None = None

    async def aclose(self) -> None:
        await super().aclose()
        self.closings += 1
        if self.close_error is not None:
            raise self.close_error
        await asyncio.Event().wait()


async def test_a_body_that_was_read_and_hangs_as_it_is_closed() -> None:
    """Found by the simulation: whoever met such a 404 waited for ever."""
    response = not_found(_BadToClose([GATEWAY_BODY]))
    assert await read_source(response) is Source.GATEWAY
    assert loop_time() == pytest.approx(CLOSE_SECONDS)


async def test_a_body_that_was_read_and_does_not_close_well() -> None:
    """Found by the simulation: such a 404 of a trainer's was taken for a race."""
    stream = _BadToClose([b'{"detail": "Not Found"}'])
    stream.close_error = OSError("reset")
    response = not_found(stream)
    assert await read_source(response) is Source.TRAINER
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


async def test_cancelled_while_reading() -> None:
    tasks = asyncio.all_tasks()
    stream = TrackedStream([b"x"], pause=100)
    task = asyncio.create_task(read_source(not_found(stream)))
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stream.is_closed
    assert asyncio.all_tasks() == tasks


async def test_a_body_whose_end_alone_is_late() -> None:
    class EndsLate(TrackedStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield GATEWAY_BODY
            await asyncio.sleep(2 * PEEK_SECONDS)

    response = not_found(EndsLate([]))
    assert await read_source(response) is Source.UNKNOWN
    assert await response.aread() == GATEWAY_BODY
    assert loop_time() == 2 * PEEK_SECONDS


async def test_a_fault_in_looking_leaves_the_body_to_the_caller(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("tinker_guard.peek.source_of", fail)
    response = not_found(TrackedStream([GATEWAY_BODY]))
    assert await read_source(response) is Source.UNKNOWN
    assert await response.aread() == GATEWAY_BODY
    assert "a fault of its own in looking at a 404" in caplog.text


def test_closing_where_no_event_loop_runs_any_more_is_no_fault(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def close() -> None:
        raise AssertionError

    with pytest.raises(StopIteration):
        close_quietly(close, "an answer").send(None)
    assert caplog.messages == []
