"""Styles, wrapping and a spinner for the commands of a bare install, which lack rich."""

from __future__ import annotations

import io
import os
import sys
import textwrap
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import TextIO

PLAIN_WIDTH: Final = 100
_NARROWEST: Final = 20
_CODES: Final = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}


def for_any_character(stream: TextIO) -> None:
    """Have a `?` written for a character that a stream's encoding lacks, not a traceback."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")


def width_of(stream: TextIO, plain_width: int) -> int:
    """The columns of a stream: those of `COLUMNS`, or of its terminal.

    Args:
        stream: The stream.
        plain_width: Columns if neither names a width in which something can be shown.
    """
    given = os.environ.get("COLUMNS", "")
    width = int(given) if given.isdecimal() else 0
    if width < _NARROWEST and stream.isatty():
        # What a program stands in for stdout may have no terminal's size.
        with suppress(OSError):
            width = os.get_terminal_size(stream.fileno()).columns
    return width if width >= _NARROWEST else plain_width


class Terminal:
    """A stream for text; without a terminal, lines are plain, and `PLAIN_WIDTH` wide."""

    def __init__(self, stream: TextIO) -> None:
        for_any_character(stream)
        self._stream = stream
        self.is_interactive: bool = stream.isatty()
        self.width: int = width_of(stream, PLAIN_WIDTH)
        self._has_colours = self.is_interactive and not os.environ.get("NO_COLOR")

    def styled(self, text: str, *styles: str) -> str:
        """Text in a style, if the terminal has colours."""
        if not (self._has_colours and styles and text):
            return text
        return f"\x1b[{';'.join(_CODES[style] for style in styles)}m{text}\x1b[0m"

    def print(self, text: str = "") -> None:
        """Print a line."""
        self._stream.write(f"{text}\n")
        self._stream.flush()

    def print_wrapped(self, begin: str, text: str, indent: int) -> None:
        """Print text after a prefix, and indent its further lines.

        Words are not broken, so that URLs can be copied and lines can be piped.
        """
        width = max(self.width - indent, _NARROWEST)
        lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
        self.print(begin + f"\n{' ' * indent}".join(lines))


_FRAMES: Final = "|/-\\"
_EVERY: Final = 0.1


class Spinner:
    """A line that shows progress on a terminal; on another stream, nothing.

    A context manager around long work. Print lines meanwhile with
    `print`, or in a block of `paused`.

    Args:
        text: Returns the text of the line, given the elapsed seconds.
        is_wanted: Whether to show it, if there is a terminal.
    """

    def __init__(self, text: Callable[[float], str], *, is_wanted: bool = True) -> None:
        self._text = text
        self._terminal = Terminal(sys.stderr)
        self._is_shown = is_wanted and self._terminal.is_interactive
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._spin, name="tinker-guard-spinner", daemon=True)

    def __enter__(self) -> Spinner:
        if self._is_shown:
            self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._is_shown:
            self._end.set()
            self._thread.join()
            self._clear()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A block in which lines may be printed above the spinner."""
        with self._lock:
            self._clear()
            yield

    def print(self, line: str) -> None:
        """Print a line above the spinner, on stderr; on a terminal, wrapped."""
        with self.paused():
            if self._terminal.is_interactive:
                self._terminal.print_wrapped("", line, indent=2)
            else:
                self._terminal.print(line)

    def _spin(self) -> None:
        began_at, frame = time.monotonic(), 0
        while not self._end.wait(_EVERY):
            frame += 1
            line = f"{_FRAMES[frame % len(_FRAMES)]} {self._text(time.monotonic() - began_at)}"
            with self._lock:
                sys.stderr.write(f"\r\x1b[K{line[: self._terminal.width - 1]}")
                sys.stderr.flush()

    def _clear(self) -> None:
        if self._is_shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
