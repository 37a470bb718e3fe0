"""Waits outside of any training run until a trainer's route is known: for scripts and the CLI."""

from __future__ import annotations

import asyncio
from enum import IntEnum
from typing import TYPE_CHECKING

import httpx

from tinker_guard.closing import Afterwards
from tinker_guard.control_plane import SharedControlPlane, ssl_context
from tinker_guard.line import Line
from tinker_guard.probing import Probing
from tinker_guard.route import RouteTable
from tinker_guard.settings import GuardSettings
from tinker_guard.verdict import JobPhase

if TYPE_CHECKING:
    from collections.abc import Callable

    from tinker_guard.control_plane import ControlPlane


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


def wait_until_routable(
    url: str,
    *,
    api_key: str | None = None,
    timeout: float | None = None,
    settings: GuardSettings | None = None,
    control_plane: ControlPlane | None = None,
    new_transport: Callable[[], httpx.AsyncBaseTransport] | None = None,
) -> Readiness:
    """Wait until a trainer's route answers, by the same rule as a guarded run's warmup.

    What it waits for is logged (`tinker_guard`, INFO).

    Args:
        url: The trainer's base URL, as given to the SDK.
        api_key: Key for gateway and control plane, sent as `X-Api-Key`.
        timeout: Seconds; None takes `warmup_timeout` of the settings.
        settings: How to probe; None reads `TINKER_GUARD_*` and the defaults.
        control_plane: Whom to ask; None asks the Fireworks control plane.
        new_transport: Builds what a probe is sent over; None builds httpx's own, with the
            proxies that the environment names.

    Raises:
        ValueError: The URL is on no trainer route.
        RuntimeError: Called on a running event loop; use `until_routable` there.
    """
    return asyncio.run(
        until_routable(
            url,
            api_key=api_key,
            timeout=timeout,
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
    settings: GuardSettings | None = None,
    control_plane: ControlPlane | None = None,
    new_transport: Callable[[], httpx.AsyncBaseTransport] | None = None,
) -> Readiness:
    """Wait on an event loop of your own; see `wait_until_routable`."""
    settings = settings or GuardSettings()
    try:
        base_url = httpx.URL(f"{url}/")
    except (httpx.InvalidURL, ValueError):
        raise ValueError("this is no URL") from None
    # A table of its own: nothing of this is to be taken for a guarded run's knowledge.
    state = RouteTable().find(base_url)
    if state is None:
        raise ValueError(
            "this URL is on no trainer route; it should look like "
            "https://HOST/training/v1/rlorTrainerJobs/ACCOUNT/JOB"
        )
    make = new_transport or _ClientTransport
    line = Line(make(), make)
    headers = {} if api_key is None else {"X-Api-Key": api_key}
    probing = Probing(
        settings,
        SharedControlPlane(settings, control_plane),
        httpx.Request("GET", base_url, headers=headers),
        line,
        state,
        successes=max(settings.warmup_successes, 1),
        timeout=settings.warmup_timeout if timeout is None else timeout,
        awaits_start=True,
    )
    async with Afterwards(line.aclose):
        refusal = await probing.run()
    if refusal is None:
        return Readiness.READY if probing.has_reached else Readiness.UNVERIFIABLE
    is_gone = refusal.answer.phase is JobPhase.STOPPED
    return Readiness.JOB_GONE if is_gone else Readiness.TIMED_OUT


class _ClientTransport(httpx.AsyncBaseTransport):
    """Sends as a client does: a transport of httpx itself knows of no proxy."""

    def __init__(self) -> None:
        self._client = httpx.AsyncClient(verify=ssl_context())

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._client.send(request, stream=True)

    async def aclose(self) -> None:
        await self._client.aclose()
