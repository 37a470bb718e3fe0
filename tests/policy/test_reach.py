"""What makes a request reach its gateway goes with probes and lookups, and nothing else does."""

from __future__ import annotations

import pickle
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from testkit.fakes import (
    BASE,
    ORIGIN,
    Exchange,
    FakeControlPlane,
    FakeGateway,
    gateway_404,
    loop_time,
    ok,
)
from tinker_guard import GuardSettings, GuardTransport
from tinker_guard.control_plane.fireworks import FireworksControlPlane
from tinker_guard.control_plane.shared import SharedControlPlane
from tinker_guard.policy.reach import Reach, cookies_set_by, with_cookies

Headers = list[tuple[bytes, bytes]]


def request(headers: Headers, **extensions: Any) -> httpx.Request:
    return httpx.Request(
        "POST",
        f"{BASE}/api/v1/forward_backward",
        headers=headers,
        content=b'{"seq_id": 1}',
        extensions=extensions,
    )


# -- what is copied ------------------------------------------------------------------------------

REACHING: Headers = [
    (b"Host", b"trainers.internal"),
    (b"X-Api-Key", b"tml-1"),
    (b"Authorization", b"Bearer jwt"),
    (b"Proxy-Authorization", b"Basic cHJveHk="),
    (b"User-Agent", b"AsyncTinker/Python 0.38.0"),
    # Of gateways with keys under names of their own.
    (b"apikey", b"kong"),
    (b"api-key", b"azure"),
    (b"Ocp-Apim-Subscription-Key", b"azure-too"),
    (b"x-goog-api-key", b"google"),
    (b"CF-Access-Client-Id", b"id.access"),
    (b"CF-Access-Client-Secret", b"cloudflare"),
    (b"Modal-Key", b"wk-1"),
    (b"Modal-Secret", b"ws-1"),
    (b"Twinkle-Authorization", b"Bearer tw-1"),
    (b"X-Functions-Key", b"azure-functions"),
    (b"X-Auth-Token", b"t-1"),
    (b"X-Access-Token", b"t-2"),
    (b"Private-Token", b"t-3"),
    (b"cf-access-token", b"cloudflare-too"),
    (b"X-Serverless-Authorization", b"Bearer run"),
    (b"x-vercel-protection-bypass", b"vercel"),
    (b"X-Tenant", b"team"),
    (b"X-Tenant-Id", b"team-1"),
]
BEHIND: Headers = [
    (b"Fireworks-Deployment", b"accounts/acc/deployments/dep-1"),
    (b"fireworks-model", b"accounts/fireworks/models/m"),
]
"""They go with probes alone: a control plane at the same origin is not behind the gateway."""
STAYING: Headers = [
    # A probe must not look like a repeat of the request.
    (b"Idempotency-Key", b"i-1"),
    (b"X-Idempotency-Key", b"i-2"),
    (b"X-Request-Id", b"r-1"),
    (b"X-Stainless-Retry-Count", b"3"),
    # Of a trace, which has a span for the probe.
    (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    (b"baggage", b"run=1"),
    # A balancer's would pin every probe to the replica that lacks the route.
    (b"Cookie", b"affinity=stale; session=1"),
    # What describes the body, or asks for one.
    (b"Content-Type", b"application/json"),
    (b"Content-Encoding", b"zstd"),
    (b"Content-Length", b"13"),
    (b"Transfer-Encoding", b"chunked"),
    (b"Expect", b"100-continue"),
    (b"Accept", b"text/event-stream"),
    (b"If-None-Match", b'"etag"'),
    (b"Range", b"bytes=0-9"),
    (b"X-Unheard-Of", b"1"),
]


def test_what_names_a_deployment_goes_past_the_gateway_alone() -> None:
    reach = Reach.of(request([*REACHING, *BEHIND, *STAYING], sni_hostname="sni.test"))
    assert list(reach.headers) == [*REACHING, *BEHIND]
    assert list(reach.to_origin().headers) == REACHING
    assert reach.to_origin().extensions == {"sni_hostname": "sni.test"}


def test_an_allow_list_of_headers_is_copied() -> None:
    assert list(Reach.of(request(STAYING + REACHING)).headers) == REACHING


@pytest.mark.parametrize("sticky", [b"serve_multiplexed_model_id", b"Serve-Multiplexed-Model-Id"])
def test_what_ray_serve_picks_a_replica_by_is_copied(sticky: bytes) -> None:
    """With the ids that Twinkle sends beside it, and refuses requests without."""
    beside: Headers = [(b"X-Request-Id", b"run-1"), (b"x-ray-serve-request-id", b"run-1")]
    headers = [*REACHING, *beside, (sticky, b"run-1")]
    # One request's own id is not copied, see above.
    assert list(Reach.of(request([*headers, (b"Idempotency-Key", b"i-1")])).headers) == headers


@pytest.mark.parametrize("value", [b"caf\xc3\xa9", b"\xff\xfe", b"\xe4\xb8\xad", b"a\tb"])
@pytest.mark.parametrize("name", [b"X-Api-Key", b"user-agent", b"AUTHORIZATION"])
def test_headers_are_bytes(name: bytes, value: bytes) -> None:
    (copied,) = (h for h in Reach.of(request([(name, value)])).headers if h[0] != b"Host")
    assert copied == (name, value)


def test_a_header_that_occurs_twice_is_copied_twice() -> None:
    twice: Headers = [(b"Host", b"g"), (b"Authorization", b"a"), (b"authorization", b"b")]
    assert list(Reach.of(request(twice)).headers) == twice


def test_of_the_extensions_only_the_name_for_tls_is_copied() -> None:
    extensions = {
        "sni_hostname": "trainers.internal",
        "timeout": {"read": 600.0},
        "trace": print,
        "target": b"/elsewhere",
    }
    assert Reach.of(request([], **extensions)).extensions == {"sni_hostname": "trainers.internal"}
    assert Reach.of(request([], timeout={})).extensions == {}


# -- cookies -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("set_cookies", "pairs"),
    [
        ([], ()),
        ([b"affinity=1"], ((b"affinity", b"1"),)),
        (
            [b"AWSALB=a/b+c==; Expires=Wed, 21 Oct 2026 07:28:00 GMT; Path=/"],
            ((b"AWSALB", b"a/b+c=="),),
        ),
        ([b" name = v ; Secure"], ((b"name", b"v"),)),
        ([b"a=1", b"b=2; HttpOnly"], ((b"a", b"1"), (b"b", b"2"))),
        ([b"INGRESSCOOKIE=\xff|x"], ((b"INGRESSCOOKIE", b"\xff|x"),)),
        ([b"empty="], ((b"empty", b""),)),
        # None that could be sent back.
        ([b"=nameless", b";", b""], ()),
    ],
)
def test_cookies_of_an_answer(
    set_cookies: list[bytes], pairs: tuple[tuple[bytes, bytes], ...]
) -> None:
    headers = [(b"Set-Cookie", value) for value in set_cookies]
    assert cookies_set_by(httpx.Response(200, headers=headers)) == pairs


@pytest.mark.parametrize(
    ("attributes", "is_kept"),
    [
        (b"", True),
        (b"; Max-Age=0", False),
        (b"; Path=/; max-age = -1 ; Secure", False),
        (b"; Max-Age=00", False),
        (b"; Max-Age=10", True),
        (b"; Max-Age=soon", True),
        (b"; X-Max-Age=0", True),
        (b"; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Path=/", False),
        (b"; expires=Thu, 01-Jan-1970 00:00:00 GMT", False),
        # The moment at which the answer was written, and the second after it.
        (b"; Expires=Wed, 21 Oct 2026 07:28:00 GMT", False),
        (b"; Expires=Wed, 21 Oct 2026 07:28:01 GMT", True),
        (b"; Expires=0", True),
        (b"; Expires=\xff", True),
        (b"; Expires=Thu, 01 Jan 99999 00:00:00 GMT", True),
        (b"; X-Expires=Thu, 01 Jan 1970 00:00:00 GMT", True),
    ],
)
def test_a_cookie_that_an_answer_takes_back(attributes: bytes, is_kept: bool) -> None:
    headers = [
        (b"Date", b"Wed, 21 Oct 2026 07:28:00 GMT"),
        (b"Set-Cookie", b"zone=x" + attributes),
        (b"Set-Cookie", b"other=1"),
    ]
    kept = ((b"zone", b"x"),) if is_kept else ()
    assert cookies_set_by(httpx.Response(200, headers=headers)) == (*kept, (b"other", b"1"))


def headers_of(sent: httpx.Request) -> Headers:
    return [
        (name, value)
        for name, value in sent.headers.raw
        if name.lower() not in (b"host", b"content-length")
    ]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param([], [(b"Cookie", b"affinity=2; zone=b")], id="none"),
        pytest.param(
            [(b"cookie", b"affinity=1"), (b"A", b"1")],
            [(b"cookie", b"affinity=2; zone=b"), (b"A", b"1")],
            id="same-name",
        ),
        pytest.param(
            [(b"A", b"1"), (b"Cookie", b"session=s; affinity=1;theme=dark"), (b"B", b"2")],
            [(b"A", b"1"), (b"Cookie", b"session=s; affinity=2;theme=dark; zone=b"), (b"B", b"2")],
            id="among-others",
        ),
        pytest.param(
            [(b"Cookie", b"zone=a; affinity=1=="), (b"cookie", b"session=\xff==")],
            [(b"Cookie", b"zone=b; affinity=2"), (b"cookie", b"session=\xff==")],
            id="two-headers",
        ),
        # Names are told apart by case, and are no more than themselves.
        pytest.param(
            [(b"Cookie", b"Affinity=1; xaffinity=3; affinity_=4; affinity=5")],
            [(b"Cookie", b"Affinity=1; xaffinity=3; affinity_=4; affinity=2; zone=b")],
            id="alike",
        ),
    ],
)
def test_a_resend_carries_the_cookies_in_the_place_of_its_own(
    given: Headers, expected: Headers
) -> None:
    original = request(given)
    before = original.headers.raw
    sent = with_cookies(original, ((b"affinity", b"2"), (b"zone", b"b")))
    assert headers_of(sent) == expected
    assert original.headers.raw == before


def test_all_else_of_the_resend_is_the_very_same() -> None:
    original = request(STAYING, timeout={"read": 600.0})
    sent = with_cookies(original, ((b"affinity", b"2"),))
    assert sent is not original
    assert (sent.method, sent.url, sent.stream) == (original.method, original.url, original.stream)
    assert sent.extensions is original.extensions
    assert sent.content == original.content
    others = [header for header in headers_of(original) if header[0] != b"Cookie"]
    assert [header for header in headers_of(sent) if header[0] != b"Cookie"] == others


def test_without_cookies_it_is_the_request_itself() -> None:
    original = request(STAYING)
    assert with_cookies(original, ()) is original


# -- over the whole way --------------------------------------------------------------------------


def guarded(
    gateway: FakeGateway, *, asks: list[httpx.Request] | None = None, warmup: int = 1
) -> GuardTransport:
    def answer(question: httpx.Request) -> httpx.Response:
        assert asks is not None
        asks.append(question)
        return httpx.Response(200, json={"state": "JOB_STATE_RUNNING"})

    plane: Any = FakeControlPlane()
    if asks is not None:
        plane = FireworksControlPlane(transport=httpx.MockTransport(answer))
    return GuardTransport(
        gateway.new_transport(),
        settings=GuardSettings(warmup_successes=warmup),
        control_plane=plane,
        new_transport=gateway.new_transport,
    )


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"Host", b"trainers.internal"),
        (b"Authorization", b"Bearer \xc3\xa9"),
        (b"CF-Access-Client-Secret", b"s"),
        (b"User-Agent", b"\xff"),
    ],
)
async def test_probes_and_lookups_reach_a_gateway_that_asks_for_more(
    name: bytes, value: bytes
) -> None:
    """It knows the route from second 1 on, and only for whom sends this header."""

    def has_it(headers: httpx.Headers) -> bool:
        return (name.lower(), value) in [(n.lower(), v) for n, v in headers.raw]

    def answer(exchange: Exchange) -> httpx.Response:
        return ok() if exchange.at >= 1.0 and has_it(exchange.headers) else gateway_404()

    asks: list[httpx.Request] = []
    gateway = FakeGateway(answer)
    sent = request([(name, value)], sni_hostname="trainers.internal")
    response = await guarded(gateway, asks=asks).handle_async_request(sent)
    assert response.status_code == 200
    assert 1.0 <= loop_time() <= 1.5
    assert len(gateway.sent) == 1
    for exchange in gateway.probes:
        assert has_it(exchange.headers)
        assert exchange.extensions["sni_hostname"] == "trainers.internal"
    assert asks
    for question in asks:
        assert has_it(question.headers)
        assert question.extensions["sni_hostname"] == "trainers.internal"
        assert str(question.url).startswith(ORIGIN)


@pytest.mark.anyio
async def test_a_control_plane_elsewhere_hears_the_credentials_and_no_more() -> None:
    """`Host` and keys of proxies are of the gateway; they would lead nowhere, or tell a secret."""
    asks: list[httpx.Request] = []

    def answer(question: httpx.Request) -> httpx.Response:
        asks.append(question)
        return httpx.Response(200, json={"state": "JOB_STATE_PAUSED"})

    gateway = FakeGateway(lambda _: gateway_404())
    guard = GuardTransport(
        gateway.new_transport(),
        settings=GuardSettings(warmup_successes=0),
        control_plane=FireworksControlPlane(
            "https://api.test", transport=httpx.MockTransport(answer)
        ),
    )
    await guard.handle_async_request(request(REACHING, sni_hostname="trainers.internal"))
    (question,) = asks
    assert question.headers["host"] == "api.test"
    assert question.headers["x-api-key"] == "tml-1"
    assert question.headers["authorization"] == "Bearer jwt"
    assert "sni_hostname" not in question.extensions
    for name, value in REACHING:
        if name.lower() not in (b"x-api-key", b"authorization"):
            assert value not in [v for _, v in question.headers.raw]


@pytest.mark.anyio
async def test_a_control_plane_with_a_key_of_its_own_hears_that_one_alone() -> None:
    asks: list[httpx.Request] = []

    def answer(question: httpx.Request) -> httpx.Response:
        asks.append(question)
        return httpx.Response(200, json={"state": "JOB_STATE_PAUSED"})

    plane = FireworksControlPlane(
        api_key=SecretStr("fw-key"), transport=httpx.MockTransport(answer)
    )
    gateway = FakeGateway(lambda _: gateway_404())
    guard = GuardTransport(
        gateway.new_transport(), settings=GuardSettings(warmup_successes=0), control_plane=plane
    )
    await guard.handle_async_request(request([(b"X-Api-Key", b"tml-1")]))
    assert [question.headers["x-api-key"] for question in asks] == ["fw-key"]


def balanced(stale: set[bytes], *, until: float = 20.0) -> FakeGateway:
    """A balancer that keeps whoever has its cookie with one of four replicas, some of them stale.

    Whoever has none is given the next one in turn.
    """
    turns = iter(range(10**6))

    def answer(exchange: Exchange) -> httpx.Response:
        cookies = exchange.headers.get("cookie", "")
        replica = dict(pair.partition("=")[::2] for pair in cookies.split("; ")).get("affinity")
        is_new = replica is None
        replica = str(next(turns) % 4) if replica is None else replica
        is_stale = replica.encode() in stale and exchange.at < until
        response = gateway_404() if is_stale else ok()
        if is_new:
            response.headers["set-cookie"] = f"affinity={replica}; Path=/; HttpOnly"
        return response

    return FakeGateway(answer)


@pytest.mark.anyio
@pytest.mark.parametrize("stale", [{b"0"}, {b"0", b"1"}, {b"0", b"1", b"2"}])
@pytest.mark.parametrize("warmup", [0, 1])
@pytest.mark.parametrize("session", [[], [(b"Cookie", b"session=s; affinity=0")]])
async def test_a_balancers_cookie_pins_the_request_to_the_replica_that_was_reached(
    stale: set[bytes], warmup: int, session: Headers
) -> None:
    """As fast as where connections are kept with a replica."""
    gateway = balanced(stale)
    sent = request(session)
    response = await guarded(gateway, warmup=warmup).handle_async_request(sent)
    assert response.status_code == 200
    assert loop_time() < 1.0
    assert not any("cookie" in exchange.headers for exchange in gateway.probes)
    cookies = gateway.sent[-1].headers["cookie"].split("; ")
    assert [c for c in cookies if not c.startswith("affinity=")] == (
        ["session=s"] if session else []
    )
    assert len([c for c in cookies if c.startswith("affinity=")]) == 1


@pytest.mark.anyio
@pytest.mark.parametrize("known_at", [0.0, 2.0])
@pytest.mark.parametrize(
    "name",
    [
        *("session", "sid", "sessionid", "session_id", "connect.sid", "PHPSESSID", "csrftoken"),
        *("authservice_session", "_oauth2_proxy", "_oauth2_proxy_1", "CF_Authorization", "jwt"),
        *("XSRF-TOKEN", "access_token", "__Host-session", "__Secure-auth", "ASP.NET_SessionId"),
        *("laravel_session", "_myapp_session", "grafana_session", "PLAY_SESSION", "SESSION"),
        *("AWSELBAuthSessionCookie-0", "AppServiceAuthSession", ".AspNetCore.Cookies", "_xsrf"),
        *("_oauth2_proxy_csrf", "GCP_IAP_UID", "GCP_IAAP_AUTH_TOKEN_1", "_forward_auth"),
        *("authelia_session", "jupyterhub-session-id", "remember_token", "a.sid"),
    ],
)
async def test_a_probe_that_is_given_a_session_takes_none_from_the_request(
    known_at: float, name: str
) -> None:
    """A server may give a login to whoever comes without."""

    def answer(exchange: Exchange) -> httpx.Response:
        if exchange.at < known_at:
            return gateway_404()
        if exchange.is_probe:
            response = ok()
            response.headers["set-cookie"] = f"{name}=nobody; Path=/"
            return response
        return ok() if f"{name}=alice" in exchange.headers["cookie"] else httpx.Response(401)

    gateway = FakeGateway(answer)
    sent = request([(b"Cookie", f"theme=dark; {name}=alice".encode())])
    response = await guarded(gateway, warmup=3).handle_async_request(sent)
    assert response.status_code == 200
    assert len(gateway.sent) == 1


@pytest.mark.parametrize(
    "name",
    [
        *("AWSALB", "AWSALBCORS", "INGRESSCOOKIE", "route", "SERVERID", "ARRAffinity", "GCLB"),
        *("JSESSIONID", "session-affinity", "sticky-session", "_gateway_replica", "lb", "srv_id"),
    ],
)
def test_a_balancers_cookie_is_followed(name: str) -> None:
    response = httpx.Response(200, headers={"set-cookie": f"{name}=1; Path=/"})
    assert cookies_set_by(response) == ((name.encode(), b"1"),)


@pytest.mark.parametrize(
    "name",
    [
        *("X-Auth-Token", "X-Serverless-Authorization", "Private-Token", "X-Tenant", "api_secret"),
        *("X-JWT", "Cf-Access-Jwt-Assertion", "X-Goog-Iap-Jwt-Assertion"),
    ],
)
def test_whoever_has_another_credential_shares_nothing(name: str) -> None:
    plane = SharedControlPlane(GuardSettings())
    keys = [
        plane.key_for(request([(name.encode(), value), (b"X-Idempotency-Key", once), (b"A", once)]))
        for value, once in ((b"1", b"1"), (b"1", b"2"), (b"2", b"3"))
    ]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.anyio
async def test_the_callers_cookie_jar_stays_as_it_is() -> None:
    gateway = balanced({b"0", b"1"})
    async with httpx.AsyncClient(
        transport=guarded(gateway), cookies={"session": "s", "affinity": "0"}
    ) as client:
        response = await client.post(f"{BASE}/api/v1/optim_step", content=b"{}")
    assert response.status_code == 200
    assert dict(client.cookies) == {"session": "s", "affinity": "0"}
    assert response.request.headers["cookie"] == "session=s; affinity=0"


def test_a_reach_can_be_compared_and_copied() -> None:
    """It is part of the key under which requests share what they find out."""
    one, same = (Reach.of(request(REACHING, sni_hostname="a")) for _ in range(2))
    assert one == same
    assert one != Reach.of(request(REACHING, sni_hostname="b"))
    assert pickle.loads(pickle.dumps(one)) == one


def test_it_shows_the_names_of_its_headers_alone() -> None:
    reach = Reach.of(httpx.Request("GET", BASE, headers={"X-Api-Key": "geheim"}))
    assert repr(reach) == "Reach(Host, X-Api-Key)"
