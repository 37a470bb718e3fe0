"""What an answer's headers and body prove about who wrote it.

Each function says yes only where the answer shows it. An answer that could be somebody else's
proves nothing, since a gateway's word that is taken for the trainer's ends a healthy run.
"""

from __future__ import annotations

import json
import re
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from tinker_guard.policy.codings import CodingError, decoded
from tinker_guard.policy.not_found_shapes import GATEWAYS, SERVERS, TRAINERS_WORDS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from tinker_guard.policy.not_found_shapes import GatewayShape, ServerShape

BODY_LIMIT: Final = 1024 * 1024
"""Bytes of a body that are looked at, before and after decoding; a longer one proves nothing."""


class Source(StrEnum):
    """Who wrote a 404, as far as its body tells."""

    GATEWAY = "gateway"
    TRAINER = "trainer"
    ROUTER = "router"
    """`{"detail": "Not Found"}`, which any FastAPI application says of a path it does not know: the
    trainer where this route's trainer has shown itself before, else unknown."""
    UNKNOWN = "unknown"


def source_of(
    headers: Mapping[str, str],
    body: bytes,
    *,
    shapes: Sequence[ServerShape] = (),
    ids: Collection[str] = (),
    is_decoded: bool = False,
    limit: int = BODY_LIMIT,
) -> Source:
    """Tell from a 404's headers and body who wrote it. Never raises.

    The gateway answers `{"error": {"code": "NOT_FOUND", "param": "jobId", ...}}`, a trainer
    (FastAPI) `{"detail": ...}` as `application/json`. A problem document (RFC 9457) has a `detail`
    too, but is a gateway's or a content delivery network's. A `detail` that says that a service, a
    route, a job, a server or the like is missing is unknown, since gateways made with FastAPI write
    it, unless it names what a trainer alone has. Servers that write another form are listed in
    `not_found_shapes.SERVERS`; what matches none of it is unknown, a web server's page too, since
    one can stand in the trainer's own pod and keep the probe's path from it.

    Args:
        headers: The response's headers, by names of any case.
        body: The body, possibly only its beginning.
        shapes: Those of the user's own server, which come before the listed ones.
        ids: What the request's URL names. Users choose them, so that a word in one of them, which
            an answer gives back, says nothing about who wrote it.
        is_decoded: Whether something below has undone the Content-Encoding already.
        limit: How many bytes are looked at, before and after decoding.
    """
    answer = _json_object(headers, body, is_decoded=is_decoded, limit=limit)
    return Source.UNKNOWN if answer is None else _source_of(answer, shapes, ids)


def author_of(
    headers: Mapping[str, str],
    body: bytes,
    *,
    had_shown_trainer: bool,
    is_essential: bool = False,
    shapes: Sequence[ServerShape] = (),
    ids: Collection[str] = (),
    is_decoded: bool = False,
) -> Source:
    """Tell who wrote a 404 on a route, by its headers and body and by what is known of the route.

    Args:
        headers: The 404's headers, by names of any case.
        body: The body, possibly only its beginning.
        had_shown_trainer: Whether the route's trainer had shown itself when the 404 came: what any
            router says of an unknown path is the trainer's then.
        is_essential: Whether every trainer knows the request's path, so that it is another
            application's all the same. `ROUTER` says that.
        shapes: Those of the user's own server.
        ids: What the request's URL names; see `source_of`.
        is_decoded: Whether something below has undone the Content-Encoding already.
    """
    if is_cached_copy(headers):
        return Source.UNKNOWN
    source = source_of(headers, body, shapes=shapes, ids=ids, is_decoded=is_decoded)
    if source is not Source.ROUTER:
        return source
    if not had_shown_trainer:
        return Source.UNKNOWN
    return Source.ROUTER if is_essential else Source.TRAINER


def gateway_of(
    headers: Mapping[str, str], body: bytes, *, is_decoded: bool = False, limit: int = BODY_LIMIT
) -> str | None:
    """The gateway that writes such a 404, for people to read; None if none is known. Never raises.

    It is no evidence: a server behind the gateway may write the same.

    Args:
        headers: The response's headers, by names of any case.
        body: The body, possibly only its beginning.
        is_decoded: Whether something below has undone the Content-Encoding already.
        limit: How many bytes are looked at, before and after decoding.
    """
    media_type = _media_type(headers)
    answer = _json_object(headers, body, is_decoded=is_decoded, limit=limit)
    if answer is not None and _source_of(answer) is Source.GATEWAY:
        return "fireworks"
    text = _text(headers, body, is_decoded=is_decoded)
    for shape in GATEWAYS:
        if shape.media_type not in (None, media_type) or not _has_headers(shape, headers):
            continue
        if shape.members is None:
            is_alike = text is not None and re.fullmatch(shape.body, text) is not None
        else:
            is_alike = answer is not None and all(
                _is_like(pattern, answer.members.get(name))
                for name, pattern in shape.members.items()
            )
        if is_alike:
            return shape.gateway
    return None


def is_from_trainer(
    status_code: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    is_decoded: bool = False,
    limit: int = BODY_LIMIT,
) -> bool:
    """Whether the answer to a probe was written by the trainer itself, just now. Never raises.

    That is a 2xx with a JSON object that reports no error, or the trainer's own 404, and neither a
    copy from a cache. Every other answer (401, 403, 429, 5xx, a redirect, a page, an empty body)
    may come from whatever stands in front of the trainer.

    Args:
        status_code: The answer's status.
        headers: The answer's headers, by names of any case.
        body: The body, possibly only its beginning.
        is_decoded: Whether something below has undone the Content-Encoding already.
        limit: How many bytes are looked at, before and after decoding.
    """
    if status_code == 404 and not is_cached_copy(headers):
        return source_of(headers, body, is_decoded=is_decoded, limit=limit) is Source.TRAINER
    if not may_be_trainers(status_code, headers):
        return False
    answer = _json_object(headers, body, is_decoded=is_decoded, limit=limit)
    return (
        answer is not None
        and answer.media_type == "application/json"
        and not reports_an_error(answer.members)
    )


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
        and not any(map(_OTHERS_MEDIA_TYPE.fullmatch, _media_types(headers)))
        and not is_cached_copy(headers)
    )


def reports_an_error(members: dict[str, Any]) -> bool:
    """Whether a JSON object reports an error although its status is a good one. Never raises.

    Args:
        members: Its members.
    """
    # Apigee's errors stand in `fault`; some makers begin their names with a capital.
    told = {name.casefold(): value for name, value in members.items()}
    return (
        any(_says_no(told.get(name)) for name in ("success", "ok"))
        or any(
            (_is_error_member(name) or name == "fault") and value not in (None, False, "", [], {})
            for name, value in told.items()
        )
        or any(
            _is_error_number(told.get(name))
            for name in ("status", "status_code", "statuscode", "code")
        )
        or any(_is_error_word(told.get(name)) for name in ("status", "result"))
        # gRPC's status, as JSON.
        or ("message" in told and told.get("code") in range(1, 17))
        or ("detail" in told and told.keys() <= _PROBLEM_MEMBERS | {"detail"})
        or {"type", "title"} <= told.keys()
        # What a router or a control plane says with 404, said with 200.
        or any(told.get(name) and _is_reason_phrase(told[name]) for name in ("message", "msg"))
        or _speaks_of_routes(told, ())
        or _has_not_found_code(told, ())
    )


def is_control_planes_404(
    headers: Mapping[str, str],
    body: bytes,
    *,
    ids: Collection[str] = (),
    is_decoded: bool = False,
    limit: int = BODY_LIMIT,
) -> bool:
    """Whether a 404 is recognisably a control plane's "there is no such job". Never raises.

    It is one where JSON carries a not-found code: gRPC's 5 or NOT_FOUND, a name like JOB_NOT_FOUND,
    or the number 404 with a text that speaks of a job. If the text speaks of routes, paths or
    hosts, or is what a framework says of any path that it does not know, then it is a router's,
    which knows nothing of jobs.

    Args:
        headers: The answer's headers, by names of any case.
        body: The body, possibly only its beginning.
        ids: What the question's URL names; see `source_of`.
        is_decoded: Whether something below has undone the Content-Encoding already.
        limit: How many bytes are looked at, before and after decoding.
    """
    # A copy was said at some earlier time, which is not known.
    if is_cached_copy(headers):
        return False
    answer = _json_object(headers, body, is_decoded=is_decoded, limit=limit)
    if answer is None or _source_of(answer) in (Source.GATEWAY, Source.ROUTER):
        return False
    return (
        not _speaks_of_routes(answer.members, ids)
        and not _is_said_of_any_path(answer.members)
        and _has_not_found_code(answer.members, ids)
    )


def is_cached_copy(headers: Mapping[str, str]) -> bool:
    """Whether a cache says that it gave the answer from its store, revalidated or not.

    Such an answer proves nothing about the server behind the cache. Read are `Age`, `Cache-Status`
    (RFC 9211), `Warning` (RFC 7234), `X-Varnish`, and the headers that caches have had before,
    such as `X-Cache` and `CF-Cache-Status`. Never raises.
    """
    return (
        _is_positive(headers.get("age", "").partition(",")[0])
        or any(_is_positive(count) for count in headers.get("x-cache-hits", "").split(","))
        # With two ids, the second is that of the request that filled the cache.
        or any(len(ids.split()) > 1 for ids in headers.get("x-varnish", "").split(","))
        or _STALE_WARNING.search(_unquoted(headers.get("warning", ""))) is not None
        or _HIT_PARAMETER.search(_unquoted(headers.get("cache-status", ""))) is not None
        or any(
            not _COPY_WORDS.isdisjoint(_words(value))
            for name, value in headers.items()
            if _CACHE_HEADER.fullmatch(name.lower().replace("_", "-"))
        )
    )


# -- caches ----------------------------------------------------------------------------------------

# X-Cache, X-Cache-Status, X-Proxy-Cache, X-Cache-Remote, CF-Cache-Status, X-From-Cache, ...; but
# neither Cache-Control nor X-Cache-Lookup, X-Cache-Key and X-Cache-Tags, nor X-Skip-Cache: 1, with
# which web servers say that they took nothing from a cache.
_CACHE_HEADER: Final = re.compile(
    r"(?:(?!(?:no|not|skip|bypass)-)[a-z0-9]+-)*cache(?:d|-status|-result|-state|-remote|-debug)?"
)
_COPY_WORDS: Final = frozenset(
    (
        *("hit", "refreshhit", "stale", "updating", "revalidated", "unmodified", "cached", "fresh"),
        *("1", "true", "yes"),
        # Made up at the edge, by Fastly and CloudFront.
        *("synth", "lambdageneratedresponse", "functiongeneratedresponse"),
    )
)
_HIT_PARAMETER: Final = re.compile(
    r";\s*(?:hit(?:\s*(?:[;,]|\Z)|=\?1)|fwd-status=304\b)", re.IGNORECASE
)
_STALE_WARNING: Final = re.compile(r"(?:\A|,)\s*11[0-3]\b")
_POSITIVE: Final = re.compile(r"\s*0*[1-9][0-9]*\s*")


def _unquoted(value: str) -> str:
    """What is left of a header without its quoted strings, which may hold anything."""
    return re.sub(r'"[^"]*"', "", value)


def _words(value: str) -> set[str]:
    """What a cache says of itself: "TCP_HIT from example.org, MISS" says tcp, hit and miss."""
    first = [member.split()[0] for member in value.split(",") if member.strip()]
    return {word for item in first for word in re.findall(r"[a-z0-9]+", item.lower())}


def _is_positive(count: str) -> bool:
    return _POSITIVE.fullmatch(count) is not None


# -- bodies ----------------------------------------------------------------------------------------


class _Json(NamedTuple):
    media_type: str
    members: dict[str, Any]


_MEDIA_TYPE: Final = re.compile(r"application/(?:[a-z0-9.!#$&^_-]+\+)?json")
# Pages, XML as object stores write it, and problem documents (RFC 9457).
_OTHERS_MEDIA_TYPE: Final = re.compile(r"text/html|[^/]+/(?:.*\+)?xml|application/problem\+.*")
_DIGITS: Final = 400
"""Digits of the longest number that is read: Python's own limit can be switched off, and reading a
number of a million digits takes seconds."""


def read_json(
    headers: Mapping[str, str],
    body: bytes,
    *,
    is_decoded: bool = False,
    limit: int = BODY_LIMIT,
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


def _json_object(
    headers: Mapping[str, str], body: bytes, *, is_decoded: bool, limit: int
) -> _Json | None:
    media_type = _media_type(headers)
    if not _MEDIA_TYPE.fullmatch(media_type):
        return None
    document = read_json(headers, body, is_decoded=is_decoded, limit=limit, parse_constant=_refuse)
    return _Json(media_type, document) if isinstance(document, dict) else None


def _media_types(headers: Mapping[str, str]) -> set[str]:
    """The media types that an answer names: proxies add the header where there is one already."""
    values = _unquoted(headers.get("content-type", "")).split(",")
    return {value.partition(";")[0].strip().lower() for value in values} - {""}


def _media_type(headers: Mapping[str, str]) -> str:
    """The one media type of an answer; no type at all if it names several."""
    return ", ".join(sorted(_media_types(headers)))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        # Each parser takes another one of the values.
        raise ValueError("a name that occurs twice")
    return members


def _refuse(constant: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")


def _integer(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError("no number of a real answer")
    return int(digits)


# What a problem document (RFC 9457) has beside `detail`. FastAPI's answer has none of them.
_PROBLEM_MEMBERS: Final = frozenset({"type", "title", "status", "instance"})


def _source_of(
    answer: _Json, shapes: Sequence[ServerShape] = (), ids: Collection[str] = ()
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
    if _is_reason_phrase(detail):
        return Source.ROUTER
    return Source.UNKNOWN if _lacks_service(detail, ids) else Source.TRAINER


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
    if _is_reason_phrase(text):
        return Source.UNKNOWN if shape.is_generic else Source.ROUTER
    if _ROUTERS_WORDS.search(_without(_names_among(ids), text)):
        return Source.UNKNOWN
    if shape.is_generic and not TRAINERS_WORDS.search(_without(ids, text)):
        return Source.UNKNOWN
    return Source.TRAINER


def _without(ids: Collection[str], text: str) -> str:
    """The beginning of a text, with an x in the place of what the request's URL names."""
    # Cut before, so that a long text takes no time, and after: an id may stand at the first cut.
    text = text[: 2 * _TEXT_LENGTH]
    for one in sorted(filter(None, ids), key=len, reverse=True):
        text = re.sub(rf"(?<![\w~-]){re.escape(one)}(?![\w~-])", "x", text, flags=re.IGNORECASE)
    return text[:_TEXT_LENGTH]


def _names_among(ids: Collection[str]) -> list[str]:
    """The ids that are no plain words: where a router speaks of a route, `route` is no id."""
    return [one for one in ids if not one.isalpha()]


def _lacks_service(detail: object, ids: Collection[str]) -> bool:
    """Whether FastAPI's `detail` is that of a gateway which is made with FastAPI."""
    text = _text_of(detail)
    if TRAINERS_WORDS.search(_without(ids, text)):
        return False
    said = _without(_names_among(ids), text).replace("_", " ")
    return _GATEWAYS_WORDS.search(said) is not None


def _text_of(detail: object) -> str:
    """What a `detail` says: it may be an object or an array, in which the texts stand."""
    values: Iterable[object] = (detail,)
    if isinstance(detail, dict):
        values = (value for holder in _holders(detail) for value in holder.values())
    elif isinstance(detail, list):
        values = detail
    return " ".join(value for value in values if isinstance(value, str))


# What gateways have and a trainer has not. Names like my-server may be those of models.
_PLACES: Final = (
    r"(?<![\w/.~-])(?:service|route|upstream|replica|endpoint|backend|worker|server|host|deployment"
    r"|instance|pod|node|target|application|app|job|trainer|url|page)s?"
)
# dstack ("Service main/run-1 not found"), SkyServe ("No ready replicas"), MLflow ("The endpoint 'a'
# is not present or active on the server"). Words that stand farther from each other may be a
# trainer's: "Session not found: the service has restarted".
_GATEWAYS_WORDS: Final = re.compile(
    r"\b(?:no|unknown) (?:(?:such|matching|healthy|ready|live|active|available|running) )?"
    rf"{_PLACES}\b"
    rf"|{_PLACES}(?: (?!(?:or|and)\b)\S{{1,300}})? (?:(?:was|were|is|are|could|does) )?"
    r"(?:not (?:be )?(?:found|exist|present|available|registered|ready|running|active)\b"
    r"|unavailable\b)"
    r"|\b(?:not|cannot|unable to) routed?\b",
    re.IGNORECASE,
)


def _is_more_than_detail(members: dict[str, Any]) -> bool:
    """Whether an answer has members that say that it is not FastAPI's."""
    names = {name.casefold() for name in members}
    return not names.isdisjoint(_PROBLEM_MEMBERS) or any(map(_is_error_member, names))


def _is_error_member(name: str) -> bool:
    return name.startswith(("error", "cloudflare_"))


def _says_no(value: object) -> bool:
    return value is False or (isinstance(value, str) and value.casefold() == "false")


def _is_error_number(value: object) -> bool:
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value[:_DIGITS])
    return type(value) is int and 400 <= value < 600


def _is_error_word(value: object) -> bool:
    return isinstance(value, str) and value.casefold() in _ERROR_WORDS


_ERROR_WORDS: Final = frozenset({"error", "fail", "failed", "failure"})


# -- gateways --------------------------------------------------------------------------------------

_PAGE: Final = 4096
"""Bytes of the longest page that is looked at: a gateway's own have some hundred."""


def _text(headers: Mapping[str, str], body: bytes, *, is_decoded: bool) -> str | None:
    try:
        if not is_decoded:
            body = decoded(headers.get("content-encoding", ""), body, _PAGE + 1)
    except CodingError:
        return None
    return None if len(body) > _PAGE else body.decode("utf-8", "replace")


def _has_headers(shape: GatewayShape, headers: Mapping[str, str]) -> bool:
    return all(
        re.fullmatch(pattern, headers.get(name, ""), re.IGNORECASE) is not None
        for name, pattern in shape.headers.items()
    )


def _is_like(pattern: object, value: object) -> bool:
    """Whether a member's value has the pattern; what is no text must be equal."""
    if isinstance(pattern, str):
        return isinstance(value, str) and re.fullmatch(pattern, value[:_PAGE]) is not None
    return value is pattern


# -- control planes --------------------------------------------------------------------------------

_CODE_MEMBERS: Final = ("code", "status", "reason", "type", "__type")
_TEXT_MEMBERS: Final = ("message", "detail", "title", "error", "msg", "error_msg", "description")
_NOT_FOUND_NAME: Final = re.compile(
    r"(?:err(?:or)?)?(?:[a-z]*job|[a-z]*trainer|resource|entity|record)?notfound(?:error|exception)?"
)
_REASON_PHRASE: Final = re.compile(r"\W*(?:(?:http|error)?\W*404)?\W*(?:not\W*found)?\W*")
_PHRASE_LENGTH: Final = 64
_TEXT_LENGTH: Final = 1000
"""How much of a text is searched: a pattern takes long for a text of a million characters."""
_HANDLERS: Final = (
    r"\b(?:method|service|app|application|handler|function|proxy|ingress|tunnel|listener)\b"
)
# What routers of many makers say where they know no way: Kong, APISIX, Cloudflare, Railway, Ray,
# Cloud Endpoints ("Method does not exist"), Express and its like ("Cannot GET /v1"), Kubernetes,
# Spring ("No static resource v1/accounts/a"), Supabase ("Requested function was not found").
_ROUTERS_WORDS: Final = re.compile(
    r"\brout(?:e|es|er|ing)\b"
    r"|\b(?:path|url|uri|endpoint|page|host|hostname|domain|upstream|backend)s?\b"
    rf"|{_HANDLERS}.{{0,60}}?\b(?:not|no|cannot|unknown)\b"
    rf"|\b(?:not|no|cannot|unknown)\b.{{0,60}}?{_HANDLERS}"
    r"|\bcannot (?:get|post|head)\b|\bnot defined by this api\b"
    r"|\b(?:requested|static) resource\b"
    # A path that is given back, by Spring without its first slash. The name of a resource begins
    # with neither a slash nor the version of an API.
    r"|(?:\A|[\s\"'`(:])(?:/|v\d+\w*/)[\w.-]+/",
    re.IGNORECASE,
)
_JOBS_WORDS: Final = re.compile(r"job|trainer|account", re.IGNORECASE)


def _holders(members: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Where codes and texts stand: at the top, and in `error`."""
    error = members.get("error")
    return members, error if isinstance(error, dict) else {}


def _speaks_of_routes(members: dict[str, Any], ids: Collection[str]) -> bool:
    names = _names_among(ids)
    return any(name.startswith("cloudflare_") for name in members) or any(
        _ROUTERS_WORDS.search(_without(names, text).replace("_", " "))
        for holder in _holders(members)
        for name in (*_TEXT_MEMBERS, *_CODE_MEMBERS)
        if isinstance(text := holder.get(name), str)
    )


def _is_said_of_any_path(members: dict[str, Any]) -> bool:
    """Whether an answer is what a framework says of a path that it does not know.

    grpc-gateway takes the text from Go's table, and adds the very code of a job that does not exist
    (grpc-ecosystem/grpc-gateway#1513); its first version has the text twice, its second one an
    empty list of details. JAX-RS writes "HTTP 404 Not Found". The phrase alone, beside a code, may
    be what a control plane says of a job.
    """
    message = members.get("message")
    if not _is_reason_phrase(message):
        return False
    is_grpc_gateways = message == "Not Found" and (
        members.get("details") == [] or members.get("error") == message
    )
    return is_grpc_gateways or str(message).startswith("HTTP")


def _has_not_found_code(members: dict[str, Any], ids: Collection[str]) -> bool:
    top, inner = _holders(members)
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
        isinstance(text := holder.get(name), str) and _JOBS_WORDS.search(_without(ids, text))
        for holder in (top, inner)
        for name in ("message", "detail")
    )
    return names_the_job and any(type(number) is int and number == 404 for number in numbers)


def _is_not_found_name(code: object) -> bool:
    """Whether a code is a name for it: NOT_FOUND, job_not_found, ResourceNotFoundException."""
    # With a space it is the reason phrase of the status, which any server can say.
    if not isinstance(code, str) or len(code) > _PHRASE_LENGTH or " " in code:
        return False
    letters = re.sub(r"[^a-z]", "", code.rpartition("#")[2].lower())
    return _NOT_FOUND_NAME.fullmatch(letters) is not None


def _is_reason_phrase(text: object) -> bool:
    """Whether a text says no more than the status 404 does."""
    return (
        isinstance(text, str)
        and len(text) <= _PHRASE_LENGTH
        and _REASON_PHRASE.fullmatch(text.casefold()) is not None
    )
