"""Stand-ins for what a run must not use: `mock.patch.object`, at a tenth of its cost."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def put(*stand_ins: tuple[object, str, Any]) -> Iterator[None]:
    """Set attributes that exist, and set them back at the end: owner, name and value of each."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in stand_ins]
    try:
        for owner, name, value in stand_ins:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
