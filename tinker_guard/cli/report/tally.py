"""Sums up a stream of spans, in bounded memory and in any order.

Almost every fact is on a span itself. Two are not: the start of a request's answered resend, and
whether a warmup had to ask the control plane. These are joined by the parent's id among the
last `MAX_FAMILIES` parents. A request whose resend is not found there, or not in the file,
counts with its whole duration; the report shows the number of such requests.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from tinker_guard.cli.report.records import OTHER, Probe, Question, Request, Resend, Warmup
from tinker_guard.cli.report.runs import FURTHER_JOBS, JobName, Room, Run, RunsOfJob
from tinker_guard.cli.report.timeline import Intervals, Timeline

if TYPE_CHECKING:
    from tinker_guard.cli.report.records import Record

RECENT: Final = 1024
"""Of so many requests and warmups each counts once: a batch that was sent again follows soon."""
MAX_FAMILIES: Final = 50_000
"""How many parents are kept while their children may still arrive."""
MAX_EVENTS: Final = 50_000
"""How many of their children are kept."""
MAX_EVENTS_EACH: Final = 200
"""How many children of one parent are kept."""
MAX_JOBS: Final = 1_000
"""How many jobs are distinguished; further ones are summed up under one name."""
MAX_RUNS: Final = 1_000
"""How many runs are distinguished, likewise."""
SLOWEST: Final = 10
"""How many of the slowest recoveries are kept."""

DEFINITIONS: Final = {
    "false 404": "a 404 of a job that runs: one before each resend, one that a request gives up "
    "on, and one for each request that a warmup held back from it.",
    "race met": "a request that was sent again, or whose 404 was a race when it gave up, or "
    "that waited for a race at the gate.",
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
    "more.",
    "run": "what one process did with one job. Processes are told apart by `service.instance.id` "
    "and `process.pid` of what they export; where both are missing, a run is what a job did "
    "without a pause of ten minutes.",
    "how a run ended": "by its last spans. It died of a 404 if that was handed back and no "
    "request but signs of life was sent afterwards; it finished if its session was closed after "
    "its last request. Else no end was seen: it runs, or was killed, or its last spans are not in "
    "the file.",
}
"""Explanations of the less obvious figures."""


# -- sums ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Sums:
    """Figures of one job, or of all. Times are nanoseconds."""

    outcomes: Counter[str] = field(default_factory=Counter)
    """Requests by outcome."""
    resends: int = 0
    races_met: int = 0
    races_recovered: int = 0
    lost: int = 0
    lost_by_the_clock: int = 0
    counted_whole: int = 0
    """Requests that met a race and got an answer, but whose answered resend was not found."""
    runs: int = 0
    runs_met: int = 0
    """Runs that met a race."""
    false_404s: int = 0
    waited: int = 0
    """The wall-clock time that each run spent waiting for races."""
    runs_saved: int = 0
    """Runs with a crash avoided."""
    crashes_avoided: int = 0
    saved: int = 0
    warmups: int = 0
    warmups_met_404: int = 0
    warmups_refused: int = 0
    warmup_wait: int = 0
    warmup_wait_after_404: int = 0
    """The part of it in warmups that met 404s."""
    warmup_slowest: int = 0
    not_found: Counter[str] = field(default_factory=Counter)
    """Genuine 404s, by reason."""
    unverified: Counter[str] = field(default_factory=Counter)
    """Unverified 404s, by reason."""
    questions: Counter[str] = field(default_factory=Counter)
    """Questions, by the reason from the answer, or `no_answer`."""

    @property
    def requests(self) -> int:
        """All requests."""
        return self.outcomes.total()

    def add(self, other: Sums) -> None:
        """Add the figures of another one."""
        for name in self.__slots__:
            if name == "warmup_slowest":
                self.warmup_slowest = max(self.warmup_slowest, other.warmup_slowest)
            else:
                setattr(self, name, getattr(self, name) + getattr(other, name))


class Job:
    """All about one job."""

    def __init__(self, name: JobName, room: Room) -> None:
        self.name: JobName = name
        self.sums: Sums = Sums()
        self.timeline: Timeline = Timeline()
        self.runs: RunsOfJob = RunsOfJob(name, room)
        self.lost: Intervals = Intervals()
        """When requests waited for a race, with any outcome."""

    def conclude(self) -> list[Run]:
        """Compute the figures that need all spans; returns the runs."""
        sums = self.sums
        sums.lost_by_the_clock = self.lost.length
        # Off trainer routes there is no trainer, and so no run.
        runs = [] if self.name.job is None else self.runs.all()
        sums.runs = len(runs)
        for run in runs:
            run.conclude()
            sums.false_404s += run.false_404s
            sums.waited += run.waited.length
            sums.crashes_avoided += run.crashes_avoided
            sums.runs_saved += run.crashes_avoided > 0
            sums.runs_met += run.false_404s > 0
            sums.saved += run.saved
        return runs


class Event(NamedTuple):
    """An action of the guard for a request; sorts by time."""

    start: int
    end: int
    kind: str
    """`gate`, `probe`, `question` or `resend`."""
    result: str
    """Gate: `opened` or `refused`; probe: `reached`, `not_found` or `failed`; question: the
    verdict's reason; resend: the status code or the exception. Empty if unknown."""


class Recovery(NamedTuple):
    """One request that met a race and got its answer."""

    lost: int
    """The time lost to the race, the wait at the gate included if the race was met there."""
    request: Request
    is_whole: bool
    """Whether its whole duration counts, because the answered resend was not found."""
    events: tuple[Event, ...]
    """The guard's actions, in order; for the slowest, also those for other requests of its race."""


@dataclass(slots=True)
class Report:
    """The results."""

    all_jobs: Sums
    timeline: Timeline
    jobs: list[Job]
    """The jobs, the most eventful first."""
    runs: list[Run]
    """The runs, by their beginning."""
    slowest: list[Recovery]


# -- the tally -----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Family:
    """A parent span, and the facts from its children."""

    request: Request | None = None
    warmup: Warmup | None = None
    resend: Resend | None = None
    """The last resend below it, by number."""
    waited: int = 0
    """How long the warmup below it took."""
    has_asked: bool = False
    """Whether there is a question below it."""
    events: list[Event] = field(default_factory=list)


class Tally:
    """Adds up records one by one."""

    def __init__(self, max_families: int = MAX_FAMILIES) -> None:
        self._jobs: dict[tuple[str | None, str | None], Job] = {}
        self._room = Room(MAX_RUNS)
        self._families: OrderedDict[int, _Family] = OrderedDict()
        self._max_families = max_families
        self._recent: OrderedDict[int, None] = OrderedDict()
        self._events = 0
        self._slowest: list[Recovery] = []
        self._slowest_leaders: list[Recovery] = []
        """The recoveries of requests that probed or asked; the other requests of a race wait."""

    def add(self, record: Record) -> None:
        """Add one record."""
        if isinstance(record, Request | Warmup):
            # What collectors forward arrives at least once.
            if record.span_id in self._recent:
                return
            self._recent[record.span_id] = None
            if len(self._recent) > RECENT:
                self._recent.popitem(last=False)
        if isinstance(record, Request):
            self._add_request(record)
        elif isinstance(record, Probe):
            self._note(record.parent_id, Event(record.start, record.end, "probe", record.result))
        elif isinstance(record, Resend):
            family = self._note(
                record.parent_id, Event(record.start, record.end, "resend", record.result)
            )
            if family and (family.resend is None or record.number > family.resend.number):
                family.resend = record
        elif isinstance(record, Question):
            reason = record.reason or "no_answer"
            self._job(record.account, record.job).sums.questions[reason] += 1
            family = self._note(
                record.parent_id, Event(record.start, record.end, "question", reason)
            )
            if family is not None:
                family.has_asked = True
        else:
            self._add_warmup(record)

    def report(self) -> Report:
        """Conclude. Nothing can be added afterwards."""
        # Warmups first: their actions belong to the request above them.
        for family in self._families.values():
            if family.warmup is not None:
                self._settle_warmup(family.warmup, family)
        while self._families:
            family = self._families.popitem(last=False)[1]
            if family.request is not None:
                self._settle_race(family.request, family)
        total, timeline = Sums(), Timeline()
        jobs = list(self._jobs.values())
        runs: list[Run] = []
        for job in jobs:
            runs += job.conclude()
            total.add(job.sums)
            timeline.merge(job.timeline)
        jobs.sort(key=_by_interest)
        runs.sort(key=lambda run: (run.start, str(run.job), str(run.process)))
        slowest = self._slowest[::-1]
        if slowest:
            slowest[0] = self._with_leaders(slowest[0])
        return Report(total, timeline, jobs, runs, slowest)

    def _job(self, account: str | None, job: str | None) -> Job:
        found = self._jobs.get((account, job))
        if found is None:
            name = JobName(account, job) if len(self._jobs) < MAX_JOBS else FURTHER_JOBS
            found = self._jobs.get(name) or self._jobs.setdefault(name, Job(name, self._room))
        return found

    def _add_request(self, request: Request) -> None:
        job = self._job(request.account, request.job)
        run = job.runs.at(request.process, request.start, request.end)
        run.add(request)
        sums = job.sums
        outcome = request.outcome
        sums.outcomes[outcome] += 1
        if outcome == "ok" and not request.resends:
            job.timeline.add(_REQUEST, request.start)
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
        job.timeline.add(kinds, request.start)
        if request.resends or request.is_race:
            sums.resends += request.resends
            sums.races_met += 1
            sums.races_recovered += outcome == "recovered"
            run.races_met += 1
            run.races_recovered += outcome == "recovered"
            # One 404 before each resend, and one that is handed back; or the warmup met it.
            run.false_404s += max(1, request.resends + (outcome == "exhausted"))
            self._family(request.span_id).request = request

    def _add_warmup(self, warmup: Warmup) -> None:
        job = self._job(warmup.account, warmup.job)
        job.runs.at(warmup.process, warmup.start, warmup.end)
        sums = job.sums
        seconds = warmup.end - warmup.start
        sums.warmups += 1
        sums.warmups_refused += warmup.is_refused
        sums.warmup_wait += seconds
        sums.warmup_slowest = max(sums.warmup_slowest, seconds)
        job.timeline.add(_WARMUP, warmup.start)
        self._family(warmup.span_id).warmup = warmup
        result = "refused" if warmup.is_refused else "opened"
        family = self._note(warmup.parent_id, Event(warmup.start, warmup.end, "gate", result))
        if family is not None:
            family.waited += seconds

    def _note(self, parent_id: int | None, event: Event) -> _Family | None:
        """Join an event to its parent, if it has one."""
        if parent_id is None:
            return None
        family = self._family(parent_id)
        if len(family.events) < MAX_EVENTS_EACH:
            family.events.append(event)
            self._events += 1
            while self._events > MAX_EVENTS and len(self._families) > 1:
                self._settle_oldest()
        return family

    def _family(self, span_id: int) -> _Family:
        family = self._families.get(span_id)
        if family is not None:
            self._families.move_to_end(span_id)
            return family
        if len(self._families) >= self._max_families:
            self._settle_oldest()
        return self._families.setdefault(span_id, _Family())

    def _settle_oldest(self) -> None:
        """Count the oldest family, and stop waiting for its children."""
        family = self._families.popitem(last=False)[1]
        if family.warmup is not None:
            self._settle_warmup(family.warmup, family)
        if family.request is not None:
            self._settle_race(family.request, family)
        self._events -= len(family.events)

    def _settle_warmup(self, warmup: Warmup, family: _Family) -> None:
        above = None if warmup.parent_id is None else self._families.get(warmup.parent_id)
        if above is not None:
            room = MAX_EVENTS_EACH - len(above.events)
            above.events += family.events[:room]
            self._events += len(family.events[:room])
        # A refused warmup may have used the answer to another request's question.
        if not (family.has_asked or warmup.is_refused):
            return
        job = self._job(warmup.account, warmup.job)
        job.sums.warmups_met_404 += 1
        job.sums.warmup_wait_after_404 += warmup.end - warmup.start
        run = job.runs.at(warmup.process, warmup.start, warmup.end)
        if not warmup.is_refused:
            run.survived.add(warmup.start, warmup.end)
            run.waited.add(warmup.start, warmup.end)

    def _settle_race(self, request: Request, family: _Family) -> None:
        job = self._job(request.account, request.job)
        run = job.runs.at(request.process, request.start, request.end)
        at_gate = request.gate_wait or family.waited
        if not request.resends and request.outcome == "recovered":
            # The race was met at the gate: its time is the warmup's, which is counted already.
            run.waited.add(request.start, request.start + at_gate)
            self._keep_slowest(Recovery(at_gate, request, False, tuple(sorted(family.events))))
            return
        end = request.end
        is_answered = request.outcome in ("recovered", "not_found", "unverified")
        resend = family.resend
        has_resend = resend is not None and resend.number == request.resends
        if is_answered and resend is not None and has_resend:
            end = min(max(request.start, resend.start), request.end)
        elif is_answered:
            job.sums.counted_whole += 1
        lost = max(0, end - request.start - at_gate)
        job.sums.lost += lost
        job.lost.add(end - lost, end)
        run.waited.add(end - lost, end)
        if request.outcome == "recovered":
            run.survived.add(end - lost, end)
            events = tuple(sorted(family.events))
            self._keep_slowest(Recovery(lost, request, not has_resend, events))
        elif request.outcome == "exhausted":
            run.died.add(end - lost, end)

    def _keep_slowest(self, recovery: Recovery) -> None:
        has_led = any(event.kind in _SHARED for event in recovery.events)
        for kept in (self._slowest, self._slowest_leaders) if has_led else (self._slowest,):
            insort(kept, recovery, key=_slowness)
            del kept[:-SLOWEST]

    def _with_leaders(self, recovery: Recovery) -> Recovery:
        """Add the probes and questions of other requests of the same run."""
        request = recovery.request
        shared = [
            event
            for led in self._slowest_leaders
            if led.request.span_id != request.span_id
            and (led.request.account, led.request.job, led.request.process)
            == (request.account, request.job, request.process)
            for event in led.events
            if event.kind in _SHARED and request.start < event.end and event.start < request.end
        ]
        return recovery._replace(events=tuple(sorted([*recovery.events, *shared])))


_SHARED: Final = ("probe", "question")
"""The actions of one request of a race for all of them."""
_REQUEST: Final = ("requests",)
_WARMUP: Final = ("warmups",)


def _slowness(recovery: Recovery) -> tuple[int, int, int]:
    request = recovery.request
    return recovery.lost, request.span_id, request.start


def _by_interest(job: Job) -> tuple[int, int, str]:
    sums = job.sums
    gone = sums.not_found.total() - sums.not_found["trainer_answered"]
    return -(sums.races_met + sums.warmups_met_404 + gone), -sums.requests, str(job.name)
