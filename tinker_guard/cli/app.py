"""The commands and their options.

argparse rather than typer: importing typer takes two tenths of a second, and a bare install must
show `--help` at once. Each command imports its modules when it is executed.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from difflib import get_close_matches
from pathlib import Path
from stat import S_ISDIR
from typing import TYPE_CHECKING, Final, NamedTuple

from tinker_guard import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

USAGE_ERROR: Final = 2

# Their descriptions are in `tinker_guard.gateway`, which needs packages that a bare install lacks.
_FAULTS_TO_SHOW: Final = (
    *("dispatch", "poll", "reply-lost", "late-route", "stale-replica", "deleted"),
    "control-plane-down",
)

_SUMMARY: Final = "Sees training runs through the routing races of an API gateway."
_URL: Final = "the trainer's base URL, as given to the SDK"


class _Command(NamedTuple):
    """The function behind a command, and the packages that it needs."""

    place: str
    """Module and function; the function takes the parsed arguments and returns the exit code."""
    extra: str
    """The extra that it needs; empty if a bare install is enough."""
    packages: tuple[str, ...]
    """The packages of that extra."""


_REPORT: Final = ("ijson", "msgspec", "rich")
_DEMO: Final = ("rich", "numpy", "opentelemetry", "tinker", "uvicorn", "zstandard")
COMMANDS: Final = {
    "wait": _Command("wait:wait", "", ()),
    "doctor": _Command("doctor.screen:doctor", "", ()),
    "report": _Command("report.command:report", "cli", _REPORT),
    "demo": _Command("demo.commands:demo", "demo", _DEMO),
    "gateway": _Command("demo.commands:gateway", "demo", _DEMO),
    "completion": _Command("completion:completion", "cli", ("shtab",)),
}
"""All commands but `run`, which is replaced by another program."""
NAMES: Final = ("run", *COMMANDS)


def execute(arguments: Sequence[str]) -> int:
    """Execute a command.

    Args:
        arguments: The words after `tinker-guard`.

    Returns:
        The exit code.

    Raises:
        SystemExit: Wrong usage, or a request for help.
    """
    parser = build_parser()
    if not arguments:
        parser.print_help()
        return USAGE_ERROR
    first = arguments[0]
    if first not in NAMES and (near := get_close_matches(first, NAMES, n=1)):
        parser.error(f"there is no command {first!r}; did you mean {near[0]}?")
    parsed, unknown = parser.parse_known_args(arguments)
    if unknown:
        # argparse by default shows the usage of `tinker-guard`, without the command's options.
        of_command = parser if parsed.command == "run" else parsed.parser
        of_command.error(f"unrecognized arguments: {' '.join(unknown)}")
    if parsed.command == "run":
        # The parser has already refused options before `run`.
        from tinker_guard.cli.run import run

        return run(parsed.arguments)
    command = COMMANDS[parsed.command]
    try:
        function = _load(command)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in command.packages:
            raise
        say(
            f"tinker-guard {parsed.command}: needs {error.name}, which is not installed. "
            f"Run: pip install 'tinker-guard[{command.extra}]'"
        )
        return USAGE_ERROR
    return function(parsed)


def say(message: str) -> None:
    """Print a message on stderr."""
    sys.stderr.write(f"{message}\n")


def _load(command: _Command) -> Callable[[argparse.Namespace], int]:
    module, _, name = command.place.partition(":")
    function: Callable[[argparse.Namespace], int] = getattr(
        importlib.import_module(f"tinker_guard.cli.{module}"), name
    )
    return function


def build_parser(*, is_brief: bool = False) -> argparse.ArgumentParser:
    """The parser of all commands.

    Args:
        is_brief: Whether commands have only their summaries, for the completions of shells.
    """
    parser = argparse.ArgumentParser("tinker-guard", description=_SUMMARY)
    parser.add_argument("--version", action="version", version=f"tinker-guard {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, summary: str, more: str = "") -> argparse.ArgumentParser:
        extra = COMMANDS[name].extra if name in COMMANDS else ""
        command = commands.add_parser(
            name,
            help=f"{summary} (extra: {extra})" if extra else summary,
            description=summary
            if is_brief
            else f"{summary[0].upper()}{summary[1:]}. {more}".strip(),
        )
        command.set_defaults(parser=command)
        return command

    run = add("run", "start a program with the guard in it")
    run.add_argument("arguments", nargs=argparse.REMAINDER)
    _add_wait(
        add(
            "wait",
            "wait until a trainer's route answers",
            "It waits by the rule of a guarded run's warmup, and while the name does not resolve, "
            "the port is closed or TLS fails. The key is read from TINKER_API_KEY or "
            "FIREWORKS_API_KEY. Exit codes: 0 ready, 2 wrong usage, 3 timed out, 4 the job is "
            "stopped or missing, 5 not verifiable.",
        )
    )
    doctor = add(
        "doctor",
        "check what a guarded run would meet here",
        "It asks the control plane one question and sends the trainer's route one probe, with the "
        "key in TINKER_API_KEY or FIREWORKS_API_KEY. It never prints a secret. The exit code is 0 "
        "if there is no problem (warnings are none), 1 otherwise.",
    )
    doctor.add_argument("url", nargs="?", metavar="URL", help=f"{_URL}; default: TINKER_BASE_URL")
    _add_json(doctor, "the findings")
    _add_report(
        add(
            "report",
            "sum up exported spans, at the terminal or as a page",
            "Races met, time lost and saved, genuine 404s, by run and by job. Exit codes: 0 there "
            "is a report, 1 nothing could be read, 2 wrong usage.",
        )
    )
    _add_demo(
        add(
            "demo",
            "show a training run with and without the guard",
            "It trains the same five steps three times: without a fault, with it, and with the "
            "guard. Everything happens on this machine: a local gateway, control plane and "
            "trainer, and the real SDK. The exit code is 0 if the guarded run ended as it should, "
            "else 1.",
        )
    )
    _add_gateway(
        add(
            "gateway",
            "serve a local gateway to try your own training loop on",
            "It shows one line for each 404 and for each question to the control plane. Ctrl-C "
            "ends it.",
        )
    )
    completion = add(
        "completion",
        "print the completions of a shell",
        'In bash: eval "$(tinker-guard completion bash)"',
    )
    completion.add_argument("shell", choices=["bash", "zsh", "fish", "tcsh"])
    return parser


def _add_json(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--json", action="store_true", help=f"print {what} as JSON, for machines")


def _add_wait(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help=_URL)
    parser.add_argument(
        "--timeout",
        type=_seconds(0.1),
        metavar="SECONDS",
        help="how long to wait at the most (default: TINKER_GUARD_WARMUP_TIMEOUT, else 120)",
    )
    parser.add_argument(
        "--settle",
        type=_seconds(0.0),
        default=30.0,
        metavar="SECONDS",
        help="for how long to ignore a stopped state, such as JOB_STATE_PAUSED, that may be left "
        "from before a resume; 0 believes it at once (default: 30)",
    )
    parser.add_argument("--quiet", "-q", action="store_true", help="print nothing; see exit code")
    _add_json(parser, "how it ended")


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files",
        nargs="+",
        type=_file_or_stdin,
        metavar="FILE",
        help="spans: OTLP-JSON, or what the Python SDK's to_json writes; plain or gzip; - is the "
        "standard input",
    )
    parser.add_argument(
        "--html",
        type=_page_to_write,
        metavar="PATH",
        help="also write a page with timelines to this file; it needs nothing from elsewhere",
    )
    _add_json(parser, "the report")


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fault",
        default="poll",
        metavar="NAME",
        help=f"what goes wrong: {', '.join(_FAULTS_TO_SHOW)} (default: poll); "
        "`tinker-guard gateway --list` describes these and more",
    )
    parser.add_argument(
        "--otlp",
        metavar="URL",
        help="also send the spans to this backend over OTLP/HTTP, such as http://localhost:4318 "
        "(extra: otlp)",
    )
    parser.add_argument(
        "--svg",
        type=_file_to_write,
        metavar="PATH",
        help="also save the result as a picture to this file",
    )


def _add_gateway(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--fault", metavar="NAME", help="what goes wrong; see --list")
    which.add_argument(
        "--fault-file",
        type=_file_to_read,
        metavar="PATH",
        help="a fault of your own as JSON; see --schema",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="address to serve on"
    )
    parser.add_argument(
        "--port",
        type=_port,
        default=8765,
        metavar="NUMBER",
        help="port to serve on; 0 takes a free one (default: 8765)",
    )
    parser.add_argument("--list", action="store_true", help="list the faults by name, and end")
    parser.add_argument(
        "--schema",
        action="store_true",
        help="print the JSON schema of a fault file, with examples, and end",
    )
    _add_json(parser, "the list")


def _seconds(least: float) -> Callable[[str], float]:
    def seconds(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds") from None
        if not least <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"must be a finite number, at least {least:g}")
        return value

    return seconds


def _port(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError("must be a number from 0 to 65535")
    return int(text)


def _file_to_write(text: str) -> Path:
    # Checked first, because producing the content takes long.
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(
            f"{path} cannot be written: no such directory, or a directory"
        )
    return path


def _page_to_write(text: str) -> Path:
    # `report --html *.jsonl` would replace the first of the files that are to be read.
    path = _file_to_write(text)
    if path.is_file():
        with path.open("rb") as file:
            begin = file.read(100).lstrip().lower()
        if begin and not begin.startswith((b"<!doctype html", b"<html")):
            raise argparse.ArgumentTypeError(
                f"{path} exists and is no HTML page: name the page, then the files to read"
            )
    return path


def _file_to_read(text: str) -> Path:
    path = Path(text)
    try:
        is_folder = S_ISDIR(path.stat().st_mode)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path} cannot be read: {error.strerror}") from None
    if is_folder:
        raise argparse.ArgumentTypeError(f"{path} is a folder")
    return path


def _file_or_stdin(text: str) -> Path:
    return Path(text) if text == "-" else _file_to_read(text)
