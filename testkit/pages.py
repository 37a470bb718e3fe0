"""Puts what programs have measured into pages that people write."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def put_below(page: Path, heading: str, text: str) -> None:
    """Replace the first table below a heading by a table, or the first block of code by another."""
    before, found, below = page.read_text().partition(f"\n## {heading}\n")
    assert found, f"{page} has no heading {heading!r}"
    pattern = r"^```\n(?:.*\n)*?```\n" if text.startswith("```") else r"^(?:\|.*\n)+"
    below, replaced = re.subn(pattern, lambda _: text, below, count=1, flags=re.MULTILINE)
    assert replaced, f"{page} has no place for it below {heading!r}"
    page.write_text(before + found + below)


def put_between(page: Path, begin: str, end: str, text: str) -> None:
    """Replace what stands between two marks."""
    before, found, rest = page.read_text().partition(begin)
    _, ended, after = rest.partition(end)
    assert found, f"{page} has no {begin!r}"
    assert ended, f"{page} has no {end!r}"
    page.write_text(before + begin + text + end + after)
