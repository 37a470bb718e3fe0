"""What `help(tinker_guard)` shows."""

from __future__ import annotations

import pydoc
import re

import pytest

import tinker_guard
from testkit.cli import python
from tinker_guard import GuardSettings


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


def test_help_shows_the_settings_and_not_what_they_are_made_with() -> None:
    lines = pydoc.plain(pydoc.render_doc(GuardSettings)).splitlines()
    assert len(lines) < 50
    text = "\n".join(lines)
    assert "model_validate" not in text
    assert all(name in text for name in GuardSettings.model_fields)
