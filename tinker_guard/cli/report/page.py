"""The report as one self-contained HTML page without scripts.

The content of spans is not trusted: all text is escaped with `html.escape`, and as a second
defence the page's own policy forbids scripts and requests.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

from tinker_guard.cli.report.race import KINDS, REQUEST, lanes_of, said
from tinker_guard.cli.report.runs import JobName
from tinker_guard.cli.report.screen import (
    JOB_COLUMNS,
    RECOVERY_COLUMNS,
    RUN_COLUMNS,
    broken_lines,
    evidence_of,
    figures_of,
    job_cells,
    jobs_said,
    recovery_cells,
    run_cells,
    sentence_of,
)
from tinker_guard.cli.report.tally import DEFINITIONS
from tinker_guard.cli.report.words import bar_width, counts, duration, moment, plural

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from tinker_guard.cli.report.race import Mark
    from tinker_guard.cli.report.reading import Notes
    from tinker_guard.cli.report.runs import Run
    from tinker_guard.cli.report.tally import Job, Recovery, Report, Sums
    from tinker_guard.cli.report.timeline import Bar, Timeline

_TIMELINES: Final = 30
"""How many jobs are drawn, the most eventful first."""
_ROWS: Final = 200
"""How many jobs the table shows."""

_LANES: Final = {
    "requests": "requests",
    "warmups": "warmups",
    "recovered": "races recovered",
    "exhausted": "races exhausted",
    "job_gone": "404: job gone",
    "trainer_404": "404 of the trainer",
    "unverified": "404 unverified",
    "error": "errors",
}
"""The lanes of a timeline, in the order of drawing."""


def page_of(report: Report, notes: Notes) -> str:
    """The whole page."""
    files = ", ".join(notes.files)
    body = [
        _header(report, notes),
        _cards(report.all_jobs),
        _section("Over time", _timeline(report.timeline, jobs_said(report))),
    ]
    if report.runs:
        body.insert(2, _section("By run", _runs(report.runs)))
    if len(report.jobs) > 1:
        shown = report.jobs[:_TIMELINES]
        body.append(
            _section("Each job over time", "".join(map(_job, shown)), _of(shown, report.jobs))
        )
        rows = report.jobs[:_ROWS]
        table = _table("Figures by job", JOB_COLUMNS, map(job_cells, rows))
        body.append(_section("By job", table, _of(rows, report.jobs)))
    if report.slowest:
        table = _table(
            "The slowest recoveries",
            RECOVERY_COLUMNS,
            map(recovery_cells, report.slowest),
            texts=(0, 1),
        )
        body.append(_section("Slowest recoveries", _race(report.slowest[0]), table))
    figures = _table(
        "All figures", ("what", "", "of it"), figures_of(report.all_jobs), texts=(0, 2)
    )
    meanings = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(meaning)}</dd>"
        for name, meaning in DEFINITIONS.items()
    )
    body += [
        _section("All figures", figures),
        _section("What the figures mean", f"<dl>{meanings}</dl>"),
    ]
    if notes.broken:
        lines = "".join(f"<li>{escape(line)}</li>" for line in broken_lines(notes))
        what = plural(notes.broken, "line or span", "lines or spans")
        body.append(_section(f"{what} could not be read", f"<ul>{lines}</ul>"))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8" />\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\" />\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1" />\n'
        '<meta name="color-scheme" content="light dark" />\n'
        f"<title>tinker_guard: {escape(files)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{''.join(body)}</main>\n</body>\n</html>\n"
    )


def _header(report: Report, notes: Notes) -> str:
    start, end = report.timeline.bounds
    lines = [
        f"{', '.join(notes.files)}: {plural(notes.guard_spans, 'span')} of the guard, "
        f"{notes.other_spans:,} others"
    ]
    if start:
        lines.append(f"{moment(start)} to {moment(end)} UTC, {jobs_said(report)}")
        if report.all_jobs.requests:
            lines.insert(0, sentence_of(report))
    else:
        lines.append("There is nothing to report: is the guard installed in what exports them?")
    text = "".join(f"<p>{escape(line)}</p>" for line in lines)
    if report.all_jobs.requests:
        text = text.replace("<p>", '<p class="sentence">', 1)
    return f"<header><h1>What tinker_guard met</h1>{text}</header>\n"


def _cards(sums: Sums) -> str:
    gone = sums.outcomes["not_found"] - sums.not_found["trainer_answered"]
    cards = [
        (
            "false 404s",
            f"{sums.false_404s:,}",
            f"{sums.races_recovered:,} of {plural(sums.races_met, 'race')} recovered",
        ),
        ("crashes avoided", f"{sums.crashes_avoided:,}", f"in {plural(sums.runs_saved, 'run')}"),
        ("time saved", duration(sums.saved), "an estimate"),
        (
            "time lost to races",
            duration(sums.lost),
            f"{duration(sums.lost_by_the_clock)} by the clock",
        ),
        (
            "waited in warmups",
            duration(sums.warmup_wait),
            f"{plural(sums.warmups, 'warmup')}, {sums.warmups_met_404:,} met 404s",
        ),
        (
            "404: job gone",
            f"{gone:,}",
            f"and {sums.not_found['trainer_answered']:,} of the trainer",
        ),
    ]
    return (
        '<ul class="cards">'
        + "".join(
            f"<li><span>{escape(name)}</span><strong>{escape(value)}</strong>"
            f"<span>{escape(remark)}</span></li>"
            for name, value, remark in cards
        )
        + "</ul>\n"
    )


def _section(title: str, *content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{''.join(content)}</section>\n"


def _of(shown: Sequence[Job], jobs: Sequence[Job]) -> str:
    if len(shown) == len(jobs):
        return ""
    return f"<p>These are the {len(shown)} of {len(jobs):,} jobs with most to tell.</p>"


def _job(job: Job) -> str:
    sums = job.sums
    remarks = [plural(sums.requests, "request")]
    if sums.races_met:
        remarks.append(
            f"{sums.races_recovered:,} of {plural(sums.races_met, 'race')} recovered, "
            f"{duration(sums.lost)} lost"
        )
    if sums.saved:
        remarks.append(f"about {duration(sums.saved)} saved")
    if sums.not_found:
        remarks.append(f"not found: {counts(sums.not_found)}")
    if sums.unverified:
        remarks.append(f"unverified: {counts(sums.unverified)}")
    name = str(job.name)
    return (
        f"<article><h3>{escape(name)}</h3><p>{escape('; '.join(remarks))}</p>"
        f"{_timeline(job.timeline, name)}</article>\n"
    )


def _runs(runs: Sequence[Run]) -> str:
    shown = runs[:_ROWS]
    rows = ((*run_cells(run), evidence_of(run)) for run in shown)
    table = _table("Runs", (*RUN_COLUMNS, "evidence"), rows, texts=(0, 1, 2, 6))
    if len(shown) == len(runs):
        return table
    return f"{table}<p>These are the first {len(shown)} of {len(runs):,} runs.</p>"


# -- one race over time --------------------------------------------------------------------------

_RACE_WIDTH: Final = 1000
_NARROWEST: Final = 6
"""The least width of a mark, so that a short one is visible."""


def _race(recovery: Recovery) -> str:
    request = recovery.request
    length = max(1, request.end - request.start)
    lanes = lanes_of(recovery)
    drawn = "".join(_race_lane(name, marks, length) for name, marks in lanes.items())
    used = {mark.kind for marks in lanes.values() for mark in marks}
    legend = "".join(
        f'<span><svg class="{kind}" viewBox="0 0 1 1" aria-hidden="true"><rect width="1" '
        f'height="1" /></svg>{escape(words)}</span>'
        for kind, (_, words) in KINDS.items()
        if kind in used
    )
    where = JobName(request.account, request.job)
    caption = f"{said(recovery)}. Of {where}, {moment(request.start, fraction=True)} UTC."
    return (
        f'<figure class="race"><figcaption>The slowest over time: {escape(caption)}</figcaption>'
        f'<div class="lanes">{drawn}<span class="scale">seconds of the request</span>'
        f'<div class="axis"><span>0 s</span><span>{duration(length // 2)}</span>'
        f"<span>{duration(length)}</span></div></div>"
        f'<p class="legend">{legend}</p></figure>'
    )


def _race_lane(name: str, marks: Sequence[Mark], length: int) -> str:
    shapes = []
    for mark in marks:
        width = max((mark.end - mark.start) * _RACE_WIDTH / length, _NARROWEST)
        x = min(mark.start * _RACE_WIDTH / length, _RACE_WIDTH - width)
        title = f"{duration(mark.start)}: {mark.meaning}"
        shapes.append(
            f'<rect class="{mark.kind}" x="{x:.1f}" y="3" width="{width:.1f}" height="14">'
            f"<title>{escape(title)}</title></rect>"
        )
    # The marks of the request itself are its phases.
    count = "" if name == REQUEST else f" <b>{len(marks):,}</b>"
    label = f"{name} over time: " + ", ".join(
        f"{duration(mark.start)} {mark.meaning}" for mark in marks[:_SAID]
    )
    return (
        f'<span class="name">{escape(name)}{count}</span>'
        f'<svg class="race" viewBox="0 0 {_RACE_WIDTH} {_HEIGHT}" preserveAspectRatio="none" '
        f'role="img" aria-label="{escape(label)}">{"".join(shapes)}</svg>'
    )


_SAID: Final = 30
"""How many marks of a lane are described in words."""


# -- timelines -----------------------------------------------------------------------------------

_HEIGHT: Final = 20
_FEWEST_BARS: Final = 40


def _timeline(timeline: Timeline, of: str) -> str:
    bars = timeline.bars
    if not bars:
        return "<p>Nothing.</p>"
    start, end = timeline.bounds
    # A few short bars are drawn narrow, not stretched over the page.
    length = max((end - start) // timeline.width, _FEWEST_BARS)
    end = start + length * timeline.width
    placed = [((at - start) // timeline.width, at, bar) for at, bar in bars]
    kinds = [kind for kind in _LANES if any(bar.counts[kind] for _, bar in bars)]
    lanes = "".join(_lane(kind, placed, length, of) for kind in kinds)
    is_within_a_day = moment(start)[:10] == moment(end)[:10]
    middle = moment(start + (end - start) // 2)
    axis = (
        f"<span>{moment(start)}</span>"
        f"<span>{middle[11:] if is_within_a_day else middle}</span>"
        f"<span>{moment(end)[11:] if is_within_a_day else moment(end)}</span>"
    )
    return (
        f'<div class="lanes">{lanes}<span class="scale">{bar_width(timeline.width)} a bar, UTC'
        f'</span><div class="axis">{axis}</div></div>{_as_table(placed, kinds, of)}'
    )


def _lane(kind: str, placed: Sequence[tuple[int, int, Bar]], length: int, of: str) -> str:
    most = max(bar.counts[kind] for _, _, bar in placed)
    total = sum(bar.counts[kind] for _, _, bar in placed)
    marks = []
    for x, at, bar in placed:
        count = bar.counts[kind]
        if not count:
            continue
        # A single event must be visible beside many, hence the root and the minimum of a quarter.
        height = round(_HEIGHT * (0.25 + 0.75 * (count / most) ** 0.5), 1)
        shape = f'x="{x}" y="{_HEIGHT - height:g}" width="1" height="{height:g}"'
        if kind == "requests":
            marks.append(f"<rect {shape} />")
        else:
            marks.append(f"<rect {shape}><title>{moment(at)}: {count:,}</title></rect>")
    label = f"{_LANES[kind]} of {of} over time: {total:,} in all, at most {most:,} in one bar"
    return (
        f'<span class="name">{_LANES[kind]} <b>{total:,}</b></span>'
        f'<svg class="{kind}" viewBox="0 0 {length} {_HEIGHT}" preserveAspectRatio="none" '
        f'role="img" aria-label="{escape(label)}">{"".join(marks)}</svg>'
    )


def _as_table(placed: Sequence[tuple[int, int, Bar]], kinds: Sequence[str], of: str) -> str:
    """The same as text, without the uneventful bars."""
    shown = [kind for kind in kinds if kind != "requests"]
    rows = [
        (moment(at), *(f"{bar.counts[kind]:,}" for kind in kinds))
        for _, at, bar in placed
        if any(bar.counts[kind] for kind in shown)
    ]
    if not rows:
        return ""
    columns = ("from (UTC)", *(_LANES[kind] for kind in kinds))
    return f"<details><summary>as a table</summary>{_table(of, columns, rows)}</details>"


def _table(
    caption: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    texts: Collection[int] = (0,),
) -> str:
    """A table; columns are numbers, except for those in `texts`."""

    def cell(at: int, text: str) -> str:
        if at == 0:
            return f'<th scope="row">{escape(text)}</th>'
        return f"<td{'' if at in texts else _NUMBER}>{escape(text)}</td>"

    head = "".join(
        f'<th scope="col"{"" if at in texts else _NUMBER}>{escape(column)}</th>'
        for at, column in enumerate(columns)
    )
    lines = "".join(
        f"<tr>{''.join(cell(at, text) for at, text in enumerate(row))}</tr>\n" for row in rows
    )
    # In a separate box, so that a wide table scrolls and the page does not.
    return (
        f'<div class="wide" role="region" aria-label="{escape(caption)}" tabindex="0"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


_NUMBER: Final = ' class="number"'

# The colours are Okabe and Ito's, which are distinguishable with any colour vision.
_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59626d; --paper: #ffffff;
  --card: #f3f5f7; --line: #d5dae0; --requests: #aab4bf; --warmups: #0072b2; --recovered: #009e73;
  --exhausted: #d55e00; --job-gone: #b8518c; --trainer: #7f8894; --unverified: #b98200;
  --error: #a33a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ebee; --soft: #a2abb5; --paper: #14171a;
  --card: #1f2429; --line: #363d45; --requests: #56606b; --warmups: #56b4e9;
  --recovered: #1fc797; --exhausted: #ff8a3d; --job-gone: #e08fc0; --trainer: #929ca7;
  --unverified: #f0b93a; --error: #ff6b4a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; margin: 0.5rem 0; }
h2 { font-size: 1.15rem; margin: 2rem 0 0.5rem; }
h3 { font-size: 1rem; margin: 0; overflow-wrap: anywhere; }
p { margin: 0.25rem 0; color: var(--soft); overflow-wrap: anywhere; }
.sentence { color: var(--ink); font-size: 1.15rem; font-weight: 600; }
article { border-top: 1px solid var(--line); padding: 0.75rem 0; }
.cards { list-style: none; margin: 1rem 0; padding: 0; display: grid; gap: 0.5rem;
  grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); }
.cards li { background: var(--card); border-radius: 0.5rem; padding: 0.6rem 0.8rem; }
.cards span { display: block; color: var(--soft); font-size: 0.85rem; }
.cards strong { display: block; font-size: 1.25rem; line-height: 1.4; white-space: nowrap; }
.lanes { display: grid; grid-template-columns: 11.5rem 1fr; gap: 0.25rem 0.75rem;
  align-items: end; margin: 0.5rem 0; }
.lanes .name, .lanes .scale { font-size: 0.85rem; color: var(--soft); line-height: 1.2; }
.lanes b { color: var(--ink); }
.lanes svg { width: 100%; height: 1.25rem; display: block; border-bottom: 1px solid var(--line); }
.axis { display: flex; justify-content: space-between; gap: 0.5rem; font-size: 0.8rem;
  color: var(--soft); font-variant-numeric: tabular-nums; }
svg.requests { fill: var(--requests); } svg.warmups { fill: var(--warmups); }
svg.recovered { fill: var(--recovered); } svg.exhausted { fill: var(--exhausted); }
svg.job_gone { fill: var(--job-gone); } svg.trainer_404 { fill: var(--trainer); }
rect.waits, svg.waits { fill: var(--requests); } rect.passes, svg.passes { fill: var(--recovered); }
rect.met, svg.met { fill: var(--exhausted); } rect.good, svg.good { fill: var(--recovered); }
rect.failed, svg.failed { fill: var(--error); } rect.asked, svg.asked { fill: var(--warmups); }
figure { margin: 0.5rem 0 1rem; } figcaption { color: var(--soft); overflow-wrap: anywhere; }
.legend { display: flex; flex-wrap: wrap; gap: 0.25rem 1rem; font-size: 0.85rem; }
.legend svg { width: 0.7rem; height: 0.7rem; margin-right: 0.35rem; }
svg.unverified { fill: var(--unverified); } svg.error { fill: var(--error); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 0.3rem 0.9rem 0.3rem 0; vertical-align: top;
  border-bottom: 1px solid var(--line); font-weight: normal; }
thead th { font-weight: 600; white-space: nowrap; vertical-align: bottom; }
tbody th, td { min-width: 12rem; max-width: 22rem; overflow-wrap: anywhere; }
td:last-child { min-width: 20rem; } td.number, td.number:last-child { min-width: 0; }
.number { text-align: right; white-space: nowrap; } thead .number { white-space: normal; }
summary { cursor: pointer; font-size: 0.85rem; color: var(--soft); }
dt { font-weight: 600; } dd { margin: 0 0 0.5rem; color: var(--soft); max-width: 46rem; }
@media (max-width: 40rem) { .lanes { grid-template-columns: 1fr; }
  .lanes svg { margin-bottom: 0.25rem; } .lanes .scale { order: 1; } }
"""
