"""The judge of `make chaos`, on made-up logs: what it must accept, and what it must find out."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from proof.chaos.conduct import (
    Options,
    Seen,
)
from proof.chaos.faults import FAULTS, PlaneFault
from proof.chaos.judge import (
    ALLOWED,
    EXCUSED,
    Oracle,
    judge_given_up,
    judge_left,
    judge_log,
    judge_run,
    judge_trends,
    trend_of,
)
from proof.chaos.plan import draw, job_name
from proof.chaos.report import Report, never_met
from proof.chaos.watch import Faults, Tally, is_of_the_network
from tests import ROOT
from tinker_guard import faults as guard_faults
from tinker_guard.observability import attributes as names
from tinker_guard.observability.actions import error_type_of
from tinker_guard.transports.draining import CLOSED

if TYPE_CHECKING:
    from collections.abc import Iterator

SEED = 7
ORACLE = Oracle(
    losses={0: [], 5: [1.0] * 5, 10: [1.0] * 10, 20: [1.0] * 20},
    tokens={0: [[1]], 5: [[2]], 10: [[2]], 20: [[2]]},
)
NOT_FOUND = {
    "type": "tinker.NotFoundError",
    "text": "Error code: 404",
    "chain": ["tinker"],
    "causes": [],
}
GIVEN_UP = {
    "type": "tinker.APIConnectionError",
    "text": "Connection error.",
    "chain": ["tinker", "httpx"],
    "causes": ["Connection error.", "All connection attempts failed"],
}


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
        "strange_errors": {},
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
        {"error": NOT_FOUND | {"type": "builtins.TimeoutError", "text": ""}},
        {"error": NOT_FOUND | {"type": "builtins.KeyError", "text": "x"}},
        {"error": GIVEN_UP | {"chain": ["tinker", "tinker_guard.transports"]}, "losses": []},
        {"error": GIVEN_UP | {"text": "the client was closed"}, "losses": []},
        {"error": GIVEN_UP | {"causes": ["the client was closed"]}, "losses": []},
        {"strange_errors": {"httpx.TransportError": 1}},
        {"error": NOT_FOUND | {"chain": ["tinker", "tinker_guard.recovery"]}},
    ],
    ids=str,
)
def test_what_a_run_must_not_show(changed: dict[str, Any]) -> None:
    _, broken = judged("train", **changed)
    assert broken


LIED = {"routing_race, job_running": 1, "genuine_not_found, job_not_running": 1}


def test_a_404_may_end_a_run_only_if_the_control_plane_lied() -> None:
    ended, broken = judged("slandered", error=NOT_FOUND, losses=[1.0], verdicts=LIED)
    assert (ended[:3], broken) == ("404", [])
    for heard in (
        {},
        {"genuine_not_found, trainer_answered": 1},
        {"routing_race, x": 1},
        {"unverified, control_plane_error": 1},
    ):
        assert judged("slandered", error=NOT_FOUND, losses=[1.0], verdicts=heard)[1]
    # What came before it must be right all the same.
    assert judged("slandered", error=NOT_FOUND, losses=[2.0], verdicts=LIED)[1]


@pytest.mark.parametrize("kind", ["own", "deaf"])
def test_a_404_that_nobody_can_judge_may_end_a_run_only_after_its_budget(kind: str) -> None:
    reached = {"routing_race, trainer_reached": 2, "routing_race, job_running": 1}
    assert judged(kind, verdicts=reached) == ("right", [])
    assert judged(kind, error=NOT_FOUND, losses=[1.0], verdicts=reached)[1]
    assert judged(kind, verdicts=reached | {"genuine_not_found, job_missing": 1})[1]
    for unverified in ("control_plane_error", "control_plane_timeout", "no_control_plane"):
        heard = reached | {f"unverified, {unverified}": 1, "shortest unverified, ms": 6010}
        ended, broken = judged(kind, error=NOT_FOUND, losses=[1.0], verdicts=heard)
        assert (ended[:3], broken) == ("404", [])
        # What came before it must be right all the same.
        assert judged(kind, error=NOT_FOUND, losses=[2.0], verdicts=heard)[1]
        for early in (0, 20, 5_800):
            too_early = heard | {"shortest unverified, ms": early}
            assert judged(kind, error=NOT_FOUND, losses=[1.0], verdicts=too_early)[1]
            assert judged(kind, verdicts=too_early)[1]


@pytest.mark.parametrize("kind", ["own", "deaf"])
def test_a_race_may_end_a_run_that_nobody_could_judge_only_after_its_budget(kind: str) -> None:
    """A probe has reached the trainer, and resends met another replica until the time was over."""
    heard = {"routing_race, trainer_reached": 3, "shortest exhausted, ms": 6010}
    ended, broken = judged(kind, error=NOT_FOUND, losses=[1.0], verdicts=heard)
    assert (ended[:3], broken) == ("404", [])
    assert judged(kind, error=NOT_FOUND, losses=[2.0], verdicts=heard)[1]
    assert judged("train", error=NOT_FOUND, losses=[1.0], verdicts=heard)[1]
    for early in (0, 20, 5_800):
        too_early = heard | {"shortest exhausted, ms": early}
        assert judged(kind, error=NOT_FOUND, losses=[1.0], verdicts=too_early)[1]
        assert judged(kind, verdicts=too_early)[1]


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
    given_up = "given up by the SDK (APIConnectionError)"
    assert judged("train", error=GIVEN_UP, losses=[]) == (given_up, [])


@pytest.mark.parametrize("host", ["127.0.0.1:404", "127.0.0.1:20404", "[::1]:404"])
def test_a_port_is_not_taken_for_a_status(host: str) -> None:
    error = GIVEN_UP | {"type": "httpx.ConnectError", "text": f"nobody is at {host}"}
    assert judged("train", error=error, losses=[])[0] == "given up by the SDK (ConnectError)"
    for status in ("Error code: 404", '{"code":404}', "404 page not found"):
        assert judged("train", error=error | {"text": status})[0] == "ended by a race"


def test_the_sdk_may_give_up_few_runs() -> None:
    assert judge_given_up(0, 0) == judge_given_up(1, 3) == judge_given_up(5, 100) == []
    for given_up, of in ((2, 39), (6, 100), (3, 3)):
        assert f"{given_up} of {of} (" in judge_given_up(given_up, of)[0]
    # Those of lanes where it must give up count for nothing.
    seen = Seen(Options(60, SEED), seconds=60.0)
    seen.kinds.update({"train": 20, "sample": 18, "own": 400})
    seen.given_up.update({"train": 1, "sample": 1, "own": 100})
    report = Report(seen)
    assert "2 of 38 (5.3%)" in dict(report.rows()).values()
    assert any("2 of 38 (5.3%)" in what for what in report.broken)


def test_the_log_of_a_run_whose_client_was_killed() -> None:
    log = {"applied": [1, 2, 3], "sampled": [], "unexpected": [], "foreign_keys": 0}
    assert judge_log(log) == judge_log(None) == []
    assert judge_log(log | {"applied": [1, 2, 4]})


def looks(**slopes: float) -> list[dict[str, float]]:
    """One a second for ten minutes, with noise, and what grows by so much a minute."""
    chance = random.Random(1)
    levels = {"rss": 150.0, "descriptors": 300.0, "tasks": 900.0, "threads": 30.0}
    levels |= {"pool": 60.0, "spans": 500.0}
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
    broken = judge_trends("steady", trends)
    assert len(broken) == len(slopes)
    for name, per_minute in slopes.items():
        assert f" {name} " in broken[0]
        assert trends[name].per_hour == pytest.approx(60 * per_minute, rel=0.2)


@pytest.mark.parametrize("per_minute", [0.0, 20.0])
def test_bursts_are_no_growth_and_hide_none(per_minute: float) -> None:
    chance = random.Random(2)
    bursting = looks(descriptors=per_minute)
    for look in bursting[500:]:
        look["descriptors"] += 300.0 * (chance.random() < 0.6)
    trends = {"descriptors": trend_of("descriptors", bursting)}
    assert len(judge_trends("steady", trends)) == (per_minute > 0)


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
    assert judge_left("steady", left(connections=EXCUSED + 1, hung_closes=1))


def test_the_page_says_how_much_is_allowed() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text()
    assert len(re.findall(r"^\| [\w ]+ \| \d+ % \| and \d+", page, re.MULTILINE)) == len(ALLOWED)
    for name, (factor, summand) in ALLOWED.items():
        shown = {"rss": "memory", "spans": "open spans", "pool": "threads of pyqwest"}.get(
            name, name
        )
        unit = " MiB" if name == "rss" else ""
        assert f"| {shown} | {100 * (factor - 1):.0f} % | and {summand:.0f}{unit} |" in page
    assert f"{EXCUSED} tasks and {EXCUSED} connections" in " ".join(page.split())


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
    # Nobody asks a control plane.
    asked_for = [str(fault) for kind in FAULTS if kind is not PlaneFault for fault in kind]
    seen.faults.update(dict.fromkeys(asked_for, 1))
    assert never_met(seen) == []
    missing = random.Random(1).choice(asked_for)
    del seen.faults[missing]
    assert never_met(seen) == [missing]
    assert f"never happened: {missing}" in Report(seen).broken


def test_what_the_guard_never_did_fails_the_soak() -> None:
    seen = Seen(Options(60, SEED))
    assert set(PlaneFault) <= set(never_met(seen))
    seen.left["steady"] = left(counts={"resend": 0, "warmup": 1})
    assert "resend" in never_met(seen)
    assert "warmup" not in never_met(seen)
    seen.left["steady"]["counts"]["resend"] = 1
    assert "resend" not in never_met(seen)


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


SECOND = 10**9


def tallied(tally: Tally, name: str = "POST", *not_founds: float, **said: Any) -> None:
    """Count a request that began after a second, met 404s at these times, and ended as is said."""
    provider = TracerProvider()
    provider.add_span_processor(tally)
    tracer = provider.get_tracer("tinker_guard")
    asked = {names.OPERATION: "x", names.JOB: "job"}
    request = tracer.start_span(name, attributes=asked, start_time=SECOND)
    for at in not_founds:
        exchange = tracer.start_span(name, trace.set_span_in_context(request), start_time=SECOND)
        exchange.set_attribute(names.STATUS_CODE, 404)
        exchange.end(round(at * SECOND))
    ended_at = said.pop("ended_at")
    request.set_attributes({getattr(names, key): value for key, value in said.items()})
    request.end(round(ended_at * SECOND))


def test_a_genuine_404_is_timed_from_when_the_gateway_answered() -> None:
    tally = Tally()
    judged_as = {"VERDICT": "genuine_not_found", "REASON": "job_not_running", "RETRIES": 0}
    tallied(tally, "POST", 10, 11, ended_at=12, OUTCOME="not_found", **judged_as)
    assert tally.verdicts_of("job") == {
        "genuine_not_found, job_not_running": 1,
        "resends of what was genuine": 0,
        "longest genuine, ms": 2000,
    }
    assert tally.longest == {"not_found": 11.0}


@pytest.mark.parametrize(
    ("outcome", "verdict", "reason"),
    [
        ("unverified", "unverified", "control_plane_error"),
        ("exhausted", "routing_race", "trainer_reached"),
    ],
)
@pytest.mark.parametrize(
    ("name", "held"), [("POST /api/v1/x", 6100), ("POST /api/v1/session_heartbeat", None)]
)
def test_how_long_what_was_given_up_was_held(
    name: str, held: int | None, outcome: str, verdict: str, reason: str
) -> None:
    """Background requests are sent but once where a budget has just ended in vain."""
    tally = Tally()
    judged_as = {"VERDICT": verdict, "REASON": reason, "RETRIES": 0}
    for took in (7.0, 6.1, 6.5):
        tallied(tally, name, 2, ended_at=2 + took, OUTCOME=outcome, **judged_as)
    tallied(
        tally, name, 2, ended_at=3, OUTCOME="recovered", **judged_as | {"VERDICT": "routing_race"}
    )
    found = tally.verdicts_of("job")
    assert found.get(f"shortest {outcome}, ms") == held
    assert found[f"{verdict}, {reason}"] >= 3


@pytest.mark.parametrize(
    ("error_type", "is_known"),
    [
        ("httpx.ReadError", True),
        ("httpx.ConnectTimeout", True),
        ("httpx.RemoteProtocolError", True),
        ("httpcore.ReadError", True),
        ("pyqwest._errors.StreamError", True),
        ("ssl.SSLError", True),
        ("anyio.EndOfStream", True),
        ("ConnectionResetError", True),
        ("TimeoutError", True),
        # What the guard says where it closed a transport too early.
        ("httpx.TransportError", False),
        ("httpx.StreamConsumed", False),
        ("tinker_guard.policy.judgement.JobGoneError", False),
        # Could be anybody's.
        ("ValueError", True),
    ],
)
def test_an_error_that_no_network_causes_is_noted(error_type: str, is_known: bool) -> None:
    assert is_of_the_network(error_type) == is_known
    tally = Tally()
    for outcome in ("error", "ok"):
        tallied(tally, ended_at=2, OUTCOME=outcome, ERROR_TYPE=error_type)
    assert tally.strange_errors_of("job") == ({} if is_known else {error_type: 1})
    assert tally.strange_errors_of("job") == {}


@pytest.mark.anyio
async def test_what_the_guard_raises_from_a_closed_transport_is_known_to_the_judge() -> None:
    with pytest.raises(httpx.TransportError) as raised:
        await CLOSED.handle_async_request(httpx.Request("POST", "http://127.0.0.1"))
    assert not is_of_the_network(error_type_of(raised.value) or "")
    error = GIVEN_UP | {"causes": ["Connection error.", str(raised.value)]}
    assert "was closed that was in use" in judged("train", error=error, losses=[])[1][0]


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    monkeypatch.setattr(guard_faults, "already_logged", set())
    kept = Faults()
    guard_faults.logger.addHandler(kept)
    yield kept
    guard_faults.logger.removeHandler(kept)


@pytest.mark.meets_fault
def test_a_fault_of_the_guard_is_heard_but_other_warnings_are_not(faults: Faults) -> None:
    guard_faults.logger.warning("tinker_guard: closing a replaced transport took too long")
    assert faults.lines == []
    guard_faults.log_fault("a test")
    assert len(faults.lines) == 1
    assert "a fault of its own in a test" in faults.lines[0]
