"""The site's pages say what the code says, and none is left out."""

from __future__ import annotations

import ast
import html
import re
from types import SimpleNamespace
from typing import Any

import pytest

import tinker_guard
from tests import ROOT, script
from tinker_guard import GuardSettings
from tinker_guard.cli.app import COMMANDS
from tinker_guard.cli.demo.run import Run
from tinker_guard.cli.demo.screen import table_of
from tinker_guard.policy.job import PHASES, JobPhase
from tinker_guard.policy.judgement import Outcome, Reason, Verdict
from tinker_guard.waiting import Readiness

DOCS = ROOT / "docs"


def page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text()


def rows(text: str) -> list[list[str]]:
    """The cells of all tables."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    listed = re.findall(r": ([\w/-]+\.md)$", navigation, re.MULTILINE)
    assert sorted(listed) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


# -- settings ------------------------------------------------------------------------------------


def shown(value: Any) -> str:
    """A default as the page writes it."""
    match value:
        case bool():
            return f"`{str(value).lower()}`"
        case float():
            return f"{value:g} s"
        case int():
            return str(value)
        case tuple():
            return ", ".join(f"`{one}`" for one in value) or "none"
        case _:
            return f"`{value}`"


def test_the_page_lists_every_setting_with_its_variable_and_default() -> None:
    listed = {}
    for cells in rows(page("settings")):
        if name := re.fullmatch(r"`(\w+)`<br>`TINKER_GUARD_(\w+)`", cells[0]):
            assert name[2] == name[1].upper()
            listed[name[1]] = cells[1]
    fields = GuardSettings.model_fields
    assert set(listed) == set(fields)
    for argument, default in listed.items():
        if fields[argument].default is not None:
            assert default == shown(fields[argument].default), argument
        else:
            assert "`" not in default, argument


# -- how it decides ------------------------------------------------------------------------------


def test_every_verdict_reason_and_outcome_is_told() -> None:
    text = page("how-it-decides")
    told = set(re.findall(r"`([a-z_]+)`", text))
    assert {word.value for words in (Verdict, Reason, Outcome) for word in words} <= told


def test_every_stopped_state_is_told() -> None:
    (listed,) = re.findall(
        r"A stopped state is believed at once: (.*?)\.", page("how-it-decides"), re.DOTALL
    )
    stopped = {name for name, phase in PHASES.items() if phase is JobPhase.STOPPED}
    assert {f"JOB_STATE_{name}" for name in re.findall(r"[A-Z_]+", listed)} == stopped


# -- command line --------------------------------------------------------------------------------


def test_every_command_has_a_section() -> None:
    named = set(re.findall(r"^## `tinker-guard (\w+)`$", page("command-line"), re.MULTILINE))
    assert named == {"run", *COMMANDS}


def test_every_exit_code_of_wait_is_told() -> None:
    section = page("command-line").partition("## `tinker-guard wait`")[2].partition("\n## ")[0]
    told = {int(cells[0]) for cells in rows(section) if cells[0].isdigit()}
    assert told == {2, *Readiness}


# -- error texts ---------------------------------------------------------------------------------


def literals() -> list[str]:
    """Every string in the package's code, adjacent ones joined, placeholders as `...`."""
    found = []
    for path in (ROOT / "tinker_guard").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(
                        str(part.value) if isinstance(part, ast.Constant) else "..."
                        for part in node.values
                    )
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_every_error_text_is_one_that_the_code_writes() -> None:
    of_the_sdk = {"Error retrieving result: Error code: 404"}
    headings = re.findall(r"^### `(.+)`$", page("faq"), re.MULTILINE)
    assert len(headings) > 20
    written = literals()
    for heading in headings:
        if heading in of_the_sdk:
            continue
        for part in filter(None, re.split(r"\.\.\.", heading)):
            # A part may end in the middle of a text, and be a verdict and its reason.
            words = part.strip(" (),:.")
            known = (
                any(words in text for text in written)
                or set(words.split(", ")) <= {*Verdict, *Reason}
                or not words
            )
            assert known, (heading, part)


# -- API reference -------------------------------------------------------------------------------


def test_the_reference_names_all_that_is_public() -> None:
    text = page("api")
    named = {one.rpartition(".")[2] for one in re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE)}
    assert set(dir(tinker_guard)) - {"__version__"} == named
    assert "`tinker_guard.__version__`" in text


# -- pictures ------------------------------------------------------------------------------------


def test_the_picture_of_the_demo_is_of_this_demo() -> None:
    run = Run(losses=(1.0,), seconds=1.0)
    table = table_of([("no fault", run), ("no guard", run), ("guarded", run)], last_is_right=True)
    shown = html.unescape((DOCS / "demo.svg").read_text()).replace("\xa0", " ")
    rows = [str(cell) for cell in table.columns[0].cells]
    assert len(rows) == 8
    for words in (*rows, *(str(column.header) for column in table.columns), "5 of 5 losses"):
        assert words in shown, "run `tinker-guard demo --svg docs/demo.svg`"


def test_the_pictures_are_as_drawn() -> None:
    for name, draw in script("pictures").PICTURES.items():
        assert (DOCS / name).read_text() == draw().svg(), "run `python scripts/pictures.py`"


def test_the_log_of_a_race_is_what_the_guard_writes() -> None:
    log = script("race_log")
    text = log.PAGE.read_text()
    assert log.BEGIN + log.race_log() + log.END in text, "run `python scripts/race_log.py`"
    assert text.count("tinker_guard: routing race: POST") == 2


# -- nothing from elsewhere ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("html", "is_fetched"),
    [
        ('<img alt="" src="https://elsewhere.test/x.png">', True),
        ('<script async src="//elsewhere.test/x.js"></script>', True),
        ('<link rel="stylesheet" href="https://elsewhere.test/x.css">', True),
        ("<style>@import url(https://elsewhere.test/x.css)</style>", True),
        ("<style>a { background: url('//elsewhere.test/x') }</style>", True),
        ('<pre class="mermaid">', True),
        ('<a href="https://elsewhere.test/">', False),
        ('<link rel="canonical" href="https://elsewhere.test/">', False),
        ('<img src="race.svg"><script src="assets/x.js"></script>', False),
        ("<code>GET https://elsewhere.test/x.js</code>", False),
    ],
)
def test_what_a_browser_would_fetch_from_elsewhere_is_a_warning(
    html: str, is_fetched: bool, caplog: pytest.LogCaptureFixture
) -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_path="a.md"))
    assert script("site_hooks").on_post_page(html, page=page) == html
    assert bool(caplog.records) == is_fetched
