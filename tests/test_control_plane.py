from __future__ import annotations

import asyncio
import gzip
import logging
import pickle
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from pydantic import SecretStr

from tests.fakes import BASE, KEY, ORIGIN, FakeControlPlane, TrackedStream, loop_time, settle
from tests.local_server import serving
from tinker_guard import ControlPlane, ControlPlaneError, GuardSettings
from tinker_guard.closing import CLOSE_SECONDS
from tinker_guard.control_plane import FireworksControlPlane, SharedControlPlane
from tinker_guard.line import Line
from tinker_guard.route import RouteState, RouteTable
from tinker_guard.verdict import CONTROL_PLANE_ERROR, CONTROL_PLANE_TIMEOUT, Answer
from tinker_guard.waiting import Readiness, wait_until_routable

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

pytestmark = pytest.mark.anyio

HEADERS = httpx.Headers({"X-API-Key": KEY, "Cookie": "c", "Accept": "*/*"})


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

    async def ask(self, url: str | None = None, api_key: str | None = None) -> Answer:
        shared = SharedControlPlane(GuardSettings(), self.plane(url, api_key))
        return await shared.ask(route_state(), HEADERS)


def running() -> httpx.Response:
    return httpx.Response(200, json={"name": "x", "state": "JOB_STATE_RUNNING"})


async def test_the_question_derives_from_the_route_and_carries_the_requests_key() -> None:
    server = Server(running())
    assert await server.ask() == Answer(state="JOB_STATE_RUNNING", status_code=200)
    (request,) = server.requests
    assert request.method == "GET"
    assert str(request.url) == f"{ORIGIN}/v1/accounts/acc/rlorTrainerJobs/job-1"
    assert request.headers["x-api-key"] == KEY
    assert "cookie" not in request.headers


async def test_an_answer_in_pieces_and_compressed() -> None:
    wire = gzip.compress(b'{"state": "JOB_STATE_RUNNING"}')
    server = Server(
        httpx.Response(
            200,
            headers={"content-encoding": "gzip"},
            stream=TrackedStream([wire[:10], wire[10:20], wire[20:]]),
        )
    )
    assert await server.ask() == Answer(state="JOB_STATE_RUNNING", status_code=200)
    # Any other coding could not be undone up to a limit.
    assert server.requests[0].headers["accept-encoding"] == "gzip, deflate"


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
    await shared.ask(route_state(), httpx.Headers({"Authorization": "Bearer jwt"}))
    assert server.requests[0].headers["authorization"] == "Bearer jwt"
    assert "x-api-key" not in server.requests[0].headers


async def test_a_configured_control_plane_and_key() -> None:
    server = Server(running())
    await server.ask("https://api.test/base", "fw-key")
    assert (
        str(server.requests[0].url) == "https://api.test/base/v1/accounts/acc/rlorTrainerJobs/job-1"
    )
    assert server.requests[0].headers["x-api-key"] == "fw-key"


async def test_a_job_that_does_not_exist() -> None:
    assert await Server(httpx.Response(404)).ask() == Answer(state=None, status_code=404)


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


async def test_an_answer_that_hangs_as_it_is_closed() -> None:
    class Stream(TrackedStream):
        async def aclose(self) -> None:
            await asyncio.Event().wait()

    stream = Stream([b'{"state": "JOB_STATE_RUNNING"}'])
    assert (await Server(httpx.Response(200, stream=stream)).ask()).state == "JOB_STATE_RUNNING"
    assert loop_time() == CLOSE_SECONDS


async def test_a_connection_error_gets_one_quick_second_try() -> None:
    server = Server(httpx.ConnectError("refused"), running())
    assert (await server.ask()).state == "JOB_STATE_RUNNING"
    assert len(server.requests) == 2
    assert 0.0 < loop_time() < 0.2


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
    assert (await shared.ask(route_state(), HEADERS)).failure is CONTROL_PLANE_TIMEOUT
    assert loop_time() == 2.0


async def test_one_of_a_users_own_that_times_out_over_httpx() -> None:
    shared = SharedControlPlane(GuardSettings(), FakeControlPlane(httpx.ReadTimeout("slow")))
    assert (await shared.ask(route_state(), HEADERS)).failure is CONTROL_PLANE_TIMEOUT


async def test_a_users_own_one() -> None:
    plane = FakeControlPlane("JOB_STATE_PENDING")
    assert isinstance(plane, ControlPlane)
    shared = SharedControlPlane(GuardSettings(), plane)
    assert await shared.ask(route_state(), HEADERS) == Answer(state="JOB_STATE_PENDING")
    assert plane.asked == [(0.0, "acc", "job-1", ORIGIN)]
    assert plane.credentials == [{"x-api-key": KEY}]


async def test_one_that_raises_names_its_type_alone() -> None:
    shared = SharedControlPlane(GuardSettings(), FakeControlPlane(ValueError(KEY)))
    answer = await shared.ask(route_state(), HEADERS)
    assert answer.failure is CONTROL_PLANE_ERROR
    assert answer.detail == "FakeControlPlane raised ValueError."


@pytest.mark.parametrize("nonsense", [7, "", "RUNNING\nERROR forged line", "x" * 65])
async def test_one_that_returns_nonsense(nonsense: Any) -> None:
    plane = FakeControlPlane()
    plane.state = nonsense
    answer = await SharedControlPlane(GuardSettings(), plane).ask(route_state(), HEADERS)
    assert answer.failure is CONTROL_PLANE_ERROR
    assert answer.detail == (
        "FakeControlPlane.job_state() must return None or a state's name such as JOB_STATE_RUNNING."
    )


async def test_many_askers_share_one_question() -> None:
    plane, state = FakeControlPlane(takes=3), route_state()
    shared = SharedControlPlane(GuardSettings(), plane)
    answers = await asyncio.gather(*(shared.ask(state, HEADERS) for _ in range(400)))
    assert {answer.state for answer in answers} == {"JOB_STATE_RUNNING"}
    assert plane.questions == 1


async def test_transports_with_the_same_control_plane_share_its_answers() -> None:
    server, state = Server(running()), route_state()
    transport = httpx.MockTransport(server.handle)
    for _ in range(3):
        plane = FireworksControlPlane(api_key=SecretStr("fw"), transport=transport)
        await SharedControlPlane(GuardSettings(), plane).ask(state, HEADERS)
    assert len(server.requests) == 1
    other = FireworksControlPlane(api_key=SecretStr("other"), transport=transport)
    await SharedControlPlane(GuardSettings(), other).ask(state, HEADERS)
    assert len(server.requests) == 2


async def test_an_answer_serves_for_the_time_set() -> None:
    plane, state = FakeControlPlane(), route_state()
    shared = SharedControlPlane(GuardSettings(verdict_ttl=1), plane)
    for at in (0.0, 0.5, 0.9, 1.0, 1.9, 2.0):
        await asyncio.sleep(at - loop_time())
        await shared.ask(state, HEADERS)
    assert [asked[0] for asked in plane.asked] == [0.0, 1.0, 2.0]


async def test_other_credentials_ask_for_themselves() -> None:
    plane, state = FakeControlPlane(), route_state()
    shared = SharedControlPlane(GuardSettings(), plane)
    await shared.ask(state, HEADERS)
    await shared.ask(state, httpx.Headers({"x-api-key": "other"}))
    assert plane.questions == 2


async def test_other_credentials_ask_fireworks_for_themselves() -> None:
    server, state = Server(running()), route_state()
    shared = SharedControlPlane(GuardSettings(), server.plane())
    for key in ("one", "two", "one"):
        await shared.ask(state, httpx.Headers({"x-api-key": key}))
    assert [request.headers["x-api-key"] for request in server.requests] == ["one", "two"]


async def test_other_control_planes_answer_for_themselves() -> None:
    state = route_state()
    for job_state in ("JOB_STATE_RUNNING", "JOB_STATE_PAUSED"):
        shared = SharedControlPlane(GuardSettings(), FakeControlPlane(job_state))
        assert (await shared.ask(state, HEADERS)).state == job_state


async def test_two_keys_in_turns_do_not_queue_behind_each_other() -> None:
    plane, state = FakeControlPlane(takes=99), route_state()
    shared = SharedControlPlane(GuardSettings(control_plane_timeout=5), plane)
    keys = [httpx.Headers({"x-api-key": f"key-{n % 2}"}) for n in range(100)]
    await asyncio.gather(*(shared.ask(state, headers) for headers in keys))
    assert (plane.questions, loop_time()) == (2, 5.0)


async def test_a_key_of_the_control_planes_own_is_one_asker() -> None:
    server, state = Server(running()), route_state()
    shared = SharedControlPlane(GuardSettings(), server.plane("https://api.test", "fw-key"))
    for n in range(3):
        await shared.ask(state, httpx.Headers({"x-api-key": f"key-{n}"}))
    assert len(server.requests) == 1


async def test_what_is_kept_is_bounded_and_holds_no_key() -> None:
    plane, state = FakeControlPlane(), route_state()
    shared = SharedControlPlane(GuardSettings(verdict_ttl=9), plane)
    for n in range(100):
        await shared.ask(state, httpx.Headers({"x-api-key": f"tml-{n}"}))
    assert len(state.here._questions) == 8
    assert "tml-" not in repr(state.here._questions)


async def test_a_cancelled_asker_hands_over() -> None:
    plane, state = FakeControlPlane(takes=3), route_state()
    shared = SharedControlPlane(GuardSettings(), plane)
    first = asyncio.create_task(shared.ask(state, HEADERS))
    second = asyncio.create_task(shared.ask(state, HEADERS))
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


async def test_an_answer_in_a_coding_that_is_not_looked_into() -> None:
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
    line = Line(inner)
    shared = SharedControlPlane(GuardSettings(control_plane_timeout=9))
    answer = await shared.ask(route_state(), HEADERS, line)
    assert answer == Answer(state="JOB_STATE_RUNNING", status_code=200)
    (request,) = inner.asked
    assert str(request.url) == f"{ORIGIN}/v1/accounts/acc/rlorTrainerJobs/job-1"
    assert set(request.extensions["timeout"].values()) == {9.0}
    await line.aclose()


async def test_a_control_plane_elsewhere_is_not_asked_the_way_that_the_request_went() -> None:
    inner, server = Inner(), Server(running())
    line = Line(inner)
    for plane in (server.plane("https://api.test"), FakeControlPlane()):
        shared = SharedControlPlane(GuardSettings(), plane)
        assert (await shared.ask(route_state(), HEADERS, line)).state == "JOB_STATE_RUNNING"
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
    async def ask(settings: GuardSettings) -> Answer:
        return await SharedControlPlane(settings).ask(route_state(), HEADERS)

    with serving() as server:
        settings = GuardSettings(
            control_plane_url=server.origin, control_plane_api_key=SecretStr("fw-key")
        )
        assert asyncio.run(ask(settings)).state == "JOB_STATE_RUNNING"
        assert server.keys == {"fw-key"}


def test_a_pickle_holds_no_key() -> None:
    plane = FireworksControlPlane("https://api.test", api_key=SecretStr("fw-key"), timeout=2)
    pickled = pickle.dumps(plane)
    assert b"fw-key" not in pickled
    assert pickle.loads(pickled) == FireworksControlPlane("https://api.test", timeout=2)
