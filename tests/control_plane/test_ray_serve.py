"""Ray Serve's dashboard: the status of an application, as Ray 2.60.0 answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from tinker_guard import ControlPlaneError
from tinker_guard.control_plane.http import HttpControlPlane
from tinker_guard.control_plane.ray_serve import ray_serve
from tinker_guard.policy.job import JobPhase

pytestmark = pytest.mark.anyio


def details(**statuses: str) -> dict[str, Any]:
    """An answer of `/api/serve/applications/`, shortened."""
    return {
        "controller_info": {"node_id": "a1", "actor_name": "SERVE_CONTROLLER_ACTOR"},
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": 8000},
        "proxies": {"a1": {"status": "HEALTHY"}},
        "deploy_mode": "MULTI_APP",
        "applications": {
            name: {
                "name": name,
                "route_prefix": f"/api/v1/model/{name}",
                "docs_path": None,
                "status": status,
                "message": "",
                "last_deployed_time_s": 1790000000.0,
                "deployments": {},
            }
            for name, status in statuses.items()
        },
    }


async def ask(answer: Any, application: str = "model-{model}") -> tuple[str | None, list[str]]:
    asked: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, json=answer)

    plane = ray_serve("http://head:8265", application)
    object.__setattr__(plane, "transport", httpx.MockTransport(handle))
    state = await plane.route_state(
        {"model": "qwen"}, origin="http://head:8000", credentials={"x-api-key": "geheim"}
    )
    assert "geheim" not in repr([request.headers.raw for request in asked])
    return state, [str(request.url) for request in asked]


async def test_the_dashboard_is_asked_for_all_applications() -> None:
    state, asked = await ask(details(**{"model-qwen": "RUNNING", "gateway": "DEPLOYING"}))
    assert state == "RUNNING"
    assert asked == ["http://head:8265/api/serve/applications/"]


async def test_an_application_that_is_not_there_does_not_exist() -> None:
    assert (await ask(details(gateway="RUNNING")))[0] is None
    assert (await ask(details()))[0] is None
    assert (await ask(details(), "fixed"))[0] is None


@pytest.mark.parametrize("controller", [{}, None])
async def test_a_dashboard_that_does_not_find_the_controller_knows_no_application(
    controller: Any,
) -> None:
    """Its 200 is the same before the first application is deployed. Proxies go on meanwhile."""
    answer = {"controller_info": controller, "proxies": {}, "applications": {}}
    with pytest.raises(ControlPlaneError):
        await ask(answer)


async def test_an_older_dashboard_names_no_controller() -> None:
    assert (await ask({"applications": {}}))[0] is None


@pytest.mark.parametrize("answer", [{}, {"applications": None}, [], {"applications": {"x": {}}}])
async def test_what_is_no_dashboard_is_no_answer(answer: Any) -> None:
    with pytest.raises(ControlPlaneError):
        await ask(answer, "x")


def test_what_is_asked_for_with_what() -> None:
    named = HttpControlPlane(
        "http://head:8265/api/serve/applications/",
        ("applications", "x", "status"),
        ("RUNNING", "UNHEALTHY", "DEPLOYING"),
        ("DELETING", "DEPLOY_FAILED"),
        listed_at=1,
        known_by="controller_info",
    )
    assert ray_serve("http://head:8265", "x") == named
    key = SecretStr("k")
    assert ray_serve("http://head:8265", "x", api_key=key) == replace(named, api_key=key)


@pytest.mark.parametrize(
    ("status", "phase"),
    [
        ("NOT_STARTED", JobPhase.STARTING),
        ("DEPLOYING", JobPhase.RUNNING),
        ("DEPLOY_FAILED", JobPhase.STOPPED),
        ("RUNNING", JobPhase.RUNNING),
        ("UNHEALTHY", JobPhase.RUNNING),
        ("DELETING", JobPhase.STOPPED),
    ],
)
def test_what_each_status_means(status: str, phase: JobPhase) -> None:
    plane = ray_serve("http://head:8265", "x", api_key=SecretStr("k"), timeout=3, is_key_lost=True)
    assert plane.phases.get(status, JobPhase.STARTING) is phase
    assert (plane.timeout, plane.is_key_lost) == (3, True)
