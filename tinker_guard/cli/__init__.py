"""The command line. `run`, `wait` and `doctor` need no extra; the others name theirs."""

from __future__ import annotations

import sys
from typing import Final

from tinker_guard.cli.streams import OutputError, check_streams, end_output

INTERRUPTED: Final = 130
"""Exit code after Ctrl-C, as in a shell."""


def main() -> None:
    """Run the command line."""
    check_streams()
    try:
        try:
            code = _execute(sys.argv[1:])
        finally:
            # Here, because a fault at the end of Python can no longer be reported.
            sys.stdout.flush()
    except KeyboardInterrupt:
        # Ctrl-C, perhaps while a command is still being imported.
        code = INTERRUPTED
    except OutputError as error:
        code = end_output(error)
    sys.exit(code)


def _execute(arguments: list[str]) -> int:
    if arguments[:1] == ["run"]:
        # It is replaced by another program, and imports next to nothing before.
        from tinker_guard.cli.run import run

        return run(arguments[1:])
    from tinker_guard.cli.app import execute

    return execute(arguments)
