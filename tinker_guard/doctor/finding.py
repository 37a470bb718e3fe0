"""What a check of the doctor gives."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """What a finding means for a run."""

    OK = "ok"
    WARNING = "warning"
    """A run works, but not as somebody may expect."""
    PROBLEM = "problem"
    """A run would fail, or go unguarded."""
    SKIPPED = "skipped"
    """Not there, and nothing that a run needs."""


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
    """What was looked at, in a word or two."""
    status: Status
    detail: str
    """What was found."""
    to_do: str = ""
    """What a person can do about it; empty where nothing is to be done."""


def listed(names: list[str]) -> str:
    """Names as a person lists them: a, b and c."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def duration(seconds: float) -> str:
    """A time as a person says it."""
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
