"""Faults of the local gateway as data.

A fault is a description without state. The gateway counts, measures the time and acts. Times
are seconds after the gateway's first request of any kind, and "the n-th request" counts every
arrival of an operation at the gateway, from 1, resent requests included.

An operation is the path below the trainer's `/api/v1/`, for instance `forward_backward` or
`client/config`; of a deployment, `hot_load` or `completions`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

from pydantic import ConfigDict, PositiveInt, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

if TYPE_CHECKING:
    from collections.abc import Mapping

Body = Literal["gateway", "plain", "html", "empty"]
ControlPlaneMode = Literal[
    "ok", "down", "slow", "unauthorized", "dropped", "redirect", "not_json", "no_state"
]
Assignment = Literal["round_robin", "random"]
Affinity = Literal["connection", "cookie", "none"]
Transport = Literal["pyqwest", "httpx"]

_STRICT: Final = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=_STRICT)
class Race:
    """Replicas lose the route for a while, starting with one chosen request.

    Attributes:
        operation: The operation whose arrival starts the race.
        occurrence: Which arrival of it, counted from 1.
        seconds: How long the route is lost, for every operation. 0 means that only this one
            exchange is answered 404.
        replicas: Indices of the replicas that lose the route; None means all.
    """

    operation: str
    occurrence: PositiveInt = 1
    seconds: float = 1.0
    replicas: tuple[int, ...] | None = None


@dataclass(frozen=True, config=_STRICT)
class LostReply:
    """The trainer does the work of one request, but its reply becomes the gateway's 404.

    Attributes:
        operation: The operation whose reply is lost.
        occurrence: Which arrival of it, counted from 1.
    """

    operation: str
    occurrence: PositiveInt = 1


@dataclass(frozen=True, config=_STRICT)
class JobStop:
    """The job stops for good when one chosen request arrives; that request is not routed.

    Attributes:
        operation: The operation whose arrival stops the job.
        occurrence: Which arrival of it, counted from 1.
        state: What the control plane reports from then on; None means that there is no such job.
    """

    operation: str
    occurrence: PositiveInt = 1
    state: str | None = "JOB_STATE_DELETED"


@dataclass(frozen=True, config=_STRICT)
class Fault:
    """All faults of one gateway. The defaults describe a healthy one.

    Attributes:
        name: Short name.
        description: One line for people.
        replicas: Number of gateway replicas.
        assignment: How an unpinned request gets its replica: in turn, or at random with a seed.
        affinity: What pins a replica: the connection; a cookie, which an answer sets unless the
            request has one; or nothing, so that each request gets a new replica.
        seed: Seed of the `random` assignment.
        route_known_after: Per replica, the seconds after the first request at which it gets the
            route; None means never. Replicas beyond the end of the tuple have it from the start.
        races: Times at which replicas lose the route again.
        lost_replies: Replies that become a 404 after the work is done.
        body: The form of the gateway's 404: its JSON, Go's plain text, a proxy's HTML page,
            or nothing.
        job_states: Timeline of the control plane's state: from these seconds on, this state.
            None means no such job. Before the first entry the job is running. While the state is
            a stopped one or None, no replica routes the job.
        stop: Stops the job at a chosen request rather than at a time; overrides `job_states`.
        control_plane: How the control plane answers: correctly, 500, late, 401, connection
            dropped, redirected to a login page, no JSON, or JSON without a state.
        control_plane_delay: Seconds before a `slow` control plane answers.
        trainer_lacks: Operations that this old trainer lacks; it answers its own 404.
        transport: Inner HTTP transport that `client/config` sets for the SDK.
        protobuf: Whether `client/config` asks the SDK for protobuf request bodies. tinker 0.22 to
            0.24 obey; older releases always send JSON, newer ones always protobuf.
        compress: Whether `client/config` asks the SDK for zstd request bodies.
        session_poller: Whether `client/config` asks the SDK for one poll, `retrieve_futures`, for
            all samples of a sampling session. tinker obeys from 0.28 on; older releases poll
            for each sample, with `retrieve_future`.
    """

    name: str = "custom"
    description: str = ""
    replicas: PositiveInt = 1
    assignment: Assignment = "round_robin"
    affinity: Affinity = "connection"
    seed: int = 0
    route_known_after: tuple[float | None, ...] = ()
    races: tuple[Race, ...] = ()
    lost_replies: tuple[LostReply, ...] = ()
    body: Body = "gateway"
    job_states: tuple[tuple[float, str | None], ...] = ()
    stop: JobStop | None = None
    control_plane: ControlPlaneMode = "ok"
    control_plane_delay: float = 10.0
    trainer_lacks: tuple[str, ...] = ()
    transport: Transport = "pyqwest"
    protobuf: bool = True
    compress: bool = False
    session_poller: bool = True

    def __post_init__(self) -> None:
        """Refuse times without an effect."""
        if len(self.route_known_after) > self.replicas:
            raise ValueError("there are more times in route_known_after than replicas")

    def to_json(self) -> str:
        """Return the fault as JSON text that `from_json` reads back."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Fault:
        """Build a fault from JSON text; fields left out keep their defaults.

        Raises:
            ValueError: The text is no JSON object, a field is unknown, or its value is not allowed.
        """
        try:
            return TypeAdapter(cls).validate_json(text)
        except ValidationError as error:
            wrong = (
                f"{place}: {each['msg']}"
                if (place := ".".join(map(str, each["loc"])))
                else each["msg"]
                for each in error.errors(include_url=False, include_input=False)
            )
            raise ValueError("; ".join(wrong)) from None


def _lost(name: str, operation: str, when: str, occurrence: int = 1) -> Fault:
    """A race of a second on all replicas, which one chosen request meets first."""
    race = Race(operation, occurrence, seconds=1.0)
    return Fault(name, f"the route is lost for 1 s {when}", races=(race,))


_DISPATCH = _lost(
    "dispatch", "forward_backward", "when the second forward_backward is sent", occurrence=2
)

_TRAINING = (
    Fault("none", "a healthy gateway"),
    _DISPATCH,
    # Polls before it: one for create_model, two for the first step.
    _lost("poll", "retrieve_future", "while a future is polled in the second step", occurrence=4),
    Fault(
        "reply-lost",
        "the trainer does the second forward_backward, but its reply becomes a 404",
        lost_replies=(LostReply("forward_backward", occurrence=2),),
    ),
    Fault(
        "late-route",
        "the only replica learns the route 3 s after the first request",
        route_known_after=(3.0,),
    ),
    Fault(
        "stale-replica",
        "one of four replicas lacks the route for 20 s, and connections stick to their replica",
        replicas=4,
        route_known_after=(0.0, 0.0, 20.0, 0.0),
    ),
    Fault(
        "deleted",
        "the job is deleted when the third forward_backward is sent",
        stop=JobStop("forward_backward", occurrence=3),
    ),
    Fault(
        "control-plane-down",
        "the race of dispatch, while the control plane answers 500",
        races=_DISPATCH.races,
        control_plane="down",
    ),
    _lost("create-model", "create_model", "when the model is created"),
    _lost("get-info", "get_info", "when the SDK asks about the new model"),
    _lost("optim-step", "optim_step", "when the second optim_step is sent", occurrence=2),
    _lost("client-config", "client/config", "at the SDK's very first request"),
    Fault(
        "plain-text",
        "the race of dispatch, with a 404 in plain text that names nobody",
        races=_DISPATCH.races,
        body="plain",
    ),
    Fault(
        "half-stale",
        "two of four replicas lack the route for 20 s",
        replicas=4,
        route_known_after=(0.0, 20.0, 0.0, 20.0),
    ),
    Fault(
        "fresh-404",
        "a healthy gateway before an older trainer: client/dynamic_config is the trainer's own 404",
        trainer_lacks=("client/dynamic_config",),
    ),
)

_SAMPLING = (
    _lost("sampling-session", "create_sampling_session", "when a sampling session is created"),
    _lost("save-for-sampler", "save_weights_for_sampler", "when weights are saved for sampling"),
    _lost("sample", "asample", "when the third sample is asked for", occurrence=3),
    _lost("sample-poll", "retrieve_futures", "while the samples of a session are waited for"),
    Fault(
        "sample-lost",
        "one poll finds a session's samples finished, but its reply becomes a 404",
        lost_replies=(LostReply("retrieve_futures"),),
    ),
)

FAULTS: Mapping[str, Fault] = MappingProxyType(
    {fault.name: fault for fault in (*_TRAINING, *_SAMPLING)}
)
"""The named faults, read-only."""

SAMPLING_FAULTS = frozenset(fault.name for fault in _SAMPLING)
"""The named faults of sampling; a loop that does not sample cannot meet them."""
