"""A control plane by template: what is asked, with which key, and how its answer is read."""

from __future__ import annotations

import copy
import logging
import pickle
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from pydantic import SecretStr

from testkit.fakes import KEY, FakeGateway, loop_time, ok, plain_404
from tinker_guard import ControlPlaneError, GuardSettings, GuardTransport
from tinker_guard.control_plane.chosen import control_plane_of
from tinker_guard.control_plane.fireworks import FireworksControlPlane
from tinker_guard.control_plane.http import HttpControlPlane, state_name
from tinker_guard.control_plane.shared import SharedControlPlane
from tinker_guard.core.routes import RouteState, RouteTable
from tinker_guard.policy.job import JobPhase
from tinker_guard.policy.judgement import CONTROL_PLANE_ERROR, JobAnswer
from tinker_guard.policy.route import patterns_of

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

pytestmark = pytest.mark.anyio

ORIGIN = "https://gateway.test"
NAMES = {"model": "qwen-3", "_key": "geheim"}
SENT = {"x-api-key": KEY}


class Server:
    """Answers every question alike."""

    def __init__(self, answer: Any, status_code: int = 200) -> None:
        self.answer = answer
        self.status_code = status_code
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return httpx.Response(self.status_code, json=self.answer)

    def plane(self, url: str = "https://api.test/m/{model}", **options: Any) -> HttpControlPlane:
        return HttpControlPlane(url, transport=httpx.MockTransport(self), **options)

    async def ask(self, url: str = "https://api.test/m/{model}", **options: Any) -> str | None:
        plane = self.plane(url, **options)
        return await plane.route_state(NAMES, origin=ORIGIN, credentials=SENT)


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "HTTP_PROXY"])
async def test_a_question_goes_by_the_proxy_that_the_environment_names_for_it(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    carriers: list[httpx.AsyncHTTPTransport] = []
    by_proxy: list[httpx.AsyncHTTPTransport] = []
    build = httpx.AsyncHTTPTransport.__init__

    def note(self: httpx.AsyncHTTPTransport, *args: Any, **given: Any) -> None:
        build(self, *args, **given)
        if given.get("proxy") is not None:
            by_proxy.append(self)

    async def send(self: httpx.AsyncHTTPTransport, _: httpx.Request) -> httpx.Response:
        carriers.append(self)
        return httpx.Response(200, json={"state": "running"})

    monkeypatch.setenv(variable, "http://proxy.test:1")
    monkeypatch.setattr(httpx.AsyncHTTPTransport, "__init__", note)
    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", send)
    plane = HttpControlPlane("https://api.test/m/{model}")
    assert await plane.route_state(NAMES, origin=ORIGIN, credentials=SENT) == "RUNNING"
    assert (carriers == by_proxy) is (variable == "HTTPS_PROXY")


async def test_nothing_of_a_questions_path_is_recorded(
    spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor is it logged, by httpx's client."""
    caplog.set_level(logging.DEBUG)
    gateway = FakeGateway(lambda _: plain_404())
    transport = GuardTransport(
        gateway.new_transport(),
        settings=GuardSettings(routes="/m/{model}", warmup_successes=0, retry_timeout=0),
        control_plane=Server({"state": "stopped"}).plane(stopped=("stopped",)),
    )
    request = httpx.Request("POST", f"{ORIGIN}/m/qwen-3/api/v1/forward_backward", content=b"{}")
    assert (await transport.handle_async_request(request)).status_code == 404
    asked = [
        dict(span.attributes or {})
        for span in spans.get_finished_spans()
        if (span.attributes or {}).get("server.address") == "api.test" and span.name == "GET"
    ]
    assert [attributes["url.full"] for attributes in asked] == ["https://api.test"]
    assert "api.test/" not in caplog.text


# -- what is asked ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("https://api.test/m/{model}/status", "https://api.test/m/qwen-3/status"),
        ("https://api.test/m?name={model}&x=1", "https://api.test/m?name=qwen-3&x=1"),
        ("http://api.test:81/base", "http://api.test:81/base"),
        ("/k/{_key}/pg/status", f"{ORIGIN}/k/geheim/pg/status"),
        ("/status?m={model}", f"{ORIGIN}/status?m=qwen-3"),
    ],
)
async def test_the_question_is_the_template_filled_in(url: str, asked: str) -> None:
    server = Server({"state": "running"})
    assert await server.ask(url) == "RUNNING"
    (request,) = server.requests
    assert (request.method, str(request.url)) == ("GET", asked)
    assert request.headers["accept"] == "application/json"
    assert set(request.extensions["timeout"].values()) == {5.0}


@pytest.mark.parametrize(
    ("url", "key", "expected"),
    [
        # Another origin gets no key that nobody has configured for it.
        ("https://api.test/x", None, {}),
        ("https://api.gateway.test/x", None, {}),
        ("http://gateway.test/x", None, {}),
        ("https://gateway.test:8443/x", None, {}),
        ("https://api.test/x", "cp-1", {"x-api-key": "cp-1", "authorization": "Bearer cp-1"}),
        (f"{ORIGIN}/x", None, SENT),
        ("https://gateway.test:443/x", None, SENT),
        ("/x", None, SENT),
        (f"{ORIGIN}/x", "cp-1", {"x-api-key": "cp-1", "authorization": "Bearer cp-1"}),
    ],
)
async def test_which_key_goes_along(url: str, key: str | None, expected: dict[str, str]) -> None:
    server = Server({"state": "running"})
    await server.ask(url, api_key=None if key is None else SecretStr(key))
    headers = server.requests[0].headers
    names = ("x-api-key", "authorization")
    assert {name: headers[name] for name in names if name in headers} == expected


def route_state(url: str, routes: str) -> RouteState:
    state = RouteTable().find(httpx.URL(url), patterns_of((routes,)))
    assert state is not None
    return state


async def test_to_the_routes_own_origin_goes_what_makes_a_request_arrive() -> None:
    server = Server({"state": "running"})
    shared = SharedControlPlane(GuardSettings(), server.plane("/status"))
    headers = {"Modal-Key": "wk-1", "Cookie": "c", "Host": "inner.test"}
    request = httpx.Request("POST", f"{ORIGIN}/api/v1/x", headers=headers)
    state = route_state(f"{ORIGIN}/api/v1/x", ORIGIN)
    answer = await shared.ask(state, request)
    assert (answer.state, answer.phase, answer.status_code) == ("RUNNING", JobPhase.RUNNING, 200)
    sent = server.requests[0].headers
    assert (sent["modal-key"], sent["host"], "cookie" in sent) == ("wk-1", "inner.test", False)


@pytest.mark.parametrize("is_fireworks", [True, False])
@pytest.mark.parametrize("own_key", [None, "cp-1"])
@pytest.mark.parametrize("url", [ORIGIN, f"{ORIGIN}:443", f"{ORIGIN}/api", None])
async def test_so_it_does_where_a_setting_names_that_origin(
    is_fireworks: bool, own_key: str | None, url: str | None
) -> None:
    """As without the setting: what makes a request arrive there makes a lookup arrive too."""
    server = Server({"state": "JOB_STATE_RUNNING"})
    key = None if own_key is None else SecretStr(own_key)
    plane = (
        FireworksControlPlane(url, api_key=key, transport=httpx.MockTransport(server))
        if is_fireworks
        else server.plane(f"{url or ''}/status", api_key=key)
    )
    headers = {"CF-Access-Client-Id": "c-1", "Host": "inner.test", "X-Api-Key": KEY}
    request = httpx.Request("POST", f"{ORIGIN}/api/v1/x", headers=headers)
    request.extensions["sni_hostname"] = "inner.test"
    route = "/training/v1/rlorTrainerJobs/{account}/{job}"
    state = route_state(f"{ORIGIN}/training/v1/rlorTrainerJobs/a/j/api/v1/x", ORIGIN + route)
    assert (await SharedControlPlane(GuardSettings(), plane).ask(state, request)).is_running
    (asked,) = server.requests
    assert (asked.headers["cf-access-client-id"], asked.headers["host"]) == ("c-1", "inner.test")
    assert asked.extensions["sni_hostname"] == "inner.test"
    keys = [value for name, value in asked.headers.raw if name.lower() == b"x-api-key"]
    assert keys == [(own_key or KEY).encode()]


async def test_another_origin_gets_nothing_of_the_request() -> None:
    server = Server({"state": "running"})
    shared = SharedControlPlane(GuardSettings(), server.plane("https://api.test/status"))
    secrets = ("Modal-Key", "Modal-Secret", "Twinkle-Authorization", "X-Api-Key", "Authorization")
    headers = dict.fromkeys(secrets, "geheim")
    request = httpx.Request("POST", f"{ORIGIN}/api/v1/x", headers=headers)
    await shared.ask(route_state(f"{ORIGIN}/api/v1/x", ORIGIN), request)
    assert "geheim" not in repr(server.requests[0].headers.raw)


@pytest.mark.parametrize(
    "word",
    [
        *("error", "ERROR", "fail", "ok", "Success", "Failure", "unavailable", "unauthorized"),
        *("timeout", "not_found", "rate-limited", "Bad Request"),
    ],
)
@pytest.mark.parametrize(
    "more", [{}, {"message": "database timeout"}, {"data": None}, {"data": {"name": "other"}}]
)
async def test_a_word_about_the_question_is_no_state(word: str, more: dict[str, Any]) -> None:
    for member in ("status", "state"):
        with pytest.raises(ControlPlaneError, match="with no state at"):
            await Server({member: word, **more}).ask(state=(member,))


@pytest.mark.parametrize(
    ("document", "options"),
    [
        ({"status": "error", "name": "qwen-3"}, {}),
        ({"status": "error", "data": [{"name": "models/qwen-3/versions/1"}]}, {}),
        ({"status": "error"}, {"stopped": ("ERROR",)}),
        ({"status": "error"}, {"running": ("ERROR",)}),
        ({"status": {"state": "error"}}, {"state": ("status", "state")}),
    ],
)
async def test_where_it_is_about_the_job_it_is_one(
    document: dict[str, Any], options: dict[str, Any]
) -> None:
    assert await Server(document).ask(**{"state": ("status",)} | options) == "ERROR"


# -- what is answered ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "document", "state"),
    [
        ("state", {"state": "running"}, "RUNNING"),
        ("status.phase", {"status": {"phase": "In-Progress"}}, "IN_PROGRESS"),
        ("models.{model}.state", {"models": {"qwen-3": {"state": "ok"}}}, "OK"),
        # A name that stands for a job, and is not there: there is no such job.
        ("models.{model}.state", {"models": {}}, None),
        ("models.{model}.state", {"models": {"qwen": {"state": "ok"}}}, None),
        ("{model}", {"other": "ok"}, None),
        ("{model}.state", {"other": {"state": "ok"}}, None),
        ("{model}.state", {}, None),
        ("models.{model}.state", {"models": {}, "error": None, "success": True}, None),
        # The job may have failed with one.
        ("state", {"state": "failed", "error": "out of memory"}, "FAILED"),
        ("items.0.state", {"items": [{"state": "ok"}]}, "OK"),
        ("ready", {"ready": True}, "TRUE"),
        ("ready", {"ready": False}, "FALSE"),
    ],
)
async def test_where_the_state_stands(path: str, document: Any, state: str | None) -> None:
    assert await Server(document).ask(state=tuple(path.split("."))) == state


@pytest.mark.parametrize(
    ("path", "document"),
    [
        ("state", {}),
        ("state", []),
        ("state", "running"),
        ("state", None),
        ("state", {"state": None}),
        ("state", {"state": 1}),
        ("state", {"state": {"x": 1}}),
        ("state", {"state": ""}),
        ("state", {"state": "9 lives"}),
        ("state", {"state": "x" * 65}),
        ("models.{model}.state", {}),
        ("models.{model}.state", {"models": []}),
        ("models.{model}.state", {"models": {"qwen-3": {}}}),
        # What reports an error does not say that there is no such job.
        ("{model}.state", {"error": "the database does not answer"}),
        ("{model}.state", {"message": "no Route matched with those values"}),
        # Nor does an object that holds no others.
        ("{model}.state", {"login": "required"}),
        ("{model}.state", {"other": "ok"}),
        ("models.{model}.state", {"models": {}, "errors": ["timeout"]}),
        ("models.{model}.state", {"models": {}, "success": False}),
        ("items.1.state", {"items": [{"state": "ok"}]}),
        ("items.x.state", {"items": [{"state": "ok"}]}),
    ],
)
async def test_answers_that_hold_none(path: str, document: Any) -> None:
    with pytest.raises(ControlPlaneError) as caught:
        await Server(document).ask("https://api.test/k/{_key}", state=tuple(path.split(".")))
    assert str(caught.value) == (
        f"the control plane at https://api.test answered, but with no state at {path}. "
        "TINKER_GUARD_CONTROL_PLANE_STATE says where it stands."
    )
    assert caught.value.status_code == 200


async def test_a_control_planes_404_says_that_there_is_none() -> None:
    assert await Server({"code": 5, "message": "no such job"}, 404).ask() is None


async def test_a_trainer_that_does_not_exist_may_have_any_name() -> None:
    server = Server({"code": 5, "message": "unknown: a-service-b"}, 404)
    names = {"model": "a-service-b"}
    plane = server.plane()
    assert await plane.route_state(names, origin=ORIGIN, credentials=SENT) is None


@pytest.mark.parametrize("status_code", [301, 401, 403, 404, 429, 500])
async def test_other_answers_are_none(status_code: int) -> None:
    with pytest.raises(ControlPlaneError) as caught:
        await Server({}, status_code).ask("/k/{_key}")
    assert caught.value.status_code == status_code
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("running", "RUNNING"),
        ("max", "MAX"),
        (" a-b ", "A_B"),
        ("é", None),
        (7, None),
        ([], None),
        (True, "TRUE"),
    ],
)
def test_states_are_written_in_capitals(value: object, name: str | None) -> None:
    assert state_name(value) == name


# -- what it means ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "phase"),
    [
        ("active", JobPhase.RUNNING),
        ("Gone-For-Good", JobPhase.STOPPED),
        ("placing", JobPhase.STARTING),
        ("JOB_STATE_RUNNING", JobPhase.STARTING),
    ],
)
async def test_the_settings_say_what_a_state_means(said: str, phase: JobPhase) -> None:
    server = Server({"state": said})
    plane = server.plane(running=("ACTIVE",), stopped=("GONE_FOR_GOOD",))
    shared = SharedControlPlane(GuardSettings(), plane)
    state = route_state("http://h.test/m/qwen-3/x", "/m/{model}")
    answer = await shared.ask(state, httpx.Request("GET", "http://h.test/m/qwen-3/x"))
    assert (answer.state, answer.phase) == (state_name(said), phase)


@pytest.mark.parametrize(
    ("said", "phase"),
    [
        ("Succeeded", JobPhase.STOPPED),
        ("canceled", JobPhase.STOPPED),
        ("CANCELLED", JobPhase.STOPPED),
        ("terminating", JobPhase.STOPPED),
        ("done", JobPhase.STOPPED),
        ("EXITED", JobPhase.STOPPED),
        ("Stopping", JobPhase.STOPPED),
        # These may be said of the question, or of a moment.
        ("success", JobPhase.STARTING),
        ("error", JobPhase.STARTING),
        ("unhealthy", JobPhase.STARTING),
        ("provisioning", JobPhase.STARTING),
    ],
)
def test_the_words_of_many_makers_for_a_job_that_ended(said: str, phase: JobPhase) -> None:
    settings = GuardSettings(
        routes="http://h.test", control_plane="http", control_plane_url="/state"
    )
    plane = control_plane_of(settings)
    assert isinstance(plane, HttpControlPlane)
    name = state_name(said)
    assert name is not None
    assert plane.phases.get(name, JobPhase.STARTING) is phase


async def test_a_guarded_request_asks_it() -> None:
    server = Server({"state": "running"})
    gateway = FakeGateway(lambda e: ok() if e.at >= 5.0 else plain_404())
    guard = GuardTransport(
        gateway.new_transport(),
        settings=GuardSettings(routes="/m/{model}"),
        control_plane=server.plane(),
        new_transport=gateway.new_transport,
    )
    request = httpx.Request("POST", "http://h.test/m/qwen-3/api/v1/x", content=b"{}")
    assert (await guard.handle_async_request(request)).status_code == 200
    assert 5.0 <= loop_time() < 7.0
    assert {str(asked.url) for asked in server.requests} == {"https://api.test/m/qwen-3"}


async def test_a_stopped_trainers_404_is_handed_back_at_once() -> None:
    gateway = FakeGateway(lambda _: plain_404())
    guard = GuardTransport(
        gateway.new_transport(),
        settings=GuardSettings(routes="/m/{model}"),
        control_plane=Server({"state": "failed"}).plane(stopped=("FAILED",)),
        new_transport=gateway.new_transport,
    )
    request = httpx.Request("POST", "http://h.test/m/qwen-3/api/v1/x", content=b"{}")
    assert (await guard.handle_async_request(request)).status_code == 404
    assert loop_time() == 0.0


async def test_a_route_that_lacks_a_name_of_it_is_judged_by_evidence() -> None:
    server = Server({"state": "running"})
    shared = SharedControlPlane(GuardSettings(), server.plane())
    assert shared.asks_about(route_state("http://h.test/m/a/x", "/m/{model}").route)
    assert not shared.asks_about(route_state("http://h.test/m/a/x", "/m/{other}").route)
    named = SharedControlPlane(GuardSettings(), server.plane("/x", state=("{model}",)))
    assert not named.asks_about(route_state("http://h.test/m/a/x", "/m/{other}").route)


# -- keys, copies and pickles ----------------------------------------------------------------------


async def test_a_pickle_leaves_the_key_out_and_asks_nothing() -> None:
    plane = HttpControlPlane("https://api.test/{model}", api_key=SecretStr("geheim"))
    pickled = pickle.dumps(plane)
    assert b"geheim" not in pickled
    assert "geheim" not in repr(plane)
    lost = pickle.loads(pickled)
    assert (lost.is_key_lost, lost.api_key) == (True, None)
    state = route_state("http://h.test/m/a/x", "/m/{model}")
    answer = await SharedControlPlane(GuardSettings(), lost).ask(
        state, httpx.Request("GET", "http://h.test/m/a/x")
    )
    assert "is not in this process" in answer.detail


def test_equal_ones_share_and_copies_are_the_same() -> None:
    one, other = HttpControlPlane("/x"), HttpControlPlane("/x")
    assert one == other
    assert hash(one) == hash(other)
    assert copy.copy(one) is one is copy.deepcopy(one)
    request = httpx.Request("GET", f"{ORIGIN}/x")
    keys = {SharedControlPlane(GuardSettings(), plane).key_for(request) for plane in (one, other)}
    assert len(keys) == 1


async def test_an_answer_without_a_state_is_no_usable_one() -> None:
    shared = SharedControlPlane(GuardSettings(), Server({}).plane())
    state = route_state("http://h.test/m/a/x", "/m/{model}")
    answer = await shared.ask(state, httpx.Request("GET", "http://h.test/m/a/x"))
    assert answer.failure == CONTROL_PLANE_ERROR
    assert isinstance(answer, JobAnswer)
