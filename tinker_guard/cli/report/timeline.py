"""Counts over time and intervals, in bounded memory and for any order of input."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

SECOND: Final = 1_000_000_000
"""Times are whole nanoseconds, so that sums do not depend on the order of addition."""

MAX_BARS: Final = 160
"""How many bars a timeline has at the most."""
MAX_INTERVALS: Final = 300
"""How many separate intervals are kept; beyond that, the nearest are joined."""

# Each divides the next, so that bars can be joined.
WIDTHS: Final = tuple(
    int(seconds * SECOND)
    for seconds in (
        *(0.1, 0.5, 1, 5, 10, 30, 60, 300, 600, 1800, 3600, 21600),
        *(day * 86400 for day in (1, 7, 28, 364, 3640, 36400)),
    )
)


class Bar:
    """The number of events that began within one interval."""

    __slots__ = ("counts", "first")

    def __init__(self, first: int) -> None:
        self.counts: Counter[str] = Counter()
        self.first: int = first
        """When its first request or warmup began."""

    def add(self, other: Bar) -> None:
        """Add the counts of another bar."""
        self.counts.update(other.counts)
        self.first = min(self.first, other.first)


class Timeline:
    """Counts over time, in bars whose width grows with the total time.

    Bars begin at multiples of their width, so the order of addition does not matter.
    """

    def __init__(self) -> None:
        self._widths = iter(WIDTHS)
        self.width: int = next(self._widths)
        """The width of one bar, in nanoseconds."""
        self._bars: dict[int, Bar] = {}
        self._low = self._high = 0

    def add(self, kinds: Iterable[str], start: int) -> None:
        """Count an event that began at this time."""
        bar = self._bars.get(start // self.width)
        if bar is None:
            bar = self._new_bar(start)
        elif start < bar.first:
            bar.first = start
        counts = bar.counts
        for kind in kinds:
            counts[kind] += 1

    def merge(self, other: Timeline) -> None:
        """Add another timeline, whose bars must not be wider than this one's will be."""
        for bar in other._bars.values():
            mine = self._bars.get(bar.first // self.width) or self._new_bar(bar.first)
            mine.add(bar)
        while self.width < other.width:
            self._widen()

    def _new_bar(self, start: int) -> Bar:
        self._low = min(self._low or start, start)
        self._high = max(self._high, start)
        while self._high // self.width - self._low // self.width >= MAX_BARS:
            self._widen()
        return self._bars.setdefault(start // self.width, Bar(start))

    def _widen(self) -> None:
        self.width = next(self._widths)
        bars, self._bars = self._bars, {}
        for bar in bars.values():
            wider = self._bars.setdefault(bar.first // self.width, bar)
            if wider is not bar:
                wider.add(bar)

    @property
    def bars(self) -> list[tuple[int, Bar]]:
        """The non-empty bars, each with its start time, in order."""
        return [(index * self.width, bar) for index, bar in sorted(self._bars.items())]

    @property
    def bounds(self) -> tuple[int, int]:
        """The start of the first bar and the end of the last one; zeros if there is none."""
        if not self._bars:
            return 0, 0
        return min(self._bars) * self.width, (max(self._bars) + 1) * self.width


class Interval(NamedTuple):
    """An interval of time."""

    start: int
    end: int


class Intervals:
    """Intervals of time; adjacent and overlapping ones are joined."""

    def __init__(self) -> None:
        self._kept: list[Interval] = []

    def add(self, start: int, end: int) -> None:
        """Add an interval."""
        kept = self._kept
        # The intervals do not overlap, so their ends are sorted as well.
        low = bisect_left(kept, start, key=lambda interval: interval.end)
        high = bisect_right(kept, end, key=lambda interval: interval.start)
        if low < high:
            start, end = min(start, kept[low].start), max(end, kept[high - 1].end)
        kept[low:high] = [Interval(start, end)]
        if len(kept) > MAX_INTERVALS:
            nearest = min(range(len(kept) - 1), key=lambda at: kept[at + 1].start - kept[at].end)
            kept[nearest : nearest + 2] = [Interval(kept[nearest].start, kept[nearest + 1].end)]

    def merge(self, other: Intervals) -> None:
        """Add all intervals of another one."""
        for start, end in other._kept:
            self.add(start, end)

    @property
    def length(self) -> int:
        """The time that they cover."""
        return sum(end - start for start, end in self._kept)

    def joined(self, gap: int) -> list[Interval]:
        """The intervals; those no further apart than `gap` are joined."""
        found: list[Interval] = []
        for interval in self._kept:
            if found and interval.start - found[-1].end <= gap:
                found[-1] = Interval(found[-1].start, interval.end)
            else:
                found.append(interval)
        return found

    def touches(self, other: Interval) -> bool:
        """Whether one of them overlaps another interval."""
        at = bisect_left(self._kept, other.start, key=lambda interval: interval.end)
        return at < len(self._kept) and self._kept[at].start <= other.end
