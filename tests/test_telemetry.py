from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.utils import is_http_instrumentation_enabled
from opentelemetry.trace import SpanKind, StatusCode

from tests.fakes import (
    BASE,
    KEY,
    Exchange,
    FakeControlPlane,
    FakeGateway,
    gateway_404,
    ok,
    post,
    settle,
    trainer_404,
)
from tinker_guard import GuardSettings, GuardTransport, telemetry
from tinker_guard.control_plane import FireworksControlPlane

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from tinker_guard import ControlPlane

pytestmark = pytest.mark.anyio

EXCHANGE = {
    "http.request.method": "POST",
    "server.address": "gateway.test",
    "server.port": 443,
}
JOB = {"tinker_guard.account": "acc", "tinker_guard.job": "job-1"}
RACE = {"tinker_guard.verdict": "routing_race", "tinker_guard.verdict.reason": "job_running"}


def guard(
    gateway: FakeGateway, control_plane: ControlPlane | None = None, **settings: Any
) -> GuardTransport:
    return GuardTransport(
        gateway.new_transport(),
        settings=GuardSettings(**{"warmup_successes": 0} | settings),
        control_plane=control_plane or FakeControlPlane(),
        new_transport=gateway.new_transport,
    )


async def send(transport: GuardTransport, request: httpx.Request | None = None) -> None:
    response = await transport.handle_async_request(request or post())
    await response.aread()


def seen(span: ReadableSpan) -> tuple[str, SpanKind, dict[str, Any], StatusCode]:
    return span.name, span.kind, dict(span.attributes or {}), span.status.status_code


def end(outcome: str, status_code: int | None, resends: int = 0) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "tinker_guard.outcome": outcome,
        "tinker_guard.retries": resends,
    }
    return (
        attributes
        if status_code is None
        else attributes | {"http.response.status_code": status_code}
    )


async def test_ok(spans: InMemorySpanExporter) -> None:
    await send(guard(FakeGateway()))
    (root,) = spans.get_finished_spans()
    assert seen(root) == (
        "POST /api/v1/forward_backward",
        SpanKind.INTERNAL,
        EXCHANGE | JOB | end("ok", 200),
        StatusCode.UNSET,
    )


async def test_recovered(spans: InMemorySpanExporter) -> None:
    def answer(exchange: Exchange) -> httpx.Response:
        return ok() if exchange.is_probe or len(gateway.sent) > 2 else gateway_404()

    gateway = FakeGateway(answer)
    await send(guard(gateway, backoff_initial=0.5))
    question, first, second, root = spans.get_finished_spans()
    assert seen(root) == (
        "POST /api/v1/forward_backward",
        SpanKind.INTERNAL,
        EXCHANGE | JOB | RACE | end("recovered", 200, 2),
        StatusCode.UNSET,
    )
    assert seen(question) == (
        "tinker_guard.control_plane",
        SpanKind.INTERNAL,
        JOB | RACE | {"tinker_guard.job.state": "JOB_STATE_RUNNING"},
        StatusCode.UNSET,
    )
    assert seen(first) == (
        "resend POST /api/v1/forward_backward",
        SpanKind.CLIENT,
        EXCHANGE
        | RACE
        | {
            "http.request.resend_count": 1,
            "http.response.status_code": 404,
            "tinker_guard.pause": 0.0,
            "error.type": "404",
        },
        StatusCode.ERROR,
    )
    name, kind, attributes, status = seen(second)
    pause = attributes.pop("tinker_guard.pause")
    assert 0.25 <= pause <= 0.5
    assert (name, kind, status) == (
        "resend POST /api/v1/forward_backward",
        SpanKind.CLIENT,
        StatusCode.UNSET,
    )
    assert attributes == EXCHANGE | RACE | {
        "http.request.resend_count": 2,
        "http.response.status_code": 200,
    }
    assert root.context is not None
    for child in (question, first, second):
        assert child.parent is not None
        assert child.parent.span_id == root.context.span_id


@pytest.mark.parametrize(
    ("state", "outcome", "verdict", "reason"),
    [
        ("JOB_STATE_DELETED", "not_found", "genuine_not_found", "job_not_running"),
        (None, "not_found", "genuine_not_found", "job_missing"),
        (ValueError(KEY), "unverified", "unverified", "control_plane_error"),
        (TimeoutError(), "unverified", "unverified", "control_plane_timeout"),
    ],
)
async def test_a_404_handed_back(
    spans: InMemorySpanExporter,
    state: str | Exception | None,
    outcome: str,
    verdict: str,
    reason: str,
) -> None:
    await send(guard(FakeGateway(lambda _: gateway_404()), FakeControlPlane(state)))
    question, root = spans.get_finished_spans()
    labels = {"tinker_guard.verdict": verdict, "tinker_guard.verdict.reason": reason}
    assert seen(root) == (
        "POST /api/v1/forward_backward",
        SpanKind.INTERNAL,
        EXCHANGE | JOB | labels | end(outcome, 404) | {"error.type": "404"},
        StatusCode.ERROR,
    )
    expected: dict[str, Any] = JOB | labels
    if isinstance(state, str):
        expected |= {"tinker_guard.job.state": state}
    if isinstance(state, Exception):
        expected |= {"error.type": reason}
    assert seen(question) == (
        "tinker_guard.control_plane",
        SpanKind.INTERNAL,
        expected,
        StatusCode.ERROR if isinstance(state, Exception) else StatusCode.UNSET,
    )


async def test_a_trainers_own_404(spans: InMemorySpanExporter) -> None:
    await send(guard(FakeGateway(lambda _: trainer_404())))
    (root,) = spans.get_finished_spans()
    labels = {
        "tinker_guard.verdict": "genuine_not_found",
        "tinker_guard.verdict.reason": "trainer_answered",
    }
    assert seen(root)[2:] == (
        EXCHANGE | JOB | labels | end("not_found", 404) | {"error.type": "404"},
        StatusCode.ERROR,
    )


async def test_exhausted(spans: InMemorySpanExporter) -> None:
    await send(guard(FakeGateway(lambda _: gateway_404()), retry_timeout=0.05))
    *_, root = spans.get_finished_spans()
    assert seen(root)[2:] == (
        EXCHANGE | JOB | RACE | end("exhausted", 404, 1) | {"error.type": "404"},
        StatusCode.ERROR,
    )


async def test_a_body_that_cannot_be_replayed_is_named(spans: InMemorySpanExporter) -> None:
    async def body() -> Any:
        yield b"once"

    request = httpx.Request("POST", f"{BASE}/api/v1/upload", content=body())
    await send(guard(FakeGateway(lambda _: gateway_404())), request)
    *_, root = spans.get_finished_spans()
    assert seen(root)[2] == EXCHANGE | JOB | RACE | end("exhausted", 404) | {
        "error.type": "404",
        "tinker_guard.replayable": False,
    }


async def test_no_trainer_route(spans: InMemorySpanExporter) -> None:
    request = httpx.Request("GET", "http://127.0.0.1:8000/api/v1/healthz?key=secret")
    await send(guard(FakeGateway(lambda _: gateway_404())), request)
    (root,) = spans.get_finished_spans()
    assert seen(root) == (
        "GET",
        SpanKind.INTERNAL,
        {
            "http.request.method": "GET",
            "server.address": "127.0.0.1",
            "server.port": 8000,
            "tinker_guard.verdict": "unverified",
            "tinker_guard.verdict.reason": "no_control_plane",
            "error.type": "404",
        }
        | end("unverified", 404),
        StatusCode.ERROR,
    )


async def test_error(spans: InMemorySpanExporter) -> None:
    async def fail(_: object) -> httpx.Response:
        raise httpx.ConnectError(f"refused {KEY}")

    with pytest.raises(httpx.ConnectError):
        await send(guard(FakeGateway(fail)))
    (root,) = spans.get_finished_spans()
    assert seen(root)[2:] == (
        EXCHANGE | JOB | end("error", None) | {"error.type": "ConnectError"},
        StatusCode.ERROR,
    )
    assert root.events == ()


async def test_a_server_error_is_an_error_of_the_span(spans: InMemorySpanExporter) -> None:
    await send(guard(FakeGateway(lambda _: httpx.Response(503))))
    (root,) = spans.get_finished_spans()
    assert seen(root)[2:] == (
        EXCHANGE | JOB | end("ok", 503) | {"error.type": "503"},
        StatusCode.ERROR,
    )


async def test_cancelled(spans: InMemorySpanExporter) -> None:
    async def hang(_: object) -> httpx.Response:
        await asyncio.sleep(1000)
        return ok()

    task = asyncio.create_task(send(guard(FakeGateway(hang))))
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (root,) = spans.get_finished_spans()
    assert seen(root)[2:] == (EXCHANGE | JOB | end("cancelled", None), StatusCode.UNSET)


async def test_cancelled_in_a_race(spans: InMemorySpanExporter) -> None:
    task = asyncio.create_task(send(guard(FakeGateway(lambda _: gateway_404()))))
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    *_, root = spans.get_finished_spans()
    assert seen(root)[2:] == (
        EXCHANGE | JOB | RACE | end("cancelled", None),
        StatusCode.UNSET,
    )


async def test_warmup(spans: InMemorySpanExporter) -> None:
    await send(guard(FakeGateway(), warmup_successes=3))
    warmup, root = spans.get_finished_spans()
    assert seen(warmup) == (
        "tinker_guard.warmup",
        SpanKind.INTERNAL,
        JOB | {"tinker_guard.warmup.probes": 3},
        StatusCode.UNSET,
    )
    assert seen(root)[2] == EXCHANGE | JOB | end("ok", 200)


async def test_warmup_that_is_refused(spans: InMemorySpanExporter) -> None:
    gateway = FakeGateway(lambda _: gateway_404())
    await send(guard(gateway, FakeControlPlane(None), warmup_successes=3))
    _, warmup, root = spans.get_finished_spans()
    labels = {
        "tinker_guard.verdict": "genuine_not_found",
        "tinker_guard.verdict.reason": "job_missing",
        "error.type": "404",
    }
    assert seen(warmup) == (
        "tinker_guard.warmup",
        SpanKind.INTERNAL,
        JOB | labels | {"tinker_guard.warmup.probes": 3},
        StatusCode.ERROR,
    )
    assert seen(root)[2:] == (EXCHANGE | JOB | labels | end("not_found", 404), StatusCode.ERROR)


@pytest.mark.parametrize(
    ("status_code", "more", "status"),
    [
        (
            200,
            RACE | {"tinker_guard.job.state": "JOB_STATE_RUNNING"},
            StatusCode.UNSET,
        ),
        (
            401,
            {
                "tinker_guard.verdict": "unverified",
                "tinker_guard.verdict.reason": "control_plane_error",
                "error.type": "401",
            },
            StatusCode.ERROR,
        ),
    ],
)
async def test_a_question_over_http_is_the_exchanges_client_span(
    spans: InMemorySpanExporter, status_code: int, more: dict[str, Any], status: StatusCode
) -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(status_code, json={"state": "JOB_STATE_RUNNING"})

    plane = FireworksControlPlane("https://api.test/?", transport=httpx.MockTransport(answer))
    gateway = FakeGateway(lambda e: gateway_404() if e.connection == 0 else ok())
    await send(guard(gateway, plane))
    question = spans.get_finished_spans()[0]
    assert seen(question) == (
        "GET /v1/accounts/{account}/rlorTrainerJobs/{job}",
        SpanKind.CLIENT,
        JOB
        | {
            "http.request.method": "GET",
            "http.response.status_code": status_code,
            "server.address": "api.test",
            "server.port": 443,
        }
        | more,
        status,
    )


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/api/v1/forward_backward", "POST /api/v1/forward_backward"),
        ("/api/v1/client/config", "POST /api/v1/client/config"),
        ("/api/v1/sessions/session-1/finish", "POST /api/v1/sessions/{id}/finish"),
        ("/api/v1/training_runs/a:train:0/x?y=z", "POST /api/v1/training_runs/{id}/x"),
        ("/api/v1/weights/%2Fsecret", "POST /api/v1/weights/{id}"),
        (
            "/api/v1/training_runs/r/checkpoints/mine/ttl",
            "POST /api/v1/training_runs/{id}/checkpoints/{id}/ttl",
        ),
        ("/api/v1/sessions/search", "POST /api/v1/sessions/search"),
        ("/", "POST /"),
    ],
)
async def test_names_hold_no_ids(spans: InMemorySpanExporter, path: str, name: str) -> None:
    await send(guard(FakeGateway()), post(path))
    assert spans.get_finished_spans()[0].name == name


async def test_spans_nest_in_the_callers(spans: InMemorySpanExporter) -> None:
    with trace.get_tracer("user").start_as_current_span("step") as step:
        await send(guard(FakeGateway()))
        assert trace.get_current_span() is step
    root = spans.get_finished_spans()[0]
    assert root.parent is not None
    assert root.parent.span_id == step.get_span_context().span_id


async def test_the_inner_transport_runs_in_the_requests_span(spans: InMemorySpanExporter) -> None:
    inside = []

    def answer(_: object) -> httpx.Response:
        inside.append(trace.get_current_span().get_span_context().span_id)
        return ok()

    await send(guard(FakeGateway(answer)))
    root = spans.get_finished_spans()[0]
    assert root.context is not None
    assert inside == [root.context.span_id]


async def test_no_other_instrumentation_adds_a_client_span_to_a_resend(
    spans: InMemorySpanExporter,
) -> None:
    allowed: list[bool] = []

    def answer(exchange: Exchange) -> httpx.Response:
        allowed.append(is_http_instrumentation_enabled())
        return gateway_404() if exchange.connection == 0 else ok()

    await send(guard(FakeGateway(answer)))
    first, probe, resend = allowed
    assert (first, probe, resend) == (True, True, False)
    assert spans.get_finished_spans()[-2].kind is SpanKind.CLIENT


async def test_a_misconfigured_opentelemetry_breaks_no_request(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise StopIteration

    monkeypatch.setattr(trace, "get_tracer_provider", fail)
    await send(guard(FakeGateway(lambda e: gateway_404() if e.connection == 0 else ok())))
    assert "a fault of its own in telemetry (the tracer provider)" in caplog.text


async def test_no_secret_in_any_span_or_line(
    spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    gateway = FakeGateway(lambda e: gateway_404() if e.at < 2 else ok())
    await send(
        guard(gateway, warmup_successes=3), post("/api/v1/x?key=query-secret", b"body-secret")
    )
    await send(guard(gateway, FakeControlPlane(OSError(KEY))))
    everything = "".join(span.to_json() for span in spans.get_finished_spans()) + caplog.text
    for secret in (KEY, "idem-1", "query-secret", "body-secret"):
        assert secret not in everything


class _BrokenTracer:
    def start_span(self, *_: object, **__: object) -> None:
        raise ZeroDivisionError


class _BrokenSpan(trace.NonRecordingSpan):
    def is_recording(self) -> bool:
        return True

    def set_attributes(self, attributes: object) -> None:
        raise ZeroDivisionError

    def end(self, end_time: int | None = None) -> None:
        raise ZeroDivisionError


class _TracerOfBrokenSpans:
    def start_span(self, *_: object, **__: object) -> trace.Span:
        return _BrokenSpan(trace.INVALID_SPAN_CONTEXT)


@pytest.mark.parametrize("tracer", [_BrokenTracer(), _TracerOfBrokenSpans()])
@pytest.mark.usefixtures("spans")
async def test_broken_telemetry_breaks_no_request(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tracer: object
) -> None:
    monkeypatch.setattr(telemetry, "_tracer", lambda: tracer)
    gateway = FakeGateway(lambda e: gateway_404() if e.at < 1 else ok())
    transport = guard(gateway, warmup_successes=3)
    for _ in range(3):
        await send(transport)
    assert gateway.sent[-1].response is not None
    assert gateway.sent[-1].response.status_code == 200
    faults = [line for line in caplog.messages if "a fault of its own in telemetry" in line]
    assert faults
    assert len(faults) == len(set(faults))
    assert trace.get_current_span() is trace.INVALID_SPAN
