"""The commands `demo` and `gateway`."""

from __future__ import annotations

import errno
import json
import os
import sys
from typing import TYPE_CHECKING, Any, Final

from pydantic import TypeAdapter
from rich.console import Group
from rich.text import Text

from tinker_guard.cli.app import USAGE_ERROR, say
from tinker_guard.cli.console import new_console
from tinker_guard.cli.demo import screen
from tinker_guard.cli.demo.judge import End, expected_end, problems
from tinker_guard.cli.demo.run import Run, carry_out
from tinker_guard.cli.demo.serve import serve
from tinker_guard.cli.demo.spans import (
    MissingExporterError,
    Recorder,
    most_telling,
    otlp_exporter,
    send,
    traces_url,
    trees,
    with_guards_numbers,
    without_secrets,
)
from tinker_guard.gateway import FAULTS, SAMPLING_FAULTS, Fault
from tinker_guard.settings import GuardSettings

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from opentelemetry.sdk.trace.export import SpanExporter
    from rich.console import Console, RenderableType

    from tinker_guard.cli.demo.spans import Node


def _fault_to_show(name: str) -> Fault:
    # The demo's loop does not sample.
    shown = [other for other in FAULTS if other != "none" and other not in SAMPLING_FAULTS]
    if name not in shown:
        raise RefusedError(f"{name!r} is no fault to show. Choose one of: {', '.join(shown)}.")
    return FAULTS[name]


def demo(arguments: argparse.Namespace) -> int:
    """Train the same five steps three times; returns the exit code."""
    try:
        fault = _fault_to_show(arguments.fault)
        try:
            otlp = None if arguments.otlp is None else traces_url(arguments.otlp)
        except ValueError as error:
            raise ValueError(f"--otlp {error}") from None
        exporter = None if otlp is None else otlp_exporter(otlp)
        GuardSettings()
    except MissingExporterError:
        say("tinker-guard: --otlp needs an exporter. Run: pip install 'tinker-guard[demo,otlp]'")
        return USAGE_ERROR
    except ValueError as error:
        # Includes `InvalidSettingsError`.
        say(f"tinker-guard demo: {error}")
        return USAGE_ERROR
    _prepare_environment()
    try:
        console = new_console(screen.PLAIN_WIDTH)
        is_right, is_stuck = _Demo(console, fault).show(arguments.svg, otlp, exporter)
    except OSError as error:
        say(f"tinker-guard: could not write {arguments.svg}: {error.strerror}")
        return 1
    if is_stuck:
        # The SDK's threads still run, and would keep the interpreter from ending.
        sys.stdout.flush()
        os._exit(1)
    return 0 if is_right else 1


class RefusedError(ValueError):
    """An option has a value that cannot be used; the message says which ones can."""


def _prepare_environment() -> None:
    # A proxy cannot reach this machine's own ports.
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1")))
    # The demo shows spans, even if the shell switches them off for other programs.
    os.environ.pop("OTEL_SDK_DISABLED", None)
    screen.quiet_other_loggers()


class _Demo:
    """The three runs and their output."""

    def __init__(self, console: Console, fault: Fault) -> None:
        self._console = console
        self._fault = fault
        self._recorder = Recorder()

    def show(
        self, svg: Path | None, otlp: str | None, exporter: SpanExporter | None
    ) -> tuple[bool, bool]:
        """Show all runs; returns whether the guarded run is right, and whether a run is stuck."""
        story = self._fault.description
        say = self._console.print
        healthy, _ = self._run("no fault", "1/3  Five training steps through a healthy gateway")
        say(screen.say_end(healthy))
        alone, _ = self._run("no guard", f"2/3  The same without a guard: {story}", self._fault)
        say(screen.say_end(alone))
        guarded, roots = self._run(
            "guarded", "3/3  The same with that fault and install_guard()", self._fault
        )
        found = problems(self._fault, healthy, guarded)
        say(screen.say_end(guarded, is_right=not found))

        table = screen.table_of(
            [("no fault", healthy), ("no guard", alone), ("guarded", guarded)],
            last_is_right=not found,
        )
        parts: list[RenderableType] = ["", table, *_tree_parts(roots)]
        if found:
            verdict = Text("Wrong: ", style="bold red").append("; ".join(found), "not bold default")
        else:
            verdict = Text("Right: ", style="bold green").append(
                _WHY_RIGHT[expected_end(self._fault)], "not bold default"
            )
        parts += ["", verdict]
        say(Group(*parts))
        if svg is not None:
            self._save(svg, parts)
        if otlp is not None and exporter is not None:
            self._send(otlp, exporter)
        return not found, any(run.is_stuck for run in (healthy, alone, guarded))

    def _run(self, name: str, title: str, fault: Fault = FAULTS["none"]) -> tuple[Run, list[Node]]:
        self._console.print("", Text(title, "bold"), sep="\n")
        self._recorder.begin(name)
        with screen.Watch(self._console) as watch:
            run = carry_out(fault, is_guarded=name == "guarded", on_tick=watch.tick)
        roots = trees(self._recorder.spans(name))
        return with_guards_numbers(run, roots), roots

    def _save(self, svg: Path, parts: list[RenderableType]) -> None:
        screen.save_svg(svg, f"tinker-guard demo --fault {self._fault.name}", *parts)

    def _send(self, otlp: str, exporter: SpanExporter) -> None:
        spans = self._recorder.spans()
        place = without_secrets(otlp)
        with self._console.status(f"sending {len(spans)} spans to {place}"):
            is_sent = send(spans, exporter)
        if is_sent:
            self._console.print(f"Sent {len(spans)} spans to {place}.", soft_wrap=True)
        else:
            say(f"tinker-guard: the backend at {place} did not take the spans. Does it run?")


_WHY_RIGHT: Final = {
    End.FINISHED: "the guarded run finished, its losses equal the fault-free ones to the last "
    "digit, and every piece of work was done once.",
    End.NOT_FOUND: "the job is gone, and the guarded run said so at once, with the SDK's own "
    "error and nothing sent again.",
}


def _tree_parts(roots: list[Node]) -> list[RenderableType]:
    root = most_telling(roots)
    if root is None:
        return []
    outcome = root.attributes.get("tinker_guard.outcome")
    if outcome == "recovered":
        title = "One recovered request, span by span"
    elif outcome == "ok":
        title = "The request that waited for the route, span by span"
    else:
        title = "The request whose 404 was handed back, span by span"
    return ["", Text(title, "bold"), screen.tree_of(root)]


def gateway(arguments: argparse.Namespace) -> int:
    """Serve a local gateway, control plane and trainer; returns the exit code."""
    if arguments.schema:
        _print(json.dumps(_schema(), indent=2))
        return 0
    if arguments.list:
        width = max(map(len, FAULTS))
        if arguments.json:
            _print(json.dumps({known.name: known.description for known in FAULTS.values()}))
        else:
            for known in FAULTS.values():
                _print(f"{known.name:{width}}  {known.description}")
        return 0
    if arguments.json:
        arguments.parser.error("argument --json: there is nothing to print without --list")
    try:
        if arguments.fault_file is not None:
            chosen = read_fault(arguments.fault_file)
        elif arguments.fault in (None, *FAULTS):
            chosen = FAULTS[arguments.fault or "none"]
        else:
            names = ", ".join(FAULTS)
            raise RefusedError(f"{arguments.fault!r} is no fault. Choose one of: {names}.")
    except RefusedError as error:
        say(f"tinker-guard gateway: {error}")
        return USAGE_ERROR
    screen.quiet_other_loggers()
    try:
        serve(chosen, arguments.host, arguments.port, _print)
    except OSError as error:
        problem = str(error.strerror or error).partition(" (while")[0]
        hint = "; --port 0 takes a free one" if error.errno == errno.EADDRINUSE else ""
        place = f"{arguments.host}:{arguments.port}"
        say(f"tinker-guard: cannot serve on {place}: {problem}{hint}")
        return 1
    return 0


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _schema() -> dict[str, Any]:
    examples = [json.loads(FAULTS[name].to_json()) for name in ("poll", "stale-replica", "deleted")]
    return TypeAdapter(Fault).json_schema() | {"examples": examples}


def read_fault(path: Path) -> Fault:
    """Read a user's own fault from a file.

    Raises:
        RefusedError: The file contains no valid fault; the message names the invalid fields.
    """
    hint = "`tinker-guard gateway --schema` shows what it may hold."
    try:
        return Fault.from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RefusedError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise RefusedError(f"{path} holds no fault: {error}. {hint}") from None
