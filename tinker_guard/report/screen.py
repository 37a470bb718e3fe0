"""The report at a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich import box
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tinker_guard.report.tally import DEFINITIONS
from tinker_guard.report.words import counts, duration, moment, plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from tinker_guard.report.reading import Notes
    from tinker_guard.report.tally import Job, Recovery, Report, Sums

_JOBS_SHOWN: Final = 20


def summary_of(report: Report, notes: Notes) -> RenderableType:
    """Everything that is printed."""
    parts: list[RenderableType] = [_head(report, notes)]
    if notes.guard_spans:
        parts += _sums(report)
    if notes.broken:
        parts += ["", *_broken(notes)]
    return Group(*parts)


def _sums(report: Report) -> Sequence[RenderableType]:
    parts: list[RenderableType] = ["", _figures(report)]
    jobs = report.jobs
    if len(jobs) > 1:
        parts += ["", Text("By job", "bold"), _jobs(jobs[:_JOBS_SHOWN])]
        if len(jobs) > _JOBS_SHOWN:
            more = plural(len(jobs) - _JOBS_SHOWN, "more job")
            parts.append(Text(f"and {more}, which --json shows", "dim"))
    if report.slowest:
        parts += ["", Text("Slowest recoveries", "bold"), _slowest(report.slowest)]
    parts += ["", Text("What the figures mean", "bold")]
    for name, meaning in DEFINITIONS.items():
        parts.append(Text(f"{name}: ", "dim").append(meaning, "dim"))
    return parts


def _head(report: Report, notes: Notes) -> Text:
    start, end = report.timeline.bounds
    text = Text()
    text.append(f"{', '.join(notes.files)}: ", "bold")
    text.append(f"{plural(notes.guard_spans, 'span')} of the guard")
    if notes.other_spans:
        text.append(f", {notes.other_spans:,} others")
    if start:
        text.append(f"\n{moment(start)} to {moment(end)} UTC, {jobs_said(report)}")
    if not notes.guard_spans:
        text.append("\nThere is nothing to report: is the guard installed in what exports them?")
    return text


def jobs_said(report: Report) -> str:
    """How many jobs there are, or which, if there is one."""
    if len(report.jobs) == 1:
        return f"job {report.jobs[0].name}"
    return plural(sum(job.name.job is not None for job in report.jobs), "job")


def figures_of(sums: Sums) -> list[tuple[str, str, str]]:
    """The figures that count, each with its name and a remark."""
    outcomes = sums.outcomes
    whole = (
        f"; {sums.counted_whole:,} counted whole, the resend is not in the file"
        if sums.counted_whole
        else ""
    )
    return [
        (
            "requests",
            f"{sums.requests:,}",
            counts({name: outcomes[name] for name in ("ok", "error", "cancelled", "other")}),
        ),
        (
            "races met",
            f"{sums.races_met:,}",
            f"recovered {sums.races_recovered:,}, exhausted {outcomes['exhausted']:,}; "
            f"{plural(sums.resends, 'resend')}",
        ),
        (
            "time lost to races",
            duration(sums.lost),
            f"{duration(sums.lost_by_the_clock)} by the clock{whole}",
        ),
        (
            "crashes avoided",
            f"{sums.crashes_avoided:,}",
            f"in {sums.runs_saved:,} of {plural(sums.runs, 'run')}",
        ),
        ("time saved", duration(sums.saved), "an estimate, see below"),
        (
            "warmups",
            f"{sums.warmups:,}",
            f"{duration(sums.warmup_wait)} in all, slowest {duration(sums.warmup_slowest)}; "
            f"{sums.warmups_met_404:,} met 404s ({duration(sums.warmup_wait_after_404)}), "
            f"{sums.warmups_refused:,} refused",
        ),
        ("genuine not-founds", f"{outcomes['not_found']:,}", counts(sums.not_found)),
        ("unverified 404s", f"{outcomes['unverified']:,}", counts(sums.unverified)),
        ("questions asked", f"{sums.questions.total():,}", counts(sums.questions)),
    ]


def _figures(report: Report) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True, style="bold")
    table.add_column(style="dim")
    for row in figures_of(report.all_jobs):
        table.add_row(*map(Text, row))
    return table


def _table(*columns: str, texts: int = 1) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for at, column in enumerate(columns):
        if at < texts:
            table.add_column(column, overflow="fold")
        else:
            table.add_column(column, justify="right", no_wrap=True)
    return table


JOB_COLUMNS: Final = (
    "job",
    "requests",
    "races met",
    "recovered",
    "exhausted",
    "time lost",
    "crashes avoided",
    "time saved",
    "warmup wait",
    "genuine not-found",
    "unverified",
    "errors",
)


def job_cells(job: Job) -> tuple[str, ...]:
    """One row of the table by job."""
    sums = job.sums
    return (
        str(job.name),
        f"{sums.requests:,}",
        f"{sums.races_met:,}",
        f"{sums.races_recovered:,}",
        f"{sums.outcomes['exhausted']:,}",
        duration(sums.lost),
        f"{sums.crashes_avoided:,}",
        duration(sums.saved),
        duration(sums.warmup_wait),
        f"{sums.outcomes['not_found']:,}",
        f"{sums.outcomes['unverified']:,}",
        f"{sums.outcomes['error']:,}",
    )


_JOB_COLUMNS_SHOWN: Final = (
    "job",
    "requests",
    "races met",
    "recovered",
    "time lost",
    "crashes avoided",
    "time saved",
    "genuine not-found",
)
"""As many as a terminal has room for."""


def _jobs(jobs: Sequence[Job]) -> Table:
    table = _table(*(column.replace(" ", "\n") for column in _JOB_COLUMNS_SHOWN))
    for job in jobs:
        cells = dict(zip(JOB_COLUMNS, job_cells(job), strict=True))
        table.add_row(*(Text(cells[column]) for column in _JOB_COLUMNS_SHOWN))
    return table


RECOVERY_COLUMNS: Final = ("request", "job", "at (UTC)", "time lost", "resends", "trace")


def recovery_cells(recovery: Recovery) -> tuple[str, ...]:
    """One row of the table of slowest recoveries."""
    request = recovery.request
    return (
        request.name,
        f"{request.account or '?'}/{request.job or '?'}",
        moment(request.start, fraction=True),
        duration(recovery.lost) + (" (whole)" if recovery.is_whole else ""),
        f"{request.resends:,}",
        request.trace_id,
    )


def _slowest(recoveries: Sequence[Recovery]) -> Table:
    # Without the trace, which a terminal has no room for.
    table = _table(*RECOVERY_COLUMNS[:-1], texts=2)
    for recovery in recoveries:
        table.add_row(*map(Text, recovery_cells(recovery)[:-1]))
    return table


def broken_lines(notes: Notes) -> list[str]:
    """What could not be read: the first few by place, the rest summed up."""
    lines = [f"{place} of {file}: {reason}" for file, place, reason in notes.first_broken]
    more = notes.broken - len(lines)
    return [*lines, f"and {more:,} more"] if more else lines


def _broken(notes: Notes) -> list[RenderableType]:
    head = f"{plural(notes.broken, 'line or span', 'lines or spans')} could not be read"
    return [
        Text(head, "bold yellow"),
        *(Padding(Text(line), (0, 0, 0, 2)) for line in broken_lines(notes)),
    ]
