"""Writes what a run logs of two races, at the default level, into docs/faq.md.

`python scripts/race_log.py`. The guard runs against the local gateway, without a socket and in
virtual time, so that the lines and their seconds are the same each time.
"""

from __future__ import annotations

import asyncio
import logging
import textwrap
from pathlib import Path
from typing import Final

import httpx

from testkit.pages import put_between
from testkit.virtual_time import VirtualTimeLoop
from tinker_guard import GuardTransport
from tinker_guard.core.attempts import JITTER
from tinker_guard.faults import logger
from tinker_guard.gateway import Fault, Race
from tinker_guard.gateway.in_process import InProcessGateway
from tinker_guard.gateway.world import World

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "faq.md"

BEGIN: Final = "<!-- written by scripts/race_log.py -->\n```\n"
END: Final = "```\n<!-- end of what it wrote -->"

_OPERATION: Final = "create_session"
_LATENCY: Final = 0.02
# The gateway learns the route late, and loses it once more in the middle of the run.
_FAULT: Final = Fault(
    route_known_after=(14.0,), races=(Race(_OPERATION, occurrence=5, seconds=1.5),)
)


class _Lines(logging.Handler):
    """What is logged, each line after the second at which it was."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        at = asyncio.get_running_loop().time()
        self.lines += _wrapped(f"{at:6.2f} s  {record.name}: {record.getMessage()}")


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, 84, subsequent_indent=" " * 10, break_on_hyphens=False)


async def _train(lines: list[str]) -> None:
    gateway = InProcessGateway(World(_FAULT, job="night-run"), latency=_LATENCY)
    guard = GuardTransport(gateway.new_transport(), new_transport=gateway.new_transport)
    headers = {"X-Api-Key": gateway.world.api_key}
    url = f"{gateway.base_url}/api/v1/{_OPERATION}"
    async with httpx.AsyncClient(transport=guard, headers=headers) as client:
        for _ in range(6):
            (await client.post(url, json={})).raise_for_status()
            await asyncio.sleep(20)
    at = asyncio.get_running_loop().time()
    lines.append(f"{at:6.2f} s  (the run goes on: 6 of 6 requests have been answered)")


def race_log() -> str:
    """What is logged, each line after the second at which it is."""
    handler = _Lines()
    JITTER.seed(1)
    logger.addHandler(handler)
    try:
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            runner.run(_train(handler.lines))
    finally:
        logger.removeHandler(handler)
    return "".join(f"{line}\n" for line in handler.lines)


if __name__ == "__main__":
    put_between(PAGE, BEGIN, END, race_log())
