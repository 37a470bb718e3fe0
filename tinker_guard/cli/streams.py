"""The standard streams of a command: what they do if they are closed, or cannot be written."""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from typing import TextIO

NOT_WRITTEN: Final = 74
"""Exit code if the output could not be written; EX_IOERR of sysexits.h."""


class OutputError(Exception):
    """Standard output could not be written.

    No OSError: argparse passes over one, and a command takes it for a fault of what it does.
    """


class _Closed(io.RawIOBase):
    """In the place of a stream that was closed before the program began, which Python has as None.

    No null device: output would be lost, and the exit code would say that it was written.
    """

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, _buffer: object) -> int:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def write(self, _data: object) -> int:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


class _Output(io.TextIOWrapper):
    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            raise OutputError(error) from error

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            raise OutputError(error) from error


class _Messages(io.TextIOWrapper):
    """Standard error. What it cannot take is lost: there is no other place to say that."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


def check_streams() -> None:
    """Have a fault of standard output raise `OutputError`, and one of standard error nothing.

    A standard input that is closed raises `OSError` when it is read, as one with a fault does.
    """
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(_Closed()))
    sys.stdout = _again(sys.stdout, _Output)
    sys.stderr = _again(sys.stderr, _Messages)


def _again(stream: TextIO | None, kind: type[io.TextIOWrapper]) -> TextIO:
    if stream is None:
        return kind(_Closed(), write_through=True)  # type: ignore[arg-type]
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    encoding, errors = stream.encoding, stream.errors
    is_line_buffered, is_unbuffered = stream.line_buffering, stream.write_through
    return kind(
        stream.detach(),
        encoding=encoding,
        errors=errors,
        line_buffering=is_line_buffered,
        write_through=is_unbuffered,
    )


def end_output(error: OutputError) -> int:
    """Say that the output could not be written, but nothing if its reader went away.

    Returns:
        The exit code.
    """
    cause = error.args[0]
    if not isinstance(cause, BrokenPipeError):
        sys.stderr.write(f"tinker-guard: cannot write the output: {cause.strerror}\n")
    # Python writes at its end what the stream still holds, and would complain once more.
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return NOT_WRITTEN
