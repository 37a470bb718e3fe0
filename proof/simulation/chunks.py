"""Schedules in portions, for worker processes."""

from __future__ import annotations

import gc
from collections import Counter
from typing import Final, NamedTuple

from proof.simulation.run import run
from proof.simulation.schedule import Schedule, draw
from proof.simulation.threads import for_threads

THREADED_ONE_IN: Final = 10
"""Of so many schedules, one is run by the guard of sync clients too."""


class Chunk(NamedTuple):
    """What came of a portion of schedules."""

    situations: Counter[str]
    failed: list[Schedule]
    """Those that broke an invariant."""
    exchanges: int


def run_chunk(seeds: tuple[int, int]) -> Chunk:
    """Run the schedules of all seeds from the first to before the last."""
    met: Counter[str] = Counter()
    failed: list[Schedule] = []
    exchanges = 0
    # By itself, the collector looks at what a schedule has made while all of it is in use.
    gc.disable()
    try:
        for seed in range(*seeds):
            schedules = [draw(seed)]
            if seed % THREADED_ONE_IN == 0:
                schedules.append(for_threads(schedules[0]))
            for schedule in schedules:
                result = run(schedule)
                met.update(result.situations)
                exchanges += sum(entry[1] in ("send", "probe") for entry in result.trace)
                if result.violations:
                    failed.append(schedule)
                del result
                gc.collect(0)
    finally:
        gc.enable()
    gc.collect()
    return Chunk(met, failed, exchanges)
