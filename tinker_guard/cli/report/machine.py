"""The report as JSON."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from tinker_guard.cli.report.records import OTHER, OUTCOMES
from tinker_guard.cli.report.screen import evidence_of, sentence_of
from tinker_guard.cli.report.tally import DEFINITIONS
from tinker_guard.cli.report.timeline import SECOND

if TYPE_CHECKING:
    from tinker_guard.cli.report.reading import Notes
    from tinker_guard.cli.report.runs import Run
    from tinker_guard.cli.report.tally import Job, Recovery, Report, Sums
    from tinker_guard.cli.report.timeline import Timeline

VERSION: Final = 1
"""Increased when a field is changed or removed, not when one is added."""


def as_document(report: Report, notes: Notes) -> dict[str, Any]:
    """The report as plain values; durations are seconds, times are ISO 8601 in UTC."""
    return {
        "version": VERSION,
        "read": {
            "files": notes.files,
            "bytes": notes.bytes_read,
            "guard_spans": notes.guard_spans,
            "other_spans": notes.other_spans,
            "other_signals": notes.other_signals,
            "broken": notes.broken,
            "first_broken": [broken._asdict() for broken in notes.first_broken],
        },
        "summary": sentence_of(report),
        "all": _sums(report.all_jobs) | {"timeline": _timeline(report.timeline)},
        "runs": [_run(run) for run in report.runs],
        "jobs": [_job(job) for job in report.jobs],
        "slowest_recoveries": [_recovery(recovery) for recovery in report.slowest],
        "slowest_over_time": _race(report.slowest[0]) if report.slowest else None,
        "definitions": DEFINITIONS,
    }


def _sums(sums: Sums) -> dict[str, Any]:
    return {
        "requests": sums.requests,
        "outcomes": {name: sums.outcomes[name] for name in (*OUTCOMES, OTHER)},
        "false_404s": sums.false_404s,
        "waited_s": sums.waited / SECOND,
        "resends": sums.resends,
        "races_met": sums.races_met,
        "races_recovered": sums.races_recovered,
        "lost_s": sums.lost / SECOND,
        "lost_by_the_clock_s": sums.lost_by_the_clock / SECOND,
        "counted_whole": sums.counted_whole,
        "runs": sums.runs,
        "runs_met": sums.runs_met,
        "runs_saved": sums.runs_saved,
        "crashes_avoided": sums.crashes_avoided,
        "saved_estimate_s": sums.saved / SECOND,
        "warmups": {
            "count": sums.warmups,
            "met_404": sums.warmups_met_404,
            "refused": sums.warmups_refused,
            "wait_s": sums.warmup_wait / SECOND,
            "wait_after_404_s": sums.warmup_wait_after_404 / SECOND,
            "slowest_s": sums.warmup_slowest / SECOND,
        },
        "not_found": dict(sorted(sums.not_found.items())),
        "unverified": dict(sorted(sums.unverified.items())),
        "questions": dict(sorted(sums.questions.items())),
    }


def _job(job: Job) -> dict[str, Any]:
    names = {"name": str(job.name), "account": job.name.account, "job": job.name.job}
    return names | _sums(job.sums) | {"timeline": _timeline(job.timeline)}


def _run(run: Run) -> dict[str, Any]:
    end = run.ended
    return {
        "account": run.job.account,
        "job": run.job.job,
        "service_instance_id": run.process.instance,
        "host": run.process.host,
        "process_id": run.process.pid,
        "from": _time(run.start),
        "to": _time(run.end),
        "requests": run.requests,
        "false_404s": run.false_404s,
        "races_met": run.races_met,
        "races_recovered": run.races_recovered,
        "waited_s": run.waited.length / SECOND,
        "crashes_avoided": run.crashes_avoided,
        "saved_estimate_s": run.saved / SECOND,
        "ended": end.kind,
        "reason": None if end.last is None else end.last.reason,
        "evidence": evidence_of(run),
    }


def _race(recovery: Recovery) -> dict[str, Any]:
    start = recovery.request.start
    return {
        "span_id": f"{recovery.request.span_id:016x}",
        "events": [
            {
                "kind": event.kind,
                "from_s": (event.start - start) / SECOND,
                "to_s": (event.end - start) / SECOND,
                "result": event.result or None,
            }
            for event in recovery.events
        ],
    }


def _timeline(timeline: Timeline) -> dict[str, Any]:
    return {
        "bar_s": timeline.width / SECOND,
        "bars": [
            {"at": _time(at)} | {kind: count for kind, count in bar.counts.items() if count}
            for at, bar in timeline.bars
        ],
    }


def _recovery(recovery: Recovery) -> dict[str, Any]:
    request = recovery.request
    return {
        "name": request.name,
        "account": request.account,
        "job": request.job,
        "at": _time(request.start),
        "lost_s": recovery.lost / SECOND,
        "counted_whole": recovery.is_whole,
        "request_s": (request.end - request.start) / SECOND,
        "resends": request.resends,
        "trace_id": request.trace_id,
        "span_id": f"{request.span_id:016x}",
    }


def _time(nanoseconds: int) -> str:
    seconds, rest = divmod(nanoseconds, SECOND)
    moment = datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest // 1000)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
