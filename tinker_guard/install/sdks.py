"""The SDKs that can be guarded, and their hook points."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tinker_guard.install.import_hooks import is_findable, is_imported

if TYPE_CHECKING:
    from collections.abc import Callable

    from tinker_guard.install.clients import AnyClient
    from tinker_guard.settings import GuardSettings


class UnsupportedSdkError(RuntimeError):
    """No SDK is installed, or one lacks the hook point. Nothing was changed."""


class Sdk(NamedTuple):
    """The hook point of one SDK."""

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
        """Whether this SDK is installed; imports nothing."""
        return is_findable(self.package)

    def is_imported(self) -> bool:
        """Whether this SDK's client holder has been imported; waits for an import under way."""
        return is_imported(self.holder_module)

    def is_tested(self) -> bool:
        """Whether the installed version is within the tested range."""
        version = self.version
        if version in self.tested:
            return True
        # Skipped for the newest release, which most programs have: comparing takes 2 ms.
        from packaging.version import InvalidVersion, Version

        oldest, newest = map(Version, self.tested)
        try:
            return oldest <= Version(version) <= newest
        except InvalidVersion:
            return False

    def __str__(self) -> str:
        """Distribution and installed version, such as `tinker 0.38.0`."""
        return f"{self.distribution} {self.version}"

    def check_holder(self) -> None:
        """Check that the client holder exists, without importing it.

        Raises:
            UnsupportedSdkError: It does not exist.
        """
        if not is_findable(self.holder_module):
            raise self._unsupported(self.holder_module)

    def find_hook_point(self) -> type[Any]:
        """The class of the clients that pools build; imports the SDK if that has not been done.

        Raises:
            UnsupportedSdkError: This version lacks them, or has them in another form.
        """
        self.check_holder()
        # Do not wait for the module's import: this is called at the end of it.
        holder = sys.modules.get(self.holder_module) or importlib.import_module(self.holder_module)
        client_class = getattr(holder, self.client_name, None)
        pool_class = getattr(holder, "ClientConnectionPool", None)
        missing = None
        if not isinstance(pool_class, type) or not hasattr(pool_class, "aclient"):
            missing = f"{self.holder_module}.ClientConnectionPool.aclient"
        elif not isinstance(client_class, type):
            missing = f"{self.holder_module}.{self.client_name}"
        elif not any(
            "_client" in getattr(base, "__annotations__", {}) for base in client_class.__mro__
        ):
            missing = f"{self.holder_module}.{self.client_name}._client"
        if missing is not None:
            raise self._unsupported(missing)
        assert isinstance(client_class, type)
        return client_class

    def _unsupported(self, missing: str) -> UnsupportedSdkError:
        return UnsupportedSdkError(
            f"tinker_guard cannot guard {self}: it has no {missing}. "
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


class RestClients(NamedTuple):
    """The hook points of the plain httpx clients that an SDK has beside its own class."""

    distribution: str
    """Name of the installed distribution, for its version."""
    module: str
    """The module with the class and with the functions that build the clients."""
    class_name: str
    """The class whose instances hold the clients."""
    builders: tuple[tuple[str, str], ...]
    """Attributes that hold a client, and the function that builds it from `verify`."""
    of_deployments: str
    """The requests of such an SDK that are not guarded with `deployments=False`."""

    def is_installed(self) -> bool:
        """Whether any release of the SDK is installed, with such clients or without."""
        return is_findable(self.module.partition(".")[0])

    def may_be_there(self) -> bool:
        """Whether this release seems to have such clients; imports nothing."""
        if self.module in sys.modules:
            return self.find_class() is not None
        return is_findable(self.module)

    def is_imported(self) -> bool:
        """Whether the module has been imported; waits for an import under way."""
        return is_imported(self.module)

    def find_class(self) -> type[Any] | None:
        """The class; None if the module is not imported, or this release has no such class."""
        module = sys.modules.get(self.module)
        found = getattr(module, self.class_name, None)
        has_builders = all(callable(getattr(module, name, None)) for _, name in self.builders)
        return found if isinstance(found, type) and has_builders else None

    def find_builder(self, name: str) -> Callable[[bool], AnyClient]:
        """The function that builds the client of an attribute."""
        found: Callable[[bool], AnyClient] = getattr(
            sys.modules[self.module], dict(self.builders)[name]
        )
        return found


REST_CLIENTS: Final = (
    RestClients(
        "fireworks-ai",
        "fireworks.training.sdk._rest_client",
        "_RestClient",
        (("_sync_client", "_make_sync_client"), ("_async_client", "_make_async_client")),
        of_deployments="fireworks-ai's hot-loads and completions (deployments=False)",
    ),
)


def unguarded_requests(settings: GuardSettings | None) -> list[str]:
    """The requests of a program that are never guarded.

    Args:
        settings: The guard's settings; None if it is not installed.
    """
    installed = [rest for rest in REST_CLIENTS if rest.is_installed()]
    guards_deployments = settings is None or settings.deployments
    return [
        *(rest.of_deployments for rest in installed if not guards_deployments),
        "clients of the program's own, unless they send over a GuardTransport or a "
        "SyncGuardTransport",
    ]
