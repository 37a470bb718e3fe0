"""Another transport over httpx, for a probe or a resend: how long building it takes.

    python -m benchmarks.new_transport [--json PATH]

The event loop waits meanwhile. Times are the thread's own, of the processor.
"""

from __future__ import annotations

import sys
from statistics import median
from time import thread_time
from typing import TYPE_CHECKING, Final

import httpx

from benchmarks.report import Row, ratio_of, run_benchmarks, spread, table
from tinker_guard.install.clients import twin_of

if TYPE_CHECKING:
    from collections.abc import Callable

TWIN: Final = "guard, like the first one"
PEER: Final = "httpx, which loads the certificates"
GOAL: Final = 1.0
"""Milliseconds."""


def measure(rounds: int = 51) -> dict[str, list[float]]:
    """Milliseconds that each takes, in turn."""
    first = httpx.AsyncHTTPTransport()
    builders: dict[str, Callable[[], object]] = {
        TWIN: lambda: twin_of(first),
        PEER: httpx.AsyncHTTPTransport,
    }
    figures: dict[str, list[float]] = {name: [] for name in builders}
    for _ in range(rounds):
        for name, build in builders.items():
            began_at = thread_time()
            assert build() is not None
            figures[name].append((thread_time() - began_at) * 1e3)
    return figures


def rows(figures: dict[str, list[float]]) -> list[Row]:
    """The line of the table of goals that this benchmark fills."""
    ours, peer = median(figures[TWIN]), median(figures[PEER])
    return [
        Row(
            "another transport over httpx",
            f"<= {GOAL:g} ms",
            f"httpx {peer:.0f} ms",
            f"{ours:.2f} ms",
            ratio_of(ours, peer),
            ours <= GOAL,
        )
    ]


def show(figures: dict[str, list[float]]) -> None:
    """Print every figure."""
    table(
        "Another transport over httpx, milliseconds: median (middle half)",
        ("how", "takes"),
        ((name, spread(values)) for name, values in figures.items()),
    )


if __name__ == "__main__":
    run_benchmarks(__doc__, sys.modules[__name__])
