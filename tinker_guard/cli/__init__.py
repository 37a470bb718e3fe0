"""The command line. `run`, `wait` and `doctor` need no extra; the others name theirs."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    if sys.argv[1:2] == ["run"]:
        # It becomes another program, and imports next to nothing before that.
        from tinker_guard.cli.run import run

        sys.exit(run(sys.argv[2:]))
    from tinker_guard.cli.app import execute

    sys.exit(execute(sys.argv[1:]))
