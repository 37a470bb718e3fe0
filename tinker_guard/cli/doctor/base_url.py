"""Classifies a base URL: a trainer's route, nearly one, or one that needs no guard."""

from __future__ import annotations

import ipaddress
import re
from functools import partial
from typing import TYPE_CHECKING, Final

import httpx

from tinker_guard.cli.doctor.finding import Finding, Section, Status
from tinker_guard.control_plane.chosen import place_asked
from tinker_guard.control_plane.shared import SharedControlPlane
from tinker_guard.core.routes import RouteTable
from tinker_guard.policy.route import SERVERLESS, Route, patterns_of, suggest_pattern
from tinker_guard.policy.url import is_behind_job, origin, parse_http, path_of
from tinker_guard.settings import variable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tinker_guard.core.routes import RouteState
    from tinker_guard.settings import GuardSettings

_EXPECTED: Final = "https://HOST/training/v1/rlorTrainerJobs/ACCOUNT/JOB"
_COLLECTION: Final = "rlorTrainerJobs"
_ID: Final = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._~-]+")


def find_route(url: str | None, settings: GuardSettings) -> RouteState | None:
    """The trainer route of a base URL, in a separate route table."""
    parsed = None if url is None else parse_http(url)
    if parsed is None:
        return None
    base_url = httpx.URL(f"{origin(parsed)}{path_of(parsed)}/")
    return RouteTable().find(base_url, patterns_of(settings.routes))


def check_base_url(url: str | None, settings: GuardSettings) -> Iterator[Finding]:
    """Classify a base URL, and report the mistake in one that is nearly right.

    Args:
        url: The URL, as given to the SDK; None if there is none.
        settings: The guard's settings.
    """
    say = partial(Finding, Section.GATEWAY, "base URL")
    if url is None:
        yield say(
            Status.SKIPPED,
            "none given, and TINKER_BASE_URL is not set: tinker takes its hosted service",
            f"Run: tinker-guard doctor {_EXPECTED}",
        )
        return
    parsed = parse_http(url)
    if parsed is None:
        yield say(
            Status.PROBLEM,
            "this is no URL with http:// or https://, a host, and a port from 1 to 65535 if any",
            _like(_EXPECTED),
        )
        return
    if parsed.userinfo or parsed.query or parsed.fragment:
        yield say(
            Status.WARNING,
            "it holds a user name, a query or a fragment, which logs and errors may show",
            "Take it out; a key belongs into the SDK's own variable or argument.",
        )
    place = origin(parsed)
    state = find_route(url, settings)
    route = None if state is None else state.route
    if route is None:
        status, detail, to_do = _why_no_route(parsed)
        yield say(status, f"{place}: {detail}", to_do)
    elif is_behind_job(parsed, route):
        yield say(
            Status.PROBLEM,
            f"{place}: a trainer route, but the path goes on behind the job, where the SDK puts "
            "/api/v1/... itself",
            _like(route.recorded_url),
        )
    elif path_of(parsed) != route.path:
        yield say(
            Status.WARNING,
            f"{route}: a trainer route by {variable('routes')}, but the path goes on behind it: is "
            "the trainer there, or further down?",
            f"Of one further down: {variable('routes')}={suggest_pattern(parsed)}",
        )
    elif route.is_named_by_job:
        yield say(
            Status.OK, f"trainer route of account {route.account}, job {route.job} at {place}"
        )
    else:
        yield say(Status.OK, f"trainer route {route}, by {variable('routes')}")


def say_in_words(route: RouteState | None, settings: GuardSettings) -> Finding:
    """Report what the guard will do for a base URL.

    Args:
        route: Its trainer route, if there is one.
        settings: The guard's settings.
    """
    say = partial(Finding, Section.GATEWAY, "what it does")
    if not settings.enabled:
        return say(Status.SKIPPED, "nothing: the guard is switched off")
    if route is None:
        return say(
            Status.SKIPPED,
            "requests pass through, and a 404 reaches the program as it comes: nothing is waited "
            "for, asked or sent again",
        )
    if settings.warmup_successes:
        first = f"the first request waits up to {settings.warmup_timeout:g} s for the route"
    else:
        first = "the first request is sent at once"
    if not SharedControlPlane(settings).asks_about(route.route):
        return say(
            Status.OK,
            f"{first}; after a 404 that its trainer did not write, it probes over new connections, "
            "and sends the same request again once a probe reaches the trainer, for up to "
            f"{settings.retry_timeout:g} s",
        )
    asked = place_asked(settings, route.route.origin)
    return say(
        Status.OK,
        f"{first}; after a 404 it asks {asked} whether the job runs, and sends the same request "
        f"again for up to {settings.retry_timeout:g} s while it does; a 404 of a job that is "
        "stopped or missing, or of the trainer itself, reaches the program at once",
    )


def _why_no_route(url: httpx.URL) -> tuple[Status, str, str]:
    """Status, detail and advice for a URL that is on no trainer route."""
    words = path_of(url).split("/")[1:]
    lowered = [word.lower() for word in words]
    place = origin(url)
    if _COLLECTION.lower() in lowered:
        at = lowered.index(_COLLECTION.lower())
        before, behind = words[:at], words[at + 1 :]
        is_control_planes = before[-2:-1] == ["accounts"]
        ids = [*before[-1:], *behind[:1]] if is_control_planes else behind[:2]
        if len(ids) < 2 or not all(ids):
            problem = "its path names no job, or no account"
        elif not all(_ID.fullmatch(name) for name in ids):
            problem = "the account or the job holds other characters than letters, digits and ._~-"
        elif is_control_planes:
            problem = "that is the job's place in the control plane, not its trainer's"
        elif words[at] != _COLLECTION:
            problem = f"its path has {_COLLECTION} in other letters"
        else:
            problem = "its path does not begin with /training/v1"
        are_good = len(ids) == 2 and all(_ID.fullmatch(name) for name in ids)
        account, job = ids if are_good else ("ACCOUNT", "JOB")
        return Status.PROBLEM, problem, _like(Route.of_job(place, account, job).url)
    passes = "the guard passes requests through, and adds only spans"
    how = f"To have it guarded: {variable('routes')}={suggest_pattern(url)}"
    if "/".join(["", *words]) == SERVERLESS:
        problem = "serverless training, in whose URL no job can be read that could be asked for"
        return Status.OK, f"{problem}; {passes}", how
    if words[:1] == ["training"] or _is_below(url.host, "fireworks.ai"):
        problem = "its path names no trainer job"
        return Status.PROBLEM, problem, _like(Route.of_job(place, "ACCOUNT", "JOB").url)
    if _is_below(url.host, "thinkingmachines.dev"):
        return Status.OK, f"the hosted Tinker service, which has no trainer route; {passes}", ""
    if is_local(url.host):
        return Status.OK, f"a local server without a trainer route; {passes}", how
    advice = f"If it should be one: {_EXPECTED}. {how}"
    return Status.WARNING, f"no trainer route; {passes}", advice


def _like(url: str) -> str:
    return f"It should look like {url}"


def _is_below(host: str, domain: str) -> bool:
    return host == domain or host.endswith(f".{domain}")


def is_local(host: str) -> bool:
    """Whether a host is this machine, or an address of its own network."""
    if _is_below(host, "localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_private or address.is_unspecified
