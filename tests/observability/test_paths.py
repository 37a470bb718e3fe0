"""Where a path is recorded, and where not: a server exists whose API key stands in its paths."""

from __future__ import annotations

import importlib.util
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from opentelemetry.trace import SpanKind

from testkit.fakes import FakeControlPlane, FakeGateway, gateway_404, ok, send
from testkit.fakes import ungated as guard
from tinker_guard.control_plane.fireworks import FireworksControlPlane
from tinker_guard.core.routes import ROUTES
from tinker_guard.observability.operation_names import operation_of
from tinker_guard.policy.route import patterns_of

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from tests.conftest import Measured

pytestmark = pytest.mark.anyio

KEY = "tml-geheim_4711"
HOST = "gateway.test:8443"


@pytest.mark.parametrize(
    ("path", "recorded"),
    [
        (f"/k/{KEY}/api/v1/asample", "/api/v1/asample"),
        (f"/k/{KEY}/api/v1/sessions/{KEY}/finish?key={KEY}", "/api/v1/sessions/{id}/finish"),
        (f"/api/v1/{KEY}/api/v1/auth/token", "/api/v1/auth/token"),
        ("/services/x/api/v1/client/config", "/api/v1/client/config"),
        (f"/k/{KEY}", ""),
        (f"/k/{KEY}/v1/asample", ""),
        (f"/api/v1/asample/{KEY}", ""),
        (f"/{KEY}/asample", ""),
        (f"/{KEY}/api/v1/asample/", ""),
        ("/api/v1/akeyoflettersalone", ""),
        ("/api/v1/sessions/search/akeyoflettersalone", ""),
        (f"/bucket/{KEY}?signature={KEY}", ""),
        ("/training/v1/rlorTrainerJobs/acc/", ""),
        (f"/training/v1/serverless/{KEY}/api/v1/get_info", "/api/v1/get_info"),
        (f"/api/v1/model/{KEY}/create_model", ""),
        ("", ""),
    ],
)
@pytest.mark.parametrize("status_code", [200, 404, 500])
async def test_a_path_off_trainer_routes_is_nowhere(
    spans: InMemorySpanExporter,
    measured: Measured,
    caplog: pytest.LogCaptureFixture,
    path: str,
    recorded: str,
    status_code: int,
) -> None:
    caplog.set_level(logging.DEBUG, "tinker_guard")
    request = httpx.Request("POST", f"https://gateway.test:8443{path}", content=b"{}")
    answer = httpx.Response(status_code, request=request)
    await send(guard(FakeGateway(lambda _: answer), trace="all"), request)
    exchange, *more = spans.get_finished_spans()
    assert len(more) == (status_code == 404)
    assert {span.name for span in (exchange, *more)} == {"POST"}
    assert (exchange.attributes or {})["url.full"] == f"https://gateway.test:8443{recorded}"
    everything = [
        *(span.to_json() for span in (exchange, *more)),
        *map(repr, measured.points()),
        *map(repr, caplog.records),
        caplog.text,
    ]
    for text in everything:
        assert KEY not in text
        assert "akeyoflettersalone" not in text


@pytest.mark.parametrize(
    ("routes", "url", "recorded", "name"),
    [
        (
            f"https://{HOST}/k/{{_key}}",
            f"/k/{KEY}/api/v1/sessions/s-1/finish?x={KEY}",
            "/k/{_key}/api/v1/sessions/s-1/finish",
            "POST /api/v1/sessions/{id}/finish",
        ),
        ("/k/{_key}", f"/k/{KEY}/asample", "/k/{_key}/asample", "POST /asample"),
        ("/k/{_key}", f"/k/{KEY}/akeyoflettersalone", "/k/{_key}", "POST"),
        # The whole server is guarded, and the key stands in the path below.
        (f"https://{HOST}", f"/k/{KEY}/api/v1/asample", "/api/v1/asample", "POST"),
        (f"https://{HOST}", f"/k/{KEY}/x", "", "POST"),
        (f"https://{HOST}", "/akeyoflettersalone", "", "POST"),
    ],
)
@pytest.mark.parametrize("is_reached", [True, False])
async def test_what_a_pattern_hides_is_nowhere(
    spans: InMemorySpanExporter,
    measured: Measured,
    caplog: pytest.LogCaptureFixture,
    routes: str,
    url: str,
    recorded: str,
    name: str,
    is_reached: bool,
) -> None:
    caplog.set_level(logging.DEBUG, "tinker_guard")
    settings = {"routes": routes, "trace": "all", "metrics_by_job": True, "warmup_successes": 1}
    gateway = FakeGateway(
        lambda e: ok() if is_reached and (e.is_probe or e.connection) else gateway_404()
    )
    plane = FakeControlPlane("JOB_STATE_RUNNING" if is_reached else OSError())
    request = httpx.Request("POST", f"https://{HOST}{url}", content=b"{}")
    await send(guard(gateway, plane, **settings), request)
    finished = spans.get_finished_spans()
    sent = [span for span in finished if span.kind is SpanKind.CLIENT and "probe" not in span.name]
    assert {(span.attributes or {})["url.full"] for span in sent} >= {f"https://{HOST}{recorded}"}
    assert name in {span.name for span in finished}
    assert caplog.records or is_reached
    state = ROUTES.find(request.url, patterns_of((routes,)))
    assert state is not None
    everything = [
        *(span.to_json() for span in finished),
        *map(repr, measured.points()),
        *map(repr, caplog.records),
        caplog.text,
        repr(state.route),
    ]
    for text in everything:
        assert KEY not in text
        assert "akeyoflettersalone" not in text


async def test_a_path_of_a_control_planes_base_url_is_nowhere(spans: InMemorySpanExporter) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"state": "JOB_STATE_RUNNING"})

    url = f"https://api.test/k/{KEY}"
    plane = FireworksControlPlane(url, transport=httpx.MockTransport(answer))
    await send(guard(FakeGateway(lambda e: gateway_404() if e.connection == 0 else ok()), plane))
    assert any(span.name.startswith("GET /v1/accounts") for span in spans.get_finished_spans())
    assert not [span for span in spans.get_finished_spans() if KEY in span.to_json()]


async def test_every_operation_of_the_installed_sdk_is_known() -> None:
    spec = importlib.util.find_spec("tinker")
    if spec is None or spec.origin is None:
        pytest.skip("tinker is not installed")
    found: set[str] = set()
    for path in Path(spec.origin).parent.rglob("*.py"):
        if not path.name.endswith("_test.py"):
            found |= set(re.findall(r"""["'](/api/v1/[a-z_/{}.]+)["']""", path.read_text("utf-8")))
    assert len(found) > 30
    concrete = {re.sub(r"{[^{}]*}", "id-1", path) for path in found}
    urls = [httpx.URL(f"https://gateway.test/x{path}") for path in concrete]
    shown = {operation_of("GET", url, None).of_exchange["url.full"] for url in urls}
    assert shown.isdisjoint({"https://gateway.test", "https://gateway.test/x"})
