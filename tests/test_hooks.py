from __future__ import annotations

import asyncio
import importlib
import importlib.machinery
import sys
import types
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.fakes import BASE, FakeControlPlane, FakeGateway, FakeTransport, gateway_404, ok
from tinker_guard import (
    GuardSettings,
    GuardTransport,
    TinkerGuardInstrumentor,
    hooks,
    install_guard,
    uninstall_guard,
)
from tinker_guard.hooks import AlreadyInstalledError, Sdk, UnsupportedSdkError

if TYPE_CHECKING:
    from collections.abc import Iterator

holder = pytest.importorskip("tinker.lib.internal_client_holder", reason="needs the tinker SDK")
_client = importlib.import_module("tinker._client")

GATEWAY = FakeGateway()


def sdk_client(**kwargs: Any) -> Any:
    kwargs = {"api_key": "tml-key", "base_url": BASE} | kwargs
    return _client.AsyncTinker(**kwargs)


def own_transport(client: Any) -> httpx.AsyncBaseTransport:
    transport: httpx.AsyncBaseTransport = client._client._transport
    return transport


@pytest.fixture
def original_init() -> Any:
    return _client.AsyncTinker.__init__


def test_a_client_built_after_installation_is_guarded() -> None:
    install_guard()
    transport = own_transport(sdk_client())
    assert isinstance(transport, GuardTransport)
    assert type(transport.transport).__module__ == "pyqwest.httpx._transport"


def test_clients_of_the_holder_are_guarded() -> None:
    install_guard()
    loop = holder._internal_client_holder_thread_singleton.get_loop()
    pool = holder.ClientConnectionPool(loop, 1, {"api_key": "tml-key", "base_url": BASE})

    async def take() -> Any:
        with pool.aclient() as one, pool.aclient() as two:
            return one, two

    clients = asyncio.run_coroutine_threadsafe(take(), loop).result(10)
    assert all(isinstance(own_transport(client), GuardTransport) for client in clients)


def test_a_client_that_exists_already_is_guarded_with_what_its_pool_knows() -> None:
    loop = holder._internal_client_holder_thread_singleton.get_loop()
    pool = holder.ClientConnectionPool(loop, 1, {"api_key": "tml-key", "base_url": BASE})

    async def take() -> Any:
        with pool.aclient() as client:
            return client

    pooled = asyncio.run_coroutine_threadsafe(take(), loop).result(10)
    lone = sdk_client()
    install_guard()
    for client, can_renew in ((pooled, True), (lone, False)):
        guard = own_transport(client)
        assert isinstance(guard, GuardTransport)
        assert (guard._line._build() is not None) is can_renew


def test_proxy_mounts_are_guarded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "localhost")
    install_guard()
    client = _plain_httpx_client()
    mounts = client._client._mounts
    assert [mount is None for mount in mounts.values()].count(True) >= 1
    proxied = [mount for mount in mounts.values() if mount is not None]
    assert proxied
    assert all(isinstance(mount, GuardTransport) for mount in proxied)
    (guard,) = proxied
    spare = guard._line._build()
    assert spare is not None
    assert spare.transport.transport._pool._proxy_url.host == b"127.0.0.1"


def _plain_httpx_client() -> Any:
    config = importlib.import_module("tinker.types.client_config_response")
    return sdk_client(_client_config=config.ClientConfigResponse(use_pyqwest_transport=False))


def test_a_spare_transport_is_built_the_way_the_sdk_builds_its_own() -> None:
    install_guard()
    for client in (sdk_client(), _plain_httpx_client()):
        guard = own_transport(client)
        assert isinstance(guard, GuardTransport)
        spare = guard._line._build()
        assert spare is not None
        borrowed: Any = spare.transport
        assert type(borrowed.transport) is type(guard.transport)
        assert borrowed.transport is not guard.transport
        assert not isinstance(borrowed._owner._transport, GuardTransport)


def test_a_copy_of_a_client_is_not_guarded_twice() -> None:
    install_guard()
    client = sdk_client()
    copy = client.with_options(timeout=3)
    assert own_transport(copy) is own_transport(client)
    guard = own_transport(copy)
    assert isinstance(guard, GuardTransport)
    assert not isinstance(guard.transport, GuardTransport)


def test_a_client_around_a_users_own_httpx_client_is_guarded() -> None:
    install_guard()
    own = httpx.AsyncClient(transport=GATEWAY.new_transport())
    sdk_client(http_client=own)
    assert isinstance(own._transport, GuardTransport)
    assert own._transport._line._build() is None


def test_twice_is_harmless(original_init: Any) -> None:
    install_guard()
    once = _client.AsyncTinker.__init__
    install_guard()
    install_guard(GuardSettings())
    assert _client.AsyncTinker.__init__ is once is not original_init


def test_other_settings_are_an_error_unless_replacing() -> None:
    install_guard()
    with pytest.raises(AlreadyInstalledError, match="Pass replace=True to change them"):
        install_guard(GuardSettings(retry_timeout=5))
    with pytest.raises(AlreadyInstalledError):
        install_guard(control_plane=FakeControlPlane())
    client = sdk_client()
    install_guard(GuardSettings(retry_timeout=5), replace=True)
    for guard in (own_transport(client), own_transport(sdk_client())):
        assert isinstance(guard, GuardTransport)
        assert guard._settings.retry_timeout == 5


def test_uninstalling_leaves_the_sdk_as_it_was(original_init: Any) -> None:
    before = sdk_client()
    inner = own_transport(before)
    install_guard()
    during = sdk_client()
    uninstall_guard()
    uninstall_guard()
    assert _client.AsyncTinker.__init__ is original_init
    assert own_transport(before) is inner
    for client in (before, during, sdk_client()):
        assert type(own_transport(client)).__module__ == "pyqwest.httpx._transport"


def test_uninstalling_below_somebody_elses_wrapper(caplog: pytest.LogCaptureFixture) -> None:
    class Wrapper(httpx.AsyncBaseTransport):
        def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
            self.transport = transport

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            return await self.transport.handle_async_request(request)

    gateway = FakeGateway(lambda _: gateway_404())
    install_guard(control_plane=FakeControlPlane())
    client = httpx.AsyncClient(transport=gateway.new_transport())
    sdk_client(http_client=client)
    client._transport = Wrapper(client._transport)
    guarded_init = _client.AsyncTinker.__init__

    def wrapped_init(self: Any, *args: Any, **kwargs: Any) -> None:
        guarded_init(self, *args, **kwargs)

    _client.AsyncTinker.__init__ = wrapped_init
    try:
        uninstall_guard()
        assert "something else has wrapped AsyncTinker since" in caplog.text
        assert not isinstance(own_transport(sdk_client()), GuardTransport)
        response = asyncio.run(client.get(f"{BASE}/api/v1/healthz"))
        assert response.status_code == 404
        assert len(gateway.exchanges) == 1
    finally:
        _client.AsyncTinker.__init__ = guarded_init.__wrapped__


def test_switched_off_by_the_environment(
    monkeypatch: pytest.MonkeyPatch, original_init: Any
) -> None:
    monkeypatch.setenv("TINKER_GUARD_ENABLED", "0")
    install_guard()
    assert _client.AsyncTinker.__init__ is original_init


def test_switched_off_again_when_replacing(original_init: Any) -> None:
    install_guard()
    install_guard(GuardSettings(enabled=False), replace=True)
    assert _client.AsyncTinker.__init__ is original_init


def test_a_client_that_cannot_be_guarded_works_unguarded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install_guard()
    monkeypatch.setattr(hooks, "_transports", _fail)
    assert not isinstance(own_transport(sdk_client()), GuardTransport)
    assert "a fault of its own in guarding a client" in caplog.text


def _fail(*_: object) -> None:
    raise ZeroDivisionError


@pytest.fixture
def fake_sdk(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """An SDK of a few lines, installed beside the real one."""
    module = types.ModuleType("fake_sdk")
    source = """
import httpx
class Client:
    _client: httpx.AsyncClient
    def __init__(self, **kwargs):
        self._client = kwargs["make"]()
class ClientConnectionPool:
    def aclient(self): ...
"""
    exec(source, module.__dict__)
    module.__spec__ = importlib.machinery.ModuleSpec("fake_sdk", None)
    monkeypatch.setitem(sys.modules, "fake_sdk", module)
    sdk = Sdk("fake_sdk", "fake_sdk", "Client", tested="1 to 2")
    monkeypatch.setattr(hooks, "SDKS", (*hooks.SDKS, sdk))
    yield module
    uninstall_guard()


def test_all_installed_sdks_are_guarded(fake_sdk: Any) -> None:
    install_guard()
    client = fake_sdk.Client(make=lambda: httpx.AsyncClient(transport=FakeTransport(GATEWAY, 0)))
    assert isinstance(own_transport(client), GuardTransport)
    assert isinstance(own_transport(sdk_client()), GuardTransport)


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        ("Client", "fake_sdk.Client."),
        ("ClientConnectionPool", "fake_sdk.ClientConnectionPool.aclient."),
    ],
)
def test_an_sdk_without_the_hook_point_is_refused_and_nothing_is_changed(
    fake_sdk: Any, original_init: Any, missing: str, named: str
) -> None:
    delattr(fake_sdk, missing)
    with pytest.raises(UnsupportedSdkError) as caught:
        install_guard()
    message = str(caught.value)
    assert message.startswith("tinker_guard cannot guard fake_sdk unknown version: it has no ")
    assert named in message
    assert "Tested versions: 1 to 2." in message
    assert _client.AsyncTinker.__init__ is original_init


def test_a_client_class_without_an_httpx_client_is_refused(fake_sdk: Any) -> None:
    del fake_sdk.Client.__annotations__["_client"]
    with pytest.raises(UnsupportedSdkError, match=r"it has no fake_sdk\.Client\._client"):
        install_guard()


def test_an_installation_that_fails_half_way_is_rolled_back(
    fake_sdk: Any, original_init: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = sdk_client()
    inner = own_transport(client)
    wrap = hooks._Installation._wrap_constructor

    def fail_on_the_second(self: Any, client_class: type[Any]) -> None:
        if client_class is fake_sdk.Client:
            raise ZeroDivisionError
        wrap(self, client_class)

    monkeypatch.setattr(hooks._Installation, "_wrap_constructor", fail_on_the_second)
    with pytest.raises(ZeroDivisionError):
        install_guard()
    assert _client.AsyncTinker.__init__ is original_init
    assert own_transport(client) is inner


def test_no_sdk_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "SDKS", ())
    with pytest.raises(UnsupportedSdkError, match="found nothing to guard"):
        install_guard()


def test_a_constructor_that_was_inherited_is_inherited_again(fake_sdk: Any) -> None:
    class Derived(fake_sdk.Client):  # type: ignore[misc]
        pass

    fake_sdk.Client = Derived
    install_guard()
    assert "__init__" in vars(Derived)
    uninstall_guard()
    assert "__init__" not in vars(Derived)


def test_the_instrumentor_installs_and_uninstalls(original_init: Any) -> None:
    (entry,) = entry_points(group="opentelemetry_instrumentor", name="tinker_guard")
    assert entry.load() is TinkerGuardInstrumentor
    instrumentor = TinkerGuardInstrumentor()
    instrumentor.instrument()
    try:
        assert _client.AsyncTinker.__init__ is not original_init
    finally:
        instrumentor.uninstrument()
    assert _client.AsyncTinker.__init__ is original_init


def test_answers_reach_the_caller_through_an_installed_guard() -> None:
    gateway = FakeGateway(lambda _: gateway_404() if len(gateway.exchanges) == 1 else ok())
    install_guard(GuardSettings(warmup_successes=0), control_plane=FakeControlPlane())
    client = httpx.AsyncClient(transport=gateway.new_transport())
    sdk_client(http_client=client)
    assert asyncio.run(client.get(f"{BASE}/api/v1/healthz")).json() == {"ok": True}
    assert len(gateway.sent) == 2
