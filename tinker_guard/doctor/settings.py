"""The guard itself: its release, and the `TINKER_GUARD_*` variables."""

from __future__ import annotations

import os
import platform
from difflib import get_close_matches
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from pydantic import SecretStr

from tinker_guard._version import __version__
from tinker_guard.children import SETTINGS
from tinker_guard.doctor.finding import Finding, Section, Status
from tinker_guard.settings import GuardSettings, InvalidSettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator

_PREFIX: Final = "TINKER_GUARD_"
_MISSPELT: Final = 0.9
"""How alike a variable of another prefix must be to one of ours to be called a misspelt one."""


def check_versions() -> Iterator[Finding]:
    """Say what this is."""
    yield Finding(
        Section.GUARD,
        "versions",
        Status.OK,
        f"tinker_guard {__version__}, httpx {version('httpx')}, Python {platform.python_version()}",
    )


def read_settings() -> tuple[GuardSettings, dict[str, str]]:
    """The settings of the environment, and by variable what is wrong with those that cannot work.

    In the place of such a one stands its default.
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
        # What remains are values that do not fit each other.
        return GuardSettings(**defaults), problems | _problems_in(error)


def _problems_in(error: InvalidSettingsError) -> dict[str, str]:
    lines = (line.strip().partition(": ") for line in str(error).splitlines()[1:])
    return {name: problem for name, _, problem in lines}


def variable(setting: str) -> str:
    """The environment variable of a setting."""
    return _PREFIX + setting.upper()


def check_settings() -> Iterator[Finding]:
    """Look at the `TINKER_GUARD_*` variables."""
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
    if not settings.enabled:
        yield Finding(
            Section.GUARD,
            "settings",
            Status.WARNING,
            f"{variable('enabled')} switches the guard off: runs go unguarded",
            "Unset it to guard them.",
        )
    changed = [
        f"{name} {'set' if isinstance(value, SecretStr) else value}"
        for name, value in settings
        if value != GuardSettings.model_fields[name].default
    ]
    rest = "the others as by default" if changed else "all as by default"
    in_force = ", ".join([*changed, rest])
    if problems:
        in_force = f"in the checks below: {in_force}"
    yield Finding(Section.GUARD, "settings", Status.OK, in_force)


def _misspelt_variables() -> Iterator[Finding]:
    known = [variable(name) for name in GuardSettings.model_fields]
    for name in sorted(os.environ):
        upper = name.upper()
        is_ours = upper.startswith(_PREFIX)
        if upper in known or upper == SETTINGS:
            continue
        if is_ours:
            # Without the prefix, which they all share.
            fields = [other.removeprefix(_PREFIX) for other in known]
            near = [_PREFIX + field for field in get_close_matches(upper[len(_PREFIX) :], fields)]
        else:
            near = get_close_matches(upper, known, cutoff=_MISSPELT)
        if is_ours or near:
            yield Finding(
                Section.GUARD,
                "settings",
                Status.WARNING,
                f"{name} is no setting and changes nothing",
                f"Did you mean {near[0]}?" if near else "Unset it; the README lists the settings.",
            )
