"""Runs of the real SDK against a local gateway, each in a process of its own.

A process of its own, because the SDK keeps its event loop, the guard its routes, and a run that
hangs its threads for as long as the process lives.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from benchmarks.baselines import AlgorithmA, AlgorithmB, WrappedServiceClient
from tinker_guard.gateway import LocalGateway
from tinker_guard.gateway.train import STEPS, train_five_steps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from multiprocessing.connection import Connection

    from benchmarks.baselines import Policy
    from tinker_guard.gateway import Exchange, Fault

CONTESTANTS: Final = ("none", "A", "B", "guard")
PROBE: Final = "/api/v1/get_server_capabilities"
ONCE_EACH: Final = tuple(range(1, 2 * STEPS + 1))
TIMEOUT: Final = 25.0
"""Seconds after which a run counts as hung; the longest race, of 10 s, is well over by then."""
_GRACE: Final = 15.0
"""Seconds beyond its timeout that a process gets to start and to report."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Run:
    """What came of one run; times in seconds.

    Args:
        contestant: One of `CONTESTANTS`.
        fault: Name of the fault.
        losses: The loss of each step; None unless all of them were finished.
        error: Name of the exception that ended the run.
        is_hung: Whether the run was still under way when its time was over.
        seconds: From the SDK client's construction to the last result, the error or the timeout.
        applied: The seq_ids that the trainer applied, in its order.
        operations: How often the trainer did which operation.
        requests: Requests that came over the trainer route, probes included.
        probes: Those of them that have the probe's path.
        not_founds: Requests but for probes that met the gateway's 404.
        probes_not_found: Probes that met it.
        bytes_resent: Bytes in the bodies of requests that were sent in the place of those.
        questions: How often the control plane was asked.
        regained_after: From the gateway's first 404 until an operation that met one was
            answered by the trainer for the first time since.
        surfaced_after: From the arrival of the first request or probe that met the gateway's 404
            to the error.
    """

    contestant: str
    fault: str
    losses: tuple[float, ...] | None = None
    error: str | None = None
    is_hung: bool = False
    seconds: float = 0.0
    applied: tuple[int, ...] = ()
    operations: dict[str, int] = field(default_factory=dict)
    requests: int = 0
    probes: int = 0
    not_founds: int = 0
    probes_not_found: int = 0
    bytes_resent: int = 0
    questions: int = 0
    regained_after: float | None = None
    surfaced_after: float | None = None


def verdict_on(run: Run, fault_free: Sequence[float]) -> str:
    """Say how a run ended: `right`, or what was wrong with it.

    Args:
        run: The run.
        fault_free: The loss curve that it should have.
    """
    if run.operations.get("forward_backward", 0) > STEPS:
        end = "" if not run.is_hung else ", then hung"
        return f"gradient applied twice{end}"
    if run.is_hung:
        return "hung"
    if run.error is not None:
        return f"died ({run.error})"
    if run.losses != tuple(fault_free) or run.applied != ONCE_EACH:
        return "wrong"
    return "right"


def bytes_resent(exchanges: Iterable[Exchange]) -> int:
    """Bytes in the bodies of requests that took the place of one that met the gateway's 404.

    For a wrapper that is a new request of the same operation, for a transport the same request
    again; either way the operation's next arrival.
    """
    owed: Counter[str] = Counter()
    resent = 0
    for exchange in exchanges:
        if exchange.path == PROBE or exchange.answered_by == "control_plane":
            continue
        if owed[exchange.path] > 0:
            owed[exchange.path] -= 1
            resent += exchange.body_size
        if _is_gateway_404(exchange):
            owed[exchange.path] += 1
    return resent


def regained_after(exchanges: Iterable[Exchange]) -> float | None:
    """Seconds from the first 404 of the gateway until such an operation was answered again."""
    first: float | None = None
    lost: set[str] = set()
    for exchange in exchanges:
        if exchange.path == PROBE or exchange.answered_by == "control_plane":
            continue
        if _is_gateway_404(exchange):
            first = exchange.at if first is None else first
            lost.add(exchange.path)
        elif exchange.path in lost and first is not None:
            return exchange.at - first
    return None


def _is_gateway_404(exchange: Exchange) -> bool:
    return exchange.answered_by == "gateway" and exchange.status == 404


def train(contestant: str, fault: Fault, *, timeout: float = TIMEOUT) -> Run:
    """Train five steps in a process of its own.

    Args:
        contestant: One of `CONTESTANTS`.
        fault: What is wrong with the gateway.
        timeout: Seconds after which the run counts as hung.

    Raises:
        RuntimeError: The process itself failed, so that nothing was measured.
    """
    run = in_process(partial(_train, contestant, fault, timeout), timeout)
    if run is None:
        raise RuntimeError(f"the run of {contestant} with {fault.name} did not report")
    return run


def in_process(work: Callable[[], _T], timeout: float) -> _T | None:
    """Do a piece of work in a fresh process, which is ended whatever it does.

    Args:
        work: Picklable, as is what it returns.
        timeout: Seconds that it may take, its own start and end not included.

    Returns:
        What the work returned; None if it failed or did not end in time.
    """
    # One server process imports the SDK once and forks itself for each piece of work; it has no
    # other threads, so that forking is safe.
    spawning = multiprocessing.get_context("forkserver")
    spawning.set_forkserver_preload(["benchmarks._preload"])
    receiver, sender = spawning.Pipe(duplex=False)
    process = spawning.Process(target=_report, args=(work, sender), daemon=True)
    process.start()
    sender.close()
    try:
        if receiver.poll(timeout + _GRACE):
            with suppress(EOFError):
                result: _T = receiver.recv()
                return result
        return None
    finally:
        process.kill()
        process.join()
        process.close()
        receiver.close()


def side_by_side(work: Sequence[Callable[[], _T]], *, at_once: int) -> list[_T]:
    """Do several pieces of work at the same time, each on a thread; results in their order."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda call: call(), work))


def _report(work: Callable[[], _T], sender: Connection) -> None:
    # The benchmark's own environment must not reach the contestants.
    for name in [name for name in os.environ if name.upper().startswith("TINKER_")]:
        del os.environ[name]
    os.environ["NO_PROXY"] = "127.0.0.1"
    # The SDK logs a traceback for each piece of its telemetry that meets the fault.
    logging.disable(logging.CRITICAL)
    sender.send(work())
    sender.close()
    # A hung run leaves threads behind that nothing else can end.
    os._exit(0)


def _train(contestant: str, fault: Fault, timeout: float) -> Run:
    began: list[float] = []

    def clock() -> float:
        now = time.monotonic()
        began.append(now) if not began else None
        return now

    with LocalGateway(fault, clock=clock) as gateway:
        training = _Training(contestant, gateway)
        is_hung = not training.is_over.wait(timeout)
        exchanges = [e for e in gateway.requests if e.answered_by != "control_plane"]
        questions = gateway.questions if is_hung else training.questions
        first_404 = min((e.at for e in exchanges if _is_gateway_404(e)), default=None)
        surfaced_after = None
        if training.error is not None and first_404 is not None:
            surfaced_after = training.ended_at - (began[0] + first_404)
        return Run(
            contestant=contestant,
            fault=fault.name,
            losses=None if is_hung else training.losses,
            error=None if training.error is None else type(training.error).__name__,
            is_hung=is_hung,
            seconds=timeout if is_hung else training.ended_at - training.started_at,
            applied=tuple(done.seq_id for done in gateway.applied),
            operations=dict(Counter(done.operation for done in gateway.applied)),
            requests=len(exchanges),
            probes=sum(e.path == PROBE for e in exchanges),
            not_founds=sum(e.path != PROBE and _is_gateway_404(e) for e in exchanges),
            probes_not_found=sum(e.path == PROBE and _is_gateway_404(e) for e in exchanges),
            bytes_resent=bytes_resent(exchanges),
            questions=questions,
            regained_after=regained_after(exchanges),
            surfaced_after=surfaced_after,
        )


class _Training:
    """The training loop on a daemon thread, because a hung one cannot be interrupted."""

    def __init__(self, contestant: str, gateway: LocalGateway) -> None:
        self.losses: tuple[float, ...] | None = None
        self.error: Exception | None = None
        self.started_at = self.ended_at = 0.0
        self.questions = 0
        self.is_over = threading.Event()
        self._contestant = contestant
        self._gateway = gateway
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        self.started_at = time.monotonic()
        try:
            service_client = open_service(self._contestant, self._gateway.base_url)
            self.losses = tuple(train_five_steps(service_client))
        except Exception as error:
            self.error = error
        self.ended_at = time.monotonic()
        # Now, because the SDK's background requests go on meeting the fault.
        self.questions = self._gateway.questions
        self.is_over.set()


def open_service(contestant: str, base_url: str) -> Any:
    """A service client as one of the contestants would have it.

    Args:
        contestant: One of `CONTESTANTS`.
        base_url: The trainer route of a local gateway.
    """
    import tinker

    if contestant == "guard":
        from tinker_guard import install_guard

        install_guard()
    key = LocalGateway.api_key
    service_client = tinker.ServiceClient(base_url=base_url, api_key=key)
    policy = policy_of(contestant, base_url, tinker.NotFoundError)
    if policy is None:
        return service_client
    return WrappedServiceClient(service_client, policy, tinker.NotFoundError)


def policy_of(contestant: str, base_url: str, not_found: type[Exception]) -> Policy | None:
    """The baseline with this name; None for those that wrap nothing."""
    if contestant == "A":
        return AlgorithmA()
    if contestant == "B":
        return AlgorithmB(job_url_of(base_url), LocalGateway.api_key, not_found)
    return None


def job_url_of(base_url: str) -> str:
    """The control plane's page of the job that a trainer route leads to."""
    origin, _, path = base_url.partition("/training/v1/rlorTrainerJobs/")
    account, job = path.split("/")
    return f"{origin}/v1/accounts/{account}/rlorTrainerJobs/{job}"


def connect(contestant: str, base_url: str) -> float:
    """Connect in a process of its own; seconds until the training client could be used.

    The installation of the guard is part of it.

    Raises:
        RuntimeError: It failed.
    """
    seconds = in_process(partial(_connect, contestant, base_url), 60.0)
    if seconds is None:
        raise RuntimeError(f"{contestant} could not connect")
    return seconds


def _connect(contestant: str, base_url: str) -> float:
    import tinker  # noqa: F401  # its import belongs to nobody's start

    started_at = time.perf_counter()
    service_client = open_service(contestant, base_url)
    created = service_client.create_lora_training_client(base_model="tinker-guard/bigram", rank=8)
    if hasattr(created, "result"):
        created.result()
    return time.perf_counter() - started_at
