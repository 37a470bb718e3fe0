from __future__ import annotations

import asyncio
import os
import random
import time
from typing import TYPE_CHECKING

import pytest

from testkit.fakes import loop_time
from tinker_guard import GuardSettings
from tinker_guard.core.attempts import JITTER, attempts
from tinker_guard.policy.pacing import backoff, retry_after, spread

if TYPE_CHECKING:
    from collections.abc import Callable

# -- backoff -------------------------------------------------------------------------------------


def test_backoff_starts_at_once_and_grows_to_its_maximum() -> None:
    delays = [backoff(n, initial=0.1, maximum=3.0, jitter=0.0) for n in range(1, 31)]
    assert [round(delay, 3) for delay in delays[:5]] == [0.0, 0.1, 0.115, 0.132, 0.152]
    assert delays[-1] == 3.0
    assert backoff(10**9, initial=0.1, maximum=3.0, jitter=0.0) == 3.0


def test_jitter_only_shortens_a_delay() -> None:
    full, least = (backoff(9, initial=0.1, maximum=3.0, jitter=jitter) for jitter in (0.0, 1.0))
    assert least == pytest.approx(0.5 * full)


@pytest.mark.parametrize("race", [0.05, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 28.0])
def test_a_race_costs_little_more_than_itself(race: float) -> None:
    """Back within W + max(0.5 s, W/4), for any jitter, with 40 ms spent on every attempt."""
    chance = random.Random(1)
    worst = 0.0
    for run in range(200):
        elapsed, resend = 0.0, 0
        while elapsed < race:
            resend += 1
            jitter = 0.0 if run == 0 else chance.random()
            elapsed += backoff(resend, initial=0.1, maximum=3.0, jitter=jitter) + 0.04
        worst = max(worst, elapsed)
    assert worst <= race + max(0.5, race / 4)


@pytest.mark.parametrize(
    ("waited", "most"),
    [(0.0, 0.0), (0.04, 0.01), (0.4, 0.1), (0.8, 0.2), (1.0, 0.2), (60.0, 0.2)],
)
def test_requests_that_waited_for_one_probe_come_back_over_a_quarter_of_their_wait(
    waited: float, most: float
) -> None:
    stays = [spread(waited, initial=0.1, jitter=jitter) for jitter in (0.0, 0.5, 1.0)]
    assert stays == pytest.approx([0.0, most / 2, most])


# -- Retry-After ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0.0),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": " 3 "}, 3.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after-ms": "250", "retry-after": "3"}, 0.25),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 40.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:10 GMT"}, 0.0),
        (
            # Found by the simulation: where this machine's clock is behind, so long a wait would
            # be the whole of every budget.
            {
                "retry-after": "Thu, 01 Jan 1970 01:00:02 GMT",
                "date": "Thu, 01 Jan 1970 01:00:00 GMT",
            },
            2.0,
        ),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT", "date": "today"}, 40.0),
        ({"retry-after": "Thu, 01 Jan 1970 02:01:40 +0200"}, 40.0),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "soon"}, 0.0),
        ({"retry-after": ""}, 0.0),
        ({"retry-after": "\u00b2"}, 0.0),
        ({"retry-after": "9" * 400}, 1e9),
        ({"retry-after": "1_0"}, 0.0),
        ({"retry-after": "1e3"}, 0.0),
        ({"retry-after": "\u0663"}, 0.0),
        ({"retry-after-ms": "nan"}, 0.0),
        ({"retry-after-ms": "inf"}, 0.0),
        ({"retry-after-ms": "-1"}, 0.0),
        ({"retry-after-ms": ""}, 0.0),
        # A number that is none says nothing of the other header.
        ({"retry-after-ms": "", "retry-after": "3"}, 3.0),
        ({"retry-after-ms": "soon", "retry-after": "3"}, 3.0),
        ({"retry-after-ms": "nan", "retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 40.0),
        # Servers write fractions, which the SDK obeys as well.
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "0.25"}, 0.25),
        # From a server and the proxies before it.
        ({"retry-after": "2, 3"}, 3.0),
        ({"retry-after": "3, 2"}, 3.0),
        ({"retry-after": "0, soon, 3"}, 3.0),
        ({"retry-after": "-1, -2"}, 0.0),
        ({"retry-after-ms": "100, 250"}, 0.25),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float) -> None:
    assert retry_after(headers, now=60.0) == seconds


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="needs a time zone that can be set")
def test_a_date_without_a_zone_is_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as here:
        here.setenv("TZ", "America/New_York")
        time.tzset()
        assert retry_after({"retry-after": "Thu Jan  1 00:01:40 1970"}, now=60.0) == 40.0
    time.tzset()


# -- attempts ------------------------------------------------------------------------------------


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """No jitter."""
    monkeypatch.setattr(JITTER, "random", lambda: 0.0)


async def begun(
    deadline: float,
    *,
    least: Callable[[int], float | None] = lambda _: 0.0,
    takes: float = 0.0,
    attempts_before: int = 0,
    successful: int | None = None,
) -> list[float]:
    """When each attempt began.

    Args:
        deadline: When to stop.
        least: How long to wait at least after the n-th attempt.
        takes: How long each attempt takes.
        attempts_before: As of `attempts`.
        successful: The attempt after which there is none; None for never.
    """
    settings = GuardSettings(backoff_initial=0.1, backoff_max=3.0)
    times: list[float] = []
    async for attempt in attempts(settings, deadline, attempts_before=attempts_before):
        times.append(round(loop_time(), 6))
        await asyncio.sleep(takes)
        if len(times) == successful:
            return times
        attempt.retry_state.set_result(least(len(times)))
    return times


@pytest.mark.anyio
@pytest.mark.usefixtures("steady")
async def test_the_second_attempt_follows_at_once_and_the_last_begins_at_the_deadline() -> None:
    # Waits of 0.1, 0.115 and 0.13225 s; the fourth is cut.
    assert await begun(0.4) == [0.0, 0.0, 0.1, 0.215, 0.34725, 0.4]
    assert loop_time() == pytest.approx(0.4)


@pytest.mark.anyio
@pytest.mark.usefixtures("steady")
async def test_where_an_attempt_went_before_the_second_one_waits_too() -> None:
    assert await begun(0.3, attempts_before=1) == [0.0, 0.1, 0.215, 0.3]


@pytest.mark.anyio
@pytest.mark.usefixtures("steady")
async def test_no_attempt_begins_after_the_deadline() -> None:
    assert await begun(1.0, takes=0.6) == [0.0, 0.6]
    assert loop_time() == pytest.approx(1.2)


@pytest.mark.anyio
@pytest.mark.usefixtures("steady")
async def test_without_a_budget_there_is_one_attempt() -> None:
    assert await begun(0.0) == [0.0]


@pytest.mark.anyio
@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize(("asked_to_wait", "second"), [(0.05, 0.1), (0.7, 0.7), (60.0, 1.0)])
async def test_the_longer_wait_counts_and_is_cut_to_what_is_left(
    asked_to_wait: float, second: float
) -> None:
    """A longer Retry-After than the budget ends with a last attempt, and not at once."""
    times = await begun(1.0, least=lambda _: asked_to_wait, attempts_before=1)
    assert times[1] == second
    assert times[-1] == 1.0


@pytest.mark.anyio
@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize("at_once", [1, 2, 8])
async def test_attempts_that_follow_each_other_at_once_are_one_step(at_once: int) -> None:
    least = [*[None] * at_once, 0.0, *[None] * at_once, 0.0, 0.0]
    times = await begun(9.0, least=lambda n: least[n - 1], attempts_before=1, successful=len(least))
    after_a_burst, after_another = 0.115, 0.115 + 0.1 * 1.15**3
    expected = [*[0.0] * (at_once + 1), *[after_a_burst] * (at_once + 1), after_another]
    assert times == pytest.approx(expected, abs=1e-6)


@pytest.mark.anyio
async def test_jitter_at_most_halves_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JITTER, "random", lambda: 1.0)
    assert await begun(0.1, attempts_before=1) == [0.0, 0.05, 0.1]


@pytest.mark.anyio
@pytest.mark.usefixtures("steady")
async def test_success_ends_the_attempts() -> None:
    assert await begun(60.0, successful=2) == [0.0, 0.0]
    assert loop_time() == 0.0


# -- random numbers ------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_jitter_takes_no_number_from_a_training() -> None:
    before = random.getstate()
    await begun(5.0)
    assert random.getstate() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_draws_numbers_of_its_own() -> None:
    """Else all workers of a data loader would come back at the same moment."""
    state = JITTER.getstate()
    child = os.fork()
    if child == 0:
        os._exit(0 if JITTER.getstate() != state else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert JITTER.getstate() == state
