"""Runs many schedules, or one again.

python -m proof.simulation [--n N] [--seed FIRST] [--jobs J]
python -m proof.simulation --replay SEED [--threads] | --replay-file SCHEDULE.json
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TimeRemainingColumn
from rich.table import Table

from proof.simulation.chunks import run_chunk
from proof.simulation.coverage import IMPORTANT
from proof.simulation.run import run
from proof.simulation.schedule import Schedule, draw
from proof.simulation.shrink import shrink
from proof.simulation.threads import for_threads

if TYPE_CHECKING:
    from collections.abc import Iterable
    from multiprocessing.pool import Pool

    from proof.simulation.chunks import Chunk

_CHUNK: Final = 200
_ENOUGH_TO_MEET_ALL: Final = 5_000
"""Of so many schedules, every important situation must have been met."""

console: Final = Console()


def simulate(first: int, n: int, jobs: int) -> int:
    """Run `n` schedules, some in threads too; how many failed, or situations were never met."""
    began = time.perf_counter()
    end = first + n
    tasks = [(start, min(start + _CHUNK, end)) for start in range(first, end, _CHUNK)]
    met: Counter[str] = Counter()
    failed: list[Schedule] = []
    exchanges = 0
    progress = Progress(
        SpinnerColumn(), *Progress.get_default_columns()[:2], MofNCompleteColumn(),
        TimeRemainingColumn(), console=console,
    )  # fmt: skip
    with progress, _workers(jobs) as pool:
        bar = progress.add_task("schedules", total=n)
        done: Iterable[Chunk] = pool.imap(run_chunk, tasks)
        for chunk, (start, stop) in zip(done, tasks, strict=True):
            met += chunk.situations
            exchanges += chunk.exchanges
            failed += chunk.failed
            progress.update(bar, advance=stop - start)
            if not console.is_terminal and stop // (n // 10 or 1) > start // (n // 10 or 1):
                seeds = f", seeds {_seeds(failed)}" if failed else ""
                console.print(f"{stop - first} of {n} schedules, {len(failed)} failed{seeds}")
    seconds = time.perf_counter() - began
    missed = [name for name in IMPORTANT if not met[name]] if n >= _ENOUGH_TO_MEET_ALL else []
    _show(met)
    console.print(
        f"{n} schedules (seeds {first} to {end - 1}), {exchanges} exchanges, {seconds:.0f} s, "
        f"{n / seconds / jobs:.0f} per second and process; {len(failed)} failed"
    )
    for name in missed:
        console.print(f"never met: {name}", style="red")
    if failed:
        console.print(f"failing seeds: {_seeds(failed)}", style="red")
        replay(failed[0], shrinks=True)
    return len(failed) + len(missed)


def _workers(jobs: int) -> Pool:
    # What has been imported by then stays: the collector need not walk through it after each
    # schedule.
    return multiprocessing.get_context("spawn").Pool(jobs, initializer=gc.freeze)


def replay(schedule: Schedule, *, shrinks: bool) -> int:
    """Run one schedule again and print all of it; how many violations there were."""
    result = run(schedule)
    _print_run(schedule, result.trace)
    for violation in result.violations:
        console.print(str(violation), style="red", markup=False)
    if result.violations and shrinks:
        small = shrink(schedule)
        console.rule("the smallest schedule that breaks the same")
        smallest = run(small)
        _print_run(small, smallest.trace)
        for violation in smallest.violations:
            console.print(str(violation), style="red", markup=False)
        console.print("as JSON, for --replay-file:")
        console.print(small.to_json(), markup=False, soft_wrap=True, highlight=False)
    if result.violations:
        replay_of = f"{schedule.seed}{' --threads' if schedule.setup.in_threads else ''}"
        console.print(f"replay: python -m proof.simulation --replay {replay_of}", style="bold")
    else:
        console.print("all invariants hold", style="green")
    return len(result.violations)


def _seeds(schedules: list[Schedule]) -> str:
    return ", ".join(f"{s.seed}{' in threads' * s.setup.in_threads}" for s in schedules[:20])


def _print_run(schedule: Schedule, trace: list[tuple[object, ...]]) -> None:
    console.print(schedule.describe(), markup=False, highlight=False, soft_wrap=True)
    for at, what, *details in trace:
        line = f"{at:10.3f}  {what:<10} {' '.join(map(str, details))}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _show(met: Counter[str]) -> None:
    table = Table("situation", "met", title="What was met")
    table.columns[1].justify = "right"
    for name in sorted(met.keys() | set(IMPORTANT)):
        table.add_row(name, str(met[name]), style=None if met[name] else "red")
    console.print(table)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m proof.simulation", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--n", type=int, default=100_000, help="how many schedules")
    parser.add_argument("--seed", type=int, default=0, metavar="FIRST", help="the first seed")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--replay", type=int, metavar="SEED", help="run this seed again, aloud")
    parser.add_argument("--threads", action="store_true", help="replay it with the sync guard")
    parser.add_argument("--replay-file", type=Path, metavar="JSON", help="run a stored schedule")
    given = parser.parse_args()
    if given.replay is not None:
        schedule = draw(given.replay)
        schedule = for_threads(schedule) if given.threads else schedule
        sys.exit(bool(replay(schedule, shrinks=True)))
    if given.replay_file is not None:
        sys.exit(bool(replay(Schedule.from_json(given.replay_file.read_text()), shrinks=False)))
    sys.exit(bool(simulate(given.seed, given.n, given.jobs)))


if __name__ == "__main__":
    main()
