"""The guard as an OpenTelemetry instrumentation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.instrumentation.instrumentor import (  # type: ignore[attr-defined]
    BaseInstrumentor,
)

from tinker_guard.install.unattended import install_when_needed

if TYPE_CHECKING:
    from collections.abc import Collection


class TinkerGuardInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Guards the SDKs as `install_guard()` does, once the program imports one.

    `opentelemetry-instrument python train.py` finds it by its entry point, in programs without an
    SDK too. It therefore imports little, and logs the errors that `install_guard()` would raise.
    `instrument()` takes `settings` and `control_plane`.
    """

    def instrumentation_dependencies(self) -> Collection[str]:
        """No package is required: an SDK may be installed, or imported, later."""
        return ()

    def _instrument(self, **kwargs: Any) -> None:
        install_when_needed(kwargs.get("settings"), kwargs.get("control_plane"))

    def _uninstrument(self, **_: Any) -> None:
        from tinker_guard.install.installation import uninstall_unattended

        uninstall_unattended()
