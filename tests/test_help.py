"""What `help(tinker_guard)` shows."""

from __future__ import annotations

import pydoc
import re
from typing import Final

import pytest

import tinker_guard
from testkit.cli import python
from tinker_guard import GuardSettings, Verdict


def test_the_first_page_names_all_that_is_public() -> None:
    description = tinker_guard.__doc__ or ""
    named = set(re.findall(r"\w+", description))
    assert set(dir(tinker_guard)) - {"__version__"} <= named
    assert len(description.splitlines()) <= 40
    assert max(map(len, description.splitlines())) <= 100


LACKING = "import sys; sys.modules |= dict.fromkeys(['numpy', 'opentelemetry.instrumentation'])"


@pytest.mark.parametrize("first", ["", LACKING], ids=["with extras", "without extras"])
def test_help_is_a_page(first: str) -> None:
    shown = python("-c", f"{first}\nimport tinker_guard; help(tinker_guard)").stdout
    assert (tinker_guard.__doc__ or "").splitlines()[-1] in shown
    assert len(shown.splitlines()) < 80


SIGNATURE: Final = re.compile(r"\((?:\n \|      .*)+\n \|  \)")
"""From Python 3.13 on, a long one has a line for each parameter."""


@pytest.mark.unit
@pytest.mark.parametrize(("documented", "lines"), [(GuardSettings, 40), (Verdict, 35)])
def test_help_shows_no_more_than_what_is_the_guards_own(
    documented: type[object], lines: int
) -> None:
    """It was 540 lines of pydantic, and 460 of what a string can do."""
    text = pydoc.plain(pydoc.render_doc(documented))
    assert len(SIGNATURE.sub("(...)", text).splitlines()) < lines
    assert "model_validate" not in text


def test_help_shows_every_setting() -> None:
    text = pydoc.plain(pydoc.render_doc(GuardSettings))
    assert all(name in text for name in GuardSettings.model_fields)
    assert "retry_timeout" in dir(GuardSettings)
