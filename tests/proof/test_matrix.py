"""What `make matrix` writes, and that all which tells of tested releases agrees with it."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import pytest

from tests import ROOT
from tinker_guard.install.sdks import SDKS

README = (ROOT / "README.md").read_text()
PAGE = (ROOT / "docs" / "sdk-releases.md").read_text()


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


def test_the_page_lists_the_releases_that_passed(matrix: Any) -> None:
    passed = [matrix.Result(one.name, outcomes={"t": "passed"}) for one in matrix.RELEASES]
    assert f"\n\n{matrix.tested(passed)}\n" in PAGE
    assert f"\n\n{matrix.tested(passed)}\n" in matrix.page(passed)
    passed[0].outcomes["t"] = "failed"
    assert "| tinker | 0.9.0, " in matrix.tested(passed)


def test_the_package_knows_the_same_range(matrix: Any) -> None:
    for sdk in SDKS:
        versions = [r.version for r in matrix.RELEASES if r.distribution == sdk.distribution]
        assert sdk.tested == (versions[0], versions[-1])


def test_the_readme_names_the_same_range() -> None:
    for sdk in SDKS:
        first, last = sdk.tested
        assert f"`{sdk.distribution}` {first} to {last}" in README
