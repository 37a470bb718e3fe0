"""The demo on the screen: live lines during a run, then a table and a tree of spans."""

from __future__ import annotations

import io
import logging
import re
import time
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from rich import box
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from tinker_guard.cli.demo.judge import say_applied
from tinker_guard.cli.demo.run import WORK
from tinker_guard.cli.words import duration

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

    from rich.console import RenderableType

    from tinker_guard.cli.demo.run import Run
    from tinker_guard.cli.demo.spans import Node
    from tinker_guard.gateway import LocalGateway

PLAIN_WIDTH: Final = 100
_SVG_WIDTH: Final = 110
_REPEAT_AFTER: Final = 5.0
"""Seconds after which a repeated line is printed again."""
_ERROR_LENGTH: Final = 120

_guard_logger: Final = logging.getLogger("tinker_guard")


def quiet_other_loggers() -> None:
    """Prevent the SDK, uvicorn and the exporters from writing between the demo's lines."""
    # Without any handler, Python prints warnings to stderr.
    logging.getLogger().addHandler(logging.NullHandler())


class Watch(logging.Handler):
    """Shows one run in progress: the guard's log lines, and a status line.

    A context manager around the run. Lines are printed at once. A line that differs from an
    earlier one only in its numbers is counted, and printed again after a while, so that output
    without a status line shows progress too.
    """

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self._console = console
        self._status = console.status("")
        self._started_at = time.monotonic()
        self._printed_at: dict[str, float] = {}
        self._repeats = 0
        self._waiting = ""
        self._waiting_at = 0.0

    def __enter__(self) -> Watch:
        self._started_at = time.monotonic()
        self._level_before = _guard_logger.level, _guard_logger.propagate
        _guard_logger.addHandler(self)
        _guard_logger.setLevel(logging.INFO)
        _guard_logger.propagate = False
        if self._console.is_terminal:
            self._status.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._status.stop()
        if self._repeats:
            self._print(" " * 8, f"({self._repeats} more like these)", "dim")
        _guard_logger.removeHandler(self)
        level, _guard_logger.propagate = self._level_before
        _guard_logger.setLevel(level)

    def emit(self, record: logging.LogRecord) -> None:
        """Show one log line of the guard."""
        elapsed = time.monotonic() - self._started_at
        message = record.getMessage()
        if record.levelno <= logging.INFO:
            self._waiting, self._waiting_at = message, elapsed
        shape = re.sub(r"\d+(\.\d+)?", "", message)
        last = self._printed_at.get(shape)
        if last is not None and elapsed - last < _REPEAT_AFTER:
            self._repeats += 1
            return
        self._printed_at[shape] = elapsed
        style = "yellow" if record.levelno > logging.INFO else "dim"
        self._print(f"{elapsed:6.2f} s", message, style)

    def tick(self, gateway: LocalGateway) -> None:
        """Update the status line."""
        elapsed = time.monotonic() - self._started_at
        if self._waiting and elapsed - self._waiting_at < 1.0:
            doing = self._waiting
        else:
            doing = f"training, {len(gateway.applied)} of {WORK} pieces of work done"
        line = Text(f"{elapsed:5.1f} s  {doing}")
        line.truncate(self._console.width - 4, overflow="ellipsis")
        self._status.update(line)

    def _print(self, when: str, message: str, style: str) -> None:
        if not self._console.is_terminal:
            self._console.print(f"{when}  {message}", markup=False, soft_wrap=True)
            return
        line = Table.grid(padding=(0, 2))
        line.add_row(Text(when, style="dim"), Text(message, style=style))
        self._console.print(line)


def say_end(run: Run, *, is_right: bool | None = None) -> Text:
    """One or two lines on how a run ended.

    Args:
        run: The run.
        is_right: Whether it ended correctly; None if not judged.
    """
    if run.is_stuck:
        return Text(f"stuck: still waiting after {run.seconds:.0f} s", style="bold red")
    if run.losses is not None:
        text = Text("finished", style="bold green")
        return text.append(
            f" in {run.seconds:.2f} s, last loss {run.losses[-1]!r}", style="not bold default"
        )
    error = " ".join(run.error.split())
    if len(error) > _ERROR_LENGTH:
        error = f"{error[:_ERROR_LENGTH]}..."
    how, style = ("ended rightly", "bold green") if is_right else ("died", "bold red")
    text = Text(how, style=style)
    text.append(f" after {run.seconds:.2f} s, {run.error_type}: ", "not bold default")
    return text.append(error, style="not bold dim")


def table_of(runs: Sequence[tuple[str, Run]], *, last_is_right: bool) -> Table:
    """The runs side by side, a column each, in 80 columns of a terminal.

    Args:
        runs: Each with its name: the one without a fault first, the guarded one last.
        last_is_right: Whether the last one ended correctly.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("", style="dim", no_wrap=True)
    for name, _ in runs:
        table.add_column(name, overflow="fold")
    healthy, guarded = runs[0][1], runs[-1][1]
    each = [run for _, run in runs]
    table.add_row(
        "outcome", *(_outcome(run, is_right=run is guarded and last_is_right) for run in each)
    )
    table.add_row("losses", *(_losses(run, None if run is healthy else healthy) for run in each))
    table.add_row("last loss", *(repr(run.losses[-1]) if run.losses else "-" for run in each))
    table.add_row("time", *(f"{run.seconds:.2f} s" for run in each))
    table.add_row("resends", *(str(run.resends) if run is guarded else "-" for run in each))
    table.add_row("verdicts", *(_verdicts(run) if run is guarded else "-" for run in each))
    table.add_row("questions asked", *(str(run.questions) for run in each))
    table.add_row("seq_ids applied", *(say_applied(run.applied) for run in each))
    return table


def _outcome(run: Run, *, is_right: bool) -> Text:
    if run.is_stuck:
        return Text("stuck", style="red")
    if run.losses is not None:
        return Text("finished", style="green")
    text = Text(str(run.error_type), style="green" if is_right else "red")
    return text.append(", rightly" if is_right else "")


def _losses(run: Run, healthy: Run | None) -> Text:
    if run.losses is None:
        return Text("-")
    if healthy is None or healthy.losses is None:
        return Text(str(len(run.losses)))
    same = sum(mine == its for mine, its in zip(run.losses, healthy.losses, strict=False))
    total = max(len(run.losses), len(healthy.losses))
    style = "green" if same == total else "red"
    return Text(f"{same} of {total} losses identical", style=style)


def _verdicts(run: Run) -> str:
    return ", ".join(f"{verdict} {count}x" for verdict, count in run.verdicts.items()) or "none"


_SHOWN_FIRST: Final = 4
_SHOWN_LAST: Final = 2


def tree_of(root: Node) -> Tree:
    """The tree of one request's spans; a long row of similar ones is shortened in the middle."""
    tree = Tree(_root_label(root), guide_style="dim")
    _grow(tree, root)
    return tree


def _grow(tree: Tree, node: Node) -> None:
    children = node.children
    hidden = children[_SHOWN_FIRST:-_SHOWN_LAST]
    # The line "1 more" would save no space.
    if len(hidden) < 2:
        hidden = []
    for child in children:
        if hidden and child is hidden[0]:
            tree.add(Text(f"... {len(hidden)} more like these ...", style="dim"))
        if not any(child is other for other in hidden):
            _grow(tree.add(_label(child)), child)


def _root_label(node: Node) -> RenderableType:
    labels = {
        name: node.attributes[name]
        for name in (
            "tinker_guard.outcome",
            "tinker_guard.retries",
            "tinker_guard.verdict",
            "tinker_guard.verdict.reason",
        )
        if name in node.attributes
    }
    grid = Table.grid(padding=(0, 2))
    pairs = [_pair(name, value) for name, value in labels.items()]
    for first, second in zip(pairs[::2], [*pairs[1::2], Text()], strict=False):
        grid.add_row(first, second)
    return Group(_label(node), Padding(grid, (0, 0, 0, 2)))


def _pair(name: str, value: Any) -> Text:
    return Text(f"{name} ", style="dim").append(str(value), style="bold not dim")


def _label(node: Node) -> Text:
    attributes = node.attributes
    parts = [(node.span.name, "bold" if node.is_guards_own else "default")]
    verdict = str(attributes.get("tinker_guard.verdict", ""))
    if node.is_exchange:
        url = attributes.get("url.full")
        if url is not None and not node.is_guards_own:
            parts.append((f".../{urlsplit(url).path.rpartition('/')[2]}", "default"))
        parts.append((f"{node.span.kind.name} span of {node.scope}", "dim"))
    elif (resend := attributes.get("http.request.resend_count")) is not None:
        pause = float(attributes.get("tinker_guard.pause", 0.0))
        parts += [(f"resend {resend} after {pause:.2f} s", "default"), (verdict, "yellow")]
    elif node.is_question:
        state = str(attributes.get("tinker_guard.job.state", "no state"))
        parts += [(state.removeprefix("JOB_STATE_"), "default"), (verdict, "yellow")]
    elif (probes := attributes.get("tinker_guard.warmup.probes")) is not None:
        parts.append((f"{probes} probes", "default"))
    elif (result := attributes.get("tinker_guard.probe.result")) is not None:
        parts.append((str(result), "default"))
    if (status := attributes.get("http.response.status_code")) is not None:
        parts.append((str(status), "green" if status < 400 else "red"))
    parts.append((duration(node.seconds), "cyan"))
    # The gaps have no style of their own: some programs drop a leading space of a text in an SVG.
    return Text("  ").join(Text(text, style) for text, style in parts if text)


def save_svg(path: Path, title: str, *parts: RenderableType) -> None:
    """Write the output as a self-contained SVG.

    Raises:
        OSError: The file cannot be written.
    """
    console = Console(
        record=True,
        width=_SVG_WIDTH,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        highlight=False,
    )
    for part in parts:
        console.print(part)
    svg = console.export_svg(title=title, unique_id="tinker-guard")
    # Rich's SVG loads a font from a CDN; the machine's own font is enough.
    svg = re.sub(r"@font-face\s*\{[^}]*\}\s*|<!--.*?-->\s*", "", svg)
    svg = svg.replace("Fira Code, monospace", _FONTS).replace(
        "font-family: arial", "font-family: sans-serif"
    )
    path.write_text(svg, encoding="utf-8")


_FONTS: Final = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
