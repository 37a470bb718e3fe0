from __future__ import annotations

import asyncio

import pytest

from testkit.fakes import loop_time
from tinker_guard import GuardSettings
from tinker_guard.core.attempts import attempts

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("seconds", "told_at"),
    [
        (9.99, [0.0]),
        (10.0, [0.0]),
        (10.01, [0.0, 10.0]),
        (20.0, [0.0, 10.0]),
        (35.0, [0.0, 10.0, 20.0, 30.0]),
    ],
)
async def test_a_long_wait_is_told_of_every_ten_seconds_but_not_at_its_end(
    seconds: float, told_at: list[float]
) -> None:
    told: list[float] = []
    number = 0
    async for attempt in attempts(GuardSettings(), 60.0, on_wait=lambda: told.append(loop_time())):
        number += 1
        if number == 2:
            break
        attempt.retry_state.set_result(seconds)
    assert told == told_at
    assert loop_time() == asyncio.get_running_loop().time() == seconds
