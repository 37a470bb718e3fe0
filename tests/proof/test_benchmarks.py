"""The benchmarks run, in a tiny form, and what they compute is right. No speed is asserted."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import httpx
import pytest

from benchmarks import (
    arrivals,
    baselines,
    fleet,
    memory,
    new_transport,
    overhead,
    overload,
    patterns,
    recovery,
    regression,
    report,
    runs,
    stale_replicas,
    startup,
    storm,
)
from tests import ROOT
from tinker_guard.gateway import FAULTS
from tinker_guard.gateway import Exchange as Logged

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tinker_guard.gateway.world import Author


# -- pure functions ------------------------------------------------------------------------------


def logged(path: str, status: int, at: float, size: int = 0) -> Logged:
    by: Author = "gateway" if status == 404 else "trainer"
    return Logged("POST", path, status, 0, 0, None, None, "", size, at, by)


LOG = [
    logged("/api/v1/forward_backward", 404, 1.0, 100),
    logged(runs.PROBE, 404, 1.1, 1),
    logged("/api/v1/optim_step", 200, 1.2, 7),
    logged("/api/v1/forward_backward", 404, 1.5, 100),
    logged("/api/v1/forward_backward", 200, 3.5, 100),
    logged("/api/v1/forward_backward", 200, 4.0, 100),
]


def test_bytes_are_resent_once_for_each_404() -> None:
    assert runs.bytes_resent(LOG) == 200
    assert runs.bytes_resent(LOG[:1]) == 0


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
    report.write_json(tmp_path / "figures.json", [row], {"more": {"run": [RIGHT]}})
    document = json.loads((tmp_path / "figures.json").read_text())
    assert document["goals"][0]["ratio"] == 0.5
    assert document["more"]["run"][0]["losses"] == [2.0, 1.0]
    assert report.markdown(("a", "b"), [(1, 2)]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"


def test_what_got_worse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = [
        report.Row("dearer", "", "", "1 s", 0.5, True),
        report.Row("missed", "", "", "0 lost", None, True),
        report.Row("as it was", "", "", "1 s", 0.5, False),
        report.Row("gone", "", "", "1 s", 0.5, True),
    ]
    now = [
        report.Row("dearer", "", "", "2 s", 1.0, True),
        report.Row("missed", "", "", "3 lost", None, False),
        report.Row("as it was", "", "", "1.1 s", 0.55, False),
        report.Row("new", "", "", "9 s", 9.0, False),
    ]
    path = tmp_path / "figures.json"
    pytest.importorskip("tinker")
    report.write_json(path, before, {})
    document = json.loads(path.read_text())
    assert document["machine"]["cores"]
    assert report.worse_than(document, now) == [
        ("dearer", "1 s (0.5)", "2 s (1)"),
        ("missed", "0 lost", "3 lost"),
    ]
    assert report.committed(path) is None
    report.show_worse(path, None, now)
    report.show_worse(path, document, before)
    report.show_worse(path, document, now)
    printed = capsys.readouterr().out
    assert "never committed" in printed
    assert "Nothing is worse" in printed


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


# -- a fleet -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [2.0, 10.0])
def test_what_a_guarded_fleet_asks_for(seconds: float) -> None:
    load = fleet.simulate("guard", 20, seconds=seconds)
    # Into the race, and after it.
    assert load.each("requests") == 2 * fleet.IN_FLIGHT
    assert load.busiest_second("requests") == 20 * fleet.IN_FLIGHT
    assert load.busiest_second("requests", after=1) == load.busiest_second(
        "requests", after=seconds
    )
    assert 1 < load.each("questions") <= seconds
    assert load.busiest_second("questions") <= 20
    assert 1 < load.each("probes") <= 8 * seconds
    assert load.got_through == 20 * fleet.IN_FLIGHT
    assert load.mean_beyond <= max(0.5, seconds / 4)
    # What is plotted is the whole fleet's.
    plotted = sum(replace(load, processes=200).rates("requests")) * fleet.BIN
    assert plotted == pytest.approx(200 * 2 * fleet.IN_FLIGHT)


def test_what_a_fleet_with_a_or_b_asks_for() -> None:
    a, b = (fleet.simulate(name, 10, seconds=10.0) for name in ("A", "B"))
    # Sent at 0, 2, 6 and 14 s; asked about after the first three.
    assert a.each("requests") == b.each("requests") == 4 * fleet.IN_FLIGHT
    assert (a.each("questions"), b.each("questions")) == (0, 3 * fleet.IN_FLIGHT)
    assert b.busiest_second("questions") == 10 * fleet.IN_FLIGHT


def test_fleet_docs(tmp_path: Path) -> None:
    # Small fleets in the place of large ones: the page's form is what is tested.
    loads = [
        replace(load, processes=size)
        for size in (fleet.PLOTTED, fleet.PROCESSES[-1])
        for load in fleet.measure((2,))
    ]
    fleet.write_docs(tmp_path, loads)
    assert "<svg" in (tmp_path / "fleet.svg").read_text()
    page = (tmp_path / "fleet.md").read_text()
    assert page.count("\n| ") == 2 + len(loads)
    fleet.show(loads)


# -- stale replicas ------------------------------------------------------------------------------


def test_a_and_b_behind_a_balancer() -> None:
    def train(contestant: str) -> stale_replicas.Run:
        return stale_replicas.run(contestant, "sticky", 2, 1, 0, is_cold=True)

    # Waits of 2, 4, 8 and 16 s, and four round trips more.
    assert train("A") == stale_replicas.Run(30.04, 4, 0)
    # `get_info` once a second until it was answered three times.
    assert train("B") == stale_replicas.Run(23.23, 0, 23)
    assert train("none") == stale_replicas.Run(None, 1, 0)


def test_stale_replicas(tmp_path: Path) -> None:
    cells = stale_replicas.measure((2, 4), seeds=1)
    assert len(cells) == len(stale_replicas.BALANCERS) * 4 * 3 * 2
    assert all(run.lost is not None for cell in cells for run in cell.runs)
    stale_replicas.show(cells)
    assert len(stale_replicas.rows(cells)) == 2
    assert stale_replicas.as_markdown(cells).count("\n") == 2 + len(stale_replicas.BALANCERS)
    shutil.copy(ROOT / "docs" / "stale-replicas.md", tmp_path)
    stale_replicas.write_docs(tmp_path, cells)
    page = (tmp_path / "stale-replicas.md").read_text()
    # Three tables: one line for each balancer, and twice one for each k of n.
    assert page.count("\n| ") == 3 * 2 + 4 + 16 + 16


def test_a_run_that_died_is_no_figure() -> None:
    died, ended = stale_replicas.Run(None, 9, 9), stale_replicas.Run(1.25, 2, 3)
    assert stale_replicas.figures([died, ended, ended], "lost", 2) == "1.25 / 1.25, 1 of 3 died"
    assert stale_replicas.figures([died], "probes") == "1 of 1 died"


# -- each benchmark, tiny ------------------------------------------------------------------------


def test_startup() -> None:
    figures = startup.measure(rounds=1)
    assert {name: len(values) for name, values in figures.items()} == dict.fromkeys(
        (
            "bare",
            startup.GUARD,
            startup.PEER,
            startup.IMPORT,
            startup.INSTALL,
            startup.FIRST_CLIENT,
        ),
        1,
    )
    startup.show(figures)
    launches = {"bare": [10.0], startup.GUARD: [14.0], startup.PEER: [110.0]}
    program = {startup.IMPORT: [600.0], startup.INSTALL: [30.0]}
    launch, install = startup.rows(launches | program)
    assert (launch.ours, launch.ratio, launch.ok) == ("4.0 ms", 0.04, True)
    assert (install.ours, install.ratio, install.ok) == ("30 ms", 0.05, False)


def test_another_transport() -> None:
    figures = new_transport.measure(rounds=1)
    new_transport.show(figures)
    (row,) = new_transport.rows({new_transport.TWIN: [0.05], new_transport.PEER: [20.0]})
    assert (row.ours, row.ratio, row.ok) == ("0.05 ms", 0.0025, True)


def test_arrivals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "RACE_SECONDS", 0.01)
    storms = arrivals.measure(requests=(20,))
    assert len(storms) == 6
    arrivals.show(storms)
    rows = arrivals.rows(
        [replace(storm, worst_stall=1 + 0.3 * storm.is_guarded) for storm in storms]
    )
    assert [(row.ratio, row.ok) for row in rows] == [(1.3, False)] * 3


def test_a_fleet_that_nobody_can_serve(tmp_path: Path) -> None:
    found = overload.measure(sampled=20, races=(1.0, 10.0))
    overload.show(found)
    assert [load.ended for load in found.questions if load.contestant == "guard"] == [0, 0]
    assert all(load.ended > 100 for load in found.questions if load.contestant == "B")
    for load in found.requests:
        assert load.ended + sum(load.done) == 20 * overload.IN_FLIGHT
        # What passes for a second is what the gateway passes on, and a tenth that it had left.
        assert max(load.done) <= 1.1 * overload.REQUESTS_PER_SECOND / load.scale + 1
    ended, _ = overload.rows(found)
    assert ended.ok
    shutil.copy(ROOT / "docs" / "overload.md", tmp_path)
    overload.write_docs(tmp_path, found)
    page = (tmp_path / "overload.md").read_text()
    # Two races: B and the guard, then all three.
    assert (page.count("\n| 10 s | "), page.count("\n| 60 s | ")) == (5, 0)


def test_patterns() -> None:
    figures = patterns.measure(rounds=1, calls=3)
    patterns.show(figures)
    (row,) = patterns.rows(figures | {"0 patterns": [1.0], "100 hosts": [2.1]})
    assert (row.peer, row.ok) == ("none 1.00 us", False)


@pytest.mark.parametrize("mode", overhead.Mode)
def test_overhead(mode: overhead.Mode) -> None:
    pytest.importorskip("httpx_retries")
    pytest.importorskip("opentelemetry.instrumentation.httpx")
    figures = overhead.measure(mode, rounds=3, requests=20)
    assert {name: len(values) for name, values in figures.items()} == dict.fromkeys(
        mode.contestants, 3
    )
    overhead.show({mode: figures})


def test_what_is_made_of_the_overhead() -> None:
    figures = {
        mode: {name: [float(place)] * 3 for place, name in enumerate(mode.contestants)}
        for mode in overhead.Mode
    }
    *_, sync = found = overhead.rows(figures)
    assert len(found) == 4
    assert (sync.ours, sync.ratio, sync.ok) == ("4.00 us", 4 / 3, False)


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
    faults += [fault.name for fault in recovery.HALF_STALE.values()]
    for contestant in runs.CONTESTANTS:
        seconds = {"guard": 3.5, "B": 3.0}.get(contestant, 1.0)
        for fault in faults:
            run = replace(RIGHT, contestant=contestant, fault=fault, seconds=seconds)
            measured.runs.append(replace(run, seconds=0.5) if fault == "none" else run)
        for fault in ("deleted", "deleted-before"):
            died = replace(RIGHT, losses=None, error="NotFoundError", surfaced_after=0.1)
            # After a step, the SDK's telemetry meets the gate.
            if fault == "deleted":
                died = replace(died, not_founds=1, probes_not_found=2, questions=3)
            else:
                died = replace(died, probes_not_found=1, questions=1)
            measured.runs.append(replace(died, contestant=contestant, fault=fault))
        measured.connects[contestant] = measured.slow_connects[contestant] = [seconds / 10]
    measured.own_404 = {"none": [1.0], "guard": [6.0]}
    found = {row.what: row for row in recovery.rows(measured)}
    assert [what for what, row in found.items() if not row.ok] == [
        "healthy connect, warmup included, loopback",
        "one of four replicas stale for 20 s, connections sticky",
        "two of four replicas stale for 20 s, five steps",
        "trainer's own 404",
    ]
    assert any("3 s: 3.00" in row.ours for row in found.values())
    assert recovery.as_markdown(measured).count("\n") == 3 + len(
        [*recovery.TABLE_OF_FAULTS, *recovery.HALF_STALE]
    )
    recovery.show(measured)


def test_work_that_fails_is_no_measurement() -> None:
    assert runs.in_process(partial(int, "x"), 5.0) is None


def test_slow_line() -> None:
    from testkit.relay import SlowLine
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
    found = memory.measure_all(6_000)
    plain = found["plain"]
    assert [sample.requests for sample in plain.samples] == list(range(600, 6_001, 600))
    assert plain.resent >= 90
    assert all(sample.traced is not None for sample in found["traced"].samples)
    memory.show(found)


# -- the check for regressions ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "worse"), [(0.1, []), (0.5, []), (1.0, []), (1.01, ["x"]), (math.inf, ["x"])]
)
def test_twice_the_recorded_ratio_is_a_regression(now: float, worse: list[str]) -> None:
    assert regression.regressions({"x": now}, {"x": 0.5, "gone": 0.1}) == worse
    assert regression.regressions({"never recorded": now}, {"x": 0.5}) == ["never recorded"]


def test_the_check_knows_each_ratio_that_is_recorded(tmp_path: Path) -> None:
    ratios = regression.measure_ratios(rounds=1)
    recorded = json.loads(regression.RECORDED.read_text())
    assert ratios.keys() == recorded["ratios"].keys()
    assert set(recorded["machine"]) == {"python", "machine", "cores", "httpx"}
    regression.record({"x": 0.5}, tmp_path / "recorded.json")
    assert json.loads((tmp_path / "recorded.json").read_text())["ratios"] == {"x": 0.5}


@pytest.mark.parametrize(("ratio", "code"), [(0.6, 0), (1.2, 1)])
def test_the_check_fails_where_a_ratio_is_worse(
    ratio: float,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(regression, "RECORDED", tmp_path / "recorded.json")
    monkeypatch.setattr(regression, "measure_ratios", lambda: {"guard": ratio})
    regression.record({"guard": 0.5}, regression.RECORDED)
    monkeypatch.setattr("sys.argv", ["regression"])
    assert regression.main() == code
    assert ("worse" in capsys.readouterr().out) is bool(code)
