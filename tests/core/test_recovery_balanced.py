from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest

from testkit.fakes import (
    Exchange,
    FakeControlPlane,
    FakeGateway,
    gateway_404,
    loop_time,
    ok,
    plain_404,
    router_404,
    send,
)
from testkit.fakes import ungated as guard
from testkit.virtual_time import VirtualTimeLoop
from tinker_guard import ControlPlaneError
from tinker_guard.core import attempts

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

pytestmark = pytest.mark.anyio


_NO_WORD = ControlPlaneError("out of order", 503)


@pytest.mark.parametrize(
    ("replicas", "picks", "state"),
    [
        *((replicas, "in turn", "JOB_STATE_RUNNING") for replicas in (2, 3, 5, 8)),
        *((replicas, "by chance", "JOB_STATE_RUNNING") for replicas in (2, 3, 4)),
        # There, each resend waits for a probe that proves that it is a race.
        *((replicas, "in turn", _NO_WORD) for replicas in (2, 3)),
        *((replicas, "by chance", _NO_WORD) for replicas in (2, 3)),
    ],
)
async def test_one_replica_that_knows_the_route_is_found_among_many(
    replicas: int, picks: str, state: str | ControlPlaneError
) -> None:
    chance = random.Random(replicas)

    def answer(exchange: Exchange) -> httpx.Response:
        turn = len(gateway.exchanges) if picks == "in turn" else chance.randrange(replicas)
        return ok() if turn % replicas == 0 or exchange.at >= 20 else gateway_404()

    gateway = FakeGateway(answer)
    transport = guard(gateway, FakeControlPlane(state))
    for _ in range(5):
        assert (await send(transport)).status_code == 200
    # Five steps.
    assert loop_time() < 3.0


@pytest.mark.parametrize(
    ("state", "wait"), [(_NO_WORD, "0"), ("JOB_STATE_RUNNING", "0.5")], ids=["no-word", "waits"]
)
async def test_resends_that_each_follow_a_probe_do_not_stay_in_step_with_it(
    state: str | ControlPlaneError, wait: str
) -> None:
    def answer(exchange: Exchange) -> httpx.Response:
        response = ok() if exchange.is_probe else gateway_404()
        response.headers["retry-after"] = wait
        response.headers["set-cookie"] = f"affinity={len(gateway.probes)}"
        return response

    gateway = FakeGateway(answer)
    assert (await send(guard(gateway, FakeControlPlane(state), retry_timeout=8))).status_code == 404
    kinds = "".join("p" if exchange.is_probe else "s" for exchange in gateway.exchanges)
    rows = [len(row) for row in kinds.split("s")]
    assert rows[:11] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2]
    # Each goes where the last probe before it has been.
    cookies = [exchange.headers["cookie"] for exchange in gateway.sent[1:5]]
    assert cookies == ["affinity=1", "affinity=3", "affinity=6", "affinity=10"]


@pytest.mark.parametrize("state", [_NO_WORD, "JOB_STATE_RUNNING"], ids=["no-word", "runs"])
async def test_such_a_probe_that_hangs_holds_up_a_resend_but_once(
    state: str | ControlPlaneError,
) -> None:
    """One of the replicas that the gateway takes answers no probe."""

    async def answer(exchange: Exchange) -> httpx.Response:
        if not exchange.is_probe:
            response = ok() if len(gateway.sent) > 4 else gateway_404()
            response.headers["retry-after"] = "0.1"
            return response
        if gateway.exchanges[-2].is_probe:
            await asyncio.sleep(60.0)
        return ok()

    gateway = FakeGateway(answer)
    assert (
        await send(guard(gateway, FakeControlPlane(state), probe_timeout=2.0))
    ).status_code == 200
    # Three resends have each met one.
    assert 6.0 <= loop_time() < 8.0


async def test_no_such_probe_begins_at_the_deadline() -> None:
    """Something holds the event loop up until then, as the probe before it is answered."""

    def answer(exchange: Exchange) -> httpx.Response:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        if not exchange.is_probe:
            response = ok() if len(gateway.sent) > 2 else gateway_404()
            response.headers["retry-after"] = "1"
            return response
        if len(gateway.probes) == 2:
            loop.now = 10.0
        return ok()

    gateway = FakeGateway(answer)
    assert (await send(guard(gateway, retry_timeout=10))).status_code == 200
    assert [exchange.is_probe for exchange in gateway.exchanges] == [0, 1, 0, 1, 0]
    assert [exchange.at for exchange in gateway.sent][-1] == 10.0


async def test_what_such_a_probe_proves_serves_all_that_wait() -> None:
    async def answer(exchange: Exchange) -> httpx.Response:
        await asyncio.sleep(0.01)
        return ok() if exchange.is_probe or exchange.at >= 2.0 else gateway_404()

    gateway = FakeGateway(answer)
    transport = guard(gateway, FakeControlPlane(_NO_WORD))
    answers = await asyncio.gather(*(send(transport) for _ in range(9)))
    assert [answer.status_code for answer in answers] == [200] * 9
    assert 2.0 <= loop_time() <= 2.5


async def test_a_race_that_is_heard_of_before_such_a_probe_is_not_forgotten(
    spans: InMemorySpanExporter,
) -> None:
    script = [gateway_404, ok, gateway_404, gateway_404, ok, ok, ok]
    plane = FakeControlPlane(_NO_WORD)

    async def answer(_: Exchange) -> httpx.Response:
        # What was said about an earlier 404 was said before this one.
        await asyncio.sleep(0.01)
        if len(gateway.exchanges) == 4:
            plane.state = "JOB_STATE_RUNNING"
        return script[len(gateway.exchanges) - 1]()

    gateway = FakeGateway(answer)
    assert (await send(guard(gateway, plane))).status_code == 200
    assert [exchange.is_probe for exchange in gateway.exchanges] == [0, 1, 0, 1, 1, 1, 0]
    (root,) = [span for span in spans.get_finished_spans() if span.parent is None]
    found = root.attributes or {}
    assert found["tinker_guard.verdict"] == "routing_race"
    assert found["tinker_guard.verdict.reason"] == "job_running"
    assert found["tinker_guard.outcome"] == "recovered"


@pytest.mark.parametrize("race", [0.5, 1.0, 2.0, 3.0, 5.0, 8.0])
@pytest.mark.parametrize("not_found", [gateway_404, plain_404, router_404])
@pytest.mark.parametrize("jitter", [0.0, 0.5, 1.0])
async def test_a_race_of_every_replica_of_such_a_gateway_is_waited_out(
    not_found: Callable[[], httpx.Response],
    race: float,
    jitter: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The resends that follow each other at once are no reason to wait longer after them."""
    monkeypatch.setattr(attempts.JITTER, "random", lambda: jitter)

    def answer(exchange: Exchange) -> httpx.Response:
        if exchange.at < 5.0:
            return ok() if len(gateway.exchanges) % 4 == 0 else not_found()
        return ok() if exchange.at >= 5.0 + race else not_found()

    gateway = FakeGateway(answer)
    transport = guard(gateway)
    for _ in range(5):
        assert (await send(transport)).status_code == 200
    await asyncio.sleep(5.0 - loop_time())
    assert (await send(transport)).status_code == 200
    assert loop_time() <= 5.0 + race + max(0.5, race / 4)


async def test_a_wait_that_such_a_gateway_asks_for_is_obeyed_all_the_same() -> None:
    def answer(exchange: Exchange) -> httpx.Response:
        # What the first probe and the resend after it meet, on one connection.
        response = ok() if exchange.is_probe or exchange.at >= 4.0 else gateway_404()
        response.headers["retry-after"] = "2"
        return response

    gateway = FakeGateway(answer)
    assert (await send(guard(gateway))).status_code == 200
    assert [exchange.at for exchange in gateway.sent] == [0.0, 2.0, 4.0]
