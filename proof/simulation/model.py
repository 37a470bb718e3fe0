"""The world below the guard: gateway replicas, trainers, control plane, and a log of all facts.

It knows the truth at every moment and decides nothing about the guard: what it records is judged
in `invariants` when the run is over. The gateway's `World` serves real SDKs by the SDK's protocol;
this one lets a schedule reach into every exchange, stream and closing, and shares with it how a
trainer puts work in order.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
from contextlib import suppress
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, Final, Self

import httpx

from proof.simulation.bodies import (
    EDGE,
    GATEWAYS_OWN,
    JSON,
    LOST,
    ODD_404,
    OWN_404,
    OWN_404S,
    ROUTER_404,
    SECRET,
)
from proof.simulation.loops import MainLoop
from proof.simulation.plane import answer_question
from proof.simulation.record import CALL, HANGS_FOR, Closing, Exchange, ModelStream, Question, Span
from proof.simulation.schedule import (
    RUNNING,
    BuildFault,
    CloseFault,
    Edge,
    ExchangeFault,
    JobChange,
    Outage,
    PlaneFault,
)
from tinker_guard.gateway.trainer import Sequence
from tinker_guard.transports.cleanup import CLOSE_SECONDS

if TYPE_CHECKING:
    from proof.simulation.record import Call
    from proof.simulation.schedule import Body, Caller, Schedule

QUERY: Final = f"?token={SECRET}"
EPOCH: Final = 1_700_000_000.0
"""What the wall clock says when a run begins."""
ELSEWHERE: Final = "http://hosted.test"
PROBE_PATH: Final = "/api/v1/get_server_capabilities"
_AFFINITY: Final = b"affinity="


class Trainer:
    """Applies work once and in order of `seq_id`, and tells a repeat by its idempotency key."""

    def __init__(self, order: list[int]) -> None:
        self._sequence: Sequence[bytes] = Sequence(order)
        self._received: set[int] = set()
        self._replies: dict[bytes, bytes] = {}
        self.order = order
        self.applied: list[int] = []

    def work(self, key: bytes, content: bytes) -> bytes:
        """Take a dispatch, and answer it."""
        seq_id = json.loads(content)["seq_id"]
        if key in self._replies:
            return self._replies[key]
        if seq_id in self._received:
            # New work under a number that is used up: a gradient that is applied twice.
            self.applied.append(seq_id)
        self._received.add(seq_id)
        self._replies[key] = content
        self.applied += (number for number, _ in self._sequence.take(seq_id, content))
        return content

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


class ModelWorld:
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
        self.strays: list[str] = []
        """What was done for a call in a task that is not its own."""
        self.trainers = [
            Trainer(sorted(c.seq_id for c in callers if c.route == route and c.asks == "train"))
            for route in range(self.setup.routes)
        ]
        self._chance = random.Random(schedule.seed)
        self._counts = [0] * self.setup.routes
        events = schedule.events
        self._outages: dict[tuple[int, int], list[Outage]] = {}
        self._changes: dict[int, list[JobChange]] = {}
        self.plane_faults = [event for event in events if isinstance(event, PlaneFault)]
        self._edges = [event for event in events if isinstance(event, Edge)]
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

    def edge(self, route: int, at: float) -> Edge | None:
        """What answers the probes of a route at a time in the trainer's place; None: nothing."""
        for edge in self._edges:
            if edge.route == route and edge.begin <= at < edge.end:
                return edge
        return None

    def has_shown_itself(self, route: int | None, *, but_for: Exchange | None = None) -> bool:
        """Whether the trainer of a route was ever asked anything."""
        return any(
            x.has_worked and x.call.route == route and x is not but_for for x in self.exchanges
        )

    def has_surely_shown_itself(self, call: Call) -> bool:
        """Whether the guard knows from this call's like that the trainer is there."""
        if self.setup.routes_kept < self.setup.routes or call.slot in self.released_slots:
            return False
        if self.stalls or self._close_faults:
            # What a probe has read does not count if its time is over as its answer is closed.
            return False
        # Perhaps a true 404, which says that the job has stopped: whoever answers for one that was
        # resumed has to show itself again.
        stopped_at = max(
            (
                other.ended
                for other in self.calls
                if other.route == call.route
                and other.response is not None
                and other.response.status_code == 404
                and not (other.sends and other.sends[-1].shows_trainer)
            ),
            default=-1,
        )
        return any(
            x.call.asker == call.asker
            and x.ended > stopped_at
            # What the guard has of one that is cancelled then, it may not have noted.
            and not x.call.cancels
            and x.call.slot not in self.released_slots
            and (x.has_reached if x.is_probe else x.author == "trainer" and x.status_code == 200)
            and x.stream is not None
            and x.stream.is_exhausted
            # A replaced transport is closed with its last answer, before that is handed on.
            and not (x.transport.is_closing and x.transport.closed_at <= x.body_at)
            for x in self.exchanges
        )

    def can_build(self, slot: int) -> bool:
        """Whether a further transport could be had for a guarded one, all the time."""
        gone = slot in self.closed_slots or slot in self.released_slots
        return self.setup.renewable and not self.builds_failed and not gone

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
        task = asyncio.current_task()
        cancelled_before = task.cancelling() if task else 0
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
            # More is over than the time for closing.
            is_late |= task is not None and task.cancelling() > cancelled_before + 1
            if question is not None and (is_late or not is_given_up):
                # It was answered, but nobody got to know.
                question.answer = "cut"
                question.is_abandoned = question.call.is_given_up
                question.asks_to_wait = 0.0
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

    def replica_for(self, exchange: Exchange, route: int, number: int) -> int:
        """Which replica an exchange meets."""
        transport = exchange.transport
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
            case "cookie":
                if not exchange.affinity:
                    exchange.sets_affinity = str(self._chance.randrange(replicas))
                return int(exchange.affinity or exchange.sets_affinity)

    def begin_exchange(self, transport: ModelTransport, request: httpx.Request) -> Exchange:
        """Note a request on the wire."""
        headers = list(request.headers.raw)
        call = CALL.get()
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
            affinity=affinity_in(headers),
        )
        if call.is_in_another_task:
            kind = "a probe" if is_probe else "the request"
            self.strays.append(f"call {call.number}: {kind} was sent")
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

    def begin_question(self, question: Question) -> None:
        """Note a question to the control plane."""
        self.questions.append(question)
        question.began_at = self.loop.time()
        question.began = self.note("question", question.call.number, question.route)
        if question.call.is_in_another_task:
            self.strays.append(f"call {question.call.number}: a question was asked")


async def _read(response: httpx.Response, world: ModelWorld, call: Call) -> None:
    """Read an answer as a transport does that logs bodies."""
    try:
        await response.aread()
    except GeneratorExit:
        # Its event loop was closed: nothing can be waited for any more.
        raise
    except BaseException:
        try:
            # What went wrong first is what it raises: above all, a cancellation.
            with suppress(OSError):
                await response.aclose()
        finally:
            call.held_below_until = world.loop.time()
        raise


def affinity_in(headers: list[tuple[bytes, bytes]]) -> str:
    """The value of the balancer's cookie among a request's headers."""
    for name, value in headers:
        if name.lower() == b"cookie" and _AFFINITY in value:
            return value.partition(_AFFINITY)[2].partition(b";")[0].decode()
    return ""


def _is_essential(exchange: Exchange) -> bool:
    """Whether a request is for what every trainer knows, so that another application denies it."""
    return exchange.url.path.endswith(("/forward_backward", "/retrieve_future"))


class ModelTransport(httpx.AsyncBaseTransport):
    """One connection to a gateway."""

    def __init__(self, world: ModelWorld, number: int, slot: int, closes_badly: bool) -> None:
        self._world = world
        self._closes_badly = closes_badly
        self.number = number
        self.slot = slot
        self.replicas: dict[int, int] = {}
        self.is_closed = False
        self.closed_at = float("inf")
        self.is_closing = False
        self.question: Question | None = None
        """The last one that went over it."""
        self.carries_requests = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer as the schedule says."""
        world = self._world
        if request.url.path.startswith("/v1/accounts/"):
            response = await answer_question(world, request, self)
            if world.setup.is_read_below:
                # The last question over this transport may be another one by now.
                assert isinstance(response.stream, ModelStream)
                question = response.stream.question
                assert question is not None
                try:
                    await _read(response, world, question.call)
                except OSError:
                    # With its headers, and what they ask for.
                    question.answer, question.asks_to_wait = "useless", 0.0
                    raise
                except asyncio.CancelledError:
                    # It was there, and came no further.
                    question.answer, question.asks_to_wait = "cut", 0.0
                    raise
            return response
        self.carries_requests = True
        exchange = world.begin_exchange(self, request)
        try:
            assert isinstance(request.stream, httpx.AsyncByteStream)
            exchange.content = b"".join([chunk async for chunk in request.stream])
            if self.is_closed:
                raise httpx.TransportError("used after it was closed", request=request)
            response = await self._answer(exchange)
            if world.setup.is_read_below:
                await _read(response, world, exchange.call)
                assert exchange.stream is not None
                exchange.stream.pause = 0.0
            self._look_again(exchange)
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
        self.is_closing = True
        try:
            await self._world.close("transport", self._world.setup.close_takes, question)
        finally:
            self.is_closing = False
        if self._closes_badly:
            raise OSError("this one does not close well")

    async def _answer(self, exchange: Exchange) -> httpx.Response:
        world = self._world
        parts = exchange.url.path.split("/")
        if parts[1] != "training":
            await asyncio.sleep(0)
            exchange.author = "trainer"
            return self._respond(exchange, 404, JSON, b"{}", None)
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
        edge = world.edge(route, now) if exchange.is_probe else None
        if edge is not None:
            exchange.author = "edge"
            return self._respond(exchange, *EDGE[edge.kind], fault)
        outage = world.outage(route, world.replica_for(exchange, route, number), now)
        if world.state_of(route, now) != RUNNING:
            return self._lost(exchange, route, "gateway", "", fault)
        if outage is not None:
            return self._lost(exchange, route, outage.body, outage.retry_after, fault)
        if kind == "busy":
            exchange.author = "busy"
            return self._respond(exchange, 503, JSON, b"{}", fault)
        route_trainer = world.trainers[route]
        status_code, headers, body = self._ask_trainer(exchange, route_trainer, route)
        if kind == "broken body" and exchange.shows:
            exchange.shows = "perhaps"
        if kind == "slow":
            assert fault is not None
            await asyncio.sleep(fault.seconds)
        if kind == "reset after":
            raise httpx.ReadError(f"the connection was reset: {SECRET}")
        if kind == "lost reply":
            return self._lost(exchange, route, "gateway", "", fault)
        return self._respond(exchange, status_code, headers, body, fault)

    def _look_again(self, exchange: Exchange) -> None:
        """See what a router's 404 shows now that it arrives; the trainer may have shown itself."""
        world, route = self._world, exchange.call.route
        is_routers = exchange.body_kind == "router" and not _is_essential(exchange)
        if is_routers and world.has_shown_itself(route, but_for=exchange):
            exchange.shows = "perhaps"
        if exchange.author == "trainer" and exchange.url.path.endswith("/unrouted"):
            if world.has_shown_itself(route, but_for=exchange):
                exchange.shows = "perhaps"
            if world.has_surely_shown_itself(exchange.call) and exchange.fault != "broken body":
                exchange.shows = "surely"

    def _ask_trainer(
        self, exchange: Exchange, trainer: Trainer, route: int
    ) -> tuple[int, dict[str, str], bytes]:
        world, path = self._world, exchange.url.path
        exchange.author = "trainer"
        if path.endswith(PROBE_PATH):
            path = f"/probe/{world.setup.probe_answer}"
        match path.rpartition("/")[2]:
            case "forward_backward":
                key = exchange.header(b"x-idempotency-key") or b""
                status_code, headers, body = 200, JSON, trainer.work(key, exchange.content)
            case "retrieve_future":
                status_code, body = trainer.result(exchange.content)
                headers = JSON
            case "missing" | "404":
                exchange.shows = "surely"
                status_code, (headers, body) = 404, OWN_404S[world.setup.trainer_coding]
            case "unrouted":
                status_code, headers, body = 404, JSON, ROUTER_404
            case "odd" | "odd 404":
                exchange.author = "odd"
                status_code, headers, body = 404, {"content-type": "text/plain"}, ODD_404
            case "503":
                status_code, headers, body = 503, JSON, b"{}"
            case _:
                status_code, headers, body = 200, JSON, b'{"ok": true}'
        exchange.has_worked = True
        return status_code, headers, body

    def _lost(
        self,
        exchange: Exchange,
        route: int,
        body: Body,
        retry_after: str,
        fault: ExchangeFault | None,
    ) -> httpx.Response:
        has_shown_itself = self._world.has_shown_itself(route)
        if body == "router" and has_shown_itself and not _is_essential(exchange):
            # From then on it is the trainer's word to the guard, as far as anybody can tell.
            body = "plain"
        exchange.author = "gateway" if body in GATEWAYS_OWN else "unknown"
        exchange.shows = ""
        exchange.body_kind = body
        headers, content, decoded = LOST[body]
        if retry_after:
            headers = headers | self._asks_to_wait(exchange, retry_after)
        return self._respond(exchange, 404, headers, content, fault, decoded)

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
        decoded: bytes | None = None,
    ) -> httpx.Response:
        exchange.stream = ModelStream(self._world, exchange.call, body, fault)
        # Marked, so that no two answers are alike.
        headers = headers | {"x-exchange": str(exchange.began)}
        if exchange.sets_affinity:
            headers["set-cookie"] = f"affinity={exchange.sets_affinity}; Path=/"
        response = httpx.Response(status_code, headers=headers, stream=exchange.stream)
        exchange.response_headers = list(response.headers.raw)
        if decoded is None:
            decoded = OWN_404 if "content-encoding" in headers else body
        exchange.body = decoded
        return response


class _HttpxTransport(ModelTransport, httpx.AsyncHTTPTransport):
    """One of httpx's own, as far as the guard can see: it follows no redirect."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
