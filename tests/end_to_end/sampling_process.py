"""Samples in other processes, for test_sampling.py: in a worker, and as a program."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import sys
from typing import Any

from tests.end_to_end import sdk
from tinker_guard import install_guard

PROMPT = [1, 2, 3]
PATIENCE = 20.0
"""Seconds that a sample may take."""


def outcomes(client: Any, seeds: list[int]) -> list[Any]:
    """Ask for one sample per seed, all at once; returns tokens, or what came instead of them."""
    params = [sdk.types.SamplingParams(max_tokens=8, seed=seed) for seed in seeds]
    prompt = sdk.types.ModelInput.from_ints(PROMPT)
    return [_outcome(future) for future in [client.sample(prompt, 1, p) for p in params]]


def _outcome(future: Any) -> Any:
    try:
        return list(future.result(PATIENCE).sequences[0].tokens)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def install_and_sample(client: Any, seeds: list[int]) -> list[Any]:
    """Install the guard only when the client is here already."""
    install_guard()
    return outcomes(client, seeds)


def unpickle_and_sample(pickled: bytes, seeds: list[int]) -> list[Any]:
    """Make the client of what another process pickled."""
    return outcomes(pickle.loads(pickled), seeds)


def main(case: str, seeds: list[int], base_url: str, api_key: str) -> list[Any]:
    """Run one case as a program."""
    if "TEST_INSTALLS_GUARD" in os.environ:
        install_guard()
    if case != "sidecar":
        with multiprocessing.get_context(case).Pool(1) as pool:
            found: list[Any] = pool.apply(unpickle_and_sample, (sys.stdin.buffer.read(), seeds))
            return found
    import tinker

    service = tinker.ServiceClient(base_url=base_url, api_key=api_key)
    client = sdk.for_running_loop(service.create_sampling_client(base_model="tinker-guard/bigram"))
    return outcomes(client, seeds)


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], json.loads(sys.argv[2]), *sys.argv[3:])))  # noqa: T201
    sys.stdout.flush()
    # Without the interpreter's own end, which waits for what a stuck sample still holds.
    os._exit(0)
