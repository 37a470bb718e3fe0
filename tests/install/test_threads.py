"""Installing, uninstalling, importing and building clients in several threads at once."""

from __future__ import annotations

import gc
import importlib
import os
import sys
import threading
import time
import weakref
from contextlib import contextmanager
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from testkit.clients import CLIENT, httpx_client_of, transport_of
from tests.end_to_end import sdk
from tinker_guard import GuardSettings, GuardTransport, install_guard, uninstall_guard
from tinker_guard.install import installation, unattended
from tinker_guard.install.clients import WeakRegistry, transports_of
from tinker_guard.install.installation import AlreadyInstalledError
from tinker_guard.install.sdks import SDKS, Sdk, UnsupportedSdkError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from importlib.machinery import ModuleSpec
    from pathlib import Path

NO_CHILDREN = GuardSettings(child_processes=False)
OTHER = GuardSettings(child_processes=False, retry_timeout=7)

HOLDER = """
import httpx
class Client:
    _client: httpx.AsyncClient
    def __init__(self, make=httpx.AsyncClient):
        self._client = make()
class ClientConnectionPool:
    def aclient(self): ...
"""
GATE = """
import threading
begun, go_on = threading.Event(), threading.Event()
def wait():
    begun.set()
    assert go_on.wait(10)
"""


def start(target: Callable[..., object], *arguments: Any) -> threading.Thread:
    # A daemon, so that a deadlock fails a test and does not keep the run from its end.
    thread = threading.Thread(target=target, args=arguments, daemon=True)
    thread.start()
    return thread


def finish(*threads: threading.Thread) -> None:
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads), "deadlock"


class Late:
    """An SDK that is installed, and not imported."""

    def __init__(self, place: Path) -> None:
        self.place = place / "late_sdk"
        self.place.mkdir()
        (self.place / "__init__.py").touch()
        (self.place / "gate.py").write_text(GATE)
        self.write("")

    def write(self, before: str, after: str = "") -> None:
        """Have the holder run code before and after its classes are defined."""
        (self.place / "holder.py").write_text(before + HOLDER + after)
        importlib.invalidate_caches()

    def import_holder(self) -> Any:
        return importlib.import_module("late_sdk.holder")

    @property
    def gate(self) -> Any:
        return importlib.import_module("late_sdk.gate")

    def is_guarded(self) -> bool:
        client = self.import_holder().Client()
        return isinstance(transport_of(client), GuardTransport)


@pytest.fixture
def late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Late]:
    monkeypatch.syspath_prepend(tmp_path)
    one = Sdk("late-sdk", "late_sdk", "late_sdk.holder", "Client", tested=("1", "2"))
    monkeypatch.setattr(installation, "SDKS", (*SDKS, one))
    yield Late(tmp_path)
    uninstall_guard()
    for name in [name for name in sys.modules if name.partition(".")[0] == "late_sdk"]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def nothing_left_in_place() -> Iterator[None]:
    """After the last `uninstall_guard()` all is as before the first `install_guard()`."""
    init, finders = sdk.client_class.__init__, list(sys.meta_path)
    environment = dict(os.environ)
    yield
    uninstall_guard()
    assert sdk.client_class.__init__ is init
    assert "_client" not in vars(sdk.client_class)
    assert sys.meta_path == finders
    assert {n: v for n, v in os.environ.items() if n != "PYTEST_CURRENT_TEST"} == {
        n: v for n, v in environment.items() if n != "PYTEST_CURRENT_TEST"
    }


@contextmanager
def quick_switches() -> Iterator[None]:
    """Let threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


# -- imports -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        "install_guard(NO_CHILDREN)",
        "install_guard(OTHER, replace=True)",
        "uninstall_guard(); install_guard(NO_CHILDREN)",
    ],
)
def test_what_runs_during_an_import_may_install(late: Late, call: str) -> None:
    """It holds the import's lock and needs ours; who installs must not have the two crosswise."""
    late.write(
        "from tinker_guard import *\nfrom tests.install.test_threads import NO_CHILDREN, OTHER\n"
        "from late_sdk import gate\ngate.wait()\n",
        f"{call}\n",
    )
    install_guard(NO_CHILDREN)
    importing = start(late.import_holder)
    assert late.gate.begun.wait(10)

    def install_anew() -> None:
        uninstall_guard()
        install_guard(NO_CHILDREN, replace=True)

    installing = start(install_anew)
    # Long enough for it to wait for the import, which it does to the import's end.
    installing.join(0.2)
    assert installing.is_alive()
    late.gate.go_on.set()
    finish(importing, installing)
    assert late.is_guarded()


def test_the_end_of_an_import_and_changes_in_other_threads(
    late: Late, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The callback waits for a lock while another thread goes from one change to the next."""
    late.write("from late_sdk import gate\ngate.wait()\n")
    install_guard(NO_CHILDREN)
    client = sdk.client(api_key="tml-key", base_url="https://gateway.test")
    configure = GuardTransport.configure

    def slow(*arguments: Any) -> None:
        late.gate.go_on.set()
        # Long enough for the import to end, and to wait for the lock that is held here.
        time.sleep(0.2)
        configure(*arguments)

    monkeypatch.setattr(GuardTransport, "configure", slow)

    def change() -> None:
        assert late.gate.begun.wait(10)
        install_guard(OTHER, replace=True)
        uninstall_guard()
        install_guard(NO_CHILDREN)

    finish(start(late.import_holder), start(change))
    assert late.is_guarded()
    assert isinstance(transport_of(client), GuardTransport)


class _SlowFinder:
    """Finds the holder as the others do, once it is let."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()

    def find_spec(self, name: str, path: Any, target: object = None) -> ModuleSpec | None:
        if name != "late_sdk.holder":
            return None
        self.begun.set()
        assert self.go_on.wait(10)
        return PathFinder.find_spec(name, path)


def test_an_import_that_began_before_the_guard_is_not_missed(
    late: Late, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even one that has found nothing yet."""
    slow = _SlowFinder()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "meta_path", [slow, *sys.meta_path])
        importing = start(late.import_holder)
        assert slow.begun.wait(10)
        installing = start(install_guard, NO_CHILDREN)
        installing.join(0.1)
        slow.go_on.set()
        finish(importing, installing)
        assert late.is_guarded()
        uninstall_guard()


def test_an_import_that_fails_when_the_guard_is_in_place_takes_it_out_again(
    late: Late, monkeypatch: pytest.MonkeyPatch
) -> None:
    (late.place / "holder.py").write_text("")
    init, slow = sdk.client_class.__init__, _SlowFinder()
    errors: list[UnsupportedSdkError] = []

    def install() -> None:
        try:
            install_guard(NO_CHILDREN)
        except UnsupportedSdkError as error:
            errors.append(error)

    with monkeypatch.context() as patched:
        patched.setattr(sys, "meta_path", [slow, *sys.meta_path])
        importing = start(late.import_holder)
        assert slow.begun.wait(10)
        installing = start(install)
        installing.join(0.1)
        slow.go_on.set()
        finish(importing, installing)
    assert "late_sdk.holder.ClientConnectionPool" in str(errors)
    assert sdk.client_class.__init__ is init


def test_uninstalling_while_an_import_installs_leaves_nothing(
    late: Late, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `tinker-guard run` has it: the import of an SDK installs the guard."""
    monkeypatch.setattr(unattended, "PACKAGES", ("late_sdk",))
    monkeypatch.setattr(unattended, "HOLDERS", ("late_sdk.holder",))
    unattended.install_when_needed(NO_CHILDREN)
    init, check = sdk.client_class.__init__, Sdk.check_holder

    def check_slowly(self: Sdk) -> None:
        finish(start(uninstall_guard))
        check(self)

    monkeypatch.setattr(Sdk, "check_holder", check_slowly)
    importlib.import_module("late_sdk")
    assert sdk.client_class.__init__ is init
    assert not late.is_guarded()


def test_the_holders_import_may_begin_in_another_thread_than_the_packages(
    late: Late, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when one thread imports the SDK, and another unpickles one of its clients."""
    monkeypatch.setattr(unattended, "PACKAGES", ("late_sdk",))
    monkeypatch.setattr(unattended, "HOLDERS", ("late_sdk.holder",))
    (late.place / "__init__.py").write_text(
        "from late_sdk import gate\ngate.in_package.set()\ngate.wait()\n"
    )
    (late.place / "gate.py").write_text(GATE + "in_package = threading.Event()\n")
    # It waits for the package, at whose end the guard waits for this one: Python finds the circle
    # and lets one of them go on.
    late.write("import sys\nsys.modules['late_sdk.gate'].go_on.set()\nimport late_sdk\n")
    unattended.install_when_needed(NO_CHILDREN)
    package = start(importlib.import_module, "late_sdk")
    while "late_sdk.gate" not in sys.modules:
        time.sleep(0.001)
    assert late.gate.in_package.wait(10)
    finish(start(late.import_holder), package)
    assert late.is_guarded()


# -- clients -------------------------------------------------------------------------------------


def test_a_client_that_is_being_guarded_is_not_left_behind(
    late: Late, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = late.import_holder()
    install_guard(NO_CHILDREN)
    uninstalling: list[threading.Thread] = []

    def slow(client: httpx.AsyncClient) -> Any:
        if not uninstalling:
            uninstalling.append(start(uninstall_guard))
            uninstalling[0].join(0.1)
        return transports_of(client)

    monkeypatch.setattr(installation, "transports_of", slow)
    client = holder.Client()
    finish(*uninstalling)
    assert not isinstance(transport_of(client), GuardTransport)


@pytest.mark.parametrize("is_older", [False, True], ids=["built-guarded", "built-before"])
def test_a_client_that_is_being_built_while_the_guard_goes_ends_unguarded(
    late: Late, is_older: bool
) -> None:
    holder, gate = late.import_holder(), late.gate
    built: list[Any] = []

    def make() -> httpx.AsyncClient:
        gate.wait()
        return httpx.AsyncClient()

    if not is_older:
        install_guard(NO_CHILDREN)
    building = start(lambda: built.append(holder.Client(make)))
    assert gate.begun.wait(10)
    install_guard(NO_CHILDREN)
    uninstall_guard()
    gate.go_on.set()
    finish(building)
    assert not isinstance(transport_of(built[0]), GuardTransport)


def test_a_client_that_is_being_built_when_the_guard_comes_is_guarded(
    late: Late, caplog: pytest.LogCaptureFixture
) -> None:
    holder, gate = late.import_holder(), late.gate
    built: list[Any] = []

    def make() -> httpx.AsyncClient:
        gate.wait()
        return httpx.AsyncClient()

    building = start(lambda: built.append(holder.Client(make)))
    assert gate.begun.wait(10)
    install_guard(NO_CHILDREN)
    gate.go_on.set()
    finish(building)
    assert isinstance(transport_of(built[0]), GuardTransport)
    assert "another thread was building a client" not in caplog.text


def test_many_threads_that_use_an_older_client_guard_it_once(late: Late) -> None:
    holder = late.import_holder()
    for _ in range(50):
        client = holder.Client()
        inner = transport_of(client)
        install_guard(NO_CHILDREN)
        barrier = threading.Barrier(4)
        found: list[Any] = []

        def use(
            client: Any = client, barrier: threading.Barrier = barrier, found: Any = found
        ) -> None:
            barrier.wait(10)
            found.append(transport_of(client))

        with quick_switches():
            finish(*[start(use) for _ in range(4)])
        assert len({id(transport) for transport in found}) == 1
        assert isinstance(found[0], GuardTransport)
        assert found[0].transport is inner
        uninstall_guard()
        assert transport_of(client) is inner


def test_uninstalling_while_clients_are_built_raises_nothing_and_misses_none(late: Late) -> None:
    holder = late.import_holder()
    transport = httpx.MockTransport(lambda _: httpx.Response(200))

    def make() -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=transport)

    for _ in range(20):
        install_guard(NO_CHILDREN)
        clients = [holder.Client(make) for _ in range(1000)]
        is_over = threading.Event()

        def build(clients: Any = clients, is_over: threading.Event = is_over) -> None:
            while not is_over.is_set():
                clients.append(holder.Client(make))

        with quick_switches():
            building = [start(build) for _ in range(4)]
            try:
                time.sleep(0.02)
                uninstall_guard()
            finally:
                is_over.set()
                finish(*building)
        assert all(transport_of(client) is transport for client in clients)


class Thing:
    pass


@pytest.mark.parametrize("kind", [WeakRegistry, weakref.WeakSet])
def test_a_registry_may_change_while_it_is_gone_through(kind: Any) -> None:
    things = [Thing() for _ in range(10)]
    registry = kind()
    for thing in things:
        registry.add(thing)
    seen, more = [], []

    def go_through() -> None:
        for thing in registry:
            seen.append(thing)
            more.append(Thing())
            registry.add(more[-1])

    if kind is weakref.WeakSet:
        # Why there is a registry at all.
        with pytest.raises(RuntimeError, match="changed size"):
            go_through()
        return
    go_through()
    assert set(seen) == set(things)
    assert all(thing in registry for thing in [*things, *more])
    assert Thing() not in registry
    del thing, seen[:], more[:]
    things.clear()
    gc.collect()
    assert list(registry) == []
    assert registry.by_id == {}


# -- all at once ---------------------------------------------------------------------------------


def test_everything_at_once(late: Late) -> None:
    """Two seconds of all that threads can do; what is left is looked at in the end."""
    errors: list[BaseException] = []
    built: list[Any] = []
    ends_at = time.monotonic() + 2

    def forever(act: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            try:
                while time.monotonic() < ends_at:
                    act()
            except BaseException as error:
                errors.append(error)

        return run

    def install() -> None:
        try:
            install_guard(NO_CHILDREN)
        except AlreadyInstalledError:
            uninstall_guard()

    def build() -> None:
        client = late.import_holder().Client()
        built.append(client)
        assert httpx_client_of(client) is vars(client)[CLIENT]
        if len(built) > 200:
            # Half of them are collected while others go through them.
            del built[::2]

    def use() -> None:
        for client in built[-50:]:
            assert httpx_client_of(client) is not None

    def replace() -> None:
        install_guard(OTHER, replace=True)

    def import_anew() -> None:
        importlib.reload(late.import_holder())

    acts: list[Callable[[], object]] = [
        *(install, uninstall_guard, replace, build, build, use, import_anew, gc.collect)
    ]
    late.import_holder()
    with quick_switches():
        finish(*[start(forever(act)) for act in acts])
    uninstall_guard()
    assert errors == []
    assert built
    for client in built:
        assert not isinstance(transport_of(client), GuardTransport)
    assert not hasattr(late.import_holder().Client.__init__, "__wrapped__")
    assert not late.is_guarded()
