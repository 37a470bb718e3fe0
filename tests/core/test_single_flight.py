from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from testkit.fakes import loop_time, settle
from testkit.virtual_time import VirtualTimeLoop
from tinker_guard.core.single_flight import SingleFlight

pytestmark = pytest.mark.anyio


class Counted:
    """Counts its calls; each takes a second and returns its number, or raises."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls = 0
        self.error = error

    async def __call__(self) -> int:
        self.calls += 1
        number = self.calls
        await asyncio.sleep(1)
        if self.error is not None:
            raise self.error
        return number


async def test_those_who_come_before_the_end_share_the_result() -> None:
    flight, compute = SingleFlight[int](), Counted()
    first = [asyncio.create_task(flight.run(compute)) for _ in range(3)]
    await asyncio.sleep(0.5)
    assert await flight.run(compute) == 1
    assert await asyncio.gather(*first) == [1, 1, 1]
    assert compute.calls == 1


async def test_those_who_come_later_find_out_anew() -> None:
    flight, compute = SingleFlight[int](), Counted()
    assert await flight.run(compute) == 1
    await asyncio.sleep(0.1)
    assert await flight.run(compute) == 2


async def test_whoever_comes_says_which_result_serves() -> None:
    flight, compute = SingleFlight[int](), Counted()
    assert await flight.run(compute, accepts=lambda _: False) == 1
    assert await flight.run(compute, accepts=lambda number: number == 1) == 1
    assert await flight.run(compute, accepts=lambda number: number > 1) == 2
    # Even what was found before counts, if it is said to.
    assert await flight.run(compute, accepts=lambda _: True) == 2
    assert compute.calls == 2


async def test_each_that_waits_decides_for_itself() -> None:
    flight, compute = SingleFlight[int](), Counted()
    wanted = [1, 2, 1, 3, 2]

    async def ask(least: int) -> int:
        return await flight.run(compute, accepts=lambda found: found >= least)

    # The first result serves the first and the third, the second one the second and the fifth.
    assert await asyncio.gather(*map(ask, wanted)) == wanted
    assert (compute.calls, loop_time()) == (3, 3.0)
    assert not flight.is_under_way


async def test_coming_again_at_the_very_moment_of_a_result_finds_out_anew() -> None:
    flight, results = SingleFlight[int](), iter(range(9))

    async def compute() -> int:
        return next(results)

    assert [await flight.run(compute) for _ in range(3)] == [0, 1, 2]


async def test_a_cancelled_leader_hands_over() -> None:
    flight, compute = SingleFlight[int](), Counted()
    leader, heir, third = (asyncio.create_task(flight.run(compute)) for _ in range(3))
    await settle()
    leader.cancel()
    assert list(await asyncio.gather(heir, third)) == [2, 2]
    assert leader.cancelled()
    assert loop_time() == 1.0


async def test_a_cancelled_waiter_changes_nothing() -> None:
    flight, compute = SingleFlight[int](), Counted()
    leader, waiter, third = (asyncio.create_task(flight.run(compute)) for _ in range(3))
    await settle()
    waiter.cancel()
    assert list(await asyncio.gather(leader, third)) == [1, 1]
    assert waiter.cancelled()


async def test_a_failure_is_not_shared() -> None:
    flight, compute = SingleFlight[int](), Counted(ValueError())
    results = await asyncio.gather(*(flight.run(compute) for _ in range(2)), return_exceptions=True)
    assert [type(result) for result in results] == [ValueError, ValueError]
    assert compute.calls == 2


async def test_a_runtime_error_of_the_leaders_own_reaches_it() -> None:
    async def compute() -> None:
        raise RuntimeError("its own")

    with pytest.raises(RuntimeError, match="its own"):
        await SingleFlight[None]().run(compute)


async def test_a_call_that_accepts_a_result_passes_on_its_turn() -> None:
    """Its turn came as a leader was cancelled, and it has no need to compute."""
    flight, compute = SingleFlight[int](), Counted()
    assert await flight.run(compute) == 1
    accepted = False
    leader = asyncio.create_task(flight.run(compute))
    second = asyncio.create_task(flight.run(compute, accepts=lambda _: accepted))
    third = asyncio.create_task(flight.run(compute))
    await settle()
    leader.cancel()
    accepted = True
    assert (await second, await third) == (1, 3)
    assert not flight.is_under_way


async def test_cancelled_in_the_moment_of_its_turn() -> None:
    flight, compute = SingleFlight[int](), Counted()
    leader, heir, third = (asyncio.create_task(flight.run(compute)) for _ in range(3))
    await settle()
    leader.cancel()
    # Both in one turn of the loop: the leader's end promotes the heir, which is cancelled by then.
    await asyncio.sleep(0)
    heir.cancel()
    assert await third == 2
    assert leader.cancelled()
    assert heir.cancelled()
    assert not flight.is_under_way


@pytest.mark.parametrize("cancelled", range(5))
@pytest.mark.parametrize("turns", range(4))
async def test_no_cancellation_at_any_moment_leaves_anybody_waiting(
    cancelled: int, turns: int
) -> None:
    flight, compute = SingleFlight[int](), Counted()
    tasks = [asyncio.create_task(flight.run(compute)) for _ in range(5)]
    await settle()
    tasks[0].cancel()
    for _ in range(turns):
        await asyncio.sleep(0)
    tasks[cancelled].cancel()
    await asyncio.wait(tasks)
    assert sum(task.cancelled() for task in tasks) == len({0, cancelled})
    assert loop_time() == 1.0
    assert not flight.is_under_way


async def test_cancelled_askers_do_not_add_up() -> None:
    """Whoever waits has its own deadline; those before it take none of it."""
    flight = SingleFlight[int]()

    async def hang() -> int:
        await asyncio.sleep(1000)
        return 0

    async def ask(limit: float) -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(limit):
                await flight.run(hang)
        return loop_time()

    limits = [0.95 * n for n in range(1, 13)] + [2.0]
    assert await asyncio.gather(*(ask(limit) for limit in limits)) == pytest.approx(limits)
    assert not flight.is_under_way


async def test_it_says_whether_a_call_leads_or_waits() -> None:
    flight, compute = SingleFlight[int](), Counted()
    seen = [flight.is_under_way]
    tasks = [asyncio.create_task(flight.run(compute)) for _ in range(2)]
    await settle()
    seen.append(flight.is_under_way)
    for task in tasks:
        task.cancel()
        await settle()
        seen.append(flight.is_under_way)
    assert seen == [False, True, True, False]


async def test_each_of_many_that_wait_looks_at_a_result_once() -> None:
    """The costs are linear, however many were cancelled meanwhile."""
    steps = 0

    async def compute() -> int:
        await asyncio.sleep(1)
        return 1

    def accepts(_: int) -> bool:
        nonlocal steps
        steps += 1
        return True

    flight = SingleFlight[int]()
    tasks = [asyncio.create_task(flight.run(compute, accepts=accepts)) for _ in range(2000)]
    await settle()
    for task in tasks[1:1000]:
        task.cancel()
    await settle()
    assert list(await asyncio.gather(tasks[0], *tasks[1000:])) == [1] * 1001
    assert steps == 1000


async def test_many_that_wait_do_not_all_go_on_in_one_turn_of_the_event_loop() -> None:
    is_found = asyncio.Event()
    released: list[int] = []

    async def compute() -> int:
        await is_found.wait()
        return 1

    async def wait() -> None:
        await flight.run(compute)
        released.append(len(turns))

    flight = SingleFlight[int]()
    tasks = [asyncio.create_task(wait()) for _ in range(1000)]
    await settle()
    is_found.set()
    turns: list[bool] = []
    while len(released) < 999:
        turns.append(flight.is_under_way)
        await asyncio.sleep(0)
        if len(turns) == 3:
            # This changes nothing for the others.
            tasks[-1].cancel()
    assert max(released.count(turn) for turn in set(released)) <= 150
    assert turns.index(False) >= 6
    await asyncio.wait(tasks)
    assert [task.cancelled() for task in tasks] == [*[False] * 999, True]


async def test_a_result_may_come_while_those_of_the_one_before_are_still_woken() -> None:
    flight = SingleFlight[int]()
    found = 0

    async def compute() -> int:
        nonlocal found
        # Long enough for all to wait for the first result, and for some to wait for the second.
        await asyncio.sleep(0 if found else 1)
        found += 1
        return found

    calls = [
        asyncio.create_task(flight.run(compute, accepts=lambda number: number == 2))
        for _ in range(1000)
    ]
    # The leader is told what it found, whatever that is.
    assert await asyncio.gather(*calls) == [1] + [2] * 999
    # Time would stand still if there were something to do in each turn of the event loop.
    await asyncio.sleep(1)
    assert loop_time() == 2.0
    assert not flight.is_under_way


def test_where_the_event_loop_is_gone_nobody_is_promoted() -> None:
    """The garbage collector ends the leader; those who wait belong to a closed loop."""

    class Step:
        def __await__(self) -> Any:
            yield

    async def compute() -> int:
        await Step()
        return 1

    flight = SingleFlight[int]()
    leading = flight.run(compute)
    leading.send(None)
    assert flight.is_under_way
    leading.close()
    assert not flight.is_under_way


async def test_a_call_waits_for_another_one_no_longer_than_its_limit() -> None:
    flight, compute = SingleFlight[int](), Counted()
    leader = asyncio.create_task(flight.run(compute, until=0.25))
    patient = asyncio.create_task(flight.run(compute, until=1.25))
    await settle()
    for limit in (0.5, 0.25, -1.0):
        with pytest.raises(TimeoutError):
            await flight.run(compute, until=limit)
        assert loop_time() == 0.5
    # A limit ends no call that leads, nor one that is given its result in time.
    assert list(await asyncio.gather(leader, patient)) == [1, 1]
    with pytest.raises(TimeoutError):
        await asyncio.gather(flight.run(compute), flight.run(compute, until=1.5))
    assert loop_time() == 1.5
    assert compute.calls == 2


async def test_a_call_whose_limit_has_come_is_not_given_the_lead() -> None:
    flight, compute = SingleFlight[int](), Counted()
    leader, impatient, other = (
        asyncio.create_task(flight.run(compute, until=until)) for until in (None, 0.5, None)
    )
    await asyncio.sleep(0.5)
    leader.cancel()
    assert await other == 2
    with pytest.raises(TimeoutError):
        await impatient
    assert not flight.is_under_way


def test_a_call_whose_turn_comes_just_before_its_limit_leads() -> None:
    faults: list[Any] = []

    async def take_over() -> None:
        loop.set_exception_handler(lambda _, fault: faults.append(fault))
        flight, compute = SingleFlight[int](), Counted()
        leader, other = (asyncio.create_task(flight.run(compute, until=0.5)) for _ in range(2))
        await settle()
        leader.cancel()
        # The limit has come as the leader hands over, in the same turn of the event loop.
        loop.now = 0.5
        assert await other == 2

    loop = VirtualTimeLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(take_over())
    assert faults == []


def test_a_limit_is_forgotten_with_the_wait() -> None:
    limits: list[asyncio.TimerHandle] = []

    class Loop(VirtualTimeLoop):
        def call_at(self, when: float, *rest: Any, **more: Any) -> asyncio.TimerHandle:  # type: ignore[override] # Each argument is passed on.
            handle = super().call_at(when, *rest, **more)
            if when == 100:
                limits.append(handle)
            return handle

    async def share() -> None:
        flight, compute = SingleFlight[int](), Counted()
        calls = [asyncio.create_task(flight.run(compute, until=100)) for _ in range(3)]
        await asyncio.sleep(0.5)
        calls[-1].cancel()
        await asyncio.wait(calls)
        assert [limit.cancelled() for limit in limits] == [True]

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(share())


async def test_each_wait_ends_at_its_own_time() -> None:
    """Whatever the order in which they came, and whoever has gone meanwhile."""
    flight: SingleFlight[int] = SingleFlight()
    ended: dict[float, float] = {}

    async def wait(until: float) -> None:
        with pytest.raises(TimeoutError):
            await flight.run(Counted(), until=until)
        ended[until] = loop_time()

    async def lead() -> int:
        await asyncio.sleep(200.0)
        return 1

    leader = asyncio.create_task(flight.run(lead))
    await settle()
    times = [5.0 + 37 * n % 101 for n in range(50)]
    waits, gone = [], []
    for until in times * 4:
        waits.append(asyncio.create_task(wait(until)))
        others = (flight.run(Counted(), until=until - number / 2) for number in range(8))
        gone += [asyncio.create_task(other) for other in others]
    await settle()
    for each in gone:
        each.cancel()
    await asyncio.wait(gone)
    later = asyncio.create_task(wait(10.001))
    await asyncio.wait([*waits, later])
    assert ended == {until: until for until in (*times, 10.001)}
    assert await leader == 1


async def test_waits_that_are_over_are_not_kept_to_their_end() -> None:
    flight: SingleFlight[int] = SingleFlight()
    leader = asyncio.create_task(flight.run(Counted()))
    await settle()
    waits = [asyncio.create_task(flight.run(Counted(), until=100.0)) for _ in range(500)]
    await settle()
    for each in waits[20:]:
        each.cancel()
    await asyncio.wait(waits[20:])
    del waits[20:], each
    gc.collect()
    kept = [each for each in gc.get_objects() if type(each) is asyncio.Future and each.cancelled()]
    # Twenty wait, and twice as many and a slice of those that are over may be kept.
    assert len(kept) <= 2 * 20 + 128
    assert await asyncio.gather(leader, *waits) == [1] * 21


async def test_a_limit_that_is_over_ends_a_wait_at_once() -> None:
    flight: SingleFlight[int] = SingleFlight()
    leader = asyncio.create_task(flight.run(Counted()))
    await settle()
    with pytest.raises(TimeoutError):
        await flight.run(Counted(), until=loop_time() - 1.0)
    assert await leader == 1


async def test_what_is_found_out_may_be_about_something() -> None:
    async def double(number: int) -> int:
        return 2 * number

    assert await SingleFlight[int]().run(double, 2) == 4


async def test_a_call_that_is_cancelled_in_the_moment_of_the_result() -> None:
    flight: SingleFlight[int] = SingleFlight()
    is_found = asyncio.Event()

    async def compute() -> int:
        await is_found.wait()
        return 1

    leader, waiter, other = (asyncio.create_task(flight.run(compute)) for _ in range(3))
    await asyncio.sleep(0)
    is_found.set()
    waiter.cancel()
    assert (await leader, await other) == (1, 1)
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert not flight.is_under_way


async def test_what_the_leader_computes_may_ask_for_the_same() -> None:
    flight = SingleFlight[int]()

    async def compute(depth: int = 0) -> int:
        return await flight.run(compute, depth + 1) if depth < 3 else depth

    async with asyncio.timeout(1):
        assert await flight.run(compute) == 3
