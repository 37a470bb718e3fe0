"""One question over HTTP: a GET that never follows a redirect, and what its answer holds."""

from __future__ import annotations

import time
from contextlib import nullcontext
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Self

import httpx

from tinker_guard import telemetry
from tinker_guard.control_plane.protocol import ControlPlaneError
from tinker_guard.policy.caches import is_cached_copy
from tinker_guard.policy.job_missing import is_control_planes_404
from tinker_guard.policy.pacing import retry_after
from tinker_guard.policy.url import origin
from tinker_guard.transports.blocking import environment_transport
from tinker_guard.transports.body_prefix import read_prefix
from tinker_guard.transports.cleanup import discard, unless_abandoned
from tinker_guard.transports.runtime import LONGEST_WAIT

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Collection, Mapping

    from pydantic import SecretStr

    from tinker_guard.policy.answer import Answer
    from tinker_guard.policy.reach import Reach


Headers = list[tuple[bytes, bytes]]

CREDENTIAL_HEADERS: Final = ("x-api-key", "authorization")
"""What a control plane is given of a guarded request, unless it has a key of its own."""


OF_QUESTIONS: Final = frozenset(
    (
        *("ERROR", "FAIL", "FAILURE", "OK", "SUCCESS", "EXCEPTION", "INTERNAL_ERROR", "NOT_FOUND"),
        *("BAD_REQUEST", "DENIED", "FORBIDDEN", "UNAUTHORIZED", "RATE_LIMITED", "TIMEOUT"),
        *("TOO_MANY_REQUESTS", "UNAVAILABLE", "SERVICE_UNAVAILABLE", "INTERNAL_SERVER_ERROR"),
    )
)
"""Words that are said of a question, where they are not known as states of a job."""


class Missing:
    """A control plane says that there is no such job."""


MISSING: Final = Missing()


class HasKey:
    """A control plane with a key of its own, which no pickle holds. A frozen dataclass."""

    api_key: SecretStr | None
    is_key_lost: bool
    reach: Reach | None

    def headers_with(
        self, credentials: Mapping[str, str], key_headers: Callable[[bytes], Headers]
    ) -> Headers:
        """The headers of a lookup: with a key of its own, or as the guarded request has them.

        Args:
            credentials: What it has of the guarded request at another origin.
            key_headers: The headers that a key of its own is sent in.
        """
        sent = list(self.reach.headers) if self.reach is not None else None
        if self.api_key is not None:
            replaced = {name.encode() for name in CREDENTIAL_HEADERS}
            others = [pair for pair in sent or () if pair[0].lower() not in replaced]
            return [*others, *key_headers(self.api_key.get_secret_value().encode())]
        if sent is not None:
            return sent
        return [(name.encode(), value.encode()) for name, value in credentials.items()]

    def __getstate__(self) -> dict[str, Any]:
        """What a pickle holds: all but the key, and whether there was one."""
        is_key_lost = self.is_key_lost or self.api_key is not None
        return self.__dict__ | {"api_key": None, "is_key_lost": is_key_lost}

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _: object) -> Self:
        return self


class DisconnectedError(ControlPlaneError):
    """There was no connection to a control plane, or it broke: the next one may be better."""


_BROKEN: Final = (httpx.ConnectError, httpx.RemoteProtocolError)


async def document_at(
    url: httpx.URL,
    headers: Headers,
    *,
    extensions: Mapping[str, Any],
    timeout: float,  # noqa: ASYNC109 - of each phase of the exchange
    transport: httpx.AsyncBaseTransport | None,
    template: str = "",
    ids: Collection[str] = (),
) -> object:
    """What a control plane answers, as JSON; `MISSING` if it says that there is no such job.

    Args:
        url: What is asked for.
        headers: The credentials.
        extensions: Of the request.
        timeout: Seconds for each phase of the exchange.
        transport: What carries it; None obeys the environment.
        template: The path as it may be recorded, ids replaced; nothing of any other one is.
        ids: What is asked about, by names that users have chosen.

    Raises:
        DisconnectedError: There was no connection, or it broke.
        ControlPlaneError: There is no answer that can be used.
        TimeoutError: A phase took too long.
    """
    try:
        answer = await _fetch(url, headers, extensions, timeout, transport, template)
    except httpx.TimeoutException:
        raise TimeoutError from None
    except httpx.HTTPError as error:
        kind = DisconnectedError if isinstance(error, _BROKEN) else ControlPlaneError
        raise kind(
            f"{place_of(url)} could not be reached ({type(error).__name__}). Is it the right "
            "host? Set TINKER_GUARD_CONTROL_PLANE_URL if the control plane lives elsewhere."
        ) from None
    return document_in(url, answer, ids)


async def _fetch(
    url: httpx.URL,
    headers: Headers,
    extensions: Mapping[str, Any],
    timeout: float,  # noqa: ASYNC109 - of each phase of the exchange
    transport: httpx.AsyncBaseTransport | None,
    template: str,
) -> Answer:
    # A client of its own for each lookup: nothing is left open between races, and a lookup
    # never goes over a connection that is stuck to a stale replica.
    # Plain http needs no certificate authorities, which take long to load.
    verify = ssl_context() if url.scheme == "https" and transport is None else False
    client = httpx.AsyncClient(
        verify=verify,
        timeout=min(timeout, LONGEST_WAIT),
        transport=transport or environment_transport(verify),
    )
    # A transport that is given is only lent.
    async with client if transport is None else nullcontext():
        headers = [
            *headers,
            # No coding but those that need no further package.
            (b"accept-encoding", b"gzip, deflate"),
            (b"cache-control", b"no-cache, no-store"),
        ]
        request = client.build_request("GET", url, headers=headers, extensions={**extensions})
        # `send()` would write the whole URL to httpx's log, and a key may stand in it. A transport
        # follows no redirect either, which would take the key to a place that nobody configured.
        carrier = client._transport_for_url(url)
        with telemetry.lookup_exchange(request, template) as exchange:
            response = await carrier.handle_async_request(exchange.request)
            exchange.response = response
        async with unless_abandoned(lambda: discard(response)):
            body = await read_prefix(response)
            if body.is_broken:
                # Raises what the transport did.
                await response.aread()
            return body.of(response)


def document_in(url: httpx.URL, answer: Answer, ids: Collection[str] = ()) -> object:
    """The document that an answer is; `MISSING` if it says that there is no such job.

    Raises:
        ControlPlaneError: It is none.
    """
    place = place_of(url)
    status_code = answer.status_code
    if status_code == 200 and not is_cached_copy(answer.headers):
        return answer.document
    if status_code == 200:
        # Its state is that of some earlier time, which is not known.
        problem = (
            f"{place} answered with a copy from a cache. Set TINKER_GUARD_CONTROL_PLANE_URL to a "
            "place where none stands in front of it."
        )
    elif status_code == 404:
        if is_control_planes_404(answer, ids=ids):
            return MISSING
        problem = (
            f"{place} answered with a 404 that is not a control plane's. Set "
            "TINKER_GUARD_CONTROL_PLANE_URL if the control plane lives elsewhere."
        )
    elif status_code in (401, 403):
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
    else:
        problem = f"{place} answered with the status {status_code}."
    pause = retry_after(answer.headers, now=time.time())
    raise ControlPlaneError(problem, status_code, pause)


def is_same_origin(url: str, origin: str) -> bool:
    """Whether a URL is at an origin."""
    here, there = httpx.URL(url), httpx.URL(origin)
    return (here.scheme, here.host, here.port) == (there.scheme, there.host, there.port)


def place_of(url: httpx.URL) -> str:
    """What of a control plane's URL may be shown."""
    return f"the control plane at {origin(url)}"


@lru_cache(maxsize=1)
def ssl_context() -> ssl.SSLContext:
    """What the guard's own clients trust: what the SDK's trust."""
    # Loading the certificate authorities takes tens of milliseconds; once is enough.
    context = httpx.create_ssl_context()
    # The SDK's own transport trusts the system's authorities too, a company's among them.
    context.load_default_certs()
    return context
