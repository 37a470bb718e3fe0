"""The command `tinker-guard`. All but `run` need the extra `demo`; this module does not."""

from __future__ import annotations

import sys
from typing import Final

from tinker_guard.running import run

_MISSING_EXTRA: Final = 2
# What the extra `demo` brings along.
_OF_THE_EXTRA: Final = frozenset(
    {
        "numpy",
        "opentelemetry.sdk",
        "rich",
        "starlette",
        "tinker",
        "typer",
        "uvicorn",
        "zstandard",
    }
)


def main() -> None:
    """Run the command line."""
    if sys.argv[1:2] == ["run"]:
        sys.exit(run(sys.argv[2:]))
    try:
        from tinker_guard.demo.commands import app
    except ModuleNotFoundError as error:
        if not _is_of_the_extra(error.name or ""):
            raise
        print(  # noqa: T201
            f"tinker-guard: the command line needs {error.name}, which is not installed. "
            "Run: pip install 'tinker-guard[demo]'",
            file=sys.stderr,
        )
        sys.exit(_MISSING_EXTRA)
    app()


def _is_of_the_extra(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in _OF_THE_EXTRA)


if __name__ == "__main__":
    main()
