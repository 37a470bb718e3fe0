from __future__ import annotations

import pytest

from tinker_guard.policy.template import fill, names_in

NAMES = {"job": "j-1", "_key": "secret", "B2": "x"}


@pytest.mark.parametrize(
    ("template", "names", "filled"),
    [
        ("https://h.test/x", [], "https://h.test/x"),
        ("", [], ""),
        (
            "/k/{_key}/jobs/{job}?a={B2}&b={job}",
            ["_key", "job", "B2", "job"],
            "/k/secret/jobs/j-1?a=x&b=j-1",
        ),
        ("{job}{B2}", ["job", "B2"], "j-1x"),
    ],
)
def test_what_was_captured_stands_in_the_place_of_its_name(
    template: str, names: list[str], filled: str
) -> None:
    assert names_in(template) == names
    assert fill(template, NAMES) == filled


@pytest.mark.parametrize("template", ["{", "}", "{}", "{a", "a}", "{a!r}", "{a.b}", "{{a}}", "{1}"])
def test_braces_of_no_placeholder_are_refused(template: str) -> None:
    with pytest.raises(ValueError, match="a brace that belongs to no placeholder"):
        names_in(template)


def test_a_value_is_not_looked_at_again() -> None:
    assert fill("{a}", {"a": "{b}"}) == "{b}"
    with pytest.raises(KeyError):
        fill("{b}", {})
