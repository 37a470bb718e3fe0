"""docs/telemetry.md, the declarations and what is emitted say the same."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, get_args

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.trace import SpanKind

from testkit.fakes import (
    BASE,
    Exchange,
    FakeControlPlane,
    FakeGateway,
    gateway_404,
    ok,
    send,
    trainer_404,
)
from testkit.fakes import ungated as guard
from tests import ROOT, script
from tinker_guard import GuardSettings
from tinker_guard.control_plane.fireworks import FireworksControlPlane
from tinker_guard.core.routes import ROUTES
from tinker_guard.observability.attributes import ATTRIBUTES, On
from tinker_guard.observability.metrics import METRICS
from tinker_guard.policy.judgement import Outcome, Reason, Verdict

if TYPE_CHECKING:
    from enum import StrEnum

    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from tests.conftest import Measured

pytestmark = pytest.mark.anyio

PAGE = (ROOT / "docs" / "telemetry.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """The cells of the table below a heading of the page."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def test_the_page_lists_attributes_and_metrics_as_they_are_declared() -> None:
    written = script("telemetry_page")
    for table in (written.attributes(), written.metrics()):
        assert f"\n\n{table}\n" in PAGE, "run `python scripts/telemetry_page.py`"


def test_the_page_lists_every_way_to_choose() -> None:
    choices = get_args(GuardSettings.model_fields["trace"].annotation)
    assert [row[0] for row in rows("Noise")] == [f"`{choice}`" for choice in choices]


async def everything() -> None:
    """Requests that between them end in every way and meet everything."""

    def over_http1(response: httpx.Response) -> httpx.Response:
        response.extensions["http_version"] = b"HTTP/1.1"
        return response

    def answer(exchange: Exchange) -> httpx.Response:
        return over_http1(gateway_404() if exchange.connection == 0 else ok())

    async def stream() -> Any:
        yield b"once"

    def refuse(_: object) -> httpx.Response:
        raise httpx.ConnectError("refused")

    running = httpx.MockTransport(
        lambda _: httpx.Response(200, json={"state": "JOB_STATE_RUNNING"})
    )
    plane = FireworksControlPlane("https://api.test", transport=running)
    await send(guard(FakeGateway(answer), plane, warmup_successes=2, metrics_by_job=True))
    await send(guard(FakeGateway(lambda _: over_http1(ok()))))
    lost = FakeGateway(lambda _: gateway_404())
    await send(guard(FakeGateway(lambda _: trainer_404())))
    with trace.get_tracer("user").start_as_current_span("step"):
        await send(guard(lost, FakeControlPlane(OSError())))
    ROUTES.clear()
    await send(guard(lost, FakeControlPlane(None), warmup_successes=1))
    ROUTES.clear()
    with pytest.raises(httpx.ConnectError):
        await send(guard(FakeGateway(refuse), warmup_successes=1))
    with pytest.raises(httpx.ConnectError):
        await send(guard(FakeGateway(lambda e: answer(e) if e.connection == 0 else refuse(e))))
    await send(guard(FakeGateway(answer)), httpx.Request("BREW", f"{BASE}/api/v1/x"))
    body = httpx.Request("POST", f"{BASE}/api/v1/x", content=stream())
    await send(guard(FakeGateway(answer)), body)
    await send(
        guard(
            FakeGateway(answer),
            routes=["http://head:8000"],
            metrics_by_job=True,
            warmup_successes=1,
        ),
        httpx.Request("POST", "http://head:8000/api/v1/x", content=b"{}"),
    )


def what(span: ReadableSpan) -> On:
    if "tinker_guard.outcome" in (span.attributes or {}):
        return On.REQUEST
    if span.kind is SpanKind.CLIENT:
        return On.EXCHANGE
    if span.instrumentation_scope is None or span.instrumentation_scope.name == "user":
        return On.CALLER
    first = span.name.partition(" ")[0]
    named = {
        "resend": On.RESEND,
        "probe": On.PROBE,
        "tinker_guard.control_plane": On.QUESTION,
        "tinker_guard.warmup": On.WARMUP,
    }
    return named[first]


async def test_what_is_emitted_is_what_is_declared(
    spans: InMemorySpanExporter, measured: Measured
) -> None:
    await everything()
    emitted: dict[str, set[On]] = {}
    for span in spans.get_finished_spans():
        for name, value in (span.attributes or {}).items():
            assert type(value) is ATTRIBUTES[name].type, name
            emitted.setdefault(name, set()).add(what(span))
    on_metrics: dict[str, set[str]] = {}
    for metric, point in measured.points():
        for name, value in (point.attributes or {}).items():
            assert type(value) is ATTRIBUTES[name].type, name
            emitted.setdefault(name, set()).add(On.METRICS)
            on_metrics.setdefault(metric, set()).add(name)
    assert emitted == {name: set(attribute.on) for name, attribute in ATTRIBUTES.items()}
    by_job = {"tinker_guard.account", "tinker_guard.job", "tinker_guard.route"}
    assert {metric: names - by_job for metric, names in on_metrics.items()} == {
        metric.name: set(metric.attributes) for metric in METRICS.values()
    }


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tinker_guard.outcome", Outcome),
        ("tinker_guard.verdict", Verdict),
        ("tinker_guard.verdict.reason", Reason),
    ],
)
def test_every_word_that_a_label_can_be_is_named(name: str, words: type[StrEnum]) -> None:
    named = set(re.findall(r"`([a-z_]+)`", ATTRIBUTES[name].meaning))
    assert named == {word.value for word in words}


def test_names_in_the_text_are_declared() -> None:
    known = {*ATTRIBUTES, *METRICS, "tinker_guard.control_plane", "tinker_guard.warmup"}
    named = set(re.findall(r"\btinker_guard\.[a-z_.]+[a-z]", PAGE))
    assert named <= known
