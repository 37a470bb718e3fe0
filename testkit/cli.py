"""Runs the command line in this process, which is faster than in one of its own; or Python."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from unittest import mock

from tinker_guard.cli.app import execute

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROOT: Final = Path(__file__).resolve().parent.parent


class Ended(NamedTuple):
    """What a command has printed, and its exit code."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


def invoke(*arguments: str, stdin: bytes = b"") -> Ended:
    out, err = io.StringIO(), io.StringIO()
    given = io.TextIOWrapper(io.BytesIO(stdin))
    with redirect_stdout(out), redirect_stderr(err), mock.patch.object(sys, "stdin", given):
        try:
            code = execute(arguments)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    return Ended(code, out.getvalue(), err.getvalue())


@contextmanager
def piped(content: bytes) -> Iterator[str]:
    """A place that can be read once and is no file, as a shell makes of `<(...)`.

    Args:
        content: What is read there; less than a pipe holds.
    """
    reading, writing = os.pipe()
    os.write(writing, content)
    os.close(writing)
    try:
        yield f"/dev/fd/{reading}"
    finally:
        os.close(reading)


def python(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the checkout, with these variables too, and wait for its end."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=_ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
