"""Imported by the `sitecustomize` of a child process.

Parent and child may have different versions of this package, so this path must not change.
"""

from tinker_guard.install.unattended import HOLDERS, PACKAGES, install_when_needed

__all__ = ["HOLDERS", "PACKAGES", "install_when_needed"]
