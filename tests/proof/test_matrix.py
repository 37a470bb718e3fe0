"""What `make matrix` writes, and that all which tells of tested releases agrees with it."""

from __future__ import annotations

from tests import ROOT, script
from tinker_guard.install.sdks import SDKS

README = (ROOT / "README.md").read_text()
PAGE = (ROOT / "docs" / "sdk-releases.md").read_text()


def test_the_page_lists_the_releases_that_passed() -> None:
    matrix = script("matrix")
    passed = [matrix.Result(one.name, outcomes={"t": "passed"}) for one in matrix.RELEASES]
    assert f"\n\n{matrix.tested(passed)}\n" in PAGE
    assert f"\n\n{matrix.tested(passed)}\n" in matrix.page(passed)
    passed[0].outcomes["t"] = "failed"
    assert "| tinker | 0.9.0, " in matrix.tested(passed)


def test_the_package_knows_the_same_range() -> None:
    releases = script("matrix").RELEASES
    for sdk in SDKS:
        versions = [one.version for one in releases if one.distribution == sdk.distribution]
        assert sdk.tested == (versions[0], versions[-1])


def test_the_readme_names_the_same_range() -> None:
    for sdk in SDKS:
        first, last = sdk.tested
        assert f"`{sdk.distribution}` {first} to {last}" in README
