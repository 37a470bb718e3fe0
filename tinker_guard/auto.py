"""Installs the guard by itself as soon as a program imports an SDK.

Child processes, `tinker-guard run` and the OpenTelemetry instrumentor use this. Nobody is there to
catch an error, so none is raised; and a program that never imports an SDK pays for this module
only, which therefore imports next to nothing.
"""

from __future__ import annotations

import sys

from tinker_guard.imports import when_imported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tinker_guard.control_plane import ControlPlane
    from tinker_guard.settings import GuardSettings

PACKAGES = ("tinker", "fireworks.training.sdk._core")
"""The packages of `tinker_guard.sdks.SDKS`."""


def install_when_needed(
    settings: GuardSettings | None = None, control_plane: ControlPlane | None = None
) -> None:
    """Install the guard once an SDK is imported; at once, if one has been.

    A program's own `install_guard()` takes precedence, whenever it comes, and `uninstall_guard()`
    ends this too.

    Args:
        settings: How to behave; None reads what a parent process left, or else `TINKER_GUARD_*`.
        control_plane: As for `install_guard()`.
    """

    def install() -> None:
        try:
            from tinker_guard.hooks import install_unattended

            install_unattended(settings, control_plane)
        except Exception as error:
            # A dependency that is missing or too old, say. The import that led here goes on.
            problem = f"{type(error).__name__}: {error}"
            sys.stderr.write(f"tinker_guard: this process runs unguarded. {problem}\n")

    for package in PACKAGES:
        when_imported(package, install)
