"""Puts the guard into installed SDKs and takes it out again.

The seam is the constructor of the SDK's async client: every client that the internal client
holder builds passes through it, and so does one that a user builds. Its `_client` is the
`httpx.AsyncClient` through which all of that client's requests go.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import threading
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from tinker_guard import logs
from tinker_guard.children import SETTINGS, bequeath, withhold
from tinker_guard.export import start_export
from tinker_guard.imports import forget_all, when_imported
from tinker_guard.line import BorrowedTransport
from tinker_guard.sdks import SDKS, Sdk, UnsupportedSdkError
from tinker_guard.settings import GuardSettings
from tinker_guard.transport import GuardTransport

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from tinker_guard.control_plane import ControlPlane


class AlreadyInstalledError(RuntimeError):
    """The guard is installed with other settings, and `replace=True` was not given."""


class _Installation:
    """What `install_guard()` put in place, and how to take it away."""

    def __init__(
        self, settings: GuardSettings, control_plane: ControlPlane | None, *, is_automatic: bool
    ) -> None:
        self.settings = settings
        self.control_plane = control_plane
        self.is_automatic = is_automatic
        """Whether nobody asked for it in the program, whose own call overrides it."""
        self._is_active = True
        self._hooked: set[type[Any]] = set()
        self._undo = ExitStack()
        self._clients: WeakSet[httpx.AsyncClient] = WeakSet()
        self._guards: WeakSet[GuardTransport] = WeakSet()

    def hook_into(self, sdk: Sdk, *, has_clients: bool) -> None:
        """Guard an imported SDK's clients, unless that is done.

        Args:
            sdk: The SDK.
            has_clients: Whether it may have clients already.

        Raises:
            UnsupportedSdkError: It lacks the hook point.
        """
        if not self._is_active:
            return
        client_class, pool_class = sdk.find_hook_point()
        if client_class in self._hooked:
            return
        self._hooked.add(client_class)
        self._wrap_constructor(client_class)
        if has_clients:
            self._guard_existing(client_class, pool_class)
        if not sdk.is_tested():
            logs.logger.warning(
                "tinker_guard is installed into %s %s, which it was not tested with. Tested "
                "versions: %s.",
                sdk.distribution,
                sdk.version,
                sdk.tested_versions,
            )

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

    def is_like(self, settings: GuardSettings, control_plane: ControlPlane | None) -> bool:
        """Whether it was made with these."""
        return self.settings == settings and self.control_plane is control_plane

    def reconfigure(self, settings: GuardSettings, control_plane: ControlPlane | None) -> None:
        """Go on with other settings; requests under way are seen to their end with the old."""
        self.settings, self.control_plane = settings, control_plane
        for guard in list(self._guards):
            guard.configure(settings, control_plane)

    def bequeath(self, given: GuardSettings | None) -> None:
        """Let child processes have the guard too, with the settings given in code if any."""
        withhold(os.environ)
        if self.settings.child_processes:
            inherited = None
            if given is not None:
                inherited = given.model_dump_json(exclude={"control_plane_api_key"})
            bequeath(os.environ, inherited)

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
                logs.logger.warning(
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
            if not hasattr(client, "_client"):
                logs.logger.warning(
                    "tinker_guard: another thread was building a client meanwhile, which stays "
                    "unguarded. Call install_guard() before clients are built."
                )
                continue
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
            logs.log_fault("guarding a client")


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


# Reentrant, because a signal handler may uninstall while this is held.
_lock = threading.RLock()
_installation: _Installation | None = None


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    # A thread that held it does not exist in the child.
    os.register_at_fork(after_in_child=_renew_lock)


def install_guard(
    settings: GuardSettings | None = None,
    *,
    control_plane: ControlPlane | None = None,
    replace: bool = False,
) -> None:
    """Guard every request of the `tinker` and `fireworks-ai` training SDKs against routing races.

    Call it once at start-up; later is fine too, clients that exist already are guarded as well.
    Calling it again with the same arguments does nothing. An SDK that has not been imported yet
    is not imported for this, but guarded when it is.

    Args:
        settings: How to behave; None reads `TINKER_GUARD_*` and the defaults. With
            `enabled=False` nothing is installed.
        control_plane: Whom to ask whether a job runs; None asks the Fireworks control plane, by
            default at the route's own origin. Child processes do not inherit it.
        replace: Whether to put these settings in the place of other ones.

    Raises:
        InvalidSettingsError: A `TINKER_GUARD_*` variable has a value that cannot work.
        UnsupportedSdkError: No SDK is installed, or its version lacks the hook point. If only
            importing the SDK shows this, its `import` statement raises it.
        AlreadyInstalledError: The guard is installed with other settings.
    """
    _install(settings, control_plane, replace=replace, is_automatic=False)


def install_unattended(settings: GuardSettings | None, control_plane: ControlPlane | None) -> None:
    """Install the guard where nobody can catch an error: it is logged, and the run unguarded.

    What the program itself has installed stays. Without settings, those count that a parent
    process was given in code.
    """
    try:
        if settings is None and (inherited := os.environ.get(SETTINGS)):
            settings = GuardSettings(**json.loads(inherited))
        _install(settings, control_plane, replace=False, is_automatic=True)
    except Exception as error:
        _log_unguarded(error)


def _log_unguarded(error: Exception) -> None:
    logs.logger.warning("tinker_guard: this process runs unguarded. %s", error)


def _install(
    given: GuardSettings | None,
    control_plane: ControlPlane | None,
    *,
    replace: bool,
    is_automatic: bool,
) -> None:
    global _installation
    settings = given or GuardSettings()
    with _lock:
        current = _installation
        if current is not None:
            if is_automatic or current.is_like(settings, control_plane):
                current.is_automatic &= is_automatic
                return
            if not replace and not current.is_automatic:
                raise AlreadyInstalledError(
                    "install_guard() was called before with other settings. Pass replace=True to "
                    "change them, or call uninstall_guard() first."
                )
        if not settings.enabled:
            logs.logger.info("tinker_guard is off (enabled=False); requests go unguarded.")
            _remove()
            return
        if current is None:
            installation = _hook_into_installed(settings, control_plane, is_automatic=is_automatic)
            _installation = installation
        else:
            installation = current
            installation.reconfigure(settings, control_plane)
            installation.is_automatic = False
        installation.bequeath(given)
    if current is None:
        # Without the lock: an import that another thread has begun is waited for.
        for sdk in SDKS:
            hook = partial(_hook_into_imported, installation, sdk, has_clients=sdk.is_imported())
            when_imported(sdk.holder_module, hook)
    if settings.export is not None:
        start_export(settings.export)


def _hook_into_installed(
    settings: GuardSettings, control_plane: ControlPlane | None, *, is_automatic: bool
) -> _Installation:
    """Hook into the SDKs that are imported; if one of them cannot be hooked into, into none."""
    installed = [sdk for sdk in SDKS if sdk.is_installed()]
    if not installed:
        raise UnsupportedSdkError(
            "tinker_guard found nothing to guard: no SDK is installed. Install tinker or "
            "fireworks-ai[training-sdk]."
        )
    installation = _Installation(settings, control_plane, is_automatic=is_automatic)
    try:
        for sdk in installed:
            sdk.check_holder()
            if sdk.is_imported():
                installation.hook_into(sdk, has_clients=True)
    except BaseException:
        installation.uninstall()
        raise
    return installation


def _hook_into_imported(installation: _Installation, sdk: Sdk, *, has_clients: bool) -> None:
    try:
        with _lock:
            installation.hook_into(sdk, has_clients=has_clients)
    except Exception as error:
        if not installation.is_automatic:
            raise
        _log_unguarded(error)


def uninstall_guard() -> None:
    """Leave the SDK as it was before `install_guard()`; does nothing if that was not called.

    Requests that are under way keep their guard to the end.
    """
    with _lock:
        _remove()


def uninstall_unattended() -> None:
    """Take back what `install_unattended` did; a guard that the program itself installed stays."""
    with _lock:
        if _installation is None or _installation.is_automatic:
            _remove()


def _remove() -> None:
    global _installation
    forget_all()
    withhold(os.environ)
    installation, _installation = _installation, None
    if installation is not None:
        installation.uninstall()
