"""One request finds something out, and the others that want to know wait for it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_T = TypeVar("_T")


class SingleFlight(Generic[_T]):
    """Runs one call at a time and shares its result with those who came before it ended.

    Belongs to one event loop. A leader that is cancelled or fails leaves no result behind, so
    that the next in line leads; nobody waits for a task that is gone.
    """

    __slots__ = ("_key", "_lock", "_result")

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._result: tuple[float, _T] | None = None
        self._key: object = None

    async def run(
        self, lead: Callable[[], Awaitable[_T]], *, key: object = None, ttl: float = 0.0
    ) -> _T:
        """Return a result that is not older than this call, or than `ttl`.

        Args:
            lead: Finds the result out; called if nobody has found one.
            key: Results are shared between calls with an equal key only.
            ttl: Seconds for which a result also serves calls that come later.

        Raises:
            Exception: What `lead` raises when this call leads.
        """
        clock = asyncio.get_running_loop().time
        arrived_at = clock()
        async with self._lock:
            if self._result is not None and self._key == key:
                found_at, result = self._result
                if found_at >= arrived_at or clock() - found_at < ttl:
                    return result
            result = await lead()
            self._result, self._key = (clock(), result), key
            return result
