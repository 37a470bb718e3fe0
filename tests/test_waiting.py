from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.fakes import (
    BASE,
    KEY,
    Exchange,
    FakeControlPlane,
    FakeGateway,
    gateway_404,
    known_from,
    loop_time,
    plain_404,
)
from tests.local_server import serving
from tinker_guard import GuardSettings
from tinker_guard.route import ROUTES
from tinker_guard.waiting import Readiness, until_routable, wait_until_routable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.anyio


async def wait(
    answer: Callable[[Exchange], httpx.Response], plane: FakeControlPlane, **more: Any
) -> Readiness:
    gateway = FakeGateway(answer)
    try:
        return await until_routable(
            BASE,
            api_key=KEY,
            control_plane=plane,
            new_transport=gateway.new_transport,
            settings=GuardSettings(),
            **more,
        )
    finally:
        assert all(transport.is_closed for transport in gateway.transports)
        assert {probe.headers["x-api-key"] for probe in gateway.exchanges} == {KEY}


async def test_ready_once_three_probes_got_through() -> None:
    assert await wait(known_from(20.0), FakeControlPlane("JOB_STATE_CREATING")) is Readiness.READY
    assert 20.0 <= loop_time() <= 23.0


async def test_timed_out() -> None:
    answer = await wait(lambda _: gateway_404(), FakeControlPlane(), timeout=10)
    assert answer is Readiness.TIMED_OUT
    assert 8.0 < loop_time() < 10.0


@pytest.mark.parametrize("state", ["JOB_STATE_FAILED", None])
async def test_job_gone(state: str | None) -> None:
    answer = await wait(lambda _: gateway_404(), FakeControlPlane(state))
    assert (answer, loop_time()) == (Readiness.JOB_GONE, 0.0)


def _refused(_: Exchange) -> httpx.Response:
    raise httpx.ConnectError("refused")


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (_refused, "JOB_STATE_RUNNING"),
        (lambda _: gateway_404(), OSError()),
        (lambda _: plain_404(), "JOB_STATE_RUNNING"),
    ],
)
async def test_unverifiable(
    answer: Callable[[Exchange], httpx.Response], state: str | Exception
) -> None:
    assert await wait(answer, FakeControlPlane(state)) is Readiness.UNVERIFIABLE


async def test_it_leaves_no_knowledge_behind() -> None:
    await wait(known_from(0.0), FakeControlPlane())
    state = ROUTES.find(httpx.URL(f"{BASE}/api"))
    assert state is not None
    assert not state.is_warm


@pytest.mark.parametrize("url", ["https://tinker.test/services", "nonsense"])
def test_a_url_on_no_trainer_route_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"no trainer route; it should look like https://HOST/tr"):
        wait_until_routable(url)


def test_what_is_no_url_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^this is no URL$"):
        wait_until_routable("http://x:port/")


@pytest.mark.parametrize("url", [BASE, f"{BASE}/"])
async def test_by_the_same_rule_as_a_guarded_runs_warmup(url: str) -> None:
    gateway = FakeGateway()
    assert await until_routable(url, new_transport=gateway.new_transport) is Readiness.READY
    assert [probe.connection for probe in gateway.probes] == [0, 1, 2]
    assert not any("x-api-key" in probe.headers for probe in gateway.probes)


async def test_where_a_run_would_not_warm_up_one_probe_is_enough() -> None:
    gateway, settings = FakeGateway(), GuardSettings(warmup_successes=0)
    ready = await until_routable(BASE, settings=settings, new_transport=gateway.new_transport)
    assert (ready, len(gateway.probes)) == (Readiness.READY, 1)


def test_without_an_event_loop_it_waits_in_the_same_way() -> None:
    gateway, plane = FakeGateway(lambda _: gateway_404()), FakeControlPlane()
    readiness = wait_until_routable(
        BASE,
        api_key=KEY,
        timeout=0,
        settings=GuardSettings(warmup_successes=2),
        control_plane=plane,
        new_transport=gateway.new_transport,
    )
    assert readiness is Readiness.TIMED_OUT
    assert len(gateway.probes) == 2
    assert plane.credentials == [{"x-api-key": KEY}]


@pytest.mark.parametrize("is_tls", [False, True])
def test_by_itself_it_sends_as_a_client_does(
    is_tls: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    if not is_tls:
        monkeypatch.delenv("SSL_CERT_FILE")
    clients: list[httpx.AsyncClient] = []

    class Client(httpx.AsyncClient):
        def __init__(self, **more: Any) -> None:
            super().__init__(**more)
            clients.append(self)

    monkeypatch.setattr(httpx, "AsyncClient", Client)
    with serving(tmp_path if is_tls else None) as server:
        url = f"{server.origin}/training/v1/rlorTrainerJobs/acc/job-1"
        settings = GuardSettings(backoff_initial=0.01)
        assert wait_until_routable(url, api_key=KEY, settings=settings) is Readiness.READY
        assert server.keys == {KEY}
    assert len(clients) > 3
    assert all(client.is_closed for client in clients)


def test_a_gateway_that_nobody_vouches_for_gets_no_key(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        url = f"{server.origin}/training/v1/rlorTrainerJobs/acc/job-1"
        assert wait_until_routable(url, api_key=KEY) is Readiness.UNVERIFIABLE
        assert server.keys == set()
