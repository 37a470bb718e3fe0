"""The guard behind a proxy: what the SDK sends through it, the guard does too, and nothing else.

The gateway has a name that only the proxy can resolve, so that nothing can go around it.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from testkit.relay import ForwardProxy
from tests.end_to_end import sdk
from tests.end_to_end.leftovers import nothing_left, port_of
from tests.end_to_end.sdk import TRANSPORTS, Gateway, connected
from tests.end_to_end.tls import TlsGateway, trust
from tinker_guard import GuardSettings, GuardTransport, install_guard
from tinker_guard.gateway import Fault, LocalGateway, Race
from tinker_guard.gateway.train import train_five_steps
from tinker_guard.waiting import Readiness, wait_until_routable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tinker_guard.gateway.faults import Transport

RACES = Fault(races=(Race("forward_backward", 2, 0.2), Race("retrieve_future", 7, 0.2)))


class Hidden(LocalGateway):
    """One that the proxy alone can reach, by its name."""

    @property
    def origin(self) -> str:
        return super().origin.replace("127.0.0.1", "trainer.test")


class HiddenGateway(Hidden, Gateway):
    """Over http."""


class HiddenTlsGateway(Hidden, TlsGateway):
    """Over https."""


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    trust(monkeypatch, tmp_path)


@pytest.fixture
def proxy() -> Iterator[ForwardProxy]:
    with ForwardProxy() as proxy:
        yield proxy


@pytest.fixture(scope="module")
def fault_free_losses() -> list[float]:
    with Gateway() as gateway, pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        with nothing_left(port_of(gateway)):
            return train(gateway)


def train(gateway: LocalGateway) -> list[float]:
    with connected(gateway) as client:
        return train_five_steps(client, sdk.types)


def peers_of(gateway: LocalGateway) -> set[int]:
    """The ports that requests came from."""
    return {peer[1] for peer in gateway.world.connections if isinstance(peer, tuple)}


def train_right(gateway: LocalGateway, proxy: ForwardProxy, fault_free: list[float]) -> None:
    """Train through a race as if there were none, and leave no connection behind."""
    with nothing_left(port_of(gateway), proxy.port):
        losses = train(gateway)
    assert losses == fault_free
    assert [work.seq_id for work in gateway.applied] == list(range(1, 11))
    assert gateway.unexpected == []
    assert any(e.answered_by == "gateway" and e.status == 404 for e in gateway.requests)
    assert gateway.questions >= 1


@pytest.mark.parametrize(
    ("variable", "make", "transport"),
    [
        ("HTTP_PROXY", HiddenGateway, "httpx"),
        ("HTTP_PROXY", HiddenGateway, "pyqwest"),
        ("HTTPS_PROXY", HiddenTlsGateway, "httpx"),
        ("HTTPS_PROXY", HiddenTlsGateway, "pyqwest"),
        ("ALL_PROXY", HiddenTlsGateway, "httpx"),
        ("ALL_PROXY", HiddenGateway, "pyqwest"),
    ],
)
def test_everything_goes_through_the_proxy(
    transport: Transport,
    variable: str,
    make: type[HiddenGateway | HiddenTlsGateway],
    proxy: ForwardProxy,
    monkeypatch: pytest.MonkeyPatch,
    fault_free_losses: list[float],
) -> None:
    monkeypatch.setenv(variable, proxy.url)
    install_guard()
    with make(replace(RACES, transport=transport)) as gateway:
        train_right(gateway, proxy, fault_free_losses)
    # Requests, probes, resends and questions alike.
    assert proxy.hosts == {"trainer.test"}
    assert peers_of(gateway) <= {forwarded.source_port for forwarded in proxy.forwarded}
    if isinstance(gateway, TlsGateway):
        assert {forwarded.method for forwarded in proxy.forwarded} == {"CONNECT"}
        on_route = [how for how in gateway.carried if how.path.startswith("/training/")]
        assert {how.http_version for how in on_route} == {"2"}
    else:
        assert len(proxy.forwarded) == len(gateway.requests)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_resend_takes_a_new_connection_of_the_proxy(
    transport: Transport,
    proxy: ForwardProxy,
    monkeypatch: pytest.MonkeyPatch,
    fault_free_losses: list[float],
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    install_guard()
    # Whichever replica the training connection sticks to, one of these hits it.
    races = (
        Race("forward_backward", 2, 0.4, replicas=(0,)),
        Race("forward_backward", 3, 60.0, replicas=(1,)),
    )
    with HiddenTlsGateway(Fault(replicas=2, races=races, transport=transport)) as gateway:
        train_right(gateway, proxy, fault_free_losses)
    assert peers_of(gateway) <= {forwarded.source_port for forwarded in proxy.forwarded}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_host_that_needs_no_proxy_is_asked_directly(
    transport: Transport,
    proxy: ForwardProxy,
    monkeypatch: pytest.MonkeyPatch,
    fault_free_losses: list[float],
) -> None:
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    install_guard()
    with Gateway(replace(RACES, transport=transport)) as gateway:
        train_right(gateway, proxy, fault_free_losses)
    assert proxy.forwarded == []


@pytest.mark.parametrize("host", ["control-plane.test", "127.0.0.1"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_control_plane_has_its_own_way(
    transport: Transport,
    host: str,
    proxy: ForwardProxy,
    monkeypatch: pytest.MonkeyPatch,
    fault_free_losses: list[float],
) -> None:
    """Through the proxy while the trainer is near, and the other way round."""
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    is_far = host == "control-plane.test"
    with (Gateway if is_far else HiddenGateway)(replace(RACES, transport=transport)) as gateway:
        port = port_of(gateway)
        install_guard(GuardSettings(control_plane_url=f"http://{host}:{port}"))
        train_right(gateway, proxy, fault_free_losses)
    asked, of_trainer = gateway.questions, len(gateway.requests) - gateway.questions
    assert proxy.hosts == {host if is_far else "trainer.test"}
    assert len(proxy.forwarded) == (asked if is_far else of_trainer)


@pytest.mark.parametrize("make", [HiddenGateway, HiddenTlsGateway])
def test_a_client_with_a_proxy_of_its_own(
    make: type[HiddenGateway | HiddenTlsGateway], proxy: ForwardProxy
) -> None:
    """No variable names the proxy here: the client was built with it."""
    install_guard()

    async def run() -> Any:
        async with sdk.client(
            base_url=gateway.base_url,
            api_key=gateway.api_key,
            http_client=httpx.AsyncClient(proxy=proxy.url),
        ) as client:
            return await client.get("/api/v1/healthz", cast_to=httpx.Response)

    with (
        make(Fault(races=(Race("healthz", 1, 0.2),))) as gateway,
        nothing_left(port_of(gateway), proxy.port),
    ):
        response = asyncio.run(run())
    assert response.status_code == 200
    assert gateway.questions == 1
    assert proxy.hosts == {"trainer.test"}
    assert peers_of(gateway) <= {forwarded.source_port for forwarded in proxy.forwarded}


@pytest.mark.parametrize("make", [HiddenGateway, HiddenTlsGateway])
def test_a_transport_with_a_proxy_of_its_own(
    make: type[HiddenGateway | HiddenTlsGateway], proxy: ForwardProxy
) -> None:
    def build() -> httpx.AsyncBaseTransport:
        return httpx.AsyncHTTPTransport(proxy=proxy.url)

    async def run() -> httpx.Response:
        async with httpx.AsyncClient(
            transport=GuardTransport(build(), new_transport=build),
            base_url=gateway.base_url,
            headers={"X-Api-Key": gateway.api_key},
        ) as client:
            return await client.get("/api/v1/healthz")

    with (
        make(Fault(races=(Race("healthz", 1, 0.2),))) as gateway,
        nothing_left(port_of(gateway), proxy.port),
    ):
        response = asyncio.run(run())
    assert response.status_code == 200
    assert gateway.questions == 1
    assert peers_of(gateway) <= {forwarded.source_port for forwarded in proxy.forwarded}


@pytest.mark.parametrize("make", [HiddenGateway, HiddenTlsGateway])
def test_waiting_without_a_run(
    make: type[HiddenGateway | HiddenTlsGateway],
    proxy: ForwardProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy.url)
    fault = Fault(route_known_after=(0.2,))
    with make(fault) as gateway, nothing_left(port_of(gateway), proxy.port):
        readiness = wait_until_routable(gateway.base_url, api_key=gateway.api_key, timeout=10)
    assert readiness is Readiness.READY
    assert gateway.questions == 1
    assert peers_of(gateway) <= {forwarded.source_port for forwarded in proxy.forwarded}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_question_takes_no_way_on_which_redirects_are_followed(
    transport: Transport, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pyqwest follows them by itself, and takes the key along."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # A short budget: without an answer, the guard looks for the trainer to the end of it.
    install_guard(GuardSettings(retry_timeout=0.5))

    async def run() -> None:
        async with sdk.client(
            transport=transport, base_url=gateway.base_url, api_key=gateway.api_key
        ) as client:
            await client.get("/api/v1/healthz", cast_to=httpx.Response)

    fault = Fault(races=(Race("healthz", 1, 60.0),), control_plane="redirect")
    with (
        Gateway(fault) as gateway,
        nothing_left(port_of(gateway)),
        pytest.raises(sdk.NotFoundError),
    ):
        asyncio.run(run())
    assert "a redirect (302), which is not followed" in caplog.text
