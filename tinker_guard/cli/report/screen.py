"""The report on a terminal."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from rich import box
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tinker_guard.cli.report.race import as_text
from tinker_guard.cli.report.records import FURTHER_PROCESSES, OTHER
from tinker_guard.cli.report.runs import END_WORDS, JobName
from tinker_guard.cli.report.tally import DEFINITIONS
from tinker_guard.cli.report.words import counts, duration, moment, plural, rough

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

    from tinker_guard.cli.report.reading import Notes
    from tinker_guard.cli.report.runs import Run
    from tinker_guard.cli.report.tally import Job, Recovery, Report, Sums

_JOBS_SHOWN: Final = 20
_RUNS_SHOWN: Final = 10


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
    runs, jobs = report.runs, report.jobs
    if runs:
        shown = runs[:_RUNS_SHOWN]
        parts += ["", Text("By run", "bold"), _runs(shown), "", *map(_evidence, shown)]
        if len(runs) > len(shown):
            more = plural(len(runs) - len(shown), "more run")
            parts.append(Text(f"and {more}, which --json shows", "dim"))
    if len(jobs) > 1:
        parts += ["", Text("By job", "bold"), _jobs(jobs[:_JOBS_SHOWN])]
        if len(jobs) > _JOBS_SHOWN:
            more = plural(len(jobs) - _JOBS_SHOWN, "more job")
            parts.append(Text(f"and {more}, which --json shows", "dim"))
    if report.slowest:
        parts += ["", Text("Slowest recoveries", "bold"), _slowest(report.slowest)]
        parts += ["", Text("The slowest of them over time", "bold"), _Race(report.slowest[0])]
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
    if report.all_jobs.requests:
        text.append(f"\n\n{sentence_of(report)}", "bold")
    if not notes.guard_spans:
        text.append("\nThere is nothing to report: is the guard installed in what exports them?")
    return text


def sentence_of(report: Report) -> str:
    """A summary in one sentence."""
    sums = report.all_jobs
    ends = Counter(run.ended.kind for run in report.runs)
    others = [
        f"{plural(ends[kind], 'run')} {END_WORDS[kind]}"
        for kind in ("true_404", "unverified")
        if ends[kind]
    ]
    if not sums.false_404s:
        runs = f" of {plural(sums.runs, 'run')}" if sums.runs else ""
        begin = [f"No false 404 was met in {plural(sums.requests, 'request')}{runs}"]
    else:
        met = f"{sums.runs_met:,} of " if sums.runs_met < sums.runs else ""
        lost = ends["race"]
        fate = f"{lost:,} {'was' if lost == 1 else 'were'} lost" if lost else "none was lost"
        begin = [
            f"{met}{plural(sums.runs, 'run')} met {plural(sums.false_404s, 'false 404')}",
            f"{fate} to them" if others else fate,
            f"{rough(sums.waited)} were spent waiting",
        ]
        if not lost and (gave_up := sums.outcomes["exhausted"]):
            others.insert(0, f"{plural(gave_up, 'request')} gave up on a race")
    return "; ".join([*begin, *others]) + "."


def jobs_said(report: Report) -> str:
    """The number of jobs, or the name of a single one."""
    if len(report.jobs) == 1:
        return f"job {report.jobs[0].name}"
    return plural(sum(job.name.job is not None for job in report.jobs), "job")


def figures_of(sums: Sums) -> list[tuple[str, str, str]]:
    """The main figures, each with its name and a remark."""
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
            "false 404s",
            f"{sums.false_404s:,}",
            f"in {sums.runs_met:,} of {plural(sums.runs, 'run')}; "
            f"{duration(sums.waited)} spent waiting",
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


RUN_COLUMNS: Final = ("run", "how it ended", "from (UTC)", "lasted", "false 404s", "waited")


def run_name(run: Run) -> str:
    """Its job, and the process if spans name one."""
    return f"{run.job}, process {run.process}" if run.process.is_known else str(run.job)


def run_cells(run: Run) -> tuple[str, ...]:
    """One row of the table by run."""
    return (
        run_name(run),
        ending(run),
        moment(run.start),
        duration(run.end - run.start),
        f"{run.false_404s:,}",
        duration(run.waited.length),
    )


def ending(run: Run) -> str:
    """How a run ended, in a few words."""
    end = run.ended
    words = END_WORDS[end.kind]
    is_of_404 = end.kind in ("true_404", "unverified") and end.last is not None
    return f"{words} ({end.last.reason or OTHER})" if is_of_404 and end.last else words


def evidence_of(run: Run) -> str:
    """The spans that show how a run ended, in words."""
    kind, last, is_alone = run.ended
    if run.process == FURTHER_PROCESSES:
        return "these are too many to be told apart"
    if last is None:
        return "no request of it but signs of life is in the file"
    at = moment(last.end)
    if kind == "finished":
        return (
            f"its session was closed at {at}, after its last request; with which status, spans "
            "do not say"
        )
    if kind == "unknown":
        error = f" ({last.error})" if last.error else ""
        return f"its last request, {last.name}, ended at {at}: {last.outcome}{error}"
    caveat = (
        "; no request that went well is in the file, so that later ones may be missing too"
        if is_alone
        else ""
    )
    return (
        f"{last.name} was handed its 404 at {at} ({last.outcome}), and no request but signs of "
        f"life followed{caveat}"
    )


def _runs(runs: Sequence[Run]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for column in RUN_COLUMNS:
        is_text = column in ("run", "how it ended")
        table.add_column(
            column.replace("false ", "false\n"),
            overflow="fold",
            justify="left" if is_text or column.startswith("from") else "right",
            no_wrap=column in ("lasted", "false 404s", "waited"),
            min_width=10 if column.startswith("from") else None,
        )
    for run in runs:
        table.add_row(*map(Text, run_cells(run)))
    return table


def _evidence(run: Run) -> Text:
    return Text(f"{run_name(run)}: {evidence_of(run)}.", "dim")


class _Race:
    """The picture of one race, as wide as the terminal."""

    def __init__(self, recovery: Recovery) -> None:
        self._recovery = recovery

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in as_text(self._recovery, options.max_width):
            yield Text(line, no_wrap=True)


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
"""The rows that fit on a terminal."""


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
        str(JobName(request.account, request.job)),
        moment(request.start, fraction=True),
        duration(recovery.lost) + (" (whole)" if recovery.is_whole else ""),
        f"{request.resends:,}",
        request.trace_id,
    )


def _slowest(recoveries: Sequence[Recovery]) -> Table:
    # Without the trace id, which does not fit on a terminal.
    table = _table(*RECOVERY_COLUMNS[:-1], texts=2)
    for recovery in recoveries:
        table.add_row(*map(Text, recovery_cells(recovery)[:-1]))
    return table


def broken_lines(notes: Notes) -> list[str]:
    """The unreadable parts: the first few by place, the rest as a number."""
    lines = [f"{place} of {file}: {reason}" for file, place, reason in notes.first_broken]
    more = notes.broken - len(lines)
    return [*lines, f"and {more:,} more"] if more else lines


def _broken(notes: Notes) -> list[RenderableType]:
    head = f"{plural(notes.broken, 'line or span', 'lines or spans')} could not be read"
    return [
        Text(head, "bold yellow"),
        *(Padding(Text(line), (0, 0, 0, 2)) for line in broken_lines(notes)),
    ]
