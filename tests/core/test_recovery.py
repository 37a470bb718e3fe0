from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from email.utils import formatdate
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import anyio
import httpx
import pytest

from testkit.fakes import (
    BASE,
    GATEWAY_BODY,
    TRAINER_BODY,
    Exchange,
    FakeControlPlane,
    FakeGateway,
    FakeHTTPTransport,
    TrackedStream,
    gateway_404,
    known_from,
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
from tinker_guard import ControlPlaneError, GuardSettings, GuardTransport
from tinker_guard.core import attempts
from tinker_guard.core.routes import ROUTES
from tinker_guard.policy.json_body import BODY_LIMIT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("race", [0.2, 1.0, 3.0, 10.0])
async def test_a_race_is_waited_out(race: float) -> None:
    gateway, plane = FakeGateway(known_from(race)), FakeControlPlane()
    assert (await send(guard(gateway, plane))).status_code == 200
    assert race <= loop_time() <= race + max(0.5, race / 4)
    assert plane.questions <= race + 1
    assert gateway.unclosed() == []


async def test_the_very_same_request_is_sent_again() -> None:
    """It meets the race again after each probe that got through, four times."""
    gateway = FakeGateway(lambda e: ok() if e.is_probe or len(gateway.sent) > 4 else gateway_404())
    request = post(body=b'{"seq_id": 7}')
    await send(guard(gateway), request)
    assert len(gateway.sent) == 5
    for exchange in gateway.sent:
        assert (exchange.method, exchange.body) == ("POST", b'{"seq_id": 7}')
        # Where spans are recorded, each exchange tells its own.
        exchange.headers.pop("traceparent", None)
        assert exchange.headers == request.headers
        assert exchange.extensions == request.extensions


async def test_a_stale_replica_costs_no_time() -> None:
    """A probe goes at once over a new connection, and the request follows it there for good."""
    gateway = FakeGateway(lambda e: gateway_404() if e.connection == 0 else ok())
    transport = guard(gateway)
    assert (await send(transport)).status_code == 200
    assert (await send(transport)).status_code == 200
    assert [(e.is_probe, e.connection) for e in gateway.exchanges] == [
        (False, 0),
        (True, 1),
        (False, 1),
        (False, 1),
    ]
    assert loop_time() == 0.0


async def test_every_further_404_gets_another_connection() -> None:
    gateway = FakeGateway(lambda e: gateway_404() if e.connection < 5 else ok())
    await send(guard(gateway))
    assert [exchange.connection for exchange in gateway.probes] == [1, 2, 3, 4, 5]
    assert [exchange.connection for exchange in gateway.sent] == [0, 5]
    assert [t.is_closed for t in gateway.transports] == [False, True, True, True, True, False]


async def test_a_body_is_resent_once_the_route_answers_not_once_per_guess() -> None:
    gateway = FakeGateway(known_from(10.0))
    await send(guard(gateway), post(body=b"x" * 1_000_000))
    assert [len(exchange.body) for exchange in gateway.sent] == [1_000_000] * 2
    assert {len(exchange.body) for exchange in gateway.probes} == {0}


async def test_half_of_the_replicas_stale() -> None:
    """Every connection sticks to a replica; a probe on one says nothing about the next."""
    for seed in range(20):
        chance = random.Random(seed)
        stale: dict[int, bool] = {}
        gateway = FakeGateway(
            lambda e, c=chance, s=stale: (
                gateway_404()  # type: ignore[misc]
                if s.setdefault(e.connection, c.random() < 0.5) and e.at < 20
                else ok()
            )
        )
        transports = [guard(gateway) for _ in range(4)]
        began = loop_time()
        answers = await asyncio.gather(*(send(transports[n % 4]) for n in range(40)))
        assert {answer.status_code for answer in answers} == {200}
        assert loop_time() - began < 3.0
        ROUTES.clear()


async def test_a_probe_that_fails_otherwise_lets_the_request_show_it() -> None:
    def answer(exchange: Exchange) -> httpx.Response:
        if exchange.is_probe:
            raise httpx.ConnectError("refused")
        return ok() if len(gateway.sent) > 1 else gateway_404()

    gateway = FakeGateway(answer)
    assert (await send(guard(gateway))).status_code == 200
    assert (len(gateway.probes), len(gateway.sent)) == (1, 2)


@pytest.mark.parametrize("name", ["retry-after", "retry-after-ms"])
async def test_retry_after_is_obeyed(name: str) -> None:
    def answer(exchange: Exchange) -> httpx.Response:
        response = ok() if exchange.at >= 0.1 else gateway_404()
        response.headers[name] = "4" if name == "retry-after" else "4000"
        return response

    gateway = FakeGateway(answer)
    assert (await send(guard(gateway))).status_code == 200
    assert [exchange.at for exchange in gateway.exchanges] == [0.0, 4.0, 4.0]


async def test_a_retry_after_that_is_a_date_is_obeyed() -> None:
    def answer(exchange: Exchange) -> httpx.Response:
        response = ok() if exchange.at >= 0.1 else gateway_404()
        response.headers["retry-after"] = formatdate(time.time() + 25, usegmt=True)
        return response

    gateway = FakeGateway(answer)
    assert (await send(guard(gateway))).status_code == 200
    assert 5.0 < loop_time() <= 25.0


@pytest.mark.parametrize("known_at", [0.1, 29.9, None])
@pytest.mark.parametrize("seconds", ["31", "86400"])
async def test_a_retry_after_beyond_the_budget_is_cut_to_it(
    seconds: str, known_at: float | None
) -> None:
    """At the end the request is sent once more; not before, as the gateway asks."""

    def answer(exchange: Exchange) -> httpx.Response:
        if known_at is not None and exchange.at >= known_at:
            return ok()
        response = gateway_404()
        response.headers["retry-after"] = seconds
        return response

    gateway = FakeGateway(answer)
    assert (await send(guard(gateway))).status_code == (404 if known_at is None else 200)
    assert [exchange.at for exchange in gateway.sent] == [0.0, 30.0]
    assert loop_time() == 30.0


@pytest.mark.parametrize(
    ("media_type", "body"),
    [
        ("text/plain", b"404 page not found"),
        ("", b""),
        ("application/json", b'{"detail": "gone", "status": 404}'),
        ("text/html", b"<html><h1>404 Not Found</h1></html>"),
    ],
)
@pytest.mark.parametrize("known_at", [3.0, 29.0, None])
async def test_no_number_of_good_probes_makes_an_unknown_404_the_trainers(
    media_type: str, body: bytes, known_at: float | None
) -> None:
    gateway = FakeGateway(
        lambda e: (
            ok()
            if e.is_probe or (known_at and e.at >= known_at)
            else tracked(404, body, media_type)
        )
    )
    response = await send(guard(gateway))
    if known_at is None:
        assert (response.status_code, response.content) == (404, body)
        assert loop_time() == 30.0
    else:
        assert response.status_code == 200
        assert known_at <= loop_time() <= min(known_at + 3.0, 30.0)
    assert len(gateway.sent) > 13


async def test_the_gateways_own_404_stays_a_race_whatever_the_probes_say() -> None:
    gateway = FakeGateway(lambda e: ok() if e.is_probe else gateway_404())
    assert (await send(guard(gateway))).status_code == 404
    assert loop_time() == 30.0


@pytest.mark.parametrize("not_found", [plain_404, gateway_404])
@pytest.mark.parametrize(("replicas", "knowing"), [(2, 1), (3, 1), (3, 2), (4, 1), (4, 2), (4, 3)])
async def test_replicas_taken_in_turn_do_not_stay_in_step_with_probes(
    not_found: Callable[[], httpx.Response], replicas: int, knowing: int
) -> None:
    """Else each probe would meet a replica that knows the route, and each resend one that lacks it.

    Found by the simulation, seed 1395: a race was taken for the trainer's own 404.
    """
    gateway = FakeGateway(
        lambda _: ok() if len(gateway.exchanges) % replicas < knowing else not_found()
    )
    assert (await send(guard(gateway))).status_code == 200
    assert loop_time() < 3.0


async def test_an_unknown_404_is_no_evidence_while_probes_fail_too() -> None:
    gateway = FakeGateway(lambda e: ok() if e.at >= 20.0 else plain_404())
    assert (await send(guard(gateway))).status_code == 200


async def test_where_probes_prove_nothing_the_request_is_the_probe() -> None:
    """A trainer, or an edge before it, answers the probe's path with a 404 of its own kind."""
    gateway = FakeGateway(
        lambda e: plain_404() if e.is_probe else ok() if e.at >= race else gateway_404()
    )
    transport, probes = guard(gateway), []
    for race in (0.3, 10.3, 20.3, 30.3, 40.3):
        await asyncio.sleep(race - 0.3 - loop_time())
        assert (await send(transport)).status_code == 200
        assert loop_time() < race + 0.6
        probes.append(len(gateway.probes))
    # After three times it is clear, and no probe is sent any more.
    assert 0 < probes[0] < probes[1] < probes[2] == probes[3] == probes[4]


async def test_where_no_probe_is_sent_a_stale_connection_is_left_at_once() -> None:
    """As before, but what comes back then is one stale replica."""
    gateway = FakeGateway(lambda e: plain_404() if e.is_probe or e.at < known_at else ok())
    transport = guard(gateway)
    for _ in range(3):
        known_at = loop_time() + 0.3
        assert (await send(transport)).status_code == 200
        await asyncio.sleep(10)
    newest, began = len(gateway.transports), loop_time()
    gateway.answer = lambda e: gateway_404() if e.connection < newest else ok()
    gateway.exchanges.clear()
    assert (await send(transport)).status_code == 200
    assert [exchange.is_probe for exchange in gateway.exchanges] == [False, False]
    assert gateway.exchanges[1].connection == newest
    assert loop_time() == began


async def test_followers_are_no_reason_to_probe_no_more() -> None:
    """Only who probed itself can tell that its probes were misled."""
    gateway = FakeGateway(known_from(1.0))
    transports = [guard(gateway) for _ in range(10)]
    await asyncio.gather(*(send(transport) for transport in transports))
    gateway.answer, before = known_from(loop_time() + 1), len(gateway.probes)
    assert (await send(transports[0])).status_code == 200
    assert len(gateway.probes) > before


async def test_a_follower_leaves_a_connection_that_proved_stale() -> None:
    async def answer(exchange: Exchange) -> httpx.Response:
        # So long that whoever is to be resent soon waits for the same probe.
        await asyncio.sleep(0.5 if exchange.is_probe else 0.0)
        return gateway_404() if exchange.connection < 20 else ok()

    gateway = FakeGateway(answer)
    transports = [guard(gateway) for _ in range(20)]
    answers = await asyncio.gather(*(send(transport) for transport in transports))
    assert {answer.status_code for answer in answers} == {200}
    # Once to meet the race, once after another's probe, and once over a new connection.
    assert len(gateway.sent) <= 3 * 20


async def test_followers_build_no_transport_while_the_route_is_lost() -> None:
    """Building one takes milliseconds of the event loop, and the SDK has a client per request."""
    gateway = FakeGateway(known_from(2.0))
    transports = [guard(gateway) for _ in range(100)]
    answers = await asyncio.gather(*(send(transport) for transport in transports))
    assert {answer.status_code for answer in answers} == {200}
    assert len(gateway.probes) < 20
    assert len(gateway.transports) - 100 <= len(gateway.probes) + 1
    assert len(gateway.sent) == 200


async def test_a_leader_whose_budget_ends_releases_nobody() -> None:
    gateway = FakeGateway(known_from(40.0))
    transport = guard(gateway)

    async def later(seconds: float) -> int:
        await asyncio.sleep(seconds)
        return (await send(transport)).status_code

    answers = await asyncio.gather(*(later(n / 10) for n in range(200)))
    # Those who came early run out of time, each at the end of its own; released together, they
    # would be sent almost four times each.
    assert set(answers) == {200, 404}
    assert answers[0] == 404
    assert answers[-1] == 200
    assert len(gateway.sent) <= 2.5 * 200


@pytest.mark.parametrize("state", ["JOB_STATE_PENDING", "JOB_STATE_RE_QUEUEING", "JOB_STATE_NEW"])
async def test_a_job_that_falls_back_to_starting_is_handed_back(state: str) -> None:
    plane, gateway = FakeControlPlane(states=[(6.0, state)]), FakeGateway()
    transport = guard(gateway, plane)
    await send(transport)
    await asyncio.sleep(2)
    gateway.answer = lambda _: gateway_404()
    assert (await send(transport)).status_code == 404
    assert 6.0 <= loop_time() < 8.0


@pytest.mark.meets_fault
async def test_a_fault_in_probing_lets_the_request_go(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("tinker_guard.core.recovery.probe_until_routable", fail)
    gateway = FakeGateway(known_from(0.3))
    assert (await send(guard(gateway))).status_code == 200
    assert "a fault of its own in probing" in caplog.text


async def test_cancelled_again_and_again_as_anyio_does() -> None:
    stream = TrackedStream([b"x"], pause=100)
    gateway = FakeGateway(lambda _: httpx.Response(404, stream=stream))
    transport = guard(gateway)
    with anyio.move_on_after(5) as scope:
        await send(transport)
    assert scope.cancelled_caught
    assert stream.is_closed


async def test_closing_the_client_during_a_race() -> None:
    gateway = FakeGateway(lambda _: gateway_404())
    transport = guard(gateway)
    task = asyncio.create_task(send(transport))
    await asyncio.sleep(1)
    await transport.aclose()
    with pytest.raises(httpx.TransportError, match="the client was closed"):
        await task
    assert all(transport.is_closed for transport in gateway.transports)


async def test_no_race_is_called_genuine_over_many_schedules(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Replicas learn and lose the route at random, connections stick or do not, bodies vary."""
    caplog.set_level(logging.CRITICAL)
    for seed in range(300):
        await _one_schedule(random.Random(seed), seed)


async def _one_schedule(chance: random.Random, seed: int) -> None:
    began = loop_time()
    replicas = chance.randint(1, 5)
    sticky = chance.random() < 0.3
    not_found = plain_404 if chance.random() < 0.8 else gateway_404
    end = chance.choice([0.1, 0.5, 2.0, 8.0])
    # Each replica lacks the route at first, perhaps, and loses it again now and then.
    outages = [
        [(0.0, chance.choice([0.0, 1.0]) * chance.uniform(0, end))]
        + [(start := chance.uniform(0, end), chance.uniform(start, end)) for _ in range(2)]
        for _ in range(replicas)
    ]
    drawn: dict[int, int] = {}

    def answer(exchange: Exchange) -> httpx.Response:
        replica = chance.randrange(replicas)
        if sticky:
            replica = drawn.setdefault(exchange.connection, replica)
        now = exchange.at - began
        is_lost = any(start <= now < until for start, until in outages[replica])
        return not_found() if is_lost else ok()

    gateway = FakeGateway(answer)
    response = await send(guard(gateway))
    assert response.status_code == 200, f"seed {seed}"
    ROUTES.clear()


async def test_the_404_is_closed_before_any_wait() -> None:
    gateway = FakeGateway(lambda _: gateway_404())
    task = asyncio.create_task(send(guard(gateway)))
    for _ in range(50):
        await settle()
        assert gateway.unclosed() == []
        await asyncio.sleep(0.05)
    task.cancel()


async def test_a_trainers_own_404_passes_without_a_question() -> None:
    gateway, plane = FakeGateway(lambda _: trainer_404()), FakeControlPlane()
    response = await send(guard(gateway, plane))
    assert (response.status_code, response.content) == (404, TRAINER_BODY)
    assert (len(gateway.exchanges), plane.questions, loop_time()) == (1, 0, 0.0)


@pytest.mark.parametrize("job", ["checkpoint-7b", "future-1", "sampler", "base-model.base_model"])
@pytest.mark.parametrize(
    "body",
    [
        {"error": "{job} does not run"},
        {"error": "not_found", "message": "acc/{job} is unknown"},
        {"code": "not_found", "message": 'no trainer "{job}"'},
        {"error": {"code": "not_found", "type": "x", "message": "trainer {job}: not ready"}},
    ],
)
@pytest.mark.parametrize("warmup_successes", [0, 1])
async def test_a_gateway_that_gives_the_jobs_name_back_is_no_trainer(
    warmup_successes: int, body: dict[str, Any], job: str
) -> None:
    """Users choose the name, so that a trainer's word in it is no trainer's word."""
    wire = json.dumps(body).replace("{job}", job).encode()
    gateway = FakeGateway(lambda e: ok() if e.at >= 1.0 else tracked(404, wire, "application/json"))
    transport = guard(gateway, warmup_successes=warmup_successes)
    url = f"{BASE.removesuffix('job-1')}{job}/api/v1/forward_backward"
    response = await send(transport, httpx.Request("POST", url, content=b"{}"))
    assert response.status_code == 200
    assert 1.0 <= loop_time() <= 1.5
    # Nor does it open the gate.
    first = [exchange.is_probe for exchange in gateway.exchanges[:3]]
    assert first == ([True] * 3 if warmup_successes else [False, True, True])


@pytest.mark.parametrize(
    "state",
    [
        *("JOB_STATE_FAILED", "JOB_STATE_PAUSED", "JOB_STATE_EXPIRED", "JOB_STATE_ARCHIVED"),
        *("JOB_STATE_DELETING_CLEANING_UP", "JOB_STATE_COMPLETED"),
        # As a user's own control plane may say it.
        *("FAILED", "PAUSED", "EARLY_STOPPED"),
    ],
)
async def test_a_job_that_is_stopped_hands_back_at_once(state: str) -> None:
    gateway, plane = FakeGateway(lambda _: gateway_404()), FakeControlPlane(state)
    response = await send(guard(gateway, plane))
    assert (response.status_code, response.content) == (404, GATEWAY_BODY)
    assert (len(gateway.exchanges), plane.questions, loop_time()) == (1, 1, 0.0)


@pytest.mark.parametrize("state", ["JOB_STATE_RUNNING", "RUNNING"])
async def test_a_job_that_runs_is_a_race_with_and_without_the_prefix(
    state: str, spans: InMemorySpanExporter
) -> None:
    gateway, plane = FakeGateway(), FakeControlPlane(state)
    transport = guard(gateway, plane)
    await send(transport)
    await asyncio.sleep(5.0)
    gateway.answer = known_from(8.0)
    assert (await send(transport)).status_code == 200
    assert 8.0 <= loop_time() <= 8.75
    outcomes = [
        (span.attributes or {}).get("tinker_guard.verdict.reason")
        for span in spans.get_finished_spans()
    ]
    assert {*outcomes} == {None, "job_running"}


async def test_a_job_that_is_missing_hands_back_once_that_was_said_twice() -> None:
    gateway, plane = FakeGateway(lambda _: gateway_404()), FakeControlPlane(None)
    response = await send(guard(gateway, plane))
    assert (response.status_code, response.content) == (404, GATEWAY_BODY)
    assert [at for at, *_ in plane.asked] == [0.0, 2.0]
    assert (len(gateway.exchanges), loop_time()) == (1, 2.0)


@pytest.mark.parametrize(
    ("states", "known_at"),
    [
        # Just created; a replica of the control plane that lags; a row that is lost for a moment.
        ([(0.4, "JOB_STATE_CREATING"), (3.0, "JOB_STATE_RUNNING")], 4.0),
        ([(1.5, "JOB_STATE_RUNNING")], 1.0),
        ([(1.99, "JOB_STATE_RUNNING")], 6.0),
    ],
)
async def test_one_answer_that_there_is_no_such_job_is_not_believed(
    states: list[tuple[float, str | None]], known_at: float
) -> None:
    gateway, plane = FakeGateway(known_from(known_at)), FakeControlPlane(None, states=states)
    assert (await send(guard(gateway, plane))).status_code == 200
    assert max(2.0, known_at) <= loop_time() <= max(2.0, known_at) + 1.0
    assert [at for at, *_ in plane.asked][:2] == [0.0, 2.0]


@pytest.mark.parametrize("body_takes", [0.5, 1.0, 1.9])
async def test_the_second_word_on_a_missing_job_is_asked_for_two_seconds_after_the_first(
    body_takes: float,
) -> None:
    """Also by a request that has read its 404 until then, and uses what another one has heard."""

    def answer(exchange: Exchange) -> httpx.Response:
        response = gateway_404()
        if exchange.path.endswith("optim_step"):
            response.stream = TrackedStream([GATEWAY_BODY], pause=body_takes)
        return response

    plane = FakeControlPlane(None)
    transport = guard(FakeGateway(answer), plane, retry_timeout=2.3)
    one = asyncio.create_task(send(transport))
    assert (await send(transport, post("/api/v1/optim_step"))).status_code == 404
    assert (await one).status_code == 404
    assert ([at for at, *_ in plane.asked], loop_time()) == ([0.0, 2.0], 2.0)


@pytest.mark.parametrize("later", [0.1, 1.0, 1.9])
async def test_what_another_request_hears_between_is_not_the_second_word(later: float) -> None:
    """A row that is lost for a moment may be missed by both of them."""
    plane = FakeControlPlane(None)
    transport = guard(FakeGateway(lambda _: gateway_404()), plane)
    one = asyncio.create_task(send(transport))
    await asyncio.sleep(later)
    assert (await send(transport)).status_code == 404
    assert (await one).status_code == 404
    assert [at for at, *_ in plane.asked] == [0.0, later, 2.0, 2.0 + later]


@pytest.mark.parametrize("other", ["JOB_STATE_RUNNING", "JOB_STATE_CREATING", "JOB_STATE_NEW"])
@pytest.mark.parametrize("heard_at", [0.5, 1.0, 1.9])
async def test_another_word_between_two_that_a_job_is_missing_takes_back_the_first(
    other: str, heard_at: float
) -> None:
    """One replica of the control plane lacks the row, and is asked twice by chance."""
    states: list[tuple[float, str | None]] = [(heard_at, other), (heard_at + 0.1, None)]
    states.append((2.1, "JOB_STATE_RUNNING"))
    gateway, plane = FakeGateway(known_from(2.5)), FakeControlPlane(None, states=states)
    first, second = guard(gateway, plane), guard(gateway, plane)
    one = asyncio.create_task(send(first))
    await asyncio.sleep(heard_at)
    another = asyncio.create_task(send(second))
    assert (await one).status_code == 200
    assert (await another).status_code == 200
    assert {0.0, heard_at} <= {at for at, *_ in plane.asked}


@pytest.mark.parametrize("is_at_gate", [True, False])
async def test_what_was_heard_of_an_earlier_404_is_not_the_first_word_on_the_next_one(
    is_at_gate: bool,
) -> None:
    """A job that is missed once may be created, and missed once again, by a replica that lags."""
    states: list[tuple[float, str | Exception | None]]
    states = [(1.0, OSError()), (2.25, None), (4.35, "JOB_STATE_RUNNING")]
    plane = FakeControlPlane(None, states=states, takes=0.1)
    gateway = FakeGateway(known_from(4.5))
    # Without a gate, the trainer is reached as nothing is said, and loses its route again.
    if not is_at_gate:
        gateway.answer = lambda exchange: (
            ok() if exchange.is_probe or exchange.at > 4.5 else gateway_404()
        )
    transport = guard(gateway, plane, warmup_successes=int(is_at_gate))
    assert (await send(transport)).status_code == 200
    assert [round(at, 2) for at, *_ in plane.asked][:4] == [0.0, 2.1, 2.2, 4.3]


@pytest.mark.parametrize("state", ["JOB_STATE_CREATING", "JOB_STATE_IDLE", "JOB_STATE_NEW"])
async def test_a_job_on_its_way_hands_back_at_once_where_the_route_has_answered(
    state: str,
) -> None:
    gateway, plane = FakeGateway(), FakeControlPlane(state)
    transport = guard(gateway, plane)
    await send(transport)
    await asyncio.sleep(1.5)
    gateway.answer = lambda _: gateway_404()
    assert (await send(transport)).status_code == 404
    assert (len(gateway.exchanges), plane.questions, loop_time()) == (2, 1, 1.5)


@pytest.mark.parametrize(("up_for", "lag"), [(0.0, 0.9), (0.2, 0.5), (0.7, 0.1)])
async def test_a_control_plane_that_lags_behind_a_route_that_came_up_is_asked_again(
    up_for: float, lag: float
) -> None:
    """The route answered first, so that CREATING is what the control plane has yet to learn."""
    runs_at = 100 + up_for + lag
    plane = FakeControlPlane("JOB_STATE_CREATING", states=[(runs_at, "JOB_STATE_RUNNING")])
    gateway = FakeGateway()
    transport = guard(gateway, plane)
    await asyncio.sleep(100)
    await send(transport)
    await asyncio.sleep(up_for)
    gateway.answer = known_from(103.0)
    assert (await send(transport)).status_code == 200
    assert 103.0 <= loop_time() < 104.0


@pytest.mark.parametrize(
    ("warmup", "answer", "up_for"),
    [
        pytest.param(0, lambda _: ok(), 0.0, id="at the same moment"),
        pytest.param(0, lambda _: ok(), 0.25, id="by its own answer"),
        pytest.param(0, lambda _: trainer_404(), 0.25, id="by the trainer's own 404"),
        pytest.param(
            0, lambda e: gateway_404() if e.connection == 0 else ok(), 0.25, id="by a resend"
        ),
        pytest.param(
            1, lambda e: ok() if e.is_probe else httpx.Response(409), 0.25, id="at the gate"
        ),
    ],
)
async def test_a_job_that_still_does_not_run_a_second_after_its_route_came_up(
    warmup: int, answer: Callable[[Exchange], httpx.Response], up_for: float
) -> None:
    plane, gateway = FakeControlPlane(), FakeGateway(answer)
    transport = GuardTransport(
        gateway.new_transport(),
        settings=GuardSettings(warmup_successes=warmup, verdict_ttl=0),
        control_plane=plane,
        new_transport=gateway.new_transport,
    )
    await send(transport)
    await asyncio.sleep(up_for)
    plane.state, plane.asked = "JOB_STATE_CREATING", []
    gateway.answer = lambda _: gateway_404()
    assert (await send(transport)).status_code == 404
    assert [at for at, *_ in plane.asked] == [up_for, 1.0]
    assert loop_time() == 1.0


@pytest.mark.parametrize(("paused_at", "asked"), [(0.4, [0.25, 0.5]), (0.9, [0.25, 0.5, 1.0])])
async def test_what_another_request_hears_meanwhile_is_not_asked_again(
    paused_at: float, asked: list[float]
) -> None:
    states: list[tuple[float, str | None]] = [(paused_at, "JOB_STATE_PAUSED")]
    plane, gateway = FakeControlPlane("JOB_STATE_CREATING", states=states), FakeGateway()
    transport = guard(gateway, plane)
    await send(transport)
    await asyncio.sleep(0.25)
    gateway.answer = lambda _: gateway_404()

    async def later() -> httpx.Response:
        await asyncio.sleep(0.25)
        return await send(transport)

    # The first one pauses until 1.0.
    responses = await asyncio.gather(send(transport), later())
    assert [response.status_code for response in responses] == [404, 404]
    assert [at for at, *_ in plane.asked] == asked
    assert loop_time() == 1.0


async def test_what_was_asked_while_a_404_was_read_judges_it() -> None:
    """It was asked after the 404 came."""

    def answer(exchange: Exchange) -> httpx.Response:
        stream = TrackedStream([GATEWAY_BODY], pause=0.0 if exchange.at else 0.5)
        return httpx.Response(404, headers={"content-type": "application/json"}, stream=stream)

    plane, gateway = FakeControlPlane("JOB_STATE_FAILED"), FakeGateway(answer)
    transport = guard(gateway, plane)
    slow = asyncio.create_task(send(transport))
    await asyncio.sleep(0.25)
    assert (await send(transport)).status_code == 404
    assert (await slow).status_code == 404
    assert [at for at, *_ in plane.asked] == [0.25]


@pytest.mark.parametrize("known_at", [5.0, 26.0, None])
async def test_a_job_on_its_way_is_waited_for_where_the_route_has_never_answered(
    known_at: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Also without a warmup, where the budget is that of a race."""
    plane = FakeControlPlane("JOB_STATE_CREATING")
    gateway = FakeGateway(lambda e: ok() if known_at and e.at >= known_at else gateway_404())
    response = await send(guard(gateway, plane))
    if known_at is None:
        assert (response.status_code, loop_time()) == (404, 30.0)
        assert "handed back after 30.00 s (genuine_not_found, job_not_running)" in caplog.text
    else:
        assert response.status_code == 200
        assert known_at <= loop_time() <= known_at + 3.0


@pytest.mark.parametrize(
    "state", ["JOB_STATE_CREATING", "JOB_STATE_FAILED", None, RuntimeError("no answer")]
)
async def test_only_running_judges_a_404_that_came_after_it_was_heard(
    state: str | Exception | None,
) -> None:
    """Any other answer is about another time: the job may have come up meanwhile."""

    async def answer(exchange: Exchange) -> httpx.Response:
        is_second = exchange.headers.get("x-number") == "2"
        await asyncio.sleep(0.2 if is_second else 0.0)
        return ok() if exchange.at >= (1 if exchange.is_probe else 6) else gateway_404()

    gateway = FakeGateway(answer)
    plane = FakeControlPlane(state, takes=0.1, states=[(0.15, "JOB_STATE_RUNNING")])
    transport = guard(gateway, plane, verdict_ttl=60)
    second = post()
    second.headers["x-number"] = "2"
    # The first one's question is answered at 0.1; the second one meets its 404 at 0.2.
    _, response = await asyncio.gather(send(transport), send(transport, second))
    assert response.status_code == 200


_NO_ANSWERS = [
    OSError("broken"),
    ControlPlaneError("403: this key may not read the job", 403),
    ControlPlaneError("an nginx's 404", 404),
    TimeoutError(),
]


@pytest.mark.parametrize("failure", _NO_ANSWERS)
@pytest.mark.parametrize("known_at", [0.0, 4.0, 25.0])
async def test_without_a_control_plane_a_probe_that_reached_the_trainer_is_proof(
    failure: Exception, known_at: float, spans: InMemorySpanExporter
) -> None:
    gateway = FakeGateway(lambda e: gateway_404() if not e.connection or e.at < known_at else ok())
    assert (await send(guard(gateway, FakeControlPlane(failure)))).status_code == 200
    assert known_at <= loop_time() <= known_at + max(0.5, known_at / 4)
    assert len(gateway.sent) == 2
    (root,) = [span for span in spans.get_finished_spans() if span.parent is None]
    found = root.attributes or {}
    assert found["tinker_guard.verdict"] == "routing_race"
    assert found["tinker_guard.verdict.reason"] == "trainer_reached"
    assert found["tinker_guard.outcome"] == "recovered"


@pytest.mark.parametrize("failure", _NO_ANSWERS)
@pytest.mark.parametrize(
    "probe",
    [
        gateway_404,
        plain_404,
        router_404,
        lambda: httpx.Response(503),
        lambda: httpx.Response(429),
        lambda: httpx.Response(200),
        lambda: httpx.Response(200, json={}, headers={"age": "12"}),
    ],
)
async def test_without_any_proof_the_404_is_handed_back_at_the_end_of_the_budget(
    failure: Exception,
    probe: Callable[[], httpx.Response],
    caplog: pytest.LogCaptureFixture,
) -> None:
    gateway = FakeGateway(lambda e: probe() if e.is_probe else gateway_404())
    response = await send(guard(gateway, FakeControlPlane(failure), retry_timeout=8))
    assert (response.status_code, response.content) == (404, GATEWAY_BODY)
    assert (len(gateway.sent), loop_time()) == (1, 8.0)
    assert len(gateway.probes) > 10
    word = "timeout" if isinstance(failure, TimeoutError) else "error"
    assert f"handed back after 8.00 s (unverified, control_plane_{word})" in caplog.text


async def test_a_control_plane_that_answers_again_during_the_wait_decides() -> None:
    plane = FakeControlPlane(OSError(), states=[(5.0, "JOB_STATE_DELETED")])
    gateway = FakeGateway(lambda _: gateway_404())
    assert (await send(guard(gateway, plane))).status_code == 404
    assert 5.0 <= loop_time() < 6.0
    assert len(gateway.sent) == 1


async def test_a_control_plane_that_asks_not_to_be_asked_is_not() -> None:
    plane = FakeControlPlane(ControlPlaneError("429", 429, retry_after=10.0))
    gateway = FakeGateway(lambda _: gateway_404())
    assert (await send(guard(gateway, plane))).status_code == 404
    times = [at for at, *_ in plane.asked]
    assert times[0] == 0.0
    assert min(b - a for a, b in pairwise(times)) >= 10.0
    assert 2 <= len(times) <= 3


async def test_an_unknown_404_of_a_running_job_is_a_race() -> None:
    gateway = FakeGateway(lambda e: ok() if e.at >= 1.0 else plain_404())
    assert (await send(guard(gateway))).status_code == 200


async def test_a_job_that_stops_during_a_race() -> None:
    gateway = FakeGateway(lambda _: gateway_404())
    plane = FakeControlPlane(states=[(4.0, "JOB_STATE_DELETED")])
    assert (await send(guard(gateway, plane))).status_code == 404
    assert 4.0 <= loop_time() < 6.0


async def test_after_a_genuine_404_the_route_is_cold_again() -> None:
    gateway = FakeGateway()
    plane = FakeControlPlane()
    transport = GuardTransport(gateway.new_transport(), control_plane=plane)
    await send(transport)
    gateway.answer, plane.state = (lambda _: gateway_404()), "JOB_STATE_PAUSED"
    assert (await send(transport)).status_code == 404
    gateway.answer, plane.state = known_from(50), "JOB_STATE_RUNNING"
    gateway.exchanges.clear()
    await asyncio.sleep(10)
    assert (await send(transport)).status_code == 200
    assert len(gateway.sent) == 1


async def test_a_trainers_own_404_leaves_the_route_warm() -> None:
    transport = guard(FakeGateway(lambda _: trainer_404()))
    await send(transport)
    state = ROUTES.find(httpx.URL(f"{BASE}/api"))
    assert state is not None
    assert state.is_warm


async def test_when_the_budget_ends_the_request_is_sent_once_more() -> None:
    gateway, plane = FakeGateway(lambda _: gateway_404()), FakeControlPlane()
    response = await send(guard(gateway, plane, retry_timeout=10))
    assert (response.status_code, response.content) == (404, GATEWAY_BODY)
    assert [exchange.at for exchange in gateway.sent] == [0.0, 10.0]
    assert loop_time() == 10.0
    assert plane.questions <= 11


async def test_a_route_that_only_requests_find_is_found_at_the_end() -> None:
    """Probes go another way here, and the last resend shows it."""
    gateway = FakeGateway(lambda e: ok() if not e.is_probe and e.at >= 9 else gateway_404())
    assert (await send(guard(gateway, retry_timeout=10))).status_code == 200
    assert [exchange.at for exchange in gateway.sent] == [0.0, 10.0]


@pytest.mark.parametrize(("warmup", "seconds"), [(0, 5.0), (1, 20.0), (3, 20.0)])
async def test_the_budget_of_a_route_that_never_answered_is_the_warmups(
    warmup: int, seconds: float
) -> None:
    """It counts from the request's arrival, and only where there is a warmup."""

    def answer(exchange: Exchange) -> httpx.Response:
        if exchange.is_probe and exchange.at < 1:
            raise httpx.ConnectError("refused")
        return gateway_404()

    gateway = FakeGateway(answer)
    transport = GuardTransport(
        gateway.new_transport(),
        settings=GuardSettings(warmup_successes=warmup, warmup_timeout=20, retry_timeout=5),
        control_plane=FakeControlPlane(),
        new_transport=gateway.new_transport,
    )
    assert (await send(transport)).status_code == 404
    assert loop_time() == seconds


@pytest.mark.parametrize("seconds", [0.5, 3.0])
async def test_the_budget_counts_from_the_requests_own_404(seconds: float) -> None:
    """Not from when it was sent: the work itself may take minutes."""

    async def answer(exchange: Exchange) -> httpx.Response:
        await asyncio.sleep(0.0 if exchange.is_probe else seconds)
        return gateway_404()

    gateway = FakeGateway(answer)
    assert (await send(guard(gateway, retry_timeout=10))).status_code == 404
    # The last resend begins when the budget ends, and takes as long as the first one.
    assert gateway.sent[-1].at == seconds + 10.0
    assert loop_time() == seconds + 10.0 + seconds


async def test_a_request_of_a_warm_route_has_no_cold_budget_if_the_job_stops_meanwhile() -> None:
    async def answer(exchange: Exchange) -> httpx.Response:
        if exchange.path.endswith("slow") and not exchange.at:
            await asyncio.sleep(2)
            return gateway_404()
        return gateway_404() if exchange.at else ok()

    gateway = FakeGateway(answer)
    plane = FakeControlPlane(states=[(1.0, "JOB_STATE_PAUSED"), (1.5, "JOB_STATE_RUNNING")])
    transport = GuardTransport(
        gateway.new_transport(),
        settings=GuardSettings(warmup_successes=1, warmup_timeout=20, retry_timeout=5),
        control_plane=plane,
        new_transport=gateway.new_transport,
    )
    await send(transport)
    slow = asyncio.create_task(send(transport, post("/api/v1/slow")))
    await asyncio.sleep(1)
    # It makes the route cold.
    assert (await send(transport)).status_code == 404
    assert (await slow).status_code == 404
    assert loop_time() == 2.0 + 5.0


@pytest.mark.parametrize("askers", [2, 5, 20])
async def test_askers_that_are_cancelled_do_not_use_up_the_time_of_others(askers: int) -> None:
    """Each one asks in its turn, and is cancelled; the last one still has its own deadline."""
    plane = FakeControlPlane(takes=100)
    gateway = FakeGateway(lambda _: gateway_404())
    transport = guard(gateway, plane, retry_timeout=2, control_plane_timeout=1)
    tasks = [asyncio.create_task(send(transport)) for _ in range(askers)]
    last = asyncio.create_task(send(transport))
    for task in tasks:
        await asyncio.sleep(0.5)
        task.cancel()
    assert (await last).status_code == 404
    assert loop_time() <= max(2.0, askers * 0.5)
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_time_is_counted_from_the_404_not_from_the_start_of_the_program(
    caplog: pytest.LogCaptureFixture, spans: InMemorySpanExporter
) -> None:
    await asyncio.sleep(1000)
    gateway = FakeGateway(lambda e: ok() if e.is_probe else gateway_404())
    assert (await send(guard(gateway, retry_timeout=10))).status_code == 404
    assert loop_time() == 1010.0
    (line,) = [message for message in caplog.messages if "handed back" in message]
    assert "handed back after 10.00 s" in line
    attributes = [span.attributes or {} for span in spans.get_finished_spans()]
    pauses = [found["tinker_guard.pause"] for found in attributes if "tinker_guard.pause" in found]
    assert len(pauses) == len(gateway.sent) - 1 > 3
    assert all(isinstance(pause, float) and 0.0 <= pause <= 3.0 for pause in pauses)


async def test_no_budget_means_no_resend() -> None:
    gateway = FakeGateway(lambda _: gateway_404())
    assert (await send(guard(gateway, retry_timeout=0))).status_code == 404
    assert len(gateway.exchanges) == 1


async def test_a_question_does_not_outlast_the_budget(caplog: pytest.LogCaptureFixture) -> None:
    gateway = FakeGateway(lambda _: gateway_404())
    plane = FakeControlPlane(takes=0.4)
    transport = guard(gateway, plane, retry_timeout=1, verdict_ttl=0)
    assert (await send(transport)).status_code == 404
    assert loop_time() <= 1.0
    assert "handed back after 1.00 s (routing_race, job_running)" in caplog.text


@pytest.mark.parametrize(
    ("state", "takes", "said"),
    [
        ("JOB_STATE_FAILED", 3.0, "after 3.00 s (genuine_not_found, job_not_running)"),
        ("JOB_STATE_RUNNING", 4.5, "after 4.50 s (routing_race, job_running)"),
        # One negative answer is not the truth, and there is no time left for a second one.
        (None, 3.5, "after 3.50 s (unverified, control_plane_error)"),
        (None, 9.0, "after 5.00 s (unverified, control_plane_timeout)"),
        # Nor one for an answer that could come at the very end: what there is left is for probes.
        (None, 3.0, "after 3.00 s (unverified, control_plane_error)"),
    ],
)
async def test_no_request_is_judged_unheard_whatever_the_budget(
    state: str | None, takes: float, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    gateway, plane = FakeGateway(lambda _: gateway_404()), FakeControlPlane(state, takes=takes)
    assert (await send(guard(gateway, plane, retry_timeout=1))).status_code == 404
    assert len(gateway.sent) == 1
    assert f"handed back {said}" in caplog.text


async def test_the_control_plane_is_asked_the_way_that_the_request_went() -> None:
    def answer(exchange: Exchange) -> httpx.Response:
        if exchange.path.startswith("/v1/accounts/"):
            return httpx.Response(200, json={"state": "JOB_STATE_RUNNING"})
        return ok() if exchange.at >= 1.0 else gateway_404()

    gateway = FakeGateway(answer)
    inner = FakeHTTPTransport(gateway, 0)
    transport = GuardTransport(inner, settings=GuardSettings(warmup_successes=0, verdict_ttl=0))
    assert (await send(transport)).status_code == 200
    asked = [exchange for exchange in gateway.exchanges if exchange.path.startswith("/v1/")]
    # The request's own 404, then those of the probes.
    assert len(asked) >= 2
    await transport.aclose()


async def test_an_error_on_a_resend_reaches_the_caller() -> None:
    def answer(exchange: Exchange) -> httpx.Response:
        if exchange.connection == 2:
            raise httpx.ConnectError("refused")
        return gateway_404()

    gateway = FakeGateway(answer)
    with pytest.raises(httpx.ConnectError, match="refused"):
        await send(guard(gateway))
    assert gateway.unclosed() == []


@pytest.mark.parametrize("status_code", [200, 409, 429, 500, 503])
async def test_any_other_answer_to_a_resend_is_handed_back(status_code: int) -> None:
    gateway = FakeGateway(
        lambda e: gateway_404() if e.connection == 0 else httpx.Response(status_code)
    )
    assert (await send(guard(gateway))).status_code == status_code


async def test_a_race_that_ends_in_the_trainers_own_404() -> None:
    gateway = FakeGateway(lambda e: gateway_404() if e.connection == 0 else trainer_404())
    assert (await send(guard(gateway))).content == TRAINER_BODY
    assert len(gateway.sent) == 2


async def test_a_body_that_cannot_be_replayed_is_sent_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"once"

    gateway = FakeGateway(lambda _: gateway_404())
    request = httpx.Request("POST", f"{BASE}/api/v1/upload", content=body())
    assert (await send(guard(gateway), request)).status_code == 404
    assert [exchange.body for exchange in gateway.exchanges] == [b"once"]
    assert len(caplog.messages) == 1
    assert caplog.messages[0].endswith("is a stream and cannot be sent again. Give it as bytes.")


async def test_four_hundred_requests_share_questions_and_all_recover() -> None:
    gateway, plane = FakeGateway(known_from(3.0)), FakeControlPlane(takes=0.05)
    transports = [guard(gateway, plane) for _ in range(8)]
    responses = await asyncio.gather(*(send(transports[n % 8]) for n in range(400)))
    assert {response.status_code for response in responses} == {200}
    assert len(gateway.sent) == 800
    assert len(gateway.probes) < 40
    arrivals = sorted(exchange.at for exchange in gateway.sent[400:])
    assert 0.1 < arrivals[-1] - arrivals[0] <= 0.2
    assert plane.questions <= 4
    gaps = [b[0] - a[0] for a, b in zip(plane.asked, plane.asked[1:], strict=False)]
    assert min(gaps) >= 1.0
    assert gateway.unclosed() == []


@pytest.mark.parametrize("at", [n / 20 for n in range(20)])
async def test_cancelled_at_any_time_nothing_is_left(at: float) -> None:
    async def answer(exchange: Exchange) -> httpx.Response:
        await asyncio.sleep(0.07)
        return gateway_404()

    gateway, tasks = FakeGateway(answer), asyncio.all_tasks()
    transport = guard(gateway, FakeControlPlane(takes=0.1), verdict_ttl=0)
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


async def test_cancelled_with_a_404_too_long_to_be_read_closes_it() -> None:
    stream = TrackedStream([b"x" * BODY_LIMIT] * 2)
    gateway = FakeGateway(lambda _: httpx.Response(404, stream=stream))
    task = asyncio.create_task(send(guard(gateway, FakeControlPlane(takes=9))))
    await asyncio.sleep(1)
    assert not stream.is_closed
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stream.is_closed


async def test_cancelled_with_a_second_such_404_closes_that_one() -> None:
    streams = [TrackedStream([b"x" * BODY_LIMIT] * 2) for _ in range(2)]
    plane = FakeControlPlane()

    async def answer(exchange: Exchange) -> httpx.Response:
        await asyncio.sleep(0.1)
        if exchange.is_probe:
            return ok()
        if len(gateway.sent) == 2:
            plane.takes = 9.0
        return httpx.Response(404, stream=streams[len(gateway.sent) - 1])

    gateway = FakeGateway(answer)
    task = asyncio.create_task(send(guard(gateway, plane, verdict_ttl=0)))
    await asyncio.sleep(1)
    assert [stream.is_closed for stream in streams] == [True, False]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert streams[1].is_closed


async def test_interrupted_as_the_recovery_begins_closes_the_404(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tinker_guard.core.recovery.budget_after_404", interrupt)
    gateway = FakeGateway(lambda _: gateway_404())
    with pytest.raises(KeyboardInterrupt):
        await guard(gateway).handle_async_request(post())
    assert gateway.unclosed() == []


@pytest.mark.meets_fault
@pytest.mark.parametrize(
    "broken",
    [
        "tinker_guard.control_plane.shared.SharedControlPlane.ask",
        "tinker_guard.core.recovery.Recovery",
    ],
)
async def test_a_fault_of_its_own_hands_back_the_404(
    broken: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    spans: InMemorySpanExporter,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    await asyncio.sleep(7)
    gateway = FakeGateway(lambda _: gateway_404())
    monkeypatch.setattr(broken, fail)
    response = await send(guard(gateway))
    assert (response.status_code, response.content) == (404, GATEWAY_BODY)
    (root,) = [span for span in spans.get_finished_spans() if span.parent is None]
    found = root.attributes or {}
    assert found["tinker_guard.outcome"] == found["tinker_guard.verdict"] == "unverified"
    assert found["tinker_guard.verdict.reason"] == "control_plane_error"
    assert "a fault of its own in the recovery" in caplog.text
    assert "handed back after 0.00 s (unverified, control_plane_error)" in caplog.text
    assert len(caplog.messages) == 2


@pytest.mark.parametrize(("waits", "sent"), [(0, 1), (1, 10)])
@pytest.mark.meets_fault
async def test_a_fault_of_its_own_between_resends_hands_back_the_last_404(
    waits: int, sent: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Chance:
        drawn = 0

        def random(self) -> float:
            self.drawn += 1
            if self.drawn > waits:
                # Nobody expects this one in a coroutine.
                raise StopIteration
            return 0.0

    monkeypatch.setattr(attempts, "JITTER", Chance())
    gateway = FakeGateway(lambda e: ok() if e.is_probe else gateway_404())
    response = await send(guard(gateway))
    assert (response.status_code, response.content) == (404, GATEWAY_BODY)
    assert len(gateway.sent) == sent
    assert "a fault of its own in the recovery" in caplog.text


async def test_a_race_is_told_when_met_and_when_over(caplog: pytest.LogCaptureFixture) -> None:
    gateway = FakeGateway(known_from(1.0))
    transports = [guard(gateway) for _ in range(5)]
    await asyncio.gather(*(send(transport) for transport in transports))
    lines = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert lines[0] == (
        "routing race: POST /api/v1/forward_backward waits up to 30 s (TINKER_GUARD_RETRY_TIMEOUT) "
        "for the route of job acc/job-1: the gateway answers 404, but the control plane says "
        "JOB_STATE_RUNNING."
    )
    assert lines[1].startswith("job acc/job-1: its route answers after 1.")
    assert len(lines) == 2


@pytest.mark.parametrize("resends", [1, 2, 5])
async def test_that_a_race_is_over_says_how_often_the_request_was_sent_again(
    resends: int, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = FakeGateway(
        lambda e: ok() if e.is_probe or len(gateway.sent) > resends else gateway_404()
    )
    assert (await send(guard(gateway))).status_code == 200
    assert caplog.messages[-1].endswith(f"(resends of this request: {resends}).")


async def test_what_is_waited_for_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tinker_guard")
    assert (await send(guard(FakeGateway(known_from(5.0))))).status_code == 200
    assert [message.partition(" ")[0] for message in caplog.messages] == ["routing", "job"]


async def test_a_race_after_one_that_was_given_up_is_told_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    transport = guard(FakeGateway(lambda _: gateway_404()), retry_timeout=3)
    for _ in range(2):
        await send(transport)
        await asyncio.sleep(60)
    assert [line[:12] for line in caplog.messages] == ["routing race", "404 for job "] * 2


async def test_requests_that_fail_together_say_it_once(caplog: pytest.LogCaptureFixture) -> None:
    transport = guard(FakeGateway(lambda _: gateway_404()), FakeControlPlane("JOB_STATE_FAILED"))
    await asyncio.gather(*(send(transport) for _ in range(50)))
    assert len(caplog.messages) == 1
    await asyncio.sleep(60)
    await send(transport)
    assert len(caplog.messages) == 2


@pytest.mark.parametrize(
    ("state", "seconds", "end"),
    [
        (None, 2, "TINKER_GUARD_CONTROL_PLANE_URL if the control plane lives elsewhere."),
        ("JOB_STATE_FAILED", 0, "the control plane says that it is JOB_STATE_FAILED."),
        (OSError("secret"), 30, "it could not be verified: FakeControlPlane raised OSError."),
    ],
)
async def test_a_404_that_is_handed_back_says_why(
    caplog: pytest.LogCaptureFixture, state: str | Exception | None, seconds: int, end: str
) -> None:
    await send(guard(FakeGateway(lambda _: gateway_404()), FakeControlPlane(state)))
    line = caplog.messages[-1]
    assert len(caplog.messages) == (4 if seconds == 30 else 1)
    assert line.startswith(f"404 for job acc/job-1 handed back after {seconds}.00 s (")
    assert line.endswith(end)


async def test_an_exhausted_budget_says_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    await send(guard(FakeGateway(lambda _: gateway_404()), retry_timeout=5))
    assert "a longer TINKER_GUARD_RETRY_TIMEOUT waits longer" in caplog.messages[-1]


async def test_a_trainers_own_404_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await send(guard(FakeGateway(lambda _: trainer_404())))
    assert caplog.messages == []


@pytest.mark.parametrize("status_code", [500, 503])
async def test_an_error_after_a_race_is_no_recovery(
    status_code: int, spans: InMemorySpanExporter
) -> None:
    gateway = FakeGateway(
        lambda e: (
            ok()
            if e.is_probe
            else httpx.Response(status_code)
            if len(gateway.sent) > 1
            else gateway_404()
        )
    )
    assert (await send(guard(gateway))).status_code == status_code
    (root,) = [span for span in spans.get_finished_spans() if not span.parent]
    assert (root.attributes or {})["tinker_guard.outcome"] == "error"
    # It says nothing about the route: the next one is looked after as before.
    gateway.answer = known_from(loop_time() + 1)
    assert (await send(guard(gateway))).status_code == 200


async def test_a_404_that_drips_is_judged_within_the_budget() -> None:
    """And handed back as it comes: its end is the caller's to wait for."""
    stream = TrackedStream([b"x"] * 1000, pause=0.1)
    gateway = FakeGateway(lambda _: httpx.Response(404, stream=stream))
    transport = guard(
        gateway, FakeControlPlane("JOB_STATE_FAILED"), retry_timeout=2, probe_timeout=1
    )
    response = await transport.handle_async_request(post())
    assert 2.0 <= loop_time() <= 2.2
    assert response.status_code == 404
    assert await response.aread() == b"x" * 1000


async def test_the_404_to_a_head_request_says_nothing_of_replicas() -> None:
    """It has no body, so that the trainer itself may have written it, for whatever reason."""
    gateway = FakeGateway(lambda e: ok() if e.is_probe else plain_404())
    transport = guard(gateway)
    response = await transport.handle_async_request(httpx.Request("HEAD", post().url))
    assert response.status_code == 404
    state = ROUTES.find(post().url)
    assert state is not None
    assert not state.is_balanced_per_request(loop_time())
    # By the backoff alone.
    assert len(gateway.sent) < 50
