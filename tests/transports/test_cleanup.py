"""Closing is bounded, and what goes wrong with it reaches no request."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import httpx
import pytest

from testkit.fakes import TrackedStream, loop_time, settle
from tinker_guard import faults
from tinker_guard.transports.body_prefix import read_prefix
from tinker_guard.transports.cleanup import (
    CLOSE_SECONDS,
    close_quietly,
    discard,
    unless_abandoned,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine


async def _hang() -> None:
    await asyncio.Event().wait()


async def _fail() -> None:
    raise OSError("broken pipe")


async def _cancel_itself() -> None:
    raise asyncio.CancelledError("of the transport's own")


@pytest.mark.anyio
async def test_what_does_not_close_after_an_error_tells_nothing_of_that_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    try:
        raise OSError("refused: tml-secret")
    except OSError:
        await close_quietly(_fail, "a thing")
    assert "broken pipe" in caplog.text
    assert "tml-secret" not in caplog.text


@pytest.mark.anyio
@pytest.mark.parametrize("close", [_hang, _fail, _cancel_itself])
async def test_what_does_not_close_is_logged_once_and_left(
    close: object, caplog: pytest.LogCaptureFixture
) -> None:
    assert callable(close)
    caplog.set_level(logging.WARNING)
    await close_quietly(close, "a thing")
    await close_quietly(close, "a thing")
    assert loop_time() == (2 * CLOSE_SECONDS if close is _hang else 0.0)
    assert len([line for line in caplog.messages if "a thing" in line]) == 1


class _Stream(TrackedStream):
    """Does not close."""

    async def aclose(self) -> None:
        await super().aclose()
        raise OSError("broken pipe")


async def _read_prefix(response: httpx.Response) -> None:
    await read_prefix(response)


async def _cancel_read_prefix(response: httpx.Response) -> None:
    task = asyncio.create_task(_read_prefix(response))
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("use", "what"),
    [
        (discard, "a discarded answer"),
        (_read_prefix, "a 404"),
        (_cancel_read_prefix, "a 404"),
    ],
)
async def test_what_did_not_close_is_named(
    use: Callable[[httpx.Response], Awaitable[None]], what: str, caplog: pytest.LogCaptureFixture
) -> None:
    stream = _Stream([b"x"], pause=1 if use is _cancel_read_prefix else 0)
    await use(httpx.Response(404, stream=stream))
    assert stream.is_closed
    assert caplog.messages == [f"closing {what} failed or took too long; it is left to itself."]


@pytest.mark.anyio
async def test_a_cancellation_of_the_callers_own_ends_it() -> None:
    task = asyncio.create_task(close_quietly(_hang, "a thing"))
    await asyncio.sleep(CLOSE_SECONDS / 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert loop_time() == CLOSE_SECONDS / 2


def test_where_the_event_loop_is_gone_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """The garbage collector ends what waited on a loop that was closed."""

    async def close() -> None:
        raise RuntimeError("no running event loop")

    coroutine: Coroutine[object, object, None] = close_quietly(close, "a thing")
    with pytest.raises(StopIteration):
        coroutine.send(None)
    assert caplog.messages == []
    assert faults.logger is not None


@pytest.mark.anyio
async def test_cleanup_is_skipped_only_where_nothing_can_be_awaited() -> None:
    done: list[str] = []

    async def clean_up() -> None:
        done.append("cleaned up")

    async def block() -> None:
        async with unless_abandoned(clean_up):
            await asyncio.Event().wait()

    async with unless_abandoned(clean_up):
        pass
    with pytest.raises(ZeroDivisionError):
        async with unless_abandoned(clean_up):
            raise ZeroDivisionError
    assert len(done) == 2
    coroutine = block()
    coroutine.send(None)
    coroutine.close()
    assert len(done) == 2


@pytest.mark.anyio
@pytest.mark.parametrize(
    "kind", [RuntimeError, httpx.LocalProtocolError, asyncio.CancelledError], ids=repr
)
async def test_what_is_logged_has_nothing_of_an_errors_text(
    kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """The text of a transport's error may hold a header."""
    secret = "sk-live-" + "1234"

    async def close() -> None:
        try:
            raise ValueError(secret)
        except ValueError as error:
            raise kind(secret) from error

    await close_quietly(close, f"what raises {kind.__name__}")
    assert kind.__name__ in caplog.text
    assert "in close" in caplog.text
    assert secret not in caplog.text
