"""Thousands of requests arrive at once on one cold route: how long the event loop is held up.

    python -m benchmarks.arrivals [--json PATH]

All requests are made by one httpx client over a transport that answers in a millisecond: bare, and
below the guard. The *worst stall* is the longest time between two turns of the event loop, during
which nothing else in the process gets its turn, heartbeats included. Times are the thread's own, of
the processor: what other programs take is not among them.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from dataclasses import dataclass
from itertools import count
from statistics import median
from time import perf_counter, thread_time
from typing import TYPE_CHECKING, Any, Final

import httpx

from benchmarks.report import Row, run_benchmarks, table, unlogged
from benchmarks.runs import PROBE
from testkit.fakes import KEY, ORIGIN, FakeControlPlane, gateway_404, ok
from tinker_guard import GuardSettings, GuardTransport

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

REQUESTS: Final = (8_000, 10_000, 12_000, 16_000, 20_000)
"""Several numbers: the garbage collector's last walk through all of them takes a fifth of the
stall, and comes just before the last one arrives, or not."""
RACE_SECONDS: Final = 1.0
ALLOWED: Final = 1.2
ANSWERS_IN: Final = 0.001
_OPERATION: Final = "/api/v1/telemetry"
_jobs: Final = count()


@dataclass(frozen=True)
class Storm:
    """What came of one storm; times in seconds.

    Args:
        what: What happened.
        is_guarded: Whether the guard was there.
        requests: How many there were.
        worst_stall: The longest time between two turns of the event loop.
        cpu: What all of it took of the thread's time.
    """

    what: str
    is_guarded: bool
    requests: int
    worst_stall: float
    cpu: float


class _Gateway(httpx.AsyncBaseTransport):
    """Knows no route for some seconds, then answers everything.

    The guard takes it for httpx's own transport, which changes no request.
    """

    __module__ = "httpx"

    def __init__(self, lost_for: float = 0.0, *, is_silent: bool = False) -> None:
        self._known_from = perf_counter() + lost_for
        self._is_silent = is_silent

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        is_lost = perf_counter() < self._known_from
        await asyncio.sleep(1e3 if self._is_silent else ANSWERS_IN)
        if is_lost:
            return gateway_404()
        if request.url.path.endswith(PROBE):
            return httpx.Response(200, json={"supported_models": []})
        return ok()


async def _worst_stall(work: Coroutine[Any, Any, None]) -> float:
    worst, before, is_over = 0.0, thread_time(), False

    def turn() -> None:
        nonlocal worst, before
        now = thread_time()
        worst, before = max(worst, now - before), now
        if not is_over:
            loop.call_soon(turn)

    loop = asyncio.get_running_loop()
    loop.call_soon(turn)
    await work
    is_over = True
    return worst


async def _send_all(transport: httpx.AsyncBaseTransport, requests: int, *, cancels: bool) -> None:
    url = f"{ORIGIN}/training/v1/rlorTrainerJobs/acc/job-{next(_jobs)}{_OPERATION}"
    headers = {"X-Api-Key": KEY}
    client = httpx.AsyncClient(transport=transport, headers=headers, timeout=60)

    async def one() -> None:
        response = await client.post(url, content=b"{}")
        assert response.status_code == 200

    tasks = [asyncio.create_task(one()) for _ in range(requests)]
    if not cancels:
        await asyncio.gather(*tasks)
        return
    await asyncio.sleep(0.1)
    for task in reversed(tasks):
        task.cancel()
    await asyncio.wait(tasks)
    assert all(task.cancelled() for task in tasks)


def _cold(*, is_guarded: bool, requests: int) -> Storm:
    return _measure("on a cold route", _Gateway, is_guarded=is_guarded, requests=requests)


def _race(*, is_guarded: bool, requests: int) -> Storm:
    def gateway() -> _Gateway:
        return _Gateway(RACE_SECONDS if is_guarded else 0.0)

    return _measure("in a race of 1 s", gateway, is_guarded=is_guarded, requests=requests)


def _cancelled(*, is_guarded: bool, requests: int) -> Storm:
    def gateway() -> _Gateway:
        return _Gateway(is_silent=True)

    return _measure(
        "cancelled in reverse", gateway, is_guarded=is_guarded, requests=requests, cancels=True
    )


SITUATIONS: Final = (_cold, _race, _cancelled)


def _measure(
    what: str,
    new_gateway: Callable[[], _Gateway],
    *,
    is_guarded: bool,
    requests: int,
    cancels: bool = False,
) -> Storm:
    async def storm() -> float:
        transport: httpx.AsyncBaseTransport = new_gateway()
        if is_guarded:
            transport = GuardTransport(
                transport, settings=GuardSettings(), control_plane=FakeControlPlane()
            )
        return await _worst_stall(_send_all(transport, requests, cancels=cancels))

    gc.collect()
    began_at = thread_time()
    with unlogged():
        worst = asyncio.run(storm())
    return Storm(what, is_guarded, requests, worst, thread_time() - began_at)


def measure(requests: tuple[int, ...] = REQUESTS) -> list[Storm]:
    """Every situation with each number of requests, bare and guarded in turn."""
    return [
        situation(is_guarded=is_guarded, requests=number)
        for number in requests
        for situation in SITUATIONS
        for is_guarded in (False, True)
    ]


def _pairs(storms: list[Storm]) -> list[tuple[Storm, Storm]]:
    """Each guarded storm with the bare one beside it."""
    return [(guarded, bare) for bare, guarded in zip(storms[::2], storms[1::2], strict=True)]


def ratios(storms: list[Storm], what: str) -> list[float]:
    """The worst stalls over those of the bare transport, in order of the number of requests."""
    return [
        guarded.worst_stall / bare.worst_stall
        for guarded, bare in _pairs(storms)
        if guarded.what == what
    ]


def rows(storms: list[Storm]) -> list[Row]:
    """The lines of the table of goals that this benchmark fills."""
    found = []
    for what in dict.fromkeys(storm.what for storm in storms):
        pairs = [pair for pair in _pairs(storms) if pair[0].what == what]
        ratio = median(ratios(storms, what))
        ours, bare = (
            median(pair[place].worst_stall / pair[place].requests for pair in pairs) * 1e6
            for place in (0, 1)
        )
        found.append(
            Row(
                f"thousands of requests {what}: worst stall of the loop, each of them",
                f"<= {ALLOWED:g} of the bare transport's",
                f"bare transport {bare:.0f} us",
                f"{ours:.0f} us",
                ratio,
                ratio <= ALLOWED,
            )
        )
    return found


def show(storms: list[Storm]) -> None:
    """Print every figure."""
    table(
        "Thousands of requests at once, in microseconds of the thread's time for each of them",
        ("what", "requests", "worst stall, bare", "guarded", "ratio", "in all, bare", "guarded"),
        (
            (
                guarded.what,
                f"{guarded.requests:,}",
                f"{bare.worst_stall / bare.requests * 1e6:.0f}",
                f"{guarded.worst_stall / guarded.requests * 1e6:.0f}",
                f"{guarded.worst_stall / bare.worst_stall:.2f}",
                f"{bare.cpu / bare.requests * 1e6:.0f}",
                f"{guarded.cpu / guarded.requests * 1e6:.0f}",
            )
            for guarded, bare in sorted(_pairs(storms), key=lambda pair: pair[0].what)
        ),
    )


if __name__ == "__main__":
    run_benchmarks(__doc__, sys.modules[__name__])
