from __future__ import annotations

import asyncio
import functools
import gc
import importlib.machinery
import importlib.metadata
import logging
import sys
import types
import weakref
from contextlib import nullcontext
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from testkit.clients import (
    CLIENT,
    httpx_client_of,
    mounts_of,
    proxy_host_of,
    put_transport,
    transport_of,
)
from testkit.fakes import (
    BASE,
    Exchange,
    FakeControlPlane,
    FakeGateway,
    FakeTransport,
    gateway_404,
    ok,
)
from tests.end_to_end import sdk
from tinker_guard import (
    GuardSettings,
    GuardTransport,
    InvalidSettingsError,
    TinkerGuardInstrumentor,
    UnguardedError,
    install_guard,
    status,
    uninstall_guard,
)
from tinker_guard.install import installation
from tinker_guard.install.clients import constructor_arguments
from tinker_guard.install.installation import AlreadyInstalledError, install_unattended
from tinker_guard.install.sdks import SDKS, Sdk, UnsupportedSdkError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

GATEWAY = FakeGateway()
AUTH = "_auth"


def sdk_client(**kwargs: Any) -> Any:
    return sdk.client(**{"api_key": "tml-key", "base_url": BASE} | kwargs)


def own_transport(client: Any) -> httpx.AsyncBaseTransport:
    transport: httpx.AsyncBaseTransport = transport_of(client)
    return transport


class KeptGuard(GuardTransport):
    """A guard that keeps what it was given to have new connections from."""

    def __init__(self, transport: httpx.AsyncBaseTransport, **given: Any) -> None:
        super().__init__(transport, **given)
        self.new_transport: Callable[[], Any] | None = given["new_transport"]


@pytest.fixture
def kept_guards(monkeypatch: pytest.MonkeyPatch) -> None:
    """`install_guard()` builds guards of this kind."""
    monkeypatch.setattr("tinker_guard.transport.GuardTransport", KeptGuard)


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
    loop = sdk.start_holder_loop()
    pool = sdk.holder.ClientConnectionPool(loop, 1, {"api_key": "tml-key", "base_url": BASE})

    async def take() -> Any:
        with pool.aclient() as one, pool.aclient() as two:
            return one, two

    clients = asyncio.run_coroutine_threadsafe(take(), loop).result(10)
    assert all(isinstance(own_transport(client), GuardTransport) for client in clients)


def test_a_client_that_exists_already_is_guarded_and_can_have_new_connections(
    kept_guards: None,
) -> None:
    loop = sdk.start_holder_loop()
    pool = sdk.holder.ClientConnectionPool(loop, 1, {"api_key": "tml-key", "base_url": BASE})

    async def take() -> Any:
        with pool.aclient() as client:
            return client

    pooled = asyncio.run_coroutine_threadsafe(take(), loop).result(10)
    lone, own = sdk_client(), sdk_client(http_client=httpx.AsyncClient())
    install_guard()
    # What a client that was handed in is made of is not known.
    for client, can_renew in ((pooled, True), (lone, True), (own, False)):
        guard = own_transport(client)
        assert isinstance(guard, KeptGuard)
        assert (guard.new_transport is not None) is can_renew


def test_installing_walks_no_heap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread dies with SystemError if what it builds right now is found there."""
    clients = [sdk_client() for _ in range(3)]
    for name in ("get_objects", "get_referrers", "get_referents"):
        monkeypatch.setattr(gc, name, _fail)
    install_guard()
    assert all(isinstance(own_transport(client), GuardTransport) for client in clients)
    uninstall_guard()
    assert not any(isinstance(own_transport(client), GuardTransport) for client in clients)


async def send_with_sdk(client: Any) -> httpx.Response:
    response: httpx.Response = await client.get("/api/v1/healthz", cast_to=httpx.Response)
    return response


async def send_with_copy(client: Any) -> httpx.Response:
    return await send_with_sdk(client.with_options(timeout=9))


async def send_with_httpx(client: Any) -> httpx.Response:
    response: httpx.Response = await httpx_client_of(client).get(f"{BASE}/api/v1/healthz")
    return response


@pytest.mark.parametrize("send", [send_with_sdk, send_with_copy, send_with_httpx])
def test_a_client_that_exists_already_is_guarded_when_it_next_sends(send: Any) -> None:
    gateway = FakeGateway(lambda _: gateway_404() if len(gateway.exchanges) == 1 else ok())
    own = httpx.AsyncClient(transport=gateway.new_transport())
    client = sdk_client(http_client=own)
    install_guard(GuardSettings(warmup_successes=0), control_plane=FakeControlPlane())
    assert transport_of(own) is gateway.transports[0]
    assert asyncio.run(send(client)).status_code == 200
    assert isinstance(transport_of(own), GuardTransport)
    assert len(gateway.sent) == 2
    uninstall_guard()
    assert transport_of(own) is gateway.transports[0]


def test_a_request_under_way_is_guarded_from_its_next_try() -> None:
    def answer(exchange: Exchange) -> httpx.Response:
        if len(gateway.sent) == 1:
            install_guard(GuardSettings(warmup_successes=0), control_plane=FakeControlPlane())
            return httpx.Response(503, headers={"retry-after-ms": "1"})
        is_second = len(gateway.sent) == 2 and not exchange.is_probe
        return gateway_404() if is_second else ok()

    gateway = FakeGateway(answer)
    client = sdk_client(http_client=httpx.AsyncClient(transport=gateway.new_transport()))
    assert asyncio.run(send_with_sdk(client)).status_code == 200
    assert len(gateway.sent) == 3


def test_an_httpx_client_that_is_put_in_later_is_guarded(kept_guards: None) -> None:
    install_guard()
    client = sdk_client()
    setattr(client, CLIENT, httpx.AsyncClient(transport=GATEWAY.new_transport()))
    guard = own_transport(client)
    assert isinstance(guard, KeptGuard)
    assert guard.new_transport is None


def test_the_attribute_behaves_as_it_does_without_the_guard() -> None:
    client = sdk_client()
    inner = httpx_client_of(client)
    install_guard()
    assert httpx_client_of(client) is inner
    assert vars(client)[CLIENT] is inner
    assert not hasattr(sdk.client_class, CLIENT)
    assert not hasattr(object.__new__(sdk.client_class), CLIENT)
    with pytest.raises(AttributeError, match=f"'{sdk.client_class.__name__}' object has no attr"):
        httpx_client_of(object.__new__(sdk.client_class))
    delattr(client, CLIENT)
    with pytest.raises(AttributeError):
        delattr(client, CLIENT)
    assert not hasattr(client, CLIENT)


def test_an_older_client_that_goes_out_of_use_is_freed_at_once() -> None:
    client = sdk_client()
    install_guard()
    gc.collect()
    gc.disable()
    try:
        guard = own_transport(client)
        assert isinstance(guard, GuardTransport)
        gone = weakref.ref(client), weakref.ref(guard)
        del client, guard
        assert [reference() for reference in gone] == [None, None]
    finally:
        gc.enable()


def test_a_class_that_has_the_attribute_itself_keeps_it(fake_sdk: Any) -> None:
    """Nothing is known of how it is used, so only new clients are guarded."""
    setattr(fake_sdk.Client, CLIENT, None)
    install_guard()
    assert vars(fake_sdk.Client)[CLIENT] is None
    client = fake_sdk.Client(make=lambda: httpx.AsyncClient(transport=FakeTransport(GATEWAY, 0)))
    assert isinstance(own_transport(client), GuardTransport)
    uninstall_guard()
    assert vars(fake_sdk.Client)[CLIENT] is None


def test_a_constructor_that_takes_something_unknown_cannot_be_used_again() -> None:
    def init(self: Any, *, api_key: str, certificate: str, http_client: Any = None) -> None: ...

    client = sdk_client()
    known = constructor_arguments(client, sdk.client_class.__init__)
    assert known is not None
    assert known["base_url"] == client.base_url
    assert "http_client" not in known
    assert constructor_arguments(client, init) is None


def test_what_a_client_sends_over_is_read_from_its_transport() -> None:
    """As tinker 0.22.0 to 0.22.2 need, which keep it nowhere else."""

    def init(self: Any, *, base_url: str, _use_pyqwest: bool = True) -> None: ...

    for transport, is_pyqwest in (("pyqwest", sdk.HAS_PYQWEST), ("httpx", False)):
        client = sdk.client(api_key="tml-key", base_url=BASE, transport=transport)  # type: ignore[arg-type]
        arguments = constructor_arguments(client, init)
        assert arguments == {"base_url": client.base_url, "_use_pyqwest": is_pyqwest}


def test_proxy_mounts_are_guarded_too(monkeypatch: pytest.MonkeyPatch, kept_guards: None) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "localhost")
    install_guard()
    client = sdk_client(transport="httpx")
    mounts = mounts_of(client)
    assert [mount is None for mount in mounts.values()].count(True) >= 1
    proxied = [mount for mount in mounts.values() if mount is not None]
    assert proxied
    assert all(isinstance(mount, GuardTransport) for mount in proxied)
    (guard,) = proxied
    spare = guard.new_transport()
    assert proxy_host_of(getattr(spare, "transport", spare)) == b"127.0.0.1"


def test_a_spare_transport_is_built_the_way_the_sdk_builds_its_own(kept_guards: None) -> None:
    install_guard()
    for client in (sdk_client(), sdk_client(transport="httpx")):
        guard = own_transport(client)
        assert isinstance(guard, KeptGuard)
        assert guard.new_transport is not None
        borrowed: Any = guard.new_transport()
        # Not guarded itself: it is of the same type as what is below the guard.
        built = getattr(borrowed, "transport", borrowed)
        assert type(built) is type(guard.transport)
        assert built is not guard.transport


def test_a_copy_of_a_client_is_not_guarded_twice() -> None:
    install_guard()
    client = sdk_client()
    copy = client.with_options(timeout=3)
    assert own_transport(copy) is own_transport(client)
    guard = own_transport(copy)
    assert isinstance(guard, GuardTransport)
    assert not isinstance(guard.transport, GuardTransport)


def test_a_client_around_a_users_own_httpx_client_is_guarded(kept_guards: None) -> None:
    install_guard()
    own = httpx.AsyncClient(transport=GATEWAY.new_transport())
    sdk_client(http_client=own)
    guard = transport_of(own)
    assert isinstance(guard, KeptGuard)
    assert guard.new_transport is None


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
        assert guard.settings.retry_timeout == 5


def test_the_export_of_settings_that_replace_others_is_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[str] = []
    monkeypatch.setattr("tinker_guard.export.lifecycle.start_export", begun.append)
    installation.install_unattended(None, None)
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
        assert guard.settings.retry_timeout == 60
        with pytest.raises(AlreadyInstalledError):
            install_guard(GuardSettings(retry_timeout=61))
    finally:
        instrumentor.uninstrument()
    assert isinstance(own_transport(sdk_client()), GuardTransport)


@pytest.mark.parametrize("change", ["replace", "uninstall"])
def test_a_change_during_a_race_leaves_the_client_working(change: str, fake_sdk: Any) -> None:
    is_known, has_probed = asyncio.Event(), asyncio.Event()

    def answer(exchange: Exchange) -> httpx.Response:
        if exchange.is_probe:
            has_probed.set()
        return ok() if is_known.is_set() else gateway_404()

    gateway = FakeGateway(answer)

    async def run() -> list[int]:
        install_guard(GuardSettings(warmup_successes=0), control_plane=FakeControlPlane())
        own = fake_sdk.Client(make=lambda: httpx.AsyncClient(transport=gateway.new_transport()))
        client = httpx_client_of(own)
        guard = transport_of(client)
        assert isinstance(guard, GuardTransport)
        first = asyncio.create_task(client.get(f"{BASE}/api/v1/healthz"))
        await has_probed.wait()
        if change == "replace":
            install_guard(GuardSettings(retry_timeout=9), replace=True)
            assert transport_of(client) is guard
        else:
            uninstall_guard()
            assert transport_of(client) is gateway.transports[0]
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
    finders = list(sys.meta_path)
    install_guard()
    during = sdk_client()
    uninstall_guard()
    uninstall_guard()
    assert "_client" not in vars(sdk.client_class)
    assert sys.meta_path == finders
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
    put_transport(client, Wrapper(transport_of(client)))
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


def init_for_any_key(
    self: Any,
    *,
    api_key: str | None = None,
    base_url: str | None = None,
    timeout: Any = None,
    max_retries: int = 2,
    default_headers: Any = None,
    default_query: Any = None,
    http_client: Any = None,
    _strict_response_validation: bool = False,
) -> None:
    """Build a client whatever its key looks like, as twinkle-kit 0.5.1 makes the SDK do.

    The SDK's own constructor is never called: that refuses a key which it has not made.
    """
    self.api_key = api_key
    super(sdk.client_class, self).__init__(
        version="0.0.0",
        base_url=base_url,
        timeout=9.0 if timeout is None else timeout,
        max_retries=max_retries,
        custom_headers=default_headers,
        custom_query=default_query,
        http_client=http_client,
        _strict_response_validation=_strict_response_validation,
    )
    self._idempotency_header = "X-Idempotency-Key"


def wrapper_of(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor that calls the one in whose place it is put."""

    @functools.wraps(init)
    def wrapping_init(self: Any, **kwargs: Any) -> None:
        init(self, **kwargs)

    return wrapping_init


@pytest.mark.skipif(sdk.IS_FIREWORKS, reason="it is tinker that others patch")
@pytest.mark.parametrize(
    ("patch", "api_key"),
    [
        pytest.param(lambda _: init_for_any_key, "ms-key", id="in its place"),
        pytest.param(wrapper_of, "tml-key", id="around it"),
    ],
)
@pytest.mark.parametrize("is_patched_first", [True, False])
def test_a_constructor_that_another_package_replaces(
    is_patched_first: bool,
    patch: Callable[[Any], Callable[..., None]],
    api_key: str,
    original_init: Any,
    kept_guards: None,
) -> None:
    def install() -> None:
        install_guard(GuardSettings(warmup_successes=0), control_plane=FakeControlPlane())

    gateway = FakeGateway(lambda _: gateway_404() if len(gateway.exchanges) == 1 else ok())
    own = httpx.AsyncClient(transport=gateway.new_transport())
    try:
        if not is_patched_first:
            install()
        sdk.client_class.__init__ = patch(sdk.client_class.__init__)
        earlier = sdk_client(api_key=api_key)
        if is_patched_first:
            install()
        later = sdk_client(api_key=api_key)
        sender = sdk_client(api_key=api_key, http_client=own)
        setattr(sender, AUTH, httpx.Auth())  # later releases ask it for the key
        assert asyncio.run(send_with_sdk(sender)).status_code == 200
        assert len(gateway.sent) == 2
        for client in (earlier, later):
            guard = own_transport(client)
            assert isinstance(guard, KeptGuard)
            assert guard.new_transport is not None
            # Such as carries the request, and no further guard around it. One of httpx's own is
            # built alone, another one is lent by a client that was built for it.
            new: Any = guard.new_transport()
            assert type(getattr(new, "transport", new)) is type(guard.transport)
        uninstall_guard()
        assert not isinstance(own_transport(later), GuardTransport)
        assert not isinstance(own_transport(sdk_client(api_key=api_key)), GuardTransport)
    finally:
        sdk.client_class.__init__ = original_init


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


@pytest.mark.meets_fault
def test_a_client_that_cannot_be_guarded_works_unguarded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install_guard()
    with monkeypatch.context() as broken:
        broken.setattr(installation, "transports_of", _fail)
        client = sdk_client()
    assert not isinstance(own_transport(client), GuardTransport)
    assert "a fault of its own in guarding a client" in caplog.text


@pytest.mark.meets_fault
@pytest.mark.parametrize("stand_in", [object(), types.SimpleNamespace(_mounts={}), {}])
def test_what_a_test_puts_in_the_place_of_an_httpx_client_is_left_alone(
    stand_in: object, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing refers to such an object weakly."""
    install_guard()
    client = sdk_client()
    setattr(client, CLIENT, stand_in)
    for _ in range(2):
        assert httpx_client_of(client) is stand_in
    assert len(caplog.records) == 1


@pytest.mark.meets_fault
def test_strict_refuses_a_client_that_cannot_be_guarded_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    earlier = sdk_client(http_client=httpx.AsyncClient(transport=GATEWAY.new_transport()))
    install_guard(strict=True)
    with monkeypatch.context() as broken:
        broken.setattr(installation, "transports_of", _fail)
        for _ in range(2):
            with pytest.raises(UnguardedError, match="strict is set"):
                sdk_client()
            with pytest.raises(UnguardedError, match="strict is set"):
                asyncio.run(send_with_sdk(earlier))
    assert asyncio.run(send_with_sdk(earlier)).status_code == 200


@pytest.mark.meets_fault
def test_a_misspelt_variable_is_named_once_at_install(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TINKER_GUARD_RETRY_TIMOUT", "3")
    install_guard()
    install_guard()
    (line,) = [line for line in caplog.messages if "TIMOUT" in line]
    assert line == (
        "TINKER_GUARD_RETRY_TIMOUT is no setting; did you mean TINKER_GUARD_RETRY_TIMEOUT?"
    )
    with pytest.raises(InvalidSettingsError, match="did you mean TINKER_GUARD_RETRY_TIMEOUT"):
        install_guard(strict=True, replace=True)


@pytest.mark.parametrize(
    ("base_url", "routes", "line"),
    [
        (
            "http://me:geheim@head:8000/geheim",
            (),
            "TINKER_BASE_URL: http://head:8000 is no trainer route: requests there pass through, "
            "and a 404 is handed back as it comes "
            "(TINKER_GUARD_ROUTES=http://head:8000/{_part1} would guard them).",
        ),
        ("http://head:8000/geheim", "http://head:8000/{_key}", None),
        (BASE, (), None),
        ("", (), None),
        ("http://head:port", (), None),
        (None, (), None),
    ],
)
def test_a_base_url_that_is_not_guarded_is_told_of_once_at_install(
    base_url: str | None,
    routes: str,
    line: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "tinker_guard")
    if base_url is not None:
        monkeypatch.setenv("TINKER_BASE_URL", base_url)
    for _ in range(2):
        install_guard(routes=routes)
    told = [message for message in caplog.messages if "TINKER_BASE_URL" in message]
    assert told == ([] if line is None else [line])
    assert "geheim" not in caplog.text


@pytest.mark.parametrize(
    ("routes", "is_warned"), [((), False), ("http://head:8000", True), ("http://heads:80", True)]
)
def test_a_client_that_the_routes_of_a_setting_miss_is_warned_of(
    routes: str, is_warned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where none is set, the server may have nothing to guard; a setting may be misspelt."""
    monkeypatch.setenv("TINKER_BASE_URL", "http://other:8000")
    install_guard(routes=routes)
    kept = sdk_client(base_url="http://other:8000")
    told = [each for each in caplog.records if "is no trainer route" in each.getMessage()]
    assert [each.levelname for each in told] == ["WARNING"] * (2 * is_warned)
    del kept


class _Plane:
    async def job_state(self, *_: Any, **__: Any) -> str | None:
        return None


@pytest.mark.parametrize(
    ("control_plane", "says"),
    [
        (_Plane, "_Plane is a class. Call it."),
        (5, "int has neither."),
        (object(), "object has neither."),
        (print, "builtin_function_or_method has neither."),
    ],
)
def test_what_is_no_control_plane_is_refused_at_once(control_plane: Any, says: str) -> None:
    for use in (
        lambda: install_guard(control_plane=control_plane),
        lambda: GuardTransport(
            httpx.MockTransport(lambda _: httpx.Response(200)), control_plane=control_plane
        ),
    ):
        with pytest.raises(
            InvalidSettingsError, match=r"^control_plane: must be an object"
        ) as told:
            use()
        assert str(told.value).endswith(says)
    assert not status().is_installed
    install_guard(control_plane=_Plane())


ABSENT = "no_such_module.planes:Own"
NOT_FOUND_YET = "control_plane no_such_module.planes:Own: the module no_such_module was not found"


def test_a_control_plane_whose_module_is_missing_is_told_at_install(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The first 404 would be too late. Without `strict`, the module may still come."""
    for _ in range(2):
        install_guard(control_plane=ABSENT)
        assert status().is_installed
    [told] = [each for each in caplog.records if NOT_FOUND_YET in each.getMessage()]
    assert told.levelname == "WARNING"


@pytest.mark.parametrize(
    "install",
    [install_guard, functools.partial(install_unattended, control_plane=None)],
    ids=["by the program", "unattended"],
)
def test_a_control_plane_whose_module_is_missing_is_refused_if_strict(
    install: Callable[[GuardSettings], None],
) -> None:
    settings = GuardSettings(control_plane=ABSENT, strict=True)
    with pytest.raises(
        InvalidSettingsError, match=r"strict is set, but:\n  control_plane: no_such"
    ):
        install(settings)
    assert not status().is_installed


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("kind", ["found", "main", "built-in", "finder fails", "object", "off"])
def test_a_control_plane_that_may_be_there_is_not_told_of_and_not_imported(
    kind: str,
    strict: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    given: Any = {"control_plane": ABSENT, "strict": strict}
    own = None
    match kind:
        case "found":
            (tmp_path / "no_such_module.py").write_text("raise SystemExit")
            monkeypatch.syspath_prepend(tmp_path)
        case "main":
            given["control_plane"] = "__main__:Own"
        case "built-in":
            given["control_plane"] = "none"
        case "finder fails":

            class Fails:
                def find_spec(self, name: str, *_: object) -> None:
                    if name == "no_such_module":
                        raise AttributeError(name)

            monkeypatch.setattr(sys, "meta_path", [Fails(), *sys.meta_path])
        case "object":
            own = FakeControlPlane()
        case _:
            given |= {"enabled": False, "strict": False}
    installation.install(GuardSettings(**given), own, replace=False, is_automatic=False)
    assert status().is_installed is (kind != "off")
    assert "not found yet" not in caplog.text
    assert "no_such_module" not in sys.modules


def test_a_route_by_configuration_is_shown_without_what_is_hidden() -> None:
    install_guard(routes="http://head:8000/k/{_key}")
    kept = sdk_client(base_url="http://head:8000/k/geheim")
    assert "  requests to http://head:8000/k/{_key} are guarded (1 client)" in str(status())
    assert "geheim" not in f"{status()!r} {status()}"
    del kept


def test_status_and_log_tell_what_is_guarded_and_how(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tinker_guard")
    assert str(status()) == "tinker_guard is not installed: requests go unguarded."
    assert not status().is_installed
    install_guard(retry_timeout=60)
    kept = [
        sdk_client(base_url=BASE.replace("https://", "https://user:secret@")),
        sdk_client(),
        sdk_client(base_url="https://tinker.test/x/secret"),
    ]
    guarded, passed = (
        "requests for trainer job acc/job-1 at https://gateway.test are guarded",
        (
            "https://tinker.test is no trainer route: requests there pass through, and a 404 is "
            "handed back as it comes (TINKER_GUARD_ROUTES=https://tinker.test/{_part1}/{_part2} "
            "would guard them)"
        ),
    )
    found = status()
    assert found.settings is not None
    assert found.settings.retry_timeout == 60
    assert found.sdks[sdk.NAME.split()[0]] == "guarded"
    # A client of an earlier test may be there still: old releases keep some.
    assert list(found.clients.values())[:2] == [2, 1]
    text = str(found).splitlines()
    assert f"  {guarded} (2 clients)" in text
    assert f"  {passed} (1 client)" in text
    assert "  waits: up to 120 s for a new route, 60 s after a 404 on one that worked" in text
    assert "  control plane: at each route's own origin" in text
    hooked, *places = caplog.messages
    assert hooked.startswith(f"{sdk.NAME.split()[0]} ")
    assert hooked.endswith(
        "up to 120 s for a new route, and up to 60 s after a 404 on one that worked."
    )
    assert places == [f"{guarded}.", f"{passed}."]
    assert "secret" not in caplog.text + str(found)
    del kept
    install_guard(control_plane=FakeControlPlane(), child_processes=False, replace=True)
    assert "  control plane: the program's own" in str(status())
    assert "  child processes: not guarded" in str(status())


HEADS = "http://head:8000/one", "http://head:8000/two"


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        ((), "http://head:8000/{job}", {f"requests to {url} are guarded": 1 for url in HEADS}),
        ((), "http://head:8000/{_k}", {"requests to http://head:8000/{_k} are guarded": 2}),
        ("http://head:8000/{job}", (), {"http://head:8000 is no trainer route": 2}),
        ("http://head:8000/{_k}", "http://head:8000/{job}", {f"requests to {HEADS[0]} are": 1}),
    ],
    ids=["guarded", "guarded-as-one", "not-guarded", "shown-otherwise"],
)
def test_places_are_described_by_the_settings_in_force(
    before: Any, after: Any, shown: dict[str, int]
) -> None:
    install_guard(routes=before)
    kept = [sdk_client(base_url=url) for url in HEADS]
    install_guard(routes=after, replace=True)
    kept.append(sdk_client())
    places = {str(place): count for place, count in status().clients.items()}
    for said, count in shown.items():
        (found,) = [count for place, count in places.items() if place.startswith(said)]
        assert found == count
    # Each client counts once; one of an earlier test may be there still.
    of_head = [count for place, count in places.items() if "head:8000" in place]
    assert sum(of_head) == 2
    del kept


@pytest.mark.parametrize("depth", [1, 2])
def test_a_class_derived_from_a_guarded_one_is_guarded(depth: int, fake_sdk: Any) -> None:
    """Another library may put its own class into the SDK after the installation."""
    install_guard()
    for _ in range(depth):
        fake_sdk.Client = type("Derived", (fake_sdk.Client,), {})
    assert status().sdks["fake_sdk"] == "guarded"
    client = fake_sdk.Client(make=lambda: httpx.AsyncClient(transport=FakeTransport(GATEWAY, 0)))
    assert isinstance(own_transport(client), GuardTransport)


@pytest.mark.parametrize("put", [object, print, None], ids=["class", "function", "None"])
def test_what_is_derived_from_no_guarded_class_is_not_guarded(put: Any, fake_sdk: Any) -> None:
    install_guard()
    fake_sdk.Client = put
    assert status().sdks["fake_sdk"] == "not guarded"


def test_a_guard_shows_its_settings() -> None:
    guard = GuardTransport(GATEWAY.new_transport(), settings=GuardSettings(retry_timeout=7))
    assert guard.settings.retry_timeout == 7
    with pytest.raises(AttributeError):
        guard.settings = GuardSettings()  # type: ignore[misc]


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
    monkeypatch.setattr(installation, "SDKS", (*SDKS, fake))
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
    fake_sdk: Any, original_init: Any
) -> None:
    client = sdk_client()
    inner = own_transport(client)

    class Unchangeable(type):
        def __setattr__(cls, name: str, value: object) -> None:
            raise ZeroDivisionError

    # It comes after the real SDK.
    fake_sdk.Client = Unchangeable("Client", (fake_sdk.Client,), {})
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
    monkeypatch.setattr(installation, "SDKS", (*SDKS, late))
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


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_second_call_guards_what_was_overlooked(
    when: str, late_sdk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program's test may put `sys.meta_path` back to what it was before the first call."""
    late_sdk.write_text(LATE_SDK + POOL)
    with monkeypatch.context() as context:
        context.setattr(sys, "meta_path", [*sys.meta_path])
        install_guard()
    if when == "before":
        install_guard()
    late = importlib.import_module("late_sdk.holder")
    if when == "after":
        assert status().sdks["late-sdk"] == "not guarded"
        install_guard()
    assert status().sdks["late-sdk"] == "guarded"
    client = late.Client(make=lambda: httpx.AsyncClient(transport=FakeTransport(GATEWAY, 0)))
    assert isinstance(own_transport(client), GuardTransport)


class _RaisingHandler(logging.Handler):
    """Sends each record somewhere that is not there."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.emitted = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.emitted += 1
        raise ConnectionError


@pytest.fixture
def raising_handler(caplog: pytest.LogCaptureFixture) -> Iterator[_RaisingHandler]:
    handler, logger = _RaisingHandler(), logging.getLogger("tinker_guard")
    caplog.set_level(logging.DEBUG, "tinker_guard")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@pytest.mark.meets_fault
@pytest.mark.parametrize("is_automatic", [True, False])
def test_a_handler_that_raises_breaks_neither_an_import_nor_an_installation(
    late_sdk: Path,
    raising_handler: _RaisingHandler,
    is_automatic: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    late_sdk.write_text(LATE_SDK + POOL)
    monkeypatch.setenv("TINKER_BASE_URL", "http://trainer.test")
    monkeypatch.setenv("TINKER_GUARD_RETRY_TIMOUT", "5")
    if is_automatic:
        installation.install_unattended(None, None)
    else:
        install_guard()
    said = raising_handler.emitted
    late = importlib.import_module("late_sdk.holder")
    assert raising_handler.emitted > said > 0
    client = late.Client(make=lambda: httpx.AsyncClient(transport=FakeTransport(GATEWAY, 0)))
    assert isinstance(own_transport(client), GuardTransport)
    # Each of these says something too.
    late.Client.__init__ = functools.partial(late.Client.__init__)
    install_guard(enabled=False, replace=True)
    install_guard(export="jsonl:/no/such/place/run.jsonl")
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
    installation.install_unattended(None, None)
    importlib.import_module("late_sdk.holder")
    assert [record.getMessage() for record in caplog.records] == [
        "this process runs unguarded. tinker_guard cannot guard late-sdk unknown version: it has "
        "no late_sdk.holder.ClientConnectionPool.aclient. Tested versions: 1 to 2. Install one of "
        "those, or remove install_guard() to run unguarded."
    ]


def test_unattended_and_strict_an_sdk_without_the_hook_point_is_refused(
    late_sdk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late_sdk.write_text(LATE_SDK)
    monkeypatch.setenv("TINKER_GUARD_STRICT", "yes")
    installation.install_unattended(None, None)
    with pytest.raises(UnsupportedSdkError, match=r"no late_sdk\.holder\.ClientConnectionPool"):
        importlib.import_module("late_sdk.holder")


@pytest.mark.parametrize(
    ("variables", "is_strict"),
    [
        ({"TINKER_GUARD_STRICT": '"true"'}, True),
        ({"TINKER_GUARD_STRICT": "true "}, True),
        ({"TINKER_GUARD_STRICT": "True", "TINKER_GUARD_RETRY_TIMEOUT": "soon"}, True),
        ({"tinker_guard_strict": "1", "TINKER_GUARD_RETRY_TIMEOUT": "soon"}, True),
        ({"TINKER_GUARD_STRICT": "Off", "TINKER_GUARD_RETRY_TIMEOUT": "soon"}, False),
        ({"TINKER_GUARD_STRICT": "", "TINKER_GUARD_RETRY_TIMEOUT": "soon"}, False),
    ],
)
def test_unattended_settings_that_cannot_be_read_are_refused_if_strict(
    variables: dict[str, str],
    is_strict: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidSettingsError) if is_strict else nullcontext():
        installation.install_unattended(None, None)
    assert len(caplog.records) == (not is_strict)


def test_no_sdk_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "SDKS", ())
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


@pytest.fixture
def instrument() -> Iterator[Callable[..., None]]:
    """Instruments with the given arguments, for the time of a test."""
    instrumentor = TinkerGuardInstrumentor()
    yield instrumentor.instrument
    instrumentor.uninstrument()


@pytest.mark.parametrize(
    "given",
    [
        {"settings": {"retry_timeout": 60}},
        {"settings": 60},
        {"settings": {}},
        {"settings": "strict"},
        {"settings": GuardSettings(), "retry_timeout": 60},
        {"retry_timeout": "soon"},
        {"retry_timeout": True},
        {"control_plane": "nothing"},
        {"control_plane": "http"},
        {"control_plane": object()},
        {"control_plane": FakeControlPlane},
        {"control_plane": 5},
        {"control_plane_url": "https://api.test", "control_plane": "http", "routes": "{x}"},
    ],
    ids=lambda given: "-".join(map(str, given)),
)
def test_the_instrumentor_logs_what_install_guard_would_raise(
    given: dict[str, Any],
    instrument: Callable[..., None],
    original_init: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(InvalidSettingsError) as refused:
        install_guard(**given)
    instrument(**given)
    assert caplog.messages == [f"this process runs unguarded. {refused.value}"]
    assert sdk.client_class.__init__ is original_init


@pytest.mark.parametrize(
    ("given", "variable", "is_strict"),
    [
        ({"settings": 60}, "1", True),
        ({"settings": 60}, "", False),
        ({"settings": GuardSettings(strict=True), "retry_timeout": 60}, "", True),
        ({"settings": GuardSettings(strict=False), "retry_timeout": 60}, "1", False),
        ({"retry_timeout": "soon", "strict": True}, "0", True),
        ({"retry_timeout": "soon", "strict": "yes"}, "", True),
        ({"retry_timeout": "soon", "strict": False}, "1", False),
        ({"retry_timeout": "soon", "strict": "off"}, "1", False),
        ({"control_plane": 5}, "1", True),
    ],
)
def test_the_instrumentor_raises_it_if_strict_is_set(
    given: dict[str, Any],
    variable: str,
    is_strict: bool,
    instrument: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("TINKER_GUARD_STRICT", variable)
    with pytest.raises(InvalidSettingsError) if is_strict else nullcontext():
        instrument(**given)
    assert len(caplog.messages) == (not is_strict)


@pytest.mark.parametrize(
    ("given", "settings", "has_own"),
    [
        ({"control_plane": "none"}, GuardSettings(control_plane="none"), False),
        ({"control_plane": None}, GuardSettings(), False),
        ({"control_plane": FakeControlPlane()}, GuardSettings(), True),
        ({"settings": GuardSettings(retry_timeout=60)}, GuardSettings(retry_timeout=60), False),
        (
            {"retry_timeout": 60, "strict": True},
            GuardSettings(retry_timeout=60, strict=True),
            False,
        ),
    ],
    ids=["name", "None", "object", "settings", "by-name"],
)
def test_the_instrumentor_takes_what_install_guard_takes(
    given: dict[str, Any],
    settings: GuardSettings,
    has_own: bool,
    instrument: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    instrument(**given)
    assert status().settings == settings
    assert status().has_own_control_plane is has_own
    assert caplog.messages == []
    client = sdk_client(http_client=httpx.AsyncClient(transport=GATEWAY.new_transport()))
    assert asyncio.run(send_with_sdk(client)).status_code == 200


@pytest.mark.meets_fault
def test_the_instrumentor_names_the_arguments_that_it_ignores(
    instrument: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    instrument(retry_timout=5, retry_timeout=60, tracer_provider=object(), qqq="geheim")
    assert caplog.messages == [
        "TinkerGuardInstrumentor ignores arguments: retry_timout (is no setting; did you mean "
        "retry_timeout?), tracer_provider (the guard uses the program's global provider), qqq "
        "(is no setting)."
    ]
    found = status().settings
    assert found is not None
    assert found.retry_timeout == 60


def test_answers_reach_the_caller_through_an_installed_guard() -> None:
    gateway = FakeGateway(lambda _: gateway_404() if len(gateway.exchanges) == 1 else ok())
    install_guard(GuardSettings(warmup_successes=0), control_plane=FakeControlPlane())
    client = httpx.AsyncClient(transport=gateway.new_transport())
    sdk_client(http_client=client)
    assert asyncio.run(client.get(f"{BASE}/api/v1/healthz")).json() == {"ok": True}
    assert len(gateway.sent) == 2
