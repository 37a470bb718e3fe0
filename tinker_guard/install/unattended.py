"""Installs the guard by itself as soon as a program imports an SDK.

Child processes, `tinker-guard run` and the OpenTelemetry instrumentor use this. No caller handles
errors here, so none is raised unless `strict` is set. A program that never imports an SDK loads
this module only, which therefore imports next to nothing.
"""

from __future__ import annotations

import sys

from tinker_guard.install.import_hooks import is_watched, on_import, watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from tinker_guard.control_plane.protocol import AnyControlPlane
    from tinker_guard.settings import GuardSettings

PACKAGES = ("tinker", "fireworks.training.sdk._core")
"""The packages of `tinker_guard.install.sdks.SDKS`."""
HOLDERS = tuple(f"{package}.lib.internal_client_holder" for package in PACKAGES)
"""Their client holders."""
REST_MODULES = ("fireworks.training.sdk._rest_client",)
"""The modules of `tinker_guard.install.sdks.REST_CLIENTS`; a program may import only these."""


def install_when_needed(
    settings: GuardSettings | None = None,
    control_plane: AnyControlPlane | str | None = None,
    values: Mapping[str, object] | None = None,
) -> None:
    """Install the guard when an SDK is imported; at once if one has been already.

    The program's own `install_guard()` takes precedence at any time, and `uninstall_guard()`
    cancels this too.

    Args:
        settings: The settings. Without any, the guard reads those that a parent process passed on,
            else `TINKER_GUARD_*`. Any object: it is checked when the guard is installed.
        control_plane: As for `install_guard()`. Any object.
        values: Settings by name. Other names are logged and ignored.
    """
    named = values or {}

    def install() -> None:
        try:
            from tinker_guard.install.installation import install_unattended

            install_unattended(settings, control_plane, named, is_wanted)
        except Exception as error:
            from contextlib import suppress

            from tinker_guard.install.child_env import is_strict_for

            if is_strict_for(settings, named):
                raise
            # A dependency is missing or too old, for instance. The SDK's import continues.
            problem = f"{type(error).__name__}: {error}"
            # `sys.stderr` is None if the process was started without it, and may be a full disk.
            with suppress(Exception):
                sys.stderr.write(f"tinker_guard: this process runs unguarded. {problem}\n")

    def is_wanted() -> bool:
        return any(is_watched(module, install) for module in (*PACKAGES, *REST_MODULES))

    for holder in HOLDERS:
        # One thread may begin the import before another thread, which installs the guard, watches
        # the module. An import that is watched from its beginning calls every callback that
        # is registered at its end.
        watch(holder, lambda: None)
    for module in (*PACKAGES, *REST_MODULES):
        on_import(module, install)
