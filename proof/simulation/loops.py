"""Event loops whose time is virtual and whose order is the same in each run; two can take turns."""

from __future__ import annotations

import asyncio
import random
import selectors
import sys
from functools import cached_property
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar, Final

from testkit.virtual_time import VirtualTimeLoop

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping

_TURNS: Final = 20_000
"""Turns of the event loop that no schedule needs; most need some hundreds."""


class LivelockError(Exception):
    """Somebody spins, and lets no time pass."""


class _Task(asyncio.Task[Any]):
    """One whose hash is its number: asyncio keeps tasks in sets, whose order must not change."""

    def __init__(self, coro: Coroutine[Any, Any, Any], *, number: int, **kwargs: Any) -> None:
        self._number = number
        super().__init__(coro, **kwargs)

    def __hash__(self) -> int:
        return self._number


class _NoSelector(selectors.BaseSelector):
    """For a loop that waits for no file or thread: nothing but its own timers wakes it."""

    def __init__(self, loop: _Loop) -> None:
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("deadlock: every task waits, and no timer is set")
        self._loop.now += timeout
        return []

    def register(self, fileobj: Any, events: int, data: object = None) -> selectors.SelectorKey:
        raise NotImplementedError

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        raise NotImplementedError

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return {}


class _SideSelector(_NoSelector):
    """For a loop on the side: what wakes it may be the other one's."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        # All that it had was a timer that is cancelled.
        return [] if timeout is None else super().select(timeout)


class _Loop(VirtualTimeLoop):
    """One with no way out of the model: no files, no threads, not even a pipe to be woken by."""

    selector: ClassVar[type[_NoSelector]] = _NoSelector

    def __init__(self, errors: list[str]) -> None:
        self.errors = errors
        """What was raised where nobody could catch it, or done where the model does not reach."""
        super().__init__(self.selector(self))

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]
        """Run nothing: what asks for a thread is about to look up a real host."""
        self.errors.append(f"in a thread: {getattr(func, '__name__', func)}{args}")
        raise OSError("there is no network")

    def _make_self_pipe(self) -> None: ...

    def _close_self_pipe(self) -> None: ...


class SideLoop(_Loop):
    """A second loop on the thread and in the time of another one, which gives it its turns."""

    selector = _SideSelector

    def __init__(self, main: MainLoop, number: int) -> None:
        self._main = main
        self.number = number
        super().__init__(main.errors)

    def time(self) -> float:
        """The other one's."""
        return self._main.time()

    @property
    def next_at(self) -> float | None:
        """When it has something to do next; None if it waits for others."""
        if self._ready:  # type: ignore[attr-defined]
            return self.time()
        return self._scheduled[0]._when if self._scheduled else None  # type: ignore[attr-defined]

    def turn(self) -> None:
        """Run what is ready now."""
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(
            firstiter=self._asyncgen_firstiter_hook,  # type: ignore[attr-defined]
            finalizer=self._asyncgen_finalizer_hook,  # type: ignore[attr-defined]
        )
        asyncio._set_running_loop(self)
        try:
            self._run_once()  # type: ignore[attr-defined]
        finally:
            asyncio._set_running_loop(self._main)
            sys.set_asyncgen_hooks(*hooks)


class MainLoop(_Loop):
    """A loop of which each run is the same; one on its side gets turns as the seed says."""

    def __init__(self, seed: int) -> None:
        super().__init__(errors=[])
        self.side: SideLoop | None = None
        self._sides = 0
        self._seed = seed
        self._turns = 0
        self._numbers = count()
        self._prepare(self)

    @cached_property
    def _chance(self) -> random.Random:
        # Few schedules have a loop on the side.
        return random.Random(f"{self._seed}, turns")

    def new_side(self) -> SideLoop:
        """Put a new loop on the side, in the place of the last."""
        self._sides += 1
        self.side = SideLoop(self, self._sides)
        self._prepare(self.side)
        return self.side

    def _prepare(self, loop: asyncio.AbstractEventLoop) -> None:
        def numbered(
            loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **kwargs: Any
        ) -> _Task:
            return _Task(coro, number=next(self._numbers), loop=loop, **kwargs)

        def note_error(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            self.errors.append(f"{context['message']} ({context.get('exception')!r})")

        loop.set_task_factory(numbered)  # type: ignore[arg-type]
        loop.set_exception_handler(note_error)

    def _run_once(self) -> None:
        self._turns += 1
        if self._turns > _TURNS:
            raise LivelockError
        if self.side is not None:
            self._give_turns(self.side)
        super()._run_once()  # type: ignore[misc]

    def _give_turns(self, side: SideLoop) -> None:
        while (at := side.next_at) is not None and at <= self.now and self._chance.random() < 0.5:
            side.turn()
        if at is not None:
            # No time passes on this loop beyond what the other one waits for.
            self.call_at(at, _nothing)


def _nothing() -> None: ...


def abandon(loop: asyncio.AbstractEventLoop) -> list[Coroutine[Any, Any, Any]]:
    """Close a loop under its tasks; what ran in them, which nobody ends any more."""
    tasks = sorted(asyncio.all_tasks(loop), key=hash)
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    return [task.get_coro() for task in tasks]  # type: ignore[misc]
