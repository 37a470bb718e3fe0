"""Attempts until a deadline with growing waits between them, as strategies for tenacity."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, Final

from tenacity import AsyncRetrying, RetryCallState, retry_always
from tenacity.stop import stop_base
from tenacity.wait import wait_base

from tinker_guard.policy.pacing import backoff, spread
from tinker_guard.transports import runtime

if TYPE_CHECKING:
    from collections.abc import Callable

    from tinker_guard.settings import GuardSettings

JITTER: Final = random.Random()
"""The guard's own: numbers taken from the module `random` would change a training's."""

if hasattr(os, "register_at_fork"):  # pragma: no branch - no other system forks
    os.register_at_fork(after_in_child=JITTER.seed)


_TOLD_EVERY: Final = 10.0
"""Seconds after which a long wait is told of again."""


class _Backoff(wait_base):
    """Waits by `backoff`, or as long as the last attempt's result asks for; until the deadline."""

    def __init__(
        self,
        settings: GuardSettings,
        deadline: float,
        clock: Callable[[], float],
        attempts_before: int,
    ) -> None:
        self._settings = settings
        self._deadline = deadline
        self._clock = clock
        self._steps = attempts_before
        """How many waits there were before; attempts in a row that follow at once are one."""
        self._is_at_once = False

    def __call__(self, retry_state: RetryCallState) -> float:
        assert retry_state.outcome is not None
        asked_to_wait: float | None = retry_state.outcome.result()
        was_at_once, self._is_at_once = self._is_at_once, asked_to_wait is None
        if not (was_at_once and self._is_at_once):
            self._steps += 1
        if asked_to_wait is None:
            return 0.0
        delay = backoff(
            self._steps,
            initial=self._settings.backoff_initial,
            maximum=self._settings.backoff_max,
            jitter=JITTER.random(),
        )
        return max(0.0, min(max(delay, asked_to_wait), self._deadline - self._clock()))


class _StopAt(stop_base):
    """Stops at a time of the event loop's clock."""

    def __init__(self, deadline: float, clock: Callable[[], float]) -> None:
        self._deadline = deadline
        self._clock = clock

    def __call__(self, retry_state: RetryCallState) -> bool:
        return self._clock() >= self._deadline


def attempts(
    settings: GuardSettings,
    deadline: float,
    *,
    attempts_before: int = 0,
    on_wait: Callable[[], None] = lambda: None,
) -> AsyncRetrying:
    """Attempts until a deadline, with growing waits between them.

    The body of an `async for` over it ends each attempt that did not succeed with
    `attempt.retry_state.set_result(seconds)`, where `seconds` is the least time to wait, or None
    if the next attempt follows at once. A wait is cut to what is left, so that the last attempt
    begins at the deadline.

    Args:
        settings: The backoff.
        deadline: A time of the running event loop's clock.
        attempts_before: How many attempts went before the first one; with 0, the second attempt
            follows the first one at once.
        on_wait: Called before each wait, and every ten seconds of a long one.
    """
    clock = runtime.clock()

    async def sleep(seconds: float) -> None:
        ends_at = clock() + seconds
        on_wait()
        while (left := ends_at - clock()) > _TOLD_EVERY:
            await runtime.sleep(_TOLD_EVERY)
            on_wait()
        await runtime.sleep(left)

    return AsyncRetrying(
        wait=_Backoff(settings, deadline, clock, attempts_before),
        stop=_StopAt(deadline, clock),
        retry=retry_always,
        retry_error_callback=lambda _: None,
        sleep=sleep,
    )


async def stay_back(settings: GuardSettings, waited: float) -> None:
    """Sleep for a moment before a request follows the one that found its route.

    Args:
        settings: The backoff.
        waited: Seconds since the request met its 404.
    """
    seconds = spread(waited, initial=settings.backoff_initial, jitter=JITTER.random())
    await runtime.sleep(seconds)
