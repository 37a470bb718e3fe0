from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import httpx
import pytest

from testkit.fakes import (
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
    post,
    send,
)
from testkit.fakes import ungated as guard

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

pytestmark = pytest.mark.anyio


class _Keyed(FakeControlPlane):
    """Shows the job to its owner, and says to any other key that there is none."""

    async def job_state(
        self, account: str, job: str, *, origin: str, credentials: Mapping[str, str]
    ) -> str | None:
        await super().job_state(account, job, origin=origin, credentials=credentials)
        return "JOB_STATE_RUNNING" if KEY in credentials.values() else None


@pytest.mark.parametrize("header", ["x-api-key", "authorization"])
@pytest.mark.parametrize("owner_first", [True, False])
@pytest.mark.parametrize("gap", [0.0, 0.5])
async def test_no_verdict_crosses_keys(header: str, owner_first: bool, gap: float) -> None:
    def keyed(key: str) -> httpx.Request:
        request = post()
        del request.headers["x-api-key"]
        request.headers[header] = key
        return request

    gateway, plane = FakeGateway(known_from(5.0)), _Keyed(takes=0.2)
    transport = guard(gateway, plane, verdict_ttl=60)
    requests = [keyed(KEY), keyed("a stranger's")]
    ordered = requests if owner_first else requests[::-1]

    async def later(number: int, request: httpx.Request) -> int:
        await asyncio.sleep(number * gap)
        return (await send(transport, request)).status_code

    answers = await asyncio.gather(*(later(n, request) for n, request in enumerate(ordered)))
    assert answers == ([200, 404] if owner_first else [404, 200])


@pytest.mark.parametrize("keys", [8, 9, 12])
async def test_however_many_keys_there_are_each_hears_twice_that_its_job_is_missing(
    keys: int,
) -> None:
    """While they read their 404s, and between their lookups, they wait for nothing together."""

    def answer(_: Exchange) -> httpx.Response:
        stream = TrackedStream([GATEWAY_BODY], pause=0.01)
        return httpx.Response(404, headers={"content-type": "application/json"}, stream=stream)

    gateway, plane = FakeGateway(answer), FakeControlPlane(None)
    transport = guard(gateway, plane)

    def keyed(number: int) -> httpx.Request:
        request = post()
        request.headers["x-api-key"] = f"tml-{number}"
        return request

    answers = await asyncio.gather(*(send(transport, keyed(n)) for n in range(keys)))
    assert [answer.status_code for answer in answers] == [404] * keys
    assert loop_time() < 3.0
    assert plane.questions == 2 * keys


async def test_nor_control_planes() -> None:
    gateway = FakeGateway(known_from(5.0))
    transports = [guard(gateway, FakeControlPlane(state)) for state in ("JOB_STATE_DELETED", None)]
    transports.append(guard(gateway, FakeControlPlane()))
    answers = await asyncio.gather(*(send(transport) for transport in transports))
    assert [answer.status_code for answer in answers] == [404, 404, 200]


_BACKGROUND = ["/api/v1/telemetry", "/api/v1/session_heartbeat", "/api/v1/sessions/7/finish?a=/b"]


@pytest.mark.parametrize("path", _BACKGROUND)
@pytest.mark.parametrize("state", ["JOB_STATE_RUNNING", OSError()])
async def test_background_requests_wait_no_more_where_a_budget_was_over(
    path: str, state: str | Exception, spans: InMemorySpanExporter
) -> None:
    gateway = FakeGateway(lambda _: gateway_404())
    plane = FakeControlPlane(state)
    transport = guard(gateway, plane)
    assert (await send(transport)).status_code == 404
    gateway.exchanges.clear()
    spans.clear()
    asked, began = plane.questions, loop_time()
    for _ in range(3):
        assert (await send(transport, post(path))).content == GATEWAY_BODY
    assert ([e.is_probe for e in gateway.exchanges], plane.questions) == ([False] * 3, asked)
    assert loop_time() == began
    word = "exhausted" if state == "JOB_STATE_RUNNING" else "unverified"
    roots = [span.attributes or {} for span in spans.get_finished_spans() if not span.parent]
    assert [root["tinker_guard.outcome"] for root in roots] == [word] * 3


@pytest.mark.parametrize(
    "path",
    [
        *("/api/v1/forward_backward", "/api/v1/telemetry/7", "/api/v1/finished"),
        "/api/v1/retrieve_future?of=telemetry",
    ],
)
async def test_work_waits_all_the_same(path: str) -> None:
    gateway = FakeGateway(lambda _: gateway_404())
    transport = guard(gateway)
    assert (await send(transport)).status_code == 404
    gateway.answer = known_from(35.0)
    assert (await send(transport, post(path))).status_code == 200
    assert 35.0 <= loop_time() < 37.0


async def test_background_requests_wait_again_once_the_route_has_answered() -> None:
    gateway = FakeGateway(lambda _: gateway_404())
    transport = guard(gateway)
    assert (await send(transport)).status_code == 404
    gateway.answer = lambda _: ok()
    assert (await send(transport)).status_code == 200
    gateway.answer = known_from(loop_time() + 3)
    assert (await send(transport, post("/api/v1/telemetry"))).status_code == 200


async def test_those_of_another_key_still_wait() -> None:
    gateway = FakeGateway(lambda _: gateway_404())
    transport = guard(gateway)
    assert (await send(transport)).status_code == 404
    gateway.answer = known_from(loop_time() + 3)
    other = post("/api/v1/telemetry")
    other.headers["x-api-key"] = "another"
    assert (await send(transport, other)).status_code == 200


async def test_a_request_follows_another_no_longer_than_its_own_budget() -> None:
    """That of a client with other settings, which probes for a minute."""
    gateway = FakeGateway(lambda _: gateway_404())
    patient, other = (guard(gateway, retry_timeout=seconds) for seconds in (60.0, 5.0))
    leader = asyncio.create_task(send(patient))
    await asyncio.sleep(0.01)
    assert (await send(other)).status_code == 404
    assert 5.0 <= loop_time() < 6.0
    assert (await leader).status_code == 404
    assert 60.0 <= loop_time() < 61.0


@pytest.mark.parametrize("known_at", [8.0, 8.5, 9.0, 9.5])
async def test_those_that_follow_are_sent_again_within_their_budgets(known_at: float) -> None:
    """However long they would stay back: longer with each second that they have waited."""
    gateway = FakeGateway(known_from(known_at))
    transport = guard(gateway, retry_timeout=10.0, backoff_initial=1.0, backoff_max=1.0)
    responses = await asyncio.gather(*(send(transport) for _ in range(40)))
    assert {response.status_code for response in responses} == {200}
    assert known_at <= loop_time() < 10.01
