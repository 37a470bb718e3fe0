"""The tests; their folders mirror the package."""

import runpy
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
"""The checkout."""


@cache
def script(name: str) -> Any:
    """What a file of `scripts/` has, which is no package."""
    return SimpleNamespace(**runpy.run_path(str(ROOT / "scripts" / f"{name}.py"), run_name=name))
