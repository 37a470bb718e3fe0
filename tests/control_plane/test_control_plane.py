from __future__ import annotations

import asyncio
import copy
import gzip
import json
import logging
import pickle
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import zstandard
from pydantic import SecretStr

from testkit.fakes import (
    BASE,
    GATEWAY_BODY,
    KEY,
    ORIGIN,
    FakeControlPlane,
    FakeGateway,
    TrackedStream,
    gateway_404,
    known_from,
    loop_time,
    post,
    settle,
)
from testkit.local_server import serving
from testkit.virtual_time import VirtualTimeLoop
from tinker_guard import ControlPlane, ControlPlaneError, GuardSettings, GuardTransport
from tinker_guard.control_plane.fireworks import FireworksControlPlane
from tinker_guard.control_plane.shared import SharedControlPlane
from tinker_guard.core.routes import RouteState, RouteTable
from tinker_guard.policy.json_body import BODY_LIMIT
from tinker_guard.policy.judgement import (
    CONTROL_PLANE_ERROR,
    CONTROL_PLANE_TIMEOUT,
    NO_CONTROL_PLANE,
    JobAnswer,
)
from tinker_guard.transports.cleanup import CLOSE_SECONDS
from tinker_guard.transports.renewable import RenewableTransport
from tinker_guard.waiting import Readiness, wait_until_routable

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path

pytestmark = pytest.mark.anyio


def sent(**headers: str) -> httpx.Request:
    """A guarded request with these headers, its underscores as dashes."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Request("POST", f"{BASE}/api/v1/x", headers=named, content=b"{}")


REQUEST = sent(X_API_Key=KEY, Cookie="c", Accept="*/*")


def heard(answer: JobAnswer) -> JobAnswer:
    """What was answered, whenever that was."""
    return answer.timed(0.0, 0.0)


def route_state() -> RouteState:
    state = RouteTable().find(httpx.URL(f"{BASE}/api"))
    assert state is not None
    return state


class Server:
    """A control plane behind a scripted transport."""

    def __init__(self, *answers: httpx.Response | Exception | Callable[[], httpx.Response]) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def handle(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, httpx.Response) else answer()

    def plane(self, url: str | None = None, api_key: str | None = None) -> FireworksControlPlane:
        return FireworksControlPlane(
            url,
            api_key=None if api_key is None else SecretStr(api_key),
            transport=httpx.MockTransport(self.handle),
        )

    async def ask(self, url: str | None = None, api_key: str | None = None) -> JobAnswer:
        shared = SharedControlPlane(GuardSettings(), self.plane(url, api_key))
        return heard(await shared.ask(route_state(), REQUEST))


def running() -> httpx.Response:
    return httpx.Response(200, json={"name": "x", "state": "JOB_STATE_RUNNING"})


async def test_the_question_derives_from_the_route_and_carries_the_requests_key() -> None:
    server = Server(running())
    assert await server.ask() == JobAnswer(state="JOB_STATE_RUNNING", status_code=200)
    (request,) = server.requests
    assert request.method == "GET"
    assert str(request.url) == f"{ORIGIN}/v1/accounts/acc/rlorTrainerJobs/job-1"
    assert request.headers["x-api-key"] == KEY
    assert "cookie" not in request.headers


@pytest.mark.parametrize(
    ("answer", "exchanges"),
    [
        (lambda: httpx.Response(500), 1),
        (lambda: httpx.Response(401), 1),
        (lambda: httpx.Response(302, headers={"location": "https://elsewhere.test/login"}), 1),
        (lambda: httpx.Response(200, text="<html>"), 1),
        (lambda: httpx.Response(200, json={"name": "x"}), 1),
        # A connection that breaks is tried twice for one question.
        (httpx.RemoteProtocolError("dropped"), 2),
    ],
    ids=["down", "unauthorized", "redirect", "not_json", "no_state", "dropped"],
)
async def test_where_its_answer_is_of_no_use_it_is_asked_again_within_the_budget(
    answer: Exception | Callable[[], httpx.Response], exchanges: int
) -> None:
    gateway, server = FakeGateway(lambda _: gateway_404()), Server(answer)
    transport = GuardTransport(
        gateway.new_transport(),
        settings=GuardSettings(warmup_successes=0, retry_timeout=0.5),
        control_plane=server.plane(),
        new_transport=gateway.new_transport,
    )
    response = await transport.handle_async_request(post())
    assert response.status_code == 404
    assert loop_time() == pytest.approx(0.5, abs=0.2)
    assert len(server.requests) > exchanges
    # It looked for the trainer meanwhile, and sent the request only once.
    assert len(gateway.probes) > 1
    assert len(gateway.sent) == 1


async def test_an_answer_in_pieces_and_compressed() -> None:
    wire = gzip.compress(b'{"state": "JOB_STATE_RUNNING"}', mtime=0)
    server = Server(
        httpx.Response(
            200,
            headers={"content-encoding": "gzip"},
            stream=TrackedStream([wire[:10], wire[10:20], wire[20:]]),
        )
    )
    assert await server.ask() == JobAnswer(state="JOB_STATE_RUNNING", status_code=200)
    # Any other coding could not be undone up to a limit.
    assert server.requests[0].headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize(
    ("status_code", "body", "expected"),
    [
        (200, b'{"state": "JOB_STATE_RUNNING"}', "JOB_STATE_RUNNING"),
        (404, b'{"code": 5, "message": "not found"}', None),
    ],
)
async def test_an_answer_that_a_transport_has_read_is_not_decoded_twice(
    status_code: int, body: bytes, expected: str | None
) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    read = httpx.Response(status_code, headers=headers, content=gzip.compress(body, mtime=0))
    assert read.content == body
    assert await Server(read).ask() == JobAnswer(state=expected, status_code=status_code)


async def test_of_an_endless_answer_no_more_is_read_than_any_job_needs() -> None:
    class Endless(httpx.AsyncByteStream):
        megabytes = 0

        async def __aiter__(self) -> AsyncIterator[bytes]:
            while True:
                self.megabytes += 1
                assert self.megabytes < 10
                yield b"x" * 1_000_000

    stream = Endless()
    answer = await Server(httpx.Response(200, stream=stream)).ask()
    assert "no job's state in it" in answer.detail
    assert stream.megabytes == 2


async def test_each_phase_of_the_exchange_has_the_time_set() -> None:
    server = Server(running())
    plane = replace(server.plane(), timeout=2.0)
    assert await plane.job_state("acc", "job-1", origin=ORIGIN, credentials={}) is not None
    assert set(server.requests[0].extensions["timeout"].values()) == {2.0}


async def test_a_bearer_token_is_passed_on_too() -> None:
    server = Server(running())
    shared = SharedControlPlane(GuardSettings(), server.plane())
    await shared.ask(route_state(), sent(Authorization="Bearer jwt"))
    assert server.requests[0].headers["authorization"] == "Bearer jwt"
    assert "x-api-key" not in server.requests[0].headers


async def test_a_configured_control_plane_and_key() -> None:
    server = Server(running())
    await server.ask("https://api.test/base", "fw-key")
    assert (
        str(server.requests[0].url) == "https://api.test/base/v1/accounts/acc/rlorTrainerJobs/job-1"
    )
    assert server.requests[0].headers["x-api-key"] == "fw-key"


@pytest.mark.parametrize(
    "body",
    [
        {"code": 5, "message": "job acc/job-1 not found", "details": []},
        {"error": {"code": 404, "status": "NOT_FOUND", "message": "no such job"}},
        {"error": {"code": "JOB_NOT_FOUND"}},
        {"status": 404, "title": "Not Found", "detail": "There is no job job-1."},
    ],
)
async def test_a_job_that_does_not_exist(body: dict[str, Any]) -> None:
    answer = await Server(httpx.Response(404, json=body)).ask()
    assert answer == JobAnswer(state=None, status_code=404)
    assert answer.is_missing


@pytest.mark.parametrize("job", ["router-rl", "page-rank-2", "path.v1", "my_service", "host-7"])
async def test_a_job_that_does_not_exist_may_have_any_name(job: str) -> None:
    """A router's word in the name of a job is no router's word."""
    text = f'rlorTrainerJob "accounts/acc/rlorTrainerJobs/{job}" not found'
    server = Server(httpx.Response(404, json={"code": 5, "message": text, "details": []}))
    state = RouteTable().find(httpx.URL(f"{BASE.removesuffix('job-1')}{job}/api"))
    assert state is not None
    answer = await SharedControlPlane(GuardSettings(), server.plane()).ask(state, REQUEST)
    assert answer.is_missing


@pytest.mark.parametrize(
    "response",
    [
        pytest.param(httpx.Response(404), id="empty"),
        pytest.param(httpx.Response(404, text="404 page not found"), id="plain"),
        pytest.param(httpx.Response(404, html="<h1>Not Found</h1>"), id="web-server"),
        pytest.param(httpx.Response(404, text="[" * 100_000), id="deep"),
        pytest.param(httpx.Response(404, json={"detail": "Not Found"}), id="fastapi"),
        pytest.param(httpx.Response(404, json={"code": 404, "message": "Not Found"}), id="number"),
        pytest.param(httpx.Response(404, json=["NOT_FOUND"]), id="list"),
        pytest.param(
            httpx.Response(404, json={"message": "no Route matched with those values"}), id="kong"
        ),
        pytest.param(
            httpx.Response(404, json={"code": "NOT_FOUND", "message": "unknown path /v1/accounts"}),
            id="router",
        ),
        # For a path that it does not know, with the code of a job that does not exist.
        pytest.param(
            httpx.Response(404, json={"code": 5, "message": "Not Found", "details": []}),
            id="grpc-gateway",
        ),
        pytest.param(
            httpx.Response(
                404,
                json={
                    "title": "Not Found",
                    "status": 404,
                    "detail": "No static resource v1/accounts/acc/rlorTrainerJobs/job-1.",
                },
            ),
            id="spring",
        ),
        # The gateway of the trainers, which knows routes and no jobs.
        pytest.param(httpx.Response(404, json=json.loads(GATEWAY_BODY)), id="gateway"),
        # Of an earlier time.
        pytest.param(httpx.Response(404, json={"code": 5}, headers={"age": "60"}), id="cached"),
    ],
)
async def test_a_404_that_no_control_plane_wrote_is_no_answer(response: httpx.Response) -> None:
    answer = await Server(response).ask()
    assert answer.failure is CONTROL_PLANE_ERROR
    assert answer.status_code == 404
    assert not answer.is_missing
    assert "a 404 that is not a control plane's. Set TINKER_GUARD_CONTROL_PLANE_" in answer.detail


@pytest.mark.parametrize(
    ("response", "detail"),
    [
        (httpx.Response(401), "refused the key (401). Set TINKER_GUARD_CONTROL_PLANE_API_KEY"),
        (httpx.Response(403), "refused the key (403). Set TINKER_GUARD_CONTROL_PLANE_API_KEY"),
        (httpx.Response(429), "limiting the rate of questions (429)"),
        (httpx.Response(500), "is out of order (500)"),
        (httpx.Response(503), "is out of order (503)"),
        (httpx.Response(300), "answered with a redirect (300)"),
        (httpx.Response(400), "answered with the status 400"),
        (httpx.Response(418), "answered with the status 418"),
        (httpx.Response(200, text="<html>"), "no job's state in it. Set TINKER_GUARD_CONTROL_"),
        (httpx.Response(200, json={"name": "x"}), "no job's state in it"),
        (httpx.Response(200, json={"state": 3}), "no job's state in it"),
        # Said of the question.
        (httpx.Response(200, json={"state": "ERROR", "message": "timeout"}), "no job's state in"),
        (httpx.Response(200, json={"state": "OK"}), "no job's state in it"),
        (httpx.Response(200, json={"state": "A\nB"}), "no job's state in it"),
        (httpx.Response(200, json=["state"]), "no job's state in it"),
        (httpx.Response(200, text="[" * 2_000_000), "no job's state in it"),
    ],
)
async def test_answers_that_are_none(response: httpx.Response, detail: str) -> None:
    answer = await Server(response).ask()
    assert answer.failure is CONTROL_PLANE_ERROR
    assert answer.status_code == response.status_code
    assert answer.detail.startswith(f"the control plane at {ORIGIN} ")
    assert detail in answer.detail


@pytest.mark.parametrize("state", ["RUNNING", "CREATING", "PAUSED"])
@pytest.mark.parametrize(
    ("name", "value"),
    [("Age", "1"), ("X-Cache", "Hit from cloudfront"), ("Cache-Status", "edge; hit")],
)
async def test_a_copy_from_a_cache_is_no_answer(name: str, value: str, state: str) -> None:
    """It was said before the 404 that it would judge, nobody knows when."""
    body = {"state": f"JOB_STATE_{state}"}
    server = Server(httpx.Response(200, json=body, headers={name: value}))
    answer = await server.ask()
    assert answer.failure is CONTROL_PLANE_ERROR
    assert "answered with a copy from a cache. Set TINKER_GUARD_CONTROL_PLANE_" in answer.detail
    assert server.requests[0].headers["cache-control"] == "no-cache, no-store"


@pytest.mark.parametrize(
    "body",
    [
        b'{"state": "JOB_STATE_RUNNING", "state": "JOB_STATE_FAILED"}',
        b'{"state": "JOB_STATE_FAILED", "of": {"job": 1, "job": 2}}',
        b'{"state": "JOB_STATE_FAILED", "at": ' + b"1" * 401 + b"}",
        b'{"state": "JOB_STATE_FAILED"}' + b" " * BODY_LIMIT,
    ],
    ids=["twice", "twice-below", "number", "long"],
)
async def test_an_answer_that_readers_take_for_different_things_is_none(body: bytes) -> None:
    answer = await Server(lambda: httpx.Response(200, stream=TrackedStream([body]))).ask()
    assert answer.failure is CONTROL_PLANE_ERROR
    assert "no job's state in it" in answer.detail


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
async def test_a_state_beside_numbers_that_are_no_json_is_an_answer(number: str) -> None:
    """Servers in Python write them, where a loss is none."""
    body = f'{{"loss": {number}, "state": "JOB_STATE_RUNNING"}}'
    assert (await Server(httpx.Response(200, text=body)).ask()).state == "JOB_STATE_RUNNING"


async def test_a_redirect_is_not_followed() -> None:
    server = Server(httpx.Response(302, headers={"location": "https://evil.test/"}))
    answer = await server.ask()
    assert answer.failure is CONTROL_PLANE_ERROR
    assert "redirect (302), which is not followed because the key would go" in answer.detail
    assert [request.url.host for request in server.requests] == ["gateway.test"]


async def test_an_answer_that_does_not_close_well() -> None:
    """Found by the simulation: what it said was lost, and a race handed back as unverified."""

    class Stream(TrackedStream):
        async def aclose(self) -> None:
            raise OSError("reset")

    stream = Stream([b'{"state": "JOB_STATE_RUNNING"}'])
    assert (await Server(httpx.Response(200, stream=stream)).ask()).state == "JOB_STATE_RUNNING"


async def test_a_transport_that_was_lent_is_not_closed() -> None:
    closed: list[httpx.AsyncBaseTransport] = []

    class Lent(httpx.MockTransport):
        async def aclose(self) -> None:
            closed.append(self)

    plane = FireworksControlPlane(transport=Lent(lambda _: running()))
    await plane.job_state("acc", "job-1", origin=ORIGIN, credentials={})
    assert closed == []


async def test_an_answer_that_hangs_as_it_is_closed() -> None:
    class Stream(TrackedStream):
        async def aclose(self) -> None:
            await asyncio.Event().wait()

    stream = Stream([b'{"state": "JOB_STATE_RUNNING"}'])
    assert (await Server(httpx.Response(200, stream=stream)).ask()).state == "JOB_STATE_RUNNING"
    assert loop_time() == CLOSE_SECONDS


def cut(error: Exception) -> Callable[[], httpx.Response]:
    """An answer that breaks off."""
    return lambda: httpx.Response(200, stream=TrackedStream([b'{"state":'], error=error))


async def test_an_answer_that_breaks_off_is_no_answer() -> None:
    answer = await Server(cut(httpx.ReadError(KEY))).ask()
    assert answer.failure is CONTROL_PLANE_ERROR
    assert "could not be reached (ReadError)" in answer.detail
    answer = await Server(cut(httpx.ReadTimeout(KEY))).ask()
    assert answer.failure is CONTROL_PLANE_TIMEOUT


@pytest.mark.parametrize(
    "broken",
    [
        httpx.ConnectError("refused"),
        httpx.RemoteProtocolError("disconnected"),
        cut(httpx.RemoteProtocolError("incomplete chunked read")),
    ],
)
async def test_a_connection_error_gets_one_quick_second_try(
    broken: Exception | Callable[[], httpx.Response],
) -> None:
    server = Server(broken, running())
    assert (await server.ask()).state == "JOB_STATE_RUNNING"
    assert len(server.requests) == 2
    assert 0.0 < loop_time() < 0.2


@pytest.mark.parametrize("error", [httpx.ProxyError("refused"), httpx.UnsupportedProtocol("ftp")])
async def test_an_error_that_no_new_connection_mends_gets_no_second_try(
    error: httpx.HTTPError,
) -> None:
    server = Server(error, running())
    assert (await server.ask()).failure is CONTROL_PLANE_ERROR
    assert len(server.requests) == 1


async def test_what_a_second_try_heard_judges_the_404s_that_came_before_it() -> None:
    """A job that has stopped is asked about once, for all requests that wait for the answer."""
    gateway = FakeGateway(lambda _: gateway_404())
    server = Server(
        httpx.ConnectError("refused"), httpx.Response(200, json={"state": "JOB_STATE_FAILED"})
    )
    transport = GuardTransport(
        gateway.new_transport(),
        settings=GuardSettings(warmup_successes=0),
        control_plane=server.plane(),
        new_transport=gateway.new_transport,
    )
    first = asyncio.create_task(transport.handle_async_request(post()))
    await asyncio.sleep(0.04)
    # The first try was before this one's 404, the second one is after it.
    second = await transport.handle_async_request(post())
    assert [(await first).status_code, second.status_code] == [404, 404]
    assert len(server.requests) == 2


async def test_a_control_plane_that_cannot_be_reached() -> None:
    server = Server(httpx.ConnectError(f"[SSL] {KEY}"))
    answer = await server.ask()
    assert answer.failure is CONTROL_PLANE_ERROR
    assert "could not be reached (ConnectError)" in answer.detail
    assert "TINKER_GUARD_CONTROL_PLANE_URL" in answer.detail
    assert KEY not in answer.detail
    assert len(server.requests) == 2


@pytest.mark.parametrize("error", [httpx.ReadTimeout("slow"), httpx.ConnectTimeout("slow")])
async def test_a_control_plane_that_times_out(error: Exception) -> None:
    server = Server(error)
    answer = await server.ask()
    assert answer.failure is CONTROL_PLANE_TIMEOUT
    assert "did not answer within 5 s. TINKER_GUARD_CONTROL_PLANE_TIMEOUT" in answer.detail
    assert len(server.requests) == 1


async def test_one_that_hangs_is_given_up() -> None:
    shared = SharedControlPlane(GuardSettings(control_plane_timeout=2), FakeControlPlane(takes=99))
    assert (await shared.ask(route_state(), REQUEST)).failure is CONTROL_PLANE_TIMEOUT
    assert loop_time() == 2.0


async def test_one_of_a_users_own_that_times_out_over_httpx() -> None:
    shared = SharedControlPlane(GuardSettings(), FakeControlPlane(httpx.ReadTimeout("slow")))
    assert (await shared.ask(route_state(), REQUEST)).failure is CONTROL_PLANE_TIMEOUT


async def test_a_users_own_one() -> None:
    plane = FakeControlPlane("JOB_STATE_PENDING")
    assert isinstance(plane, ControlPlane)
    shared = SharedControlPlane(GuardSettings(), plane)
    answer = await shared.ask(route_state(), REQUEST)
    assert answer == JobAnswer(state="JOB_STATE_PENDING")
    assert plane.asked == [(0.0, "acc", "job-1", ORIGIN)]
    assert plane.credentials == [{"x-api-key": KEY}]


async def test_one_that_cancels_itself_cancels_no_request() -> None:
    class Plane(FakeControlPlane):
        async def job_state(self, *_: Any, **__: Any) -> str | None:
            raise asyncio.CancelledError(KEY)

    answer = await SharedControlPlane(GuardSettings(), Plane()).ask(route_state(), REQUEST)
    assert answer.failure is CONTROL_PLANE_ERROR
    assert answer.detail == "Plane cancelled itself."


async def test_one_that_raises_names_its_type_alone() -> None:
    shared = SharedControlPlane(GuardSettings(), FakeControlPlane(ValueError(KEY)))
    answer = await shared.ask(route_state(), REQUEST)
    assert answer.failure is CONTROL_PLANE_ERROR
    assert answer.detail == "FakeControlPlane raised ValueError."


@pytest.mark.parametrize("nonsense", [7, "", "RUNNING\nERROR forged line", "x" * 65])
async def test_one_that_returns_nonsense(nonsense: Any) -> None:
    plane = FakeControlPlane()
    plane.state = nonsense
    answer = await SharedControlPlane(GuardSettings(), plane).ask(route_state(), REQUEST)
    assert answer.failure is CONTROL_PLANE_ERROR
    assert answer.detail == (
        "FakeControlPlane.job_state() must return None or a state's name such as JOB_STATE_RUNNING."
    )


async def test_many_askers_share_one_question() -> None:
    plane, state = FakeControlPlane(takes=3), route_state()
    shared = SharedControlPlane(GuardSettings(), plane)
    answers = await asyncio.gather(*(shared.ask(state, REQUEST) for _ in range(400)))
    assert {answer.state for answer in answers} == {"JOB_STATE_RUNNING"}
    assert plane.questions == 1


async def test_transports_with_the_same_control_plane_share_its_answers() -> None:
    server, state = Server(running()), route_state()
    transport = httpx.MockTransport(server.handle)
    for _ in range(3):
        plane = FireworksControlPlane(api_key=SecretStr("fw"), transport=transport)
        await SharedControlPlane(GuardSettings(), plane).ask(state, REQUEST)
    assert len(server.requests) == 1
    other = FireworksControlPlane(api_key=SecretStr("other"), transport=transport)
    await SharedControlPlane(GuardSettings(), other).ask(state, REQUEST)
    assert len(server.requests) == 2


async def test_an_answer_serves_for_the_time_set() -> None:
    plane, state = FakeControlPlane(), route_state()
    shared = SharedControlPlane(GuardSettings(verdict_ttl=1), plane)
    for at in (0.0, 0.5, 0.9, 1.0, 1.9, 2.0):
        await asyncio.sleep(at - loop_time())
        await shared.ask(state, REQUEST)
    assert [asked[0] for asked in plane.asked] == [0.0, 1.0, 2.0]


async def test_other_credentials_ask_for_themselves() -> None:
    plane, state = FakeControlPlane(), route_state()
    shared = SharedControlPlane(GuardSettings(), plane)
    await shared.ask(state, REQUEST)
    await shared.ask(state, sent(x_api_key="other"))
    assert plane.questions == 2


async def test_other_credentials_ask_fireworks_for_themselves() -> None:
    server, state = Server(running()), route_state()
    shared = SharedControlPlane(GuardSettings(), server.plane())
    for key in ("one", "two", "one"):
        await shared.ask(state, sent(x_api_key=key))
    assert [request.headers["x-api-key"] for request in server.requests] == ["one", "two"]


@dataclass
class _Alike(FakeControlPlane):
    """Equal to any other one, and so without a hash."""

    def __init__(self, state: str) -> None:
        super().__init__(state)


def test_with_whom_a_request_shares_what_it_finds_out() -> None:
    plane, other = _Alike("JOB_STATE_RUNNING"), _Alike("JOB_STATE_PAUSED")
    assert plane == other
    keys = [SharedControlPlane(GuardSettings(), p).key_for(REQUEST) for p in (plane, plane, other)]
    assert keys[0] == keys[1] != keys[2]
    assert hash(keys[0]) == hash(keys[1])


def test_an_error_that_asks_for_no_wait() -> None:
    error = ControlPlaneError("try the other one")
    assert (str(error), error.status_code, error.retry_after) == ("try the other one", None, 0.0)


async def test_other_control_planes_answer_for_themselves() -> None:
    state = route_state()
    for job_state in ("JOB_STATE_RUNNING", "JOB_STATE_PAUSED"):
        shared = SharedControlPlane(GuardSettings(), FakeControlPlane(job_state))
        assert (await shared.ask(state, REQUEST)).state == job_state


async def test_two_keys_in_turns_do_not_queue_behind_each_other() -> None:
    plane, state = FakeControlPlane(takes=99), route_state()
    shared = SharedControlPlane(GuardSettings(control_plane_timeout=5), plane)
    requests = [sent(x_api_key=f"key-{n % 2}") for n in range(100)]
    await asyncio.gather(*(shared.ask(state, request) for request in requests))
    assert (plane.questions, loop_time()) == (2, 5.0)


async def test_a_key_of_the_control_planes_own_hides_no_strangers_answer() -> None:
    """What a request finds out it shares with those alone that send the same credentials."""
    server, state = Server(running()), route_state()
    shared = SharedControlPlane(GuardSettings(), server.plane("https://api.test", "fw-key"))
    for key in ("one", "two", "one"):
        await shared.ask(state, sent(x_api_key=key))
    assert [request.headers["x-api-key"] for request in server.requests] == ["fw-key"] * 2


async def test_a_strangers_answer_judges_no_other_keys_404() -> None:
    """A control plane shows a job to its owner alone."""

    class Plane(FakeControlPlane):
        async def job_state(
            self, account: str, job: str, *, origin: str, credentials: Mapping[str, str]
        ) -> str | None:
            state = await super().job_state(account, job, origin=origin, credentials=credentials)
            return state if credentials.get("x-api-key") == KEY else None

    plane, state = Plane(takes=1), route_state()
    shared = SharedControlPlane(GuardSettings(verdict_ttl=60), plane)
    strangers = [sent(x_api_key="x"), sent(Authorization=f"Bearer {KEY}"), sent()]
    answers = await asyncio.gather(
        *(shared.ask(state, request) for request in [*strangers, REQUEST, *strangers])
    )
    assert [answer.state for answer in answers] == [
        *[None] * 3,
        "JOB_STATE_RUNNING",
        *[None] * 3,
    ]
    assert plane.questions == 4


async def test_what_is_kept_is_bounded() -> None:
    """Eight askers: whoever asked longest ago has to ask again."""
    plane, state = FakeControlPlane(), route_state()
    shared = SharedControlPlane(GuardSettings(verdict_ttl=60), plane)
    for n in range(100):
        await shared.ask(state, sent(x_api_key=f"tml-{n}"))
    assert plane.questions == 100
    for n in range(99, 91, -1):
        await shared.ask(state, sent(x_api_key=f"tml-{n}"))
    assert plane.questions == 100
    await shared.ask(state, sent(x_api_key="tml-91"))
    assert plane.questions == 101


async def test_what_is_kept_holds_no_key() -> None:
    plane = FireworksControlPlane("https://api.test", api_key=SecretStr("fw-key"))
    shared = SharedControlPlane(GuardSettings(), plane)
    kept = repr(shared.key_for(sent(x_api_key=KEY, Authorization="Bearer jwt")))
    assert not any(secret in kept for secret in (KEY, "jwt", "fw-key"))


# -- what an answer judges -------------------------------------------------------------------------


class Watched(FakeControlPlane):
    """Notes how many questions were under way at once."""

    now = most = 0

    async def job_state(
        self, account: str, job: str, *, origin: str, credentials: Mapping[str, str]
    ) -> str | None:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            return await super().job_state(account, job, origin=origin, credentials=credentials)
        finally:
            self.now -= 1


@pytest.mark.parametrize(
    "state", ["JOB_STATE_CREATING", "JOB_STATE_PAUSED", "NEW_STATE", None, OSError()]
)
async def test_no_answer_but_running_judges_a_404_that_came_later(
    state: str | Exception | None,
) -> None:
    """The job may have come up, or been created, in between."""
    plane, route = Watched(state, states=[(2.9, "JOB_STATE_RUNNING")]), route_state()
    shared = SharedControlPlane(GuardSettings(verdict_ttl=60), plane)
    first = await shared.ask(route, REQUEST, not_found_at=0.0)
    assert first.state != "JOB_STATE_RUNNING"
    # It is asked at once, and not only when some time is over.
    await asyncio.sleep(0.1)
    assert await shared.ask(route, REQUEST) == replace(first, asked_at=0.1, answered_at=0.1)
    await asyncio.sleep(2.9)
    assert (await shared.ask(route, REQUEST)).state == "JOB_STATE_RUNNING"
    assert [asked[0] for asked in plane.asked] == [0.0, 0.1, 3.0]


@pytest.mark.parametrize("state", ["JOB_STATE_CREATING", "JOB_STATE_PAUSED", None, OSError()])
async def test_an_answer_judges_no_404_that_came_while_it_was_on_its_way(
    state: str | Exception | None,
) -> None:
    plane, route = Watched(state, takes=3), route_state()
    shared = SharedControlPlane(GuardSettings(), plane)

    async def ask(not_found_at: float) -> tuple[float, float]:
        await asyncio.sleep(not_found_at)
        answer = await shared.ask(route, REQUEST, not_found_at=not_found_at)
        return answer.asked_at, loop_time()

    times = await asyncio.gather(*(ask(at) for at in (0.0, 0.0, 0.5, 1.0, 2.9, 3.5)))
    # The later ones share the second question, but for the one whose 404 came after that began.
    assert times == [(0.0, 3.0)] * 2 + [(3.0, 6.0)] * 3 + [(6.0, 9.0)]
    assert (plane.questions, plane.most) == (3, 1)


async def test_running_judges_a_404_that_came_while_it_was_on_its_way() -> None:
    plane, route = Watched(takes=3), route_state()
    shared = SharedControlPlane(GuardSettings(), plane)

    async def ask(not_found_at: float) -> float:
        await asyncio.sleep(not_found_at)
        await shared.ask(route, REQUEST, not_found_at=not_found_at)
        return loop_time()

    assert await asyncio.gather(*(ask(at) for at in (0.0, 1.0, 2.9, 3.9))) == [3.0, 3.0, 3.0, 3.9]
    assert (plane.questions, plane.most) == (1, 1)


async def test_one_question_at_a_time_whatever_the_control_plane_says() -> None:
    plane, route = Watched(ValueError(), takes=0.3), route_state()
    shared = SharedControlPlane(GuardSettings(verdict_ttl=0), plane)

    async def ask(n: int) -> None:
        await asyncio.sleep(0.01 * n)
        await shared.ask(route, REQUEST)

    await asyncio.gather(*(ask(n) for n in range(200)))
    assert plane.most == 1
    assert loop_time() <= 2.0 + 2 * 0.3


@pytest.mark.parametrize(
    ("status_code", "retry_after", "times"),
    [
        (429, "3", [0.0, 3.0]),
        (503, "2", [0.0, 2.0]),
        (503, "soon", [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]),
        (500, None, [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]),
    ],
)
async def test_a_control_plane_is_given_the_pause_that_it_asks_for(
    status_code: int, retry_after: str | None, times: list[float]
) -> None:
    asked: list[float] = []

    def answer() -> httpx.Response:
        asked.append(loop_time())
        headers = {} if retry_after is None else {"retry-after": retry_after}
        return httpx.Response(status_code, headers=headers)

    route = route_state()
    shared = SharedControlPlane(GuardSettings(), Server(answer, answer).plane())
    for n in range(7):
        await asyncio.sleep(0.5 * n - loop_time())
        assert (await shared.ask(route, REQUEST)).failure is CONTROL_PLANE_ERROR
    assert asked == times


@pytest.mark.parametrize("retry_after", ["61", "86400", "Fri, 31 Dec 9999 23:59:59 GMT"])
async def test_a_pause_that_is_longer_than_any_budget_is_cut(retry_after: str) -> None:
    """Else one 503 of a maintenance leaves every 404 of the rest of the day without a verdict."""
    server = Server(httpx.Response(503, headers={"retry-after": retry_after}), running())
    route = route_state()
    shared = SharedControlPlane(GuardSettings(), server.plane())
    answers = []
    for at in (0.0, 59.0, 60.0):
        await asyncio.sleep(at - loop_time())
        answers.append((await shared.ask(route, REQUEST)).is_running)
    assert answers == [False, False, True]


@pytest.mark.parametrize(
    ("retry_after", "times"),
    [
        (2, [0.0, 2.0]),
        (-1.0, [0.0, 1.0, 2.0]),
        (float("nan"), [0.0, 1.0, 2.0]),
        (float("inf"), [0.0]),
        # As it stands in a header, which a type checker would have told.
        ("2", [0.0, 2.0]),
        ("soon", [0.0, 1.0, 2.0]),
        (None, [0.0, 1.0, 2.0]),
        pytest.param(10**400, [0.0], id="no-float"),
    ],
)
async def test_whatever_pause_a_users_control_plane_gives(
    retry_after: Any, times: list[float]
) -> None:
    plane, route = FakeControlPlane(ControlPlaneError("busy", 429, retry_after)), route_state()
    shared = SharedControlPlane(GuardSettings(), plane)
    for at in (0.0, 1.0, 2.0):
        await asyncio.sleep(at - loop_time())
        assert (await shared.ask(route, REQUEST)).failure is CONTROL_PLANE_ERROR
    assert [at for at, *_ in plane.asked] == times


@pytest.mark.parametrize(
    ("retry_after", "pause"),
    [(0.5, 0.5), (60, 60.0), (86400, 60.0), (-1.0, 0.0), ("2", 2.0), ("soon", 0.0), (None, 0.0)],
)
async def test_how_long_it_is_left_alone(retry_after: Any, pause: float) -> None:
    plane = FakeControlPlane(ControlPlaneError("busy", 429, retry_after))
    answer = await SharedControlPlane(GuardSettings(), plane).ask(route_state(), REQUEST)
    assert answer.retry_after == pause


def test_each_event_loop_asks_for_itself() -> None:
    """Their clocks differ, and no future may cross."""
    plane, route = FakeControlPlane(), route_state()
    shared = SharedControlPlane(GuardSettings(verdict_ttl=60), plane)
    for _ in range(2):
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            answer = runner.run(shared.ask(route, REQUEST))
            assert answer.state == "JOB_STATE_RUNNING"
    assert plane.questions == 2


async def test_a_cancelled_asker_hands_over() -> None:
    plane, state = FakeControlPlane(takes=3), route_state()
    shared = SharedControlPlane(GuardSettings(), plane)
    first = asyncio.create_task(shared.ask(state, REQUEST))
    second = asyncio.create_task(shared.ask(state, REQUEST))
    await settle()
    first.cancel()
    assert (await second).state == "JOB_STATE_RUNNING"
    assert plane.questions == 2
    assert loop_time() == 3.0


async def test_no_secret_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await Server(httpx.Response(401)).ask(api_key="fw-key")
    logged = [r.getMessage() for r in caplog.records if r.name.startswith("tinker_guard")]
    assert not any(KEY in line or "fw-key" in line for line in logged)


@pytest.mark.parametrize(
    ("coding", "encode"),
    [
        ("zstd", zstandard.ZstdCompressor().compress),
        ("deflate", zlib.compress),
        ("gzip, gzip", lambda body: gzip.compress(gzip.compress(body, mtime=0), mtime=0)),
    ],
    ids=["zstd", "deflate", "gzip, gzip"],
)
async def test_an_answer_in_a_coding_that_was_not_asked_for(
    coding: str, encode: Callable[[bytes], bytes]
) -> None:
    wire = encode(b'{"state": "JOB_STATE_RUNNING"}')
    headers = {"content-encoding": coding}
    server = Server(httpx.Response(200, headers=headers, stream=TrackedStream([wire])))
    assert (await server.ask()).state == "JOB_STATE_RUNNING"


async def test_an_answer_that_is_not_in_its_coding() -> None:
    answer = await Server(
        httpx.Response(
            200, headers={"content-encoding": "br"}, stream=httpx.ByteStream(b"whatever")
        )
    ).ask()
    assert answer.failure is CONTROL_PLANE_ERROR
    assert answer.status_code == 200
    assert "no job's state in it" in answer.detail


class Inner(httpx.AsyncHTTPTransport):
    """What the guarded request goes over: the only way to its gateway, for all that is known."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[httpx.Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        return running()


async def test_the_routes_own_origin_is_asked_the_way_that_the_request_went() -> None:
    inner = Inner()
    line = RenewableTransport(inner)
    shared = SharedControlPlane(GuardSettings(control_plane_timeout=9))
    answer = await shared.ask(route_state(), REQUEST, line)
    assert heard(answer) == JobAnswer(state="JOB_STATE_RUNNING", status_code=200)
    (request,) = inner.asked
    assert str(request.url) == f"{ORIGIN}/v1/accounts/acc/rlorTrainerJobs/job-1"
    assert set(request.extensions["timeout"].values()) == {9.0}
    await line.aclose()


async def test_a_control_plane_elsewhere_is_not_asked_the_way_that_the_request_went() -> None:
    inner, server = Inner(), Server(running())
    line = RenewableTransport(inner)
    for plane in (server.plane("https://api.test"), FakeControlPlane()):
        shared = SharedControlPlane(GuardSettings(), plane)
        assert (await shared.ask(route_state(), REQUEST, line)).state == "JOB_STATE_RUNNING"
    assert inner.asked == []
    assert len(server.requests) == 1
    await line.aclose()


def _raise(*_: object, **__: object) -> None:
    raise AssertionError


def test_a_control_plane_that_nobody_vouches_for_gets_no_key(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        plane = FireworksControlPlane(server.origin, api_key=SecretStr("fw-key"))
        with pytest.raises(ControlPlaneError, match=r"could not be reached \(ConnectError\)"):
            asyncio.run(plane.job_state("acc", "job-1", origin=ORIGIN, credentials={}))
        assert server.keys == set()


def test_whoever_sets_authorities_trusts_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts: list[ssl.SSLContext] = []

    class Client(httpx.AsyncClient):
        def __init__(self, *, verify: Any, **more: Any) -> None:
            super().__init__(verify=verify, **more)
            contexts.append(verify)

    monkeypatch.setattr(httpx, "AsyncClient", Client)
    with serving(tmp_path) as server:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
        url = f"{server.origin}/training/v1/rlorTrainerJobs/acc/job-1"
        settings = GuardSettings(backoff_initial=0.01)
        # Sends probes to the gateway, and questions to the control plane.
        assert wait_until_routable(url, settings=settings) is Readiness.READY
    assert {len(context.get_ca_certs()) for context in contexts} == {1}


@pytest.mark.parametrize("is_tls", [False, True])
def test_a_question_over_a_connection_of_its_own(
    is_tls: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path if is_tls else None) as server:
        if is_tls:
            monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
        else:
            # They take tens of milliseconds to load, which plain http has no use for.
            monkeypatch.setattr("ssl.SSLContext.load_verify_locations", _raise, raising=False)
        plane = FireworksControlPlane(server.origin, api_key=SecretStr("fw-key"))
        question = plane.job_state("acc", "job-1", origin=ORIGIN, credentials={})
        assert asyncio.run(question) == "JOB_STATE_RUNNING"
        assert server.keys == {"fw-key"}


def test_the_settings_say_whom_to_ask_and_with_which_key() -> None:
    async def ask(settings: GuardSettings) -> JobAnswer:
        return await SharedControlPlane(settings).ask(route_state(), REQUEST)

    with serving() as server:
        settings = GuardSettings(
            control_plane_url=server.origin, control_plane_api_key=SecretStr("fw-key")
        )
        assert asyncio.run(ask(settings)).state == "JOB_STATE_RUNNING"
        assert server.keys == {"fw-key"}


# -- a key that was left out -----------------------------------------------------------------------


def plane_with_key() -> FireworksControlPlane:
    return FireworksControlPlane("https://api.test", api_key=SecretStr("fw-key"), timeout=2)


def test_a_pickle_holds_no_key() -> None:
    plane = plane_with_key()
    for _ in range(3):
        pickled = pickle.dumps(plane)
        assert b"fw-key" not in pickled
        plane = pickle.loads(pickled)
        assert (plane.url, plane.api_key, plane.timeout) == ("https://api.test", None, 2)
        assert plane.is_key_lost
        # It must share no answer with one that asks with the key of the request.
        assert plane != FireworksControlPlane("https://api.test", timeout=2)


def test_a_pickle_without_a_key_has_lost_none() -> None:
    plane = FireworksControlPlane("https://api.test", timeout=2)
    assert pickle.loads(pickle.dumps(plane)) == plane
    assert not pickle.loads(pickle.dumps(plane)).is_key_lost


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda plane: replace(plane)])
def test_a_copy_within_the_process_keeps_the_key(
    copied: Callable[[FireworksControlPlane], FireworksControlPlane],
) -> None:
    assert copied(plane_with_key()) == plane_with_key()


@pytest.mark.parametrize("kind", [None, "fireworks", "http", "ray-serve"])
def test_unpickled_it_asks_with_the_key_of_its_new_process(
    kind: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shared(key: str | None = None) -> SharedControlPlane:
        settings = GuardSettings(
            control_plane=kind,
            control_plane_url="https://api.test",
            control_plane_object="x",
            control_plane_api_key=key,
        )
        return SharedControlPlane(settings)

    pickled = pickle.dumps(shared("fw-key"))
    assert b"fw-key" not in pickled
    key_of_loser = pickle.loads(pickled).key_for(REQUEST)
    assert key_of_loser != shared().key_for(REQUEST)
    monkeypatch.setenv("TINKER_GUARD_CONTROL_PLANE_API_KEY", "fw-own")
    for moved in (pickle.loads(pickled), copy.deepcopy(shared("fw-own"))):
        assert moved.key_for(REQUEST) == shared("fw-own").key_for(REQUEST)


@pytest.mark.parametrize(
    "moved", [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))]
)
async def test_a_copy_asks_the_programs_own_control_plane(
    moved: Callable[[SharedControlPlane], SharedControlPlane],
) -> None:
    shared = moved(SharedControlPlane(GuardSettings(), FakeControlPlane("JOB_STATE_PAUSED")))
    assert heard(await shared.ask(route_state(), REQUEST)) == JobAnswer(state="JOB_STATE_PAUSED")


@pytest.mark.parametrize(
    "lose",
    [
        pytest.param(lambda plane: pickle.loads(pickle.dumps(plane)), id="pickle"),
        pytest.param(lambda plane: copy.copy(pickle.loads(pickle.dumps(plane))), id="its-copy"),
        pytest.param(
            lambda plane: replace(pickle.loads(pickle.dumps(plane)), timeout=9), id="replaced"
        ),
    ],
)
async def test_one_that_lost_its_key_asks_nobody(
    lose: Callable[[FireworksControlPlane], FireworksControlPlane],
) -> None:
    """The key of the request is not for that place."""
    server = Server(running())
    transport = httpx.MockTransport(server.handle)
    plane = replace(lose(plane_with_key()), transport=transport)
    answer = await SharedControlPlane(GuardSettings(), plane).ask(route_state(), REQUEST)
    assert answer.failure is NO_CONTROL_PLANE
    assert "Set TINKER_GUARD_CONTROL_PLANE_API_KEY." in answer.detail
    assert server.requests == []


def test_settings_that_lost_their_key_ask_nobody() -> None:
    with serving() as server:
        settings = GuardSettings(
            control_plane_url=server.origin, control_plane_api_key=SecretStr("fw-key")
        )
        lost = pickle.loads(pickle.dumps(settings))
        answer = asyncio.run(SharedControlPlane(lost).ask(route_state(), REQUEST))
        assert answer.failure is NO_CONTROL_PLANE
        assert server.keys == set()


async def test_a_request_whose_guard_lost_the_key_is_unverified(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Unless a probe reaches the trainer, which takes no key but the request's own."""
    plane = pickle.loads(pickle.dumps(plane_with_key()))
    gateway = FakeGateway(lambda _: gateway_404())
    guard = GuardTransport(
        gateway.new_transport(),
        settings=GuardSettings(warmup_successes=0, retry_timeout=2),
        control_plane=plane,
    )
    response = await guard.handle_async_request(REQUEST)
    assert response.status_code == 404
    assert loop_time() == 2.0
    assert len(gateway.sent) == 1
    assert "(unverified, no_control_plane)" in caplog.text
    assert "TINKER_GUARD_CONTROL_PLANE_API_KEY" in caplog.text
    gateway.answer = known_from(3.0)
    assert (await guard.handle_async_request(REQUEST)).status_code == 200
    assert 3.0 <= loop_time() < 4.0
