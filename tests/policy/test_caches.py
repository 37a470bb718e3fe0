"""Which answers are copies from a cache."""

from __future__ import annotations

import httpx
import pytest

from tests.policy.answers import JSON
from tinker_guard.policy.answer import Answer
from tinker_guard.policy.caches import is_cached_copy
from tinker_guard.policy.job_missing import is_control_planes_404
from tinker_guard.policy.not_found import is_from_trainer

COPIES = [
    ("age", "1"),
    ("age", "86400"),
    ("Age", " 07 "),
    ("age", "5, 0"),
    ("X-Cache", "HIT"),
    ("x-cache", "hit"),
    ("x-cache", "Hit from cloudfront"),
    ("x-cache", "RefreshHit from cloudfront"),
    ("x-cache", "MISS, HIT"),
    ("x-cache", "HIT, MISS"),
    ("x-cache", "HIT from proxy.test:3128"),
    ("x-cache", "TCP_MEM_HIT from a.test (AkamaiGHost)"),
    ("x-cache", "TCP_REFRESH_UNMODIFIED"),
    ("x-cache", "HIT-SYNTH"),
    ("x-cache-hits", "0,3"),
    ("x-cache-hits", "3,0"),
    ("x-cache-remote", "TCP_HIT"),
    ("x-cache-status", "HIT"),
    ("x-cache-status", "STALE"),
    ("x-cache-status", "UPDATING"),
    ("x-cache-status", "REVALIDATED"),
    ("x-proxy-cache", "HIT"),
    ("x-fastcgi-cache", "HIT"),
    ("x-litespeed-cache", "hit,litemage"),
    ("x-tyk-cached-response", "1"),
    ("x-cache-hit", "true"),
    ("x-cache", "hit-for-pass, HIT"),
    ("x-semantic-cache", "hit"),
    ("server-timing", "cdn-cache; desc=HIT"),
    ("server-timing", "kv-cache;desc=hit, cdn-cache;desc=HIT"),
    ("server-timing", "cdn-cache; desc=REVALIDATE"),
    ("server-timing", 'edge; dur=1, cdn-cache; dur=0; desc="HIT"'),
    ("server-timing", "cdn-cache;dur=1;desc=HIT"),
    ("server-timing", "cdn-cache; desc=HIT; dur=1"),
    ("server-timing", 'cfCacheStatus;desc="STALE"'),
    ("server-timing", 'cache;desc="hit-front", host;desc="cp3066"'),
    ("x-vercel-cache", "STALE"),
    ("apisix-cache-status", "HIT"),
    ("cdn_cache_status", "hit"),
    ("x-from-cache", "1"),
    ("cf-cache-status", "HIT"),
    ("cf-cache-status", "REVALIDATED"),
    ("cf-cache-status", "UPDATING"),
    ("cache-status", "ExampleCache; hit"),
    ("cache-status", "ExampleCache;hit;ttl=376"),
    ("cache-status", '"a, b"; fwd=miss; stored, Edge; ttl=1; hit'),
    ("cache-status", "Edge; hit=?1"),
    ("cache-status", "Edge; fwd=stale; fwd-status=304"),
    ("cache-status", "HIT"),
    ("warning", '110 - "Response is Stale"'),
    ("warning", '199 - "a, b", 113 cache "Heuristic Expiration"'),
    ("x-varnish", "32770 5"),
    ("x-varnish", "32770, 32771 5"),
]
ORIGINALS = [
    ("x-cache", "hit-for-pass"),
    ("x-cache", "HIT-FOR-MISS"),
    ("x-cache-status", "NOT_CACHED"),
    ("x-cache", "no-hit"),
    ("x-cache", "MISS, hit-for-pass"),
    ("x-disable-cache", "1"),
    ("x-kv-cache", "hit"),
    ("x-prefix-cache-hit", "true"),
    ("x-prompt-cache-hit", "1"),
    ("x-lora-cache", "HIT"),
    ("x-model-cache", "hit"),
    ("x-auth-cache-hit", "true"),
    ("server-timing", "kv-cache;desc=hit, total;dur=3"),
    ("server-timing", "lora_cache; desc=HIT"),
    ("age", "0"),
    ("age", "soon"),
    ("age", "00"),
    ("age", ""),
    ("age", "-1"),
    ("x-cache", "MISS"),
    ("x-cache", "Miss from cloudfront"),
    ("x-cache", "MISS from white.test"),
    ("x-cache", "MISS from hit.test:80"),
    ("x-cache", "TCP_MISS"),
    ("x-cache", "CONFIG_NOCACHE"),
    ("x-cache", ""),
    ("x-cache-hits", "0, 0"),
    ("x-cache-lookup", "HIT from proxy.test:3128"),
    ("x-cache-key", "/hit"),
    ("x-cache-status", "BYPASS"),
    ("x-cache-status", "EXPIRED"),
    ("cf-cache-status", "DYNAMIC"),
    ("cf-cache-status", "MISS"),
    ("cf-cache-status", "NONE/UNKNOWN"),
    ("cache-status", "ExampleCache; fwd=uri-miss; stored"),
    ("cache-status", "ExampleCache; fwd=stale; fwd-status=200"),
    ("cache-status", 'ExampleCache; fwd=miss; key="a; hit"'),
    ("cache-status", "Edge; hit=?0"),
    ("cache-control", "max-age=0, stale-while-revalidate=5, hit"),
    ("warning", '214 - "Transformation Applied"'),
    ("warning", '199 - "110, 111"'),
    ("x-varnish", "32770"),
    ("x-varnish", "32770, 32771"),
    ("x-no-cache", "1"),
    ("x-skip-cache", "true"),
    ("x-bypass-cache", "yes"),
    ("x-wp-bypass-cache", "1"),
    ("x-served-by", "cache-hit"),
    ("x-cache-hit", "false"),
    ("server-timing", "cdn-cache; desc=MISS, edge; dur=1"),
    ("server-timing", "cache, db;desc=HIT"),
    ("server-timing", "hit;desc=cache"),
]


@pytest.mark.parametrize(("name", "value"), COPIES)
def test_a_copy_from_a_cache_shows_nothing(name: str, value: str) -> None:
    headers = httpx.Headers({"content-type": JSON, name: value})
    assert is_cached_copy(headers)
    assert not is_from_trainer(Answer(headers, b'{"supported_models": []}', status_code=200))
    assert not is_from_trainer(Answer(headers, b'{"detail": "Model not found"}'))
    assert not is_control_planes_404(Answer(headers, b'{"code": 5, "message": "not found"}'))


@pytest.mark.parametrize(("name", "value"), ORIGINALS)
def test_an_answer_that_a_cache_let_pass(name: str, value: str) -> None:
    headers = httpx.Headers({"content-type": JSON, name: value})
    assert not is_cached_copy(headers)
    assert is_from_trainer(Answer(headers, b'{"supported_models": []}', status_code=200))
    assert is_control_planes_404(Answer(headers, b'{"code": 5, "message": "not found"}'))
