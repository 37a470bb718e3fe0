"""The guard over TLS, where the SDK speaks HTTP/2 if the server does."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import h2.connection
import httpx
import hyperframe.frame
import pytest

from tests.end_to_end import sdk
from tests.end_to_end.leftovers import nothing_left, port_of
from tests.end_to_end.sdk import TRANSPORTS, Gateway, connected
from tests.end_to_end.tls import TlsGateway, TlsServer, trust
from tinker_guard import GuardSettings, GuardTransport, install_guard
from tinker_guard.gateway import Fault, LostReply, Race
from tinker_guard.gateway.train import train_five_steps

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tinker_guard.gateway import LocalGateway
    from tinker_guard.gateway.faults import Transport

ONCE_EACH = list(range(1, 11))

RACES = Fault(
    races=(Race("forward_backward", 2, 0.2), Race("retrieve_future", 7, 0.2)),
    lost_replies=(LostReply("optim_step", 3),),
)


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    trust(monkeypatch, tmp_path)


def train(gateway: LocalGateway) -> list[float]:
    with connected(gateway) as client:
        return train_five_steps(client, sdk.types)


@pytest.fixture(scope="module")
def fault_free_losses() -> list[float]:
    with pytest.MonkeyPatch.context() as monkeypatch, Gateway() as gateway:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        with nothing_left(port_of(gateway)):
            return train(gateway)


def assert_right(gateway: TlsGateway, losses: list[float], fault_free: list[float]) -> None:
    assert losses == fault_free
    assert [work.seq_id for work in gateway.applied] == ONCE_EACH
    assert gateway.unexpected == []


def versions(gateway: TlsGateway) -> set[str]:
    """What the requests for the trainer were sent over."""
    return {how.http_version for how in gateway.carried if how.path.startswith("/training/")}


@pytest.mark.parametrize("version", ["2", "1.1"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_training_over_tls(
    transport: Transport, version: str, fault_free_losses: list[float]
) -> None:
    install_guard()
    alpn = ("h2", "http/1.1") if version == "2" else ("http/1.1",)
    gateway = TlsGateway(replace(RACES, transport=transport), alpn=alpn)
    with gateway, nothing_left(port_of(gateway)):
        losses = train(gateway)
    assert_right(gateway, losses, fault_free_losses)
    assert versions(gateway) == {version}

    # A resend goes over a connection that nobody had used when the 404 came.
    requests = [e for e in gateway.requests if e.answered_by != "control_plane"]
    resends = 0
    for index, refused in enumerate(requests):
        if refused.status == 404 and refused.seq_id is not None:
            resent = next(
                e
                for e in requests[index + 1 :]
                if (e.path, e.seq_id) == (refused.path, refused.seq_id)
            )
            assert resent.connection not in {e.connection for e in requests[: index + 1]}
            assert resent.idempotency_key == refused.idempotency_key
            assert resent.body_sha256 == refused.body_sha256
            resends += 1
    assert resends >= 2


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_connection_that_is_stuck_to_a_stale_replica(
    transport: Transport, fault_free_losses: list[float]
) -> None:
    """Over HTTP/2, all that a client sends goes over one connection and meets one replica."""
    install_guard()
    # Whichever replica the training connection sticks to, one of these hits it.
    races = (
        Race("forward_backward", 2, 0.4, replicas=(0,)),
        Race("forward_backward", 3, 60.0, replicas=(1,)),
    )
    gateway = TlsGateway(Fault(replicas=2, races=races, transport=transport))
    with gateway, nothing_left(port_of(gateway)):
        losses = train(gateway)
    assert_right(gateway, losses, fault_free_losses)
    assert versions(gateway) == {"2"}
    assert any(exchange.answered_by == "gateway" for exchange in gateway.requests)


@pytest.fixture
def _goodbye_before_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a server announce that it will close a connection, and still answer on it.

    Hypercorn never answers what came before its GOAWAY.
    """
    close = h2.connection.H2Connection.close_connection

    def close_connection(self: h2.connection.H2Connection, *args: Any, **kwargs: Any) -> None:
        if self.config.client_side:
            close(self, *args, **kwargs)
            return
        frame = hyperframe.frame.GoAwayFrame(0)
        frame.last_stream_id = self.highest_inbound_stream_id
        self._prepare_for_sending([frame])

    monkeypatch.setattr(h2.connection.H2Connection, "close_connection", close_connection)


@pytest.mark.usefixtures("_goodbye_before_the_answer")
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_connections_that_the_server_says_goodbye_to(
    transport: Transport, fault_free_losses: list[float]
) -> None:
    install_guard()
    gateway = TlsGateway(replace(RACES, transport=transport), requests_per_connection=8)
    with gateway, nothing_left(port_of(gateway)):
        losses = train(gateway)
    assert_right(gateway, losses, fault_free_losses)
    assert versions(gateway) == {"2"}


# -- without an SDK: what else HTTP/2 carries -------------------------------------------------


class Trickle:
    """A trainer that answers in two pieces, and a gateway that does not know it at first."""

    path = "/training/v1/rlorTrainerJobs/demo/job-1/api/v1/trickle"

    def __init__(self) -> None:
        self.may_end = asyncio.Event()
        self.refusals = 1
        self.uploaded = ""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body, more = hashlib.sha256(), True
        while more:
            message = await receive()
            body.update(message["body"])
            more = message["more_body"]
        if scope["path"].startswith("/v1/"):
            await self._answer(send, 200, b'{"state": "JOB_STATE_RUNNING"}')
        elif scope["path"] != self.path:
            await self._answer(send, 200, b"{}")
        elif self.refusals > 0:
            self.refusals -= 1
            await self._answer(send, 404, b'{"error": {"code": "NOT_FOUND"}}')
        else:
            self.uploaded = body.hexdigest()
            await send(
                {
                    "type": "http.response.start",
                    "status": 200,
                    "headers": [(b"trailer", b"x-checksum")],
                    "trailers": True,
                }
            )
            await send({"type": "http.response.body", "body": b"one ", "more_body": True})
            await self.may_end.wait()
            await send({"type": "http.response.body", "body": b"two"})
            await send({"type": "http.response.trailers", "headers": [(b"x-checksum", b"12")]})

    async def _answer(self, send: Any, status: int, body: bytes) -> None:
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def httpx_transport() -> httpx.AsyncBaseTransport:
    return httpx.AsyncHTTPTransport(http2=True)


def pyqwest_transport() -> httpx.AsyncBaseTransport:
    from tests.end_to_end import sdk

    transport: httpx.AsyncBaseTransport = sdk.pyqwest_transport()
    return transport


MAKERS = [httpx_transport, pyqwest_transport]


class Guarded:
    """A guarded client of a `Trickle` over HTTP/2."""

    def __init__(self, make: Callable[[], httpx.AsyncBaseTransport]) -> None:
        self._make = make

    async def __aenter__(self) -> Guarded:
        self.app = Trickle()
        self.server = TlsServer(self.app)
        self.server.start()
        settings = GuardSettings(warmup_successes=0)
        self.client = httpx.AsyncClient(
            transport=GuardTransport(self._make(), settings=settings, new_transport=self._make),
            base_url=f"https://127.0.0.1:{self.server.port}",
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.aclose()
        self.let_it_end()
        await asyncio.to_thread(self.server.stop)

    def let_it_end(self) -> None:
        self.server.call_soon(self.app.may_end.set)


@pytest.mark.parametrize("make", MAKERS)
def test_a_streamed_answer_its_trailers_and_extensions(
    make: Callable[[], httpx.AsyncBaseTransport],
) -> None:
    async def run() -> None:
        async with Guarded(make) as guarded:
            stream = guarded.client.stream(
                "POST", Trickle.path, content=b"x", headers={"TE": "trailers"}
            )
            async with stream as response:
                assert response.status_code == 200
                chunks = response.aiter_raw()
                # The rest is not sent before this has come.
                assert await anext(chunks) == b"one "
                guarded.let_it_end()
                assert b"".join([chunk async for chunk in chunks]) == b"two"
                if make is pyqwest_transport:
                    trailers = response.extensions["get_trailers"]()
                    assert trailers == httpx.Headers({"x-checksum": "12"})
                else:
                    assert response.extensions["http_version"] == b"HTTP/2"
                    assert response.extensions["stream_id"] % 2 == 1
            assert guarded.app.refusals == 0
            on_route = [c for c in guarded.server.carried if c.path.startswith("/training/")]
            assert {how.http_version for how in on_route} == {"2"}

    asyncio.run(run())


@pytest.mark.parametrize("make", MAKERS)
def test_a_timeout_of_the_caller_holds_after_a_resend(
    make: Callable[[], httpx.AsyncBaseTransport],
) -> None:
    async def run() -> None:
        async with Guarded(make) as guarded:
            timeout = httpx.Timeout(5.0, read=0.2, write=0.1)
            stream = guarded.client.stream("POST", Trickle.path, content=b"x", timeout=timeout)
            async with stream as response:
                assert response.status_code == 200
                with pytest.raises(httpx.ReadTimeout):
                    await response.aread()
            assert guarded.app.refusals == 0

    asyncio.run(run())


@pytest.mark.parametrize("make", MAKERS)
def test_a_streamed_body_is_sent_as_it_is(make: Callable[[], httpx.AsyncBaseTransport]) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for number in range(100):
            yield bytes([number]) * 10_000

    async def run() -> None:
        whole = hashlib.sha256(b"".join([piece async for piece in pieces()])).hexdigest()
        async with Guarded(make) as guarded:
            guarded.let_it_end()
            # It cannot be sent twice, so a race is not survived.
            assert (await guarded.client.post(Trickle.path, content=pieces())).status_code == 404
            assert (await guarded.client.post(Trickle.path, content=pieces())).status_code == 200
            assert guarded.app.uploaded == whole

    asyncio.run(run())
