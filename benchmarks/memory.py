"""Whether the guard's memory stays flat over a million requests.

    python -m benchmarks.memory [--json PATH]

A world in the same process answers below the guard, and time is virtual, so that the races take
none. Most requests are plain; some lie on no trainer route, some belong to jobs never seen before
(each with a warmup of its own), and every so often all in flight meet a race. Resident memory and
the number of living objects are looked at over the whole; allocations are traced over a tenth of
it, in a process of its own, because tracing is slow. The guard remembers a bounded number of
routes; that many are met beforehand, so that their filling up is not taken for a leak.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
import tracemalloc
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import httpx

from benchmarks.report import console, run_benchmarks, table
from benchmarks.runs import in_process
from testkit.virtual_time import VirtualTimeLoop
from tinker_guard import GuardSettings, GuardTransport
from tinker_guard.gateway import InProcessGateway, LocalGateway, World

if TYPE_CHECKING:
    from collections.abc import Callable

AT_ONCE: Final = 100
"""Requests in flight."""
ELSEWHERE: Final = 9
"""Of them on no trainer route."""
OPERATION: Final = "client/dynamic_config"
"""One that the trainer answers without remembering it."""
BATCHES_PER_RACE: Final = 100
ROUTES_BEFORE: Final = 1100
"""Routes met before anything is measured; the guard remembers 1024."""
RACE_SECONDS: Final = 0.5


@dataclass(frozen=True)
class Sample:
    """Memory after so many requests.

    Args:
        requests: Requests done.
        resident: Resident memory of the process, in bytes.
        objects: Objects that the garbage collector knows.
        traced: Bytes allocated and not freed; None if nothing was traced.
    """

    requests: int
    resident: int
    objects: int
    traced: int | None


@dataclass(frozen=True)
class Growth:
    """Memory over one measurement.

    Args:
        samples: From 10 % to 100 % of the requests.
        resent: Requests that met a race and were sent again.
        jobs: Jobs seen.
    """

    samples: tuple[Sample, ...]
    resent: int
    jobs: int

    def of(self, name: str) -> int:
        """By how much a quantity grew between 10 % and 100 %."""
        return int(getattr(self.samples[-1], name) - getattr(self.samples[0], name))


def measure(requests: int, *, is_traced: bool) -> Growth:
    """Send so many requests in a process of its own and watch its memory.

    Args:
        requests: How many; at least a thousand.
        is_traced: Whether allocations are traced, too.
    """
    growth = in_process(partial(_measure, requests, is_traced), 60 + requests / 1000)
    if growth is None:
        raise RuntimeError("the measuring process failed")
    return growth


def _measure(requests: int, is_traced: bool) -> Growth:
    # A line for each of thousands of races would be measured instead of the guard.
    logging.disable(logging.CRITICAL)
    if is_traced:
        tracemalloc.start()
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(_watch(requests))


async def _watch(requests: int) -> Growth:
    world = World(job=None, keeps_log=False)
    gateway = InProcessGateway(world)
    guard = GuardTransport(
        gateway.new_transport(), settings=GuardSettings(), new_transport=gateway.new_transport
    )
    samples: list[Sample] = []
    for number in range(ROUTES_BEFORE):
        await _send(guard, _url(-number - 2, 0))
    batches = max(requests // AT_ONCE, 10)
    for number in range(batches):
        if number % BATCHES_PER_RACE == BATCHES_PER_RACE // 2:
            world.lose_route(asyncio.get_running_loop().time(), RACE_SECONDS)
        await asyncio.gather(*(_send(guard, _url(number, place)) for place in range(AT_ONCE)))
        if (number + 1) * 10 // batches > number * 10 // batches:
            samples.append(_sample((number + 1) * AT_ONCE))
    sent_once = ROUTES_BEFORE + batches * (AT_ONCE - ELSEWHERE)
    resent = world.arrivals[OPERATION] - sent_once
    return Growth(tuple(samples), resent, batches + ROUTES_BEFORE + 1)


def _url(batch: int, place: int) -> str:
    origin = InProcessGateway.origin
    if 0 < place <= ELSEWHERE:
        return f"{origin}/login"
    job = "job-0" if place else f"job-{batch + 1}"
    return f"{origin}/training/v1/rlorTrainerJobs/demo/{job}/api/v1/{OPERATION}"


async def _send(guard: GuardTransport, url: str) -> None:
    headers = {"X-Api-Key": LocalGateway.api_key}
    response = await guard.handle_async_request(httpx.Request("POST", url, headers=headers))
    assert response.status_code == 200
    await response.aread()


def _sample(requests: int) -> Sample:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Sample(
        requests,
        pages * os.sysconf("SC_PAGE_SIZE"),
        len(gc.get_objects()),
        tracemalloc.get_traced_memory()[0] if tracemalloc.is_tracing() else None,
    )


def measure_all(requests: int = 1_000_000) -> dict[str, Growth]:
    """The whole, and a tenth of it traced."""
    return {
        "plain": measure(requests, is_traced=False),
        "traced": measure(max(requests // 10, 1000), is_traced=True),
    }


def show(found: dict[str, Growth]) -> None:
    """Print every figure."""
    cells: list[tuple[str, Callable[[Sample], str]]] = [
        ("requests", lambda sample: f"{sample.requests:,}"),
        ("resident MB", lambda sample: f"{sample.resident / 1e6:.2f}"),
        ("living objects", lambda sample: f"{sample.objects:,}"),
        (
            "traced kB",
            lambda sample: "" if sample.traced is None else f"{sample.traced / 1e3:,.1f}",
        ),
    ]
    for name, growth in found.items():
        table(
            f"Memory, {name}: {growth.jobs:,} jobs, {growth.resent:,} requests met a race",
            [title for title, _ in cells],
            ([cell(sample) for _, cell in cells] for sample in growth.samples),
        )
    plain, traced = found["plain"], found["traced"]
    console.print(
        f"Between 10 % and 100 % of the requests: resident memory {plain.of('resident') / 1e6:+.2f}"
        f" MB, living objects {plain.of('objects'):+,}; traced allocations "
        f"{traced.of('traced') / 1e3:+.1f} kB."
    )


if __name__ == "__main__":
    run_benchmarks(__doc__, sys.modules[__name__])
