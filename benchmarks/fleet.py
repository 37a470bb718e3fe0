"""Up to 100,000 processes meet one race: what arrives at the gateway and at the control plane.

    python -m benchmarks.fleet [--docs DIR] [--json PATH]

A discrete-event simulation on a virtual clock. The delays and budgets are the guard's own (they
are imported); who waits for whom inside a process is modelled after `recovery` and `probing`, and
a test compares the model with the real transport. Processes share nothing but the race: gateway
and control plane answer every request equally fast, however many come, so that what is counted is
what each design asks of them, not what they would make of it.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Generator
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final, TypeAlias

from benchmarks.baselines import WAITS_A, WAITS_B
from benchmarks.report import console, markdown, parser, table, write_json
from tinker_guard import GuardSettings
from tinker_guard.verdict import backoff, may_begin

PROCESSES: Final = (1, 10, 100, 1_000, 10_000, 100_000)
PLOTTED: Final = 10_000
RACE_SECONDS: Final = 10.0
IN_FLIGHT: Final = 8
MEETING_WITHIN: Final = 0.5
"""Seconds within which all processes meet the race; requests of one process within a tenth."""
ROUND_TRIP: Final = 0.02
"""Seconds that gateway and control plane take to answer."""
BIN: Final = 0.1
_BINS: Final = 400
CONTESTANTS: Final = ("A", "B", "guard")

Clock: TypeAlias = Generator[float, None, None]
"""A task of the simulation: yields the time at which it goes on."""


@dataclass
class Load:
    """What arrived when, in bins of `BIN` seconds after the beginning of the race.

    Args:
        contestant: Who sent it.
        processes: How many processes.
        requests: Requests with their bodies: first sendings and resends.
        probes: Probes, which have no body.
        questions: Questions to the control plane.
        beyond: Seconds from the end of the race until a request got through, summed up.
        got_through: Requests that met the race and got through after it.
    """

    contestant: str
    processes: int
    requests: list[int] = field(default_factory=lambda: [0] * _BINS)
    probes: list[int] = field(default_factory=lambda: [0] * _BINS)
    questions: list[int] = field(default_factory=lambda: [0] * _BINS)
    beyond: float = 0.0
    got_through: int = 0

    def busiest_second(self, name: str, *, after: float = 0.0) -> int:
        """The most arrivals of a kind within any second, or any that begins after a time."""
        since = round(after / BIN)
        bins: list[int] = getattr(self, name)
        width = round(1 / BIN)
        return max(sum(bins[at : at + width]) for at in range(since, len(bins) - width + 1))

    def each(self, name: str) -> float:
        """Arrivals of a kind, for each process."""
        return float(sum(getattr(self, name)) / self.processes)

    @property
    def mean_beyond(self) -> float:
        """Mean seconds from the end of the race until a request got through."""
        return self.beyond / self.got_through


class _Race:
    """The route is lost from 0 until `until`; everything that arrives is counted."""

    def __init__(self, load: Load, until: float) -> None:
        self.until = until
        self._load = load

    def send(self, at: float) -> bool:
        """A request arrives; whether it gets through."""
        self._load.requests[int(at / BIN)] += 1
        if at < self.until:
            return False
        self._load.got_through += 1
        self._load.beyond += at + ROUND_TRIP - self.until
        return True

    def probe(self, at: float) -> bool:
        """A probe arrives; whether it gets through."""
        self._load.probes[int(at / BIN)] += 1
        return at >= self.until

    def ask(self, at: float) -> float:
        """A question arrives; when it is answered."""
        self._load.questions[int(at / BIN)] += 1
        return at + ROUND_TRIP


class _Tasks:
    """Runs the tasks of one process in the order of their times."""

    def __init__(self) -> None:
        self._queue: list[tuple[float, int, Clock]] = []
        self._numbers = count()

    def add(self, at: float, task: Clock) -> None:
        """Let a task go on at a time."""
        heapq.heappush(self._queue, (at, next(self._numbers), task))

    def run(self) -> None:
        """Run until nothing is left to do."""
        while self._queue:
            _, _, task = heapq.heappop(self._queue)
            at = next(task, None)
            if at is not None:
                self.add(at, task)


class GuardedProcess:
    """A process with the guard: one question per `verdict_ttl`, one probe at a time.

    Args:
        race: What it meets.
        settings: The guard's.
        random: Source of the jitter.
    """

    def __init__(self, race: _Race, settings: GuardSettings, random: random.Random) -> None:
        self._race = race
        self._settings = settings
        self._random = random
        self._tasks = _Tasks()
        self._answered_at: float | None = None
        """When the last question is, or was, answered."""
        self._has_scout = False
        self._waiting = 0
        """Requests that go on when the scout has been through."""

    def run(self, send_at: list[float]) -> None:
        """Send requests at these times and see each of them through."""
        for at in send_at:
            self._tasks.add(at, self._request(at))
        self._tasks.run()

    def _request(self, at: float) -> Clock:
        started_at = at
        if self._race.send(at):
            return
        yield (at := at + ROUND_TRIP)
        yield (at := self._know_state(at))
        # The first resend waits for nothing but the route: `backoff(1)` is 0.
        yield (at := at + self._backoff(1))
        if self._has_scout:
            self._waiting += 1
            return
        self._has_scout = True
        deadline = started_at + ROUND_TRIP + self._settings.retry_timeout
        yield from self._scout(at, budget=deadline - at)

    def _scout(self, at: float, *, budget: float) -> Clock:
        """Probe until the trainer is reached, then resend and release those that wait."""
        scouting_since = at
        for attempt in count(1):
            reached = self._race.probe(at)
            yield (at := at + ROUND_TRIP)
            if reached:
                break
            yield (at := self._know_state(at))
            delay = self._backoff(attempt + 1)
            if not may_begin(elapsed=at - scouting_since, delay=delay, budget=budget):
                raise ValueError("the race is longer than what this model knows")
            yield (at := at + delay)
        self._race.send(at)
        for _ in range(self._waiting):
            self._race.send(at + self._random.random() * self._settings.backoff_initial)
        self._has_scout, self._waiting = False, 0

    def _know_state(self, at: float) -> float:
        """Share a question that is under way or was answered lately; else ask."""
        if self._answered_at is None or at - self._answered_at >= self._settings.verdict_ttl:
            self._answered_at = self._race.ask(at)
        return max(at, self._answered_at)

    def _backoff(self, resend: int) -> float:
        return backoff(
            resend,
            initial=self._settings.backoff_initial,
            maximum=self._settings.backoff_max,
            jitter=self._random.random(),
        )


def _run_wrapped(race: _Race, contestant: str, send_at: list[float]) -> None:
    """A process with A or B: every request for itself."""
    for at in send_at:
        for seconds in WAITS_A if contestant == "A" else WAITS_B:
            if race.send(at):
                break
            at += ROUND_TRIP
            if contestant == "B":
                at = race.ask(at)
            at += seconds


def simulate(
    contestant: str,
    processes: int,
    *,
    seconds: float = RACE_SECONDS,
    in_flight: int = IN_FLIGHT,
    seed: int = 0,
) -> Load:
    """Let so many processes meet a race.

    Args:
        contestant: One of `CONTESTANTS`.
        processes: How many.
        seconds: Length of the race.
        in_flight: Requests that each process has in flight.
        seed: Of all chance.
    """
    load = Load(contestant, processes)
    race = _Race(load, seconds)
    # The same arrivals for every contestant.
    arrivals = random.Random(seed)
    jitter = random.Random(seed + 1)
    settings = GuardSettings()
    for _ in range(processes):
        met_at = arrivals.random() * MEETING_WITHIN * 0.9
        send_at = sorted(
            met_at + arrivals.random() * MEETING_WITHIN * 0.1 for _ in range(in_flight)
        )
        if contestant == "guard":
            GuardedProcess(race, settings, jitter).run(send_at)
        else:
            _run_wrapped(race, contestant, send_at)
    return load


def measure(processes: tuple[int, ...] = PROCESSES) -> list[Load]:
    """All sizes of fleets, with each contestant."""
    return [simulate(contestant, number) for number in processes for contestant in CONTESTANTS]


COLUMNS: Final = (
    "processes",
    "design",
    "questions in the busiest second",
    "requests in the busiest second",
    "requests in the busiest second after the race",
    "probes in the busiest second",
    "questions per process",
    "requests per process",
    "probes per process",
    "mean s beyond the race",
)


def lines(loads: list[Load]) -> list[tuple[str, ...]]:
    """The table's lines."""
    return [
        (
            f"{load.processes:,}",
            load.contestant,
            f"{load.busiest_second('questions'):,}",
            f"{load.busiest_second('requests'):,}",
            f"{load.busiest_second('requests', after=RACE_SECONDS):,}",
            f"{load.busiest_second('probes'):,}",
            f"{load.each('questions'):.1f}",
            f"{load.each('requests'):.1f}",
            f"{load.each('probes'):.1f}",
            f"{load.mean_beyond:.2f}",
        )
        for load in loads
    ]


def show(loads: list[Load]) -> None:
    """Print every figure."""
    table(_TITLE, COLUMNS, lines(loads))


_TITLE: Final = f"A fleet meets a race of {RACE_SECONDS:g} s, {IN_FLIGHT} requests in flight each"


def write_docs(folder: Path, loads: list[Load]) -> None:
    """Write `fleet.md` and `fleet.svg`."""
    plotted = {load.contestant: load for load in loads if load.processes == PLOTTED}
    _plot(folder / "fleet.svg", plotted)
    guard, b = plotted["guard"], plotted["B"]
    last = {load.contestant: load for load in loads if load.processes == PROCESSES[-1]}
    (folder / "fleet.md").write_text(
        f"""# A fleet in a race

What a gateway and a control plane have to bear when many processes meet the same race at nearly
the same moment: a route that is lost on all replicas for {RACE_SECONDS:g} s, {IN_FLIGHT} requests \
in flight in each
process, all of them met within {MEETING_WITHIN:g} s. `python -m benchmarks.fleet --docs docs` \
writes this page.

It is a simulation with the guard's own delays; a test compares it with the real transport. A
retries any 404 after 2, 4, 8, ... s. B asks the control plane after each 404 of each request.
Gateway and control plane answer within {ROUND_TRIP * 1000:.0f} ms, however much arrives.

![Requests per second at the gateway and questions per second at the control plane, \
{PLOTTED:,} processes](fleet.svg)

* The control plane: a guarded process asks at most once per `verdict_ttl` (1 s), however many of
  its requests wait. With {PLOTTED:,} processes the busiest second holds \
{guard.busiest_second("questions"):,} questions, with B {b.busiest_second("questions"):,}.
  The guard goes on asking while the race lasts, {guard.each("questions"):.1f} times in each \
process; B asks {b.each("questions"):.0f} times.
* The gateway: a guarded request is sent twice, once into the race and once after it; A and B send
  it {b.each("requests") / IN_FLIGHT:.0f} times. In between the guard sends \
{guard.each("probes"):.0f} probes for each process, without a body.
* The return: A and B wait without jitter, so that everything comes back within one second, \
{b.mean_beyond:.1f} s
  after the race (mean). Guarded processes come back {guard.mean_beyond:.1f} s after it, \
{guard.busiest_second("requests", after=RACE_SECONDS) / sum(guard.requests) * 200:.0f} % of their
  resends in the busiest second.
* What is asked grows with the number of processes: {PROCESSES[-1]:,} of them ask \
{last["guard"].busiest_second("questions"):,} questions in the
  busiest second. `TINKER_GUARD_VERDICT_TTL` says how often each of them asks again; that each
  asks once when it meets the race stays.

{markdown(COLUMNS, lines(loads))}"""
    )


def _plot(path: Path, loads: dict[str, Load]) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    # The same picture from the same figures, byte by byte.
    mpl.rcParams["svg.hashsalt"] = "fleet"
    from matplotlib import pyplot as plt

    styles = {
        "A": ("#b8860b", "--"),
        "B": ("#b22222", ":"),
        "guard": ("#1f6fb2", "-"),
    }
    figure, (gateway, control_plane) = plt.subplots(
        2, 1, figsize=(10.5, 7), sharex=True, layout="constrained"
    )
    shown = round(16 / BIN)
    seconds = [number * BIN for number in range(shown)]
    for name, load in loads.items():
        colour, dashes = styles[name]
        drawn = [(gateway, load.requests, f"{name}: requests")]
        if name != "A":
            drawn.append((control_plane, load.questions, name))
        for axes, arrivals, text in drawn:
            rates = [number / BIN for number in arrivals[:shown]]
            axes.step(seconds, rates, where="post", label=text, color=colour, linestyle=dashes)
    rates = [number / BIN for number in loads["guard"].probes[:shown]]
    gateway.step(seconds, rates, where="post", label="guard: probes (no body)", color="#7fb3dd")
    for axes in (gateway, control_plane):
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set_ylim(bottom=0)
        axes.axvspan(0, RACE_SECONDS, color="#dddddd", alpha=0.5, label="race")
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=9)
    gateway.set_ylabel("requests per second at the gateway")
    control_plane.set_ylabel("questions per second\nat the control plane")
    control_plane.set_xlabel("seconds after the route was lost")
    control_plane.set_xlim(0, 16)
    gateway.set_title(
        f"{PLOTTED:,} processes with {IN_FLIGHT} requests each meet a race of {RACE_SECONDS:g} s"
    )
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def details(loads: list[Load]) -> dict[str, Any]:
    """Everything measured, for `--json`."""
    return {"fleet": [asdict(load) for load in loads]}


def main() -> None:
    """Simulate, print, write."""
    arguments = parser(__doc__)
    arguments.add_argument("--docs", type=Path, metavar="DIR", help="write the page and plot here")
    given = arguments.parse_args()
    loads = measure()
    show(loads)
    if given.docs:
        write_docs(given.docs, loads)
        console.print(f"wrote {given.docs / 'fleet.md'} and {given.docs / 'fleet.svg'}")
    if given.json:
        write_json(given.json, [], details(loads))


if __name__ == "__main__":
    main()
