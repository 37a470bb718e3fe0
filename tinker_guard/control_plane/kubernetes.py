"""Kubernetes: whether the pods behind a trainer are ready, from the API server."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Self

from tinker_guard.control_plane.protocol import ControlPlaneError
from tinker_guard.policy.template import fill, names_in
from tinker_guard.transports import runtime

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping


@dataclass(frozen=True)
class KubernetesControlPlane:
    """Asks the API server about a Deployment, a StatefulSet, a Job, or a Service's EndpointSlices.

    It calls a trainer running only when a pod of it is ready. Equal ones share their answers.

    Args:
        target: `NAMESPACE/KIND/NAME`, KIND being deployments, endpointslices, jobs or statefulsets;
            `{name}` stands for what the route's pattern has captured.
        timeout: Seconds for one question.
        read: Reads an object by kind, namespace and name; None if there is none. By default the
            official client does, with the service account of the pod or the user's kubeconfig.
    """

    target: str
    timeout: float = 5.0
    read: Callable[[str, str, str], Awaitable[Mapping[str, Any] | None]] | None = field(
        default=None, repr=False
    )

    def asks_about(self, names: Mapping[str, str]) -> bool:
        """Whether a route has captured all that the question needs."""
        return names.keys() >= {*names_in(self.target)}

    async def route_state(
        self, names: Mapping[str, str], *, origin: str, credentials: Mapping[str, str]
    ) -> str | None:
        """Say what state a trainer is in; see `RouteControlPlane.route_state`.

        The request's credentials belong to the gateway, and are not sent.

        Raises:
            ControlPlaneError: The answer was none that can be used.
        """
        namespace, kind, name = fill(self.target, names).split("/")
        read = self.read or _OfficialClient(self.timeout)
        found = await read(kind, namespace, name)
        if found is None:
            return None
        try:
            return _STATE_OF[kind](found)
        except (AttributeError, KeyError, TypeError):
            raise ControlPlaneError(f"Kubernetes answered with no {kind} that is known.") from None

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _: object) -> Self:
        return self


# -- what an object says ---------------------------------------------------------------------------

_ENDED: Final = {
    "Complete": "JOB_STATE_COMPLETED",
    "SuccessCriteriaMet": "JOB_STATE_COMPLETED",
    "Failed": "JOB_STATE_FAILED",
    "FailureTarget": "JOB_STATE_FAILED",
    "Suspended": "JOB_STATE_PAUSED",
}
"""Conditions of a Job whose pods are gone or going."""


def _state_of_job(job: Mapping[str, Any]) -> str:
    if "deletionTimestamp" in job["metadata"]:
        return "JOB_STATE_DELETING"
    status = job.get("status") or {}
    for condition in status.get("conditions") or ():
        if condition["status"] == "True" and condition["type"] in _ENDED:
            return _ENDED[condition["type"]]
    # `active` counts pods that have not started, too.
    return "JOB_STATE_RUNNING" if status.get("ready") else "JOB_STATE_PENDING"


def _state_of_replicas(workload: Mapping[str, Any]) -> str:
    """The state of a Deployment or a StatefulSet."""
    if "deletionTimestamp" in workload["metadata"]:
        return "JOB_STATE_DELETING"
    # One that is not given is 1.
    if workload["spec"].get("replicas") == 0:
        return "JOB_STATE_PAUSED"
    is_ready = (workload.get("status") or {}).get("readyReplicas")
    return "JOB_STATE_RUNNING" if is_ready else "JOB_STATE_PENDING"


def _state_of_slices(slices: Mapping[str, Any]) -> str | None:
    """The state of a Service: without EndpointSlices there is no such Service."""
    if not slices["items"]:
        return None
    conditions = [
        endpoint.get("conditions") or {}
        for item in slices["items"]
        for endpoint in item.get("endpoints") or ()
    ]
    # One whose readiness is not known counts as ready, by the API's own documentation.
    is_ready = any(known.get("ready") is not False for known in conditions)
    return "JOB_STATE_RUNNING" if is_ready else "JOB_STATE_PENDING"


_STATE_OF: Final[dict[str, Callable[[Mapping[str, Any]], str | None]]] = {
    "deployments": _state_of_replicas,
    "endpointslices": _state_of_slices,
    "jobs": _state_of_job,
    "statefulsets": _state_of_replicas,
}


# -- the official client ---------------------------------------------------------------------------

_METHODS: Final = {
    "deployments": ("AppsV1Api", "read_namespaced_deployment"),
    "endpointslices": ("DiscoveryV1Api", "list_namespaced_endpoint_slice"),
    "jobs": ("BatchV1Api", "read_namespaced_job"),
    "statefulsets": ("AppsV1Api", "read_namespaced_stateful_set"),
}


class _OfficialClient:
    """Reads objects with the package `kubernetes`, which blocks: in a thread of its own."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout

    async def __call__(self, kind: str, namespace: str, name: str) -> Mapping[str, Any] | None:
        if runtime.is_blocking():
            return self._read(kind, namespace, name)
        return await asyncio.to_thread(self._read, kind, namespace, name)

    def _read(self, kind: str, namespace: str, name: str) -> Mapping[str, Any] | None:
        client = api_client()
        library = importlib.import_module("kubernetes.client")
        group, method = _METHODS[kind]
        read: Callable[..., Any] = getattr(getattr(library, group)(client), method)
        selector = {"label_selector": f"kubernetes.io/service-name={name}"}
        how = selector if kind == "endpointslices" else {"name": name}
        try:
            # As it comes: models of old releases refuse what the API gives, such as EndpointSlices
            # whose endpoints are null.
            answer = read(
                namespace=namespace,
                _request_timeout=min(self._timeout, runtime.LONGEST_WAIT),
                _preload_content=False,
                **how,
            )
            status_code, body = answer.status, answer.data
        except library.ApiException as error:
            status_code, body = error.status, error.body
        if status_code == 404 and _is_about(name, body):
            return None
        if status_code != 200:
            raise ControlPlaneError(_problem(status_code, kind, namespace), status_code)
        document: Mapping[str, Any] = json.loads(body)
        return document


@lru_cache(maxsize=1)
def api_client() -> Any:
    """A client with the service account of the pod, or else with the user's kubeconfig.

    Raises:
        ControlPlaneError: There is neither, or no package `kubernetes`.
    """
    try:
        library = importlib.import_module("kubernetes.client")
        config = importlib.import_module("kubernetes.config")
    except ImportError:
        raise ControlPlaneError(
            "asking Kubernetes needs its client: pip install 'tinker-guard[kubernetes]'."
        ) from None
    configuration = library.Configuration()
    try:
        config.load_incluster_config(client_configuration=configuration)
    except config.ConfigException:
        try:
            config.load_kube_config(client_configuration=configuration)
        except config.ConfigException:
            raise ControlPlaneError(
                "this process has neither a service account of Kubernetes nor a kubeconfig."
            ) from None
    configuration.retries = False
    return library.ApiClient(configuration)


if hasattr(os, "register_at_fork"):  # pragma: no branch - no other system forks
    # Two processes on one connection would read each other's answers.
    os.register_at_fork(after_in_child=api_client.cache_clear)


def _is_about(name: str, body: object) -> bool:
    """Whether Kubernetes itself says that there is no such object: a wrong URL is a 404 too."""
    try:
        status = json.loads(body)  # type: ignore[arg-type]
        return bool(status["reason"] == "NotFound" and status["details"]["name"] == name)
    except (ValueError, KeyError, TypeError):
        return False


def _problem(status_code: int, kind: str, namespace: str) -> str:
    if status_code in (401, 403):
        verb = "list" if kind == "endpointslices" else "get"
        return (
            f"Kubernetes refused the account ({status_code}). It needs `{verb}` on {kind} in the "
            f"namespace {namespace}."
        )
    return f"Kubernetes answered with the status {status_code}."
