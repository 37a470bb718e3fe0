"""Sees training runs through the routing races of an API gateway.

    from tinker_guard import install_guard
    install_guard()

puts a guard around every request of the `tinker` SDK. On a 404 it asks the control plane
whether the job really runs, and only then resends the very same request.
"""

# Names are looked up when they are used: `tinker-guard run` imports this package into every Python
# process, and those that never use an SDK shall not pay for httpx and pydantic.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from tinker_guard._version import __version__
    from tinker_guard.control_plane import ControlPlane, ControlPlaneError
    from tinker_guard.hooks import AlreadyInstalledError, install_guard, uninstall_guard
    from tinker_guard.instrumentor import TinkerGuardInstrumentor
    from tinker_guard.sdks import UnsupportedSdkError
    from tinker_guard.settings import GuardSettings, InvalidSettingsError
    from tinker_guard.transport import GuardTransport
    from tinker_guard.verdict import Verdict

__all__ = [
    "AlreadyInstalledError",
    "ControlPlane",
    "ControlPlaneError",
    "GuardSettings",
    "GuardTransport",
    "InvalidSettingsError",
    "TinkerGuardInstrumentor",
    "UnsupportedSdkError",
    "Verdict",
    "__version__",
    "install_guard",
    "uninstall_guard",
]

_MODULE_OF = {
    "AlreadyInstalledError": "hooks",
    "ControlPlane": "control_plane",
    "ControlPlaneError": "control_plane",
    "GuardSettings": "settings",
    "GuardTransport": "transport",
    "InvalidSettingsError": "settings",
    "TinkerGuardInstrumentor": "instrumentor",
    "UnsupportedSdkError": "sdks",
    "Verdict": "verdict",
    "__version__": "_version",
    "install_guard": "hooks",
    "uninstall_guard": "hooks",
}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
