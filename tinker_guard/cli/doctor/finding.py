"""The result of one check."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """The effect of a finding on a run."""

    OK = "ok"
    WARNING = "warning"
    """A run works, but perhaps not as expected."""
    PROBLEM = "problem"
    """A run would fail, or would not be guarded."""
    SKIPPED = "skipped"
    """Missing, but not needed by a run."""


class Section(StrEnum):
    """The subject of a finding."""

    GUARD = "Guard"
    SDKS = "SDKs"
    GATEWAY = "Gateway"
    SPANS = "Spans"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    section: Section
    what: str
    """The subject of the check, in a word or two."""
    status: Status
    detail: str
    """The result."""
    to_do: str = ""
    """The remedy; empty if none is needed."""


def listed(names: list[str]) -> str:
    """A list of names in words: a, b and c."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
