"""The benchmarks run, in a tiny form, and what they compute is right. No speed is asserted."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import replace
from functools import partial
from statistics import mean
from typing import TYPE_CHECKING

import httpx
import pytest

from benchmarks import baselines, fleet, memory, overhead, recovery, report, runs, startup, storm
from tests.fakes import KEY, ORIGIN, Exchange, FakeControlPlane, FakeGateway, gateway_404, ok
from tests.virtual_time import VirtualTimeLoop
from tinker_guard import GuardSettings, GuardTransport
from tinker_guard.gateway import FAULTS
from tinker_guard.gateway import Exchange as Logged

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


# -- pure functions ------------------------------------------------------------------------------


def logged(
    path: str, status: int, at: float, *, digest: str = "d", answered_by: str = "trainer"
) -> Logged:
    by = "gateway" if status == 404 else answered_by
    return Logged("POST", path, status, 0, 0, None, None, digest, at, by)  # type: ignore[arg-type]


LOG = [
    logged("/api/v1/forward_backward", 404, 1.0, digest="large"),
    logged(runs.PROBE, 404, 1.1, digest="none"),
    logged("/api/v1/optim_step", 200, 1.2, digest="small"),
    logged("/api/v1/forward_backward", 404, 1.5, digest="large"),
    logged("/api/v1/forward_backward", 200, 3.5, digest="large"),
    logged("/api/v1/forward_backward", 200, 4.0, digest="large"),
]


def test_bytes_are_resent_once_for_each_404() -> None:
    assert runs.bytes_resent(LOG, {"large": 100, "small": 7, "none": 1}) == 200
    assert runs.bytes_resent(LOG[:1], {"large": 100}) == 0


def test_a_route_is_regained_when_what_met_the_404_is_answered() -> None:
    assert runs.regained_after(LOG) == 2.5
    assert runs.regained_after(LOG[:4]) is None


RIGHT = runs.Run(
    "guard", "none", losses=(2.0, 1.0), applied=runs.ONCE_EACH, operations={"forward_backward": 5}
)


@pytest.mark.parametrize(
    ("run", "verdict"),
    [
        (RIGHT, "right"),
        (replace(RIGHT, losses=(2.0, 1.1)), "wrong"),
        (replace(RIGHT, applied=(1, 1, *runs.ONCE_EACH)), "wrong"),
        (replace(RIGHT, losses=None, error="NotFoundError"), "died (NotFoundError)"),
        (replace(RIGHT, losses=None, is_hung=True), "hung"),
        (replace(RIGHT, operations={"forward_backward": 6}), "gradient applied twice"),
    ],
)
def test_how_a_run_ended(run: runs.Run, verdict: str) -> None:
    assert runs.verdict_on(run, [2.0, 1.0]) == verdict


def test_how_long_a_race_may_take() -> None:
    assert [recovery.allowed(seconds) for seconds in (0.2, 2, 10)] == [0.7, 2.5, 12.5]


def test_most_questions_within_a_window() -> None:
    assert storm.most_within([], 1.0) == 0
    assert storm.most_within([0.0, 1.0, 2.0], 1.0) == 1
    assert storm.most_within([2.0, 0.0, 0.5, 0.9, 1.4], 1.0) == 3


def test_statistics() -> None:
    assert report.spread([3.0, 1.0, 2.0, 100.0]) == "2.5 (2-3)"
    assert report.ratio_of(1.0, 4.0) == 0.25
    assert report.ratio_of(1.0, 0.0) is None
    assert report.ratio_of(1.0, math.inf) is None
    assert overhead.added({"bare": [1.0, 2.0], "guard": [4.0, 6.0]}) == {"guard": [3.0, 4.0]}


def test_json_and_markdown(tmp_path: Path) -> None:
    pytest.importorskip("tinker")
    row = report.Row("what", "goal", "1 s", "0.5 s", 0.5, True)
    report.write_json(tmp_path / "figures.json", [row], {"more": [1, 2]})
    document = json.loads((tmp_path / "figures.json").read_text())
    assert document["goals"][0]["ratio"] == 0.5
    assert document["more"] == [1, 2]
    assert report.markdown(("a", "b"), [(1, 2)]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"


# -- the earlier designs -------------------------------------------------------------------------


class NotFoundError(Exception):
    pass


class Future:
    def __init__(self, error: Exception | None) -> None:
        self._error = error

    def result(self) -> str:
        if self._error is not None:
            raise self._error
        return "done"


class ScriptedB(baselines.AlgorithmB):
    """B with a control plane that answers from a list."""

    def __init__(self, answers: list[bool]) -> None:
        super().__init__("http://unused", "key", NotFoundError)
        self.answers = answers

    def _is_running(self) -> bool:
        return self.answers.pop(0)


@pytest.mark.parametrize(
    ("policy", "refusals", "slept", "is_raised"),
    [
        (baselines.AlgorithmA(), 0, [], False),
        (baselines.AlgorithmA(), 3, [2, 4, 8], False),
        (baselines.AlgorithmA(), 7, [2, 4, 8, 16, 30, 30], True),
        (ScriptedB([True] * 4), 2, [2, 4], False),
        (ScriptedB([True] * 4), 5, [2, 4, 8, 15], True),
        (ScriptedB([True, False]), 5, [2], True),
    ],
)
def test_a_and_b_call_again(
    policy: baselines.Policy, refusals: int, slept: list[float], is_raised: bool
) -> None:
    outcomes: Iterator[Exception | None] = iter([NotFoundError()] * refusals + [None])
    pauses: list[float] = []
    future: baselines.RetriedFuture[str] = baselines.RetriedFuture(
        lambda: Future(next(outcomes)), policy, NotFoundError, pauses.append
    )
    if is_raised:
        with pytest.raises(NotFoundError):
            future.result()
    else:
        assert future.result() == "done"
    assert pauses == slept


@pytest.mark.anyio
async def test_a_and_b_around_plain_requests() -> None:
    clock = asyncio.get_running_loop().time
    sent: list[float] = []
    asked: list[float] = []

    async def send() -> httpx.Response:
        sent.append(clock())
        return httpx.Response(200 if clock() >= 5 else 404)

    async def is_running() -> bool:
        asked.append(clock())
        return True

    assert (await baselines.send_a(send)).status_code == 200
    assert sent == [0, 2, 6]
    sent.clear()
    assert (await baselines.send_b(send, is_running)).status_code == 200
    assert (sent, asked) == ([6], [])


# -- the model of a fleet ------------------------------------------------------------------------


def run_real(processes: int, in_flight: int, seconds: float) -> dict[str, float]:
    """What the real transport sends in such a race, for each process."""
    plane = FakeControlPlane(takes=fleet.ROUND_TRIP)
    beyond: list[float] = []

    async def answer(exchange: Exchange) -> httpx.Response:
        await asyncio.sleep(fleet.ROUND_TRIP)
        return ok() if exchange.at >= seconds else gateway_404()

    gateway = FakeGateway(answer)

    async def one(transport: GuardTransport, process: int, at: float) -> None:
        await asyncio.sleep(at)
        url = f"{ORIGIN}/training/v1/rlorTrainerJobs/acc/job-{process}/api/v1/forward_backward"
        request = httpx.Request("POST", url, content=b"{}", headers={"X-Api-Key": KEY})
        response = await transport.handle_async_request(request)
        assert response.status_code == 200
        await response.aclose()
        beyond.append(asyncio.get_running_loop().time() - seconds)

    async def everything() -> None:
        settings = GuardSettings(warmup_successes=0)
        requests = []
        for process in range(processes):
            transport = GuardTransport(
                gateway.new_transport(), settings=settings, control_plane=plane
            )
            met_at = fleet.MEETING_WITHIN * process / processes
            requests += [one(transport, process, met_at + 0.005 * n) for n in range(in_flight)]
        await asyncio.gather(*requests)

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(everything())
    return {
        "requests": len(gateway.sent) / processes,
        "probes": len(gateway.probes) / processes,
        "questions": plane.questions / processes,
        "beyond": sum(beyond) / len(beyond),
    }


@pytest.mark.parametrize(("processes", "rounds"), [(1, 50), (10, 8)])
@pytest.mark.parametrize("seconds", [2.0, 10.0])
def test_the_model_of_a_fleet_agrees_with_the_transport(
    processes: int, rounds: int, seconds: float
) -> None:
    """On average: chance alone moves the probes of one process by one or two."""
    real = [run_real(processes, fleet.IN_FLIGHT, seconds) for _ in range(rounds)]
    loads = [
        fleet.simulate("guard", processes, seconds=seconds, seed=seed) for seed in range(rounds)
    ]
    for load, measured in zip(loads, real, strict=True):
        assert load.each("requests") == measured["requests"] == 2 * fleet.IN_FLIGHT
    for what in ("probes", "questions"):
        modelled = mean(load.each(what) for load in loads)
        assert modelled == pytest.approx(mean(one[what] for one in real), abs=1.0)
    # One last wait between two probes, at most.
    beyond = mean(load.mean_beyond for load in loads) - mean(one["beyond"] for one in real)
    assert abs(beyond) <= max(0.5, seconds / 4)


def test_the_model_of_a_and_b() -> None:
    a, b = (fleet.simulate(name, 10, seconds=10.0) for name in ("A", "B"))
    # Sent at 0, 2, 6 and 14 s; asked about after the first three.
    assert a.each("requests") == b.each("requests") == 4 * fleet.IN_FLIGHT
    assert (a.each("questions"), b.each("questions")) == (0, 3 * fleet.IN_FLIGHT)
    assert b.busiest_second("questions") == 10 * fleet.IN_FLIGHT


def test_fleet_docs(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    # Small fleets in the place of large ones: the page's form is what is tested.
    loads = [
        replace(fleet.simulate(name, 2), processes=size)
        for size in (fleet.PLOTTED, fleet.PROCESSES[-1])
        for name in fleet.CONTESTANTS
    ]
    fleet.write_docs(tmp_path, loads)
    assert "<svg" in (tmp_path / "fleet.svg").read_text()
    page = (tmp_path / "fleet.md").read_text()
    assert page.count("\n| ") == 2 + len(loads)
    fleet.show(loads)


# -- each benchmark, tiny ------------------------------------------------------------------------


def test_startup() -> None:
    figures = startup.measure(rounds=1)
    assert {name: len(values) for name, values in figures.items()} == dict.fromkeys(
        ("bare", startup.GUARD, startup.PEER), 1
    )
    startup.show(figures)
    (row,) = startup.rows({"bare": [10.0], startup.GUARD: [14.0], startup.PEER: [110.0]})
    assert (row.ours, row.ratio, row.ok) == ("4.0 ms", 0.04, True)


@pytest.mark.parametrize("mode", overhead.Mode)
def test_overhead(mode: overhead.Mode) -> None:
    pytest.importorskip("httpx_retries")
    pytest.importorskip("opentelemetry.instrumentation.httpx")
    figures = overhead.measure(mode, rounds=3, requests=20)
    assert {name: len(values) for name, values in figures.items()} == dict.fromkeys(
        overhead.CONTESTANTS, 3
    )
    overhead.show({mode: figures})
    assert len(overhead.rows(dict.fromkeys(overhead.Mode, figures))) == 3


def test_runs_of_the_sdk() -> None:
    pytest.importorskip("tinker")
    healthy = runs.train("none", FAULTS["none"])
    assert healthy.losses is not None
    work = [
        partial(runs.train, contestant, FAULTS[fault], timeout=timeout)
        for contestant, fault, timeout in [
            ("guard", "reply-lost", 20.0),
            ("none", "dispatch", 20.0),
            ("B", "client-config", 20.0),
            ("A", "dispatch", 1.0),
        ]
    ]
    found = runs.side_by_side(work, at_once=2)
    assert [runs.verdict_on(run, healthy.losses) for run in found] == [
        "right",
        "died (NotFoundError)",
        "died (NotFoundError)",
        "hung",
    ]
    assert found[0].bytes_resent > 0
    assert found[0].questions == 1

    measured = recovery.Measured(healthy.losses, [healthy, *found])
    assert measured.verdict("guard", "reply-lost") == "right"
    assert measured.lost("none", "none") == 0
    assert measured.lost("A", "dispatch") is None


def test_what_is_made_of_the_runs() -> None:
    pytest.importorskip("tinker")
    measured = recovery.Measured(fault_free=(2.0, 1.0), b_own_404=29.0)
    faults = [recovery.race_of(where, 3.0).name for where in recovery.RACED]
    faults += ["none", *recovery.TABLE_OF_FAULTS]
    for contestant in runs.CONTESTANTS:
        seconds = {"guard": 3.5, "B": 3.0}.get(contestant, 1.0)
        for fault in faults:
            run = replace(RIGHT, contestant=contestant, fault=fault, seconds=seconds)
            measured.runs.append(replace(run, seconds=0.5) if fault == "none" else run)
        for fault in ("deleted", "deleted-before"):
            died = replace(RIGHT, losses=None, error="NotFoundError", questions=1)
            measured.runs.append(
                replace(died, contestant=contestant, fault=fault, surfaced_after=0.1)
            )
        measured.connects[contestant] = measured.slow_connects[contestant] = [seconds / 10]
    measured.own_404 = {"none": [1.0], "guard": [6.0]}
    found = {row.what: row for row in recovery.rows(measured)}
    assert [what for what, row in found.items() if not row.ok] == [
        "healthy connect, warmup included, loopback",
        "one of four replicas stale for 20 s, connections sticky",
        "trainer's own 404",
    ]
    assert any("3 s: 3.00" in row.ours for row in found.values())
    assert recovery.as_markdown(measured).count("\n") == 3 + len(recovery.TABLE_OF_FAULTS)
    assert json.dumps(recovery.details(measured))
    recovery.show(measured)


def test_work_that_fails_is_no_measurement() -> None:
    assert runs.in_process(partial(int, "x"), 5.0) is None


def test_slow_line() -> None:
    from benchmarks.slow_line import SlowLine
    from tinker_guard.gateway import LocalGateway

    with (
        LocalGateway() as gateway,
        SlowLine(int(gateway.origin.rpartition(":")[2]), 0.05) as line,
        httpx.Client(trust_env=False) as client,
    ):
        for _ in range(2):
            answer = client.get(f"http://127.0.0.1:{line.port}/login")
            assert answer.status_code == 200
            assert answer.elapsed.total_seconds() >= 0.05


def test_storm() -> None:
    result = storm.storm("guard", 5, 0.3)
    assert (result.answered, result.sent, result.most_per_request) == (5, 10, 2)
    assert (result.questions, result.questions_in_ttl) == (1, 1)
    storm.show([result])
    assert storm.rows([result, replace(result, contestant="B", questions_in_ttl=5)])[0].ok


def test_memory() -> None:
    found = memory.measure_both(6_000)
    plain = found["plain"]
    assert [sample.requests for sample in plain.samples] == list(range(600, 6_001, 600))
    assert plain.resent >= 90
    assert all(sample.traced is not None for sample in found["traced"].samples)
    memory.show(found)
