"""Replicas, races, lost replies and the control plane, over real connections without the SDK."""

from __future__ import annotations

import gc
import ssl
import subprocess
import sys
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

import httpx
import pytest

from tinker_guard.gateway import FAULTS, Fault, JobStop, LocalGateway, LostReply, Race

from .conftest import forward_backward_body

if TYPE_CHECKING:
    from collections.abc import Iterator

GATEWAY_404 = {
    "error": {
        "message": "Trainer job not found or not running",
        "param": "jobId",
        "code": "NOT_FOUND",
    }
}
HEALTH = "/api/v1/healthz"
# Made once, because making it is most of the cost of an httpx client.
TLS = ssl.create_default_context()


class Clock:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Time that stands still until a test moves it."""
    return Clock()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes gateways and connections after a test."""
    with ExitStack() as stack:
        yield stack


def serve(stack: ExitStack, fault: Fault, clock: Clock) -> LocalGateway:
    return stack.enter_context(LocalGateway(fault, clock=clock))


def connect(stack: ExitStack, gateway: LocalGateway) -> httpx.Client:
    """Return a client that keeps one connection, with URLs below the route."""
    limits = httpx.Limits(max_connections=1)
    return stack.enter_context(
        httpx.Client(base_url=gateway.base_url, limits=limits, trust_env=False, verify=TLS)
    )


def ask_control_plane(gateway: LocalGateway, **headers: str) -> httpx.Response:
    url = f"{gateway.origin}/v1/accounts/demo/rlorTrainerJobs/job-1"
    return httpx.get(url, headers=headers, trust_env=False, verify=TLS)


def ask(gateway: LocalGateway) -> httpx.Response:
    return ask_control_plane(gateway, **{"X-Api-Key": gateway.api_key})


def create_model(client: httpx.Client) -> str:
    body = {"session_id": "s", "model_seq_id": 0, "base_model": "m"}
    return str(client.post("/api/v1/create_model", json=body).json()["model_id"])


# -- replicas ------------------------------------------------------------------------------------


def test_a_connection_stays_with_one_replica(stack: ExitStack, clock: Clock) -> None:
    gateway = serve(stack, FAULTS["stale-replica"], clock)
    clients = [connect(stack, gateway) for _ in range(5)]
    for _ in range(2):
        statuses = [client.get(HEALTH).status_code for client in clients]
        assert statuses == [200, 200, 404, 200, 200]
    assert [exchange.replica for exchange in gateway.requests] == [0, 1, 2, 3, 0] * 2
    assert [exchange.connection for exchange in gateway.requests] == [0, 1, 2, 3, 4] * 2

    clock.now += 20.0
    assert clients[2].get(HEALTH).status_code == 200
    assert gateway.requests[-1].replica == 2


def test_a_replica_may_never_learn_the_route(stack: ExitStack, clock: Clock) -> None:
    client = connect(stack, serve(stack, Fault(route_known_after=(None,)), clock))
    assert client.get(HEALTH).status_code == 404
    clock.now += 1e9
    assert client.get(HEALTH).status_code == 404


def test_replicas_by_chance_depend_on_the_seed_only(stack: ExitStack, clock: Clock) -> None:
    def replicas(seed: int) -> list[int | None]:
        gateway = serve(stack, Fault(replicas=4, assignment="random", seed=seed), clock)
        for _ in range(8):
            connect(stack, gateway).get(HEALTH)
        return [exchange.replica for exchange in gateway.requests]

    assert replicas(1) == replicas(1)
    assert replicas(1) != replicas(2)


def test_a_control_plane_question_draws_no_replica(stack: ExitStack, clock: Clock) -> None:
    gateway = serve(stack, Fault(replicas=2), clock)
    ask(gateway)
    connect(stack, gateway).get(HEALTH)
    assert [exchange.replica for exchange in gateway.requests] == [None, 0]


# -- races, lost replies, deletion ---------------------------------------------------------------


def test_a_race_starts_with_its_request_and_hits_every_operation(
    stack: ExitStack, clock: Clock
) -> None:
    gateway = serve(stack, Fault(races=(Race("telemetry", occurrence=2, seconds=1.5),)), clock)
    client = connect(stack, gateway)
    assert client.post("/api/v1/telemetry").status_code == 200
    reply = client.post("/api/v1/telemetry")
    assert (reply.status_code, reply.json()) == (404, GATEWAY_404)
    clock.now += 1.25
    assert client.get(HEALTH).status_code == 404
    clock.now += 0.25
    assert client.get(HEALTH).status_code == 200
    assert client.post("/api/v1/telemetry").status_code == 200
    assert [e.answered_by for e in gateway.requests] == [
        "trainer",
        "gateway",
        "gateway",
        "trainer",
        "trainer",
    ]


def test_a_race_of_no_duration_hits_one_exchange(stack: ExitStack, clock: Clock) -> None:
    client = connect(stack, serve(stack, Fault(races=(Race("healthz", seconds=0.0),)), clock))
    assert [client.get(HEALTH).status_code for _ in range(2)] == [404, 200]


def test_a_race_may_hit_some_replicas_only(stack: ExitStack, clock: Clock) -> None:
    fault = Fault(replicas=2, races=(Race("telemetry", seconds=1.0, replicas=(1,)),))
    gateway = serve(stack, fault, clock)
    first, second = connect(stack, gateway), connect(stack, gateway)
    assert first.post("/api/v1/telemetry").status_code == 200
    assert second.get(HEALTH).status_code == 404
    assert first.get(HEALTH).status_code == 200


def test_a_lost_reply_leaves_the_work_done(stack: ExitStack, clock: Clock) -> None:
    gateway = serve(stack, Fault(lost_replies=(LostReply("forward_backward"),)), clock)
    client = connect(stack, gateway)
    body = forward_backward_body(create_model(client), 1)
    headers = {"X-Idempotency-Key": "one"}
    lost = client.post("/api/v1/forward_backward", json=body, headers=headers)
    assert (lost.status_code, lost.json()) == (404, GATEWAY_404)
    assert [(done.seq_id, done.operation) for done in gateway.applied] == [(1, "forward_backward")]

    resent = client.post("/api/v1/forward_backward", json=body, headers=headers)
    assert resent.status_code == 200
    assert len(gateway.applied) == 1
    before, after = gateway.requests[-2:]
    assert before.seq_id == after.seq_id == 1
    assert before.idempotency_key == after.idempotency_key == "one"
    assert before.body_sha256 == after.body_sha256
    assert gateway.unexpected == []


def test_a_deleted_job_is_neither_routed_nor_running(stack: ExitStack, clock: Clock) -> None:
    gateway = serve(stack, Fault(stop=JobStop("telemetry", occurrence=2)), clock)
    client = connect(stack, gateway)
    assert client.post("/api/v1/telemetry").status_code == 200
    assert ask(gateway).json()["state"] == "JOB_STATE_RUNNING"
    assert client.post("/api/v1/telemetry").json() == GATEWAY_404
    assert client.get(HEALTH).status_code == 404
    assert ask(gateway).json()["state"] == "JOB_STATE_DELETED"


def test_the_job_state_follows_its_timeline(stack: ExitStack, clock: Clock) -> None:
    states = ((0.0, "JOB_STATE_CREATING"), (1.0, "JOB_STATE_RUNNING"), (2.0, None))
    gateway = serve(stack, Fault(job_states=states), clock)
    client = connect(stack, gateway)
    seen = []
    for _ in range(3):
        answer = ask(gateway)
        seen.append((answer.json().get("state"), client.get(HEALTH).status_code))
        clock.now += 1.0
    # A job on its way may be routed already; that is for `route_known_after` to say.
    assert seen == [("JOB_STATE_CREATING", 200), ("JOB_STATE_RUNNING", 200), (None, 404)]


@pytest.mark.parametrize(
    ("body", "content_type", "text"),
    [
        ("gateway", "application/json", '{"error"'),
        ("plain", "text/plain; charset=utf-8", "404 page not found"),
        ("html", "text/html; charset=utf-8", "<html>"),
        ("empty", "text/plain; charset=utf-8", ""),
    ],
)
def test_bodies_of_the_gateways_404(
    stack: ExitStack, clock: Clock, body: str, content_type: str, text: str
) -> None:
    fault = Fault(body=body, route_known_after=(None,))  # type: ignore[arg-type]
    reply = connect(stack, serve(stack, fault, clock)).get(HEALTH)
    assert reply.status_code == 404
    assert reply.headers["content-type"] == content_type
    assert reply.text.startswith(text)
    assert bool(reply.text) == bool(text)


def test_another_job_is_the_gateways_404(stack: ExitStack, clock: Clock) -> None:
    gateway = serve(stack, Fault(), clock)
    url = gateway.base_url.replace("job-1", "job-2") + HEALTH
    assert httpx.get(url, trust_env=False, verify=TLS).json() == GATEWAY_404


def test_an_older_trainer_answers_its_own_404(stack: ExitStack, clock: Clock) -> None:
    gateway = serve(stack, FAULTS["fresh-404"], clock)
    reply = connect(stack, gateway).post("/api/v1/client/dynamic_config", json={})
    assert (reply.status_code, reply.json()) == (404, {"detail": "Not Found"})
    assert gateway.requests[0].answered_by == "trainer"
    assert gateway.unexpected == []


def test_a_path_that_is_neither_route_nor_control_plane(stack: ExitStack, clock: Clock) -> None:
    gateway = serve(stack, Fault(), clock)
    assert httpx.get(f"{gateway.origin}/v2/jobs", trust_env=False, verify=TLS).status_code == 404
    assert gateway.unexpected == ["GET /v2/jobs: no such path"]


# -- the control plane ---------------------------------------------------------------------------


def test_the_control_plane_wants_the_key(stack: ExitStack, clock: Clock) -> None:
    gateway = serve(stack, Fault(), clock)
    key = gateway.api_key
    given = [{}, {"X-Api-Key": "wrong"}, {"X-Api-Key": key}, {"Authorization": f"Bearer {key}"}]
    answers = [ask_control_plane(gateway, **headers) for headers in given]
    assert [answer.status_code for answer in answers] == [401, 401, 200, 200]
    assert answers[-1].json()["name"] == "accounts/demo/rlorTrainerJobs/job-1"
    assert gateway.questions == 4
    assert key not in repr(gateway.requests)


def test_the_control_plane_knows_one_job(stack: ExitStack, clock: Clock) -> None:
    gateway = serve(stack, Fault(), clock)
    url = f"{gateway.origin}/v1/accounts/demo/rlorTrainerJobs/job-2"
    headers = {"X-Api-Key": gateway.api_key}
    assert httpx.get(url, headers=headers, trust_env=False, verify=TLS).status_code == 404


@pytest.mark.parametrize(
    ("mode", "status", "text"),
    [
        ("down", 500, "INTERNAL"),
        ("unauthorized", 401, "UNAUTHENTICATED"),
        ("redirect", 302, ""),
        ("not_json", 200, "JOB_STATE_RUNNING"),
        ("no_state", 200, '"name"'),
        ("slow", 200, '"state"'),
    ],
)
def test_a_control_plane_that_misbehaves(
    stack: ExitStack, clock: Clock, mode: str, status: int, text: str
) -> None:
    fault = Fault(control_plane=mode, control_plane_delay=0.01)  # type: ignore[arg-type]
    gateway = serve(stack, fault, clock)
    answer = ask(gateway)
    assert answer.status_code == status
    assert text in answer.text
    assert gateway.questions == 1
    assert connect(stack, gateway).get(HEALTH).status_code == 200


def test_a_control_plane_that_drops_the_connection(stack: ExitStack, clock: Clock) -> None:
    gateway = serve(stack, Fault(control_plane="dropped"), clock)
    with pytest.raises(httpx.TransportError):
        ask(gateway)
    assert [exchange.status for exchange in gateway.requests] == [0]


# -- the server ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
def test_nothing_is_left_behind(clock: Clock) -> None:
    gc.collect()
    threads = set(threading.enumerate())
    with LocalGateway(clock=clock) as gateway, ExitStack() as stack:
        connect(stack, gateway).get(HEALTH)
        # Stopping with an idle connection open must neither hang nor leak it.
        gateway.stop()
    assert set(threading.enumerate()) == threads
    gc.collect()
    with pytest.raises(httpx.ConnectError):
        httpx.get(gateway.origin, trust_env=False, verify=TLS)


def test_a_port_can_be_chosen_and_is_free_afterwards() -> None:
    with LocalGateway() as gateway:
        port = int(gateway.origin.rpartition(":")[2])
        with pytest.raises(OSError, match="in use"):
            LocalGateway(port=port).start()
    with LocalGateway(FAULTS["late-route"], port=port) as gateway:
        assert gateway.origin == f"http://127.0.0.1:{port}"
        assert httpx.get(gateway.base_url + HEALTH, trust_env=False, verify=TLS).status_code == 404


def test_stopping_does_not_wait_for_a_slow_control_plane(stack: ExitStack) -> None:
    gateway = LocalGateway(Fault(control_plane="slow", control_plane_delay=3600.0))
    gateway.start()
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(ask(gateway)))
    asking.start()
    while gateway.questions == 0:
        asking.join(0.001)
    gateway.stop()
    asking.join()
    assert answers[0].json()["state"] == "JOB_STATE_RUNNING"


def test_the_gateway_does_without_the_sdk_until_protobuf_comes() -> None:
    code = "import sys, tinker_guard.gateway; sys.exit('tinker' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
