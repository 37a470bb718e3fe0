"""What a JSON object says of itself: that it reports an error, that something was not found."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from tinker_guard.policy.json_body import MOST_DIGITS
from tinker_guard.policy.wording import (
    NAMED,
    PHRASE_LENGTH,
    ROUTERS_WORDS,
    Missing,
    is_reason_phrase,
    missing_in,
    without,
)

if TYPE_CHECKING:
    from collections.abc import Collection


PROBLEM_MEMBERS: Final = frozenset({"type", "title", "status", "instance"})
"""What a problem document (RFC 9457) has beside `detail`. FastAPI's answer has none of them."""

_CODE_MEMBERS: Final = ("code", "status", "reason", "type", "__type")

_TEXT_MEMBERS: Final = ("message", "detail", "title", "error", "msg", "error_msg", "description")

_NOT_FOUND_NAME: Final = re.compile(
    r"(?:err(?:or)?)?(?:[a-z]*job|[a-z]*trainer|resource|entity|record)?notfound(?:error|exception)?"
    r"|nosuch(?:[a-z]*job|[a-z]*trainer|resource|entity|record)"
)

_JOBS_WORDS: Final = re.compile(r"job|trainer|account", re.IGNORECASE)

_ERROR_WORDS: Final = frozenset(
    (
        *("error", "fail", "failed", "failure", "maintenance", "unavailable", "unhealthy"),
        *("starting", "initializing", "loading", "pending", "not ready", "not_ready"),
    )
)


def reports_an_error(members: dict[str, Any]) -> bool:
    """Whether a JSON object reports an error although its status is a good one. Never raises.

    Args:
        members: Its members.
    """
    # Apigee's errors stand in `fault`; some makers begin their names with a capital.
    told = {name.casefold(): value for name, value in members.items()}
    return (
        any(_says_no(told.get(name)) for name in ("success", "ok", "ready", "healthy", "available"))
        # Of an edge that stands in while the trainer starts.
        or told.get("maintenance") is True
        or any(
            (is_error_member(name) or name == "fault") and value not in (None, False, "", [], {})
            for name, value in told.items()
        )
        or any(
            _is_error_number(told.get(name))
            for name in ("status", "status_code", "statuscode", "code")
        )
        or any(_is_error_word(told.get(name)) for name in ("status", "result"))
        # gRPC's status, as JSON.
        or ("message" in told and told.get("code") in range(1, 17))
        or ("detail" in told and told.keys() <= PROBLEM_MEMBERS | {"detail"})
        or {"type", "title"} <= told.keys()
        # What a router or a control plane says with 404, said with 200.
        or any(told.get(name) and is_reason_phrase(told[name]) for name in ("message", "msg"))
        or speaks_of_routes(told, ())
        or has_not_found_code(told, ())
    )


def speaks_of_routes(members: dict[str, Any], ids: Collection[str]) -> bool:
    """Whether an object says what a router says that knows no way.

    Args:
        members: Its members.
        ids: What the question's URL names; see `not_found.source_of`.
    """
    return any(name.startswith("cloudflare_") for name in members) or any(
        _is_routers(text, ids)
        for holder in holders(members)
        for name in (*_TEXT_MEMBERS, *_CODE_MEMBERS)
        if isinstance(text := holder.get(name), str)
    )


def lacks_a_place(members: dict[str, Any], ids: Collection[str]) -> bool:
    """Whether an object says that a place on the way is missing: "Deployment not found".

    Not where that is what the question was about, which is named: 'deployments.apps "job-1"'.

    Args:
        members: Its members.
        ids: What the question's URL names; see `not_found.source_of`.
    """
    return any(
        missing_in(text, ids) is Missing.PLACE and NAMED not in without(ids, text)
        for holder in holders(members)
        for name in _TEXT_MEMBERS
        if isinstance(text := holder.get(name), str)
    )


def _is_routers(text: str, ids: Collection[str]) -> bool:
    said = without(ids, text, but_words=True)
    if " " not in said:
        # ROUTE_NOT_FOUND. In a text such a word may be a name.
        said = said.replace("_", " ")
    return ROUTERS_WORDS.search(said) is not None and missing_in(text, ids) is not Missing.JOB


def has_not_found_code(members: dict[str, Any], ids: Collection[str]) -> bool:
    """Whether an object has a code that says that something was not found.

    Args:
        members: Its members.
        ids: What the question's URL names; see `not_found.source_of`.
    """
    top, inner = holders(members)
    codes = [holder.get(name) for holder in (top, inner) for name in _CODE_MEMBERS]
    if any(type(code) is int and code == 5 for code in (top.get("code"), inner.get("code"))):
        return True
    if any(_is_not_found_name(code) for code in (*codes, top.get("error"))):
        return True
    numbers = [top.get("code"), inner.get("code"), inner.get("status")]
    if "title" in top or "detail" in top:
        # A problem document. In others, `status` is what a framework says of an unknown path.
        numbers.append(top.get("status"))
    # By itself the number says no more than the status, which any server can say.
    names_the_job = any(
        isinstance(text := holder.get(name), str)
        and _JOBS_WORDS.search(without(ids, text))
        and missing_in(text, ids) is Missing.JOB
        for holder in (top, inner)
        for name in (*_TEXT_MEMBERS, "reason")
    )
    return names_the_job and any(type(number) is int and number == 404 for number in numbers)


def holders(members: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Where codes and texts stand: at the top, and in `error` or the first of `errors`."""
    errors = members.get("errors")
    error = errors[0] if isinstance(errors, list) and errors else members.get("error")
    return members, error if isinstance(error, dict) else {}


def is_error_member(name: str) -> bool:
    """Whether a member of such a name is that of an error."""
    return name.startswith(("error", "cloudflare_"))


def _is_not_found_name(code: object) -> bool:
    """Whether a code is a name for it: NOT_FOUND, job_not_found, ResourceNotFoundException."""
    # With a space it is the reason phrase of the status, which any server can say.
    if not isinstance(code, str) or len(code) > PHRASE_LENGTH or " " in code:
        return False
    letters = re.sub(r"[^a-z]", "", code.rpartition("#")[2].lower())
    return _NOT_FOUND_NAME.fullmatch(letters) is not None


def _says_no(value: object) -> bool:
    return value is False or (isinstance(value, str) and value.casefold() == "false")


def _is_error_number(value: object) -> bool:
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value[:MOST_DIGITS])
    return type(value) is int and 400 <= value < 600


def _is_error_word(value: object) -> bool:
    return isinstance(value, str) and value.casefold() in _ERROR_WORDS
