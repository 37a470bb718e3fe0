"""All benchmarks, ending with the table of goals; about a quarter of an hour.

python -m benchmarks [--markdown] [--docs DIR] [--json PATH] [--record PATH]
"""

from benchmarks import (
    arrivals,
    fleet,
    memory,
    new_transport,
    overhead,
    overload,
    patterns,
    recovery,
    stale_replicas,
    startup,
    storm,
)
from benchmarks.report import run_benchmarks

if __name__ == "__main__":
    run_benchmarks(
        __doc__,
        recovery,
        stale_replicas,
        storm,
        arrivals,
        overhead,
        patterns,
        startup,
        new_transport,
        memory,
        fleet,
        overload,
    )
