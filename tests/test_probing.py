from __future__ import annotations

import asyncio
import gzip
from itertools import pairwise
from typing import Any

import httpx
import pytest

from tests.fakes import (
    BASE,
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
    trainer_404,
)
from tinker_guard import GuardSettings
from tinker_guard.control_plane import SharedControlPlane
from tinker_guard.line import Line
from tinker_guard.probing import Probing
from tinker_guard.route import RouteTable
from tinker_guard.verdict import JOB_NOT_RUNNING, PEEK_LIMIT, ROUTING_RACE, Source

pytestmark = pytest.mark.anyio


def probing(
    gateway: FakeGateway,
    plane: FakeControlPlane | None = None,
    *,
    successes: int = 1,
    timeout: float = 30.0,
    awaits_start: bool = True,
    **settings: Any,
) -> Probing:
    guard_settings = GuardSettings(**settings)
    state = RouteTable().find(httpx.URL(f"{BASE}/api"))
    assert state is not None
    return Probing(
        guard_settings,
        SharedControlPlane(guard_settings, plane or FakeControlPlane()),
        post(),
        Line(gateway.new_transport(), gateway.new_transport),
        state,
        successes=successes,
        timeout=timeout,
        awaits_start=awaits_start,
    )


@pytest.mark.parametrize("answer", [ok, trainer_404, lambda: httpx.Response(503)])
async def test_an_answer_from_behind_the_gateway_reaches_the_trainer(answer: Any) -> None:
    probe = probing(FakeGateway(lambda _: answer()), successes=2)
    assert await probe.run() is None
    assert (probe.probes, probe.has_reached) == (2, True)


async def test_every_probe_is_counted() -> None:
    gateway = FakeGateway(known_from(1.0))
    probe = probing(gateway, successes=3)
    await probe.run()
    for _ in range(2):
        assert await probe.probe_once()
    assert probe.probes == len(gateway.probes) > 5


async def test_a_failed_probe_ends_it_but_has_reached_nobody() -> None:
    async def fail(_: object) -> httpx.Response:
        raise httpx.ConnectError("refused")

    probe = probing(FakeGateway(fail))
    assert await probe.run() is None
    assert not probe.has_reached


async def test_a_control_plane_that_cannot_say_ends_it_too() -> None:
    probe = probing(FakeGateway(lambda _: gateway_404()), FakeControlPlane(OSError()))
    assert await probe.run() is None
    assert not probe.has_reached


async def test_a_refusal_says_why() -> None:
    refusal = await probing(
        FakeGateway(lambda _: gateway_404()), FakeControlPlane("JOB_STATE_PAUSED")
    ).run()
    assert refusal is not None
    assert refusal.judgement == JOB_NOT_RUNNING
    assert refusal.answer.state == "JOB_STATE_PAUSED"
    assert refusal.not_found.source is Source.GATEWAY
    assert refusal.not_found.body == GATEWAY_BODY


async def test_rounds_end_in_time() -> None:
    refusal = await probing(FakeGateway(lambda _: gateway_404()), timeout=5).run()
    assert refusal is not None
    assert refusal.judgement == ROUTING_RACE
    assert 4.0 < loop_time() < 5.0


async def test_rounds_come_after_delays_that_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.random", lambda: 0.0)
    gateway = FakeGateway(lambda _: gateway_404())
    await probing(gateway, timeout=3, backoff_initial=0.2, backoff_max=0.3).run()
    times = [probe.at for probe in gateway.probes]
    delays = [later - at for at, later in pairwise(times)]
    assert delays[:5] == pytest.approx([0.2, 0.23, 0.2645, 0.3, 0.3])


async def test_the_gateways_own_word_wins_over_an_unknown_one() -> None:
    def answer(exchange: Any) -> httpx.Response:
        return gateway_404() if exchange.connection == 1 else plain_404()

    refusal = await probing(FakeGateway(answer), FakeControlPlane(None), successes=3).run()
    assert refusal is not None
    assert refusal.not_found.source is Source.GATEWAY


async def test_of_several_404s_of_the_gateway_one_is_kept() -> None:
    def answer(exchange: Exchange) -> httpx.Response:
        response = gateway_404()
        response.headers["x-replica"] = str(exchange.connection)
        return response

    refusal = await probing(FakeGateway(answer), FakeControlPlane(None), successes=3).run()
    assert refusal is not None
    assert refusal.not_found.headers["x-replica"] == "0"


async def test_a_probe_that_a_transport_cancels_has_reached_nobody() -> None:
    def answer(_: Exchange) -> httpx.Response:
        raise asyncio.CancelledError

    probe = probing(FakeGateway(answer))
    assert await probe.run() is None
    assert not probe.has_reached


async def test_probes_that_reached_the_trainer_mislead_no_more() -> None:
    probe = probing(FakeGateway())
    probe._state.misled = 2
    await probe.run()
    assert probe._state.misled == 0


async def test_unknown_404s_refuse_nobody() -> None:
    probe = probing(FakeGateway(lambda _: plain_404()), timeout=120)
    assert await probe.run() is None
    assert (probe.has_reached, probe.is_unclear, probe.probes) == (False, True, 3)
    assert loop_time() < 0.5


async def test_unknown_404s_of_a_job_that_is_starting_are_waited_out() -> None:
    """It has no trainer yet that could have written them."""
    gateway = FakeGateway(lambda e: ok() if e.at >= 60 else plain_404())
    plane = FakeControlPlane("JOB_STATE_CREATING", states=[(59.9, "JOB_STATE_RUNNING")])
    probe = probing(gateway, plane, timeout=120)
    assert await probe.run() is None
    assert probe.has_reached
    assert 60.0 <= loop_time() < 63.0


async def test_a_job_that_is_starting_ends_it_where_that_is_not_awaited() -> None:
    plane = FakeControlPlane("JOB_STATE_PENDING")
    refusal = await probing(FakeGateway(lambda _: gateway_404()), plane, awaits_start=False).run()
    assert refusal is not None
    assert refusal.judgement == JOB_NOT_RUNNING
    assert loop_time() == 0.0


async def test_a_fault_of_a_probe_is_no_fault_of_the_request() -> None:
    class BadStream(httpx.AsyncByteStream):
        async def __aiter__(self) -> Any:
            yield b"{}"

        async def aclose(self) -> None:
            raise httpx.ReadError("cut")

    gateway = FakeGateway(lambda _: httpx.Response(200, stream=BadStream()))
    assert await probing(gateway).run() is None


async def test_the_probed_connection_is_the_one_that_the_request_goes_over() -> None:
    gateway = FakeGateway(known_from(1.0))
    probe = probing(gateway)
    await probe.run()
    transport = probe._line.transport
    await transport.handle_async_request(post())
    assert gateway.exchanges[-1].connection == gateway.probes[-1].connection
    assert gateway.unclosed() == gateway.sent


async def test_a_body_is_kept_as_it_came_or_left_out_where_a_part_could_not_be_decoded() -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip", "x-kept": "1"}
    wire = gzip.compress(GATEWAY_BODY)

    def answer(_: object) -> httpx.Response:
        return httpx.Response(404, headers=headers, stream=httpx.ByteStream(wire))

    refusal = await probing(FakeGateway(answer), FakeControlPlane(None)).run()
    assert refusal is not None
    assert refusal.not_found.body == wire
    assert dict(refusal.not_found.headers) == headers
    wire = b"x" * (PEEK_LIMIT + 1)
    refusal = await probing(FakeGateway(answer), FakeControlPlane(None)).run()
    assert refusal is not None
    assert refusal.not_found.body == b""
    assert "content-encoding" not in refusal.not_found.headers


async def test_a_body_is_whole_up_to_the_limit_and_left_out_beyond_it() -> None:
    wire = [b"x" * PEEK_LIMIT]

    def answer(_: object) -> httpx.Response:
        return httpx.Response(
            404, headers={"content-encoding": "gzip"}, stream=TrackedStream(list(wire))
        )

    refusal = await probing(FakeGateway(answer), FakeControlPlane(None)).run()
    assert refusal is not None
    assert refusal.not_found.body == b"x" * PEEK_LIMIT
    wire.append(b"x")
    refusal = await probing(FakeGateway(answer), FakeControlPlane(None)).run()
    assert refusal is not None
    assert refusal.not_found.body == b""


@pytest.mark.parametrize("header", ["content-length", "transfer-encoding", "set-cookie"])
async def test_nothing_of_a_probes_own_exchange_is_kept(header: str) -> None:
    def answer(_: object) -> httpx.Response:
        response = gateway_404()
        response.headers[header] = "7"
        return response

    refusal = await probing(FakeGateway(answer), FakeControlPlane(None)).run()
    assert refusal is not None
    assert dict(refusal.not_found.headers) == {"content-type": "application/json"}


async def test_the_key_goes_along_and_the_requests_identity_does_not() -> None:
    gateway = FakeGateway()
    await probing(gateway).run()
    (probe,) = gateway.probes
    assert probe.headers["x-api-key"] == KEY
    assert "x-idempotency-key" not in probe.headers
