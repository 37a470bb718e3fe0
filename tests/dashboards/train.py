"""A guarded program: trains once for each fault named on its standard input, a line each.

It sets up no telemetry of its own, and answers each line with what became of the run.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import replace
from typing import Final

import tinker

from tinker_guard import install_guard
from tinker_guard.gateway import FAULTS, Fault, LocalGateway, Race
from tinker_guard.gateway.train import train_five_steps

RUNS: Final = {
    "clean": FAULTS["none"],
    "late-route": FAULTS["late-route"],
    "deleted": FAULTS["deleted"],
    # A shorter race ends well: a probe that reaches the trainer is evidence too.
    "unverified": replace(
        FAULTS["control-plane-down"], races=(Race("forward_backward", 2, seconds=3600.0),)
    ),
    # In the last step, so that newest-first lists have it on top.
    "recovered": replace(FAULTS["poll"], races=(Race("retrieve_future", 10, seconds=1.0),)),
    "slow": Fault(races=(Race("forward_backward", 2, seconds=11.0),)),
    "exhausted": Fault(races=(Race("forward_backward", 2, seconds=3600.0),)),
}


def main() -> None:
    """Train until the input ends."""
    install_guard()
    for line in sys.stdin:
        name = line.strip()
        with LocalGateway(RUNS[name], job=f"job-{name}") as gateway:
            client = tinker.ServiceClient(base_url=gateway.base_url, api_key=gateway.api_key)
            try:
                train_five_steps(client)
                end = "finished"
            except tinker.NotFoundError:
                end = "not found"
            with suppress(Exception):
                client.close("success" if end == "finished" else "errored").result(timeout=5)
        sys.stdout.write(f"{name}: {end}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
