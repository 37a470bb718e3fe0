"""Says whether connections are left open when all clients are closed and forgotten."""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.end_to_end import sdk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tinker_guard.gateway import LocalGateway

LEFT_BEHIND = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
"""Marks where the SDK leaves the connection of its first request to the garbage collector."""
DEADLINE = 10.0
"""Seconds that connections get to close; they take milliseconds."""


def established(port: int) -> int:
    """How many connections to a local port are open, as the server sees them; 0 if unknown."""
    if sys.platform != "linux":
        return 0
    wanted = f":{port:04X}"
    rows = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    return sum(1 for row in rows if row[1].endswith(wanted) and row[3] == "01")


def port_of(gateway: LocalGateway) -> int:
    return int(gateway.origin.rpartition(":")[2])


@contextmanager
def nothing_left(*ports: int) -> Iterator[None]:
    """Afterwards, no connection to these ports is open, and the garbage collector closed none.

    The SDK never closes the client of a holder's first request, so that is done here, before the
    garbage collector finds it and warns.
    """
    gc.collect()
    gc.disable()
    try:
        yield
        _close_forgotten_clients()
        started_at = time.monotonic()
        while left := sum(established(port) for port in ports):
            assert time.monotonic() - started_at < DEADLINE, f"{left} connections are left open"
            # pyqwest closes its connections on a thread of its own, once nobody refers to them.
            gc.collect()
            time.sleep(0.01)
    finally:
        gc.enable()


def _close_forgotten_clients() -> None:
    async def close() -> None:
        for candidate in gc.get_objects():
            if issubclass(type(candidate), sdk.client_class) and not candidate.is_closed():
                await candidate.close()

    loop = sdk.holder_loop()
    if loop is not None:
        asyncio.run_coroutine_threadsafe(close(), loop).result()
