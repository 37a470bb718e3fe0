"""Sees training runs through the routing races of an API gateway.

    from tinker_guard import install_guard
    install_guard()

puts a guard around every request of the `tinker` SDK. On a 404 it asks the control plane
whether the job really runs, and only then resends the very same request.

In a program:
    install_guard()         guard the SDKs; settings by name, such as retry_timeout=60
    uninstall_guard()       leave them as they were
    status()                what is guarded, and how (GuardStatus)
    GuardSettings           all settings; each is also an environment variable, TINKER_GUARD_<NAME>
    start_export()          send spans and metrics somewhere without a guard that is installed
    wait_until_routable()   wait until a trainer answers (Readiness); until_routable() is async

For a client of your own:
    GuardTransport, SyncGuardTransport      around a transport of httpx
    ControlPlane, ControlPlaneError         who is asked whether a job runs, if not Fireworks
    RouteControlPlane                       the same for routes without account and job
    TinkerGuardInstrumentor                 for OpenTelemetry's launcher
    Verdict                                 what a 404 turned out to be

What is raised:
    InvalidSettingsError    a setting cannot work
    AlreadyInstalledError   the guard is installed with other settings
    UnsupportedSdkError     no SDK, or one without the hook point
    UnguardedError          with strict=True: a client that cannot be guarded

In tests of your own (extra: demo):
    LocalGateway            a gateway, a control plane and a trainer on a port of this machine
    Fault, Race, LostReply, JobStop         what goes wrong there; FAULTS, SAMPLING_FAULTS by name
    Exchange, Applied, Sampled              what the gateway answered, what the trainer did

Each in detail: help(tinker_guard.install_guard), and so on. In a shell: tinker-guard --help.
"""

__version__ = "0.1.0"

# Names are looked up when they are used: `tinker-guard run` imports this package into every Python
# process, and those that never use an SDK shall not pay for httpx and pydantic.
# Type checkers take an alias of the same name for public (PEP 484). An `__all__` would say it too,
# but `help(tinker_guard)` prints what it names with all inherited members: 2,000 lines.
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

# What needs an extra, by the module that holds it: the extra, and the modules that it brings.
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
    """What is public, without that whose extra is not installed: `help()` looks each name up."""
    from importlib.util import find_spec

    lacking = {
        module for module, (_, brought) in _EXTRA_OF.items() if not all(map(find_spec, brought))
    }
    return [*(name for name, module in _MODULE_OF.items() if module not in lacking), "__version__"]
