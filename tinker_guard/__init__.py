"""Protects training runs against the routing races of an API gateway.

    from tinker_guard import install_guard
    install_guard()

guards every request of the `tinker` SDK. On a 404, the guard asks the control plane
for the job's state. It resends the same request only if the job runs.

In a program:
    install_guard()         guard the SDKs; settings by name, such as retry_timeout=60
    uninstall_guard()       restore them
    status()                what is guarded, and how (GuardStatus)
    GuardSettings           all settings; each is also an environment variable, TINKER_GUARD_<NAME>
    start_export()          export spans and metrics without an installed guard
    wait_until_routable()   wait until a trainer answers (Readiness); until_routable() is async

For a client of your own:
    GuardTransport, SyncGuardTransport      around a transport of httpx
    ControlPlane, ControlPlaneError         a control plane of your own, instead of Fireworks'
    RouteControlPlane                       the same for routes without account and job
    TinkerGuardInstrumentor                 for OpenTelemetry's launcher
    Verdict                                 the classification of a 404

Errors:
    InvalidSettingsError    a setting has an invalid value
    AlreadyInstalledError   the guard is installed with other settings
    UnsupportedSdkError     no SDK, or one without the hook point
    UnguardedError          with strict=True: a client that cannot be guarded

In tests of your own (extra: demo):
    LocalGateway            a gateway, a control plane and a trainer on a port of this machine
    Fault, Race, LostReply, JobStop         the faults to inject; FAULTS, SAMPLING_FAULTS by name
    Exchange, Applied, Sampled              answers of the gateway, work of the trainer

For details: help(tinker_guard.install_guard), and so on. In a shell: tinker-guard --help.
"""

__version__ = "0.1.0"

# Names are loaded on first use: `tinker-guard run` imports this package into every Python
# process, and a process without an SDK should not import httpx and pydantic.
# For type checkers, an alias of the same name is public (PEP 484). With an `__all__`,
# `help(tinker_guard)` would print all its names with their inherited members: 2,000 lines.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from tinker_guard.control_plane.protocol import ControlPlane as ControlPlane
    from tinker_guard.control_plane.protocol import ControlPlaneError as ControlPlaneError
    from tinker_guard.control_plane.protocol import RouteControlPlane as RouteControlPlane
    from tinker_guard.export.lifecycle import start_export as start_export
    from tinker_guard.gateway import FAULTS as FAULTS
    from tinker_guard.gateway import SAMPLING_FAULTS as SAMPLING_FAULTS
    from tinker_guard.gateway import Applied as Applied
    from tinker_guard.gateway import Exchange as Exchange
    from tinker_guard.gateway import Fault as Fault
    from tinker_guard.gateway import JobStop as JobStop
    from tinker_guard.gateway import LocalGateway as LocalGateway
    from tinker_guard.gateway import LostReply as LostReply
    from tinker_guard.gateway import Race as Race
    from tinker_guard.gateway import Sampled as Sampled
    from tinker_guard.hooks import install_guard as install_guard
    from tinker_guard.hooks import status as status
    from tinker_guard.hooks import uninstall_guard as uninstall_guard
    from tinker_guard.install.installation import AlreadyInstalledError as AlreadyInstalledError
    from tinker_guard.install.installation import UnguardedError as UnguardedError
    from tinker_guard.install.instrumentor import TinkerGuardInstrumentor as TinkerGuardInstrumentor
    from tinker_guard.install.sdks import UnsupportedSdkError as UnsupportedSdkError
    from tinker_guard.install.status import GuardStatus as GuardStatus
    from tinker_guard.policy.judgement import Verdict as Verdict
    from tinker_guard.settings import GuardSettings as GuardSettings
    from tinker_guard.settings import InvalidSettingsError as InvalidSettingsError
    from tinker_guard.sync_transport import SyncGuardTransport as SyncGuardTransport
    from tinker_guard.transport import GuardTransport as GuardTransport
    from tinker_guard.waiting import Readiness as Readiness
    from tinker_guard.waiting import until_routable as until_routable
    from tinker_guard.waiting import wait_until_routable as wait_until_routable

_MODULE_OF = {
    "FAULTS": "gateway",
    "SAMPLING_FAULTS": "gateway",
    "AlreadyInstalledError": "install.installation",
    "Applied": "gateway",
    "ControlPlane": "control_plane.protocol",
    "ControlPlaneError": "control_plane.protocol",
    "Exchange": "gateway",
    "Fault": "gateway",
    "GuardSettings": "settings",
    "GuardStatus": "install.status",
    "GuardTransport": "transport",
    "InvalidSettingsError": "settings",
    "JobStop": "gateway",
    "LocalGateway": "gateway",
    "LostReply": "gateway",
    "Race": "gateway",
    "Readiness": "waiting",
    "RouteControlPlane": "control_plane.protocol",
    "Sampled": "gateway",
    "SyncGuardTransport": "sync_transport",
    "TinkerGuardInstrumentor": "install.instrumentor",
    "UnguardedError": "install.installation",
    "UnsupportedSdkError": "install.sdks",
    "Verdict": "policy.judgement",
    "install_guard": "hooks",
    "start_export": "export.lifecycle",
    "status": "hooks",
    "uninstall_guard": "hooks",
    "until_routable": "waiting",
    "wait_until_routable": "waiting",
}

# Modules with names that need an extra: the extra, and the modules that it installs.
_EXTRA_OF = {
    "gateway": ("demo", ("numpy", "uvicorn")),
    "install.instrumentor": ("instrument", ("opentelemetry.instrumentation",)),
}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module = _MODULE_OF[name]
    try:
        value: object = getattr(import_module(f"{__name__}.{module}"), name)
    except ModuleNotFoundError as error:
        if module in _EXTRA_OF:
            extra, _ = _EXTRA_OF[module]
            error.add_note(f"{name} needs: pip install 'tinker-guard[{extra}]'")
        raise
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, except those of a missing extra: `help()` loads each name."""
    from importlib.util import find_spec

    lacking = {
        module for module, (_, brought) in _EXTRA_OF.items() if not all(map(find_spec, brought))
    }
    return [*(name for name, module in _MODULE_OF.items() if module not in lacking), "__version__"]
