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
    `instrument()` takes the arguments of `install_guard()` but `replace`. Others are ignored, and a
    log line names them, `tracer_provider` too: the guard uses the global providers.
    """

    def instrumentation_dependencies(self) -> Collection[str]:
        """No package is required: an SDK may be installed, or imported, later."""
        return ()

    def _instrument(self, **kwargs: Any) -> None:
        settings, control_plane = kwargs.pop("settings", None), kwargs.pop("control_plane", None)
        install_when_needed(settings, control_plane, kwargs)

    def _uninstrument(self, **_: Any) -> None:
        from tinker_guard.install.installation import uninstall_unattended

        uninstall_unattended()
