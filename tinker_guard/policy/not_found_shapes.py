"""How servers write a 404, as data, each with where it was seen; and how a user's own one does.

What has such a form is the trainer's word, so that a form which gateways write too must ask for
more.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping


class ServerShape(NamedTuple):
    """A JSON object with which a server that speaks Tinker says that it does not find something."""

    server: str
    seen: str
    """Where this was read."""
    members: Mapping[str, Any]
    """Its members, no more and no fewer. The value is a type (`object` is any), a value that must
    be equal, or the members that an object has among others."""
    text: tuple[str, ...]
    """Where the text stands; empty if the form has none."""
    is_generic: bool = True
    """Whether others write this form too: then the text must name what only a trainer has."""


SERVERS: Final = (
    ServerShape(
        "Modal Spindle",
        "modal-projects/spindle, control_plane/http.py; many web services write the same",
        {"error": "not_found", "message": str},
        ("message",),
    ),
    ServerShape(
        "open-rl",
        "gke-labs/open-rl, src/server/gateway.py: No base model is configured",
        {"error": str},
        ("error",),
    ),
    ServerShape(
        "tinker-cloud",
        "GMISWE/tinker-cloud, training/api.py: the handler of FastAPI's HTTPException",
        {"error": str, "status_code": 404, "path": str},
        ("error",),
        is_generic=False,
    ),
    ServerShape(
        "servers with the codes of Connect",
        "connectrpc.com/docs/protocol, error end-stream; gateways write the same",
        {"code": "not_found", "message": str},
        ("message",),
    ),
    ServerShape(
        "Fireworks serverless",
        "the form of OpenAI's API; Fireworks' own gateway writes it too",
        {"error": {"code": "not_found", "type": str, "message": str}},
        ("error", "message"),
    ),
)


_TYPES: Final[Mapping[str, type]] = {
    "{text}": str,
    "{string}": str,
    "{integer}": int,
    "{any}": object,
}
"""What may stand in a shape of a user's own, in the place of a value."""
_DEPTH: Final = 8
"""How deep objects may stand in one another there."""


def parse_shape(text: str) -> ServerShape:
    """Read the shape of a user's own server.

    It is JSON, `{"members": {"error": "no_such_thing", "reason": "{text}"}, "generic": true}`.
    Members are as in `ServerShape`, with `{string}`, `{integer}` or `{any}` for a type; `{text}` is
    the string that people read. `generic` says whether gateways write this form too, and is true if
    it is left out.

    Raises:
        ValueError: It is none. The message says what is wrong, but shows nothing of it.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("is no JSON") from None
    if not isinstance(document, dict) or not {"members"} <= document.keys() <= _SHAPE_MEMBERS:
        raise ValueError('must be an object with "members", and "generic" if need be')
    members, is_generic = document["members"], document.get("generic", True)
    if not isinstance(members, dict) or not members:
        raise ValueError('must have an object with one member or more in "members"')
    if not isinstance(is_generic, bool):
        raise ValueError('must have true or false in "generic"')
    texts: list[tuple[str, ...]] = []
    form = _read_form(members, (), texts)
    if len(texts) > 1:
        raise ValueError("holds {text} twice")
    if is_generic and not texts:
        raise ValueError(
            "needs a {text}, by which a trainer's is told from a gateway's, or \"generic\": false"
        )
    return ServerShape("yours", "", form, texts[0] if texts else (), is_generic)


_SHAPE_MEMBERS: Final = frozenset({"members", "generic"})


def _read_form(
    members: Mapping[str, Any], place: tuple[str, ...], texts: list[tuple[str, ...]]
) -> dict[str, Any]:
    """The members of a form; notes where a text stands."""
    if len(place) == _DEPTH:
        raise ValueError("holds objects too deep in one another")
    form: dict[str, Any] = {}
    for name, value in members.items():
        if isinstance(value, dict):
            form[name] = _read_form(value, (*place, name), texts)
        elif isinstance(value, list):
            raise ValueError("holds an array: {any} stands for it")
        elif isinstance(value, str) and value[:1] == "{":
            if value not in _TYPES:
                raise ValueError(f"holds braces that are none of {', '.join(_TYPES)}")
            form[name] = _TYPES[value]
            if value == "{text}":
                texts.append((*place, name))
        else:
            form[name] = value
    return form


@lru_cache(maxsize=64)
def shapes_of(texts: tuple[str, ...]) -> tuple[ServerShape, ...]:
    """The shapes of a guard's setting.

    Raises:
        ValueError: One of them is none.
    """
    return tuple(map(parse_shape, texts))
