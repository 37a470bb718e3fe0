from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from opentelemetry.sdk.metrics.export import HistogramDataPoint

from tests.fakes import (
    GATEWAY_BODY,
    KEY,
    Exchange,
    FakeControlPlane,
    FakeGateway,
    TrackedStream,
    gateway_404,
    known_from,
    loop_time,
    ok,
    plain_404,
    post,
    settle,
    trainer_404,
)
from tinker_guard import GuardSettings, GuardTransport
from tinker_guard.route import ROUTES

if TYPE_CHECKING:
    from tests.conftest import Measured

pytestmark = pytest.mark.anyio


def guard(
    gateway: FakeGateway, control_plane: FakeControlPlane | None = None, **settings: Any
) -> GuardTransport:
    return GuardTransport(
        gateway.new_transport(),
        settings=GuardSettings(**settings),
        control_plane=control_plane or FakeControlPlane(),
        new_transport=gateway.new_transport,
    )


async def send(transport: GuardTransport, request: httpx.Request | None = None) -> int:
    response = await transport.handle_async_request(request or post())
    await response.aread()
    await response.aclose()
    return response.status_code


async def test_first_request_waits_for_three_probes_on_three_connections() -> None:
    gateway = FakeGateway()
    assert await send(guard(gateway)) == 200
    assert [exchange.is_probe for exchange in gateway.exchanges] == [True, True, True, False]
    assert {probe.connection for probe in gateway.probes} == {0, 1, 2}
    assert gateway.sent[0].connection == 0
    assert [transport.is_closed for transport in gateway.transports] == [False, True, True]
    assert gateway.unclosed() == []


async def test_probes_go_the_generic_way_with_the_requests_key_and_without_its_body() -> None:
    gateway = FakeGateway()
    await send(guard(gateway, probe_timeout=4))
    for probe in gateway.probes:
        assert (probe.method, probe.body) == ("GET", b"")
        assert probe.path.endswith("/acc/job-1/api/v1/get_server_capabilities")
        assert probe.headers["x-api-key"] == KEY
        assert not {"x-idempotency-key", "content-length", "content-type"} & set(probe.headers)
        assert probe.extensions["timeout"] == httpx.Timeout(4).as_dict()


async def test_later_requests_do_not_wait() -> None:
    gateway = FakeGateway()
    transport = guard(gateway)
    await send(transport)
    await send(transport)
    assert len(gateway.probes) == 3


async def test_one_warmup_serves_every_transport_of_the_process() -> None:
    gateway = FakeGateway()
    await asyncio.gather(*(send(guard(gateway)) for _ in range(20)))
    assert len(gateway.probes) == 3
    assert len(gateway.sent) == 20


async def test_probes_of_a_round_go_side_by_side() -> None:
    async def slowly(_: Exchange) -> httpx.Response:
        await asyncio.sleep(0.5)
        return ok()

    gateway = FakeGateway(slowly)
    await send(guard(gateway))
    assert gateway.sent[0].at == 0.5


async def test_waits_until_the_route_is_known() -> None:
    gateway, plane = FakeGateway(known_from(3.0)), FakeControlPlane()
    assert await send(guard(gateway, plane)) == 200
    assert [exchange.at >= 3.0 for exchange in gateway.sent] == [True]
    assert loop_time() < 3.75
    assert plane.questions <= 4
    assert gateway.unclosed() == []


async def test_one_404_starts_the_count_again() -> None:
    """A third of the replicas is stale, and every connection sticks to its replica."""

    def answer(exchange: Exchange) -> httpx.Response:
        is_stale = exchange.connection % 3 == 2 and exchange.at < 1.0
        return gateway_404() if is_stale else ok()

    gateway = FakeGateway(answer)
    assert await send(guard(gateway)) == 200
    last_round = gateway.probes[-3:]
    assert all(probe.response and probe.response.status_code == 200 for probe in last_round)
    assert len(gateway.probes) % 3 == 0


async def test_a_trainers_own_404_reaches_the_trainer() -> None:
    gateway = FakeGateway(lambda exchange: trainer_404() if exchange.is_probe else ok())
    plane = FakeControlPlane()
    assert await send(guard(gateway, plane)) == 200
    assert (len(gateway.probes), plane.questions) == (3, 0)


@pytest.mark.parametrize("status_code", [204, 307, 401, 429, 500, 503])
async def test_any_other_answer_reached_the_trainer(status_code: int) -> None:
    gateway = FakeGateway(lambda e: httpx.Response(status_code) if e.is_probe else ok())
    assert await send(guard(gateway)) == 200
    assert len(gateway.probes) == 3


@pytest.mark.parametrize("error", [httpx.ConnectError("refused"), httpx.ReadTimeout("slow")])
async def test_another_failure_opens_the_gate(error: Exception) -> None:
    def answer(exchange: Exchange) -> httpx.Response:
        if exchange.is_probe:
            raise error
        return ok()

    gateway = FakeGateway(answer)
    transport = guard(gateway)
    assert [await send(transport), await send(transport)] == [200, 200]
    assert len(gateway.probes) == 3


async def test_a_probe_that_hangs_opens_the_gate() -> None:
    async def answer(exchange: Exchange) -> httpx.Response:
        if exchange.is_probe:
            await asyncio.sleep(1000)
        return ok()

    gateway = FakeGateway(answer)
    assert await send(guard(gateway, probe_timeout=2)) == 200
    assert loop_time() == 2.0


async def test_a_404_that_hangs_as_it_is_closed_keeps_the_gate_shut() -> None:
    class Stuck(TrackedStream):
        async def aclose(self) -> None:
            await super().aclose()
            await asyncio.Event().wait()

    def answer(exchange: Exchange) -> httpx.Response:
        if exchange.at > 20:
            return ok()
        headers = {"content-type": "application/json"}
        return httpx.Response(404, headers=headers, stream=Stuck([GATEWAY_BODY]))

    gateway = FakeGateway(answer)
    assert await send(guard(gateway)) == 200
    assert loop_time() > 20
    assert len(gateway.sent) == 1


@pytest.mark.parametrize("state", ["JOB_STATE_FAILED", "JOB_STATE_PAUSED", None])
async def test_a_stopped_or_missing_job_ends_it_at_once(state: str | None) -> None:
    gateway, plane = FakeGateway(lambda _: gateway_404()), FakeControlPlane(state)
    transport = guard(gateway, plane)
    responses = await asyncio.gather(*(transport.handle_async_request(post()) for _ in range(5)))
    for response in responses:
        assert response.status_code == 404
        assert await response.aread() == GATEWAY_BODY
        assert response.headers["content-type"] == "application/json"
    assert (len(gateway.probes), plane.questions, gateway.sent) == (3, 1, [])
    assert loop_time() == 0.0


async def test_a_job_on_its_way_is_waited_for() -> None:
    gateway = FakeGateway(known_from(40.0))
    plane = FakeControlPlane("JOB_STATE_CREATING", states=[(35.0, "JOB_STATE_RUNNING")])
    assert await send(guard(gateway, plane)) == 200
    assert 40.0 <= loop_time() < 44.0


async def test_a_control_plane_that_cannot_say_opens_the_gate() -> None:
    gateway = FakeGateway(lambda e: gateway_404() if e.is_probe else ok())
    assert await send(guard(gateway, FakeControlPlane(RuntimeError()))) == 200
    assert loop_time() == 0.0


async def test_after_the_timeout_every_waiter_gets_the_404() -> None:
    gateway = FakeGateway(lambda _: gateway_404())
    transport = guard(gateway, warmup_timeout=20)
    assert await asyncio.gather(*(send(transport) for _ in range(3))) == [404] * 3
    assert 16.0 < loop_time() < 20.0
    assert gateway.sent == []


async def test_a_late_waiter_does_not_begin_another_warmup() -> None:
    gateway = FakeGateway(lambda _: gateway_404())
    transport = guard(gateway, warmup_timeout=20)
    first = asyncio.create_task(send(transport))
    await asyncio.sleep(10)
    assert await send(transport) == await first == 404
    assert loop_time() < 20.0


async def test_time_is_counted_from_the_request_not_from_the_start_of_the_program(
    caplog: pytest.LogCaptureFixture, measured: Measured
) -> None:
    caplog.set_level(logging.INFO, "tinker_guard")
    await asyncio.sleep(1000)
    transport = guard(FakeGateway(lambda _: gateway_404()), warmup_timeout=20)
    assert await send(transport) == 404
    assert 1016.0 < loop_time() <= 1020.0
    transport = guard(FakeGateway(known_from(loop_time() + 1)), warmup_timeout=20)
    assert await send(transport) == 200
    assert "handed back after 1" in caplog.text
    assert "route is warm after 1." in caplog.text
    refused, opened = [p for name, p in measured.points() if name.endswith("warmup.duration")]
    assert isinstance(refused, HistogramDataPoint)
    assert isinstance(opened, HistogramDataPoint)
    assert 1.0 <= opened.sum <= 2.0 < 16.0 <= refused.sum <= 20.0


async def test_after_a_refusal_the_next_request_warms_anew() -> None:
    gateway = FakeGateway(known_from(5.0))
    transport = guard(gateway, FakeControlPlane(None, states=[(5.0, "JOB_STATE_RUNNING")]))
    assert await send(transport) == 404
    await asyncio.sleep(6)
    assert await send(transport) == 200


async def test_404s_that_name_nobody_do_not_hold_a_running_jobs_gate_for_long() -> None:
    gateway = FakeGateway(lambda e: plain_404() if e.is_probe else ok())
    assert await send(guard(gateway)) == 200
    assert loop_time() < 0.5


async def test_no_waiter_waits_longer_than_its_own_timeout() -> None:
    gateway = FakeGateway(lambda _: gateway_404())
    transport = guard(gateway, warmup_timeout=20)
    leaders = [asyncio.create_task(send(transport)) for _ in range(3)]
    last = asyncio.create_task(send(transport))
    for number, leader in enumerate(leaders):
        await asyncio.sleep(19 if number == 0 else 0.1)
        leader.cancel()
    assert await last == 404
    assert loop_time() <= 20.0


async def test_a_404_that_names_nobody_for_a_stopped_job() -> None:
    gateway = FakeGateway(lambda _: plain_404())
    transport = guard(gateway, FakeControlPlane("JOB_STATE_FAILED"))
    response = await transport.handle_async_request(post())
    assert (response.status_code, await response.aread()) == (404, b"404 page not found")


async def test_a_cancelled_leader_hands_over() -> None:
    gateway = FakeGateway(known_from(2.0))
    transport = guard(gateway)
    leader, heir = (asyncio.create_task(send(transport)) for _ in range(2))
    await asyncio.sleep(1)
    leader.cancel()
    assert await heir == 200
    assert leader.cancelled()
    assert loop_time() < 2.75
    assert gateway.unclosed() == []


async def test_a_gate_that_another_event_loop_opened_is_not_warmed_again() -> None:
    async def answer(exchange: Exchange) -> httpx.Response:
        await asyncio.sleep(4 if exchange.is_probe else 0)
        return ok()

    gateway = FakeGateway(answer)
    transport = guard(gateway)
    leader, waiter = (asyncio.create_task(send(transport)) for _ in range(2))
    await asyncio.sleep(1)
    state = ROUTES.find(post().url)
    assert state is not None
    state.is_warm = True
    leader.cancel()
    assert await waiter == 200
    assert (len(gateway.probes), loop_time()) == (3, 1.0)


async def test_a_cancelled_waiter_leaves_the_leader_alone() -> None:
    gateway = FakeGateway(known_from(2.0))
    transport = guard(gateway)
    leader, waiter = (asyncio.create_task(send(transport)) for _ in range(2))
    await asyncio.sleep(1)
    waiter.cancel()
    assert await leader == 200
    assert waiter.cancelled()


@pytest.mark.parametrize("at", [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
async def test_cancelled_at_any_time_nothing_is_left(at: float) -> None:
    async def answer(exchange: Exchange) -> httpx.Response:
        await asyncio.sleep(0.1)
        return gateway_404()

    gateway, tasks = FakeGateway(answer), asyncio.all_tasks()
    transport = guard(gateway, FakeControlPlane(takes=0.1))
    task = asyncio.create_task(send(transport))
    await settle()
    await asyncio.sleep(at)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.all_tasks() == tasks
    assert gateway.unclosed() == []
    await transport.aclose()
    assert all(transport.is_closed for transport in gateway.transports)


async def test_without_warmup_the_request_goes_at_once() -> None:
    gateway = FakeGateway()
    assert await send(guard(gateway, warmup_successes=0)) == 200
    assert gateway.probes == []


async def test_without_new_transports_the_probes_share_the_one() -> None:
    gateway = FakeGateway()
    transport = GuardTransport(gateway.new_transport(), control_plane=FakeControlPlane())
    assert await send(transport) == 200
    assert [probe.connection for probe in gateway.probes] == [0, 0, 0]


async def test_a_fault_of_the_gates_own_lets_the_request_through(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = FakeGateway()
    transport = guard(gateway)
    monkeypatch.setattr(transport._gate, "wait", _raise)
    assert await send(transport) == 200
    (record,) = [r for r in caplog.records if r.name == "tinker_guard"]
    assert "a fault of its own in the warmup" in record.getMessage()


async def _raise(*_: object) -> None:
    raise ZeroDivisionError


async def test_says_that_it_waits_and_for_what(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tinker_guard")
    await send(guard(FakeGateway(known_from(0.3))))
    lines = [record.getMessage() for record in caplog.records if record.name == "tinker_guard"]
    assert lines[0].startswith(
        "job acc/job-1: waiting for its route (control plane: JOB_STATE_RUNNING); next look in 0."
    )
    assert lines[-1].startswith("job acc/job-1: route is warm after 0.")


async def test_says_why_it_refuses(caplog: pytest.LogCaptureFixture) -> None:
    await send(guard(FakeGateway(lambda _: gateway_404()), FakeControlPlane("JOB_STATE_DELETED")))
    (line,) = [record.getMessage() for record in caplog.records if record.name == "tinker_guard"]
    assert line == (
        "404 for job acc/job-1 handed back after 0.00 s (genuine_not_found, job_not_running): "
        "the control plane says that it is JOB_STATE_DELETED."
    )


async def test_requests_on_no_trainer_route_are_not_gated() -> None:
    gateway = FakeGateway()
    request = httpx.Request("GET", "https://gateway.test/api/v1/healthz")
    assert await send(guard(gateway), request) == 200
    assert len(gateway.exchanges) == 1


async def test_a_transport_that_cancels_itself_in_a_probe_cancels_no_request() -> None:
    def answer(exchange: Exchange) -> httpx.Response:
        if exchange.is_probe:
            raise asyncio.CancelledError
        return ok()

    gateway = FakeGateway(answer)
    assert await send(guard(gateway)) == 200
