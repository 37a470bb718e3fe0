"""Up to 100,000 processes meet one race: what arrives at the gateway and at the control plane.

    python -m benchmarks.fleet [--docs DIR] [--json PATH]

The guard is real, and so are the loops of A and B; the world is a model in the same process, and
time is virtual. Processes share nothing but the race: gateway and control plane answer every
request equally fast, however many come, so that what is counted is what each design asks of them,
not what they would make of it. So a larger fleet counts as so many times a thousand processes.
"""

from __future__ import annotations

import asyncio
import math
import random
import sys
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Final

import httpx

from benchmarks.baselines import persist, says_running
from benchmarks.report import markdown, run_benchmarks, table, unlogged
from benchmarks.runs import PROBE
from testkit.fakes import KEY, FakeControlPlane
from testkit.virtual_time import VirtualTimeLoop
from tinker_guard import GuardSettings, GuardTransport
from tinker_guard.core.attempts import JITTER
from tinker_guard.gateway import InProcessGateway, World

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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

_SAMPLE: Final = 1_000
"""As many processes are run; a larger fleet is so many times these."""
_AT_ONCE: Final = 100
"""Of them on one event loop."""
_OPERATION: Final = "client/dynamic_config"
"""One that the trainer answers whatever it is sent."""
_jobs: Final = count()


@dataclass
class Load:
    """What arrived when, in bins of `BIN` seconds after the beginning of the race.

    Args:
        contestant: Who sent it.
        processes: How many processes.
        sampled: How many of them were run.
        requests: Requests with their bodies: first sendings and resends.
        probes: Probes, which have no body.
        questions: Questions to the control plane.
        beyond: Seconds from the end of the race until a request got through, summed up.
        got_through: Requests that met the race and got through after it.
    """

    contestant: str
    processes: int
    sampled: int
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
        most = max(sum(bins[at : at + width]) for at in range(since, len(bins) - width + 1))
        return round(most * self.processes / self.sampled)

    def rates(self, name: str) -> list[float]:
        """Arrivals of a kind per second, in each bin."""
        scale = self.processes / self.sampled / BIN
        return [scale * arrived for arrived in getattr(self, name)]

    def each(self, name: str) -> float:
        """Arrivals of a kind, for each process."""
        return float(sum(getattr(self, name)) / self.sampled)

    @property
    def mean_beyond(self) -> float:
        """Mean seconds from the end of the race until a request got through."""
        return self.beyond / self.got_through


async def _meet(load: Load, fleet: list[list[float]], seconds: float) -> None:
    """Let processes meet a race, and count.

    Args:
        load: Where to.
        fleet: For each process, when its requests are sent.
        seconds: Length of the race.
    """
    clock = asyncio.get_running_loop().time
    plane = FakeControlPlane(takes=ROUND_TRIP)
    world = World(job=None)
    world.lose_route(clock(), seconds)
    gateway = InProcessGateway(world, latency=ROUND_TRIP)
    # Met in the middle of a run, when the route is warm.
    settings = GuardSettings(warmup_successes=0)

    async def one(transport: httpx.AsyncBaseTransport, url: str, at: float) -> None:
        async def send() -> httpx.Response:
            request = httpx.Request("POST", url, headers={"X-Api-Key": KEY})
            return await transport.handle_async_request(request)

        await asyncio.sleep(at)
        response = await persist(load.contestant, send, partial(says_running, plane))
        assert response.status_code == 200
        load.got_through += 1
        load.beyond += clock() - seconds

    async with asyncio.TaskGroup() as group:
        for send_at in fleet:
            transport: httpx.AsyncBaseTransport = gateway.new_transport()
            if load.contestant == "guard":
                transport = GuardTransport(transport, settings=settings, control_plane=plane)
            route = f"{gateway.origin}/training/v1/rlorTrainerJobs/{world.account}"
            url = f"{route}/job-{next(_jobs)}/api/v1/{_OPERATION}"
            for at in send_at:
                group.create_task(one(transport, url, at))
    began_at = ROUND_TRIP + min(at for send_at in fleet for at in send_at)
    for exchange in world.exchanges:
        bins = load.probes if exchange.path == PROBE else load.requests
        bins[int((began_at + exchange.at) / BIN)] += 1
    for asked_at, *_ in plane.asked:
        load.questions[int(asked_at / BIN)] += 1


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
    sampled = min(processes, _SAMPLE)
    load = Load(contestant, processes, sampled)
    # The same arrivals for every contestant.
    arrivals = random.Random(seed)
    JITTER.seed(seed + 1)
    fleet = []
    for _ in range(sampled):
        met_at = arrivals.random() * MEETING_WITHIN * 0.9
        fleet.append([met_at + arrivals.random() * MEETING_WITHIN * 0.1 for _ in range(in_flight)])
    for first in range(0, sampled, _AT_ONCE):
        with unlogged(), asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            runner.run(_meet(load, fleet[first : first + _AT_ONCE], seconds))
    return load


def measure(processes: tuple[int, ...] = PROCESSES) -> list[Load]:
    """All sizes of fleets, with each contestant."""
    sampled = {
        (contestant, number): simulate(contestant, number)
        for number in {min(number, _SAMPLE) for number in processes}
        for contestant in CONTESTANTS
    }
    return [
        replace(sampled[contestant, min(number, _SAMPLE)], processes=number)
        for number in processes
        for contestant in CONTESTANTS
    ]


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
    (folder / "fleet.svg").write_text(_picture(plotted))
    guard, b = plotted["guard"], plotted["B"]
    allowed = RACE_SECONDS / 4
    last = {load.contestant: load for load in loads if load.processes == PROCESSES[-1]}
    (folder / "fleet.md").write_text(
        f"""# A fleet in a race

The load on a gateway and a control plane when many processes meet the same race at nearly
the same moment: a route is lost on all replicas for {RACE_SECONDS:g} s, with {IN_FLIGHT} requests \
in flight in each
process, and all of them meet the race within {MEETING_WITHIN:g} s. `python -m benchmarks.fleet \
--docs docs` writes this page.

Guard, A and B are real; gateway, control plane and trainer are a model in the same process, and \
time is virtual. Processes
share nothing but the race, so {_SAMPLE:,} of them are run, and the figures of a larger fleet are \
multiples of these. A
retries any 404 after 2, 4, 8, ... s. B asks the control plane after each 404 of each request.
Gateway and control plane answer within {ROUND_TRIP * 1000:.0f} ms under any load; another page \
covers
a gateway and a control plane that [shed load](overload.md).

![Requests per second at the gateway and questions per second at the control plane, \
{PLOTTED:,} processes](fleet.svg)

* The control plane: a guarded process asks at most once per `verdict_ttl` (1 s), for any number of
  waiting requests. With {PLOTTED:,} processes the busiest second has \
{guard.busiest_second("questions"):,} questions, with B {b.busiest_second("questions"):,}.
  During the race each guarded process asks {guard.each("questions"):.1f} times; with B it asks \
{b.each("questions"):.0f} times.
* The gateway: a guarded request is sent twice, once into the race and once after it; A and B send
  it {b.each("requests") / IN_FLIGHT:.0f} times. In between the guard sends \
{guard.each("probes"):.0f} probes for each process, without a body.
* The return: A and B wait without jitter, so that all requests return within one second, \
{b.mean_beyond:.1f} s
  after the race (mean). Guarded processes return {guard.mean_beyond:.1f} s after it, with \
{guard.busiest_second("requests", after=RACE_SECONDS) / guard.processes / IN_FLIGHT * 100:.0f} % \
of their
  resends in the busiest second. A wider spread would delay them: with a quarter in each
  second the mean is 2 s, and the last ones return after 4 s. The guard may take a quarter of the
  race's length, {allowed:g} s here, so {100 / allowed:.0f} % is the lowest possible share.
* The number of questions grows with the number of processes: {PROCESSES[-1]:,} of them ask \
{last["guard"].busiest_second("questions"):,}
  in the busiest second. `TINKER_GUARD_VERDICT_TTL` sets the interval between the questions of a
  process; the first question of each process, when it meets the race, remains.

{markdown(COLUMNS, lines(loads))}"""
    )


_LEFT: Final = 90
_WIDTH: Final = 640
_HEIGHT: Final = 220
_SHOWN: Final = 16
"""Seconds that the picture shows."""
_GREY: Final = "#dddddd"
_BAND: Final = "#eeeeee"
_STYLES: Final = {"A": ("#b8860b", "6 4"), "B": ("#b22222", "2 3"), "guard": ("#1f6fb2", "none")}
"""Colour and dashes."""
_Curve = tuple[str, list[float], str, str]
"""Name, rates, colour, dashes."""


def _picture(loads: dict[str, Load]) -> str:
    """An SVG without scripts or fonts: the same, byte by byte, from the same figures."""
    requests: list[_Curve] = [
        (f"{name}: requests", load.rates("requests"), *_STYLES[name])
        for name, load in loads.items()
    ]
    probes = ("guard: probes (no body)", loads["guard"].rates("probes"), "#7fb3dd", "none")
    questions = [(name, loads[name].rates("questions"), *_STYLES[name]) for name in ("B", "guard")]
    race = f"a race of {RACE_SECONDS:g} s"
    title = f"{PLOTTED:,} processes with {IN_FLIGHT} requests each meet {race}"
    middle = _LEFT + _WIDTH / 2
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 930 590" role="img"'
        ' font-family="sans-serif" font-size="12" fill="none">',
        f"<title>{title}</title>",
        '<rect width="930" height="590" fill="#ffffff"/>',
        _text(middle, 20, title, "middle"),
        *_axes(35, "requests per second at the gateway", [*requests, probes]),
        *_axes(300, "questions per second at the control plane", questions),
        *(
            _text(_LEFT + second * _WIDTH / _SHOWN, 540, second, "middle")
            for second in range(0, _SHOWN + 1, 2)
        ),
        _text(middle, 565, "seconds after the route was lost", "middle"),
        "</svg>\n",
    ]
    return "\n".join(parts)


def _axes(top: int, label: str, curves: list[_Curve]) -> Iterator[str]:
    """One diagram, with its legend."""
    most = 1.05 * max(max(rates) for _, rates, *_ in curves)
    bottom, right = top + _HEIGHT, _LEFT + _WIDTH
    over = _WIDTH * RACE_SECONDS / _SHOWN
    yield f'<rect x="{_LEFT}" y="{top}" width="{over:g}" height="{_HEIGHT}" fill="{_BAND}"/>'
    step = 10 ** math.floor(math.log10(most))
    step = next(each for each in (step / 5, step / 2, step, step * 2) if most / each <= 6)
    for tick in range(int(most / step) + 1):
        y = bottom - tick * step / most * _HEIGHT
        yield f'<path d="M{_LEFT} {y:.1f}H{right}" stroke="{_GREY}"/>'
        yield _text(_LEFT - 8, y + 4, f"{tick * step:,.0f}", "end")
    yield _text(-top - _HEIGHT / 2, 16, label, "middle", ' transform="rotate(-90)"')
    yield _text(right + 45, top + 14, "race")
    yield f'<rect x="{right + 15}" y="{top + 5}" width="22" height="10" fill="{_BAND}"/>'
    for row, (name, rates, colour, dashes) in enumerate(curves, start=1):
        look = f'stroke="{colour}" stroke-width="1.5" stroke-dasharray="{dashes}"'
        path, last = f"M{_LEFT} {bottom}", 0.0
        for at, rate in enumerate(rates[: round(_SHOWN / BIN)]):
            if rate != last:
                x, y = _LEFT + at * BIN / _SHOWN * _WIDTH, bottom - rate / most * _HEIGHT
                path, last = f"{path}H{x:g}V{y:.1f}", rate
        yield f'<path d="{path}H{right}" {look}/>'
        y = top + 10 + row * 18
        yield f'<path d="M{right + 15} {y}h22" {look}/>'
        yield _text(right + 45, y + 4, name)
    yield f'<rect x="{_LEFT}" y="{top}" width="{_WIDTH}" height="{_HEIGHT}" stroke="#000000"/>'


def _text(x: float, y: float, text: object, anchor: str = "start", more: str = "") -> str:
    at = f'x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}"'
    return f'<text {at}{more} fill="#000000">{text}</text>'


if __name__ == "__main__":
    run_benchmarks(__doc__, sys.modules[__name__])
