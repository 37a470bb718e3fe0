"""The examples, over real sockets; a small stand-in answers as a Kubernetes API server does."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import certifi
import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from examples.kubernetes_control_plane import KubernetesControlPlane, state_of
from examples.own_client import guarded_client
from testkit.cli import python
from tests import ROOT
from tinker_guard import ControlPlane, GuardSettings, GuardTransport
from tinker_guard.gateway import Fault, LocalGateway, Race
from tinker_guard.policy.job import JobPhase, phase_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.requests import Request

EXAMPLES = ROOT / "examples"
TOKEN = "service-account-token"
READY = {"active": 1, "ready": 1}
COMPLETE = {"succeeded": 1, "conditions": [{"type": "Complete", "status": "True"}]}

RACE = Fault(races=(Race("healthz", 1, 0.5),))
LOST = Fault(races=(Race("healthz", 1, 60.0),))


def program(name: str, *arguments: str, **environment: str) -> str:
    ended = python(EXAMPLES / name, *arguments, **environment)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


# -- own_client.py -------------------------------------------------------------------------------


def test_a_client_of_ones_own_survives_a_race() -> None:
    async def run() -> httpx.Response:
        async with guarded_client(gateway.base_url, gateway.api_key) as client:
            return await client.get("/api/v1/healthz")

    with LocalGateway(RACE) as gateway:
        assert asyncio.run(run()).status_code == 200
    statuses = [e.status for e in gateway.requests if e.path == "/api/v1/healthz"]
    assert statuses == [404, 200]
    assert gateway.questions == 1


def test_own_client_as_a_program() -> None:
    with LocalGateway(Fault(route_known_after=(0.5,))) as gateway:
        printed = program("own_client.py", gateway.base_url, TINKER_API_KEY=gateway.api_key)
    assert "tinker-guard/bigram" in printed
    assert gateway.questions >= 1


# -- kubernetes_control_plane.py -----------------------------------------------------------------


@dataclass
class Kubernetes:
    """What an API server knows of one Job, and the questions that it was asked."""

    status: dict[str, Any] | None = field(default_factory=lambda: dict(READY))
    refusal: Response | None = None
    asked: list[dict[str, str]] = field(default_factory=list)
    api: str = ""

    async def answer(self, request: Request) -> Response:
        self.asked.append(dict(request.headers))
        if self.refusal is not None:
            return self.refusal
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return _refused(401, "Unauthorized")
        name = request.path_params["job"]
        if self.status is None or (request.path_params["namespace"], name) != ("train", "job-1"):
            return _refused(404, "NotFound", {"name": name, "group": "batch", "kind": "jobs"})
        return JSONResponse(
            {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "metadata": {"name": name, "namespace": "train"},
                "status": self.status,
            }
        )

    @contextmanager
    def serve(self, **tls: Any) -> Iterator[Kubernetes]:
        path = "/apis/batch/v1/namespaces/{namespace}/jobs/{job}"
        app = Starlette(routes=[Route(path, self.answer)])
        listener = socket.create_server(("127.0.0.1", 0))
        scheme = "https" if tls else "http"
        self.api = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
        config = uvicorn.Config(app, lifespan="off", ws="none", log_config=None, **tls)
        server = uvicorn.Server(config)
        # The port listens already, so whoever asks early waits a little.
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.should_exit = True
            thread.join()


def _refused(code: int, reason: str, details: dict[str, str] | None = None) -> JSONResponse:
    status = {"kind": "Status", "status": "Failure", "reason": reason, "code": code}
    return JSONResponse({**status, "details": details or {}}, code)


@pytest.fixture
def account(tmp_path: Path) -> Path:
    """A service account's directory."""
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    (tmp_path / "ca.crt").write_bytes(Path(certifi.where()).read_bytes())
    return tmp_path


def get(gateway: LocalGateway, plane: ControlPlane, **settings: Any) -> httpx.Response:
    """Send one request through a guard that asks this control plane."""

    async def run() -> httpx.Response:
        # Plain http: loading the certificate authorities would take longer than all the rest.
        make = partial(httpx.AsyncHTTPTransport, verify=False)
        guard = GuardTransport(
            make(),
            settings=GuardSettings(warmup_successes=0, **settings),
            control_plane=plane,
            new_transport=make,
        )
        async with httpx.AsyncClient(
            transport=guard, base_url=gateway.base_url, headers={"X-Api-Key": gateway.api_key}
        ) as client:
            return await client.get("/api/v1/healthz")

    return asyncio.run(run())


def test_a_race_recovers_because_kubernetes_says_so(account: Path) -> None:
    with Kubernetes().serve() as kubernetes, LocalGateway(RACE) as gateway:
        response = get(gateway, KubernetesControlPlane("train", kubernetes.api, account))
    assert response.status_code == 200
    assert len(kubernetes.asked) == 1
    assert gateway.questions == 0
    assert gateway.api_key not in str(kubernetes.asked)


@pytest.mark.parametrize(
    ("status", "reason", "questions"),
    [(COMPLETE, "job_not_running", 1), (None, "job_missing", 2)],
)
def test_a_job_that_is_over_gives_its_404(
    status: dict[str, Any] | None,
    reason: str,
    questions: int,
    account: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Kubernetes(status).serve() as kubernetes, LocalGateway(LOST) as gateway:
        response = get(gateway, KubernetesControlPlane("train", kubernetes.api, account))
    assert response.status_code == 404
    assert (len(gateway.requests), len(kubernetes.asked)) == (1, questions)
    assert f"genuine_not_found, {reason}" in caplog.text


@pytest.mark.parametrize(
    ("refusal", "line"),
    [
        (_refused(403, "Forbidden"), "It needs `get` on jobs.batch in the namespace train"),
        (_refused(401, "Unauthorized"), "Kubernetes refused the service account (401)"),
        (_refused(500, "InternalError"), "KubernetesControlPlane raised HTTPStatusError"),
        # Not from the API server, or not about this Job.
        (PlainTextResponse("404 page not found", 404), "raised HTTPStatusError"),
        (_refused(404, "NotFound", {"name": "train"}), "raised HTTPStatusError"),
        (JSONResponse({"kind": "Job"}), "raised KeyError"),
    ],
)
def test_what_is_no_answer_leaves_it_unverified(
    refusal: Response, line: str, account: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Kubernetes(refusal=refusal).serve() as kubernetes, LocalGateway(LOST) as gateway:
        plane = KubernetesControlPlane("train", kubernetes.api, account)
        response = get(gateway, plane, retry_timeout=0.3)
    assert response.status_code == 404
    assert [e.path for e in gateway.requests].count("/api/v1/healthz") == 1
    assert len(kubernetes.asked) >= 1
    assert "(unverified, control_plane_error)" in caplog.text
    assert line in caplog.text
    assert TOKEN not in caplog.text


def test_an_api_server_that_is_not_there(account: Path, caplog: pytest.LogCaptureFixture) -> None:
    with closing(socket.socket()) as unused, LocalGateway(LOST) as gateway:
        unused.bind(("127.0.0.1", 0))
        api = f"http://127.0.0.1:{unused.getsockname()[1]}"
        response = get(gateway, KubernetesControlPlane("train", api, account), retry_timeout=0.3)
    assert response.status_code == 404
    assert [e.path for e in gateway.requests].count("/api/v1/healthz") == 1
    assert "(unverified, control_plane_error)" in caplog.text
    assert "KubernetesControlPlane raised ConnectError" in caplog.text


def test_an_api_server_that_does_not_answer(
    account: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # The port listens, and nobody accepts.
    with socket.create_server(("127.0.0.1", 0)) as silent, LocalGateway(LOST) as gateway:
        api = f"http://127.0.0.1:{silent.getsockname()[1]}"
        plane = KubernetesControlPlane("train", api, account)
        response = get(gateway, plane, control_plane_timeout=0.2, retry_timeout=0.3)
    assert response.status_code == 404
    assert "(unverified, control_plane_timeout)" in caplog.text


def test_a_program_outside_of_a_cluster(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with LocalGateway(LOST) as gateway:
        plane = KubernetesControlPlane("train", service_account=tmp_path)
        response = get(gateway, plane, retry_timeout=0.3)
    assert response.status_code == 404
    assert "KubernetesControlPlane raised FileNotFoundError" in caplog.text


@pytest.mark.parametrize("is_its_own", [True, False])
def test_only_the_cluster_s_own_authority_is_trusted(
    is_its_own: bool, account: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trustme = pytest.importorskip("trustme", reason="is in the group `test`")
    authorities = trustme.CA(), trustme.CA()
    authorities[not is_its_own].cert_pem.write_to_path(str(account / "ca.crt"))
    certificate = authorities[0].issue_cert("127.0.0.1")
    with ExitStack() as stack:
        pem = stack.enter_context(certificate.private_key_and_cert_chain_pem.tempfile())
        kubernetes = stack.enter_context(Kubernetes().serve(ssl_certfile=pem))
        gateway = stack.enter_context(LocalGateway(RACE if is_its_own else LOST))
        plane = KubernetesControlPlane("train", kubernetes.api, account)
        response = get(gateway, plane, retry_timeout=5.0 if is_its_own else 0.3)
    assert response.status_code == (200 if is_its_own else 404)
    assert len(kubernetes.asked) == is_its_own
    assert ("raised ConnectError" in caplog.text) is not is_its_own


@pytest.mark.parametrize(
    ("status", "phase"),
    [
        (READY, JobPhase.RUNNING),
        ({}, JobPhase.STARTING),
        ({"active": 1}, JobPhase.STARTING),
        ({"active": 1, "ready": 0}, JobPhase.STARTING),
        (COMPLETE, JobPhase.STOPPED),
        ({**READY, "conditions": [{"type": "FailureTarget", "status": "True"}]}, JobPhase.STOPPED),
        (
            {**READY, "conditions": [{"type": "SuccessCriteriaMet", "status": "True"}]},
            JobPhase.STOPPED,
        ),
        ({"failed": 1, "conditions": [{"type": "Failed", "status": "True"}]}, JobPhase.STOPPED),
        ({"conditions": [{"type": "Suspended", "status": "True"}]}, JobPhase.STOPPED),
        ({**READY, "conditions": [{"type": "Suspended", "status": "False"}]}, JobPhase.RUNNING),
    ],
)
def test_what_a_job_s_status_means(status: dict[str, Any], phase: JobPhase) -> None:
    assert phase_of(state_of({"metadata": {}, "status": status})) == phase


def test_a_job_that_is_being_deleted() -> None:
    job = {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": READY}
    assert phase_of(state_of(job)) is JobPhase.STOPPED


def test_kubernetes_control_plane_as_a_program(account: Path) -> None:
    with Kubernetes().serve() as kubernetes:
        where = ("--api", kubernetes.api, "--service-account", str(account))
        printed = [
            program("kubernetes_control_plane.py", "train", job, *where) for job in ("job-1", "x")
        ]
    assert printed == ["JOB_STATE_RUNNING\n", "no such Job\n"]
