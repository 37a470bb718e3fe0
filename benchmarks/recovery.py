"""Races, lost replies and late routes: the real SDK over real sockets, with each contestant.

    python -m benchmarks.recovery [--markdown] [--json PATH]

A run is right if its loss curve equals the fault-free one to the last digit and the trainer
applied every `seq_id` once. The guard's runs are repeated and go two at a time (they mostly
sleep); those of the others, most of which die or hang, go eight at a time.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from statistics import median
from typing import TYPE_CHECKING, Final

import httpx

from benchmarks.report import Row, console, markdown, ratio_of, run_benchmarks, spread, table
from benchmarks.runs import (
    CONTESTANTS,
    Run,
    connect,
    in_process,
    side_by_side,
    train,
    verdict_on,
)
from testkit.relay import SlowLine
from tinker_guard import GuardSettings, GuardTransport
from tinker_guard.gateway import FAULTS, Fault, LocalGateway, Race

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

SECONDS: Final = (0.2, 1.0, 3.0, 10.0)
"""How long the races last."""
RACED: Final = {
    "dispatch": Race("forward_backward", occurrence=2),
    # Polls before it: one for create_model, two for the first step.
    "poll": Race("retrieve_future", occurrence=4),
}
FLAPPING: Final = Fault(
    "flapping",
    "five races of 0.3 s",
    races=(
        Race("forward_backward", 2, 0.3),
        Race("retrieve_future", 5, 0.3),
        Race("optim_step", 3, 0.3),
        Race("forward_backward", 5, 0.3),
        Race("retrieve_future", 12, 0.3),
    ),
)
ALWAYS_DELETED: Final = Fault("deleted-before", job_states=((0.0, "JOB_STATE_DELETED"),))
HALF_STALE: Final = {
    "sticky": FAULTS["half-stale"],
    "in turn": replace(
        FAULTS["half-stale"],
        name="half-stale, in turn",
        description="the same, replicas taken in turn for each request, the stale ones in a row",
        affinity="none",
        route_known_after=(20.0, 20.0, 0.0, 0.0),
    ),
    "by chance": replace(
        FAULTS["half-stale"],
        name="half-stale, by chance",
        description="the same, replicas taken by chance for each request",
        affinity="none",
        assignment="random",
    ),
    "cookie": replace(
        FAULTS["half-stale"],
        name="half-stale, cookie",
        description="the same, clients pinned by a cookie",
        affinity="cookie",
        route_known_after=(20.0, 20.0, 0.0, 0.0),
    ),
}
"""Two of four replicas stale for 20 s, by what the balancer picks a replica for, and how."""
FOUR_FAULTS: Final = ("dispatch", "poll", "reply-lost", "late-route")
TABLE_OF_FAULTS: Final = (
    *FOUR_FAULTS,
    "create-model",
    "get-info",
    "optim-step",
    "client-config",
    "plain-text",
    "stale-replica",
)
"""Faults that a run should survive; the table that `--markdown` writes."""
ROUND_TRIP: Final = 0.1


def race_of(where: str, seconds: float) -> Fault:
    """The route is lost on all replicas when the second step is at `where`."""
    race = replace(RACED[where], seconds=seconds)
    return Fault(f"{where} {seconds:g} s", races=(race,))


def train_on_one_of_four(contestant: str, seconds: float) -> Run:
    """A race on one of four replicas: on the first of them whose race the run meets.

    Which replica a connection gets depends on how many the contestant opened before.
    """
    run = None
    for replica in range(4):
        race = replace(RACED["dispatch"], seconds=seconds, replicas=(replica,))
        run = train(contestant, Fault(f"1 of 4 {seconds:g} s", replicas=4, races=(race,)))
        if run.not_founds:
            break
    assert run is not None
    return run


def allowed(seconds: float) -> float:
    """Within how many seconds a run has to be back after a race of so many seconds."""
    return seconds + max(0.5, seconds / 4)


@dataclass
class Measured:
    """Everything that this benchmark measures."""

    fault_free: tuple[float, ...] = ()
    runs: list[Run] = field(default_factory=list)
    connects: dict[str, list[float]] = field(default_factory=dict)
    slow_connects: dict[str, list[float]] = field(default_factory=dict)
    own_404: dict[str, list[float]] = field(default_factory=dict)
    b_own_404: float | None = None

    def of(self, contestant: str, fault: str) -> list[Run]:
        """The runs of one contestant with one fault."""
        return [run for run in self.runs if (run.contestant, run.fault) == (contestant, fault)]

    def healthy_seconds(self, contestant: str) -> float:
        """The median time of fault-free runs."""
        return median(run.seconds for run in self.of(contestant, "none"))

    def lost(self, contestant: str, fault: str) -> float | None:
        """Median seconds that runs took longer than fault-free ones; None if they did not end."""
        runs = [run for run in self.of(contestant, fault) if run.losses is not None]
        if not runs:
            return None
        return median(run.seconds for run in runs) - self.healthy_seconds(contestant)

    def verdict(self, contestant: str, fault: str) -> str:
        """How the runs ended, the worst first if not all alike."""
        verdicts = {verdict_on(run, self.fault_free) for run in self.of(contestant, fault)}
        return ", ".join(sorted(verdicts - {"right"})) or "right"


def measure(*, rounds: int = 3, seconds: Sequence[float] = SECONDS, connects: int = 11) -> Measured:
    """Run everything; about five minutes with the defaults.

    Args:
        rounds: How often each of the guard's runs is repeated.
        seconds: Lengths of the races.
        connects: How many starts of each contestant are timed.
    """
    measured = Measured()
    started_at = time.monotonic()

    def say(what: str) -> None:
        console.print(f"[dim]{time.monotonic() - started_at:5.0f} s  {what}[/dim]")

    say("healthy runs")
    for _ in range(rounds):
        measured.runs += [train(contestant, FAULTS["none"]) for contestant in CONTESTANTS]
    for contestant in CONTESTANTS:
        assert len({run.losses for run in measured.of(contestant, "none")}) == 1
    measured.fault_free = measured.of("none", "none")[0].losses or ()

    say("healthy starts")
    measured.connects, measured.slow_connects = _measure_connects(connects)

    say("the trainer's own 404")
    measured.own_404 = asyncio.run(_measure_own_404(rounds=200))

    say("the guard, two runs at a time")
    work = _work("guard", seconds) * rounds
    measured.runs += side_by_side(work, at_once=2)

    say("none, A and B, eight runs at a time")
    others = [work for contestant in ("none", "A", "B") for work in _work(contestant, seconds)]
    b_own_404: list[float | None] = []

    def ask_b() -> Run | None:
        b_own_404.append(in_process(_b_on_own_404, 60.0))
        return None

    results = side_by_side([ask_b, *others], at_once=8)
    measured.runs += [run for run in results if run is not None]
    measured.b_own_404 = b_own_404[0]
    say("done")
    return measured


def _work(contestant: str, seconds: Iterable[float]) -> list[Callable[[], Run]]:
    faults = [race_of(where, length) for where in RACED for length in seconds]
    faults += [FAULTS[name] for name in (*TABLE_OF_FAULTS, "deleted")]
    faults += [*HALF_STALE.values(), FLAPPING, ALWAYS_DELETED]
    work: list[Callable[[], Run]] = [partial(train, contestant, fault) for fault in faults]
    work += [partial(train_on_one_of_four, contestant, length) for length in seconds]
    return work


def _measure_connects(rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    near: dict[str, list[float]] = defaultdict(list)
    far: dict[str, list[float]] = defaultdict(list)
    with LocalGateway() as gateway:
        port = int(gateway.origin.rpartition(":")[2])
        with SlowLine(port, ROUND_TRIP) as line:
            far_url = gateway.base_url.replace(f":{port}/", f":{line.port}/")
            for number in range(rounds):
                # B sleeps for three seconds each time; a few times are enough.
                contestants = CONTESTANTS if number < 3 else ("none", "guard")
                for contestant in contestants:
                    near[contestant].append(connect(contestant, gateway.base_url))
                for contestant in contestants if number < 7 else ():
                    far[contestant].append(connect(contestant, far_url))
    return dict(near), dict(far)


async def _measure_own_404(rounds: int) -> dict[str, list[float]]:
    """Milliseconds until a trainer's own 404 is handed back, bare and guarded."""
    taken: dict[str, list[float]] = {"none": [], "guard": []}
    with LocalGateway(FAULTS["fresh-404"]) as gateway:
        url = f"{gateway.base_url}/api/v1/client/dynamic_config"
        transports: dict[str, httpx.AsyncBaseTransport] = {
            "none": httpx.AsyncHTTPTransport(),
            "guard": GuardTransport(httpx.AsyncHTTPTransport(), settings=GuardSettings()),
        }
        for transport in transports.values():
            await _send(transport, url)
        for _ in range(rounds):
            for name, transport in transports.items():
                started_at = time.perf_counter()
                status = await _send(transport, url)
                taken[name].append((time.perf_counter() - started_at) * 1000)
                assert status == 404
        for transport in transports.values():
            await transport.aclose()
        assert gateway.questions == 0
    return taken


async def _send(transport: httpx.AsyncBaseTransport, url: str) -> int:
    response = await transport.handle_async_request(httpx.Request("POST", url, content=b"{}"))
    await response.aread()
    await response.aclose()
    return response.status_code


def _b_on_own_404() -> float | None:
    """Seconds until B raises a 404 of the trainer's own; None if it does not."""
    import tinker

    from benchmarks.runs import open_service

    with LocalGateway(Fault(trainer_lacks=("save_weights",))) as gateway:
        service_client = open_service("B", gateway.base_url)
        client = service_client.create_lora_training_client(base_model="tinker-guard/bigram")
        started_at = time.monotonic()
        try:
            client.save_state("checkpoint").result()
        except tinker.NotFoundError:
            return time.monotonic() - started_at
    return None


def rows(measured: Measured) -> list[Row]:
    """The lines of the table of goals that this benchmark fills."""
    return [
        _four_faults(measured),
        *_connect_rows(measured),
        _stale_replica(measured),
        _half_stale(measured),
        _back_after_races(measured),
        _own_404(measured),
        _deleted(measured),
    ]


def _four_faults(measured: Measured) -> Row:
    def right(contestant: str) -> int:
        return sum(measured.verdict(contestant, fault) == "right" for fault in FOUR_FAULTS)

    return Row(
        f"the four faults, tinker {version('tinker')}",
        "4 of 4, loss curve identical, every seq_id once",
        f"A {right('A')} of 4, B {right('B')} of 4",
        f"{right('guard')} of 4",
        None,
        right("guard") == 4,
    )


def _connect_rows(measured: Measured) -> list[Row]:
    plain = median(measured.connects["none"])
    near = median(measured.connects["guard"]) - plain
    peer = median(measured.connects["B"]) - plain
    far_plain = median(measured.slow_connects["none"])
    far = median(measured.slow_connects["guard"]) - far_plain
    far_peer = median(measured.slow_connects["B"]) - far_plain
    goal = 2 * ROUND_TRIP + 0.1
    return [
        Row(
            "healthy connect, warmup included, loopback",
            "<= +0.15 s",
            f"B +{peer:.2f} s",
            f"{near:+.3f} s",
            ratio_of(near, peer),
            near <= 0.15,
        ),
        Row(
            f"healthy connect, a round trip of {ROUND_TRIP * 1000:.0f} ms",
            f"<= 2 round trips + 0.1 s = +{goal:.2f} s",
            f"B +{far_peer:.2f} s",
            f"{far:+.3f} s",
            ratio_of(far, far_peer),
            far <= goal,
        ),
    ]


def _stale_replica(measured: Measured) -> Row:
    runs = measured.of("guard", "stale-replica")
    seconds = median(run.seconds for run in runs)
    is_right = measured.verdict("guard", "stale-replica") == "right"
    verdicts = (f"{name} {measured.verdict(name, 'stale-replica')}" for name in ("A", "B"))
    return Row(
        "one of four replicas stale for 20 s, connections sticky",
        "five steps in <= 3 s",
        ", ".join(verdicts),
        f"{seconds:.2f} s" if is_right else measured.verdict("guard", "stale-replica"),
        None,
        is_right and seconds <= 3,
    )


def _half_stale(measured: Measured) -> Row:
    def ends(contestant: str) -> dict[str, str]:
        return {
            balancer: measured.verdict(contestant, fault.name)
            for balancer, fault in HALF_STALE.items()
        }

    seconds = {
        balancer: median(run.seconds for run in measured.of("guard", fault.name))
        for balancer, fault in HALF_STALE.items()
    }
    ours = ends("guard")
    return Row(
        "two of four replicas stale for 20 s, five steps",
        "<= 3 s",
        "; ".join(f"{name} {_in_words(ends(name))}" for name in ("A", "B")),
        ", ".join(
            f"{balancer} {f'{seconds[balancer]:.2f} s' if end == 'right' else end}"
            for balancer, end in ours.items()
        ),
        None,
        set(ours.values()) == {"right"} and max(seconds.values()) <= 3,
    )


def _in_words(ends: dict[str, str]) -> str:
    """How runs ended with each balancer; once if all alike."""
    if len(set(ends.values())) == 1:
        return next(iter(ends.values()))
    return ", ".join(f"{balancer} {end}" for balancer, end in ends.items())


def _back_after_races(measured: Measured) -> Row:
    ours, peers, ratios = [], [], []
    is_ok = True
    lengths = sorted(
        {float(run.fault.split()[1]) for run in measured.runs if run.fault.startswith("dispatch ")}
    )
    for length in lengths:
        losses = [measured.lost("guard", f"{where} {length:g} s") for where in RACED]
        ended = [loss for loss in losses if loss is not None]
        is_right = all(
            measured.verdict("guard", f"{where} {length:g} s") == "right" for where in RACED
        )
        is_ok = is_ok and is_right and max(ended) <= allowed(length)
        ours.append(f"{length:g} s: {max(ended):.2f}" if ended else f"{length:g} s: never")
        regained = measured.of("B", f"dispatch {length:g} s")[0].regained_after
        peers.append(f"{length:g} s: {'never' if regained is None else format(regained, '.2f')}")
        if regained is not None and ended:
            ratios.append(max(ended) / regained)
    return Row(
        "race of W seconds on every replica: back after, worse of dispatch and poll",
        "W + max(0.5 s, W/4)",
        "B's call is answered after (then hangs) " + ", ".join(peers),
        ", ".join(ours),
        max(ratios, default=None),
        is_ok,
    )


def _own_404(measured: Measured) -> Row:
    plain, guarded = (median(measured.own_404[name]) for name in ("none", "guard"))
    peer = measured.b_own_404
    return Row(
        "trainer's own 404",
        "< 5 ms",
        "B not measured" if peer is None else f"B {peer:.1f} s",
        f"{guarded:.2f} ms, unguarded {plain:.2f} ms",
        None if peer is None else ratio_of(guarded / 1000, peer),
        guarded < 5,
    )


def _deleted(measured: Measured) -> Row:
    during, before = (
        [run for run in measured.of("guard", name) if run.surfaced_after is not None]
        for name in ("deleted", "deleted-before")
    )
    (peer,) = measured.of("B", "deleted")
    if not (during and before) or peer.surfaced_after is None:
        raise RuntimeError("a deleted job did not end a run")
    seconds = [median(run.surfaced_after or 0.0 for run in runs) for runs in (during, before)]
    # Each request that met it, or whose probe did, asks by itself: only what is heard after a 404
    # may judge it. After the step, these are the SDK's own telemetry and the end of its session.
    questions = max(
        run.questions / (run.not_founds + run.probes_not_found) for run in (*during, *before)
    )
    return Row(
        "deleted job, mid-run / during warmup: from the first 404 to the SDK's error",
        "1 question a 404, < 0.5 s",
        f"B {peer.questions} question, {peer.surfaced_after:.2f} s",
        f"{questions:.3g} question, {seconds[0]:.2f} s / {seconds[1]:.2f} s",
        ratio_of(seconds[0], peer.surfaced_after),
        questions <= 1 and max(seconds) < 0.5,
    )


def show(measured: Measured) -> None:
    """Print every figure."""
    faults = list(dict.fromkeys(run.fault for run in measured.runs))
    lines = []
    for fault in faults:
        for contestant in CONTESTANTS:
            runs = measured.of(contestant, fault)
            if not runs:
                continue
            lost = measured.lost(contestant, fault)
            race = fault.removesuffix(" s").split()[-1]
            is_race = fault.startswith(("dispatch ", "poll "))
            lines.append(
                (
                    fault if contestant == "none" else "",
                    f"{contestant} x{len(runs)}",
                    measured.verdict(contestant, fault),
                    "" if lost is None else f"{lost:+.2f}",
                    "" if lost is None or not is_race else f"{lost - float(race):+.2f}",
                    f"{median(run.requests for run in runs):.0f}",
                    f"{median(run.probes for run in runs):.0f}",
                    f"{median(run.bytes_resent for run in runs):,.0f}",
                    f"{median(run.questions for run in runs):.0f}",
                )
            )
    table(
        "Recovery (medians; seconds against the contestant's own fault-free run)",
        (
            "fault",
            "who",
            "ended",
            "s lost",
            "beyond race",
            "requests",
            "probes",
            "bytes resent",
            "questions",
        ),
        lines,
    )
    table(
        "Healthy start: seconds until the training client can be used",
        ("who", "loopback", f"round trip {ROUND_TRIP * 1000:.0f} ms"),
        (
            (
                name,
                spread(measured.connects[name]),
                spread(measured.slow_connects[name]),
            )
            for name in CONTESTANTS
        ),
    )
    table(
        "The trainer's own 404: milliseconds over loopback",
        ("who", "ms"),
        ((name, spread(taken)) for name, taken in measured.own_404.items()),
    )


def as_markdown(measured: Measured) -> str:
    """The table of faults x contestants, with the healthy start as its last line."""

    def cell(contestant: str, fault: str) -> str:
        verdict = measured.verdict(contestant, fault)
        lost = measured.lost(contestant, fault)
        is_bold = verdict != "right"
        text = f"**{verdict}**" if is_bold else verdict
        return text if lost is None else f"{text}, {lost:+.2f} s"

    faults = [*(FAULTS[name] for name in TABLE_OF_FAULTS), *HALF_STALE.values()]
    lines = [
        (fault.description, *(cell(contestant, fault.name) for contestant in CONTESTANTS))
        for fault in faults
    ]
    starts = (f"{median(measured.connects[name]):.2f} s to connect" for name in CONTESTANTS)
    return markdown(("fault", "no guard", "A", "B", "guard"), [*lines, ("healthy start", *starts)])


if __name__ == "__main__":
    run_benchmarks(__doc__, sys.modules[__name__])
