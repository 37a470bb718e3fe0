"""What every benchmark shares: rows of the table of goals, statistics, and how both are shown."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import platform
import re
import subprocess
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import httpx
from rich.console import Console
from rich.table import Table

from tinker_guard import __version__
from tinker_guard.core.routes import ROUTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from types import ModuleType

console: Final = Console(width=120)


@dataclass(frozen=True)
class Row:
    """One line of the table of goals.

    Args:
        what: What is measured.
        goal: The goal in words.
        peer: The best peer's figure, measured in this very run.
        ours: The guard's figure.
        ratio: Ours over the peer's, where both are numbers that can be compared.
        ok: Whether the goal is reached.
    """

    what: str
    goal: str
    peer: str
    ours: str
    ratio: float | None
    ok: bool


WORSE: Final = 1.25
"""How many times the recorded ratio counts as worse: those of a busy machine differ by a tenth."""


def machine() -> dict[str, str | int | None]:
    """What machine this is, so that a reader knows what figures of it can be compared with."""
    model = None
    with suppress(OSError):
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        model = found[1] if found else None
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": model,
        "cores": os.cpu_count(),
    }


def committed(path: Path) -> Mapping[str, Any] | None:
    """What a file of figures held when it was last committed; None if it never was."""
    folder = path.resolve().parent
    shown = subprocess.run(  # noqa: S603 - no shell, and nothing of it comes from elsewhere
        ["git", "show", f"HEAD:./{path.name}"],  # noqa: S607
        cwd=folder,
        capture_output=True,
        check=False,
    )
    document: Mapping[str, Any] | None = json.loads(shown.stdout) if not shown.returncode else None
    return document


def worse_than(before: Mapping[str, Any], rows: Iterable[Row]) -> list[tuple[str, str, str]]:
    """The goals whose ratio to the peer is worse than recorded, or which are missed since.

    Args:
        before: What `write_json` wrote.
        rows: What was measured now.
    """
    recorded = {goal["what"]: goal for goal in before["goals"]}
    worse = []
    for row in rows:
        goal = recorded.get(row.what)
        if goal is None:
            continue
        is_dearer = row.ratio is not None and goal["ratio"] and row.ratio > WORSE * goal["ratio"]
        if is_dearer or (goal["ok"] and not row.ok):
            worse.append(
                (row.what, _figure(goal["ours"], goal["ratio"]), _figure(row.ours, row.ratio))
            )
    return worse


def _figure(ours: str, ratio: float | None) -> str:
    return ours if ratio is None else f"{ours} ({ratio:.2g})"


def show_worse(path: Path, before: Mapping[str, Any] | None, rows: Sequence[Row]) -> None:
    """Print what has become worse since figures were last committed."""
    if before is None:
        console.print(f"{path} was never committed: nothing to compare with.")
        return
    worse = worse_than(before, rows)
    if not worse:
        console.print(f"Nothing is worse than in the committed {path}.")
        return
    table(f"Worse than in the committed {path}", ("what", "then", "now"), worse)


def ratio_of(ours: float, peer: float) -> float | None:
    """Ours over the peer's; None where there is nothing to divide by."""
    return ours / peer if peer > 0 and math.isfinite(peer) else None


@contextmanager
def unlogged() -> Iterator[None]:
    """Log nothing: there would be a line for each of thousands of races."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def spread(values: Sequence[float]) -> str:
    """Median, and the range that the middle half lies in, such as `3.1 (2.9-3.4)`."""
    ordered = sorted(values)
    quarter = len(ordered) // 4
    return f"{median(ordered):.3g} ({ordered[quarter]:.3g}-{ordered[-1 - quarter]:.3g})"


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; columns after the first are right-aligned."""
    shown = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        shown.add_column(column, justify="right" if index else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(str(cell) for cell in row))
    console.print(shown)


def show_goals(rows: Iterable[Row]) -> None:
    """Print the table of goals."""
    table(
        "Goals",
        ("what", "goal", "peer", "ours", "ratio", ""),
        (
            (
                row.what,
                row.goal,
                row.peer,
                row.ours,
                "" if row.ratio is None else f"{row.ratio:.2g}",
                "[green]ok[/green]" if row.ok else "[red]miss[/red]",
            )
            for row in rows
        ),
    )


def markdown(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(str(cell) for cell in line) + " |\n" for line in lines)


def write_json(path: Path, rows: Iterable[Row], details: Mapping[str, Any]) -> None:
    """Write the goals, and everything that was measured, to a file."""
    document = {
        "tinker_guard": __version__,
        "tinker": version("tinker"),
        "httpx": httpx.__version__,
        "opentelemetry-api": version("opentelemetry-api"),
        "machine": machine(),
        "goals": [asdict(row) for row in rows],
        **details,
    }
    path.write_text(json.dumps(document, indent=2, default=asdict) + "\n")


def run_benchmarks(description: str | None, *benchmarks: ModuleType) -> None:
    """Measure, print and write, as the command line says.

    Args:
        description: What `--help` begins with; its first line counts.
        benchmarks: Modules that can `measure` and `show`. Some have `rows` for the table of goals,
            some write pages (`write_docs`) or `as_markdown`.
    """
    modules: tuple[Any, ...] = benchmarks
    arguments = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    arguments.add_argument("--json", type=Path, metavar="PATH", help="write the figures here")
    arguments.add_argument(
        "--record",
        type=Path,
        metavar="PATH",
        help="write the goals here, and say what is worse than in the one that was committed",
    )
    arguments.add_argument("--docs", type=Path, metavar="DIR", help="write the pages here")
    arguments.add_argument("--markdown", action="store_true", help="print Markdown tables too")
    given = arguments.parse_args()
    rows: list[Row] = []
    details: dict[str, Any] = {}
    for module in modules:
        # Some use the same names of jobs, each with a clock of its own.
        ROUTES.clear()
        found = getattr(module, "measure_all", module.measure)()
        module.show(found)
        rows += module.rows(found) if hasattr(module, "rows") else []
        details[module.__spec__.name.rpartition(".")[2]] = found
        if given.docs and hasattr(module, "write_docs"):
            module.write_docs(given.docs, found)
        if given.markdown and hasattr(module, "as_markdown"):
            console.print(module.as_markdown(found), markup=False, soft_wrap=True)
    show_goals(rows)
    if given.json:
        write_json(given.json, rows, details)
    if given.record:
        show_worse(given.record, committed(given.record), rows)
        write_json(given.record, rows, {})
