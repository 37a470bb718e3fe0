"""How fast `tinker-guard report` reads a large file, and in how much memory.

python -m benchmarks.span_file [--megabytes N] [--form otlp|sdk|document] [--keep PATH]

Writes a file of invented spans, reads it in a process of its own, and removes it.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.report import console

if TYPE_CHECKING:
    from collections.abc import Iterator

_SECOND = 1_000_000_000
_START = 1_790_000_000 * _SECOND
_BATCH = 64


def spans(seed: int = 1) -> Iterator[dict[str, Any]]:
    """Invent spans without end, as simple dictionaries, a request's children before itself.

    One request in 200 meets a race, one in 500 a true 404, and every second one has a CLIENT
    span of another library below it.
    """
    chance = random.Random(seed)
    now = _START
    for number in range(1, sys.maxsize):
        now += chance.randrange(_SECOND // 2)
        job = f"job-{number // 5000 % 40}"
        own = {"tinker_guard.account": "acc", "tinker_guard.job": job}
        trace_id, span_id = f"{chance.getrandbits(128):032x}", f"{chance.getrandbits(64):016x}"
        exchange = {
            "http.request.method": "POST",
            "server.address": "gateway.example.com",
            "server.port": 443,
        }

        def span(
            name: str, start: float, end: float, attributes: dict[str, Any], parent: str
        ) -> dict[str, Any]:
            return {
                "name": name,
                "trace_id": trace_id,  # noqa: B023 - used at once
                "span_id": f"{chance.getrandbits(64):016x}",
                "parent_id": parent,
                "start": now + int(start * _SECOND),  # noqa: B023
                "end": now + int(end * _SECOND),  # noqa: B023
                "attributes": attributes,
            }

        outcome, end, status = "ok", 0.02 + chance.random(), 200
        labels: dict[str, Any] = {}
        resends = 0
        if number % 5000 == 1:
            probes = own | {"tinker_guard.warmup.probes": 3}
            yield span("tinker_guard.warmup", 0.0, 0.09, probes, span_id)
        if number % 200 == 0:
            outcome, resends, end = "recovered", 1 + chance.randrange(3), 1.5 + chance.random()
            labels = {
                "tinker_guard.verdict": "routing_race",
                "tinker_guard.verdict.reason": "job_running",
            }
            question = "GET /v1/accounts/{account}/rlorTrainerJobs/{job}"
            state = {"tinker_guard.job.state": "JOB_STATE_RUNNING"}
            yield span(question, 0.01, 0.02, own | labels | state, span_id)
            for resend in range(1, resends + 1):
                at = 1.4 * resend / resends
                is_last = resend == resends
                yield span(
                    "resend POST /api/v1/forward_backward",
                    at,
                    end if is_last else at + 0.01,
                    exchange
                    | labels
                    | {
                        "http.request.resend_count": resend,
                        "tinker_guard.pause": 0.3,
                        "http.response.status_code": 200 if is_last else 404,
                    },
                    span_id,
                )
        elif number % 500 == 1:
            outcome, status = "not_found", 404
            labels = {
                "tinker_guard.verdict": "genuine_not_found",
                "tinker_guard.verdict.reason": "trainer_answered",
            }
        if number % 2:
            client = exchange | {"url.full": "https://gateway.example.com/x", "network": "tcp"}
            yield span("POST", 0.001, end, client, span_id)
        yield span(
            "POST /api/v1/forward_backward",
            0.0,
            end,
            exchange
            | own
            | {"tinker_guard.outcome": outcome, "tinker_guard.retries": resends}
            | labels
            | {"http.response.status_code": status},
            "",
        ) | {"span_id": span_id}


def as_otlp(span: dict[str, Any]) -> dict[str, Any]:
    """The span in the OpenTelemetry protocol's JSON."""
    return {
        "traceId": span["trace_id"],
        "spanId": span["span_id"],
        "parentSpanId": span["parent_id"],
        "flags": 256,
        "name": span["name"],
        "kind": 1,
        "startTimeUnixNano": str(span["start"]),
        "endTimeUnixNano": str(span["end"]),
        "attributes": [
            {"key": key, "value": _otlp_value(value)} for key, value in span["attributes"].items()
        ],
        "status": {},
    }


def _otlp_value(value: object) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    return {"doubleValue": value} if isinstance(value, float) else {"stringValue": value}


def otlp_document(batch: list[dict[str, Any]]) -> dict[str, Any]:
    """What the OpenTelemetry protocol sends of these spans at once."""
    service = {"key": "service.name", "value": {"stringValue": "trainer"}}
    scope = {"name": "tinker_guard", "version": "0.1.0"}
    return {
        "resourceSpans": [
            {
                "resource": {"attributes": [service]},
                "scopeSpans": [{"scope": scope, "spans": [as_otlp(span) for span in batch]}],
            }
        ]
    }


def as_sdk(span: dict[str, Any]) -> dict[str, Any]:
    """The span as `ReadableSpan.to_json` of the Python SDK writes it."""

    def iso(nanoseconds: int) -> str:
        moment = datetime.fromtimestamp(nanoseconds / _SECOND, UTC)
        return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    return {
        "name": span["name"],
        "context": {
            "trace_id": f"0x{span['trace_id']}",
            "span_id": f"0x{span['span_id']}",
            "trace_state": "[]",
        },
        "kind": "SpanKind.INTERNAL",
        "parent_id": f"0x{span['parent_id']}" if span["parent_id"] else None,
        "start_time": iso(span["start"]),
        "end_time": iso(span["end"]),
        "status": {"status_code": "UNSET"},
        "attributes": span["attributes"],
        "events": [],
        "links": [],
        "resource": {"attributes": {"service.name": "trainer"}, "schema_url": ""},
    }


def write(path: Path, size: int, form: str) -> int:
    """Write a file of at least this many bytes; returns how many spans it holds."""
    source = spans()
    written = count = 0
    with path.open("w") as file:
        if form == "document":
            written += file.write('{\n  "resourceSpans": [')
        while written < size:
            batch = [next(source) for _ in range(_BATCH)]
            count += len(batch)
            if form == "sdk":
                text = "".join(json.dumps(as_sdk(span)) + "\n" for span in batch)
            elif form == "otlp":
                text = json.dumps(otlp_document(batch), separators=(",", ":")) + "\n"
            else:
                comma = "" if count == len(batch) else ","
                text = comma + json.dumps(otlp_document(batch)["resourceSpans"][0], indent=2)
            written += file.write(text)
        if form == "document":
            file.write("]}\n")
    return count


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1000, metavar="N")
    parser.add_argument("--form", choices=["otlp", "sdk", "document"], default="otlp")
    parser.add_argument("--keep", type=Path, metavar="PATH", help="write there, and keep it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.keep or Path(folder) / "spans.jsonl"
        count = write(path, arguments.megabytes * 1_000_000, arguments.form)
        page = Path(folder) / "page.html"
        command = [sys.executable, "-m", "tinker_guard", "report", str(path)]
        started_at = time.perf_counter()
        subprocess.run(  # noqa: S603 - this very program
            [*command, "--html", str(page)], check=True, stdout=subprocess.DEVNULL
        )
        seconds = time.perf_counter() - started_at
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        megabytes = path.stat().st_size / 1e6
        console.print(
            f"{megabytes:.0f} MB, {count:,} spans: {seconds:.1f} s ({megabytes / seconds:.0f} MB/s,"
            f" {used.ru_utime + used.ru_stime:.1f} s of processor time), at most "
            f"{used.ru_maxrss / 1024:.0f} MiB of memory, page {page.stat().st_size / 1e3:.0f} kB"
        )


if __name__ == "__main__":
    main()
