"""Writes what of docs/telemetry.md comes from code: the tables of names, and the example trace.

`python scripts/telemetry_page.py`. The trace is that of a real run: the SDK against the local
gateway, which forgets the route for a second as a result is fetched.
"""

# ruff: noqa: T201

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Final

from rich.console import Console

from benchmarks.report import markdown
from testkit.pages import put_below
from tinker_guard.cli.demo.run import carry_out
from tinker_guard.cli.demo.screen import tree_of
from tinker_guard.cli.demo.spans import Recorder, most_telling, trees
from tinker_guard.gateway import FAULTS
from tinker_guard.observability.attributes import ATTRIBUTES, On
from tinker_guard.observability.metrics import METRICS

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "telemetry.md"


def attributes() -> str:
    """The table of attributes."""
    return markdown(
        ("name", "type", "on", "meaning"),
        (
            (
                f"`{attribute.name}`",
                attribute.type.__name__,
                ", ".join(on.value for on in On if on in attribute.on),
                attribute.meaning,
            )
            for attribute in ATTRIBUTES.values()
        ),
    )


def metrics() -> str:
    """The table of metrics."""
    return markdown(
        ("name", "kind", "unit", "attributes", "meaning"),
        (
            (
                f"`{metric.name}`",
                "counter" if metric.bounds is None else "histogram",
                metric.unit,
                ", ".join(f"`{name}`" for name in metric.attributes),
                metric.meaning,
            )
            for metric in METRICS.values()
        ),
    )


def example() -> str:
    """The spans of one request that met a race, from a real run."""
    logging.getLogger().addHandler(logging.NullHandler())
    recorder = Recorder()
    recorder.begin("guarded")
    run = carry_out(FAULTS["poll"], is_guarded=True)
    if run.losses is None:
        raise RuntimeError(f"the run did not finish: {run.error_type}")
    root = most_telling(trees(recorder.spans("guarded")))
    if root is None:
        raise RuntimeError("the run met no race")
    out = io.StringIO()
    Console(file=out, width=100, highlight=False).print(tree_of(root))
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    return "```\n" + "\n".join(lines) + "\n```\n"


if __name__ == "__main__":
    put_below(PAGE, "Attributes", attributes())
    put_below(PAGE, "Metrics", metrics())
    put_below(PAGE, "A race, seen in a trace", example())
    print(f"wrote {PAGE.name}")
