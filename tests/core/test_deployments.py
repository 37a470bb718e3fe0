"""Deployments of Fireworks: a second kind of route, which a header or a body names, not the URL."""

from __future__ import annotations

import asyncio
import gzip
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import httpx
import pytest

from testkit.fakes import KEY, ORIGIN, FakeControlPlane, FakeGateway, gateway_404, known_from, ok
from testkit.threads import SyncFakeTransport
from testkit.virtual_time import VirtualTimeLoop
from tinker_guard import GuardSettings, GuardTransport, SyncGuardTransport
from tinker_guard.control_plane.fireworks import FireworksControlPlane
from tinker_guard.core.deployments import settings_by_path
from tinker_guard.core.routes import RouteTable
from tinker_guard.observability.providers import NOTHING
from tinker_guard.policy.route import HOT_LOAD, INFERENCE
from tinker_guard.transports import runtime

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from testkit.fakes import Exchange

PATH = "/hot_load/v1/models/hot_load"
NAME = "accounts/acc/deployments/dep-1"
BODY = b'{"identity": "snapshot-1", "reset_prompt_cache": true}'


def hot_load(
    method: str = "POST", *, name: str | None = NAME, path: str = PATH, origin: str = ORIGIN
) -> httpx.Request:
    """A hot-load as fireworks-ai 1.2.30 sends it, or with GET the question for its state."""
    headers = {
        "Content-Type": "application/json",
        "X-Api-Key": KEY,
        "Authorization": f"Bearer {KEY}",
        "fireworks-model": "accounts/fireworks/models/m",
    }
    if name is not None:
        headers["fireworks-deployment"] = name
    content = BODY if method == "POST" else b""
    return httpx.Request(method, origin + path, headers=headers, content=content)


COMPLETION = f'{{"model":"{NAME}","prompt":[1,2],"stream":true}}'.encode()


def completion(
    *, content: Any = COMPLETION, path: str = "/inference/v1/completions"
) -> httpx.Request:
    """A completion as fireworks-ai 1.2.30 asks for it."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    return httpx.Request("POST", ORIGIN + path, headers=headers, content=content)


NAMING_NONE = [
    b"",
    b"[]",
    b"{}",
    b'{"model":"accounts/fireworks/models/m"}',
    f'{{"metadata":{{"model":"gpt"}},"model":"{NAME}"}}'.encode(),
    # An adapter, of which the deployment's state says nothing.
    f'{{"model":"accounts/acc/models/lora#{NAME}"}}'.encode(),
    f'{{"model":"{NAME}/"}}'.encode(),
    f'{{"model":"{NAME}\u00e9"}}'.encode(),
    f'{{"model":["{NAME}"]}}'.encode(),
    f'{{"model":"accounts/acc/deployments/d\\u0065p-1","user":"{NAME}"}}'.encode(),
    f'{{"other_model":"{NAME}"}}'.encode(),
    # Text of a user's.
    json.dumps({"prompt": f'{{"model":"{NAME}"}}, "model": "{NAME}"'}).encode(),
    f'"model":"{NAME}"'.encode("utf-16"),
    gzip.compress(COMPLETION, mtime=0),
]


@dataclass
class Plane:
    """What is at the control plane's end of the network."""

    states: dict[str, str | None] = field(default_factory=lambda: {NAME: "READY"})
    asked: list[httpx.Request] = field(default_factory=list)

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        state = self.states.get(request.url.path.removeprefix("/v1/"))
        if state is None:
            return httpx.Response(404, json={"code": 5, "message": "not found"})
        return httpx.Response(200, json={"name": NAME, "state": state})

    def control_plane(self, **given: Any) -> FireworksControlPlane:
        return FireworksControlPlane(transport=httpx.MockTransport(self.answer), **given)


pytestmark = pytest.mark.usefixtures("virtual_time")


def _send_sync(
    gateway: FakeGateway, plane: Any, settings: GuardSettings, *requests: httpx.Request
) -> list[tuple[int, float]]:
    def new_transport() -> SyncFakeTransport:
        return SyncFakeTransport(gateway.new_transport())

    guard = SyncGuardTransport(
        new_transport(), settings=settings, control_plane=plane, new_transport=new_transport
    )
    answered = []
    for request in requests:
        status_code = guard.handle_request(request).status_code
        answered.append((status_code, runtime.THREADS.clock()))
    return answered


def _send_async(
    gateway: FakeGateway, plane: Any, settings: GuardSettings, *requests: httpx.Request
) -> list[tuple[int, float]]:
    async def send() -> list[tuple[int, float]]:
        guard = GuardTransport(
            gateway.new_transport(),
            settings=settings,
            control_plane=plane,
            new_transport=gateway.new_transport,
        )
        answered = []
        for request in requests:
            status_code = (await guard.handle_async_request(request)).status_code
            answered.append((status_code, asyncio.get_running_loop().time()))
        return answered

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(send())


BOTH = pytest.mark.parametrize("send", [_send_async, _send_sync], ids=["async", "sync"])
Send: TypeAlias = "Callable[..., list[tuple[int, float]]]"
SETTINGS = GuardSettings(retry_timeout=10.0)


def loads(gateway: FakeGateway) -> list[Exchange]:
    return [exchange for exchange in gateway.exchanges if exchange.method == "POST"]


@BOTH
def test_a_false_404_of_a_hot_load_is_sent_again(send: Send, spans: InMemorySpanExporter) -> None:
    gateway, plane = FakeGateway(known_from(2.0)), Plane()
    ((status_code, at),) = send(gateway, plane.control_plane(), SETTINGS, hot_load())
    assert status_code == 200
    assert 2.0 <= at <= 2.5
    assert [exchange.body for exchange in loads(gateway)] == [BODY, BODY]
    (root,) = [span for span in spans.get_finished_spans() if span.parent is None]
    attributes = dict(root.attributes or {})
    assert attributes["tinker_guard.outcome"] == "recovered"
    assert attributes["tinker_guard.verdict"] == "routing_race"
    assert attributes["tinker_guard.verdict.reason"] == "job_running"
    assert attributes["tinker_guard.operation"] == "hot_load"
    assert attributes["tinker_guard.account"] == "acc"
    assert attributes["tinker_guard.route"] == f"{ORIGIN}/v1/{NAME}"
    assert root.name == "POST /hot_load"
    asked = {span.name for span in spans.get_finished_spans() if "deployments" in span.name}
    assert asked == {"GET /v1/accounts/{account}/deployments/{deployment}"}


@BOTH
def test_it_is_guarded_where_nothing_is_recorded(
    send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("sync_transport", "transport", "telemetry"):
        monkeypatch.setattr(f"tinker_guard.{module}.enabled", lambda: NOTHING)
    gateway, plane = FakeGateway(known_from(2.0)), Plane()
    ((status_code, _),) = send(gateway, plane.control_plane(), SETTINGS, hot_load())
    assert status_code == 200


def test_of_many_deployments_those_used_last_are_kept() -> None:
    table, (one, two, three) = RouteTable(limit=2), (f"{NAME}-{n}" for n in range(3))
    first, second = (table.find_deployment(hot_load(name=name)) for name in (one, two))
    assert first is not second
    assert table.find_deployment(hot_load(name=one)) is first
    table.find_deployment(hot_load(name=three))
    assert table.find_deployment(hot_load(name=one)) is first
    assert table.find_deployment(hot_load(name=two)) is not second


@BOTH
def test_its_state_is_asked_at_the_control_plane(send: Send) -> None:
    gateway, plane = FakeGateway(known_from(0.1)), Plane()
    send(gateway, plane.control_plane(), SETTINGS, hot_load())
    asked = plane.asked[0]
    assert (asked.method, str(asked.url)) == ("GET", f"{ORIGIN}/v1/{NAME}")
    assert asked.headers["x-api-key"] == KEY
    # A gateway that is the control plane too would lead the question past itself.
    assert not {"fireworks-deployment", "fireworks-model"} & set(asked.headers)


@BOTH
def test_a_split_control_plane_gets_the_key_of_the_request(send: Send) -> None:
    gateway, plane = FakeGateway(known_from(0.1)), Plane()
    control_plane = plane.control_plane(url="https://plane.test")
    send(gateway, control_plane, SETTINGS, hot_load())
    assert str(plane.asked[0].url) == f"https://plane.test/v1/{NAME}"
    assert plane.asked[0].headers["x-api-key"] == KEY


@BOTH
def test_probes_ask_for_the_state_of_the_hot_load(send: Send) -> None:
    gateway = FakeGateway(known_from(1.0))
    send(gateway, Plane().control_plane(), SETTINGS, hot_load())
    probes = [exchange for exchange in gateway.exchanges if exchange.method == "GET"]
    assert probes
    assert {exchange.path for exchange in probes} == {PATH}
    assert {exchange.headers["fireworks-deployment"] for exchange in probes} == {NAME}
    assert {exchange.headers["fireworks-model"] for exchange in probes} == {
        "accounts/fireworks/models/m"
    }


@BOTH
def test_a_healthy_hot_load_is_one_exchange(send: Send) -> None:
    gateway, plane = FakeGateway(), Plane()
    assert send(gateway, plane.control_plane(), SETTINGS, hot_load()) == [(200, 0.0)]
    assert len(gateway.exchanges) == 1
    assert plane.asked == []


@BOTH
@pytest.mark.parametrize(
    ("state", "reason", "seconds", "questions"),
    [
        ("FAILED", "job_not_running", 0.0, 1),
        ("DELETING", "job_not_running", 0.0, 1),
        ("DELETED", "job_not_running", 0.0, 1),
        (None, "job_missing", 2.0, 2),
    ],
)
def test_a_404_that_is_true_is_handed_back(
    send: Send,
    state: str | None,
    reason: str,
    seconds: float,
    questions: int,
    spans: InMemorySpanExporter,
    caplog: pytest.LogCaptureFixture,
) -> None:
    gateway, plane = FakeGateway(lambda _: gateway_404()), Plane({NAME: state})
    answered = send(gateway, plane.control_plane(), SETTINGS, hot_load())
    assert answered == [(404, seconds)]
    assert len(gateway.exchanges) == 1
    assert len(plane.asked) == questions
    (root,) = [span for span in spans.get_finished_spans() if span.parent is None]
    attributes = dict(root.attributes or {})
    assert attributes["tinker_guard.verdict"] == "genuine_not_found"
    assert attributes["tinker_guard.verdict.reason"] == reason
    (line,) = [one for one in caplog.messages if "handed back" in one]
    assert "404 for deployment acc/dep-1 handed back" in line
    assert state is not None or "knows no such deployment. Check the account and deployment" in line


@BOTH
@pytest.mark.parametrize("state", ["READY", "UPDATING", "CREATING"])
def test_states_of_one_that_serves(send: Send, state: str) -> None:
    """CREATING too: the SDK says that a deployment for hot-loads may stay so while it serves."""
    gateway, plane = FakeGateway(), Plane({NAME: state})
    lost = iter([ok, gateway_404])
    gateway.answer = lambda _: next(lost, ok)()
    answered = send(gateway, plane.control_plane(), SETTINGS, hot_load(), hot_load())
    assert [status_code for status_code, _ in answered] == [200, 200]


@BOTH
def test_one_that_is_in_no_known_state_has_to_be_reached(send: Send) -> None:
    plane = Plane({NAME: "STATE_UNSPECIFIED"})
    gateway = FakeGateway(known_from(3.0))
    ((status_code, at),) = send(gateway, plane.control_plane(), SETTINGS, hot_load())
    assert status_code == 200
    assert 3.0 <= at <= 4.0


@BOTH
def test_a_client_that_polls_has_its_waits_once(send: Send) -> None:
    """The SDK asks every few seconds: each time a whole budget would be a multiple of its own."""
    gateway, plane = FakeGateway(lambda _: gateway_404()), Plane()
    polls = [hot_load("GET") for _ in range(3)]
    answered = send(gateway, plane.control_plane(), SETTINGS, *polls)
    assert answered == [(404, 10.0)] * 3


@BOTH
def test_a_425_is_handed_through(send: Send) -> None:
    gateway, plane = FakeGateway(lambda _: httpx.Response(425, stream=ok().stream)), Plane()
    assert send(gateway, plane.control_plane(), SETTINGS, hot_load("GET")) == [(425, 0.0)]
    assert len(gateway.exchanges) == 1
    assert plane.asked == []


@BOTH
def test_deployments_know_nothing_of_each_other(send: Send) -> None:
    other = "accounts/acc/deployments/dep-2"
    gateway = FakeGateway(
        lambda exchange: (
            ok() if exchange.headers["fireworks-deployment"] == other else gateway_404()
        )
    )
    plane = Plane({NAME: "DELETED", other: "READY"})
    answered = send(
        gateway, plane.control_plane(), SETTINGS, hot_load(), hot_load(name=other), hot_load()
    )
    assert answered == [(404, 0.0), (200, 0.0), (404, 0.0)]
    assert {request.url.path for request in plane.asked} == {f"/v1/{NAME}"}


@BOTH
@pytest.mark.parametrize(
    "request_",
    [
        hot_load(name=None),
        hot_load(name="accounts/acc/deployments/"),
        hot_load(name="accounts/acc/deployments/a/b"),
        hot_load(name="accounts/../deployments/a"),
        hot_load(name="accounts/acc/deployments/.."),
        hot_load(name="accounts/acc/deployments/a%2fb"),
        hot_load(name="accounts/acc/deployedModels/a"),
        hot_load(path="/hot_load/v1/models"),
        hot_load(path="/hot_load/v1/models/%2e%2e/hot_load"),
        hot_load(path="/hot_load/v1/models/..%2Fhot_load"),
        hot_load(path="/inference/v1/completions"),
        *(completion(content=content) for content in NAMING_NONE),
        completion(path="/inference/v1/models"),
        completion(path="/inference/v1/completions/%2e%2e/completions"),
    ],
)
def test_what_names_no_deployment_is_on_no_route(send: Send, request_: httpx.Request) -> None:
    gateway, plane = FakeGateway(lambda _: gateway_404()), Plane()
    assert send(gateway, plane.control_plane(), SETTINGS, request_) == [(404, 0.0)]
    assert len(gateway.exchanges) == 1
    assert plane.asked == []


@BOTH
def test_a_setting_leaves_them_alone(send: Send) -> None:
    gateway, plane = FakeGateway(lambda _: gateway_404()), Plane()
    settings = GuardSettings(deployments=False)
    assert send(gateway, plane.control_plane(), settings, hot_load()) == [(404, 0.0)]
    assert len(gateway.exchanges) == 1
    assert plane.asked == []


@BOTH
def test_a_control_plane_of_trainers_is_not_asked_about_deployments(send: Send) -> None:
    gateway, plane = FakeGateway(known_from(1.0)), FakeControlPlane("JOB_STATE_DELETED")
    ((status_code, at),) = send(gateway, plane, SETTINGS, hot_load())
    assert status_code == 200
    assert 1.0 <= at <= 2.0
    assert plane.questions == 0


@BOTH
def test_an_answer_without_a_state_says_nothing(
    send: Send, caplog: pytest.LogCaptureFixture
) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=json.dumps({"a": 1})))
    plane = FireworksControlPlane(transport=transport)
    gateway = FakeGateway(lambda _: gateway_404())
    ((status_code, _),) = send(gateway, plane, SETTINGS, hot_load())
    assert status_code == 404
    assert any("answered, but with no deployment's state in it" in line for line in caplog.messages)


# -- completions ---------------------------------------------------------------------------------


@BOTH
def test_a_false_404_of_a_completion_is_sent_again(send: Send, spans: InMemorySpanExporter) -> None:
    gateway, plane = FakeGateway(known_from(2.0)), Plane()
    ((status_code, at),) = send(gateway, plane.control_plane(), SETTINGS, completion())
    assert status_code == 200
    assert 2.0 <= at <= 3.5
    # Each has the whole prompt in it: one at once, and then about one a second.
    assert len(gateway.exchanges) <= 5
    # Nothing but the very same request: what answers there without a body is not the deployment.
    assert {(exchange.path, exchange.body) for exchange in gateway.exchanges} == {
        ("/inference/v1/completions", COMPLETION)
    }
    assert {str(request.url) for request in plane.asked} == {f"{ORIGIN}/v1/{NAME}"}
    (root,) = [span for span in spans.get_finished_spans() if span.parent is None]
    attributes = dict(root.attributes or {})
    assert attributes == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "input.value": "POST /completions",
        "output.value": "recovered: routing_race, job_running",
        "server.address": "gateway.test",
        "server.port": 443,
        "tinker_guard.account": "acc",
        "tinker_guard.not_found.gateway": "fireworks",
        "tinker_guard.not_found.source": "gateway",
        "tinker_guard.operation": "completions",
        "tinker_guard.outcome": "recovered",
        "tinker_guard.retries": len(gateway.exchanges) - 1,
        "tinker_guard.route": f"{ORIGIN}/v1/{NAME}",
        "tinker_guard.verdict": "routing_race",
        "tinker_guard.verdict.reason": "job_running",
    }
    assert root.name == "POST /completions"


@BOTH
@pytest.mark.parametrize(
    "content",
    [
        COMPLETION,
        json.dumps({"messages": [{"content": '{"model":"x"}'}], "model": NAME}).encode(),
        json.dumps({"prompt": [1] * 1000, "model": NAME}, indent=2).encode(),
        f'{{ "model" :\n"{NAME}"}}'.encode(),
    ],
)
@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_what_names_a_deployment(send: Send, path: str, content: bytes) -> None:
    gateway, plane = FakeGateway(known_from(0.1)), Plane()
    request = completion(content=content, path=f"/inference/v1/{path}")
    ((status_code, _),) = send(gateway, plane.control_plane(), SETTINGS, request)
    assert status_code == 200
    assert plane.asked[0].url.path == f"/v1/{NAME}"


@BOTH
@pytest.mark.parametrize(
    ("state", "reason", "seconds"),
    [("DELETED", "job_not_running", 0.0), (None, "job_missing", 2.0)],
)
def test_a_true_404_of_a_completion_is_handed_back(
    send: Send, state: str | None, reason: str, seconds: float, spans: InMemorySpanExporter
) -> None:
    gateway, plane = FakeGateway(lambda _: gateway_404()), Plane({NAME: state})
    assert send(gateway, plane.control_plane(), SETTINGS, completion()) == [(404, seconds)]
    assert len(gateway.exchanges) == 1
    (root,) = [span for span in spans.get_finished_spans() if span.parent is None]
    attributes = dict(root.attributes or {})
    assert attributes["tinker_guard.verdict"] == "genuine_not_found"
    assert attributes["tinker_guard.verdict.reason"] == reason


@BOTH
def test_a_client_that_repeats_its_completions_has_its_waits_once(send: Send) -> None:
    gateway, plane = FakeGateway(lambda _: gateway_404()), Plane()
    repeats = [completion() for _ in range(3)]
    answered = send(gateway, plane.control_plane(), SETTINGS, *repeats)
    assert answered == [(404, 10.0)] * 3


@BOTH
def test_completions_that_are_lost_say_nothing_of_hot_loads(send: Send) -> None:
    """One may be switched off for a deployment, and the other not."""
    gateway = FakeGateway(lambda exchange: ok() if exchange.path == PATH else gateway_404())
    answered = send(gateway, Plane().control_plane(), SETTINGS, completion(), hot_load())
    assert answered == [(404, 10.0), (200, 10.0)]


@BOTH
def test_where_no_one_can_be_asked_a_completion_comes_back_at_once(
    send: Send, spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    """There is no probe for it, and its client repeats it by itself: no setting waits longer."""
    gateway, plane = FakeGateway(lambda _: gateway_404()), FakeControlPlane("JOB_STATE_RUNNING")
    assert send(gateway, plane, SETTINGS, completion()) == [(404, 0.0)]
    assert len(gateway.exchanges) == 1
    (root,) = [span for span in spans.get_finished_spans() if span.parent is None]
    assert dict(root.attributes or {})["tinker_guard.verdict.reason"] == "no_control_plane"
    (line,) = [one for one in caplog.messages if "handed back" in one]
    assert line.endswith("asked about deployments is set, and this one has not answered yet.")


@BOTH
def test_a_completion_of_a_deployment_in_no_known_state_comes_back_at_once(
    send: Send, caplog: pytest.LogCaptureFixture
) -> None:
    gateway, plane = FakeGateway(known_from(1.0)), Plane({NAME: "STATE_UNSPECIFIED"})
    assert send(gateway, plane.control_plane(), SETTINGS, completion()) == [(404, 0.0)]
    (line,) = [one for one in caplog.messages if "handed back" in one]
    assert line.endswith("the control plane says that it is STATE_UNSPECIFIED.")


@BOTH
def test_where_no_one_can_be_asked_a_deployment_that_has_answered_is_waited_for(
    send: Send, spans: InMemorySpanExporter
) -> None:
    answers = iter([ok, gateway_404, gateway_404, gateway_404])
    gateway = FakeGateway(lambda _: next(answers, ok)())
    plane = FakeControlPlane("JOB_STATE_DELETED")
    answered = send(gateway, plane, SETTINGS, completion(), completion())
    assert [status_code for status_code, _ in answered] == [200, 200]
    assert [exchange.body for exchange in gateway.exchanges] == [COMPLETION] * 5
    assert plane.questions == 0
    *_, root = [span for span in spans.get_finished_spans() if span.parent is None]
    attributes = dict(root.attributes or {})
    assert attributes["tinker_guard.outcome"] == "recovered"
    assert attributes["tinker_guard.verdict.reason"] == "trainer_reached"


@BOTH
@pytest.mark.parametrize("answer", [ok, lambda: httpx.Response(425, stream=ok().stream)])
def test_any_other_answer_to_a_completion_is_handed_through(
    send: Send, answer: Callable[[], httpx.Response]
) -> None:
    gateway, plane = FakeGateway(lambda _: answer()), Plane()
    ((status_code, at),) = send(gateway, plane.control_plane(), SETTINGS, completion())
    assert (status_code, at) == (answer().status_code, 0.0)
    assert len(gateway.exchanges) == 1
    assert plane.asked == []


@BOTH
def test_where_nothing_was_waited_for_the_next_completion_asks_again(send: Send) -> None:
    """One outage of the control plane must not end all recovery of this deployment."""
    said, late = iter([httpx.Response(503)]), known_from(2.0)
    lost = iter([gateway_404, gateway_404])

    def say(_: httpx.Request) -> httpx.Response:
        return next(said, None) or httpx.Response(200, json={"name": NAME, "state": "READY"})

    plane = FireworksControlPlane(transport=httpx.MockTransport(say))
    gateway = FakeGateway(
        lambda exchange: late(exchange) if exchange.path == PATH else next(lost, ok)()
    )
    # The hot-load takes the time between the completion and its repeat.
    answered = send(gateway, plane, SETTINGS, completion(), hot_load(), completion())
    assert answered[0] == (404, 0.0)
    assert [status_code for status_code, _ in answered] == [404, 200, 200]


@pytest.mark.parametrize("usable", [1, 3])
def test_waits_in_vain_are_not_multiplied_where_the_control_plane_fails_at_last(
    usable: int,
) -> None:
    """The first one has waited and was sent again, before there was no usable answer any more."""
    asked = 0

    def answer(_: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        if asked > usable:
            return httpx.Response(503)
        return httpx.Response(200, json={"name": NAME, "state": "READY"})

    async def lost(_: Exchange) -> httpx.Response:
        # An answer of the same moment would judge the next 404 too.
        await asyncio.sleep(0.01)
        return gateway_404()

    plane = FireworksControlPlane(transport=httpx.MockTransport(answer))
    settings = SETTINGS.model_copy(update={"verdict_ttl": 0.0})
    answered = _send_async(FakeGateway(lost), plane, settings, completion(), completion())
    assert [status_code for status_code, _ in answered] == [404, 404]
    assert answered[1][1] - answered[0][1] == pytest.approx(0.01)
    assert asked == usable + 1


def test_nor_where_the_control_plane_is_silent() -> None:
    asked = 0

    async def answer(_: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        await asyncio.sleep(60.0)
        return httpx.Response(500)

    plane = FireworksControlPlane(transport=httpx.MockTransport(answer))
    gateway = FakeGateway(lambda _: gateway_404())
    repeats = [completion() for _ in range(3)]
    assert _send_async(gateway, plane, SETTINGS, *repeats) == [(404, 5.0)] * 3
    assert asked == 1


@BOTH
def test_a_log_line_says_the_host_of_the_control_plane_as_it_is(
    send: Send, caplog: pytest.LogCaptureFixture
) -> None:
    """The texts of jobs are made texts of deployments."""
    transport = httpx.MockTransport(lambda _: httpx.Response(403))
    plane = FireworksControlPlane("https://job-api.jobs.test", transport=transport)
    send(FakeGateway(lambda _: gateway_404()), plane, SETTINGS, completion())
    (line,) = [one for one in caplog.messages if "handed back" in one]
    assert "the control plane at https://job-api.jobs.test refused the key (403)." in line
    assert line.endswith("to one that may read the deployment.")


def test_a_body_that_can_be_sent_once_is_not_read() -> None:
    request = completion(content=iter([COMPLETION]))
    assert RouteTable().find_deployment(request) is None
    assert isinstance(request.stream, httpx.SyncByteStream)
    assert b"".join(request.stream) == COMPLETION


@BOTH
def test_a_setting_leaves_completions_alone(send: Send) -> None:
    gateway, plane = FakeGateway(lambda _: gateway_404()), Plane()
    settings = GuardSettings(deployments=False)
    assert send(gateway, plane.control_plane(), settings, completion()) == [(404, 0.0)]
    assert plane.asked == []


@pytest.mark.parametrize(("given", "used"), [(0.5, (1.0, 5.0)), (7.0, (7.0, 7.0))])
def test_completions_are_sent_again_seldom(given: float, used: tuple[float, float]) -> None:
    settings = GuardSettings(backoff_initial=given, backoff_max=given)
    found = settings_by_path(settings)
    assert (found[INFERENCE].backoff_initial, found[INFERENCE].backoff_max) == used
    assert (found[HOT_LOAD].backoff_initial, found[HOT_LOAD].backoff_max) == (given, given)
    assert {found[path].warmup_successes for path in (HOT_LOAD, INFERENCE)} == {0}
