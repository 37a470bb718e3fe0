"""What knows the state of a trainer job: the interface of a control plane."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias, runtime_checkable

from tinker_guard.settings import InvalidSettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping


@runtime_checkable
class ControlPlane(Protocol):
    """Knows the state of a trainer job. A user's own one is a class with this one method."""

    async def job_state(
        self, account: str, job: str, *, origin: str, credentials: Mapping[str, str]
    ) -> str | None:
        """Say what state a job is in.

        Args:
            account: The account id in the trainer's URL.
            job: The job id in the trainer's URL.
            origin: Scheme, host and port of the gateway that answered 404.
            credentials: The `x-api-key` and `authorization` headers of the guarded request,
                whichever it carries. For the route's own origin or a configured control plane
                only; never log them.

        Returns:
            `JOB_STATE_RUNNING`; or a state in which the job is stopped: that prefix and FAILED,
            CANCELLED, CANCELLING, COMPLETED, EARLY_STOPPED, EXPIRED, DELETING,
            DELETING_CLEANING_UP, FAILED_CLEANING_UP, DELETED, ARCHIVED or PAUSED.
            The prefix may be left out. Any other name in capitals is a job on its way, which a new
            run waits for. None if there is no such job; asked twice before it is believed.

        Raises:
            ControlPlaneError: There is no usable answer; its message is logged.
            Exception: Any other one, of which only the type is logged. Either way the guard asks
                again within the request's budget, and looks for a replica that reaches the
                trainer; without one the 404 is handed back as unverified.
        """
        ...  # pragma: no cover


@runtime_checkable
class RouteControlPlane(Protocol):
    """Knows the state of trainers whose routes have other names than account and job.

    A class of a user's own may have this method instead. If it has both, this one is asked.

    It may have an attribute `phases` too: a mapping of its states to `running`, `starting` or
    `stopped`, any other state being on the way. Without it, states are those of `ControlPlane`.
    """

    async def route_state(
        self, names: Mapping[str, str], *, origin: str, credentials: Mapping[str, str]
    ) -> str | None:
        """Say what state a trainer is in.

        Args:
            names: What the placeholders of the route's pattern stand for in its URL; those of
                hidden ones too, which must not be shown.
            origin: Scheme, host and port of the gateway that answered 404.
            credentials: As for `ControlPlane.job_state`.

        Returns:
            A name in capitals, digits and underscores; None if there is no such trainer.

        Raises:
            ControlPlaneError: There is no usable answer; its message is logged.
            Exception: Any other one, of which only the type is logged.
        """
        ...  # pragma: no cover


AnyControlPlane: TypeAlias = ControlPlane | RouteControlPlane


def check_given(plane: object) -> None:
    """Refuse what is no control plane, before the first 404 is judged by it.

    Raises:
        InvalidSettingsError: It has neither method, or is a class instead of an object of one.
    """
    if isinstance(plane, type):
        raise InvalidSettingsError(
            f"control_plane: must be an object; {plane.__name__} is a class. Call it."
        )
    if not isinstance(plane, ControlPlane | RouteControlPlane):
        raise InvalidSettingsError(
            "control_plane: must be an object with a method job_state or route_state, and "
            f"{type(plane).__name__} has neither."
        )


class ControlPlaneError(Exception):
    """The control plane gave no usable answer; the message says what to do about it.

    Args:
        message: For the person at the terminal. It is logged, so it must hold no secret.
        status_code: What was answered over HTTP, if anything was.
        retry_after: Seconds for which the control plane asks not to be asked again; 60 at most.
    """

    def __init__(
        self, message: str, status_code: int | None = None, retry_after: float = 0.0
    ) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.retry_after = retry_after


_STATE: Final = re.compile(r"[A-Z][A-Z0-9_]{0,63}")


def is_state_name(value: object) -> bool:
    """Whether a value can be a state's name. Others must not reach a log line or a span."""
    return isinstance(value, str) and _STATE.fullmatch(value) is not None
