from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.utils import is_http_instrumentation_enabled
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
)
from opentelemetry.trace import SpanKind, StatusCode

from testkit.fakes import (
    BASE,
    KEY,
    Exchange,
    FakeControlPlane,
    FakeGateway,
    gateway_404,
    judged,
    ok,
    post,
    send,
    settle,
    trainer_404,
)
from testkit.fakes import ungated as guard
from tinker_guard import telemetry
from tinker_guard.control_plane.fireworks import FireworksControlPlane
from tinker_guard.observability import actions, begun, providers
from tinker_guard.observability import exchange as telemetry_spans
from tinker_guard.observability import request as request_spans

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan

    from tests.conftest import Measured


pytestmark = pytest.mark.anyio

EXCHANGE = {
    "http.request.method": "POST",
    "server.address": "gateway.test",
    "server.port": 443,
}
JOB = {"tinker_guard.account": "acc", "tinker_guard.job": "job-1"}
REQUEST = EXCHANGE | JOB | {"tinker_guard.operation": "forward_backward"}
ON_WIRE = EXCHANGE | {"url.full": f"{BASE}/api/v1/forward_backward"}
CLEAN = REQUEST | ON_WIRE
"""A request to which nothing happens has one span, its exchange's."""
RACE = judged("routing_race", "job_running")
FIREWORKS = {
    "tinker_guard.not_found.source": "gateway",
    "tinker_guard.not_found.gateway": "fireworks",
}
NAME = "POST /api/v1/forward_backward"


def seen(span: ReadableSpan) -> tuple[str, SpanKind, dict[str, Any], StatusCode]:
    return span.name, span.kind, dict(span.attributes or {}), span.status.status_code


def end(
    outcome: str,
    status_code: int | None,
    resends: int = 0,
    met: dict[str, str] | None = None,
    name: str = NAME,
    wrote: dict[str, str] | None = None,
) -> dict[str, Any]:
    """How a request ends.

    `met` is the verdict on its last 404; `wrote` says who wrote that, the gateway if it is None.
    Of a race that was over at the gate, the probes tell.
    """
    attributes: dict[str, Any] = {
        "tinker_guard.outcome": outcome,
        "tinker_guard.retries": resends,
        "input.value": name,
        "output.value": outcome,
    }
    if met is not None:
        said = f"{outcome}: {met['tinker_guard.verdict']}, {met['tinker_guard.verdict.reason']}"
        attributes |= FIREWORKS if wrote is None else wrote
        attributes |= met | {"input.value": name, "output.value": said}
    return (
        attributes
        if status_code is None
        else attributes | {"http.response.status_code": status_code}
    )


def answered(status_code: int) -> dict[str, Any]:
    attributes: dict[str, Any] = {"http.response.status_code": status_code}
    return attributes | ({"error.type": str(status_code)} if status_code >= 400 else {})


class RecordOnly(Sampler):
    """Has spans recorded that are not sampled."""

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Any = None,
        links: Any = None,
        trace_state: Any = None,
    ) -> SamplingResult:
        return SamplingResult(Decision.RECORD_ONLY, attributes)

    def get_description(self) -> str:
        return "RecordOnly"


RECORD_ONLY = RecordOnly()


class Kept(SpanProcessor):
    """Keeps what has ended, also what is not sampled."""

    def __init__(self) -> None:
        self.ended: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.ended.append(span)


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
    (span,) = spans.get_finished_spans()
    assert span.parent is None
    assert seen(span) == (NAME, SpanKind.CLIENT, CLEAN | end("ok", 200), StatusCode.UNSET)


async def test_ok_over_a_transport_that_traces_by_itself(
    spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_spans, "emits_client_span", lambda _: True)
    await send(guard(FakeGateway()))
    (span,) = spans.get_finished_spans()
    assert seen(span) == (NAME, SpanKind.INTERNAL, REQUEST | end("ok", 200), StatusCode.UNSET)


async def test_recovered(spans: InMemorySpanExporter) -> None:
    def answer(exchange: Exchange) -> httpx.Response:
        return ok() if exchange.is_probe or len(gateway.sent) > 2 else gateway_404()

    gateway = FakeGateway(answer)
    await send(guard(gateway))
    root = root_of(spans)
    assert seen(root) == (
        NAME,
        SpanKind.INTERNAL,
        REQUEST | end("recovered", 200, 2, met=RACE),
        StatusCode.UNSET,
    )
    # The first resend met a 404 right after its connection was proved, so that the gateway picks a
    # replica for each request: the second follows at once, without a probe.
    exchange, question, probe, first, second = below(root, spans)
    assert seen(exchange) == (NAME, SpanKind.CLIENT, ON_WIRE | answered(404), StatusCode.ERROR)
    assert seen(question) == (
        "tinker_guard.control_plane",
        SpanKind.INTERNAL,
        JOB | RACE | {"tinker_guard.job.state": "JOB_STATE_RUNNING"},
        StatusCode.UNSET,
    )
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
        assert pause == 0.0
        assert (name, kind, was) == (f"resend {NAME}", SpanKind.INTERNAL, status)
        assert attributes == EXCHANGE | RACE | count | answered(status_code)
        (on_wire,) = below(resend, spans)
        assert seen(on_wire) == (
            NAME,
            SpanKind.CLIENT,
            ON_WIRE | count | answered(status_code),
            status,
        )


@pytest.mark.parametrize("has_caller", [False, True])
@pytest.mark.parametrize("sampler", [ALWAYS_ON, ParentBased(ALWAYS_ON), RECORD_ONLY])
async def test_a_race_keeps_the_ids_that_the_gateway_was_told(
    sampler: Sampler,
    has_caller: bool,
    spans: InMemorySpanExporter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The exchange that met the 404 is below a span that did not exist when it was sent."""
    provider, kept = TracerProvider(sampler=sampler), Kept()
    provider.add_span_processor(kept)
    own = provider.get_tracer("tinker_guard")
    for module in (actions, request_spans, telemetry_spans, begun):
        monkeypatch.setattr(module, "tracer", lambda: own)
    gateway = FakeGateway(lambda e: gateway_404() if e.connection == 0 else ok())
    caller = trace.get_tracer("user").start_span("step") if has_caller else trace.INVALID_SPAN
    before = time.time_ns()
    with trace.use_span(caller):
        await send(guard(gateway))
    by_id = {span.context.span_id: span for span in kept.ended if span.context is not None}
    first, _, second = (e.headers["traceparent"].split("-") for e in gateway.exchanges)
    exchange = by_id[int(first[2], 16)]
    assert seen(exchange) == (NAME, SpanKind.CLIENT, ON_WIRE | answered(404), StatusCode.ERROR)
    assert exchange.parent is not None
    request = by_id[exchange.parent.span_id]
    assert seen(request) == (
        NAME,
        SpanKind.INTERNAL,
        REQUEST | end("recovered", 200, 1, met=RACE),
        StatusCode.UNSET,
    )
    above = caller.get_span_context() if has_caller else None
    assert (request.parent and request.parent.span_id) == (above and above.span_id)
    assert request.context is not None
    assert f"{request.context.trace_id:032x}" == first[1] == second[1]
    times = [when or 0 for when in (request.start_time, exchange.start_time, exchange.end_time)]
    assert [before, *times, request.end_time] == sorted([before, *times, request.end_time or 0])
    # Begun once for both, and given up: it is nowhere.
    assert len(by_id) == len(kept.ended)
    assert [span.kind for span in kept.ended].count(SpanKind.CLIENT) == 3


async def test_a_tracer_of_another_kind_has_the_requests_span_from_the_beginning(
    spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrapped:
        def start_span(self, *args: Any, **kwargs: Any) -> trace.Span:
            return actions.tracer().start_span(*args, **kwargs)

    for module in (request_spans, telemetry_spans):
        monkeypatch.setattr(module, "tracer", Wrapped)
    await send(guard(FakeGateway()))
    root = root_of(spans)
    assert seen(root) == (NAME, SpanKind.INTERNAL, REQUEST | end("ok", 200), StatusCode.UNSET)
    (exchange,) = below(root, spans)
    assert seen(exchange) == (NAME, SpanKind.CLIENT, ON_WIRE | answered(200), StatusCode.UNSET)


async def test_the_pause_before_a_resend_is_that_since_its_404(
    spans: InMemorySpanExporter,
) -> None:
    """One request scouts until the route is known, at 2 s; the other follows it."""
    gateway = FakeGateway(lambda e: ok() if e.at >= 2 else gateway_404())
    transport = guard(gateway, backoff_initial=0.5)
    await asyncio.gather(send(transport), send(transport))
    assert gateway.probes[-1].at >= 2
    resends = [s for s in spans.get_finished_spans() if s.name.startswith("resend ")]
    pauses = sorted(seen(resend)[2]["tinker_guard.pause"] for resend in resends)
    # Both met their 404 at 0 s.
    assert pauses == pytest.approx([exchange.at for exchange in gateway.sent[2:]], abs=0.001)
    assert len(pauses) == 2


async def test_recovered_by_a_probe_where_nobody_can_be_asked(spans: InMemorySpanExporter) -> None:
    gateway = FakeGateway(lambda e: ok() if e.at >= 0.3 else gateway_404())
    plane = FakeControlPlane(OSError())
    await send(guard(gateway, plane))
    root = root_of(spans)
    reached = RACE | {"tinker_guard.verdict.reason": "trainer_reached"}
    assert seen(root)[2:] == (
        REQUEST | end("recovered", 200, 1, met=reached),
        StatusCode.UNSET,
    )
    *_, resend = below(root, spans)
    attributes = seen(resend)[2]
    pause = attributes.pop("tinker_guard.pause")
    assert pause == pytest.approx(gateway.sent[1].at, abs=0.001)
    assert attributes == EXCHANGE | reached | answered(200) | {"http.request.resend_count": 1}
    questions = [s for s in below(root, spans) if s.name == "tinker_guard.control_plane"]
    assert len(questions) == plane.questions > 1
    for question in questions:
        assert seen(question)[2:] == (
            JOB
            | judged("unverified", "control_plane_error")
            | {"error.type": "control_plane_error"},
            StatusCode.ERROR,
        )


async def test_recovered_at_the_gate(spans: InMemorySpanExporter) -> None:
    """A request that was sent once, because it waited for the race to end, does not look clean."""
    gateway = FakeGateway(lambda e: ok() if e.at >= 2 else gateway_404())
    with trace.get_tracer("user").start_as_current_span("step") as step:
        await send(guard(gateway, warmup_successes=2))
    caller = root_of(spans)
    assert caller.context is not None
    assert caller.context.span_id == step.get_span_context().span_id
    assert dict(caller.attributes or {}) == {"tinker_guard.met": "routing_race"}
    (root,) = below(caller, spans)
    waited = round(gateway.sent[0].at, 3)
    assert seen(root)[2:] == (
        REQUEST
        | end("recovered", 200, 0, met=RACE, wrote={})
        | {"tinker_guard.warmup.wait": waited},
        StatusCode.UNSET,
    )
    warmup, exchange = below(root, spans)
    assert seen(warmup) == (
        "tinker_guard.warmup",
        SpanKind.INTERNAL,
        JOB | RACE | {"tinker_guard.warmup.probes": len(gateway.probes)},
        StatusCode.UNSET,
    )
    assert seen(exchange)[2:] == (ON_WIRE | answered(200), StatusCode.UNSET)


@pytest.mark.parametrize("opened_by", ["a probe that fails", "a doubt", "an unknown 404"])
async def test_a_gate_that_opens_without_proof_after_a_race_leaves_the_races_label(
    opened_by: str, spans: InMemorySpanExporter
) -> None:
    def answer(exchange: Exchange) -> httpx.Response:
        if not exchange.is_probe:
            return ok()
        if exchange.at >= 1 and opened_by == "a probe that fails":
            raise httpx.ConnectError("refused")
        is_unknown = exchange.at >= 1 and opened_by == "an unknown 404"
        return httpx.Response(404) if is_unknown else gateway_404()

    plane = FakeControlPlane()
    transport = guard(FakeGateway(answer), plane, warmup_successes=1, verdict_ttl=0)
    task = asyncio.create_task(send(transport))
    await asyncio.sleep(1)
    if opened_by == "a doubt":
        plane.state = OSError()
    await task
    attributes = seen(root_of(spans))[2]
    assert attributes.pop("tinker_guard.warmup.wait") >= 1
    assert attributes == REQUEST | end("recovered", 200, met=RACE, wrote={})


@pytest.mark.parametrize(
    ("state", "outcome", "met"),
    [
        ("JOB_STATE_RUNNING", "exhausted", RACE),
        (
            "JOB_STATE_CREATING",
            "not_found",
            judged("genuine_not_found", "job_not_running"),
        ),
    ],
)
async def test_a_gate_that_stays_shut_to_the_end(
    state: str, outcome: str, met: dict[str, str], spans: InMemorySpanExporter
) -> None:
    gateway = FakeGateway(lambda _: gateway_404())
    await send(guard(gateway, FakeControlPlane(state), warmup_successes=1, warmup_timeout=5))
    assert seen(root_of(spans))[2] == REQUEST | end(outcome, 404, met=met) | {
        "error.type": "404",
        "tinker_guard.warmup.wait": 5.0,
    }


async def test_those_who_waited_for_another_requests_warmup_carry_the_races_label(
    spans: InMemorySpanExporter,
) -> None:
    gateway = FakeGateway(lambda e: ok() if e.at >= 1 else gateway_404())
    transport = guard(gateway, warmup_successes=1)
    await asyncio.gather(*(send(transport) for _ in range(3)))
    roots = [s for s in spans.get_finished_spans() if s.parent is None]
    assert len(roots) == 3
    for root in roots:
        attributes = seen(root)[2]
        assert attributes.pop("tinker_guard.warmup.wait") >= 1
        assert attributes == REQUEST | end("recovered", 200, met=RACE, wrote={})
    assert [s.name for s in spans.get_finished_spans()].count("tinker_guard.warmup") == 1


@pytest.mark.parametrize("successes", [0, 1])
async def test_a_server_error_after_a_race_is_no_recovery(
    spans: InMemorySpanExporter, successes: int
) -> None:
    """The race was met by the request itself, or at the gate."""

    def answer(exchange: Exchange) -> httpx.Response:
        if exchange.at < 1:
            return gateway_404()
        return ok() if exchange.is_probe else httpx.Response(502)

    gateway = FakeGateway(answer)
    await send(guard(gateway, warmup_successes=successes))
    resends = 1 - successes
    wrote = {} if successes else FIREWORKS
    ended = end("error", 502, resends, met=RACE, wrote=wrote) | {"error.type": "502"}
    if successes:
        ended["tinker_guard.warmup.wait"] = round(gateway.sent[0].at, 3)
    assert seen(root_of(spans))[2:] == (REQUEST | ended, StatusCode.ERROR)


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
    plane = FakeControlPlane(state)
    await send(guard(FakeGateway(lambda _: gateway_404()), plane, retry_timeout=3))
    root = root_of(spans)
    questions = [s for s in below(root, spans) if s.name == "tinker_guard.control_plane"]
    labels = judged(verdict, reason)
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
    # A stopped state is believed at once, a missing job only if it is missing twice.
    if isinstance(state, Exception):
        assert len(questions) > 2
    else:
        assert len(questions) == (1 if state else 2)
    for question in questions:
        assert seen(question) == (
            "tinker_guard.control_plane",
            SpanKind.INTERNAL,
            expected,
            StatusCode.ERROR if isinstance(state, Exception) else StatusCode.UNSET,
        )
    assert len(questions) == plane.questions
    assert not any(span.name.startswith("resend ") for span in spans.get_finished_spans())


async def test_a_trainers_own_404(spans: InMemorySpanExporter) -> None:
    await send(guard(FakeGateway(lambda _: trainer_404())))
    _, root = spans.get_finished_spans()
    labels = judged("genuine_not_found", "trainer_answered")
    assert seen(root)[2:] == (
        REQUEST
        | end("not_found", 404, met=labels, wrote={"tinker_guard.not_found.source": "trainer"})
        | {"error.type": "404"},
        StatusCode.ERROR,
    )


@pytest.mark.parametrize(
    ("not_found", "wrote"),
    [
        (
            httpx.Response(404, headers={"server": "envoy"}),
            {
                "tinker_guard.not_found.source": "gateway",
                "tinker_guard.not_found.gateway": "envoy",
            },
        ),
        (httpx.Response(404), {"tinker_guard.not_found.source": "unknown"}),
    ],
    ids=["envoy", "empty"],
)
async def test_the_last_404_says_who_wrote_it(
    not_found: httpx.Response, wrote: dict[str, str], spans: InMemorySpanExporter
) -> None:
    """Also after a 404 that named another gateway, of which nothing is left on the span."""

    def answer(exchange: Exchange) -> httpx.Response:
        if exchange.is_probe or len(gateway.sent) > 2:
            return ok()
        return gateway_404() if len(gateway.sent) == 1 else not_found

    gateway = FakeGateway(answer)
    await send(guard(gateway))
    root = root_of(spans)
    assert seen(root)[2] == REQUEST | end("recovered", 200, 2, met=RACE, wrote=wrote)


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
    verdict = judged("unverified", "no_control_plane")
    assert seen(root) == (
        "GET",
        SpanKind.INTERNAL,
        expected | end("unverified", 404, met=verdict, name="GET", wrote={}),
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
    (span,) = spans.get_finished_spans()
    name = "HTTP /api/v1/forward_backward"
    assert seen(span)[:3] == (name, SpanKind.CLIENT, CLEAN | method | end("ok", 200, name=name))


async def test_a_method_that_no_standard_knows_in_a_race(spans: InMemorySpanExporter) -> None:
    gateway = FakeGateway(lambda e: gateway_404() if e.connection == 0 else ok())
    await send(guard(gateway), httpx.Request("BREW", f"{BASE}/api/v1/forward_backward"))
    method = {"http.request.method": "_OTHER", "http.request.method_original": "BREW"}
    root = root_of(spans)
    exchange, *_ = below(root, spans)
    name = "HTTP /api/v1/forward_backward"
    assert seen(root)[:3] == (
        name,
        SpanKind.INTERNAL,
        REQUEST | method | end("recovered", 200, 1, met=RACE, name=name),
    )
    assert seen(exchange)[:3] == (name, SpanKind.CLIENT, ON_WIRE | method | answered(404))


async def test_the_protocol_is_noted_where_the_transport_tells(
    spans: InMemorySpanExporter,
) -> None:
    def answer(_: object) -> httpx.Response:
        response = ok()
        response.extensions["http_version"] = b"HTTP/2"
        return response

    await send(guard(FakeGateway(answer)))
    (span,) = spans.get_finished_spans()
    assert seen(span)[2] == CLEAN | end("ok", 200) | {"network.protocol.version": "2"}


async def test_error(spans: InMemorySpanExporter) -> None:
    async def fail(_: object) -> httpx.Response:
        raise httpx.ConnectError(f"refused {KEY}")

    with pytest.raises(httpx.ConnectError):
        await send(guard(FakeGateway(fail)))
    (span,) = spans.get_finished_spans()
    error = {"error.type": "httpx.ConnectError"}
    assert seen(span)[2:] == (CLEAN | end("error", None) | error, StatusCode.ERROR)
    assert span.events == ()


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
    (span,) = spans.get_finished_spans()
    assert seen(span)[2:] == (CLEAN | end("ok", 503) | {"error.type": "503"}, StatusCode.ERROR)


async def hang(_: object) -> httpx.Response:
    await asyncio.sleep(1000)
    return ok()


async def test_cancelled(spans: InMemorySpanExporter) -> None:
    task = asyncio.create_task(send(guard(FakeGateway(hang))))
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (span,) = spans.get_finished_spans()
    assert seen(span)[2:] == (CLEAN | end("cancelled", None), StatusCode.UNSET)


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
    assert seen(root)[2] == REQUEST | end("ok", 200) | waited("ok", 4.5)
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
        REQUEST | end("ok", 200) | waited("ok", 4.5),
        REQUEST | end("cancelled", None) | waited("cancelled", 0.25),
        REQUEST | end("ok", 200) | waited("ok", 3.5),
    ]
    assert [len(below(root, spans)) for root in roots] == [2, 0, 1]


async def test_requests_that_are_cancelled_at_the_gate_have_waited_in_its_race(
    spans: InMemorySpanExporter, measured: Measured
) -> None:
    transport = guard(FakeGateway(lambda _: gateway_404()), warmup_successes=3)
    with trace.get_tracer("user").start_as_current_span("step") as step:
        waiting = [asyncio.create_task(send(transport)) for _ in range(2)]
        await asyncio.sleep(1.5)
        for each in waiting:
            each.cancel()
        await asyncio.wait(waiting)
    assert dict(getattr(step, "attributes", {})) == {"tinker_guard.met": "routing_race"}
    requests = [span for span in spans.get_finished_spans() if span.name == NAME]
    met = end("cancelled", None, met=RACE, wrote={}) | {"tinker_guard.warmup.wait": 1.5}
    assert [seen(span)[2] for span in requests] == [REQUEST | met, REQUEST | met]
    [warmup] = [span for span in spans.get_finished_spans() if span.name == "tinker_guard.warmup"]
    probes = seen(warmup)[2].pop("tinker_guard.warmup.probes")
    assert probes > 1
    assert seen(warmup)[2:] == (
        JOB | RACE | {"tinker_guard.warmup.probes": probes},
        StatusCode.UNSET,
    )
    counted = {name: how_often for _, name, how_often in measured.counts()}
    assert counted["tinker_guard.warmup.duration"] == 1
    assert counted["tinker_guard.recovery.duration"] == 2
    assert counted["tinker_guard.verdicts"] == 2


async def test_warmup_that_is_refused(spans: InMemorySpanExporter) -> None:
    gateway = FakeGateway(lambda _: gateway_404())
    await send(guard(gateway, FakeControlPlane(None), warmup_successes=3))
    root = root_of(spans)
    (warmup,) = below(root, spans)
    labels = judged("genuine_not_found", "job_missing") | {"error.type": "404"}
    assert seen(warmup) == (
        "tinker_guard.warmup",
        SpanKind.INTERNAL,
        JOB | labels | {"tinker_guard.warmup.probes": 1},
        StatusCode.ERROR,
    )
    probe, *questions = below(warmup, spans)
    assert seen(probe) == (
        "probe GET /api/v1/get_server_capabilities",
        SpanKind.INTERNAL,
        EXCHANGE
        | answered(404)
        | FIREWORKS
        | {"http.request.method": "GET", "tinker_guard.probe.result": "not_found"},
        StatusCode.ERROR,
    )
    assert [question.name for question in questions] == ["tinker_guard.control_plane"] * 2
    ended = end("not_found", 404, met=labels) | {"tinker_guard.warmup.wait": 2.0}
    assert seen(root)[2:] == (REQUEST | ended, StatusCode.ERROR)


def _refuse() -> httpx.Response:
    raise httpx.ConnectError("refused")


@pytest.mark.parametrize(
    ("answer", "told", "status"),
    [
        pytest.param(
            _refuse,
            {"tinker_guard.probe.result": "failed", "error.type": "httpx.ConnectError"},
            StatusCode.ERROR,
            id="fails",
        ),
        pytest.param(
            trainer_404,
            {
                "http.response.status_code": 404,
                "tinker_guard.probe.result": "reached",
                "tinker_guard.not_found.source": "trainer",
            },
            StatusCode.UNSET,
            id="the trainer does not know its path",
        ),
    ],
)
async def test_a_probe_that_gets_no_200(
    answer: Callable[[], httpx.Response],
    told: dict[str, Any],
    status: StatusCode,
    spans: InMemorySpanExporter,
) -> None:
    gateway = FakeGateway(lambda e: answer() if e.is_probe else ok())
    await send(guard(gateway, warmup_successes=1))
    warmup, _ = below(root_of(spans), spans)
    (probe,) = below(warmup, spans)
    assert seen(probe)[2:] == (EXCHANGE | {"http.request.method": "GET"} | told, status)


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
            judged("unverified", "control_plane_error") | {"error.type": "control_plane_error"},
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
            "url.full": "https://api.test/v1/accounts/acc/rlorTrainerJobs/job-1",
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
    request, caller = spans.get_finished_spans()
    assert request.parent is not None
    assert request.parent.span_id == step.get_span_context().span_id
    assert dict(caller.attributes or {}) == {}


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
    (span,) = spans.get_finished_spans()
    assert span.context is not None
    assert inside == [span.context.span_id]


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


BY_HAND = {
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "baggage": "tenant=7",
}


@pytest.mark.parametrize("path", [*("/api/v1/forward_backward", "/api/v1/retrieve_future")])
async def test_over_a_transport_that_traces_what_that_adds_is_left_out_and_no_more(
    spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    for module in (request_spans, telemetry):
        monkeypatch.setattr(module, "emits_client_span", lambda _: True)
    gateway = FakeGateway()
    request = post(path)
    request.headers.update(BY_HAND)
    await send(guard(gateway), request)
    sent = gateway.sent[0].headers
    assert {name: sent[name] for name in BY_HAND if name in sent} == {"baggage": "tenant=7"}
    assert {name: request.headers[name] for name in BY_HAND} == BY_HAND


async def test_where_nothing_records_spans_the_programs_headers_are_its_own(
    measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "get_tracer_provider", trace.NoOpTracerProvider)
    assert providers.refresh() == providers.Enabled(spans=False, metrics=True)
    for module in (request_spans, telemetry):
        monkeypatch.setattr(module, "emits_client_span", lambda _: True)
    gateway = FakeGateway(lambda e: gateway_404() if e.connection == 0 else ok())
    request = post()
    request.headers.update(BY_HAND)
    await send(guard(gateway, warmup_successes=0), request)
    assert len(gateway.sent) == 2
    for exchange in gateway.sent:
        assert {name: exchange.headers[name] for name in BY_HAND} == BY_HAND


# -- noise -----------------------------------------------------------------------------------------

POLL = "/api/v1/retrieve_future"


@pytest.mark.parametrize(
    ("trace_setting", "work", "poll"),
    [("all", 1, 1), ("work", 1, 0), ("eventful", 0, 0), ("off", 0, 0)],
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


@pytest.mark.parametrize("is_warm", [False, True])
async def test_a_poll_that_meets_a_404_is_traced_from_its_beginning(
    is_warm: bool, spans: InMemorySpanExporter
) -> None:
    gateway = FakeGateway(lambda _: ok())
    transport = guard(gateway)
    if is_warm:
        await send(transport, post(POLL))
        assert spans.get_finished_spans() == ()
    gateway.answer = lambda e: gateway_404() if e.connection == 0 else ok()
    before = time.time_ns()
    await send(transport, post(POLL))
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
    await send(guard(FakeGateway(lambda _: httpx.Response(500))), post(POLL))
    failed, refused = spans.get_finished_spans()
    poll = CLEAN | {"tinker_guard.operation": "retrieve_future", "url.full": BASE + POLL}
    for span, ended, error_type in (
        (failed, end("error", None, name=f"POST {POLL}"), "httpx.ReadError"),
        (refused, end("ok", 500, name=f"POST {POLL}"), "500"),
    ):
        assert seen(span) == (
            f"POST {POLL}",
            SpanKind.CLIENT,
            poll | ended | {"error.type": error_type},
            StatusCode.ERROR,
        )


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
    for module in (request_spans, telemetry_spans):
        monkeypatch.setattr(module, "tracer", lambda: dropping.get_tracer("tinker_guard"))

    def answer(exchange: Exchange) -> httpx.Response:
        trace.get_tracer("pyqwest").start_span("POST", kind=SpanKind.CLIENT).end()
        return gateway_404() if exchange.connection == 0 else ok()

    gateway = FakeGateway(answer)
    await send(guard(gateway))
    assert spans.get_finished_spans() == ()
    assert not any(is_sampled(e.headers["traceparent"]) for e in gateway.sent)


async def test_what_was_recorded_by_nothing_at_first_has_one_span_later(
    spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 404 may come before the program sets up OpenTelemetry."""
    with monkeypatch.context() as before:
        before.setattr(trace, "get_tracer_provider", trace.NoOpTracerProvider)
        assert isinstance(actions.tracer(), trace.NoOpTracer)
        gateway = FakeGateway(lambda e: gateway_404() if e.connection == 0 else ok())
        await send(guard(gateway, warmup_successes=0))
    spans.clear()
    providers.refresh()
    await send(guard(FakeGateway(), warmup_successes=0))
    (span,) = spans.get_finished_spans()
    assert span.kind is SpanKind.CLIENT


async def test_a_sampler_that_minds_no_parent_is_let_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then a transport that traces by itself traces polls too, and once."""
    keeping, kept = TracerProvider(sampler=ALWAYS_ON), InMemorySpanExporter()
    keeping.add_span_processor(SimpleSpanProcessor(kept))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: keeping)
    providers.refresh()
    for module in (request_spans, telemetry):
        monkeypatch.setattr(module, "emits_client_span", lambda _: True)

    def answer(exchange: Exchange) -> httpx.Response:
        trace.get_tracer("pyqwest").start_span("POST", kind=SpanKind.CLIENT).end()
        return gateway_404() if exchange.connection == 0 else ok()

    gateway = FakeGateway(answer)
    await send(guard(gateway), post(POLL))
    exchanges = [span for span in kept.get_finished_spans() if span.kind is SpanKind.CLIENT]
    assert len(exchanges) == len(gateway.exchanges) == 3
    outcomes = [
        (span.attributes or {}).get("tinker_guard.outcome") for span in kept.get_finished_spans()
    ]
    assert [outcome for outcome in outcomes if outcome] == ["recovered"]


# -- faults ----------------------------------------------------------------------------------------


@pytest.mark.meets_fault
async def test_a_misconfigured_opentelemetry_breaks_no_request(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise StopIteration

    monkeypatch.setattr(trace, "get_tracer_provider", fail)
    providers.refresh()
    await send(guard(FakeGateway(lambda e: gateway_404() if e.connection == 0 else ok())))
    assert "a fault of its own in telemetry (the tracer provider)" in caplog.text


@pytest.mark.meets_fault
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
@pytest.mark.meets_fault
async def test_broken_telemetry_breaks_no_request(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tracer: object
) -> None:
    for module in (actions, request_spans, telemetry_spans):
        monkeypatch.setattr(module, "tracer", lambda: tracer)
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
