"""Tells when a module has been imported, and finds one without importing it.

wrapt has such hooks too, but importing wrapt costs a program that never imports an SDK more than
it may: `tinker-guard run` loads this module, and little else, into every Python process.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # importing `typing` would cost more than all that is in here
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

_LOADERS_OF_FILES = ("SourceFileLoader", "NamespaceLoader", "_NamespaceLoader")

_waiting: dict[str, list[Callable[[], None]]] = {}


def when_imported(module: str, callback: Callable[[], None]) -> None:
    """Call back when a module has been imported; at once if that is so already.

    Again, when it is imported anew. What the callback raises comes out of the `import` statement.
    """
    _waiting.setdefault(module, []).append(callback)
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    # Looked at last, so that an import which another thread ends meanwhile is not missed; and one
    # that it has begun is waited for.
    if sys.modules.get(module) is not None:
        __import__(module)
        callback()


def forget_all() -> None:
    """Call nobody back any longer."""
    _waiting.clear()


def is_findable(module: str) -> bool:
    """Whether a module is there to be imported; imports nothing, its parents neither."""
    if sys.modules.get(module) is not None:
        return True
    top, *names = module.split(".")
    spec = getattr(sys.modules.get(top), "__spec__", None) or _find(top, None)
    if spec is None or not names:
        return spec is not None
    if spec.loader is not None and type(spec.loader).__name__ not in _LOADERS_OF_FILES:
        return True  # a frozen program, say: nothing can be said
    # Only its parents' import would tell what is below for sure: by then it is too late to ask.
    *parents, name = names
    for place in spec.submodule_search_locations or ():
        if not os.path.isdir(place):
            return True  # not files: nothing can be said
        directory = os.path.join(place, *parents)
        if os.path.isdir(directory) and name in {n.split(".")[0] for n in os.listdir(directory)}:
            return True
    return False


def _tell(module: str) -> None:
    for callback in list(_waiting.get(module, ())):
        callback()


def _find(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    for finder in sys.meta_path:
        if not isinstance(finder, _Finder):
            spec = finder.find_spec(name, path, None)
            if spec is not None:
                return spec
    return None


class _Finder:
    """Finds nothing itself, but gives what the others find a loader that tells."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in _waiting:
            return None
        spec = _find(name, path)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _TellingLoader(spec.loader)  # type: ignore[assignment]
        return spec


class _TellingLoader:
    """In the place of a module's own loader while the module is executed, and no longer."""

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
        self._loader.exec_module(module)
        _tell(module.__name__)
