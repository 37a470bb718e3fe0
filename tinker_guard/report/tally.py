"""What a stream of spans adds up to, in bounded memory and whatever their order.

Almost every fact stands on a span itself. Two do not: when a request's answered resend began, and
whether a warmup had to ask the control plane. Those are joined by the parent's id among the
`MAX_FAMILIES` parents met last; a request whose resend is not found there, or not in the file,
counts with its whole duration, and how many do is told.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from tinker_guard.report.reading import OTHER, Question, Request, Resend, Warmup

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tinker_guard.report.reading import Record

SECOND: Final = 1_000_000_000
"""Times are whole nanoseconds, so that sums do not depend on the order of what is added."""

MAX_FAMILIES: Final = 50_000
"""How many parents are remembered while their children may still come."""
MAX_JOBS: Final = 1_000
"""How many jobs are told apart; what belongs to further ones is added up under one name."""
MAX_BARS: Final = 160
"""How many bars a timeline has at the most."""
MAX_INTERVALS: Final = 300
"""How many separate races of one job are told apart; the nearest ones are joined beyond that."""
SLOWEST: Final = 10
"""How many of the slowest recoveries are kept."""

SAME_RACE: Final = 1 * SECOND
"""Requests that meet a race within this time of each other meet the same one."""
NEW_RUN_AFTER: Final = 600 * SECOND
"""A job without a request for so long was not in use; what comes then is another run."""

DEFINITIONS: Final = {
    "race met": "a request that was sent again, or whose 404 was a race when it gave up.",
    "time lost to races": "from the start of each request that met a race to the start of the "
    "resend that was answered. Requests that got no answer, or whose resend is not in the file, "
    "count with their whole time; a warmup inside of a request does not count. Requests that "
    "waited side by side each count, but once only in the time by the clock.",
    "crash avoided": "a recovered request would have ended an unguarded run. Requests of one job "
    "that met a race within 1 s of each other count as one crash; so does a warmup that met 404s "
    "and then opened. None is counted where another request got no answer in the same race.",
    "time saved": "an estimate: for each run, the time from its first request to the last crash "
    "avoided. That is what a run without a guard would have lost in all, had it started from the "
    "beginning after each crash, at once. With checkpoints it is less, with a queue for machines "
    "more. A run is what one job did without a pause of ten minutes, or of one bar of its "
    "timeline where bars are longer.",
}
"""What the less obvious figures mean, for people to read."""


# -- time ----------------------------------------------------------------------------------------

# Each divides the next, so that bars can be joined.
_WIDTHS: Final = tuple(
    int(seconds * SECOND)
    for seconds in (
        *(0.1, 0.5, 1, 5, 10, 30, 60, 300, 600, 1800, 3600, 21600),
        *(day * 86400 for day in (1, 7, 28, 364, 3640, 36400)),
    )
)

BAR_KINDS: Final = (
    "requests",
    "recovered",
    "exhausted",
    "job_gone",
    "trainer_404",
    "unverified",
    "error",
    "warmups",
)
"""What is counted in each bar of a timeline."""


class Bar:
    """What began within one stretch of time."""

    __slots__ = ("counts", "first", "last")

    def __init__(self, first: int, last: int) -> None:
        self.counts = dict.fromkeys(BAR_KINDS, 0)
        self.first = first
        """When the first request or warmup in it began."""
        self.last = last
        """When the last one of them ended."""

    def add(self, other: Bar) -> None:
        """Take in what another one holds."""
        for kind, count in other.counts.items():
            self.counts[kind] += count
        self.first = min(self.first, other.first)
        self.last = max(self.last, other.last)


class Timeline:
    """Counts over time, in bars that grow wider as the time to be shown grows longer.

    Bars begin at multiples of their width, so that it does not matter what is added first.
    """

    def __init__(self) -> None:
        self._widths = iter(_WIDTHS)
        self.width = next(self._widths)
        """Nanoseconds that one bar stands for."""
        self._bars: dict[int, Bar] = {}
        self._low = self._high = 0

    def add(self, kinds: Iterable[str], start: int, end: int) -> None:
        """Count something that began and ended at these times."""
        bar = self._bars.get(start // self.width)
        if bar is None:
            bar = self._new_bar(start, end)
        elif start < bar.first:
            bar.first = start
        if end > bar.last:
            bar.last = end
        counts = bar.counts
        for kind in kinds:
            counts[kind] += 1

    def merge(self, other: Timeline) -> None:
        """Add all that another timeline, whose bars are no wider than this one's will be, holds."""
        for bar in other._bars.values():
            mine = self._bars.get(bar.first // self.width) or self._new_bar(bar.first, bar.last)
            mine.add(bar)
        while self.width < other.width:
            self._widen()

    def _new_bar(self, start: int, end: int) -> Bar:
        self._low = min(self._low or start, start)
        self._high = max(self._high, start)
        while self._high // self.width - self._low // self.width >= MAX_BARS:
            self._widen()
        return self._bars.setdefault(start // self.width, Bar(start, end))

    def _widen(self) -> None:
        self.width = next(self._widths)
        bars, self._bars = self._bars, {}
        for bar in bars.values():
            wider = self._bars.setdefault(bar.first // self.width, bar)
            if wider is not bar:
                wider.add(bar)

    @property
    def bars(self) -> list[tuple[int, Bar]]:
        """The bars that are not empty, each with the time at which it begins, in their order."""
        return [(index * self.width, bar) for index, bar in sorted(self._bars.items())]

    @property
    def bounds(self) -> tuple[int, int]:
        """When the first bar begins and the last one ends; zeros if there is none."""
        if not self._bars:
            return 0, 0
        return min(self._bars) * self.width, (max(self._bars) + 1) * self.width

    def runs(self) -> list[Interval]:
        """The stretches of time without a long pause."""
        found: list[Interval] = []
        for _, bar in self.bars:
            if found and bar.first - found[-1].end <= NEW_RUN_AFTER:
                found[-1] = Interval(found[-1].start, max(found[-1].end, bar.last))
            else:
                found.append(Interval(bar.first, bar.last))
        return found


class Interval(NamedTuple):
    """A stretch of time."""

    start: int
    end: int


class Intervals:
    """Stretches of time, those that touch or overlap joined."""

    def __init__(self) -> None:
        self._kept: list[Interval] = []

    def add(self, start: int, end: int) -> None:
        """Add one."""
        kept = self._kept
        # Those kept do not overlap, so their ends are sorted as well.
        low = bisect_left(kept, start, key=lambda interval: interval.end)
        high = bisect_right(kept, end, key=lambda interval: interval.start)
        if low < high:
            start, end = min(start, kept[low].start), max(end, kept[high - 1].end)
        kept[low:high] = [Interval(start, end)]
        if len(kept) > MAX_INTERVALS:
            nearest = min(range(len(kept) - 1), key=lambda at: kept[at + 1].start - kept[at].end)
            kept[nearest : nearest + 2] = [Interval(kept[nearest].start, kept[nearest + 1].end)]

    @property
    def length(self) -> int:
        """The time that they cover."""
        return sum(end - start for start, end in self._kept)

    def joined(self, gap: int) -> list[Interval]:
        """They, with those joined that are no further apart than `gap`."""
        found: list[Interval] = []
        for interval in self._kept:
            if found and interval.start - found[-1].end <= gap:
                found[-1] = Interval(found[-1].start, interval.end)
            else:
                found.append(interval)
        return found

    def touches(self, other: Interval) -> bool:
        """Whether one of them has a moment in common with another one."""
        at = bisect_left(self._kept, other.start, key=lambda interval: interval.end)
        return at < len(self._kept) and self._kept[at].start <= other.end


# -- sums ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Sums:
    """Figures of one job, or of all. Times are nanoseconds."""

    outcomes: Counter[str] = field(default_factory=Counter)
    """Requests by how they ended."""
    resends: int = 0
    races_met: int = 0
    races_recovered: int = 0
    lost: int = 0
    lost_by_the_clock: int = 0
    counted_whole: int = 0
    """Requests that met a race and got an answer, but whose answered resend was not found."""
    runs: int = 0
    runs_saved: int = 0
    """Runs with a crash avoided."""
    crashes_avoided: int = 0
    saved: int = 0
    warmups: int = 0
    warmups_met_404: int = 0
    warmups_refused: int = 0
    warmup_wait: int = 0
    warmup_wait_after_404: int = 0
    """Of it, what was spent in warmups that met 404s."""
    warmup_slowest: int = 0
    not_found: Counter[str] = field(default_factory=Counter)
    """Genuine ones, by reason."""
    unverified: Counter[str] = field(default_factory=Counter)
    """By reason."""
    questions: Counter[str] = field(default_factory=Counter)
    """By the reason that the answer gave, or `no_answer`."""

    @property
    def requests(self) -> int:
        """All requests."""
        return self.outcomes.total()

    def add(self, other: Sums) -> None:
        """Add another one's figures."""
        for name in self.__slots__:
            if name == "warmup_slowest":
                self.warmup_slowest = max(self.warmup_slowest, other.warmup_slowest)
            else:
                setattr(self, name, getattr(self, name) + getattr(other, name))


class JobName(NamedTuple):
    """What spans are told apart by."""

    account: str | None
    job: str | None

    def __str__(self) -> str:
        if self == FURTHER_JOBS:
            return "(further jobs)"
        return "(no trainer route)" if self.job is None else f"{self.account or '?'}/{self.job}"


FURTHER_JOBS: Final = JobName(None, "")


@dataclass(slots=True)
class Job:
    """All about one job."""

    name: JobName
    sums: Sums = field(default_factory=Sums)
    timeline: Timeline = field(default_factory=Timeline)
    survived: Intervals = field(default_factory=Intervals)
    """When requests waited for a race that they came through."""
    lost: Intervals = field(default_factory=Intervals)
    """When requests waited for a race, whatever came of it."""
    died: Intervals = field(default_factory=Intervals)
    """When requests waited for a race, and gave up."""

    def conclude(self) -> None:
        """Work out what is known only when everything has been seen."""
        runs = self.timeline.runs()
        crashes = [race for race in self.survived.joined(SAME_RACE) if not self.died.touches(race)]
        sums = self.sums
        sums.lost_by_the_clock = self.lost.length
        sums.runs = len(runs)
        sums.crashes_avoided = len(crashes)
        for run in runs:
            moments = [race.start for race in crashes if run.start <= race.start <= run.end]
            if moments:
                sums.runs_saved += 1
                sums.saved += max(moments) - run.start


class Recovery(NamedTuple):
    """One recovered request; sorts by the time lost, then by what tells it apart."""

    lost: int
    request: Request
    is_whole: bool
    """Whether its whole duration counts, because the resend that was answered was not found."""


@dataclass(slots=True)
class Report:
    """What there is to tell."""

    all_jobs: Sums
    timeline: Timeline
    jobs: list[Job]
    """Those with most to tell first."""
    slowest: list[Recovery]


# -- the tally -----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Family:
    """A span that others are joined to by its id, and what is known of them."""

    request: Request | None = None
    warmup: Warmup | None = None
    resend: Resend | None = None
    """The last resend below it, by number."""
    waited: int = 0
    """How long the warmup below it took."""
    has_asked: bool = False
    """Whether a question stands below it."""


class Tally:
    """Adds up records as they come."""

    def __init__(self, max_families: int = MAX_FAMILIES) -> None:
        self._jobs: dict[tuple[str | None, str | None], Job] = {}
        self._families: OrderedDict[int, _Family] = OrderedDict()
        self._max_families = max_families
        self._slowest: list[Recovery] = []

    def add(self, record: Record) -> None:
        """Add one record."""
        if isinstance(record, Request):
            self._add_request(record)
        elif isinstance(record, Resend):
            if record.parent_id is not None:
                family = self._family(record.parent_id)
                if family.resend is None or record.number > family.resend.number:
                    family.resend = record
        elif isinstance(record, Question):
            self._job(record.account, record.job).sums.questions[record.reason or "no_answer"] += 1
            if record.parent_id is not None:
                self._family(record.parent_id).has_asked = True
        else:
            self._add_warmup(record)

    def report(self) -> Report:
        """Conclude. Nothing can be added afterwards."""
        while self._families:
            self._settle(self._families.popitem(last=False)[1])
        total, timeline = Sums(), Timeline()
        jobs = list(self._jobs.values())
        for job in jobs:
            job.conclude()
            total.add(job.sums)
            timeline.merge(job.timeline)
        jobs.sort(key=_by_interest)
        return Report(total, timeline, jobs, sorted(self._slowest, reverse=True))

    def _job(self, account: str | None, job: str | None) -> Job:
        found = self._jobs.get((account, job))
        if found is None:
            name = JobName(account, job) if len(self._jobs) < MAX_JOBS else FURTHER_JOBS
            found = self._jobs.get(name) or self._jobs.setdefault(name, Job(name))
        return found

    def _add_request(self, request: Request) -> None:
        job = self._job(request.account, request.job)
        sums = job.sums
        outcome = request.outcome
        sums.outcomes[outcome] += 1
        if outcome == "ok" and not request.resends:
            job.timeline.add(_REQUEST, request.start, request.end)
            return
        kinds = ["requests"]
        reason = request.reason or OTHER
        if outcome == "not_found":
            sums.not_found[reason] += 1
            kinds.append("trainer_404" if reason == "trainer_answered" else "job_gone")
        elif outcome == "unverified":
            sums.unverified[reason] += 1
            kinds.append("unverified")
        elif outcome in ("recovered", "exhausted", "error"):
            kinds.append(outcome)
        job.timeline.add(kinds, request.start, request.end)
        if request.resends or request.is_race:
            sums.resends += request.resends
            sums.races_met += 1
            sums.races_recovered += outcome == "recovered"
            self._family(request.span_id).request = request

    def _add_warmup(self, warmup: Warmup) -> None:
        job = self._job(warmup.account, warmup.job)
        sums = job.sums
        seconds = warmup.end - warmup.start
        sums.warmups += 1
        sums.warmups_refused += warmup.is_refused
        sums.warmup_wait += seconds
        sums.warmup_slowest = max(sums.warmup_slowest, seconds)
        job.timeline.add(_WARMUP, warmup.start, warmup.end)
        self._family(warmup.span_id).warmup = warmup
        if warmup.parent_id is not None:
            self._family(warmup.parent_id).waited += seconds

    def _family(self, span_id: int) -> _Family:
        family = self._families.get(span_id)
        if family is not None:
            self._families.move_to_end(span_id)
            return family
        if len(self._families) >= self._max_families:
            self._settle(self._families.popitem(last=False)[1])
        return self._families.setdefault(span_id, _Family())

    def _settle(self, family: _Family) -> None:
        """Count what needed the children, now that no more are waited for."""
        warmup = family.warmup
        # A refused one may have got its answer from another's question.
        if warmup is not None and (family.has_asked or warmup.is_refused):
            job = self._job(warmup.account, warmup.job)
            job.sums.warmups_met_404 += 1
            job.sums.warmup_wait_after_404 += warmup.end - warmup.start
            if not warmup.is_refused:
                job.survived.add(warmup.start, warmup.end)
        if family.request is not None:
            self._settle_race(family.request, family)

    def _settle_race(self, request: Request, family: _Family) -> None:
        job = self._job(request.account, request.job)
        end = request.end
        is_answered = request.outcome in ("recovered", "not_found", "unverified")
        resend = family.resend
        has_resend = resend is not None and resend.number == request.resends
        if is_answered and resend is not None and has_resend:
            end = min(max(request.start, resend.start), request.end)
        elif is_answered:
            job.sums.counted_whole += 1
        lost = max(0, end - request.start - family.waited)
        job.sums.lost += lost
        job.lost.add(end - lost, end)
        if request.outcome == "recovered":
            job.survived.add(end - lost, end)
            insort(self._slowest, Recovery(lost, request, not has_resend))
            del self._slowest[:-SLOWEST]
        elif request.outcome == "exhausted":
            job.died.add(end - lost, end)


_REQUEST: Final = ("requests",)
_WARMUP: Final = ("warmups",)


def _by_interest(job: Job) -> tuple[int, int, str]:
    sums = job.sums
    gone = sums.not_found.total() - sums.not_found["trainer_answered"]
    return -(sums.races_met + sums.warmups_met_404 + gone), -sums.requests, str(job.name)
