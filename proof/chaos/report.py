"""Prints what a soak has shown, and writes it into the documentation."""

from __future__ import annotations

import json
import statistics
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.markdown import Markdown

from proof.chaos.faults import FAULTS, PlaneFault
from proof.chaos.judge import (
    ALLOWED,
    EXCUSED,
    STRICT,
    judge_given_up,
    judge_trends,
    share_of,
    trend_of,
)
from testkit.pages import put_between

if TYPE_CHECKING:
    from pathlib import Path

    from proof.chaos.conduct import Seen
    from proof.chaos.judge import Trend

console: Final = Console()

LONG_ENOUGH: Final = 170.0
"""Seconds without which a process is still warming up; then only what is left is judged."""
_WATCHED: Final = ("steady", "doubtful")
_UNITS: Final = {"rss": "memory, MiB", "spans": "open spans", "pool": "threads of pyqwest"}
_BEGIN: Final = "<!-- written by python -m proof.chaos --docs -->"
_END: Final = "<!-- end -->"


class Report:
    """Figures of one soak, and the verdict on it.

    Args:
        seen: What was seen.
    """

    def __init__(self, seen: Seen) -> None:
        self.seen = seen
        self.trends: dict[str, dict[str, Trend]] = {}
        self.broken = list(seen.broken)
        for who in _WATCHED:
            looks = seen.looks[who]
            # What is held while lanes end one by one says nothing.
            end = looks[0]["at"] + seen.options.seconds if looks else 0.0
            while_running = [look for look in looks if look["at"] <= end]
            if len(while_running) < 10:
                self.broken.append(f"{who}: was looked at only {len(while_running)} times")
                continue
            self.trends[who] = {name: trend_of(name, while_running) for name in ALLOWED}
            if seen.options.seconds >= LONG_ENOUGH:
                self.broken += judge_trends(who, self.trends[who])
            if who not in seen.left:
                self.broken.append(f"{who}: did not say what was left")
        self.given_up = sum(seen.given_up[kind] for kind in STRICT)
        self.strict = sum(seen.kinds[kind] for kind in STRICT)
        self.broken += judge_given_up(self.given_up, self.strict)
        self.broken += [f"never happened: {name}" for name in never_met(seen)]
        if not seen.ended["right"]:
            self.broken.append("no run ended right")

    def counts(self) -> dict[str, int]:
        """What the guard did, over all processes that lived to tell it."""
        total: dict[str, int] = {}
        for left in self.seen.left.values():
            for name, count in left["counts"].items():
                total[name] = total.get(name, 0) + count
        return dict(sorted(total.items()))

    def rows(self) -> list[tuple[str, str]]:
        """Everything that is counted, for people."""
        seen = self.seen
        asked = [look["requests"] for look in seen.looks["steady"]] or [0.0]
        busy = seen.in_flight[len(seen.in_flight) // 10 :] or [0]
        rows = [
            ("time, runs to their end included", f"{seen.seconds / 60:.1f} min"),
            ("requests", f"{seen.requests:,} ({seen.requests / seen.seconds:.0f} a second)"),
            ("in flight at the gateway", f"{statistics.mean(busy):.0f}, {max(busy)} at most"),
            (
                "in flight in the steady client",
                f"{statistics.mean(asked):.0f}, {max(asked):.0f} at most",
            ),
            ("pieces of work applied, samples drawn", f"{seen.applied:,}, {seen.sampled:,}"),
            ("404s of the gateway", f"{seen.refused:,}"),
            ("slowest run", f"{seen.slowest_run:.0f} s"),
            (
                "runs that must end right, given up by the SDK",
                share_of(self.given_up, self.strict),
            ),
        ]
        rows += [(f"runs: {how}", f"{count:,}") for how, count in seen.ended.most_common()]
        rows += [(f"guard: {what}", f"{count:,}") for what, count in self.counts().items()]
        longest: dict[str, float] = {}
        for left in seen.left.values():
            for outcome, seconds in left["longest"].items():
                longest[outcome] = max(seconds, longest.get(outcome, 0.0))
        rows += [
            (f"longest request that ended {outcome}", f"{seconds:.1f} s")
            for outcome, seconds in sorted(longest.items())
        ]
        rows += [
            (
                f"{who}: closes that hung, pollers cancelled again (cpython#86296)",
                f"{left['hung_closes']}, {left['lost_cancellations']}",
            )
            for who, left in seen.left.items()
        ]
        return rows

    def show(self) -> None:
        """Print all of it."""
        console.print(f"chaos, seed {self.seen.options.seed}")
        console.print(Markdown(self.markdown()))
        for error, count in self.seen.errors.most_common():
            console.print(f"{count} x {error}", markup=False)
        for what in self.broken[:40]:
            console.print(f"broken: {what}", style="red", markup=False, soft_wrap=True)
        if len(self.broken) > 40:
            console.print(f"... and {len(self.broken) - 40} more", style="red")

    def markdown(self) -> str:
        """All figures as tables."""
        faults = [(str(f), f"{self.seen.faults[f]:,}") for kind in FAULTS for f in kind]
        lines = ["| | |", "|---|---|", *(f"| {what} | {figure} |" for what, figure in self.rows())]
        lines += ["", "| fault | times |", "|---|---|"]
        lines += [f"| {fault} | {times} |" for fault, times in faults]
        lines += [
            "",
            "| process | of | at 10 % | at 50 % | at the end | per hour | allowed at the end |",
        ]
        lines += ["|---|---|---|---|---|---|---|"]
        lines += [
            f"| {who} | {' | '.join(_cells(name, trend))} |"
            for who, trends in self.trends.items()
            for name, trend in trends.items()
        ]
        lines += [
            "",
            f"For each close that hung, {EXCUSED} tasks and {EXCUSED} connections may be left.",
        ]
        lines += ["", f"Broken invariants: {len(self.broken)}."]
        return "\n".join(lines)

    def write_docs(self, page: Path, date: str) -> None:
        """Put the tables into a page, in the place of those of the last time."""
        options = self.seen.options
        command = f"python -m proof.chaos --minutes {options.seconds / 60:g} --seed {options.seed}"
        put_between(page, _BEGIN, _END, f"\n`{command}`, {date}:\n\n{self.markdown()}\n")

    def write_json(self, path: Path) -> None:
        """Write the figures, and every look at the processes, to a file."""
        figures: dict[str, Any] = {
            "figures": dict(self.rows()),
            "faults": self.seen.faults,
            "errors": self.seen.errors,
            "broken": self.broken,
            "looks": self.seen.looks,
            "left": self.seen.left,
        }
        path.write_text(json.dumps(figures, indent=1))


def never_met(seen: Seen) -> list[str]:
    """What did not happen, though it should have: otherwise the soak shows nothing about it."""
    is_asking = seen.options.is_guarded and seen.options.has_404s
    kinds = [kind for kind in FAULTS if is_asking or kind is not PlaneFault]
    missed = [str(fault) for kind in kinds for fault in kind if not seen.faults[fault]]
    if is_asking:
        counts = [item for left in seen.left.values() for item in left["counts"].items()]
        told = {name for name, count in counts if count}
        wanted = (
            "request recovered",
            "verdict routing_race, job_running",
            "verdict routing_race, trainer_reached",
            "resend",
            "warmup",
            "question",
            "probe not_found",
            "probe failed",
        )
        missed += [name for name in wanted if name not in told]
        missed += ["a genuine 404"] if not seen.ended["genuine 404 handed back"] else []
    return missed


def _cells(name: str, trend: Trend) -> list[str]:
    figures = (trend.early, trend.middle, trend.late)
    return [
        _UNITS.get(name, name),
        *(f"{figure:.0f}" for figure in figures),
        f"{trend.per_hour:+.1f}",
        f"{trend.limit:.0f}",
    ]
