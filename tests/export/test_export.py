"""The export for programs that have none, each in a process of its own: providers are global."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from testkit.otlp import backend
from testkit.programs import free_port
from tests import ROOT
from tinker_guard.export.console import Trees
from tinker_guard.export.exporters import FILE_DELAY
from tinker_guard.export.ids import OwnIds
from tinker_guard.export.lifecycle import EXIT_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the extra otlp")

PRELUDE = """
import asyncio, os, sys, time
import httpx
from tinker_guard import GuardSettings, GuardTransport, install_guard
from tinker_guard.export.lifecycle import start_export

URL = "https://gateway.test/training/v1/rlorTrainerJobs/acc/job-1/api/v1/forward_backward"

def send(count=1, status=200):
    async def run():
        inner = httpx.MockTransport(lambda _: httpx.Response(status))
        guard = GuardTransport(inner, settings=GuardSettings(warmup_successes=0, export=None))
        for _ in range(count):
            await guard.handle_async_request(httpx.Request("POST", URL, content=b"secret-body"))
    asyncio.run(run())

def begin():
    start_export(os.environ["TINKER_GUARD_EXPORT"])

def say(line):
    print(line, flush=True)
"""


def start(program: str, **variables: str) -> subprocess.Popen[str]:
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OTEL_", "TINKER_GUARD_"))
    }
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment, **variables},
    )


def run(program: str, **variables: str) -> tuple[str, str]:
    """Run a program to its end, and return what it wrote to stdout and stderr."""
    with start(program, **variables) as process:
        out, err = process.communicate(timeout=40)
    assert process.returncode == 0, err
    return out, err


@pytest.mark.parametrize("export", ["jsonl:{}", "console", None])
def test_the_random_numbers_of_a_program_stay_as_they_are(
    export: str | None, tmp_path: Path
) -> None:
    """A seeded run has to shuffle its data as without an export."""
    out, _ = run(
        """
import random
random.seed(0)
if "TINKER_GUARD_EXPORT" in os.environ:
    begin()
    from opentelemetry import trace
    tracer = trace.get_tracer("another's")
    with tracer.start_as_current_span("one"), tracer.start_as_current_span("two"):
        send(3)
say(random.random())
""",
        **({} if export is None else {"TINKER_GUARD_EXPORT": export.format(tmp_path / "x.jsonl")}),
    )
    assert "0.8444218515250481" in out


def test_no_two_spans_have_the_same_id() -> None:
    ids = OwnIds()
    for generate, bits in ((ids.generate_span_id, 64), (ids.generate_trace_id, 128)):
        found = [generate() for _ in range(1000)]
        assert len({*found}) == 1000
        assert max(found).bit_length() > bits - 8
        assert min(found) > 0
    assert ids.is_trace_id_random() is True


def spans_in(path: Path, by: str = "tinker_guard") -> list[dict[str, Any]]:
    lines = path.read_text().splitlines()
    assert lines
    found = []
    for document in map(json.loads, lines):
        assert list(document) == ["resourceSpans"]
        for resource in document["resourceSpans"]:
            for scope in resource["scopeSpans"]:
                assert scope["scope"]["name"] == by
                found += scope["spans"]
    return found


def test_a_file_in_the_otlp_json_format(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    second = tmp_path / "second.jsonl"
    out, err = run(
        f"""
for path in ('{path}', '{path}', '{second}'):
    say(start_export('jsonl:' + path))
send()
send(status=503)
"""
    )
    assert out == "True\nTrue\nFalse\n"
    assert err == (
        f"tinker_guard: export=jsonl:{second} comes too late: this process exports to "
        f"jsonl:{path} already.\n"
    )
    assert not second.exists()
    request, failed = spans_in(path)
    assert (request["status"], failed["status"]) == ({}, {"code": 2})
    assert re.fullmatch("[0-9a-f]{32}", request["traceId"])
    assert re.fullmatch("[0-9a-f]{16}", request["spanId"])
    assert "parentSpanId" not in request
    assert (request["name"], request["kind"]) == ("POST /api/v1/forward_backward", 3)
    assert int(request["startTimeUnixNano"]) < int(request["endTimeUnixNano"])
    attributes = {entry["key"]: entry["value"] for entry in request["attributes"]}
    assert attributes["tinker_guard.outcome"] == {"stringValue": "ok"}
    assert attributes["tinker_guard.retries"] == {"intValue": "0"}
    assert "secret-body" not in path.read_text()

    (line,) = (tmp_path / "run.metrics.jsonl").read_text().splitlines()
    (resource,) = json.loads(line)["resourceMetrics"]
    service = {entry["key"]: entry["value"] for entry in resource["resource"]["attributes"]}
    assert service["service.name"] == {"stringValue": "tinker-guard"}
    names = {metric["name"] for scope in resource["scopeMetrics"] for metric in scope["metrics"]}
    assert names == {"http.client.request.duration", "tinker_guard.request.duration"}


def resource_of(path: Path) -> dict[str, dict[str, str]]:
    (resource,) = json.loads(path.read_text().splitlines()[0])["resourceSpans"]
    return {entry["key"]: entry["value"] for entry in resource["resource"]["attributes"]}


@pytest.mark.parametrize(
    ("url", "exported"),
    [
        ("https://h.test/a/b", "https://h.test/a/b"),
        ("https://me:geheim@h.test:8443/a?k=geheim#geheim", "https://h.test:8443/a"),
        ("https://geheim@h.test?geheim", "https://h.test"),
        ("https://h.test/a#geheim@x", "https://h.test/a"),
        ("https://h.test//b@c", "https://h.test//b@c"),
    ],
)
def test_what_others_record_of_a_url_is_exported_without_secrets(
    url: str, exported: str, tmp_path: Path
) -> None:
    path = tmp_path / "run.jsonl"
    run(
        f"""
start_export('jsonl:{path}')
from opentelemetry import trace
tracer = trace.get_tracer("pyqwest")
for attributes in ({{"url.full": "{url}", "n": 1}}, {{"http.url": "{url}", "n": 1}}, None):
    tracer.start_span("POST", attributes=attributes).end()
"""
    )
    seen = [
        {entry["key"]: entry["value"] for entry in span.get("attributes", ())}
        for span in spans_in(path, by="pyqwest")
    ]
    number = {"intValue": "1"}
    assert seen == [
        {"url.full": {"stringValue": exported}, "n": number},
        {"http.url": {"stringValue": exported}, "n": number},
        {},
    ]


def test_processes_are_told_apart(tmp_path: Path) -> None:
    found = []
    for number in range(2):
        path = tmp_path / f"{number}.jsonl"
        out, _ = run(f"start_export('jsonl:{path}'); send(); say(os.getpid())")
        resource = resource_of(path)
        assert resource["process.pid"] == {"intValue": out.strip()}
        found.append(resource["service.instance.id"]["stringValue"])
    assert found[0] != found[1]
    assert all(re.fullmatch("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", name) for name in found)
    path = tmp_path / "named.jsonl"
    named = "service.instance.id=pod-7,process.pid=1"
    run(f"start_export('jsonl:{path}'); send()", OTEL_RESOURCE_ATTRIBUTES=named)
    resource = resource_of(path)
    assert resource["service.instance.id"] == {"stringValue": "pod-7"}
    assert resource["process.pid"] == {"stringValue": "1"}


def test_installing_the_guard_starts_it(tmp_path: Path) -> None:
    pytest.importorskip("tinker")
    path = tmp_path / "run.jsonl"
    out, err = run("install_guard(); send(); say('end')", TINKER_GUARD_EXPORT=f"jsonl:{path}")
    assert (out, err) == ("end\n", "")
    assert len(spans_in(path)) == 1


def test_a_killed_process_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    program = f"start_export('jsonl:{path}'); send(50); say('sent'); time.sleep(60)"
    with start(program) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "sent\n"
        deadline = time.monotonic() + FILE_DELAY + 10
        while not path.read_text() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=10)
    assert path.read_text().endswith("\n")
    assert len(spans_in(path)) == 50


def test_a_forked_child_exports_too(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    run(
        f"""
start_export('jsonl:{path}')
send()
child = os.fork()
send()
if child:
    _, status = os.waitpid(child, 0)
    assert status == 0
sys.exit(0)
"""
    )
    requests = spans_in(path)
    assert len(requests) == 3
    assert len({span["spanId"] for span in requests}) == 3


def test_a_child_waits_for_no_thread_that_only_its_parent_has(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    run(
        f"""
import signal, threading
from tinker_guard.export import lifecycle
held, done = threading.Event(), threading.Event()
def hold():
    with lifecycle._lock:
        held.set()
        done.wait(10)
threading.Thread(target=hold, daemon=True).start()
held.wait(10)
child = os.fork()
if not child:
    # Ended by a signal if it hangs.
    signal.alarm(10)
    start_export('jsonl:{path}')
    send()
    sys.exit(0)
_, status = os.waitpid(child, 0)
done.set()
assert status == 0
sys.exit(0)
"""
    )
    assert len(spans_in(path)) == 1


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize("is_silent", [False, True])
def test_a_backend_that_is_down_delays_nothing(is_silent: bool, silent_port: int) -> None:
    port = silent_port if is_silent else free_port()
    program = """
from tinker_guard.export import lifecycle
lifecycle.EXIT_TIMEOUT = 1.0
begin()
started_at = time.perf_counter()
send(20)
say(time.perf_counter() - started_at)
"""
    with start(
        program,
        TINKER_GUARD_EXPORT="otlp",
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://user:secret@127.0.0.1:{port}",
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert float(process.stdout.readline()) < 10.0
        started_at = time.monotonic()
        err = process.stderr.read()
        assert process.wait(timeout=30) == 0
        # One second is its own, the rest a busy machine's. The SDK alone would take thirty.
        assert time.monotonic() - started_at < 20.0
    lines = err.splitlines()
    # The exporter tries again for ten seconds, so that nothing is lost before the end.
    (line,) = lines
    assert line.startswith("tinker_guard: the backend did not take the last spans and metrics")
    assert "secret" not in err


def test_what_a_backend_takes_in_the_end_is_not_told_of() -> None:
    """The exporter tries again by itself."""
    program = """
begin()
send()
from opentelemetry import trace
trace.get_tracer_provider().force_flush()
"""
    with backend(refuses=1) as server:
        _, err = run(
            program,
            TINKER_GUARD_EXPORT="otlp",
            OTEL_METRICS_EXPORTER="none",
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{server.server_address[1]}",
            NO_PROXY="127.0.0.1",
        )
    assert (err, server.paths["/v1/traces"]) == ("", 1)


def test_what_a_backend_did_not_take_is_told_of_once() -> None:
    program = """
from opentelemetry import trace
begin()
for _ in range(2):
    send()
    trace.get_tracer_provider().force_flush()
"""
    _, err = run(
        program,
        TINKER_GUARD_EXPORT="otlp",
        OTEL_EXPORTER_OTLP_TIMEOUT="0.2",
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{free_port()}",
        NO_PROXY="127.0.0.1",
    )
    (line,) = err.splitlines()
    assert line.startswith("tinker_guard: spans and metrics do not reach the backend; training")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no other system forks")
def test_a_forked_process_exports_its_own_sums(tmp_path: Path) -> None:
    """One that sends nothing, such as a loader of data, exports none."""
    program = """
begin()
send(5)
for count in (2, 0):
    if os.fork() == 0:
        send(count)
        time.sleep(0.3)
        sys.exit()
    os.wait()
say(os.getpid())
"""
    out, _ = run(
        program,
        TINKER_GUARD_EXPORT=f"jsonl:{tmp_path}/run.jsonl",
        OTEL_METRIC_EXPORT_INTERVAL="100",
    )
    sums: dict[int, int] = {}
    for line in (tmp_path / "run.metrics.jsonl").read_text().splitlines():
        for of_process in json.loads(line)["resourceMetrics"]:
            about = {entry["key"]: entry["value"] for entry in of_process["resource"]["attributes"]}
            for scope in of_process["scopeMetrics"]:
                for metric in scope["metrics"]:
                    if metric["name"] == "tinker_guard.request.duration":
                        (point,) = metric["histogram"]["dataPoints"]
                        sums[int(about["process.pid"]["intValue"])] = int(point["count"])
    assert sums.pop(int(out)) == 5
    assert [*sums.values()] == [2]


@pytest.mark.parametrize("export", ["jsonl:{}/run.jsonl", "jsonl:{}/no/run.jsonl"])
def test_what_the_programs_own_exporter_logs_is_the_programs(tmp_path: Path, export: str) -> None:
    program = """
import logging
logging.basicConfig(format="%(name)s")
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
provider = TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(timeout=0.1)))
trace.set_tracer_provider(provider)
begin()
with trace.get_tracer("own").start_as_current_span("step"):
    pass
"""
    endpoint = f"http://127.0.0.1:{free_port()}"
    _, err = run(
        program,
        TINKER_GUARD_EXPORT=export.format(tmp_path),
        OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
        NO_PROXY="127.0.0.1",
    )
    lines = [line for line in err.splitlines() if line.startswith(("opentelemetry", "tinker"))]
    assert lines[-1].startswith("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    assert ("tinker_guard" in lines) is ("/no/" in export)


def test_the_delay_at_exit_is_bounded_by_default() -> None:
    assert EXIT_TIMEOUT <= 3.0


def test_a_backend_gets_everything_by_the_end() -> None:
    with backend() as server:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        out, err = run(
            "begin(); send(5); say('end')",
            TINKER_GUARD_EXPORT="otlp",
            OTEL_EXPORTER_OTLP_ENDPOINT=url,
            NO_PROXY="127.0.0.1",
        )
        assert (out, err) == ("end\n", "")
        assert server.span_names["POST /api/v1/forward_backward"] == 5
        assert server.paths["/v1/metrics"] == 1


@pytest.mark.parametrize(("unwanted", "taken"), [("METRICS", "traces"), ("TRACES", "metrics")])
def test_a_backend_that_takes_one_kind_alone_gets_that(unwanted: str, taken: str) -> None:
    with backend() as server:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        variables = {f"OTEL_{unwanted}_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": url}
        _, err = run(
            "begin(); send()", TINKER_GUARD_EXPORT="otlp", NO_PROXY="127.0.0.1", **variables
        )
        assert err == ""
        assert server.paths.keys() == {f"/v1/{taken}"}


def test_the_console_gets_the_guards_own_metrics_in_the_end_and_no_clean_request() -> None:
    out, err = run("begin(); send(2); say('end')", TINKER_GUARD_EXPORT="console")
    assert out == "end\n"
    lines = err.splitlines()
    assert all(line.startswith(("tinker_guard.", "http.client.")) for line in lines)
    assert re.fullmatch(
        r"tinker_guard.request.duration  tinker_guard.operation=forward_backward, "
        r"tinker_guard.outcome=ok  2 in 0\.\d{3} s",
        lines[-1],
    )


def test_the_console_is_what_stderr_is_as_something_is_written() -> None:
    """A test runner puts a stream of its own there for each test, and closes it."""
    program = """
import contextlib, io
with contextlib.redirect_stderr(io.StringIO()) as replaced:
    begin()
replaced.close()
send(2)
"""
    _, err = run(program, TINKER_GUARD_EXPORT="console")
    assert err.splitlines()[-1].startswith("tinker_guard.request.duration")
    program = "import io, sys\nbegin(); send(2); sys.stderr = io.StringIO(); sys.stderr.close()"
    assert run(program, TINKER_GUARD_EXPORT="console") == ("", "")


def test_the_console_shows_a_tree_for_each_request_that_met_something() -> None:
    exporter, stream = InMemorySpanExporter(), io.StringIO()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("tinker_guard")
    race = {"tinker_guard.verdict": "routing_race", "tinker_guard.verdict.reason": "job_running"}
    with tracer.start_as_current_span("POST /api/v1/optim_step") as clean:
        with tracer.start_as_current_span("POST"):
            pass
        clean.set_attribute("tinker_guard.outcome", "ok")
    with tracer.start_as_current_span("POST /api/v1/sample") as request:
        with tracer.start_as_current_span("tinker_guard.control_plane", attributes=race) as asked:
            asked.set_attribute("tinker_guard.job.state", "JOB_STATE_RUNNING")
            with tracer.start_as_current_span("GET"):
                pass
        with tracer.start_as_current_span("resend POST /api/v1/sample", attributes=race) as again:
            again.set_attribute("http.response.status_code", 200)
        request.set_attributes({"tinker_guard.outcome": "recovered", **race})
    trees = Trees(stream)
    for span in exporter.get_finished_spans():
        trees.add(span)
    text = re.sub(r"\d+\.\d{3} s", "T", re.sub(r"^\d\d:\d\d:\d\d", "AT", stream.getvalue()))
    assert text.splitlines() == [
        "AT  T  POST /api/v1/sample  recovered  routing_race  job_running",
        "          |- T  tinker_guard.control_plane  routing_race  job_running  JOB_STATE_RUNNING",
        "          |  `- T  GET",
        "          `- T  resend POST /api/v1/sample  200  routing_race  job_running",
    ]


@pytest.mark.parametrize(("others", "is_kept"), [(0, True), (9, True), (10, False), (100, False)])
def test_spans_that_belong_to_no_request_do_not_pile_up(others: int, is_kept: bool) -> None:
    """Those that came first are forgotten first."""
    exporter, stream = InMemorySpanExporter(), io.StringIO()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("own")
    met = {"tinker_guard.outcome": "recovered", "tinker_guard.verdict": "routing_race"}
    with (
        tracer.start_as_current_span("request", attributes=met),
        tracer.start_as_current_span("below"),
    ):
        pass
    with tracer.start_as_current_span("root"), tracer.start_as_current_span("other"):
        pass
    below, request, other, _ = exporter.get_finished_spans()
    trees = Trees(stream, remembered=10)
    trees.add(below)
    for _ in range(others):
        trees.add(other)
    assert stream.getvalue() == ""
    trees.add(request)
    assert ("below" in stream.getvalue()) is is_kept


def test_a_program_with_opentelemetry_keeps_its_own(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    out, err = run(
        f"""
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
own, meters = TracerProvider(), MeterProvider()
trace.set_tracer_provider(own)
metrics.set_meter_provider(meters)
say(start_export('jsonl:{path}'))
say(trace.get_tracer_provider() is own and metrics.get_meter_provider() is meters)
"""
    )
    assert (out, err) == ("False\nTrue\n", "")
    assert not path.exists()


def test_what_is_missing_of_opentelemetry_is_set_up(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    out, err = run(
        f"""
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
own = TracerProvider()
trace.set_tracer_provider(own)
say(start_export('jsonl:{path}'))
say(trace.get_tracer_provider() is own)
send()
"""
    )
    assert (out, err) == ("True\nTrue\n", "")
    assert path.read_text() == ""
    assert (tmp_path / "run.metrics.jsonl").read_text()


def test_what_cannot_be_set_up_is_one_line_each(tmp_path: Path) -> None:
    program = f"""
extra = ("opentelemetry.sdk", "opentelemetry.exporter")
for name in extra:
    sys.modules[name] = None
for destination in ("console", "otlp", "jsonl:{tmp_path}/run.jsonl"):
    say(start_export(destination))
for name in extra:
    del sys.modules[name]
say(start_export("jsonl:{tmp_path}/no/run.jsonl"))
send()
say("end")
"""
    out, err = run(program)
    assert out == "False\nFalse\nFalse\nFalse\nend\n"
    *without_extra, unwritable = err.splitlines()
    assert "the file cannot be written (No such file or directory)" in unwritable
    destinations = ("console", "otlp", f"jsonl:{tmp_path}/run.jsonl")
    for line, destination in zip(without_extra, destinations, strict=True):
        assert line.startswith(f"tinker_guard: export={destination} needs opentelemetry.")
        assert line.endswith("Run: pip install 'tinker-guard[otlp]'")


def test_what_is_no_destination_is_refused_and_not_shown(tmp_path: Path) -> None:
    out, err = run(
        f"""
import pathlib
no_destinations = [
    "https://otel.test/v1?key=geheim", "otlp:https://me:geheim@otel.test", "jsonl", "jsonl:", "",
    "Console", None, pathlib.Path("geheim.jsonl"), "jsonl:a\\0b",
]
for destination in no_destinations:
    say(start_export(destination))
say(start_export("jsonl:{tmp_path}/run.jsonl"))
say(start_export("https://otel.test/v1?key=geheim"))
"""
    )
    assert out == 9 * "False\n" + "True\nFalse\n"
    assert err == 10 * (
        "tinker_guard: start_export(): the destination must be console, otlp or jsonl:PATH; "
        "nothing is exported.\n"
    )


@pytest.mark.parametrize(
    "variable", ["OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "OTEL_METRICS_EXEMPLAR_FILTER"]
)
def test_a_variable_that_opentelemetry_refuses_is_one_line(variable: str, tmp_path: Path) -> None:
    program = f"""
from opentelemetry import trace
say(start_export("jsonl:{tmp_path}/run.jsonl"))
send()
say(type(trace.get_tracer_provider()).__name__)
"""
    out, err = run(program, **{variable: "x"})
    assert out == "False\nProxyTracerProvider\n"
    (line,) = err.splitlines()
    assert line.startswith(f"tinker_guard: export=jsonl:{tmp_path}/run.jsonl cannot ")
    assert line.endswith("; nothing is exported. Check the OTEL_* variables.")


@pytest.mark.parametrize("suffix", [".gz", ".ZST"])
def test_a_name_of_a_packed_file_is_refused(suffix: str, tmp_path: Path) -> None:
    """Its lines would be written as they are."""
    out, err = run(f"say(start_export('jsonl:{tmp_path}/run.jsonl{suffix}'))")
    assert out == "False\n"
    assert "must name a file that is not packed" in err
    assert not [*tmp_path.iterdir()]


def test_the_files_of_a_program_that_closes_all_others_stay_its_own(tmp_path: Path) -> None:
    """As one that becomes a daemon: the number of a file that is kept is that of the next one."""
    program = f"""
start_export("jsonl:{tmp_path}/run.jsonl")
os.closerange(3, 256)
own = [open("{tmp_path}/own-%d" % number, "w") for number in range(8)]
send()
"""
    run(program)
    assert [(tmp_path / f"own-{number}").read_text() for number in range(8)] == [""] * 8
    assert "resourceSpans" in (tmp_path / "run.jsonl").read_text()
    assert "resourceMetrics" in (tmp_path / "run.metrics.jsonl").read_text()


def test_what_is_no_place_for_lines_is_one_line_and_holds_up_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        out, err = run(
            f"""
for name in ("pipe", "socket", ""):
    say(start_export(f"jsonl:{tmp_path}/{{name}}"))
send()
"""
        )
    assert out == 3 * "False\n"
    pipe, *others = err.splitlines()
    assert "the file cannot be written (it is a named pipe; name a regular file)" in pipe
    assert len(others) == 2
    assert all(": the file cannot be written (" in line for line in others)
    assert {place.name for place in tmp_path.iterdir()} == {"pipe", "socket"}


def test_a_stdout_that_has_become_another_file_gets_nothing(tmp_path: Path) -> None:
    own = tmp_path / "own"
    program = f"""
start_export("jsonl:/dev/stdout")
os.close(1)
assert os.open("{own}", os.O_WRONLY | os.O_CREAT) == 1
send()
"""
    _, err = run(program)
    assert own.read_bytes() == b""
    assert err.startswith("tinker_guard: spans and metrics cannot be written to /dev/stdout")


def test_no_file_is_made_beside_a_stdout_that_is_a_file(tmp_path: Path) -> None:
    out, err = run(
        f"""
os.dup2(os.open("{tmp_path}/out", os.O_WRONLY | os.O_CREAT), 1)
assert start_export("jsonl:/dev/stdout")
send()
"""
    )
    assert (out, err) == ("", "")
    (line,) = (tmp_path / "out").read_text().splitlines()
    assert [*json.loads(line)] == ["resourceSpans"]
    assert not os.path.lexists("/dev/stdout.metrics")


def test_a_line_that_a_full_disk_has_cut_leaves_the_next_ones_whole(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    run(
        f"""
import resource
from opentelemetry import trace
start_export("jsonl:{path}")
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
for limit in (100, most, most):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    send()
    trace.get_tracer_provider().force_flush()
"""
    )
    cut, *whole = path.read_text().splitlines()
    assert len(cut) == 100
    assert [[*json.loads(line)] for line in whole] == 2 * [["resourceSpans"]]


def test_what_is_no_regular_file_gets_spans_alone(tmp_path: Path) -> None:
    (tmp_path / "run.jsonl").symlink_to("/dev/stdout")
    out, err = run(f"start_export('jsonl:{tmp_path}/run.jsonl'); send()")
    assert [*json.loads(out)] == ["resourceSpans"]
    assert err == ""
    assert [path.name for path in tmp_path.iterdir()] == ["run.jsonl"]


def test_a_path_stays_where_it_was_meant_as_the_program_moves_on(tmp_path: Path) -> None:
    """Also for children by fork, and those that inherit the setting."""
    (tmp_path / "elsewhere").mkdir()
    program = f"""
import subprocess
os.chdir("{tmp_path}")
install_guard(export="jsonl:run.jsonl")
os.chdir("elsewhere")
if os.fork() == 0:
    send()
    sys.exit()
os.wait()
send()
print(subprocess.check_output([sys.executable, "-c", "import tinker"], text=True))
"""
    out, err = run(program, PYTHONPATH=str(ROOT))
    assert (out.strip(), err) == ("", "")
    assert [*(tmp_path / "elsewhere").iterdir()] == []
    spans = (tmp_path / "run.jsonl").read_text().splitlines()
    assert len({json.loads(line)["resourceSpans"][0]["resource"].__str__() for line in spans}) == 2
    assert len((tmp_path / "run.metrics.jsonl").read_text().splitlines()) == 2


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.symlink_to("/dev/full")
    program = f"""
start_export("jsonl:{path}")
for _ in range(3):
    send()
    time.sleep(0.6)
say("end")
"""
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full, where every write fails")
    out, err = run(program)
    assert (out, err) == (
        "end\n",
        f"tinker_guard: spans and metrics cannot be written to {path}; training goes on without.\n",
    )
