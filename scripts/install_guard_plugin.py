"""A pytest plugin that guards the SDK before its own tests run; see `make sdk-suite`."""

import tinker_guard

tinker_guard.install_guard()
