from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.utils import is_http_instrumentation_enabled
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased
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
from tinker_guard import GuardSettings, GuardTransport, observers, telemetry
from tinker_guard import spans as telemetry_spans
from tinker_guard.control_plane import FireworksControlPlane

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from opentelemetry.sdk.trace import ReadableSpan

    from tinker_guard import ControlPlane

pytestmark = pytest.mark.anyio

EXCHANGE = {
    "http.request.method": "POST",
    "server.address": "gateway.test",
    "server.port": 443,
}
JOB = {"tinker_guard.account": "acc", "tinker_guard.job": "job-1"}
REQUEST = EXCHANGE | JOB | {"tinker_guard.operation": "forward_backward"}
ON_WIRE = EXCHANGE | {"url.full": f"{BASE}/api/v1/forward_backward"}
RACE = {"tinker_guard.verdict": "routing_race", "tinker_guard.verdict.reason": "job_running"}
NAME = "POST /api/v1/forward_backward"


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


def end(
    outcome: str,
    status_code: int | None,
    resends: int = 0,
    met: dict[str, str] | None = None,
    name: str = NAME,
) -> dict[str, Any]:
    """How a request ends; `met` is the verdict on its last 404."""
    attributes: dict[str, Any] = {
        "tinker_guard.outcome": outcome,
        "tinker_guard.retries": resends,
    }
    if met is not None:
        said = f"{outcome}: {met['tinker_guard.verdict']}, {met['tinker_guard.verdict.reason']}"
        attributes |= met | {"input.value": name, "output.value": said}
    return (
        attributes
        if status_code is None
        else attributes | {"http.response.status_code": status_code}
    )


def answered(status_code: int) -> dict[str, Any]:
    attributes: dict[str, Any] = {"http.response.status_code": status_code}
    return attributes | ({"error.type": str(status_code)} if status_code >= 400 else {})


def is_sampled(traceparent: str) -> bool:
    return bool(int(traceparent.split("-")[3], 16) & 1)


def below(parent: ReadableSpan, spans: InMemorySpanExporter) -> list[ReadableSpan]:
    """The spans right below one, in the order in which they started."""
    found = [
        span
        for span in spans.get_finished_spans()
        if span.parent is not None
        and parent.context is not None
        and span.parent.span_id == parent.context.span_id
    ]
    return sorted(found, key=lambda span: span.start_time or 0)


def root_of(spans: InMemorySpanExporter) -> ReadableSpan:
    (root,) = (span for span in spans.get_finished_spans() if span.parent is None)
    return root


async def test_ok(spans: InMemorySpanExporter) -> None:
    await send(guard(FakeGateway()))
    exchange, root = spans.get_finished_spans()
    assert seen(root) == (NAME, SpanKind.INTERNAL, REQUEST | end("ok", 200), StatusCode.UNSET)
    assert seen(exchange) == (NAME, SpanKind.CLIENT, ON_WIRE | answered(200), StatusCode.UNSET)
    assert below(root, spans) == [exchange]


async def test_recovered(spans: InMemorySpanExporter) -> None:
    def answer(exchange: Exchange) -> httpx.Response:
        return ok() if exchange.is_probe or len(gateway.sent) > 2 else gateway_404()

    gateway = FakeGateway(answer)
    await send(guard(gateway, backoff_initial=0.5))
    root = root_of(spans)
    assert seen(root) == (
        NAME,
        SpanKind.INTERNAL,
        REQUEST | end("recovered", 200, 2, met=RACE),
        StatusCode.UNSET,
    )
    exchange, question, *probes_and_resends = below(root, spans)
    assert seen(exchange) == (NAME, SpanKind.CLIENT, ON_WIRE | answered(404), StatusCode.ERROR)
    assert seen(question) == (
        "tinker_guard.control_plane",
        SpanKind.INTERNAL,
        JOB | RACE | {"tinker_guard.job.state": "JOB_STATE_RUNNING"},
        StatusCode.UNSET,
    )
    probe, first, *_, second = probes_and_resends
    probing = EXCHANGE | {"http.request.method": "GET"} | answered(200)
    assert seen(probe) == (
        "probe GET /api/v1/get_server_capabilities",
        SpanKind.INTERNAL,
        probing | {"tinker_guard.probe.result": "reached"},
        StatusCode.UNSET,
    )
    (on_wire,) = below(probe, spans)
    assert seen(on_wire) == (
        "GET /api/v1/get_server_capabilities",
        SpanKind.CLIENT,
        probing | {"url.full": f"{BASE}/api/v1/get_server_capabilities"},
        StatusCode.UNSET,
    )
    for number, resend, status_code in ((1, first, 404), (2, second, 200)):
        status = StatusCode.ERROR if status_code == 404 else StatusCode.UNSET
        count = {"http.request.resend_count": number}
        name, kind, attributes, was = seen(resend)
        pause = attributes.pop("tinker_guard.pause")
        assert 0.25 <= pause <= 0.5 if number == 2 else pause == 0.0
        assert (name, kind, was) == (f"resend {NAME}", SpanKind.INTERNAL, status)
        assert attributes == EXCHANGE | RACE | count | answered(status_code)
        (on_wire,) = below(resend, spans)
        assert seen(on_wire) == (
            NAME,
            SpanKind.CLIENT,
            ON_WIRE | count | answered(status_code),
            status,
        )


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
    _, question, root = spans.get_finished_spans()
    labels = {"tinker_guard.verdict": verdict, "tinker_guard.verdict.reason": reason}
    assert seen(root) == (
        NAME,
        SpanKind.INTERNAL,
        REQUEST | end(outcome, 404, met=labels) | {"error.type": "404"},
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
    _, root = spans.get_finished_spans()
    labels = {
        "tinker_guard.verdict": "genuine_not_found",
        "tinker_guard.verdict.reason": "trainer_answered",
    }
    assert seen(root)[2:] == (
        REQUEST | end("not_found", 404, met=labels) | {"error.type": "404"},
        StatusCode.ERROR,
    )


async def test_exhausted(spans: InMemorySpanExporter) -> None:
    await send(guard(FakeGateway(lambda _: gateway_404()), retry_timeout=0.05))
    assert seen(root_of(spans))[2:] == (
        REQUEST | end("exhausted", 404, 1, met=RACE) | {"error.type": "404"},
        StatusCode.ERROR,
    )


async def test_a_body_that_cannot_be_replayed_is_named(spans: InMemorySpanExporter) -> None:
    async def body() -> Any:
        yield b"once"

    request = httpx.Request("POST", f"{BASE}/api/v1/forward_backward", content=body())
    await send(guard(FakeGateway(lambda _: gateway_404())), request)
    assert seen(root_of(spans))[2] == REQUEST | end("exhausted", 404, met=RACE) | {
        "error.type": "404",
        "tinker_guard.replayable": False,
    }


async def test_no_trainer_route(spans: InMemorySpanExporter) -> None:
    request = httpx.Request("GET", "http://user:pw@127.0.0.1:8000/api/v1/healthz?key=secret#part")
    await send(guard(FakeGateway(lambda _: gateway_404())), request)
    exchange, root = spans.get_finished_spans()
    expected = {
        "http.request.method": "GET",
        "server.address": "127.0.0.1",
        "server.port": 8000,
        "error.type": "404",
    }
    verdict = {
        "tinker_guard.verdict": "unverified",
        "tinker_guard.verdict.reason": "no_control_plane",
    }
    assert seen(root) == (
        "GET",
        SpanKind.INTERNAL,
        expected | end("unverified", 404, met=verdict, name="GET"),
        StatusCode.ERROR,
    )
    assert seen(exchange) == (
        "GET",
        SpanKind.CLIENT,
        expected | answered(404) | {"url.full": "http://127.0.0.1:8000/api/v1/healthz"},
        StatusCode.ERROR,
    )


async def test_a_method_that_no_standard_knows(spans: InMemorySpanExporter) -> None:
    await send(guard(FakeGateway()), httpx.Request("BREW", f"{BASE}/api/v1/forward_backward"))
    method = {"http.request.method": "_OTHER", "http.request.method_original": "BREW"}
    exchange, root = spans.get_finished_spans()
    assert seen(root)[:3] == (
        "HTTP /api/v1/forward_backward",
        SpanKind.INTERNAL,
        REQUEST | method | end("ok", 200),
    )
    assert seen(exchange)[:3] == (
        "HTTP /api/v1/forward_backward",
        SpanKind.CLIENT,
        ON_WIRE | method | answered(200),
    )


async def test_the_protocol_is_noted_where_the_transport_tells(
    spans: InMemorySpanExporter,
) -> None:
    def answer(_: object) -> httpx.Response:
        response = ok()
        response.extensions["http_version"] = b"HTTP/2"
        return response

    await send(guard(FakeGateway(answer)))
    exchange, _ = spans.get_finished_spans()
    assert seen(exchange)[2] == ON_WIRE | answered(200) | {"network.protocol.version": "2"}


async def test_error(spans: InMemorySpanExporter) -> None:
    async def fail(_: object) -> httpx.Response:
        raise httpx.ConnectError(f"refused {KEY}")

    with pytest.raises(httpx.ConnectError):
        await send(guard(FakeGateway(fail)))
    exchange, root = spans.get_finished_spans()
    error = {"error.type": "httpx.ConnectError"}
    assert seen(root)[2:] == (REQUEST | end("error", None) | error, StatusCode.ERROR)
    assert seen(exchange)[2:] == (ON_WIRE | error, StatusCode.ERROR)
    assert root.events == exchange.events == ()


async def test_an_error_in_a_resend(spans: InMemorySpanExporter) -> None:
    async def fail(exchange: Exchange) -> httpx.Response:
        if len(gateway.sent) > 1 and not exchange.is_probe:
            raise TimeoutError
        return ok() if exchange.is_probe else gateway_404()

    gateway = FakeGateway(fail)
    with pytest.raises(TimeoutError):
        await send(guard(gateway))
    root = root_of(spans)
    error = {"error.type": "TimeoutError"}
    assert seen(root)[2:] == (REQUEST | end("error", None, 1, met=RACE) | error, StatusCode.ERROR)
    resend = below(root, spans)[-1]
    (on_wire,) = below(resend, spans)
    count = {"http.request.resend_count": 1}
    assert seen(resend)[2:] == (
        EXCHANGE | RACE | count | error | {"tinker_guard.pause": 0.0},
        StatusCode.ERROR,
    )
    assert seen(on_wire)[2:] == (ON_WIRE | count | error, StatusCode.ERROR)


async def test_a_server_error_is_an_error_of_the_span(spans: InMemorySpanExporter) -> None:
    await send(guard(FakeGateway(lambda _: httpx.Response(503))))
    exchange, root = spans.get_finished_spans()
    assert seen(root)[2:] == (
        REQUEST | end("ok", 503) | {"error.type": "503"},
        StatusCode.ERROR,
    )
    assert seen(exchange)[2:] == (ON_WIRE | answered(503), StatusCode.ERROR)


async def hang(_: object) -> httpx.Response:
    await asyncio.sleep(1000)
    return ok()


async def test_cancelled(spans: InMemorySpanExporter) -> None:
    task = asyncio.create_task(send(guard(FakeGateway(hang))))
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    exchange, root = spans.get_finished_spans()
    assert seen(root)[2:] == (REQUEST | end("cancelled", None), StatusCode.UNSET)
    assert seen(exchange)[2:] == (ON_WIRE, StatusCode.UNSET)


async def test_cancelled_in_a_race(spans: InMemorySpanExporter) -> None:
    task = asyncio.create_task(send(guard(FakeGateway(lambda _: gateway_404()))))
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen(root_of(spans))[2:] == (
        REQUEST | end("cancelled", None, met=RACE),
        StatusCode.UNSET,
    )


def slow_probe(exchange: Exchange) -> Awaitable[httpx.Response]:
    """A gateway that takes a second and a half for each probe."""

    async def answer() -> httpx.Response:
        await asyncio.sleep(1.5 if exchange.is_probe else 0)
        return ok()

    return answer()


def waited(outcome: str, seconds: float) -> dict[str, Any]:
    return {
        "tinker_guard.warmup.wait": seconds,
        "input.value": NAME,
        "output.value": f"{outcome}: waited {seconds:.2f} s for the warmup",
    }


async def test_warmup(spans: InMemorySpanExporter) -> None:
    await send(guard(FakeGateway(slow_probe), warmup_successes=3))
    root = root_of(spans)
    warmup, exchange = below(root, spans)
    assert seen(warmup) == (
        "tinker_guard.warmup",
        SpanKind.INTERNAL,
        JOB | {"tinker_guard.warmup.probes": 3},
        StatusCode.UNSET,
    )
    assert [seen(probe)[2]["tinker_guard.probe.result"] for probe in below(warmup, spans)] == [
        "reached",
        "reached",
        "reached",
    ]
    assert seen(root)[2] == REQUEST | end("ok", 200) | waited("ok", 1.5)
    assert exchange.kind is SpanKind.CLIENT


async def test_a_wait_for_the_warmup_of_another_request(spans: InMemorySpanExporter) -> None:
    transport = guard(FakeGateway(slow_probe), warmup_successes=3)
    leader = asyncio.create_task(send(transport))
    await asyncio.sleep(1)
    impatient = asyncio.create_task(send(transport))
    follower = asyncio.create_task(send(transport))
    await asyncio.sleep(0.25)
    impatient.cancel()
    await asyncio.wait([leader, impatient, follower])
    roots = sorted(
        (span for span in spans.get_finished_spans() if span.parent is None),
        key=lambda span: span.start_time or 0,
    )
    assert [seen(root)[2] for root in roots] == [
        REQUEST | end("ok", 200) | waited("ok", 1.5),
        REQUEST | end("cancelled", None) | waited("cancelled", 0.25),
        REQUEST | end("ok", 200) | waited("ok", 0.5),
    ]
    assert [len(below(root, spans)) for root in roots] == [2, 0, 1]


async def test_warmup_that_is_refused(spans: InMemorySpanExporter) -> None:
    gateway = FakeGateway(lambda _: gateway_404())
    await send(guard(gateway, FakeControlPlane(None), warmup_successes=3))
    root = root_of(spans)
    (warmup,) = below(root, spans)
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
    *probes, question = below(warmup, spans)
    for probe in probes:
        assert seen(probe) == (
            "probe GET /api/v1/get_server_capabilities",
            SpanKind.INTERNAL,
            EXCHANGE
            | answered(404)
            | {"http.request.method": "GET", "tinker_guard.probe.result": "not_found"},
            StatusCode.ERROR,
        )
    assert question.name == "tinker_guard.control_plane"
    ended = end("not_found", 404, met=labels) | {"tinker_guard.warmup.wait": 0.0}
    assert seen(root)[2:] == (REQUEST | ended, StatusCode.ERROR)


async def test_a_probe_that_fails(spans: InMemorySpanExporter) -> None:
    def answer(exchange: Exchange) -> httpx.Response:
        if exchange.is_probe:
            raise httpx.ConnectError("refused")
        return ok()

    await send(guard(FakeGateway(answer), warmup_successes=1))
    warmup, _ = below(root_of(spans), spans)
    (probe,) = below(warmup, spans)
    assert seen(probe)[2:] == (
        EXCHANGE
        | {
            "http.request.method": "GET",
            "tinker_guard.probe.result": "failed",
            "error.type": "httpx.ConnectError",
        },
        StatusCode.ERROR,
    )


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
                "error.type": "control_plane_error",
            },
            StatusCode.ERROR,
        ),
    ],
)
async def test_a_question_over_http_has_its_exchange_below_it(
    spans: InMemorySpanExporter, status_code: int, more: dict[str, Any], status: StatusCode
) -> None:
    told: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        told.extend(request.headers.get_list("traceparent"))
        return httpx.Response(status_code, json={"state": "JOB_STATE_RUNNING"})

    plane = FireworksControlPlane("https://api.test/x", transport=httpx.MockTransport(answer))
    gateway = FakeGateway(lambda e: gateway_404() if e.connection == 0 else ok())
    await send(guard(gateway, plane))
    question = below(root_of(spans), spans)[1]
    (exchange,) = below(question, spans)
    assert seen(question) == (
        "tinker_guard.control_plane",
        SpanKind.INTERNAL,
        JOB | more,
        status,
    )
    assert seen(exchange) == (
        "GET /v1/accounts/{account}/rlorTrainerJobs/{job}",
        SpanKind.CLIENT,
        answered(status_code)
        | {
            "http.request.method": "GET",
            "server.address": "api.test",
            "server.port": 443,
            "url.full": "https://api.test/x/v1/accounts/acc/rlorTrainerJobs/job-1",
        },
        status,
    )
    assert exchange.context is not None
    assert [traceparent[:53] for traceparent in told] == [
        f"00-{exchange.context.trace_id:032x}-{exchange.context.span_id:016x}-"
    ]
    assert is_sampled(*told)


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
    assert {span.name for span in spans.get_finished_spans()} == {name}


async def test_spans_nest_in_the_callers(spans: InMemorySpanExporter) -> None:
    with trace.get_tracer("user").start_as_current_span("step") as step:
        await send(guard(FakeGateway()))
        assert trace.get_current_span() is step
    root = spans.get_finished_spans()[1]
    assert root.parent is not None
    assert root.parent.span_id == step.get_span_context().span_id
    assert dict(spans.get_finished_spans()[2].attributes or {}) == {}


@pytest.mark.parametrize(
    ("answer", "state", "met"),
    [
        (
            lambda e: gateway_404() if e.connection == 0 else ok(),
            "JOB_STATE_RUNNING",
            "routing_race",
        ),
        (lambda _: gateway_404(), None, "genuine_not_found"),
        (lambda _: gateway_404(), OSError(), "unverified"),
        (lambda _: trainer_404(), None, None),
    ],
)
async def test_the_callers_span_says_what_was_met(
    spans: InMemorySpanExporter,
    answer: Callable[[Exchange], httpx.Response],
    state: str | Exception | None,
    met: str | None,
) -> None:
    with trace.get_tracer("user").start_as_current_span("step"):
        await send(guard(FakeGateway(answer), FakeControlPlane(state)))
    attributes = dict(root_of(spans).attributes or {})
    assert attributes == ({} if met is None else {"tinker_guard.met": met})


async def test_the_inner_transport_runs_in_its_exchange(spans: InMemorySpanExporter) -> None:
    inside = []

    def answer(_: object) -> httpx.Response:
        inside.append(trace.get_current_span().get_span_context().span_id)
        return ok()

    await send(guard(FakeGateway(answer)))
    exchange, _ = spans.get_finished_spans()
    assert exchange.context is not None
    assert inside == [exchange.context.span_id]


async def test_other_instrumentations_keep_out_of_every_exchange(
    spans: InMemorySpanExporter,
) -> None:
    allowed: list[bool] = []

    def answer(exchange: Exchange) -> httpx.Response:
        allowed.append(is_http_instrumentation_enabled())
        return gateway_404() if exchange.connection == 0 else ok()

    await send(guard(FakeGateway(answer)))
    assert allowed == [False, False, False]
    assert is_http_instrumentation_enabled()
    assert len(spans.get_finished_spans()) == 7


async def test_the_callers_request_stays_as_it_is(spans: InMemorySpanExporter) -> None:
    """Each exchange tells its own span, on a request of its own that shares all but headers."""
    gateway = FakeGateway(lambda e: gateway_404() if e.connection == 0 else ok())
    request = post()
    before = request.headers.copy()
    await send(guard(gateway), request)
    assert request.headers == before
    exchanges = {
        f"{span.context.span_id:016x}"
        for span in spans.get_finished_spans()
        if span.kind is SpanKind.CLIENT and span.context is not None
    }
    told = [e.headers.get_list("traceparent") for e in gateway.exchanges]
    assert {parent.split("-")[2] for (parent,) in told} == exchanges
    assert len(exchanges) == len(gateway.exchanges) == 3
    for exchange in gateway.sent:
        del exchange.headers["traceparent"]
        assert exchange.headers == before
        assert exchange.extensions == request.extensions


# -- noise -----------------------------------------------------------------------------------------

POLL = "/api/v1/retrieve_future"


@pytest.mark.parametrize(
    ("trace_setting", "work", "poll"),
    [("all", 2, 2), ("work", 2, 0), ("eventful", 0, 0), ("off", 0, 0)],
)
async def test_what_is_traced_of_a_request_without_events(
    spans: InMemorySpanExporter, trace_setting: str, work: int, poll: int
) -> None:
    transport = guard(FakeGateway(), trace=trace_setting)
    await send(transport)
    assert len(spans.get_finished_spans()) == work
    await send(transport, post(POLL))
    assert len(spans.get_finished_spans()) == work + poll


@pytest.mark.parametrize("path", ["session_heartbeat", "telemetry", "retrieve_futures"])
async def test_background_requests(spans: InMemorySpanExporter, path: str) -> None:
    await send(guard(FakeGateway()), post(f"/api/v1/{path}"))
    hosted = httpx.Request("POST", f"https://hosted.test/services/x/api/v1/{path}", content=b"")
    await send(guard(FakeGateway()), hosted)
    assert spans.get_finished_spans() == ()


async def test_a_poll_that_meets_a_404_is_traced_from_its_beginning(
    spans: InMemorySpanExporter,
) -> None:
    gateway = FakeGateway(lambda e: gateway_404() if e.connection == 0 else ok())
    before = time.time_ns()
    await send(guard(gateway), post(POLL))
    root = root_of(spans)
    assert seen(root) == (
        f"POST {POLL}",
        SpanKind.INTERNAL,
        REQUEST
        | end("recovered", 200, 1, met=RACE, name="POST /api/v1/retrieve_future")
        | {"tinker_guard.operation": "retrieve_future"},
        StatusCode.UNSET,
    )
    exchange, question, probe, resend = below(root, spans)
    assert seen(exchange) == (
        f"POST {POLL}",
        SpanKind.CLIENT,
        ON_WIRE | answered(404) | {"url.full": BASE + POLL},
        StatusCode.ERROR,
    )
    assert [question.name, probe.name, resend.name] == [
        "tinker_guard.control_plane",
        "probe GET /api/v1/get_server_capabilities",
        f"resend POST {POLL}",
    ]
    times = [
        when or 0
        for when in (root.start_time, exchange.start_time, exchange.end_time, question.start_time)
    ]
    assert [before, *times] == sorted([before, *times])


async def test_a_poll_that_waits_is_traced(spans: InMemorySpanExporter) -> None:
    await send(guard(FakeGateway(), warmup_successes=1), post(POLL))
    assert [span.name for span in below(root_of(spans), spans)] == [
        "tinker_guard.warmup",
        f"POST {POLL}",
    ]


async def test_a_poll_that_fails_is_traced(spans: InMemorySpanExporter) -> None:
    def fail(_: object) -> httpx.Response:
        raise httpx.ReadError("broken")

    with pytest.raises(httpx.ReadError):
        await send(guard(FakeGateway(fail)), post(POLL))
    exchange, root = spans.get_finished_spans()
    assert seen(root)[2]["error.type"] == seen(exchange)[2]["error.type"] == "httpx.ReadError"
    await send(guard(FakeGateway(lambda _: httpx.Response(500))), post(POLL))
    assert seen(spans.get_finished_spans()[-1])[2]["error.type"] == "500"


async def test_a_poll_that_is_cancelled_is_no_event(spans: InMemorySpanExporter) -> None:
    task = asyncio.create_task(send(guard(FakeGateway(hang)), post(POLL)))
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert spans.get_finished_spans() == ()
    assert trace.get_current_span() is trace.INVALID_SPAN


@pytest.mark.parametrize("has_caller", [False, True])
async def test_what_is_below_a_quiet_request_is_not_sampled(
    spans: InMemorySpanExporter, has_caller: bool
) -> None:
    def answer(_: object) -> httpx.Response:
        trace.get_tracer("pyqwest").start_span("POST", kind=SpanKind.CLIENT).end()
        return ok()

    gateway = FakeGateway(answer)
    caller = trace.get_tracer("user").start_span("step") if has_caller else trace.INVALID_SPAN
    with trace.use_span(caller):
        await send(guard(gateway), post(POLL))
    assert spans.get_finished_spans() == ()
    (told,) = gateway.sent[0].headers.get_list("traceparent")
    assert not is_sampled(told)
    if has_caller:
        assert told.split("-")[1] == f"{caller.get_span_context().trace_id:032x}"
    caller.end()


async def test_what_the_programs_sampler_drops_is_dropped_as_a_whole(
    spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropping = TracerProvider(sampler=ParentBased(ALWAYS_OFF))
    monkeypatch.setattr(telemetry, "tracer", lambda: dropping.get_tracer("tinker_guard"))

    def answer(exchange: Exchange) -> httpx.Response:
        trace.get_tracer("pyqwest").start_span("POST", kind=SpanKind.CLIENT).end()
        return gateway_404() if exchange.connection == 0 else ok()

    gateway = FakeGateway(answer)
    await send(guard(gateway))
    assert spans.get_finished_spans() == ()
    assert not any(is_sampled(e.headers["traceparent"]) for e in gateway.sent)


async def test_a_sampler_that_minds_no_parent_is_let_be(
    spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then a transport that traces by itself traces polls too, and once."""
    keeping, kept = TracerProvider(sampler=ALWAYS_ON), InMemorySpanExporter()
    keeping.add_span_processor(SimpleSpanProcessor(kept))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: keeping)
    monkeypatch.setattr(telemetry, "emits_client_span", lambda _: True)

    def answer(exchange: Exchange) -> httpx.Response:
        trace.get_tracer("pyqwest").start_span("POST", kind=SpanKind.CLIENT).end()
        return gateway_404() if exchange.connection == 0 else ok()

    gateway = FakeGateway(answer)
    await send(guard(gateway), post(POLL))
    assert len(kept.get_finished_spans()) == len(gateway.exchanges) == 3
    assert not any(span.kind is SpanKind.CLIENT for span in spans.get_finished_spans())
    assert seen(root_of(spans))[2]["tinker_guard.outcome"] == "recovered"


# -- faults ----------------------------------------------------------------------------------------


async def test_a_misconfigured_opentelemetry_breaks_no_request(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise StopIteration

    monkeypatch.setattr(trace, "get_tracer_provider", fail)
    observers.look_again()
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
    monkeypatch.setattr(telemetry, "tracer", lambda: tracer)
    monkeypatch.setattr(telemetry_spans, "tracer", lambda: tracer)
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


@pytest.mark.parametrize("jump", [-3600.0, 3600.0])
async def test_a_wall_clock_that_is_set_meanwhile_changes_no_duration(
    jump: float, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by the simulation: a span ended before it began."""
    real = time.time_ns
    jumped_ns = 0

    def time_ns() -> int:
        return real() + jumped_ns

    def answer(exchange: Exchange) -> httpx.Response:
        nonlocal jumped_ns
        if exchange.at > 0 and not jumped_ns:
            jumped_ns = int(jump * 1e9)
        return ok() if exchange.at > 0.5 else gateway_404()

    monkeypatch.setattr(time, "time_ns", time_ns)
    monkeypatch.setattr("opentelemetry.sdk.trace.time_ns", time_ns)
    await send(guard(FakeGateway(answer), warmup_successes=1))
    ended = spans.get_finished_spans()
    assert {"tinker_guard.warmup", "tinker_guard.control_plane"} < {span.name for span in ended}
    for span in ended:
        assert span.start_time is not None
        assert span.end_time is not None
        assert 0 <= span.end_time - span.start_time < 60e9
