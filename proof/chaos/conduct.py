"""Starts all processes, kills some of them, and listens to what they say."""

from __future__ import annotations

import json
import os
import queue
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import httpx
import trustme

from proof.chaos.faults import ProcessFault
from proof.chaos.judge import Oracle, judge_left, judge_log, judge_run
from proof.chaos.plan import ENTRANCES, STEPS, draw

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def _lanes(**counts: int) -> list[tuple[str, int]]:
    return [(kind, lane) for kind, count in counts.items() for lane in range(count)]


STEADY: Final = _lanes(train=10, sample=8, gone=1)
"""Lanes of the clients that are told of a control plane of its own, which always works."""
DOUBTFUL: Final = _lanes(own=2, deaf=1, slandered=1, undead=1)
"""Lanes of the clients whose control plane is at the route's origin, and breaks with it."""
KILLED: Final = _lanes(killed=2)
"""Lanes of the clients that are killed."""

_BETWEEN_FRONT_FAULTS: Final = (10.0, 26.0)
_BETWEEN_KILLS: Final = (8.0, 20.0)
_DOWN: Final = (0.1, 1.5)
_FROZEN: Final = (0.5, 2.5)
_GRACE: Final = 300.0
"""Seconds after the end within which every run must have ended: more than a client's patience."""


@dataclass(frozen=True)
class Options:
    """What to do.

    Args:
        seconds: For how long runs are begun.
        seed: Of all that is drawn.
        is_guarded: Whether the guard is installed.
        has_404s: Whether routes are lost.
        sabotage: How the guard is broken; see `sabotage`.
    """

    seconds: float
    seed: int
    is_guarded: bool = True
    has_404s: bool = True
    sabotage: str | None = None


@dataclass
class Seen:
    """What was seen."""

    options: Options
    seconds: float = 0.0
    ended: Counter[str] = field(default_factory=Counter)
    """How runs ended."""
    kinds: Counter[str] = field(default_factory=Counter)
    """Runs of each kind that ended."""
    given_up: Counter[str] = field(default_factory=Counter)
    """Runs of each kind that the SDK gave up."""
    faults: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    in_flight: list[int] = field(default_factory=list)
    requests: int = 0
    refused: int = 0
    applied: int = 0
    sampled: int = 0
    slowest_run: float = 0.0
    errors: Counter[str] = field(default_factory=Counter)
    """What the SDK gave up with, and on which kind of job."""
    looks: defaultdict[str, list[dict[str, float]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    left: dict[str, dict[str, Any]] = field(default_factory=dict)


class Child:
    """A child process whose standard output is lines of JSON."""

    def __init__(
        self, name: str, module: str, *arguments: str, inbox: queue.Queue[Any], **env: str
    ) -> None:
        self.name = name
        self._popen = subprocess.Popen(  # noqa: S603 - a module of ours
            [sys.executable, "-m", module, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env=_environment() | env,
        )
        self.inbox = inbox
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        assert self._popen.stdout is not None
        for line in self._popen.stdout:
            try:
                self.inbox.put((self.name, json.loads(line)))
            except json.JSONDecodeError:
                # It was killed in the middle of a line.
                continue

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._popen.send_signal(number)

    def hear_out(self) -> None:
        """Take in all that it said, once it is over."""
        self._thread.join()

    def kill(self) -> None:
        """End it at once, and wait for its end."""
        self._popen.kill()
        self._popen.wait()
        self.hear_out()

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._popen.poll() is not None

    @property
    def code(self) -> int | None:
        """What it ended with; None while it runs."""
        return self._popen.returncode


def _environment() -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith(("TINKER_", "OTEL_")) and "PROXY" not in name.upper()
    }
    return kept | {"PYTHONWARNINGS": "ignore", "TINKER_TELEMETRY": "1"}


class Trouble(NamedTuple):
    """What befalls the front.

    Args:
        pause: Seconds since the last trouble was over.
        fault: What it is.
        lasts: Seconds until the front is there again.
    """

    pause: float
    fault: ProcessFault
    lasts: float


def troubles_of_front(seed: int, seconds: float) -> Iterator[Trouble]:
    """What befalls the front in a run of so many seconds: kills and freezes, in turn."""
    chance = random.Random(f"{seed} troubles of the front")
    is_kill = chance.random() < 0.5
    while True:
        pause = _pause(chance, _BETWEEN_FRONT_FAULTS, seconds)
        if is_kill:
            yield Trouble(pause, ProcessFault.FRONT_KILLED, chance.uniform(*_DOWN))
        else:
            yield Trouble(pause, ProcessFault.FRONT_FROZEN, chance.uniform(*_FROZEN))
        is_kill = not is_kill


def kills_of_client(seed: int, seconds: float) -> Iterator[float]:
    """Seconds from one kill of a client to the next, in a run of so many seconds."""
    chance = random.Random(f"{seed} kills of the client")
    while True:
        yield _pause(chance, _BETWEEN_KILLS, seconds)


def _pause(chance: random.Random, usual: tuple[float, float], seconds: float) -> float:
    # Never more than a third of the run, so that two kinds of trouble come even in a short one.
    return chance.uniform(*usual) * min(1.0, seconds / 3 / usual[1])


class Conductor:
    """One soak.

    Args:
        options: What to do.
        on_tick: Called a few times a second with what was seen so far.
    """

    def __init__(self, options: Options, on_tick: Callable[[Seen, float], None]) -> None:
        self._options = options
        self._on_tick = on_tick
        self.inbox: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()
        self.seen = Seen(options)
        self._incarnations: Counter[str] = Counter()
        self._processes: list[Child] = []
        self._oracle = Oracle({}, {})

    def run(self) -> Seen:
        """Soak, and say what was seen."""
        with tempfile.TemporaryDirectory() as directory:
            self._directory = Path(directory)
            self._make_certificates()
            try:
                self._soak()
            finally:
                for process in self._processes:
                    process.kill()
        return self.seen

    def _soak(self) -> None:
        options, seen = self._options, self.seen
        seed, has_404s = str(options.seed), str(+options.has_404s)
        backend = self._start("backend", "proof.chaos.backend", seed, has_404s)
        self._ports: dict[str, int] = self._next(backend.name, timeout=30)
        judge = f"http://127.0.0.1:{self._ports['judge']}"
        with httpx.Client(base_url=judge, timeout=60) as self._judge:
            self._ask_the_oracle()
            self._entrances = dict(zip(ENTRANCES, _free_ports(len(ENTRANCES)), strict=True))
            self._start_front()
            began = time.monotonic()
            self._until = time.time() + options.seconds
            clients = [
                self._start_client("steady", STEADY, plane=self._ports["plane"]),
                self._start_client("doubtful", DOUBTFUL, plane=None),
            ]
            self._victim = self._start_client("victim", KILLED, plane=self._ports["plane"])
            trouble = [self._trouble_of_front(), self._trouble_of_client()]
            due = [began + next(each) for each in trouble]
            while (now := time.monotonic()) < began + options.seconds:
                for index, each in enumerate(trouble):
                    if now >= due[index]:
                        due[index] = now + next(each)
                self._hear(0.1)
                self._on_tick(seen, now - began)
            self.let_them_end([*clients, self._victim])
            seen.seconds = time.monotonic() - began
            seen.broken += [
                f"a stray request: {what}" for what in self._judge.get("/strays").json()
            ]

    # -- processes ---------------------------------------------------------------------------------

    def _start(self, name: str, module: str, *arguments: str, **env: str) -> Child:
        process = Child(name, module, *arguments, inbox=self.inbox, **env)
        self._processes.append(process)
        return process

    def _start_front(self) -> None:
        given = {
            "seed": self._options.seed,
            "incarnation": self._incarnations["front"],
            "upstream": self._ports["upstream"],
            "has_404s": self._options.has_404s,
            "ports": self._entrances,
            "certificate": str(self._directory / "server.pem"),
            "met": [*self.seen.faults],
        }
        self._incarnations["front"] += 1
        self.front = self._start("front", "proof.chaos.front", json.dumps(given))

    def _start_client(
        self, name: str, lanes: list[tuple[str, int]], *, plane: int | None, **changed: Any
    ) -> Child:
        given = {
            "seed": self._options.seed,
            "incarnation": self._incarnations[name],
            "lanes": lanes,
            "ports": self._entrances,
            "judge": self._ports["judge"],
            "plane": plane,
            "until": self._until,
            "is_guarded": self._options.is_guarded,
            "has_404s": self._options.has_404s,
            "sabotage": self._options.sabotage,
            **changed,
        }
        self._incarnations[name] += 1
        trusted = str(self._directory / "authority.pem")
        return self._start(name, "proof.chaos.client", json.dumps(given), SSL_CERT_FILE=trusted)

    def _make_certificates(self) -> None:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self._directory / "authority.pem")
        certificate = authority.issue_cert("127.0.0.1")
        certificate.private_key_and_cert_chain_pem.write_to_path(self._directory / "server.pem")

    # -- trouble -----------------------------------------------------------------------------------

    def _trouble_of_front(self) -> Iterator[float]:
        """Kill or freeze the front, now and then; yields the seconds until the next time."""
        for trouble in troubles_of_front(self._options.seed, self._options.seconds):
            yield trouble.pause
            self.seen.faults[trouble.fault] += 1
            if trouble.fault is ProcessFault.FRONT_KILLED:
                self.front.kill()
                self._processes.remove(self.front)
                yield trouble.lasts
                self._start_front()
            else:
                self.front.signal(signal.SIGSTOP)
                yield trouble.lasts
                self.front.signal(signal.SIGCONT)

    def _trouble_of_client(self) -> Iterator[float]:
        """Kill a client in the middle of its work, and start another; as `_trouble_of_front`."""
        for pause in kills_of_client(self._options.seed, self._options.seconds):
            yield pause
            self._victim.kill()
            self._processes.remove(self._victim)
            self.seen.faults[ProcessFault.CLIENT_KILLED] += 1
            for job in self._judge.get("/jobs/killed-").json():
                log = self._judge.get(f"/log/{job}").json()
                self._count(log)
                self.seen.ended["cut off by killing its process"] += 1
                self.seen.broken += [f"{job}: {what}" for what in judge_log(log)]
            self._victim = self._start_client("victim", KILLED, plane=self._ports["plane"])

    # -- listening ---------------------------------------------------------------------------------

    def _next(self, name: str, timeout: float) -> dict[str, Any]:
        who, said = self.inbox.get(timeout=timeout)
        assert who == name
        return said

    def _ask_the_oracle(self) -> None:
        """Run everything once without faults and without the guard, at the backend itself."""
        self._entrances = {"plain": self._ports["upstream"]}
        self._until = 0.0
        calm = self._start_client(
            "calm",
            [("calm", steps) for steps in (0, *STEPS)],
            plane=None,
            is_guarded=False,
            sabotage=None,
        )
        while len(self._oracle.tokens) < 1 + len(STEPS):
            said = self._next(calm.name, timeout=120)
            if said["event"] == "run":
                if "error" in said:
                    raise RuntimeError(f"a calm run failed: {said['error']}")
                plan = draw(self._options.seed, said["job"])
                self._oracle.losses[plan.steps] = said["losses"]
                self._oracle.tokens[plan.steps] = said["tokens"]
        self._processes.remove(calm)
        calm.kill()
        while not self.inbox.empty():
            self.inbox.get()

    def _hear(self, seconds: float) -> None:
        """Take in all that is said within some seconds."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            try:
                who, said = self.inbox.get(timeout=left)
            except queue.Empty:
                return
            self._take(who, said)

    def _take(self, who: str, said: dict[str, Any]) -> None:
        seen = self.seen
        match said.pop("event"):
            case "fault":
                seen.faults[said["fault"]] += 1
            case "flow":
                seen.in_flight.append(said["in_flight"])
                seen.requests += said["requests"]
            case "resources":
                seen.looks[who].append(said)
            case "left":
                seen.left[who] = said
                seen.broken += judge_left(who, said)
            case "run":
                self._run_ended(said)

    def _run_ended(self, record: dict[str, Any]) -> None:
        seen, options = self.seen, self._options
        plan = draw(options.seed, record["job"], has_404s=options.has_404s)
        finding = judge_run(plan, record, self._oracle, is_guarded=options.is_guarded)
        seen.ended[finding.ended] += 1
        seen.kinds[plan.kind] += 1
        seen.broken += finding.broken
        seen.slowest_run = max(seen.slowest_run, record["seconds"])
        if "given up" in finding.ended:
            seen.given_up[plan.kind] += 1
            seen.errors[f"{plan.kind}: {record['error']['type']}: {record['error']['text']}"] += 1
        self._count(record["log"])
        if plan.plane_fault is not None and record["log"] is not None:
            seen.faults[plan.plane_fault] += record["log"]["questions"]

    def _count(self, log: dict[str, Any] | None) -> None:
        if log is not None:
            self.seen.refused += log["refused"]
            self.seen.applied += len(log["applied"])
            self.seen.sampled += len(log["sampled"])

    def let_them_end(self, clients: list[Child]) -> None:
        """Have clients run to their end, with nothing broken any more, and hear all they say."""
        # Whatever was down or frozen comes back, and stays.
        if self.front.is_over:
            self._start_front()
        else:
            self.front.signal(signal.SIGCONT)
        deadline = time.monotonic() + _GRACE
        while not all(client.is_over for client in clients) and time.monotonic() < deadline:
            self._hear(0.2)
        for client in clients:
            if not client.is_over:
                self.seen.broken.append(f"{client.name}: its runs never ended")
                continue
            client.hear_out()
            if client.code != 0:
                self.seen.broken.append(f"{client.name}: ended with {client.code}")
        # However long it takes: the last lines say what was left.
        while not self.inbox.empty():
            self._take(*self.inbox.get())


def _free_ports(count: int) -> list[int]:
    """Ports that nobody has, and that outgoing connections do not take while the front is down."""
    ports: list[int] = []
    for port in range(20_000 + os.getpid() % 5_000, 32_000):
        with socket.socket() as candidate:
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                continue
        ports.append(port)
        if len(ports) == count:
            break
    return ports
