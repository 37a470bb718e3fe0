"""One request finds something out, and the others that want to know wait for it."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

_T = TypeVar("_T")


@contextmanager
def _ends_with_its_loop() -> Iterator[None]:
    """Lets a task end quietly whose event loop was closed under it.

    What asyncio does at the end of a block (waking others, cancelling children) fails then, and
    its error would hide why the task ends.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error.__context__, GeneratorExit):
            raise error.__context__ from None
        raise


class SingleFlight(Generic[_T]):
    """Runs one call at a time and shares its result with those who came before it ended.

    Belongs to one event loop. A leader that is cancelled or fails leaves no result behind, so
    that the next in line leads; nobody waits for a task that is gone.
    """

    __slots__ = ("_lock", "_number", "_result")

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._result: tuple[float, _T] | None = None
        # Counts results. Times could tie, and a caller that comes again at the very moment of a
        # result would be given that result for ever.
        self._number = 0

    async def run(self, lead: Callable[[], Awaitable[_T]], *, ttl: float = 0.0) -> _T:
        """Return a result that is not older than this call, or than `ttl`.

        Args:
            lead: Finds the result out; called if nobody has found one.
            ttl: Seconds for which a result also serves calls that come later.

        Raises:
            Exception: What `lead` raises when this call leads.
        """
        clock = asyncio.get_running_loop().time
        number = self._number
        with _ends_with_its_loop():
            async with self._lock:
                if self._result is not None:
                    found_at, result = self._result
                    if self._number > number or clock() - found_at < ttl:
                        return result
                result = await lead()
                self._result = clock(), result
                self._number += 1
                return result
