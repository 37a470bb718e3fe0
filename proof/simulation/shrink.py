"""Makes a failing schedule small: takes away all that the failure does not need."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from proof.simulation.run import run
from proof.simulation.schedule import Setup

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proof.simulation.schedule import Schedule


def shrink(schedule: Schedule) -> Schedule:
    """A schedule that breaks one of the same invariants, and of which nothing can be taken away.

    Events are dropped one by one, and what the run begins with is made the simplest, for as long
    as it still fails.
    """
    broken = run(schedule).broken
    is_smaller = True
    while is_smaller:
        is_smaller = False
        for candidate in _smaller(schedule):
            if run(candidate).broken & broken:
                schedule = candidate
                is_smaller = True
                break
    return schedule


def _smaller(schedule: Schedule) -> Iterator[Schedule]:
    for index in reversed(range(len(schedule.events))):
        yield schedule.without(index)
    simplest = Setup(settings=schedule.setup.settings)
    simpler: dict[str, Any] = {
        name: getattr(simplest, name)
        for name in (
            "latencies",
            "close_takes",
            "plane",
            "plane_takes",
            "probe_answer",
            "trainer_coding",
            "is_read_below",
            "cookies",
        )
    }
    simpler |= {
        "renewable": True,
        "is_recorded": False,
        "has_two_loops": False,
        "routes_kept": 1024,
    }
    for name, value in simpler.items():
        if getattr(schedule.setup, name) != value:
            yield replace(schedule, setup=replace(schedule.setup, **{name: value}))
