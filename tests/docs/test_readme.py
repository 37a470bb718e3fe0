"""README's first screen; its links and picture work in a checkout and on a package index."""

from __future__ import annotations

import tomllib
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest
from readme_renderer.markdown import render

from testkit.cli import python
from tests import ROOT

if TYPE_CHECKING:
    from pathlib import Path

README = (ROOT / "README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


class Targets(HTMLParser):
    """What a page links to, headings of its own apart; what it shows, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.pictures: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        href = found.get("href") or ""
        if tag == "a" and href and not href.startswith("#"):
            self.links.append(href)
        if tag == "img":
            self.pictures.append(found.get("src") or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def rendered(markdown: str) -> Targets:
    html = render(markdown)
    assert html is not None
    return Targets(html)


@pytest.fixture(scope="module")
def on_an_index() -> Targets:
    """README as an index shows it: what the build puts into the metadata, sanitized."""
    printed = python("-m", "hatch_fancy_pypi_readme", "pyproject.toml")
    assert printed.returncode == 0, printed.stderr
    return rendered(printed.stdout)


def test_the_first_screen() -> None:
    beginning = README.splitlines()[:45]
    for seen in (
        "Trainer job not found or not running",
        "(docs/race.svg)",
        "install_guard()",
        "**For you**",
        "**Not for you**",
        "make demo ",
        "make test ",
    ):
        assert any(seen in line for line in beginning), seen
    assert len(README.splitlines()) <= 115


def test_the_table_of_gateways_sums_up_that_of_the_page() -> None:
    runs: dict[str, list[list[str]]] = {}
    for cells in _table(ROOT / "docs/gateways.md", "its 404"):
        runs.setdefault(cells[0].partition(",")[0], []).append(cells)
    expected = [
        [
            name,
            ", ".join(dict.fromkeys(run[4] for run in of_it)),
            str(sum(int(run[5]) for run in of_it)),
            "yes" if {run[9] for run in of_it} == {"yes"} else "no",
        ]
        for name, of_it in runs.items()
    ]
    assert expected
    assert _table(ROOT / "README.md", "guarded: 404s met") == expected


def _table(page: Path, column: str) -> list[list[str]]:
    """The rows of all tables of a page that have this column."""
    found: list[list[str]] = []
    is_in_table = False
    for line in page.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if column in cells:
            is_in_table = True
        elif not line.startswith("|"):
            is_in_table = False
        elif is_in_table and not set(line) <= set("|- "):
            found.append(cells)
    return found


def test_in_a_checkout_every_target_is_there_and_in_the_source_archive() -> None:
    included = PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    page = rendered(README)
    assert page.pictures == ["docs/race.svg"]
    assert len(page.links) > 15
    for target in [*page.links, *page.pictures]:
        assert (ROOT / target).is_file(), target
        first = target.partition("/")[0]
        assert f"/{first}" in included or (target == first and "/*.md" in included), target


def test_on_an_index_every_target_is_absolute(on_an_index: Targets) -> None:
    targets = [*on_an_index.links, *on_an_index.pictures]
    assert [one for one in targets if not one.startswith("https://")] == []


def test_on_an_index_picture_and_files_are_text(on_an_index: Targets) -> None:
    assert "replica 3" in on_an_index.text
    assert "JOB_STATE_RUNNING" in on_an_index.text
    for target in rendered(README).links:
        assert f"({target})" in on_an_index.text, target


def test_no_address_is_a_placeholder() -> None:
    for name, url in PROJECT["project"].get("urls", {}).items():
        assert "example" not in url, name
