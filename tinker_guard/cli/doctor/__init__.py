"""The checks of `tinker-guard doctor` for a guarded run on this machine.

Each check returns findings; a failed check returns a finding about the failure. No finding has a
secret: it shows whether a key is set; scheme, host, port, account and job of a URL;
and only the type of an exception that is not the guard's own.
"""

from __future__ import annotations

import asyncio
import os
import time
from functools import partial
from typing import TYPE_CHECKING

import httpx

from tinker_guard.cli.doctor.base_url import check_base_url, find_route, say_in_words
from tinker_guard.cli.doctor.finding import Finding, Section, Status
from tinker_guard.cli.doctor.gateway import (
    ask,
    key_for_control_plane,
    no_control_plane,
    not_asked,
    probe,
    say_answer,
    say_found,
)
from tinker_guard.cli.doctor.network import check_proxy, find_obstacle
from tinker_guard.cli.doctor.sdks import (
    check_any_sdk,
    check_rest_clients,
    check_sdk,
    check_unguarded,
    find_key,
)
from tinker_guard.cli.doctor.settings import check_settings, check_versions, read_settings
from tinker_guard.cli.doctor.spans import check_exporter, check_recording
from tinker_guard.control_plane.chosen import place_asked
from tinker_guard.control_plane.shared import SharedControlPlane
from tinker_guard.core.findings import Failed
from tinker_guard.install.sdks import REST_CLIENTS, SDKS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tinker_guard.core.routes import RouteState
    from tinker_guard.policy.judgement import JobAnswer

__all__ = ["Finding", "Section", "Status", "examine"]


def examine(url: str | None = None) -> Iterator[Finding]:
    """Run all checks, and yield each finding at once.

    Installs the guard into this process for a moment, and uninstalls it. Makes one lookup and sends
    one probe to the trainer's route. Takes a second or two; up to half a minute if no server
    answers.

    Args:
        url: The trainer's base URL, as given to the SDK; None reads `TINKER_BASE_URL`.
    """
    return _Examination(url or os.environ.get("TINKER_BASE_URL") or None).run()


class _Examination:
    """The checks in order; later ones use the results of earlier ones."""

    def __init__(self, url: str | None) -> None:
        self._url = url
        self._settings, _ = read_settings()
        self._route: RouteState | None = None
        self._answer: JobAnswer | None = None

    def run(self) -> Iterator[Finding]:
        yield from _isolated(Section.GUARD, "versions", check_versions)
        yield from _isolated(Section.GUARD, "settings", check_settings)
        for sdk in SDKS:
            yield from _isolated(
                Section.SDKS, sdk.distribution, partial(check_sdk, sdk, self._settings)
            )
        for rest in REST_CLIENTS:
            check = partial(check_rest_clients, rest, self._settings)
            yield from _isolated(Section.SDKS, "REST clients", check)
        yield from _isolated(Section.SDKS, "SDK", check_any_sdk)
        yield from _isolated(
            Section.SDKS, "other requests", partial(check_unguarded, self._settings)
        )
        yield from _isolated(Section.GATEWAY, "base URL", self._base_url)
        yield from _isolated(Section.GATEWAY, "proxy", partial(check_proxy, self._url))
        yield from _isolated(Section.GATEWAY, "control plane", self._control_plane)
        yield from _isolated(Section.GATEWAY, "trainer route", self._trainer_route)
        yield from _isolated(Section.SPANS, "OpenTelemetry", check_recording)
        yield from _isolated(Section.SPANS, "exporter", partial(check_exporter, self._settings))

    def _base_url(self) -> Iterator[Finding]:
        self._route = find_route(self._url, self._settings)
        yield from check_base_url(self._url, self._settings)
        yield say_in_words(self._route, self._settings)

    def _control_plane(self) -> Iterator[Finding]:
        if self._route is None:
            yield not_asked("control plane")
            return
        route, settings = self._route.route, self._settings
        if not SharedControlPlane(settings).asks_about(route):
            yield no_control_plane()
            return
        key = find_key()
        started_at = time.perf_counter()
        answer = asyncio.run(ask(self._route, self._settings, key))
        seconds = time.perf_counter() - started_at
        self._answer = answer
        place = place_asked(settings, route.origin)
        is_cut_off = answer.failure is not None and answer.status_code is None
        is_over_http = place.startswith("http")
        obstacle = find_obstacle(httpx.URL(place)) if is_cut_off and is_over_http else None
        variable = key_for_control_plane(settings, key, place, route.origin)
        yield say_answer(answer, seconds, place, variable, obstacle)

    def _trainer_route(self) -> Iterator[Finding]:
        if self._route is None:
            yield not_asked("trainer route")
            return
        key = find_key()
        found, seconds = asyncio.run(probe(self._route, self._settings, key))
        is_cut_off = isinstance(found, Failed) and found.failure is not None
        obstacle = find_obstacle(httpx.URL(self._route.route.origin)) if is_cut_off else None
        yield say_found(found, seconds, self._answer, key.variable if key else None, obstacle)


def _isolated(
    section: Section, what: str, check: Callable[[], Iterable[Finding]]
) -> Iterator[Finding]:
    try:
        yield from check()
    except Exception as error:
        yield Finding(
            section,
            what,
            Status.PROBLEM,
            f"could not be looked at ({type(error).__name__})",
            "The other lines hold without this one. If it is no fault of what is installed here, "
            "please report it.",
        )
