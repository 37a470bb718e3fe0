"""What the world records of a run: calls, exchanges, questions, and the bodies of answers."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import httpx

from proof.simulation.bodies import MUCH, SECRET

if TYPE_CHECKING:
    from proof.simulation.model import ModelTransport, ModelWorld
    from proof.simulation.schedule import Caller, ExchangeFault

KEYS: Final = ("tml-first-secret", "tml-second-secret")
HANGS_FOR: Final = 600.0
"""Seconds that closing takes where it hangs; as good as for ever."""

CALL: Final[ContextVar[Call]] = ContextVar("CALL")
"""The guarded request that the running task works for."""

_CHUNK: Final = MUCH + 1
"""Bytes; a larger body comes in more chunks than one."""

Shows: TypeAlias = Literal["", "perhaps", "surely"]


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
    task: asyncio.Task[Any] | None = None
    """The caller's task, in which all of it must happen."""
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
    limit: asyncio.Timeout | None = None
    """Its caller's own timeout."""
    has_timed_out: bool = False
    waits_for_ever: bool = False
    held_below_until: float = 0.0
    """Until when a transport below has last closed, by itself, what it could not read."""
    sends: list[Exchange] = field(default_factory=list)
    """The exchanges that were made of the request itself."""
    probes: list[Exchange] = field(default_factory=list)
    """The probes that it led."""
    route: int | None = field(init=False)
    """Index of its route; None if it is on none."""
    asker: tuple[int | None, int, str] = field(init=False)
    """Route, event loop and key: what the guard finds out is shared within these."""

    def __post_init__(self) -> None:
        self.route = None if self.caller.asks == "elsewhere" else self.caller.route
        self.asker = self.route, self.loop, self.key

    @property
    def is_in_another_task(self) -> bool:
        """Whether the task that runs now is not the caller's."""
        if self.task is None or self.task.get_loop().is_closed():
            # The garbage collector ends what ran on a closed loop, wherever it happens to run.
            return False
        return asyncio.current_task() is not self.task

    @property
    def is_given_up(self) -> bool:
        """Whether its caller has told it by now to end: by a cancellation, or its own timeout."""
        is_out_of_time = self.limit is not None and self.limit.expired()
        return bool(self.cancels) or is_out_of_time or self.waits_for_ever

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
    `unknown` (the gateway, but its body does not tell), `edge`, or `busy`."""
    shows: Shows = ""
    """Whether a 404 shows that the trainer wrote it; `perhaps` depends on what else is known."""
    affinity: str = ""
    """The value of the balancer's cookie that it was sent with, if any."""
    sets_affinity: str = ""
    """The value of that cookie which the answer sets."""
    has_worked: bool = False
    """Whether the trainer got to see it."""
    fault: str = ""
    status_code: int = 0
    response: httpx.Response | None = None
    response_headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    """The answer's body, decoded."""
    body_kind: str = ""
    """Of a gateway's 404: what it looks like."""
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
        """Whether it was answered with a 404 which shows that the trainer wrote it."""
        return self.is_404 and self.shows == "surely"

    @property
    def has_reached(self) -> bool:
        """Whether it is a probe that was answered by the trainer, in words of its own."""
        return (
            self.is_probe
            and self.author == "trainer"
            and (self.status_code == 200 or self.shows_trainer)
            and self.fault != "broken body"
        )

    @property
    def may_have_reached(self) -> bool:
        """The same, or a 404 of the trainer's of which only a part came, which may be enough."""
        return self.has_reached or (self.is_probe and self.is_404 and bool(self.shows))

    @property
    def body_at(self) -> float:
        """When its answer's body has come."""
        return self.ended_at + (0.0 if self.stream is None else self.stream.pause)

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
    is_abandoned: bool = False
    """Whether it was cut because whoever asked it was gone, and not because it took too long."""
    fault: str = ""
    """Why there is no answer."""
    asks_to_wait: float = 0.0
    """Seconds that a useless answer's Retry-After asks for."""


@dataclass(slots=True, eq=False)
class Closing(Span):
    """An answer or a further transport that was closed, and took time or did not close well."""

    what: str = ""
    kind: str = ""


class ModelStream(httpx.AsyncByteStream):
    """An answer's body: one chunk, which may dawdle or break; two where it is large."""

    def __init__(
        self,
        world: ModelWorld,
        call: Call,
        body: bytes,
        fault: ExchangeFault | None = None,
        question: Question | None = None,
    ) -> None:
        self._world = world
        self._call = call
        self.question = question
        self._chunks = [body[i : i + _CHUNK] for i in range(0, len(body), _CHUNK)]
        self._pause = fault.seconds if fault and fault.kind == "slow body" else 0.0
        self._is_broken = fault is not None and fault.kind == "broken body"
        self.pause = self._pause
        self.error: BaseException | None = None
        self.is_exhausted = False
        self.is_closed = False
        self.let_go_at = float("inf")
        """When it was exhausted or closed, and so held no connection any more."""

    def __aiter__(self) -> ModelStream:
        return self

    async def __anext__(self) -> bytes:
        self._note_task("read")
        if self._pause:
            pause, self._pause = self._pause, 0.0
            await asyncio.sleep(pause)
        if self._chunks:
            return self._chunks.pop(0)
        if self._is_broken:
            self.error = httpx.ReadError(f"the body broke off: {SECRET}")
            raise self.error
        self.is_exhausted = True
        self.let_go_at = min(self.let_go_at, self._world.loop.time())
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Let the connection go."""
        if not self.is_closed:
            self._note_task("closed")
            self.is_closed = True
            self.let_go_at = min(self.let_go_at, self._world.loop.time())
            takes = 0.0 if self.is_exhausted else self._world.setup.close_takes
            try:
                await self._world.close("answer", takes, self.question)
            except OSError as error:
                self.error = self.error or error
                raise

    def _note_task(self, how: str) -> None:
        if self._call.is_in_another_task:
            self._world.strays.append(f"call {self._call.number}: a body was {how}")
