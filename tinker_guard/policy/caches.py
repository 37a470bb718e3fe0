"""Whether a cache gave an answer from its store: then it says nothing of the server behind it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from tinker_guard.policy.json_body import unquoted

if TYPE_CHECKING:
    from collections.abc import Mapping


def is_cached_copy(headers: Mapping[str, str]) -> bool:
    """Whether a cache says that it gave the answer from its store, revalidated or not.

    Such an answer proves nothing about the server behind the cache. Read are `Age`, `Cache-Status`
    (RFC 9211), `Warning` (RFC 7234), `X-Varnish`, `Server-Timing`, where Akamai, Cloudflare and
    Wikimedia say it, and the headers that caches have had before, such as `X-Cache` and
    `CF-Cache-Status`. Never raises.
    """
    return (
        _is_positive(headers.get("age", "").partition(",")[0])
        or any(_is_positive(count) for count in headers.get("x-cache-hits", "").split(","))
        # With two ids, the second is that of the request that filled the cache.
        or any(len(ids.split()) > 1 for ids in headers.get("x-varnish", "").split(","))
        or _STALE_WARNING.search(unquoted(headers.get("warning", ""))) is not None
        or _HIT_PARAMETER.search(unquoted(headers.get("cache-status", ""))) is not None
        or any(
            not _COPY_WORDS.isdisjoint(_words(value))
            for name, value in headers.items()
            if _CACHE_HEADER.fullmatch(name.lower().replace("_", "-"))
        )
        or any(
            not _COPY_WORDS.isdisjoint(_words(description))
            for description in _timed_caches(headers.get("server-timing", ""))
        )
    )


# X-Cache, X-Cache-Status, X-Proxy-Cache, X-Cache-Remote, CF-Cache-Status, X-From-Cache,
# X-Tyk-Cached-Response, ...; but neither Cache-Control nor X-Cache-Lookup, X-Cache-Key and
# X-Cache-Tags, nor X-Skip-Cache: 1, with which web servers say that they took nothing from a cache,
# nor what the server itself keeps of what its answers are made with, such as X-Prefix-Cache-Hit.
_OF_THE_SERVER: Final = (
    r"(?:kv|prefix|prompt|compile|model|lora|adapter|weights?|tokenizer|token|tensor|embeddings?"
    r"|checkpoint|dataset|graph|kernel|block|radix|attention|auth|jwt|session|db|sql|dns|config)"
)
_CACHE_HEADER: Final = re.compile(
    rf"(?:(?!(?:no|not|skip|bypass|disabled?|{_OF_THE_SERVER})-)[a-z0-9]+-)*cache"
    r"(?:d|d-response|-hit|-status|-result|-state|-remote|-debug)?"
)
_KEPT_BY_THE_SERVER: Final = re.compile(rf"(?:.*[-_])?{_OF_THE_SERVER}[-_].*")

_COPY_WORDS: Final = frozenset(
    (
        *("hit", "refreshhit", "stale", "updating", "unmodified", "cached", "fresh"),
        *("revalidated", "revalidate"),
        *("1", "true", "yes"),
        # Made up at the edge, by Fastly and CloudFront.
        *("synth", "lambdageneratedresponse", "functiongeneratedresponse"),
    )
)

_NO_COPY: Final = frozenset({"miss", "pass", "no", "not", "bypass"})

_HIT_PARAMETER: Final = re.compile(
    r";\s*(?:hit(?:\s*(?:[;,]|\Z)|=\?1)|fwd-status=304\b)", re.IGNORECASE
)

_STALE_WARNING: Final = re.compile(r"(?:\A|,)\s*11[0-3]\b")

_POSITIVE: Final = re.compile(r"\s*0*[1-9][0-9]*\s*")


def _words(value: str) -> set[str]:
    """What a cache says of itself: "TCP_HIT from example.org, MISS" says tcp, hit and miss."""
    first = [member.split()[0] for member in value.split(",") if member.strip()]
    said = [set(re.findall(r"[a-z0-9]+", item.lower())) for item in first]
    # "hit-for-pass" and "NOT_CACHED" say that there was no copy.
    return {word for words in said if words.isdisjoint(_NO_COPY) for word in words}


def _timed_caches(value: str) -> list[str]:
    """What the caches among Server-Timing's metrics say: "cdn-cache; desc=HIT, edge; dur=1"."""
    metrics = (metric.partition(";") for metric in value.lower().split(","))
    return [
        parameter
        for name, _, parameters in metrics
        if "cache" in name and not _KEPT_BY_THE_SERVER.fullmatch(name.strip())
        for parameter in parameters.split(";")
        if parameter.strip().startswith("desc")
    ]


def _is_positive(count: str) -> bool:
    return _POSITIVE.fullmatch(count) is not None
