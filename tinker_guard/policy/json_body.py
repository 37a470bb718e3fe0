"""Bodies of answers as JSON, read within bounds and only where they can be read in one way."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from tinker_guard.policy.codings import CodingError, decoded

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

BODY_LIMIT: Final = 1024 * 1024
"""Bytes of a body that are looked at, before and after decoding; a longer one proves nothing."""


MOST_DIGITS: Final = 400
"""Digits of the longest number that is read: Python's own limit can be switched off, and reading a
number of a million digits takes seconds."""


def read_json(
    headers: Mapping[str, str],
    body: bytes,
    *,
    is_decoded: bool,
    limit: int,
    parse_constant: Callable[[str], object] | None = None,
) -> object:
    """The document that a body is; None if it is none, or one that can be read in two ways.

    Args:
        headers: The answer's headers, by names of any case.
        body: The body, possibly only its beginning.
        is_decoded: Whether something below has undone the Content-Encoding already.
        limit: How many bytes are looked at, before and after decoding.
        parse_constant: What NaN and Infinity become, which Python's own servers write. None reads
            them as numbers.
    """
    if len(body) > limit:
        return None
    try:
        if not is_decoded:
            # One byte more shows whether there is more: what was cut proves nothing.
            body = decoded(headers.get("content-encoding", ""), body, limit + 1)
        if len(body) > limit:
            return None
        # `json.loads` finds UTF-8, UTF-16 and UTF-32 by itself, whatever the charset claims.
        document: object = json.loads(
            body, object_pairs_hook=_unique, parse_constant=parse_constant, parse_int=_integer
        )
    except (CodingError, ValueError, RecursionError):
        return None
    return document


def media_types(headers: Mapping[str, str]) -> set[str]:
    """The media types that an answer names: proxies add the header where there is one already."""
    values = unquoted(headers.get("content-type", "")).split(",")
    return {value.partition(";")[0].strip().lower() for value in values} - {""}


def media_type_of(headers: Mapping[str, str]) -> str:
    """The one media type of an answer; no type at all if it names several."""
    return ", ".join(sorted(media_types(headers)))


def unquoted(value: str) -> str:
    """What is left of a header without its quoted strings, which may hold anything."""
    return re.sub(r'"[^"]*"', "", value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        # Each parser takes another one of the values.
        raise ValueError("a name that occurs twice")
    return members


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError("no number of a real answer")
    return int(digits)


def texts_in(document: object) -> list[str]:
    """All texts of a JSON document, in their order. Not recursive: a body may be deep."""
    texts: list[str] = []
    left = [document]
    while left:
        value = left.pop()
        if isinstance(value, str):
            texts.append(value)
        elif isinstance(value, dict):
            left.extend(reversed(value.values()))
        elif isinstance(value, list):
            left.extend(reversed(value))
    return texts
