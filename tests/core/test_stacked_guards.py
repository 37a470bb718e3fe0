"""Guards above one another: one sees to a request, and the others pass on what it says."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import httpx
import pytest

from testkit.fakes import (
    FakeControlPlane,
    FakeGateway,
    gateway_404,
    known_from,
    plain_404,
    post,
)
from testkit.threads import SyncFakeTransport, VirtualTime
from testkit.virtual_time import VirtualTimeLoop
from tinker_guard import GuardSettings, GuardTransport, SyncGuardTransport
from tinker_guard.core.routes import ROUTES
from tinker_guard.observability.providers import NOTHING

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from testkit.fakes import Exchange


class Between(httpx.AsyncBaseTransport):
    """Something of the program's between two guards."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


def _play(
    guards: int,
    answer: Callable[[Exchange], httpx.Response],
    *,
    warmup: int,
    state: str | None = "JOB_STATE_RUNNING",
) -> tuple[FakeGateway, httpx.Response, float]:
    gateway, plane = FakeGateway(answer), FakeControlPlane(state)
    settings = GuardSettings(warmup_successes=warmup, retry_timeout=4, warmup_timeout=6)

    async def run() -> tuple[httpx.Response, float]:
        transport: httpx.AsyncBaseTransport = gateway.new_transport()
        for _ in range(guards):
            transport = Between(GuardTransport(transport, settings=settings, control_plane=plane))
        async with httpx.AsyncClient(transport=transport) as client:
            response = await client.send(post())
            return response, asyncio.get_running_loop().time()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        response, seconds = runner.run(run())
    return gateway, response, seconds


@pytest.mark.parametrize("warmup", [0, 2])
@pytest.mark.parametrize("refusal", [gateway_404, plain_404])
@pytest.mark.parametrize("guards", [2, 3])
def test_a_404_that_is_handed_back_is_waited_for_once(
    guards: int, refusal: Callable[[], httpx.Response], warmup: int
) -> None:
    alone, _, seconds = _play(1, lambda _: refusal(), warmup=warmup)
    gateway, response, together = _play(guards, lambda _: refusal(), warmup=warmup)
    assert response.status_code == 404
    assert together <= seconds + 0.5
    assert len(gateway.exchanges) <= 1.5 * len(alone.exchanges)


@pytest.mark.parametrize("guards", [2, 3])
def test_a_stopped_job_is_told_as_fast(guards: int) -> None:
    gateway, response, seconds = _play(
        guards, lambda _: gateway_404(), warmup=0, state="JOB_STATE_FAILED"
    )
    assert (response.status_code, len(gateway.sent), seconds) == (404, 1, 0.0)


@pytest.mark.parametrize("guards", [2, 3])
def test_a_race_recovers(guards: int) -> None:
    _, response, seconds = _play(guards, known_from(1.0), warmup=0)
    assert response.status_code == 200
    assert 1.0 <= seconds <= 1.5


@pytest.mark.parametrize(("is_warm", "guards"), [(True, 2), (False, 1)])
def test_each_guard_that_sees_to_it_labels_it(
    is_warm: bool, guards: int, spans: InMemorySpanExporter
) -> None:
    """On a cold route the one above gates it, and so sees to all that follows."""
    if is_warm:
        state = ROUTES.find(post().url)
        assert state is not None
        state.answered(0.0)
    _play(2, lambda _: gateway_404(), warmup=0, state="JOB_STATE_FAILED")
    found = [dict(span.attributes or {}) for span in spans.get_finished_spans()]
    verdicts = [each["tinker_guard.verdict"] for each in found if "tinker_guard.outcome" in each]
    assert verdicts == ["genuine_not_found"] * guards


def test_below_a_sync_client_too(virtual_time: VirtualTime) -> None:
    gateway, plane = FakeGateway(lambda _: gateway_404()), FakeControlPlane()
    settings = GuardSettings(warmup_successes=0, retry_timeout=4)
    transport: httpx.BaseTransport = SyncFakeTransport(gateway.new_transport())
    for _ in range(2):
        transport = SyncGuardTransport(transport, settings=settings, control_plane=plane)
    with httpx.Client(transport=transport) as client:
        assert client.send(post()).status_code == 404
    assert virtual_time.now <= 4.5


def test_where_nothing_is_recorded_either(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("transport", "telemetry"):
        monkeypatch.setattr(f"tinker_guard.{module}.enabled", lambda: NOTHING)
    state = ROUTES.find(post().url)
    assert state is not None
    state.answered(0.0)
    _, response, seconds = _play(3, lambda _: gateway_404(), warmup=2)
    assert response.status_code == 404
    assert seconds == 4.0


def test_on_a_route_that_another_request_has_made_warm_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The guard above took it for cold, and so sees to it."""
    for module in ("transport", "telemetry"):
        monkeypatch.setattr(f"tinker_guard.{module}.enabled", lambda: NOTHING)

    class Warming(Between):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            state = ROUTES.find(request.url)
            assert state is not None
            state.answered(0.0)
            return await super().handle_async_request(request)

    gateway, plane = FakeGateway(known_from(1.0)), FakeControlPlane()
    settings = GuardSettings(warmup_successes=0)

    async def run() -> httpx.Response:
        below = GuardTransport(gateway.new_transport(), settings=settings, control_plane=plane)
        above = GuardTransport(Warming(below), settings=settings, control_plane=plane)
        return await above.handle_async_request(post())

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        assert runner.run(run()).status_code == 200


@pytest.mark.meets_fault
def test_a_layer_that_cannot_be_looked_at_is_none_of_a_guard(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Shy(httpx.AsyncBaseTransport):
        @property
        def __dict__(self) -> dict[str, object]:  # type: ignore[override]
            raise RuntimeError

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            return await below.handle_async_request(request)

    gateway, plane = FakeGateway(lambda _: gateway_404()), FakeControlPlane("JOB_STATE_FAILED")
    settings = GuardSettings(warmup_successes=0, trace="off")
    below = GuardTransport(gateway.new_transport(), settings=settings, control_plane=plane)

    async def run() -> httpx.Response:
        transport = GuardTransport(Shy(), settings=settings, control_plane=plane)
        return await transport.handle_async_request(post())

    state = ROUTES.find(post().url)
    assert state is not None
    state.answered(0.0)
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        assert runner.run(run()).status_code == 404
    assert "looking for a guard below" in caplog.text
