"""One request finds something out, and the others that want to know wait for what it finds."""

from __future__ import annotations

import asyncio
import heapq
import threading
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, TypeVarTuple

from tinker_guard.transports import runtime

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

_T = TypeVar("_T")
_Args = TypeVarTuple("_Args")

_AT_ONCE: Final = 128
"""How many calls go on in one turn of the event loop: they take some ten milliseconds."""


class SingleFlight(Generic[_T]):
    """Runs one call at a time and shares its result with the calls that wait for it.

    Belongs to one event loop. A leader that is cancelled or fails leaves no result behind: the
    next in line leads. Costs are linear in the number of calls that wait, and those that a result
    releases do not all go on in one turn of the event loop.
    """

    __slots__ = ("_deadlines", "_leader", "_number", "_releasing", "_result", "_waiters")

    def __init__(self) -> None:
        # The task that leads, or the thread.
        self._leader: object = None
        # In order of arrival; a dictionary, from which any waiter is removed in constant time.
        self._waiters: dict[asyncio.Future[None], None] = {}
        self._deadlines = _Deadlines()
        # How many calls hold a result that they have not been woken for yet.
        self._releasing = 0
        self._result: _T | None = None
        # Counts results. Times could tie, and a call that comes again at the very moment of a
        # result would be given that result for ever.
        self._number = 0

    @property
    def is_under_way(self) -> bool:
        """Whether a call leads or waits."""
        return self._leader is not None or bool(self._waiters) or self._releasing > 0

    async def run(
        self,
        compute: Callable[[*_Args], Awaitable[_T]],
        *args: *_Args,
        accepts: Callable[[_T], bool] | None = None,
        until: float | None = None,
    ) -> _T:
        """Return a result that this call may use, or lead.

        Args:
            compute: Finds the result out.
            args: What it is called with.
            accepts: Whether a result that is there serves this call. None accepts what was found
                since the call came.
            until: When it waits for another call's result no longer, by `runtime.clock()`; None
                sets no limit. It limits no call that leads.

        Raises:
            TimeoutError: `until` has come.
            Exception: What `compute` raises when this call leads.
        """
        came_after = self._number
        while True:
            if self._result is not None and (
                accepts(self._result) if accepts else self._number > came_after
            ):
                if self._leader is None:
                    # It may have been this call's turn to lead.
                    self._promote_next()
                return self._result
            if self._leader is None:
                return await self._compute(compute, *args)
            if self._leader == runtime.caller():
                # What it computes asks for the same: it would wait for itself.
                return await compute(*args)
            # In place, not in a coroutine of its own: thousands may wait here.
            waiter = asyncio.get_running_loop().create_future()
            self._waiters[waiter] = None
            if until is not None:
                self._deadlines.add(waiter, until)
            try:
                await waiter
            except asyncio.CancelledError:
                self._decline(waiter)
                raise
            finally:
                self._waiters.pop(waiter, None)
                self._deadlines.forget(len(self._waiters))

    async def _compute(self, compute: Callable[[*_Args], Awaitable[_T]], *args: *_Args) -> _T:
        self._leader = runtime.caller()
        try:
            result = await compute(*args)
        except BaseException as error:
            self._leader = None
            # On GeneratorExit the event loop is gone, and all who wait with it.
            if not isinstance(error, GeneratorExit):
                self._promote_next()
            raise
        self._leader = None
        self._result = result
        self._number += 1
        waiters, self._waiters = self._waiters, {}
        self._releasing += len(waiters)
        self._release(iter(waiters))
        return result

    def _release(self, waiters: Iterator[asyncio.Future[None]]) -> None:
        """Wake the calls that a result is there for, so many in each turn of the event loop."""
        for waiter in islice(waiters, _AT_ONCE):
            self._releasing -= 1
            if not waiter.done():
                waiter.set_result(None)
        if self._releasing:
            asyncio.get_running_loop().call_soon(self._release, waiters)

    def _decline(self, waiter: asyncio.Future[None]) -> None:
        """Pass on the turn of a call that is cancelled, if it was its turn to lead."""
        if waiter.done() and not waiter.cancelled() and self._leader is None:
            self._promote_next()

    def _promote_next(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
                return


class _Deadlines:
    """Ends waits at their times, by one timer for all: that of the first one.

    A timer for each would be a third of what the garbage collector follows for each wait.
    """

    __slots__ = ("_added", "_heap", "_timer")

    def __init__(self) -> None:
        # What is over stays there until its time, or until most of them are over.
        self._heap: list[tuple[float, int, asyncio.Future[None]]] = []
        self._added = 0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, waiter: asyncio.Future[None], until: float) -> None:
        """End a wait at a time of its event loop."""
        self._added += 1
        heapq.heappush(self._heap, (until, self._added, waiter))
        if self._heap[0][2] is waiter:
            self._arm()

    def forget(self, waiting: int) -> None:
        """Forget waits that are over, if there are many; `waiting` are not."""
        if waiting == 0 or len(self._heap) > 2 * waiting + _AT_ONCE:
            self._heap = [entry for entry in self._heap if waiting and not entry[2].done()]
            heapq.heapify(self._heap)
            self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if self._heap and not (loop := self._heap[0][2].get_loop()).is_closed():
            until = self._heap[0][0]
            self._timer = loop.call_at(until, self._end, until)

    def _end(self, until: float) -> None:
        while self._heap and (self._heap[0][0] <= until or self._heap[0][2].done()):
            waiter = heapq.heappop(self._heap)[2]
            if not waiter.done():
                waiter.set_exception(TimeoutError())
        self._arm()


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
        return self._leader is not None or self._waiting > 0

    async def run(
        self,
        compute: Callable[[*_Args], Awaitable[_T]],
        *args: *_Args,
        accepts: Callable[[_T], bool] | None = None,
        until: float | None = None,
    ) -> _T:
        """Return a result that this call may use, or lead; see `SingleFlight.run`."""
        me = runtime.caller()
        with self._changed:
            came_after = self._number
            while True:
                if self._result is not None and (
                    accepts(self._result) if accepts else self._number > came_after
                ):
                    return self._result
                is_nested = self._leader == me
                if is_nested or self._leader is None:
                    self._leader = me
                    break
                self._waiting += 1
                try:
                    runtime.wait(self._changed, until)
                finally:
                    self._waiting -= 1
        if is_nested:
            # As above; or a signal handler sends a request while the leader's thread waits.
            return await compute(*args)
        result: _T | None = None
        try:
            result = await compute(*args)
        finally:
            with self._changed:
                self._leader = None
                if result is not None:
                    self._result = result
                    self._number += 1
                self._changed.notify_all()
        return result


def new_flight() -> SingleFlight[Any]:
    """A single flight for the running event loop or, below sync clients, for all threads."""
    return ThreadFlight() if runtime.is_blocking() else SingleFlight()
