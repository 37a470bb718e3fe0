"""What docs/security.md promises: where the key goes, and what evil neighbours can do."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
import time
import tracemalloc
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import zstandard

from testkit import fakes
from testkit.clients import pyqwest_transport
from testkit.fakes import (
    BASE,
    GATEWAY_BODY,
    KEY,
    FakeControlPlane,
    FakeGateway,
    TrackedStream,
    gateway_404,
    ok,
    post,
)
from tinker_guard import GuardSettings, GuardTransport
from tinker_guard.control_plane.fireworks import FireworksControlPlane
from tinker_guard.control_plane.shared import SharedControlPlane
from tinker_guard.core.routes import RouteTable
from tinker_guard.install import child_env as children
from tinker_guard.settings import InvalidSettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

ROUTE = "/training/v1/rlorTrainerJobs/acc/job-1"


@dataclass
class Server:
    """Answers each request by its path, over a real socket, and notes what it heard."""

    answer: Callable[[str, bytes], bytes]
    origin: str = ""
    heard: list[bytes] = field(default_factory=list)

    @property
    def heard_key(self) -> bool:
        return any(KEY.encode() in message for message in self.heard)

    @property
    def paths(self) -> list[str]:
        return [message.split(b" ", 2)[1].decode() for message in self.heard]

    @contextmanager
    def serving(self) -> Iterator[Server]:
        listener = socket.create_server(("127.0.0.1", 0))
        self.origin = f"http://127.0.0.1:{listener.getsockname()[1]}"

        def talk(connection: socket.socket) -> None:
            # A client that hears enough hangs up.
            with connection, contextlib.suppress(OSError):
                message = connection.recv(65536)
                while message and b"\r\n\r\n" not in message:
                    message += connection.recv(65536)
                if message:
                    self.heard.append(message)
                    connection.sendall(self.answer(self.paths[-1], message))

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=talk, args=[connection], daemon=True).start()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            thread.join()


def reply(status: int, body: bytes = b"", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def not_found() -> bytes:
    return reply(404, GATEWAY_BODY, Content_Type="application/json")


def get(
    origin: str,
    make: Callable[[], httpx.AsyncBaseTransport],
    *,
    is_guarded: bool = True,
    **settings: Any,
) -> httpx.Response:
    """Send one request with the key, as the SDK's httpx client would but for redirects.

    Without a usable answer of a control plane, a guarded one is over when its budget is.
    """
    transport = make()
    if is_guarded:
        in_short = {"warmup_timeout": 0.5, "retry_timeout": 0.5}
        transport = GuardTransport(
            transport, settings=GuardSettings(**in_short | settings), new_transport=make
        )

    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=transport) as client:
            return await client.get(f"{origin}{ROUTE}/api/v1/x", headers={"X-API-Key": KEY})

    return asyncio.run(send())


TRANSPORTS = pytest.mark.parametrize("make", [httpx.AsyncHTTPTransport, pyqwest_transport])


# -- redirects -------------------------------------------------------------------------------------


@TRANSPORTS
def test_a_control_plane_at_the_routes_origin_cannot_send_the_key_on(
    make: Callable[[], httpx.AsyncBaseTransport],
) -> None:
    """Over pyqwest, which follows redirects with every header, questions do not go."""
    with Server(lambda *_: reply(200, b'{"state": "JOB_STATE_RUNNING"}')).serving() as evil:

        def answer(path: str, _: bytes) -> bytes:
            return reply(307, Location=f"{evil.origin}/") if "/accounts/" in path else not_found()

        with Server(answer).serving() as gateway:
            response = get(gateway.origin, make, warmup_successes=1)
    assert response.status_code == 404
    assert any("/accounts/" in path for path in gateway.paths)
    assert evil.heard == []


@TRANSPORTS
@pytest.mark.parametrize("warmup", [0, 2])
def test_a_redirecting_gateway_gets_the_key_no_further_than_without_the_guard(
    make: Callable[[], httpx.AsyncBaseTransport], warmup: int
) -> None:
    """No place is added to those where pyqwest, which follows redirects, takes the key."""
    heard = []
    for is_guarded in (False, True):
        with (
            Server(lambda *_: not_found()).serving() as elsewhere,
            Server(
                lambda path, _: (
                    reply(307, Location=f"{elsewhere.origin}{path}")
                    if path.startswith("/training/")
                    else reply(200, b'{"state": "JOB_STATE_FAILED"}')
                )
            ).serving() as gateway,
        ):
            get(gateway.origin, make, is_guarded=is_guarded, warmup_successes=warmup)
        assert gateway.heard_key
        assert not any("/accounts/" in path for path in elsewhere.paths)
        heard.append(elsewhere.heard_key)
    without_guard, with_guard = heard
    assert with_guard is without_guard is (make is pyqwest_transport)


@TRANSPORTS
def test_the_key_that_is_set_goes_to_the_place_that_is_set_and_no_other(
    make: Callable[[], httpx.AsyncBaseTransport],
) -> None:
    with (
        Server(lambda *_: reply(401)).serving() as plane,
        Server(lambda *_: not_found()).serving() as gateway,
    ):
        get(
            gateway.origin,
            make,
            warmup_successes=1,
            control_plane_url=plane.origin,
            control_plane_api_key="fw-geheim",
        )
    assert plane.heard
    assert all(b"fw-geheim" in message for message in plane.heard)
    assert not plane.heard_key
    assert not any(b"fw-geheim" in message for message in gateway.heard)


def test_a_control_plane_with_a_strange_certificate_hears_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    trustme = pytest.importorskip("trustme", reason="is in the group `test`")
    import ssl

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    heard: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                plain, _ = listener.accept()
                with context.wrap_socket(plain, server_side=True) as connection:
                    heard.append(connection.recv(65536))
            except ssl.SSLError:
                continue
            except OSError:
                return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with Server(lambda *_: not_found()).serving() as gateway:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        response = get(
            gateway.origin, httpx.AsyncHTTPTransport, warmup_successes=0, control_plane_url=url
        )
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()
    assert response.status_code == 404
    assert "could not be reached (ConnectError)" in caplog.text
    assert heard == []


# -- what is shown ---------------------------------------------------------------------------------


@TRANSPORTS
@pytest.mark.parametrize("state", ["JOB_STATE_FAILED", "JOB_STATE_RUNNING", KEY, f"{KEY}\nX"])
def test_a_neighbour_that_echoes_what_it_hears(
    make: Callable[[], httpx.AsyncBaseTransport],
    state: str,
    caplog: pytest.LogCaptureFixture,
    spans: InMemorySpanExporter,
) -> None:
    """As TRACE does: headers and body come back in bodies and headers, the key among them."""
    caplog.set_level(logging.DEBUG, "tinker_guard")

    def answer(path: str, heard: bytes) -> bytes:
        if "/accounts/" in path:
            return reply(200, b'{"state": "%s", "echo": "%s"}' % (state.encode(), KEY.encode()))
        return reply(404, heard, Content_Type="text/plain", X_Echo=KEY, Retry_After="0")

    with Server(answer).serving() as gateway:
        response = get(gateway.origin, make, warmup_successes=1, retry_timeout=0.3)
    assert response.status_code == 404
    # The caller gets what it would get without the guard.
    assert KEY in response.text
    lines = [record.getMessage() for record in caplog.records if record.name == "tinker_guard"]
    shown = "".join(lines) + "".join(span.to_json() for span in spans.get_finished_spans())
    assert "job-1" in shown
    assert KEY not in shown


@pytest.mark.anyio
async def test_a_password_in_the_url_goes_no_further(
    caplog: pytest.LogCaptureFixture, spans: InMemorySpanExporter
) -> None:
    caplog.set_level(logging.DEBUG)
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(500)

    gateway = FakeGateway(lambda _: gateway_404())
    plane = FireworksControlPlane(transport=httpx.MockTransport(answer))
    guard = fakes.guard(gateway, plane, warmup_successes=1)
    url = BASE.replace("https://", "https://user:hunter2@") + "/api/v1/x"
    response = await guard.handle_async_request(httpx.Request("GET", url))
    await response.aread()
    assert asked
    assert not any("hunter2" in f"{request.url} {request.headers}" for request in asked)
    shown = caplog.text + "".join(span.to_json() for span in spans.get_finished_spans())
    assert "hunter2" not in shown


@pytest.mark.anyio
async def test_an_error_that_reaches_the_caller_is_the_transports_own_and_alone() -> None:
    """Nothing of a control plane's error, whose text may hold a key, hangs on it."""

    def answer(exchange: Any) -> httpx.Response:
        if exchange.is_probe or len(gateway.sent) == 1:
            return gateway_404() if len(gateway.exchanges) < 3 else ok()
        raise httpx.ReadError("cut")

    gateway = FakeGateway(answer)
    guard = fakes.guard(gateway, warmup_successes=0)
    with pytest.raises(httpx.ReadError, match="cut") as caught:
        await guard.handle_async_request(post())
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


# -- what is used up -------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("who", ["probe", "404", "control plane"])
async def test_a_few_bytes_that_stand_for_gigabytes(who: str) -> None:
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(2**28))
    headers = {"content-encoding": "zstd", "content-type": "application/json"}

    def bombed(status: int) -> httpx.Response:
        return httpx.Response(status, headers=headers, stream=TrackedStream([bomb]))

    def answer(exchange: Any) -> httpx.Response:
        if exchange.is_probe:
            return bombed(200) if who == "probe" else ok()
        return bombed(404) if who == "404" else gateway_404()

    gateway = FakeGateway(answer)
    is_asked = httpx.MockTransport(
        lambda _: bombed(200) if who == "control plane" else httpx.Response(404)
    )
    guard = GuardTransport(
        gateway.new_transport(),
        settings=GuardSettings(warmup_successes=1),
        control_plane=FireworksControlPlane(transport=is_asked),
    )
    tracemalloc.start()
    try:
        response = await guard.handle_async_request(post())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    await response.aclose()
    assert response.status_code == 404
    assert peak < 2**23


@pytest.mark.parametrize("drip", [b"x" * 65536, b"x"])
def test_an_answer_of_a_control_plane_that_never_ends(drip: bytes) -> None:
    stop = threading.Event()

    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
                while not stop.is_set():
                    connection.sendall(drip)
                    if len(drip) == 1:
                        time.sleep(0.01)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with Server(lambda *_: not_found()).serving() as gateway:
        began = time.monotonic()
        response = get(
            gateway.origin,
            httpx.AsyncHTTPTransport,
            warmup_successes=0,
            control_plane_url=f"http://127.0.0.1:{listener.getsockname()[1]}",
            control_plane_timeout=0.5,
        )
        took = time.monotonic() - began
    stop.set()
    listener.close()
    thread.join(10)
    assert response.status_code == 404
    assert took < 5


# -- whose word counts -----------------------------------------------------------------------------


@pytest.mark.anyio
async def test_one_origins_answer_is_no_other_origins() -> None:
    """A host that looks alike, or the same one on another port, is asked for itself."""
    table, plane = RouteTable(), FakeControlPlane("JOB_STATE_RUNNING")
    shared = SharedControlPlane(GuardSettings(verdict_ttl=60), plane)
    origins = [
        "https://gateway.test",
        "https://gateway.test:8443",
        "http://gateway.test",
        "https://gateway.test.",
        "https://gateway.test.evil.test",
    ]
    for origin in origins:
        state = table.find(httpx.URL(f"{origin}{ROUTE}/api/v1/x"))
        assert state is not None
        await shared.ask(state, httpx.Request("GET", state.route.url))
    assert [origin for *_, origin in plane.asked] == origins


@pytest.mark.anyio
async def test_a_lying_control_plane_costs_the_budget_and_no_more() -> None:
    gateway = FakeGateway(lambda _: gateway_404())
    guard = fakes.guard(gateway, warmup_successes=0, retry_timeout=10)
    response = await guard.handle_async_request(post())
    assert response.status_code == 404
    assert asyncio.get_running_loop().time() <= 10.0
    assert {exchange.body for exchange in gateway.sent} == {b'{"seq_id": 1}'}


@pytest.mark.anyio
async def test_probes_hold_nothing_of_the_body_and_no_idempotency_key() -> None:
    gateway = FakeGateway(lambda e: gateway_404() if e.at < 1 else ok())
    guard = fakes.guard(gateway, warmup_successes=2)
    await guard.handle_async_request(post(body=b"training data"))
    assert gateway.probes
    for probe in gateway.probes:
        assert probe.body == b""
        assert "x-idempotency-key" not in probe.headers


# -- what is set, and what is read out of a URL ----------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("control_plane_url", "https://api.test?", "neither a user name nor a query"),
        ("control_plane_url", "https://api.test/x#", "neither a user name nor a query"),
        ("control_plane_url", "https://api.test\\@evil.test", "neither a user name nor a query"),
        ("control_plane_url", "https://api.test:65536", "a port from 1 to 65535"),
        ("control_plane_url", "https://api.test:0", "a port from 1 to 65535"),
        ("control_plane_url", "https://xn--/", "must be a URL such as"),
        ("warmup_probe_path", "/../../../other", "no . or .. segment"),
        ("warmup_probe_path", "/api/%2e%2E/x", "no . or .. segment"),
        ("warmup_probe_path", "/api/.", "no . or .. segment"),
        ("warmup_probe_path", "/..%5cx", "no . or .. segment"),
    ],
)
def test_settings_that_lead_elsewhere_are_refused(name: str, value: str, wanted: str) -> None:
    given: dict[str, Any] = {name: value}
    with pytest.raises(InvalidSettingsError, match=wanted):
        GuardSettings(**given)


def test_a_url_without_a_host_is_no_route() -> None:
    assert RouteTable().find(httpx.URL(f"https:{ROUTE}/api/v1/x")) is None


# -- other processes -------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [None, "", "/one", f"/one{os.pathsep}/two"])
def test_children_get_one_absolute_directory_and_no_empty_place(before: str | None) -> None:
    """An empty place in PYTHONPATH would be the working directory, whoever may write there."""
    environment: dict[str, str] = {} if before is None else {"PYTHONPATH": before}
    children.inject(environment)
    places = environment["PYTHONPATH"].split(os.pathsep)
    assert all(os.path.isabs(place) for place in places)
    assert os.listdir(places[0]) != []
    assert [name for name in os.listdir(places[0]) if name.endswith(".py")] == ["sitecustomize.py"]
    assert places[1:] == [place for place in (before or "").split(os.pathsep) if place]
