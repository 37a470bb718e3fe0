"""The control plane of the model: what it knows, how it is asked, and how it fails."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Final

import httpx

from proof.simulation.bodies import CONTROL_PLANE_404, JSON, PLANE_404, SECRET
from proof.simulation.record import CALL, KEYS, ModelStream, Question, origin_of
from proof.simulation.schedule import RUNNING, PlaneFault
from tinker_guard.control_plane.fireworks import FireworksControlPlane

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proof.simulation.model import ModelTransport, ModelWorld

PLANE_KEY: Final = "fw-secret-of-the-control-plane"
PLANE_URL: Final = "http://plane.test"

_STATUS_CODES: Final = {
    "error": 500,
    "refused": 401,
    "forbidden": 403,
    "limited": 429,
    "unavailable": 503,
}


class UselessError(LookupError):
    """The control plane has no answer that can be used; its kind says how that looks."""

    def __init__(self, kind: str, seconds: float = 0.0) -> None:
        super().__init__(f"{kind}: {SECRET}")
        self.kind = kind
        self.seconds = seconds


async def _ask(world: ModelWorld, question: Question) -> str | None:
    """What the control plane says about a job; None if it knows none.

    Raises:
        UselessError: It says nothing that can be used.
    """
    world.begin_question(question)
    try:
        state = await _answer(world, question)
        question.answer = state or "missing"
        return state
    except UselessError as error:
        question.answer = "reset" if error.kind == "reset" else "useless"
        question.fault, question.asks_to_wait = error.kind, error.seconds
        raise
    except BaseException as error:
        question.answer = "cut"
        # As it is now: one whose time is over may be followed by a cancellation in no time.
        question.is_abandoned = question.call.is_given_up or isinstance(error, GeneratorExit)
        raise
    finally:
        question.ended_at = question.settled_at = world.loop.time()
        question.ended = world.note("answer", question.call.number, question.answer)


async def _answer(world: ModelWorld, question: Question) -> str | None:
    route, now = question.route, question.began_at
    fault = next((f for f in world.plane_faults if _concerns(f, question)), None)
    kind = fault.kind if fault else ""
    seconds = fault.seconds if fault else 0.0
    await asyncio.sleep(world.setup.plane_takes + (seconds if kind == "slow" else 0.0))
    match kind:
        case "" | "slow":
            pass
        case "hang":
            await asyncio.sleep(1e6)
        case "late":
            return world.state_of(route, world.loop.time() - seconds)
        case "missing":
            return None
        case "creating" if world.state_of(route, now) == RUNNING:
            return "JOB_STATE_CREATING"
        case "creating":
            pass
        case "limited" | "unavailable" if question.origin:
            raise UselessError(kind, seconds)
        case _:
            raise UselessError(kind)
    return world.state_of(route, world.loop.time())


def _concerns(fault: PlaneFault, question: Question) -> bool:
    return (
        fault.route == question.route
        and fault.begin <= question.began_at < fault.end
        and (fault.key is None or KEYS[fault.key] == question.key)
    )


class OwnControlPlane:
    """A control plane object of the user's."""

    def __init__(self, world: ModelWorld) -> None:
        self._world = world

    async def job_state(
        self, account: str, job: str, *, origin: str, credentials: Mapping[str, str]
    ) -> str | None:
        """Say what state a job is in."""
        route = int(job.removeprefix("job-"))
        assert (account, origin) == ("acc", origin_of(route))
        question = Question(call=CALL.get(), route=route, key=credentials.get("x-api-key", ""))
        try:
            return await _ask(self._world, question)
        except UselessError as error:
            if error.kind == "garbage":
                return f"a state\nthat is none, {SECRET}"
            raise


class _PlaneTransport(httpx.AsyncBaseTransport):
    """The control plane's side of http."""

    def __init__(self, world: ModelWorld) -> None:
        self._world = world

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await answer_question(self._world, request)


async def answer_question(
    world: ModelWorld, request: httpx.Request, transport: ModelTransport | None = None
) -> httpx.Response:
    """Answer a question that came over http, perhaps over a transport of the requests."""
    url = request.url
    question = Question(
        call=CALL.get(),
        route=int(url.path.rpartition("job-")[2]),
        origin=f"{url.scheme}://{url.netloc.decode()}",
        key=request.headers.get("x-api-key", ""),
        transport=transport,
    )
    if transport is not None:
        transport.question = question
    try:
        state = await _ask(world, question)
    except UselessError as error:
        return _respond_uselessly(world, question, error)
    if state is None:
        return _respond(world, question, 404, CONTROL_PLANE_404)
    body = json.dumps({"state": state, "secret": SECRET}).encode()
    return _respond(world, question, 200, body)


def _respond_uselessly(
    world: ModelWorld, question: Question, error: UselessError
) -> httpx.Response:
    match error.kind:
        case "garbage":
            return _respond(world, question, 200, f"<html>{SECRET}".encode())
        case "redirect":
            headers = {"location": f"http://evil.test/{SECRET}"}
            return _respond(world, question, 302, headers=headers)
        case "limited" | "unavailable":
            headers = {"retry-after": f"{error.seconds:.0f}"}
            return _respond(world, question, _STATUS_CODES[error.kind], headers=headers)
        case "gateway 404" | "html 404" | "empty 404":
            headers, body = PLANE_404[error.kind]
            return _respond(world, question, 404, body, headers)
        case "reset":
            raise httpx.ConnectError(f"reset: {SECRET}") from None
        case _:
            return _respond(world, question, _STATUS_CODES[error.kind])


def _respond(
    world: ModelWorld,
    question: Question,
    status_code: int,
    body: bytes = b"",
    headers: Mapping[str, str] = JSON,
) -> httpx.Response:
    stream = question.stream = ModelStream(world, question.call, body, question=question)
    return httpx.Response(status_code, headers=headers, stream=stream)


def control_plane(
    world: ModelWorld, timeout: float
) -> OwnControlPlane | FireworksControlPlane | None:
    """The control plane that the schedule asks for; None if it asks for none."""
    from pydantic import SecretStr

    if world.setup.plane == "none":
        return None
    if world.setup.plane == "own":
        return OwnControlPlane(world)
    is_elsewhere = world.setup.plane == "elsewhere"
    return FireworksControlPlane(
        PLANE_URL if is_elsewhere else None,
        api_key=SecretStr(PLANE_KEY) if is_elsewhere else None,
        timeout=timeout,
        transport=None if world.setup.plane == "line" else _PlaneTransport(world),
    )
