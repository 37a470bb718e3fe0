"""Checks of the guard itself: its release and the `TINKER_GUARD_*` variables."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import TYPE_CHECKING

from pydantic import SecretStr

from tinker_guard import __version__
from tinker_guard.cli.doctor.finding import Finding, Section, Status
from tinker_guard.install.child_env import SETTINGS
from tinker_guard.settings import (
    GuardSettings,
    InvalidSettingsError,
    misspelt_variables,
    variable,
    without_keys,
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
    """The settings from the environment, and the fault of each invalid variable.

    An invalid setting has its default instead.
    """
    try:
        return GuardSettings(), {}
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
    lines = (line.strip().partition(": ") for line in str(error).splitlines()[1:])
    return {name: problem for name, _, problem in lines}


def check_settings() -> Iterator[Finding]:
    """Check the `TINKER_GUARD_*` variables."""
    settings, problems = read_settings()
    for name, problem in problems.items():
        yield Finding(
            Section.GUARD,
            "settings",
            Status.PROBLEM,
            f"{name}: {problem}",
            "Correct or unset it: install_guard() refuses it.",
        )
    yield from _misspelt_variables()
    if _is_key_lost():
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
    if isinstance(value, SecretStr):
        return "set"
    if name == "control_plane_url":
        return without_keys(str(value))
    return " ".join(value) if isinstance(value, tuple) else value


def _is_key_lost() -> bool:
    """Whether a parent process was given a key in code, which child processes do not get."""
    try:
        inherited = GuardSettings.load_without_key(os.environ.get(SETTINGS, "{}"))
    except Exception:
        # The variable may hold anything.
        return False
    return inherited.is_control_plane_key_lost


def _misspelt_variables() -> Iterator[Finding]:
    for name, meant in misspelt_variables():
        yield Finding(
            Section.GUARD,
            "settings",
            Status.WARNING,
            f"{name} is no setting and changes nothing",
            f"Did you mean {meant}?" if meant else "Unset it; docs/settings.md lists all.",
        )
