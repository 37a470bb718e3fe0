"""Waiting on an event loop, and by blocking a thread where there is none."""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
from typing import TYPE_CHECKING

import pytest

from testkit.threads import VirtualTime
from tinker_guard.transports import runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


class _Time(VirtualTime):
    """Remembers each sleep."""

    def __init__(self) -> None:
        super().__init__()
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        super().sleep(seconds)

    @property
    def threads(self) -> runtime.Threads:
        return runtime.Threads(self.clock, self.sleep)


async def _return() -> str:
    return "done"


async def _raise() -> str:
    raise ZeroDivisionError


async def _suspend() -> str:
    await asyncio.sleep(0)
    return "done"


@pytest.mark.parametrize(
    ("end", "error"), [(_return, None), (_raise, ZeroDivisionError), (_suspend, RuntimeError)]
)
def test_a_thread_is_afterwards_as_it_was_before(
    end: Callable[[], Coroutine[object, object, str]], error: type[Exception] | None
) -> None:
    time, is_left = _Time(), False
    threads = time.threads

    async def use() -> str:
        nonlocal is_left
        assert runtime.is_blocking()
        assert runtime.owner() is threads
        assert runtime.clock()() == 0.0
        try:
            async with runtime.timeout(5.0):
                assert runtime.time_left()[1] == 5.0
                return await end()
        finally:
            is_left = True

    coroutine = use()
    if error is None:
        assert runtime.run_blocking(coroutine, threads) == "done"
    else:
        with pytest.raises(error):
            runtime.run_blocking(coroutine, threads)
    assert is_left
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED
    assert not runtime.is_blocking()
    assert runtime.time_left() == (None, math.inf)


def test_on_an_event_loop_that_runs_in_the_thread_nothing_blocks_it() -> None:
    """A transport below a sync client may run one, with an async client of the program on it."""
    threads = _Time().threads

    async def on_loop() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(2):
            assert not runtime.is_blocking()
            assert runtime.owner() is loop
            assert runtime.clock() == loop.time
            assert runtime.is_running()
            async with runtime.timeout(60.0) as timeout:
                assert isinstance(timeout, asyncio.Timeout)
                await asyncio.gather(runtime.sleep(0), runtime.isolated(_suspend))
            # A sync client on that loop blocks it, as it would without the guard.
            assert runtime.run_blocking(below()) is runtime.THREADS

    async def below() -> object:
        assert runtime.is_blocking()
        return runtime.owner()

    async def use() -> None:
        assert runtime.owner() is threads
        asyncio.run(on_loop())
        assert runtime.owner() is threads

    runtime.run_blocking(use(), threads)


def test_a_thread_that_waits_by_itself_has_the_real_time() -> None:
    async def use() -> None:
        assert runtime.owner() is runtime.THREADS
        began = runtime.clock()()
        await runtime.sleep(0.01)
        assert runtime.clock()() >= began + 0.01

    runtime.run_blocking(use())
    assert not runtime.THREADS.is_closed()


@pytest.mark.parametrize(
    ("timeouts", "seconds", "slept", "ended_by"),
    [
        pytest.param([], 3.0, 3.0, None, id="none"),
        pytest.param([5.0], 3.0, 3.0, None, id="later"),
        pytest.param([5.0, 4.0], 3.0, 3.0, None, id="both later"),
        # As on an event loop, where the timeout was set before the sleep.
        pytest.param([3.0], 3.0, 3.0, 0, id="at the same time"),
        pytest.param([2.0], 3.0, 2.0, 0, id="sooner"),
        pytest.param([2.0, 5.0], 3.0, 2.0, 0, id="the outer one first"),
        pytest.param([5.0, 2.0], 3.0, 2.0, 1, id="the inner one first"),
        pytest.param([-1.0], 3.0, 0.0, 0, id="over before"),
        pytest.param([], -1.0, 0.0, None, id="a wait that is over"),
    ],
)
def test_a_wait_ends_with_the_first_of_the_timeouts_around_it(
    timeouts: list[float], seconds: float, slept: float, ended_by: int | None
) -> None:
    time, ended = _Time(), list[int]()

    async def wait(number: int = 0) -> None:
        if number == len(timeouts):
            await runtime.sleep(seconds)
            return
        try:
            async with runtime.timeout_at(100.0 + timeouts[number]):
                await wait(number + 1)
        except TimeoutError:
            ended.append(number)

    time.now = 100.0
    runtime.run_blocking(wait(), time.threads)
    assert time.slept == [slept]
    assert ended == ([] if ended_by is None else [ended_by])


@pytest.mark.parametrize("has_timeout", [True, False])
def test_a_long_wait_is_one_of_many_that_every_system_knows(has_timeout: bool) -> None:
    """One of 292 years and more is an `OverflowError` on Linux, one of weeks on Windows."""
    time, is_over = _Time(), False

    async def wait() -> None:
        nonlocal is_over
        try:
            async with runtime.timeout(216_000.0 if has_timeout else 1e300):
                await runtime.sleep(1e300 if has_timeout else 216_000.0)
        except TimeoutError:
            is_over = True

    runtime.run_blocking(wait(), time.threads)
    assert time.slept == [86_400.0, 86_400.0, 43_200.0]
    assert is_over is has_timeout


@pytest.mark.parametrize("seconds", [86_400.0, 86_401.0, 1e10, 1e300])
@pytest.mark.parametrize("is_its_own", [True, False])
def test_a_long_wait_for_a_condition_is_looked_after_once_a_day(
    seconds: float, is_its_own: bool
) -> None:
    timeouts: list[float | None] = []

    class Unchanged(threading.Condition):
        def wait(self, timeout: float | None = None) -> bool:
            timeouts.append(timeout)
            return False

    async def wait() -> None:
        async with runtime.timeout(math.inf if is_its_own else seconds):
            runtime.wait(Unchanged(), seconds if is_its_own else None)

    if seconds == 86_400.0:
        with pytest.raises(TimeoutError):
            runtime.run_blocking(wait(), _Time().threads)
    else:
        runtime.run_blocking(wait(), _Time().threads)
    assert timeouts == [86_400.0]


def test_a_timeout_ends_what_is_driven_within_it() -> None:
    time = _Time()

    async def wait() -> None:
        async with runtime.timeout(2.0):
            await runtime.isolated(lambda: runtime.sleep(60.0))

    with pytest.raises(TimeoutError):
        runtime.run_blocking(wait(), time.threads)
    assert time.slept == [2.0]


def test_a_timeout_that_is_left_leaves_the_one_around_it() -> None:
    time = _Time()

    async def wait() -> None:
        async with runtime.timeout(5.0):
            async with runtime.timeout(10.0):
                await runtime.sleep(1.0)
            await runtime.sleep(60.0)

    with pytest.raises(TimeoutError):
        runtime.run_blocking(wait(), time.threads)
    assert time.slept == [1.0, 4.0]


def test_what_needs_an_event_loop_fails_by_itself() -> None:
    async def use() -> str:
        with pytest.raises(RuntimeError, match="needs an event loop"):
            await runtime.isolated(_suspend)
        return await runtime.isolated(_return)

    assert runtime.run_blocking(use()) == "done"


@pytest.mark.parametrize(("seconds", "waited"), [(-1.0, 0.0), (0.0, 0.0), (2.0, 2.0)])
def test_a_thread_waits_for_a_condition_no_longer_than_its_timeout(
    seconds: float, waited: float
) -> None:
    timeouts: list[float | None] = []

    class Unchanged(threading.Condition):
        def wait(self, timeout: float | None = None) -> bool:
            timeouts.append(timeout)
            return False

    async def wait() -> None:
        async with runtime.timeout(seconds):
            runtime.wait(Unchanged())

    with pytest.raises(TimeoutError):
        runtime.run_blocking(wait(), _Time().threads)
    assert timeouts == [waited]


@pytest.mark.parametrize(
    ("until", "seconds", "waited", "kind"),
    [
        (2.0, None, 2.0, "its own limit"),
        (2.0, 3.0, 2.0, "its own limit"),
        (3.0, 2.0, 2.0, "the timeout"),
        (2.0, 2.0, 2.0, "the timeout"),
        (-1.0, None, 0.0, "its own limit"),
    ],
)
def test_a_thread_waits_for_a_condition_no_longer_than_a_limit_of_the_wait(
    until: float, seconds: float | None, waited: float, kind: str
) -> None:
    time, timeouts = _Time(), list[float | None]()
    time.sleep(100.0)
    ended_by = ""

    class Unchanged(threading.Condition):
        def wait(self, timeout: float | None = None) -> bool:
            timeouts.append(timeout)
            return False

    async def wait() -> None:
        nonlocal ended_by
        async with runtime.timeout(math.inf if seconds is None else seconds):
            try:
                runtime.wait(Unchanged(), 100.0 + until)
            except TimeoutError:
                ended_by = "its own limit"
                raise
            except runtime.Expired:
                ended_by = "the timeout"
                raise

    with pytest.raises(TimeoutError):
        runtime.run_blocking(wait(), time.threads)
    assert (timeouts, ended_by) == ([waited], kind)


@pytest.mark.parametrize("has_timeout", [False, True])
def test_a_condition_that_changes_ends_the_wait(has_timeout: bool) -> None:
    changed, waits = threading.Condition(), threading.Event()

    class Watched(threading.Condition):
        def wait(self, timeout: float | None = None) -> bool:
            assert (timeout is not None) is has_timeout
            waits.set()
            return changed.wait(timeout)

    def change() -> None:
        waits.wait(10)
        with changed:
            changed.notify_all()

    async def wait() -> str:
        async with runtime.timeout(10 if has_timeout else math.inf):
            with changed:
                runtime.wait(Watched())
        return "changed"

    async def wait_for_ever() -> str:
        with changed:
            runtime.wait(Watched())
        return "changed"

    other = threading.Thread(target=change)
    other.start()
    assert runtime.run_blocking(wait() if has_timeout else wait_for_ever()) == "changed"
    other.join()


def test_a_thread_is_never_cancelled_and_always_has_something_to_wait_with() -> None:
    async def ask() -> tuple[bool, bool]:
        return runtime.is_cancelled(), runtime.is_running()

    assert runtime.run_blocking(ask()) == (False, True)
    assert asyncio.run(ask()) == (False, True)
    assert not runtime.is_running()


def test_a_task_that_is_cancelled_knows_it() -> None:
    async def ask() -> bool:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            return runtime.is_cancelled()
        return False

    assert asyncio.run(ask())


@pytest.mark.parametrize(("passed", "begins"), [(4.999, True), (5.0, False), (6.0, False)])
def test_what_cannot_be_ended_does_not_begin_late(passed: float, begins: bool) -> None:
    time, begun = _Time(), False

    async def use() -> None:
        nonlocal begun
        runtime.begin()
        async with runtime.timeout(60.0), runtime.timeout(5.0):
            # An exchange that took so long.
            time.now += passed
            runtime.begin()
            begun = True

    if begins:
        runtime.run_blocking(use(), time.threads)
    else:
        with pytest.raises(TimeoutError):
            runtime.run_blocking(use(), time.threads)
    assert begun is begins


@pytest.mark.parametrize(
    ("passed", "goes_on"), [(0.0, True), (1.0, True), (1.9, True), (2.0, False), (9.0, False)]
)
def test_what_was_begun_goes_on_until_its_own_timeout_is_over(passed: float, goes_on: bool) -> None:
    """The answer to a question serves others too, for whom it is not too late."""
    time = _Time()

    async def read() -> str:
        async with runtime.timeout(1.0):
            try:
                async with runtime.timeout(2.0):
                    time.sleep(passed)
                    runtime.go_on()
            except TimeoutError:
                return "its own is over"
            return "read"

    expected = "read" if goes_on else "its own is over"
    assert runtime.run_blocking(read(), time.threads) == expected


@pytest.mark.parametrize(("passed", "goes_on"), [(1.9, True), (2.0, False)])
def test_what_was_begun_within_one_timeout_goes_on_until_that_is_over(
    passed: float, goes_on: bool
) -> None:
    time = _Time()

    async def read() -> bool:
        try:
            async with runtime.timeout(2.0):
                time.sleep(passed)
                runtime.go_on()
        except TimeoutError:
            return False
        return True

    assert runtime.run_blocking(read(), time.threads) is goes_on


def test_what_has_no_timeout_goes_on() -> None:
    async def read() -> str:
        runtime.go_on()
        return "read"

    assert runtime.run_blocking(read(), _Time().threads) == "read"
