"""The result of one check."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """What a finding means for a run."""

    OK = "ok"
    WARNING = "warning"
    """A run works, but perhaps not as expected."""
    PROBLEM = "problem"
    """A run would fail, or would not be guarded."""
    SKIPPED = "skipped"
    """Missing, but not needed by a run."""


class Section(StrEnum):
    """What a finding is about."""

    GUARD = "Guard"
    SDKS = "SDKs"
    GATEWAY = "Gateway"
    SPANS = "Spans"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    section: Section
    what: str
    """What was checked, in a word or two."""
    status: Status
    detail: str
    """What was found."""
    to_do: str = ""
    """What to do about it; empty if nothing has to be done."""


def listed(names: list[str]) -> str:
    """A list of names in words: a, b and c."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def duration(seconds: float) -> str:
    """A duration in words."""
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
