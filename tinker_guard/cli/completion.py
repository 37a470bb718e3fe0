"""The command `tinker-guard completion`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import shtab

from tinker_guard.cli.app import build_parser

if TYPE_CHECKING:
    import argparse


def completion(arguments: argparse.Namespace) -> int:
    """Print the completions of a shell."""
    sys.stdout.write(f"{shtab.complete(build_parser(is_brief=True), shell=arguments.shell)}\n")
    return 0
