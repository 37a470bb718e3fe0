"""Waits outside of any training run until a trainer's route is known: for scripts and the CLI."""

from __future__ import annotations

import asyncio
import math
import re
from enum import IntEnum
from numbers import Real
from typing import TYPE_CHECKING, Final, assert_never

import httpx

from tinker_guard.control_plane.question import ssl_context
from tinker_guard.control_plane.shared import SharedControlPlane
from tinker_guard.core.attempts import attempts
from tinker_guard.core.findings import Ambiguous, Inconclusive, Refused, Routable, TimedOut
from tinker_guard.core.guarded_request import GuardedRequest
from tinker_guard.core.probing import probe_until_routable
from tinker_guard.core.routes import RouteTable
from tinker_guard.observability import logs
from tinker_guard.policy.judgement import JOB_MISSING, JOB_NOT_RUNNING
from tinker_guard.policy.route import patterns_of, suggest_pattern
from tinker_guard.policy.url import host_and_port, is_behind_job, parse_http
from tinker_guard.settings import (
    GuardSettings,
    can_be_sent,
    check_type,
    check_variables,
    variable,
)
from tinker_guard.telemetry import RequestReport
from tinker_guard.transports.cleanup import unless_abandoned
from tinker_guard.transports.proxies import proxy_for
from tinker_guard.transports.renewable import RenewableTransport

if TYPE_CHECKING:
    from collections.abc import Callable

    from tinker_guard.control_plane.protocol import AnyControlPlane
    from tinker_guard.core.findings import ProbingEnd
    from tinker_guard.transports.failure import Failure


SETTLE_SECONDS: Final = 30.0
"""As long as Fireworks' own waiter lets the state of a job settle that was just resumed."""


class Readiness(IntEnum):
    """How the wait ended; the values are the exit codes of `tinker-guard wait`."""

    READY = 0
    """Probes reached the trainer, as many in a row as a warmup asks for."""
    TIMED_OUT = 3
    """The job may still come up, but the time is over."""
    JOB_GONE = 4
    """The job is stopped or does not exist; waiting will not help."""
    UNVERIFIABLE = 5
    """The route could not be probed, or the control plane could not say anything."""

    def __str__(self) -> str:
        """A sentence for people."""
        return _SENTENCES[self]


_SENTENCES: Final = {
    Readiness.READY: "Ready: the trainer answers.",
    Readiness.TIMED_OUT: "Timed out: the gateway does not know the route yet.",
    Readiness.JOB_GONE: "Gone: the job is stopped or does not exist.",
    Readiness.UNVERIFIABLE: (
        "Not verifiable: the gateway could not be reached, or the control plane could not say "
        "whether the job runs."
    ),
}


def wait_until_routable(
    url: str,
    *,
    api_key: str | None = None,
    timeout: float | None = None,
    settle: float = SETTLE_SECONDS,
    settings: GuardSettings | None = None,
    control_plane: AnyControlPlane | None = None,
    new_transport: Callable[[], httpx.AsyncBaseTransport] | None = None,
) -> Readiness:
    """Wait until a trainer's route answers, by the same rule as a guarded run's warmup.

    Also while the gateway's name, its port or TLS are not there yet. What it waits for is logged
    (`tinker_guard`, WARNING).

    Args:
        url: The trainer's base URL, as given to the SDK.
        api_key: Key for gateway and control plane, sent as `X-Api-Key`.
        timeout: Seconds; None takes `warmup_timeout` of the settings.
        settle: Seconds for which a stopped state is not believed that a job may still show just
            after it was resumed, such as PAUSED; 0 believes it at once.
        settings: How to probe; None reads `TINKER_GUARD_*` and the defaults.
        control_plane: Whom to ask; None asks the one that the settings name.
        new_transport: Builds what a probe is sent over; None builds httpx's own, with the
            proxies that the environment names.

    Raises:
        ValueError: The URL is no trainer's base URL, the seconds or a setting cannot work, or the
            proxies or certificates that the environment names cannot be used.
        RuntimeError: Called on a running event loop; use `until_routable` there.
    """
    if asyncio._get_running_loop() is not None:
        raise RuntimeError(
            "wait_until_routable() blocks, and an event loop is running here: await "
            "until_routable() instead."
        )
    return asyncio.run(
        until_routable(
            url,
            api_key=api_key,
            timeout=timeout,
            settle=settle,
            settings=settings,
            control_plane=control_plane,
            new_transport=new_transport,
        )
    )


async def until_routable(
    url: str,
    *,
    api_key: str | None = None,
    timeout: float | None = None,  # noqa: ASYNC109 - the last round begins within it
    settle: float = SETTLE_SECONDS,
    settings: GuardSettings | None = None,
    control_plane: AnyControlPlane | None = None,
    new_transport: Callable[[], httpx.AsyncBaseTransport] | None = None,
) -> Readiness:
    """Wait on an event loop of your own; see `wait_until_routable`."""
    _check_seconds("settle", settle)
    if timeout is not None:
        _check_seconds("timeout", timeout)
    if settings is None:
        settings = GuardSettings()
    check_type(settings)
    check_variables(settings)
    base_url = parse_http(f"{url}/")
    if base_url is None:
        raise ValueError(
            "this is no URL with http:// or https://, a host, and a port from 1 to 65535 if any: "
            f"{_shown(url)}"
        )
    if base_url.query or base_url.fragment:
        raise ValueError("this URL must have no query: remove what begins with ? or #")
    if api_key is not None and not can_be_sent(api_key):
        raise ValueError(
            "no header can carry this API key: look for a line break or a space at its end, or a "
            "character that is not ASCII"
        )
    # A table of its own: nothing of this is to be taken for a guarded run's knowledge.
    state = RouteTable().find(base_url, patterns_of(settings.routes))
    if state is None:
        raise ValueError(
            "this URL is on no trainer route; it should look like "
            "https://HOST/training/v1/rlorTrainerJobs/ACCOUNT/JOB. For another server, set "
            f"{variable('routes')}, for example to {suggest_pattern(base_url)}"
        )
    if is_behind_job(base_url, state.route):
        raise ValueError(
            "this URL goes on behind the job, where the SDK puts /api/v1/... itself: give "
            f"{state.route.recorded_url}"
        )
    make = new_transport or ClientTransport
    try:
        line = RenewableTransport(make(), make)
    except (httpx.InvalidURL, ImportError, OSError, ValueError) as error:
        if new_transport is not None:
            raise
        raise ValueError(
            "the proxies or certificates that the environment names cannot be used "
            f"({type(error).__name__}): check HTTPS_PROXY, ALL_PROXY, NO_PROXY, SSL_CERT_FILE"
        ) from None
    headers = {} if api_key is None else {"X-Api-Key": api_key}
    request = httpx.Request("GET", base_url, headers=headers)
    guarded = GuardedRequest(
        request,
        state,
        line,
        settings,
        SharedControlPlane(settings, control_plane),
        RequestReport(request, state, settings),
    )
    seconds = settings.warmup_timeout if timeout is None else timeout
    guarded.settle = settle
    guarded.wait = logs.Wait("", seconds, "timeout")
    async with unless_abandoned(line.aclose):
        deadline = guarded.arrived_at + seconds
        is_race = False
        async for attempt in attempts(settings, deadline, attempts_before=1):
            end = await probe_until_routable(
                guarded,
                successes=max(settings.warmup_successes, 1),
                deadline=deadline,
                may_send=False,
            )
            is_proxied = new_transport is None and proxy_for(base_url) is not None
            obstacle = _obstacle(end, guarded, base_url, is_proxied=is_proxied)
            if obstacle is None:
                break
            is_race = is_race or end.race is not None
            if not (is_race or _may_pass(end)):
                logs.log_not_probed(state, obstacle)
                break
            if _is_unanswered(end) and await _is_gone(guarded, deadline):
                return Readiness.JOB_GONE
            guarded.log_waiting(None, deadline, obstacle=obstacle)
            attempt.retry_state.set_result(0.0)
    if isinstance(end, Inconclusive) and end.failed is None and not guarded.has_control_plane:
        # 404s to the end, which is all that can be found out.
        return Readiness.TIMED_OUT
    match end:
        case Routable():
            logs.log_warm(state, guarded.clock() - guarded.arrived_at, guarded.probes)
            return Readiness.READY
        case Inconclusive() | Ambiguous():
            return Readiness.UNVERIFIABLE
        case Refused():
            return Readiness.JOB_GONE
        case TimedOut():
            return Readiness.TIMED_OUT
        case _:
            assert_never(end)


def _check_seconds(name: str, value: object) -> None:
    # A wait of NaN seconds would never end.
    if not (isinstance(value, Real) and 0 <= float(value) < math.inf):
        raise ValueError(f"{name} must be a finite number of seconds, at least 0")


async def _is_gone(guarded: GuardedRequest, deadline: float) -> bool:
    """Whether the control plane says that the job is stopped or does not exist."""
    try:
        judged = await guarded.look_up(guarded.clock(), deadline, up_since=None, is_first=False)
    except TimeoutError:
        return False
    return judged in (JOB_NOT_RUNNING, JOB_MISSING) and not guarded.may_settle()


def _shown(url: str) -> str:
    """What was given in the place of a URL, without what may be a secret: user, path, query."""
    rest = f"{url}".rpartition("@")[2]
    begin = re.sub(r"^([A-Za-z]*:?/*[^/?#]*).*", r"\1", rest, flags=re.DOTALL)
    return repr(begin if begin == rest else f"{begin}...")


def _obstacle(
    end: ProbingEnd, guarded: GuardedRequest, url: httpx.URL, *, is_proxied: bool
) -> str | None:
    """Why nothing could be found out; None if something was."""
    if not isinstance(end, Inconclusive):
        return None
    place = host_and_port(url)
    if end.failed is not None and end.failed.failure is not None:
        return _reason(end.failed.failure, url.host, place, is_proxied=is_proxied)
    if end.failed is not None:
        return f"{place} answers {end.failed.status_code}"
    if not guarded.has_control_plane:
        return logs.say_why(None, None, has_control_plane=False)
    detail = "" if guarded.answer is None else guarded.answer.detail
    unusable = detail.removesuffix(".") or "the control plane gives no usable answer"
    return f"the gateway answers 404, and {unusable}"


def _is_unanswered(end: ProbingEnd) -> bool:
    """Whether the gateway answered no probe: that may be so because the job is gone."""
    return isinstance(end, Inconclusive) and end.failed is not None


def _may_pass(end: ProbingEnd) -> bool:
    """Whether what is in the way may pass by waiting; an answer such as 401 does not."""
    status_code = end.failed.status_code if isinstance(end, Inconclusive) and end.failed else None
    return status_code is None or status_code >= 500 or status_code == 429


def _reason(failure: Failure, host: str, place: str, *, is_proxied: bool) -> str:
    # A proxy is what is looked up and connected to; TLS is spoken with the gateway behind it.
    through = " through the proxy" if is_proxied else ""
    match failure.kind:
        case "unknown_name":
            name = f"of the proxy for {host}" if is_proxied else host
            return f"the name {name} is not known (DNS)"
        case "tls":
            return f"TLS with {place} fails ({failure.error_type})"
        case "refused":
            return f"nothing listens at {'the proxy for ' if is_proxied else ''}{place}"
        case "late":
            return f"{place} does not answer in time{through}"
        case "other":
            return f"{place} cannot be reached{through} ({failure.error_type})"
        case _:
            assert_never(failure.kind)


class ClientTransport(httpx.AsyncBaseTransport):
    """Sends over what a client sends over: a transport of httpx itself knows of no proxy.

    The client itself would write the whole URL to httpx's log.
    """

    def __init__(self) -> None:
        self._client = httpx.AsyncClient(verify=ssl_context())

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, through the proxy that the environment names for its URL."""
        carrier = self._client._transport_for_url(request.url)
        return await carrier.handle_async_request(request)

    async def aclose(self) -> None:
        """Close the client."""
        await self._client.aclose()
