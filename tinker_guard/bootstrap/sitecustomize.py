"""Runs at the start of every Python process that has this directory in its PYTHONPATH.

`tinker_guard.children` puts it there. This file must not fail in any of them: such a process may
belong to another environment, without tinker_guard or with an old Python; hence no annotations.
"""

import os
import sys


def _arm():
    if sys.version_info < (3, 11):
        return
    try:
        from tinker_guard.auto import install_when_needed
    except Exception:
        from importlib.util import find_spec

        if find_spec("tinker") is not None:
            sys.stderr.write(
                "tinker_guard: " + sys.executable + " has tinker, but not tinker_guard: it runs "
                "unguarded. Install tinker-guard there too.\n"
            )
        return
    install_when_needed()


def _run_the_next():
    # A process imports one sitecustomize: without this, ours would hide the user's own.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [place for place in sys.path if os.path.abspath(place) != here]
    ours = sys.modules.pop(__name__, None)
    try:
        __import__(__name__)
    except ImportError as error:
        if error.name != __name__:
            raise
    finally:
        if ours is not None:
            sys.modules.setdefault(__name__, ours)


try:
    _arm()
finally:
    _run_the_next()
