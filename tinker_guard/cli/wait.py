"""The command `tinker-guard wait`."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from typing import TYPE_CHECKING

from tinker_guard.cli.app import USAGE_ERROR, say
from tinker_guard.cli.terminal import Spinner
from tinker_guard.faults import logger
from tinker_guard.settings import GuardSettings, InvalidSettingsError
from tinker_guard.waiting import wait_until_routable

if TYPE_CHECKING:
    import argparse


def wait(arguments: argparse.Namespace) -> int:
    """Wait until a trainer's route answers; returns the exit code."""
    is_quiet, began_at = arguments.quiet, time.monotonic()
    try:
        timeout = arguments.timeout or GuardSettings().warmup_timeout
    except InvalidSettingsError as error:
        return _refuse(error)
    spinner = Spinner(
        lambda passed: f"waiting for the trainer's route, {max(timeout - passed, 0):.0f} s left",
        is_wanted=not is_quiet,
    )
    handler = logging.NullHandler() if is_quiet else _Lines(spinner)
    before = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        with spinner:
            readiness = wait_until_routable(
                arguments.url,
                api_key=os.environ.get("TINKER_API_KEY") or os.environ.get("FIREWORKS_API_KEY"),
                timeout=timeout,
                settle=arguments.settle,
            )
    except ValueError as error:
        return _refuse(error)
    finally:
        logger.removeHandler(handler)
        level, logger.propagate = before
        logger.setLevel(level)
    if arguments.json:
        document = {
            "readiness": readiness.name.lower(),
            "exit_code": int(readiness),
            "seconds": round(time.monotonic() - began_at, 3),
            "detail": str(readiness),
        }
        sys.stdout.write(f"{json.dumps(document)}\n")
    elif not is_quiet:
        sys.stdout.write(f"{readiness}\n")
    return int(readiness)


def _refuse(error: ValueError) -> int:
    """Print the error's message, which names the fault and its remedy."""
    say(f"tinker-guard wait: {error}")
    return USAGE_ERROR


class _Lines(logging.Handler):
    """Prints the guard's log lines above the spinner."""

    def __init__(self, spinner: Spinner) -> None:
        super().__init__()
        self._spinner = spinner

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line."""
        self._spinner.print(record.getMessage())
