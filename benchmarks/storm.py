"""Many requests in flight at once meet one race, over real sockets.

    python -m benchmarks.storm [--json PATH]

The gateway runs in a process of its own, so that it and the client do not share a lock.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
import time
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Final

import httpx

from benchmarks.baselines import persist
from benchmarks.report import Row, ratio_of, run_benchmarks, table
from benchmarks.runs import PROBE, in_process, job_url_of
from tinker_guard import GuardSettings, GuardTransport
from tinker_guard.gateway import Fault, LocalGateway, Race

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

    from tinker_guard.gateway import Exchange

RACE_SECONDS: Final = 2.0
IN_FLIGHT: Final = (1, 50, 400)
REQUESTS_PER_CLIENT: Final = 10
"""Small pools, like the SDK's for training; httpx looks through all connections of a pool for each
request, and would be what is measured with hundreds of them."""
BODY: Final = b"x" * 2_000
_OPERATION: Final = "telemetry"
"""One that answers any body, and at once."""


@dataclass(frozen=True)
class Storm:
    """What came of one storm; times in seconds.

    Args:
        contestant: Who met it.
        in_flight: How many requests met it at once.
        answered: How many of them got through in the end.
        questions: How often the control plane was asked.
        questions_in_ttl: The most questions within any `verdict_ttl`.
        sent: Requests that arrived, resends included, probes not.
        most_per_request: The most often that one request was sent.
        probes: Probes that arrived.
        megabytes: What their bodies came to.
        healthy: How long the same requests took before the race, all at once.
        beyond: From the end of the race until the last request was answered.
    """

    contestant: str
    in_flight: int
    answered: int
    questions: int
    questions_in_ttl: int
    sent: int
    most_per_request: int
    probes: int
    megabytes: float
    healthy: float
    beyond: float


def most_within(times: list[float], window: float) -> int:
    """The most of these times that lie within one half-open window of this length."""
    ordered = sorted(times)
    most = first = 0
    for last, at in enumerate(ordered):
        while at - ordered[first] >= window:
            first += 1
        most = max(most, last - first + 1)
    return most


def storm(contestant: str, in_flight: int, seconds: float = RACE_SECONDS) -> Storm:
    """Let one contestant meet one race.

    Args:
        contestant: `A`, `B` or `guard`.
        in_flight: Requests that are sent at once.
        seconds: Length of the race.
    """
    # After a first volley, which opens the connections and shows what the machine can do.
    race = Race(_OPERATION, occurrence=in_flight + 1, seconds=seconds)
    with _gateway(Fault(races=(race,))) as (base_url, log):
        result = in_process(partial(_send_all, contestant, base_url, in_flight), 120.0)
        if result is None:
            raise RuntimeError(f"the storm of {contestant} failed")
        answered, healthy, ended_at = result
        began_at, exchanges = log()
    asked = [e.at for e in exchanges if e.answered_by == "control_plane"]
    sent = [e for e in exchanges if e.path == f"/api/v1/{_OPERATION}"][in_flight:]
    per_request: dict[str | None, int] = {}
    for exchange in sent:
        key = exchange.idempotency_key
        per_request[key] = per_request.get(key, 0) + 1
    return Storm(
        contestant=contestant,
        in_flight=in_flight,
        answered=answered,
        questions=len(asked),
        questions_in_ttl=most_within(asked, GuardSettings().verdict_ttl),
        sent=len(sent),
        most_per_request=max(per_request.values()),
        probes=sum(e.path == PROBE and e.at >= sent[0].at for e in exchanges),
        megabytes=len(sent) * len(BODY) / 1e6,
        healthy=healthy,
        beyond=ended_at - (began_at + sent[0].at + seconds),
    )


@contextmanager
def _gateway(
    fault: Fault,
) -> Iterator[tuple[str, Callable[[], tuple[float, list[Exchange]]]]]:
    """A gateway in a process of its own: its route, and a function that fetches its log."""
    spawning = multiprocessing.get_context("forkserver")
    ours, theirs = spawning.Pipe()
    process = spawning.Process(target=_serve, args=(fault, theirs), daemon=True)
    process.start()
    try:

        def log() -> tuple[float, list[Exchange]]:
            ours.send("log")
            answer: tuple[float, list[Exchange]] = ours.recv()
            return answer

        if not ours.poll(20.0):
            raise RuntimeError("the gateway did not start")
        yield ours.recv(), log
    finally:
        process.kill()
        process.join()


def _serve(fault: Fault, connection: Connection) -> None:
    began: list[float] = []

    def clock() -> float:
        # One clock for all processes of a machine.
        now = time.monotonic()
        if not began:
            began.append(now)
        return now

    with LocalGateway(fault, clock=clock) as gateway:
        connection.send(gateway.base_url)
        connection.recv()
        connection.send((began[0], gateway.requests))
        connection.recv()


def _send_all(contestant: str, base_url: str, in_flight: int) -> tuple[int, float, float]:
    return asyncio.run(_storm(contestant, base_url, in_flight))


async def _storm(contestant: str, base_url: str, in_flight: int) -> tuple[int, float, float]:
    headers = {"X-Api-Key": LocalGateway.api_key}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    job_url = job_url_of(base_url)

    def new_client() -> httpx.AsyncClient:
        transport: httpx.AsyncBaseTransport = httpx.AsyncHTTPTransport(limits=limits)
        if contestant == "guard":
            transport = GuardTransport(transport, settings=GuardSettings())
        return httpx.AsyncClient(transport=transport, headers=headers, timeout=60)

    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(new_client())
            for _ in range(0, in_flight, REQUESTS_PER_CLIENT)
        ]

        async def is_running(client: httpx.AsyncClient) -> bool:
            answer = await client.get(job_url)
            return bool(answer.json().get("state") == "JOB_STATE_RUNNING")

        async def one(when: str, number: int) -> int:
            client = clients[number // REQUESTS_PER_CLIENT]

            async def send() -> httpx.Response:
                return await client.post(
                    f"{base_url}/api/v1/{_OPERATION}",
                    content=BODY,
                    headers={"X-Idempotency-Key": f"{when}-{number}"},
                )

            return (await persist(contestant, send, partial(is_running, client))).status_code

        # Warm, so that the race is met by all of them in flight and not by a warmup.
        assert (await clients[0].get(base_url + PROBE)).status_code == 200
        began_at = time.monotonic()
        statuses = await asyncio.gather(*(one("before", n) for n in range(in_flight)))
        healthy = time.monotonic() - began_at
        assert statuses == [200] * in_flight
        statuses = await asyncio.gather(*(one("race", n) for n in range(in_flight)))
        return statuses.count(200), healthy, time.monotonic()


def measure(rounds: int = 3, in_flight: tuple[int, ...] = IN_FLIGHT) -> list[Storm]:
    """All storms, the contestants taking turns."""
    return [
        storm(contestant, count)
        for _ in range(rounds)
        for count in in_flight
        for contestant in ("A", "B", "guard")
    ]


def rows(storms: list[Storm]) -> list[Row]:
    """The line of the table of goals that this benchmark fills."""
    most = max(each.in_flight for each in storms)

    def questions(contestant: str) -> int:
        return max(
            each.questions_in_ttl
            for each in storms
            if (each.contestant, each.in_flight) == (contestant, most)
        )

    ours, peer = questions("guard"), questions("B")
    is_answered = all(each.answered == each.in_flight for each in storms)
    return [
        Row(
            f"{most} requests in flight meet a race",
            "<= 1 question per verdict_ttl and process",
            f"B {peer}",
            f"{ours}",
            ratio_of(ours, peer),
            ours <= 1 and is_answered,
        )
    ]


def show(storms: list[Storm]) -> None:
    """Print every figure."""
    groups: dict[tuple[int, str], list[Storm]] = {}
    for each in storms:
        groups.setdefault((each.in_flight, each.contestant), []).append(each)

    def middle(group: list[Storm], name: str) -> float:
        return float(median(getattr(each, name) for each in group))

    table(
        f"Requests in flight meet a race of {RACE_SECONDS:g} s (medians)",
        (
            "in flight",
            "who",
            "got through",
            "questions",
            "in one ttl",
            "sent",
            "most per request",
            "probes",
            "MB sent",
            "s without race",
            "s beyond race",
        ),
        (
            (
                count,
                f"{contestant} x{len(group)}",
                min(each.answered for each in group),
                f"{middle(group, 'questions'):.0f}",
                max(each.questions_in_ttl for each in group),
                f"{middle(group, 'sent'):.0f}",
                max(each.most_per_request for each in group),
                f"{middle(group, 'probes'):.0f}",
                f"{middle(group, 'megabytes'):.2f}",
                f"{middle(group, 'healthy'):.2f}",
                f"{middle(group, 'beyond'):.2f}",
            )
            for (count, contestant), group in groups.items()
        ),
    )


if __name__ == "__main__":
    run_benchmarks(__doc__, sys.modules[__name__])
