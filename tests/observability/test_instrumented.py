"""Whoever else traces HTTP, and when: one CLIENT span and one `traceparent` for each exchange."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind

from testkit.clients import put_transport, pyqwest_transport, transport_of
from testkit.fakes import GATEWAY_BODY, FakeControlPlane
from testkit.http_server import JSON, Handler, on_a_thread
from tinker_guard import GuardSettings, GuardTransport, SyncGuardTransport
from tinker_guard.observability import providers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from tests.conftest import Measured

HTTPXClientInstrumentor = pytest.importorskip(
    "opentelemetry.instrumentation.httpx", reason="is in the group `test`"
).HTTPXClientInstrumentor
suppress_instrumentation = pytest.importorskip(
    "opentelemetry.instrumentation.utils", reason="is in the group `test`"
).suppress_instrumentation

ROUTE = "/training/v1/rlorTrainerJobs/acc/job-1"


class Gateway(ThreadingHTTPServer):
    """Answers the first POST with the gateway's 404, and keeps in which trace requests are made."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.told: list[list[str]] = []
        self.has_refused = False

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{ROUTE}"


class _Handler(Handler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        gateway = self.server
        assert isinstance(gateway, Gateway)
        gateway.told.append(self.headers.get_all("traceparent") or [])
        is_refused = self.command == "POST" and not gateway.has_refused
        gateway.has_refused = gateway.has_refused or is_refused
        status, body = (404, GATEWAY_BODY) if is_refused else (200, b"{}")
        self.reply(status, body, JSON)


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with on_a_thread(Gateway()) as server:
        yield server


@contextmanager
def guarded_client(
    make: Callable[[], httpx.AsyncBaseTransport], instrumented: str
) -> Iterator[httpx.AsyncClient]:
    """A client with a guard, and an instrumentation that came before or after it."""
    what, _, when = instrumented.partition(" ")

    def instrument(client: httpx.AsyncClient, now: str) -> None:
        if (what, when) == ("class", now):
            HTTPXClientInstrumentor().instrument()
        elif (what, when) == ("client", now):
            HTTPXClientInstrumentor.instrument_client(client)

    client = httpx.AsyncClient(transport=make())
    try:
        instrument(client, "before")
        guard = GuardTransport(
            transport_of(client),
            settings=GuardSettings(warmup_successes=0),
            control_plane=FakeControlPlane(),
            new_transport=make,
        )
        put_transport(client, guard)
        instrument(client, "after")
        yield client
    finally:
        if what == "class":
            HTTPXClientInstrumentor().uninstrument()


INSTRUMENTED = ["not", "class before", "class after", "client before", "client after"]


@pytest.mark.parametrize("is_sync", [True, False])
def test_where_instrumentation_is_suppressed_nothing_is_recorded(
    is_sync: bool, gateway: Gateway, spans: InMemorySpanExporter, measured: Measured
) -> None:
    """The gateway's race is met and recovered from all the same."""
    settings = GuardSettings(warmup_successes=1)
    url = f"{gateway.base_url}/api/v1/forward_backward"

    async def run() -> int:
        make = httpx.AsyncHTTPTransport
        guard = GuardTransport(make(), settings=settings, new_transport=make)
        async with httpx.AsyncClient(transport=guard) as client:
            return (await client.post(url)).status_code

    def run_sync() -> int:
        make = httpx.HTTPTransport
        guard = SyncGuardTransport(make(), settings=settings, new_transport=make)
        with httpx.Client(transport=guard) as client:
            return client.post(url).status_code

    with suppress_instrumentation():
        assert (run_sync() if is_sync else asyncio.run(run())) == 200
    assert spans.get_finished_spans() == ()
    assert measured.points() == []


class _ExporterOverAGuard(SpanExporter):
    """Sends each batch over a client of the program's own, whose transport is guarded."""

    def __init__(self) -> None:
        self.sent = 0
        inner = httpx.MockTransport(self._take)
        self._client = httpx.Client(transport=SyncGuardTransport(inner))

    def _take(self, _: httpx.Request) -> httpx.Response:
        self.sent += 1
        return httpx.Response(200)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._client.post("https://collector.test/v1/traces")
        return SpanExportResult.SUCCESS


def test_an_exporter_over_a_guard_does_not_export_its_own_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    provider, exporter = TracerProvider(), _ExporterOverAGuard()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    providers.refresh()
    client = httpx.Client(
        transport=SyncGuardTransport(httpx.MockTransport(lambda _: httpx.Response(200)))
    )
    for _ in range(3):
        client.get("https://elsewhere.test/")
    assert exporter.sent == 3


@pytest.mark.parametrize("operation", ["forward_backward", "retrieve_future"])
@pytest.mark.parametrize("instrumented", INSTRUMENTED)
@pytest.mark.parametrize("make", [httpx.AsyncHTTPTransport, pyqwest_transport])
def test_one_client_span_and_one_context_for_each_exchange(
    make: Callable[[], httpx.AsyncBaseTransport],
    instrumented: str,
    operation: str,
    gateway: Gateway,
    spans: InMemorySpanExporter,
    measured: Measured,
) -> None:
    async def run() -> None:
        with guarded_client(make, instrumented) as client:
            async with client:
                request = client.build_request(
                    "POST", f"{gateway.base_url}/api/v1/{operation}", content=b"{}"
                )
                assert (await client.send(request)).status_code == 200

    with trace.get_tracer("user").start_as_current_span("step") as step:
        asyncio.run(run())
    # The request, a probe, and the request again.
    assert [len(told) for told in gateway.told] == [1, 1, 1]
    trace_id = f"{step.get_span_context().trace_id:032x}"
    assert {told.split("-")[1] for (told,) in gateway.told} == {trace_id}

    clients = [s for s in spans.get_finished_spans() if s.kind is SpanKind.CLIENT]
    # pyqwest cannot be told that somebody above it has made the span of its exchange.
    is_told_twice = make is pyqwest_transport and instrumented == "client after"
    assert len(clients) == 3 + is_told_twice
    ids = {f"{span.context.span_id:016x}" for span in clients if span.context is not None}
    # A poll was not to be traced when it was first sent, and told so.
    is_quiet = operation == "retrieve_future" and instrumented != "client after"
    for (told,) in gateway.told[1 if is_quiet else 0 :]:
        assert told.split("-")[2] in ids
        assert told.endswith(("1", "3"))
    if is_quiet:
        assert gateway.told[0][0].endswith(("0", "2"))

    # Whoever makes the span measures; old instrumentations measure nothing.
    durations = {
        scope: how_often
        for scope, name, how_often in measured.counts()
        if name in ("http.client.duration", "http.client.request.duration")
    }
    is_mine = make is httpx.AsyncHTTPTransport
    assert durations.get("tinker_guard", 0) == is_mine * (3 - (instrumented == "client after"))
    assert sum(durations.values()) <= 3 + is_told_twice


@pytest.mark.parametrize("make", [httpx.AsyncHTTPTransport, pyqwest_transport])
def test_switched_off_the_guard_leaves_tracing_to_others(
    make: Callable[[], httpx.AsyncBaseTransport], gateway: Gateway, spans: InMemorySpanExporter
) -> None:
    async def run() -> None:
        transport = GuardTransport(
            make(),
            settings=GuardSettings(warmup_successes=0, trace="off"),
            control_plane=FakeControlPlane(),
        )
        async with httpx.AsyncClient(transport=transport) as client:
            url = f"{gateway.base_url}/api/v1/forward_backward"
            assert (await client.post(url, content=b"{}")).status_code == 200

    HTTPXClientInstrumentor().instrument()
    try:
        asyncio.run(run())
    finally:
        HTTPXClientInstrumentor().uninstrument()
    scopes = {
        s.instrumentation_scope.name for s in spans.get_finished_spans() if s.instrumentation_scope
    }
    assert scopes == {
        "pyqwest" if make is pyqwest_transport else "opentelemetry.instrumentation.httpx"
    }
    # Old instrumentations leave out transports that no client holds, the probe's among them.
    assert [len(told) for told in gateway.told[::2]] == [1, 1]
