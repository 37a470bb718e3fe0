"""One request finds something out, and the others that want to know wait for what it finds."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tinker_guard.transports import runtime

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_T = TypeVar("_T")


class SingleFlight(Generic[_T]):
    """Runs one call at a time and shares its result with the calls that wait for it.

    Belongs to one event loop. A leader that is cancelled or fails leaves no result behind: the
    next in line leads. Costs are linear in the number of calls that wait.
    """

    __slots__ = ("_has_leader", "_number", "_result", "_waiters")

    def __init__(self) -> None:
        self._has_leader = False
        # In order of arrival; a dictionary, from which any waiter is removed in constant time.
        self._waiters: dict[asyncio.Future[None], None] = {}
        self._result: _T | None = None
        # Counts results. Times could tie, and a call that comes again at the very moment of a
        # result would be given that result for ever.
        self._number = 0

    @property
    def is_under_way(self) -> bool:
        """Whether a call leads or waits."""
        return self._has_leader or bool(self._waiters)

    async def run(
        self, compute: Callable[[], Awaitable[_T]], *, accepts: Callable[[_T], bool] | None = None
    ) -> _T:
        """Return a result that this call may use, or lead.

        Args:
            compute: Finds the result out.
            accepts: Whether a result that is there serves this call. None accepts what was found
                since the call came.

        Raises:
            Exception: What `compute` raises when this call leads.
        """
        came_after = self._number
        while True:
            if self._result is not None and (
                accepts(self._result) if accepts else self._number > came_after
            ):
                if not self._has_leader:
                    # It may have been this call's turn to lead.
                    self._promote_next()
                return self._result
            if not self._has_leader:
                return await self._compute(compute)
            await self._wait()

    async def _compute(self, compute: Callable[[], Awaitable[_T]]) -> _T:
        self._has_leader = True
        try:
            result = await compute()
        except BaseException as error:
            self._has_leader = False
            # On GeneratorExit the event loop is gone, and all who wait with it.
            if not isinstance(error, GeneratorExit):
                self._promote_next()
            raise
        self._has_leader = False
        self._result = result
        self._number += 1
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        return result

    async def _wait(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = None
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and not self._has_leader:
                # It was its turn to lead.
                self._promote_next()
            raise
        finally:
            self._waiters.pop(waiter, None)

    def _promote_next(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
                return


class ThreadFlight(SingleFlight[_T]):
    """The same for the threads of sync clients: a call that waits blocks its thread."""

    __slots__ = ("_changed", "_waiting")

    def __init__(self) -> None:
        super().__init__()
        self._changed = threading.Condition()
        self._waiting = 0

    @property
    def is_under_way(self) -> bool:
        """Whether a call leads or waits."""
        return self._has_leader or self._waiting > 0

    async def run(
        self, compute: Callable[[], Awaitable[_T]], *, accepts: Callable[[_T], bool] | None = None
    ) -> _T:
        """Return a result that this call may use, or lead; see `SingleFlight.run`."""
        with self._changed:
            came_after = self._number
            while True:
                if self._result is not None and (
                    accepts(self._result) if accepts else self._number > came_after
                ):
                    return self._result
                if not self._has_leader:
                    self._has_leader = True
                    break
                self._waiting += 1
                try:
                    runtime.wait(self._changed)
                finally:
                    self._waiting -= 1
        result: _T | None = None
        try:
            result = await compute()
        finally:
            with self._changed:
                self._has_leader = False
                if result is not None:
                    self._result = result
                    self._number += 1
                self._changed.notify_all()
        return result


def new_flight() -> SingleFlight[Any]:
    """A single flight for the running event loop or, below sync clients, for all threads."""
    return ThreadFlight() if runtime.is_blocking() else SingleFlight()
