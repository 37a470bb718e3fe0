"""One table of situations over the transports of async and of sync clients."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from testkit.fakes import (
    GATEWAY_BODY,
    TRAINER_BODY,
    Exchange,
    FakeControlPlane,
    FakeGateway,
    gateway_404,
    known_from,
    ok,
    plain_404,
    post,
    router_404,
    trainer_404,
)
from testkit.threads import SyncFakeTransport
from testkit.virtual_time import VirtualTimeLoop
from tinker_guard import GuardSettings, GuardTransport, SyncGuardTransport
from tinker_guard.core.attempts import JITTER
from tinker_guard.core.routes import ROUTES
from tinker_guard.observability.providers import NOTHING
from tinker_guard.transports import runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


pytestmark = pytest.mark.usefixtures("virtual_time")


@dataclass
class Situation:
    """What a gateway and a control plane say, and what comes of it."""

    answer: Callable[[Exchange], httpx.Response]
    status: int
    body: bytes
    sent: int
    questions: int
    span: Mapping[str, Any]
    seconds: tuple[float, float] = (0.0, 0.0)
    plane: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    probes: int | None = None


def _stale_first(exchange: Exchange) -> httpx.Response:
    return gateway_404() if exchange.connection == 0 else ok()


def _outcome(outcome: str, verdict: str = "", reason: str = "", retries: int = 0) -> dict[str, Any]:
    labels = {"tinker_guard.verdict": verdict, "tinker_guard.verdict.reason": reason}
    return {
        "tinker_guard.outcome": outcome,
        "tinker_guard.retries": retries,
        **(labels if verdict else {}),
    }


RACE = ("routing_race", "job_running")
SITUATIONS = {
    "healthy": Situation(lambda _: ok(), 200, b'{"ok": true}', 1, 0, _outcome("ok"), probes=0),
    "cold and healthy": Situation(
        lambda _: ok(),
        200,
        b'{"ok": true}',
        1,
        0,
        _outcome("ok"),
        settings={"warmup_successes": 3},
        probes=3,
    ),
    "a race at the gate": Situation(
        known_from(3.0),
        200,
        b'{"ok": true}',
        1,
        3,
        _outcome("recovered", *RACE),
        (3.0, 3.75),
        settings={"warmup_successes": 2},
    ),
    "a stale replica": Situation(
        _stale_first, 200, b'{"ok": true}', 2, 1, _outcome("recovered", *RACE, retries=1)
    ),
    "a race of every replica": Situation(
        known_from(2.0),
        200,
        b'{"ok": true}',
        2,
        2,
        _outcome("recovered", *RACE, retries=1),
        (2.0, 2.5),
    ),
    "the budget ends": Situation(
        lambda _: gateway_404(),
        404,
        GATEWAY_BODY,
        2,
        3,
        _outcome("exhausted", *RACE, retries=1),
        (3.0, 3.0),
        settings={"retry_timeout": 3.0},
    ),
    "the trainer's own 404": Situation(
        lambda _: trainer_404(),
        404,
        TRAINER_BODY,
        1,
        0,
        _outcome("not_found", "genuine_not_found", "trainer_answered"),
        probes=0,
    ),
    "a stopped job": Situation(
        lambda _: gateway_404(),
        404,
        GATEWAY_BODY,
        1,
        1,
        _outcome("not_found", "genuine_not_found", "job_not_running"),
        plane={"state": "JOB_STATE_DELETED"},
        probes=0,
    ),
    "a stopped job at the gate": Situation(
        lambda _: gateway_404(),
        404,
        GATEWAY_BODY,
        0,
        1,
        _outcome("not_found", "genuine_not_found", "job_not_running"),
        plane={"state": "JOB_STATE_DELETED"},
        settings={"warmup_successes": 3},
        probes=1,
    ),
    "a missing job": Situation(
        lambda _: gateway_404(),
        404,
        GATEWAY_BODY,
        1,
        2,
        _outcome("not_found", "genuine_not_found", "job_missing"),
        (2.0, 2.0),
        plane={"state": None},
        probes=0,
    ),
    "no control plane, but a trainer": Situation(
        _stale_first,
        200,
        b'{"ok": true}',
        2,
        1,
        _outcome("recovered", "routing_race", "trainer_reached", retries=1),
        plane={"state": OSError()},
    ),
    "a control plane that takes too long": Situation(
        lambda _: plain_404(),
        404,
        b"404 page not found",
        1,
        1,
        _outcome("unverified", "unverified", "control_plane_timeout"),
        (1.0, 1.0),
        plane={"takes": 100.0},
        settings={"retry_timeout": 0.0, "control_plane_timeout": 1.0},
    ),
}


def _send_async(
    gateway: FakeGateway, plane: FakeControlPlane, settings: GuardSettings
) -> tuple[httpx.Response, bytes, float]:
    async def send() -> tuple[httpx.Response, bytes, float]:
        transport = GuardTransport(
            gateway.new_transport(),
            settings=settings,
            control_plane=plane,
            new_transport=gateway.new_transport,
        )
        response = await transport.handle_async_request(post())
        seconds = asyncio.get_running_loop().time()
        body = await response.aread()
        await transport.aclose()
        return response, body, seconds

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(send())


def _send_sync(
    gateway: FakeGateway, plane: FakeControlPlane, settings: GuardSettings
) -> tuple[httpx.Response, bytes, float]:
    transport = sync_guard(gateway, plane, settings)
    response = transport.handle_request(post())
    seconds = runtime.THREADS.clock()
    body = response.read()
    transport.close()
    return response, body, seconds


def sync_guard(
    gateway: FakeGateway, plane: FakeControlPlane, settings: GuardSettings
) -> SyncGuardTransport:
    def new_transport() -> SyncFakeTransport:
        return SyncFakeTransport(gateway.new_transport())

    return SyncGuardTransport(
        new_transport(), settings=settings, control_plane=plane, new_transport=new_transport
    )


@pytest.mark.parametrize("situation", SITUATIONS.values(), ids=SITUATIONS)
def test_both_do_the_same_on_a_warm_route_that_is_not_observed(
    situation: Situation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sync request needs no coroutine there, until it meets a 404."""
    for module in ("sync_transport", "transport", "telemetry"):
        monkeypatch.setattr(f"tinker_guard.{module}.enabled", lambda: NOTHING)
    settings = GuardSettings(**{"warmup_successes": 0, "retry_timeout": 30.0} | situation.settings)
    found = []
    for send in (_send_async, _send_sync):
        ROUTES.clear()
        state = ROUTES.find(post().url)
        assert state is not None
        state.answered(0.0)
        JITTER.seed(1)
        gateway = FakeGateway(situation.answer)
        plane = FakeControlPlane(**situation.plane)
        response, body, seconds = send(gateway, plane, settings)
        sent = [(one.is_probe, one.connection, one.body) for one in gateway.exchanges]
        found.append((response.status_code, body, round(seconds, 6), sent, plane.questions))
        assert gateway.unclosed() == []
        assert all(transport.is_closed for transport in gateway.transports)
    assert found[0] == found[1]
    assert found[0][:2] == (situation.status, situation.body)


@pytest.mark.parametrize("send", [_send_async, _send_sync], ids=["async", "sync"])
@pytest.mark.parametrize("situation", SITUATIONS.values(), ids=SITUATIONS)
def test_both_transports_do_the_same(
    situation: Situation,
    send: Callable[..., tuple[httpx.Response, bytes, float]],
    spans: InMemorySpanExporter,
) -> None:
    gateway = FakeGateway(situation.answer)
    plane = FakeControlPlane(**situation.plane)
    settings = GuardSettings(**{"warmup_successes": 0, "retry_timeout": 30.0} | situation.settings)
    response, body, seconds = send(gateway, plane, settings)
    assert (response.status_code, body) == (situation.status, situation.body)
    assert len(gateway.sent) == situation.sent
    assert plane.questions == situation.questions
    assert situation.seconds[0] <= seconds <= situation.seconds[1]
    if situation.probes is not None:
        assert len(gateway.probes) == situation.probes
    assert gateway.unclosed() == []
    assert all(transport.is_closed for transport in gateway.transports)
    assert {exchange.body for exchange in gateway.sent} <= {b'{"seq_id": 1}'}
    (root,) = (span for span in spans.get_finished_spans() if span.parent is None)
    told = {
        name: value
        for name, value in (root.attributes or {}).items()
        if name in {*_outcome("", "x", "y")}
    }
    assert told == situation.span


# -- answers that need not be the trainer's --------------------------------------------------------

JSON = {"content-type": "application/json"}
NO_PROOF = {
    "a page": {"content-type": "text/html; charset=utf-8"},
    "a copy": JSON | {"age": "12"},
    "a hit": JSON | {"x-cache": "HIT"},
    "a hit by RFC 9211": JSON | {"cache-status": "edge; hit"},
    "nothing": {"content-length": "0"},
}


def _with(headers: Mapping[str, str]) -> httpx.Response:
    response = ok()
    response.headers = httpx.Headers(headers)
    return response


@pytest.mark.parametrize("send", [_send_async, _send_sync], ids=["async", "sync"])
@pytest.mark.parametrize("headers", NO_PROOF.values(), ids=NO_PROOF)
def test_an_answer_that_may_be_anybodys_makes_no_later_404_the_trainers(
    headers: Mapping[str, str], send: Callable[..., tuple[httpx.Response, bytes, float]]
) -> None:
    plane, settings = FakeControlPlane(), GuardSettings(warmup_successes=0)
    assert send(FakeGateway(lambda _: _with(headers)), plane, settings)[0].status_code == 200
    state = ROUTES.find(post().url)
    assert state is not None
    assert (state.is_warm, state.has_shown_trainer) == (False, False)
    loses_one = FakeGateway(lambda e: router_404() if e.connection == 0 else ok())
    assert send(loses_one, plane, settings)[0].status_code == 200
    assert plane.questions == 1


@pytest.mark.parametrize("send", [_send_async, _send_sync], ids=["async", "sync"])
@pytest.mark.parametrize("headers", [{}, {"content-type": "text/plain"}], ids=["none", "text"])
def test_a_server_that_names_no_media_type_is_probed_for_its_first_request_alone(
    headers: Mapping[str, str], send: Callable[..., tuple[httpx.Response, bytes, float]]
) -> None:
    gateway = FakeGateway(lambda e: _with(headers) if e.method == "POST" else router_404())
    for _ in range(3):
        assert send(gateway, FakeControlPlane(), GuardSettings())[0].status_code == 200
    methods = [exchange.method for exchange in gateway.exchanges]
    assert methods[methods.index("POST") :] == ["POST"] * 3


@pytest.mark.parametrize("is_observed", [True, False], ids=["observed", "unobserved"])
@pytest.mark.parametrize("send", [_send_async, _send_sync], ids=["async", "sync"])
@pytest.mark.parametrize(
    ("headers", "is_trainers"),
    [(JSON, True), *((headers, False) for headers in NO_PROOF.values())],
    ids=["the trainer's", *NO_PROOF],
)
def test_an_answer_that_comes_after_its_job_stopped_is_judged_alike(
    headers: Mapping[str, str],
    is_trainers: bool,
    send: Callable[..., tuple[httpx.Response, bytes, float]],
    is_observed: bool,
    monkeypatch: pytest.MonkeyPatch,
    spans: InMemorySpanExporter,
) -> None:
    if not is_observed:
        for module in ("sync_transport", "transport", "telemetry"):
            monkeypatch.setattr(f"tinker_guard.{module}.enabled", lambda: NOTHING)
    state = ROUTES.find(post().url)
    assert state is not None
    state.answered(0.0)

    def answer(_: Exchange) -> httpx.Response:
        state.stopped(0.0)
        return _with(headers)

    send(FakeGateway(answer), FakeControlPlane(), GuardSettings(warmup_successes=0))
    assert (state.is_warm, state.has_shown_trainer) == (False, is_trainers)
    assert bool(spans.get_finished_spans()) is is_observed


# -- what a sync guard has beside that -------------------------------------------------------------


def test_a_sync_guard_is_configured_anew() -> None:
    gateway = FakeGateway(lambda _: gateway_404())
    first, second = FakeControlPlane(), FakeControlPlane("JOB_STATE_FAILED")
    transport = sync_guard(gateway, first, GuardSettings(enabled=False))
    assert transport.handle_request(post()).status_code == 404
    assert (len(gateway.exchanges), first.questions) == (1, 0)
    settings = GuardSettings(warmup_successes=0)
    transport.configure(settings, second)
    assert transport.settings is settings
    assert transport.handle_request(post()).status_code == 404
    assert (first.questions, second.questions) == (0, 1)


def test_a_sync_guard_is_released() -> None:
    gateway, plane = FakeGateway(lambda _: gateway_404()), FakeControlPlane()
    inner = SyncFakeTransport(gateway.new_transport())
    transport = SyncGuardTransport(inner, settings=GuardSettings(), control_plane=plane)
    assert transport.release() is inner
    assert transport.handle_request(post()).status_code == 404
    assert (len(gateway.exchanges), plane.questions) == (1, 0)


def test_a_sync_guard_sees_what_is_on_no_route_unless_told_otherwise(
    spans: InMemorySpanExporter,
) -> None:
    inner = SyncFakeTransport(FakeGateway(lambda _: gateway_404()).new_transport())
    request = httpx.Request("GET", "https://elsewhere.test/api/v1/healthz")
    for transport, is_seen in (
        (SyncGuardTransport(inner), True),
        (SyncGuardTransport(inner, routes_only=False), True),
        (SyncGuardTransport(inner, routes_only=True), False),
    ):
        assert transport.handle_request(request).status_code == 404
        assert bool(spans.get_finished_spans()) is is_seen
        spans.clear()
