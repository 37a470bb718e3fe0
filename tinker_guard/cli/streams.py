"""The standard streams of a command: their behaviour if they are closed or cannot be written."""

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

    Not an OSError: argparse ignores one, and a command would report it as a fault of its own work.
    """


class _Closed(io.RawIOBase):
    """Replaces a stream that was closed before the program began; in Python, it is None.

    Not a null device: output would be lost, with the exit code of a success.
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
    """Standard error. Text that cannot be written is dropped: there is no other stream for it."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


def check_streams() -> None:
    """Make faults of standard output raise `OutputError`, and ignore those of standard error.

    Reading a closed standard input raises `OSError`, as reading a faulty one does.
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
    """Report that the output could not be written; a closed pipe is not reported.

    Returns:
        The exit code.
    """
    cause = error.args[0]
    if not isinstance(cause, BrokenPipeError):
        sys.stderr.write(f"tinker-guard: cannot write the output: {cause.strerror}\n")
    # At its end Python flushes the stream, and would report the fault again.
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return NOT_WRITTEN
