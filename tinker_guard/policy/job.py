"""The states of a trainer job, and what each means for a request that waits for the job's route."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class JobPhase(StrEnum):
    """What a control plane's job state means for a request that waits for its route."""

    RUNNING = "running"
    STARTING = "starting"
    """On the way to running, or a state this version does not know."""
    STOPPED = "stopped"
    """Ended, ending or paused: the route will not come up by waiting."""


_PREFIX: Final = "JOB_STATE_"
_RESUMABLE: Final = ("CANCELLED", "CANCELLING", "COMPLETED", "DELETING", "EARLY_STOPPED", "PAUSED")
_FINAL: Final = (
    *("ARCHIVED", "DELETED", "DELETING_CLEANING_UP", "EXPIRED", "FAILED", "FAILED_CLEANING_UP"),
)
_ON_THE_WAY: Final = (
    *("CREATING", "CREATING_INPUT_DATASET", "IDLE", "PENDING", "RE_QUEUEING", "UNSPECIFIED"),
    *("VALIDATING", "WRITING_RESULTS"),
)

PHASES: Final[dict[str, JobPhase]] = {
    f"{_PREFIX}RUNNING": JobPhase.RUNNING,
    **{f"{_PREFIX}{name}": JobPhase.STARTING for name in _ON_THE_WAY},
    **{f"{_PREFIX}{name}": JobPhase.STOPPED for name in (*_RESUMABLE, *_FINAL)},
}
"""Every state that fireworks-ai 1.2.30 names, in any of its modules."""

DEPLOYMENT_PHASES: Final[dict[str, JobPhase]] = {
    "STATE_UNSPECIFIED": JobPhase.STARTING,
    **dict.fromkeys(("CREATING", "READY", "UPDATING"), JobPhase.RUNNING),
    **dict.fromkeys(("DELETED", "DELETING", "FAILED"), JobPhase.STOPPED),
}
"""Every state of a deployment that fireworks-ai 1.2.30 names. It says that one for hot-loads may
stay CREATING although it serves; an UPDATING one has its replicas replaced. Neither has stopped."""

RESUMABLE: Final = frozenset(f"{_PREFIX}{name}" for name in _RESUMABLE)
"""Stopped states that a job may still show for some seconds after it was resumed."""


def phase_of(state: str) -> JobPhase:
    """Sort a control plane's state name into the three phases that matter to a request.

    A name that is not known counts as on the way: a job is never given up for a new word.
    """
    return PHASES.get(_as_fireworks(state), JobPhase.STARTING)


def may_settle(state: str | None) -> bool:
    """Whether a job may still show a state for some seconds after it was resumed."""
    return state is not None and _as_fireworks(state) in RESUMABLE


def _as_fireworks(state: str) -> str:
    """A state with Fireworks' prefix: others say RUNNING where it says JOB_STATE_RUNNING."""
    return f"{_PREFIX}{state.removeprefix(_PREFIX)}"
