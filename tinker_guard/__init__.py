"""Sees training runs through the routing races of an API gateway.

    from tinker_guard import install_guard
    install_guard()

puts a guard around every request of the `tinker` SDK. On a 404 it asks the control plane
whether the job really runs, and only then resends the very same request.
"""

from tinker_guard._version import __version__
from tinker_guard.control_plane import ControlPlane
from tinker_guard.hooks import TinkerGuardInstrumentor, install_guard, uninstall_guard
from tinker_guard.settings import GuardSettings
from tinker_guard.transport import GuardTransport
from tinker_guard.verdict import Verdict

__all__ = [
    "ControlPlane",
    "GuardSettings",
    "GuardTransport",
    "TinkerGuardInstrumentor",
    "Verdict",
    "__version__",
    "install_guard",
    "uninstall_guard",
]
