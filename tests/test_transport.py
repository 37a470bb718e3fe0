from __future__ import annotations

import asyncio
import copy
import pickle
from typing import TYPE_CHECKING, Any, Self

import httpx
import pytest

import tinker_guard
from testkit.fakes import (
    BASE,
    GATEWAY_BODY,
    KEY,
    ORIGIN,
    FakeControlPlane,
    FakeGateway,
    TrackedStream,
    gateway_404,
    guard,
    known_from,
    loop_time,
    ok,
    post,
    send,
)
from tinker_guard import GuardSettings, GuardTransport
from tinker_guard.observability.providers import NOTHING
from tinker_guard.settings import InvalidSettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

pytestmark = pytest.mark.anyio


def test_the_public_names_are_these_and_no_others() -> None:
    assert set(dir(tinker_guard)) == {
        "FAULTS",
        "SAMPLING_FAULTS",
        "AlreadyInstalledError",
        "Applied",
        "ControlPlane",
        "ControlPlaneError",
        "Exchange",
        "Fault",
        "GuardSettings",
        "GuardStatus",
        "GuardTransport",
        "SyncGuardTransport",
        "InvalidSettingsError",
        "JobStop",
        "LocalGateway",
        "LostReply",
        "Race",
        "Readiness",
        "RouteControlPlane",
        "Sampled",
        "TinkerGuardInstrumentor",
        "UnguardedError",
        "UnsupportedSdkError",
        "Verdict",
        "__version__",
        "install_guard",
        "start_export",
        "status",
        "uninstall_guard",
        "until_routable",
        "wait_until_routable",
    }
    assert all(hasattr(tinker_guard, name) for name in dir(tinker_guard))


def test_the_settings_can_be_read_and_not_set() -> None:
    transport = guard(FakeGateway(), retry_timeout=7)
    assert transport.settings.retry_timeout == 7
    other = GuardSettings(retry_timeout=8)
    transport.configure(other, None)
    assert transport.settings is other
    with pytest.raises(AttributeError):
        transport.settings = other  # type: ignore[misc]


async def test_an_untouched_answer_is_the_inner_transports_own() -> None:
    response = ok()
    gateway = FakeGateway(lambda _: response)
    transport = guard(gateway, warmup_successes=0)
    stream = response.stream
    request = post()
    assert await transport.handle_async_request(request) is response
    assert response.stream is stream
    assert gateway.exchanges[0].extensions == request.extensions


async def test_a_streamed_answer_is_not_read_ahead() -> None:
    stream = TrackedStream([b"one", b"two"])
    gateway = FakeGateway(lambda _: httpx.Response(200, stream=stream))
    async with (
        httpx.AsyncClient(transport=guard(gateway, warmup_successes=0)) as client,
        client.stream("GET", f"{BASE}/api/v1/stream") as response,
    ):
        assert not stream.is_closed
        assert [chunk async for chunk in response.aiter_raw()] == [b"one", b"two"]
    assert stream.is_closed


async def test_through_a_client_a_race_is_invisible() -> None:
    gateway = FakeGateway(known_from(2.0))
    async with httpx.AsyncClient(
        transport=guard(gateway), base_url=BASE, headers={"X-Api-Key": KEY}
    ) as client:
        response = await client.post("/api/v1/optim_step", json={"seq_id": 2})
    assert response.json() == {"ok": True}
    assert response.request.url.path.endswith("/optim_step")
    assert all(transport.is_closed for transport in gateway.transports)


async def test_redirects_stay_the_clients_business() -> None:
    def answer(exchange: Any) -> httpx.Response:
        if exchange.path.endswith("/weights"):
            return httpx.Response(302, headers={"location": "https://storage.test/signed?s=1"})
        return httpx.Response(404) if exchange.path == "/signed" else ok()

    gateway = FakeGateway(answer)
    async with httpx.AsyncClient(transport=guard(gateway), follow_redirects=True) as client:
        response = await client.get(f"{BASE}/api/v1/weights")
    assert response.status_code == 404
    assert len(gateway.sent) == 2


async def test_a_404_on_no_trainer_route_is_the_inner_transports_own() -> None:
    response = gateway_404()
    stream = response.stream
    transport = guard(FakeGateway(lambda _: response))
    request = httpx.Request("GET", "https://tinker.test/services/prod/api/v1/x")
    assert await transport.handle_async_request(request) is response
    assert response.stream is stream


async def test_switched_off_by_settings(spans: InMemorySpanExporter) -> None:
    gateway = FakeGateway(lambda _: gateway_404())
    response = await guard(gateway, enabled=False).handle_async_request(post())
    assert response.status_code == 404
    assert len(gateway.exchanges) == 1
    assert spans.get_finished_spans() == ()


async def test_released() -> None:
    gateway = FakeGateway(lambda _: gateway_404())
    transport = guard(gateway)
    assert transport.release() is gateway.transports[0]
    await transport.handle_async_request(post())
    assert len(gateway.exchanges) == 1


async def test_where_only_routes_are_of_interest_the_rest_is_unseen(
    spans: InMemorySpanExporter,
) -> None:
    for is_seen in (True, False):
        gateway = FakeGateway(lambda _: gateway_404())
        transport = GuardTransport(gateway.new_transport(), routes_only=not is_seen)
        request = httpx.Request("GET", "https://elsewhere.test/api/v1/healthz")
        response = await transport.handle_async_request(request)
        assert response.status_code == 404
        assert bool(spans.get_finished_spans()) is is_seen
        spans.clear()


async def test_a_refusal_of_the_gate_is_a_response_like_any_other() -> None:
    def answer(_: Any) -> httpx.Response:
        response = gateway_404()
        response.headers["set-cookie"] = "a=b"
        return response

    gateway = FakeGateway(answer)
    transport = GuardTransport(gateway.new_transport(), control_plane=FakeControlPlane(None))
    async with (
        httpx.AsyncClient(transport=transport) as client,
        client.stream("GET", f"{BASE}/api/v1/x") as response,
    ):
        assert b"".join([chunk async for chunk in response.aiter_raw()]) == GATEWAY_BODY
    assert response.elapsed.total_seconds() >= 0
    assert "set-cookie" not in response.headers


async def test_entering_and_leaving_reaches_the_transport() -> None:
    gateway = FakeGateway()
    transport = guard(gateway)
    async with transport as entered:
        assert entered is transport
        assert gateway.transports[0].is_entered
    assert gateway.transports[0].is_closed


class EnteredTransport(httpx.AsyncBaseTransport):
    """Opens in `__aenter__` and closes in `__aexit__` alone, as its own client would have it."""

    def __init__(self) -> None:
        self.calls: list[object] = []

    async def __aenter__(self) -> Self:
        self.calls.append("entered")
        return self

    async def __aexit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        self.calls.append(kind)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        assert self.calls == ["entered"]
        return ok()


@pytest.mark.parametrize("error", [None, KeyError])
async def test_a_client_that_is_left_leaves_the_transport_in_the_same_way(
    error: type[Exception] | None,
) -> None:
    inner = EnteredTransport()

    async def run() -> None:
        async with httpx.AsyncClient(transport=GuardTransport(inner)) as client:
            await client.get(f"{BASE}/api/v1/x")
            if error is not None:
                raise error

    if error is None:
        await run()
    else:
        with pytest.raises(error):
            await run()
    assert inner.calls == ["entered", error]


async def test_a_guard_of_ones_own_class_is_closed_by_its_own_method() -> None:
    class Own(GuardTransport):
        is_closed = False

        async def aclose(self) -> None:
            self.is_closed = True
            await super().aclose()

    gateway = FakeGateway()
    transport = Own(gateway.new_transport())
    async with transport:
        pass
    assert transport.is_closed
    assert gateway.transports[0].is_closed


@pytest.mark.parametrize("is_renewable", [True, False])
@pytest.mark.parametrize("is_warm", [True, False])
async def test_closing_ends_what_waits(*, is_renewable: bool, is_warm: bool) -> None:
    is_lost = not is_warm
    gateway = FakeGateway(lambda _: gateway_404() if is_lost else ok())
    transport = GuardTransport(
        gateway.new_transport(),
        control_plane=FakeControlPlane(),
        new_transport=gateway.new_transport if is_renewable else None,
    )
    if is_warm:
        await send(transport)
        is_lost = True
    waiting = asyncio.create_task(send(transport))
    await asyncio.sleep(1)
    sent = len(gateway.exchanges)
    closed_at = loop_time()
    await transport.aclose()
    with pytest.raises(httpx.TransportError, match="closed"):
        await waiting
    assert len(gateway.exchanges) == sent
    assert loop_time() - closed_at <= GuardSettings().backoff_max
    assert all(each.is_closed for each in gateway.transports)


async def test_a_404_that_comes_after_the_closing_is_not_waited_with() -> None:
    gateway = FakeGateway()
    transport = guard(gateway, FakeControlPlane(), warmup_successes=0)
    await send(transport)

    async def close_and_refuse() -> httpx.Response:
        await transport.aclose()
        return gateway_404()

    gateway.answer = lambda _: close_and_refuse()
    with pytest.raises(httpx.TransportError, match="closed"):
        await send(transport)
    assert len(gateway.exchanges) == 2
    assert loop_time() == 0.0
    assert all(each.is_closed for each in gateway.transports)


@pytest.mark.parametrize(
    "moved", [copy.copy, copy.deepcopy, lambda transport: pickle.loads(pickle.dumps(transport))]
)
async def test_a_copy_of_a_closed_transport_serves_the_next_client(
    moved: Callable[[GuardTransport], GuardTransport],
) -> None:
    transport = GuardTransport(ReusableTransport(), new_transport=ReusableTransport)
    await transport.aclose()
    assert (await send(moved(transport))).status_code == 200


async def test_a_closed_transport_serves_the_next_client() -> None:
    """As httpx's own do: programs have one transport, and a client for each of their tasks."""
    pool = ReusableTransport()
    transport = GuardTransport(
        pool, control_plane=FakeControlPlane(), new_transport=ReusableTransport
    )
    for number in range(3):
        async with httpx.AsyncClient(transport=transport) as client:
            # A race, so that the first transport is replaced.
            pool.not_found = 1
            assert (await client.get(f"{BASE}/api/v1/x")).status_code == 200
        assert pool.closed == number + 1


class ReusableTransport(httpx.AsyncBaseTransport):
    def __init__(self) -> None:
        self.not_found = self.closed = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.not_found -= 1
        return gateway_404() if self.not_found >= 0 else ok()

    async def aclose(self) -> None:
        self.closed += 1


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_GUARD_VERDICT_TTL", "soon")
    with pytest.raises(InvalidSettingsError, match="TINKER_GUARD_VERDICT_TTL"):
        GuardTransport(FakeGateway().new_transport())


@pytest.mark.parametrize("show", [repr, str])
def test_nothing_secret_is_shown(show: Callable[[object], str]) -> None:
    transport = guard(FakeGateway(), control_plane_api_key="fw-secret", control_plane_url=ORIGIN)
    assert "fw-secret" not in show(transport)


@pytest.mark.parametrize(
    ("broken", "place", "status_code"),
    [
        ("tinker_guard.core.routes.RouteTable.find", "reading the route", 200),
        ("tinker_guard.core.recovery.read_prefix", "the recovery", 404),
        ("tinker_guard.transport.GuardedRequest", "looking after a request", 404),
        ("tinker_guard.transport.GuardedRequest", "looking after a request", 200),
    ],
)
@pytest.mark.meets_fault
async def test_a_fault_of_its_own_leaves_what_there_would_be_without_it(
    broken: str,
    place: str,
    status_code: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    gateway = FakeGateway(lambda _: httpx.Response(status_code, text="as it came"))
    transport = guard(gateway, warmup_successes=0)
    monkeypatch.setattr(broken, fail)
    response = await transport.handle_async_request(post())
    assert (response.status_code, response.text) == (status_code, "as it came")
    assert len(gateway.exchanges) == 1
    assert f"a fault of its own in {place}" in caplog.text


async def test_the_transport_that_it_sends_on_is_shown() -> None:
    gateway = FakeGateway(lambda e: gateway_404() if e.connection == 0 else ok())
    transport = guard(gateway, warmup_successes=0)
    assert transport.transport is gateway.transports[0]
    await transport.handle_async_request(post())
    assert transport.transport is not gateway.transports[0]


@pytest.mark.parametrize("answers", [[200], [404, 200], [500]])
@pytest.mark.parametrize("is_on_route", [True, False])
async def test_without_a_provider_a_warm_route_is_guarded_all_the_same(
    answers: list[int], is_on_route: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("transport", "telemetry"):
        monkeypatch.setattr(f"tinker_guard.{module}.enabled", lambda: NOTHING)
    gateway = FakeGateway()
    transport = guard(gateway, warmup_successes=1)
    await transport.handle_async_request(post())
    made = {200: ok(), 404: gateway_404(), 500: httpx.Response(500)}
    left = [made[status] for status in answers]
    gateway.answer = lambda e: ok() if e.is_probe else left.pop(0)
    request = post() if is_on_route else httpx.Request("POST", "https://gateway.test/elsewhere")
    response = await transport.handle_async_request(request)
    assert response.status_code == (answers[-1] if is_on_route else answers[0])


@pytest.mark.meets_fault
def test_without_asyncio_a_404_passes_and_one_line_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As under trio, which httpx supports too."""

    class Refusing(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            return httpx.Response(404)

    transport = GuardTransport(Refusing(), settings=GuardSettings(warmup_successes=0))
    for _ in range(2):
        with pytest.raises(StopIteration) as ended:
            transport.handle_async_request(post()).send(None)
        assert ended.value.value.status_code == 404
    (line,) = caplog.messages
    assert line.startswith("requests without asyncio go on unguarded")
