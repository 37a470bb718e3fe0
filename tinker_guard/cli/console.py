"""What the commands of the extras print on: rich's console."""

from __future__ import annotations

import sys

from rich.console import Console

from tinker_guard.cli.terminal import for_any_character, width_of


def new_console(plain_width: int) -> Console:
    """The console for the output; without a terminal, its lines are plain.

    Args:
        plain_width: Columns without a terminal.
    """
    for_any_character(sys.stdout)
    return Console(highlight=False, width=width_of(sys.stdout, plain_width))
