"""The world below the guard: gateway replicas, trainers, control plane, and a log of all facts.

It knows the truth at every moment and decides nothing about the guard: what it records is judged
in `invariants` when the run is over.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import random
from contextvars import ContextVar
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, Final, Self

import httpx

from simulation.loops import MainLoop
from simulation.schedule import (
    RUNNING,
    BuildFault,
    CloseFault,
    ExchangeFault,
    JobChange,
    Outage,
    PlaneFault,
)
from tinker_guard.closing import CLOSE_SECONDS
from tinker_guard.control_plane import FireworksControlPlane
from tinker_guard.peek import PEEK_SECONDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from simulation.schedule import Body, Caller, Schedule

KEYS: Final = ("tml-first-secret", "tml-second-secret")
PLANE_KEY: Final = "fw-secret-of-the-control-plane"
PLANE_URL: Final = "http://plane.test"
SECRET: Final = "keep-this-secret"  # noqa: S105 - the model's
"""In every header, query, body, and text of an error that is not the guard's."""
QUERY: Final = f"?token={SECRET}"
EPOCH: Final = 1_700_000_000.0
"""What the wall clock says when a run begins."""
HANGS_FOR: Final = 600.0
"""Seconds that closing takes where it hangs; as good as for ever."""
ELSEWHERE: Final = "http://hosted.test"
PROBE_PATH: Final = "/api/v1/get_server_capabilities"

_GATEWAY_404: Final = (
    b'{"error": {"message": "Trainer job not found or not running", "param": "jobId", '
    b'"code": "NOT_FOUND", "trace": "keep-this-secret"}}'
)
_JSON: Final = {"content-type": "application/json", "x-debug": SECRET}
_LOST: Final[dict[Body, tuple[dict[str, str], bytes]]] = {
    "gateway": (_JSON, _GATEWAY_404),
    "gzip": (_JSON | {"content-encoding": "gzip"}, gzip.compress(_GATEWAY_404, mtime=0)),
    "plain": ({"content-type": "text/plain"}, b"404 page not found: keep-this-secret"),
    "empty": ({}, b""),
}
_OWN_404: Final = b'{"detail": "Not Found: keep-this-secret"}'
_ODD_404: Final = b"nothing here but keep-this-secret"

CALL: Final[ContextVar[Call]] = ContextVar("CALL")
"""The guarded request that the running task works for."""


def origin_of(route: int) -> str:
    """The gateway of a route; some routes share one."""
    return f"http://gateway-{route % 2}.test:8080"


def base_of(route: int) -> str:
    """The base URL of a route's trainer."""
    return f"{origin_of(route)}/training/v1/rlorTrainerJobs/acc/job-{route}"


@dataclass(slots=True)
class Span:
    """From when to when something lasted: times, and numbers that order all facts of a run."""

    began_at: float = 0.0
    ended_at: float = float("inf")
    began: int = 0
    ended: int = 1 << 60

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.ended_at < float("inf")


@dataclass(slots=True, eq=False)
class Call(Span):
    """One request that was given to the guard, and how it ended."""

    number: int = 0
    caller: Caller = field(kw_only=True)
    slot: int = 0
    request: httpx.Request = field(kw_only=True)
    key: str = ""
    seq_id: int = 0
    path: str = ""
    loop: int = 0
    """Number of the event loop that it ran on: 0, or a greater one for each further loop."""
    response: httpx.Response | None = None
    """What the guard returned."""
    body: bytes | None = None
    """The response's body as the caller read it; None if it could not."""
    read_error: BaseException | None = None
    """What reading the body raised."""
    error: BaseException | None = None
    """What the guard raised."""
    cancels: list[tuple[float, str]] = field(default_factory=list)
    """When it was cancelled, and in which of the guard's functions it waited then."""
    is_cancelled_twice: bool = False
    is_cancelled_with_its_loop: bool = False
    has_timed_out: bool = False
    waits_for_ever: bool = False
    sends: list[Exchange] = field(default_factory=list)
    """The exchanges that were made of the request itself."""
    probes: list[Exchange] = field(default_factory=list)
    """The probes that it led."""

    @property
    def route(self) -> int | None:
        """Index of its route; None if it is on none."""
        return None if self.caller.asks == "elsewhere" else self.caller.route

    @property
    def is_lost_with_its_loop(self) -> bool:
        """Whether its event loop was closed under it, or under its caller who read the answer."""
        return isinstance(self.error or self.read_error, GeneratorExit)

    @property
    def met_404_at(self) -> float | None:
        """When its first 404 came; None if it met none."""
        for exchange in self.sends:
            if exchange.is_404:
                return exchange.ended_at
        return None


@dataclass(slots=True, eq=False)
class Exchange(Span):
    """One request on the wire."""

    call: Call = field(kw_only=True)
    transport: ModelTransport = field(kw_only=True)
    method: str = ""
    url: httpx.URL = field(kw_only=True)
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    content: bytes = b""
    extensions: dict[str, Any] = field(default_factory=dict)
    is_probe: bool = False
    is_warmup: bool = False
    """Whether it is a probe for a request that waits at the gate."""
    author: str = ""
    """Who wrote the answer: `trainer`, `odd` (the trainer, but its body does not tell), `gateway`,
    `unknown` (the gateway, but its body does not tell), or `busy`."""
    has_worked: bool = False
    """Whether the trainer got to see it."""
    fault: str = ""
    status_code: int = 0
    response: httpx.Response | None = None
    response_headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    """The answer's body, decoded."""
    asks_to_wait: float = 0.0
    """Seconds that the answer's Retry-After asks for."""
    stream: ModelStream | None = None
    error: BaseException | None = None

    @property
    def is_404(self) -> bool:
        """Whether it was answered with a 404."""
        return self.status_code == 404

    @property
    def shows_trainer(self) -> bool:
        """Whether it was answered with a 404 whose body shows in time that the trainer wrote it."""
        return (
            self.is_404
            and self.author == "trainer"
            and self.fault != "broken body"
            and self.stream is not None
            and self.stream.pause < PEEK_SECONDS
        )

    def header(self, name: bytes) -> bytes | None:
        """What was sent in a header, whose name is given as it was written."""
        return next((value for key, value in self.headers if key == name), None)

    @property
    def is_lost(self) -> bool:
        """Whether it was answered with a 404 that the trainer did not write."""
        return self.is_404 and self.author in ("gateway", "unknown")


@dataclass(slots=True, eq=False)
class Question(Span):
    """One question to the control plane."""

    call: Call = field(kw_only=True)
    route: int = 0
    origin: str = ""
    """Where it went; empty for a control plane object, which is in the process."""
    key: str = ""
    transport: ModelTransport | None = None
    """What it went over, if that was a transport of the requests."""
    settled_at: float = float("inf")
    """When its connection was closed too."""
    stream: ModelStream | None = None
    """The answer's body, where it came over http."""
    answer: str = ""
    """The job's state, `missing`, `useless`, `reset`, or `cut` if nobody waited for it."""


@dataclass(slots=True, eq=False)
class Closing(Span):
    """An answer or a further transport that was closed, and took time or did not close well."""

    what: str = ""
    kind: str = ""


class ModelStream(httpx.AsyncByteStream):
    """An answer's body: one chunk, which may dawdle or break."""

    def __init__(
        self,
        world: World,
        body: bytes,
        fault: ExchangeFault | None = None,
        question: Question | None = None,
    ) -> None:
        self._world = world
        self._question = question
        self._body = body
        self._pause = fault.seconds if fault and fault.kind == "slow body" else 0.0
        self._is_broken = fault is not None and fault.kind == "broken body"
        self.pause = self._pause
        self.error: BaseException | None = None
        self.is_exhausted = False
        self.is_closed = False

    def __aiter__(self) -> ModelStream:
        return self

    async def __anext__(self) -> bytes:
        if self._pause:
            pause, self._pause = self._pause, 0.0
            await asyncio.sleep(pause)
        if self._body:
            body, self._body = self._body, b""
            return body
        if self._is_broken:
            self.error = httpx.ReadError(f"the body broke off: {SECRET}")
            raise self.error
        self.is_exhausted = True
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Let the connection go."""
        if not self.is_closed:
            self.is_closed = True
            takes = 0.0 if self.is_exhausted else self._world.setup.close_takes
            try:
                await self._world.close("answer", takes, self._question)
            except OSError as error:
                self.error = self.error or error
                raise


class Trainer:
    """Applies work once and in order of `seq_id`, and tells a repeat by its idempotency key."""

    def __init__(self, order: list[int]) -> None:
        self.order = order
        self._received: dict[int, bytes] = {}
        self._replies: dict[bytes, bytes] = {}
        self._is_waiting_for = 0
        self.applied: list[int] = []

    def work(self, key: bytes, content: bytes) -> tuple[int, bytes]:
        """Take a dispatch."""
        seq_id = json.loads(content)["seq_id"]
        if key in self._replies:
            return 200, self._replies[key]
        if seq_id in self._received:
            # New work under a number that is used up: a gradient that is applied twice.
            self.applied.append(seq_id)
        self._received[seq_id] = content
        self._replies[key] = content
        while self.order[self._is_waiting_for :]:
            if self.order[self._is_waiting_for] not in self._received:
                break
            self.applied.append(self.order[self._is_waiting_for])
            self._is_waiting_for += 1
        return 200, content

    def result(self, content: bytes) -> tuple[int, bytes]:
        """Say whether work is done."""
        is_done = json.loads(content)["seq_id"] in self.applied
        return (200, b'{"done": true}') if is_done else (408, b'{"detail": "try again"}')

    def has_received(self, seq_id: int) -> bool:
        """Whether a dispatch arrived."""
        return seq_id in self._received


class Clock:
    """The clocks of the machine: one that can be set, and one that only goes on."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.is_wrong_by = 0.0
        self.monotonic = loop.time

    def time(self) -> float:
        """Seconds since the epoch, as far as the machine knows."""
        return EPOCH + self.monotonic() + self.is_wrong_by

    def time_ns(self) -> int:
        """The same in nanoseconds."""
        # Not `int(1e9 * time())`: so large a number is some hundred nanoseconds off.
        return int(EPOCH + self.is_wrong_by) * 10**9 + round(
            (self.monotonic() + self.is_wrong_by % 1) * 1e9
        )


class World:
    """All that the guard can reach, and what happened."""

    def __init__(self, schedule: Schedule, callers: list[Caller], clock: Clock) -> None:
        self.schedule = schedule
        self.setup = schedule.setup
        self.clock = clock
        loop = asyncio.get_running_loop()
        assert isinstance(loop, MainLoop)
        self.loop = loop
        self.trace: list[tuple[Any, ...]] = []
        self.calls: list[Call] = []
        self.exchanges: list[Exchange] = []
        self.questions: list[Question] = []
        self.transports: list[ModelTransport] = []
        self.closed_slots: dict[int, float] = {}
        self.released_slots: dict[int, float] = {}
        self.built = 0
        self.builds_failed = 0
        self.stalls: list[Span] = []
        self.closings: list[Closing] = []
        self.orphans: set[ModelTransport] = set()
        """Transports of an event loop that was closed under them."""
        self.clock_set_at: list[float] = []
        self.loop_ends: list[str] = []
        self.closing_guards = Span()
        self.reconfigured: dict[int, float] = {}
        self.trainers = [
            Trainer(sorted(c.seq_id for c in callers if c.route == route and c.asks == "train"))
            for route in range(self.setup.routes)
        ]
        self._chance = random.Random(schedule.seed)
        self._counts = [0] * self.setup.routes
        events = schedule.events
        self._outages: dict[tuple[int, int], list[Outage]] = {}
        self._changes: dict[int, list[JobChange]] = {}
        self._plane_faults = [event for event in events if isinstance(event, PlaneFault)]
        self._faults: dict[tuple[int, int], ExchangeFault] = {}
        self._build_faults: dict[int, BuildFault] = {}
        self._close_faults: dict[tuple[str, int], CloseFault] = {}
        self._closed = {"answer": 0, "transport": 0}
        for event in events:
            match event:
                case Outage(route=route, replica=replica):
                    self._outages.setdefault((route, replica), []).append(event)
                case JobChange(route=route):
                    self._changes.setdefault(route, []).append(event)
                case ExchangeFault(route=route, number=number):
                    self._faults[route, number] = event
                case BuildFault(number=number):
                    self._build_faults[number] = event
                case CloseFault(what=what, number=number):
                    self._close_faults[what, number] = event
        for changes in self._changes.values():
            changes.sort(key=lambda change: change.at)

    def note(self, what: str, *details: Any) -> int:
        """Write a line of the trace; its number orders the facts."""
        self.trace.append((self.loop.time(), what, *details))
        return len(self.trace)

    def state_of(self, route: int, at: float) -> str | None:
        """The true state of a job at a time."""
        state: str | None = RUNNING
        for change in self._changes.get(route, ()):
            if change.at <= at:
                state = change.state
        return state

    def outage(self, route: int, replica: int, at: float) -> Outage | None:
        """Why a replica does not know a route at a time; None if it does."""
        for outage in self._outages.get((route, replica), ()):
            if outage.begin <= at < outage.end:
                return outage
        return None

    def is_resumed(self, route: int) -> bool:
        """Whether a job ran again before the run was over."""
        now = self.loop.time()
        return any(c.state == RUNNING and c.at <= now for c in self._changes.get(route, ()))

    def has_flapped(self, route: int) -> bool:
        """Whether a replica lost the route a second time before the run was over."""
        now = self.loop.time()
        return any(
            later.begin <= now and any(earlier.end < later.begin for earlier in outages)
            for (of, _), outages in self._outages.items()
            if of == route
            for later in outages
        )

    async def close(self, what: str, takes: float, question: Question | None) -> None:
        """Let an answer or a further transport be closed, as well as the schedule says.

        Args:
            what: Which of the two.
            takes: How long that takes if it goes well.
            question: The question that it belongs to, if it does.

        Raises:
            OSError: It does not close well.
        """
        number = self._closed[what]
        self._closed[what] += 1
        fault = self._close_faults.get((what, number))
        kind = fault.kind if fault else ""
        if not (takes or kind):
            return
        closing = Closing(began_at=self.loop.time(), what=what, kind=kind)
        self.closings.append(closing)
        self.note("closing", what, kind)
        try:
            if takes or kind == "hang":
                await asyncio.sleep(HANGS_FOR if kind == "hang" else takes)
            if kind == "error":
                raise OSError("this one does not close well")
        except asyncio.CancelledError:
            now = self.loop.time() + 1e-6
            is_given_up = now >= closing.began_at + CLOSE_SECONDS
            # The time for a question holds the closing of its answer too. Where both are over at
            # the same moment, either may be what ends it.
            allowed = self.setup.settings["control_plane_timeout"]
            is_late = (
                what == "answer" and question is not None and now >= question.began_at + allowed
            )
            if question is not None and (is_late or not is_given_up):
                # It was answered, but nobody got to know.
                question.answer = "cut"
                question.ended_at = self.loop.time()
            raise
        finally:
            closing.ended_at = self.loop.time()
            if question is not None:
                question.settled_at = closing.ended_at

    def new_transport(self, slot: int) -> ModelTransport:
        """Build a further transport for a slot.

        Raises:
            OSError: The schedule says so.
        """
        fault = self._build_faults.get(self.built)
        self.built += 1
        if fault is not None and fault.kind == "build":
            self.builds_failed += 1
            self.note("build fails", slot)
            raise OSError("no more descriptors")
        return self.add_transport(slot, closes_badly=fault is not None)

    def add_transport(self, slot: int, *, closes_badly: bool = False) -> ModelTransport:
        """A transport of its own connection."""
        kind = _HttpxTransport if self.setup.plane == "line" else ModelTransport
        transport = kind(self, len(self.transports), slot, closes_badly)
        self.transports.append(transport)
        return transport

    def replica_for(self, transport: ModelTransport, route: int, number: int) -> int:
        """Which replica an exchange meets."""
        replicas = self.setup.replicas
        if replicas == 1:
            return 0
        match self.setup.balance:
            case "sticky":
                if route not in transport.replicas:
                    transport.replicas[route] = self._chance.randrange(replicas)
                return transport.replicas[route]
            case "random":
                return self._chance.randrange(replicas)
            case "in turn":
                return number % replicas

    def begin_exchange(self, transport: ModelTransport, request: httpx.Request) -> Exchange:
        """Note a request on the wire."""
        headers = list(request.headers.raw)
        # Probes carry the headers of the request that leads them, and so its number.
        call = self.calls[int(next(value for name, value in headers if name == b"x-call"))]
        is_probe = request.url.path.endswith(PROBE_PATH)
        exchange = Exchange(
            call=call,
            transport=transport,
            method=request.method,
            url=request.url,
            headers=headers,
            extensions=dict(request.extensions),
            is_probe=is_probe,
            is_warmup=is_probe and not call.sends,
        )
        (call.probes if is_probe else call.sends).append(exchange)
        self.exchanges.append(exchange)
        exchange.began_at = self.loop.time()
        exchange.began = self.note("probe" if is_probe else "send", call.number, transport.number)
        return exchange

    def next_fault(self, route: int) -> tuple[int, ExchangeFault | None]:
        """The number of the exchange that begins on a route, and what goes wrong with it."""
        number = self._counts[route]
        self._counts[route] += 1
        return number, self._faults.get((route, number))

    async def ask(self, question: Question) -> str | None:
        """What the control plane knows about a job.

        Raises:
            LookupError: It knows nothing that can be used; `kind` says how that looks.
        """
        self.questions.append(question)
        question.began_at = self.loop.time()
        question.began = self.note("question", question.call.number, question.route)
        try:
            state = await self._answer(question)
            question.answer = state or "missing"
            return state
        except _UselessError as error:
            question.answer = "reset" if error.kind == "reset" else "useless"
            raise
        except BaseException:
            question.answer = "cut"
            raise
        finally:
            question.ended_at = question.settled_at = self.loop.time()
            question.ended = self.note("answer", question.call.number, question.answer)

    async def _answer(self, question: Question) -> str | None:
        route, now = question.route, question.began_at
        fault = next(
            (f for f in self._plane_faults if f.route == route and f.begin <= now < f.end), None
        )
        kind = fault.kind if fault else ""
        seconds = fault.seconds if fault else 0.0
        await asyncio.sleep(self.setup.plane_takes + (seconds if kind == "slow" else 0.0))
        if kind == "hang":
            await asyncio.sleep(1e6)
        if kind in ("error", "garbage", "refused", "redirect", "reset"):
            raise _UselessError(kind)
        lag = seconds if kind == "late" else 0.0
        return self.state_of(route, self.loop.time() - lag)


class _UselessError(LookupError):
    def __init__(self, kind: str) -> None:
        super().__init__(f"{kind}: {SECRET}")
        self.kind = kind


class ModelTransport(httpx.AsyncBaseTransport):
    """One connection to a gateway."""

    def __init__(self, world: World, number: int, slot: int, closes_badly: bool) -> None:
        self._world = world
        self._closes_badly = closes_badly
        self.number = number
        self.slot = slot
        self.replicas: dict[int, int] = {}
        self.is_closed = False
        self.closed_at = float("inf")
        self.question: Question | None = None
        """The last one that went over it."""
        self.carries_requests = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer as the schedule says."""
        world = self._world
        if request.url.path.startswith("/v1/accounts/"):
            return await _answer_question(world, request, self)
        self.carries_requests = True
        exchange = world.begin_exchange(self, request)
        try:
            assert isinstance(request.stream, httpx.AsyncByteStream)
            exchange.content = b"".join([chunk async for chunk in request.stream])
            if self.is_closed:
                raise httpx.TransportError("used after it was closed", request=request)
            response = await self._answer(exchange)
        except BaseException as error:
            exchange.error = error
            raise
        else:
            exchange.response = response
            exchange.status_code = response.status_code
            return response
        finally:
            exchange.ended_at = world.loop.time()
            exchange.ended = world.note(
                "answered" if exchange.response else "failed",
                exchange.call.number,
                exchange.status_code or type(exchange.error).__name__,
                exchange.author,
            )

    async def aclose(self) -> None:
        """Close the connection."""
        if self.is_closed:
            return
        self.is_closed = True
        self.closed_at = self._world.loop.time()
        self._world.note("closed", self.number)
        if self.number < self._world.setup.slots:
            # The program's own, which closes as it would without the guard.
            return
        question = None if self.carries_requests else self.question
        await self._world.close("transport", self._world.setup.close_takes, question)
        if self._closes_badly:
            raise OSError("this one does not close well")

    async def _answer(self, exchange: Exchange) -> httpx.Response:
        world = self._world
        parts = exchange.url.path.split("/")
        if parts[1] != "training":
            await asyncio.sleep(0)
            exchange.author = "trainer"
            return self._respond(exchange, 404, _JSON, b"{}", None)
        route = int(parts[5].removeprefix("job-"))
        number, fault = world.next_fault(route)
        latency = world.setup.latencies[number % len(world.setup.latencies)]
        kind = fault.kind if fault else ""
        exchange.fault = kind
        await asyncio.sleep(latency)
        if kind == "reset before":
            raise httpx.ConnectError(f"refused: {SECRET}")
        if kind == "timeout before":
            assert fault is not None
            await asyncio.sleep(fault.seconds)
            raise httpx.ReadTimeout(f"no answer to {SECRET}")
        now = world.loop.time()
        outage = world.outage(route, world.replica_for(self, route, number), now)
        if world.state_of(route, now) != RUNNING:
            return self._lost(exchange, "gateway", "", fault)
        if outage is not None:
            return self._lost(exchange, outage.body, outage.retry_after, fault)
        if kind == "busy":
            exchange.author = "busy"
            return self._respond(exchange, 503, _JSON, b"{}", fault)
        headers, status_code, body = self._ask_trainer(exchange, world.trainers[route])
        if kind == "slow":
            assert fault is not None
            await asyncio.sleep(fault.seconds)
        if kind == "reset after":
            raise httpx.ReadError(f"the connection was reset: {SECRET}")
        if kind == "lost reply":
            return self._lost(exchange, "gateway", "", fault)
        return self._respond(exchange, status_code, headers, body, fault)

    def _ask_trainer(
        self, exchange: Exchange, trainer: Trainer
    ) -> tuple[dict[str, str], int, bytes]:
        exchange.has_worked = True
        exchange.author = "trainer"
        path = exchange.url.path
        if path.endswith(PROBE_PATH):
            path = f"/probe/{self._world.setup.probe_answer}"
        match path.rpartition("/")[2]:
            case "forward_backward":
                key = exchange.header(b"x-idempotency-key") or b""
                return _JSON, *trainer.work(key, exchange.content)
            case "retrieve_future":
                return _JSON, *trainer.result(exchange.content)
            case "missing" | "404":
                return _JSON, 404, _OWN_404
            case "odd" | "odd 404":
                exchange.author = "odd"
                return {"content-type": "text/plain"}, 404, _ODD_404
            case "503":
                return _JSON, 503, b"{}"
            case _:
                return _JSON, 200, b'{"ok": true}'

    def _lost(
        self, exchange: Exchange, body: Body, retry_after: str, fault: ExchangeFault | None
    ) -> httpx.Response:
        exchange.author = "gateway" if body in ("gateway", "gzip") else "unknown"
        headers, content = _LOST[body]
        if retry_after:
            headers = headers | self._asks_to_wait(exchange, retry_after)
        return self._respond(exchange, 404, headers, content, fault)

    def _asks_to_wait(self, exchange: Exchange, retry_after: str) -> dict[str, str]:
        kind, _, seconds = retry_after.rpartition(" ")
        exchange.asks_to_wait = float(seconds)
        if not kind:
            return {"retry-after": seconds}
        # By the gateway's clock, which nobody sets.
        now = EPOCH + self._world.loop.time()
        until = now + exchange.asks_to_wait
        return {
            "date": formatdate(now, usegmt=True),
            "retry-after": formatdate(math.ceil(until), usegmt=True),
        }

    def _respond(
        self,
        exchange: Exchange,
        status_code: int,
        headers: dict[str, str],
        body: bytes,
        fault: ExchangeFault | None,
    ) -> httpx.Response:
        exchange.stream = ModelStream(self._world, body, fault)
        # Marked, so that no two answers are alike.
        headers = headers | {"x-exchange": str(exchange.began)}
        response = httpx.Response(status_code, headers=headers, stream=exchange.stream)
        exchange.response_headers = list(response.headers.raw)
        exchange.body = gzip.decompress(body) if "content-encoding" in headers else body
        return response


class _HttpxTransport(ModelTransport, httpx.AsyncHTTPTransport):
    """One of httpx's own, as far as the guard can see: it follows no redirect."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class OwnControlPlane:
    """A control plane object of the user's."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def job_state(
        self, account: str, job: str, *, origin: str, credentials: Mapping[str, str]
    ) -> str | None:
        """Say what state a job is in."""
        route = int(job.removeprefix("job-"))
        assert (account, origin) == ("acc", origin_of(route))
        question = Question(call=CALL.get(), route=route, key=credentials.get("x-api-key", ""))
        try:
            return await self._world.ask(question)
        except _UselessError as error:
            if error.kind == "garbage":
                return f"a state\nthat is none, {SECRET}"
            raise


class _PlaneTransport(httpx.AsyncBaseTransport):
    """The control plane's side of http."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await _answer_question(self._world, request)


async def _answer_question(
    world: World, request: httpx.Request, transport: ModelTransport | None = None
) -> httpx.Response:
    url = request.url
    origin = f"{url.scheme}://{url.netloc.decode()}"
    route = int(url.path.rpartition("job-")[2])
    question = Question(
        call=CALL.get(),
        route=route,
        origin=origin,
        key=request.headers.get("x-api-key", ""),
        transport=transport,
    )
    if transport is not None:
        transport.question = question
    try:
        state = await world.ask(question)
    except _UselessError as error:
        match error.kind:
            case "error":
                return _answer(question, world, 500)
            case "garbage":
                return _answer(question, world, 200, f"<html>{SECRET}".encode())
            case "refused":
                return _answer(question, world, 401)
            case "redirect":
                return _answer(question, world, 302, location=f"http://evil.test/{SECRET}")
            case _:
                raise httpx.ConnectError(f"reset: {SECRET}") from None
    if state is None:
        return _answer(question, world, 404)
    return _answer(question, world, 200, json.dumps({"state": state, "secret": SECRET}).encode())


def _answer(
    question: Question, world: World, status_code: int, body: bytes = b"", **headers: str
) -> httpx.Response:
    stream = question.stream = ModelStream(world, body, question=question)
    return httpx.Response(status_code, headers=headers, stream=stream)


def control_plane(world: World, timeout: float) -> OwnControlPlane | FireworksControlPlane:
    """The control plane that the schedule asks for."""
    from pydantic import SecretStr

    if world.setup.plane == "own":
        return OwnControlPlane(world)
    is_elsewhere = world.setup.plane == "elsewhere"
    return FireworksControlPlane(
        PLANE_URL if is_elsewhere else None,
        api_key=SecretStr(PLANE_KEY) if is_elsewhere else None,
        timeout=timeout,
        transport=None if world.setup.plane == "line" else _PlaneTransport(world),
    )
