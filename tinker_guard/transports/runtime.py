"""What the guard waits with: the running event loop or, below a sync client, the calling thread.

The code above is written once, as coroutines. On an event loop they are awaited as usual. Below a
sync client `run_blocking` drives them: everything that they wait for blocks the thread instead, so
that a coroutine never suspends. There is no event loop then, and no thread beside the caller's.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

from tinker_guard.transports.interrupts import Interrupted, interruptible

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from contextlib import AbstractAsyncContextManager

_T = TypeVar("_T")

LONGEST_WAIT: Final = 86_400.0
"""Seconds that the system is asked to wait at once, as by an event loop. A longer wait is made of
several: locks, sleeps and sockets refuse some weeks or some centuries, as the system may be."""


class Threads:
    """Waiting by blocking the calling thread.

    Args:
        clock: The time, seconds.
        sleep: Blocks for seconds.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.clock = clock
        self.sleep = sleep

    def is_closed(self) -> bool:
        """False: what threads find out together does not end, as an event loop does."""
        return False


THREADS: Final = Threads()


class _Thread(threading.local):
    """What a thread waits with while it drives a coroutine."""

    threads: Threads | None = None
    loop: asyncio.AbstractEventLoop | None = None
    """The event loop that ran in the thread as the driving began: the client may be used in one."""
    timeouts: tuple[_BlockingTimeout, ...] = ()


_thread: Final = _Thread()


def _threads() -> Threads | None:
    """What the thread waits with; None on an event loop.

    A transport below may run an event loop of its own in the thread, and coroutines of the guard
    on it: these wait as on any other loop. One that blocked would hold up all others there.
    """
    threads = _thread.threads
    if threads is None or asyncio._get_running_loop() is _thread.loop:
        return threads
    return None


def run_blocking(
    coroutine: Coroutine[Any, Any, _T], threads: Threads = THREADS, *, is_request: bool = False
) -> _T:
    """Run a coroutine of the guard in the calling thread, to its end.

    Args:
        coroutine: It waits only for what this module offers, and for transports that block.
        threads: How to wait.
        is_request: Whether it sends a client's request, which no timeout around it ends: a signal
            handler may send one while the thread waits with another, and so may a transport.

    Raises:
        RuntimeError: It waited for something else, which would need an event loop.
        BaseException: What the coroutine raises.
    """
    before = _thread.threads, _thread.loop, _thread.timeouts
    _thread.threads, _thread.loop = threads, asyncio._get_running_loop()
    if is_request:
        _thread.timeouts = ()
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: _T = end.value
        return result
    except Interrupted as interrupted:
        error = interrupted.error
    else:
        coroutine.close()
        raise RuntimeError("this needs an event loop, and is called below a sync client")
    finally:
        _thread.threads, _thread.loop, _thread.timeouts = before
    # Here, and not above, where it would get the other one as its context.
    raise error


async def isolated(call: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    """Await a user's coroutine; below a sync client, one that needs an event loop fails by itself.

    Raises:
        RuntimeError: It needs an event loop, and there is none.
    """
    threads = _threads()
    if threads is None:
        return await call()
    with interruptible():
        return run_blocking(call(), threads)


def is_blocking() -> bool:
    """Whether the calling thread drives a coroutine, without an event loop."""
    return _threads() is not None


def owner() -> asyncio.AbstractEventLoop | Threads:
    """To whom it belongs what requests wait for together: the running loop, or all threads."""
    return _threads() or asyncio.get_running_loop()


def caller() -> object:
    """What runs the code that calls this: the task or, below a sync client, the thread."""
    has_task = _threads() is None and is_running()
    return asyncio.current_task() if has_task else threading.get_ident()


def clock() -> Callable[[], float]:
    """The clock by which is waited: the running loop's, or the monotonic one."""
    threads = _threads()
    return asyncio.get_running_loop().time if threads is None else threads.clock


def now() -> float:
    """The time by that clock."""
    return clock()()


async def sleep(seconds: float) -> None:
    """Wait; the timeouts around end it."""
    threads = _threads()
    if threads is None:
        await asyncio.sleep(seconds)
        return
    timeout, left = time_left()
    rest = max(min(seconds, left), 0.0)
    with interruptible(always=True):
        while rest > LONGEST_WAIT:
            threads.sleep(LONGEST_WAIT)
            rest -= LONGEST_WAIT
        threads.sleep(rest)
    if timeout is not None and seconds >= left:
        raise Expired(timeout)


def begin() -> None:
    """Begin something that blocks the thread and cannot be ended; not if a timeout is over."""
    timeout, left = time_left()
    if timeout is not None and left <= 0:
        raise Expired(timeout)


def go_on() -> None:
    """Go on reading what blocks the thread; not if the innermost timeout, its own, is over.

    Those further out do not end it: others may wait for the same answer, and have time left.
    """
    if _thread.timeouts and _thread.timeouts[-1].when <= now():
        raise Expired(_thread.timeouts[-1])


def wait(changed: threading.Condition, until: float | None = None) -> None:
    """Block until a condition is notified; the timeouts around end it. It may return before.

    Args:
        changed: The condition, held.
        until: When it ends with `TimeoutError`, by `clock()`; None sets no limit of its own.
    """
    timeout, left = time_left()
    if until is not None and (own := until - now()) < left:
        timeout, left = None, own
    seconds = None if left == math.inf else min(max(left, 0.0), LONGEST_WAIT)
    with interruptible(always=True):
        is_changed = changed.wait(seconds)
    if not is_changed and left <= LONGEST_WAIT:
        raise TimeoutError if timeout is None else Expired(timeout)


def timeout_at(when: float) -> asyncio.Timeout | _BlockingTimeout:
    """End a block at a time of `clock()`, with `TimeoutError`.

    Below a sync client it ends waits alone. A request under way has the timeouts of its own.
    """
    return asyncio.timeout_at(when) if _threads() is None else _BlockingTimeout(when)


def timeout(seconds: float) -> AbstractAsyncContextManager[Any]:
    """End a block after seconds; see `timeout_at`."""
    return timeout_at(now() + seconds)


def is_cancelled() -> bool:
    """Whether a `CancelledError` that was just caught is the running task's own cancellation.

    A transport, a stream or a control plane can raise one of its own: that cancels no request.
    """
    if _threads() is not None:
        return False
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def is_running() -> bool:
    """Whether there is something to wait with: an event loop may be closed under its task."""
    if _threads() is not None:
        return True
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class Expired(BaseException):
    """Ends a wait of a thread, as a cancellation ends a task's; its timeout takes it up.

    Args:
        timeout: The timeout that is over.
    """

    def __init__(self, timeout: _BlockingTimeout) -> None:
        self.timeout = timeout


class _BlockingTimeout:
    def __init__(self, when: float) -> None:
        self.when: float = when

    async def __aenter__(self) -> None:
        _thread.timeouts += (self,)

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        _thread.timeouts = _thread.timeouts[:-1]
        if isinstance(error, Expired) and error.timeout is self:
            raise TimeoutError from None


def time_left() -> tuple[_BlockingTimeout | None, float]:
    """The timeout of this thread that ends first, and the seconds until then."""
    if not _thread.timeouts:
        return None, math.inf
    first = min(_thread.timeouts, key=lambda timeout: timeout.when)
    return first, first.when - now()
