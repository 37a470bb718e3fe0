"""One race over time: the phases of a request, and the guard's actions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from tinker_guard.cli.report.words import duration, plural

if TYPE_CHECKING:
    from tinker_guard.cli.report.tally import Event, Recovery


class Mark(NamedTuple):
    """An event on a lane. Times are nanoseconds since the request's start."""

    start: int
    end: int
    kind: str
    """A key of `KINDS`."""
    meaning: str


KINDS: Final = {
    "waits": ("-", "waits"),
    "passes": ("=", "sent, and answered"),
    "met": ("x", "404"),
    "good": ("o", "answered"),
    "failed": ("!", "failed"),
    "asked": ("?", "asked"),
}
"""The kinds of marks: character, and meaning in words."""

REQUEST: Final = "request"
"""The lane of the request itself."""
_LANES: Final = {"gate": "gate", "probe": "probes", "question": "questions", "resend": "resends"}


def lanes_of(recovery: Recovery) -> dict[str, list[Mark]]:
    """The marks by the names of the lanes, without empty lanes."""
    request = recovery.request
    length = request.end - request.start
    answered_at = length
    lanes: dict[str, list[Mark]] = {}
    for event in recovery.events:
        start, end = (min(max(at - request.start, 0), length) for at in (event.start, event.end))
        lanes.setdefault(event.kind, []).append(Mark(start, end, *_meaning(event)))
        if event.kind == "resend" or (event.kind == "gate" and not request.resends):
            answered_at = start if event.kind == "resend" else end
    if not recovery.events:
        answered_at = min(recovery.lost, length)
    own = [Mark(0, answered_at, "waits", f"waits for {duration(answered_at)}")]
    if answered_at < length:
        took = duration(length - answered_at)
        own.append(Mark(answered_at, length, "passes", f"is answered within {took}"))
    return {REQUEST: own} | {_LANES[kind]: lanes[kind] for kind in _LANES if kind in lanes}


def _meaning(event: Event) -> tuple[str, str]:
    result = event.result
    if event.kind == "gate":
        return "waits", result
    if event.kind == "question":
        return "asked", result
    if event.kind == "probe":
        kind = {"reached": "good", "not_found": "met"}.get(result, "failed")
        return kind, result
    kind = "met" if result == "404" else "good" if result[:1] in ("2", "3", "4") else "failed"
    return kind, result or "no status"


def said(recovery: Recovery) -> str:
    """The picture in words."""
    parts = [f"{name} {len(marks)}" for name, marks in lanes_of(recovery).items()][1:]
    request = recovery.request
    whole = duration(request.end - request.start)
    return (
        f"{request.name} waited {duration(recovery.lost)} of {whole} for a race, with "
        f"{plural(request.resends, 'resend')}" + (f"; drawn: {', '.join(parts)}" if parts else "")
    )


_NAMES: Final = 11
"""Columns of a terminal for the names of lanes."""


def as_text(recovery: Recovery, columns: int) -> list[str]:
    """The picture in lines of at most `columns` characters."""
    lanes = lanes_of(recovery)
    length = max(1, recovery.request.end - recovery.request.start)
    width = max(20, columns - _NAMES)
    lines = []
    for name, marks in lanes.items():
        row = [" "] * width
        for mark in marks:
            first = min(mark.start * width // length, width - 1)
            last = min(max(mark.end * width // length - 1, first), width - 1)
            character = KINDS[mark.kind][0]
            is_stretch = mark.kind in ("waits", "passes")
            for at in range(first, (last if is_stretch else first) + 1):
                row[at] = character
        lines.append(f"{name:<{_NAMES}}{''.join(row).rstrip()}")
    end = duration(length)
    lines.append(f"{'':<{_NAMES}}0 s{end:>{width - 3}}")
    used = dict.fromkeys(mark.kind for marks in lanes.values() for mark in marks)
    legend = ""
    for kind in KINDS:
        if kind not in used:
            continue
        word = " ".join(KINDS[kind])
        if len(legend) + 3 + len(word) > width:
            lines.append(f"{'':<{_NAMES}}{legend}")
            legend = ""
        legend += f"   {word}" if legend else word
    lines.append(f"{'':<{_NAMES}}{legend}")
    return lines
