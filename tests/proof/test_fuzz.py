"""Any input at all gives a clear error or plain pass-through: never a crash, never another place.

The default suite tries the same few hundred inputs each time. `make fuzz` tries new ones, as many
as `TINKER_GUARD_FUZZ` says, and prints how to repeat one that fails.
"""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import logging
import math
import os
import pickle
import re
import zlib
from typing import TYPE_CHECKING, Any
from unittest import mock

import httpcore
import httpx
import pytest
import zstandard
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from testkit.fakes import (
    BASE,
    GATEWAY_BODY,
    FakeControlPlane,
    gateway_404,
    ok,
    settle,
)
from testkit.virtual_time import VirtualTimeLoop
from tinker_guard import GuardSettings, GuardTransport, faults
from tinker_guard.control_plane.fireworks import FireworksControlPlane
from tinker_guard.control_plane.shared import SharedControlPlane
from tinker_guard.core.routes import ROUTES, RouteTable
from tinker_guard.install import child_env as children
from tinker_guard.install import installation
from tinker_guard.policy.answer import Answer
from tinker_guard.policy.codings import CodingError, decoded
from tinker_guard.policy.json_body import BODY_LIMIT
from tinker_guard.policy.not_found import Source, source_of
from tinker_guard.policy.pacing import retry_after
from tinker_guard.settings import InvalidSettingsError
from tinker_guard.transports.body_prefix import read_prefix
from tinker_guard.waiting import Readiness, until_routable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

_EXAMPLES = os.environ.get("TINKER_GUARD_FUZZ")

fuzzed = settings(
    max_examples=int(_EXAMPLES or 200),
    derandomize=_EXAMPLES is None,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=[
        # The fixture that every test has leaves nothing that one example could hand to the next.
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.filter_too_much,
        HealthCheck.data_too_large,
    ],
)
# Of a 404 with a long body there is much to say.
pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(coroutine)


# -- URLs ------------------------------------------------------------------------------------------

_PLAIN_ID = st.text("abcXYZ019._~-", min_size=1, max_size=12).filter(lambda i: i not in (".", ".."))
_SEGMENT = st.one_of(
    _PLAIN_ID,
    st.sampled_from(["", ".", "..", "...", "%2e", "%2E%2e", ".%2e", "%252e", "rlorTrainerJobs"]),
    st.sampled_from(["%2f", "a%2Fb", "%5c", "\\", "%00", "%0d%0a", "%", "%zz", " ", "\t", "a b"]),
    st.sampled_from(["a;b", "a?b", "a#b", "@", "a@b", ":", "a:80", "a" * 300]),
    # Letters that look like others, or like dots and slashes.
    st.sampled_from(["\u00e4", "\u0430", "\uff0e\uff0e", "\uff0f", "\u2025", "\u202e", "\ud800"]),
    st.text(max_size=8),
)
_HOST = st.one_of(
    st.sampled_from(["gateway.test", "GATEWAY.test", "gateway.test.", "127.0.0.1", "0x7f.1"]),
    st.sampled_from(["gateway.test@evil.test", "gateway.test\\@evil.test"]),
    st.sampled_from(["gateway.test%2f.evil.test", "gateway.test%40evil.test", "..", "*", ""]),
    st.sampled_from(["[::1]", "[::ffff:127.0.0.1]", "[fe80::1%25eth0]", "[::1", "xn--nxasmq6b"]),
    st.sampled_from(["xn--", "ga\u200dteway.test", "g\u0430teway.test", "gateway\u3002test"]),
    st.from_regex(r"[a-z0-9-]{1,20}(\.[a-z]{1,5}){0,3}", fullmatch=True),
    st.text(max_size=12),
)
_PORT = st.sampled_from(
    ["", ":", ":80", ":443", ":8080", ":0", ":00080", ":65536", ":-1", ":\u0663", ":x"]
)
_USERINFO = st.sampled_from(["", "", "", "user@", "user:secret@", ":@", "a%40b:c@", "a:b@c@"])
_SCHEME = st.sampled_from(["https://", "http://", "HTTPS://", "ftp://", "//", "", "https:/"])
_COLLECTION = st.sampled_from(["rlorTrainerJobs"] * 8 + ["rlorTrainerJobs/", "x", ""])
_END = st.sampled_from(["", "/", "/api/v1/x", "/api?a=/b", "?a=/b/", "#/b/", "/../../../x", "//x"])


@st.composite
def urls(draw: st.DrawFn) -> httpx.URL:
    """URLs that look like a trainer route's, more or less."""
    authority = draw(_SCHEME) + draw(_USERINFO) + draw(_HOST) + draw(_PORT)
    ids = draw(_SEGMENT) + "/" + draw(_SEGMENT)
    path = f"/training/v1/{draw(_COLLECTION)}/{ids}{draw(_END)}"
    try:
        if draw(st.booleans()):
            url = httpx.URL(authority + path)
        else:
            # The way of a program that puts a URL together by its parts.
            raw_path = path.encode("utf-8", "surrogatepass")
            url = httpx.URL(authority).copy_with(raw_path=raw_path)
        httpx.Request("GET", url)
        return url
    except (httpx.InvalidURL, ValueError, TypeError):
        assume(False)
        raise


class _Recorder(httpx.AsyncBaseTransport):
    """Notes where requests go, and answers each the same."""

    def __init__(self, answer: Any) -> None:
        self.requests: list[httpx.Request] = []
        self._answer = answer

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer: httpx.Response = self._answer()
        return answer


def _place(url: httpx.URL) -> tuple[bytes, bytes, int | None]:
    return url.raw_scheme, url.raw_host, url.port


@fuzzed
@given(urls(), st.sampled_from([None, "https://api.test", "http://[::2]:81/base/x"]))
def test_what_is_asked_stays_with_the_route(url: httpx.URL, control_plane_url: str | None) -> None:
    ROUTES.clear()
    here = _Recorder(gateway_404)
    there = _Recorder(lambda: httpx.Response(200, json={"state": "JOB_STATE_RUNNING"}))
    guard = GuardTransport(
        here,
        settings=GuardSettings(warmup_successes=1, warmup_timeout=0.01, retry_timeout=0.2),
        control_plane=FireworksControlPlane(control_plane_url, transport=there),
    )
    request = httpx.Request("GET", url, headers={"x-api-key": "geheim"})
    response = run(guard.handle_async_request(request))
    assert response.status_code == 404
    route = RouteTable().find(url)
    if route is None:
        assert [sent.url for sent in here.requests] == [url]
        assert there.requests == []
        return
    account, job = route.route.account, route.route.job
    assert account is not None
    assert job is not None
    for name in (account, job):
        assert re.fullmatch(r"[A-Za-z0-9._~-]+", name)
        assert name not in (".", "..")
    # The URL itself says which job; its first segments are these and no others.
    base = f"/training/v1/rlorTrainerJobs/{account}/{job}/".encode()
    assert url.raw_path.startswith(base)
    for sent in here.requests:
        assert _place(sent.url) == _place(url)
        assert sent.url.raw_path.startswith(base)
        assert sent.url == url or not sent.url.userinfo
    asked = httpx.URL(control_plane_url or f"{url.scheme}://{url.netloc.decode()}")
    assert there.requests
    for question in there.requests:
        assert question.method == "GET"
        assert _place(question.url) == _place(asked)
        assert question.url.userinfo == b""
        path = (
            asked.raw_path.rstrip(b"/").decode() + f"/v1/accounts/{account}/rlorTrainerJobs/{job}"
        )
        assert question.url.raw_path == path.encode()


@fuzzed
@given(_PLAIN_ID, _PLAIN_ID, st.sampled_from(["http", "https"]), st.integers(1, 65535))
def test_plain_ids_are_a_route(account: str, job: str, scheme: str, port: int) -> None:
    url = f"{scheme}://gateway.test:{port}/training/v1/rlorTrainerJobs/{account}/{job}/api/v1/x"
    state = RouteTable().find(httpx.URL(url))
    assert state is not None
    assert (state.route.account, state.route.job) == (account, job)
    assert _place(httpx.URL(state.route.url)) == _place(httpx.URL(url))


@fuzzed
@given(st.binary(max_size=60))
def test_any_bytes_behind_the_prefix(path: bytes) -> None:
    raw_path = b"/training/v1/rlorTrainerJobs/" + path
    try:
        url = httpx.URL("https://gateway.test").copy_with(raw_path=raw_path)
    except httpx.InvalidURL:
        return
    except UnicodeDecodeError:
        # httpx's own limit: a request with such a path cannot be built.
        return
    state = RouteTable().find(url)
    if state is not None:
        assert url.raw_path.startswith(state.route.path.encode() + b"/")


@fuzzed
@given(st.one_of(urls().map(str), st.text(max_size=40)))
def test_waiting_for_any_url(url: str) -> None:
    recorder = _Recorder(ok)
    waiting = until_routable(
        url,
        settings=GuardSettings(),
        control_plane=FakeControlPlane(),
        new_transport=lambda: recorder,
    )
    try:
        ended = run(waiting)
    except ValueError as error:
        ended = str(error)[:14]
    refusals = "this is no URL", "this URL is on", "this URL must ", "this URL goes "
    assert ended in (Readiness.READY, *refusals)


# -- 404s ------------------------------------------------------------------------------------------

_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
_KNOWN_KEYS = st.sampled_from(["error", "detail", "code", "param", "message", "state"])
_LIKELY = st.dictionaries(_KNOWN_KEYS, st.one_of(_JSON, st.just({"code": "NOT_FOUND", "param": 1})))
_DOCUMENT = st.one_of(_JSON, _LIKELY).map(json.dumps)
_CHARSET = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32-be", "latin-1"])
_PLAIN_BODY = st.one_of(
    st.binary(max_size=200),
    st.builds(lambda text, charset: text.encode(charset, "replace"), _DOCUMENT, _CHARSET),
    st.sampled_from([GATEWAY_BODY, b'{"detail": "Not Found"}', b"[" * 70_000, b"9" * 70_000, b""]),
    st.integers(0, 3).map(lambda n: b"x" * (n * BODY_LIMIT // 2)),
)
_CODINGS: dict[str, Any] = {
    "identity": lambda body: body,
    "gzip": lambda body: gzip.compress(body, mtime=0),
    "deflate": zlib.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}
_BOMBS = {
    "gzip": gzip.compress(bytes(2**24), mtime=0),
    "deflate": zlib.compress(bytes(2**24)),
    "zstd": zstandard.ZstdCompressor().compress(bytes(2**24)),
}


@st.composite
def bodies(draw: st.DrawFn) -> tuple[dict[str, str], bytes]:
    """Headers and body of an answer; what the headers claim may be untrue."""
    coding = draw(st.sampled_from([*_CODINGS]))
    claimed = draw(
        st.sampled_from([coding] * 4 + ["gzip", "br", "zstd", "GZIP", "gzip, gzip", "", "x"])
    )
    if draw(st.integers(0, 9)) == 0:
        claimed = draw(st.sampled_from([*_BOMBS]))
        body = _BOMBS[claimed]
    else:
        body = _CODINGS[coding](draw(_PLAIN_BODY))
    if draw(st.booleans()):
        body = body[: draw(st.integers(0, len(body)))]
    content_type = draw(
        st.sampled_from(
            ["application/json"] * 4 + ["application/problem+json", "text/html", "", "json;;"]
        )
    )
    headers = {"content-type": content_type, "content-encoding": claimed}
    if draw(st.booleans()):
        headers["retry-after"] = draw(
            st.sampled_from(["0", "1e9", "-1", "soon", "9" * 400, "\u00b2", ""])
        )
    return {name: value for name, value in headers.items() if value.isascii()}, body


class _Body(httpx.AsyncByteStream):
    """A body in pieces, with pauses, that may break."""

    def __init__(self, pieces: list[bytes], pauses: list[float], error: Exception | None) -> None:
        self._pieces = pieces
        self._pauses = pauses
        self._error = error
        self.is_closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for number, piece in enumerate(self._pieces):
            if number < len(self._pauses):
                await asyncio.sleep(self._pauses[number])
            yield piece
        if self._error is not None:
            raise self._error

    async def aclose(self) -> None:
        self.is_closed = True


def _in_pieces(body: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(body), *(cut % (len(body) + 1) for cut in cuts)})
    return [body[a:b] for a, b in itertools.pairwise(places)]


_CUTS = st.lists(st.integers(0, 200_000), max_size=6)
_PAUSES = st.lists(st.sampled_from([0.0, 0.01, 0.4, 0.99, 1.0, 5.0]), max_size=6)
_ERRORS = st.sampled_from([None] * 6 + [httpx.ReadError("cut"), httpx.RemoteProtocolError("cut")])


async def _all_of(stream: httpx.AsyncByteStream) -> tuple[bytes, str | None]:
    read = bytearray()
    try:
        async for piece in stream:
            read += piece
    except httpx.TransportError as error:
        return bytes(read), type(error).__name__
    return bytes(read), None


@fuzzed
@given(bodies(), _CUTS, _PAUSES, _ERRORS)
def test_a_404_reaches_the_caller_as_it_came(
    answer: tuple[dict[str, str], bytes],
    cuts: list[int],
    pauses: list[float],
    error: Exception | None,
) -> None:
    headers, body = answer
    stream = _Body(_in_pieces(body, cuts), pauses, error)
    response = httpx.Response(404, headers=headers, stream=stream)
    before = list(response.headers.raw)

    async def look() -> None:
        assert body.startswith((await read_prefix(response)).content)
        assert isinstance(response.stream, httpx.AsyncByteStream)
        assert await _all_of(response.stream) == (body, error and type(error).__name__)
        await response.aclose()
        assert stream.is_closed
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(look())
    assert response.headers.raw == before


@fuzzed
@given(bodies(), _CUTS, _PAUSES, _ERRORS, st.integers(0, 2))
def test_any_404_of_a_stopped_job_is_handed_back(
    answer: tuple[dict[str, str], bytes],
    cuts: list[int],
    pauses: list[float],
    error: Exception | None,
    warmup: int,
) -> None:
    """Over the whole way: probes and requests meet it alike."""
    headers, body = answer
    streams: list[_Body] = []

    def answered() -> httpx.Response:
        streams.append(_Body(_in_pieces(body, cuts), pauses, error))
        return httpx.Response(404, headers=headers, stream=streams[-1])

    async def send() -> None:
        guard = GuardTransport(
            _Recorder(answered),
            settings=GuardSettings(warmup_successes=warmup),
            control_plane=FakeControlPlane("JOB_STATE_FAILED"),
        )
        response = await guard.handle_async_request(httpx.Request("GET", f"{BASE}/api/v1/x"))
        assert response.status_code == 404
        assert response.headers.get("content-type") == headers.get("content-type")
        assert isinstance(response.stream, httpx.AsyncByteStream)
        read, broken = await _all_of(response.stream)
        # The gate's answer is a probe's, whose body is kept up to a limit.
        is_whole = (read, broken) == (body, error and type(error).__name__)
        assert is_whole or (warmup > 0 and body.startswith(read) and broken is None)
        await response.aclose()
        await settle()
        assert all(stream.is_closed for stream in streams)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    ROUTES.clear()
    run(send())


@fuzzed
@given(bodies())
def test_who_wrote_a_404(answer: tuple[dict[str, str], bytes]) -> None:
    headers, body = answer
    coding = headers.get("content-encoding", "")
    source = source_of(Answer(headers, body))
    try:
        plain = decoded(coding, body, BODY_LIMIT)
    except CodingError:
        assert source is Source.UNKNOWN
        return
    assert len(plain) <= BODY_LIMIT
    if source is not Source.UNKNOWN:
        document = json.loads(plain)
        assert "json" in headers["content-type"]
        # The forms of servers that are no FastAPI's are exact.
        is_listed = document.keys() in (
            {"error"},
            {"error", "message"},
            {"error", "status_code", "path"},
            {"code", "message"},
        )
        assert ("error" if source is Source.GATEWAY else "detail") in document or is_listed


@fuzzed
@given(
    st.dictionaries(
        st.sampled_from(["retry-after", "retry-after-ms", "date"]),
        st.one_of(
            st.text(st.characters(max_codepoint=255), max_size=20),
            st.floats().map(str),
            st.from_regex(
                r"[A-Z][a-z]{2}, [0-9]{1,3} [A-Z][a-z]{2} [0-9]{1,5} [0-9:.]{1,12} [-+A-Z0-9]{0,6}"
            ),
        ),
    ),
    st.floats(0, 1e11),
)
def test_any_retry_after(headers: dict[str, str], now: float) -> None:
    seconds = retry_after(headers, now=now)
    assert seconds >= 0
    assert math.isfinite(seconds)


# -- control planes --------------------------------------------------------------------------------

KEY = "geheim-4711"
_REQUEST = httpx.Request("GET", f"{BASE}/api/v1/x", headers={"x-api-key": KEY})
_STATE = st.sampled_from(["JOB_STATE_RUNNING", "JOB_STATE_FAILED", "x" * 65, "A\nB", "", f"{KEY}!"])
_ANSWER_BODY = st.one_of(
    st.dictionaries(_KNOWN_KEYS, st.one_of(_JSON, _STATE)).map(lambda d: json.dumps(d).encode()),
    _PLAIN_BODY,
    st.just(b" " * 1_500_000),
    st.just(b'{"state": ' * 30_000),
    st.just(b'{"state": "JOB_STATE_RUNNING", "x": ' + b"9" * 5000 + b"}"),
)


def _ask(transport: httpx.AsyncBaseTransport, **kwargs: Any) -> Any:
    state = RouteTable().find(httpx.URL(f"{BASE}/api"))
    assert state is not None
    plane = FireworksControlPlane(transport=transport, **kwargs)
    return run(SharedControlPlane(GuardSettings(), plane).ask(state, _REQUEST))


def _is_an_answer(answer: Any) -> bool:
    if answer.failure is not None:
        return KEY not in answer.detail and "\n" not in answer.detail
    return answer.state is None or re.fullmatch(r"[A-Z][A-Z0-9_]{0,63}", answer.state) is not None


@fuzzed
@given(
    st.integers(200, 599),
    _ANSWER_BODY,
    st.sampled_from([*_CODINGS, "br", "x"]),
    st.booleans(),
    st.sampled_from(["https://evil.test/", "//evil.test", "/", "http:", "\x7f", "ftp://x", ""]),
    _CUTS,
    _PAUSES,
    _ERRORS,
)
def test_any_answer_of_a_control_plane(
    status: int,
    body: bytes,
    coding: str,
    is_true: bool,
    location: str,
    cuts: list[int],
    pauses: list[float],
    error: Exception | None,
) -> None:
    wire = _CODINGS.get(coding, bytes)(body) if is_true else body
    recorder = _Recorder(
        lambda: httpx.Response(
            status,
            headers={"content-encoding": coding, "location": location, "set-cookie": KEY},
            stream=_Body(_in_pieces(wire, cuts), pauses, error),
        )
    )
    assert _is_an_answer(_ask(recorder))
    assert 1 <= len(recorder.requests) <= 2
    assert {request.url.host for request in recorder.requests} == {"gateway.test"}


@fuzzed
@given(
    st.one_of(
        st.binary(max_size=300),
        st.builds(
            lambda line, headers, body: (
                b"HTTP/1.1 " + line + b"\r\n" + headers + b"\r\n\r\n" + body
            ),
            st.sampled_from([b"200 OK", b"302 Found", b"404", b"100 Continue", b"999 x", b"-1 x"]),
            st.one_of(
                st.binary(max_size=60),
                st.sampled_from([b"Content-Length: 9999999999999", b"Content-Length: -1"]),
                st.sampled_from([b"X: \xff\x00", b"Transfer-Encoding: chunked"]),
                st.sampled_from([b"Content-Type: \xff", b"Set-Cookie: \xff=;;"]),
            ),
            st.one_of(st.binary(max_size=60), st.just(b"ffffffffffffffff\r\n{")),
        ),
    ),
    _CUTS,
)
def test_any_bytes_from_a_control_plane(wire: bytes, cuts: list[int]) -> None:
    """Below HTTP: what a socket could give."""
    assert _is_an_answer(_ask(_Wire([*_in_pieces(wire, cuts), b""]), url="http://api.test"))


class _Wire(httpx.AsyncHTTPTransport):
    """Reads what a socket would give."""

    def __init__(self, pieces: list[bytes]) -> None:
        backend = httpcore.AsyncMockBackend(pieces)
        self._pool = httpcore.AsyncConnectionPool(network_backend=backend)


@fuzzed
@given(
    st.one_of(
        _JSON,
        st.binary(),
        st.text(),
        st.builds(object),
        st.builds(Exception, st.just(KEY)),
        st.sampled_from([float("nan"), ..., type, KeyError, [KEY], (KEY,)]),
    ),
    st.booleans(),
)
def test_anything_that_a_control_plane_of_the_users_own_does(value: Any, is_raised: bool) -> None:
    class Plane:
        async def job_state(self, *_: object, **__: object) -> Any:
            if is_raised and isinstance(value, Exception):
                raise value
            return value

    state = RouteTable().find(httpx.URL(f"{BASE}/api"))
    assert state is not None
    shared = SharedControlPlane(GuardSettings(), Plane())
    assert _is_an_answer(run(shared.ask(state, _REQUEST)))


# -- settings --------------------------------------------------------------------------------------

_MARK = "g3h31m"
_FIELDS = st.sampled_from([*GuardSettings.model_fields])
_NOISE = st.text(st.characters(exclude_characters="\0", exclude_categories=()), max_size=12)
_VALUES = st.one_of(
    st.builds(lambda a, b: a + _MARK + b, _NOISE, _NOISE),
    st.sampled_from([f"https://{_MARK}.test", f"https://{_MARK}@api.test", f"/{_MARK}"]),
    st.sampled_from([f"https://api.test?{_MARK}", f"https://api.test:99999#{_MARK}"]),
    st.sampled_from([f"https://xn--/{_MARK}", f"[{_MARK}", f"/../{_MARK}", f"https://x:{_MARK}"]),
    st.sampled_from(["1", "0", "-1", "1e400", "nan", "5e-324", "1e308", "9" * 5000, "1_0"]),
    st.sampled_from(["true", "off", "\u0663", "/api", "/%2e%2e/x", "https://[::1]:8080/x"]),
    st.sampled_from(["https://api.test", "https://api.test?", "https://api.test#"]),
    _NOISE,
)


def _is_said_well(error: InvalidSettingsError, name: str) -> bool:
    message = str(error)
    lines = message.split("\n")
    return (
        lines[0] == "tinker_guard cannot use these settings:"
        and any(line.startswith(f"  {name}: ") for line in lines[1:])
        and _MARK not in f"{message} {error!r} {error.__cause__!r} {error.__context__!r}"
    )


def _settings(**values: Any) -> GuardSettings | InvalidSettingsError:
    try:
        return GuardSettings(**values)
    except InvalidSettingsError as error:
        return error


@fuzzed
@given(_FIELDS, _VALUES)
def test_any_value_of_a_variable(field: str, value: str) -> None:
    name = f"TINKER_GUARD_{field.upper()}"
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        return  # no environment holds it
    with mock.patch.dict(os.environ, {name: value}):
        made = _settings()
    if isinstance(made, GuardSettings):
        _use(made)
        return
    # Two that do not fit each other are named by the sentence.
    needs_another = field in ("control_plane_api_key", "backoff_initial", "backoff_max")
    is_named = _is_said_well(made, name)
    assert is_named or (needs_another and _is_said_well(made, "settings"))


@fuzzed
@given(_FIELDS, st.one_of(_VALUES, _JSON, st.binary(), st.builds(object)))
def test_any_value_of_an_argument(field: str, value: Any) -> None:
    made = _settings(**{field: value})
    if isinstance(made, GuardSettings):
        _use(made)
        return
    assert _is_said_well(made, field) or _is_said_well(made, "settings")


def _use(accepted: GuardSettings) -> None:
    """What is accepted must work: a request that meets a 404, and what is asked about it."""
    ROUTES.clear()
    here = _Recorder(gateway_404)
    there = _Recorder(lambda: httpx.Response(200, json={"state": "JOB_STATE_FAILED"}))
    plane = FireworksControlPlane(
        accepted.control_plane_url, accepted.control_plane_api_key, transport=there
    )
    guard = GuardTransport(here, settings=accepted, control_plane=plane)
    response = run(guard.handle_async_request(httpx.Request("GET", f"{BASE}/api/v1/x")))
    assert response.status_code == 404
    assert accepted.enabled is (len(there.requests) > 0)
    asked = httpx.URL(accepted.control_plane_url or BASE)
    for request in there.requests:
        assert _place(request.url) == _place(asked)
        assert request.url.path.endswith("/v1/accounts/acc/rlorTrainerJobs/job-1")
    for request in here.requests:
        assert request.url.path.startswith("/training/v1/rlorTrainerJobs/acc/job-1/api/v1/x") or (
            request.url.path.startswith("/training/v1/rlorTrainerJobs/acc/job-1/")
            and ".." not in request.url.path.split("/")
        )


@pytest.mark.meets_fault  # a name that is no setting is logged once
@fuzzed
@given(st.one_of(_NOISE, _DOCUMENT, st.dictionaries(_FIELDS, _JSON | _VALUES).map(json.dumps)))
def test_any_settings_that_a_parent_process_left(value: str) -> None:
    # The same line may come of many values, and is logged once.
    faults.already_told.clear()
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    faults.logger.addHandler(handler)
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        return
    try:
        with (
            mock.patch.dict(os.environ, {children.SETTINGS: value}),
            mock.patch.object(installation, "install") as install,
        ):
            installation.install_unattended(None, None)
    finally:
        faults.logger.removeHandler(handler)
    # Either it was understood, or one line says that the process runs unguarded.
    is_unguarded = any("this process runs unguarded" in line for line in records)
    assert install.called is not is_unguarded
    assert len(records) <= 1
    assert not any(_MARK in line for line in records)


# -- secrets ---------------------------------------------------------------------------------------


@fuzzed
@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=40))
def test_no_public_object_shows_a_key(noise: str) -> None:
    key = f"{_MARK}{noise}"
    settings_ = GuardSettings(control_plane_url="https://api.test", control_plane_api_key=key)
    plane = FireworksControlPlane("https://api.test", SecretStr(key))
    guard = GuardTransport(_Recorder(ok), settings=settings_)
    shared = SharedControlPlane(settings_, plane)
    answer = _ask(_Recorder(lambda: httpx.Response(401)), api_key=SecretStr(key))
    for shown in (settings_, plane, guard, shared, answer, settings_.model_dump_json()):
        assert _MARK not in f"{shown!r} {shown} {shown:}"
    assert _MARK.encode() not in pickle.dumps(settings_)
    assert pickle.loads(pickle.dumps(settings_)).control_plane_url == "https://api.test"
    for held in (plane, guard, shared):
        assert _MARK.encode() not in pickle.dumps(held)
