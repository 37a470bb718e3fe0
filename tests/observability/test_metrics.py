from __future__ import annotations

import asyncio
import inspect
import logging
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics.export import HistogramDataPoint
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from testkit.fakes import (
    Exchange,
    FakeControlPlane,
    FakeGateway,
    gateway_404,
    judged,
    loop_time,
    ok,
    post,
    send,
    settle,
    trainer_404,
)
from testkit.fakes import ungated as guard
from tests.observability.test_spans import EXCHANGE, hang
from tinker_guard.faults import logger
from tinker_guard.observability import metrics as declared
from tinker_guard.observability import providers

if TYPE_CHECKING:
    from tests.conftest import Measured

pytestmark = pytest.mark.anyio

OPERATION = {"tinker_guard.operation": "forward_backward"}
RACE = judged("routing_race", "job_running")
OK = {"http.response.status_code": 200}
NOT_FOUND = {"http.response.status_code": 404, "error.type": "404"}


def counted(*points: tuple[dict[str, Any], int]) -> list[tuple[dict[str, Any], int]]:
    return sorted(points, key=str)


async def test_ok(measured: Measured) -> None:
    transport = guard(FakeGateway())
    for _ in range(3):
        await send(transport)
    assert measured.collect_own() == {
        "http.client.request.duration": [(EXCHANGE | OK, 3)],
        "tinker_guard.request.duration": [(OPERATION | {"tinker_guard.outcome": "ok"}, 3)],
    }


@pytest.mark.meets_fault
async def test_a_programs_processor_that_fails_takes_no_metrics_with_it(
    measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(SpanProcessor):
        def on_end(self, span: object) -> None:
            raise RuntimeError

    provider = TracerProvider()
    provider.add_span_processor(Failing())
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    providers.refresh()
    transport = guard(FakeGateway(lambda e: gateway_404() if e.connection == 0 else ok()))
    for _ in range(2):
        await send(transport)
    counted = {name: how_often for _, name, how_often in measured.counts()}
    assert counted["tinker_guard.request.duration"] == 2
    assert counted["http.client.request.duration"] == 4
    assert counted["tinker_guard.verdicts"] == 1


async def test_a_race_at_the_gate_that_ended_in_another_state(measured: Measured) -> None:
    """It was one for the whole of the wait, however it ended."""
    gateway = FakeGateway(lambda _: gateway_404())
    plane = FakeControlPlane("JOB_STATE_RUNNING", states=[(5.0, "JOB_STATE_CREATING")])
    transport = guard(gateway, plane, warmup_successes=3, warmup_timeout=10.0)
    assert (await send(transport)).status_code == 404
    ended = OPERATION | {"tinker_guard.outcome": "not_found"}
    assert measured.collect_own()["tinker_guard.recovery.duration"] == [(ended, 1)]


async def test_recovered(measured: Measured) -> None:
    def answer(exchange: Exchange) -> httpx.Response:
        return ok() if exchange.is_probe or len(gateway.sent) > 2 else gateway_404()

    gateway = FakeGateway(answer)
    await send(guard(gateway))
    recovered = OPERATION | {"tinker_guard.outcome": "recovered"}
    probe = EXCHANGE | OK | {"http.request.method": "GET"}
    assert measured.collect_own() == {
        "http.client.request.duration": counted(
            (EXCHANGE | NOT_FOUND, 2), (EXCHANGE | OK, 1), (probe, len(gateway.probes))
        ),
        "tinker_guard.request.duration": [(recovered | RACE, 1)],
        "tinker_guard.verdicts": [(OPERATION | RACE, 2)],
        "tinker_guard.resends": counted(
            (OPERATION | {"http.response.status_code": 404}, 1), (OPERATION | OK, 1)
        ),
        "tinker_guard.recovery.duration": [(recovered, 1)],
        "tinker_guard.probes": [({"tinker_guard.probe.result": "reached"}, len(gateway.probes))],
        "tinker_guard.question.duration": [(RACE, 1)],
    }


async def test_warmup(measured: Measured) -> None:
    await send(guard(FakeGateway(), warmup_successes=3))
    found = measured.collect_own()
    assert found["tinker_guard.warmup.duration"] == [({}, 1)]
    assert found["tinker_guard.probes"] == [({"tinker_guard.probe.result": "reached"}, 3)]


async def test_a_refused_warmup_and_a_question_that_fails(measured: Measured) -> None:
    missing = judged("genuine_not_found", "job_missing")
    lost = FakeGateway(lambda _: gateway_404())
    await send(guard(lost, FakeControlPlane(None), warmup_successes=2))
    found = measured.collect_own()
    assert found["tinker_guard.warmup.duration"] == [(missing, 1)]
    assert found["tinker_guard.probes"] == [({"tinker_guard.probe.result": "not_found"}, 1)]
    assert found["tinker_guard.question.duration"] == [(missing, 2)]
    assert found["tinker_guard.verdicts"] == [(OPERATION | missing, 1)]
    assert "tinker_guard.recovery.duration" not in found
    late = FakeControlPlane(TimeoutError())
    await send(guard(lost, late, retry_timeout=1))
    unheard = judged("unverified", "control_plane_timeout")
    found = measured.collect_own()
    assert found["tinker_guard.question.duration"] == [(unheard, late.questions)]
    assert found["tinker_guard.verdicts"] == [(OPERATION | unheard, 1)]
    assert late.questions > 1


async def test_a_race_met_at_the_gate_is_a_recovery_of_the_request(measured: Measured) -> None:
    """Nothing was sent again; the wait counts as a race all the same."""
    gateway = FakeGateway(lambda e: ok() if e.at >= 1 else gateway_404())
    await send(guard(gateway, warmup_successes=2))
    found = measured.collect_own()
    recovered = OPERATION | {"tinker_guard.outcome": "recovered"} | RACE
    assert found["tinker_guard.request.duration"] == [(recovered, 1)]
    assert found["tinker_guard.warmup.duration"] == [(RACE, 1)]
    assert found["tinker_guard.verdicts"] == [(OPERATION | RACE, 1)]
    ended = OPERATION | {"tinker_guard.outcome": "recovered"}
    assert found["tinker_guard.recovery.duration"] == [(ended, 1)]
    assert "tinker_guard.resends" not in found


async def test_a_warmup_that_times_out(measured: Measured) -> None:
    gateway = FakeGateway(lambda _: gateway_404())
    await send(guard(gateway, warmup_successes=2, warmup_timeout=3))
    found = measured.collect_own()
    exhausted = OPERATION | {"tinker_guard.outcome": "exhausted"} | RACE
    assert found["tinker_guard.request.duration"] == [(exhausted, 1)]
    assert found["tinker_guard.warmup.duration"] == [(RACE, 1)]
    assert found["tinker_guard.verdicts"] == [(OPERATION | RACE, 1)]
    assert gateway.sent == []


async def test_a_recovery_lasts_from_the_first_404(
    measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control plane takes a second, and the route comes up at 2 s; not from the resend on."""
    monkeypatch.setattr(time, "perf_counter", loop_time)

    async def answer(exchange: Exchange) -> httpx.Response:
        if exchange.at >= 2:
            return ok()
        await asyncio.sleep(0 if exchange.is_probe else 0.5)
        return gateway_404()

    gateway = FakeGateway(answer)
    await send(guard(gateway, FakeControlPlane(takes=1.0)))
    took = {
        name: point.sum
        for name, point in measured.points()
        if isinstance(point, HistogramDataPoint)
    }
    whole = took["tinker_guard.request.duration"]
    assert whole == pytest.approx(gateway.sent[1].at)
    assert took["tinker_guard.recovery.duration"] == pytest.approx(whole - 0.5)


@pytest.mark.parametrize("takes", [0.0, 0.3])
async def test_one_cancelled_in_a_race_is_measured_with_its_label(
    measured: Measured, takes: float
) -> None:
    gateway = FakeGateway(lambda _: gateway_404())
    task = asyncio.create_task(send(guard(gateway, FakeControlPlane(takes=takes))))
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    found = measured.collect_own()
    cancelled = OPERATION | {"tinker_guard.outcome": "cancelled"}
    assert found["tinker_guard.request.duration"] == [(cancelled | RACE, 1)]
    assert found["tinker_guard.recovery.duration"] == [(cancelled, 1)]


async def test_the_trainers_own_404_is_no_recovery(measured: Measured) -> None:
    await send(guard(FakeGateway(lambda _: trainer_404())))
    found = measured.collect_own()
    assert "tinker_guard.recovery.duration" not in found
    ((attributes, _),) = found["tinker_guard.request.duration"]
    assert attributes["tinker_guard.outcome"] == "not_found"


async def test_errors_and_cancellations_are_measured(measured: Measured) -> None:
    def fail(_: object) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(httpx.ConnectError):
        await send(guard(FakeGateway(fail)))
    task = asyncio.create_task(send(guard(FakeGateway(hang))))
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert measured.collect_own() == {
        "http.client.request.duration": counted(
            (EXCHANGE | {"error.type": "httpx.ConnectError"}, 1), (EXCHANGE, 1)
        ),
        "tinker_guard.request.duration": counted(
            (OPERATION | {"tinker_guard.outcome": "error"}, 1),
            (OPERATION | {"tinker_guard.outcome": "cancelled"}, 1),
        ),
    }


async def test_the_job_only_if_asked_for(measured: Measured) -> None:
    gateway = FakeGateway(lambda e: gateway_404() if e.connection == 0 else ok())
    await send(guard(gateway, warmup_successes=1, metrics_by_job=True))
    for name, points in measured.collect_own().items():
        for attributes, _ in points:
            by_job = (attributes.get("tinker_guard.account"), attributes.get("tinker_guard.job"))
            is_guards = name.startswith("tinker_guard.")
            assert by_job == (("acc", "job-1") if is_guards else (None, None)), name


async def test_what_has_no_span_is_measured_all_the_same(measured: Measured) -> None:
    await send(guard(FakeGateway()), post("/api/v1/retrieve_future"))
    found = measured.collect_own()
    poll = {"tinker_guard.operation": "retrieve_future", "tinker_guard.outcome": "ok"}
    assert found["tinker_guard.request.duration"] == [(poll, 1)]
    assert found["http.client.request.duration"] == [(EXCHANGE | OK, 1)]
    gateway = FakeGateway(lambda e: gateway_404() if e.connection == 0 else ok())
    await send(guard(gateway, trace="off"))
    found = measured.collect_own()
    # An exchange that the guard leaves to others is theirs to measure.
    assert "http.client.request.duration" not in found
    assert found["tinker_guard.resends"] == [(OPERATION | OK, 1)]
    assert found["tinker_guard.probes"]
    assert found["tinker_guard.question.duration"]


@pytest.mark.skipif(
    "explicit_bucket_boundaries_advisory"
    not in inspect.signature(metrics.Meter.create_histogram).parameters,
    reason="opentelemetry-api before 1.30 takes no advice on buckets",
)
async def test_buckets_are_in_seconds(measured: Measured) -> None:
    gateway = FakeGateway(lambda e: gateway_404() if e.connection == 0 else ok())
    await send(guard(gateway, warmup_successes=1))
    histograms = {
        name: point.explicit_bounds
        for name, point in measured.points()
        if isinstance(point, HistogramDataPoint)
    }
    assert histograms
    for name, bounds in histograms.items():
        assert tuple(bounds) == declared.METRICS[name].bounds


# -- log lines -------------------------------------------------------------------------------------


async def test_lines_carry_the_ids_of_the_request(
    spans: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    gateway = FakeGateway(lambda e: gateway_404() if e.connection == 0 else ok())
    await send(guard(gateway), post("/api/v1/retrieve_future"))
    (root,) = (span for span in spans.get_finished_spans() if span.parent is None)
    lines = [record for record in caplog.records if record.name == "tinker_guard"]
    assert len(lines) == 2
    assert lines[0].getMessage().startswith("routing race: ")
    assert lines[1].getMessage().startswith("job acc/job-1: its route answers after 0.")
    for record in lines:
        assert vars(record)["otelTraceID"] == f"{root.context.trace_id:032x}"
        assert vars(record)["otelSpanID"] == f"{root.context.span_id:016x}"
        assert vars(record)["otelTraceSampled"] is True


def test_lines_outside_of_a_trace_can_be_formatted_alike(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert trace.get_current_span() is trace.INVALID_SPAN
    logger.info("nothing is active")
    (record,) = caplog.records
    formatter = logging.Formatter("%(otelTraceID)s %(otelSpanID)s %(otelTraceSampled)s %(message)s")
    assert formatter.format(record) == "0 0 False nothing is active"
