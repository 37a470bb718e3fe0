from __future__ import annotations

import asyncio
import gc
import importlib.machinery
import importlib.metadata
import sys
import types
import weakref
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests import sdk
from tests.fakes import (
    BASE,
    Exchange,
    FakeControlPlane,
    FakeGateway,
    FakeTransport,
    gateway_404,
    ok,
)
from tinker_guard import (
    GuardSettings,
    GuardTransport,
    TinkerGuardInstrumentor,
    hooks,
    install_guard,
    uninstall_guard,
)
from tinker_guard.hooks import AlreadyInstalledError
from tinker_guard.sdks import SDKS, Sdk, UnsupportedSdkError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

GATEWAY = FakeGateway()


def sdk_client(**kwargs: Any) -> Any:
    return sdk.client(**{"api_key": "tml-key", "base_url": BASE} | kwargs)


def own_transport(client: Any) -> httpx.AsyncBaseTransport:
    transport: httpx.AsyncBaseTransport = client._client._transport
    return transport


@pytest.fixture
def original_init() -> Any:
    return sdk.client_class.__init__


def test_a_client_built_after_installation_is_guarded() -> None:
    unguarded = type(own_transport(sdk_client()))
    install_guard()
    transport = own_transport(sdk_client())
    assert isinstance(transport, GuardTransport)
    assert type(transport.transport) is unguarded
    assert unguarded.__module__.split(".")[0] == ("pyqwest" if sdk.HAS_PYQWEST else "httpx")


def test_clients_of_the_holder_are_guarded() -> None:
    install_guard()
    loop = sdk.holder._internal_client_holder_thread_singleton.get_loop()
    pool = sdk.holder.ClientConnectionPool(loop, 1, {"api_key": "tml-key", "base_url": BASE})

    async def take() -> Any:
        with pool.aclient() as one, pool.aclient() as two:
            return one, two

    clients = asyncio.run_coroutine_threadsafe(take(), loop).result(10)
    assert all(isinstance(own_transport(client), GuardTransport) for client in clients)


def test_a_client_that_exists_already_is_guarded_with_what_its_pool_knows() -> None:
    loop = sdk.holder._internal_client_holder_thread_singleton.get_loop()
    pool = sdk.holder.ClientConnectionPool(loop, 1, {"api_key": "tml-key", "base_url": BASE})

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
    client = sdk_client(transport="httpx")
    mounts = client._client._mounts
    assert [mount is None for mount in mounts.values()].count(True) >= 1
    proxied = [mount for mount in mounts.values() if mount is not None]
    assert proxied
    assert all(isinstance(mount, GuardTransport) for mount in proxied)
    (guard,) = proxied
    spare = guard._line._build()
    assert spare is not None
    assert spare.transport.transport._pool._proxy_url.host == b"127.0.0.1"


def test_a_spare_transport_is_built_the_way_the_sdk_builds_its_own() -> None:
    install_guard()
    for client in (sdk_client(), sdk_client(transport="httpx")):
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
    once = sdk.client_class.__init__
    install_guard()
    install_guard(GuardSettings())
    assert sdk.client_class.__init__ is once is not original_init


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


def test_the_export_of_settings_that_replace_others_is_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[str] = []
    monkeypatch.setattr(hooks, "start_export", begun.append)
    hooks.install_unattended(None, None)
    install_guard(GuardSettings())
    install_guard(GuardSettings(export="otlp"), replace=True)
    assert begun == ["otlp"]


def test_an_automatic_installation_gives_way_to_the_programs_own() -> None:
    instrumentor = TinkerGuardInstrumentor()
    instrumentor.instrument()
    try:
        install_guard(GuardSettings(retry_timeout=60))
        guard = own_transport(sdk_client())
        assert isinstance(guard, GuardTransport)
        assert guard._settings.retry_timeout == 60
        with pytest.raises(AlreadyInstalledError):
            install_guard(GuardSettings(retry_timeout=61))
    finally:
        instrumentor.uninstrument()
    assert isinstance(own_transport(sdk_client()), GuardTransport)


@pytest.mark.parametrize("change", ["replace", "uninstall"])
def test_a_change_during_a_race_leaves_the_client_working(change: str) -> None:
    is_known, has_probed = asyncio.Event(), asyncio.Event()

    def answer(exchange: Exchange) -> httpx.Response:
        if exchange.is_probe:
            has_probed.set()
        return ok() if is_known.is_set() else gateway_404()

    gateway = FakeGateway(answer)
    client = httpx.AsyncClient(transport=gateway.new_transport())

    async def run() -> list[int]:
        install_guard(GuardSettings(warmup_successes=0), control_plane=FakeControlPlane())
        sdk_client(http_client=client)
        guard = client._transport
        assert isinstance(guard, GuardTransport)
        guard._line._new_transport = gateway.new_transport
        first = asyncio.create_task(client.get(f"{BASE}/api/v1/healthz"))
        await has_probed.wait()
        if change == "replace":
            install_guard(GuardSettings(retry_timeout=9), replace=True)
            assert client._transport is guard
        else:
            uninstall_guard()
            assert client._transport is gateway.transports[0]
        is_known.set()
        answers = [await first, *[await client.get(f"{BASE}/api/v1/healthz") for _ in range(2)]]
        return [answer.status_code for answer in answers]

    assert asyncio.run(run()) == [200, 200, 200]


def test_a_client_that_goes_out_of_use_is_freed_at_once() -> None:
    install_guard()
    gc.collect()
    gc.disable()
    try:
        client = sdk_client()
        gone = weakref.ref(client)
        del client
        assert gone() is None
    finally:
        gc.enable()


def test_uninstalling_leaves_the_sdk_as_it_was(original_init: Any) -> None:
    before = sdk_client()
    inner = own_transport(before)
    install_guard()
    during = sdk_client()
    uninstall_guard()
    uninstall_guard()
    assert sdk.client_class.__init__ is original_init
    assert own_transport(before) is inner
    for client in (before, during, sdk_client()):
        assert type(own_transport(client)) is type(inner)


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
    guarded_init = sdk.client_class.__init__

    def wrapped_init(self: Any, *args: Any, **kwargs: Any) -> None:
        guarded_init(self, *args, **kwargs)

    sdk.client_class.__init__ = wrapped_init
    try:
        uninstall_guard()
        assert f"something else has wrapped {sdk.client_class.__name__} since" in caplog.text
        assert not isinstance(own_transport(sdk_client()), GuardTransport)
        response = asyncio.run(client.get(f"{BASE}/api/v1/healthz"))
        assert response.status_code == 404
        assert len(gateway.exchanges) == 1
    finally:
        sdk.client_class.__init__ = guarded_init.__wrapped__


def test_switched_off_by_the_environment(
    monkeypatch: pytest.MonkeyPatch, original_init: Any
) -> None:
    monkeypatch.setenv("TINKER_GUARD_ENABLED", "0")
    install_guard()
    assert sdk.client_class.__init__ is original_init


def test_switched_off_again_when_replacing(original_init: Any) -> None:
    install_guard()
    install_guard(GuardSettings(enabled=False), replace=True)
    assert sdk.client_class.__init__ is original_init


def test_a_client_that_cannot_be_guarded_works_unguarded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install_guard()
    with monkeypatch.context() as broken:
        broken.setattr(hooks, "_transports", _fail)
        client = sdk_client()
    assert not isinstance(own_transport(client), GuardTransport)
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
    fake = Sdk("fake_sdk", "fake_sdk", "fake_sdk", "Client", tested=("1", "2"))
    monkeypatch.setattr(hooks, "SDKS", (*SDKS, fake))
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
    assert sdk.client_class.__init__ is original_init


def test_a_client_class_without_an_httpx_client_is_refused(fake_sdk: Any) -> None:
    del fake_sdk.Client.__annotations__["_client"]
    with pytest.raises(UnsupportedSdkError, match=r"it has no fake_sdk\.Client\._client"):
        install_guard()


@pytest.fixture
def set_version(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Pretends that a version of the fake SDK is installed."""
    version_of = importlib.metadata.version

    def pretend(version: str) -> None:
        monkeypatch.setattr(
            importlib.metadata,
            "version",
            lambda name: version if name == "fake_sdk" else version_of(name),
        )

    return pretend


@pytest.mark.parametrize("version", ["0.9.9", "2.0.1", "3.0rc1", "built by hand"])
def test_a_release_that_was_not_tested_is_guarded_with_one_warning(
    fake_sdk: Any,
    set_version: Callable[[str], None],
    caplog: pytest.LogCaptureFixture,
    version: str,
) -> None:
    set_version(version)
    install_guard()
    install_guard()
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [
        f"tinker_guard is installed into fake_sdk {version}, which it was not tested with. "
        "Tested versions: 1 to 2."
    ]
    client = fake_sdk.Client(make=lambda: httpx.AsyncClient(transport=FakeTransport(GATEWAY, 0)))
    assert isinstance(own_transport(client), GuardTransport)


@pytest.mark.parametrize("version", ["1", "1.9", "2.0.0"])
def test_a_tested_release_is_guarded_without_a_word(
    fake_sdk: Any,
    set_version: Callable[[str], None],
    caplog: pytest.LogCaptureFixture,
    version: str,
) -> None:
    set_version(version)
    install_guard()
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize(
    ("package", "holder_module", "is_installed"),
    [
        ("no_such_sdk", "no_such_sdk.holder", False),
        ("no_such_parent.sdk", "no_such_parent.sdk.holder", False),
        ("json.decoder.sdk", "json.decoder.sdk.holder", False),
        ("json", "json.decoder", True),
        # A part of the SDK itself is missing: it is there, and the error names the part.
        ("json", "json.no_such_holder", True),
    ],
)
def test_whether_an_sdk_is_installed(package: str, holder_module: str, is_installed: bool) -> None:
    one = Sdk("some-sdk", package, holder_module, "Client", tested=("1", "2"))
    assert one.is_installed() is is_installed
    if is_installed:
        with pytest.raises(UnsupportedSdkError, match=r"it has no json\."):
            one.find_hook_point()


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
    assert sdk.client_class.__init__ is original_init
    assert own_transport(client) is inner


LATE_SDK = """
import httpx
class Client:
    _client: httpx.AsyncClient
    def __init__(self, **kwargs):
        self._client = kwargs["make"]()
"""
POOL = "class ClientConnectionPool:\n    def aclient(self): ...\n"


@pytest.fixture
def late_sdk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An SDK that is installed beside the real one, and not imported. The file is its holder."""
    (tmp_path / "late_sdk").mkdir()
    (tmp_path / "late_sdk" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    late = Sdk("late-sdk", "late_sdk", "late_sdk.holder", "Client", tested=("1", "2"))
    monkeypatch.setattr(hooks, "SDKS", (*SDKS, late))
    yield tmp_path / "late_sdk" / "holder.py"
    uninstall_guard()
    for name in ("late_sdk", "late_sdk.holder"):
        sys.modules.pop(name, None)


def test_an_sdk_is_guarded_when_it_is_imported_and_not_imported_for_that(late_sdk: Path) -> None:
    late_sdk.write_text(LATE_SDK + POOL)
    install_guard()
    assert "late_sdk" not in sys.modules
    late = importlib.import_module("late_sdk.holder")
    client = late.Client(make=lambda: httpx.AsyncClient(transport=FakeTransport(GATEWAY, 0)))
    assert isinstance(own_transport(client), GuardTransport)
    uninstall_guard()
    assert not isinstance(own_transport(client), GuardTransport)


def test_an_sdk_that_is_imported_after_uninstalling_is_left_alone(late_sdk: Path) -> None:
    late_sdk.write_text(LATE_SDK + POOL)
    install_guard()
    uninstall_guard()
    late = importlib.import_module("late_sdk.holder")
    assert late.Client.__init__.__module__ == "late_sdk.holder"
    assert not hasattr(late.Client.__init__, "__wrapped__")


def test_an_sdk_that_turns_out_to_lack_the_hook_point_is_refused_by_its_import(
    late_sdk: Path,
) -> None:
    late_sdk.write_text(LATE_SDK)
    install_guard()
    with pytest.raises(UnsupportedSdkError, match=r"no late_sdk\.holder\.ClientConnectionPool"):
        importlib.import_module("late_sdk.holder")
    assert isinstance(own_transport(sdk_client()), GuardTransport)


def test_an_sdk_without_the_module_of_the_hook_point_is_refused_at_once(
    late_sdk: Path, original_init: Any
) -> None:
    with pytest.raises(UnsupportedSdkError, match=r"it has no late_sdk\.holder\."):
        install_guard()
    assert sdk.client_class.__init__ is original_init


def test_unattended_an_sdk_without_the_hook_point_runs_unguarded(
    late_sdk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    late_sdk.write_text(LATE_SDK)
    hooks.install_unattended(None, None)
    importlib.import_module("late_sdk.holder")
    assert [record.getMessage() for record in caplog.records] == [
        "tinker_guard: this process runs unguarded. tinker_guard cannot guard late-sdk unknown "
        "version: it has no late_sdk.holder.ClientConnectionPool.aclient. Tested versions: 1 to 2. "
        "Install one of those, or remove install_guard() to run unguarded."
    ]


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
        assert sdk.client_class.__init__ is not original_init
    finally:
        instrumentor.uninstrument()
    assert sdk.client_class.__init__ is original_init


def test_answers_reach_the_caller_through_an_installed_guard() -> None:
    gateway = FakeGateway(lambda _: gateway_404() if len(gateway.exchanges) == 1 else ok())
    install_guard(GuardSettings(warmup_successes=0), control_plane=FakeControlPlane())
    client = httpx.AsyncClient(transport=gateway.new_transport())
    sdk_client(http_client=client)
    assert asyncio.run(client.get(f"{BASE}/api/v1/healthz")).json() == {"ok": True}
    assert len(gateway.sent) == 2
