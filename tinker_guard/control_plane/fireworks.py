"""Fireworks: `GET /v1/accounts/{account}/rlorTrainerJobs/{job}`, and the state in its answer.

Of a deployment, `GET /v1/accounts/{account}/deployments/{deployment}`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import httpx

from tinker_guard.control_plane.protocol import ControlPlaneError, is_state_name
from tinker_guard.control_plane.question import (
    MISSING,
    OF_QUESTIONS,
    HasKey,
    document_at,
    is_same_origin,
    place_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import SecretStr

    from tinker_guard.policy.reach import Reach


@dataclass(frozen=True)
class FireworksControlPlane(HasKey):
    """The Fireworks control plane: `GET {api}/v1/accounts/{account}/rlorTrainerJobs/{job}`.

    Equal ones share their answers: every transport has one of its own.

    Args:
        url: Base URL of the control plane; None asks the route's own origin.
        api_key: Sent as `X-Api-Key`; None sends the credentials of the guarded request.
        timeout: Seconds for each phase of the exchange.
        transport: What carries the lookup; None obeys the environment (`HTTPS_PROXY`,
            `SSL_CERT_FILE` and their like).
        is_key_lost: Whether it was given a key that a pickle has left out. It asks nobody then.
        reach: What makes a request to the route's own origin arrive there, such as `Host`.
    """

    url: str | None = None
    api_key: SecretStr | None = None
    timeout: float = 5.0
    transport: httpx.AsyncBaseTransport | None = None
    is_key_lost: bool = field(default=False, repr=False)
    reach: Reach | None = field(default=None, repr=False, compare=False)

    def is_at(self, origin: str) -> bool:
        """Whether the question goes to the route's own origin."""
        return self.url is None or is_same_origin(self.url, origin)

    def url_for(self, account: str, job: str, *, origin: str) -> httpx.URL:
        """What is fetched to learn a job's state."""
        return httpx.URL((self.url or origin) + _TEMPLATE.format(account=account, job=job))

    async def job_state(
        self, account: str, job: str, *, origin: str, credentials: Mapping[str, str]
    ) -> str | None:
        """Say what state a job is in; see `ControlPlane.job_state`.

        Raises:
            ControlPlaneError: The answer was none that can be used.
        """
        url = self.url_for(account, job, origin=origin)
        return await self._state_at(url, _TEMPLATE, credentials, (account, job))

    async def deployment_state(
        self, account: str, deployment: str, *, origin: str, credentials: Mapping[str, str]
    ) -> str | None:
        """Say what state a deployment is in, as `job_state` does of a job.

        Raises:
            ControlPlaneError: The answer was none that can be used.
        """
        path = _DEPLOYMENT.format(account=account, deployment=deployment)
        url = httpx.URL((self.url or origin) + path)
        return await self._state_at(url, _DEPLOYMENT, credentials, (account, deployment))

    async def _state_at(
        self,
        url: httpx.URL,
        template: str,
        credentials: Mapping[str, str],
        ids: tuple[str, str],
    ) -> str | None:
        extensions: Mapping[str, Any] = {} if self.reach is None else self.reach.extensions
        document = await document_at(
            url,
            self.headers_with(credentials, lambda key: [(b"x-api-key", key)]),
            extensions=extensions,
            timeout=self.timeout,
            transport=self.transport,
            template=template,
            ids=ids,
        )
        return state_in(url, document)


_TEMPLATE: Final = "/v1/accounts/{account}/rlorTrainerJobs/{job}"
_DEPLOYMENT: Final = "/v1/accounts/{account}/deployments/{deployment}"


def state_in(url: httpx.URL, document: object) -> str | None:
    """Read the state out of a document.

    Raises:
        ControlPlaneError: It holds none.
    """
    if document is MISSING:
        return None
    state = document.get("state") if isinstance(document, dict) else None
    if is_state_name(state) and state not in OF_QUESTIONS:
        return str(state)
    raise ControlPlaneError(
        f"{place_of(url)} answered, but with no job's state in it. Set "
        "TINKER_GUARD_CONTROL_PLANE_URL if the control plane lives elsewhere.",
        200,
    )
