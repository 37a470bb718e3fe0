"""Puts the guard into installed SDKs and takes it out again.

The seam is the constructor of the SDK's async client: every client that the internal client
holder builds passes through it, and so does one that a user builds. Its `_client` is the
`httpx.AsyncClient` through which all of that client's requests go.
"""

from __future__ import annotations

import functools
import gc
import importlib
import importlib.metadata
import importlib.util
import logging
import sys
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

from opentelemetry.instrumentation.instrumentor import (  # type: ignore[attr-defined]
    BaseInstrumentor,
)
from packaging.version import InvalidVersion, Version

from tinker_guard import telemetry
from tinker_guard.line import BorrowedTransport
from tinker_guard.settings import GuardSettings
from tinker_guard.transport import GuardTransport

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Container

    import httpx

    from tinker_guard.control_plane import ControlPlane

logger: Final = logging.getLogger("tinker_guard")


class UnsupportedSdkError(RuntimeError):
    """An SDK lacks the place where the guard hooks in, or there is no SDK; nothing was changed."""


class AlreadyInstalledError(RuntimeError):
    """The guard is installed with other settings, and `replace=True` was not given."""


@dataclass(frozen=True, slots=True)
class Sdk:
    """Where the guard hooks into one SDK."""

    distribution: str
    """Name of the installed distribution, for its version."""
    package: str
    """The package that holds the SDK's clients. Without it, this SDK is not installed."""
    holder_module: str
    """The internal client holder."""
    client_name: str
    """The holder's global that names the client class it builds."""
    tested: tuple[str, str]
    """The oldest and the newest release that the tests ran against."""

    @property
    def version(self) -> str:
        """The installed version, or "unknown version"."""
        try:
            return importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            return "unknown version"

    @property
    def tested_versions(self) -> str:
        """The tested range, for people."""
        return " to ".join(self.tested)

    def is_installed(self) -> bool:
        """Whether this SDK can be imported; fireworks-ai cannot without its extra."""
        try:
            if importlib.util.find_spec(self.package) is None:
                return False
            importlib.import_module(self.holder_module)
        except ModuleNotFoundError as error:
            # Something that the SDK needs is missing, or a package around it. A missing part of
            # its own is for `find_hook_point()` to name.
            return self._has(error.name)
        return True

    def is_tested(self) -> bool:
        """Whether the installed version is within the tested range."""
        oldest, newest = map(Version, self.tested)
        try:
            return oldest <= Version(self.version) <= newest
        except InvalidVersion:
            return False

    def find_hook_point(self) -> tuple[type[Any], type[Any]]:
        """The client class and the pool class.

        Raises:
            UnsupportedSdkError: This version has them not, or not in the expected form.
        """
        try:
            holder = importlib.import_module(self.holder_module)
        except ModuleNotFoundError as error:
            if not self._has(error.name):
                raise
            raise self._unsupported(str(error.name)) from error
        client_class = getattr(holder, self.client_name, None)
        pool_class = getattr(holder, "ClientConnectionPool", None)
        missing = None
        if not isinstance(pool_class, type) or not hasattr(pool_class, "aclient"):
            missing = f"{self.holder_module}.ClientConnectionPool.aclient"
        elif not isinstance(client_class, type):
            missing = f"{self.holder_module}.{self.client_name}"
        elif not any(
            "_client" in vars(base).get("__annotations__", {}) for base in client_class.__mro__
        ):
            missing = f"{self.holder_module}.{self.client_name}._client"
        if missing is not None:
            raise self._unsupported(missing)
        assert isinstance(client_class, type)
        assert isinstance(pool_class, type)
        return client_class, pool_class

    def _has(self, module: str | None) -> bool:
        return module is not None and f"{module}.".startswith(f"{self.package}.")

    def _unsupported(self, missing: str) -> UnsupportedSdkError:
        return UnsupportedSdkError(
            f"tinker_guard cannot guard {self.distribution} {self.version}: it has no {missing}. "
            f"Tested versions: {self.tested_versions}. Install one of those, or remove "
            "install_guard() to run unguarded."
        )


SDKS: Final = (
    Sdk(
        "tinker",
        "tinker",
        "tinker.lib.internal_client_holder",
        "AsyncTinker",
        tested=("0.3.0", "0.38.0"),
    ),
    # Before 1.2.25, fireworks-ai used the installed tinker and had no such package.
    Sdk(
        "fireworks-ai",
        "fireworks.training.sdk._core",
        "fireworks.training.sdk._core.lib.internal_client_holder",
        "AsyncTrainingHTTPClient",
        tested=("1.2.28", "1.2.30"),
    ),
)


class _Installation:
    """What `install_guard()` put in place, and how to take it away."""

    def __init__(
        self, settings: GuardSettings, control_plane: ControlPlane | None, *, is_automatic: bool
    ) -> None:
        self.settings = settings
        self.control_plane = control_plane
        self.is_automatic = is_automatic
        """Whether an instrumentation installed it, which the program's own call overrides."""
        self._is_active = True
        self._undo = ExitStack()
        self._clients: WeakSet[httpx.AsyncClient] = WeakSet()
        self._guards: WeakSet[GuardTransport] = WeakSet()

    def install(self, sdks: list[Sdk], imported_before: Container[str]) -> None:
        """Hook into SDKs; if one of them cannot be hooked into, into none.

        Args:
            sdks: The SDKs.
            imported_before: Modules that others have imported, and so may have clients of.

        Raises:
            UnsupportedSdkError: One of them lacks the hook point.
        """
        try:
            for sdk in sdks:
                client_class, pool_class = sdk.find_hook_point()
                self._wrap_constructor(client_class)
                if sdk.holder_module in imported_before:
                    self._guard_existing(client_class, pool_class)
        except BaseException:
            self.uninstall()
            raise

    def uninstall(self) -> None:
        """Leave the SDKs as they were; guards that something else has wrapped go idle."""
        self._is_active = False
        self._undo.close()
        for client in list(self._clients):
            for pattern, transport in _transports(client):
                if isinstance(transport, GuardTransport):
                    _set_transport(client, pattern, transport.release())
        for guard in list(self._guards):
            guard.release()

    def reconfigure(self, settings: GuardSettings, control_plane: ControlPlane | None) -> None:
        """Go on with other settings; requests under way are seen to their end with the old."""
        self.settings, self.control_plane = settings, control_plane
        for guard in list(self._guards):
            guard.configure(settings, control_plane)

    def _wrap_constructor(self, client_class: type[Any]) -> None:
        original = client_class.__init__
        was_its_own = "__init__" in vars(client_class)

        @functools.wraps(original)
        def guarded_init(client: Any, *args: Any, **kwargs: Any) -> None:
            original(client, *args, **kwargs)
            if not self._is_active:
                return

            # Not the client itself: that would be a cycle, and the SDK relies on a client that
            # goes out of use being finalized at once.
            own_class = type(client)

            def build() -> httpx.AsyncClient:
                return _build_client(original, own_class, args, kwargs)

            # A client that was handed in cannot be built anew from these arguments.
            self._guard(client, None if kwargs.get("http_client") is not None else build)

        def restore() -> None:
            if client_class.__init__ is not guarded_init:
                logger.warning(
                    "tinker_guard: something else has wrapped %s since; it keeps working, and the "
                    "guard below it goes idle.",
                    client_class.__qualname__,
                )
            elif was_its_own:
                client_class.__init__ = original
            else:
                del client_class.__init__

        client_class.__init__ = guarded_init
        self._undo.callback(restore)

    def _guard_existing(self, client_class: type[Any], pool_class: type[Any]) -> None:
        clients: list[Any] = []
        constructor_kwargs: dict[int, dict[str, Any]] = {}
        # The SDK keeps no list of its holders, so the garbage collector is asked.
        for candidate in gc.get_objects():
            if issubclass(type(candidate), client_class):
                clients.append(candidate)
            elif issubclass(type(candidate), pool_class):
                for client in getattr(candidate, "_clients", ()):
                    constructor_kwargs[id(client)] = getattr(candidate, "_constructor_kwargs", {})
        for client in clients:
            kwargs = constructor_kwargs.get(id(client))
            self._guard(client, _builder(client_class, kwargs) if kwargs else None)

    def _guard(self, sdk_client: Any, build: Callable[[], httpx.AsyncClient] | None) -> None:
        try:
            client: httpx.AsyncClient = sdk_client._client
            transports = _transports(client)
            if any(isinstance(transport, GuardTransport) for _, transport in transports):
                return
            self._clients.add(client)
            for pattern, transport in transports:
                guard = GuardTransport(
                    transport,
                    settings=self.settings,
                    control_plane=self.control_plane,
                    new_transport=_borrower(build, pattern) if build else None,
                )
                self._guards.add(guard)
                _set_transport(client, pattern, guard)
        except Exception:
            telemetry.log_fault("guarding a client")


# What `httpx.AsyncClient._mounts` calls its keys; None stands for the client's own transport.
_Pattern = Any


def _transports(client: httpx.AsyncClient) -> list[tuple[_Pattern, httpx.AsyncBaseTransport]]:
    """A client's own transport and its proxy mounts (a mount may be None: no proxy there)."""
    return [
        (None, client._transport),
        *((pattern, mount) for pattern, mount in client._mounts.items() if mount is not None),
    ]


def _set_transport(
    client: httpx.AsyncClient, pattern: _Pattern, transport: httpx.AsyncBaseTransport
) -> None:
    if pattern is None:
        client._transport = transport
    else:
        client._mounts[pattern] = transport


def _build_client(
    init: Callable[..., None], client_class: type[Any], args: Any, kwargs: Any
) -> httpx.AsyncClient:
    """Build the httpx client that an SDK client constructed like this would have."""
    sdk_client: Any = object.__new__(client_class)
    init(sdk_client, *args, **kwargs)
    built: httpx.AsyncClient = sdk_client._client
    return built


def _builder(client_class: type[Any], kwargs: dict[str, Any]) -> Callable[[], httpx.AsyncClient]:
    init = client_class.__init__.__wrapped__
    return lambda: _build_client(init, client_class, (), kwargs)


def _borrower(
    build: Callable[[], httpx.AsyncClient], pattern: _Pattern
) -> Callable[[], httpx.AsyncBaseTransport]:
    """Builds a transport for one place of a client, the way the SDK builds its own."""

    def borrow() -> httpx.AsyncBaseTransport:
        client = build()
        # `_mounts` compares its keys by their pattern, so the new client's are found by ours.
        transport = client._transport if pattern is None else client._mounts[pattern]
        assert transport is not None
        return BorrowedTransport(transport, client)

    return borrow


_lock = threading.Lock()
_installation: _Installation | None = None


def install_guard(
    settings: GuardSettings | None = None,
    *,
    control_plane: ControlPlane | None = None,
    replace: bool = False,
) -> None:
    """Guard every request of the `tinker` and `fireworks-ai` training SDKs against routing races.

    Call it once at start-up; later is fine too, clients that exist already are guarded as well.
    Calling it again with the same arguments does nothing.

    Args:
        settings: How to behave; None reads `TINKER_GUARD_*` and the defaults. With
            `enabled=False` nothing is installed.
        control_plane: Whom to ask whether a job runs; None asks the Fireworks control plane, by
            default at the route's own origin.
        replace: Whether to put these settings in the place of other ones.

    Raises:
        InvalidSettingsError: A `TINKER_GUARD_*` variable has a value that cannot work.
        UnsupportedSdkError: No SDK is installed, or its version lacks the hook point.
        AlreadyInstalledError: The guard is installed with other settings.
    """
    _install(settings, control_plane, replace=replace, is_automatic=False)


def _install(
    settings: GuardSettings | None,
    control_plane: ControlPlane | None,
    *,
    replace: bool,
    is_automatic: bool,
) -> None:
    global _installation
    settings = settings or GuardSettings()
    imported_before = frozenset(sys.modules)
    with _lock:
        current = _installation
        if current is not None:
            if current.settings == settings and current.control_plane is control_plane:
                return
            if not replace and not current.is_automatic:
                raise AlreadyInstalledError(
                    "install_guard() was called before with other settings. Pass replace=True to "
                    "change them, or call uninstall_guard() first."
                )
        if not settings.enabled:
            logger.info("tinker_guard is off (enabled=False); requests go unguarded.")
            _remove()
            return
        sdks = [sdk for sdk in SDKS if sdk.is_installed()]
        if not sdks:
            raise UnsupportedSdkError(
                "tinker_guard found nothing to guard: no SDK can be imported. Install tinker or "
                "fireworks-ai[training-sdk]."
            )
        if current is not None:
            current.reconfigure(settings, control_plane)
            current.is_automatic = is_automatic
            return
        installation = _Installation(settings, control_plane, is_automatic=is_automatic)
        installation.install(sdks, imported_before)
        _installation = installation
        for sdk in sdks:
            if not sdk.is_tested():
                logger.warning(
                    "tinker_guard is installed into %s %s, which it was not tested with. Tested "
                    "versions: %s.",
                    sdk.distribution,
                    sdk.version,
                    sdk.tested_versions,
                )


def uninstall_guard() -> None:
    """Leave the SDK as it was before `install_guard()`; does nothing if that was not called.

    Requests that are under way keep their guard to the end.
    """
    with _lock:
        _remove()


def _remove() -> None:
    global _installation
    installation, _installation = _installation, None
    if installation is not None:
        installation.uninstall()


class TinkerGuardInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """The guard as an OpenTelemetry instrumentation: `instrument()` calls `install_guard()`."""

    def instrumentation_dependencies(self) -> Collection[str]:
        """The SDKs that can be guarded."""
        # All that is named here is asked for, but one SDK is enough. No versions: a release that
        # was not tested is worth a warning, and `install_guard()` gives it.
        installed = [sdk for sdk in SDKS if sdk.is_installed()]
        return tuple(sdk.distribution for sdk in installed or SDKS[:1])

    def _instrument(self, **kwargs: Any) -> None:
        _install(
            kwargs.get("settings"), kwargs.get("control_plane"), replace=False, is_automatic=True
        )

    def _uninstrument(self, **_: Any) -> None:
        uninstall_guard()
