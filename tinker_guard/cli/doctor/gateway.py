"""Checks of the gateway: the answers of the control plane and of the trainer's route."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final, assert_never

import httpx

from tinker_guard.cli.doctor.finding import Finding, Section, Status
from tinker_guard.cli.doctor.sdks import KEY_VARIABLES
from tinker_guard.cli.words import duration
from tinker_guard.control_plane.shared import SharedControlPlane
from tinker_guard.core import probe as probes
from tinker_guard.core.findings import Failed, NotFound, Reached
from tinker_guard.core.guarded_request import GuardedRequest
from tinker_guard.policy.answer import Answer
from tinker_guard.policy.job import JobPhase
from tinker_guard.policy.not_found import Source, source_of
from tinker_guard.settings import variable
from tinker_guard.telemetry import RequestReport
from tinker_guard.transports.cleanup import unless_abandoned
from tinker_guard.transports.failure import Failure
from tinker_guard.transports.renewable import RenewableTransport
from tinker_guard.waiting import ClientTransport

if TYPE_CHECKING:
    from tinker_guard.cli.doctor.network import Obstacle
    from tinker_guard.cli.doctor.sdks import Key
    from tinker_guard.core.findings import ProbeResult
    from tinker_guard.core.routes import RouteState
    from tinker_guard.policy.judgement import JobAnswer
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


async def probe(
    state: RouteState, settings: GuardSettings, key: Key | None
) -> tuple[ProbeResult, float]:
    """Send one probe, as the warmup would.

    Returns:
        What it found, and how many seconds it took.
    """
    request = httpx.Request("GET", state.route.url, headers=_headers(key))
    line = RenewableTransport(ClientTransport())
    control_plane = SharedControlPlane(settings)
    report = RequestReport(request, state, settings)
    guarded = GuardedRequest(request, state, line, settings, control_plane, report)
    async with unless_abandoned(line.aclose):
        found = await probes.probe(guarded)
        seconds = guarded.clock() - guarded.arrived_at
    if isinstance(found, NotFound):
        not_found = Answer(found.headers, found.body)
        source = source_of(not_found, shapes=guarded.shapes, ids=state.route.ids)
        if source is Source.ROUTER:
            # Nobody's, for the guard, until the trainer has shown itself.
            found = replace(found, source=Source.ROUTER)
    return found, seconds


def say_found(
    found: ProbeResult,
    seconds: float,
    answer: JobAnswer | None,
    key_variable: str | None,
    obstacle: Obstacle | None = None,
) -> Finding:
    """Explain what a probe of the trainer's route has found.

    Args:
        found: What it found.
        seconds: How long it took.
        answer: The control plane's answer; None if it was not asked.
        key_variable: The variable of the key that was sent; None if none was sent.
        obstacle: Why the gateway cannot be reached, if known.
    """
    say = partial(Finding, Section.GATEWAY, "trainer route")
    took = duration(seconds)
    if obstacle is not None:
        return say(Status.PROBLEM, obstacle.reason, obstacle.to_do)
    match found:
        case Reached():
            return say(Status.OK, f"the trainer answers ({took})")
        case NotFound():
            return say(*_say_404(found.source, answer, took))
        case Failed(status_code=int(code)):
            return _say_not_trainers(code, key_variable, took)
        case Failed(failure=Failure(error_type=error_type)):
            return say(
                Status.PROBLEM,
                f"a probe failed after {took} ({error_type})",
                f"If the gateway is only slow, {variable('probe_timeout')} allows it longer.",
            )
        case Failed():
            return say(Status.PROBLEM, "a probe could not be sent", "Please report it.")
        case _:
            assert_never(found)


def _say_not_trainers(code: int, key_variable: str | None, took: str) -> Finding:
    say = partial(Finding, Section.GATEWAY, "trainer route", Status.WARNING)
    if code in (401, 403):
        return _say_refused("trainer route", code, key_variable)
    if 300 <= code < 400:
        return say(
            f"redirects ({code})",
            "Give the SDK the URL that it redirects to, if that is your trainer's.",
        )
    if code >= 500 or code == 429:
        return say(
            f"is out of order or busy ({code})",
            "The SDK repeats such requests itself; if this lasts, tell the gateway's operator.",
        )
    return say(
        f"answers, but not as a trainer does ({code}, {took})",
        "Is it a page, for logging in or of maintenance? Check the host. If your trainer answers "
        f"so, {variable('warmup_probe_path')} names a path where it answers with a JSON object.",
    )


_WHOSE: Final = {
    Source.GATEWAY: "the gateway's 404",
    Source.ROUTER: "a 404 that can be a trainer's or a gateway's",
    Source.UNKNOWN: "a 404 that names nobody",
}


def _say_404(source: Source, answer: JobAnswer | None, took: str) -> tuple[Status, str, str]:
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
