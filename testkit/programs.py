"""Programs that tests start, all on the loopback address, and what is waited for with them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Any, Final

import httpx

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Sequence
    from pathlib import Path

START_TIMEOUT: Final = 240.0
"""Seconds for a server to start; on a busy machine, MLflow alone has been seen to take 110."""


def free_port() -> int:
    """A port on which nothing listens now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def environment(**variables: object) -> dict[str, str]:
    """The environment of a program that is started here: no setting of the user's reaches it."""
    hidden = ("TINKER_", "OTEL_", "PHOENIX_", "MLFLOW_")
    found = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    found["NO_PROXY"] = found["no_proxy"] = "127.0.0.1,localhost"
    return found | {name: str(value) for name, value in variables.items()}


def until(look: Callable[[], Any], what: str, timeout: float = 60.0, *, every: float = 0.25) -> Any:
    """Look at something until it is true, and return it; times are in seconds."""
    deadline = time.monotonic() + timeout
    while not (found := look()):
        assert time.monotonic() < deadline, f"{what}: not within {timeout:.0f} s"
        time.sleep(every)
    return found


@contextlib.contextmanager
def serving(
    command: Sequence[str | Path],
    ready: str,
    log: Path,
    *,
    statuses: Container[int] = range(200, 300),
    **variables: object,
) -> Iterator[None]:
    """Run a server with all that it starts, until the end of the block.

    Args:
        command: The program and its arguments.
        ready: A URL that is asked until the server answers.
        log: Where its output goes; it runs in that directory.
        statuses: Which answers say that it serves.
        variables: Further variables of its environment.
    """
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command,
            cwd=log.parent,
            env=environment(**variables),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):

        def is_ready() -> bool:
            assert process.poll() is None, f"{command[0]} has ended:\n{log.read_text()[-2000:]}"
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(ready, trust_env=False).status_code in statuses
            return False

        try:
            until(is_ready, f"{command[0]} to serve", START_TIMEOUT, every=0.05)
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
