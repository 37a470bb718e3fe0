"""The control plane that settings name, and a class of the user's own."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from pydantic import SecretStr

from testkit.fakes import BASE, KEY, FakeControlPlane, FakeGateway, loop_time, plain_404
from tinker_guard import (
    ControlPlane,
    ControlPlaneError,
    GuardSettings,
    GuardTransport,
    InvalidSettingsError,
    RouteControlPlane,
)
from tinker_guard.control_plane.chosen import control_plane_of, place_asked
from tinker_guard.control_plane.fireworks import FireworksControlPlane
from tinker_guard.control_plane.http import HttpControlPlane
from tinker_guard.control_plane.kubernetes import KubernetesControlPlane
from tinker_guard.control_plane.ray_serve import ray_serve
from tinker_guard.control_plane.shared import SharedControlPlane
from tinker_guard.core.routes import RouteState, RouteTable
from tinker_guard.policy.job import JobPhase
from tinker_guard.policy.judgement import CONTROL_PLANE_ERROR
from tinker_guard.policy.route import patterns_of

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = pytest.mark.anyio

API = "https://api.test"


@pytest.mark.parametrize(
    ("settings", "plane"),
    [
        ({}, FireworksControlPlane()),
        (
            {
                "control_plane": "fireworks",
                "control_plane_url": API,
                "control_plane_api_key": "k",
                "control_plane_timeout": 3,
            },
            FireworksControlPlane(API, api_key=SecretStr("k"), timeout=3),
        ),
        ({"control_plane": "none"}, None),
        (
            {
                "control_plane": "http",
                "control_plane_url": f"{API}/{{job}}?x=1",
                "control_plane_state": "jobs.{job}.state",
                "control_plane_running": "up,in-use",
                "control_plane_stopped": ["Gone"],
                "control_plane_api_key": "k",
            },
            HttpControlPlane(
                f"{API}/{{job}}?x=1",
                ("jobs", "{job}", "state"),
                ("UP", "IN_USE"),
                ("GONE",),
                api_key=SecretStr("k"),
            ),
        ),
        (
            {
                "control_plane": "ray-serve",
                "control_plane_url": "http://head:8265/",
                "control_plane_object": "model-{job}",
                "control_plane_timeout": 3,
            },
            ray_serve("http://head:8265", "model-{job}", timeout=3),
        ),
        (
            {
                "control_plane": "kubernetes",
                "control_plane_object": "ns/jobs/{job}",
                "control_plane_timeout": 3,
            },
            KubernetesControlPlane("ns/jobs/{job}", 3),
        ),
    ],
)
def test_settings_name_one(settings: dict[str, Any], plane: object) -> None:
    assert control_plane_of(GuardSettings(**settings)) == plane


def test_the_states_of_fireworks_are_known_without_being_set() -> None:
    plane = control_plane_of(GuardSettings(control_plane="http", control_plane_url=API))
    assert isinstance(plane, HttpControlPlane)
    for state, phase in {
        "RUNNING": JobPhase.RUNNING,
        "JOB_STATE_RUNNING": JobPhase.RUNNING,
        "FAILED": JobPhase.STOPPED,
        "JOB_STATE_PAUSED": JobPhase.STOPPED,
        "TERMINATED": JobPhase.STOPPED,
    }.items():
        assert plane.phases[state] is phase
    assert "PENDING" not in plane.phases


def test_a_lost_key_is_lost_to_each_of_them() -> None:
    for kind in ("http", "ray-serve"):
        settings = GuardSettings(
            control_plane=kind,
            control_plane_url=API,
            control_plane_api_key="k",
            control_plane_object="x",
        )
        plane = control_plane_of(pickle.loads(pickle.dumps(settings)))
        assert isinstance(plane, HttpControlPlane)
        assert plane.is_key_lost


# -- which settings fit each other -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"control_plane": "slurm"}, "control_plane: must be fireworks, http, kubernetes, none, r"),
        ({"control_plane": "a b:C"}, "control_plane: must be fireworks"),
        ({"control_plane": "http"}, "control_plane http needs control_plane_url"),
        (
            {"control_plane": "ray-serve", "control_plane_object": "x"},
            "control_plane ray-serve needs control_plane_url",
        ),
        (
            {"control_plane": "ray-serve", "control_plane_url": API},
            "control_plane ray-serve needs control_plane_object, the name of the application",
        ),
        ({"control_plane": "kubernetes"}, "needs control_plane_object, such as training/deployme"),
        (
            {"control_plane": "kubernetes", "control_plane_object": "pods/x"},
            "needs control_plane_object, such as training/deployments/{job}",
        ),
        (
            {"control_plane": "kubernetes", "control_plane_object": "ns/pods/x"},
            "needs control_plane_object, such as training/deployments/{job}",
        ),
        (
            {"control_plane": "kubernetes", "control_plane_object": "ns/jobs/x/y"},
            "needs control_plane_object, such as training/deployments/{job}",
        ),
        # Nobody but `http` is asked by a template.
        ({"control_plane_url": f"{API}/{{job}}"}, "control_plane_url: may hold placeholders only"),
        (
            {"control_plane_url": "/status"},
            "control_plane_url: must begin with http:// or https://",
        ),
        ({"control_plane_url": f"{API}?x"}, "control_plane_url: must hold neither a user name"),
        (
            {"control_plane": "http", "control_plane_url": "https://{job}.test/"},
            "control_plane_url: may hold placeholders in path and query alone",
        ),
        (
            {"control_plane": "http", "control_plane_url": "https://api.test:{job}/"},
            "control_plane_url: may hold placeholders in path and query alone",
        ),
        (
            {"control_plane": "http", "control_plane_url": "{job}://api.test/"},
            "control_plane_url: may hold placeholders in path and query alone",
        ),
        (
            {"control_plane": "http", "control_plane_url": "{job}.test/x"},
            "control_plane_url: must begin with http:// or https://",
        ),
        (
            {"control_plane": "http", "control_plane_url": "https://me:geheim@api.test/{job}"},
            "control_plane_url: must hold neither a user name",
        ),
        (
            {"control_plane": "http", "control_plane_url": f"{API}/x#y"},
            "control_plane_url: must hold no fragment",
        ),
        (
            {"control_plane": "http", "control_plane_url": f"{API}/{{job"},
            "control_plane_url: holds a brace that belongs to no placeholder",
        ),
        (
            {"control_plane": "http", "control_plane_url": f"{API}/{{model}}"},
            "may hold only names that a pattern of routes captures",
        ),
        (
            {
                "control_plane": "http",
                "control_plane_url": API,
                "control_plane_state": "m.{model}.x",
            },
            "may hold only names that a pattern of routes captures",
        ),
        (
            {
                "control_plane": "ray-serve",
                "control_plane_url": API,
                "control_plane_object": "{model}",
            },
            "may hold only names that a pattern of routes captures",
        ),
        ({"control_plane_object": "{"}, "control_plane_object: holds a brace"),
        ({"control_plane_state": ""}, "control_plane_state: string should have at least 1"),
        ({"control_plane_running": "9"}, "control_plane_running: must be names of states"),
        ({"control_plane_stopped": ["é"]}, "control_plane_stopped: must be names of states"),
        (
            {"control_plane": "http", "control_plane_url": "/x", "control_plane_api_key": "k"},
            "control_plane_api_key needs control_plane_url, the only place it is sent to, with a h",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidSettingsError) as caught:
        GuardSettings(**settings)
    assert problem in str(caught.value)
    assert "geheim" not in str(caught.value)


def test_names_that_a_pattern_captures_may_be_asked_for() -> None:
    settings = GuardSettings(
        routes="/m/{model},/k/{_key}",
        control_plane="http",
        control_plane_url="/k/{_key}/{model}?a={account}",
    )
    assert settings.control_plane_url == "/k/{_key}/{model}?a={account}"


@pytest.mark.parametrize(
    ("settings", "place"),
    [
        ({}, "http://head:8000"),
        ({"control_plane_url": f"{API}/secret"}, API),
        ({"control_plane": "fireworks", "control_plane_url": f"{API}/secret"}, API),
        (
            {
                "control_plane": "ray-serve",
                "control_plane_url": "http://head:8265",
                "control_plane_object": "x",
            },
            "http://head:8265",
        ),
        ({"control_plane": "http", "control_plane_url": "/secret"}, "http://head:8000"),
        ({"control_plane": "http", "control_plane_url": f"{API}:1/{{job}}"}, f"{API}:1"),
        (
            {"control_plane": "kubernetes", "control_plane_object": "n/jobs/x"},
            "the API server of Kubernetes",
        ),
        ({"control_plane": "my.planes:Own"}, "my.planes:Own"),
        ({"control_plane": "none"}, "none"),
    ],
)
def test_where_it_is_asked_may_be_shown(settings: dict[str, Any], place: str) -> None:
    assert place_asked(GuardSettings(**settings), "http://head:8000") == place


# -- about which routes it is asked ----------------------------------------------------------------


def state_of(url: str) -> RouteState:
    state = RouteTable().find(
        httpx.URL(url), patterns_of(("http://head:8000", "/t/{account}/{job}"))
    )
    assert state is not None
    return state


@pytest.mark.parametrize(
    ("settings", "plane", "asked"),
    [
        ({}, None, {"trainer job"}),
        ({"control_plane": "fireworks"}, None, {"trainer job", "account and job"}),
        ({"control_plane": "none"}, None, set()),
        ({"control_plane": "a:B"}, None, {"trainer job", "account and job", "server"}),
        (
            {"control_plane": "none"},
            FakeControlPlane(),
            {"trainer job", "account and job", "server"},
        ),
        ({}, FireworksControlPlane(), {"trainer job", "account and job"}),
    ],
)
def test_about_which_routes_it_is_asked(
    settings: dict[str, Any], plane: ControlPlane | None, asked: set[str]
) -> None:
    shared = SharedControlPlane(GuardSettings(**settings), plane)
    routes = {
        "trainer job": f"{BASE}/x",
        "account and job": "http://any.test/t/acc/job-1/x",
        "server": "http://head:8000/x",
    }
    found = {name for name, url in routes.items() if shared.asks_about(state_of(url).route)}
    assert found == asked


async def test_none_leaves_a_trainer_job_to_evidence() -> None:
    gateway = FakeGateway(lambda _: plain_404())
    guard = GuardTransport(
        gateway.new_transport(),
        settings=GuardSettings(control_plane="none"),
        new_transport=gateway.new_transport,
    )
    response = await guard.handle_async_request(httpx.Request("GET", f"{BASE}/api/v1/x"))
    assert response.status_code == 404
    assert loop_time() == pytest.approx(10.0)


# -- a class of the user's own ---------------------------------------------------------------------


class Own:
    """Asked by names, with states of its own."""

    made: int = 0
    phases: Mapping[str, str] = {"UP": "running", "DOWN": "stopped"}
    state: str | None = "UP"

    def __init__(self) -> None:
        type(self).made += 1
        self.asked: list[tuple[dict[str, str], str, dict[str, str]]] = []

    async def route_state(
        self, names: Mapping[str, str], *, origin: str, credentials: Mapping[str, str]
    ) -> str | None:
        self.asked.append((dict(names), origin, dict(credentials)))
        return self.state


class Nothing:
    """Has no method that is asked."""


class NeedsMore:
    """Takes an argument."""

    def __init__(self, argument: int) -> None: ...


REQUEST = httpx.Request("POST", "http://any.test/t/acc/job-1/x", headers={"X-Api-Key": KEY})


async def test_a_class_of_the_users_own_is_asked_by_names() -> None:
    own = Own()
    assert isinstance(own, RouteControlPlane)
    answer = await SharedControlPlane(GuardSettings(), own).ask(state_of(str(REQUEST.url)), REQUEST)
    assert (answer.state, answer.phase) == ("UP", JobPhase.RUNNING)
    assert own.asked == [
        ({"account": "acc", "job": "job-1"}, "http://any.test", {"x-api-key": KEY})
    ]


@pytest.mark.parametrize(
    ("state", "phase"),
    [("DOWN", JobPhase.STOPPED), ("ELSE", JobPhase.STARTING), (None, JobPhase.STOPPED)],
)
async def test_its_phases_say_what_its_states_mean(state: str | None, phase: JobPhase) -> None:
    own = Own()
    own.state = state
    answer = await SharedControlPlane(GuardSettings(), own).ask(state_of(str(REQUEST.url)), REQUEST)
    assert (answer.state, answer.phase, answer.failure) == (state, phase, None)


async def test_a_phase_that_is_none_is_no_usable_answer() -> None:
    own = Own()
    own.phases = {"UP": "perhaps"}
    answer = await SharedControlPlane(GuardSettings(), own).ask(state_of(str(REQUEST.url)), REQUEST)
    assert (answer.failure, answer.detail) == (CONTROL_PLANE_ERROR, "Own raised ValueError.")


async def test_one_with_the_older_method_is_asked_with_what_there_is() -> None:
    plane = FakeControlPlane()
    shared = SharedControlPlane(GuardSettings(), plane)
    await shared.ask(state_of("http://head:8000/x"), REQUEST)
    assert plane.asked == [(0.0, "", "", "http://head:8000")]


async def test_a_class_is_named_by_a_setting_and_made_once() -> None:
    settings = GuardSettings(control_plane=f"{__name__}:Own")
    before = Own.made
    for _ in range(2):
        shared = SharedControlPlane(settings)
        answer = await shared.ask(state_of("http://head:8000/x"), REQUEST)
        assert answer.phase is JobPhase.RUNNING
    assert Own.made == before + 1
    # Each transport has a control plane of its own, and they share what they find out.
    assert len({SharedControlPlane(settings).key_for(REQUEST) for _ in range(2)}) == 1


@pytest.mark.parametrize(
    ("name", "detail"),
    [
        ("no.such.module:Own", "names a class that cannot be had (ModuleNotFoundError)"),
        (f"{__name__}:NoSuch", "names a class that cannot be had (AttributeError)"),
        (f"{__name__}:NeedsMore", "names a class that cannot be had (TypeError)"),
        (f"{__name__}:Nothing", "has neither a method route_state nor job_state"),
    ],
)
async def test_a_class_that_cannot_be_had_is_no_usable_answer(name: str, detail: str) -> None:
    shared = SharedControlPlane(GuardSettings(control_plane=name))
    answer = await shared.ask(state_of("http://head:8000/x"), REQUEST)
    assert answer.failure == CONTROL_PLANE_ERROR
    assert detail in answer.detail


async def test_what_stands_for_a_class_is_not_asked_itself() -> None:
    plane = control_plane_of(GuardSettings(control_plane=f"{__name__}:Own"))
    assert isinstance(plane, RouteControlPlane)
    with pytest.raises(NotImplementedError):
        await plane.route_state({}, origin="", credentials={})


async def test_an_error_of_such_a_class_is_its_own() -> None:
    class Refuses(Own):
        async def route_state(self, *_: Any, **__: Any) -> str | None:
            raise ControlPlaneError("ask later")

    answer = await SharedControlPlane(GuardSettings(), Refuses()).ask(
        state_of("http://head:8000/x"), REQUEST
    )
    assert answer.detail == "ask later"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            FakeControlPlane,
            "control_plane: must be an object; FakeControlPlane is a class. Call it.",
        ),
        (
            5,
            "control_plane: must be an object with a method job_state or route_state, and int has "
            "neither.",
        ),
    ],
)
def test_what_is_no_control_plane_is_refused(given: Any, says: str) -> None:
    with pytest.raises(InvalidSettingsError) as told:
        SharedControlPlane(GuardSettings(), given)
    assert str(told.value) == says
