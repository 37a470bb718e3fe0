"""What happens to a fault of the guard's own: it is logged once, and the request goes on."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from functools import wraps
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

logger: Final = logging.getLogger("tinker_guard")
"""All that the guard logs."""


def _name_itself(record: logging.LogRecord) -> bool:
    """Put the guard's name before a line that is shown without its logger's name.

    That is so where a program has not set up logging. A filter that lets everything pass.
    """
    if not logger.hasHandlers():
        record.msg = f"tinker_guard: {record.msg}"
    return True


logger.addFilter(_name_itself)

_P = ParamSpec("_P")
_T = TypeVar("_T")

already_logged: set[str] = set()
already_told: set[str] = set()
"""Lines that are no faults, and are logged once too."""


def log(level: int, message: str, *args: object) -> None:
    """Log a line. Never raises: a handler of the program's own may, whatever it is given."""
    with suppress(Exception):
        logger.log(level, message, *args, stacklevel=2)


def log_once(line: str) -> None:
    """Log a line that is no fault, once: each of several SDKs that are imported may call for it."""
    if line not in already_told:
        already_told.add(line)
        log(logging.WARNING, "%s", line)


def log_fault(where: str) -> None:
    """Log a fault of the guard's own, once per place; the request goes on without it."""
    _log_once(
        where,
        "a fault of its own in %s; requests go on without it. Please report it.",
    )


def log_foreign_error() -> None:
    """Log once that a transport raised in a probe what none of httpx's does. The request goes on.

    It may have a bug, or the program may have ended it in a way that cannot be told from one.
    """
    _log_once(
        "a probe's transport",
        "%s raised an error that is none of httpx's: the probe has failed, and requests go on.",
    )


def log_no_loop() -> None:
    """Log once that no event loop of asyncio runs. The request goes on unguarded."""
    _log_once(
        "requests without asyncio",
        "%s go on unguarded: GuardTransport works on an event loop of asyncio only.",
    )


def log_unclosed(what: str) -> None:
    """Log once for each kind of thing that one did not close. The request goes on."""
    _log_once(f"closing {what}", "%s failed or took too long; it is left to itself.")


def _log_once(where: str, message: str) -> None:
    if where not in already_logged:
        already_logged.add(where)
        # See `log`.
        with suppress(Exception):
            logger.warning(message, where, exc_info=_without_text(sys.exception()))


def _without_text(error: BaseException | None) -> BaseException | None:
    """An error's type and traceback: its text may be somebody else's, and hold a header."""
    if error is None:
        return None
    kind = type(error)
    twin: BaseException = type(kind.__qualname__, (Exception,), {"__module__": kind.__module__})()
    return twin.with_traceback(error.__traceback__)


def fail_open(function: Callable[_P, _T]) -> Callable[_P, _T | None]:
    """Make a function of telemetry one that never raises: a fault is logged, and None returned."""

    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T | None:
        try:
            return function(*args, **kwargs)
        except Exception:
            log_fault(f"telemetry ({function.__name__})")
            return None

    return call
