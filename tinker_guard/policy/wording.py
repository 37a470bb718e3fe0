"""Texts by which trainers, routers and gateways are told from each other."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection

TRAINERS_WORDS: Final = re.compile(
    # Not what may come "in the near future".
    r"(?<!/)(?<!\bin )(?<!\bin the )(?<!\bnear )"
    r"\b(?:futures?|checkpoints?|samplers?|seq_id|base[ _]model"
    r"|(?:sampling|training)[ _]session)\b"
    r"|\btinker://",
    re.IGNORECASE,
)
"""What only a trainer has. Not "model" and "session": gateways route by both. Nor what stands in a
path, which a gateway gives back: /api/v1/samplers/s-1."""

_HANDLERS: Final = (
    r"\b(?:method|service|app|application|handler|function|proxy|ingress|tunnel|listener)\b"
)

# What routers of many makers say where they know no way: Kong, APISIX, Cloudflare, Railway, Ray,
# Cloud Endpoints ("Method does not exist"), Express and its like ("Cannot GET /v1"), Kubernetes,
# Spring ("No static resource v1/accounts/a"), Supabase ("Requested function was not found").
ROUTERS_WORDS: Final = re.compile(
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

# What gateways have and a trainer has not. Names like my-server may be those of models.
_PLACES: Final = (
    r"(?<![\w/.~-])(?:service|route|upstream|replica|endpoint|backend|worker|server|host|deployment"
    r"|instance|pod|node|target|application|app|(?:train(?:er|ing)-?)?job|trainer|account|resource"
    r"|url|page)s?"
)

# dstack ("Service main/run-1 not found"), SkyServe ("No ready replicas"), MLflow ("The endpoint 'a'
# is not present or active on the server"). Words that stand farther from each other may be a
# trainer's: "Session not found: the service has restarted".
GATEWAYS_WORDS: Final = re.compile(
    r"\b(?:no|unknown) (?:(?:such|matching|healthy|ready|live|active|available|running) )?"
    rf"{_PLACES}\b"
    rf"|{_PLACES}(?: (?!(?:or|and)\b)\S{{1,300}})? (?:(?:was|were|is|are|could|does) )?"
    r"(?:not (?:be )?(?:found|exist|present|available|registered|ready|running|active)\b"
    r"|unavailable\b)"
    r"|\b(?:not|cannot|unable to) routed?\b"
    # The resource that the route's path names.
    r"|\brlortrainerjobs?\b"
    # Another server's answer that is passed on: a page, a JSON object, or what a client raises
    # (httpx, requests, aiohttp).
    r"|<(?:!doctype|html)\b"
    r"|[\"']not found\.?[\"']"
    # A 404 after a word is an id: "Session 404 not found".
    r"|(?<![a-z] )\b404\W+(?:client error\W+)?not found\b"
    rf"|{_PLACES}\b[^.\n]{{0,20}}\b404\b",
    re.IGNORECASE,
)

_REASON_PHRASE: Final = re.compile(
    r"[\W_]*(?:(?:(?:http|error|status)[\W_]*)*404)?[\W_]*(?:not[\W_]*found)?[\W_]*"
)

PHRASE_LENGTH: Final = 64

_OF_PODS: Final = r"(?:-(?=\w*\d)\w++)*"
"""What Kubernetes adds to a name: sampler-7b-0, sampler-7b-5d9c7b-x2x9z. Not another word, which
may be somebody else's. Each part matches in one way alone: with several, the time to find that the
whole does not match would double with each part."""

_TEXT_LENGTH: Final = 1000
"""How much of a text is searched: a pattern takes long for a text of a million characters."""


def is_reason_phrase(text: object) -> bool:
    """Whether a text says no more than the status 404 does."""
    return (
        isinstance(text, str)
        and len(text) <= PHRASE_LENGTH
        and _REASON_PHRASE.fullmatch(text.casefold()) is not None
    )


def without(ids: Collection[str], text: str, *, but_words: bool = False) -> str:
    """The beginning of a text, with an x in the place of what the request's URL names.

    Also of what is named after it, such as the pods and the host of a job.

    Args:
        ids: What the request's URL names.
        text: The text.
        but_words: Whether an id that is a plain word stays, but for one in the name of a resource:
            where a router speaks of a route, `route` is no id, but it is in `accounts/route`.
    """
    # Cut before, so that a long text takes no time, and after: an id may stand at the first cut.
    text = text[: 2 * _TEXT_LENGTH]
    for one in sorted(filter(None, ids), key=len, reverse=True):
        if not one.isalpha():
            named = rf"(?<![\w.~-])(?:[\w.~]+-)*{re.escape(one)}{_OF_PODS}(?:\.[\w.-]*)?(?![\w~-])"
        elif but_words:
            named = rf"(?<=\w/){one}(?![\w~-])"
        else:
            named = rf"(?<![\w~-]){one}{_OF_PODS}(?![\w~-])"
        text = re.sub(named, "x", text, flags=re.IGNORECASE)
    return text[:_TEXT_LENGTH]
