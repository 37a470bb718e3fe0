"""Closes what nobody needs any more, so that it holds nobody up and harms nobody."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from tinker_guard import logs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import httpx

CLOSE_SECONDS: Final = 1.0
"""How long closing an answer or a transport may hold up a request; well below the timeouts of
probes and questions, which would otherwise be over before what was read could count."""


async def discard(response: httpx.Response) -> None:
    """Close an answer that nobody will read; what goes wrong with that is nobody's either."""
    await close_quietly(response.aclose, "a discarded answer")


async def close_quietly(close: Callable[[], Awaitable[None]], what: str) -> None:
    """Close what nobody needs any more, in bounded time and whatever goes wrong.

    Args:
        close: Closes it.
        what: For the log.
    """
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await close()
    except Exception:
        if _is_a_loop_running():
            logs.log_unclosed(what)


class Afterwards:
    """Cleans up at the end of a block, but not where the garbage collector ends it.

    That is so when an event loop was closed under the block. It ends within whatever task runs by
    then: nothing can be waited for any more, and a timeout would cancel that task.

    Args:
        clean_up: What to do.
    """

    def __init__(self, clean_up: Callable[[], Awaitable[None]]) -> None:
        self._clean_up = clean_up

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if error_type is not GeneratorExit:
            await self._clean_up()


def _is_a_loop_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        # It was closed under this task, and what is on it cannot be closed any more.
        return False
    return True
