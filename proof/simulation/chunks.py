"""Schedules in portions, for worker processes."""

from __future__ import annotations

import gc
from collections import Counter
from typing import NamedTuple

from proof.simulation.run import run
from proof.simulation.schedule import draw


class Chunk(NamedTuple):
    """What came of a portion of schedules."""

    situations: Counter[str]
    failed: list[int]
    """Seeds of those that broke an invariant."""
    exchanges: int


def run_chunk(seeds: tuple[int, int]) -> Chunk:
    """Run the schedules of all seeds from the first to before the last."""
    met: Counter[str] = Counter()
    failed: list[int] = []
    exchanges = 0
    for seed in range(*seeds):
        result = run(draw(seed))
        met += result.situations
        exchanges += sum(entry[1] in ("send", "probe") for entry in result.trace)
        if result.violations:
            failed.append(seed)
    gc.collect()
    return Chunk(met, failed, exchanges)
