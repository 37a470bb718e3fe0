"""Runs, by the process that exported their spans, and how each ended."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from tinker_guard.cli.report.records import FURTHER_PROCESSES
from tinker_guard.cli.report.timeline import SECOND, Intervals

if TYPE_CHECKING:
    from tinker_guard.cli.report.records import Process, Request

SAME_RACE: Final = 1 * SECOND
"""Requests that meet a race within this time of each other meet the same race."""
NEW_RUN_AFTER: Final = 600 * SECOND
"""If spans name no process, a pause of this length in a job's requests separates two runs."""


class JobName(NamedTuple):
    """The identity of a job."""

    account: str | None
    job: str | None
    """The base URL of a trainer without account and job."""

    def __str__(self) -> str:
        if self == FURTHER_JOBS:
            return "(further jobs)"
        if self.job is None:
            return "(no trainer route)"
        return self.job if "://" in self.job else f"{self.account or '?'}/{self.job}"


FURTHER_JOBS: Final = JobName(None, "")

END_WORDS: Final = {
    "true_404": "died of a true 404",
    "race": "died of a race",
    "unverified": "died of an unverified 404",
    "finished": "finished",
    "unknown": "no end seen",
}
"""The ends of a run, in words."""

_FATAL: Final = {"not_found": "true_404", "exhausted": "race", "unverified": "unverified"}


class End(NamedTuple):
    """How a run ended, by its spans."""

    kind: str
    """A key of `END_WORDS`."""
    last: Request | None
    """The request that shows the end; None if the run has no request with work."""
    is_alone: bool
    """Whether the file holds no clean request of the run. With `trace=eventful`, clean requests
    are not exported, so later ones are unknown."""


@lru_cache(maxsize=1024)
def _is_work(name: str) -> bool:
    """Whether a request, by the name of its span, shows that the program continues.

    The SDK sends heartbeats, telemetry and the end of a session also after the program's last
    step.
    """
    return name.rpartition("/")[2] not in ("session_heartbeat", "telemetry", "finish")


@dataclass(slots=True, eq=False)
class Run:
    """The requests of one process to one job."""

    process: Process
    job: JobName
    start: int
    end: int
    requests: int = 0
    races_met: int = 0
    races_recovered: int = 0
    false_404s: int = 0
    crashes_avoided: int = 0
    saved: int = 0
    waited: Intervals = field(default_factory=Intervals)
    """When requests waited for a race, at the gate or after a 404."""
    survived: Intervals = field(default_factory=Intervals)
    """When requests waited for a race, and recovered."""
    died: Intervals = field(default_factory=Intervals)
    """When requests waited for a race, and gave up."""
    _clean: int = 0
    _last_work_start: int = 0
    _last_work: Request | None = None
    _last_fatal: Request | None = None
    _last_close: Request | None = None

    def add(self, request: Request) -> None:
        """Add a request whose times are known."""
        self.requests += 1
        outcome = request.outcome
        if outcome == "ok":
            self._clean += 1
        if _is_work(request.name):
            if request.start > self._last_work_start:
                self._last_work_start = request.start
            last = self._last_work
            if last is None or request.end >= last.end:
                self._last_work = _later(last, request)
            if outcome in _FATAL:
                self._last_fatal = _later(self._last_fatal, request)
        elif outcome in ("ok", "recovered") and request.name.endswith("/finish"):
            self._last_close = _later(self._last_close, request)

    def merge(self, other: Run) -> None:
        """Merge another run that turned out to be the same."""
        self.start, self.end = min(self.start, other.start), max(self.end, other.end)
        for name in ("requests", "races_met", "races_recovered", "false_404s", "_clean"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self._last_work_start = max(self._last_work_start, other._last_work_start)
        for name in ("_last_work", "_last_fatal", "_last_close"):
            if (last := getattr(other, name)) is not None:
                setattr(self, name, _later(getattr(self, name), last))
        for name in ("waited", "survived", "died"):
            getattr(self, name).merge(getattr(other, name))

    def conclude(self) -> None:
        """Compute the figures that need all spans."""
        crashes = [race for race in self.survived.joined(SAME_RACE) if not self.died.touches(race)]
        self.crashes_avoided = len(crashes)
        self.saved = max((race.start for race in crashes), default=self.start) - self.start

    @property
    def ended(self) -> End:
        """How it ended, by its last request with work and the requests after it."""
        if self.process != FURTHER_PROCESSES:
            fatal, close = self._last_fatal, self._last_close
            if fatal is not None and fatal.end >= self._last_work_start:
                return self._end(_FATAL[fatal.outcome], fatal)
            if close is not None and close.end >= self._last_work_start:
                return self._end("finished", close)
        return self._end("unknown", self._last_work)

    def _end(self, kind: str, last: Request | None) -> End:
        return End(kind, last, is_alone=not self._clean)


def _later(one: Request | None, other: Request) -> Request:
    """The request that ended later."""
    if one is None or other.end > one.end:
        return other
    if other.end < one.end:
        return one
    return max(one, other, key=lambda request: (request.start, request.outcome, request.span_id))


class Room:
    """The number of further runs that may be distinguished."""

    def __init__(self, runs: int) -> None:
        self._left = runs

    def take(self) -> bool:
        """Whether there was room for one more."""
        self._left -= 1
        return self._left >= 0


class RunsOfJob:
    """The runs of one job.

    There is one for each process or, if spans name none, for each interval without a long
    pause.
    """

    def __init__(self, job: JobName, room: Room) -> None:
        self._job = job
        self._room = room
        self._by_process: dict[Process, Run] = {}
        self._nameless: list[Run] = []

    def __len__(self) -> int:
        return len(self._by_process) + len(self._nameless)

    def all(self) -> list[Run]:
        """All runs, by their beginning."""
        return sorted((*self._by_process.values(), *self._nameless), key=lambda run: run.start)

    def at(self, process: Process, start: int, end: int) -> Run:
        """The run of a process's activity from start to end."""
        if process.is_known:
            run = self._by_process.get(process) or self._new_run(process, start, end)
        else:
            run = self._without_name(process, start, end)
        if start < run.start:
            run.start = start
        if end > run.end:
            run.end = end
        return run

    def _new_run(self, process: Process, start: int, end: int) -> Run:
        if not self._room.take():
            process = FURTHER_PROCESSES
        new = Run(process, self._job, start, end)
        return self._by_process.setdefault(process, new)

    def _without_name(self, process: Process, start: int, end: int) -> Run:
        runs = self._nameless
        if runs and runs[-1].start <= start <= runs[-1].end + NEW_RUN_AFTER:
            return runs[-1]
        # They are more than a pause apart, so their ends are sorted as well.
        low = high = bisect_left(runs, start - NEW_RUN_AFTER, key=lambda run: run.end)
        while high < len(runs) and runs[high].start <= end + NEW_RUN_AFTER:
            high += 1
        if low == high:
            if not self._room.take():
                return self._new_run(FURTHER_PROCESSES, start, end)
            runs.insert(low, Run(process, self._job, start, end))
        else:
            for other in runs[low + 1 : high]:
                runs[low].merge(other)
            del runs[low + 1 : high]
        return runs[low]
