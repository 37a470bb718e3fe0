"""Runs at the start of every Python process that has this directory in its PYTHONPATH.

`tinker_guard.install.child_env` puts the directory there. This file must not fail in any process,
even in another environment without tinker_guard or with an old Python. Hence no annotations.
"""

import os
import sys

# What tinker_guard imports besides the standard library.
_NEEDED = ("httpx", "opentelemetry", "packaging", "pydantic", "pydantic_settings", "tenacity")


def _arm():
    if sys.version_info < (3, 11):
        return
    try:
        install_when_needed = _import_guard()
    except Exception:
        problem = (
            "tinker_guard: " + sys.executable + " has tinker, but not tinker_guard: it runs "
            "unguarded. Install tinker-guard there too."
        )
        if _is_strict():
            sys.meta_path.insert(0, _Refuse(problem))
        elif _has("tinker"):
            _say(problem)
        return
    install_when_needed()


def _import_guard():
    try:
        from tinker_guard.auto import install_when_needed
    except ImportError:
        # A directory of that name, such as a checkout, is imported as an empty package.
        found = sys.modules.get("tinker_guard")
        if getattr(found, "__file__", None) is not None or not _may_run_here():
            raise
        sys.modules.pop("tinker_guard", None)
        own = _OwnPackage()
        sys.meta_path.insert(0, own)
        try:
            from tinker_guard.auto import install_when_needed
        finally:
            sys.meta_path.remove(own)
    return install_when_needed


class _OwnPackage:
    """Finds the package that has this file, where the parent process had it from `sys.path`.

    Its place does not go on the path of this process: other things may lie beside it.
    """

    def find_spec(self, name, path=None, target=None):
        if name != "tinker_guard":
            return None
        from importlib.machinery import PathFinder

        package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        return PathFinder.find_spec(name, [os.path.dirname(package)])


def _may_run_here():
    # Another environment may lack what the guard imports. Where there is no SDK so far, the program
    # may extend its path, as multiprocessing does; at the import the guard says what it lacks.
    return not _has("tinker") or all(_has(name) for name in _NEEDED)


def _has(name):
    from importlib.util import find_spec

    try:
        return find_spec(name) is not None
    except Exception:
        return False


def _is_strict():
    """The same as `tinker_guard.install.child_env.is_strict`."""
    off = ("", "0", "false", "f", "no", "n", "off")
    values = [
        os.environ.get(name, "").lower()
        for name in list(os.environ)
        if name.upper() == "TINKER_GUARD_STRICT"
    ]
    inherited = os.environ.get("TINKER_GUARD_INHERITED", "")
    is_decided = any(values) and '"strict": "' not in inherited
    return any(value not in off for value in values) or (
        '"strict": true' in inherited and not is_decided
    )


def _say(problem):
    from contextlib import suppress

    # `sys.stderr` is None if the process was started without it, and may be a full disk. An
    # exception in here would keep the process from starting.
    with suppress(Exception):
        sys.stderr.write(problem + "\n")
        sys.stderr.flush()


class _Refuse:
    """Makes the import of an unguarded SDK fail."""

    def __init__(self, problem):
        self._problem = problem

    def find_spec(self, name, path, target=None):
        if name in ("tinker", "fireworks.training.sdk._core"):
            raise ImportError(self._problem + " (TINKER_GUARD_STRICT is set.)", name=name)


def _run_the_next():
    # Python imports only one sitecustomize: without this, ours would hide the user's own.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [place for place in sys.path if os.path.abspath(place) != here]
    ours = sys.modules.pop(__name__, None)
    try:
        __import__(__name__)
    except ImportError as error:
        # Python 2 has no such attribute.
        if getattr(error, "name", __name__) != __name__:
            raise
    finally:
        if ours is not None:
            sys.modules.setdefault(__name__, ours)


try:
    _arm()
finally:
    _run_the_next()
