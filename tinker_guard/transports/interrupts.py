"""What a program's signal handler raises while the guard blocks a thread: it is the program's.

It looks like a failure of what blocks the thread. Its traceback tells it from one.
"""

from __future__ import annotations

import asyncio
import functools
import signal
import sys
import threading
import traceback
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType, FrameType


class Interrupted(BaseException):
    """What a signal handler raised while the thread blocked; `run_blocking` raises that again.

    It goes past all that takes an exception for a failure of what the thread was blocked by.

    Args:
        error: What was raised.
    """

    def __init__(self, error: BaseException) -> None:
        self.error = error


@contextmanager
def interruptible(*, always: bool = False) -> Iterator[None]:
    """Around what blocks the thread: tell what the program raises there from failures.

    Args:
        always: Whether nothing else can raise an exception there. If not, code of the program's own
            runs there, and of what that raises only a signal handler's is told apart.
    """
    handled = sys.exception()
    try:
        yield
    except (Exception, asyncio.CancelledError) as error:
        if not (always or is_by_signal_handler(error, since=handled)):
            raise
        raise Interrupted(error) from None


def is_by_signal_handler(error: BaseException, *, since: BaseException | None) -> bool:
    """Whether a signal handler raised an error, or one that a transport made this one of.

    One is not known that has no frame of its own in the traceback, because it is written in C; nor
    one that takes itself out and does not keep its arguments.

    Args:
        error: The error.
        since: What the program is handling anyway, which may be of a signal handler too.
    """
    if threading.current_thread() is not threading.main_thread():
        return False
    installed = {_code_of(signal.getsignal(number)) for number in signal.valid_signals()}
    raised: BaseException | None = error
    for _ in range(_LONGEST_CHAIN):
        if raised is None or raised is since:
            return False
        caller: FrameType | None = None
        for frame, _ in traceback.walk_tb(raised.__traceback__):
            if frame.f_code in installed or (caller and _is_given(frame, caller)):
                return True
            caller = frame
        raised = raised.__context__
    return False


_LONGEST_CHAIN: Final = 20
"""Of errors made of others. A program can tie them to a ring."""


def _code_of(handler: Any) -> CodeType | None:
    while isinstance(handler, functools.partial):
        handler = handler.func
    # A method has its function's; any other object is called by a method. No handler is set where
    # there is a member of `signal.Handlers`, whose metaclass calls all the enumerations there are.
    code: CodeType | None = getattr(handler, "__code__", None)
    if code is None and callable(handler):
        code = getattr(type(handler).__call__, "__code__", None)
    return code


def _is_given(frame: FrameType, caller: FrameType) -> bool:
    """Whether a function was given a number and the frame that it stands above.

    So is a signal handler alone, also one that is not installed any more, or by something that has
    no code, as a cache.
    """
    given: list[object] = []
    for value in [*frame.f_locals.values()]:
        given += value if type(value) is tuple else [value]
    return any(isinstance(number, int) and each is caller for number, each in pairwise(given))
