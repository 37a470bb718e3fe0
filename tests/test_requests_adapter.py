"""The example for sessions of `requests`, over real sockets."""

from __future__ import annotations

import gzip
import socket
import threading
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
import requests

from examples.requests_adapter import GuardedAdapter
from testkit.cli import python
from testkit.fakes import GATEWAY_BODY
from testkit.http_server import Handler, on_a_thread
from tests import ROOT
from tinker_guard import Fault, GuardSettings, JobStop, LocalGateway, LostReply, Race

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WARM = GuardSettings(warmup_successes=0)
ROUTE = "/training/v1/rlorTrainerJobs/demo/job-1"


@pytest.fixture
def session() -> Iterator[requests.Session]:
    """A session with the adapter in it, and no warmup."""
    with guarded(WARM) as session:
        yield session


@contextmanager
def guarded(settings: GuardSettings) -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        session.mount("http://", GuardedAdapter(settings))
        session.headers["X-Api-Key"] = LocalGateway.api_key
        yield session


def statuses(gateway: LocalGateway, operation: str) -> list[int]:
    return [one.status for one in gateway.requests if one.path == f"/api/v1/{operation}"]


# -- a trainer -----------------------------------------------------------------------------------


def test_a_session_survives_a_race(session: requests.Session) -> None:
    with LocalGateway(Fault(races=(Race("healthz", 1, 0.3),))) as gateway:
        answer = session.get(f"{gateway.base_url}/api/v1/healthz", timeout=5)
        assert answer.json() == {"status": "ok"}
        assert statuses(gateway, "healthz") == [404, 200]
        assert gateway.questions == 1


def test_without_the_adapter_it_does_not() -> None:
    with (
        requests.Session() as session,
        LocalGateway(Fault(races=(Race("healthz", 1, 0.3),))) as gateway,
    ):
        session.trust_env = False
        assert session.get(f"{gateway.base_url}/api/v1/healthz", timeout=5).status_code == 404


def test_the_first_request_waits_for_a_new_route() -> None:
    with (
        guarded(GuardSettings(warmup_successes=2)) as session,
        LocalGateway(Fault(route_known_after=(0.3,))) as gateway,
    ):
        assert session.get(f"{gateway.base_url}/api/v1/healthz", timeout=5).ok
        assert statuses(gateway, "healthz") == [200]


def test_a_connection_that_is_stuck_to_a_stale_replica_is_replaced(
    session: requests.Session,
) -> None:
    with LocalGateway(Fault(replicas=2, route_known_after=(60.0, 0.0))) as gateway:
        for _ in range(2):
            assert session.get(f"{gateway.base_url}/api/v1/healthz", timeout=5).ok
        asked = [one for one in gateway.requests if one.path == "/api/v1/healthz"]
        assert [one.replica for one in asked] == [0, 1, 1]


@pytest.mark.parametrize("body", [b'{"tags": []}', '{"tags": []}'], ids=["bytes", "text"])
def test_the_same_bytes_are_sent_again(session: requests.Session, body: bytes | str) -> None:
    lost = Fault(lost_replies=(LostReply("create_session", 1),))
    with LocalGateway(lost) as gateway:
        answer = session.post(
            f"{gateway.base_url}/api/v1/create_session",
            data=body,
            headers={"X-Idempotency-Key": "idem-1", "Content-Type": "application/json"},
            timeout=5,
        )
        assert answer.ok
        first, second = (one for one in gateway.requests if one.path == "/api/v1/create_session")
        assert (first.status, second.status) == (404, 200)
        assert first.body_sha256 == second.body_sha256
        assert first.body_size == second.body_size == 12
        assert first.idempotency_key == second.idempotency_key == "idem-1"


def test_a_body_that_can_be_read_once_is_sent_once(session: requests.Session) -> None:
    with LocalGateway(Fault(races=(Race("create_session", 1, 0.3),))) as gateway:
        url = f"{gateway.base_url}/api/v1/create_session"
        answer = session.post(url, data=iter([b"{}"]), timeout=5)
        assert answer.status_code == 404
        assert statuses(gateway, "create_session") == [404]


def test_a_true_404_is_handed_back_whole(session: requests.Session) -> None:
    with LocalGateway(Fault(trainer_lacks=("healthz",))) as gateway:
        answer = session.get(f"{gateway.base_url}/api/v1/healthz", timeout=5)
        assert answer.status_code == 404
        assert answer.reason == "Not Found"
        assert answer.json() == {"detail": "Not Found"}
    with LocalGateway(Fault(stop=JobStop("healthz", 1))) as gateway:
        answer = session.get(f"{gateway.base_url}/api/v1/healthz", timeout=5)
        assert (answer.status_code, answer.content) == (404, GATEWAY_BODY)


def test_a_404_of_the_gate_is_an_answer_like_any_other() -> None:
    deleted = Fault(job_states=((0.0, "JOB_STATE_DELETED"),))
    with guarded(GuardSettings()) as session, LocalGateway(deleted) as gateway:
        answer = session.get(f"{gateway.base_url}/api/v1/healthz", timeout=5)
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "NOT_FOUND"
        assert statuses(gateway, "healthz") == []


def test_threads_may_share_a_session(session: requests.Session) -> None:
    found: list[int] = []

    def send() -> None:
        found.append(session.get(f"{gateway.base_url}/api/v1/healthz", timeout=5).status_code)

    with LocalGateway(Fault(races=(Race("healthz", 1, 0.3),))) as gateway:
        threads = [threading.Thread(target=send) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert found == [200] * 8


# -- any other server ----------------------------------------------------------------------------


REASON = "As It Says"


class _Handler(Handler):
    protocol_version = "HTTP/1.1"
    cookies: list[str | None]
    answers: Callable[[_Handler], None]

    def do_GET(self) -> None:
        self.cookies.append(self.headers["Cookie"])
        type(self).answers(self)


@contextmanager
def serving(answers: Callable[[Any], None]) -> Iterator[tuple[str, type[_Handler]]]:
    handler = type("Handler", (_Handler,), {"answers": answers, "cookies": []})
    with on_a_thread(ThreadingHTTPServer(("127.0.0.1", 0), handler)) as server:
        yield f"http://127.0.0.1:{server.server_port}", handler


@pytest.mark.parametrize("path", ["/elsewhere", f"{ROUTE}/api/v1/x"])
def test_an_answer_is_as_requests_makes_it(session: requests.Session, path: str) -> None:
    def answer(handler: _Handler) -> None:
        body = gzip.compress(b"line 1\nline 2\n")
        encoding = ("Content-Encoding", "gzip")
        handler.reply(
            200, body, encoding, ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), reason=REASON
        )

    with serving(answer) as (origin, handler):
        first = session.get(origin + path, timeout=5)
        assert first.text == "line 1\nline 2\n"
        assert first.reason == REASON
        assert first.headers["content-encoding"] == "gzip"
        assert first.cookies.get_dict() == session.cookies.get_dict() == {"a": "1", "b": "2"}
        with session.get(origin + path, timeout=5, stream=True) as second:
            assert list(second.iter_lines()) == [b"line 1", b"line 2"]
        assert handler.cookies == [None, "a=1; b=2"]


def test_redirects_stay_the_sessions_business(session: requests.Session) -> None:
    def answer(handler: _Handler) -> None:
        if handler.path == "/to":
            handler.reply(200, b"there")
        else:
            handler.reply(302, b"", ("Location", "/to"))

    with serving(answer) as (origin, _):
        answered = session.get(f"{origin}/from", timeout=5)
    assert (answered.text, len(answered.history)) == ("there", 1)


def test_a_404_elsewhere_is_handed_back_at_once(session: requests.Session) -> None:
    with serving(lambda handler: handler.reply(404, b"nothing")) as (origin, handler):
        answer = session.get(f"{origin}/v1/accounts/acc", timeout=5)
        assert (answer.status_code, answer.content) == (404, b"nothing")
        assert len(handler.cookies) == 1


def test_a_replica_that_a_cookie_names_is_met_again(session: requests.Session) -> None:
    """The session has a cookie of its own, which pins it to the stale one."""

    def answer(handler: _Handler) -> None:
        kind = ("Content-Type", "application/json")
        if handler.path.startswith("/v1/"):
            handler.reply(200, b'{"state": "JOB_STATE_RUNNING"}', kind)
        elif "replica=1" in (handler.headers["Cookie"] or "") or handler.path.endswith(
            "get_server_capabilities"
        ):
            handler.reply(200, b"{}", kind, ("Set-Cookie", "replica=1"))
        else:
            handler.reply(404, GATEWAY_BODY, kind)

    session.cookies.set("replica", "0")
    session.cookies.set("other", "x")
    with serving(answer) as (origin, handler):
        assert session.get(f"{origin}{ROUTE}/api/v1/x", timeout=5).status_code == 200
    assert [cookie for cookie in handler.cookies if cookie] == [
        "replica=0; other=x",
        "replica=1; other=x",
    ]


def test_errors_are_those_of_requests(session: requests.Session) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody_answers:
        port = nobody_answers.getsockname()[1]
        url = f"http://127.0.0.1:{port}{ROUTE}/api/v1/x"
        with pytest.raises(requests.ReadTimeout):
            session.get(url, timeout=0.1)
    with pytest.raises(requests.ConnectionError):
        session.get(url, timeout=5)


def test_a_body_that_breaks_off_is_an_error_of_requests(session: requests.Session) -> None:
    def answer(handler: _Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        handler.wfile.write(b"half")
        handler.close_connection = True

    with (
        serving(answer) as (origin, _),
        pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)),
    ):
        session.get(f"{origin}{ROUTE}/api/v1/x", timeout=5)


# -- as a program --------------------------------------------------------------------------------


def test_as_a_program() -> None:
    with LocalGateway(Fault(route_known_after=(0.3,))) as gateway:
        program = ROOT / "examples" / "requests_adapter.py"
        variables = {"TINKER_API_KEY": gateway.api_key, "NO_PROXY": "127.0.0.1"}
        done = python(program, gateway.base_url, **variables)
    assert done.returncode == 0, done.stderr
    assert "tinker-guard/bigram" in done.stdout
