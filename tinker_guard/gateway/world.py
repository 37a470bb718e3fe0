"""The world behind a route, without I/O: calls and times in, replies out.

Replicas that may lack the route, the control plane beside them, and the trainer behind them.
`in_process` drives it on an event loop, below httpx or below a server.
"""

from __future__ import annotations

import random
import re
import secrets
from collections import Counter
from dataclasses import dataclass, field, replace
from http.cookies import SimpleCookie
from itertools import count
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from .deployment import PATHS, Deployment, named_by
from .faults import FAULTS, Fault
from .trainer import Trainer
from .wire import Call, Reply, Steps

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Hashable

Author: TypeAlias = Literal["gateway", "trainer", "control_plane"]

STOPPED_STATES = frozenset(
    f"JOB_STATE_{state}"
    for state in (
        "FAILED",
        "CANCELLED",
        "CANCELLING",
        "COMPLETED",
        "EARLY_STOPPED",
        "DELETING",
        "DELETED",
        "ARCHIVED",
        "PAUSED",
    )
)
"""States in which no replica routes a job."""

NOT_FOUND = {
    "gateway": Reply.json(
        {
            "error": {
                "message": "Trainer job not found or not running",
                "param": "jobId",
                "code": "NOT_FOUND",
            }
        },
        404,
    ),
    "plain": Reply(404, b"404 page not found\n", "text/plain; charset=utf-8"),
    "html": Reply(
        404, b"<html><body><h1>404 Not Found</h1></body></html>\n", "text/html; charset=utf-8"
    ),
    "empty": Reply(404, b"", "text/plain; charset=utf-8"),
}

AFFINITY_COOKIE = "gateway-replica"
"""Name of the cookie that pins a client to a replica; its value is the replica's index."""

_ROUTE: Final = re.compile(r"/training/v1/(?:rlorTrainerJobs/([^/]+)/([^/]+)|serverless)(/.*)")
_JOB: Final = re.compile(r"/v1/accounts/([^/]+)/(rlorTrainerJobs|deployments)/([^/]+)")
_LOGIN: Final = Reply(200, b"<html><body>Please sign in.</body></html>", "text/html; charset=utf-8")


@dataclass(frozen=True)
class Exchange:
    """One request and its answer. Holds no header, key or body.

    Args:
        method: HTTP method.
        path: Path below the route, or the whole path of a control-plane question.
        status: Status of the answer; 0 if the connection was dropped.
        replica: Index of the replica that answered; None for the control plane.
        connection: Number of the TCP connection, from 0 in order of first use.
        seq_id: The request's place in its model's sequence, or None.
        idempotency_key: The request's `X-Idempotency-Key`, or None.
        body_sha256: Digest of the request's body as sent.
        body_size: Its length in bytes.
        at: Arrival, in seconds after the world's first call.
        answered_by: The author of the answer; a deployment counts as a trainer.
    """

    method: str
    path: str
    status: int
    replica: int | None
    connection: int
    seq_id: int | None
    idempotency_key: str | None
    body_sha256: str
    body_size: int
    at: float
    answered_by: Author


@dataclass
class _Connection:
    """A TCP connection, and the replica of its last request to the trainer."""

    number: int
    replica: int | None = None


@dataclass
class _Outage:
    replicas: tuple[int, ...] | None
    until: float

    def hits(self, replica: int) -> bool:
        return self.replicas is None or replica in self.replicas


@dataclass
class World:
    """Gateway replicas and a control plane in front of one trainer, and of one deployment.

    The trainer is also Fireworks' serverless one, under a path without a job.

    Args:
        fault: The faults. Default none.
        account: Account of the one job. Default `demo`.
        job: Name of the one job; None treats every job as this one. Default `job-1`.
        deployment: Name of the one deployment. Default `dep-1`. It has the state of the job,
            READY if the job runs, and is lost with the job's route.
        api_key: Key that the control plane requires. The trainer route accepts any.
        hold_seconds: How long the trainer holds a poll for unfinished work open. Default 2 s.
        sample_seconds: How long samples take. Default 0.05 s.
        keeps_log: Whether exchanges are kept. Default true.
    """

    fault: Fault = FAULTS["none"]
    account: str = "demo"
    job: str | None = "job-1"
    deployment: str = "dep-1"
    api_key: str = "tml-local-gateway-key"
    hold_seconds: float = 2.0
    sample_seconds: float = 0.05
    keeps_log: bool = True

    trainer: Trainer = field(init=False)
    serving: Deployment = field(init=False, default_factory=Deployment)
    connections: dict[Hashable, _Connection] = field(init=False, default_factory=dict)
    arrivals: Counter[str] = field(init=False, default_factory=Counter)
    """Number of arrivals of each operation."""
    questions: int = field(init=False, default=0)
    """Number of questions to the control plane."""

    def __post_init__(self) -> None:
        """Initialize trainer, deployment and counters."""
        self.trainer = Trainer(
            lacks=self.fault.trainer_lacks,
            use_pyqwest=self.fault.transport == "pyqwest",
            protobuf=self.fault.protobuf,
            compress=self.fault.compress,
            hold_seconds=self.hold_seconds,
            session_poller=self.fault.session_poller,
            sample_seconds=self.sample_seconds,
        )
        self._began_at: float | None = None
        self._log: dict[int, Exchange] = {}
        self._exchange_numbers = count()
        self._connection_numbers = count()
        self._replica_numbers = count()
        self._random = random.Random(self.fault.seed)
        self._outages: list[_Outage] = []
        self._is_stopped = False
        self.is_closing: bool = False

    @property
    def exchanges(self) -> list[Exchange]:
        """Every finished exchange, in the order of arrival."""
        # An atomic copy, because a server's thread may add to the list meanwhile.
        return [exchange for _, exchange in sorted(self._log.copy().items())]

    def close(self) -> None:
        """End all waits, from now on."""
        self.is_closing = self.trainer.is_closing = True

    def lose_route(
        self, at: float, seconds: float, replicas: tuple[int, ...] | None = None
    ) -> _Outage:
        """Make replicas lose the route from a time on.

        Args:
            at: The time, as in `answer`; not before that of the latest call.
            seconds: For how long.
            replicas: Which of them. Default all.
        """
        outage = _Outage(replicas, at + seconds)
        # Drop outages that have ended.
        self._outages = [one for one in self._outages if one.until > at] + [outage]
        return outage

    def answer(self, call: Call, at: float) -> Steps:
        """Answer a call that arrived at this time, in seconds since any fixed moment."""
        if self._began_at is None:
            self._began_at = at
        number = next(self._exchange_numbers)
        if (route := _ROUTE.fullmatch(call.path)) is not None:
            is_ours = route[1] is None or self._is_our_job(route[1], route[2])
            replica, answered_by, reply = yield from self._answer_route(
                call, call.operation, at, self.trainer.answer if is_ours else None
            )
            path, seq_id = route[3], call.seq_id
        elif (operation := PATHS.get(call.path)) is not None:
            is_ours = named_by(call) == f"accounts/{self.account}/deployments/{self.deployment}"
            replica, answered_by, reply = yield from self._answer_route(
                call, operation, at, self.serving.answer if is_ours else None
            )
            path, seq_id = call.path, None
        elif (job := _JOB.fullmatch(call.path)) is not None:
            self.questions += 1
            reply = yield from self._answer_question(call, job, at)
            path, replica, seq_id, answered_by = call.path, None, None, "control_plane"
        else:
            return self._answer_nothing(call)
        if self.keeps_log:
            self._log[number] = Exchange(
                method=call.method,
                path=path,
                status=reply.status,
                replica=replica,
                connection=self._connection(call).number,
                seq_id=seq_id,
                idempotency_key=call.idempotency_key,
                body_sha256=call.body_sha256,
                body_size=len(call.body),
                at=at - self._began_at,
                answered_by=answered_by,
            )
        return reply

    def _answer_nothing(self, call: Call) -> Reply:
        if call.path == "/login":
            return _LOGIN
        self.trainer.unexpected.append(f"{call.method} {call.path}: no such path")
        return Reply.json({"error": {"message": "No such path", "code": "NOT_FOUND"}}, 404)

    # -- the route ---------------------------------------------------------------------------

    def _answer_route(
        self,
        call: Call,
        operation: str,
        at: float,
        answer: Callable[[Call, float], Steps] | None,
    ) -> Generator[float, float, tuple[int, Author, Reply]]:
        """The answer of a replica; without `answer`, it has no server to route to."""
        connection = self._connection(call)
        pinned = self._pinned_replica(call, connection)
        replica = connection.replica = self._next_replica() if pinned is None else pinned
        self.arrivals[operation] += 1
        arrival = operation, self.arrivals[operation]
        is_routed = self._is_routed(arrival, replica, at)
        answered_by: Author = "gateway"
        reply = NOT_FOUND[self.fault.body]
        if is_routed and answer is not None:
            from_trainer = yield from answer(call, at)
            if all(
                (lost.operation, lost.occurrence) != arrival for lost in self.fault.lost_replies
            ):
                reply, answered_by = from_trainer, "trainer"
        if self.fault.affinity == "cookie" and pinned is None:
            cookie = ("set-cookie", f"{AFFINITY_COOKIE}={replica}; Path=/")
            reply = replace(reply, headers=(*reply.headers, cookie))
        return replica, answered_by, reply

    def _is_routed(self, arrival: tuple[str, int], replica: int, at: float) -> bool:
        """Apply the faults that this arrival triggers, then look the route up."""
        stop = self.fault.stop
        if stop is not None and (stop.operation, stop.occurrence) == arrival:
            self._is_stopped = True
        started = [
            self.lose_route(at, race.seconds, race.replicas)
            for race in self.fault.races
            if (race.operation, race.occurrence) == arrival
        ]
        # A race of 0 s is met only by the call that started it.
        if any(outage.hits(replica) for outage in started) or any(
            at < outage.until and outage.hits(replica) for outage in self._outages
        ):
            return False
        if self._job_state(at) in (None, *STOPPED_STATES):
            return False
        known_after = self.fault.route_known_after
        known_at = known_after[replica] if replica < len(known_after) else 0.0
        return known_at is not None and self._elapsed(at) >= known_at

    # -- the control plane -------------------------------------------------------------------

    def _answer_question(self, call: Call, job: re.Match[str], at: float) -> Steps:
        mode = self.fault.control_plane
        if mode == "slow":
            until = at + self.fault.control_plane_delay
            now = at
            while now < until and not self.is_closing:
                now = yield until
        elif mode == "down":
            return Reply.json({"error": {"message": "Internal error", "code": "INTERNAL"}}, 500)
        elif mode == "dropped":
            return Reply(0)
        elif mode == "redirect":
            return Reply(302, headers=(("location", "/login"),))
        if mode == "unauthorized" or not self._is_authorized(call):
            return Reply.json(
                {"error": {"message": "Unauthorized", "code": "UNAUTHENTICATED"}}, 401
            )
        state = self._job_state(at)
        is_job = job[2] == "rlorTrainerJobs"
        is_ours = (
            self._is_our_job(job[1], job[3])
            if is_job
            else (job[1], job[3]) == (self.account, self.deployment)
        )
        if state is None or not is_ours:
            return Reply.json({"error": {"message": "Job not found", "code": "NOT_FOUND"}}, 404)
        if not is_job:
            state = state.removeprefix("JOB_STATE_").replace("RUNNING", "READY")
        if mode == "not_json":
            return Reply(200, b"JOB_STATE_RUNNING", "text/plain; charset=utf-8")
        known = {
            "name": job[0].removeprefix("/v1/"),
            "displayName": "tinker-guard demo",
            "state": state,
        }
        if mode == "no_state":
            del known["state"]
        return Reply.json(known)

    def _is_authorized(self, call: Call) -> bool:
        bearer = call.headers.get("authorization", "").removeprefix("Bearer ")
        given = call.headers.get("x-api-key") or bearer
        return secrets.compare_digest(given.encode(), self.api_key.encode())

    def _job_state(self, at: float) -> str | None:
        if self._is_stopped and self.fault.stop is not None:
            return self.fault.stop.state
        state: str | None = "JOB_STATE_RUNNING"
        for since, then in sorted(self.fault.job_states, key=lambda entry: entry[0]):
            if self._elapsed(at) >= since:
                state = then
        return state

    # -- common ------------------------------------------------------------------------------

    def _is_our_job(self, account: str, job: str) -> bool:
        return account == self.account and self.job in (None, job)

    def _elapsed(self, at: float) -> float:
        return at - (at if self._began_at is None else self._began_at)

    def _connection(self, call: Call) -> _Connection:
        if call.connection not in self.connections:
            self.connections[call.connection] = _Connection(next(self._connection_numbers))
        return self.connections[call.connection]

    def _pinned_replica(self, call: Call, connection: _Connection) -> int | None:
        if self.fault.affinity == "connection":
            return connection.replica
        if self.fault.affinity == "cookie":
            morsel = SimpleCookie(call.headers.get("cookie", "")).get(AFFINITY_COOKIE)
            if morsel is not None and morsel.value in map(str, range(self.fault.replicas)):
                return int(morsel.value)
        return None

    def _next_replica(self) -> int:
        if self.fault.assignment == "random":
            return self._random.randrange(self.fault.replicas)
        return next(self._replica_numbers) % self.fault.replicas
