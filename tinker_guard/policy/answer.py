"""An answer as far as it was read."""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from tinker_guard.policy.json_body import BODY_LIMIT, media_type_of, read_json

if TYPE_CHECKING:
    from collections.abc import Mapping


class JsonObject(NamedTuple):
    """A body that is an object."""

    media_type: str
    members: dict[str, Any]


_MEDIA_TYPE: Final = re.compile(r"application/(?:[a-z0-9.!#$&^_-]+\+)?json")


class Answer:
    """An answer, of which each reading is done once, and only if it is asked for.

    Args:
        headers: Its headers, by names of any case.
        body: Its body, possibly only the beginning.
        status_code: Its status.
        is_decoded: Whether something below has undone the Content-Encoding already.
        limit: How many bytes are looked at, before and after decoding.
    """

    def __init__(
        self,
        headers: Mapping[str, str],
        body: bytes,
        *,
        status_code: int = 404,
        is_decoded: bool = False,
        limit: int = BODY_LIMIT,
    ) -> None:
        self.headers = headers
        self.body = body
        self.status_code = status_code
        self.is_decoded = is_decoded
        self.limit = limit

    def __repr__(self) -> str:
        """Its status and length: headers and body may hold a key."""
        return f"Answer({self.status_code}, {len(self.body)} bytes)"

    @cached_property
    def document(self) -> object:
        """The body as JSON, whatever it is said to be; None if it is none."""
        return read_json(self.headers, self.body, is_decoded=self.is_decoded, limit=self.limit)

    @cached_property
    def json(self) -> JsonObject | None:
        """The object that the body is; None if it is none, or not said to be JSON."""
        media_type = media_type_of(self.headers)
        if not _MEDIA_TYPE.fullmatch(media_type):
            return None
        document = read_json(
            self.headers,
            self.body,
            is_decoded=self.is_decoded,
            limit=self.limit,
            parse_constant=_refuse,
        )
        return JsonObject(media_type, document) if isinstance(document, dict) else None


def _refuse(constant: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")
