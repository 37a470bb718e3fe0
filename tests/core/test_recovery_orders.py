from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from testkit.fakes import (
    GATEWAY_BODY,
    KEY,
    TRAINER_BODY,
    Exchange,
    FakeControlPlane,
    FakeGateway,
    TrackedStream,
    gateway_404,
    loop_time,
    ok,
    plain_404,
    post,
    router_404,
    send,
    settle,
    tracked,
    trainer_404,
)
from testkit.fakes import ungated as guard
from testkit.virtual_time import VirtualTimeLoop
from tinker_guard.core.routes import ROUTES
from tinker_guard.observability.providers import NOTHING
from tinker_guard.policy.json_body import BODY_LIMIT

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("arrives_at", [n / 10 for n in range(10, 32)])
async def test_a_job_that_stops_ends_all_that_wait_each_by_an_answer_of_its_own_time(
    arrives_at: float,
) -> None:
    """What the leader heard of a job holds for those whose 404 came before it asked."""
    plane = FakeControlPlane(states=[(2.0, "JOB_STATE_FAILED")], takes=0.3)
    gateway = FakeGateway(lambda e: ok() if e.at < 0 else gateway_404())
    transports = [guard(gateway, plane) for _ in range(4)]
    early = [asyncio.create_task(send(transport)) for transport in transports[:3]]
    await asyncio.sleep(arrives_at)
    late = await send(transports[3])
    answers = [late, *(await asyncio.gather(*early))]
    assert [answer.status_code for answer in answers] == [404] * 4
    assert loop_time() < 6.0
    assert gateway.unclosed() == []


async def test_a_control_plane_that_was_silent_and_then_says_stopped_ends_the_wait() -> None:
    plane = FakeControlPlane(OSError(), states=[(1.0, "JOB_STATE_FAILED")])
    response = await send(guard(FakeGateway(lambda _: gateway_404()), plane))
    assert (response.status_code, response.content) == (404, GATEWAY_BODY)
    assert 1.0 <= loop_time() < 2.5


@pytest.mark.parametrize(("takes", "ends_at"), [(0.6, 0.6), (1000.0, 1.0)])
async def test_a_budget_that_ends_while_a_404_is_closed(
    takes: float, ends_at: float, spans: InMemorySpanExporter
) -> None:
    """It was too large to be kept, and its closing dawdles: one more resend shows what there is."""

    class Slow(TrackedStream):
        async def aclose(self) -> None:
            await super().aclose()
            await asyncio.sleep(takes)

    def answer(exchange: Exchange) -> httpx.Response:
        if exchange.at > 100.0:
            return ok()
        return httpx.Response(404, stream=Slow([b"x" * BODY_LIMIT, b"y"]))

    await asyncio.sleep(100)
    gateway = FakeGateway(answer)
    assert (await send(guard(gateway, retry_timeout=0.5))).status_code == 200
    assert len(gateway.sent) == 2
    assert loop_time() == pytest.approx(100.0 + ends_at)
    (resend,) = [span for span in spans.get_finished_spans() if span.name.startswith("resend ")]
    attributes = resend.attributes or {}
    assert attributes["tinker_guard.pause"] == pytest.approx(ends_at, abs=0.001)


@pytest.mark.parametrize("known_at", [0.0, 1.0])
@pytest.mark.parametrize("state", ["JOB_STATE_RUNNING", OSError()])
async def test_a_probe_that_reached_the_trainer_sends_all_that_wait(
    state: str | Exception, known_at: float
) -> None:
    """It is proof for each of them, since their 404s came before."""

    async def answer(exchange: Exchange) -> httpx.Response:
        is_routed = exchange.is_probe or len(gateway.sent) > 3
        await settle()
        return ok() if is_routed and exchange.at >= known_at else gateway_404()

    gateway, plane = FakeGateway(answer), FakeControlPlane(state)
    transports = [guard(gateway, plane) for _ in range(3)]
    answers = await asyncio.gather(*(send(transport) for transport in transports))
    assert {answer.status_code for answer in answers} == {200}
    assert [probe.at >= known_at for probe in gateway.probes].count(True) == 1
    assert len(gateway.sent) == 6


@pytest.mark.parametrize(("state", "probes"), [("JOB_STATE_RUNNING", 1), (OSError(), 2)])
async def test_what_a_probe_proved_before_a_404_came_is_no_proof_for_that_404(
    state: str | Exception, probes: int
) -> None:
    """The first probe reaches the trainer at 0 s, and its answer takes a second to be read."""

    def answer(exchange: Exchange) -> httpx.Response:
        if not exchange.is_probe:
            return ok() if len(gateway.sent) > 2 else gateway_404()
        stream = TrackedStream([b"{}"], pause=0.0 if exchange.at else 1.0)
        return httpx.Response(200, headers={"content-type": "application/json"}, stream=stream)

    gateway, plane = FakeGateway(answer), FakeControlPlane(state)
    transports = [guard(gateway, plane) for _ in range(2)]
    first = asyncio.create_task(send(transports[0]))
    await asyncio.sleep(0.5)
    assert (await send(transports[1])).status_code == 200
    assert (await first).status_code == 200
    assert len(gateway.probes) == probes


async def test_a_probe_that_fails_lets_all_that_wait_show_what_there_is() -> None:
    async def answer(exchange: Exchange) -> httpx.Response:
        if exchange.is_probe:
            await asyncio.sleep(0.5)
            raise httpx.ConnectError("refused")
        return ok() if len(gateway.sent) > 3 else gateway_404()

    gateway, plane = FakeGateway(answer), FakeControlPlane()
    transports = [guard(gateway, plane) for _ in range(3)]
    answers = await asyncio.gather(*(send(transport) for transport in transports))
    assert {answer.status_code for answer in answers} == {200}
    assert (len(gateway.probes), len(gateway.sent)) == (1, 6)


async def test_a_leader_whose_time_is_over_as_its_probe_is_answered_releases_nobody() -> None:
    """Something holds the event loop up meanwhile, so that no timer ends the leader's wait."""

    def answer(exchange: Exchange) -> httpx.Response:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        if exchange.is_probe and 6.0 <= exchange.at < 10.0:
            loop.now = 11.0
        return ok() if exchange.at >= 13.0 else gateway_404()

    gateway, plane = FakeGateway(answer), FakeControlPlane()
    transports = [guard(gateway, plane, retry_timeout=10, verdict_ttl=60) for _ in range(2)]
    first = asyncio.create_task(send(transports[0]))
    await asyncio.sleep(5)
    assert (await send(transports[1])).status_code == 200
    assert (await first).status_code == 404
    assert [exchange.at for exchange in gateway.sent[:3]] == [0.0, 5.0, 11.0]
    assert gateway.sent[3].at >= 13.0
    assert len(gateway.sent) == 4


async def test_one_lookup_that_finds_the_job_stopped_ends_all_that_wait() -> None:
    plane = FakeControlPlane(states=[(1.0, "JOB_STATE_FAILED")])
    gateway = FakeGateway(lambda _: gateway_404())
    transports = [guard(gateway, plane) for _ in range(3)]
    answers = await asyncio.gather(*(send(transport) for transport in transports))
    assert [answer.status_code for answer in answers] == [404] * 3
    heard_at = [at for at, *_ in plane.asked if at >= 1.0]
    assert len(heard_at) == 1
    assert [probe.at for probe in gateway.probes if probe.at >= heard_at[0]] == heard_at
    assert len(gateway.sent) == 3


@pytest.mark.parametrize(
    ("probe", "unusable_again_at"),
    [
        # Probes fail, or nobody can be asked any more: the request itself shows what there is.
        (httpx.ConnectError("refused"), None),
        (None, 2.0),
    ],
)
async def test_that_the_job_runs_is_not_forgotten_while_proof_is_looked_for(
    probe: Exception | None, unusable_again_at: float | None, spans: InMemorySpanExporter
) -> None:
    """The control plane gave no answer about the request's own 404, and said RUNNING later."""

    class Plane(FakeControlPlane):
        async def job_state(self, *args: Any, **more: Any) -> str | None:
            await super().job_state(*args, **more)
            is_usable = 1.0 <= loop_time() < (unusable_again_at or math.inf)
            if not is_usable:
                raise OSError
            return "JOB_STATE_RUNNING"

    def answer(exchange: Exchange) -> httpx.Response:
        if exchange.is_probe and exchange.at >= 2.0 and probe is not None:
            raise probe
        return gateway_404() if exchange.is_probe or exchange.at < 2.0 else ok()

    gateway = FakeGateway(answer)
    assert (await send(guard(gateway, Plane(), verdict_ttl=0.1))).status_code == 200
    assert 2.0 <= loop_time() < 3.5
    (root,) = [span for span in spans.get_finished_spans() if span.parent is None]
    assert (root.attributes or {})["tinker_guard.verdict.reason"] == "job_running"


_REFUSES = (401, 403, 405, 421, 426, 429, 501, 503)


@pytest.mark.parametrize("cold", [True, False], ids=["cold", "warm"])
@pytest.mark.parametrize("status", [*_REFUSES, 200, None])
async def test_a_control_plane_is_asked_again_where_probes_say_nothing(
    status: int | None, cold: bool, spans: InMemorySpanExporter
) -> None:
    """It is out of order for a second, and something on the way answers all probes, or none."""

    def answer(exchange: Exchange) -> httpx.Response:
        if not exchange.is_probe:
            return ok() if exchange.at >= 2.0 else gateway_404()
        if status is None:
            raise httpx.ConnectError("refused")
        return tracked(status, b"<html>", "text/html")

    plane = FakeControlPlane(OSError(), states=[(1.0, "JOB_STATE_RUNNING")])
    gateway = FakeGateway(answer)
    if not cold:
        state = ROUTES.find(post().url)
        assert state is not None
        state.answered(0.0)
    assert (await send(guard(gateway, plane, warmup_successes=3))).status_code == 200
    assert 2.0 <= loop_time() <= 2.5
    (root,) = [span for span in spans.get_finished_spans() if span.parent is None]
    told = {name: (root.attributes or {})[f"tinker_guard.{name}"] for name in _TOLD}
    assert told == {
        "outcome": "recovered",
        "verdict": "routing_race",
        "verdict.reason": "job_running",
        "account": "acc",
        "job": "job-1",
    }


_TOLD = ("outcome", "verdict", "verdict.reason", "account", "job")


@pytest.mark.parametrize(
    ("later", "reason", "ends_at"),
    [
        ([(1.0, "JOB_STATE_PAUSED")], "job_not_running", 1.0),
        ([(1.0, None)], "job_missing", 3.0),
        # On its way: waiting may help, and nothing more is known in the end.
        ([(1.0, "JOB_STATE_CREATING")], "control_plane_error", 10.0),
        # One negative answer is not the truth.
        ([(1.0, None), (2.0, "JOB_STATE_CREATING")], "control_plane_error", 10.0),
        # Nothing was said between two of them, however long that took.
        ([(1.0, None), (2.0, OSError()), (3.5, None)], "job_missing", 3.5),
        ([(1.0, None), (2.0, OSError()), (8.0, None)], "job_missing", 8.0),
        # Another word takes back the first.
        ([(1.0, None), (2.0, "JOB_STATE_CREATING"), (5.0, None)], "job_missing", 7.0),
        ([(1.0, None), (2.0, "JOB_STATE_NEW"), (5.0, None)], "job_missing", 7.0),
        ([(1.0, None), (2.0, OSError()), (4.0, "JOB_STATE_IDLE"), (5.0, None)], "job_missing", 7.0),
    ],
)
async def test_what_a_control_plane_says_where_probes_say_nothing_is_heard(
    later: list[tuple[float, str | Exception | None]],
    reason: str,
    ends_at: float,
    spans: InMemorySpanExporter,
) -> None:
    def answer(exchange: Exchange) -> httpx.Response:
        return tracked(401, b"{}", "application/json") if exchange.is_probe else gateway_404()

    plane = FakeControlPlane(OSError(), states=later)
    gateway = FakeGateway(answer)
    transport = guard(gateway, plane, warmup_successes=0, retry_timeout=10)
    responses = await asyncio.gather(*(send(transport) for _ in range(3)))
    assert [response.content for response in responses] == [GATEWAY_BODY] * 3
    assert ends_at <= loop_time() < ends_at + 0.6
    assert len(gateway.sent) == 3
    roots = [span for span in spans.get_finished_spans() if span.parent is None]
    assert {(root.attributes or {})["tinker_guard.verdict.reason"] for root in roots} == {reason}


async def test_a_race_is_not_forgotten_where_the_next_probe_says_nothing() -> None:
    plane = FakeControlPlane(OSError())

    async def answer(exchange: Exchange) -> httpx.Response:
        await asyncio.sleep(0.01)
        if not exchange.is_probe:
            return ok() if exchange.at > 2.0 else gateway_404()
        if len(gateway.probes) == 1:
            plane.state = "JOB_STATE_RUNNING"
            not_found = gateway_404()
            not_found.headers["retry-after"] = "2"
            return not_found
        plane.state = "JOB_STATE_CREATING"
        return tracked(503, b"{}", "application/json")

    gateway = FakeGateway(answer)
    assert (await send(guard(gateway, plane, warmup_successes=0))).status_code == 200
    assert [exchange.is_probe for exchange in gateway.exchanges] == [0, 1, 1, 0]


@pytest.mark.parametrize("later", ["JOB_STATE_PAUSED", "JOB_STATE_RUNNING"])
async def test_what_another_request_has_heard_since_is_not_asked_again(later: str) -> None:
    async def answer(exchange: Exchange) -> httpx.Response:
        if exchange.is_probe:
            await asyncio.sleep(60.0)
        return ok() if exchange.at >= 2.0 else gateway_404()

    plane = FakeControlPlane(OSError(), states=[(1.0, later)])
    transport = guard(FakeGateway(answer), plane, warmup_successes=0, probe_timeout=3.0)
    first = asyncio.create_task(send(transport))
    await asyncio.sleep(1.5)
    second = asyncio.create_task(send(transport))
    status = 200 if later == "JOB_STATE_RUNNING" else 404
    assert [response.status_code for response in await asyncio.gather(first, second)] == [
        status
    ] * 2
    assert [at for at, *_ in plane.asked] == [0.0, 1.5]


async def test_that_the_job_runs_serves_all_that_wait_where_probes_say_nothing() -> None:
    """Each probe takes its full time: not each request has to send its own."""

    async def answer(exchange: Exchange) -> httpx.Response:
        if exchange.is_probe:
            await asyncio.sleep(60.0)
        return ok() if exchange.at >= 8.0 else gateway_404()

    plane = FakeControlPlane(OSError(), states=[(4.0, "JOB_STATE_RUNNING")])
    gateway = FakeGateway(answer)
    transport = guard(gateway, plane, warmup_successes=0)
    answers = await asyncio.gather(*(send(transport) for _ in range(50)))
    assert {response.status_code for response in answers} == {200}
    assert loop_time() < 16.0
    assert len(gateway.probes) <= 4


async def test_a_race_that_is_heard_of_while_proof_is_looked_for_is_exhausted_at_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    plane = FakeControlPlane(OSError(), states=[(1.0, "JOB_STATE_RUNNING")])
    gateway = FakeGateway(lambda _: gateway_404())
    assert (await send(guard(gateway, plane, retry_timeout=10))).status_code == 404
    assert loop_time() == 10.0
    assert "handed back after 10.00 s (routing_race, job_running)" in caplog.text


async def test_what_proves_nothing_to_one_is_no_proof_for_another() -> None:
    """A request that needs proof takes its own turn after a leader that found none."""

    async def answer(exchange: Exchange) -> httpx.Response:
        if exchange.is_probe and len(gateway.probes) == 1:
            await asyncio.sleep(1.0)
            raise httpx.ConnectError("refused")
        return ok() if exchange.at >= 1.0 else gateway_404()

    plane = FakeControlPlane()
    gateway = FakeGateway(answer)
    transports = [guard(gateway, plane, verdict_ttl=0.1) for _ in range(2)]
    first = asyncio.create_task(send(transports[0]))
    await asyncio.sleep(0.5)
    plane.state = OSError()
    assert (await send(transports[1])).status_code == 200
    assert (await first).status_code == 200
    assert len(gateway.probes) == 2


@pytest.mark.meets_fault
async def test_a_fault_in_looking_for_proof_leaves_the_404_unverified(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("tinker_guard.core.recovery.probe_until_routable", fail)
    gateway = FakeGateway(lambda _: gateway_404())
    response = await send(guard(gateway, FakeControlPlane(OSError())))
    assert (response.status_code, response.content) == (404, GATEWAY_BODY)
    assert "a fault of its own in probing" in caplog.text
    assert "unverified, control_plane_error" in caplog.text


@pytest.mark.parametrize("successes", [0, 1], ids=["a request's", "a probe's"])
async def test_a_route_that_comes_up_while_a_404_is_read_is_no_reason_to_give_up(
    successes: int,
) -> None:
    """CREATING is genuine only for a 404 that came after the route had answered."""
    plane = FakeControlPlane("JOB_STATE_CREATING", states=[(4.0, "JOB_STATE_RUNNING")])

    def answer(exchange: Exchange) -> httpx.Response:
        if exchange.headers["x-api-key"] != KEY or exchange.at >= 0.5:
            return ok()
        stream = TrackedStream([GATEWAY_BODY], pause=1.5)
        return httpx.Response(404, headers={"content-type": "application/json"}, stream=stream)

    gateway = FakeGateway(answer)
    transport = guard(gateway, plane, warmup_successes=successes)
    slow = asyncio.create_task(send(transport))
    await asyncio.sleep(0.1)
    other = post()
    other.headers["x-api-key"] = "another"
    assert (await send(transport, other)).status_code == 200
    assert (await slow).status_code == 200


@pytest.mark.parametrize("state", ["JOB_STATE_CREATING", "JOB_STATE_PENDING", "JOB_STATE_NEW"])
async def test_a_job_that_stops_while_a_404_is_read_has_stopped_for_that_404_too(
    state: str,
) -> None:
    """The other request's verdict makes the route cold, which had answered when the 404 came."""
    plane = FakeControlPlane(state)

    def answer(exchange: Exchange) -> httpx.Response:
        if exchange.at < 2.0 or exchange.is_probe:
            return ok()
        pause = 1.0 if exchange.body == b"slow" else 0.0
        stream = TrackedStream([GATEWAY_BODY], pause=pause)
        return httpx.Response(404, headers={"content-type": "application/json"}, stream=stream)

    gateway = FakeGateway(answer)
    transport = guard(gateway, plane)
    assert (await send(transport)).status_code == 200
    await asyncio.sleep(2.0)
    slow = asyncio.create_task(send(transport, post(body=b"slow")))
    await asyncio.sleep(0.5)
    assert (await send(transport)).status_code == 404
    assert (await slow).status_code == 404
    assert [exchange.body for exchange in gateway.sent].count(b"slow") == 1


@pytest.mark.parametrize(
    ("broken", "where"),
    [
        ("tinker_guard.transport.GuardedRequest", "looking after a request"),
        ("tinker_guard.core.guarded_request.with_cookies", "pinning a request"),
        ("tinker_guard.core.routes.RouteState.answered", "noting an answer"),
    ],
)
@pytest.mark.parametrize("is_warm", [False, True])
@pytest.mark.meets_fault
async def test_a_fault_around_a_request_leaves_its_answer_alone(
    broken: str,
    where: str,
    is_warm: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    gateway = FakeGateway()
    transport = guard(gateway)
    if is_warm:
        await send(transport)
        gateway.answer = lambda _: trainer_404()
    monkeypatch.setattr(broken, fail)
    assert (await send(transport)).status_code == (404 if is_warm else 200)
    if where != "noting an answer" or not is_warm:
        assert f"a fault of its own in {where}" in caplog.text or is_warm


@pytest.mark.parametrize(
    "path",
    [
        *("forward_backward", "optim_step", "retrieve_future", "asample", "create_session"),
        *("create_model", "save_weights", "load_weights", "save_weights_for_sampler"),
    ],
)
@pytest.mark.parametrize("is_probe_lost", [True, False])
async def test_another_applications_404_on_what_every_trainer_knows_is_a_race(
    path: str, is_probe_lost: bool
) -> None:
    """As of Ray Serve, whose application at `/` gets the requests of one that is not routed."""
    lost_until = 0.0

    def answer(exchange: Exchange) -> httpx.Response:
        is_lost = exchange.at < lost_until and (is_probe_lost or not exchange.is_probe)
        return router_404() if is_lost else ok()

    gateway = FakeGateway(answer)
    transport = guard(gateway, plane := FakeControlPlane())
    await send(transport)
    lost_until = loop_time() + 2
    response = await send(transport, post(f"/api/v1/{path}"))
    assert response.status_code == 200
    assert 2 <= loop_time() < 3.5
    assert plane.questions > 0
    # The trainer's own 404s cost nothing, before and after.
    gateway.answer = lambda e: ok() if e.is_probe else trainer_404()
    began = loop_time()
    assert (await send(transport, post(f"/api/v1/{path}"))).status_code == 404
    assert loop_time() == began
    # Nor do those of a path that not every trainer knows, though a router writes the same.
    gateway.answer = lambda e: ok() if e.is_probe else router_404()
    began = loop_time()
    assert (await send(transport, post("/api/v1/client/dynamic_config"))).status_code == 404
    assert loop_time() == began


async def test_probes_that_another_application_answers_prove_nothing() -> None:
    gateway = FakeGateway()
    transport = guard(gateway, retry_timeout=5)
    await send(transport)
    gateway.answer = lambda _: router_404()
    assert (await send(transport)).status_code == 404
    # Were its answers to probes the trainer's word, the request would follow each of them at once.
    assert len(gateway.sent) < len(gateway.probes) / 3


@pytest.mark.parametrize("body_takes", [2.0, 5.0, 20.0])
async def test_a_404_that_came_before_a_budget_was_spent_does_not_renew_it(
    body_takes: float,
) -> None:
    """The trainer's own, whose body took until the route was lost to everybody."""

    def answer(exchange: Exchange) -> httpx.Response:
        if exchange.path.endswith("missing"):
            response = trainer_404()
            response.stream = TrackedStream([TRAINER_BODY], pause=body_takes)
            return response
        return ok() if exchange.at == 0 else gateway_404()

    gateway = FakeGateway(answer)
    transport = guard(gateway, retry_timeout=1)
    await send(transport)
    slow = asyncio.create_task(send(transport, post("/api/v1/missing")))
    await asyncio.sleep(0.1)
    assert (await send(transport)).status_code == 404
    assert (await slow).content == TRAINER_BODY
    began = loop_time()
    assert (await send(transport, post("/api/v1/telemetry"))).status_code == 404
    assert loop_time() == began


@pytest.mark.parametrize("state", ["JOB_STATE_CREATING", "JOB_STATE_PENDING", "JOB_STATE_NEW"])
async def test_a_job_on_its_way_does_not_make_a_spent_budget_a_genuine_404(
    state: str, spans: InMemorySpanExporter
) -> None:
    """In the background, on a route that another request waits for in vain meanwhile."""
    gateway = FakeGateway(lambda _: gateway_404())
    plane = FakeControlPlane(states=[(1.05, state)], takes=0.1)
    transport = guard(gateway, plane, retry_timeout=1, verdict_ttl=0)
    first = asyncio.create_task(send(transport))
    await asyncio.sleep(0.98)
    assert (await send(transport, post("/api/v1/telemetry"))).status_code == 404
    assert first.done()
    ends = {
        span.attributes["tinker_guard.verdict"]
        for span in spans.get_finished_spans()
        if span.attributes and "tinker_guard.outcome" in span.attributes
    }
    assert ends == {"routing_race"}


@pytest.mark.parametrize(
    ("later", "came_at", "ends_at"),
    [
        ([(5.0, "JOB_STATE_PAUSED")], 0.5, 5.0),
        ([(5.0, "JOB_STATE_PAUSED")], 3.0, 5.0),
        # Of a missing job, the first of the two answers has to be about the other 404 too.
        ([(1.0, None), (2.0, OSError()), (5.0, None)], 0.5, 5.0),
        ([(1.0, None), (2.0, OSError()), (5.0, None)], 2.5, 7.0),
        ([(1.0, None), (2.0, OSError()), (5.0, None)], 4.0, 7.0),
    ],
)
async def test_whom_a_refusal_of_probing_serves(
    later: list[tuple[float, str | Exception | None]], came_at: float, ends_at: float
) -> None:
    def answer(exchange: Exchange) -> httpx.Response:
        return tracked(401, b"{}", "application/json") if exchange.is_probe else gateway_404()

    plane = FakeControlPlane(OSError(), states=later)
    transport = guard(FakeGateway(answer), plane, warmup_successes=0, retry_timeout=10)
    leader = asyncio.create_task(send(transport))
    await asyncio.sleep(came_at)
    assert (await send(transport)).status_code == 404
    assert ends_at <= loop_time() < ends_at + 1.5
    assert (await leader).status_code == 404


@pytest.mark.parametrize("state", ["JOB_STATE_CREATING", "JOB_STATE_FAILED", None])
@pytest.mark.parametrize("is_recorded", [True, False])
@pytest.mark.usefixtures("spans")
async def test_an_answer_that_comes_after_a_verdict_shows_that_the_trainer_is_there(
    state: str | None, is_recorded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A control plane that is wrong about a job does not make its trainer's 404s a race."""
    if not is_recorded:
        monkeypatch.setattr("tinker_guard.transport.enabled", lambda: NOTHING)
    may_answer = asyncio.Event()

    async def answer(exchange: Exchange) -> httpx.Response:
        if exchange.path.endswith("retrieve_future"):
            await may_answer.wait()
        is_lost = exchange.path.endswith("optim_step")
        return plain_404() if is_lost else ok()

    gateway = FakeGateway(answer)
    transport = guard(gateway, plane := FakeControlPlane(state))
    await send(transport)
    await asyncio.sleep(2)
    poll = asyncio.create_task(send(transport, post("/api/v1/retrieve_future")))
    await settle()
    assert (await send(transport, post("/api/v1/optim_step"))).status_code == 404
    may_answer.set()
    assert (await poll).status_code == 200
    plane.state = "JOB_STATE_RUNNING"
    gateway.answer = lambda _: router_404()
    began, sent = loop_time(), len(gateway.sent)
    assert (await send(transport, post("/api/v1/client/dynamic_config"))).status_code == 404
    assert (loop_time() - began, len(gateway.sent) - sent) == (0.0, 1)


async def test_another_applications_404_of_a_stopped_job_is_genuine() -> None:
    gateway = FakeGateway(lambda _: ok())
    transport = guard(gateway, plane := FakeControlPlane())
    await send(transport)
    gateway.answer = lambda _: router_404()
    plane.state = "JOB_STATE_FAILED"
    began = loop_time()
    assert (await send(transport)).status_code == 404
    assert loop_time() == began
    assert plane.questions == 1
