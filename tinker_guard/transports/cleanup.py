"""Closing in bounded time; what fails is logged once and suppressed."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Final

from tinker_guard import faults
from tinker_guard.transports import runtime
from tinker_guard.transports.interrupts import Interrupted, is_by_signal_handler

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import httpx

CLOSE_SECONDS: Final = 1.0
"""Seconds that closing a response or a transport may hold up a request; well below the timeouts of
probes and lookups, which would otherwise be over before what was read could count."""


async def discard(response: httpx.Response) -> None:
    """Close an unread response. Errors and timeouts are logged once and suppressed."""
    await close_quietly(response.aclose, "a discarded answer")


async def close_quietly(close: Callable[[], Awaitable[None]], what: str) -> None:
    """Close something in bounded time. Errors and timeouts are logged once and suppressed.

    Args:
        close: Closes it.
        what: Names it in the log.
    """
    handled = sys.exception()
    try:
        async with runtime.timeout(CLOSE_SECONDS):
            await close()
    except (Exception, asyncio.CancelledError) as error:
        is_cancelled = isinstance(error, asyncio.CancelledError)
        if is_cancelled and runtime.is_cancelled():
            raise
        if runtime.is_blocking() and is_by_signal_handler(error, since=handled):
            raise Interrupted(error) from None
        if is_cancelled or runtime.is_running():
            faults.log_unclosed(what)


class unless_abandoned:  # noqa: N801 - reads as a statement: `async with unless_abandoned(close):`
    """Async cleanup that is skipped on GeneratorExit.

    The garbage collector raises it in a coroutine whose event loop was closed. It runs inside
    another task by then, so that nothing can be awaited, and a timeout would cancel that task.

    Args:
        clean_up: What to do at the end of the block.
    """

    def __init__(self, clean_up: Callable[[], Awaitable[None]]) -> None:
        self._clean_up = clean_up

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if error_type is not GeneratorExit:
            await self._clean_up()
