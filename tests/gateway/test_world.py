"""Replicas, races, lost replies and the control plane, asked without a server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tinker_guard.gateway import FAULTS, Fault, JobStop, LostReply, Race, World
from tinker_guard.gateway.wire import Call

from .conftest import ended, forward_backward_body

if TYPE_CHECKING:
    from tinker_guard.gateway.wire import Reply

GATEWAY_404 = {
    "error": {
        "message": "Trainer job not found or not running",
        "param": "jobId",
        "code": "NOT_FOUND",
    }
}
ROUTE = "/training/v1/rlorTrainerJobs/demo/job-1"
JOB = "/v1/accounts/demo/rlorTrainerJobs/job-1"


class Asked(World):
    """A world whose time stands still until a test moves it."""

    now = 100.0

    def send(
        self, operation: str = "healthz", on: int = 0, *, body: Any = None, **headers: str
    ) -> Reply:
        """Send a request to the trainer, over a connection."""
        method = "GET" if operation == "healthz" else "POST"
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        content = json.dumps(body or {}).encode()
        call = Call(method, f"{ROUTE}/api/v1/{operation}", named, content, on)
        return ended(self.answer(call, self.now))

    def sent(self, *connections: int) -> list[int]:
        """The statuses of a request over each of these connections."""
        return [self.send(on=connection).status for connection in connections]

    def ask(self, path: str = JOB, **headers: str) -> Reply:
        """Put a question to the control plane."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        call = Call("GET", path, named or {"x-api-key": self.api_key})
        return ended(self.answer(call, self.now))

    @property
    def replicas(self) -> list[int | None]:
        """Which replicas answered."""
        return [exchange.replica for exchange in self.exchanges]


def json_of(reply: Reply) -> Any:
    return json.loads(reply.content)


# -- replicas ------------------------------------------------------------------------------------


def test_a_connection_stays_with_one_replica() -> None:
    world = Asked(FAULTS["stale-replica"])
    for _ in range(2):
        assert world.sent(5, 6, 7, 8, 9) == [200, 200, 404, 200, 200]
    assert world.replicas == [0, 1, 2, 3, 0] * 2
    assert [exchange.connection for exchange in world.exchanges] == [0, 1, 2, 3, 4] * 2
    world.now += 20.0
    assert world.sent(7) == [200]
    assert world.replicas[-1] == 2


def test_a_replica_may_never_learn_the_route() -> None:
    world = Asked(Fault(route_known_after=(None,)))
    assert world.sent(0) == [404]
    world.now += 1e9
    assert world.sent(0) == [404]


def test_replicas_by_chance_depend_on_the_seed_only() -> None:
    def replicas(seed: int) -> list[int | None]:
        world = Asked(Fault(replicas=4, assignment="random", seed=seed))
        world.sent(*range(8))
        return world.replicas

    assert replicas(1) == replicas(1)
    assert replicas(1) != replicas(2)


def test_without_affinity_each_request_gets_the_next_replica() -> None:
    world = Asked(Fault(replicas=3, affinity="none"))
    world.sent(0, 0, 0, 0)
    assert world.replicas == [0, 1, 2, 0]


@pytest.mark.parametrize(
    ("cookie", "replica", "sets"),
    [
        ("", 0, True),
        ("other=1; gateway-replica=2", 2, False),
        # It names no replica.
        ("gateway-replica=3", 0, True),
    ],
)
def test_a_cookie_pins_a_client_to_a_replica(cookie: str, replica: int, sets: bool) -> None:
    # The stale replica pins its clients too.
    world = Asked(Fault(replicas=3, affinity="cookie", route_known_after=(None,)))
    reply = world.send(cookie=cookie)
    assert reply.status == (200 if replica else 404)
    assert world.replicas == [replica]
    assert reply.headers == ((("set-cookie", "gateway-replica=0; Path=/"),) if sets else ())


def test_a_control_plane_question_draws_no_replica() -> None:
    world = Asked(Fault(replicas=2))
    world.ask()
    world.send()
    assert world.replicas == [None, 0]


# -- races, lost replies, deletion ---------------------------------------------------------------


def test_a_race_starts_with_its_request_and_hits_every_operation() -> None:
    world = Asked(Fault(races=(Race("telemetry", occurrence=2, seconds=1.5),)))
    assert world.send("telemetry").status == 200
    reply = world.send("telemetry")
    assert (reply.status, json_of(reply)) == (404, GATEWAY_404)
    world.now += 1.25
    assert world.sent(0) == [404]
    world.now += 0.25
    assert world.sent(0) == [200]
    assert world.send("telemetry").status == 200
    answered_by = [exchange.answered_by for exchange in world.exchanges]
    assert answered_by == ["trainer", "gateway", "gateway", "trainer", "trainer"]


def test_a_race_of_no_duration_hits_one_exchange() -> None:
    assert Asked(Fault(races=(Race("healthz", seconds=0.0),))).sent(0, 0) == [404, 200]


def test_a_race_may_hit_some_replicas_only() -> None:
    world = Asked(Fault(replicas=2, races=(Race("telemetry", seconds=1.0, replicas=(1,)),)))
    assert world.send("telemetry").status == 200
    assert world.sent(1, 0) == [404, 200]


def test_a_lost_reply_leaves_the_work_done() -> None:
    world = Asked(Fault(lost_replies=(LostReply("forward_backward"),)))
    model = {"session_id": "s", "model_seq_id": 0, "base_model": "m"}
    model_id = json_of(world.send("create_model", body=model))["model_id"]
    body = forward_backward_body(model_id, 1)
    lost = world.send("forward_backward", body=body, x_idempotency_key="one")
    assert (lost.status, json_of(lost)) == (404, GATEWAY_404)
    applied = [(1, "forward_backward")]
    assert [(done.seq_id, done.operation) for done in world.trainer.applied] == applied

    resent = world.send("forward_backward", body=body, x_idempotency_key="one")
    assert resent.status == 200
    assert len(world.trainer.applied) == 1
    before, after = world.exchanges[-2:]
    assert before.seq_id == after.seq_id == 1
    assert before.idempotency_key == after.idempotency_key == "one"
    assert before.body_sha256 == after.body_sha256
    assert before.body_size == len(json.dumps(body))
    assert world.trainer.unexpected == []


def test_a_deleted_job_is_neither_routed_nor_running() -> None:
    world = Asked(Fault(stop=JobStop("telemetry", occurrence=2)))
    assert world.send("telemetry").status == 200
    assert json_of(world.ask())["state"] == "JOB_STATE_RUNNING"
    assert json_of(world.send("telemetry")) == GATEWAY_404
    assert world.sent(0) == [404]
    assert json_of(world.ask())["state"] == "JOB_STATE_DELETED"


def test_the_job_state_follows_its_timeline() -> None:
    states = ((0.0, "JOB_STATE_CREATING"), (1.0, "JOB_STATE_RUNNING"), (2.0, None))
    world = Asked(Fault(job_states=states))
    seen = []
    for _ in range(3):
        seen.append((json_of(world.ask()).get("state"), *world.sent(0)))
        world.now += 1.0
    # A job on its way may be routed already; that is for `route_known_after` to say.
    assert seen == [("JOB_STATE_CREATING", 200), ("JOB_STATE_RUNNING", 200), (None, 404)]


@pytest.mark.parametrize(
    ("body", "content_type", "text"),
    [
        ("gateway", "application/json", b'{"error"'),
        ("plain", "text/plain; charset=utf-8", b"404 page not found"),
        ("html", "text/html; charset=utf-8", b"<html>"),
        ("empty", "text/plain; charset=utf-8", b""),
    ],
)
def test_bodies_of_the_gateways_404(body: Any, content_type: str, text: bytes) -> None:
    reply = Asked(Fault(body=body, route_known_after=(None,))).send()
    assert (reply.status, reply.media_type) == (404, content_type)
    assert reply.content.startswith(text)
    assert bool(reply.content) == bool(text)


def test_another_job_is_the_gateways_404() -> None:
    world = Asked(job="job-2")
    assert json_of(world.send()) == GATEWAY_404
    assert world.ask().status == 404
    world.job = None
    assert world.sent(0) == [200]
    assert world.ask().status == 200


def test_an_older_trainer_answers_its_own_404() -> None:
    world = Asked(FAULTS["fresh-404"])
    reply = world.send("client/dynamic_config")
    assert (reply.status, json_of(reply)) == (404, {"detail": "Not Found"})
    assert world.exchanges[0].answered_by == "trainer"
    assert world.trainer.unexpected == []


def test_a_path_that_is_neither_route_nor_control_plane() -> None:
    world = Asked()
    assert world.ask("/v2/jobs").status == 404
    assert world.trainer.unexpected == ["GET /v2/jobs: no such path"]


# -- the control plane ---------------------------------------------------------------------------


def test_the_control_plane_wants_the_key() -> None:
    world = Asked()
    key = world.api_key
    given = [{"x": ""}, {"x_api_key": "wrong"}, {"x_api_key": key}]
    answers = [world.ask(**headers) for headers in [*given, {"authorization": f"Bearer {key}"}]]
    assert [answer.status for answer in answers] == [401, 401, 200, 200]
    assert json_of(answers[-1])["name"] == "accounts/demo/rlorTrainerJobs/job-1"
    assert world.questions == 4
    assert key not in repr(world.exchanges)


@pytest.mark.parametrize(
    ("mode", "status", "text"),
    [
        ("down", 500, b"INTERNAL"),
        ("unauthorized", 401, b"UNAUTHENTICATED"),
        ("redirect", 302, b""),
        ("not_json", 200, b"JOB_STATE_RUNNING"),
        ("no_state", 200, b'"name"'),
        ("dropped", 0, b""),
    ],
)
def test_a_control_plane_that_misbehaves(mode: Any, status: int, text: bytes) -> None:
    world = Asked(Fault(control_plane=mode))
    answer = world.ask()
    assert answer.status == status
    assert text in answer.content
    assert world.questions == 1
    assert world.sent(0) == [200]


@pytest.mark.parametrize("is_closing", [False, True])
def test_a_slow_control_plane_answers_in_the_end(is_closing: bool) -> None:
    world = World(Fault(control_plane="slow", control_plane_delay=10.0))
    call = Call("GET", JOB, {"x-api-key": world.api_key})
    steps = world.answer(call, 100.0)
    assert next(steps) == steps.send(101.0) == 110.0
    if is_closing:
        world.close()
    with pytest.raises(StopIteration) as end:
        steps.send(102.0 if is_closing else 110.0)
    assert json_of(end.value.value)["state"] == "JOB_STATE_RUNNING"


# -- deployments, and the serverless trainer -------------------------------------------------------

DEPLOYMENT = "accounts/demo/deployments/dep-1"


def hot_load(world: Asked, method: str = "POST", name: str = DEPLOYMENT) -> Reply:
    headers = {"fireworks-deployment": name}
    body = json.dumps({"identity": "snapshot-1"}).encode() if method == "POST" else b""
    return ended(
        world.answer(Call(method, "/hot_load/v1/models/hot_load", headers, body), world.now)
    )


def complete(world: Asked, model: str = DEPLOYMENT) -> Reply:
    body = json.dumps({"model": model, "prompt": [1]}).encode()
    return ended(world.answer(Call("POST", "/inference/v1/completions", {}, body), world.now))


def test_a_deployment_loads_and_answers() -> None:
    world = Asked()
    before = json_of(hot_load(world, "GET"))["replicas"][0]
    assert (before["current_snapshot_identity"], before["readiness"]) == (None, True)
    assert hot_load(world).status == 200
    assert world.serving.loaded == ["snapshot-1"]
    after = json_of(hot_load(world, "GET"))["replicas"][0]
    assert after["current_snapshot_identity"] == "snapshot-1"
    answer = complete(world)
    assert answer.media_type == "text/event-stream"
    assert answer.content.endswith(b"data: [DONE]\n\n")
    assert [exchange.path for exchange in world.exchanges[-2:]] == [
        "/hot_load/v1/models/hot_load",
        "/inference/v1/completions",
    ]


def test_only_the_one_deployment_is_known() -> None:
    world = Asked()
    assert hot_load(world, name="accounts/demo/deployments/other").status == 404
    assert hot_load(world, name="").status == 404
    assert complete(world, "accounts/other/deployments/dep-1").status == 404
    assert world.ask(f"/v1/{DEPLOYMENT}").status == 200
    assert json_of(world.ask(f"/v1/{DEPLOYMENT}"))["state"] == "READY"
    assert world.ask("/v1/accounts/demo/deployments/other").status == 404
    assert world.ask("/v1/accounts/other/deployments/dep-1").status == 404


def test_a_deployment_is_lost_with_its_route_and_stops_with_the_job() -> None:
    world = Asked(Fault(races=(Race("hot_load", 2, 1.0),), job_states=((5.0, "JOB_STATE_FAILED"),)))
    assert [hot_load(world).status, hot_load(world).status, complete(world).status] == [
        *(200, 404, 404)
    ]
    world.now += 1.0
    assert complete(world).status == 200
    world.now += 4.0
    assert hot_load(world).status == 404
    assert json_of(world.ask(f"/v1/{DEPLOYMENT}"))["state"] == "FAILED"
    assert world.serving.loaded == ["snapshot-1"]


def test_the_serverless_trainer_is_behind_the_same_replicas() -> None:
    world = Asked(Fault(races=(Race("create_sampling_route", 1, 0.0),)))
    call = Call("POST", "/training/v1/serverless/api/v1/create_sampling_route", {}, b"{}")
    statuses = [ended(world.answer(call, world.now)).status for _ in range(2)]
    assert statuses == [404, 200]
