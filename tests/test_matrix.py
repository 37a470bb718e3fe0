"""What `make matrix` writes, and that all which tells of tested releases agrees with it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from tinker_guard.sdks import SDKS

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


@pytest.fixture(scope="module")
def matrix() -> Any:
    spec = importlib.util.spec_from_file_location("matrix", ROOT / "scripts" / "matrix.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        # Dataclasses look their module up.
        patch.setitem(sys.modules, "matrix", module)
        spec.loader.exec_module(module)
        return module


def test_the_readme_lists_the_releases_that_passed(matrix: Any) -> None:
    passed = [matrix.Result(one.name, outcomes={"t": "passed"}) for one in matrix.RELEASES]
    assert matrix.with_table(README.read_text(), passed) == README.read_text()
    passed[0].outcomes["t"] = "failed"
    assert "| tinker | 0.9.0, " in matrix.with_table(README.read_text(), passed)
    with pytest.raises(SystemExit, match="no table"):
        matrix.with_table("# Another text\n", passed)


def test_the_package_knows_the_same_range(matrix: Any) -> None:
    for sdk in SDKS:
        versions = [r.version for r in matrix.RELEASES if r.distribution == sdk.distribution]
        assert sdk.tested == (versions[0], versions[-1])
