"""What the guard costs a program as it starts: one without an SDK, and one with `install_guard()`.

    python -m benchmarks.startup [--json PATH]

Each program is `pass` in a new interpreter, which starts with what the launcher left in its
environment. Contestants take turns; a launch's cost is its excess over the bare one beside it.
`install_guard()` is timed within a program that has imported tinker, and so is what follows: the
first client, with which the rest of the guard is imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Final

from opentelemetry.instrumentation import auto_instrumentation

from benchmarks.report import Row, ratio_of, run_benchmarks, spread, table
from tinker_guard.install.child_env import inject

GUARD: Final = "tinker-guard run"
PEER: Final = "opentelemetry-instrument"
GOAL: Final = 5.0
"""Milliseconds; the requirement says "a few"."""
INSTALL: Final = "install_guard()"
FIRST_CLIENT: Final = "the first client, guarded"
IMPORT: Final = "import tinker"
INSTALL_GOAL: Final = 20.0
"""Milliseconds of the processor's time."""
_PROGRAM: Final = """
from time import process_time
times = [process_time()]
import tinker
times.append(process_time())
from tinker_guard import install_guard
install_guard()
times.append(process_time())
import tinker_guard.transport
times.append(process_time())
print(*times)
"""


def measure(rounds: int = 51) -> dict[str, list[float]]:
    """Milliseconds from launch to end of each contestant, a figure for each round."""
    # Modules are compiled once, as in any installation.
    ours = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
    bare = {name: value for name, value in os.environ.items() if name not in ours}
    guarded = dict(bare)
    inject(guarded)
    environments = {
        "bare": bare,
        GUARD: guarded,
        PEER: {
            **bare,
            "PYTHONPATH": str(Path(auto_instrumentation.__file__).parent),
            # Its own work alone, without anything that it launches.
            "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "*",
            "OTEL_TRACES_EXPORTER": "none",
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_LOGS_EXPORTER": "none",
        },
    }
    steps = (IMPORT, INSTALL, FIRST_CLIENT)
    figures: dict[str, list[float]] = {name: [] for name in (*environments, *steps)}
    for turn in range(rounds + 1):
        for name, environment in environments.items():
            started_at = time.perf_counter()
            subprocess.run([sys.executable, "-c", "pass"], env=environment, check=True)
            if turn > 0:
                figures[name].append((time.perf_counter() - started_at) * 1e3)
        program = [sys.executable, "-c", _PROGRAM]
        done = subprocess.run(  # noqa: S603 - this very program
            program, env=bare, check=True, capture_output=True, text=True
        )
        times = [float(at) * 1e3 for at in done.stdout.split()]
        if turn > 0:
            for name, began_at, ended_at in zip(steps, times, times[1:], strict=False):
                figures[name].append(ended_at - began_at)
    return figures


def added(figures: dict[str, list[float]]) -> dict[str, list[float]]:
    """Milliseconds on top of the bare launch beside it."""
    return {
        name: [each - bare for each, bare in zip(figures[name], figures["bare"], strict=True)]
        for name in (GUARD, PEER)
    }


def rows(figures: dict[str, list[float]]) -> list[Row]:
    """The lines of the table of goals that this benchmark fills."""
    extra = {name: median(values) for name, values in added(figures).items()}
    return [
        Row(
            "start of a program without an SDK",
            f"<= {GOAL:g} ms",
            f"{PEER} {extra[PEER]:.0f} ms",
            f"{extra[GUARD]:.1f} ms",
            ratio_of(extra[GUARD], extra[PEER]),
            extra[GUARD] <= GOAL,
        ),
        Row(
            "install_guard(), after import tinker",
            f"<= {INSTALL_GOAL:g} ms",
            f"{IMPORT} {median(figures[IMPORT]):.0f} ms",
            f"{median(figures[INSTALL]):.0f} ms",
            ratio_of(median(figures[INSTALL]), median(figures[IMPORT])),
            median(figures[INSTALL]) <= INSTALL_GOAL,
        ),
    ]


def show(figures: dict[str, list[float]]) -> None:
    """Print every figure."""
    extra = added(figures)
    table(
        "Start of a program, milliseconds: median (middle half)",
        ("launcher", "a launch", "on top of bare"),
        (
            (name, spread(values), spread(extra[name]) if name in extra else "")
            for name, values in figures.items()
        ),
    )


if __name__ == "__main__":
    run_benchmarks(__doc__, sys.modules[__name__])
