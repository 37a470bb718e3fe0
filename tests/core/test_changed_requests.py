"""Transports below the guard that change the request they are given: it is resent as it was."""

from __future__ import annotations

import asyncio
import copy
import gzip
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from testkit.fakes import (
    KEY,
    Exchange,
    FakeControlPlane,
    FakeGateway,
    gateway_404,
    ok,
    post,
)
from testkit.threads import SyncFakeTransport
from testkit.virtual_time import VirtualTimeLoop
from tinker_guard import GuardSettings, GuardTransport, SyncGuardTransport
from tinker_guard.core.routes import ROUTES
from tinker_guard.observability.providers import NOTHING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

pytestmark = pytest.mark.usefixtures("virtual_time")


class _Counted(httpx.AsyncByteStream, httpx.SyncByteStream):
    """A body whose upload is watched."""

    def __init__(self, inner: httpx.ByteStream) -> None:
        self._inner = inner

    def __iter__(self) -> Iterator[bytes]:
        yield from self._inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._inner:
            yield chunk


def move(request: httpx.Request) -> None:
    request.url = request.url.copy_with(path=f"/proxy{request.url.path}")


def pick(request: httpx.Request) -> None:
    request.url = request.url.copy_with(host="backend-7.internal")
    request.headers["Host"] = "backend-7.internal"


def sign(request: httpx.Request) -> None:
    signatures = [*request.headers.get_list("X-Signature", split_commas=True), "one"]
    request.headers["X-Signature"] = ", ".join(signatures)


def sign_anew(request: httpx.Request) -> None:
    signatures = [*request.headers.get_list("X-Signature", split_commas=True), "one"]
    request.headers = httpx.Headers({**request.headers, "X-Signature": ", ".join(signatures)})


def compress(request: httpx.Request) -> None:
    if request.method == "POST":
        assert isinstance(request.stream, httpx.ByteStream)
        codings = [*request.headers.get_list("Content-Encoding", split_commas=True), "gzip"]
        body = gzip.compress(b"".join(request.stream), mtime=0)
        request.stream = httpx.ByteStream(body)
        request.headers["Content-Encoding"] = ", ".join(codings)
        request.headers["Content-Length"] = str(len(body))


def count(request: httpx.Request) -> None:
    assert isinstance(request.stream, httpx.ByteStream)
    request.stream = _Counted(request.stream)


CHANGES = [move, pick, sign, sign_anew, compress, count]


class Changing(httpx.AsyncBaseTransport):
    """Changes each request in place before it sends it."""

    def __init__(
        self, inner: httpx.AsyncBaseTransport, change: Callable[[httpx.Request], None]
    ) -> None:
        self._inner = inner
        self._change = change

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self._change(request)
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


class SyncChanging(httpx.BaseTransport):
    """The same for a sync client."""

    def __init__(self, inner: httpx.BaseTransport, change: Callable[[httpx.Request], None]) -> None:
        self._inner = inner
        self._change = change

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self._change(request)
        return self._inner.handle_request(request)


def _play(
    change: Callable[[httpx.Request], None],
    *,
    warmup: int,
    is_sync: bool,
    extensions: dict[str, Any] | None = None,
) -> tuple[FakeGateway, FakeControlPlane, httpx.Request, httpx.Response]:
    """Send one request that meets two 404s."""
    gateway = FakeGateway()
    plane = FakeControlPlane()
    refusals = iter([gateway_404, gateway_404])

    def answer(exchange: Exchange) -> httpx.Response:
        return ok() if exchange.method == "GET" else next(refusals, ok)()

    gateway.answer = answer
    settings = GuardSettings(warmup_successes=warmup)
    request = post()
    request.extensions = copy.deepcopy(extensions or {})
    if is_sync:
        with httpx.Client(
            transport=SyncGuardTransport(
                SyncChanging(SyncFakeTransport(gateway.new_transport()), change),
                settings=settings,
                control_plane=plane,
            )
        ) as client:
            return gateway, plane, request, client.send(request)

    async def run() -> httpx.Response:
        transport = GuardTransport(
            Changing(gateway.new_transport(), change), settings=settings, control_plane=plane
        )
        async with httpx.AsyncClient(transport=transport) as client:
            return await client.send(request)

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return gateway, plane, request, runner.run(run())


@pytest.mark.parametrize("is_observed", [True, False])
@pytest.mark.parametrize("is_sync", [False, True])
@pytest.mark.parametrize("warmup", [0, 2])
@pytest.mark.parametrize("change", CHANGES)
def test_the_same_request_is_sent_again(
    change: Callable[[httpx.Request], None],
    warmup: int,
    is_sync: bool,
    is_observed: bool,
    monkeypatch: pytest.MonkeyPatch,
    spans: InMemorySpanExporter,
) -> None:
    if not is_observed:
        _unobserved(monkeypatch)
    gateway, plane, _, response = _play(change, warmup=warmup, is_sync=is_sync)
    assert response.status_code == 200
    first, *others = [each for each in gateway.exchanges if each.method == "POST"]
    assert len(others) == 2
    for other in others:
        assert (other.path, other.body) == (first.path, first.body)
        assert _without_trace(other) == _without_trace(first)
    # The question names the job, at its own gateway.
    assert {asked[1:] for asked in plane.asked} == {("acc", "job-1", "https://gateway.test")}
    assert KEY in plane.credentials[0].values()


@pytest.mark.parametrize("is_observed", [True, False])
@pytest.mark.parametrize("is_sync", [False, True])
@pytest.mark.parametrize("warmup", [0, 2])
def test_extensions_are_sent_again_as_they_were(
    warmup: int,
    is_sync: bool,
    is_observed: bool,
    monkeypatch: pytest.MonkeyPatch,
    spans: InMemorySpanExporter,
) -> None:
    sent: list[dict[str, object]] = []

    def hurry(request: httpx.Request) -> None:
        if request.method == "POST":
            sent.append(copy.deepcopy(request.extensions))
            request.extensions["timeout"]["read"] = 0.1
            request.extensions["tries"] = 1

    if not is_observed:
        _unobserved(monkeypatch)
    extensions = {"timeout": {"read": 60.0, "connect": 5.0}, "sni_hostname": "trainer.test"}
    _, _, request, response = _play(hurry, warmup=warmup, is_sync=is_sync, extensions=extensions)
    assert response.status_code == 200
    assert sent == [extensions] * 3
    if not is_observed:
        assert request.extensions["tries"] == 1


@pytest.mark.parametrize("change", CHANGES)
def test_what_the_caller_sees_of_it_is_what_it_sees_unguarded(
    change: Callable[[httpx.Request], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is not observed: a request that tells the gateway its trace is a copy."""
    _unobserved(monkeypatch)
    _, _, request, response = _play(change, warmup=0, is_sync=True)
    bare = post()
    with httpx.Client(
        transport=SyncChanging(httpx.MockTransport(lambda _: httpx.Response(200)), change)
    ) as client:
        client.send(bare)
    assert response.request is request
    assert (request.url, request.headers.raw) == (bare.url, bare.headers.raw)
    assert type(request.stream) is type(bare.stream)


def _without_trace(exchange: Exchange) -> list[tuple[bytes, bytes]]:
    return [pair for pair in exchange.headers.raw if pair[0] != b"traceparent"]


def _unobserved(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("sync_transport", "transport", "telemetry"):
        monkeypatch.setattr(f"tinker_guard.{module}.enabled", lambda: NOTHING)


def test_a_stopped_job_makes_its_own_route_cold() -> None:
    """And not that of the URL which a transport below has made of it."""
    gateway = FakeGateway(lambda e: gateway_404() if e.body else ok())
    plane = FakeControlPlane("JOB_STATE_FAILED")
    state = ROUTES.find(post().url)
    assert state is not None
    state.answered(0.0)

    async def run() -> httpx.Response:
        transport = GuardTransport(Changing(gateway.new_transport(), pick), control_plane=plane)
        async with httpx.AsyncClient(transport=transport) as client:
            return await client.send(post())

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        assert runner.run(run()).status_code == 404
    assert not state.is_warm


@pytest.mark.parametrize("is_sync", [False, True])
def test_an_answer_shows_the_trainer_wherever_its_request_was_moved(
    is_sync: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would not, were it about health."""
    _unobserved(monkeypatch)
    gateway, plane = FakeGateway(), FakeControlPlane()
    state = ROUTES.find(post().url)
    assert state is not None
    state.answered(0.0)

    def rename(request: httpx.Request) -> None:
        request.url = request.url.copy_with(path="/healthz")
        # Meanwhile another request hears that the job has stopped.
        state.stopped(0.0)

    if is_sync:
        inner = SyncChanging(SyncFakeTransport(gateway.new_transport()), rename)
        with httpx.Client(transport=SyncGuardTransport(inner, control_plane=plane)) as client:
            client.send(post())
    else:

        async def run() -> None:
            transport = GuardTransport(
                Changing(gateway.new_transport(), rename), control_plane=plane
            )
            async with httpx.AsyncClient(transport=transport) as client:
                await client.send(post())

        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            runner.run(run())
    assert state.has_shown_trainer
