"""An asyncio loop whose time passes only when nothing else can happen."""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from _typeshed import FileDescriptorLike


ROUNDS: Final = 100_000
"""How often a loop may look for events. The longest test needs a fifth of it; what retries for ever
where a sleep takes no time would otherwise end only by pytest's own limit, a minute later.
"""


class _JumpingSelector(selectors.BaseSelector):
    """Asks the real selector without waiting; if nothing is ready, time jumps instead."""

    def __init__(self, loop: VirtualTimeLoop, rounds: int) -> None:
        self._most = rounds
        self._real = selectors.DefaultSelector()
        self._loop = loop
        self._rounds = 0

    def register(
        self, fileobj: FileDescriptorLike, events: int, data: object = None
    ) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: FileDescriptorLike) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def get_map(self) -> Mapping[FileDescriptorLike, selectors.SelectorKey]:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._rounds += 1
        if self._rounds > self._most:
            raise RuntimeError("livelock: this does not end")
        ready = self._real.select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            raise RuntimeError("deadlock: every task waits, and no timer is set")
        self._loop.now += timeout
        return []


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """`loop.time()` starts at 0 and jumps to the next timer whenever all tasks wait.

    Args:
        selector: Another one than its own.
        rounds: How often it may look for events.
    """

    def __init__(
        self, selector: selectors.BaseSelector | None = None, *, rounds: int = ROUNDS
    ) -> None:
        self.now = 0.0
        super().__init__(selector or _JumpingSelector(self, rounds))

    def time(self) -> float:
        return self.now
