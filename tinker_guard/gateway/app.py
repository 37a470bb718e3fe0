"""The gateway itself: replicas that may lack the route, and the control plane beside them."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Literal

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from .wire import Call, Reply

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Receive, Scope, Send

    from .faults import Fault, Race
    from .trainer import Trainer

__all__ = ["Exchange", "Gateway"]

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
    "html": Reply(404, b"<html><body><h1>404 Not Found</h1></body></html>\n", "text/html"),
    "empty": Reply(404, b"", "text/plain"),
}

_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


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
        at: Arrival, in seconds after the gateway's first request.
        answered_by: Who answered.
    """

    method: str
    path: str
    status: int
    replica: int | None
    connection: int
    seq_id: int | None
    idempotency_key: str | None
    body_sha256: str
    at: float
    answered_by: Literal["gateway", "trainer", "control_plane"]


@dataclass
class _Connection:
    """A TCP connection; its replica is drawn when it first carries a request for the trainer."""

    number: int
    replica: int | None = None


@dataclass
class _Outage:
    replicas: tuple[int, ...] | None
    until: float

    def hits(self, replica: int) -> bool:
        return self.replicas is None or replica in self.replicas


@dataclass
class Gateway:
    """Gateway replicas and a control plane in front of one trainer.

    Args:
        fault: What goes wrong.
        trainer: The trainer behind all replicas.
        account: Account of the one job.
        job: Name of the one job.
        api_key: Key that the control plane asks for. The trainer route takes any.
        clock: Seconds that never go back; by default the monotonic clock.
    """

    fault: Fault
    trainer: Trainer
    account: str
    job: str
    api_key: str
    clock: Callable[[], float] = time.monotonic
    exchanges: dict[int, Exchange] = field(default_factory=dict)
    questions: int = 0

    def __post_init__(self) -> None:
        """Start with nothing counted."""
        self._closing = asyncio.Event()
        self._started_at: float | None = None
        self._connections: dict[object, _Connection] = {}
        self._exchange_numbers = count()
        self._connection_numbers = count()
        self._replica_numbers = count()
        self._random = random.Random(self.fault.seed)
        self._arrivals: Counter[str] = Counter()
        self._outages: list[_Outage] = []
        self._is_stopped = False

    def app(self) -> Starlette:
        """Return the ASGI application."""
        return Starlette(
            routes=[
                Route(
                    "/training/v1/rlorTrainerJobs/{account}/{job}/{path:path}",
                    self._serve_route,
                    methods=_METHODS,
                ),
                Route(
                    "/v1/accounts/{account}/rlorTrainerJobs/{job}",
                    self._serve_control_plane,
                    methods=_METHODS,
                ),
                Route("/login", _login),
                Route("/{path:path}", self._serve_nothing, methods=_METHODS),
            ],
            exception_handlers={Exception: self._report_bug},
        )

    def close(self) -> None:
        """Let go of everything that waits. Must be called on the server's event loop."""
        self._closing.set()
        self.trainer.close()

    # -- the route ---------------------------------------------------------------------------

    async def _serve_route(self, request: Request) -> Response:
        number, at = next(self._exchange_numbers), self._elapsed()
        path = request.path_params["path"]
        connection = self._connection(request)
        if connection.replica is None:
            connection.replica = self._next_replica()
        body = await request.body()
        operation = path.removeprefix("api/v1/")
        call = Call(request.method, operation, request.headers, body)

        self._arrivals[operation] += 1
        is_routed = self._is_routed(request, operation, connection.replica, at)
        answered_by: Literal["gateway", "trainer"] = "gateway"
        reply = NOT_FOUND[self.fault.body]
        if is_routed:
            is_lost = any(
                (lost.operation, lost.occurrence) == (operation, self._arrivals[operation])
                for lost in self.fault.lost_replies
            )
            from_trainer = await self.trainer.answer(call)
            if not is_lost:
                reply, answered_by = from_trainer, "trainer"
        self.exchanges[number] = Exchange(
            method=request.method,
            path="/" + path,
            status=reply.status,
            replica=connection.replica,
            connection=connection.number,
            seq_id=call.seq_id,
            idempotency_key=call.idempotency_key,
            body_sha256=call.body_sha256,
            at=at,
            answered_by=answered_by,
        )
        return Response(reply.content, reply.status, media_type=reply.media_type)

    def _is_routed(self, request: Request, operation: str, replica: int, at: float) -> bool:
        """Let this arrival set off what it sets off, then look the route up."""
        arrival = operation, self._arrivals[operation]
        stop = self.fault.stop
        if stop is not None and (stop.operation, stop.occurrence) == arrival:
            self._is_stopped = True
        is_lost_now = False
        for race in self.fault.races:
            if (race.operation, race.occurrence) == arrival:
                outage = self._start(race, at)
                is_lost_now = is_lost_now or outage.hits(replica)
        if is_lost_now or any(
            at < outage.until and outage.hits(replica) for outage in self._outages
        ):
            return False
        if not self._is_our_job(request) or self._job_state(at) in (None, *STOPPED_STATES):
            return False
        known_after = self.fault.route_known_after
        known_at = known_after[replica] if replica < len(known_after) else 0.0
        return known_at is not None and at >= known_at

    def _start(self, race: Race, at: float) -> _Outage:
        outage = _Outage(race.replicas, at + race.seconds)
        self._outages.append(outage)
        return outage

    # -- the control plane -------------------------------------------------------------------

    async def _serve_control_plane(self, request: Request) -> Response:
        self.questions += 1
        number, at = next(self._exchange_numbers), self._elapsed()
        connection = self._connection(request)
        call = Call(request.method, "", request.headers, await request.body())
        response = await self._control_plane_answer(request, at)
        self.exchanges[number] = Exchange(
            method=request.method,
            path=request.url.path,
            status=response.status_code,
            replica=None,
            connection=connection.number,
            seq_id=None,
            idempotency_key=call.idempotency_key,
            body_sha256=call.body_sha256,
            at=at,
            answered_by="control_plane",
        )
        return response

    async def _control_plane_answer(self, request: Request, at: float) -> Response:
        mode = self.fault.control_plane
        if mode == "slow":
            await self._sleep(self.fault.control_plane_delay)
        elif mode == "down":
            return _json({"error": {"message": "Internal error", "code": "INTERNAL"}}, 500)
        elif mode == "dropped":
            return _DroppedConnection(status_code=0)
        elif mode == "redirect":
            return RedirectResponse("/login", 302)
        if mode == "unauthorized" or not self._is_authorized(request):
            return _json({"error": {"message": "Unauthorized", "code": "UNAUTHENTICATED"}}, 401)
        state = self._job_state(at)
        if state is None or not self._is_our_job(request):
            return _json({"error": {"message": "Job not found", "code": "NOT_FOUND"}}, 404)
        if mode == "not_json":
            return Response("JOB_STATE_RUNNING", media_type="text/plain")
        job = {
            "name": f"accounts/{self.account}/rlorTrainerJobs/{self.job}",
            "displayName": "tinker-guard demo",
            "state": state,
        }
        if mode == "no_state":
            del job["state"]
        return _json(job, 200)

    def _is_authorized(self, request: Request) -> bool:
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        given = request.headers.get("x-api-key") or bearer
        return secrets.compare_digest(given.encode(), self.api_key.encode())

    def _job_state(self, at: float) -> str | None:
        if self._is_stopped and self.fault.stop is not None:
            return self.fault.stop.state
        state: str | None = "JOB_STATE_RUNNING"
        for since, then in sorted(self.fault.job_states, key=lambda entry: entry[0]):
            if at >= since:
                state = then
        return state

    # -- everything else ---------------------------------------------------------------------

    async def _serve_nothing(self, request: Request) -> Response:
        self.trainer.unexpected.append(f"{request.method} {request.url.path}: no such path")
        return _json({"error": {"message": "No such path", "code": "NOT_FOUND"}}, 404)

    async def _report_bug(self, request: Request, error: Exception) -> Response:
        # A client that goes away while it sends is no bug of ours.
        if not isinstance(error, ClientDisconnect):
            self.trainer.unexpected.append(f"{request.method} {request.url.path}: {error!r}")
        return _json({"error": {"message": "Internal error", "code": "INTERNAL"}}, 500)

    # -- common ------------------------------------------------------------------------------

    def _is_our_job(self, request: Request) -> bool:
        named = request.path_params["account"], request.path_params["job"]
        return named == (self.account, self.job)

    def _elapsed(self) -> float:
        now = self.clock()
        if self._started_at is None:
            self._started_at = now
        return now - self._started_at

    def _connection(self, request: Request) -> _Connection:
        client = request.scope["client"]
        if client not in self._connections:
            self._connections[client] = _Connection(next(self._connection_numbers))
        return self._connections[client]

    def _next_replica(self) -> int:
        if self.fault.assignment == "random":
            return self._random.randrange(self.fault.replicas)
        return next(self._replica_numbers) % self.fault.replicas

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        except TimeoutError:
            pass


class _DroppedConnection(Response):
    """Promises a body and ends before it, upon which the server closes the connection."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", b"64")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})


def _json(data: object, status: int) -> Response:
    reply = Reply.json(data, status)
    return Response(reply.content, reply.status, media_type=reply.media_type)


async def _login(request: Request) -> Response:
    return Response("<html><body>Please sign in.</body></html>", media_type="text/html")
