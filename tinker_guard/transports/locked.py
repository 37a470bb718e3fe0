"""Objects with a lock for threads that a copy, a pickle or a forked child does not share."""

from __future__ import annotations

import os
import threading
from typing import Any, Final
from weakref import WeakSet


class Locked:
    """Has a lock for threads; a copy, a pickle or a forked child has one of its own.

    Reentrant, because a signal handler may send a request while it is held.
    """

    def __init__(self) -> None:
        self._renew_lock()

    def _renew_lock(self) -> None:
        self._lock = threading.RLock()
        _locked.add(self)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._renew_lock()


_locked: Final[WeakSet[Locked]] = WeakSet()


def renew_locks() -> None:
    """Give each one another lock; what a thread holds that does not exist any more is free."""
    for each in list(_locked):
        each._renew_lock()


if hasattr(os, "register_at_fork"):  # pragma: no branch - no other system forks
    # A thread that held one does not exist in the child.
    os.register_at_fork(after_in_child=renew_locks)
