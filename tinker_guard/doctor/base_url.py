"""What a base URL is: a trainer's route, almost one, or something that needs no guard."""

from __future__ import annotations

import ipaddress
import re
from functools import partial
from typing import TYPE_CHECKING, Final

import httpx

from tinker_guard.doctor.finding import Finding, Section, Status
from tinker_guard.route import Route, RouteTable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tinker_guard.route import RouteState

_EXPECTED: Final = "https://HOST/training/v1/rlorTrainerJobs/ACCOUNT/JOB"
_COLLECTION: Final = "rlorTrainerJobs"
_ID: Final = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._~-]+")


def find_route(url: str | None) -> RouteState | None:
    """The trainer route that a base URL lies on, in a table of its own."""
    parsed = None if url is None else parse(url)
    if parsed is None:
        return None
    return RouteTable().find(httpx.URL(f"{origin(parsed)}{_path(parsed)}/"))


def check_base_url(url: str | None) -> Iterator[Finding]:
    """Say what a base URL is recognised as, and of one that is almost right what is wrong.

    Args:
        url: The URL, as given to the SDK; None if there is none.
    """
    say = partial(Finding, Section.GATEWAY, "base URL")
    if url is None:
        yield say(
            Status.SKIPPED,
            "none given, and TINKER_BASE_URL is not set: tinker takes its hosted service",
            f"Run: tinker-guard doctor {_EXPECTED}",
        )
        return
    parsed = parse(url)
    if parsed is None:
        yield say(
            Status.PROBLEM, "this is no URL with http:// or https:// and a host", _like(_EXPECTED)
        )
        return
    if parsed.userinfo or parsed.query or parsed.fragment:
        yield say(
            Status.WARNING,
            "it holds a user name, a query or a fragment, which logs and errors may show",
            "Take it out; a key belongs into the SDK's own variable or argument.",
        )
    place = origin(parsed)
    route = find_route(url)
    if route is None:
        status, detail, to_do = _why_no_route(parsed)
        yield say(status, f"{place}: {detail}", to_do)
    elif _path(parsed) != route.route.path:
        yield say(
            Status.PROBLEM,
            f"{place}: a trainer route, but the path goes on behind the job, where the SDK puts "
            "/api/v1/... itself",
            _like(route.route.url),
        )
    else:
        yield say(
            Status.OK,
            f"trainer route of account {route.route.account}, job {route.route.job} at {place}",
        )


def _why_no_route(url: httpx.URL) -> tuple[Status, str, str]:
    """Status, detail and advice for a URL that is on no trainer route."""
    words = _path(url).split("/")[1:]
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
        return Status.PROBLEM, problem, _like(Route(place, account, job).url)
    passes = "the guard passes requests through, and adds only spans"
    if words[:3] == ["training", "v1", "serverless"]:
        return Status.OK, f"serverless training, which has no trainer job; {passes}", ""
    if words[:1] == ["training"] or _is_below(url.host, "fireworks.ai"):
        problem = "its path names no trainer job"
        return Status.PROBLEM, problem, _like(Route(place, "ACCOUNT", "JOB").url)
    if _is_below(url.host, "thinkingmachines.dev"):
        return Status.OK, f"the hosted Tinker service, which has no trainer route; {passes}", ""
    if is_local(url.host):
        return Status.OK, f"a local server without a trainer route; {passes}", ""
    return Status.WARNING, f"no trainer route; {passes}", f"If it should be one: {_EXPECTED}"


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


def parse(url: str) -> httpx.URL | None:
    """Read a URL; None if it is none with http:// or https:// and a host."""
    parsed = parse_any(url)
    return parsed if parsed is not None and parsed.scheme in ("http", "https") else None


def parse_any(url: str) -> httpx.URL | None:
    """Read a URL of any scheme; None if it is none with a host."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return None
    # What cannot be part of a name, httpx escapes.
    return parsed if parsed.host and "%" not in parsed.host else None


def origin(url: httpx.URL) -> str:
    """Scheme, host and port: what of a URL may be shown."""
    return f"{url.scheme}://{url.netloc.decode('ascii')}"


def _path(url: httpx.URL) -> str:
    return url.raw_path.partition(b"?")[0].decode("ascii").rstrip("/")
