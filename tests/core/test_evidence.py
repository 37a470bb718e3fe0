"""Routes without a control plane: what has reached the trainer is all the evidence there is."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from testkit.fakes import (
    KEY,
    TRAINER_BODY,
    Exchange,
    FakeGateway,
    known_from,
    loop_time,
    ok,
    plain_404,
    router_404,
    tracked,
    trainer_404,
)
from tinker_guard import GuardSettings, GuardTransport
from tinker_guard.core.routes import ROUTES
from tinker_guard.policy.route import patterns_of
from tinker_guard.settings import Trainer404
from tinker_guard.waiting import Readiness, until_routable

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

pytestmark = pytest.mark.anyio

HEAD = "http://head:8000"


def guard(gateway: FakeGateway, **settings: Any) -> GuardTransport:
    """A guard of one server, on whose routes nobody can be asked."""
    return GuardTransport(
        gateway.new_transport(),
        settings=GuardSettings(routes=HEAD, **{"warmup_successes": 1} | settings),
        new_transport=gateway.new_transport,
    )


async def send(
    transport: GuardTransport, path: str = "/api/v1/forward_backward", **options: Any
) -> httpx.Response:
    headers = {"X-Api-Key": options.pop("key", KEY)}
    content = options.pop("content", b'{"seq_id": 1}')
    request = httpx.Request("POST", f"{HEAD}{path}", content=content, headers=headers)
    response = await transport.handle_async_request(request)
    await response.aread()
    return response


def lost_between(
    begin: float, end: float, lost: Callable[[], httpx.Response] = plain_404
) -> Callable[[Exchange], httpx.Response]:
    return lambda e: lost() if begin <= e.at < end else ok()


def judged(spans: InMemorySpanExporter) -> list[tuple[object, ...]]:
    """Outcome, verdict and reason of each request that met a 404."""
    attributes = [span.attributes or {} for span in spans.get_finished_spans()]
    names = [f"tinker_guard.{name}" for name in ("outcome", "verdict", "verdict.reason")]
    return [tuple(of[name] for name in names) for of in attributes if of.keys() >= {*names}]


# -- a server whose own 404 is told of -------------------------------------------------------------

SHAPE = Trainer404(members={"kind": "no_such_thing", "reason": "{text}"})


def its_own_404() -> httpx.Response:
    body = b'{"kind": "no_such_thing", "reason": "future f-1 is unknown"}'
    return tracked(404, body, "application/json")


async def test_its_own_404_is_handed_back_at_once(spans: InMemorySpanExporter) -> None:
    gateway = FakeGateway(lambda e: ok() if e.is_probe else its_own_404())
    response = await send(guard(gateway, trainer_404=SHAPE), "/api/v1/retrieve_future")
    assert response.content == await its_own_404().aread()
    assert (len(gateway.sent), loop_time()) == (1, 0.0)
    assert judged(spans) == [("not_found", "genuine_not_found", "trainer_answered")]


async def test_its_own_404_to_a_probe_shows_that_it_was_reached() -> None:
    gateway = FakeGateway(lambda e: its_own_404() if e.is_probe else ok())
    transport = guard(gateway, trainer_404=SHAPE, warmup_successes=3)
    assert (await send(transport)).status_code == 200
    # Untold, the first one proves nothing, and no further one could.
    assert len(gateway.probes) == 3


# -- gateways that answer as a trainer does --------------------------------------------------------


@pytest.mark.parametrize("warmup_successes", [0, 1, 3])
async def test_a_gateway_made_with_fastapi_is_no_trainer(warmup_successes: int) -> None:
    """So does dstack for a service that has no replica yet."""
    body = b'{"detail":"Service main/run-1 not found"}'
    gateway = FakeGateway(lambda e: ok() if e.at >= 3.0 else tracked(404, body, "application/json"))
    transport = GuardTransport(
        gateway.new_transport(),
        settings=GuardSettings(
            routes="/proxy/services/{project}/{run}", warmup_successes=warmup_successes
        ),
        new_transport=gateway.new_transport,
    )
    url = f"{HEAD}/proxy/services/main/run-1/api/v1/forward_backward"
    request = httpx.Request("POST", url, content=b"{}")
    assert (await transport.handle_async_request(request)).status_code == 200
    assert 3.0 <= loop_time() <= 3.75


# -- a trainer that was reached before -------------------------------------------------------------


@pytest.mark.parametrize("race", [0.2, 3.0, 25.0])
async def test_where_it_was_reached_before_a_404_is_a_race(
    race: float, spans: InMemorySpanExporter
) -> None:
    gateway = FakeGateway(lost_between(1.0, 1.0 + race))
    transport = guard(gateway)
    assert (await send(transport)).status_code == 200
    await asyncio.sleep(1.0)
    assert (await send(transport)).status_code == 200
    assert 1.0 + race <= loop_time() <= 1.0 + race + max(0.5, race / 4)
    assert gateway.unclosed() == []
    assert judged(spans) == [("recovered", "routing_race", "trainer_reached")]


async def test_a_stale_replica_costs_no_time() -> None:
    gateway = FakeGateway()
    transport = guard(gateway)
    await send(transport)
    gateway.answer = lambda e: plain_404() if e.connection == 0 else ok()
    assert (await send(transport)).status_code == 200
    assert loop_time() == 0.0


async def test_after_the_budget_it_is_unverified_and_that_is_remembered_for_a_minute(
    spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = FakeGateway()
    transport = guard(gateway)
    await send(transport)
    gateway.answer = lambda _: plain_404()
    response = await send(transport)
    assert (response.status_code, response.text) == (404, "404 page not found")
    assert loop_time() == pytest.approx(30.0)
    # The next ones of the minute are sent, and their 404s handed back at once.
    for at in (30.0, 60.0, 89.9):
        await asyncio.sleep(at - loop_time())
        sent = len(gateway.exchanges)
        assert (await send(transport)).status_code == 404
        assert loop_time() == pytest.approx(at)
        assert len(gateway.exchanges) == sent + 1
    # None of them has prolonged it.
    await asyncio.sleep(90.1 - loop_time())
    assert (await send(transport)).status_code == 404
    assert loop_time() == pytest.approx(120.1)
    assert set(judged(spans)) == {("unverified", "unverified", "no_control_plane")}
    assert gateway.unclosed() == []
    lines = [line for line in caplog.messages if "handed back" in line]
    assert lines[0].startswith(f"404 for {HEAD} handed back after 30.00 s (unverified, no_contr")
    assert "its trainer, which was reached before, is not any more" in lines[0]
    assert "in vain, less than a minute ago" in lines[1]


async def test_once_it_answers_again_nothing_is_remembered() -> None:
    gateway = FakeGateway()
    transport = guard(gateway)
    await send(transport)
    gateway.answer = lambda _: plain_404()
    await send(transport)
    gateway.answer = lambda _: ok()
    assert (await send(transport)).status_code == 200
    gateway.answer = lost_between(0.0, 33.0)
    assert (await send(transport)).status_code == 200
    assert 33.0 <= loop_time() < 34.0


async def test_another_key_finds_out_for_itself() -> None:
    gateway = FakeGateway()
    transport = guard(gateway)
    await send(transport)
    gateway.answer = lambda _: plain_404()
    await send(transport)
    await send(transport, key="another")
    assert loop_time() == pytest.approx(60.0)


async def test_requests_that_wait_together_spend_one_budget() -> None:
    gateway = FakeGateway()
    transport = guard(gateway)
    await send(transport)
    gateway.answer = lambda _: plain_404()
    answers = await asyncio.gather(*(send(transport) for _ in range(20)))
    assert {answer.status_code for answer in answers} == {404}
    assert loop_time() == pytest.approx(30.0)


# -- one that was never reached --------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "waits"), [({}, 10.0), ({"unreached_timeout": 3}, 3.0)])
async def test_a_wrong_url_is_cheap(
    settings: dict[str, Any],
    waits: float,
    spans: InMemorySpanExporter,
    caplog: pytest.LogCaptureFixture,
) -> None:
    gateway = FakeGateway(lambda _: plain_404())
    transport = guard(gateway, **settings)
    assert (await send(transport)).text == "404 page not found"
    assert loop_time() == pytest.approx(waits)
    # One request, and small probes.
    assert len(gateway.sent) == 1
    for _ in range(3):
        assert (await send(transport)).status_code == 404
    assert loop_time() == pytest.approx(waits)
    assert set(judged(spans)) == {("unverified", "unverified", "no_control_plane")}
    assert "nothing has ever reached its trainer. Is base_url right?" in caplog.text


async def test_what_is_waited_for_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tinker_guard")
    gateway = FakeGateway(known_from(5.0))
    await send(guard(gateway))
    assert caplog.messages[0] == (
        "POST /api/v1/forward_backward waits up to 10 s (TINKER_GUARD_UNREACHED_TIMEOUT) for the "
        f"route of {HEAD}: the gateway answers 404, and nothing has reached its trainer."
    )
    gateway.answer = lost_between(0, 40.0)
    await asyncio.sleep(20)
    await send(guard(gateway))
    assert any(
        "20 s left; the gateway answers 404, but a request or probe has reached its trainer" in line
        for line in caplog.messages
    )


@pytest.mark.parametrize("known_at", [0.5, 9.0])
async def test_a_probe_that_reaches_it_shows_a_race(
    known_at: float, spans: InMemorySpanExporter
) -> None:
    gateway = FakeGateway(known_from(known_at))
    assert (await send(guard(gateway))).status_code == 200
    assert known_at <= loop_time() <= known_at + max(0.5, known_at / 4)
    assert judged(spans) == [("recovered", "routing_race", "trainer_reached")]


async def test_from_then_on_it_has_the_budget_of_a_race() -> None:
    """Probes reach it after 5 s, but the request's own replicas know the route after 20 s."""
    gateway = FakeGateway(
        lambda e: ok() if e.at >= (5.0 if e.is_probe else 20.0) else plain_404(),
    )
    assert (await send(guard(gateway))).status_code == 200
    assert 20.0 <= loop_time() < 24.0


async def test_a_longer_wait_for_the_first_sign_may_exceed_the_budget_of_a_race() -> None:
    gateway = FakeGateway(known_from(50.0))
    transport = guard(gateway, unreached_timeout=60, retry_timeout=1)
    assert (await send(transport)).status_code == 200
    assert 50.0 <= loop_time() < 54.0


async def test_a_body_that_is_a_stream_waits_for_nothing() -> None:
    async def stream() -> Any:
        yield b"once"

    gateway = FakeGateway(lambda _: plain_404())
    transport = guard(gateway)
    assert (await send(transport, content=stream())).status_code == 404
    gateway.answer = lambda _: ok()
    await send(transport)
    gateway.answer = lambda _: plain_404()
    assert (await send(transport, content=stream())).status_code == 404
    assert loop_time() == 0.0


# -- at the gate -----------------------------------------------------------------------------------


async def test_the_gate_lets_a_request_through_that_no_word_can_hold_back() -> None:
    """Its probes met 404s of nobody knows whom: the request itself shows what there is."""
    gateway = FakeGateway(lambda e: plain_404() if e.is_probe else ok())
    assert (await send(guard(gateway, warmup_successes=3))).status_code == 200
    assert loop_time() == 0.0


async def test_a_gate_that_a_probe_has_reached_before_waits_like_a_race(
    spans: InMemorySpanExporter,
) -> None:
    """Two replicas, and the one that the leader's connection sticks to is stale."""
    gateway = FakeGateway()
    transport = guard(gateway)
    await send(transport)
    state = ROUTES.find(httpx.URL(f"{HEAD}/"), patterns_of((HEAD,)))
    assert state is not None
    state.is_warm = False
    gateway.answer = lambda _: plain_404()
    response = await send(transport)
    assert (response.status_code, response.text) == (404, "404 page not found")
    assert judged(spans) == [("unverified", "unverified", "no_control_plane")]


# -- what is no race -------------------------------------------------------------------------------


async def test_the_trainers_own_404_is_handed_back_at_once() -> None:
    gateway = FakeGateway()
    transport = guard(gateway)
    await send(transport)
    gateway.answer = lambda _: trainer_404()
    assert (await send(transport)).content == TRAINER_BODY
    assert (loop_time(), len(gateway.sent)) == (0.0, 2)


@pytest.mark.parametrize("path", ["/api/v1/healthz", "/healthz?verbose=1", "/health", "/readyz"])
@pytest.mark.parametrize("warmup_successes", [0, 1])
@pytest.mark.parametrize("plain", [plain_404, router_404])
async def test_an_answer_about_health_does_not_show_that_it_was_reached(
    path: str, warmup_successes: int, plain: Callable[[], httpx.Response]
) -> None:
    """A gateway may know that path before all else, or answer it by itself."""

    def answer(exchange: Exchange) -> httpx.Response:
        if exchange.path == httpx.URL(path).path:
            return ok()
        return httpx.Response(503) if exchange.is_probe else plain()

    gateway = FakeGateway(answer)
    transport = guard(gateway, warmup_successes=warmup_successes)
    for _ in range(3):
        assert (await send(transport, path)).status_code == 200
    state = ROUTES.find(httpx.URL(f"{HEAD}{path}"), patterns_of((HEAD,)))
    assert state is not None
    assert (state.is_warm, state.has_shown_trainer) == (False, False)
    assert (await send(transport)).status_code == 404
    assert loop_time() >= GuardSettings().unreached_timeout


@pytest.mark.parametrize("status_code", [400, 401, 403, 409, 410, 422, 429, 500, 502, 503])
@pytest.mark.parametrize("was_reached", [False, True])
async def test_no_other_status_is_touched(status_code: int, was_reached: bool) -> None:
    """410 is a verdict; the SDK itself retries the others, or not."""
    gateway = FakeGateway()
    transport = guard(gateway)
    if was_reached:
        await send(transport)
    sent = len(gateway.sent)
    gateway.answer = lambda _: tracked(status_code, b"gone", "text/plain")
    response = await send(transport)
    assert (response.status_code, response.content) == (status_code, b"gone")
    assert (loop_time(), len(gateway.sent)) == (0.0, sent + 1)


# -- waiting without a request ---------------------------------------------------------------------


async def wait(gateway: FakeGateway, timeout: float) -> Readiness:  # noqa: ASYNC109
    return await until_routable(
        HEAD,
        timeout=timeout,
        settings=GuardSettings(routes=HEAD),
        new_transport=gateway.new_transport,
    )


async def test_it_is_waited_for_as_long_as_is_said(caplog: pytest.LogCaptureFixture) -> None:
    assert await wait(FakeGateway(known_from(50.0)), timeout=120) is Readiness.READY
    assert 50.0 <= loop_time() < 54.0
    assert "the gateway answers 404, and nothing has reached its trainer" in caplog.text


async def test_a_route_that_does_not_come_is_timed_out() -> None:
    assert await wait(FakeGateway(lambda _: plain_404()), timeout=20) is Readiness.TIMED_OUT
    assert loop_time() == pytest.approx(20.0)


async def test_a_gateway_that_answers_no_probe_is_not_verifiable() -> None:
    gateway = FakeGateway(lambda _: tracked(401, b"{}", "application/json"))
    assert await wait(gateway, timeout=20) is Readiness.UNVERIFIABLE
