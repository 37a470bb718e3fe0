"""Gateways, control planes and trainers: one of each per job, in a process that is never killed.

It has four ports: one for the front, one for questions of clients that are told of a control plane,
one for the judge, and one where nobody may ever come.
"""

from __future__ import annotations

import json
import re
import socket
import sys
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import uvicorn
from starlette.responses import JSONResponse, RedirectResponse, Response

from proof.chaos.plan import ACCOUNT, PLANE_KEY, Plan, draw
from tinker_guard.gateway import World
from tinker_guard.gateway.app import App
from tinker_guard.gateway.in_process import LoopedWorld

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

CONNECTION_HEADER: Final = b"x-chaos-connection"
"""By which the front says on which of its connections a request came."""

_JOB: Final = re.compile(
    rf"/(?:training/v1/rlorTrainerJobs/{ACCOUNT}|v1/accounts/{ACCOUNT}/rlorTrainerJobs)/([^/]+)"
)


class Ports(NamedTuple):
    """Where the backend listens."""

    upstream: int
    plane: int
    judge: int
    nobody: int


class _Served:
    """One job."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.world = World(
            plan.fault,
            account=ACCOUNT,
            job=plan.job,
            api_key=plan.key,
            sample_seconds=plan.sample_seconds,
            hold_seconds=25.0,
        )
        self.app = App(LoopedWorld(self.world))
        self.foreign_keys = 0
        self.questions = 0

    def log(self) -> dict[str, Any]:
        """What the judge wants to know."""
        exchanges, trainer = self.world.exchanges, self.world.trainer
        return {
            "applied": [work.seq_id for work in trainer.applied],
            "sampled": [drawn.seq_id for drawn in trainer.sampled],
            "unexpected": trainer.unexpected,
            "foreign_keys": self.foreign_keys,
            "requests": len(exchanges),
            "refused": sum(e.answered_by == "gateway" and e.status == 404 for e in exchanges),
            "questions": self.questions,
        }


class Backend:
    """The ASGI application behind all four ports."""

    def __init__(self, seed: int, ports: Ports, *, has_404s: bool) -> None:
        self._seed = seed
        self._ports = ports
        self._has_404s = has_404s
        self._served: dict[str, _Served] = {}
        self._ended: set[str] = set()
        self._strays: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        port = scope["server"][1]
        found = _JOB.match(scope["path"])
        if port == self._ports.judge:
            await self._judge(scope["path"])(scope, receive, send)
        elif port == self._ports.nobody or found is None:
            self._strays.append(f"{scope['method']} {scope['path']} on port {port}")
            await Response("nobody is here", 404)(scope, receive, send)
        elif found[1] in self._ended:
            # What the SDK takes as the end of a session.
            await Response("the run is over", 410)(scope, receive, send)
        else:
            await self._serve(found[1], scope, receive, send)

    async def _serve(self, job: str, scope: Scope, receive: Receive, send: Send) -> None:
        served = self._served.get(job)
        if served is None:
            plan = draw(self._seed, job, has_404s=self._has_404s)
            served = self._served[job] = _Served(plan)
        headers = dict(scope["headers"])
        is_question = scope["path"].startswith("/v1/")
        is_told = scope["server"][1] == self._ports.plane
        key = headers.get(b"x-api-key") or headers.get(b"authorization", b"").partition(b" ")[2]
        if key.decode() != (PLANE_KEY if is_told else served.plan.key) or is_told > is_question:
            served.foreign_keys += 1
        if connection := headers.get(CONNECTION_HEADER):
            scope["client"] = (connection.decode(), 0)
        app: ASGIApp = served.app
        if is_question:
            served.questions += 1
            # The gateway checks the one key that it knows; that of the plane was checked here.
            scope["headers"] = [(b"x-api-key", served.plan.key.encode())]
            app = self._untrue_answer(served.plan) or app
        await app(scope, receive, send)

    def _untrue_answer(self, plan: Plan) -> Response | None:
        match plan.plane:
            case "says running":
                return JSONResponse({"state": "JOB_STATE_RUNNING"})
            case "says deleted":
                return JSONResponse({"state": "JOB_STATE_DELETED"})
            case "redirects":
                return RedirectResponse(f"http://127.0.0.1:{self._ports.nobody}/v1/stolen")
            case _:
                return None

    def _judge(self, path: str) -> Response:
        """Hand a job's log out and forget the job, or say what came where nobody may come."""
        what, _, job = path.strip("/").partition("/")
        if what == "strays":
            return JSONResponse(self._strays)
        if what == "jobs":
            return JSONResponse([name for name in self._served if name.startswith(job)])
        served = self._served.pop(job, None)
        self._ended.add(job)
        return JSONResponse(None if served is None else served.log())


def main() -> None:
    """Serve until killed: `python -m proof.chaos.backend SEED HAS_404S`; the ports go to stdout."""
    seed, has_404s = int(sys.argv[1]), bool(int(sys.argv[2]))
    listeners = [socket.create_server(("127.0.0.1", 0), backlog=1024) for _ in Ports._fields]
    for listener in listeners:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    ports = Ports(*(listener.getsockname()[1] for listener in listeners))
    config = uvicorn.Config(
        Backend(seed, ports, has_404s=has_404s),
        loop="asyncio",
        ws="none",
        lifespan="off",
        # A dropped answer is meant to be one.
        log_level="critical",
        access_log=False,
        timeout_keep_alive=600,
    )
    print(json.dumps(ports._asdict()), flush=True)  # noqa: T201
    uvicorn.Server(config).run(sockets=listeners)


if __name__ == "__main__":
    main()
