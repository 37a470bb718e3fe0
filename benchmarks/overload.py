"""A fleet meets a race where control plane and gateway serve so much, and shed the rest.

    python -m benchmarks.overload [--json PATH]

The guard is real, and so are the loops of A and B. Above them, requests that are answered with 429
or 5xx are sent again as the SDK does it. The world is a model in the same process, and time is
virtual: the processes share a control plane and a gateway, each with a capacity. Some hundreds of
them are run, and what serves them has as much less to give.
"""

from __future__ import annotations

import asyncio
import random
import sys
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Final

import httpx

from benchmarks.baselines import persist, says_running
from benchmarks.report import Row, markdown, ratio_of, run_benchmarks, table, unlogged
from benchmarks.runs import PROBE
from testkit.fakes import KEY, ORIGIN, gateway_404, ok
from testkit.pages import put_below
from testkit.virtual_time import VirtualTimeLoop
from tinker_guard import ControlPlaneError, GuardSettings, GuardTransport
from tinker_guard.core.attempts import JITTER

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

PROCESSES: Final = 100_000
RACES: Final = (1.0, 10.0, 60.0)
IN_FLIGHT: Final = 8
MEETING_WITHIN: Final = 0.5
ROUND_TRIP: Final = 0.02
QUESTIONS_PER_SECOND: Final = 1_000
"""What the control plane serves. Of the rest, a third each is answered with 429 and a Retry-After,
with 503, and not at all."""
REQUESTS_PER_SECOND: Final = 20_000
"""What the gateway passes on, probes included; the rest is answered with 503. Its own 404s cost it
nothing."""
CONTESTANTS: Final = ("A", "B", "guard")
SHARE: Final = 0.9
"""Of the gateway's capacity, which goodput must come to."""
WITHIN: Final = 5
"""Seconds after the race by which it must."""

_SAMPLE: Final = 500
_SDK_RETRIES: Final = 10
_SECONDS: Final = 300
_OPERATION: Final = "/api/v1/forward_backward"
_jobs: Final = count()


class _Capacity:
    """A token bucket that holds a tenth of a second."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._most = max(1.0, per_second / 10)
        self._left = self._most
        self._at = 0.0

    def takes(self) -> bool:
        now = asyncio.get_running_loop().time()
        self._left = min(self._most, self._left + (now - self._at) * self._per_second)
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


@dataclass
class Overload:
    """What came of one fleet, by the second since the race began; counts are of the sample.

    Args:
        contestant: Who sent the requests.
        seconds: Length of the race.
        scale: How many processes each of the sample stands for.
        asked: Questions to the control plane.
        served: Those of them that were answered.
        arrived: Requests and probes at the gateway.
        done: Requests that got through.
        ended: Requests whose 404 or 503 ended their run.
    """

    contestant: str
    seconds: float
    scale: float
    asked: list[int] = field(default_factory=lambda: [0] * _SECONDS)
    served: list[int] = field(default_factory=lambda: [0] * _SECONDS)
    arrived: list[int] = field(default_factory=lambda: [0] * _SECONDS)
    done: list[int] = field(default_factory=lambda: [0] * _SECONDS)
    ended: int = 0

    def goodput(self, first: int, last: int) -> float:
        """Share of the gateway's capacity that got through from one second after the race on."""
        since = round(self.seconds)
        done = sum(self.done[since + first : since + last])
        return done * self.scale / REQUESTS_PER_SECOND / (last - first)

    @property
    def best_goodput(self) -> float:
        """The best of the seconds by which goodput must have come up."""
        return max(self.goodput(at, at + 1) for at in range(WITHIN))

    @property
    def share_ended(self) -> float:
        """Share of the requests that ended their run."""
        return self.ended / (self.ended + sum(self.done))


class _World(httpx.AsyncBaseTransport):
    """A gateway and a control plane with their capacities."""

    def __init__(self, load: Overload, *, sheds_questions: bool, sheds_requests: bool) -> None:
        self._load = load
        self._questions = _Capacity(
            QUESTIONS_PER_SECOND / load.scale if sheds_questions else float("inf")
        )
        self._requests = _Capacity(
            REQUESTS_PER_SECOND / load.scale if sheds_requests else float("inf")
        )
        self._chance = random.Random(1)
        self._clock = asyncio.get_running_loop().time

    def count(self, bins: list[int]) -> None:
        bins[min(int(self._clock()), _SECONDS - 1)] += 1

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.count(self._load.arrived)
        is_lost = self._clock() < self._load.seconds
        is_served = is_lost or self._requests.takes()
        await asyncio.sleep(ROUND_TRIP)
        if is_lost:
            return gateway_404()
        if not is_served:
            return httpx.Response(503, text="upstream connect error")
        if request.url.path.endswith(PROBE):
            return httpx.Response(200, json={"supported_models": []})
        return ok()

    async def job_state(
        self, account: str, job: str, *, origin: str, credentials: Mapping[str, str]
    ) -> str | None:
        self.count(self._load.asked)
        is_served = self._questions.takes()
        await asyncio.sleep(ROUND_TRIP)
        if is_served:
            self.count(self._load.served)
            return "JOB_STATE_RUNNING"
        match self._chance.randrange(3):
            case 0:
                raise ControlPlaneError("too many questions", 429, 1.0)
            case 1:
                raise ControlPlaneError("out of order", 503)
            case _:
                await asyncio.sleep(1e3)
                return None


async def _as_sdk(
    contestant: str,
    send: Callable[[], Awaitable[httpx.Response]],
    is_running: Callable[[], Awaitable[bool]],
    chance: random.Random,
) -> httpx.Response:
    """Send as the SDK does: what is answered with 5xx is sent again, with its waits."""
    for attempt in range(_SDK_RETRIES + 1):
        response = await persist(contestant, send, is_running)
        if response.status_code < 500:
            break
        await asyncio.sleep(min(0.5 * 2.0**attempt, 10.0) * (1 - 0.25 * chance.random()))
    return response


async def _meet(load: Overload, processes: int, *, questions: bool, requests: bool) -> None:
    world = _World(load, sheds_questions=questions, sheds_requests=requests)
    chance = random.Random(0)
    # A race that is longer than the budget of a request ends the run: it is given more.
    settings = GuardSettings(warmup_successes=0, retry_timeout=max(30.0, 1.5 * load.seconds))

    async def is_running() -> bool:
        try:
            async with asyncio.timeout(5):
                return await says_running(world)
        except (TimeoutError, ControlPlaneError):
            return False

    async def one(transport: httpx.AsyncBaseTransport, url: str, at: float) -> None:
        async def send() -> httpx.Response:
            request = httpx.Request("POST", url, headers={"X-Api-Key": KEY}, content=b"{}")
            return await transport.handle_async_request(request)

        await asyncio.sleep(at)
        response = await _as_sdk(load.contestant, send, is_running, chance)
        if response.status_code == 200:
            world.count(load.done)
        else:
            load.ended += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(processes):
            transport: httpx.AsyncBaseTransport = world
            if load.contestant == "guard":
                transport = GuardTransport(
                    world, settings=settings, control_plane=world, new_transport=lambda: world
                )
            url = f"{ORIGIN}/training/v1/rlorTrainerJobs/acc/job-{next(_jobs)}{_OPERATION}"
            met_at = chance.random() * MEETING_WITHIN * 0.9
            for _ in range(IN_FLIGHT):
                at = met_at + chance.random() * MEETING_WITHIN * 0.1
                group.create_task(one(transport, url, at))


def simulate(
    contestant: str,
    seconds: float,
    *,
    sheds_questions: bool = False,
    sheds_requests: bool = False,
    sampled: int = _SAMPLE,
) -> Overload:
    """Let a fleet meet a race of so many seconds."""
    load = Overload(contestant, seconds, PROCESSES / sampled)
    JITTER.seed(1)
    new_loop = partial(VirtualTimeLoop, rounds=sys.maxsize)
    with unlogged(), asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(_meet(load, sampled, questions=sheds_questions, requests=sheds_requests))
    return load


@dataclass
class Found:
    """What the fleets met.

    Args:
        questions: Where the control plane sheds.
        requests: Where the gateway does.
    """

    questions: list[Overload]
    requests: list[Overload]


def measure(sampled: int = _SAMPLE, races: tuple[float, ...] = RACES) -> Found:
    """Both kinds of overload, for each race and contestant."""
    shedding = (
        [
            simulate(name, seconds, sheds_questions=True, sampled=sampled)
            for seconds in races
            for name in ("B", "guard")
        ],
        [
            simulate(name, seconds, sheds_requests=True, sampled=sampled)
            for seconds in races
            for name in CONTESTANTS
        ],
    )
    return Found(*shedding)


def rows(found: Found) -> list[Row]:
    """The lines of the table of goals that this benchmark fills."""

    def of(loads: list[Overload], name: str) -> list[Overload]:
        return [load for load in loads if load.contestant == name]

    ended, b_ended = (
        max(load.share_ended for load in of(found.questions, name)) for name in ("guard", "B")
    )
    goodput, a_goodput = (
        min(load.best_goodput for load in of(found.requests, name)) for name in ("guard", "A")
    )
    return [
        Row(
            f"{PROCESSES:,} processes, a control plane that sheds: requests that end their run",
            "none",
            f"B {b_ended:.0%}",
            f"{ended:.1%}",
            ratio_of(ended, b_ended),
            ended == 0,
        ),
        Row(
            f"{PROCESSES:,} processes, a gateway that sheds: share of its capacity {WITHIN} s "
            "after the race",
            f">= {SHARE:.0%}",
            f"A {a_goodput:.0%}",
            f"{goodput:.0%}",
            None,
            goodput >= SHARE,
        ),
    ]


QUESTION_COLUMNS: Final = (
    "race",
    "design",
    "questions in the first second",
    "in the busiest one after that",
    "questions per process",
    "served",
    "requests that end their run",
)
REQUEST_COLUMNS: Final = (
    "race",
    "design",
    f"goodput, best of the first {WITHIN} s",
    "mean of the first 40 s",
    "requests that end their run",
)


def question_lines(loads: list[Overload]) -> list[tuple[str, ...]]:
    """What a control plane that sheds bears."""
    return [
        (
            f"{load.seconds:g} s",
            load.contestant,
            f"{load.asked[0] * load.scale:,.0f}",
            f"{max(load.asked[1:]) * load.scale:,.0f}",
            f"{sum(load.asked) * load.scale / PROCESSES:.1f}",
            f"{sum(load.served) * load.scale:,.0f}",
            f"{load.share_ended:.1%}",
        )
        for load in loads
    ]


def request_lines(loads: list[Overload]) -> list[tuple[str, ...]]:
    """What a gateway that sheds gets done."""
    return [
        (
            f"{load.seconds:g} s",
            load.contestant,
            f"{load.best_goodput:.0%}",
            f"{load.goodput(0, 40):.0%}",
            f"{load.share_ended:.1%}",
        )
        for load in loads
    ]


def show(found: Found) -> None:
    """Print every figure."""
    table("A control plane that sheds", QUESTION_COLUMNS, question_lines(found.questions))
    table("A gateway that sheds", REQUEST_COLUMNS, request_lines(found.requests))


def write_docs(folder: Path, found: Found) -> None:
    """Write the tables of `overload.md`."""
    page = folder / "overload.md"
    put_below(
        page,
        f"A control plane that serves {QUESTIONS_PER_SECOND:,} questions a second",
        markdown(QUESTION_COLUMNS, question_lines(found.questions)),
    )
    put_below(
        page,
        f"A gateway that passes on {REQUESTS_PER_SECOND:,} requests a second",
        markdown(REQUEST_COLUMNS, request_lines(found.requests)),
    )


if __name__ == "__main__":
    run_benchmarks(__doc__, sys.modules[__name__])
