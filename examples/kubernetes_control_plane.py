"""A control plane of your own: asks Kubernetes whether a trainer's Job runs.

    install_guard(control_plane=KubernetesControlPlane("training"))

For a program in the cluster whose trainers are Jobs, with the Job's name in the trainer's URL
(Kubernetes 1.24 or later). Its service account needs `get` on `jobs` of the group `batch`. To
print a Job's state:

    python examples/kubernetes_control_plane.py NAMESPACE JOB
"""

from __future__ import annotations

import argparse
import asyncio
import ssl
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from tinker_guard import ControlPlaneError

if TYPE_CHECKING:
    from collections.abc import Mapping

ENDED = {
    "Complete": "JOB_STATE_COMPLETED",
    "SuccessCriteriaMet": "JOB_STATE_COMPLETED",
    "Failed": "JOB_STATE_FAILED",
    "FailureTarget": "JOB_STATE_FAILED",
    "Suspended": "JOB_STATE_PAUSED",
}
"""Conditions of a Job whose pods are gone or terminating, and the guard's states for them."""


@dataclass(frozen=True)
class KubernetesControlPlane:
    """Looks up the state of trainers that run as Kubernetes Jobs.

    Args:
        namespace: The namespace of the Jobs.
        api: The API server. By default the one that every pod has.
        service_account: Directory with `token` and `ca.crt`. By default that of every pod.
    """

    namespace: str
    api: str = "https://kubernetes.default.svc"
    service_account: Path = Path("/var/run/secrets/kubernetes.io/serviceaccount")

    async def job_state(
        self, account: str, job: str, *, origin: str, credentials: Mapping[str, str]
    ) -> str | None:
        """Return the state of a Job, or None if there is no such Job.

        The guard asks once for all waiting requests, and reuses the answer RUNNING for
        `verdict_ttl`. `credentials` belong to the gateway and are not sent.

        Raises:
            Exception: No usable answer. The guard asks again and probes within the budget. It logs
                the message of a `ControlPlaneError`, and only the type of other exceptions.
        """
        async with self._client() as client:
            # A job's name from the guard has no character that a path must escape.
            response = await client.get(f"/apis/batch/v1/namespaces/{self.namespace}/jobs/{job}")
        if response.status_code in (401, 403):
            raise ControlPlaneError(
                f"Kubernetes refused the service account ({response.status_code}). It needs "
                f"`get` on jobs.batch in the namespace {self.namespace}.",
                response.status_code,
            )
        if response.status_code == 404 and _is_about(job, response):
            return None
        response.raise_for_status()
        return state_of(response.json())

    def _client(self) -> httpx.AsyncClient:
        # Both files are read for each lookup, because they change while the program runs.
        token = (self.service_account / "token").read_text().strip()
        return httpx.AsyncClient(
            base_url=self.api,
            headers={"Authorization": f"Bearer {token}"},
            verify=ssl.create_default_context(cafile=self.service_account / "ca.crt"),
            timeout=None,  # noqa: S113  the guard's `control_plane_timeout` ends it
            trust_env=False,
        )


def state_of(job: Mapping[str, Any]) -> str:
    """Translate a Job into a state of the guard.

    `status.active` also counts pods that have not started. A 404 is a race only if a pod is ready.
    Before that, a new run waits, and a run in progress gets its 404.
    """
    if "deletionTimestamp" in job["metadata"]:
        return "JOB_STATE_DELETING"
    status = job["status"]
    for condition in status.get("conditions", ()):
        if condition["status"] == "True" and condition["type"] in ENDED:
            return ENDED[condition["type"]]
    return "JOB_STATE_RUNNING" if status.get("ready") else "JOB_STATE_PENDING"


def _is_about(job: str, not_found: httpx.Response) -> bool:
    """Whether Kubernetes itself reports that the Job is missing: a wrong URL is a 404 too."""
    try:
        status = not_found.json()
        return bool(status["reason"] == "NotFound" and status["details"]["name"] == job)
    except (ValueError, KeyError, TypeError):
        return False


def main() -> None:
    """Print the state of one Job."""
    parser = argparse.ArgumentParser(description="Print the state that the guard would see.")
    parser.add_argument("namespace")
    parser.add_argument("job")
    parser.add_argument("--api", default=KubernetesControlPlane.api)
    parser.add_argument(
        "--service-account", type=Path, default=KubernetesControlPlane.service_account
    )
    given = parser.parse_args()
    plane = KubernetesControlPlane(given.namespace, given.api, given.service_account)
    state = asyncio.run(plane.job_state("", given.job, origin="", credentials={}))
    sys.stdout.write(f"{state or 'no such Job'}\n")


if __name__ == "__main__":
    main()
