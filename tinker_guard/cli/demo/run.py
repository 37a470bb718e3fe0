"""One run of the demo: a fresh gateway, five training steps, and their result."""

from __future__ import annotations

import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import tinker

from tinker_guard.gateway import Fault, LocalGateway
from tinker_guard.gateway.train import STEPS, train_five_steps
from tinker_guard.hooks import install_guard, uninstall_guard
from tinker_guard.settings import GuardSettings

if TYPE_CHECKING:
    from collections.abc import Callable

RUN_TIMEOUT: Final = 60.0
"""Seconds after which a run counts as stuck; the slowest fault takes about five."""
WORK: Final = 2 * STEPS
"""Pieces of work in a whole run: a forward_backward and an optim_step for each step."""
_CLOSE_TIMEOUT: Final = 5.0
_TICK: Final = 0.1


@dataclass(frozen=True)
class Run:
    """The result of one run.

    Args:
        losses: The loss of each step; None unless all steps finished.
        error_type: Name of the exception that ended the run, or None.
        error: Its text.
        seconds: Time from the client's construction to the last result or the error.
        is_stuck: Whether the run had not ended at its time-out.
        applied: The seq_ids that the trainer applied, in its order.
        unexpected: Requests that the trainer did not understand.
        questions: Number of questions to the control plane.
        resends: Number of resends by the guard.
        verdicts: Number of requests by verdict of the guard, warmups included.
    """

    losses: tuple[float, ...] | None = None
    error_type: str | None = None
    error: str = ""
    seconds: float = 0.0
    is_stuck: bool = False
    applied: tuple[int, ...] = ()
    unexpected: tuple[str, ...] = ()
    questions: int = 0
    resends: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)


class _Training:
    """The training loop on a thread of its own.

    A daemon thread, because a request that waits for ever cannot be interrupted from outside. After
    a timeout, the thread is abandoned.
    """

    def __init__(self, gateway: LocalGateway) -> None:
        self.losses: tuple[float, ...] | None = None
        self.error: Exception | None = None
        self.seconds = 0.0
        self.is_over = threading.Event()
        self._gateway = gateway
        threading.Thread(target=self._run, name="tinker-guard-demo", daemon=True).start()

    def _run(self) -> None:
        started_at = time.monotonic()
        client: Any = None
        try:
            client = tinker.ServiceClient(
                base_url=self._gateway.base_url, api_key=self._gateway.api_key
            )
            self.losses = tuple(train_five_steps(client))
        except Exception as error:
            self.error = error
        self.seconds = time.monotonic() - started_at
        if client is not None:
            # Closing sends requests too, and may meet the fault; the run has ended by then.
            with suppress(Exception):
                status = "errored" if self.error is not None else "success"
                client.close(status).result(timeout=_CLOSE_TIMEOUT)
        self.is_over.set()


def carry_out(
    fault: Fault,
    *,
    is_guarded: bool,
    on_tick: Callable[[LocalGateway], None] = lambda _: None,
    timeout: float = RUN_TIMEOUT,
) -> Run:
    """Train five steps through a fresh gateway.

    Args:
        fault: What is wrong with the gateway.
        is_guarded: Whether the guard is installed meanwhile.
        on_tick: Called about ten times a second during the run.
        timeout: Seconds after which the run is abandoned.

    Raises:
        InvalidSettingsError: A `TINKER_GUARD_*` variable has an invalid value.
    """
    if is_guarded:
        # The environment may change settings of the guard. It must not disable the guard or its
        # spans, nor send the demo's lookups to a real control plane.
        install_guard(
            GuardSettings(
                enabled=True,
                control_plane_url=None,
                control_plane_api_key=None,
                trace="work",
                export=None,
            )
        )
    try:
        with LocalGateway(fault) as gateway:
            training = _Training(gateway)
            deadline = time.monotonic() + timeout
            while not training.is_over.wait(_TICK) and time.monotonic() < deadline:
                on_tick(gateway)
            is_stuck = not training.is_over.is_set()
    finally:
        uninstall_guard()
    return Run(
        losses=None if is_stuck else training.losses,
        error_type=None if training.error is None else type(training.error).__name__,
        error="" if training.error is None else str(training.error),
        seconds=timeout if is_stuck else training.seconds,
        is_stuck=is_stuck,
        applied=tuple(done.seq_id for done in gateway.applied),
        unexpected=tuple(gateway.unexpected),
        questions=gateway.questions,
    )
