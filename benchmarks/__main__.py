"""All benchmarks, ending with the table of goals; about ten minutes.

python -m benchmarks [--markdown] [--requests N] [--docs DIR] [--json PATH]
"""

from __future__ import annotations

from pathlib import Path

from benchmarks import fleet, memory, overhead, recovery, startup, storm
from benchmarks.report import console, parser, show_goals, write_json


def main() -> None:
    """Measure, print, write."""
    arguments = parser(__doc__)
    arguments.add_argument("--markdown", action="store_true", help="also print the table of faults")
    arguments.add_argument(
        "--requests", type=int, default=1_000_000, metavar="N", help="requests to watch memory over"
    )
    arguments.add_argument("--docs", type=Path, metavar="DIR", help="write the fleet's page here")
    given = arguments.parse_args()

    recovered = recovery.measure()
    recovery.show(recovered)
    storms = storm.measure()
    storm.show(storms)
    costs = overhead.measure_both()
    overhead.show(costs)
    launches = startup.measure()
    startup.show(launches)
    growth = memory.measure_both(given.requests)
    memory.show(growth)
    loads = fleet.measure()
    fleet.show(loads)
    if given.docs:
        fleet.write_docs(given.docs, loads)
    if given.markdown:
        console.print(recovery.as_markdown(recovered), markup=False, soft_wrap=True)

    rows = [
        *recovery.rows(recovered),
        *storm.rows(storms),
        *overhead.rows(costs),
        *startup.rows(launches),
    ]
    show_goals(rows)
    if given.json:
        figures = (
            recovery.details(recovered)
            | storm.details(storms)
            | overhead.details(costs)
            | startup.details(launches)
            | memory.details(growth)
            | fleet.details(loads)
        )
        write_json(given.json, rows, figures)


if __name__ == "__main__":
    main()
