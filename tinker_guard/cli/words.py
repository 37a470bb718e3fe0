"""Durations in words, for people."""

from __future__ import annotations

from typing import Final


def duration(seconds: float) -> str:
    """A duration in the two largest units that it needs."""
    if seconds == 0:
        return "0 s"
    if seconds < 0.9995:
        return f"{seconds * 1000:.{0 if seconds >= 0.01 else 1}f} ms"
    if seconds < 59.995:
        return f"{seconds:.2f} s"
    whole = round(seconds)
    for unit, size, part, part_size in _UNITS:
        if whole >= size:
            count, rest = divmod(whole, size)
            return f"{count:,} {unit} {rest // part_size} {part}"
    return f"{whole} s"


_UNITS: Final = (
    ("d", 86400, "h", 3600),
    ("h", 3600, "min", 60),
    ("min", 60, "s", 1),
)
