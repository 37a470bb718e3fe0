"""Calls back when a module has been imported, and finds modules without importing them.

wrapt has such hooks too, but its import takes too long for a program without an SDK:
`tinker-guard run` loads this module, and little else, into every Python process.
"""

from __future__ import annotations

import _frozen_importlib
import _thread
import os
import sys

TYPE_CHECKING = False  # importing `typing` would take longer than all of this module
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

# Called by an `import` statement for a module that another thread is importing.
_lock_unlock_module: Callable[[str], None] | None = getattr(
    _frozen_importlib, "_lock_unlock_module", None
)
_LOADERS_OF_FILES = ("SourceFileLoader", "NamespaceLoader", "_NamespaceLoader")

_waiting: dict[str, list[Callable[[], None]]] = {}
_executing: set[str] = set()
"""Modules whose code is running. Their callbacks run when the import has ended."""
_searched: set[tuple[str, int]] = set()
"""Modules that other finders are searching for, and the threads of the searches."""


def on_import(module: str, callback: Callable[[], None]) -> None:
    """Call back when a module has been imported; at once if it has been already.

    Each further import of the module calls back again. The `import` statement raises the
    callback's exception. If the import ends in another thread meanwhile, the callback may be
    called one extra time.
    """
    watch(module, callback)
    # Checked last, so as not to miss an import that another thread ends meanwhile.
    if is_imported(module):
        callback()


def watch(module: str, callback: Callable[[], None]) -> None:
    """Call back whenever the module is imported from now on; does not wait for a lock.

    This may miss an import that has already begun; `is_imported` waits for its end.
    """
    _waiting.setdefault(module, []).append(callback)
    _insert_finder()


def watch_again() -> None:
    """Watch again if another library, such as a test, has restored an old `sys.meta_path`."""
    if _waiting:
        _insert_finder()


def is_watched(module: str, callback: Callable[[], None]) -> bool:
    """Whether a callback is still registered."""
    return callback in _waiting.get(module, ())


def is_imported(module: str) -> bool:
    """Whether a module has been imported; waits for an import that another thread has begun.

    The caller must not hold a lock that code of an import may need. If waiting would
    be a deadlock of imports, this does not wait.
    """
    if _lock_unlock_module is not None:
        # Before the look-up: during the search for a module, `sys.modules` lacks it.
        _lock_unlock_module(module)
    elif sys.modules.get(module) is not None:
        __import__(module)
    return sys.modules.get(module) is not None and module not in _executing


def forget_all() -> None:
    """Remove all callbacks."""
    _waiting.clear()
    _remove_finder()
    if _waiting:  # another thread has begun to watch, and may have seen the finder in its place
        _insert_finder()


def is_findable(module: str) -> bool:
    """Whether a module can be found; imports nothing, not even its parents."""
    if sys.modules.get(module) is not None:
        return True
    top, *names = module.split(".")
    try:
        spec = getattr(sys.modules.get(top), "__spec__", None) or _find(top, None)
    except ImportError:
        # A finder that refuses the module, as in tests that simulate a missing package.
        return False
    if spec is None or not names:
        return spec is not None
    if spec.loader is not None and type(spec.loader).__name__ not in _LOADERS_OF_FILES:
        return True  # a frozen program, for instance: unknown, so assume that it is there
    # Only an import of the parents would show their contents for certain; that is not allowed.
    *parents, name = names
    for place in spec.submodule_search_locations or ():
        if not os.path.isdir(place):
            return True  # not a directory: unknown, so assume that it is there
        directory = os.path.join(place, *parents)
        if os.path.isdir(directory) and name in {n.split(".")[0] for n in os.listdir(directory)}:
            return True
    return False


def _tell(module: str) -> None:
    for callback in list(_waiting.get(module, ())):
        callback()


def _find(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    for finder in sys.meta_path:
        # An old finder may lack this method, such as that of a vendored `six` before 1.16. An
        # `import` statement skips it too.
        find_spec = getattr(finder, "find_spec", None)
        if find_spec is not None and not isinstance(finder, _Finder):
            spec: ModuleSpec | None = find_spec(name, path, None)
            if spec is not None:
                return spec
    return None


class _Finder:
    """Wraps the loaders of watched modules that other finders find; finds none itself."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        search = name, _thread.get_ident()
        # Another finder may ask this one again, such as one that wraps all finders.
        if name not in _waiting or search in _searched:
            return None
        _searched.add(search)
        try:
            spec = _find(name, path)
        finally:
            _searched.discard(search)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _TellingLoader(spec.loader)  # type: ignore[assignment]
        return spec


class _TellingLoader:
    """Replaces a module's own loader while the module is executed, and only then."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        if name == "_loader":  # of a copy that is being made
            raise AttributeError(name)
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        _executing.add(module.__name__)
        try:
            self._loader.exec_module(module)
        finally:
            _executing.discard(module.__name__)
        _tell(module.__name__)


_FINDER = _Finder()


def _insert_finder() -> None:
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)


def _remove_finder() -> None:
    if _FINDER in sys.meta_path:
        # A new list: removing from the old one would make another thread's iteration skip a
        # finder, and its import fail.
        sys.meta_path = [finder for finder in sys.meta_path if finder is not _FINDER]
