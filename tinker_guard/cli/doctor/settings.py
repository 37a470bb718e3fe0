"""Checks of the guard itself: its release and the `TINKER_GUARD_*` variables."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib.metadata import version
from typing import TYPE_CHECKING

from tinker_guard import __version__
from tinker_guard.cli.doctor.finding import Finding, Section, Status
from tinker_guard.install.child_env import SETTINGS
from tinker_guard.settings import (
    GuardSettings,
    InvalidSettingsError,
    misspelt_variables,
    unknown_inherited,
    variable,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


def check_versions() -> Iterator[Finding]:
    """Report the versions of the guard, httpx and Python."""
    yield Finding(
        Section.GUARD,
        "versions",
        Status.OK,
        f"tinker_guard {__version__}, httpx {version('httpx')}, Python {platform.python_version()}",
    )


def read_settings() -> tuple[GuardSettings, dict[str, str]]:
    """The settings that a guarded run has here, and the fault of each invalid variable.

    In a child process, what the parent process passes on counts too. An invalid setting has its
    default instead; if there is one, nothing is taken from the parent.
    """
    try:
        return GuardSettings.load_without_key(os.environ.get(SETTINGS) or "{}"), {}
    except InvalidSettingsError as error:
        problems = _problems_in(error)
    defaults = {name: field.default for name, field in GuardSettings.model_fields.items()}
    wrong = {name: value for name, value in defaults.items() if variable(name) in problems}
    try:
        return GuardSettings(**wrong), problems
    except InvalidSettingsError as error:
        # Only values that contradict each other remain.
        return GuardSettings(**defaults), problems | _problems_in(error)


def _problems_in(error: InvalidSettingsError) -> dict[str, str]:
    first, *lines = str(error).splitlines()
    if not lines:
        return {SETTINGS: first.removeprefix(f"{SETTINGS} ")}
    parts = (line.strip().partition(": ") for line in lines)
    return {name: problem for name, _, problem in parts}


def check_settings() -> Iterator[Finding]:
    """Check the `TINKER_GUARD_*` variables."""
    settings, problems = read_settings()
    for name, problem in problems.items():
        yield Finding(
            Section.GUARD,
            "settings",
            Status.PROBLEM,
            f"{name}: {problem}",
            f"The parent process passed it on. Unset {SETTINGS}."
            if name in (SETTINGS, *GuardSettings.model_fields)
            else "Correct or unset it: install_guard() refuses it.",
        )
    yield from _misspelt_variables()
    yield from _unknown_inherited()
    if settings.is_control_plane_url_lost:
        yield Finding(
            Section.GUARD,
            "settings",
            Status.WARNING,
            "control_plane_url was given with a key in it, which is not in this process: a guard "
            "here asks no control plane",
            f"Set {variable('control_plane_url')} to the whole URL here.",
        )
    elif settings.is_control_plane_key_lost:
        yield Finding(
            Section.GUARD,
            "settings",
            Status.WARNING,
            "the parent process has a key for the control plane that this one does not get: a "
            "guard here asks no control plane",
            f"Set {variable('control_plane_api_key')} here too.",
        )
    if not settings.enabled:
        yield Finding(
            Section.GUARD,
            "settings",
            Status.WARNING,
            f"{variable('enabled')} switches the guard off: runs go unguarded",
            "Unset it to guard them.",
        )
    changed = [
        f"{name} {_shown(name, value)}"
        for name, value in settings
        if value != GuardSettings.model_fields[name].default
    ]
    rest = "the others as by default" if changed else "all as by default"
    in_force = ", ".join([*changed, rest])
    if problems:
        in_force = f"in the checks below: {in_force}"
    yield Finding(Section.GUARD, "settings", Status.OK, in_force)


def _shown(name: str, value: object) -> object:
    if name == "control_plane_api_key":
        return "set"
    return " ".join(value) if isinstance(value, tuple) else value


def _unknown_inherited() -> Iterator[Finding]:
    with suppress(InvalidSettingsError):
        unknown = unknown_inherited(os.environ.get(SETTINGS) or "{}")
        if unknown:
            yield Finding(
                Section.GUARD,
                "settings",
                Status.WARNING,
                f"the parent process passes on settings that this release does not know: "
                f"{', '.join(unknown)}",
                "Install the same release of tinker-guard here.",
            )


def _misspelt_variables() -> Iterator[Finding]:
    for name, meant in misspelt_variables():
        yield Finding(
            Section.GUARD,
            "settings",
            Status.WARNING,
            f"{name} is no setting and changes nothing",
            f"Did you mean {meant}?" if meant else "Unset it; docs/settings.md lists all.",
        )
