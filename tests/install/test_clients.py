"""Every shape of client that the SDK or its user builds, each through a routing race."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from tinker import AdminClient, RestClient
from tinker.lib.client_connection_pool_type import ClientConnectionPoolType

from testkit.clients import httpx_client_of, transport_of
from testkit.http_server import JSON, Handler, on_a_thread
from tests.end_to_end import sdk
from tests.end_to_end.leftovers import nothing_left, port_of
from tests.end_to_end.sdk import TRANSPORTS, Gateway, connected
from tests.gateway.conftest import forward_backward_body, optim_step_body
from tinker_guard import GuardSettings, GuardTransport, install_guard
from tinker_guard.gateway import Fault, LocalGateway, Race
from tinker_guard.gateway.train import train_five_steps
from tinker_guard.gateway.wire import Reply

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from tinker_guard.gateway.faults import Transport

RACES = Fault(races=(Race("forward_backward", 2, 0.2), Race("retrieve_future", 7, 0.2)))


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def met_races(gateway: LocalGateway) -> int:
    return sum(1 for e in gateway.requests if e.answered_by == "gateway" and e.status == 404)


# -- clients on the user's own event loop -----------------------------------------------------


async def post(client: Any, operation: str, body: Any) -> Any:
    response = await client.post(f"/api/v1/{operation}", body=body, cast_to=httpx.Response)
    return response.json()


async def train_on_own_loop(client: Any) -> list[float]:
    """Train five steps without the SDK's own loop, as it would: the next before the last is known.

    Returns:
        The summed loss of each step.
    """
    session = await post(client, "create_session", {"tags": []})
    model = await post(
        client,
        "create_model",
        {
            "session_id": session["session_id"],
            "model_seq_id": 0,
            "base_model": "m",
            "lora_config": {"rank": 8},
        },
    )
    model_id, losses = model["model_id"], []
    for seq_id in range(1, 11, 2):
        forward_backward, optim_step = await asyncio.gather(
            post(client, "forward_backward", forward_backward_body(model_id, seq_id)),
            post(client, "optim_step", optim_step_body(model_id, seq_id + 1)),
        )
        result = await post(client, "retrieve_future", _request_id(forward_backward))
        losses.append(result["metrics"]["loss:sum"])
        await post(client, "retrieve_future", _request_id(optim_step))
    return losses


def _request_id(future: Any) -> dict[str, str]:
    return {"request_id": future["request_id"]}


def async_client(gateway: LocalGateway, transport: Transport = "httpx", **kwargs: Any) -> Any:
    return sdk.client(
        transport=transport, base_url=gateway.base_url, api_key=gateway.api_key, **kwargs
    )


@pytest.fixture(scope="module")
def fault_free_losses() -> list[float]:
    async def run() -> list[float]:
        async with async_client(gateway) as client:
            return await train_on_own_loop(client)

    with pytest.MonkeyPatch.context() as monkeypatch, Gateway() as gateway:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        with nothing_left(port_of(gateway)):
            return asyncio.run(run())


@pytest.mark.parametrize("is_older", [False, True], ids=["built-guarded", "built-before"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_client_on_its_own_loop(
    transport: Transport, is_older: bool, fault_free_losses: list[float]
) -> None:
    async def run() -> list[float]:
        if not is_older:
            install_guard()
        async with async_client(gateway, transport) as client:
            install_guard()
            return await train_on_own_loop(client)

    with Gateway(RACES) as gateway, nothing_left(port_of(gateway)):
        losses = asyncio.run(run())
    assert losses == fault_free_losses
    assert [work.seq_id for work in gateway.applied] == list(range(1, 11))
    assert met_races(gateway) >= 2
    assert gateway.unexpected == []


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_two_loops_at_once_on_one_route(
    transport: Transport, fault_free_losses: list[float]
) -> None:
    both_are_ready = threading.Barrier(2)
    install_guard()

    async def run() -> list[float]:
        async with async_client(gateway, transport) as client:
            both_are_ready.wait()
            return await train_on_own_loop(client)

    # Long enough for both of them to meet it.
    fault = Fault(races=(Race("forward_backward", 3, 0.5),))
    with (
        Gateway(fault) as gateway,
        nothing_left(port_of(gateway)),
        ThreadPoolExecutor(2) as pool,
    ):
        runs = [pool.submit(asyncio.run, run()) for _ in range(2)]
        losses = [running.result() for running in runs]
    assert losses == [fault_free_losses] * 2
    assert sorted(work.seq_id for work in gateway.applied) == sorted([*range(1, 11)] * 2)
    # One question of each loop within `verdict_ttl`.
    assert gateway.questions == 2


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_copies_share_one_guarded_client(
    transport: Transport, fault_free_losses: list[float]
) -> None:
    async def run() -> list[float]:
        async with async_client(gateway, transport) as client:
            copy = client.with_options(timeout=20).copy(max_retries=1)
            assert httpx_client_of(copy) is httpx_client_of(client)
            # Guarded once: another guard would ask and probe for itself.
            assert not isinstance(transport_of(copy).transport, GuardTransport)
            return await train_on_own_loop(copy)

    install_guard()
    with Gateway(RACES) as gateway, nothing_left(port_of(gateway)):
        losses = asyncio.run(run())
    assert losses == fault_free_losses
    assert met_races(gateway) >= 2


def test_a_client_that_was_handed_in(fault_free_losses: list[float]) -> None:
    async def run() -> list[float]:
        async with httpx.AsyncClient() as own, async_client(gateway, http_client=own) as client:
            return await train_on_own_loop(client)

    install_guard()
    with Gateway(RACES) as gateway, nothing_left(port_of(gateway)):
        losses = asyncio.run(run())
    assert losses == fault_free_losses
    assert met_races(gateway) >= 2


# -- holders ------------------------------------------------------------------------------------


def test_a_service_client_that_is_stuck_when_the_guard_comes() -> None:
    """Clients in the SDK's pools get new connections too, though they were built before."""
    # Whichever replica the training connection sticks to, one of these hits it.
    races = (
        Race("forward_backward", 2, 0.4, replicas=(0,)),
        Race("forward_backward", 3, 60.0, replicas=(1,)),
    )
    with Gateway(Fault(replicas=2, races=races)) as gateway, nothing_left(port_of(gateway)):
        _train_with_late_guard(gateway)
    assert [work.seq_id for work in gateway.applied] == list(range(1, 11))
    assert met_races(gateway) >= 1


def _train_with_late_guard(gateway: LocalGateway) -> None:
    with connected(gateway) as service:
        sdk.create_training_client(service)
        install_guard()
        train_five_steps(service, sdk.types)


@contextmanager
def rest_client(gateway: LocalGateway, kind: Any = RestClient) -> Iterator[Any]:
    """A client without a session, whose holder the SDK would keep open for ever."""
    client = kind(base_url=gateway.base_url, api_key=gateway.api_key)
    try:
        yield client
    finally:
        held = sdk.take_out_holder(client)
        held.run_coroutine_threadsafe(held.aclose()).result()


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    "race",
    [
        Race("client/config", 1, 0.2),
        # The first three are the warmup's probes.
        Race("get_server_capabilities", 4, 0.2),
    ],
)
def test_a_client_without_a_session(race: Race, transport: Transport) -> None:
    install_guard()
    fault = Fault(races=(race,), transport=transport)
    with Gateway(fault) as gateway, nothing_left(port_of(gateway)):
        _ask_for_capabilities(gateway)
    assert met_races(gateway) >= 1
    assert gateway.questions == 1
    assert not any(exchange.path.endswith("create_session") for exchange in gateway.requests)


def _ask_for_capabilities(gateway: LocalGateway) -> None:
    with rest_client(gateway) as client:
        capabilities = client.get_server_capabilities().result()
        assert capabilities.supported_models[0].model_name == "tinker-guard/bigram"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_shadow_holder(transport: Transport) -> None:
    """As the SDK builds one for a sampling client that another process sent."""
    install_guard()
    fault = Fault(races=(Race("session_heartbeat", 1, 0.2),), transport=transport)
    with Gateway(fault) as gateway, nothing_left(port_of(gateway)):
        _beat_from_a_shadow(gateway)
    assert met_races(gateway) >= 1
    beats = [e.status for e in gateway.requests if e.path.endswith("session_heartbeat")]
    assert beats == [404, 200]


def _beat_from_a_shadow(gateway: LocalGateway) -> None:
    async def beat() -> None:
        with shadow.aclient(ClientConnectionPoolType.SESSION) as client:
            await client.service.session_heartbeat(session_id=session, max_retries=0)

    with connected(gateway) as service:
        session = service.holder.get_session_id()
        shadow = type(service.holder).get_shadow_holder(session, service.holder.shadow_config)
        assert shadow is not service.holder
        try:
            shadow.run_coroutine_threadsafe(beat()).result()
        finally:
            shadow.run_coroutine_threadsafe(shadow.aclose()).result()


def _jwt() -> str:
    now = time.time()
    claims = json.dumps({"iat": now, "exp": now + 3600}).encode()
    return f"eyJhbGciOiJub25lIn0.{base64.urlsafe_b64encode(claims).decode().rstrip('=')}."


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_exchange_of_a_key_for_a_token(transport: Transport) -> None:
    """Has a pool of its own, and a first request of its own, before the session's."""
    fault = replace(RACES, races=(Race("auth/token", 1, 0.2), *RACES.races), transport=transport)
    gateway = Gateway(fault)
    operations = gateway.world.trainer.operations
    configure = operations["POST", "client/config"]
    operations["POST", "client/config"] = lambda call: Reply.json(
        json.loads(configure(call).content) | {"pjwt_auth_enabled": True}
    )
    operations["POST", "auth/token"] = lambda call: Reply.json({"jwt": _jwt()})
    with gateway, nothing_left(port_of(gateway)):
        # The control plane here knows the key only, not the token.
        settings = GuardSettings(
            control_plane_url=gateway.origin, control_plane_api_key=gateway.api_key
        )
        install_guard(settings)
        _train(gateway)
    assert [work.seq_id for work in gateway.applied] == list(range(1, 11))
    exchanges = [e.status for e in gateway.requests if e.path.endswith("auth/token")]
    assert exchanges == [404, 200]
    assert met_races(gateway) >= 3


def _train(gateway: LocalGateway) -> None:
    with connected(gateway) as service:
        train_five_steps(service, sdk.types)


# -- the redirect pool --------------------------------------------------------------------------


class Storage(ThreadingHTTPServer):
    """Signed storage: notes what it is asked, and needs no key."""

    def __init__(self, status: int) -> None:
        super().__init__(("127.0.0.1", 0), _Signed)
        self.status = status
        self.heard: list[tuple[str, frozenset[str]]] = []
        self.url = f"http://127.0.0.1:{self.server_port}/signed?signature=1"


class _Signed(Handler):
    server: Storage

    def do_GET(self) -> None:
        names = frozenset(name.lower() for name in self.headers)
        self.server.heard.append((self.path, names))
        self.reply(self.server.status, b'{"entries": []}', JSON)


class RedirectingGateway(Gateway):
    """Its trainer sends whoever asks for the audit log to signed storage."""

    def __init__(self, fault: Fault, storage: Storage) -> None:
        super().__init__(fault)
        redirect = Reply(302, headers=(("location", storage.url),))
        self.world.trainer.operations["GET", "audit"] = lambda _: redirect


def audit(gateway: LocalGateway) -> Any:
    with rest_client(gateway, AdminClient) as client:
        return client.get_audit_log().result()


def heard_without_a_guard() -> list[tuple[str, frozenset[str]]]:
    with (
        on_a_thread(Storage(200)) as storage,
        RedirectingGateway(Fault(), storage) as gateway,
        nothing_left(port_of(gateway)),
    ):
        audit(gateway)
        return storage.heard


def test_a_redirect_to_storage(spans: InMemorySpanExporter) -> None:
    plain = heard_without_a_guard()
    install_guard()
    fault = Fault(races=(Race("audit", 1, 0.2),))
    with (
        on_a_thread(Storage(200)) as storage,
        RedirectingGateway(fault, storage) as gateway,
        nothing_left(port_of(gateway)),
    ):
        log = audit(gateway)
    assert log.entries == []
    assert [e.status for e in gateway.requests if e.path.endswith("audit")] == [404, 302]
    # Storage hears what it hears without the guard, once: no probe, no other header but the one
    # that tells the trace, as it is recorded.
    assert [(target, names - {"traceparent"}) for target, names in storage.heard] == plain
    assert len(plain) == 1
    finished = spans.get_finished_spans()
    assert storage.server_port in [(span.attributes or {}).get("server.port") for span in finished]
    assert "signature" not in "".join(span.to_json() for span in finished)


def test_a_404_of_storage_is_nobody_elses() -> None:
    install_guard()
    with (
        on_a_thread(Storage(404)) as storage,
        RedirectingGateway(Fault(), storage) as gateway,
        nothing_left(port_of(gateway)),
        pytest.raises(sdk.NotFoundError),
    ):
        audit(gateway)
    assert len(storage.heard) == 1
    assert gateway.questions == 0
