"""Some replicas of a gateway are stale for 20 s: time lost, 404s and probes, for four balancers.

    python -m benchmarks.stale_replicas [--markdown] [--docs DIR] [--json PATH]

The real transport below a real `httpx.AsyncClient`, whose cookie jar sends the balancer's cookies
back, over an in-process model of the balancer. Time is virtual and all chance is seeded, so that
each run gives the same figures.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from math import inf
from statistics import median
from typing import TYPE_CHECKING, Final

import httpx

from benchmarks.baselines import connect_b, persist, says_running
from benchmarks.report import Row, markdown, ratio_of, run_benchmarks, table, unlogged
from testkit.fakes import KEY, FakeControlPlane
from testkit.pages import put_below
from testkit.virtual_time import VirtualTimeLoop
from tinker_guard import GuardSettings, GuardTransport
from tinker_guard.core.attempts import JITTER
from tinker_guard.gateway import Fault, InProcessGateway, World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from tinker_guard.gateway.faults import Affinity, Assignment

BALANCERS: Final[dict[str, tuple[Assignment, Affinity]]] = {
    "sticky": ("round_robin", "connection"),
    "in turn": ("round_robin", "none"),
    "by chance": ("random", "none"),
    "cookie": ("round_robin", "cookie"),
}
"""How a balancer picks a replica, and what for."""
REPLICAS: Final = tuple(range(2, 9))
COMPARED: Final = (2, 4)
"""Numbers of replicas for which A and B are measured too."""
SEEDS: Final = 10
"""Runs behind each figure. They differ in which replicas are stale, and in all that is chance."""
STALE_SECONDS: Final = 20.0
ROUND_TRIP: Final = 0.01
OPERATION: Final = "client/dynamic_config"
"""One that the trainer answers whatever it is sent."""
REQUESTS_PER_STEP: Final = 4
STEPS: Final = 5
CONTESTANTS: Final = ("A", "B", "guard")
_KEY_HEADER: Final = "X-Idempotency-Key"
_jobs: Final = count()


@dataclass(frozen=True)
class Run:
    """Five steps through one stale gateway.

    Args:
        lost: Seconds that it took longer than without a guard and without a stale replica; None
            if a 404 ended it.
        not_founds: The most 404s that any one request met.
        probes: Probes sent while it ran; for B, the `get_info` calls of its connect.
    """

    lost: float | None
    not_founds: int
    probes: int


@dataclass(frozen=True)
class Cell:
    """All runs of one contestant with one balancer and one number of stale replicas.

    Args:
        contestant: One of `CONTESTANTS`.
        balancer: One of `BALANCERS`.
        replicas: How many the gateway has.
        stale: How many of them are stale.
        is_cold: Whether they are stale from the first request on, rather than from the second
            training step on.
    """

    contestant: str
    balancer: str
    replicas: int
    stale: int
    is_cold: bool
    runs: list[Run] = field(default_factory=list)


def world_of(balancer: str, replicas: int, stale: int, seed: int) -> tuple[World, tuple[int, ...]]:
    """A gateway, and which of its replicas are to be stale.

    Args:
        balancer: One of `BALANCERS`.
        replicas: How many there are.
        stale: How many of them are stale.
        seed: Decides which are stale: with 0 the first ones in a row, so that they are met
            first; else as chance will have it.
    """
    chance = random.Random(f"{balancer}, {replicas}, {stale}, {seed}")
    which = chance.sample(range(replicas), stale) if seed else range(stale)
    assignment, affinity = BALANCERS[balancer]
    fault = Fault(
        replicas=replicas, assignment=assignment, affinity=affinity, seed=chance.randrange(2**32)
    )
    # A job, and so a route, that was never seen before.
    return World(fault, job=f"job-{next(_jobs)}"), tuple(which)


def run(
    contestant: str, balancer: str, replicas: int, stale: int, seed: int, *, is_cold: bool
) -> Run:
    """Train on an event loop and a route of its own.

    Args:
        contestant: One of `CONTESTANTS`.
        balancer: As for `world_of`, like the next two.
        replicas: How many there are.
        stale: How many of them are stale.
        seed: Of all chance, the guard's jitter too.
        is_cold: See `Cell`.
    """
    JITTER.seed(seed)
    world, which = world_of(balancer, replicas, stale, seed)
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(_train(contestant, world, which, is_cold=is_cold))


async def _train(contestant: str, world: World, stale: tuple[int, ...], *, is_cold: bool) -> Run:
    clock = asyncio.get_running_loop().time
    plane = FakeControlPlane(takes=ROUND_TRIP)
    gateway = InProcessGateway(world, latency=ROUND_TRIP)
    transport: httpx.AsyncBaseTransport = gateway.new_transport()
    if contestant == "guard":
        transport = GuardTransport(
            transport,
            settings=GuardSettings(),
            control_plane=plane,
            new_transport=gateway.new_transport,
        )
    async with httpx.AsyncClient(
        transport=transport, base_url=f"{gateway.base_url}/api/v1", headers={"X-Api-Key": KEY}
    ) as client:
        numbers = count()
        is_running = partial(says_running, plane)

        async def send(requests: int) -> bool:
            for _ in range(requests):
                key = {_KEY_HEADER: f"key-{next(numbers)}"}
                once = partial(client.post, OPERATION, headers=key)
                if (await persist(contestant, once, is_running)).status_code != 200:
                    return False
            return True

        # The first one creates a session.
        is_right = is_cold or await send(1 + REQUESTS_PER_STEP)
        seen_before = len(world.exchanges)
        world.lose_route(clock(), STALE_SECONDS, stale)
        started_at = clock()
        if is_cold and contestant == "B":
            await connect_b(partial(client.get, "healthz"))
        requests = REQUESTS_PER_STEP * STEPS + is_cold
        is_right = is_right and await send(requests)
        # Rounded, because the clock's rounding errors would show as -0.00.
        lost = round(clock() - started_at - requests * ROUND_TRIP, 6)

    seen = world.exchanges[seen_before:]
    not_founds = Counter(e.idempotency_key for e in seen if e.idempotency_key and e.status == 404)
    return Run(
        lost=lost + 0.0 if is_right else None,
        not_founds=max(not_founds.values(), default=0),
        probes=sum(e.idempotency_key is None for e in seen),
    )


def measure(replicas: Iterable[int] = REPLICAS, *, seeds: int = SEEDS) -> list[Cell]:
    """Every balancer, every k of n; A and B for some n. About a minute with the defaults."""
    with unlogged():
        return [
            _fill(Cell(contestant, balancer, number, stale, is_cold), seeds)
            for balancer in BALANCERS
            for number in replicas
            for stale in range(1, number)
            for contestant in (CONTESTANTS if number in COMPARED else ("guard",))
            for is_cold in (True, False)
        ]


def _fill(cell: Cell, seeds: int) -> Cell:
    pool = cell.contestant, cell.balancer, cell.replicas, cell.stale
    cell.runs.extend(run(*pool, seed, is_cold=cell.is_cold) for seed in range(seeds))
    return cell


def figures(runs: Iterable[Run], name: str, digits: int = 0) -> str:
    """Median and maximum of a quantity over the runs that ended, and how many died."""
    runs = list(runs)
    values = [getattr(run, name) for run in runs if run.lost is not None]
    parts = [f"{median(values):.{digits}f} / {max(values):.{digits}f}"] if values else []
    if died := len(runs) - len(values):
        parts.append(f"{died} of {len(runs)} died")
    return ", ".join(parts)


COLUMNS: Final = tuple(
    f"{when}: {what}" for when in ("cold", "mid-run") for what in ("s lost", "404s", "probes")
)


def lines(cells: Iterable[Cell], key: Callable[[Cell], tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The guard's figures, one line for all cells that have the same key."""
    groups: dict[tuple[str, ...], dict[bool, list[Run]]] = {}
    for cell in cells:
        if cell.contestant == "guard":
            group = groups.setdefault(key(cell), {True: [], False: []})
            group[cell.is_cold] += cell.runs
    return [
        (
            *names,
            *(
                text
                for runs in group.values()
                for text in (
                    figures(runs, "lost", 2),
                    figures(runs, "not_founds"),
                    figures(runs, "probes"),
                )
            ),
        )
        for names, group in groups.items()
    ]


def beside_peers(cells: Iterable[Cell]) -> list[tuple[str, ...]]:
    """Seconds that A, B and the guard lost, where all three were measured."""
    lost: dict[tuple[str, ...], list[str]] = {}
    for cell in cells:
        if cell.replicas in COMPARED:
            lost.setdefault(_pool(cell), []).append(figures(cell.runs, "lost", 2))
    return [(*pool, *texts) for pool, texts in lost.items()]


def _pool(cell: Cell) -> tuple[str, ...]:
    return cell.balancer, f"{cell.stale} of {cell.replicas}"


_PEER_COLUMNS: Final = (
    "balancer",
    "stale",
    *(f"{name}, {when}" for name in CONTESTANTS for when in ("cold", "mid-run")),
)


def show(cells: Sequence[Cell]) -> None:
    """Print the worst and the median for each balancer and number of replicas."""
    table(
        f"k of n replicas stale for {STALE_SECONDS:g} s, all k < n (median / most; virtual time)",
        ("balancer", "n", *COLUMNS),
        lines(cells, lambda cell: (cell.balancer, str(cell.replicas))),
    )
    table("Seconds lost (median / most)", _PEER_COLUMNS, beside_peers(cells))


def rows(cells: Iterable[Cell]) -> list[Row]:
    """The lines of the table of goals that this benchmark fills."""
    halves: dict[str, list[Run]] = {name: [] for name in CONTESTANTS}
    everything: list[Run] = []
    for cell in cells:
        if (cell.stale, cell.replicas) == (2, 4):
            halves[cell.contestant] += cell.runs
        if cell.contestant == "guard":
            everything += cell.runs
    ours = halves["guard"]
    most = {
        name: max(inf if run.lost is None else run.lost for run in runs)
        for name, runs in halves.items()
    }
    return [
        Row(
            "two of four replicas stale for 20 s, four balancers, cold and mid-run (virtual time)",
            "five steps lose <= 3 s; no request meets > 5 404s (median run)",
            ", ".join(f"{name} {figures(halves[name], 'lost', 2)} s" for name in ("A", "B")),
            f"{figures(ours, 'lost', 2)} s, {figures(ours, 'not_founds')} 404s",
            ratio_of(most["guard"], min(most["A"], most["B"])),
            most["guard"] <= 3 and median(run.not_founds for run in ours) <= 5,
        ),
        Row(
            "k of n replicas stale for 20 s, all k < n <= 8, the same",
            "no run dies",
            "not measured",
            f"{figures(everything, 'lost', 2)} s, {figures(everything, 'not_founds')} 404s",
            None,
            all(run.lost is not None for run in everything),
        ),
    ]


def as_markdown(cells: Iterable[Cell]) -> str:
    """The summary: one line for each balancer."""
    return markdown(("balancer", *COLUMNS), lines(cells, lambda cell: (cell.balancer,)))


def write_docs(folder: Path, cells: Sequence[Cell]) -> None:
    """Write the tables of `stale-replicas.md`."""
    page = folder / "stale-replicas.md"
    put_below(page, "All k of n together", as_markdown(cells))
    put_below(page, "Beside A and B", markdown(_PEER_COLUMNS, beside_peers(cells)))
    each = markdown(("balancer", "stale", *COLUMNS), lines(cells, _pool))
    put_below(page, "Each k of n", each)


if __name__ == "__main__":
    run_benchmarks(__doc__, sys.modules[__name__])
