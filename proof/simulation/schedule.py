"""Schedules: everything that will go wrong in one run, drawn from a seed beforehand.

A schedule is plain data. It can be printed, stored as JSON, replayed, and made smaller by taking
events away; nothing is drawn while it runs, but for the jitter of the guard itself, for a load
balancer that chooses at random, and for the turns of two event loops, which all begin at
`Schedule.seed`.

All times are seconds of virtual time since the beginning of the run.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final, Literal, TypeAlias, get_args

Asks: TypeAlias = Literal[
    "train", "info", "missing", "unrouted", "odd", "upload", "telemetry", "elsewhere"
]
Body: TypeAlias = Literal[
    "gateway",
    "gzip",
    "zstd",
    "gzip, gzip",
    "plain",
    "empty",
    "problem",
    "problem as json",
    "router",
    "large",
]
Coding: TypeAlias = Literal["", "gzip", "zstd", "gzip, gzip"]
Balance: TypeAlias = Literal["sticky", "random", "in turn", "cookie"]
Cookies: TypeAlias = Literal["all", "own", "none"]


@dataclass(frozen=True, slots=True)
class Caller:
    """A task of the program's that sends one request, again after errors as the SDK does.

    Args:
        number: What other events call it.
        at: When it begins.
        route: Index of the trainer route.
        slot: Index of the guarded transport.
        asks: `train`: dispatches work with a `seq_id` and polls for its result. `info`: a plain
            question. `missing`: something that the trainer answers with a 404 of its own.
            `unrouted`: a path that it does not know, which its router answers as any router of its
            kind would. `odd`: the same, but the 404's body names nobody. `upload`: a body that is a
            stream. `telemetry`: what the SDK sends in the background. `elsewhere`: a URL that is on
            no trainer route.
        seq_id: For `train`; each route's trainer applies them in ascending order.
        key: Index of the API key.
        timeout: Seconds after which the caller gives its request up; None: never.
    """

    number: int
    at: float
    route: int
    slot: int
    asks: Asks
    seq_id: int = 0
    key: int = 0
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Outage:
    """A gateway replica lacks a route's row.

    `body` is what its 404 looks like: the gateway's own, as it is or in a coding; text; nothing;
    a problem document (RFC 9457), which has a `detail` too; `{"detail": "Not Found"}` as of a
    router that is built like the trainer's, for as long as the trainer has not shown itself, or on
    a request that every trainer knows; or one that is too large to be read. `retry_after` is what
    it asks for: seconds, or `date` and the seconds to that date.
    """

    route: int
    replica: int
    begin: float
    end: float
    body: Body
    retry_after: str = ""


@dataclass(frozen=True, slots=True)
class JobChange:
    """A job changes its state; while it does not run, every replica answers the gateway's 404."""

    route: int
    at: float
    state: str | None


@dataclass(frozen=True, slots=True)
class PlaneFault:
    """The control plane misbehaves towards questions about a route.

    `late`: it says what was true `seconds` ago. `missing`: it does not know the job, as one that
    has not read of its creation yet. `creating`: it has not noticed that the job came up. `slow`:
    it takes `seconds` longer. `hang`: it never answers. `limited`, `unavailable`: it asks to wait
    for `seconds`. The others are answers, or connections, that are of no use; three of them are
    404s that somebody in front of the control plane wrote. With `key`, only questions with the API
    key of that index are met.
    """

    route: int
    begin: float
    end: float
    kind: Literal[
        "late",
        "missing",
        "creating",
        "slow",
        "hang",
        "error",
        "garbage",
        "refused",
        "forbidden",
        "redirect",
        "reset",
        "limited",
        "unavailable",
        "gateway 404",
        "html 404",
        "empty 404",
    ]
    seconds: float = 0.0
    key: int | None = None


@dataclass(frozen=True, slots=True)
class Edge:
    """Something in front of the gateway answers the probes of a route: not the trainer.

    With an error status, a redirect, a page, nothing at all, or a copy that a cache has kept.
    """

    route: int
    begin: float
    end: float
    kind: Literal["429", "503", "401", "302", "html", "empty", "cached"]


@dataclass(frozen=True, slots=True)
class ExchangeFault:
    """One exchange on a route goes wrong, counted from 0 in the order in which they begin.

    `reset before`, `timeout before`: before the trainer saw it. `reset after`, `lost reply`: the
    trainer did the work. `busy`: 503. `slow`: answered late. `slow body`, `broken body`: the head
    comes, the body dawdles or breaks.
    """

    route: int
    number: int
    kind: Literal[
        "reset before",
        "timeout before",
        "reset after",
        "lost reply",
        "busy",
        "slow",
        "slow body",
        "broken body",
    ]
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class BuildFault:
    """The n-th building of a further transport fails, or what was built does not close well."""

    number: int
    kind: Literal["build", "close"]


@dataclass(frozen=True, slots=True)
class Cancel:
    """A caller is cancelled: `turns` of the event loop after one of its awaits in the guard.

    Args:
        caller: Its number.
        step: Which of its awaits; None: at the time `at` instead, wherever it is then.
        at: See `step`.
        turns: Turns of the event loop to wait first; what is waited for may come meanwhile.
        again: Whether it is cancelled a second time right away, as anyio's scopes do.
    """

    caller: int
    step: int | None = None
    at: float = 0.0
    turns: int = 0
    again: bool = False


@dataclass(frozen=True, slots=True)
class CloseFault:
    """The n-th closing of an answer, or of a further transport, hangs or raises an error."""

    what: Literal["answer", "transport"]
    number: int
    kind: Literal["hang", "error"]


@dataclass(frozen=True, slots=True)
class Stall:
    """The process stands still: between two callbacks, as much time passes on all clocks."""

    at: float
    seconds: float


@dataclass(frozen=True, slots=True)
class ClockJump:
    """The wall clock is set, forwards or backwards; the time of event loops goes on as before."""

    at: float
    seconds: float


@dataclass(frozen=True, slots=True)
class LoopEnd:
    """The second event loop ends, and its callers begin again on a new one.

    `cancel`: as at the end of `asyncio.run`. `close`: it is closed with all that waits on it, which
    the garbage collector ends while another one runs.
    """

    at: float
    kind: Literal["cancel", "close"]


@dataclass(frozen=True, slots=True)
class SlotChange:
    """A guarded transport is closed, released as by `uninstall_guard()`, or reconfigured."""

    slot: int
    at: float
    kind: Literal["close", "release", "reconfigure"]


Event: TypeAlias = (
    Caller
    | Outage
    | JobChange
    | PlaneFault
    | Edge
    | ExchangeFault
    | BuildFault
    | CloseFault
    | Cancel
    | Stall
    | ClockJump
    | LoopEnd
    | SlotChange
)
_EVENTS: Final[dict[str, type[Event]]] = {kind.__name__: kind for kind in get_args(Event)}


@dataclass(frozen=True, slots=True)
class Setup:
    """What a run begins with.

    Args:
        settings: Arguments of `GuardSettings`.
        routes: How many trainer routes there are.
        replicas: How many gateway replicas each has.
        balance: How a replica is chosen: by connection, at random, in turn for each exchange, or by
            a cookie that the balancer has set.
        cookies: What requests carry at first where the balancer keeps to replicas by cookie: `all`:
            its cookie and the program's own; `own`: the program's alone; `none`: neither.
        slots: How many guarded transports there are.
        renewable: Whether they know how to build further transports.
        latencies: How long exchanges take, used in turn.
        close_takes: How long it takes to close an answer that was not read, or a transport.
        plane: `own`: a control plane object of the user's. `origin`, `elsewhere`: Fireworks' over
            http, at the route's origin with the request's key, or configured with a key of its own.
            `line`: as `origin`, over a new connection of the transport that the request goes over.
            `none`: there is none, and what has reached the trainer is the evidence.
        plane_takes: How long it takes to answer.
        probe_answer: What the trainer says to the probe's path.
        trainer_coding: The Content-Encoding of its 404s.
        is_read_below: Whether each transport reads (and so closes) every answer that it returns.
        routes_kept: How many routes the process remembers.
        is_recorded: Whether spans and metrics are recorded.
        has_two_loops: Whether every second transport is used on another event loop, which takes
            turns with the first.
        in_threads: Whether the guard is that of sync clients, each call in a thread of its own.
    """

    settings: dict[str, float]
    routes: int = 1
    replicas: int = 1
    balance: Balance = "random"
    cookies: Cookies = "all"
    slots: int = 1
    renewable: bool = True
    latencies: tuple[float, ...] = (0.01,)
    close_takes: float = 0.0
    plane: Literal["own", "origin", "line", "elsewhere", "none"] = "own"
    plane_takes: float = 0.01
    probe_answer: Literal["200", "404", "odd 404", "503"] = "200"
    trainer_coding: Coding = ""
    is_read_below: bool = False
    routes_kept: int = 1024
    is_recorded: bool = False
    has_two_loops: bool = False
    in_threads: bool = False


@dataclass(frozen=True, slots=True)
class Schedule:
    """What a run begins with, and what happens in it."""

    seed: int
    setup: Setup
    events: tuple[Event, ...]

    def without(self, index: int) -> Schedule:
        """This schedule without one of its events."""
        return replace(self, events=self.events[:index] + self.events[index + 1 :])

    def to_json(self) -> str:
        """One line of JSON that `from_json` reads."""
        events = [{"event": type(event).__name__, **asdict(event)} for event in self.events]
        return json.dumps({"seed": self.seed, "setup": asdict(self.setup), "events": events})

    @staticmethod
    def from_json(text: str) -> Schedule:
        """Read what `to_json` wrote."""
        document: dict[str, Any] = json.loads(text)
        setup = document["setup"]
        setup["latencies"] = tuple(setup["latencies"])
        events = tuple(_EVENTS[event.pop("event")](**event) for event in document["events"])
        return Schedule(document["seed"], Setup(**setup), events)

    def describe(self) -> str:
        """For people: a line for each thing that differs from a healthy run."""
        lines = [f"seed {self.seed}"]
        lines += [
            f"  {field.name} = {getattr(self.setup, field.name)}" for field in fields(self.setup)
        ]
        lines += [f"  {event}" for event in self.events]
        return "\n".join(lines)


RUNNING: Final = "JOB_STATE_RUNNING"
_STOPPED: Final = ("JOB_STATE_PAUSED", "JOB_STATE_DELETED", "JOB_STATE_FAILED", None)
_STATES: Final = (
    "JOB_STATE_FAILED",
    "JOB_STATE_EXPIRED",
    "JOB_STATE_PAUSED",
    "JOB_STATE_DELETING_CLEANING_UP",
    "JOB_STATE_CREATING",
    "JOB_STATE_RE_QUEUEING",
    "JOB_STATE_OF_NEXT_YEAR",
    None,
)
_COMING_UP: Final = ("JOB_STATE_CREATING", "JOB_STATE_PENDING", "JOB_STATE_RE_QUEUEING")
_HORIZON: Final = 4.0
"""Callers begin and faults happen within this time, where no longer one is said."""


ALONE_FROM: Final = 850
"""Of each thousand seeds, those from this one on have no control plane."""


def draw(seed: int) -> Schedule:
    """Draw a schedule; the same seed gives the same one."""
    schedule = _Draw(random.Random(seed)).schedule(seed)
    schedule = _Draw(random.Random(f"{seed}, more")).more(schedule)
    schedule = _Draw(random.Random(f"{seed}, beyond")).beyond(schedule)
    schedule = _Draw(random.Random(f"{seed}, rare")).rare(schedule)
    if seed % 1000 < ALONE_FROM:
        return schedule
    return _Draw(random.Random(f"{seed}, alone")).alone(schedule)


def _with_outages(events: list[Event], **changed: Any) -> list[Event]:
    """The events, each outage among them changed."""
    return [replace(e, **changed) if isinstance(e, Outage) else e for e in events]


def _next_number(events: list[Event]) -> int:
    """The number of a further caller."""
    return 1 + max((event.number for event in events if isinstance(event, Caller)), default=-1)


class _Draw:
    """Draws one schedule.

    Each has some kinds of trouble and not the others, so that each kind is also met undisturbed.
    """

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance

    def schedule(self, seed: int) -> Schedule:
        chance = self.chance
        setup = self.setup()
        is_crowd = self.happens(0.12)
        if is_crowd and self.happens(0.5):
            patient = {"warmup_successes": 0, "retry_timeout": 3.0}
            setup = replace(setup, settings=setup.settings | patient)
        callers = self.crowd(setup) if is_crowd else self.callers(setup)
        events: list[Event] = [*callers]
        if is_crowd or self.happens(0.85):
            events += self.outages(setup, everywhere=is_crowd or self.happens(0.5))
        if self.happens(0.25):
            events += self.job_changes(setup)
        if self.happens(0.25):
            events += [self.plane_fault(setup) for _ in range(chance.randint(1, 3))]
        if self.happens(0.45):
            events += [self.exchange_fault(setup) for _ in range(chance.randint(1, 4))]
        if setup.renewable and self.happens(0.1):
            events += [
                BuildFault(chance.randrange(8), chance.choice(("build", "build", "close")))
                for _ in range(chance.randint(1, 4))
            ]
        if self.happens(0.8 if is_crowd else 0.4):
            events += [self.cancel(callers) for _ in range(chance.randint(1, 3))]
        if self.happens(0.05):
            events.append(Stall(self.soon(callers), chance.choice((0.5, 5.0, 60.0))))
        if self.happens(0.08):
            events.append(self.slot_change(setup, callers))
        return Schedule(seed, setup, tuple(events))

    def alone(self, schedule: Schedule) -> Schedule:
        """Take the control plane away: the guard has what it sees itself."""
        patience = {"unreached_timeout": self.chance.choice((0.2, 1.0, 4.0))}
        setup = replace(schedule.setup, plane="none", settings=schedule.setup.settings | patience)
        events = schedule.events
        if self.happens(0.3):
            events = (*events, *self.lost_for_minutes(setup))
        return replace(schedule, setup=setup, events=events)

    def lost_for_minutes(self, setup: Setup) -> list[Event]:
        """A route that is lost for minutes, and who comes to it then, and later."""
        chance = self.chance
        slot, key = chance.randrange(setup.slots), chance.randrange(2)
        spent_by = 6.0 + max(setup.settings["retry_timeout"], setup.settings["unreached_timeout"])
        later = (0.0, chance.choice((0.1, 1.0, 30.0)), chance.choice((61.0, 90.0, 130.0)))
        return [
            *(Outage(0, replica, 5.0, 300.0, "plain") for replica in range(setup.replicas)),
            Caller(910, 4.0, 0, slot, "info", key=key),
            Caller(911, 6.0, 0, slot, "info", key=key),
            *(
                Caller(912 + number, round(spent_by + seconds, 3), 0, slot, "info", key=key)
                for number, seconds in enumerate(later)
            ),
        ]

    def more(self, schedule: Schedule) -> Schedule:
        """Add what was thought of later: drawn apart, so that old seeds keep what they had."""
        chance = self.chance
        setup, events = schedule.setup, list(schedule.events)
        callers = [event for event in events if isinstance(event, Caller)]
        if setup.plane == "origin" and self.happens(0.6):
            setup = replace(setup, plane="line")
        if self.happens(0.1):
            setup = replace(setup, has_two_loops=True, slots=max(setup.slots, 2))
            for index, caller in enumerate(callers):
                events[index] = replace(caller, slot=chance.randrange(setup.slots))
            if self.happens(0.7):
                # Often while a request or its first probes are under way.
                at = chance.choice(callers).at + chance.choice((0.005, 0.02, 0.05, self.time(0.5)))
                events.append(LoopEnd(round(at, 3), chance.choice(("cancel", "close"))))
                setup = replace(setup, close_takes=chance.choice((0.0, 0.02)))
        if self.happens(0.1):
            # A clock that is wrong from the beginning, or is set in the middle.
            at = chance.choice((0.0, self.soon(callers)))
            events.append(ClockJump(at, chance.choice((-3600.0, -5.0, -0.3, 0.3, 5.0, 3600.0))))
            if self.happens(0.4):
                retry_after = chance.choice(("date 1", "date 2"))
                events = _with_outages(events, retry_after=retry_after)
        if self.happens(0.1):
            events += [self.close_fault() for _ in range(chance.randint(1, 3))]
        return replace(schedule, setup=setup, events=tuple(events))

    def beyond(self, schedule: Schedule) -> Schedule:
        """Add what the guard cannot know: answers that age, that differ, that others give."""
        chance = self.chance
        setup, events = schedule.setup, list(schedule.events)
        if self.happens(0.06):
            setup = replace(setup, routes=3, routes_kept=chance.choice((1, 2)))
            events = self.spread(events)
        if self.happens(0.1):
            events = self.two_keys(setup, events)
        if self.happens(0.12):
            setup = replace(setup, balance="cookie", replicas=max(setup.replicas, 2))
            events += self.outages(setup, everywhere=False)
        if self.happens(0.25):
            events += self.job_life(setup)
        if self.happens(0.25):
            events += [self.stale_plane(setup) for _ in range(chance.randint(1, 3))]
        if self.happens(0.15):
            events += [self.edge(setup) for _ in range(chance.randint(1, 2))]
        if self.happens(0.25):
            body: Body = chance.choice(
                ("zstd", "gzip, gzip", "problem", "problem as json", "router", "empty", "large")
            )
            events = _with_outages(events, body=body)
        if self.happens(0.06):
            retry_after = chance.choice(("1", "40"))
            events = _with_outages(events, retry_after=retry_after)
        if self.happens(0.2):
            setup = replace(setup, trainer_coding=chance.choice(("gzip", "zstd", "gzip, gzip")))
        if self.happens(0.12):
            setup = replace(setup, is_read_below=True)
        if self.happens(0.2):
            events = self.other_questions(setup, events)
        if self.happens(0.03):
            events += self.hopeless(setup)
        return replace(schedule, setup=setup, events=tuple(events))

    def rare(self, schedule: Schedule) -> Schedule:
        """Let meet what meets too seldom when each is drawn for itself."""
        chance = self.chance
        setup, events = schedule.setup, list(schedule.events)
        if setup.balance == "cookie" and self.happens(0.4):
            setup = replace(setup, cookies=chance.choice(("own", "none")))
        if setup.routes_kept < setup.routes and self.happens(0.7):
            events += self.overlapping(setup, events)
        if self.happens(0.01):
            # A route that most exchanges miss.
            setup = replace(setup, replicas=4, balance=chance.choice(("random", "in turn")))
            until = chance.choice((3.0, 20.0))
            events += [
                Outage(route, replica, 0.0, until, "gateway")
                for route in range(setup.routes)
                for replica in range(3)
            ]
        if self.happens(0.01):
            setup, events = self.loop_closed_under_an_answer(setup, events)
        return replace(schedule, setup=setup, events=tuple(events))

    def overlapping(self, setup: Setup, events: list[Event]) -> list[Event]:
        """Callers that ask for something on every route while others still wait there."""
        chance = self.chance
        return [
            Caller(
                _next_number(events) + n,
                round(n * chance.choice((0.0, 0.01, 0.05)), 3),
                n % setup.routes,
                chance.randrange(setup.slots),
                "info",
            )
            for n in range(chance.randint(3, 7))
        ]

    def loop_closed_under_an_answer(
        self, setup: Setup, events: list[Event]
    ) -> tuple[Setup, list[Event]]:
        """An event loop is closed while it reads an answer, whose closing takes time."""
        chance = self.chance
        events = [event for event in events if not isinstance(event, LoopEnd)]
        at = chance.choice([event.at for event in events if isinstance(event, Caller)])
        events += [
            Caller(950, at, 0, 1, "info"),
            *(ExchangeFault(0, number, "slow body", 0.6) for number in range(3)),
            LoopEnd(round(at + chance.choice((0.05, 0.2, 0.5)), 3), "close"),
        ]
        setup = replace(setup, has_two_loops=True, slots=max(setup.slots, 2), close_takes=0.02)
        return setup, events

    def spread(self, events: list[Event]) -> list[Event]:
        """Let the callers use three routes, in numbers of work that are each route's own."""
        chance = self.chance
        seq_ids = [0, 0, 0]
        spread: list[Event] = []
        for event in events:
            if not isinstance(event, Caller):
                spread.append(event)
                continue
            route = chance.randrange(3)
            if event.asks == "train":
                seq_ids[route] += 1
            seq_id = seq_ids[route] if event.asks == "train" else 0
            spread.append(replace(event, route=route, seq_id=seq_id))
        return spread

    def two_keys(self, setup: Setup, events: list[Event]) -> list[Event]:
        """Callers with two keys, one of which is no good with the control plane."""
        chance = self.chance
        keyed: list[Event] = [
            replace(event, key=chance.randrange(2)) if isinstance(event, Caller) else event
            for event in events
        ]
        kind: Any = chance.choice(("missing", "forbidden", "refused", "creating"))
        told = [
            PlaneFault(route, 0.0, 1000.0, kind, key=chance.randrange(2))
            for route in range(setup.routes)
        ]
        return [*keyed, *told]

    def job_life(self, setup: Setup) -> list[Event]:
        """A job goes through several states, some of them for less time than an answer is kept."""
        chance = self.chance
        route = chance.randrange(setup.routes)
        at = chance.choice((0.0, self.time(2.0)))
        states: list[str | None] = [chance.choice(_STATES)]
        if self.happens(0.4):
            states.append(chance.choice(_COMING_UP))
        if self.happens(0.8):
            states.append(RUNNING)
        if self.happens(0.2):
            states += [chance.choice(_STATES), RUNNING]
        changes: list[Event] = []
        for state in states:
            changes.append(JobChange(route, round(at, 3), state))
            at += chance.choice((0.05, 0.3, 0.8, self.time(3.0)))
        return changes

    def stale_plane(self, setup: Setup) -> PlaneFault:
        chance = self.chance
        begin = chance.choice((0.0, self.time()))
        kind: Any = chance.choice(
            (
                *("late", "missing", "creating") * 2,
                *("forbidden", "limited", "unavailable"),
                *("gateway 404", "html 404", "empty 404"),
            )
        )
        seconds = (
            chance.choice((1.0, 2.0, 40.0))
            if kind in ("limited", "unavailable")
            else round(chance.uniform(0.2, 3.0), 1)
        )
        lasts = chance.choice((0.3, 1.5, 4.0, 30.0))
        return PlaneFault(
            chance.randrange(setup.routes), begin, round(begin + lasts, 3), kind, seconds
        )

    def edge(self, setup: Setup) -> Edge:
        chance = self.chance
        begin = chance.choice((0.0, self.time()))
        kind: Any = chance.choice(("429", "503", "401", "302", "html", "empty", "cached"))
        until = begin + chance.choice((1.0, 5.0, 60.0))
        return Edge(chance.randrange(setup.routes), begin, round(until, 3), kind)

    def other_questions(self, setup: Setup, events: list[Event]) -> list[Event]:
        """Callers that ask for what no trainer knows, or in the background, among the others."""
        chance = self.chance
        first = _next_number(events)
        others: list[Event] = [
            Caller(
                number,
                chance.choice((0.0, self.time(), round(chance.uniform(2.0, 30.0), 3))),
                chance.randrange(setup.routes),
                chance.randrange(setup.slots),
                chance.choice(("unrouted", "telemetry", "telemetry", "missing")),
            )
            for number in range(first, first + chance.randint(1, 2))
        ]
        return events + others

    def hopeless(self, setup: Setup) -> list[Event]:
        """A route that does not come up, and what the SDK goes on to send in the background."""
        chance = self.chance
        at, slot, key = self.time(), chance.randrange(setup.slots), chance.randrange(2)
        after = at + setup.settings["retry_timeout"] + setup.settings["warmup_timeout"]
        return [
            *(Outage(0, replica, at, at + 60.0, "gateway") for replica in range(setup.replicas)),
            Caller(900, round(at + 0.1, 3), 0, slot, "info", key=key),
            *(
                Caller(901 + n, round(after + self.time(), 3), 0, slot, "telemetry", key=key)
                for n in range(chance.randint(1, 2))
            ),
        ]

    def happens(self, probability: float) -> bool:
        return self.chance.random() < probability

    def time(self, end: float = _HORIZON) -> float:
        # Often the same times, so that things also happen at one and the same moment.
        if self.happens(0.3):
            return self.chance.choice((0.0, 0.1, 0.2, 0.5, 1.0, 2.0))
        return round(self.chance.uniform(0.0, end), 3)

    def setup(self) -> Setup:
        chance = self.chance
        initial = chance.choice((0.1, 0.2, 0.5))
        return Setup(
            settings={
                "warmup_successes": chance.choice((0, 0, 1, 2, 3)),
                "warmup_timeout": chance.choice((0.5, 3.0, 12.0)),
                "probe_timeout": chance.choice((0.25, 1.0, 5.0)),
                "retry_timeout": chance.choice((0.0, 0.3, 1.0, 3.0, 15.0)),
                "backoff_initial": initial,
                "backoff_max": chance.choice((max(initial, 0.3), 1.0, 3.0)),
                "control_plane_timeout": chance.choice((0.25, 1.0, 5.0)),
                "verdict_ttl": chance.choice((0.0, 0.25, 1.0, 1.0, 5.0)),
            },
            routes=chance.choice((1, 1, 1, 1, 2, 3)),
            replicas=chance.choice((1, 1, 2, 3, 4)),
            balance=chance.choice(("sticky", "random", "in turn")),
            slots=chance.choice((1, 1, 2, 3)),
            renewable=self.happens(0.85),
            latencies=tuple(
                chance.choice((0.0, 0.001, 0.01, 0.05, 0.3)) for _ in range(chance.randint(1, 5))
            ),
            close_takes=chance.choice((0.0, 0.0, 0.02)),
            plane=chance.choice(("own", "own", "own", "origin", "elsewhere")),
            plane_takes=chance.choice((0.0, 0.01, 0.1)),
            probe_answer=chance.choice(("200", "200", "200", "200", "404", "odd 404", "503")),
            routes_kept=1024 if self.happens(0.97) else 1,
            is_recorded=self.happens(0.12),
        )

    def callers(self, setup: Setup) -> list[Caller]:
        chance = self.chance
        together = self.happens(0.5)
        has_two_keys = self.happens(0.1)
        callers: list[Caller] = []
        seq_ids = [0] * setup.routes
        at = 0.0
        for number in range(chance.choice((1, 1, 2, 2, 3, 5))):
            at = at if together and self.happens(0.8) else max(at, self.time())
            route = chance.randrange(setup.routes)
            asks: Asks = chance.choice(
                ("train",) * 8 + ("info", "info", "missing", "odd", "upload", "elsewhere")
            )
            if asks == "train":
                seq_ids[route] += 1
            callers.append(
                Caller(
                    number,
                    at,
                    route,
                    slot=chance.randrange(setup.slots),
                    asks=asks,
                    seq_id=seq_ids[route] if asks == "train" else 0,
                    key=chance.randrange(2) if has_two_keys else 0,
                    timeout=chance.choice((0.2, 1.0)) if self.happens(0.05) else None,
                )
            )
        return callers

    def crowd(self, setup: Setup) -> list[Caller]:
        """Many at once: what they find out is shared, and who leads them is cancelled."""
        chance = self.chance
        return [
            Caller(number, 0.0, 0, chance.randrange(setup.slots), "train", seq_id=number + 1)
            for number in range(chance.randint(3, 5))
        ]

    def outages(self, setup: Setup, *, everywhere: bool) -> list[Event]:
        chance = self.chance
        body: Body = chance.choice(("gateway", "gateway", "gateway", "gzip", "plain", "empty"))
        retry_after = chance.choice(("1", "40")) if self.happens(0.05) else ""
        end = 40.0 if self.happens(0.05) else chance.choice((0.2, 1.0, 2.5))
        outages: list[Event] = []
        for route in range(setup.routes):
            shared = (chance.choice((0.0, self.time())), self.time(end))
            for replica in range(setup.replicas):
                for _ in range(chance.choice((0, 1, 1, 2, 3)) if not everywhere else 1):
                    begin, lasts = (
                        shared
                        if everywhere
                        else (chance.choice((0.0, self.time())), self.time(end))
                    )
                    until = round(begin + lasts, 3)
                    outages.append(Outage(route, replica, begin, until, body, retry_after))
        return outages

    def job_changes(self, setup: Setup) -> list[Event]:
        chance = self.chance
        route = chance.randrange(setup.routes)
        at = chance.choice((0.0, self.time()))
        stopped: str | None = chance.choice((*_STOPPED, "JOB_STATE_CREATING"))
        changes: list[Event] = [JobChange(route, at, stopped)]
        if self.happens(0.6):
            changes.append(JobChange(route, round(at + self.time(), 3), RUNNING))
        return changes

    def plane_fault(self, setup: Setup) -> PlaneFault:
        chance = self.chance
        begin = chance.choice((0.0, self.time()))
        return PlaneFault(
            chance.randrange(setup.routes),
            begin,
            round(begin + self.time(), 3),
            chance.choice(
                ("late", "slow", "hang", "error", "garbage", "refused", "redirect", "reset")
            ),
            chance.choice((0.2, 0.6, 2.0)),
        )

    def exchange_fault(self, setup: Setup) -> ExchangeFault:
        chance = self.chance
        return ExchangeFault(
            chance.randrange(setup.routes),
            chance.randrange(chance.choice((4, 12))),
            chance.choice(
                (
                    "reset before",
                    "timeout before",
                    "reset after",
                    "lost reply",
                    "lost reply",
                    "busy",
                    "slow",
                    "slow body",
                    "broken body",
                )
            ),
            chance.choice((0.1, 0.6, 1.5, 6.0)),
        )

    def close_fault(self) -> CloseFault:
        chance = self.chance
        return CloseFault(
            chance.choice(("answer", "transport")),
            chance.randrange(6),
            chance.choice(("hang", "hang", "error")),
        )

    def soon(self, callers: list[Caller]) -> float:
        """A time at which one of the callers is likely to be in the guard."""
        return round(self.chance.choice(callers).at + self.time(0.5), 3)

    def slot_change(self, setup: Setup, callers: list[Caller]) -> SlotChange:
        chance = self.chance
        return SlotChange(
            chance.choice(callers).slot,
            self.soon(callers),
            chance.choice(("close", "release", "reconfigure")),
        )

    def cancel(self, callers: list[Caller]) -> Cancel:
        chance = self.chance
        caller = chance.choice(callers)
        return Cancel(
            caller.number,
            step=chance.randrange(chance.choice((4, 12, 30))) if self.happens(0.8) else None,
            at=self.soon([caller]),
            turns=chance.choice((0, 0, 1, 2, 3)),
            again=self.happens(0.2),
        )
