"""Probes as a gateway sees them: what each answer proves, when the next one goes, and over what."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
import zlib
from email.utils import formatdate
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import zstandard

from testkit.fakes import (
    GATEWAY_BODY,
    KEY,
    TRAINER_BODY,
    Exchange,
    FakeControlPlane,
    FakeGateway,
    ReadingTransport,
    TrackedStream,
    gateway_404,
    guard,
    known_from,
    loop_time,
    ok,
    plain_404,
    post,
    router_404,
    send,
    trainer_404,
)
from tinker_guard import GuardSettings, GuardTransport
from tinker_guard.core import attempts
from tinker_guard.policy.json_body import BODY_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable

    Answer = Callable[[], httpx.Response]

pytestmark = pytest.mark.anyio


def coded(coding: str, body: bytes, status_code: int = 404) -> Answer:
    encode = {
        "gzip": lambda plain: gzip.compress(plain, mtime=0),
        "deflate": zlib.compress,
        "zstd": zstandard.ZstdCompressor().compress,
    }[coding]
    headers = {"content-type": "application/json", "content-encoding": coding}
    # As a server writes it that does not know the length before.
    content = encode(body)
    pieces = [content[n : n + 7] for n in range(0, len(content), 7)]
    return lambda: httpx.Response(status_code, headers=headers, stream=TrackedStream(pieces))


def json_404(media_type: str = "application/json", /, **members: Any) -> Answer:
    headers = {"content-type": media_type}
    body = json.dumps(members).encode()
    return lambda: httpx.Response(404, headers=headers, stream=TrackedStream([body]))


def with_headers(make: Answer, **headers: str) -> Answer:
    def answer() -> httpx.Response:
        response = make()
        response.headers.update({name.replace("_", "-"): v for name, v in headers.items()})
        return response

    return answer


# -- what an answer proves -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        ok,
        trainer_404,
        json_404("application/json; charset=utf-8", detail="No such checkpoint"),
        json_404(detail=[{"loc": ["query", "model"], "msg": "field required"}]),
        *(coded(coding, b'{"capabilities": []}', 200) for coding in ("gzip", "deflate", "zstd")),
        *(coded(coding, TRAINER_BODY) for coding in ("gzip", "deflate", "zstd")),
    ],
)
async def test_the_trainers_own_answer_reaches_it(answer: Answer) -> None:
    gateway, plane = FakeGateway(lambda e: answer() if e.is_probe else ok()), FakeControlPlane()
    assert (await send(guard(gateway, plane, warmup_successes=2))).status_code == 200
    assert [exchange.is_probe for exchange in gateway.exchanges] == [True, True, False]
    assert {exchange.connection for exchange in gateway.exchanges} == {0}
    assert (plane.questions, loop_time(), gateway.unclosed()) == (0, 0.0, [])


_PROBLEM = "application/problem+json"


@pytest.mark.parametrize(
    "answer",
    [
        gateway_404,
        plain_404,
        router_404,
        lambda: httpx.Response(404),
        # Problem documents, which have a `detail` too.
        json_404(_PROBLEM, detail="The job is unknown here"),
        json_404(type="about:blank", title="Not Found", status=404, detail="upstream unknown"),
        json_404(detail="no healthy upstream", instance="/training/v1"),
        json_404("application/hal+json", detail="Model not found"),
        # The trainer's words, from a cache.
        with_headers(trainer_404, age="7"),
        with_headers(trainer_404, x_cache="Hit from cloudfront"),
        with_headers(trainer_404, cache_status="edge; hit"),
        # What cannot be read whole proves nothing.
        with_headers(coded("zstd", TRAINER_BODY), content_encoding="snappy"),
        lambda: httpx.Response(
            404,
            headers={"content-type": "application/json", "content-encoding": "gzip"},
            stream=TrackedStream([gzip.compress(TRAINER_BODY)[:-20]]),
        ),
        coded("gzip", b'{"detail": "' + b"x" * BODY_LIMIT + b'"}'),
    ],
)
async def test_any_other_404_is_asked_about_and_left_for_another_connection(
    answer: Answer,
) -> None:
    gateway = FakeGateway(lambda e: answer() if e.connection < 2 else ok())
    plane = FakeControlPlane(takes=0.01)
    assert (await send(guard(gateway, plane))).status_code == 200
    assert [probe.connection for probe in gateway.probes] == [0, 1, 2, 2, 2]
    assert [exchange.connection for exchange in gateway.sent] == [2]
    # RUNNING is reused within `verdict_ttl`.
    assert plane.questions == 1
    assert gateway.unclosed() == []


async def test_what_any_router_says_is_the_trainers_once_that_has_shown_itself() -> None:
    """A trainer that does not know the probe's path answers it so for good."""
    gateway = FakeGateway(lambda e: router_404() if e.is_probe else ok())
    transport = guard(gateway, plane := FakeControlPlane())
    # Before, the request has to show that the trainer is there.
    assert (await send(transport)).status_code == 200
    assert loop_time() < 0.5
    gateway.answer = lambda e: (
        router_404() if e.is_probe else gateway_404() if e.at < lost_until else ok()
    )
    gateway.exchanges.clear()
    lost_until = loop_time() + 0.001
    asked = plane.questions
    await asyncio.sleep(5)
    lost_until, began = loop_time() + 0.001, loop_time()
    assert (await send(transport)).status_code == 200
    # One probe reaches it, although the first resend that it lets through comes too early.
    assert [e.is_probe for e in gateway.exchanges][:3] == [False, True, False]
    assert loop_time() - began < 0.5
    assert plane.questions == asked + 1


@pytest.mark.parametrize("warmup", [0, 2])
async def test_a_probe_that_reached_the_trainer_has_shown_it(warmup: int) -> None:
    """A path that the trainer does not know is a 404 of its router's, and costs no budget."""
    gateway = FakeGateway(lambda e: ok() if e.is_probe else router_404())
    transport = guard(gateway, plane := FakeControlPlane(), warmup_successes=warmup)
    response = await send(transport, post("/api/v1/client/dynamic_config"))
    assert (response.status_code, response.json()) == (404, {"detail": "Not Found"})
    # Without a warmup, the probe that follows the first 404 shows it.
    assert (len(gateway.sent), plane.questions, loop_time()) == ((2, 1, 0.0), (1, 0, 0.0))[
        warmup > 0
    ]


@pytest.mark.parametrize(
    "fail",
    [
        lambda: httpx.ConnectError("refused"),
        lambda: httpx.ProxyError("407"),
        lambda: OSError("no route to host"),
        # What no transport of httpx raises.
        pytest.param(
            lambda: ExceptionGroup("a nursery's", [OSError()]), marks=pytest.mark.meets_fault
        ),
        asyncio.CancelledError,
    ],
)
async def test_a_probe_that_fails_lets_the_request_show_what_there_is(
    fail: Callable[[], BaseException],
) -> None:
    def answer(exchange: Exchange) -> httpx.Response:
        if exchange.is_probe:
            raise fail()
        return ok()

    gateway, plane = FakeGateway(answer), FakeControlPlane()
    assert (await send(guard(gateway, plane))).status_code == 200
    assert [exchange.is_probe for exchange in gateway.exchanges] == [True, False]
    assert (plane.questions, loop_time()) == (0, 0.0)


class _Breaks(TrackedStream):
    """Raises as it is closed."""

    async def aclose(self) -> None:
        await super().aclose()
        raise httpx.ReadError("cut")


@pytest.mark.parametrize(
    ("stream", "probes"),
    [
        (lambda: TrackedStream([b'{"ok"'], error=httpx.ReadError("cut")), 1),
        (lambda: TrackedStream([b"{}"], error=RuntimeError("a bug below")), 1),
        (lambda: TrackedStream([b"{}"], pause=9.0), 1),
        # All of it was read: how the closing goes is nobody's trouble.
        (lambda: _Breaks([b"{}"]), 3),
    ],
)
async def test_a_probes_answer_that_breaks_is_no_trouble_of_the_requests(
    stream: Callable[[], TrackedStream], probes: int
) -> None:
    def answer(exchange: Exchange) -> httpx.Response:
        headers = {"content-type": "application/json"}
        return httpx.Response(200, headers=headers, stream=stream()) if exchange.is_probe else ok()

    gateway = FakeGateway(answer)
    assert (await send(guard(gateway, probe_timeout=2))).status_code == 200
    assert (len(gateway.probes), len(gateway.sent)) == (probes, 1)
    assert loop_time() in (0.0, 2.0)
    assert gateway.unclosed() == []


@pytest.mark.parametrize(
    ("found", "probes", "questions"),
    [
        (ok, 3, 0),
        (coded("zstd", b'{"capabilities": []}', 200), 3, 0),
        (trainer_404, 3, 0),
        (gateway_404, 5, 1),
        (coded("zstd", TRAINER_BODY), 3, 0),
    ],
)
async def test_an_answer_that_something_below_has_read_is_judged_by_its_content(
    found: Answer, probes: int, questions: int
) -> None:
    def build() -> ReadingTransport:
        gateway.transports.append(ReadingTransport(gateway, len(gateway.transports)))
        return gateway.transports[-1]  # type: ignore[return-value]

    gateway = FakeGateway(lambda e: found() if e.is_probe and e.connection < 2 else ok())
    plane = FakeControlPlane()
    transport = GuardTransport(
        build(), settings=GuardSettings(), control_plane=plane, new_transport=build
    )
    assert (await send(transport)).status_code == 200
    assert (len(gateway.probes), plane.questions) == (probes, questions)


# -- rows and rounds -------------------------------------------------------------------------------


async def test_one_that_reached_and_one_that_did_not_open_the_gate_at_once() -> None:
    """The gateway picks a replica for each request: no connection can be proved."""
    answers = iter([ok(), gateway_404()])
    gateway = FakeGateway(lambda _: next(answers, None) or ok())
    plane = FakeControlPlane()
    assert (await send(guard(gateway, plane))).status_code == 200
    assert [exchange.is_probe for exchange in gateway.exchanges] == [True, True, False]
    assert {exchange.connection for exchange in gateway.exchanges} == {0}
    assert (plane.questions, loop_time()) == (0, 0.0)


async def test_that_the_gateway_picks_a_replica_for_each_request_is_known_to_a_resend() -> None:
    """No probe could tell which replica it will meet, so that it follows at once."""
    answers = iter([ok(), gateway_404(), gateway_404()])
    gateway = FakeGateway(lambda _: next(answers, None) or ok())
    assert (await send(guard(gateway))).status_code == 200
    assert [exchange.is_probe for exchange in gateway.exchanges] == [True, True, False, False]
    assert loop_time() == 0.0


async def test_one_that_reached_and_one_that_failed_open_the_gate_too() -> None:
    answers = iter([ok(), httpx.Response(503)])
    gateway = FakeGateway(lambda _: next(answers, None) or ok())
    transport = guard(gateway)
    assert (await send(transport)).status_code == 200
    assert [exchange.is_probe for exchange in gateway.exchanges] == [True, True, False]
    assert (await send(transport)).status_code == 200
    assert len(gateway.probes) == 2, "the route is warm"


@pytest.mark.parametrize("takes", [0.25, 0.375])
async def test_no_probe_of_a_row_begins_at_the_deadline_or_after_it(takes: float) -> None:
    """What is proved by then has to do."""

    async def answer(exchange: Exchange) -> httpx.Response:
        await asyncio.sleep(takes)
        return ok() if exchange.is_probe else httpx.Response(503)

    gateway = FakeGateway(answer)
    transport = guard(gateway, warmup_timeout=0.5)
    assert [(await send(transport)).status_code for _ in range(2)] == [503, 503]
    assert [probe.at for probe in gateway.probes] == [0.0, takes]
    assert [exchange.at for exchange in gateway.sent] == [2 * takes, 3 * takes]


async def test_the_last_round_begins_at_the_deadline() -> None:
    gateway = FakeGateway(lambda _: gateway_404())
    assert (await send(guard(gateway, warmup_timeout=5))).status_code == 404
    assert gateway.probes[-1].at == loop_time() == 5.0
    assert gateway.probes[-2].at < 5.0


async def test_a_route_that_comes_up_at_the_very_deadline_is_found() -> None:
    gateway = FakeGateway(known_from(5.0))
    assert (await send(guard(gateway, warmup_timeout=5))).status_code == 200
    assert [exchange.at for exchange in gateway.exchanges[-2:]] == [5.0, 5.0]


@pytest.mark.parametrize(
    ("jitter", "expected"),
    [(0.0, [0.2, 0.23, 0.2645, 0.3, 0.3]), (1.0, [0.1, 0.115, 0.13225, 0.15, 0.15])],
)
async def test_rounds_come_after_delays_that_grow(
    jitter: float, expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Chance:
        def random(self) -> float:
            return jitter

    monkeypatch.setattr(attempts, "JITTER", Chance())
    gateway = FakeGateway(lambda _: gateway_404())
    await send(guard(gateway, warmup_timeout=3, backoff_initial=0.2, backoff_max=0.3))
    delays = [later.at - probe.at for probe, later in pairwise(gateway.probes)]
    assert delays[:5] == pytest.approx(expected)


@pytest.mark.parametrize("seconds", [3.0, 4.9])
async def test_the_first_lookup_gets_its_time_however_short_the_budget(seconds: float) -> None:
    gateway = FakeGateway(lambda _: gateway_404())
    plane = FakeControlPlane("JOB_STATE_FAILED", takes=seconds)
    response = await send(guard(gateway, plane, warmup_timeout=1))
    assert (response.status_code, len(gateway.probes), gateway.sent) == (404, 1, [])
    assert loop_time() == seconds


async def test_a_later_lookup_is_cut_and_the_404_that_was_judged_in_time_is_handed_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Lookups that take 0.8 s in a budget of 1.5 s: the second one's 404 has no verdict."""

    def answer(exchange: Exchange) -> httpx.Response:
        return with_headers(gateway_404, x_replica=str(exchange.connection))()

    gateway, plane = FakeGateway(answer), FakeControlPlane(takes=0.8)
    response = await send(guard(gateway, plane, warmup_timeout=1.5, verdict_ttl=0))
    assert (response.status_code, response.headers["x-replica"]) == (404, "0")
    assert (plane.questions, loop_time(), gateway.sent) == (2, 1.5, [])
    assert "handed back after 1.50 s (routing_race, job_running)" in caplog.text


@pytest.mark.parametrize("not_found", [plain_404, router_404, with_headers(trainer_404, age="7")])
async def test_unknown_404s_of_a_running_job_send_the_request_after_three_rounds(
    not_found: Answer,
) -> None:
    gateway = FakeGateway(lambda e: not_found() if e.is_probe else ok())
    transport = guard(gateway)
    assert (await send(transport)).status_code == 200
    assert [probe.connection for probe in gateway.probes] == [0, 1, 2]
    assert loop_time() < 0.5


@pytest.mark.parametrize("has_date", [False, True])
async def test_a_date_until_which_a_probes_404_asks_to_wait_is_obeyed(has_date: bool) -> None:
    """By this machine's clock if the answer does not tell its own."""

    def answer(exchange: Exchange) -> httpx.Response:
        response = ok() if exchange.at >= 0.1 else gateway_404()
        sent_at = 1_000_000.0 if has_date else time.time()
        response.headers["retry-after"] = formatdate(sent_at + 25, usegmt=True)
        if has_date:
            response.headers["date"] = formatdate(sent_at, usegmt=True)
        return response

    gateway = FakeGateway(answer)
    assert (await send(guard(gateway))).status_code == 200
    assert 20.0 < gateway.probes[1].at <= 25.0


async def test_they_are_probed_twice_as_long_once_the_request_has_met_one_too() -> None:
    gateway = FakeGateway(lambda e: plain_404() if e.is_probe or len(gateway.sent) < 3 else ok())
    assert (await send(guard(gateway))).status_code == 200
    order = "".join("p" if exchange.is_probe else "R" for exchange in gateway.exchanges)
    assert order == "pppR" + "ppppppR" * 2


async def test_unknown_404s_of_a_job_that_is_starting_are_waited_out() -> None:
    """It has no trainer yet that could have written them."""
    gateway = FakeGateway(lambda e: ok() if e.at >= 60 else plain_404())
    plane = FakeControlPlane("JOB_STATE_CREATING", states=[(59.9, "JOB_STATE_RUNNING")])
    assert (await send(guard(gateway, plane))).status_code == 200
    assert 60.0 <= loop_time() < 63.0
    assert len(gateway.sent) == 1


async def test_probes_that_reach_the_trainer_again_are_worth_sending_again() -> None:
    """A route is probed no more once three races in a row were waited out in vain by probes."""
    gateway = FakeGateway()
    transport = guard(gateway)
    await send(transport)

    async def race(*, are_probes_blind: bool) -> int:
        began = loop_time()
        gateway.exchanges.clear()
        gateway.answer = lambda e: (
            ok() if e.at >= began + 1 and not (are_probes_blind and e.is_probe) else plain_404()
        )
        assert (await send(transport)).status_code == 200
        await asyncio.sleep(60)
        return len(gateway.probes)

    probes = [await race(are_probes_blind=b) for b in (True, True, False, True, True, True)]
    assert min(probes) > 0
    assert await race(are_probes_blind=True) == 0


async def test_where_no_transport_can_be_built_probes_go_on_over_the_one() -> None:
    gateway = FakeGateway(known_from(1.0))
    transport = GuardTransport(gateway.new_transport(), control_plane=FakeControlPlane())
    assert (await send(transport)).status_code == 200
    assert {exchange.connection for exchange in gateway.exchanges} == {0}
    assert 1.0 <= loop_time() < 1.5


# -- what a probe carries --------------------------------------------------------------------------


async def test_the_key_goes_along_and_the_requests_identity_does_not() -> None:
    gateway = FakeGateway(known_from(0.3))
    request = post()
    # In capitals, of other SDKs, and as bytes that are no text.
    for name in ("IDEMPOTENCY-KEY", "X-Request-Id", "Stripe-Idempotency", "Cookie"):
        request.headers[name] = "one"
    await send(guard(gateway), request)
    for probe in gateway.probes:
        assert probe.headers["x-api-key"] == KEY
        # httpx adds only what a request without a body needs; and each exchange tells its own span.
        assert set(probe.headers) <= {"host", "x-api-key", "cache-control", "traceparent"}


class _Balancer:
    """Picks a replica by its cookie, and without one takes them in turn."""

    def __init__(
        self, cookie: str, *, stale: set[int], replicas: int = 4, probed: Answer = ok
    ) -> None:
        self.cookie, self.stale, self.replicas = cookie, stale, replicas
        self.probed = probed
        self.turn = 0

    def __call__(self, exchange: Exchange) -> httpx.Response:
        carried = dict(
            pair.strip().partition("=")[::2]
            for pair in exchange.headers.get("cookie", "").split(";")
        )
        if self.cookie in carried:
            replica = int(carried[self.cookie])
        else:
            self.turn += 1
            replica = self.turn % self.replicas
        is_stale = replica in self.stale and exchange.at < 20
        answer = gateway_404 if is_stale else self.probed if exchange.is_probe else ok
        response = answer()
        response.headers["set-cookie"] = f"{self.cookie}={replica}; Path=/; HttpOnly"
        return response


@pytest.mark.parametrize(
    ("cookie", "sent", "resent"),
    [
        ("AWSALB", "AWSALB=0", "AWSALB={}"),
        ("GCLB", "session=abc; GCLB=0; theme=dark", "session=abc; GCLB={}; theme=dark"),
        ("__cflb", "session=abc", "session=abc; __cflb={}"),
        ("SERVERID", None, "SERVERID={}"),
    ],
)
@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize("probed", [ok, trainer_404])
async def test_the_request_follows_the_probe_that_reached_by_the_balancers_cookie(
    cookie: str, sent: str | None, resent: str, warmup: int, probed: Answer
) -> None:
    balancer = _Balancer(cookie, stale={0, 1}, probed=probed)
    gateway = FakeGateway(balancer)
    request = post()
    if sent is not None:
        request.headers["cookie"] = sent
    assert (await send(guard(gateway, warmup_successes=warmup), request)).status_code == 200
    assert loop_time() < 1.0
    assert not any("cookie" in probe.headers for probe in gateway.probes)
    assert gateway.sent[-1].headers["cookie"] in {resent.format(replica) for replica in (2, 3)}
    # The caller's own request, and so its cookie jar, is as it was.
    assert request.headers.get("cookie") == sent


# -- the 404 that those who wait are given ---------------------------------------------------------


async def refusal(gateway: FakeGateway, method: str = "POST") -> httpx.Response:
    """The 404 with which a stopped job's request is refused."""
    transport = guard(gateway, FakeControlPlane("JOB_STATE_DELETED"))
    return await transport.handle_async_request(httpx.Request(method, post().url))


async def refused(answer: Answer, method: str = "POST") -> tuple[dict[str, str], bytes]:
    """Its headers and bytes."""
    gateway = FakeGateway(lambda _: answer())
    response = await refusal(gateway, method)
    assert (response.status_code, gateway.sent, gateway.unclosed()) == (404, [], [])
    return dict(response.headers), b"".join([chunk async for chunk in response.aiter_raw()])


@pytest.mark.parametrize(
    "body", [GATEWAY_BODY, b"", b"<html>404</html>", "schlüssel".encode("latin-1")]
)
async def test_it_is_what_the_probe_was_given(body: bytes) -> None:
    headers = {"content-type": "text/html", "x-kept": "1"}
    found = await refused(
        lambda: httpx.Response(404, headers=headers, stream=TrackedStream([body]))
    )
    assert found == (headers, body)


@pytest.mark.parametrize("header", ["content-length", "transfer-encoding", "set-cookie"])
async def test_nothing_of_a_probes_own_exchange_is_kept(header: str) -> None:
    found = await refused(lambda: with_headers(gateway_404, **{header: "7"})())
    assert found == ({"content-type": "application/json"}, GATEWAY_BODY)


async def test_the_length_of_a_body_that_is_whole_is_kept() -> None:
    length = str(len(GATEWAY_BODY))
    headers, body = await refused(with_headers(gateway_404, **{"content-length": length}))
    assert (headers["content-length"], body) == (length, GATEWAY_BODY)


@pytest.mark.parametrize("body", [GATEWAY_BODY, b"x" * (BODY_LIMIT + 1)])
async def test_a_head_is_given_the_length_of_a_body_and_no_body(body: bytes) -> None:
    """Also of one too long to be kept. A `HEAD` is probed by a `GET`."""
    headers = {"content-length": str(len(body)), "x-kept": "1"}
    found = await refused(
        lambda: httpx.Response(404, headers=headers, stream=TrackedStream([body])), "HEAD"
    )
    assert found == (headers, b"")


@pytest.mark.parametrize("method", ["HEAD", "GET"])
async def test_a_body_that_is_given_in_another_coding_has_another_length(method: str) -> None:
    headers = {"content-encoding": "gzip", "content-length": str(BODY_LIMIT + 1)}
    found = await refused(
        lambda: httpx.Response(
            404, headers=headers, stream=TrackedStream([b"x" * (BODY_LIMIT + 1)])
        ),
        method,
    )
    assert found == ({}, b"")


@pytest.mark.parametrize("method", ["HEAD", "GET", "POST"])
async def test_the_status_line_is_kept_and_nothing_of_the_connection(method: str) -> None:
    given = {
        "http_version": b"HTTP/1.0",
        "reason_phrase": b"No Such Route",
        "network_stream": object(),
        "stream_id": 7,
    }

    def answer(_: Exchange) -> httpx.Response:
        response = gateway_404()
        response.extensions = given
        return response

    response = await refusal(FakeGateway(answer), method)
    assert response.extensions == {
        "http_version": b"HTTP/1.0",
        "reason_phrase": b"No Such Route",
    }
    assert (response.http_version, response.reason_phrase) == ("HTTP/1.0", "No Such Route")


@pytest.mark.parametrize("value", ["HTTP/2", None])
async def test_a_status_line_that_is_none_is_left_out(value: object) -> None:
    """A transport may give anything; httpx itself makes do without one."""

    def answer(_: Exchange) -> httpx.Response:
        response = gateway_404()
        response.extensions = {"http_version": value}
        return response

    response = await refusal(FakeGateway(answer))
    assert (response.extensions, response.http_version) == ({}, "HTTP/1.1")


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd"])
async def test_a_coded_body_is_kept_as_it_came(coding: str) -> None:
    headers, body = await refused(coded(coding, GATEWAY_BODY))
    assert headers["content-encoding"] == coding
    wire = coded(coding, GATEWAY_BODY)()
    assert body == b"".join([chunk async for chunk in wire.aiter_raw()])


@pytest.mark.parametrize("size", [BODY_LIMIT, BODY_LIMIT + 1])
async def test_a_coded_body_is_left_out_where_only_a_part_was_read(size: int) -> None:
    """A part could not be decoded."""
    headers = {"content-encoding": "gzip", "x-kept": "1"}
    found = await refused(
        lambda: httpx.Response(404, headers=headers, stream=TrackedStream([b"x" * size]))
    )
    is_whole = size <= BODY_LIMIT
    assert found == ((headers, b"x" * size) if is_whole else ({"x-kept": "1"}, b""))


async def test_of_a_plain_body_the_beginning_is_kept() -> None:
    stream = [b"x" * BODY_LIMIT, b"y" * 10, b"z"]
    found = await refused(lambda: httpx.Response(404, stream=TrackedStream(list(stream))))
    assert found == ({}, b"x" * BODY_LIMIT)


async def test_a_body_that_was_decoded_below_says_so() -> None:
    gateway = FakeGateway(lambda _: coded("gzip", GATEWAY_BODY)())
    transport = GuardTransport(
        ReadingTransport(gateway, 0), control_plane=FakeControlPlane("JOB_STATE_DELETED")
    )
    response = await send(transport)
    assert (response.status_code, response.content) == (404, GATEWAY_BODY)
    assert "content-encoding" not in response.headers
