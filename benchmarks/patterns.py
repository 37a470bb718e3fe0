"""What patterns of base URLs cost: an untouched request, and looking up its URL.

    python -m benchmarks.patterns [--json PATH]

The first figure is a request on a warm trainer route with a canned answer, and without an
OpenTelemetry SDK. The others are the look-up alone: of a URL that is remembered, of one on a route
whose URL is not, and of one on no route. Contestants take turns.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING, Final

import httpx

from benchmarks.overhead import Canned
from benchmarks.report import Row, run_benchmarks, spread, table
from tinker_guard import GuardSettings, GuardTransport
from tinker_guard.core.routes import RouteTable
from tinker_guard.policy.route import patterns_of

if TYPE_CHECKING:
    from collections.abc import Callable

BASE: Final = "https://gateway.test/training/v1/rlorTrainerJobs/acc/job-1"
WARM: Final = httpx.URL(f"{BASE}/api/v1/forward_backward")
STRANGE: Final = httpx.URL("https://elsewhere.test/services/x/api/v1/forward_backward")
COUNTS: Final = (0, 1, 10, 100)
KINDS: Final[dict[str, str]] = {
    "paths": "/trainers-{n}/{{tenant}}/{{_job}}",
    "hosts": "http://head-{n}:8000",
    "hosts with a placeholder": "https://{{workspace}}--app-{n}.modal.run",
}
GOAL: Final = 1.0
"""Microseconds that a hundred patterns may add to a request."""


def measure(rounds: int = 31, calls: int = 2000) -> dict[str, list[float]]:
    """Microseconds of each contestant, a figure for each round."""
    return asyncio.run(_measure(rounds, calls))


async def _measure(rounds: int, calls: int) -> dict[str, list[float]]:
    request = httpx.Request("POST", WARM, content=b"{}")
    figures: dict[str, list[float]] = {}
    guards = {}
    look_ups: dict[str, Callable[[], object]] = {}
    fresh = [httpx.URL(f"{BASE}/api/v1/sessions/{number}/finish") for number in range(calls)]
    for count in COUNTS:
        for kind in KINDS if count else ("patterns",):
            texts = [KINDS.get(kind, "").format(n=number) for number in range(count)]
            name = f"{count} {kind}"
            guards[name] = GuardTransport(
                Canned(), settings=GuardSettings(warmup_successes=0, routes=texts)
            )
            found, patterns = RouteTable(), patterns_of(tuple(texts))
            look_ups |= {
                f"{name}, remembered": lambda f=found, p=patterns: [  # type: ignore[misc]
                    f.find(WARM, p) for _ in range(calls)
                ],
                f"{name}, not remembered": lambda f=found, p=patterns: [  # type: ignore[misc]
                    f.find(url, p) for url in fresh
                ],
                f"{name}, on no route": lambda f=found, p=patterns: [  # type: ignore[misc]
                    f.find(STRANGE, p) for _ in range(calls)
                ],
            }
    for _ in range(rounds):
        for name, guard in guards.items():
            began_at = time.perf_counter()
            for _ in range(calls):
                await guard.handle_async_request(request)
            figures.setdefault(name, []).append((time.perf_counter() - began_at) / calls * 1e6)
        for name, look_up in look_ups.items():
            began_at = time.perf_counter()
            look_up()
            figures.setdefault(name, []).append((time.perf_counter() - began_at) / calls * 1e6)
    return figures


def rows(figures: dict[str, list[float]]) -> list[Row]:
    """The line of the table of goals that this benchmark fills."""
    none = min(figures["0 patterns"])
    most = max(min(figures[f"{COUNTS[-1]} {kind}"]) for kind in KINDS)
    return [
        Row(
            f"untouched request, {COUNTS[-1]} patterns of routes",
            f"<= {GOAL:g} us more than with none",
            f"none {none:.2f} us",
            f"{most:.2f} us",
            None,
            most - none <= GOAL,
        )
    ]


def show(figures: dict[str, list[float]]) -> None:
    """Print every figure."""
    table(
        "Patterns of routes, microseconds: median (middle half)",
        ("patterns", "a request", "look-up: remembered", "on a route, not remembered", "on none"),
        (
            (
                name,
                spread(values),
                *(
                    spread(figures[f"{name}, {where}"])
                    for where in ("remembered", "not remembered", "on no route")
                ),
            )
            for name, values in figures.items()
            if "," not in name
        ),
    )


if __name__ == "__main__":
    run_benchmarks(__doc__, sys.modules[__name__])
