"""The commands `demo` and `gateway`."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer
from rich.console import Group
from rich.text import Text

from tinker_guard.demo import screen
from tinker_guard.demo.judge import End, expected_end, problems
from tinker_guard.demo.run import Run, carry_out
from tinker_guard.demo.serve import serve
from tinker_guard.demo.spans import (
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
from tinker_guard.settings import GuardSettings, InvalidSettingsError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from rich.console import Console, RenderableType

    from tinker_guard.demo.spans import Node

_USAGE_ERROR: Final = 2

_STORIES: Final = {
    "dispatch": "the gateway forgets the route for 1 s as the second step is sent",
    "poll": "the gateway forgets the route for 1 s as results are fetched",
    "reply-lost": "the trainer does the second step, but the gateway's reply to it is a 404",
    "late-route": "the gateway learns the route only after 3 s",
    "stale-replica": "one of the gateway's four replicas lacks the route for 20 s",
    "deleted": "the job is deleted in the third step",
    "control-plane-down": "the route is forgotten for 1 s, the control plane is down",
}


def _known_fault(name: str | None) -> str | None:
    if name is not None and name not in FAULTS:
        raise typer.BadParameter(f"{name!r} is no fault. Choose one of: {', '.join(FAULTS)}.")
    return name


def _fault_to_show(name: str) -> str:
    # The demo's loop does not sample.
    shown = [other for other in FAULTS if other != "none" and other not in SAMPLING_FAULTS]
    if name not in shown:
        names = ", ".join(shown)
        raise typer.BadParameter(f"{name!r} is no fault to show. Choose one of: {names}.")
    return name


def _complete_url(url: str | None) -> str | None:
    try:
        return None if url is None else traces_url(url)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _file_to_write(path: Path | None) -> Path | None:
    # Seen to before three runs have been waited for.
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise typer.BadParameter(f"{path} cannot be written: no such directory, or a directory.")
    return path


def demo(
    fault: Annotated[
        str,
        typer.Option(
            callback=_fault_to_show,
            metavar="NAME",
            help=f"What goes wrong: {', '.join(_STORIES)}; `tinker-guard gateway --list` "
            "describes these and more.",
        ),
    ] = "poll",
    otlp: Annotated[
        str | None,
        typer.Option(
            callback=_complete_url,
            metavar="URL",
            help="Also send the spans to this backend over OTLP/HTTP, such as "
            "http://localhost:4318 (needs the extra `otlp`).",
        ),
    ] = None,
    svg: Annotated[
        Path | None,
        typer.Option(
            callback=_file_to_write,
            metavar="PATH",
            help="Also save the result as a picture to this file.",
        ),
    ] = None,
) -> None:
    """Train the same five steps three times: without a fault, with it, and with the guard.

    Everything happens on this machine: a local gateway, control plane and trainer, and the real
    `tinker` SDK. The exit code is 0 if the guarded run ended as it should, else 1.
    """
    try:
        exporter = None if otlp is None else otlp_exporter(otlp)
        GuardSettings()
    except MissingExporterError:
        _fail("--otlp needs an exporter. Run: pip install 'tinker-guard[demo,otlp]'", _USAGE_ERROR)
    except InvalidSettingsError as error:
        _fail(str(error), _USAGE_ERROR)
    _prepare_environment()
    console = screen.new_console()
    is_right, is_stuck = _Demo(console, FAULTS[fault]).show(svg, otlp, exporter)
    if is_stuck:
        # The SDK's threads are still at it, and would keep the interpreter from ending.
        sys.stdout.flush()
        os._exit(1)
    raise typer.Exit(0 if is_right else 1)


def _prepare_environment() -> None:
    # A proxy would not find this machine's own ports.
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1")))
    # The demo shows spans, whatever the shell says about other programs.
    os.environ.pop("OTEL_SDK_DISABLED", None)
    screen.quiet_other_loggers()


class _Demo:
    """The three runs, and what is shown of them."""

    def __init__(self, console: Console, fault: Fault) -> None:
        self._console = console
        self._fault = fault
        self._recorder = Recorder()

    def show(
        self, svg: Path | None, otlp: str | None, exporter: SpanExporter | None
    ) -> tuple[bool, bool]:
        """Show everything; whether the guarded run is right, and whether a run is stuck."""
        story = _STORIES.get(self._fault.name, self._fault.description)
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
        try:
            screen.save_svg(svg, f"tinker-guard demo --fault {self._fault.name}", *parts)
        except OSError as error:
            _fail(f"could not write {svg}: {error.strerror}", 1)

    def _send(self, otlp: str, exporter: SpanExporter) -> None:
        spans = self._recorder.spans()
        place = without_secrets(otlp)
        with self._console.status(f"sending {len(spans)} spans to {place}"):
            is_sent = send(spans, exporter)
        if is_sent:
            self._console.print(f"Sent {len(spans)} spans to {place}.", soft_wrap=True)
        else:
            typer.echo(
                f"tinker-guard: the backend at {place} did not take the spans. Does it run?",
                err=True,
            )


_WHY_RIGHT: Final = {
    End.FINISHED: "the guarded run finished, its losses equal the fault-free ones to the last "
    "digit, and every piece of work was done once.",
    End.NOT_FOUND: "the job is gone, and the guarded run said so at once, with the SDK's own "
    "error and nothing sent again.",
    End.UNVERIFIED: "nobody could say whether the job runs, so the guard handed the 404 back as "
    "it came, and labelled it unverified.",
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


def gateway(
    fault: Annotated[
        str | None,
        typer.Option(callback=_known_fault, metavar="NAME", help="What goes wrong; see --list."),
    ] = None,
    fault_file: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            readable=True,
            metavar="PATH",
            help="A fault of your own as JSON, with the fields of tinker_guard.gateway.Fault.",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to serve on.")
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            min=0, max=65535, metavar="NUMBER", help="Port to serve on; 0 takes a free one."
        ),
    ] = 8765,
    list_faults: Annotated[
        bool, typer.Option("--list", help="List the faults by name, and end.")
    ] = False,
) -> None:
    """Serve a local gateway, control plane and trainer, to try your own training loop on.

    Shows one line for each 404 and for each question to the control plane. Ctrl-C ends it.
    """
    if list_faults:
        width = max(map(len, FAULTS))
        for known in FAULTS.values():
            typer.echo(f"{known.name:{width}}  {known.description}")
        return
    if fault is not None and fault_file is not None:
        _fail("give either --fault or --fault-file, not both", _USAGE_ERROR)
    chosen = FAULTS[fault or "none"] if fault_file is None else _read_fault(fault_file)
    screen.quiet_other_loggers()
    try:
        serve(chosen, host, port, typer.echo)
    except OSError as error:
        problem = str(error.strerror or error).partition(" (while")[0]
        hint = "; --port 0 takes a free one" if error.errno == errno.EADDRINUSE else ""
        _fail(f"cannot serve on {host}:{port}: {problem}{hint}", 1)


def _read_fault(path: Path) -> Fault:
    try:
        return Fault.from_json(path.read_text(encoding="utf-8"))
    except (AttributeError, OSError, TypeError, ValueError) as error:
        _fail(f"{path} holds no fault: {error}", _USAGE_ERROR)


def _fail(message: str, exit_code: int) -> NoReturn:
    typer.echo(f"tinker-guard: {message}", err=True)
    raise typer.Exit(exit_code)


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command(short_help="Show a training run with and without the guard.")(demo)
    app.command(short_help="Serve a local gateway to try your own training loop on.")(gateway)
