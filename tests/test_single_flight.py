from __future__ import annotations

import asyncio

import pytest

from tests.fakes import loop_time, settle
from tinker_guard.single_flight import SingleFlight

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
    flight, lead = SingleFlight[int](), Counted()
    first = [asyncio.create_task(flight.run(lead)) for _ in range(3)]
    await asyncio.sleep(0.5)
    assert await flight.run(lead) == 1
    assert await asyncio.gather(*first) == [1, 1, 1]
    assert lead.calls == 1


async def test_those_who_come_later_find_out_anew() -> None:
    flight, lead = SingleFlight[int](), Counted()
    assert await flight.run(lead) == 1
    await asyncio.sleep(0.1)
    assert await flight.run(lead) == 2


async def test_a_result_serves_for_its_time_to_live() -> None:
    flight, lead = SingleFlight[int](), Counted()
    assert await flight.run(lead, ttl=5) == 1
    await asyncio.sleep(4.9)
    assert await flight.run(lead, ttl=5) == 1
    await asyncio.sleep(0.1)
    assert await flight.run(lead, ttl=5) == 2


async def test_coming_again_at_the_very_moment_of_a_result_finds_out_anew() -> None:
    flight, results = SingleFlight[int](), iter(range(9))

    async def lead() -> int:
        return next(results)

    assert [await flight.run(lead) for _ in range(3)] == [0, 1, 2]


async def test_a_cancelled_leader_hands_over() -> None:
    flight, lead = SingleFlight[int](), Counted()
    leader, heir, third = (asyncio.create_task(flight.run(lead)) for _ in range(3))
    await settle()
    leader.cancel()
    assert list(await asyncio.gather(heir, third)) == [2, 2]
    assert leader.cancelled()
    assert loop_time() == 1.0


async def test_a_cancelled_waiter_changes_nothing() -> None:
    flight, lead = SingleFlight[int](), Counted()
    leader, waiter, third = (asyncio.create_task(flight.run(lead)) for _ in range(3))
    await settle()
    waiter.cancel()
    assert list(await asyncio.gather(leader, third)) == [1, 1]
    assert waiter.cancelled()


async def test_a_failure_is_not_shared() -> None:
    flight, lead = SingleFlight[int](), Counted(ValueError())
    results = await asyncio.gather(*(flight.run(lead) for _ in range(2)), return_exceptions=True)
    assert [type(result) for result in results] == [ValueError, ValueError]
    assert lead.calls == 2


async def test_a_runtime_error_of_the_leaders_own_reaches_it() -> None:
    async def lead() -> None:
        raise RuntimeError("its own")

    with pytest.raises(RuntimeError, match="its own"):
        await SingleFlight[None]().run(lead)
