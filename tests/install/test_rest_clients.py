"""The plain httpx clients of Fireworks' SDK, guarded on trainer routes.

Runs against a stand-in of the SDK's shape, and against fireworks-ai where that is installed.
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
import sys
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from testkit.fakes import BASE, FakeControlPlane, FakeGateway, gateway_404, known_from, ok
from testkit.rest_clients import (
    IS_REAL,
    MODULE,
    REST_CLIENT,
    async_client_of,
    deployment_manager,
    forget_how_it_was_built,
    get,
    is_healthy,
    new_holder,
    not_imported_yet,
    put_async_client,
    put_sync_client,
    rest_module,
    set_account,
    sync_client_of,
    trainer_manager,
    write_stand_in,
)
from testkit.threads import SyncFakeTransport, VirtualTime
from testkit.virtual_time import VirtualTimeLoop
from tests.end_to_end import sdk
from tinker_guard import (
    GuardSettings,
    GuardTransport,
    LocalGateway,
    SyncGuardTransport,
    UnguardedError,
    install_guard,
    status,
    uninstall_guard,
)
from tinker_guard.cli.doctor import Finding, Status
from tinker_guard.cli.doctor.sdks import check_rest_clients, check_unguarded
from tinker_guard.gateway import Fault, Race
from tinker_guard.install import unattended
from tinker_guard.install.clients import transports_of
from tinker_guard.install.sdks import REST_CLIENTS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

(REST,) = REST_CLIENTS
COLD = GuardSettings(warmup_successes=2, warmup_timeout=20.0, retry_timeout=10.0)
WARM = GuardSettings(warmup_successes=0)


@pytest.fixture(autouse=True)
def fireworks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The SDK, not imported yet; where the stand-in is, if it is one."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    if not IS_REAL:
        write_stand_in(tmp_path)
        monkeypatch.syspath_prepend(tmp_path)
    with not_imported_yet():
        yield tmp_path
        uninstall_guard()


def guards(client: Any) -> list[bool]:
    kinds = GuardTransport | SyncGuardTransport
    return [isinstance(transport, kinds) for _, transport in transports_of(client)]


def spans_to_fakes(spans: InMemorySpanExporter) -> list[ReadableSpan]:
    """Not those of an SDK that an earlier test has left to its own devices, on this machine."""
    fakes = ("api.test", httpx.URL(BASE).host)
    return [
        span
        for span in spans.get_finished_spans()
        if (span.attributes or {}).get("server.address") in fakes
    ]


def sync_client(gateway: FakeGateway) -> httpx.Client:
    return httpx.Client(transport=SyncFakeTransport(gateway.new_transport()))


# -- which clients -------------------------------------------------------------------------------

STEPS = ("import", "build", "install")
ORDERS = [
    order for order in itertools.permutations(STEPS) if order.index("import") < order.index("build")
]


@pytest.mark.parametrize("order", ORDERS, ids=" ".join)
def test_present_and_later_clients_are_guarded_in_any_order(order: tuple[str, ...]) -> None:
    holder: Any = None
    for step in order:
        if step == "import":
            rest_module()
        elif step == "build":
            holder = new_holder()
        else:
            install_guard()
    client = sync_client_of(holder)
    assert type(client) is httpx.Client
    assert guards(client) == [True]
    assert isinstance(transports_of(client)[0][1], SyncGuardTransport)
    uninstall_guard()
    assert guards(client) == [False]
    assert type(transports_of(client)[0][1]) is httpx.HTTPTransport
    assert sync_client_of(holder) is client
    assert guards(sync_client_of(new_holder())) == [False]
    assert not {name for name, _ in REST.builders} & set(vars(type(holder)))
    # And in again.
    install_guard()
    assert guards(sync_client_of(holder)) == [True]


@pytest.mark.parametrize("is_older", [False, True], ids=["built-guarded", "built-before"])
def test_the_async_client_is_guarded_as_it_is_built_anew_for_each_loop(is_older: bool) -> None:
    holder = new_holder()
    if is_older:
        first = asyncio.run(async_client_of(holder))
        assert guards(first) == [False]
    install_guard()
    clients = [asyncio.run(async_client_of(holder)) for _ in range(2)]
    assert len({id(client) for client in clients}) == 2
    for client in clients:
        assert isinstance(transports_of(client)[0][1], GuardTransport)
    uninstall_guard()
    assert guards(clients[-1]) == [False]


def test_nothing_is_imported_for_it() -> None:
    install_guard()
    assert status().rest_clients["fireworks-ai"].what == "guarded when imported"
    assert not REST.is_imported()


def test_a_module_that_is_imported_after_uninstalling_is_left_alone() -> None:
    install_guard()
    uninstall_guard()
    assert guards(sync_client_of(new_holder())) == [False]


def test_proxies_are_guarded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    install_guard()
    assert guards(sync_client_of(new_holder())) == [True, True]


def test_other_settings_reach_guards_that_are_there() -> None:
    install_guard()
    holder = new_holder()
    ((_, guard),) = transports_of(sync_client_of(holder))
    install_guard(GuardSettings(retry_timeout=7), replace=True)
    assert isinstance(guard, SyncGuardTransport)
    assert guard.settings.retry_timeout == 7


def test_unattended_they_are_guarded_without_the_rest_of_the_sdk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert {rest.module for rest in REST_CLIENTS} == set(unattended.REST_MODULES)
    # The SDK of the other tests has been imported, so that the guard would come at once.
    monkeypatch.setattr(unattended, "PACKAGES", ())
    unattended.install_when_needed()
    assert not status().is_installed
    rest_module()
    assert status().is_installed
    assert guards(sync_client_of(new_holder())) == [True]


# -- what the guard does there -------------------------------------------------------------------


def test_a_false_404_of_a_health_check_is_waited_out(virtual_time: VirtualTime) -> None:
    gateway = FakeGateway(known_from(3.0))
    manager = trainer_manager("https://gateway.test", "fw-key")
    put_sync_client(manager, sync_client(gateway))
    install_guard(COLD, control_plane=FakeControlPlane())
    assert is_healthy(manager, BASE)
    assert 3.0 <= virtual_time.now <= 4.0
    assert len(gateway.sent) == 1


def test_a_health_check_that_polls_has_its_waits_once(virtual_time: VirtualTime) -> None:
    """The SDK asks every few seconds: each time a whole budget would be a multiple of its own."""
    gateway = FakeGateway(lambda _: ok() if virtual_time.now >= 60.0 else gateway_404())
    manager = trainer_manager("https://gateway.test", "fw-key")
    put_sync_client(manager, sync_client(gateway))
    install_guard(COLD, control_plane=FakeControlPlane())
    assert not is_healthy(manager, BASE)
    assert virtual_time.now == COLD.warmup_timeout
    for _ in range(5):
        before = virtual_time.now
        assert not is_healthy(manager, BASE)
        assert virtual_time.now == before
        virtual_time.sleep(5.0)
    virtual_time.sleep(40.0)
    assert is_healthy(manager, BASE)


def test_an_async_client_that_retries_has_its_waits_once() -> None:
    """As a sampler does with its completions, ten times, five seconds apart."""

    async def run() -> list[float]:
        loop = asyncio.get_running_loop()
        client = await async_client_of(holder)
        ended = []
        for _ in range(3):
            began = loop.time()
            answer = await client.post(f"{BASE}/inference/v1/completions", json={})
            assert answer.status_code == 404
            ended.append(loop.time() - began)
            await asyncio.sleep(5.0)
        return ended

    gateway = FakeGateway(lambda _: gateway_404())
    holder = new_holder()
    put_async_client(holder, httpx.AsyncClient(transport=gateway.new_transport()))
    install_guard(COLD, control_plane=FakeControlPlane())
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        assert runner.run(run()) == [20.0, 0.0, 0.0]


@pytest.mark.parametrize("deployments", [True, False])
def test_a_false_404_of_a_hot_load(deployments: bool) -> None:
    with sdk.Gateway(Fault(races=(Race("hot_load", 1, 0.5),))) as gateway:
        install_guard(deployments=deployments)
        manager = deployment_manager(gateway.origin, gateway.api_key)
        set_account(manager, "demo")
        if deployments:
            manager.hotload("dep-1", "accounts/fireworks/models/m", "snapshot-1")
        else:
            with pytest.raises(httpx.HTTPStatusError):
                manager.hotload("dep-1", "accounts/fireworks/models/m", "snapshot-1")
        assert gateway.world.serving.loaded == ["snapshot-1"] * deployments
        assert (gateway.questions > 0) is deployments
        manager.close()


@pytest.mark.parametrize("deployments", [True, False])
def test_a_false_404_of_a_completion(deployments: bool) -> None:
    async def complete(gateway: LocalGateway) -> int:
        holder = new_holder(gateway.origin)
        async with await async_client_of(holder) as client:
            answer = await client.post(
                f"{gateway.origin}/inference/v1/completions",
                headers={"Authorization": f"Bearer {gateway.api_key}"},
                json={"model": "accounts/demo/deployments/dep-1", "prompt": [1, 2]},
            )
        status_code: int = answer.status_code
        return status_code

    with sdk.Gateway(Fault(races=(Race("completions", 1, 0.0),))) as gateway:
        install_guard(deployments=deployments)
        assert asyncio.run(complete(gateway)) == (200 if deployments else 404)
        assert (gateway.questions > 0) is deployments


def test_requests_off_the_trainer_routes_pass_unseen(spans: InMemorySpanExporter) -> None:
    """A 404 of the control plane says that there is no such job, and is no verdict of ours."""
    gateway = FakeGateway(lambda _: gateway_404())
    holder = new_holder()
    client = sync_client(gateway)
    put_sync_client(holder, client)
    install_guard(COLD, control_plane=(plane := FakeControlPlane()))
    answer = get(holder, "/v1/accounts/acc/rlorTrainerJobs/job-1")
    assert guards(client) == [True]
    assert answer.status_code == 404
    assert len(gateway.exchanges) == 1
    assert plane.questions == 0
    assert spans_to_fakes(spans) == []


def test_asynchronous_requests_off_the_trainer_routes_pass_unseen(
    spans: InMemorySpanExporter,
) -> None:
    async def run() -> httpx.Response:
        client = await async_client_of(holder)
        answer: httpx.Response = await client.post("https://api.test/inference/v1/completions")
        return answer

    gateway = FakeGateway(lambda _: gateway_404())
    holder = new_holder()
    put_async_client(holder, httpx.AsyncClient(transport=gateway.new_transport()))
    install_guard(COLD)
    assert asyncio.run(run()).status_code == 404
    assert len(gateway.exchanges) == 1
    assert spans_to_fakes(spans) == []


@pytest.mark.parametrize("is_older", [False, True], ids=["built-guarded", "built-before"])
def test_a_connection_that_is_stuck_to_a_stale_replica_is_replaced(is_older: bool) -> None:
    fault = Fault(replicas=2, route_known_after=(60.0, 0.0))
    with sdk.Gateway(fault) as gateway:
        manager = trainer_manager(gateway.origin, gateway.api_key)
        if is_older:
            assert not is_healthy(manager, gateway.base_url)
        install_guard(WARM)
        if not is_older:
            manager = trainer_manager(gateway.origin, gateway.api_key)
        assert is_healthy(manager, gateway.base_url)
        assert gateway.questions == 1
        manager.close()


def test_a_client_that_a_program_put_in_is_never_built_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may have certificates or a proxy of its own, without which the gateway is not reached."""
    sent: list[str] = []
    with sdk.Gateway(Fault(route_known_after=(60.0,))) as gateway:
        manager = trainer_manager(gateway.origin, gateway.api_key)
        sync_client_of(manager).close()
        client = httpx.Client(timeout=7.0)
        # No subclass: that is never built anew, whoever put it in.
        own = client._transport  # noqa: SLF001 - httpx has no public name for it
        send = own.handle_request

        def counted(request: httpx.Request) -> httpx.Response:
            sent.append(request.url.path)
            return send(request)

        monkeypatch.setattr(own, "handle_request", counted)
        put_sync_client(manager, client)
        install_guard(GuardSettings(warmup_successes=0, retry_timeout=0.3))
        assert not is_healthy(manager, gateway.base_url)
        met = [exchange.path for exchange in gateway.requests if exchange.replica is not None]
        manager.close()
    assert len(met) > 1
    assert len([path for path in sent if path.startswith("/training/")]) == len(met)


def test_an_asynchronous_request_survives_a_race() -> None:
    async def run() -> list[int]:
        client = await async_client_of(holder)
        headers = {"X-Api-Key": gateway.api_key}
        answers = [
            await client.get(f"{gateway.base_url}/api/v1/healthz", headers=headers)
            for _ in range(2)
        ]
        await client.aclose()
        return [answer.status_code for answer in answers]

    install_guard(WARM)
    with sdk.Gateway(Fault(races=(Race("healthz", 2, 0.3),))) as gateway:
        holder = new_holder(gateway.origin)
        assert asyncio.run(run()) == [200, 200]
        assert gateway.questions == 1


# -- releases without them, and what is told ------------------------------------------------------


@pytest.mark.skipif(IS_REAL, reason="the installed release has them")
@pytest.mark.parametrize(
    "source",
    [None, "import httpx\n", REST_CLIENT.replace("def _make_async_client", "def _other")],
    ids=["no module", "no class", "no builder"],
)
def test_a_release_without_them_is_no_error(fireworks: Path, source: str | None) -> None:
    write_stand_in(fireworks, source)
    strict = GuardSettings(strict=True)
    install_guard(strict)
    if source is not None:
        importlib.import_module(MODULE)
    assert status().rest_clients["fireworks-ai"].what == "none in this release"
    assert "  fireworks-ai, REST clients: none in this release" in str(status()).splitlines()
    uninstall_guard()
    found = list(check_rest_clients(REST, GuardSettings()))
    assert [(finding.what, finding.status) for finding in found] == [
        ("REST clients", Status.SKIPPED)
    ]
    assert "none in this release" in found[0].detail


@pytest.mark.meets_fault
@pytest.mark.parametrize("strict", [False, True])
def test_a_client_that_cannot_be_guarded(
    strict: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(SyncGuardTransport, "__init__", broken)
    install_guard(GuardSettings(strict=strict))
    holder = new_holder()
    if strict:
        for _ in range(2):
            with pytest.raises(UnguardedError):
                sync_client_of(holder)
    else:
        assert guards(sync_client_of(holder)) == [False]
    assert "a fault of its own in guarding a client" in caplog.text


@pytest.mark.meets_fault
def test_a_client_whose_building_is_not_known_is_guarded(caplog: pytest.LogCaptureFixture) -> None:
    holder = new_holder()
    forget_how_it_was_built(holder)
    install_guard()
    assert guards(sync_client_of(holder)) == [True]
    assert "a fault of its own in reading how a client was built" in caplog.text


@pytest.mark.meets_fault
def test_a_class_that_cannot_be_hooked_into_leaves_the_sdk_guarded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Unchangeable(type):
        def __setattr__(cls, name: str, value: object) -> None:
            raise ZeroDivisionError

    monkeypatch.setattr(rest_module(), REST.class_name, Unchangeable("Rest", (), {}))
    install_guard()
    assert "a fault of its own in hooking into REST clients" in caplog.text
    assert sdk.NAME.split()[0] in status().sdks


def test_a_class_derived_from_a_guarded_one_is_guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    install_guard()
    rest_class = getattr(rest_module(), REST.class_name)
    monkeypatch.setattr(rest_module(), REST.class_name, type("Derived", (rest_class,), {}))
    assert status().rest_clients["fireworks-ai"].what == "guarded"


def test_status_tells_which_clients_are_guarded_and_which_requests_are_not() -> None:
    assert status().rest_clients["fireworks-ai"].what == "not guarded"
    install_guard()
    kept = [new_holder() for _ in range(3)]
    assert status().rest_clients["fireworks-ai"] == ("guarded", 0)
    for holder in kept[:2]:
        sync_client_of(holder)
        sync_client_of(holder)
    lines = str(status()).splitlines()
    assert "  fireworks-ai, REST clients: guarded on trainer routes (2 clients)" in lines
    (own,) = status().unguarded
    assert "SyncGuardTransport" in own
    assert [line for line in lines if "not guarded: " in line] == [f"  not guarded: {own}"]
    install_guard(deployments=False, replace=True)
    assert status().unguarded == [
        "fireworks-ai's hot-loads and completions (deployments=False)",
        own,
    ]


def only(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    return finding


def test_the_doctor_tells_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    found = only(check_rest_clients(REST, GuardSettings()))
    assert found.status is Status.OK
    assert found.detail == "those of fireworks-ai are guarded on trainer routes"
    off = only(check_rest_clients(REST, GuardSettings(enabled=False)))
    assert "would be guarded" in off.detail
    assert "hot-load" not in only(check_unguarded(GuardSettings())).detail
    assert "hot-load" in only(check_unguarded(GuardSettings(deployments=False))).detail
    monkeypatch.setattr("tinker_guard.cli.doctor.sdks.install_guard", lambda *_, **__: None)
    found = only(check_rest_clients(REST, GuardSettings()))
    assert found.status is Status.PROBLEM
    assert "_sync_client and _async_client" in found.detail


def test_the_doctor_where_they_cannot_be_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lacks_something(_: str) -> None:
        raise ModuleNotFoundError("No module named 'urllib3'", name="urllib3")

    monkeypatch.setattr("tinker_guard.cli.doctor.sdks.importlib.import_module", lacks_something)
    found = only(check_rest_clients(REST, GuardSettings()))
    assert found.status is Status.SKIPPED
    assert found.detail.endswith("there is no module urllib3")


@pytest.mark.skipif(IS_REAL, reason="the SDK is installed")
def test_without_the_sdk_nothing_is_told_of_them(
    fireworks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(fireworks)])
    install_guard()
    assert status().rest_clients == {}
    assert "REST" not in str(status())
    assert list(check_rest_clients(REST, GuardSettings())) == []
