"""What an answer's headers and body prove about who wrote it.

Each function says yes only where the answer shows it. An answer that could be somebody else's
proves nothing, since a gateway's word that is taken for the trainer's ends a healthy run.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from tinker_guard.policy.caches import is_cached_copy
from tinker_guard.policy.errors import PROBLEM_MEMBERS, is_error_member, reports_an_error
from tinker_guard.policy.json_body import media_types, texts_in
from tinker_guard.policy.not_found_shapes import SERVERS, ServerShape
from tinker_guard.policy.route import last_segment
from tinker_guard.policy.wording import (
    ROUTERS_WORDS,
    TRAINERS_WORDS,
    Missing,
    is_readable,
    is_reason_phrase,
    missing_in,
    without,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from tinker_guard.policy.answer import Answer, JsonObject


class Source(StrEnum):
    """Who wrote a 404, as far as its body tells."""

    GATEWAY = "gateway"
    TRAINER = "trainer"
    ROUTER = "router"
    """`{"detail": "Not Found"}`, which any FastAPI application says of a path it does not know: the
    trainer where this route's trainer has shown itself before, else unknown."""
    ANOTHER_APPLICATION = "another_application"
    """The same, said of a path that every trainer knows: it stands in the trainer's place."""
    UNKNOWN = "unknown"


def source_of(
    answer: Answer, *, shapes: Sequence[ServerShape] = (), ids: Collection[str] = ()
) -> Source:
    """Tell from a 404's headers and body who wrote it. Never raises.

    The gateway answers `{"error": {"code": "NOT_FOUND", "param": "jobId", ...}}`, a trainer
    (FastAPI) `{"detail": ...}` as `application/json`. A problem document (RFC 9457) has a `detail`
    too, but is a gateway's or a content delivery network's. A `detail` that says that a service, a
    route, a job, a server or the like is missing (`missing_in`) is unknown, since gateways made
    with FastAPI write it; and so is one that passes on what another server or a client's error says
    of a 404. Servers that write another form are listed in
    `not_found_shapes.SERVERS`; what matches none of it is unknown, a web server's page too, since
    one can stand in the trainer's own pod and keep the probe's path from it.

    Args:
        answer: The 404.
        shapes: Those of the user's own server, which come before the listed ones.
        ids: What the request's URL names. Users choose them, so that a word in one of them, which
            an answer gives back, says nothing about who wrote it.
    """
    document = answer.json
    return Source.UNKNOWN if document is None else _source_of(document, shapes, ids)


def author_of(
    answer: Answer,
    *,
    had_shown_trainer: bool,
    is_essential: bool = False,
    shapes: Sequence[ServerShape] = (),
    ids: Collection[str] = (),
) -> Source:
    """Tell who wrote a 404 on a route, by its headers and body and by what is known of the route.

    Args:
        answer: The 404.
        had_shown_trainer: Whether the route's trainer had shown itself when the 404 came: what any
            router says of an unknown path is the trainer's then.
        is_essential: Whether every trainer knows the request's path, so that it is another
            application's all the same.
        shapes: Those of the user's own server.
        ids: What the request's URL names; see `source_of`.
    """
    if is_cached_copy(answer.headers):
        return Source.UNKNOWN
    source = source_of(answer, shapes=shapes, ids=ids)
    if source is not Source.ROUTER:
        return source
    if not had_shown_trainer:
        return Source.UNKNOWN
    return Source.ANOTHER_APPLICATION if is_essential else Source.TRAINER


def is_from_trainer(answer: Answer) -> bool:
    """Whether the answer to a probe was written by the trainer itself, just now. Never raises.

    That is a 2xx with a JSON object that reports no error, or the trainer's own 404, and neither a
    copy from a cache. Every other answer (401, 403, 429, 5xx, a redirect, a page, an empty body)
    may come from whatever stands in front of the trainer.
    """
    if answer.status_code == 404 and not is_cached_copy(answer.headers):
        return source_of(answer) is Source.TRAINER
    if not may_be_trainers(answer.status_code, answer.headers):
        return False
    document = answer.json
    return (
        document is not None
        and document.media_type == "application/json"
        and (_has_capabilities(document.members) or not reports_an_error(document.members))
    )


def _has_capabilities(members: dict[str, Any]) -> bool:
    """Whether an object is what a trainer answers to the probe, whatever words stand in it."""
    return "supported_models" in members and not members.get("error")


def may_be_trainers(status_code: int, headers: Mapping[str, str]) -> bool:
    """Whether the answer to a request passes for the trainer's by its headers. Never raises.

    That is a 2xx with a body that is no page, no problem document and no copy from a cache. Its
    body is the client's to read, and may be a stream. Any other media type passes: were a server
    that names none never believed, each of its requests would wait for a probe.

    Args:
        status_code: The answer's status.
        headers: The answer's headers, by names of any case.
    """
    return (
        200 <= status_code < 300
        # Caddy answers so where it has no route, and edges answer a preflight.
        and status_code not in (204, 205)
        and headers.get("content-length") != "0"
        and not any(map(_OTHERS_MEDIA_TYPE.fullmatch, media_types(headers)))
        and not is_cached_copy(headers)
    )


_HEALTH: Final = frozenset({b"health", b"healthz", b"livez", b"readyz"})


def shows_route(raw_path: bytes, status_code: int, headers: Mapping[str, str]) -> bool:
    """Whether an answer shows that its route is known: the trainer's, and not about its health.

    A gateway may route checks of health before all else, or answer them itself.

    Args:
        raw_path: The request's path and query.
        status_code: The answer's status.
        headers: The answer's headers, by names of any case.
    """
    is_health = last_segment(raw_path) in _HEALTH
    return not is_health and may_be_trainers(status_code, headers)


# Pages, XML as object stores write it, and problem documents (RFC 9457).
_OTHERS_MEDIA_TYPE: Final = re.compile(r"text/html|[^/]+/(?:.*\+)?xml|application/problem\+.*")


def _source_of(
    answer: JsonObject, shapes: Sequence[ServerShape] = (), ids: Collection[str] = ()
) -> Source:
    members = answer.members
    error = members.get("error")
    if isinstance(error, dict) and error.get("code") == "NOT_FOUND" and "param" in error:
        return Source.GATEWAY
    for shape in shapes:
        if _has_form(shape.members, members):
            return _source_by_text(shape, members, ids)
    if answer.media_type != "application/json":
        return Source.UNKNOWN
    for shape in SERVERS:
        if _has_form(shape.members, members):
            return _source_by_text(shape, members, ids)
    detail = members.get("detail")
    if detail is None or _is_more_than_detail(members):
        return Source.UNKNOWN
    # The words vary: Django REST framework writes "Not found.".
    if is_reason_phrase(detail):
        return Source.ROUTER
    return Source.UNKNOWN if _may_be_gateways(members, ids) else Source.TRAINER


def _has_form(form: Mapping[str, Any], members: dict[str, Any], *, is_inner: bool = False) -> bool:
    """Whether an answer has the members of a form: these alone, within `error` these at least."""
    if not (form.keys() <= members.keys() if is_inner else form.keys() == members.keys()):
        return False
    for name, wanted in form.items():
        value = members[name]
        if isinstance(wanted, type):
            is_alike = wanted is object or type(value) is wanted
        elif isinstance(wanted, dict):
            is_alike = isinstance(value, dict) and _has_form(wanted, value, is_inner=True)
        else:
            is_alike = type(value) is type(wanted) and value == wanted
        if not is_alike:
            return False
    return True


def _source_by_text(shape: ServerShape, members: dict[str, Any], ids: Collection[str]) -> Source:
    """Who wrote an answer that has a server's form, by its text."""
    if not shape.text:
        return Source.TRAINER
    text: Any = members
    for name in shape.text:
        text = text[name]
    if is_reason_phrase(text):
        return Source.UNKNOWN if shape.is_generic else Source.ROUTER
    if ROUTERS_WORDS.search(without(ids, text, but_words=True)):
        return Source.UNKNOWN
    if shape.is_generic:
        is_trainers = TRAINERS_WORDS.search(without(ids, text)) is not None
        is_others = missing_in(text, ids) in (Missing.JOB, Missing.PLACE)
        return Source.TRAINER if is_trainers and not is_others else Source.UNKNOWN
    return Source.TRAINER


def _may_be_gateways(members: dict[str, Any], ids: Collection[str]) -> bool:
    """Whether an answer with FastAPI's `detail` may be a gateway's that is made with FastAPI."""
    texts = texts_in(members)
    if _says_no_more_than_the_status(members["detail"], texts):
        return True
    missing = {missing_in(text, ids) for text in texts[:_MOST_TEXTS]}
    if Missing.TRAINERS in missing:
        return False
    is_read = len(texts) <= _MOST_TEXTS and all(map(is_readable, texts))
    return not is_read or not missing <= {None}


_MOST_TEXTS: Final = 32
"""How many texts of one answer are searched: all of them in one turn of the event loop."""


# A path, an address, a method, a time, an id: what an answer tells of the request.
_OF_THE_REQUEST: Final = re.compile(r"(?:https?:)?/\S*|[A-Z]+|[^\s\d]*\d\S*(?: [\d:.+-]+)?")


def _says_no_more_than_the_status(detail: object, texts: Sequence[str]) -> bool:
    """Whether it is the reason phrase alone, in an object or a list too, or nothing."""
    if detail in ([], {}, 404):
        return True
    others = [text for text in texts if not is_reason_phrase(text)]
    is_said = len(others) < len(texts) or (isinstance(detail, dict) and 404 in detail.values())
    return is_said and all(map(_OF_THE_REQUEST.fullmatch, others))


def _is_more_than_detail(members: dict[str, Any]) -> bool:
    """Whether an answer has members that say that it is not FastAPI's."""
    names = {name.casefold() for name in members}
    return not names.isdisjoint(PROBLEM_MEMBERS) or any(map(is_error_member, names))
