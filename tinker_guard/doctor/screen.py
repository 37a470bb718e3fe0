"""The command `tinker-guard doctor`: the findings of `tinker_guard.doctor`, as a person reads them.

Imports nothing of the demo, so that it works where no SDK is installed.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console
from rich.text import Text

from tinker_guard.doctor import Finding, Status, examine

if TYPE_CHECKING:
    from collections.abc import Iterable

_PLAIN_WIDTH: Final = 100
_STYLES: Final = {
    Status.OK: "green",
    Status.WARNING: "bold yellow",
    Status.PROBLEM: "bold red",
    Status.SKIPPED: "dim",
}
_STATUS_WIDTH: Final = max(map(len, Status))
_WHAT_WIDTH: Final = len("FIREWORKS_API_KEY")
_DETAIL_AT: Final = _STATUS_WIDTH + _WHAT_WIDTH + 6
_TO_DO_AT: Final = _STATUS_WIDTH + 7
_NARROWEST: Final = 20


def doctor(
    url: Annotated[
        str | None,
        typer.Argument(
            help="The trainer's base URL, as given to the SDK. Without it, TINKER_BASE_URL.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the findings as JSON, for machines.")
    ] = False,
) -> None:
    """Check what a guarded run would meet here: settings, SDKs, gateway and spans.

    Asks the control plane one question and sends the trainer's route one probe, with the key in
    TINKER_API_KEY or FIREWORKS_API_KEY. Never prints a secret. The exit code is 0 if there is no
    problem (warnings are none), 1 otherwise.
    """
    # What the SDKs and the guard log would come between the lines.
    silence = logging.NullHandler()
    logging.getLogger().addHandler(silence)
    try:
        findings = examine(url)
        seen = print_json(findings) if as_json else show(findings, new_console())
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    finally:
        logging.getLogger().removeHandler(silence)
    raise typer.Exit(1 if Status.PROBLEM in (finding.status for finding in seen) else 0)


def new_console() -> Console:
    """The console for what is printed; without a terminal, its lines are plain."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal or a pipe that lacks a character gets a `?`, not a traceback.
        sys.stdout.reconfigure(errors="replace")
    is_sized = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, width=None if is_sized else _PLAIN_WIDTH)


def show(findings: Iterable[Finding], console: Console) -> list[Finding]:
    """Print findings as they come, and in the end how many need a look; returns them."""
    seen: list[Finding] = []
    with console.status("looking around"):
        for finding in findings:
            if not seen or seen[-1].section is not finding.section:
                console.print(*([""] if seen else []), Text(finding.section, "bold"), sep="\n")
            _print(finding, console)
            seen.append(finding)
    console.print("", summary(seen), sep="\n")
    return seen


def _print(finding: Finding, console: Console) -> None:
    line = Text(f"  {finding.status:{_STATUS_WIDTH}}  ", _STYLES[finding.status])
    line.append(f"{finding.what:{_WHAT_WIDTH}}  ", "not bold not dim default")
    _print_wrapped(line, finding.detail, _DETAIL_AT, console)
    if finding.to_do:
        arrow = Text(" " * (_TO_DO_AT - 3) + "-> ", "bold")
        _print_wrapped(arrow, finding.to_do, _TO_DO_AT, console)


def _print_wrapped(begin: Text, text: str, indent: int, console: Console) -> None:
    # Not rich's wrapping, which breaks URLs and fills lines with spaces: both are in the way of
    # somebody who copies a line or pipes it on.
    width = max(console.width - indent, _NARROWEST)
    lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    joined = f"\n{' ' * indent}".join(lines)
    console.print(begin.append(joined, "not bold default"), soft_wrap=True)


def summary(findings: list[Finding]) -> Text:
    """One line on the whole."""
    problems = sum(finding.status is Status.PROBLEM for finding in findings)
    warnings = sum(finding.status is Status.WARNING for finding in findings)
    said_warnings = f"{warnings} warning{'s' if warnings != 1 else ''}"
    if problems:
        text = Text(f"{problems} problem{'s' if problems != 1 else ''}", "bold red")
        return text.append(f", {said_warnings}.", "not bold default")
    text = Text("No problem", "bold green")
    return text.append(f", {said_warnings}." if warnings else ".", "not bold default")


def print_json(findings: Iterable[Finding]) -> list[Finding]:
    """Print findings as one JSON object; returns them."""
    seen = list(findings)
    is_healthy = all(finding.status is not Status.PROBLEM for finding in seen)
    document = {"ok": is_healthy, "findings": [asdict(finding) for finding in seen]}
    typer.echo(json.dumps(document, indent=2))
    return seen
