"""The command `tinker-guard`. All but `run` needs the extra `cli`; this module does not."""

from __future__ import annotations

import sys

from tinker_guard.running import run

_MISSING_EXTRA = 2


def main() -> None:
    """Run the command line."""
    if sys.argv[1:2] == ["run"]:
        sys.exit(run(sys.argv[2:]))
    try:
        from tinker_guard.commands import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("ijson", "rich", "typer"):
            raise
        sys.stderr.write(
            f"tinker-guard: the command line needs {error.name}, which is not installed. "
            "Run: pip install 'tinker-guard[cli]'\n"
        )
        sys.exit(_MISSING_EXTRA)
    app()


if __name__ == "__main__":
    main()
