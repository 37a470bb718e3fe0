"""Whether an untouched request has become dear: fails where a ratio is twice the recorded one.

    python -m benchmarks.regression [--record]

The ratios are those of `benchmarks.overhead`, of a few rounds. What a machine can do cancels out of
them, so that they are compared with `recorded.json`, wherever that was written.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

import httpx

from benchmarks.overhead import Mode, added, measure
from benchmarks.report import machine, table

if TYPE_CHECKING:
    from collections.abc import Mapping

RECORDED: Final = Path(__file__).with_name("recorded.json")
ROUNDS: Final = 31
ALLOWED: Final = 2.0
"""How many times the recorded ratio is no regression yet: ratios of a busy machine differ."""
PAIRS: Final = (
    (Mode.NOBODY, "guard", "httpx-retries"),
    (Mode.SPANS, "guard", "OpenTelemetry's httpx layer"),
    (Mode.SPANS, "guard, over pyqwest", "OpenTelemetry's httpx layer"),
    (Mode.SPANS, "guard, a poll", "OpenTelemetry's httpx layer"),
)
"""What is compared with what; both are measured in the same rounds."""


def measure_ratios(rounds: int = ROUNDS) -> dict[str, float]:
    """What the guard adds to a request over what its peer adds; medians."""
    medians = {
        mode: {name: median(extra) for name, extra in added(measure(mode, rounds=rounds)).items()}
        for mode in dict.fromkeys(mode for mode, _, _ in PAIRS)
    }
    return {
        f"{name} / {peer}, {mode}": round(medians[mode][name] / medians[mode][peer], 3)
        for mode, name, peer in PAIRS
    }


def regressions(ratios: Mapping[str, float], recorded: Mapping[str, float]) -> list[str]:
    """What is more than `ALLOWED` times as dear as recorded, or was never recorded."""
    return [
        what
        for what, ratio in ratios.items()
        if what not in recorded or ratio > ALLOWED * recorded[what]
    ]


def record(ratios: Mapping[str, float], path: Path = RECORDED) -> None:
    """Write the ratios, and what machine they were measured on."""
    where = machine() | {"httpx": httpx.__version__}
    path.write_text(json.dumps({"machine": where, "ratios": dict(ratios)}, indent=2) + "\n")


def main() -> int:
    """Measure, and compare or record."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--record", action="store_true", help=f"write {RECORDED.name} anew")
    given = arguments.parse_args()
    ratios = measure_ratios()
    if given.record:
        record(ratios)
    recorded = json.loads(RECORDED.read_text())["ratios"]
    found = regressions(ratios, recorded)
    table(
        f"What the guard adds to an untouched request, over its peer (medians of {ROUNDS} rounds)",
        ("ratio", "now", "recorded", ""),
        (
            (what, f"{ratio:.2f}", recorded.get(what, "never"), "worse" if what in found else "ok")
            for what, ratio in ratios.items()
        ),
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
