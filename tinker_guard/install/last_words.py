"""Repeats the line on a 404 handed back after the traceback of a program that died of the 404.

The guard logs that line when it hands the 404 back. Sixty lines of the SDK's traceback follow, so
that the end of a log shows only "Trainer job not found or not running".
"""

from __future__ import annotations

import re
import sys
from collections import deque
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Final

from tinker_guard.faults import fail_open

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

_MOST_ERRORS: Final = 50
"""How many errors of a chain or a group are looked at."""
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
    if not any(_is_not_found(each) for each in islice(_tree(error), _MOST_ERRORS)):
        return
    from tinker_guard.observability.logs import last_handed_back

    for said in last_handed_back:
        if monotonic() - said.at < _LATEST:
            sys.stderr.write(f"\ntinker_guard: {said.line}\n")


def _tree(error: BaseException) -> Iterator[BaseException]:
    """An error, its causes, and the members of groups. Endless if one is its own cause."""
    waiting = deque([error])
    while waiting:
        each = waiting.popleft()
        yield each
        cause = each.__cause__ or each.__context__
        if cause is not None:
            waiting.append(cause)
        if isinstance(each, BaseExceptionGroup):
            # Such as a `TaskGroup`'s.
            waiting.extend(each.exceptions[:_MOST_ERRORS])


def _is_not_found(error: BaseException) -> bool:
    # A poll wraps the error in an exception of another kind, which has no status.
    return getattr(error, "status_code", None) == 404 or _TELLS.search(str(error)) is not None
