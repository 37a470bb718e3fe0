"""The guard over real sockets, without an SDK: nothing leaks, and real failures have real names."""

from __future__ import annotations

import asyncio
import itertools
import socket
import sys
import threading
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest

from testkit.clients import pyqwest_transport
from tinker_guard import GuardSettings, GuardTransport
from tinker_guard.gateway import Fault, LocalGateway, Race

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from tinker_guard.gateway.faults import ControlPlaneMode


def client_of(
    gateway: LocalGateway, make: Callable[[], httpx.AsyncBaseTransport], **settings: Any
) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=GuardTransport(make(), settings=GuardSettings(**settings), new_transport=make),
        base_url=gateway.base_url,
        headers={"X-Api-Key": gateway.api_key},
    )


def established(port: int) -> int:
    """How many connections to a local port are open, as the server sees them."""
    wanted = f":{port:04X}"
    rows = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    return sum(1 for row in rows if row[1].endswith(wanted) and row[3] == "01")


def open_sockets() -> set[str]:
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        # The folder's own, and what another test's client closes meanwhile, is gone by now.
        with suppress(OSError):
            found.add(str(descriptor.readlink()))
    return {place for place in found if place.startswith("socket:")}


linux_only = pytest.mark.skipif(sys.platform != "linux", reason="counts sockets in /proc")


@linux_only
@pytest.mark.parametrize("make", [httpx.AsyncHTTPTransport, pyqwest_transport])
def test_many_races_leave_nothing_behind(make: Callable[[], httpx.AsyncBaseTransport]) -> None:
    fault = Fault(races=tuple(Race("healthz", n, 0.05) for n in range(2, 60, 3)))
    before = open_sockets()

    async def run() -> None:
        async with client_of(gateway, make) as client:
            for _ in range(40):
                assert (await client.get("/api/v1/healthz")).status_code == 200
            # The transport in use, and the first one, which is kept to the end.
            assert established(int(gateway.origin.rpartition(":")[2])) <= 3
            assert asyncio.all_tasks() == {asyncio.current_task()}

    with LocalGateway(fault) as gateway:
        asyncio.run(run())
    races = sum(1 for e in gateway.requests if e.path.endswith("healthz") and e.status == 404)
    assert races >= 10
    assert open_sockets() <= before


@pytest.mark.parametrize("make", [httpx.AsyncHTTPTransport, pyqwest_transport])
def test_a_storm_recovers_with_few_questions(
    make: Callable[[], httpx.AsyncBaseTransport],
) -> None:
    fault = Fault(races=(Race("healthz", 2, 1.5),))

    async def run() -> list[httpx.Response]:
        async with client_of(gateway, make) as client:
            await client.get("/api/v1/healthz")
            return await asyncio.gather(*(client.get("/api/v1/healthz") for _ in range(50)))

    with LocalGateway(fault) as gateway:
        responses = asyncio.run(run())
    assert {response.status_code for response in responses} == {200}
    at = [e.at for e in gateway.requests if e.answered_by == "control_plane"]
    assert 1 <= len(at) <= 3
    sent = sum(1 for e in gateway.requests if e.path.endswith("healthz"))
    assert sent <= 1 + 50 + 50 + 10


class NotingTransport(httpx.AsyncBaseTransport):
    """Notes what was sent over which transport, path, status and all."""

    def __init__(self, inner: httpx.AsyncBaseTransport, noted: list[Noted]) -> None:
        self._inner = inner
        self._noted = noted

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self._inner.handle_async_request(request)
        self._noted.append(Noted(self, request.url.path, response.status_code))
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


class Noted(NamedTuple):
    transport: httpx.AsyncBaseTransport
    path: str
    status: int


@pytest.mark.parametrize("make", [httpx.AsyncHTTPTransport, pyqwest_transport])
def test_a_resend_goes_over_the_connection_that_its_probe_proved(
    make: Callable[[], httpx.AsyncBaseTransport],
) -> None:
    """Three of four replicas are stale for good, and connections stick to theirs."""
    fault = Fault(
        replicas=4,
        assignment="random",
        seed=3,
        route_known_after=(0.0, None, None, None),
        body="plain",
    )

    noted: list[Noted] = []

    def noting() -> httpx.AsyncBaseTransport:
        return NotingTransport(make(), noted)

    async def run() -> None:
        for _ in range(12):
            async with client_of(
                gateway, noting, warmup_successes=0, backoff_initial=0.01
            ) as client:
                assert (await client.get("/api/v1/healthz")).status_code == 200

    with LocalGateway(fault) as gateway:
        asyncio.run(run())
    on_route = [e for e in gateway.requests if e.answered_by != "control_plane"]
    resends = [
        (before, exchange)
        for before, exchange in itertools.pairwise(on_route)
        if exchange.path.endswith("healthz") and not before.path.endswith("healthz")
    ]
    proved = [(before, exchange) for before, exchange in resends if before.status == 200]
    assert len(proved) >= 5
    pairs = [
        (before, sent)
        for before, sent in itertools.pairwise(noted)
        if sent.path.endswith("healthz")
        and before.status == 200
        # A question may come between on a busy machine: RUNNING serves for a second.
        and before.path.endswith("get_server_capabilities")
    ]
    assert len(pairs) == len(proved)
    assert all(before.transport is sent.transport for before, sent in pairs)
    if make is httpx.AsyncHTTPTransport:
        # A new transport of pyqwest, without any guard, opens a second connection for 4 of 300
        # sequential series of requests on a busy machine: which one it takes is its own choice.
        assert all(before.connection == exchange.connection for before, exchange in proved)


@pytest.mark.parametrize(
    ("mode", "line"),
    [
        ("down", "is out of order (500)"),
        ("unauthorized", "TINKER_GUARD_CONTROL_PLANE_API_KEY"),
        ("redirect", "a redirect (302), which is not followed"),
        ("not_json", "no job's state in it"),
        ("no_state", "no job's state in it"),
        ("dropped", "could not be reached (RemoteProtocolError)"),
    ],
)
def test_a_failing_control_plane_is_named(
    mode: ControlPlaneMode, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    fault = Fault(races=(Race("healthz", 1, 60.0),), control_plane=mode)
    with LocalGateway(fault) as gateway:
        response = asyncio.run(_get(gateway))
        asked = gateway.questions
    assert response.status_code == 404
    assert asked >= 1
    # That it looks for the trainer meanwhile is shown by the next test, whose budget a busy machine
    # does not use up.
    assert [e.status for e in gateway.requests if e.path.endswith("healthz")] == [404]
    assert "(unverified, control_plane_error)" in caplog.text
    assert line in caplog.text
    assert gateway.api_key not in caplog.text


async def _get(gateway: LocalGateway, **settings: Any) -> httpx.Response:
    async with client_of(
        # A short budget: without an answer, the guard looks for the trainer to the end of it.
        gateway,
        httpx.AsyncHTTPTransport,
        **{"warmup_successes": 0, "retry_timeout": 0.5} | settings,
    ) as client:
        return await client.get("/api/v1/healthz")


@pytest.mark.parametrize("make", [httpx.AsyncHTTPTransport, pyqwest_transport])
@pytest.mark.parametrize("mode", ["down", "dropped", "not_json"])
def test_without_an_answer_a_probe_that_reaches_the_trainer_ends_a_race(
    mode: ControlPlaneMode,
    make: Callable[[], httpx.AsyncBaseTransport],
    spans: InMemorySpanExporter,
) -> None:
    fault = Fault(races=(Race("healthz", 1, 0.4),), control_plane=mode)

    async def run() -> httpx.Response:
        async with client_of(gateway, make, warmup_successes=0) as client:
            return await client.get("/api/v1/healthz")

    with LocalGateway(fault) as gateway:
        response = asyncio.run(run())
    assert response.status_code == 200
    assert [e.status for e in gateway.requests if e.path.endswith("healthz")] == [404, 200]
    reasons = {
        (span.attributes or {}).get("tinker_guard.verdict.reason")
        for span in spans.get_finished_spans()
        if "tinker_guard.outcome" in (span.attributes or {})
    }
    assert reasons == {"trainer_reached"}


def test_a_control_plane_that_refuses_connections(caplog: pytest.LogCaptureFixture) -> None:
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with LocalGateway(Fault(races=(Race("healthz", 1, 60.0),))) as gateway:
            response = asyncio.run(_get(gateway, control_plane_url=f"http://127.0.0.1:{port}"))
    assert response.status_code == 404
    assert "could not be reached (ConnectError)" in caplog.text
    assert "TINKER_GUARD_CONTROL_PLANE_URL" in caplog.text


def test_a_control_plane_without_tls(caplog: pytest.LogCaptureFixture) -> None:
    with LocalGateway(Fault(races=(Race("healthz", 1, 60.0),))) as gateway:
        url = gateway.origin.replace("http://", "https://")
        response = asyncio.run(_get(gateway, control_plane_url=url))
    assert response.status_code == 404
    assert "could not be reached (ConnectError)" in caplog.text


@contextmanager
def _server_of(answer: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """A server that notes what it is sent, answers with these bytes and hangs up."""
    listener = socket.create_server(("127.0.0.1", 0))
    heard: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                heard.append(connection.recv(65536))
                connection.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], heard
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def test_the_key_does_not_follow_a_redirect_of_the_control_plane() -> None:
    with _server_of(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}") as (there, heard_there):
        redirect = (
            "HTTP/1.1 307 Temporary Redirect\r\n"
            f"Location: http://127.0.0.1:{there}/\r\nContent-Length: 0\r\n\r\n"
        )
        with (
            _server_of(redirect.encode()) as (here, heard_here),
            LocalGateway(Fault(races=(Race("healthz", 1, 60.0),))) as gateway,
        ):
            response = asyncio.run(_get(gateway, control_plane_url=f"http://127.0.0.1:{here}"))
    assert response.status_code == 404
    assert heard_here
    assert all(gateway.api_key.encode() in heard for heard in heard_here)
    assert heard_there == []
