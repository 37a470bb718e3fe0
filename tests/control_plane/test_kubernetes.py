"""Kubernetes' API server: what its answers say, and the official client."""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
import os
import sys
import threading
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from testkit.fakes import KEY
from tests.control_plane.kubernetes_api import (
    AT,
    DELETED,
    FORBIDDEN,
    GOING,
    READY,
    UNAUTHORIZED,
    UNKNOWN,
    UNREADY,
    ApiServer,
    condition,
    deployment,
    job,
    kubeconfig,
    not_found,
    progress,
    serving,
    slices,
    stateful_set,
)
from tinker_guard import ControlPlaneError, GuardSettings
from tinker_guard.control_plane import kubernetes
from tinker_guard.control_plane.kubernetes import KubernetesControlPlane
from tinker_guard.control_plane.shared import SharedControlPlane
from tinker_guard.core.routes import RouteTable
from tinker_guard.policy.job import JobPhase
from tinker_guard.policy.route import patterns_of
from tinker_guard.transports import runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

NAMES = {"job": "train-1"}


async def ask(target: str, found: Mapping[str, Any] | None) -> str | None:
    read: list[tuple[str, str, str]] = []

    async def reader(kind: str, namespace: str, name: str) -> Mapping[str, Any] | None:
        read.append((kind, namespace, name))
        return found

    plane = KubernetesControlPlane(target, read=reader)
    state = await plane.route_state(NAMES, origin="https://h.test", credentials={"x-api-key": KEY})
    namespace, kind, _ = target.split("/")
    assert read == [(kind, namespace, "train-1")]
    return state


_READY = {"replicas": 1, "updatedReplicas": 1, "readyReplicas": 1, "availableReplicas": 1}
_AVAILABLE = [
    progress("Available", "MinimumReplicasAvailable"),
    progress("Progressing", "NewReplicaSetAvailable"),
]
_LATE: dict[str, Any] = {
    "replicas": 1,
    "updatedReplicas": 1,
    "unavailableReplicas": 1,
    "conditions": [
        progress("Available", "MinimumReplicasUnavailable", "False"),
        progress("Progressing", "ProgressDeadlineExceeded", "False"),
    ],
}

DEPLOYMENTS: list[tuple[Any, str | None]] = [
    (deployment(2, **_READY, unavailableReplicas=1), "JOB_STATE_RUNNING"),
    (deployment(1, **_READY, conditions=_AVAILABLE), "JOB_STATE_RUNNING"),
    (deployment(None, **_READY), "JOB_STATE_RUNNING"),
    (deployment(1, **_LATE), "JOB_STATE_PENDING"),
    (deployment(1, replicas=1, readyReplicas=0), "JOB_STATE_PENDING"),
    (deployment(1), "JOB_STATE_PENDING"),
    (deployment(1) | {"status": {}}, "JOB_STATE_PENDING"),
    (deployment(0, conditions=_AVAILABLE), "JOB_STATE_PAUSED"),
    (deployment(0, readyReplicas=1, replicas=1), "JOB_STATE_PAUSED"),
    (deployment(1, DELETED, **_READY), "JOB_STATE_DELETING"),
    (None, None),
]
STATEFUL_SETS: list[tuple[Any, str | None]] = [
    (stateful_set(1, **_READY, currentReplicas=1), "JOB_STATE_RUNNING"),
    (stateful_set(None, **_READY), "JOB_STATE_RUNNING"),
    (stateful_set(2, replicas=2, readyReplicas=1, availableReplicas=0), "JOB_STATE_RUNNING"),
    (stateful_set(1, replicas=1, currentReplicas=1, updatedReplicas=1), "JOB_STATE_PENDING"),
    (stateful_set(1), "JOB_STATE_PENDING"),
    (stateful_set(0), "JOB_STATE_PAUSED"),
    (stateful_set(1, DELETED, **_READY), "JOB_STATE_DELETING"),
    (None, None),
]


@pytest.mark.anyio
@pytest.mark.parametrize(("found", "state"), DEPLOYMENTS)
async def test_deployments(found: Any, state: str | None) -> None:
    assert await ask("training/deployments/{job}", found) == state


@pytest.mark.anyio
@pytest.mark.parametrize(("found", "state"), STATEFUL_SETS)
async def test_stateful_sets(found: Any, state: str | None) -> None:
    assert await ask("training/statefulsets/{job}", found) == state


_BEGUN: dict[str, Any] = {"startTime": AT, "terminating": 0, "uncountedTerminatedPods": {}}
JOBS: list[tuple[Any, str | None]] = [
    (job(active=1, ready=1, **_BEGUN), "JOB_STATE_RUNNING"),
    (job(active=1, ready=0, **_BEGUN), "JOB_STATE_PENDING"),
    # A server that does not track readiness writes no `ready`.
    (job(active=1), "JOB_STATE_PENDING"),
    (job(), "JOB_STATE_PENDING"),
    (
        job(
            **_BEGUN,
            conditions=[
                condition("SuccessCriteriaMet", "CompletionsReached"),
                condition("Complete", "CompletionsReached"),
            ],
            completionTime=AT,
            ready=0,
            succeeded=1,
        ),
        "JOB_STATE_COMPLETED",
    ),
    (
        job(**_BEGUN, conditions=[condition("SuccessCriteriaMet", "SuccessPolicy")], ready=1),
        "JOB_STATE_COMPLETED",
    ),
    (
        job(
            **_BEGUN,
            conditions=[
                condition("FailureTarget", "BackoffLimitExceeded"),
                condition("Failed", "BackoffLimitExceeded"),
            ],
            failed=7,
            ready=0,
        ),
        "JOB_STATE_FAILED",
    ),
    (job(conditions=[condition("Suspended", "JobSuspended")], ready=0), "JOB_STATE_PAUSED"),
    (
        job(**_BEGUN, conditions=[condition("Suspended", "JobResumed", "False")], ready=1),
        "JOB_STATE_RUNNING",
    ),
    (job(**_BEGUN, conditions=[condition("Other", "Other")], ready=1), "JOB_STATE_RUNNING"),
    (job(DELETED, active=1, ready=1, **_BEGUN), "JOB_STATE_DELETING"),
    (None, None),
]


@pytest.mark.anyio
@pytest.mark.parametrize(("found", "state"), JOBS)
async def test_jobs(found: Any, state: str | None) -> None:
    assert await ask("training/jobs/{job}", found) == state


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("found", "state"),
    [
        (slices([READY]), "JOB_STATE_RUNNING"),
        (slices([UNREADY], [GOING, READY]), "JOB_STATE_RUNNING"),
        # "nil should be interpreted as true", says the API.
        (slices([UNKNOWN]), "JOB_STATE_RUNNING"),
        (slices([UNREADY, GOING]), "JOB_STATE_PENDING"),
        (slices([], None), "JOB_STATE_PENDING"),
        (slices(), None),
    ],
)
async def test_endpoint_slices(found: Any, state: str | None) -> None:
    assert await ask("training/endpointslices/{job}", found) == state


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("kind", "found", "state"),
    [
        ("jobs", {"metadata": {}, "status": None}, "JOB_STATE_PENDING"),
        ("jobs", {"metadata": {}, "status": {"conditions": None, "ready": 1}}, "JOB_STATE_RUNNING"),
        ("deployments", {"metadata": {}, "spec": {}, "status": None}, "JOB_STATE_PENDING"),
        ("endpointslices", {"items": [{"endpoints": [{"conditions": None}]}]}, "JOB_STATE_RUNNING"),
    ],
)
async def test_null_is_what_is_not_there(kind: str, found: Any, state: str) -> None:
    assert await ask(f"training/{kind}/{{job}}", found) == state


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["deployments", "endpointslices", "jobs", "statefulsets"])
@pytest.mark.parametrize("found", [{}, {"metadata": None}, {"items": 1}, {"items": [1]}, []])
async def test_what_is_no_such_object_is_no_answer(kind: str, found: Any) -> None:
    with pytest.raises(ControlPlaneError, match=f"no {kind} that is known"):
        await ask(f"training/{kind}/{{job}}", found)


@pytest.mark.anyio
async def test_a_route_asks_it_if_it_has_captured_the_names() -> None:
    async def reader(kind: str, namespace: str, name: str) -> Any:
        return deployment(1, **_READY)

    plane = KubernetesControlPlane("training/deployments/{job}", read=reader)
    assert copy.copy(plane) is plane is copy.deepcopy(plane)
    shared = SharedControlPlane(GuardSettings(), plane)
    patterns = patterns_of(("/t/{job}", "/m/{model}"))
    of_job, of_model = (
        RouteTable().find(httpx.URL(f"http://h.test/{path}/x"), patterns) for path in ("t/a", "m/a")
    )
    assert of_job is not None
    assert of_model is not None
    assert shared.asks_about(of_job.route)
    assert not shared.asks_about(of_model.route)
    answer = await shared.ask(of_job, httpx.Request("GET", "http://h.test/t/a/x"))
    assert (answer.state, answer.phase, answer.status_code) == (
        "JOB_STATE_RUNNING",
        JobPhase.RUNNING,
        None,
    )


# -- the official client ---------------------------------------------------------------------------


@pytest.fixture
def without_a_client() -> Any:
    """Each test has an API client of its own."""
    clear = kubernetes.api_client.cache_clear
    clear()
    yield
    clear()


@pytest.mark.anyio
@pytest.mark.usefixtures("without_a_client")
async def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes.client", None)
    plane = KubernetesControlPlane("training/jobs/{job}")
    with pytest.raises(ControlPlaneError, match=r"pip install 'tinker-guard\[kubernetes\]'"):
        runtime.run_blocking(plane.route_state(NAMES, origin="", credentials={}))


class FakeApiError(Exception):
    def __init__(self, status: int, body: str) -> None:
        super().__init__()
        self.status = status
        self.body = body


class FakeConfigError(Exception):
    """There is no such configuration."""


class FakeLibrary:
    """The package, as far as it is used."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *, lacks: tuple[str, ...] = (), answer: Any = None
    ) -> None:
        self.loaded: list[str] = []
        self.read: list[tuple[str, dict[str, Any]]] = []
        self.configuration = SimpleNamespace()
        self._answer = answer
        client, config = ModuleType("kubernetes.client"), ModuleType("kubernetes.config")
        vars(client).update(
            Configuration=lambda: self.configuration,
            ApiClient=lambda configuration: SimpleNamespace(configuration=configuration),
            ApiException=FakeApiError,
            AppsV1Api=self._api("read_namespaced_deployment", "read_namespaced_stateful_set"),
            BatchV1Api=self._api("read_namespaced_job"),
            DiscoveryV1Api=self._api("list_namespaced_endpoint_slice"),
        )
        vars(config).update(
            ConfigException=FakeConfigError,
            load_incluster_config=self._loads("in-cluster", lacks),
            load_kube_config=self._loads("kubeconfig", lacks),
        )
        monkeypatch.setitem(sys.modules, "kubernetes.client", client)
        monkeypatch.setitem(sys.modules, "kubernetes.config", config)

    def _loads(self, name: str, lacks: tuple[str, ...]) -> Callable[..., None]:
        def load(*, client_configuration: object) -> None:
            assert client_configuration is self.configuration
            self.loaded.append(name)
            if name in lacks:
                raise FakeConfigError

        return load

    def _api(self, *methods: str) -> Callable[[Any], SimpleNamespace]:
        def method(name: str) -> Callable[..., Any]:
            def read(**how: Any) -> Any:
                self.read.append((name, how))
                if isinstance(self._answer, Exception):
                    raise self._answer
                return SimpleNamespace(status=200, data=json.dumps(self._answer).encode())

            return read

        def api(client: Any) -> SimpleNamespace:
            assert client.configuration is self.configuration
            return SimpleNamespace(**{name: method(name) for name in methods})

        return api

    def ask(self, target: str = "training/deployments/{job}") -> str | None:
        asking = KubernetesControlPlane(target).route_state(NAMES, origin="", credentials={})
        return runtime.run_blocking(asking)


@pytest.mark.usefixtures("without_a_client")
def test_the_client_is_given_no_limit_that_its_sockets_refuse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library = FakeLibrary(monkeypatch, answer=deployment(1, **_READY))
    plane = KubernetesControlPlane("training/deployments/{job}", 1e300)
    asyncio.run(plane.route_state(NAMES, origin="", credentials={}))
    assert [how["_request_timeout"] for _, how in library.read] == [86_400.0]


@pytest.mark.usefixtures("without_a_client")
@pytest.mark.parametrize(
    ("kind", "found", "method", "how"),
    [
        ("deployments", deployment(1, **_READY), "read_namespaced_deployment", {}),
        ("statefulsets", stateful_set(1, **_READY), "read_namespaced_stateful_set", {}),
        ("jobs", job(ready=1), "read_namespaced_job", {}),
        (
            "endpointslices",
            slices([READY]),
            "list_namespaced_endpoint_slice",
            {"label_selector": "kubernetes.io/service-name=train-1"},
        ),
    ],
)
def test_how_the_client_is_called(
    kind: str, found: Any, method: str, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    library = FakeLibrary(monkeypatch, answer=found)
    assert library.ask(f"training/{kind}/{{job}}") == "JOB_STATE_RUNNING"
    how = {**(how or {"name": "train-1"})}
    how |= {"namespace": "training", "_request_timeout": 5.0, "_preload_content": False}
    assert library.read == [(method, how)]
    assert library.loaded == ["in-cluster"]
    assert vars(library.configuration) == {"retries": False}
    # The same from a thread, where there is an event loop.
    plane = KubernetesControlPlane(f"training/{kind}/{{job}}")
    asyncio.run(plane.route_state(NAMES, origin="", credentials={}))
    assert library.read[1] == library.read[0]
    # Built once: its files and connections serve all questions.
    library.ask(f"training/{kind}/{{job}}")
    assert library.loaded == ["in-cluster"]


@pytest.mark.usefixtures("without_a_client")
def test_out_of_a_cluster_the_kubeconfig_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeLibrary(monkeypatch, lacks=("in-cluster",), answer=deployment(0))
    assert library.ask() == "JOB_STATE_PAUSED"
    assert library.loaded == ["in-cluster", "kubeconfig"]


@pytest.mark.usefixtures("without_a_client")
def test_with_neither_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeLibrary(monkeypatch, lacks=("in-cluster", "kubeconfig"))
    with pytest.raises(ControlPlaneError, match="neither a service account of Kubernetes nor"):
        library.ask()


def ask_by_client(
    server: ApiServer, target: str, place: Path, monkeypatch: pytest.MonkeyPatch, *, is_sync: bool
) -> str | None:
    plane = KubernetesControlPlane(target, timeout=10)
    with serving(server) as origin:
        path = kubeconfig(place, origin)
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))
        asking = plane.route_state(NAMES, origin="", credentials={"x-api-key": "geheim"})
        return runtime.run_blocking(asking) if is_sync else asyncio.run(asking)


@pytest.mark.sockets
@pytest.mark.usefixtures("without_a_client")
@pytest.mark.parametrize("is_sync", [False, True])
@pytest.mark.parametrize(
    ("kind", "found", "path", "query", "state"),
    [
        (
            "deployments",
            deployment(1, **_READY),
            "/apis/apps/v1/namespaces/training/deployments/train-1",
            "",
            "JOB_STATE_RUNNING",
        ),
        (
            "statefulsets",
            stateful_set(0),
            "/apis/apps/v1/namespaces/training/statefulsets/train-1",
            "",
            "JOB_STATE_PAUSED",
        ),
        (
            "jobs",
            job(active=1),
            "/apis/batch/v1/namespaces/training/jobs/train-1",
            "",
            "JOB_STATE_PENDING",
        ),
        (
            "endpointslices",
            slices(None, [READY]),
            "/apis/discovery.k8s.io/v1/namespaces/training/endpointslices",
            "?labelSelector=kubernetes.io/service-name%3Dtrain-1",
            "JOB_STATE_RUNNING",
        ),
    ],
)
def test_the_official_client_asks(
    kind: str,
    found: Any,
    path: str,
    query: str,
    state: str,
    is_sync: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("kubernetes")
    server = ApiServer(200, found)
    target = f"training/{kind}/{{job}}"
    assert ask_by_client(server, target, tmp_path, monkeypatch, is_sync=is_sync) == state
    ((asked, headers),) = server.requests
    assert asked.replace("%2F", "/") == path + query
    assert headers["authorization"] == "Bearer sa-token"
    assert "geheim" not in repr(server.requests)


REFUSALS = pytest.mark.parametrize(
    ("status_code", "document", "problem"),
    [
        (404, not_found("train-1"), None),
        (404, not_found("other"), "with the status 404"),
        (404, {"error": "404 page not found"}, "with the status 404"),
        (403, FORBIDDEN, "refused the account (403). It needs `get` on deployments"),
        (401, UNAUTHORIZED, "refused the account (401). It needs `get` on deployments"),
        (500, {}, "with the status 500"),
    ],
)


@REFUSALS
@pytest.mark.usefixtures("without_a_client")
def test_what_a_refusal_means(
    status_code: int, document: Any, problem: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = FakeLibrary(monkeypatch, answer=FakeApiError(status_code, json.dumps(document)))
    if problem is None:
        assert library.ask() is None
        return
    with pytest.raises(ControlPlaneError) as caught:
        library.ask()
    assert problem in str(caught.value)
    assert caught.value.status_code == status_code


@pytest.mark.usefixtures("without_a_client")
@pytest.mark.parametrize("body", ["", "<html>", "[]", None])
def test_a_404_of_another_server_says_nothing(body: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ControlPlaneError, match="with the status 404"):
        FakeLibrary(monkeypatch, answer=FakeApiError(404, body)).ask()


@pytest.mark.usefixtures("without_a_client")
def test_to_list_slices_is_another_right(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeLibrary(monkeypatch, answer=FakeApiError(403, "{}"))
    with pytest.raises(
        ControlPlaneError, match="It needs `list` on endpointslices in the namespace training"
    ):
        library.ask("training/endpointslices/{job}")


@pytest.mark.sockets
@REFUSALS
@pytest.mark.usefixtures("without_a_client")
def test_refusals_of_the_api_server(
    status_code: int,
    document: Any,
    problem: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("kubernetes")
    server = ApiServer(status_code, document)
    target = "training/deployments/{job}"
    if problem is None:
        assert ask_by_client(server, target, tmp_path, monkeypatch, is_sync=False) is None
        return
    with pytest.raises(ControlPlaneError) as caught:
        ask_by_client(server, target, tmp_path, monkeypatch, is_sync=False)
    assert problem in str(caught.value)
    assert caught.value.status_code == status_code


_MODELS: dict[str, list[Any]] = {
    "V1Deployment": [found for found, _ in DEPLOYMENTS if found],
    "V1StatefulSet": [found for found, _ in STATEFUL_SETS if found],
    "V1Job": [found for found, _ in JOBS if found],
    # Models of old releases refuse endpoints that are null, as they come.
    "V1EndpointSliceList": [slices([READY, UNREADY, GOING, UNKNOWN], []), slices()],
    "V1Status": [not_found("train-1"), FORBIDDEN, UNAUTHORIZED],
}


@pytest.mark.parametrize("name", _MODELS)
def test_the_official_client_knows_every_field_of_the_answers(name: str) -> None:
    client = pytest.importorskip("kubernetes.client")
    reader = client.ApiClient(client.Configuration())
    for answer in _MODELS[name]:
        text = json.dumps(answer)
        if "content_type" in inspect.signature(reader.deserialize).parameters:
            model = reader.deserialize(text, name, "application/json")
        else:
            model = reader.deserialize(SimpleNamespace(data=text), name)
        # What it does not know is missing when it writes the object again.
        assert fields(reader.sanitize_for_serialization(model)) == fields(answer)


def fields(found: Any) -> Any:
    """The names in an object, however deep; without what is null, which the client leaves out."""
    if isinstance(found, dict):
        return {name: fields(value) for name, value in found.items() if value is not None}
    return [fields(one) for one in found] if isinstance(found, list) else None


@pytest.mark.usefixtures("without_a_client")
def test_without_an_account_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("kubernetes")
    nowhere = str(tmp_path / "none")
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", nowhere)
    plane = KubernetesControlPlane("training/jobs/{job}")
    with pytest.raises(ControlPlaneError, match="neither a service account of Kubernetes nor"):
        runtime.run_blocking(plane.route_state(NAMES, origin="", credentials={}))


@pytest.mark.usefixtures("without_a_client")
def test_it_does_not_block_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []

    def refuse() -> Any:
        threads.append(threading.current_thread())
        raise ControlPlaneError("no")

    monkeypatch.setattr(kubernetes, "api_client", refuse)
    plane = KubernetesControlPlane("training/jobs/{job}")
    with pytest.raises(ControlPlaneError):
        asyncio.run(plane.route_state(NAMES, origin="", credentials={}))
    with pytest.raises(ControlPlaneError):
        runtime.run_blocking(plane.route_state(NAMES, origin="", credentials={}))
    assert [thread is threading.main_thread() for thread in threads] == [False, True]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.usefixtures("without_a_client")
def test_a_forked_child_has_connections_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """On its parent's, each would read answers to the other one's questions."""
    library = FakeLibrary(monkeypatch, answer=deployment(1, **_READY))
    library.ask()
    assert library.loaded == ["in-cluster"]
    child = os.fork()
    if child == 0:
        library.ask()
        os._exit(len(library.loaded))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    library.ask()
    assert library.loaded == ["in-cluster"]
