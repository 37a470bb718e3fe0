"""Repeats the line on a 404 handed back after the traceback of a program that died of the 404.

The guard logs that line when it hands the 404 back. Sixty lines of the SDK's traceback follow, so
that the end of a log shows only "Trainer job not found or not running".
"""

from __future__ import annotations

import re
import sys
from time import monotonic
from typing import TYPE_CHECKING, Final

from tinker_guard.faults import fail_open

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

_LONGEST_CHAIN: Final = 50
_LATEST: Final = 600.0
"""Seconds after which a program that goes on has got over a 404."""
# As the SDK writes it: "Error code: 404 - ...", "... with status 404 for ...".
_TELLS: Final = re.compile(r"\b(?:error code|status(?:[ _]code)?)[ :=]*404\b", re.IGNORECASE)


def repeat_after_tracebacks() -> Callable[[], None]:
    """After the traceback of a 404, write the last line that was logged on one handed back.

    Returns:
        A function that undoes this. A hook that was installed on top stays; this one then does
        nothing any more.
    """
    before = sys.excepthook
    is_active = True

    def show(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        before(kind, error, traceback)
        if is_active:
            _repeat(error)

    def undo() -> None:
        nonlocal is_active
        is_active = False
        if sys.excepthook is show:
            sys.excepthook = before

    sys.excepthook = show
    return undo


@fail_open
def _repeat(error: BaseException) -> None:
    if not any(_is_not_found(each) for each in _chain(error)):
        return
    from tinker_guard.observability.logs import last_handed_back

    for line, said_at in last_handed_back:
        if monotonic() - said_at < _LATEST:
            sys.stderr.write(f"\ntinker_guard: {line}\n")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(_LONGEST_CHAIN):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


def _is_not_found(error: BaseException) -> bool:
    # A poll wraps the error in an exception of another kind, which has no status.
    return getattr(error, "status_code", None) == 404 or _TELLS.search(str(error)) is not None
