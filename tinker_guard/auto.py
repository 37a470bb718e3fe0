"""What a child process's `sitecustomize` imports.

A parent process may have another version of this package than the child, so this path stays.
"""

from tinker_guard.install.unattended import HOLDERS, PACKAGES, install_when_needed

__all__ = ["HOLDERS", "PACKAGES", "install_when_needed"]
