"""Schedules in portions, for worker processes."""

from __future__ import annotations

import gc
import signal
from collections import Counter
from functools import partial
from typing import Final, NamedTuple

from simulation.run import run
from simulation.schedule import draw

_STUCK_AFTER: Final = 60
"""Seconds of real time after which a schedule, which takes milliseconds, counts as hung."""


class Chunk(NamedTuple):
    """What came of a portion of schedules."""

    situations: Counter[str]
    failed: list[int]
    """Seeds of those that broke an invariant."""
    exchanges: int


def run_chunk(seeds: tuple[int, int]) -> Chunk:
    """Run the schedules of all seeds from the first to before the last.

    Raises:
        TimeoutError: One hangs: it spins without letting time pass. The message names its seed.
    """
    met: Counter[str] = Counter()
    failed: list[int] = []
    exchanges = 0
    for seed in range(*seeds):
        signal.signal(signal.SIGALRM, partial(_give_up, seed))
        signal.alarm(_STUCK_AFTER)
        result = run(draw(seed))
        signal.alarm(0)
        met += result.situations
        exchanges += sum(entry[1] in ("send", "probe") for entry in result.trace)
        if result.violations:
            failed.append(seed)
    gc.collect()
    return Chunk(met, failed, exchanges)


def _give_up(seed: int, *_: object) -> None:
    raise TimeoutError(f"seed {seed} hangs: python -m simulation --replay {seed}")
