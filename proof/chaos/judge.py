"""What must hold, whatever happened. Pure: it is given what was seen, and says what was broken."""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proof.chaos.plan import Plan

STRICT: Final = frozenset({"train", "sample", "killed"})
"""Kinds of jobs that run, and of which a control plane that works says so: each run ends right."""
UNHEARD: Final = frozenset({"own", "deaf"})
"""Kinds of jobs that run, and whose control plane can be down: a probe that reaches the trainer
ends a race, so that a 404 may end a run only after its whole budget."""
HURRIED: Final = 6.0
"""Seconds of `retry_timeout` where the control plane is down or lies."""

AT_ONCE: Final = 10.0
"""Seconds from a genuine 404 to the caller: one question, on a machine that is busy; at the gate
also probes, of which each can meet a frozen gateway or a connection that says nothing. A guard that
waited for a race would take its whole budget."""
SLOWEST_SEND: Final = 45.0
"""Seconds that one exchange can take: so long the SDK waits for a poll, which is held for 25 s."""
_ROUNDING: Final = 0.1
"""Seconds between the end of an exchange and the guard's reading of its own clock."""
BUDGETS: Final = 30.0 + 120.0
"""Seconds of `retry_timeout` and `warmup_timeout`."""
GIVEN_UP: Final = 0.05
"""Share of the runs that must end right that the SDK may give up, since the network can break each
of its retries too; a single one is never too many. Soaks of four minutes had none."""
EXCUSED: Final = 12
"""Tasks, and connections, that a client may hold for each close of the SDK's that hung for ever;
see `client.Process._close`."""
SHORTEST_UNVERIFIED: Final = "shortest unverified, ms"
SHORTEST_EXHAUSTED: Final = "shortest exhausted, ms"
"""How long a 404 of a job was held at the least, by how it was given up."""
_NOT_FOUND: Final = re.compile(r"(?<![\w\]]:)\b404\b")
"""A status, and not the port of a host."""
_CLOSED_TOO_EARLY: Final = "the client was closed"
"""What the guard raises where a transport is used that it has closed."""
_OF_SDK: Final = (
    "Event.wait",
    "InternalClientHolder.",
    "ServiceClient.",
    "SessionFuturesPoller.",
    "Telemetry.",
    "TrainingClient.",
)
"""How the names of the SDK's tasks begin."""
OF_TRAINER: Final = "genuine_not_found, trainer_answered"


@dataclass(frozen=True)
class Oracle:
    """What calm runs gave: losses by the number of steps, and the tokens sampled afterwards."""

    losses: dict[int, list[float]]
    tokens: dict[int, list[list[int]]]


@dataclass
class Finding:
    """How a run ended, in words that are counted, and what it broke."""

    ended: str
    broken: list[str] = field(default_factory=list)


def judge_run(plan: Plan, record: dict[str, Any], oracle: Oracle, *, is_guarded: bool) -> Finding:
    """Judge a run that has come to an end."""
    error = record.get("error")
    log = record["log"] or {"applied": []}
    finding = _right(plan, record, log, oracle) if error is None else _failed(plan, record, oracle)
    finding.broken += judge_log(record["log"])
    if record["strange_errors"]:
        finding.broken.append(f"requests ended as by no network: {record['strange_errors']}")
    if is_guarded:
        finding.broken += _judge_verdicts(plan, record["verdicts"])
    finding.broken = [f"{plan.job}: {what}" for what in finding.broken]
    return finding


def judge_log(log: dict[str, Any] | None) -> list[str]:
    """Judge what the trainer did; also of a run whose client was killed."""
    if log is None:
        # It was over before anything reached the trainer.
        return []
    broken = []
    if log["applied"] != list(range(1, len(log["applied"]) + 1)):
        broken.append(f"applied seq_ids {log['applied']}")
    if len(set(log["sampled"])) != len(log["sampled"]):
        broken.append(f"sampled twice: {log['sampled']}")
    if log["unexpected"]:
        broken.append(f"the trainer did not understand {log['unexpected'][:3]}")
    if log["foreign_keys"]:
        broken.append(f"{log['foreign_keys']} requests carried a key of somebody else's")
    return broken


def _right(plan: Plan, record: dict[str, Any], log: dict[str, Any], oracle: Oracle) -> Finding:
    finding = Finding("right")
    if record["losses"] != oracle.losses[plan.steps]:
        finding.broken.append(f"losses {record['losses']}, not {oracle.losses[plan.steps]}")
    if record["tokens"] != oracle.tokens[plan.steps]:
        finding.broken.append("other tokens were sampled than in a calm run")
    # Each step is two pieces of work, and saving the weights is one.
    if plan.steps and len(log["applied"]) != 2 * plan.steps + 1:
        finding.broken.append(f"{len(log['applied'])} pieces of work for {plan.steps} steps")
    return finding


def _failed(plan: Plan, record: dict[str, Any], oracle: Oracle) -> Finding:
    kind, text = record["error"]["type"], record["error"]["text"]
    broken = []
    if any(module.startswith("tinker_guard") for module in record["error"]["chain"]):
        broken.append(f"an exception of the guard's reached the caller: {kind}: {text}")
    if any(_CLOSED_TOO_EARLY in said for said in (text, *record["error"]["causes"])):
        broken.append(f"a transport was closed that was in use: {kind}: {text}")
    if record["losses"] != oracle.losses[plan.steps][: len(record["losses"])]:
        broken.append("the losses before the error are not those of a calm run")
    is_404 = "NotFoundError" in kind or _NOT_FOUND.search(text) is not None
    if kind == "builtins.TimeoutError":
        return Finding("never ended", [*broken, f"somebody waited for ever: {kind}: {text}"])
    if not is_404:
        if not kind.startswith(("tinker.", "httpx.")):
            broken.append(f"ended by {kind}: {text}")
        return Finding(f"given up by the SDK ({kind.rpartition('.')[2]})", broken)
    if plan.kind == "gone":
        return Finding("genuine 404 handed back", broken)
    if plan.kind == "undead":
        return Finding("404 of a stopped job that is said to run, handed back", broken)
    verdicts = _of_gateway(record["verdicts"])
    if plan.kind == "slandered" and any(map(_is_genuine, verdicts)):
        return Finding("404 that was lied about, handed back", broken)
    is_exhausted = SHORTEST_EXHAUSTED in record["verdicts"]
    if plan.kind in UNHEARD and (is_exhausted or not all(map(_is_race, verdicts))):
        # How long it was held is judged below.
        return Finding("404 that nobody could judge, handed back in the end", broken)
    broken.append(f"a race ended the run: {kind}: {text} {record['verdicts']}")
    return Finding("ended by a race", broken)


def judge_given_up(given_up: int, strict: int) -> list[str]:
    """Judge how many of the runs that must end right the SDK gave up."""
    if given_up < 2 or given_up <= GIVEN_UP * strict:
        return []
    return [f"the SDK gave up {share_of(given_up, strict)} runs, more than {GIVEN_UP:.0%}"]


def share_of(part: int, whole: int) -> str:
    """A share, for people."""
    return f"{part} of {whole} ({part / max(whole, 1):.1%})"


def _of_gateway(found: dict[str, int]) -> list[str]:
    """The verdicts among what a client found out, but for those on the trainer's own 404s."""
    kinds = ("routing_race, ", "genuine_not_found, ", "unverified, ")
    return [name for name in found if name.startswith(kinds) and name != OF_TRAINER]


def _is_race(verdict: str) -> bool:
    return verdict.startswith("routing_race, ")


def _is_genuine(verdict: str) -> bool:
    return verdict.startswith("genuine_not_found, ")


def _judge_verdicts(plan: Plan, found: dict[str, int]) -> list[str]:
    if not plan.fault.trainer_lacks and OF_TRAINER in found:
        return [f"a 404 was taken for the trainer's: {found}"]
    verdicts = _of_gateway(found)
    broken = []
    if plan.kind in STRICT and not all(map(_is_race, verdicts)):
        broken.append(f"a race was called something else: {found}")
    if plan.kind in UNHEARD:
        if any(map(_is_genuine, verdicts)):
            broken.append(f"a race was called genuine: {found}")
        shortest = min(
            found.get(name, HURRIED * 1000) for name in (SHORTEST_UNVERIFIED, SHORTEST_EXHAUSTED)
        )
        if shortest < (HURRIED - _ROUNDING) * 1000:
            broken.append(f"a 404 was given up before its budget was over: {found}")
    if plan.kind == "gone":
        if any(map(_is_race, verdicts)):
            broken.append(f"a genuine 404 was called a race: {found}")
        if found.get("resends of what was genuine", 0):
            broken.append(f"what was genuinely not found was sent again: {found}")
        if found.get("longest genuine, ms", 0) > AT_ONCE * 1000:
            broken.append(f"a genuine 404 was held back: {found}")
    return broken


# -- the processes ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trend:
    """How much of something a process held, as lower quartiles, and whether it grew.

    Args:
        early: After a tenth of the run.
        middle: Half-way.
        late: In the end.
        per_hour: Slope over all but the first fifth of the run, which is for warming up.
        limit: How much `late` may be.
    """

    early: float
    middle: float
    late: float
    per_hour: float
    limit: float

    @property
    def is_flat(self) -> bool:
        """Whether there is no more in the end than was allowed."""
        return self.late <= self.limit


ALLOWED: Final = {
    "rss": (1.10, 16.0),
    "descriptors": (1.25, 40.0),
    "tasks": (1.25, 150.0),
    "threads": (1.5, 16.0),
    # Each burst of new connections may add some, which look names up; steady work keeps them from
    # being idle, so that none goes. There are 512 at the most.
    "pool": (1.0, 512.0),
    "spans": (1.25, 150.0),
}
"""By which factor and summand each may end above what it was after the warm-up."""


def trend_of(name: str, looks: Sequence[dict[str, float]]) -> Trend:
    """The trend of something in looks that were taken at equal intervals."""
    values = [look[name] for look in looks]
    warm, times = values[len(values) // 5 :], [look["at"] for look in looks[len(looks) // 5 :]]
    factor, summand = ALLOWED[name]
    base = _floor(values, 0.2, 0.4)
    slope = statistics.linear_regression(times, warm).slope if len(warm) > 2 else 0.0
    return Trend(
        early=_floor(values, 0.08, 0.12),
        middle=_floor(values, 0.45, 0.55),
        late=_floor(values, 0.85, 1.0),
        per_hour=slope * 3600,
        limit=base * factor + summand,
    )


def _floor(values: list[float], begin: float, end: float) -> float:
    """The lower quartile of a part of the values.

    What is left behind raises it as it raises the median; a burst of faults, in which connections
    are opened by hundreds, does not.
    """
    count = len(values)
    part = values[int(count * begin) : max(int(count * end), int(count * begin) + 1)]
    return statistics.quantiles(part, n=4)[0] if len(part) > 1 else part[0]


def judge_trends(who: str, trends: dict[str, Trend]) -> list[str]:
    """Judge what a process held over time."""
    return [
        f"{who}: {name} grew from {trend.early:.0f} to {trend.late:.0f} (up to {trend.limit:.0f})"
        for name, trend in trends.items()
        if not trend.is_flat
    ]


def judge_left(who: str, left: dict[str, Any]) -> list[str]:
    """Judge what a process held when everything had ended."""
    broken = [f"{who}: {line}" for line in left["faults"]]
    excused = EXCUSED * left["hung_closes"]
    ours = [name for name in left["tasks"] if not name.startswith(_OF_SDK)]
    if len(left["tasks"]) > excused or ours:
        broken.append(f"{who}: tasks are left: {(ours or left['tasks'])[:10]}")
    if left["connections"] > excused:
        broken.append(f"{who}: {left['connections']} connections are left open")
    if left["spans"]:
        broken.append(f"{who}: {left['spans']} spans never ended")
    broken += [
        f"{who}: a request that ended {outcome} took {seconds:.0f} s"
        for outcome, seconds in left["longest"].items()
        if seconds > BUDGETS + 2 * SLOWEST_SEND
    ]
    return broken
