"""Asks the control plane whether a job runs, once for all requests that want to know."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import zlib
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

import httpx
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_fixed

from tinker_guard import telemetry
from tinker_guard.closing import Afterwards, discard
from tinker_guard.verdict import (
    CONTROL_PLANE_ERROR,
    CONTROL_PLANE_TIMEOUT,
    Answer,
    Source,
    decompressed,
    judge,
)

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Hashable, Mapping

    from pydantic import SecretStr

    from tinker_guard.line import Line
    from tinker_guard.route import RouteState
    from tinker_guard.settings import GuardSettings

_CREDENTIAL_HEADERS: Final = ("x-api-key", "authorization")
_STATE: Final = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_ANSWER_LIMIT: Final = 1024 * 1024
"""Bytes of an answer that are read; a job's description takes a few thousand."""


@runtime_checkable
class ControlPlane(Protocol):
    """Knows the state of a trainer job. A user's own one is a class with this one method."""

    async def job_state(
        self, account: str, job: str, *, origin: str, credentials: Mapping[str, str]
    ) -> str | None:
        """Say what state a job is in.

        Args:
            account: The account id in the trainer's URL.
            job: The job id in the trainer's URL.
            origin: Scheme, host and port of the gateway that answered 404.
            credentials: The `x-api-key` and `authorization` headers of the guarded request,
                whichever it carries. For the route's own origin or a configured control plane
                only; never log them.

        Returns:
            `JOB_STATE_RUNNING`; or a state in which the job is stopped: that prefix and FAILED,
            CANCELLED, CANCELLING, COMPLETED, EARLY_STOPPED, DELETING, DELETED, ARCHIVED or PAUSED.
            Any other name in capitals is a job on its way, which a new run waits for. None if
            there is no such job.

        Raises:
            ControlPlaneError: There is no usable answer; its message is logged.
            Exception: Any other one, of which only the type is logged. Either way the 404 is
                handed back as unverified.
        """
        ...  # pragma: no cover


class ControlPlaneError(Exception):
    """The control plane gave no usable answer; the message says what to do about it.

    Args:
        message: For the person at the terminal. It is logged, so it must hold no secret.
        status_code: What was answered over HTTP, if anything was.
    """

    def __init__(self, message: str, status_code: int | None = None) -> None:
        super().__init__(message)
        self.status_code = status_code


@dataclass(frozen=True)
class FireworksControlPlane:
    """The Fireworks control plane: `GET {api}/v1/accounts/{account}/rlorTrainerJobs/{job}`.

    Equal ones share their answers: every transport has one of its own.

    Args:
        url: Base URL of the control plane; None asks the route's own origin.
        api_key: Sent as `X-Api-Key`; None sends the credentials of the guarded request.
        timeout: Seconds for each phase of the exchange.
        transport: What carries the question; None obeys the environment (`HTTPS_PROXY`,
            `SSL_CERT_FILE` and their like).
    """

    url: str | None = None
    api_key: SecretStr | None = None
    timeout: float = 5.0
    transport: httpx.AsyncBaseTransport | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What a pickle holds: all but the key."""
        return self.__dict__ | {"api_key": None}

    def url_for(self, account: str, job: str, *, origin: str) -> httpx.URL:
        """What is fetched to learn a job's state."""
        return httpx.URL(f"{self.url or origin}/v1/accounts/{account}/rlorTrainerJobs/{job}")

    async def job_state(
        self, account: str, job: str, *, origin: str, credentials: Mapping[str, str]
    ) -> str | None:
        """Say what state a job is in; see `ControlPlane.job_state`.

        Raises:
            ControlPlaneError: The answer was none that can be used.
        """
        url = self.url_for(account, job, origin=origin)
        if self.api_key is not None:
            credentials = {"x-api-key": self.api_key.get_secret_value()}
        retrying = AsyncRetrying(
            retry=retry_if_exception_type((httpx.ConnectError, httpx.RemoteProtocolError)),
            stop=stop_after_attempt(2),
            wait=wait_fixed(0.05),
            reraise=True,
        )
        try:
            fetched: tuple[int, bytes] = await retrying(self._fetch, url, credentials)
        except httpx.TimeoutException:
            raise TimeoutError from None
        except httpx.HTTPError as error:
            raise ControlPlaneError(
                f"{_place(url)} could not be reached ({type(error).__name__}). Is it the right "
                "host? Set TINKER_GUARD_CONTROL_PLANE_URL if the control plane lives elsewhere."
            ) from None
        return _state_in(url, *fetched)

    async def _fetch(self, url: httpx.URL, credentials: Mapping[str, str]) -> tuple[int, bytes]:
        # A client of its own for each question: nothing is left open between races, and a
        # question never rides on a connection that is stuck to a stale replica.
        is_https = url.scheme == "https"
        async with httpx.AsyncClient(
            # Plain http needs no certificate authorities, which take long to load.
            verify=ssl_context() if is_https and self.transport is None else False,
            timeout=self.timeout,
            # A redirect would take the key to a place that nobody configured.
            follow_redirects=False,
            transport=self.transport,
        ) as client:
            # No coding but those that can be undone up to a limit.
            headers = {**credentials, "accept-encoding": "gzip, deflate"}
            request = client.build_request("GET", url, headers=headers)
            with telemetry.question_exchange(request) as exchange:
                response = await client.send(exchange.request, stream=True)
                exchange.response = response
            async with Afterwards(lambda: discard(response)):
                assert isinstance(response.stream, httpx.AsyncByteStream)
                body = bytearray()
                async for chunk in response.stream:
                    body += chunk
                    if len(body) > _ANSWER_LIMIT:
                        break
                coding = response.headers.get("content-encoding", "")
                try:
                    return response.status_code, decompressed(coding, bytes(body), _ANSWER_LIMIT)
                except (ValueError, zlib.error):
                    return response.status_code, b""


class SharedControlPlane:
    """One control plane, asked at most once per `verdict_ttl`, route, event loop and key.

    Requests that want to know while a question is under way wait for its answer. A request that
    is cancelled while it asks takes nothing with it: the next one asks.
    """

    def __init__(self, settings: GuardSettings, control_plane: ControlPlane | None = None) -> None:
        self._control_plane: ControlPlane = control_plane or FireworksControlPlane(
            settings.control_plane_url,
            api_key=settings.control_plane_api_key,
            timeout=settings.control_plane_timeout,
        )
        self._settings = settings
        self._timeout = settings.control_plane_timeout
        self._ttl = settings.verdict_ttl

    async def ask(
        self, state: RouteState, headers: httpx.Headers, line: Line | None = None
    ) -> Answer:
        """Ask about a route's job; never raises but for cancellation.

        Args:
            state: The route.
            headers: The guarded request's headers, for the credentials among them.
            line: What the guarded request goes over. So does a question to the route's own
                origin, if it may: that request's proxy may be the only way there.
        """
        credentials = {name: headers[name] for name in _CREDENTIAL_HEADERS if name in headers}
        plane = self._control_plane
        if not isinstance(plane, FireworksControlPlane):
            asker: Hashable = id(plane), _digest(credentials)
        elif plane.api_key is None:
            asker = plane, _digest(credentials)
        else:
            asker = plane
        question = state.here.question(asker)
        return await question.run(lambda: self._question(state, credentials, line), ttl=self._ttl)

    async def _question(
        self, state: RouteState, credentials: Mapping[str, str], line: Line | None
    ) -> Answer:
        with telemetry.question_span(state, self._settings) as report:
            answer = await self._answer(state, credentials, line)
            judgement = judge(Source.UNKNOWN, answer)
            assert judgement is not None
            report.answered(answer, judgement)
        return answer

    @asynccontextmanager
    async def _plane_on(self, line: Line | None) -> AsyncIterator[ControlPlane]:
        plane = self._control_plane
        if line is None or not isinstance(plane, FireworksControlPlane) or plane.url is not None:
            yield plane
            return
        async with line.question_transport() as transport:
            yield replace(plane, transport=plane.transport or transport)

    async def _answer(
        self, state: RouteState, credentials: Mapping[str, str], line: Line | None
    ) -> Answer:
        route = state.route
        try:
            async with self._plane_on(line) as plane, asyncio.timeout(self._timeout):
                job_state = await plane.job_state(
                    route.account, route.job, origin=route.origin, credentials=credentials
                )
            if job_state is not None and not _is_state(job_state):
                raise ControlPlaneError(
                    f"{type(self._control_plane).__name__}.job_state() must return None or a "
                    "state's name such as JOB_STATE_RUNNING."
                )
        except (TimeoutError, httpx.TimeoutException):
            return Answer(
                failure=CONTROL_PLANE_TIMEOUT,
                detail=f"the control plane did not answer within {self._timeout:g} s. "
                "TINKER_GUARD_CONTROL_PLANE_TIMEOUT allows it longer.",
            )
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Something that the control plane itself waited for was cancelled, not the request.
            return Answer(
                failure=CONTROL_PLANE_ERROR,
                detail=f"{type(self._control_plane).__name__} cancelled itself.",
            )
        except ControlPlaneError as error:
            return Answer(
                failure=CONTROL_PLANE_ERROR, detail=str(error), status_code=error.status_code
            )
        except Exception as error:
            # Only the type: the text of somebody else's error may hold a header or a URL.
            return Answer(
                failure=CONTROL_PLANE_ERROR,
                detail=f"{type(self._control_plane).__name__} raised {type(error).__name__}.",
            )
        found = 404 if job_state is None else 200
        is_http = isinstance(self._control_plane, FireworksControlPlane)
        return Answer(state=job_state, status_code=found if is_http else None)


def _is_state(value: object) -> bool:
    """Whether a value can be a state's name. Others must not reach a log line or a span."""
    return isinstance(value, str) and _STATE.fullmatch(value) is not None


def _state_in(url: httpx.URL, status_code: int, body: bytes) -> str | None:
    """Read the state out of an answer.

    Raises:
        ControlPlaneError: The answer holds none.
    """
    place = _place(url)
    if status_code == 404:
        return None
    if status_code in (401, 403):
        problem = (
            f"{place} refused the key ({status_code}). Set TINKER_GUARD_CONTROL_PLANE_API_KEY to "
            "one that may read the job."
        )
    elif 300 <= status_code < 400:
        problem = (
            f"{place} answered with a redirect ({status_code}), which is not followed because the "
            "key would go with it. Set TINKER_GUARD_CONTROL_PLANE_URL to the place it points to."
        )
    elif status_code == 429:
        problem = f"{place} is limiting the rate of questions (429)."
    elif status_code >= 500:
        problem = f"{place} is out of order ({status_code})."
    elif status_code != 200:
        problem = f"{place} answered with the status {status_code}."
    else:
        try:
            document: Any = json.loads(body)
        except (ValueError, RecursionError):
            document = None
        if isinstance(document, dict) and _is_state(state := document.get("state")):
            return str(state)
        problem = (
            f"{place} answered, but with no job's state in it. Set TINKER_GUARD_CONTROL_PLANE_URL "
            "if the control plane lives elsewhere."
        )
    raise ControlPlaneError(problem, status_code)


def _digest(credentials: Mapping[str, str]) -> bytes:
    # Kept as long as the answer, so not the key itself.
    return hashlib.sha256(repr(sorted(credentials.items())).encode()).digest()


def _place(url: httpx.URL) -> str:
    return f"the control plane at {url.scheme}://{url.netloc.decode('ascii')}"


@lru_cache(maxsize=1)
def ssl_context() -> ssl.SSLContext:
    """What the guard's own clients trust: what the SDK's trust."""
    # Loading the certificate authorities takes tens of milliseconds; once is enough.
    context = httpx.create_ssl_context()
    # The SDK's own transport trusts the system's authorities too, a company's among them.
    context.load_default_certs()
    return context
