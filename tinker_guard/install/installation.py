"""The one installation of a process: hooks into the SDKs, changes its settings, and removes it.

There are two hooks in the SDK's async client class. The first is the constructor, which runs for
every client that the internal client holder or a user builds. The second is the attribute
`_client`, the `httpx.AsyncClient` that sends all requests of a client: it finds existing clients
at their next request. The plain httpx clients of Fireworks' REST client class, old and new, are
all found by the second kind of hook.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
import threading
from collections import Counter
from contextlib import ExitStack, suppress
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import httpx

from tinker_guard import faults
from tinker_guard.install.arguments import check_module, read_arguments, without_unknown
from tinker_guard.install.child_env import SETTINGS, changed_since, inject, is_strict_for, remove
from tinker_guard.install.clients import (
    ClientAttribute,
    WeakRegistry,
    borrower,
    constructor_arguments,
    is_built_like,
    set_transport,
    transports_of,
)
from tinker_guard.install.import_hooks import forget_all, watch, watch_again
from tinker_guard.install.last_words import repeat_after_tracebacks
from tinker_guard.install.sdks import (
    REST_CLIENTS,
    SDKS,
    RestClients,
    Sdk,
    UnsupportedSdkError,
    unguarded_requests,
)
from tinker_guard.install.status import GuardStatus, Place, RestStatus
from tinker_guard.settings import GuardSettings, check_inherited, check_url, check_variables

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tinker_guard.control_plane.protocol import AnyControlPlane
    from tinker_guard.install.clients import AnyClient
    from tinker_guard.sync_transport import SyncGuardTransport
    from tinker_guard.transport import GuardTransport

# Modules for requests are imported with the first client (`_guard_class`). A missing dependency
# is nevertheless reported at installation.
for _dependency in ("opentelemetry", "tenacity"):
    if find_spec(_dependency) is None:
        raise ModuleNotFoundError(f"No module named {_dependency!r}", name=_dependency)

# Protects `_installation` and its state. A holder of this lock must not import a module, wait for
# an import, or log anything but faults: the end of an SDK's import takes this lock
# while it holds the locks of the modules that import the SDK. Reentrant, because a signal handler
# may uninstall while this is held.
_lock = threading.RLock()
_installation: _Installation | None = None


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    # The thread that held the lock does not exist in the child.
    os.register_at_fork(after_in_child=_renew_lock)


class AlreadyInstalledError(RuntimeError):
    """The guard is installed with other settings, and `replace=True` was not given."""


class UnguardedError(RuntimeError):
    """With `strict`: a client of an SDK cannot be guarded, and must not be used."""


class _Request(NamedTuple):
    """The arguments of one call of `install_guard()`."""

    settings: GuardSettings
    control_plane: AnyControlPlane | None
    for_children: str | None
    """The value of the variable `child_env.SETTINGS` for child processes."""
    replace: bool
    is_automatic: bool
    """Whether the guard installed itself; a call by the program overrides this one."""


class _Installation:
    """The hooks of `install_guard()`, and how to remove them.

    Callers of its methods hold `_lock`. Its hooks in the SDK take that lock
    themselves.
    """

    def __init__(self, request: _Request) -> None:
        self.settings = request.settings
        self.control_plane = request.control_plane
        self.for_children = request.for_children
        self.is_automatic = request.is_automatic
        self.places: Counter[Place] = Counter()
        """Number of guarded clients, by their destination."""
        # The same by the whole base URL, which may hold a key: it is not shown.
        self._base_urls: Counter[str] = Counter()
        self.rest_clients: Counter[str] = Counter()
        """Number of guarded REST clients, by the name of their SDK."""
        self._is_active = True
        self._hooked: set[type[Any]] = set()
        self._undo = ExitStack()
        self._undo.callback(repeat_after_tracebacks())
        self._overridden_since: list[str] = []
        # The httpx clients that have been examined, guarded or not.
        self._clients: WeakRegistry[AnyClient] = WeakRegistry()
        self._guards: WeakRegistry[GuardTransport | SyncGuardTransport] = WeakRegistry()
        # Ids of SDK clients whose constructor is running. The constructor may read `_client`, which
        # is guarded afterwards, or never if the client was built only for its transport.
        self._under_construction: set[int] = set()

    def hook_into(self, client_class: type[Any]) -> bool:
        """Guard the clients of an SDK's client class; False if they are guarded already."""
        if not self._is_active or client_class in self._hooked:
            return False
        self._hooked.add(client_class)
        init = client_class.__init__
        if not any("_client" in vars(base) for base in client_class.__mro__):
            guard_existing = partial(self._guard_existing, client_class, init)
            attribute = ClientAttribute("_client", self._clients, guard_existing)
            self._override(client_class, "_client", attribute)
        self._override(client_class, "__init__", self._guarded(init))
        return True

    def hook_into_rest(self, rest: RestClients) -> None:
        """Guard the plain httpx clients of an SDK, if its release has them."""
        client_class = rest.find_class()
        if client_class is None or not self._is_active or client_class in self._hooked:
            return
        self._hooked.add(client_class)
        for name, _ in rest.builders:
            guard_rest_client = partial(self._guard_rest_client, rest, name)
            attribute = ClientAttribute(name, self._clients, guard_rest_client)
            self._override(client_class, name, attribute)

    def has_hooked_into_rest(self, rest: RestClients) -> bool:
        """Whether the REST clients of an SDK are guarded; imports nothing."""
        return self._covers(rest.find_class())

    def has_hooked_into(self, sdk: Sdk) -> bool:
        """Whether an SDK's client class is guarded; imports nothing."""
        return self._covers(vars(sys.modules.get(sdk.holder_module, object)).get(sdk.client_name))

    def _covers(self, client_class: object) -> bool:
        """Whether a class has the hooks, its own or those that it inherits."""
        # Another library may have put its own class into the SDK since.
        return isinstance(client_class, type) and not self._hooked.isdisjoint(client_class.__mro__)

    def uninstall(self) -> list[str]:
        """Restore the SDKs; a guard that another library has wrapped does nothing any more.

        Returns:
            The names of client classes that another library has changed since.
        """
        self._is_active = False
        self._undo.close()
        for client in self._clients:
            try:
                for pattern, transport in transports_of(client):
                    if transport in self._guards:
                        guard = cast("GuardTransport | SyncGuardTransport", transport)
                        set_transport(client, pattern, guard.release())
            except Exception:
                faults.log_fault("taking the guard off a client")
        for guard in self._guards:
            guard.release()
        return self._overridden_since

    def is_like(self, request: _Request) -> bool:
        """Whether a request has the installed settings and control plane."""
        return self.settings == request.settings and self.control_plane is request.control_plane

    def reconfigure(self, request: _Request) -> None:
        """Change the settings; requests in progress keep the old ones to their end."""
        self.settings, self.control_plane = request.settings, request.control_plane
        self.for_children = request.for_children
        self.is_automatic = request.is_automatic
        for guard in self._guards:
            guard.configure(self.settings, self.control_plane)
        self.places.clear()
        for base_url, count in self._base_urls.items():
            self.places[Place.of(base_url, self.settings.routes)] += count

    def _override(self, owner: type[Any], name: str, replacement: Any) -> None:
        was_its_own, original = name in vars(owner), vars(owner).get(name)

        def restore() -> None:
            if vars(owner).get(name) is not replacement:
                self._overridden_since.append(owner.__qualname__)
            elif was_its_own:
                setattr(owner, name, original)
            else:
                delattr(owner, name)

        setattr(owner, name, replacement)
        self._undo.callback(restore)

    def _guarded(self, init: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(init)
        def guarded_init(client: Any, *args: Any, **kwargs: Any) -> None:
            # Under construction: built for its transport, by a constructor that wraps this one.
            if not self._is_active or id(client) in self._under_construction:
                init(client, *args, **kwargs)
                return
            self._construct(init, client, args, kwargs)

            # Not the client itself: that would be a reference cycle, and the SDK relies on the
            # immediate finalization of unused clients.
            own_class = type(client)

            def build() -> httpx.AsyncClient:
                return self._build(init, own_class, args, kwargs)

            # These arguments cannot rebuild a client that the program passed in.
            self._guard(client, None if kwargs.get("http_client") is not None else build)

        return guarded_init

    def _guard_existing(
        self, client_class: type[Any], init: Callable[..., None], sdk_client: Any
    ) -> None:
        if not self._is_active or id(sdk_client) in self._under_construction:
            return
        build = None
        try:
            # Another package may have replaced the constructor since, without the hook: only its
            # constructor accepts the client's arguments, such as a key that the SDK refuses.
            for constructor in (client_class.__init__, init):
                arguments = constructor_arguments(sdk_client, constructor)
                if arguments is not None:
                    build = partial(self._build, constructor, type(sdk_client), (), arguments)
                    break
        except Exception:
            faults.log_fault("reading how a client was built")
        self._guard(sdk_client, build)

    def _guard_rest_client(self, rest: RestClients, name: str, holder: Any) -> None:
        if not self._is_active:
            return
        build = None
        try:
            build_with = rest.find_builder(name)
            # Building this one is cheap: it reads no certificates.
            if is_built_like(vars(holder)[name], build_with(False)):
                build = partial(build_with, holder._base_verify)
        except Exception:
            faults.log_fault("reading how a client was built")
        if self._is_newly_guarded(holder, name, build, routes_only=True):
            with _lock:
                self.rest_clients[rest.distribution] += 1

    def _guard(self, sdk_client: Any, build: Callable[[], httpx.AsyncClient] | None) -> None:
        if self._is_newly_guarded(sdk_client, "_client", build):
            self._note_place(sdk_client)

    def _is_newly_guarded(
        self,
        holder: Any,
        name: str,
        build: Callable[[], AnyClient] | None,
        *,
        routes_only: bool = False,
    ) -> bool:
        """Guard the httpx client in an attribute; False if it is guarded already."""
        client: Any = None
        try:
            client = vars(holder)[name]
            guard_class = _guard_class(client)
            with _lock:
                if not self._is_active or client in self._clients:
                    return False
                self._put_guards(client, guard_class, build, routes_only=routes_only)
        except Exception:
            faults.log_fault("guarding a client")
            if self.settings.strict:
                raise UnguardedError(
                    "tinker_guard cannot guard this client, and strict is set; the log says why."
                ) from None
            # Otherwise each use would meet the fault again, as intended with `strict`. A test's
            # replacement of a client may not support weak references.
            with suppress(TypeError):
                self._clients.add(client)
            return False
        return True

    @faults.fail_open
    def _note_place(self, sdk_client: Any) -> None:
        base_url = getattr(sdk_client, "base_url", None)
        if base_url is None:
            return
        with _lock:
            settings = self.settings
            place = Place.of(str(base_url), settings.routes)
            self._base_urls[str(base_url)] += 1
            self.places[place] += 1
            is_new = self.places[place] == 1
        if is_new:
            faults.log(_level_of(place, settings), "%s.", place)

    def _put_guards(
        self,
        client: AnyClient,
        guard_class: Any,
        build: Callable[[], AnyClient] | None,
        *,
        routes_only: bool,
    ) -> None:
        transports = transports_of(client)
        if not any(isinstance(transport, guard_class) for _, transport in transports):
            for pattern, transport in transports:
                guard = guard_class(
                    transport,
                    settings=self.settings,
                    control_plane=self.control_plane,
                    new_transport=borrower(build, pattern, transport) if build else None,
                    routes_only=routes_only,
                )
                self._guards.add(guard)
                set_transport(client, pattern, guard)
        # Last, because other threads send over a client in this registry without the lock.
        self._clients.add(client)

    def _build(
        self, init: Callable[..., None], client_class: type[Any], args: Any, kwargs: Any
    ) -> httpx.AsyncClient:
        """Build the httpx client that an SDK client constructed like this would have."""
        sdk_client: Any = object.__new__(client_class)
        self._construct(init, sdk_client, args, kwargs)
        built: httpx.AsyncClient = vars(sdk_client)["_client"]
        return built

    def _construct(self, init: Callable[..., None], client: Any, args: Any, kwargs: Any) -> None:
        self._under_construction.add(id(client))
        try:
            init(client, *args, **kwargs)
        finally:
            self._under_construction.discard(id(client))


def _guard_class(client: AnyClient) -> type[GuardTransport | SyncGuardTransport]:
    """The transport that guards a client.

    The first client imports it, with all modules for a warmup and a 404. These are most of the
    guard, and many processes import an SDK without building a client.
    """
    from tinker_guard.sync_transport import SyncGuardTransport
    from tinker_guard.transport import GuardTransport

    return SyncGuardTransport if isinstance(client, httpx.Client) else GuardTransport


def install_unattended(
    settings: GuardSettings | None,
    control_plane: AnyControlPlane | str | None,
    values: Mapping[str, object] | None = None,
    is_wanted: Callable[[], bool] = lambda: True,
) -> None:
    """Install the guard without a caller that could handle errors: they are logged instead.

    A guard that the program itself has installed stays. Without settings, this uses those that a
    parent process passes on. With `strict`, the SDK's `import` statement raises the error
    instead.

    Args:
        settings: As for `install_guard()`.
        control_plane: As for `install_guard()`.
        values: Settings by name. Other names are logged and ignored.
        is_wanted: Whether the guard is still to be installed; False once it was uninstalled.
    """
    named = values or {}
    try:
        given, own_control_plane = read_arguments(settings, control_plane, without_unknown(named))
        inherited = os.environ.get(SETTINGS) if given is None else None
        if inherited:
            given = GuardSettings.load_without_key(inherited)
            check_inherited(inherited)
        install(
            given,
            own_control_plane,
            for_children=inherited,
            replace=False,
            is_automatic=True,
            is_wanted=is_wanted,
        )
    except Exception as error:
        if is_strict_for(settings, named):
            raise
        _log_unguarded(error)


def _log_unguarded(error: Exception) -> None:
    faults.log_once(f"this process runs unguarded. {error}")


def install(
    given: GuardSettings | None,
    control_plane: AnyControlPlane | None,
    *,
    for_children: str | None = None,
    replace: bool,
    is_automatic: bool,
    is_wanted: Callable[[], bool] = lambda: True,
) -> None:
    """Install the guard, or change how it is installed; see `install_guard()`.

    Args:
        given: The settings, if they were given in code.
        control_plane: As for `install_guard()`.
        for_children: The settings of child processes, as JSON, if a parent process left them.
        replace: As for `install_guard()`.
        is_automatic: Whether the guard installs itself, without a call by the program.
        is_wanted: Whether the guard is still to be installed.

    Raises:
        Exception: As `install_guard()`.
    """
    settings = given or GuardSettings()
    check_variables(settings)
    check_url(settings)
    if control_plane is None and settings.enabled:
        check_module(settings)
    if not for_children:
        for_children = settings.dump_without_key()
        if not json.loads(for_children):
            # Child processes read the variables themselves.
            for_children = None
    request = _Request(settings, control_plane, for_children, replace, is_automatic)
    is_done = False
    while not is_done:  # again, if another thread installs it meanwhile
        if _change_installed(request):
            is_done = True
            if not is_automatic:
                _hook_into_overlooked()
        else:
            is_done = _install_anew(request, is_wanted)


def _change_installed(request: _Request) -> bool:
    """Apply a request to the existing installation; False if it needs a new one.

    Raises:
        AlreadyInstalledError: The guard is installed with other settings.
    """
    settings = request.settings
    changed_since: list[str] = []
    with _lock:
        current = _installation
        if current is not None:
            if request.is_automatic or current.is_like(request):
                current.is_automatic &= request.is_automatic
                if not request.is_automatic:
                    # A test or a launcher may have put back or replaced the environment since.
                    _prepare_children(current)
                return True
            if not request.replace and not current.is_automatic:
                raise AlreadyInstalledError(
                    "install_guard() was called before with other settings. Pass replace=True to "
                    "change them, or call uninstall_guard() first."
                )
        if not settings.enabled:
            changed_since = _remove()
        elif current is not None:
            current.reconfigure(request)
            _prepare_children(current)
        else:
            return False
    if not settings.enabled:
        faults.log(logging.INFO, "tinker_guard is off (enabled=False); requests go unguarded.")
        _log_changed_since(changed_since)
    else:
        _start_export(settings)
    return True


def _install_anew(request: _Request, is_wanted: Callable[[], bool]) -> bool:
    """Hook into all SDKs that are imported, or into none if one of them lacks the hook point.

    Returns:
        False if another thread has installed the guard meanwhile.
    """
    global _installation
    installed = [sdk for sdk in SDKS if sdk.is_installed()]
    if not installed:
        raise UnsupportedSdkError(
            "tinker_guard found nothing to guard: no SDK is installed. Install tinker or "
            "fireworks-ai[training-sdk]."
        )
    for sdk in installed:
        sdk.check_holder()
    imported = [(sdk, sdk.find_hook_point()) for sdk in installed if sdk.is_imported()]
    with _lock:
        if _installation is not None or not is_wanted():
            return _installation is None
        installation = _installation = _Installation(request)
        try:
            for _, client_class in imported:
                installation.hook_into(client_class)
            for sdk in SDKS:
                watch(sdk.holder_module, partial(_hook_into_imported, sdk))
            for rest in REST_CLIENTS:
                watch(rest.module, partial(_hook_into_rest, rest))
            _prepare_children(installation)
        except BaseException:
            _remove()
            raise
    _tell_unguarded_base_url(request.settings)
    for sdk, _ in imported:
        _tell_hooked(sdk, request.settings)
    try:
        # An import that began before the watch does not call back.
        _hook_into_all_imported()
    except BaseException:
        with _lock:
            if _installation is installation:
                _remove()
        raise
    _start_export(request.settings)
    return True


def _start_export(settings: GuardSettings) -> None:
    if settings.export is not None:
        from tinker_guard.export.lifecycle import start_export

        start_export(settings.export)


def _hook_into_overlooked() -> None:
    """Hook into SDKs that were imported while the guard was missing from `sys.meta_path`."""
    with _lock:
        if _installation is None:
            return
        watch_again()
    _hook_into_all_imported()


def _hook_into_all_imported() -> None:
    for sdk in SDKS:
        if sdk.is_imported():
            _hook_into(sdk)
    for rest in REST_CLIENTS:
        if rest.is_imported():
            _hook_into_rest(rest)


def _hook_into_imported(sdk: Sdk) -> None:
    """Hook into an SDK at the end of its import; the `import` statement raises an error."""
    try:
        _hook_into(sdk)
    except Exception as error:
        with _lock:
            current = _installation
        if current is not None and (current.settings.strict or not current.is_automatic):
            raise
        _log_unguarded(error)


def _hook_into(sdk: Sdk) -> None:
    if _installation is None:
        return
    client_class = sdk.find_hook_point()
    with _lock:
        current = _installation
        is_new = current is not None and current.hook_into(client_class)
    if current is not None and is_new:
        _tell_hooked(sdk, current.settings)


def _hook_into_rest(rest: RestClients) -> None:
    """Hook into the REST clients of an SDK, once they are imported; a release may have none."""
    try:
        with _lock:
            if _installation is not None:
                _installation.hook_into_rest(rest)
    except Exception:
        faults.log_fault("hooking into REST clients")


def _tell_hooked(sdk: Sdk, settings: GuardSettings) -> None:
    """Log that an SDK is guarded, and whether its release was tested."""
    faults.log(
        logging.INFO,
        "%s is guarded: its requests wait up to %g s for a new route, and up to %g s after a "
        "404 on one that worked.",
        # Reading the version takes time, so it is read only for a visible line.
        sdk,
        settings.warmup_timeout,
        settings.retry_timeout,
    )
    if not sdk.is_tested():
        faults.log(
            logging.WARNING,
            "tinker_guard is installed into %s, which it was not tested with. Tested versions: %s.",
            sdk,
            sdk.tested_versions,
        )


@faults.fail_open
def _tell_unguarded_base_url(settings: GuardSettings) -> None:
    """If no pattern matches `TINKER_BASE_URL`, log the pattern that would guard it."""
    base_url = os.environ.get("TINKER_BASE_URL")
    try:
        place = None if not base_url else Place.of(base_url, settings.routes)
    except (httpx.InvalidURL, ValueError):
        # The SDK reports this itself, and so does `tinker-guard doctor`.
        return
    if place is not None and place.job is None:
        faults.log(_level_of(place, settings), "TINKER_BASE_URL: %s.", place)


def _level_of(place: Place, settings: GuardSettings) -> int:
    """WARNING where patterns are set, and match none of what the program sends: a misspelt one."""
    is_missed = place.job is None and bool(settings.routes)
    return logging.WARNING if is_missed else logging.INFO


def _prepare_children(installation: _Installation) -> None:
    """Pass the guard on to child processes, or stop doing so."""
    if not installation.settings.child_processes:
        remove(os.environ)
        return
    # Never remove a variable before setting it again: a thread that copies the environment
    # meanwhile would meet a `KeyError`, and a child process that it starts would run unguarded.
    if installation.for_children is None:
        os.environ.pop(SETTINGS, None)
    inject(os.environ, installation.for_children)


def describe() -> GuardStatus:
    """What is guarded in this process, and how."""
    with _lock:
        current = _installation
        hooked = [sdk for sdk in SDKS if current is not None and current.has_hooked_into(sdk)]
        hooked_rest = [
            rest
            for rest in REST_CLIENTS
            if current is not None and current.has_hooked_into_rest(rest)
        ]
        places = {} if current is None else dict(current.places)
        rest_counts = Counter[str]() if current is None else current.rest_clients.copy()
    sdks = {}
    for sdk in SDKS:
        if sdk in hooked:
            sdks[sdk.distribution] = "guarded"
        elif not sdk.is_installed():
            sdks[sdk.distribution] = "not installed"
        else:
            is_awaited = current is not None and sdk.holder_module not in sys.modules
            sdks[sdk.distribution] = "guarded when imported" if is_awaited else "not guarded"
    rest_clients = {}
    for rest in REST_CLIENTS:
        if not rest.is_installed():
            continue
        if rest in hooked_rest:
            said = "guarded"
        elif not rest.may_be_there():
            said = "none in this release"
        else:
            said = "not guarded" if current is None else "guarded when imported"
        rest_clients[rest.distribution] = RestStatus(said, rest_counts[rest.distribution])
    return GuardStatus(
        settings=None if current is None else current.settings,
        sdks=sdks,
        clients=places,
        rest_clients=rest_clients,
        unguarded=unguarded_requests(None if current is None else current.settings),
        child_processes=_describe_children(current),
        has_own_control_plane=current is not None and current.control_plane is not None,
    )


def _describe_children(current: _Installation | None) -> str:
    if current is None or not current.settings.child_processes:
        return "not guarded"
    changed = changed_since(os.environ, current.for_children)
    if changed is None:
        return "guarded"
    said = "guarded with other settings" if changed == SETTINGS else "not guarded"
    return f"{said}: {changed} was changed since; calling install_guard() again restores it"


def uninstall() -> None:
    """Restore the SDKs, however the guard was installed."""
    with _lock:
        changed_since = _remove()
    _log_changed_since(changed_since)


def uninstall_unattended() -> None:
    """Undo `install_unattended`; a guard that the program itself installed stays."""
    changed_since: list[str] = []
    with _lock:
        if _installation is None or _installation.is_automatic:
            changed_since = _remove()
    _log_changed_since(changed_since)


def _remove() -> list[str]:
    """Uninstall, with `_lock` held; returns the classes that another library has changed since."""
    global _installation
    forget_all()
    remove(os.environ)
    installation, _installation = _installation, None
    return [] if installation is None else installation.uninstall()


def _log_changed_since(classes: list[str]) -> None:
    for name in classes:
        faults.log(
            logging.WARNING,
            "something else has wrapped %s since; it keeps working, and the guard "
            "below it goes idle.",
            name,
        )
