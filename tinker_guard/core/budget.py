"""Until when a request may be held back after its first 404."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tinker_guard.core.guarded_request import GuardedRequest


class Budget(NamedTuple):
    """Times of the event loop's clock, and what set them."""

    ends_at: float
    """When the last resend begins, at the latest."""
    proof_ends_at: float
    """Until when to look for a proof that it is a race, where nobody says so."""
    setting: str
    """The setting that allows it, for the log."""
    seconds: float
    """What that setting says."""


def budget_after_404(guarded: GuardedRequest, met_at: float) -> Budget:
    """The budget of a request.

    Args:
        guarded: The request.
        met_at: When its first 404 came.
    """
    settings, state = guarded.settings, guarded.state
    retry_ends_at = met_at + settings.retry_timeout
    if not (guarded.has_control_plane or state.has_shown_trainer):
        # There may be no such route. What is waited for is the first sign of its trainer.
        proof_ends_at = met_at + settings.unreached_timeout
        ends_at = max(retry_ends_at, proof_ends_at)
        return Budget(ends_at, proof_ends_at, "unreached_timeout", settings.unreached_timeout)
    is_cold = guarded.came_cold and guarded.is_cold and settings.warmup_successes > 0
    if is_cold and guarded.has_control_plane:
        # The whole budget of a cold route, whatever its 404 looks like.
        warmup_ends_at = guarded.arrived_at + settings.warmup_timeout
        if warmup_ends_at > retry_ends_at:
            return Budget(warmup_ends_at, warmup_ends_at, "warmup_timeout", settings.warmup_timeout)
    return Budget(retry_ends_at, retry_ends_at, "retry_timeout", settings.retry_timeout)
