"""Times, durations and counts, for people and for machines."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tinker_guard.cli import words
from tinker_guard.cli.report.timeline import SECOND

if TYPE_CHECKING:
    from collections.abc import Mapping


def duration(nanoseconds: int) -> str:
    """A duration in the two largest units that it needs."""
    return words.duration(nanoseconds / SECOND)


def rough(nanoseconds: int) -> str:
    """A duration for a sentence: whole seconds from ten on."""
    seconds = nanoseconds / SECOND
    return f"{seconds:.0f} s" if 9.995 <= seconds < 59.5 else duration(nanoseconds)


def bar_width(nanoseconds: int) -> str:
    """The width of a timeline's bar, in one unit."""
    seconds = nanoseconds / SECOND
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:,g} {unit}"
    return f"{seconds:g} s"


def moment(nanoseconds: int, *, fraction: bool = False) -> str:
    """A time of day and date in UTC."""
    seconds, rest = divmod(nanoseconds, SECOND)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
    return f"{text}.{rest // 1_000_000:03d}" if fraction else text


def counts(of: Mapping[str, int]) -> str:
    """Such as `job_missing 3, trainer_answered 1`, the most frequent first; `none` if empty."""
    ranked = sorted(of.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {count:,}" for name, count in ranked if count) or "none"


def plural(count: int, one: str, many: str | None = None) -> str:
    """A count with its noun."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"
