"""Checks of the gateway: the answers of the control plane and of the trainer's route."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, assert_never

import httpx

from tinker_guard.cli.doctor.finding import Finding, Section, Status, duration
from tinker_guard.cli.doctor.sdks import KEY_VARIABLES
from tinker_guard.control_plane.shared import SharedControlPlane
from tinker_guard.policy.job import JobPhase
from tinker_guard.policy.not_found import Source, source_of
from tinker_guard.policy.not_found_shapes import shapes_of
from tinker_guard.settings import variable
from tinker_guard.transports.body_prefix import read_prefix

if TYPE_CHECKING:
    from tinker_guard.cli.doctor.network import Obstacle
    from tinker_guard.cli.doctor.sdks import Key
    from tinker_guard.core.routes import RouteState
    from tinker_guard.policy.judgement import JobAnswer
    from tinker_guard.policy.route import Route
    from tinker_guard.settings import GuardSettings


def _headers(key: Key | None) -> dict[str, str]:
    return {} if key is None else {"X-Api-Key": key.value.get_secret_value()}


def key_for_control_plane(
    settings: GuardSettings, key: Key | None, place: str, origin: str
) -> str | None:
    """The variable of the key for the control plane; None if no key is sent.

    Args:
        settings: The guard's settings.
        key: The key of requests.
        place: The URL of the control plane.
        origin: The route's origin.
    """
    if settings.control_plane_api_key is not None:
        return variable("control_plane_api_key")
    is_sent = settings.control_plane in (None, "fireworks") or place == origin
    return key.variable if key is not None and is_sent else None


def not_asked(what: str) -> Finding:
    """The finding for a place without a route."""
    return Finding(Section.GATEWAY, what, Status.SKIPPED, "not asked: there is no trainer route")


def no_control_plane() -> Finding:
    """The finding for a route without a control plane."""
    return Finding(
        Section.GATEWAY,
        "control plane",
        Status.SKIPPED,
        "none is known for this route: whether a 404 is a race, probes that reach the trainer tell",
    )


async def ask(state: RouteState, settings: GuardSettings, key: Key | None) -> JobAnswer:
    """Make one lookup, as a guarded request would."""
    request = httpx.Request("GET", state.route.url, headers=_headers(key))
    return await SharedControlPlane(settings).ask(state, request)


def say_answer(
    answer: JobAnswer,
    seconds: float,
    place: str,
    key_variable: str | None,
    obstacle: Obstacle | None = None,
) -> Finding:
    """Explain the control plane's answer.

    Args:
        answer: The answer.
        seconds: How long it took.
        place: The URL of the control plane, as it may be shown.
        key_variable: The variable of the key that was sent; None if none was sent.
        obstacle: Why the place cannot be reached, if known.
    """
    say = partial(Finding, Section.GATEWAY, "control plane")
    asked = f"{place}, {duration(seconds)}, "
    asked += f"with {key_variable}" if key_variable else "without a key"
    if obstacle is not None:
        return say(Status.PROBLEM, obstacle.reason, obstacle.to_do)
    if answer.failure is not None:
        if answer.status_code in (401, 403):
            return _say_refused("control plane", answer.status_code, key_variable)
        detail, _, to_do = answer.detail.partition(". ")
        return say(
            Status.PROBLEM, detail.removesuffix("."), to_do or "If this lasts, tell its operator."
        )
    if answer.state is None:
        return say(
            Status.PROBLEM,
            f"knows no such job ({asked})",
            "Check account and job in the base URL. If the control plane lives elsewhere, set "
            f"{variable('control_plane_url')}.",
        )
    detail = f"{answer.state} ({asked})"
    match answer.phase:
        case JobPhase.RUNNING:
            return say(Status.OK, detail)
        case JobPhase.STARTING:
            return say(
                Status.WARNING, detail, "Wait for it: tinker-guard wait does, with the base URL."
            )
        case JobPhase.STOPPED:
            return say(
                Status.PROBLEM,
                detail,
                "Its requests get a 404 at once. Start or resume the job; tinker-guard wait lets "
                "the old state of one that was just resumed settle.",
            )
        case _:
            assert_never(answer.phase)


def _say_refused(what: str, status_code: int, key_variable: str | None) -> Finding:
    if key_variable is None:
        return Finding(
            Section.GATEWAY,
            what,
            Status.WARNING,
            f"wants a key ({status_code}), and there was none to send",
            f"Set {' or '.join(KEY_VARIABLES.values())} to have it tried out.",
        )
    to_do = f"Check {key_variable}, which was sent."
    if what == "control plane" and key_variable != variable("control_plane_api_key"):
        to_do += (
            f" If it takes another key, set {variable('control_plane_api_key')} and "
            f"{variable('control_plane_url')}."
        )
    return Finding(Section.GATEWAY, what, Status.PROBLEM, f"refuses the key ({status_code})", to_do)


@dataclass(frozen=True, slots=True)
class Reply:
    """The result of one probe of a trainer's route."""

    status_code: int = 0
    media_type: str = ""
    source: Source = Source.TRAINER
    """The author of the answer, if it is a 404."""
    seconds: float = 0.0
    """How long it took."""
    error: str = ""
    """The type of the exception, if there was no answer."""


async def probe(route: Route, settings: GuardSettings, key: Key | None) -> Reply:
    """Send one probe, as the warmup would."""
    url = route.url + settings.warmup_probe_path
    clock = asyncio.get_running_loop().time
    async with httpx.AsyncClient(timeout=settings.probe_timeout) as client:
        started_at = clock()
        try:
            async with (
                asyncio.timeout(settings.probe_timeout),
                client.stream("GET", url, headers=_headers(key)) as response,
            ):
                is_404 = response.status_code == 404
                body = await read_prefix(response)
                source = Source.TRAINER
                if is_404:
                    shapes = shapes_of(settings.trainer_404)
                    source = source_of(body.of(response), shapes=shapes, ids=route.ids)
        except (TimeoutError, httpx.HTTPError) as error:
            return Reply(error=type(error).__name__, seconds=clock() - started_at)
        return Reply(
            response.status_code,
            response.headers.get("content-type", "").partition(";")[0].strip(),
            source,
            clock() - started_at,
        )


def say_reply(
    reply: Reply,
    answer: JobAnswer | None,
    key_variable: str | None,
    obstacle: Obstacle | None = None,
) -> Finding:
    """Explain the answer to a probe of the trainer's route.

    Args:
        reply: The answer.
        answer: The control plane's answer; None if it was not asked.
        key_variable: The variable of the key that was sent; None if none was sent.
        obstacle: Why the gateway cannot be reached, if known.
    """
    say = partial(Finding, Section.GATEWAY, "trainer route")
    took = duration(reply.seconds)
    code = reply.status_code
    if obstacle is not None:
        return say(Status.PROBLEM, obstacle.reason, obstacle.to_do)
    if reply.error:
        return say(
            Status.PROBLEM,
            f"a probe failed after {took} ({reply.error})",
            f"If the gateway is only slow, {variable('probe_timeout')} allows it longer.",
        )
    if code == 404:
        return say(*_say_404(reply.source, answer, took))
    if code in (401, 403):
        return _say_refused("trainer route", code, key_variable)
    if 300 <= code < 400:
        return say(
            Status.WARNING,
            f"redirects ({code})",
            "Give the SDK the URL that it redirects to, if that is your trainer's.",
        )
    if code >= 500 or code == 429:
        return say(
            Status.WARNING,
            f"is out of order or busy ({code})",
            "The SDK repeats such requests itself; if this lasts, tell the gateway's operator.",
        )
    if code < 300 and "html" in reply.media_type:
        return say(
            Status.WARNING,
            f"answers with a web page ({code}, {took})",
            "That is no trainer. Is it a log-in page? Check the host.",
        )
    return say(Status.OK, f"the trainer answers ({code}, {took})")


_WHOSE: Final = {
    Source.GATEWAY: "the gateway's 404",
    Source.ROUTER: "a 404 that can be a trainer's or a gateway's",
    Source.UNKNOWN: "a 404 that names nobody",
}


def _say_404(source: Source, answer: JobAnswer | None, took: str) -> tuple[Status, str, str]:
    if source is Source.TRAINER:
        return Status.OK, f"the trainer answers (its own 404, {took})", ""
    detail = f"{_WHOSE[source]} ({took})"
    if answer is None:
        return (
            Status.PROBLEM,
            f"{detail}, and there is no control plane that could say whether the trainer runs",
            "Check the base URL. The guard looks for the trainer for a short time, and then hands "
            f"the 404 back; {variable('unreached_timeout')} waits longer.",
        )
    if answer.failure is not None:
        return (
            Status.PROBLEM,
            f"{detail}, and nobody can say whether the job runs",
            "The guard sends requests only once a probe reaches the trainer, and else hands their "
            "404 back when their time is over. See to the control plane first.",
        )
    match answer.phase:
        case JobPhase.RUNNING if source is Source.ROUTER:
            return (
                Status.WARNING,
                f"{detail}, although the job runs",
                "If the trainer does not know the path, the guard sends requests after some "
                f"probes. {variable('warmup_probe_path')} names one that it knows.",
            )
        case JobPhase.RUNNING:
            return (
                Status.WARNING,
                f"{detail}, although the job runs: taken for a routing race",
                "The guard waits until it is over. If it lasts, tell the gateway's operator.",
            )
        case JobPhase.STARTING:
            return Status.WARNING, f"{detail}: the job does not run yet", "Wait for the job."
        case JobPhase.STOPPED:
            return Status.PROBLEM, f"{detail}: there is no running job", "See the control plane."
        case _:
            assert_never(answer.phase)
