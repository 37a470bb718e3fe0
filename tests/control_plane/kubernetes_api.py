"""What Kubernetes' API server answers about a trainer, whole, as its API says; and one that does.

No cluster was asked. Which fields there are: the models of the package `kubernetes` 37.0.2, which
are made from the OpenAPI document of release 1.37; a test has the official client read each answer,
and finds each field again. Which of them stand in a given state: the tags of the Go types that the
server writes them from (kubernetes/api at 10b39a39b, `apps/v1`, `batch/v1`, `discovery/v1` and
kubernetes/apimachinery, `meta/v1`), where `omitempty` leaves out a zero, and the controllers'
reasons. Values that are nobody's, such as names and times, are made up.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final

from testkit.http_server import JSON, Handler, on_a_thread

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME: Final = "train-1"
NAMESPACE: Final = "training"
AT: Final = "2026-11-26T12:00:00Z"

_LABELS: Final = {"app": NAME}
_TEMPLATE: Final[dict[str, Any]] = {
    "metadata": {"labels": _LABELS},
    "spec": {
        "containers": [
            {
                "name": "trainer",
                "image": "registry.test/trainer:1",
                "ports": [{"containerPort": 8000, "protocol": "TCP"}],
                "readinessProbe": {
                    "httpGet": {"path": "/api/v1/healthz", "port": 8000, "scheme": "HTTP"},
                    "timeoutSeconds": 1,
                    "periodSeconds": 10,
                    "successThreshold": 1,
                    "failureThreshold": 3,
                },
                "resources": {},
                "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File",
                "imagePullPolicy": "IfNotPresent",
            }
        ],
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "dnsPolicy": "ClusterFirst",
        "securityContext": {},
        "schedulerName": "default-scheduler",
    },
}


def metadata(name: str = NAME, **more: Any) -> dict[str, Any]:
    """`meta/v1` ObjectMeta, as of any stored object."""
    return {
        "name": name,
        "namespace": NAMESPACE,
        "uid": "0b1c8f4e-5a0e-4c5e-9a57-0f2f4d1f8f11",
        "resourceVersion": "7",
        "generation": 1,
        "creationTimestamp": AT,
        "labels": _LABELS,
        **more,
    }


# Set by the server when an object with finalizers or a grace period is deleted.
DELETED: Final = metadata(
    deletionTimestamp=AT, deletionGracePeriodSeconds=0, finalizers=["foregroundDeletion"]
)


def deployment(
    replicas: int | None = 1, meta: dict[str, Any] | None = None, /, **status: Any
) -> dict[str, Any]:
    """`apps/v1` Deployment. Every number of its status is left out where it is zero."""
    spec = {
        "selector": {"matchLabels": _LABELS},
        "template": _TEMPLATE,
        "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"},
        },
        "revisionHistoryLimit": 10,
        "progressDeadlineSeconds": 600,
    }
    # Only what no API server has read lacks it: the default, 1, is stored.
    spec |= {} if replicas is None else {"replicas": replicas}
    return {
        "kind": "Deployment",
        "apiVersion": "apps/v1",
        "metadata": meta or metadata(),
        "spec": spec,
        "status": {"observedGeneration": 1} | status,
    }


def stateful_set(
    replicas: int | None = 1, meta: dict[str, Any] | None = None, /, **status: Any
) -> dict[str, Any]:
    """`apps/v1` StatefulSet. `replicas` and `availableReplicas` of its status are always there."""
    spec = {
        "selector": {"matchLabels": _LABELS},
        "template": _TEMPLATE,
        "serviceName": NAME,
        "podManagementPolicy": "OrderedReady",
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
        "revisionHistoryLimit": 10,
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"},
    }
    spec |= {} if replicas is None else {"replicas": replicas}
    revision = f"{NAME}-6d4b75cb6d"
    return {
        "kind": "StatefulSet",
        "apiVersion": "apps/v1",
        "metadata": meta or metadata(),
        "spec": spec,
        "status": {
            "observedGeneration": 1,
            "replicas": 0,
            "currentRevision": revision,
            "updateRevision": revision,
            "collisionCount": 0,
            "availableReplicas": 0,
        }
        | status,
    }


def job(meta: dict[str, Any] | None = None, /, **status: Any) -> dict[str, Any]:
    """`batch/v1` Job. `terminating` and `ready` are pointers: the controller writes their zero."""
    controller = {"batch.kubernetes.io/controller-uid": metadata()["uid"]}
    return {
        "kind": "Job",
        "apiVersion": "batch/v1",
        "metadata": meta or metadata(),
        "spec": {
            "parallelism": 1,
            "completions": 1,
            "backoffLimit": 6,
            "selector": {"matchLabels": controller},
            "template": {
                "metadata": {"labels": controller},
                "spec": {**_TEMPLATE["spec"], "restartPolicy": "Never"},
            },
            "completionMode": "NonIndexed",
            "suspend": False,
            "podReplacementPolicy": "TerminatingOrFailed",
        },
        "status": status,
    }


def condition(kind: str, reason: str, status: str = "True") -> dict[str, str]:
    """A condition of a Job; reasons are those of `batch/v1`."""
    return {
        "type": kind,
        "status": status,
        "lastProbeTime": AT,
        "lastTransitionTime": AT,
        "reason": reason,
        "message": "Said to people.",
    }


def progress(kind: str, reason: str, status: str = "True") -> dict[str, str]:
    """A condition of a Deployment; reasons are those of its controller."""
    return {
        "type": kind,
        "status": status,
        "lastUpdateTime": AT,
        "lastTransitionTime": AT,
        "reason": reason,
        "message": "Said to people.",
    }


def slices(*endpoints: list[Any] | None) -> dict[str, Any]:
    """`discovery/v1` EndpointSliceList: one for each list of endpoints, null where there are none.

    `endpoints` and `ports` have no `omitempty`, so that Go's nil is null. Items of a list have no
    kind of their own.
    """
    labels = {
        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
        "kubernetes.io/service-name": NAME,
    }
    return {
        "kind": "EndpointSliceList",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": {"resourceVersion": "7"},
        "items": [
            {
                "metadata": metadata(
                    f"{NAME}-{number}", generateName=f"{NAME}-", labels=_LABELS | labels
                ),
                "addressType": "IPv4",
                "endpoints": some,
                "ports": [{"name": "", "protocol": "TCP", "port": 8000}] if some else None,
            }
            for number, some in enumerate(endpoints)
        ],
    }


def endpoint(**conditions: bool) -> dict[str, Any]:
    """An Endpoint, a pod's. Its conditions are pointers, and left out where they are not known."""
    return {
        "addresses": ["10.1.2.3"],
        "conditions": conditions,
        "targetRef": {"kind": "Pod", "namespace": NAMESPACE, "name": f"{NAME}-0", "uid": "1"},
        "nodeName": "node-1",
        "zone": "zone-a",
    }


READY: Final = endpoint(ready=True, serving=True, terminating=False)
UNREADY: Final = endpoint(ready=False, serving=False, terminating=False)
GOING: Final = endpoint(ready=False, serving=True, terminating=True)
UNKNOWN: Final = endpoint()


def failure(code: int, reason: str, name: str = NAME, message: str = "") -> dict[str, Any]:
    """`meta/v1` Status of a refusal. `metadata` has no field that is not left out."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message or f'deployments.apps "{name}" not found',
        "reason": reason,
        "details": {"name": name, "group": "apps", "kind": "deployments"},
        "code": code,
    }


def not_found(name: str) -> dict[str, Any]:
    """There is no such Deployment."""
    return failure(404, "NotFound", name)


FORBIDDEN: Final = failure(
    403,
    "Forbidden",
    message=f'deployments.apps "{NAME}" is forbidden: User "system:serviceaccount:{NAMESPACE}:'
    f'default" cannot get resource "deployments" in API group "apps" in the namespace '
    f'"{NAMESPACE}"',
)
UNAUTHORIZED: Final = {
    "kind": "Status",
    "apiVersion": "v1",
    "metadata": {},
    "status": "Failure",
    "message": "Unauthorized",
    "reason": "Unauthorized",
    "code": 401,
}


# -- a server ------------------------------------------------------------------------------------


class ApiServer(ThreadingHTTPServer):
    """Answers as the API server does."""

    def __init__(self, status_code: int, document: Any) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status_code = status_code
        self.document = document
        self.requests: list[tuple[str, dict[str, str]]] = []


class _Handler(Handler):
    server: ApiServer

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append((self.path, headers))
        self.reply(self.server.status_code, json.dumps(self.server.document).encode(), JSON)


@contextmanager
def serving(server: ApiServer) -> Iterator[str]:
    with on_a_thread(server):
        yield f"http://127.0.0.1:{server.server_port}"


def kubeconfig(place: Path, origin: str) -> Path:
    """A kubeconfig of one cluster, with a token."""
    path = place / "kubeconfig"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": origin}}],
        "users": [{"name": "me", "user": {"token": "sa-token"}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
    }
    path.write_text(json.dumps(config))
    return path
