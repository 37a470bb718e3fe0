"""Soaks the guard, and exits with 1 if an invariant was broken.

python -m proof.chaos [--minutes M] [--seed S] [--no-guard] [--no-404s] [--docs PAGE] [--json PATH]
                [--sabotage NAME]
"""

from __future__ import annotations

import argparse
import datetime
import random
import signal
import sys
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from proof.chaos.conduct import Conductor, Options, Seen
from proof.chaos.report import Report, console
from proof.sabotage import SABOTAGE


def soak(options: Options) -> Report:
    """Run to the end, with a bar where somebody looks and ten lines where nobody does."""
    progress = Progress(
        BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}"), console=console
    )
    bar = progress.add_task("", total=options.seconds)
    tenths = told = 0

    def on_tick(seen: Seen, elapsed: float) -> None:
        nonlocal tenths, told
        for what in seen.broken[told:]:
            console.print(f"broken: {what}", style="red", markup=False, soft_wrap=True)
        told = len(seen.broken)
        progress.update(bar, completed=elapsed, description=_line(seen))
        if not console.is_terminal and elapsed > (tenths + 1) * options.seconds / 10:
            tenths += 1
            console.print(f"{tenths}0 %: {_line(seen)}", soft_wrap=True)

    if not console.is_terminal:
        return Report(Conductor(options, on_tick).run())
    with progress:
        return Report(Conductor(options, on_tick).run())


def _line(seen: Seen) -> str:
    in_flight = seen.in_flight[-1] if seen.in_flight else 0
    return (
        f"{seen.ended['right']} runs right, {seen.ended.total() - seen.ended['right']} others, "
        f"{in_flight} requests in flight, {seen.faults.total()} faults, {len(seen.broken)} broken"
    )


def command_line() -> argparse.ArgumentParser:
    """What can be given."""
    parser = argparse.ArgumentParser(
        prog="python -m proof.chaos", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--minutes", type=float, default=30.0, help="for how long runs are begun")
    parser.add_argument("--seed", type=int, help="of all that is drawn; random by default")
    parser.add_argument("--no-guard", action="store_true", help="see what the SDK does by itself")
    parser.add_argument("--no-404s", action="store_true", help="break the network alone")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown too")
    parser.add_argument("--docs", type=Path, metavar="PAGE", help="write the tables into this page")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all figures here")
    parser.add_argument(
        "--sabotage", choices=sorted(SABOTAGE), metavar="NAME",
        help="break the guard too, to see that it is found out: " + ", ".join(sorted(SABOTAGE)),
    )  # fmt: skip
    return parser


def main() -> None:
    """Read the command line, soak, and report."""
    parser = command_line()
    given = parser.parse_args()
    if sys.platform != "linux":
        parser.error("needs Linux, whose /proc says what a process holds")
    seed = random.randrange(10**6) if given.seed is None else given.seed
    console.print(f"seed {seed}")
    options = Options(
        given.minutes * 60,
        seed,
        is_guarded=not given.no_guard,
        has_404s=not given.no_404s,
        sabotage=given.sabotage,
    )
    # An interrupt by another name, so that the processes that were started are ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    report = soak(options)
    report.show()
    if given.markdown:
        console.print(report.markdown(), markup=False, soft_wrap=True)
    if given.json:
        report.write_json(given.json)
    if given.docs:
        report.write_docs(given.docs, datetime.datetime.now(datetime.UTC).date().isoformat())
    sys.exit(bool(report.broken))


if __name__ == "__main__":
    main()
