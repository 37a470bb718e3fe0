"""A thousand of the schedules of `make simulate`, and proof that its checks can fail."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from proof.sabotage import SABOTAGE
from proof.simulation.coverage import IMPORTANT
from proof.simulation.run import run
from proof.simulation.schedule import (
    Caller,
    Cancel,
    PlaneFault,
    Schedule,
    Setup,
    draw,
)
from proof.simulation.shrink import shrink
from proof.simulation.threads import Condition, for_threads
from testkit.cli import python
from tests import ROOT
from tinker_guard.core.single_flight import ThreadFlight
from tinker_guard.transports import runtime

if TYPE_CHECKING:
    from proof.simulation.schedule import Event

SCHEDULES = 1_000
IN_THREADS = 200
ENOUGH_TO_FAIL = 400
"""Schedules within which a broken guard must be found out."""
ENOUGH_OF_ALL_KINDS = 2_000
"""The same, where only those of a rare kind show it."""


def test_no_schedule_breaks_an_invariant_and_all_that_matters_is_met() -> None:
    met: Counter[str] = Counter()
    # In the last five, a transport below holds the request that leads at the gate, nothing is said
    # between two answers that the job is missing, and a replaced transport takes its time to close
    # with its last answer, before that is noted; and the process stands still for a whole budget.
    known = (190085548, 190098646, 191022102, 191045107, 193076876)
    for seed in (*range(SCHEDULES), *known):
        result = run(draw(seed))
        assert result.violations == [], f"python -m proof.simulation --replay {seed}"
        met += result.situations
    assert [name for name in IMPORTANT if not met[name]] == []


def test_nor_in_threads() -> None:
    """The guard of sync clients, with threads that take turns."""
    met: Counter[str] = Counter()
    # In 99021480, one that came later leads at the gate before one that came sooner. In 140000740,
    # two answers "missing" are no less two for what another key heard in between. In the last
    # four, an answer came after the time of its lookup, two things were closed after a probe, and
    # the time of a lookup that asked twice was over as it asked again, and as it was answered.
    known = (7347, 8693, 99021480, 140000740, 180052440, 180057590, 190017060, 191003450)
    for seed in (*range(IN_THREADS), *known):
        result = run(for_threads(draw(seed)))
        assert result.violations == [], f"python -m proof.simulation --replay {seed} --threads"
        met += result.situations
    assert met


async def _each_by_itself(_: Any, compute: Any, *args: Any, **__: Any) -> Any:
    return await compute(*args)


@pytest.mark.parametrize(
    ("owner", "name", "broken", "breaks", "first"),
    [
        pytest.param(ThreadFlight, "run", _each_by_itself, {4}, 0, id="each-asks-for-itself"),
        # Few schedules end a request's time between two exchanges.
        pytest.param(runtime, "begin", lambda: None, {3}, 3388, id="begins-after-its-time"),
        pytest.param(Condition, "notify_all", lambda _: None, {3}, 0, id="tells-nobody"),
    ],
)
def test_a_broken_guard_of_threads_breaks_exactly_its_invariants(
    owner: Any,
    name: str,
    broken: Any,
    breaks: set[int],
    first: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(owner, name, broken)
    for seed in range(first, first + ENOUGH_TO_FAIL):
        result = run(for_threads(draw(seed)))
        if result.violations:
            assert result.broken == breaks
            return
    pytest.fail("the simulation found nothing")


@pytest.mark.parametrize("in_threads", [False, True])
def test_the_same_seed_gives_the_same_trace(in_threads: bool) -> None:
    for seed in range(20 if in_threads else 100):
        schedule = for_threads(draw(seed)) if in_threads else draw(seed)
        assert schedule == (for_threads(draw(seed)) if in_threads else draw(seed))
        first, again = run(schedule), run(Schedule.from_json(schedule.to_json()))
        assert first.trace == again.trace
        assert first.situations == again.situations


def test_traces_are_the_same_in_another_process() -> None:
    program = (
        "from proof.simulation.run import run; from proof.simulation.schedule import draw\n"
        "for seed in range(100, 140): print(run(draw(seed)).trace)"
    )
    outputs = {
        python("-c", program, PYTHONPATH=str(ROOT), PYTHONHASHSEED=hash_seed).stdout
        for hash_seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert outputs != {""}


@pytest.mark.parametrize("name", [name for name, how in SABOTAGE.items() if how.breaks])
def test_a_broken_guard_breaks_exactly_its_invariant(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    sabotage = SABOTAGE[name]
    sabotage.apply(monkeypatch.setattr)
    schedules = map(draw, range(ENOUGH_OF_ALL_KINDS if sabotage.needs else ENOUGH_TO_FAIL))
    for schedule in schedules:
        kinds = {type(event).__name__ for event in schedule.events}
        kinds |= {"alone"} if schedule.setup.plane == "none" else set()
        result = run(schedule) if sabotage.needs in {"", *kinds} else None
        if result is not None and result.violations:
            assert result.broken == sabotage.breaks
            return
    pytest.fail("the simulation found nothing")


def _with_a_cancellation_around_a_question(cancel: Cancel, *, callers: int) -> Schedule:
    """Callers who all meet a 404, and a control plane that does not answer in time."""
    settings = {
        "warmup_successes": 0,
        "warmup_timeout": 0.5,
        "probe_timeout": 5.0,
        "retry_timeout": 3.0,
        "backoff_initial": 0.1,
        "backoff_max": 0.3,
        "control_plane_timeout": 0.25,
        "verdict_ttl": 1.0,
    }
    events: tuple[Event, ...] = (
        *(Caller(number, at=0.0, route=0, slot=0, asks="odd") for number in range(callers)),
        PlaneFault(route=0, begin=0.0, end=1.0, kind="hang"),
        cancel,
    )
    return Schedule(0, Setup(settings, latencies=(0.0,)), events)


@pytest.mark.parametrize("callers", [1, 2])
@pytest.mark.parametrize("step", range(2, 8))
def test_a_question_that_took_too_long_may_be_followed_by_a_cancellation(
    callers: int, step: int
) -> None:
    # Exchanges take no time here: the first caller is cancelled at the very moment at which the
    # time of its first question is over, or in one of its next steps.
    cancel = Cancel(caller=0, step=step)
    assert run(_with_a_cancellation_around_a_question(cancel, callers=callers)).violations == []


def test_no_answer_comes_of_a_question_whose_asker_was_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    schedule = _with_a_cancellation_around_a_question(Cancel(caller=0, at=0.2), callers=2)
    assert run(schedule).violations == []
    SABOTAGE["word-of-the-gone"].apply(monkeypatch.setattr)
    assert run(schedule).broken == {6}


def test_a_failing_schedule_shrinks_to_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    SABOTAGE["open-404s"].apply(monkeypatch.setattr)
    failing = next(
        schedule
        for schedule in map(draw, range(ENOUGH_TO_FAIL))
        if len(schedule.events) > 5 and run(schedule).violations
    )
    small = shrink(failing)
    assert run(small).broken == {5}
    assert 2 <= len(small.events) <= 3
    assert sum(isinstance(event, Caller) for event in small.events) == 1
    assert not any(run(small.without(index)).violations for index in range(len(small.events)))


def test_a_failing_seed_is_printed_with_the_command_to_replay_it() -> None:
    pytest.importorskip("rich", reason="comes with the extra demo")
    program = (
        "from proof.sabotage import SABOTAGE; SABOTAGE['evil-probes'].apply(setattr)\n"
        "from proof.simulation.__main__ import main; main()"
    )
    failed = next(seed for seed in range(ENOUGH_TO_FAIL) if _sends_probes_away(seed))
    variables = {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    done = python("-c", program, "--replay", failed, **variables)
    assert done.returncode == 1
    assert "invariant 7: " in done.stdout
    assert f"python -m proof.simulation --replay {failed}" in done.stdout


def _sends_probes_away(seed: int) -> bool:
    with pytest.MonkeyPatch.context() as monkeypatch:
        SABOTAGE["evil-probes"].apply(monkeypatch.setattr)
        return 7 in run(draw(seed)).broken
