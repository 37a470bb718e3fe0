"""The command `tinker-guard report`."""

from __future__ import annotations

import io
import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from tinker_guard.report.machine import as_document
from tinker_guard.report.page import page_of
from tinker_guard.report.reading import Notes, read
from tinker_guard.report.screen import summary_of
from tinker_guard.report.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_PLAIN_WIDTH: Final = 120


def _files_to_read(paths: list[Path]) -> list[Path]:
    # Not typer's `exists`, to which `-` is a file like any other.
    for path in paths:
        if str(path) != "-" and not path.exists():
            raise typer.BadParameter(f"{path} does not exist.")
    return paths


def _file_to_write(path: Path | None) -> Path | None:
    # Seen to before a large file has been read.
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise typer.BadParameter(f"{path} cannot be written: no such directory, or a directory.")
    return path


def report(
    files: Annotated[
        list[Path],
        typer.Argument(
            callback=_files_to_read,
            dir_okay=False,
            readable=True,
            metavar="FILE...",
            help="Files of spans: OTLP-JSON, or what the Python SDK's to_json writes; plain or "
            "gzip. `-` is the standard input.",
        ),
    ],
    html: Annotated[
        Path | None,
        typer.Option(
            callback=_file_to_write,
            metavar="PATH",
            help="Also write a page with timelines to this file; it needs nothing from elsewhere.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON instead of the summary.")
    ] = False,
) -> None:
    """Sum up exported spans: races met, time lost and saved, genuine 404s, by job.

    Exit codes: 0 there is a report, 1 nothing could be read, 2 wrong usage.
    """
    notes, tally = Notes(), Tally()
    try:
        with _progress(files) as on_bytes:
            for record in read(files, notes, on_bytes):
                tally.add(record)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if not (notes.guard_spans or notes.other_spans):
        for broken in notes.first_broken:
            typer.echo(f"{broken.place} of {broken.file}: {broken.reason}", err=True)
        typer.echo(
            f"tinker-guard report: no span could be read from {', '.join(notes.files)}.", err=True
        )
        raise typer.Exit(1)
    made = tally.report()
    if as_json:
        typer.echo(json.dumps(as_document(made, notes), indent=2))
    else:
        _console().print(summary_of(made, notes))
    if html is not None:
        try:
            html.write_text(page_of(made, notes), encoding="utf-8")
        except OSError as error:
            typer.echo(f"tinker-guard report: could not write {html}: {error.strerror}", err=True)
            raise typer.Exit(2) from None


def _console() -> Console:
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal or a pipe that lacks a character gets a `?`, not a traceback.
        sys.stdout.reconfigure(errors="replace")
    is_sized = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, width=None if is_sized else _PLAIN_WIDTH)


@contextmanager
def _progress(files: Sequence[Path]) -> Iterator[Callable[[int], None]]:
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
