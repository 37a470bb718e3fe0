"""Texts with placeholders, `{name}`, that stand for what a route's pattern has captured."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

NAME: Final = "_?[A-Za-z][A-Za-z0-9_]*"
PLACEHOLDER: Final = re.compile(rf"\{{({NAME})\}}")


def names_in(template: str) -> list[str]:
    """The names of a template's placeholders, in their order.

    Raises:
        ValueError: A brace belongs to none. The message shows nothing of the template.
    """
    if re.search(r"[{}]", PLACEHOLDER.sub("", template)):
        raise ValueError(
            "holds a brace that belongs to no placeholder; one looks like {job}, or like {_key} "
            "in a pattern that hides it"
        )
    return PLACEHOLDER.findall(template)


def fill(template: str, names: Mapping[str, str]) -> str:
    """Put what was captured in the place of the placeholders.

    What a pattern captures are unreserved characters of a URL, and never `.` or `..`: it can end no
    segment, and begin no query.

    Raises:
        KeyError: A name was not captured.
    """
    return PLACEHOLDER.sub(lambda placeholder: names[placeholder[1]], template)
