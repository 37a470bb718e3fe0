"""The command `tinker-guard report`."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from tinker_guard.cli.app import USAGE_ERROR, say
from tinker_guard.cli.console import new_console
from tinker_guard.cli.report.machine import as_document
from tinker_guard.cli.report.page import page_of
from tinker_guard.cli.report.reading import Notes, read
from tinker_guard.cli.report.screen import summary_of
from tinker_guard.cli.report.tally import Tally

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

_PLAIN_WIDTH: Final = 120


def report(arguments: argparse.Namespace) -> int:
    """Sum up exported spans: races, time lost and saved, genuine 404s; returns the exit code."""
    files: list[Path] = arguments.files
    notes, tally = Notes(), Tally()
    with progress(files) as on_bytes:
        for record in read(files, notes, on_bytes):
            tally.add(record)
    if not (notes.guard_spans or notes.other_spans):
        for broken in notes.first_broken:
            say(f"{broken.place} of {broken.file}: {broken.reason}")
        say(f"tinker-guard report: no span could be read from {', '.join(notes.files)}.")
        return 1
    made = tally.report()
    if arguments.json:
        sys.stdout.write(f"{json.dumps(as_document(made, notes), indent=2)}\n")
    else:
        new_console(_PLAIN_WIDTH).print(summary_of(made, notes))
    if arguments.html is not None:
        try:
            arguments.html.write_text(page_of(made, notes), encoding="utf-8")
        except OSError as error:
            say(f"tinker-guard report: could not write {arguments.html}: {error.strerror}")
            return USAGE_ERROR
    return 0


@contextmanager
def progress(files: Sequence[Path]) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr, if that is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    is_known = all(str(file) != "-" and file.is_file() for file in files)
    total = sum(file.stat().st_size for file in files) if is_known else None
    with Progress(
        TextColumn("reading spans"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as progress:
        task = progress.add_task("", total=total)
        yield lambda size: progress.advance(task, size)
