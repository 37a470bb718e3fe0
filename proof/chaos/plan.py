"""What happens to one job, drawn from the seed and the job's name."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, Literal, TypeAlias

from proof.chaos.faults import PlaneFault
from tinker_guard.gateway import FAULTS, Fault, JobStop, LostReply, Race

Entrance: TypeAlias = Literal["plain", "tls", "h2"]
"""How a client comes in: HTTP/1.1 in the clear, HTTP/1.1 over TLS, HTTP/2 over TLS."""
ENTRANCES: Final[tuple[Entrance, ...]] = ("plain", "tls", "h2")

Plane: TypeAlias = Literal["truthful", "says running", "says deleted", "redirects"]
"""What the control plane does to a question, where it does not fail as the gateway's fault says."""

STEPS: Final = (5, 10, 20)
"""Of training runs."""
SAMPLES: Final = 192
"""Of sampling runs."""
LAST_SAMPLES: Final = 4
"""Drawn from what a training run has learned."""
ACCOUNT: Final = "chaos"
PLANE_KEY: Final = "tml-control-plane"
"""What clients with a control plane of their own ask it with."""

_DEAF: Final = ("down", "slow", "unauthorized", "dropped", "not_json")
"""How a control plane fails, in the gateway's words."""
WANTED: Final[dict[str, frozenset[PlaneFault]]] = {
    "deaf": frozenset(PlaneFault(f"control plane {how}") for how in (*_DEAF, "redirects")),
    "slandered": frozenset({PlaneFault.SAYS_DELETED}),
    "undead": frozenset({PlaneFault.SAYS_RUNNING}),
}
"""What the control planes of a kind of job must have done to a question, however short the soak."""
_HITCH: Final = 0.025
"""How many requests of a job that trains meet a fault of the network."""
_HITCH_OF_MANY: Final = 0.004
"""The same where many share a connection, and a fault of it is met by all of them."""


@dataclass(frozen=True)
class Plan:
    """What a job does and meets.

    Args:
        job: Name of the job: kind, lane and number of the run.
        fault: What its gateway does wrong.
        entrance: How it is reached.
        plane: What its control plane does.
        hitch: How likely a request meets a fault of the network.
        steps: Steps of training, 0 for a run that samples.
        sample_seconds: How long samples take.
        pause: Seconds between steps.
    """

    job: str
    fault: Fault = FAULTS["none"]
    entrance: Entrance = "plain"
    plane: Plane = "truthful"
    hitch: float = 0.0
    steps: int = 20
    sample_seconds: float = 0.05
    pause: float = 0.0

    @property
    def kind(self) -> str:
        """What the job is for."""
        return kind_of(self.job)

    @property
    def plane_fault(self) -> PlaneFault | None:
        """What is wrong with the control plane, if anything."""
        is_truthful = self.plane == "truthful"
        if is_truthful and self.fault.control_plane == "ok":
            return None
        return PlaneFault(
            f"control plane {self.fault.control_plane if is_truthful else self.plane}"
        )

    @property
    def key(self) -> str:
        """The API key that this job alone is asked for with."""
        return f"tml-{self.job}"


def job_name(kind: str, lane: int, number: int) -> str:
    """The name of a lane's n-th job."""
    return f"{kind}-{lane}-{number}"


def kind_of(job: str) -> str:
    """What a job is for."""
    return job.partition("-")[0]


@lru_cache(maxsize=4096)
def draw(seed: int, job: str, *, has_404s: bool = True) -> Plan:
    """Draw a job's plan.

    Args:
        seed: Of the whole run.
        job: `job_name(...)`. Kinds: `train`, `sample`, `gone` (stops for good), `own` (its control
            plane is at its own origin, and breaks with it), `deaf` (the control plane is down in a
            race), `slandered` (is said to be deleted in a race), `undead` (stops, and is said to
            run), `killed` (its client is killed), `calm` (nothing happens).
        has_404s: Whether routes are lost. False shows what the SDK does by itself about the rest.
    """
    chance = random.Random(f"{seed} {job}")
    kind = kind_of(job)
    transport: Literal["pyqwest", "httpx"] = chance.choice(("pyqwest", "httpx"))
    plan = Plan(
        job,
        Fault(job, transport=transport, seed=chance.randrange(2**32)),
        entrance=chance.choice((*ENTRANCES, "h2")),
        steps=0 if kind == "sample" else chance.choice(STEPS),
        sample_seconds=chance.uniform(8.0, 16.0) if kind == "sample" else 0.05,
        pause=chance.uniform(0.1, 0.6),
        hitch={"gone": 0.0, "sample": _HITCH_OF_MANY}.get(kind, _HITCH),
    )
    if kind == "calm":
        return Plan(job, steps=int(job.split("-")[1]))
    if kind == "sample":
        # The poller of a session asks for all at once; without it, each sample is polled for.
        plan = _with(plan, session_poller=chance.random() < 0.25)
    if not has_404s:
        return plan
    if kind in ("gone", "undead"):
        state = chance.choice(("JOB_STATE_DELETED", "JOB_STATE_FAILED", "JOB_STATE_PAUSED", None))
        operation, occurrence = _moment(chance, plan)
        plan = _with(plan, stop=JobStop(operation, occurrence, state))
        return plan if kind == "gone" else replace(plan, plane="says running")
    plan = _race(chance, plan)
    if kind not in ("deaf", "slandered"):
        return plan
    certain = Race("forward_backward", chance.randint(1, plan.steps), seconds=2.0)
    plan = _with(plan, races=(*plan.fault.races, certain))
    if kind == "slandered":
        return replace(plan, plane="says deleted")
    # In turn, so that a short soak has them all.
    which = int(job.rpartition("-")[2]) % (len(_DEAF) + 1)
    if which == len(_DEAF):
        return replace(plan, plane="redirects")
    return _with(plan, control_plane=_DEAF[which])


def _race(chance: random.Random, plan: Plan) -> Plan:
    """Let the route be lost, by some replicas or all, at random moments."""
    replicas = chance.choice((1, 1, 2, 4))
    races = []
    for _ in range(chance.randint(1, 4)):
        operation, occurrence = _moment(chance, plan)
        # As often for tenths of a second as for seconds.
        seconds = math.exp(chance.uniform(math.log(0.1), math.log(3.0)))
        some = tuple(chance.sample(range(replicas), chance.randint(1, replicas)))
        races.append(Race(operation, occurrence, seconds, None if chance.random() < 0.6 else some))
    lost = [LostReply(*_moment(chance, plan))] if chance.random() < 0.4 else []
    known_after: tuple[float, ...] = ()
    if chance.random() < 0.3:
        known_after = tuple(chance.choice((0.0, 0.5, 2.0, 5.0)) for _ in range(replicas))
    return _with(
        plan,
        replicas=replicas,
        assignment=chance.choice(("round_robin", "random")),
        races=tuple(races),
        lost_replies=tuple(lost),
        route_known_after=known_after,
        body=chance.choice(("gateway", "gateway", "plain", "html", "empty")),
        trainer_lacks=("client/dynamic_config",) if chance.random() < 0.2 else (),
    )


def _moment(chance: random.Random, plan: Plan) -> tuple[str, int]:
    """An operation of the run, and which of its arrivals."""
    if plan.steps == 0:
        poll = "retrieve_futures" if plan.fault.session_poller else "retrieve_future"
        operation = chance.choice(("asample", poll, poll, "asample", "create_sampling_session"))
        return operation, 1 if operation.startswith("create") else chance.randint(1, 20)
    once = ("client/config", "create_session", "create_model", "get_info")
    each = ("forward_backward", "optim_step", "retrieve_future")
    operation = chance.choice((*each, *each, *each, *once))
    return operation, 1 if operation in once else chance.randint(1, plan.steps)


def _with(plan: Plan, **fault: object) -> Plan:
    return replace(plan, fault=replace(plan.fault, **fault))  # type: ignore[arg-type]
