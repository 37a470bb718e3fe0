"""The command line. It needs the extra `cli`, and `demo` and `gateway` the extra `demo`."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Annotated, Final

import typer

from tinker_guard import running
from tinker_guard._version import __version__
from tinker_guard.doctor.screen import doctor
from tinker_guard.report.command import report
from tinker_guard.waiting import Readiness, wait_until_routable

if TYPE_CHECKING:
    from collections.abc import Callable

_USAGE_ERROR: Final = 2

# What the extra `demo` brings along.
_OF_THE_DEMO: Final = frozenset(
    {"numpy", "opentelemetry.sdk", "starlette", "tinker", "uvicorn", "zstandard"}
)

app = typer.Typer(
    help="Sees training runs through the routing races of an API gateway.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"tinker-guard {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Sees training runs through the routing races of an API gateway."""


@app.command(
    short_help="Start a program with the guard in it.",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True},
)
def run(
    command: Annotated[list[str] | None, typer.Argument(help="The program to start.")] = None,
) -> None:
    """Start a program with the guard in it and in its child processes, without a line of code."""
    raise typer.Exit(running.run(command or []))


@app.command(short_help="Wait until a trainer's route answers.")
def wait(
    url: Annotated[str, typer.Argument(help="The trainer's base URL, as given to the SDK.")],
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds to wait at the most.", show_default=True)
    ] = 120.0,
) -> None:
    """Wait until a trainer's route answers, by the rule of a guarded run's warmup.

    The key is read from TINKER_API_KEY. Exit codes: 0 ready, 2 wrong usage, 3 timed out, 4 the
    job is stopped or missing, 5 not verifiable.
    """
    logger = logging.getLogger("tinker_guard")
    level = logger.level
    logger.setLevel(logging.INFO)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    try:
        readiness = wait_until_routable(
            url, api_key=os.environ.get("TINKER_API_KEY"), timeout=timeout
        )
    except ValueError as error:
        # `InvalidSettingsError` is one too; both name what is wrong and what would be right.
        typer.echo(f"tinker-guard wait: {error}", err=True)
        raise typer.Exit(_USAGE_ERROR) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    typer.echo(_READINESS[readiness])
    raise typer.Exit(int(readiness))


_READINESS: Final = {
    Readiness.READY: "Ready: the trainer answers.",
    Readiness.TIMED_OUT: "Timed out: the gateway does not know the route yet.",
    Readiness.JOB_GONE: "Gone: the job is stopped or does not exist.",
    Readiness.UNVERIFIABLE: (
        "Not verifiable: the gateway could not be reached, or the control plane could not say "
        "whether the job runs."
    ),
}


app.command(short_help="Check what a guarded run would meet here.")(doctor)
app.command(short_help="Sum up exported spans, at the terminal or as a page.")(report)


def _register_demo() -> None:
    try:
        from tinker_guard.demo import commands as demo_commands
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if not any(missing == name or missing.startswith(f"{name}.") for name in _OF_THE_DEMO):
            raise
        for name in ("demo", "gateway"):
            app.command(
                name,
                short_help="(needs the extra `demo`)",
                add_help_option=False,
                context_settings={"ignore_unknown_options": True},
            )(_say_missing(name, missing))
    else:
        demo_commands.register(app)


def _say_missing(name: str, missing: str) -> Callable[[list[str] | None], None]:
    def say(arguments: Annotated[list[str] | None, typer.Argument()] = None) -> None:
        del arguments
        typer.echo(
            f"tinker-guard {name}: needs {missing}, which is not installed. "
            "Run: pip install 'tinker-guard[demo]'",
            err=True,
        )
        raise typer.Exit(_USAGE_ERROR)

    return say


_register_demo()
