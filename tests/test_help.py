"""What `help(tinker_guard)` shows."""

from __future__ import annotations

import pydoc
import re

import tinker_guard
from tinker_guard import GuardSettings


def test_the_first_page_names_all_that_is_public() -> None:
    description = tinker_guard.__doc__ or ""
    named = set(re.findall(r"\w+", description))
    assert set(tinker_guard.__all__) - {"__version__"} <= named
    assert len(description.splitlines()) <= 40
    assert max(map(len, description.splitlines())) <= 100


def test_help_shows_the_settings_and_not_what_they_are_made_with() -> None:
    lines = pydoc.plain(pydoc.render_doc(GuardSettings)).splitlines()
    assert len(lines) < 50
    text = "\n".join(lines)
    assert "model_validate" not in text
    assert all(name in text for name in GuardSettings.model_fields)
