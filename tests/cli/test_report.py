"""`tinker-guard report`: every form it reads, what it adds up to, and what it shows."""

from __future__ import annotations

import gzip
import io
import json
import random
import re
import sys
import tracemalloc
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import httpx
import pytest
from rich.console import Console

from benchmarks import span_file
from testkit import fakes
from testkit.cli import invoke as invoke_in_process
from testkit.cli import piped, python
from testkit.fakes import (
    FakeControlPlane,
    FakeGateway,
    gateway_404,
    judged,
    known_from,
    ok,
    send,
    trainer_404,
)
from tinker_guard.cli.report import command, race, reading, records, tally, timeline
from tinker_guard.cli.report.machine import as_document
from tinker_guard.cli.report.page import page_of
from tinker_guard.cli.report.reading import Notes, read
from tinker_guard.cli.report.screen import summary_of
from tinker_guard.cli.report.tally import Report, Tally
from tinker_guard.cli.report.timeline import (
    MAX_BARS,
    MAX_INTERVALS,
    SECOND,
    Intervals,
    Timeline,
)
from tinker_guard.cli.report.words import bar_width, duration

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    Spans = list[dict[str, Any]]

NOON = 1_790_000_000
"""2026-09-21 14:13:20 UTC, in seconds since the epoch."""

QUESTION = "GET /v1/accounts/{account}/rlorTrainerJobs/{job}"


RACE = judged("routing_race", "job_running")
MISSING = judged("genuine_not_found", "job_missing")
TRAINERS = judged("genuine_not_found", "trainer_answered")


@dataclass
class Trace:
    """Invents spans of one job, in the simple form that `benchmarks.span_file` writes out."""

    job: str = "job-1"
    spans: Spans = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ids = random.Random(self.job)

    def add(
        self,
        name: str,
        start: float,
        end: float,
        attributes: dict[str, Any] | None = None,
        *,
        parent: str = "",
        has_job: bool = True,
    ) -> str:
        own = {"tinker_guard.account": "acc", "tinker_guard.job": self.job}
        span_id = f"{self.ids.getrandbits(64):016x}"
        self.spans.append(
            {
                "name": name,
                "trace_id": f"{self.ids.getrandbits(128):032x}",
                "span_id": span_id,
                "parent_id": parent,
                "start": NOON * SECOND + round(start * SECOND),
                "end": NOON * SECOND + round(end * SECOND),
                "attributes": (own if has_job else {}) | (attributes or {}),
            }
        )
        return span_id

    def request(
        self,
        start: float,
        end: float,
        outcome: str = "ok",
        resends: int = 0,
        more: dict[str, Any] | None = None,
    ) -> str:
        attributes = {"tinker_guard.outcome": outcome, "tinker_guard.retries": resends}
        return self.add("POST /api/v1/forward_backward", start, end, attributes | (more or {}))

    def warmup(
        self, start: float, end: float, parent: str, more: dict[str, Any] | None = None
    ) -> str:
        probes = {"tinker_guard.warmup.probes": 6}
        return self.add("tinker_guard.warmup", start, end, probes | (more or {}), parent=parent)

    def resend(self, number: int, start: float, end: float, parent: str) -> None:
        count = {"http.request.resend_count": number, "tinker_guard.pause": 0.5}
        name = "resend POST /api/v1/forward_backward"
        self.add(name, start, end, RACE | count, parent=parent, has_job=False)

    def recovered(self, start: float, resend: float, end: float) -> str:
        """A request that was sent again twice, the second time at `resend`."""
        request = self.request(start, end, "recovered", 2, RACE)
        self.add(QUESTION, start, start, RACE, parent=request)
        self.resend(2, resend, end, request)
        self.resend(1, start, start, request)
        return request


def a_run() -> Spans:
    """A run with something of everything."""
    trace = Trace()
    first = trace.request(0.0, 2.2)
    warmup = trace.warmup(0.1, 2.1, first)
    trace.add(QUESTION, 0.2, 0.3, RACE, parent=warmup)
    for second in range(3, 20):
        trace.request(second, second + 0.5)
    trace.add("POST", 3.1, 3.4, {"http.request.method": "POST"}, has_job=False)
    trace.request(4.0, 4.1, "not_found", 0, TRAINERS)
    trace.recovered(100.0, 102.5, 103.0)
    trace.recovered(100.5, 102.0, 102.9)
    trace.recovered(150.0, 150.25, 170.0)
    trace.request(200.0, 200.5, "unverified", 0, judged("unverified", "control_plane_error"))
    trace.request(201.0, 202.0, "error")
    trace.request(202.0, 203.0, "cancelled")
    trace.request(300.0, 330.0, "exhausted", 4, RACE)
    gone = trace.request(331.0, 331.5, "not_found", 0, MISSING)
    trace.add(QUESTION, 331.1, 331.2, MISSING, parent=gone)
    return trace.spans


# -- the forms -----------------------------------------------------------------------------------


def otlp_lines(spans: Spans, size: int = 7) -> str:
    batches = [spans[at : at + size] for at in range(0, len(spans), size)]
    return "".join(json.dumps(span_file.otlp_document(batch)) + "\n" for batch in batches)


def otlp_pretty(spans: Spans) -> str:
    return json.dumps(span_file.otlp_document(spans), indent=2)


def otlp_numbers(spans: Spans) -> str:
    """As some exporters write it: times and integers that are no strings, names of enums."""
    numbers = r'"(startTimeUnixNano|endTimeUnixNano|intValue)": "(\d+)"'
    text = re.sub(numbers, r'"\1": \2', otlp_lines(spans))
    return text.replace('"kind": 1', '"kind": "SPAN_KIND_INTERNAL"')


def sdk_spans(spans: Spans, indent: int | None = None) -> list[str]:
    return [json.dumps(span_file.as_sdk(span), indent=indent) for span in spans]


FORMS: dict[str, Callable[[Spans], str]] = {
    "otlp lines": otlp_lines,
    "otlp lines, numbers": otlp_numbers,
    "otlp lines, no end of line": lambda spans: otlp_lines(spans).rstrip(),
    "otlp on one line": lambda spans: otlp_lines(spans, len(spans)),
    "otlp over many lines": otlp_pretty,
    "otlp, two after another": lambda spans: otlp_pretty(spans[:9]) + otlp_pretty(spans[9:]),
    "otlp, an array": lambda spans: json.dumps(
        [span_file.otlp_document(spans[:9]), span_file.otlp_document(spans[9:])], indent=1
    ),
    "sdk lines": lambda spans: "\n".join(sdk_spans(spans)),
    "sdk over many lines": lambda spans: "\n".join(sdk_spans(spans, indent=4)),
    "sdk, an array": lambda spans: "[\n" + ",\n".join(sdk_spans(spans, indent=4)) + "\n]",
    "sdk, an array on one line": lambda spans: f"[{', '.join(sdk_spans(spans))}]",
}


def written(folder: Path, text: str | bytes, name: str = "spans.jsonl") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def reported(*paths: Path) -> tuple[Report, Notes]:
    notes, counted = Notes(), Tally()
    for record in read(paths, notes):
        counted.add(record)
    return counted.report(), notes


def document(*paths: Path) -> dict[str, Any]:
    return as_document(*reported(*paths))


def figures(of: dict[str, Any]) -> dict[str, Any]:
    """All but what was read from where."""
    return {name: value for name, value in of.items() if name != "read"}


@pytest.fixture
def expected(tmp_path: Path) -> dict[str, Any]:
    return figures(document(written(tmp_path, otlp_lines(a_run()), "expected.jsonl")))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_says_the_same(tmp_path: Path, form: str, expected: dict[str, Any]) -> None:
    spans = a_run()
    found = document(written(tmp_path, FORMS[form](spans)))
    assert found["read"]["broken"] == 0
    assert (found["read"]["guard_spans"], found["read"]["other_spans"]) == (len(spans) - 1, 1)
    assert figures(found) == expected


def test_gzip_several_files_and_standard_input(
    tmp_path: Path, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    spans = a_run()
    # A request's children may be in another file.
    packed = written(tmp_path, gzip.compress(otlp_lines(spans[::2]).encode(), mtime=0), "a.gz")
    plain = "\n".join(sdk_spans(spans[1::2])).encode()
    assert figures(document(packed, written(tmp_path, plain))) == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(plain)))
    found = document(packed, Path("-"))
    assert figures(found) == expected
    assert found["read"]["files"] == ["a.gz", "standard input"]
    assert found["read"]["bytes"] == packed.stat().st_size + len(plain)


# -- spans of the guard itself -------------------------------------------------------------------


def simple(span: ReadableSpan) -> dict[str, Any]:
    assert span.context is not None
    return {
        "name": span.name,
        "trace_id": f"{span.context.trace_id:032x}",
        "span_id": f"{span.context.span_id:016x}",
        "parent_id": "" if span.parent is None else f"{span.parent.span_id:016x}",
        "start": span.start_time,
        "end": span.end_time,
        "attributes": dict(span.attributes or {}),
    }


@pytest.mark.anyio
async def test_what_the_guard_exports(spans: InMemorySpanExporter, tmp_path: Path) -> None:
    gateway = FakeGateway(known_from(1.0))

    guard = partial(fakes.guard, gateway)
    transport = guard()
    await send(transport)  # its warmup meets 404s
    await send(transport)
    gateway.answer = lambda exchange: (
        gateway_404() if len(gateway.sent) == 3 and not exchange.is_probe else ok()
    )
    await send(transport)  # recovered
    gateway.answer = lambda _: trainer_404()
    await send(transport)
    gateway.answer = lambda _: gateway_404()
    await send(guard(retry_timeout=0.05))  # exhausted
    await send(guard(FakeControlPlane(ValueError())))
    await send(guard(FakeControlPlane(None)))
    await send(transport, httpx.Request("GET", "http://127.0.0.1:8000/api/v1/healthz"))
    other = guard(routes="http://head:8000/k/{_key}", warmup_successes=1)
    gateway.answer = lambda _: ok()
    await send(other, httpx.Request("GET", "http://head:8000/k/geheim/api/v1/healthz"))

    finished = spans.get_finished_spans()
    lines = "\n".join(span.to_json(indent=None) for span in finished)
    found = document(written(tmp_path, lines))
    outcomes = {name: count for name, count in found["all"]["outcomes"].items() if count}
    # The first one waited at the gate for the end of a race, and was sent once.
    assert outcomes == {"ok": 2, "recovered": 2, "exhausted": 1, "not_found": 2, "unverified": 2}
    assert found["all"]["not_found"] == {"job_missing": 1, "trainer_answered": 1}
    assert found["all"]["unverified"] == {"control_plane_error": 1, "no_control_plane": 1}
    assert (found["all"]["races_met"], found["all"]["races_recovered"]) == (3, 2)
    assert found["all"]["resends"] == 2
    assert found["all"]["counted_whole"] == 0
    warmups = found["all"]["warmups"]
    assert (warmups["count"], warmups["met_404"], warmups["refused"]) == (2, 1, 0)
    assert found["all"]["questions"].keys() == {"control_plane_error", "job_missing", "job_running"}
    assert [job["name"] for job in found["jobs"]] == [
        "acc/job-1",
        "(no trainer route)",
        "http://head:8000/k/{_key}",
    ]
    others = [
        span
        for span in finished
        if span.kind.name == "CLIENT" and "tinker_guard.outcome" not in (span.attributes or {})
    ]
    assert (found["read"]["broken"], found["read"]["other_spans"]) == (0, len(others))

    otlp = document(written(tmp_path, otlp_lines([simple(span) for span in finished])))
    assert otlp["all"]["outcomes"] == found["all"]["outcomes"]
    assert otlp["all"]["questions"] == found["all"]["questions"]


# -- what it adds up to --------------------------------------------------------------------------


def test_the_figures_of_a_run(tmp_path: Path) -> None:
    found = document(written(tmp_path, otlp_lines(a_run())))
    total = found["all"]
    timeline = total.pop("timeline")
    assert total == {
        "requests": 27,
        "outcomes": {
            "ok": 18,
            "recovered": 3,
            "not_found": 2,
            "exhausted": 1,
            "unverified": 1,
            "error": 1,
            "cancelled": 1,
            "other": 0,
        },
        # Ten before a resend, and one that was handed back.
        "false_404s": 11,
        # At the gate, and then as below.
        "waited_s": 2.0 + 32.75,
        "resends": 10,
        "races_met": 4,
        "races_recovered": 3,
        # 2.5 and 1.5 s, of which 1.5 at the same time, then 0.25 s, then 30 s for nothing.
        "lost_s": 34.25,
        "lost_by_the_clock_s": 32.75,
        "counted_whole": 0,
        "runs": 1,
        "runs_met": 1,
        "runs_saved": 1,
        # The warmup, two requests that met one race, and the third one.
        "crashes_avoided": 3,
        # From the first request to the race at 150 s.
        "saved_estimate_s": 150.0,
        "warmups": {
            "count": 1,
            "met_404": 1,
            "refused": 0,
            "wait_s": 2.0,
            "wait_after_404_s": 2.0,
            "slowest_s": 2.0,
        },
        "not_found": {"job_missing": 1, "trainer_answered": 1},
        "unverified": {"control_plane_error": 1},
        "questions": {"job_missing": 1, "job_running": 4},
    }
    (job,) = found["jobs"]
    assert (job.pop("name"), job.pop("account"), job.pop("job")) == ("acc/job-1", "acc", "job-1")
    assert job == total | {"timeline": timeline}
    assert timeline["bar_s"] == 5.0
    bars = {bar.pop("at")[11:19]: bar for bar in timeline["bars"]}
    assert bars["14:13:20"] == {"requests": 4, "warmups": 1, "trainer_404": 1}
    assert bars["14:15:00"] == {"requests": 2, "recovered": 2}
    assert bars["14:18:20"] == {"requests": 1, "exhausted": 1}
    assert bars["14:18:50"] == {"requests": 1, "job_gone": 1}
    slowest = found["slowest_recoveries"]
    assert [recovery["lost_s"] for recovery in slowest] == [2.5, 1.5, 0.25]
    longest = next(span for span in a_run() if span["start"] == (NOON + 100) * SECOND)
    assert slowest[0] == {
        "name": "POST /api/v1/forward_backward",
        "account": "acc",
        "job": "job-1",
        "at": "2026-09-21T14:15:00.000Z",
        "lost_s": 2.5,
        "counted_whole": False,
        "request_s": 3.0,
        "resends": 2,
        "trace_id": longest["trace_id"],
        "span_id": longest["span_id"],
    }


def only_sums(tmp_path: Path, trace: Trace) -> dict[str, Any]:
    sums: dict[str, Any] = document(written(tmp_path, otlp_lines(trace.spans)))["all"]
    return sums


def summary_in(tmp_path: Path, trace: Trace) -> str:
    found: str = document(written(tmp_path, otlp_lines(trace.spans)))["summary"]
    return found


def test_it_opens_with_a_sentence_for_somebody_who_reads_no_further(tmp_path: Path) -> None:
    trace = Trace()
    trace.request(0.0, 1.0)
    assert summary_in(tmp_path, trace) == "No false 404 was met in 1 request of 1 run."
    trace.recovered(100.0, 112.2, 113.0)
    assert summary_in(tmp_path, trace) == (
        "1 run met 2 false 404s; none was lost; 12 s were spent waiting."
    )
    trace.request(120.0, 150.0, "exhausted", 3, RACE)
    assert summary_in(tmp_path, trace) == (
        "1 run met 6 false 404s; 1 was lost; 42 s were spent waiting."
    )
    trace.request(160.0, 161.0)
    assert summary_in(tmp_path, trace) == (
        "1 run met 6 false 404s; none was lost; 42 s were spent waiting; 1 request gave up on a "
        "race."
    )
    trace.request(202.0, 202.5, "unverified", 0, judged("unverified", "control_plane_error"))
    other = Trace("job-2")
    other.request(201.0, 201.5, "not_found", 0, TRAINERS)
    trace.spans += other.spans
    said = (
        "1 of 2 runs met 6 false 404s; none was lost to them; 42 s were spent waiting; 1 request "
        "gave up on a race; 1 run died of a true 404; 1 run died of an unverified 404."
    )
    assert summary_in(tmp_path, trace) == said
    path, page = written(tmp_path, otlp_lines(trace.spans)), tmp_path / "page.html"
    _, out, _ = invoke(path, "--html", page)
    assert said in " ".join(out.split())
    assert said in page.read_text()


def test_a_resend_that_is_not_in_the_file_is_said(tmp_path: Path) -> None:
    trace = Trace()
    trace.recovered(10.0, 11.0, 14.0)
    del trace.spans[-2:]
    sums = only_sums(tmp_path, trace)
    assert (sums["lost_s"], sums["counted_whole"]) == (4.0, 1)
    trace.resend(1, 10.1, 10.2, parent=trace.spans[0]["span_id"])
    assert only_sums(tmp_path, trace)["counted_whole"] == 1
    trace.resend(2, 11.0, 14.0, parent=trace.spans[0]["span_id"])
    sums = only_sums(tmp_path, trace)
    assert (sums["lost_s"], sums["counted_whole"]) == (1.0, 0)


def test_a_clock_that_was_set_back_takes_no_time_away(tmp_path: Path) -> None:
    trace = Trace()
    trace.recovered(10.0, 11.0, 5.0)
    trace.warmup(10.0, 5.0, "")
    sums = only_sums(tmp_path, trace)
    assert (sums["lost_s"], sums["warmups"]["wait_s"]) == (0.0, 0.0)


def test_a_warmup_is_no_time_lost_to_a_race_as_well(tmp_path: Path) -> None:
    trace = Trace()
    request = trace.recovered(10.0, 18.0, 19.0)
    trace.warmup(10.0, 15.0, request)
    sums = only_sums(tmp_path, trace)
    assert (sums["lost_s"], sums["warmups"]["wait_s"]) == (3.0, 5.0)
    assert sums["warmups"]["met_404"] == 0


def test_a_race_in_which_a_request_gave_up_is_no_crash_avoided(tmp_path: Path) -> None:
    trace = Trace()
    trace.request(0.0, 1.0)
    trace.recovered(10.0, 15.0, 16.0)
    assert only_sums(tmp_path, trace)["crashes_avoided"] == 1
    trace.request(12.0, 42.0, "exhausted", 3, RACE)
    sums = only_sums(tmp_path, trace)
    assert (sums["crashes_avoided"], sums["runs_saved"], sums["saved_estimate_s"]) == (0, 0, 0.0)
    assert (sums["races_met"], sums["lost_s"]) == (2, 35.0)


def test_a_race_met_at_the_gate_alone_is_counted_as_the_warmups_wait(tmp_path: Path) -> None:
    """By the request that led the warmup, and by one that waited for it."""
    trace = Trace()
    led = trace.request(0.0, 5.5, "recovered", 0, RACE)
    warmup = trace.warmup(0.0, 5.0, led, RACE)
    trace.add(QUESTION, 0.1, 0.2, RACE, parent=warmup)
    trace.request(1.0, 5.5, "recovered", 0, RACE)
    sums = only_sums(tmp_path, trace)
    assert (sums["races_met"], sums["races_recovered"]) == (2, 2)
    assert (sums["lost_s"], sums["counted_whole"]) == (0.0, 0)
    warmups = sums["warmups"]
    assert (warmups["met_404"], warmups["refused"], warmups["wait_s"]) == (1, 0, 5.0)
    assert sums["crashes_avoided"] == 1


def test_a_warmup_that_timed_out_in_a_race_was_refused(tmp_path: Path) -> None:
    trace = Trace()
    request = trace.request(0.0, 120.0, "exhausted", 0, RACE)
    trace.warmup(0.0, 120.0, request, RACE | {"error.type": "404"})
    sums = only_sums(tmp_path, trace)
    assert (sums["warmups"]["refused"], sums["warmups"]["met_404"]) == (1, 1)
    assert (sums["races_met"], sums["races_recovered"], sums["crashes_avoided"]) == (1, 0, 0)


def test_a_refused_warmup_is_no_crash_avoided(tmp_path: Path) -> None:
    trace = Trace()
    request = trace.request(0.0, 5.0, "not_found", 0, MISSING)
    warmup = trace.warmup(0.0, 5.0, request, MISSING)
    sums = only_sums(tmp_path, trace)
    assert (sums["warmups"]["refused"], sums["warmups"]["met_404"]) == (1, 1)
    trace.add(QUESTION, 0.1, 0.2, MISSING, parent=warmup)
    sums = only_sums(tmp_path, trace)
    assert (sums["warmups"]["refused"], sums["warmups"]["met_404"]) == (1, 1)
    assert sums["crashes_avoided"] == 0


# -- runs ----------------------------------------------------------------------------------------


def exported(spans: Spans, **resource: str | int) -> str:
    """Spans as a process exports them, in batches."""
    lines = []
    for at in range(0, len(spans), 3):
        batch = span_file.otlp_document(spans[at : at + 3])
        batch["resourceSpans"][0]["resource"]["attributes"] += [
            {
                "key": key.replace("_", "."),
                "value": {"intValue" if isinstance(value, int) else "stringValue": str(value)},
            }
            for key, value in resource.items()
        ]
        lines.append(json.dumps(batch) + "\n")
    return "".join(lines)


def a_short_run(job: str = "job-1", *, seed: int = 0) -> Trace:
    trace = Trace(job)
    trace.ids = random.Random(f"{job} {seed}")
    for second in range(3):
        trace.request(second, second + 0.5)
    return trace


def runs_in(folder: Path, text: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = document(written(folder, text))["runs"]
    return found


def test_runs_are_told_apart_by_the_process_that_exports_them(tmp_path: Path) -> None:
    one, two, three = (a_short_run(seed=seed) for seed in range(3))
    two.recovered(10.0, 12.0, 13.0)
    text = (
        exported(one.spans[:2], service_instance_id="a", process_pid=7)
        + exported(two.spans, service_instance_id="b")
        # The same machine's next one, as where the instance is the name of a pod.
        + exported(three.spans, service_instance_id="a", process_pid=8, host_name="node-1")
        + exported(one.spans[2:], service_instance_id="a", process_pid=7)
    )
    found = runs_in(tmp_path, text)
    named = {(run["service_instance_id"], run["process_id"], run["host"]): run for run in found}
    assert named.keys() == {("a", "7", None), ("b", None, None), ("a", "8", "node-1")}
    assert [run["requests"] for run in named.values()] == [3, 3, 4]
    assert [run["false_404s"] for run in named.values()] == [0, 0, 2]
    summary = document(tmp_path / "spans.jsonl")["summary"]
    assert summary == "1 of 3 runs met 2 false 404s; none was lost; 2.00 s were spent waiting."
    _, out, _ = invoke(tmp_path / "spans.jsonl")
    assert "process 8 on node-1" in " ".join(out.split())


def test_a_process_that_does_two_jobs_is_two_runs(tmp_path: Path) -> None:
    spans = a_short_run().spans + a_short_run("job-2").spans
    assert len(runs_in(tmp_path, exported(spans, service_instance_id="a"))) == 2


@pytest.mark.parametrize("form", FORMS)
def test_every_form_tells_of_the_process(tmp_path: Path, form: str) -> None:
    spans = a_short_run().spans

    text = re.sub(
        r'("resource":\s*\{\s*"attributes":\s*)([\[{])',
        lambda match: (
            match[1]
            + (
                '[{"key": "service.instance.id", "value": {"stringValue": "a"}},'
                if match[2] == "["
                else '{"service.instance.id": "a",'
            )
        ),
        FORMS[form](spans),
    )
    (run,) = runs_in(tmp_path, text)
    assert (run["service_instance_id"], run["requests"]) == ("a", 3)


def test_how_a_run_ended_is_told_by_its_last_requests(tmp_path: Path) -> None:
    def ended(*more: tuple[str, str, dict[str, Any]]) -> tuple[str, str | None, str]:
        trace = a_short_run()
        for at, (name, outcome, labelled) in enumerate(more):
            attributes = {"tinker_guard.outcome": outcome, "tinker_guard.retries": 0}
            trace.add(name, 10.0 + at, 10.5 + at, attributes | labelled)
        (run,) = runs_in(tmp_path, otlp_lines(trace.spans))
        return run["ended"], run["reason"], run["evidence"]

    work, poll = "POST /api/v1/optim_step", "POST /api/v1/retrieve_future"
    alive, close = "POST /api/v1/session_heartbeat", "POST /api/v1/sessions/{id}/finish"
    unverified = judged("unverified", "control_plane_timeout")
    kind, reason, evidence = ended((poll, "not_found", MISSING), (alive, "ok", {}))
    assert (kind, reason) == ("true_404", "job_missing")
    assert evidence == (
        "POST /api/v1/retrieve_future was handed its 404 at 2026-09-21 14:13:30 (not_found), and "
        "no request but signs of life followed"
    )
    assert ended((work, "exhausted", RACE))[:2] == ("race", "job_running")
    assert ended((work, "unverified", unverified))[0] == "unverified"
    # The SDK closes the session of a program that dies as well.
    assert ended((work, "not_found", MISSING), (close, "ok", {}))[0] == "true_404"
    # The program went on.
    kind, reason, evidence = ended((work, "not_found", TRAINERS), (work, "ok", {}))
    assert (kind, reason) == ("unknown", None)
    assert evidence == "its last request, POST /api/v1/optim_step, ended at 2026-09-21 14:13:31: ok"
    kind, _, evidence = ended((close, "ok", {}))
    assert kind == "finished"
    assert "was closed at 2026-09-21 14:13:30" in evidence
    assert ended((close, "ok", {}), (work, "ok", {}))[0] == "unknown"
    # A 404 to the end of a session, or to a sign of life, ends no program.
    assert ended((alive, "not_found", MISSING))[0] == "unknown"
    failed = (work, "error", {"error.type": "httpx.ConnectError"})
    assert ended(failed)[2].endswith(": error (httpx.ConnectError)")


def test_a_trainer_that_no_job_names_goes_by_its_base_url(tmp_path: Path) -> None:
    trace = Trace()
    own = {"tinker_guard.route": "http://head:8000/api/v1/model/{_model}"}
    outcome = {"tinker_guard.outcome": "recovered", "tinker_guard.retries": 1}
    request = trace.add("POST", 0.0, 3.0, own | outcome | RACE, has_job=False)
    trace.add("tinker_guard.control_plane", 0.1, 0.2, own | RACE, parent=request, has_job=False)
    path = written(tmp_path, otlp_lines(trace.spans))
    found = document(path)
    assert found["all"]["questions"] == {"job_running": 1}
    assert [job["name"] for job in found["jobs"]] == list(own.values())
    assert [run["false_404s"] for run in found["runs"]] == [1]
    _, out, _ = invoke(path)
    assert "model/{_model}" in "".join(out.split())


def test_a_run_of_which_only_the_eventful_is_exported_may_have_gone_on(tmp_path: Path) -> None:
    trace = Trace()
    trace.request(0.0, 1.0, "not_found", 0, MISSING)
    (run,) = runs_in(tmp_path, otlp_lines(trace.spans))
    assert run["ended"] == "true_404"
    assert "no request that went well is in the file" in run["evidence"]
    # Requests off trainer routes are of no run.
    trace = Trace()
    attributes = {"tinker_guard.outcome": "ok", "tinker_guard.retries": 0}
    trace.add("GET", 0.0, 1.0, attributes, has_job=False)
    assert runs_in(tmp_path, otlp_lines(trace.spans)) == []


@pytest.mark.parametrize("form", ["otlp lines", "otlp over many lines"])
def test_a_process_whose_name_is_no_text_is_unknown(tmp_path: Path, form: str) -> None:
    text = FORMS[form](a_short_run().spans).replace('"trainer"', r'"\ud800"')
    # With a span that is broken, the line is read a second time.
    text = text.replace('"startTimeUnixNano": "', '"startTimeUnixNano": "x', 1)
    (run,) = runs_in(tmp_path, text)
    assert (run["service_instance_id"], run["requests"]) == (None, 2)


def test_more_runs_than_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "MAX_RUNS", 2)
    text = "".join(
        exported(a_short_run(seed=seed).spans, service_instance_id=f"process-{seed}")
        for seed in range(4)
    )
    *told_apart, further = sorted(runs_in(tmp_path, text), key=lambda run: int(run["requests"]))
    assert [run["requests"] for run in told_apart] == [3, 3]
    assert (further["requests"], further["ended"]) == (6, "unknown")
    assert further["evidence"] == "these are too many to be told apart"


# -- one race over time --------------------------------------------------------------------------


def a_race() -> Trace:
    trace = Trace()
    request = trace.request(0.0, 10.0, "recovered", 2, RACE | {"tinker_guard.warmup.wait": 2.0})
    warmup = trace.warmup(0.0, 2.0, request)
    for start, result in ((0.0, "not_found"), (0.5, "failed"), (1.9, "reached")):
        attributes = {"tinker_guard.probe.result": result}
        trace.add("probe GET", start, start + 0.1, attributes, parent=warmup, has_job=False)
    trace.add(QUESTION, 0.1, 0.2, RACE, parent=warmup)
    trace.add(QUESTION, 2.5, 2.6, RACE, parent=request)
    for number, start, end, status in ((1, 4.0, 4.1, 404), (2, 9.0, 10.0, 200)):
        count = {"http.request.resend_count": number, "tinker_guard.pause": 0.5}
        answer = {"http.response.status_code": status}
        trace.add("resend", start, end, RACE | count | answer, parent=request, has_job=False)
    return trace


def test_the_slowest_race_is_drawn(tmp_path: Path) -> None:
    path = written(tmp_path, otlp_lines(a_race().spans))
    report, notes = reported(path)
    (recovery,) = report.slowest
    assert race.as_text(recovery, 60) == [
        "request    --------------------------------------------=====",
        "gate       ---------",
        "probes     x !      o",
        "questions  ?           ?",
        "resends                       x                        o",
        "           0 s                                       10.00 s",
        "           - waits   = sent, and answered   x 404",
        "           o answered   ! failed   ? asked",
    ]
    page = page_of(report, notes)
    labels_drawn = [element.get("aria-label") or "" for element in elements(page)]
    assert "probes over time: 0 s not_found, 500 ms failed, 1.90 s reached" in labels_drawn
    assert "resends over time: 4.00 s 404, 9.00 s 200" in labels_drawn
    found = document(path)["slowest_over_time"]["events"]
    assert found[0] == {"kind": "probe", "from_s": 0.0, "to_s": 0.1, "result": "not_found"}
    assert [event["kind"] for event in found] == [
        *("probe", "gate", "question", "probe", "probe", "question", "resend", "resend")
    ]


def test_the_picture_has_what_another_request_of_the_race_found_out(tmp_path: Path) -> None:
    def recovered(trace: Trace, start: float, resend: float) -> str:
        request = trace.request(start, resend + 1, "recovered", 1, RACE)
        trace.resend(1, resend, resend + 1, request)
        return request

    trace, other = Trace(), Trace("job-2")
    recovered(trace, 0.0, 9.0)
    for each, start, resend in ((trace, 0.5, 8.5), (other, 0.0, 8.0)):
        leader = recovered(each, start, resend)
        each.add(QUESTION, start + 0.5, start + 0.6, RACE, parent=leader)
        for at, result in ((start + 1.5, "not_found"), (resend - 0.5, "reached")):
            attributes = {"tinker_guard.probe.result": result}
            each.add("probe GET", at, at + 0.1, attributes, parent=leader, has_job=False)
    report, _ = reported(written(tmp_path, otlp_lines(trace.spans + other.spans)))
    assert report.slowest[0].lost == 9 * SECOND
    assert race.as_text(report.slowest[0], 51)[:4] == [
        f"request    {'-' * 36}{'=' * 4}",
        f"probes     {' ' * 8}x{' ' * 23}o",
        f"questions  {' ' * 4}?",
        f"resends    {' ' * 36}!",
    ]


def test_a_race_that_was_met_at_the_gate_alone_is_among_the_slowest(tmp_path: Path) -> None:
    trace = Trace()
    waited = RACE | {"tinker_guard.warmup.wait": 5.0}
    trace.request(1.0, 6.5, "recovered", 0, waited)
    report, _ = reported(written(tmp_path, otlp_lines(trace.spans)))
    assert [recovery.lost for recovery in report.slowest] == [5 * SECOND]
    (run,) = report.runs
    assert (run.false_404s, run.waited.length) == (1, 5 * SECOND)
    assert race.as_text(report.slowest[0], 40)[0] == f"request    {'-' * 26}==="


def test_a_night_between_two_runs_is_not_saved(tmp_path: Path) -> None:
    trace = Trace()
    for start in (0.0, 8 * 3600.0):
        for step in range(0, 600, 60):
            trace.request(start + step, start + step + 30)
        trace.recovered(start + 600, start + 602, start + 603)
    sums = only_sums(tmp_path, trace)
    assert (sums["runs"], sums["runs_saved"], sums["crashes_avoided"]) == (2, 2, 2)
    assert sums["saved_estimate_s"] == 1200.0


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_spans_does_not_matter(tmp_path: Path, seed: int) -> None:
    spans = [*islice(span_file.spans(seed), 3000), *a_run()]
    for span in spans[::17]:
        # Some far away in time, so that bars have to be joined.
        span["start"] += 10_000_000 * SECOND
        span["end"] += 10_000_000 * SECOND
    in_order = document(written(tmp_path, otlp_lines(spans)))
    random.Random(seed).shuffle(spans)
    shuffled = document(written(tmp_path, otlp_lines(spans, 13)))
    assert in_order["all"]["races_recovered"] > 10
    assert figures(shuffled) == figures(in_order)


@pytest.mark.parametrize("seed", range(20))
def test_intervals_are_a_union(seed: int) -> None:
    chance = random.Random(seed)
    given = [(start, start + chance.randrange(9)) for start in chance.choices(range(200), k=40)]
    intervals = Intervals()
    for start, end in given:
        intervals.add(start, end)
    covered = {moment for start, end in given for moment in range(start, end)}
    assert intervals.length == len(covered)
    for at in range(210):
        inside = any(start <= at <= end for start, end in given)
        assert intervals.touches(timeline.Interval(at, at)) == inside
    joined = intervals.joined(3)
    assert all(after.start - before.end > 3 for before, after in pairwise(joined))


def test_timelines_and_intervals_stay_small() -> None:
    chance = random.Random(3)
    timeline, intervals = Timeline(), Intervals()
    for _ in range(5000):
        start = chance.randrange(1, 1 << 64)
        timeline.add(("requests",), start)
        intervals.add(start, start + 1)
    assert len(timeline.bars) <= MAX_BARS
    assert sum(bar.counts["requests"] for _, bar in timeline.bars) == 5000
    assert len(intervals.joined(0)) <= MAX_INTERVALS


def test_all_jobs_together_have_bars_as_wide_as_the_widest() -> None:
    timeline, together = Timeline(), Timeline()
    # What comes last lies in a bar that is there already, so its time alone does not tell why
    # bars had to be joined.
    for start in (1000.4, 1016.45, 1016.0):
        timeline.add(("requests",), round(start * SECOND))
    together.merge(timeline)
    assert together.width == timeline.width == SECOND // 2
    assert [bar.counts["requests"] for _, bar in together.bars] == [1, 2]


def test_more_jobs_than_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "MAX_JOBS", 3)
    spans = [span for job in range(9) for span in replace_job(f"job-{job}")]
    found = document(written(tmp_path, otlp_lines(spans)))
    names = [job["name"] for job in found["jobs"]]
    assert names == ["(further jobs)", "acc/job-0", "acc/job-1", "acc/job-2"]
    assert found["all"]["races_recovered"] == 9
    assert found["jobs"][0]["races_recovered"] == 6


def replace_job(job: str) -> Spans:
    trace = Trace(job)
    trace.recovered(1.0, 2.0, 3.0)
    return trace.spans


# -- what cannot be read -------------------------------------------------------------------------

SECRET = "tml-very-secret"


def test_broken_lines_are_counted_and_the_first_named(tmp_path: Path) -> None:
    spans = a_run()
    good = otlp_lines(spans, len(spans))
    no_time = span_file.as_otlp(spans[0]) | {"startTimeUnixNano": SECRET}
    no_id = span_file.as_otlp(spans[0]) | {"spanId": None}
    one_bad = span_file.otlp_document([])
    one_bad["resourceSpans"][0]["scopeSpans"][0]["spans"] = [no_time, no_id]
    lines = [
        f'cut off", "{SECRET}"}}]}}',
        good.strip(),
        "",
        json.dumps({"resourceMetrics": [SECRET]}),
        f'{{"key": "{SECRET}"}}',
        json.dumps({"resourceSpans": [SECRET]}),
        json.dumps(one_bad),
        "[" * 100_000,
        good[: len(good) // 2],
    ]
    report, notes = reported(written(tmp_path, "\n".join(lines)))
    assert report.all_jobs.requests == 27
    assert notes.other_signals == 1
    assert notes.broken == 7
    assert [broken.place for broken in notes.first_broken] == [
        "line 1",
        "line 5",
        "line 6",
        "line 7",
        "line 7",
    ]
    console = Console(file=io.StringIO(), width=100)
    console.print(summary_of(report, notes))
    assert isinstance(console.file, io.StringIO)
    page = page_of(report, notes)
    for text in (console.file.getvalue(), page, json.dumps(as_document(report, notes))):
        assert SECRET not in text
        assert "line 1" in text
    for text in (console.file.getvalue(), page):
        assert "7 lines or spans could not be read" in text
        assert "line 1 of spans.jsonl: not JSON" in text
        assert "line 5 of spans.jsonl: JSON, but no spans" in text
        assert "and 2 more" in text


@pytest.mark.parametrize("form", ["otlp over many lines", "sdk over many lines"])
def test_a_document_that_is_cut_off_counts_to_there(tmp_path: Path, form: str) -> None:
    text = FORMS[form](a_run())
    report, notes = reported(written(tmp_path, text[: len(text) // 2]))
    assert 5 < report.all_jobs.requests < 27
    assert notes.broken == 1
    assert notes.first_broken[0].reason == "not JSON from there on, or cut off"
    assert re.fullmatch(r"after span \d+", notes.first_broken[0].place)


def test_a_damaged_gzip_file_counts_to_there(tmp_path: Path) -> None:
    spans = list(islice(span_file.spans(), 4000))
    packed = gzip.compress(otlp_lines(spans).encode(), mtime=0)
    for damaged in (packed[: len(packed) // 2], packed[:-5000] + bytes(5000)):
        report, notes = reported(written(tmp_path, damaged))
        assert 500 < report.all_jobs.requests < 4000
        assert notes.first_broken[-1].place == "the rest"


def test_a_line_that_is_too_long_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "LONGEST_LINE", 4000)
    spans = a_run()
    long = otlp_lines(spans[:20], 20)
    first, second = Trace("job-1"), Trace("job-2")
    for trace in (first, second):
        trace.request(1.0, 2.0)
    short, other = otlp_lines(first.spans), otlp_lines(second.spans)
    assert len(short) < 4000 < 2 * 4000 < len(long)
    report, notes = reported(written(tmp_path, short + long + other))
    assert notes.guard_spans == 2
    assert [broken.place for broken in notes.first_broken] == ["line 2"]
    assert report.all_jobs.requests == 2
    # A document on one long line is read all the same, as one over many lines is.
    report, notes = reported(written(tmp_path, long))
    assert (notes.guard_spans, notes.broken) == (20, 0)


# -- what is shown -------------------------------------------------------------------------------

HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e\"'&]]>" + "x" * 500


def hostile_spans() -> Spans:
    spans = replace_job(HOSTILE)
    for span in spans:
        span["name"] = HOSTILE
        span["trace_id"] = HOSTILE
    return spans


def test_names_cannot_act(tmp_path: Path) -> None:
    name = "<b onload='x'>.jsonl"
    spans = hostile_spans() + replace_job("job-2")
    report, notes = reported(written(tmp_path, "{\n" + otlp_lines(spans), name))
    assert notes.broken == 1
    page = page_of(report, notes)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script" not in page
    assert "<b onload" not in page
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system=None)
    console.print(summary_of(report, notes))
    assert isinstance(console.file, io.StringIO)
    for text in (page, console.file.getvalue()):
        assert "\x1b[31m" not in text
        assert "\u202e" not in text
        assert "x" * 200 not in text
    elements(page)


def elements(page: str) -> list[ElementTree.Element]:
    """All elements of the page, which is XML as well, so that nothing is left open."""
    return list(ElementTree.fromstring(page).iter())


def test_the_page_stands_alone(tmp_path: Path) -> None:
    spans = a_run() + replace_job("job-2")
    page = page_of(*reported(written(tmp_path, otlp_lines(spans))))
    found = elements(page)
    tags = {element.tag for element in found}
    assert not tags & {"script", "link", "img", "iframe", "object", "a", "image", "use"}
    assert not {name for element in found for name in element.keys()} & {"src", "href", "style"}  # noqa: SIM118
    assert not re.search(r"https?:|url\(|@import|//", page)
    assert "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page
    assert [element.text for element in found if element.tag == "h3"] == ["acc/job-1", "acc/job-2"]
    # Every picture says in words what it shows, and has a table beside it.
    pictures = [element for element in found if element.tag == "svg"]
    legend = [element for element in pictures if element.get("aria-hidden")]
    pictures = [element for element in pictures if element not in legend]
    assert (len(pictures), len(legend)) == (8 + 8 + 2 + 3, 4)
    assert all(element.get("role") == "img" for element in pictures)
    said = [element.get("aria-label") or "" for element in pictures]
    # What was answered meanwhile began and ended at once in these spans.
    assert "questions over time: 0 s job_running, 500 ms job_running" in said
    assert "races recovered of acc/job-1 over time: 3 in all, at most 2 in one bar" in said
    assert len([element for element in found if element.tag == "details"]) == 3
    drawn = sum(len(element) for element in pictures if element.get("class") == "recovered")
    assert drawn == 3 + 2 + 1


def test_the_page_stays_small(tmp_path: Path) -> None:
    jobs = [replace_job(f"job-{job}") for job in range(400)]
    spans = [*islice(span_file.spans(), 5_000), *(span for job in jobs for span in job)]
    report, notes = reported(written(tmp_path, otlp_lines(spans, 500)))
    page = page_of(report, notes)
    assert len(page) < 500_000
    assert "These are the 30 of 400 jobs with most to tell." in page
    elements(page)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (0.0012, "1.2 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.00 s"),
        (59.99, "59.99 s"),
        (59.996, "1 min 0 s"),
        (3599.6, "1 h 0 min"),
        (3 * 86400 + 7300, "3 d 2 h"),
    ],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(round(seconds * SECOND)) == said


def test_widths_of_bars_divide_each_other() -> None:
    widths = timeline.WIDTHS
    assert not [pair for pair in zip(widths[1:], widths, strict=False) if pair[0] % pair[1]]
    assert [bar_width(width) for width in widths][:8] == [
        *("0.1 s", "0.5 s", "1 s", "5 s", "10 s", "30 s", "1 min", "5 min")
    ]
    # Times that fit into OTLP's 64 bits fit into the widest bars.
    assert (1 << 64) // widths[-1] < MAX_BARS


# -- the command ---------------------------------------------------------------------------------


def invoke(*arguments: str | Path) -> tuple[int, str, str]:
    return invoke_in_process("report", *map(str, arguments))


def test_the_command(tmp_path: Path) -> None:
    path = written(tmp_path, otlp_lines(a_run() + replace_job("job-2")))
    page = tmp_path / "page.html"
    exit_code, out, err = invoke(path, "--html", page)
    assert (exit_code, err) == (0, "")
    shown = " ".join(out.split())
    assert "spans.jsonl: 43 spans of the guard, 1 others" in shown
    assert "races met 5 recovered 4, exhausted 1; 12 resends" in shown
    assert "crashes avoided 4 in 2 of 2 runs" in shown
    assert "time saved 2 min 30 s an estimate" in shown
    assert "genuine not-founds 2 job_missing 1, trainer_answered 1" in shown
    assert "acc/job-1 27 4 3 34.25 s 3 2 min 30 s 2" in shown
    assert "POST /api/v1/forward_backward acc/job-1 2026-09-21 14:15:00.000 2.50 s 2" in shown
    assert elements(page.read_text(encoding="utf-8"))
    exit_code, out, err = invoke(path, "--json")
    assert (exit_code, err) == (0, "")
    assert json.loads(out) == json.loads(json.dumps(document(path)))


def test_the_command_reads_standard_input() -> None:
    packed = gzip.compress(otlp_lines(a_run()).encode(), mtime=0)
    result = invoke_in_process("report", "-", "--json", stdin=packed)
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert (found["read"]["files"], found["all"]["requests"]) == (["standard input"], 27)


def test_the_fields_of_the_json(tmp_path: Path) -> None:
    """Scripts hold on to these; a field that goes away needs another `version`."""
    found = document(written(tmp_path, otlp_lines(a_run())))
    sums = {
        *("requests", "outcomes", "resends", "races_met", "races_recovered", "lost_s"),
        *("false_404s", "waited_s", "runs_met"),
        *("lost_by_the_clock_s", "counted_whole", "runs", "runs_saved", "crashes_avoided"),
        *("saved_estimate_s", "warmups", "not_found", "unverified", "questions", "timeline"),
    }
    assert found["version"] == 1
    assert found.keys() == {
        *("version", "summary", "read", "all", "runs", "jobs", "slowest_recoveries"),
        *("slowest_over_time", "definitions"),
    }
    assert found["read"].keys() == {
        *("files", "bytes", "guard_spans", "other_spans", "other_signals", "broken"),
        "first_broken",
    }
    assert found["all"].keys() == sums
    assert found["jobs"][0].keys() == sums | {"name", "account", "job"}
    assert found["runs"][0].keys() == {
        *("account", "job", "service_instance_id", "host", "process_id", "from", "to"),
        *("requests", "false_404s", "races_met", "races_recovered", "waited_s"),
        *("crashes_avoided", "saved_estimate_s", "ended", "reason", "evidence"),
    }
    assert found["slowest_over_time"].keys() == {"span_id", "events"}
    assert found["all"]["outcomes"].keys() == {*records.OUTCOMES, "other"}


def test_a_page_that_cannot_be_written_does_not_cost_the_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    path = written(tmp_path, otlp_lines(a_run()))
    exit_code, out, err = invoke(path, "--html", tmp_path / "page.html")
    assert exit_code == 2
    assert "crashes avoided" in out
    assert err.endswith("page.html: No space left on device\n")


def test_nothing_to_read_is_exit_code_1(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    exit_code, out, err = invoke(written(tmp_path, ""), "--html", page)
    assert (exit_code, out) == (1, "")
    assert err == "tinker-guard report: no span could be read from spans.jsonl.\n"
    exit_code, out, err = invoke(written(tmp_path, f"{SECRET}\n" * 9), "--html", page)
    assert (exit_code, out) == (1, "")
    assert "line 1 of spans.jsonl: not JSON" in err
    assert SECRET not in err
    assert not page.exists()


def test_spans_of_others_alone_are_said_to_be_just_that(tmp_path: Path) -> None:
    trace = Trace()
    trace.add("GET", 0.0, 1.0, {"http.request.method": "GET"}, has_job=False)
    exit_code, out, _ = invoke(written(tmp_path, otlp_lines(trace.spans)))
    assert exit_code == 0
    assert "0 spans of the guard, 1 others" in out
    assert "is the guard installed" in out
    assert "requests" not in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "the following arguments are required: FILE"),
        (("no/such/file.jsonl",), "no/such/file.jsonl cannot be read: No such file or directory"),
        (("{file}/spans.jsonl",), "cannot be read: Not a directory"),
        (("{folder}",), "is a folder"),
        (("{file}", "--html", "no/such/folder/page.html"), "cannot be written"),
    ],
)
def test_wrong_usage_is_exit_code_2(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    places = {"folder": tmp_path, "file": written(tmp_path, otlp_lines(a_run()))}
    exit_code, out, err = invoke(*(argument.format(**places) for argument in arguments))
    assert (exit_code, out) == (2, "")
    assert says in " ".join(err.split())


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_what_can_be_read_need_be_no_file(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    """Such as `<(zcat spans.gz)`, which a shell names /dev/fd/63."""
    spans = otlp_lines(a_run())
    _, expected, _ = invoke(written(tmp_path, spans), "--json")
    with piped(pack(spans.encode())) as place:
        exit_code, out, err = invoke(place, "--json")
    assert (exit_code, err) == (0, "")
    assert json.loads(out)["runs"] == json.loads(expected)["runs"]


@pytest.mark.parametrize("held", ['{"resourceSpans": []}\n', "\n  {}", "<svg/>", "notes"])
def test_a_file_that_is_no_page_is_not_replaced_by_one(tmp_path: Path, held: str) -> None:
    """`report --html *.jsonl` takes the first of the files that are to be read for the page."""
    first, second = tmp_path / "spans-0.jsonl", tmp_path / "spans-1.jsonl"
    first.write_text(held)
    second.write_text(otlp_lines(a_run()))
    exit_code, out, err = invoke("--html", first, second)
    assert (exit_code, out) == (2, "")
    assert "exists and is no HTML page" in " ".join(err.split())
    assert first.read_text() == held


@pytest.mark.parametrize("held", ["", "<!DOCTYPE html>\n<p>", "\n<!doctype HTML>", "<html></html>"])
def test_a_page_is_replaced_by_the_next_one(tmp_path: Path, held: str) -> None:
    page = tmp_path / "page.html"
    page.write_text(held)
    for _ in range(2):
        exit_code, _, _ = invoke(written(tmp_path, otlp_lines(a_run())), "--html", page)
        assert exit_code == 0
        assert page.read_text().startswith("<!")


def test_progress_is_shown_at_a_terminal_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, otlp_lines(a_run()))
    for is_terminal in (True, False):
        monkeypatch.delenv("FORCE_COLOR", raising=False)
        if is_terminal:
            monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setattr(sys, "stderr", shown := io.StringIO())
        with command.progress([path]) as on_bytes:
            on_bytes(path.stat().st_size)
        assert ("reading spans" in shown.getvalue()) == is_terminal
        assert ("24.2/24.2 kB" in shown.getvalue()) == is_terminal


# -- memory --------------------------------------------------------------------------------------


def peak_of(path: Path) -> int:
    tracemalloc.start()
    try:
        report, _ = reported(path)
        assert report.all_jobs.requests > 1000
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_what_is_given_or_delivered_twice_counts_once(tmp_path: Path) -> None:
    lines = otlp_lines(a_run(), 3)
    once, _ = reported(written(tmp_path, lines))
    file = tmp_path / "run.jsonl"
    file.write_text(lines)
    link = tmp_path / "link.jsonl"
    link.symlink_to(file)
    notes, counted = Notes(), Tally()
    for record in read([file, file, link], notes):
        counted.add(record)
    assert notes.files == ["run.jsonl"]
    assert counted.report().all_jobs == once.all_jobs
    again, _ = reported(written(tmp_path, lines + lines))
    for name in ("outcomes", "resends", "races_met", "warmups", "lost"):
        assert getattr(again.all_jobs, name) == getattr(once.all_jobs, name)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    spans = list(islice(span_file.spans(), 10_000))
    few = peak_of(written(tmp_path, otlp_lines(spans[:2_000], 64)))
    many = peak_of(written(tmp_path, otlp_lines(spans, 64)))
    pretty = peak_of(written(tmp_path, otlp_pretty(spans[:2_000])))
    # What does grow is bounded: bars, and parents whose children may still come.
    assert many - few < 500_000
    assert max(many, pretty) < 6_000_000


def test_memory_is_bounded_where_every_request_meets_a_race(tmp_path: Path) -> None:
    counted = Tally(max_families=100)
    trace = Trace()
    for number in range(400):
        trace.recovered(number, number + 0.5, number + 0.75)
    found = list(read([written(tmp_path, otlp_lines(trace.spans))], Notes()))
    for record in found:
        counted.add(record)
    in_order = counted.report()
    assert (in_order.all_jobs.lost, in_order.all_jobs.counted_whole) == (200 * SECOND, 0)
    # Children that come much later than their parent are not joined, which is told.
    counted = Tally(max_families=100)
    for record in sorted(found, key=lambda record: not isinstance(record, records.Request)):
        counted.add(record)
    late = counted.report()
    assert (late.all_jobs.lost, late.all_jobs.counted_whole) == (300 * SECOND, 400)


def a_recovery(span_id: int, seconds: float) -> records.Request:
    return records.Request(
        span_id=span_id,
        trace_id="",
        name="",
        account="acc",
        job="job-1",
        start=NOON * SECOND,
        end=NOON * SECOND + round(seconds * SECOND),
        outcome="recovered",
        resends=2,
        is_race=True,
        reason="job_running",
    )


def test_the_slowest_recoveries_are_kept() -> None:
    counted = Tally()
    for seconds in random.Random(1).sample(range(1, 100), 99):
        counted.add(a_recovery(seconds, seconds))
    slowest = counted.report().slowest
    assert [recovery.lost // SECOND for recovery in slowest] == list(range(99, 89, -1))
    assert all(recovery.is_whole for recovery in slowest)


def test_parents_are_forgotten_by_when_they_were_last_heard_of() -> None:
    counted = Tally(max_families=2)
    counted.add(a_recovery(1, 3.0))
    counted.add(a_recovery(2, 3.0))
    counted.add(records.Resend(1, 1, NOON * SECOND))
    counted.add(a_recovery(3, 3.0))
    counted.add(records.Resend(1, 2, (NOON + 1) * SECOND))
    sums = counted.report().all_jobs
    assert (sums.lost, sums.counted_whole) == ((1 + 3 + 3) * SECOND, 2)


def test_it_needs_nothing_but_rich_and_typer_beside_the_parser() -> None:
    """It is of use where neither the SDKs nor the demo are installed."""
    program = (
        "import sys\n"
        "for name in ('tinker', 'numpy', 'uvicorn', 'opentelemetry.sdk'):\n"
        "    sys.modules[name] = None\n"
        "import tinker_guard.cli.report.command\n"
    )
    assert python("-c", program).returncode == 0
