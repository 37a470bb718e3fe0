"""The judge of `make chaos`, on made-up logs: what it must accept, and what it must find out."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from chaos.conduct import Options, Seen
from chaos.faults import FAULTS
from chaos.judge import (
    ALLOWED,
    Oracle,
    judge_left,
    judge_log,
    judge_run,
    judge_trends,
    trend_of,
)
from chaos.plan import draw, job_name
from chaos.report import Report, never_met
from chaos.watch import Tally
from tinker_guard import attributes as names

if TYPE_CHECKING:
    from pathlib import Path

SEED = 7
ORACLE = Oracle(
    losses={0: [], 5: [1.0] * 5, 10: [1.0] * 10, 20: [1.0] * 20},
    tokens={0: [[1]], 5: [[2]], 10: [[2]], 20: [[2]]},
)
NOT_FOUND = {"type": "tinker.NotFoundError", "text": "Error code: 404", "chain": ["tinker"]}


def plan_of(kind: str, number: int = 1) -> Any:
    return draw(SEED, job_name(kind, 0, number))


def record_of(plan: Any, **changed: Any) -> dict[str, Any]:
    """A run that ended right, but for what is changed."""
    log = {
        "applied": list(range(1, 2 * plan.steps + 2)) if plan.steps else [],
        "sampled": [0, 1, 2],
        "unexpected": [],
        "foreign_keys": 0,
    }
    record = {
        "losses": ORACLE.losses[plan.steps],
        "tokens": ORACLE.tokens[plan.steps],
        "verdicts": {"routing_race, job_running": 3},
        "log": log | changed.pop("log", {}),
    }
    return record | changed


def judged(kind: str, *, is_guarded: bool = True, **changed: Any) -> tuple[str, list[str]]:
    plan = plan_of(kind)
    finding = judge_run(plan, record_of(plan, **changed), ORACLE, is_guarded=is_guarded)
    return finding.ended, finding.broken


@pytest.mark.parametrize("kind", ["train", "sample", "own", "killed"])
def test_a_run_that_ends_right(kind: str) -> None:
    assert judged(kind) == ("right", [])


@pytest.mark.parametrize(
    "changed",
    [
        {"losses": [1.0, 1.0000000000000002]},
        {"tokens": [[3]]},
        {"log": {"applied": [1, 2, 2, 3]}},
        {"log": {"applied": [1, 3, 2]}},
        {"log": {"sampled": [0, 1, 1]}},
        {"log": {"unexpected": ["seq_id 3 was resent with another body"]}},
        {"log": {"foreign_keys": 1}},
        {"verdicts": {"unverified, control_plane_error": 1}},
        {"verdicts": {"genuine_not_found, job_not_running": 1}},
        {"error": NOT_FOUND},
        {"error": {"type": "builtins.TimeoutError", "text": "", "chain": ["builtins"]}},
        {"error": {"type": "builtins.KeyError", "text": "x", "chain": ["builtins"]}},
        {"error": NOT_FOUND | {"chain": ["tinker", "tinker_guard.recovery"]}},
    ],
    ids=str,
)
def test_what_a_run_must_not_show(changed: dict[str, Any]) -> None:
    _, broken = judged("train", **changed)
    assert broken


def test_a_404_may_end_a_run_only_if_nobody_could_say_that_it_was_untrue() -> None:
    unheard = {"routing_race, job_running": 1, "unverified, control_plane_error": 1}
    for kind in ("own", "deaf", "slandered"):
        ended, broken = judged(kind, error=NOT_FOUND, losses=[1.0], verdicts=unheard)
        assert (ended[:3], broken) == ("404", [])
        for heard in ({}, {"genuine_not_found, trainer_answered": 1}, {"routing_race, x": 1}):
            assert judged(kind, error=NOT_FOUND, losses=[1.0], verdicts=heard)[1]
        # What came before it must be right all the same.
        assert judged(kind, error=NOT_FOUND, losses=[2.0], verdicts=unheard)[1]


def test_a_genuine_404_is_handed_back_at_once_and_not_resent() -> None:
    found = {"genuine_not_found, job_not_running": 2, "longest genuine, ms": 900}
    given: dict[str, Any] = {"error": NOT_FOUND, "losses": [1.0]}
    assert judged("gone", **given, verdicts=found) == ("genuine 404 handed back", [])
    for worse in (
        {"longest genuine, ms": 30_000},
        {"resends of what was genuine": 1},
        {"routing_race, job_running": 1},
    ):
        assert judged("gone", **given, verdicts=found | worse)[1]


def test_what_the_sdk_gives_up_by_itself_is_counted_apart() -> None:
    error = {"type": "tinker.APIConnectionError", "text": "Connection error.", "chain": ["httpx"]}
    ended, broken = judged("train", error=error, losses=[])
    assert (ended, broken) == ("given up by the SDK (APIConnectionError)", [])


def test_the_log_of_a_run_whose_client_was_killed() -> None:
    log = {"applied": [1, 2, 3], "sampled": [], "unexpected": [], "foreign_keys": 0}
    assert judge_log(log) == judge_log(None) == []
    assert judge_log(log | {"applied": [1, 2, 4]})


def looks(**slopes: float) -> list[dict[str, float]]:
    """One a second for ten minutes, with noise, and what grows by so much a minute."""
    chance = random.Random(1)
    levels = {"rss": 150.0, "descriptors": 300.0, "tasks": 900.0, "threads": 60.0, "spans": 500.0}
    return [
        {"at": 1000.0 + second}
        | {
            name: level * chance.uniform(0.95, 1.05) + slopes.get(name, 0.0) * second / 60
            for name, level in levels.items()
        }
        for second in range(600)
    ]


@pytest.mark.parametrize(
    "slopes", [{}, *({name: 100.0} for name in ALLOWED)], ids=lambda slopes: str([*slopes])
)
def test_what_grows_is_found(slopes: dict[str, float]) -> None:
    trends = {name: trend_of(name, looks(**slopes)) for name in ALLOWED}
    broken = judge_trends("steady", trends, routes=1024, bound=1024)
    assert len(broken) == len(slopes)
    for name, per_minute in slopes.items():
        assert f" {name} " in broken[0]
        assert trends[name].per_hour == pytest.approx(60 * per_minute, rel=0.2)
    assert len(judge_trends("steady", {}, routes=1025, bound=1024)) == 1


def left(**changed: Any) -> dict[str, Any]:
    nothing: dict[str, Any] = {
        "tasks": [], "connections": 0, "spans": 0, "hung_closes": 0, "faults": [], "longest": {},
        "counts": {},
    }  # fmt: skip
    return nothing | changed


def test_what_may_be_left() -> None:
    assert judge_left("steady", left(longest={"recovered": 40.0})) == []
    hung = ["Telemetry._periodic_flush", "SessionFuturesPoller._poll_loop"]
    assert judge_left("steady", left(tasks=hung, connections=5, hung_closes=1)) == []


@pytest.mark.parametrize(
    "changed",
    [
        {"tasks": ["Telemetry._periodic_flush"]},
        {"tasks": ["sleep"], "hung_closes": 1},
        {"connections": 1},
        {"spans": 1},
        {"faults": ["tinker_guard: a fault of its own in the recovery"]},
        {"longest": {"recovered": 400.0}},
    ],
    ids=str,
)
def test_what_must_not_be_left(changed: dict[str, Any]) -> None:
    assert len(judge_left("steady", left(**changed))) == 1


def test_a_fault_that_never_came_fails_the_soak() -> None:
    seen = Seen(Options(60, SEED, is_guarded=False))
    seen.faults.update({str(fault): 1 for kind in FAULTS for fault in kind})
    assert never_met(seen) == []
    missing = str(random.Random(1).choice([fault for kind in FAULTS for fault in kind]))
    del seen.faults[missing]
    assert never_met(seen) == [missing]
    assert f"never happened: {missing}" in Report(seen).broken


def test_a_plan_depends_on_the_seed_and_the_job_alone() -> None:
    draw.cache_clear()
    plans = [plan_of(kind, n) for kind in ("train", "sample", "gone") for n in range(50)]
    draw.cache_clear()
    assert plans == [plan_of(kind, n) for kind in ("train", "sample", "gone") for n in range(50)]
    assert all(plan.fault.races for plan in plans if plan.kind != "gone")
    assert all(plan.fault.stop for plan in plans if plan.kind == "gone")
    calm = draw(SEED, job_name("train", 0, 1), has_404s=False)
    assert not calm.fault.races
    assert calm.hitch > 0


def test_the_figures_are_put_where_the_last_ones_were(tmp_path: Path) -> None:
    page = tmp_path / "reliability.md"
    seen = Seen(Options(60, SEED), seconds=61.0, requests=1234)
    report = Report(seen)
    report.write_docs(page, "2026-01-01")
    page.write_text("Before.\n" + page.read_text() + "After.\n")
    seen.requests = 5678
    report.write_docs(page, "2026-01-02")
    text = page.read_text()
    assert text.startswith("Before.\n")
    assert text.endswith("After.\n")
    assert "5,678" in text
    assert "1,234" not in text
    assert "2026-01-01" not in text


def test_a_genuine_404_is_timed_from_when_the_gateway_answered() -> None:
    tally, provider = Tally(), TracerProvider()
    provider.add_span_processor(tally)
    tracer = provider.get_tracer("tinker_guard")
    second = 10**9
    asked = {names.OPERATION: "forward_backward", names.JOB: "gone-0-1"}
    request = tracer.start_span("POST", attributes=asked, start_time=second)
    inside = trace.set_span_in_context(request)
    for answered in (10, 11):
        exchange = tracer.start_span("POST", inside, start_time=second)
        exchange.set_attribute(names.STATUS_CODE, 404)
        exchange.end(answered * second)
    request.set_attributes(
        {
            names.OUTCOME: "not_found",
            names.VERDICT: "genuine_not_found",
            names.REASON: "job_not_running",
            names.RETRIES: 0,
        }
    )
    request.end(12 * second)
    assert tally.verdicts_of("gone-0-1") == {
        "genuine_not_found, job_not_running": 1,
        "resends of what was genuine": 0,
        "longest genuine, ms": 2000,
    }
    assert tally.longest == {"not_found": 11.0}
