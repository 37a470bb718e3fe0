"""The command `tinker-guard doctor`: shows the findings of `tinker_guard.cli.doctor`.

Imports no extra, so that it works in a bare install, and without an SDK.
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from tinker_guard.cli.doctor import Finding, Status, examine
from tinker_guard.cli.terminal import Spinner, Terminal

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

_STYLES: Final = {
    Status.OK: ("green",),
    Status.WARNING: ("bold", "yellow"),
    Status.PROBLEM: ("bold", "red"),
    Status.SKIPPED: ("dim",),
}
_STATUS_WIDTH: Final = max(map(len, Status))
_WHAT_WIDTH: Final = len("FIREWORKS_API_KEY")
_DETAIL_AT: Final = _STATUS_WIDTH + _WHAT_WIDTH + 6
_TO_DO_AT: Final = _STATUS_WIDTH + 7


def doctor(arguments: argparse.Namespace) -> int:
    """Check settings, SDKs, gateway and spans for a guarded run."""
    # Log lines of the SDKs and the guard would appear between the findings.
    silence = logging.NullHandler()
    logging.getLogger().addHandler(silence)
    try:
        findings = examine(arguments.url)
        seen = print_json(findings) if arguments.json else show(findings, Terminal(sys.stdout))
    finally:
        logging.getLogger().removeHandler(silence)
    return 1 if Status.PROBLEM in (finding.status for finding in seen) else 0


def show(findings: Iterable[Finding], terminal: Terminal) -> list[Finding]:
    """Print each finding at once, then the number that need attention; returns the findings."""
    seen: list[Finding] = []
    with Spinner(lambda _: "looking around") as spinner:
        for finding in findings:
            with spinner.paused():
                if not seen or seen[-1].section is not finding.section:
                    if seen:
                        terminal.print()
                    terminal.print(terminal.styled(finding.section, "bold"))
                _print(finding, terminal)
            seen.append(finding)
    terminal.print()
    terminal.print(summary(seen, terminal))
    return seen


def _print(finding: Finding, terminal: Terminal) -> None:
    status = terminal.styled(f"{finding.status:{_STATUS_WIDTH}}", *_STYLES[finding.status])
    begin = f"  {status}  {finding.what:{_WHAT_WIDTH}}  "
    terminal.print_wrapped(begin, finding.detail, _DETAIL_AT)
    if finding.to_do:
        arrow = terminal.styled("->", "bold")
        terminal.print_wrapped(" " * (_TO_DO_AT - 3) + f"{arrow} ", finding.to_do, _TO_DO_AT)


def summary(findings: list[Finding], terminal: Terminal) -> str:
    """The last line, a summary."""
    problems = sum(finding.status is Status.PROBLEM for finding in findings)
    warnings = sum(finding.status is Status.WARNING for finding in findings)
    said_warnings = f"{warnings} warning{'s' if warnings != 1 else ''}"
    if problems:
        said = terminal.styled(f"{problems} problem{'s' if problems != 1 else ''}", "bold", "red")
        return f"{said}, {said_warnings}."
    said = terminal.styled("No problem", "bold", "green")
    return f"{said}, {said_warnings}." if warnings else f"{said}."


def print_json(findings: Iterable[Finding]) -> list[Finding]:
    """Print findings as one JSON object; returns them."""
    seen = list(findings)
    is_healthy = all(finding.status is not Status.PROBLEM for finding in seen)
    document = {"ok": is_healthy, "findings": [asdict(finding) for finding in seen]}
    sys.stdout.write(f"{json.dumps(document, indent=2)}\n")
    return seen
