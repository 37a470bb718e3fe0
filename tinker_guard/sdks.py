"""Which SDKs can be guarded, and where the guard hooks into them."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from dataclasses import dataclass
from typing import Any, Final

from packaging.version import InvalidVersion, Version

from tinker_guard.imports import is_findable


class UnsupportedSdkError(RuntimeError):
    """An SDK lacks the place where the guard hooks in, or there is no SDK; nothing was changed."""


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
        """Whether this SDK is there to be imported; imports nothing."""
        return is_findable(self.package)

    def is_imported(self) -> bool:
        """Whether somebody has imported this SDK's client holder, and so may have clients."""
        return self.holder_module in sys.modules

    def is_tested(self) -> bool:
        """Whether the installed version is within the tested range."""
        oldest, newest = map(Version, self.tested)
        try:
            return oldest <= Version(self.version) <= newest
        except InvalidVersion:
            return False

    def check_holder(self) -> None:
        """See that the holder is there, without importing it.

        Raises:
            UnsupportedSdkError: It is not.
        """
        if not is_findable(self.holder_module):
            raise self._unsupported(self.holder_module)

    def find_hook_point(self) -> tuple[type[Any], type[Any]]:
        """The client class and the pool class; imports the SDK.

        Raises:
            UnsupportedSdkError: This version has them not, or not in the expected form.
        """
        self.check_holder()
        holder = importlib.import_module(self.holder_module)
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
        assert isinstance(pool_class, type)
        return client_class, pool_class

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
