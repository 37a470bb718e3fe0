"""Passes the guard on to child processes through the environment that they inherit.

At its start, Python imports the first `sitecustomize` on its path, PYTHONPATH first; the
directory `bootstrap/` holds one. It imports the guard by name, or else from the package around it.
This covers `subprocess`, multiprocessing's spawn and forkserver, and the SDK's sampling sidecar. It
does not cover `python -E`, `-I` and `-S`, nor processes that a service such as Ray starts.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

SETTINGS = "TINKER_GUARD_INHERITED"
"""The variable with the settings that a program gave in code, as JSON, and no others. It holds no
key, only whether there was one (`GuardSettings.dump_without_key`)."""

_BOOTSTRAP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "bootstrap")


STRICT = "TINKER_GUARD_STRICT"
"""The variable of the setting `strict`."""

_FALSE = ("", "0", "false", "f", "no", "n", "off")


def is_strict(environment: MutableMapping[str, str]) -> bool:
    """Whether `strict` is set in an environment, even if other settings are invalid.

    A value that is no boolean counts too, such as `"true"` with the quotes, which Docker's files of
    variables keep. `bootstrap/sitecustomize.py` has a copy, for environments without this package.
    """
    values = [
        environment.get(name, "").lower() for name in list(environment) if name.upper() == STRICT
    ]
    inherited = environment.get(SETTINGS, "")
    # A variable wins over the parent's code, unless the parent had one: it has left a digest then.
    is_decided = any(values) and '"strict": "' not in inherited
    return any(value not in _FALSE for value in values) or (
        '"strict": true' in inherited and not is_decided
    )


def is_strict_for(settings: object, values: Mapping[str, object]) -> bool:
    """Whether `strict` is set for this process, even if other settings are invalid.

    Args:
        settings: The settings that were given in code, or any other object.
        values: Settings that were given by name.
    """
    given = values.get("strict", getattr(settings, "strict", None))
    return is_strict(os.environ) if given is None else str(given).lower() not in _FALSE


def inject(environment: MutableMapping[str, str], settings: str | None = None) -> None:
    """Guard the SDKs in Python processes that are started with this environment.

    Args:
        environment: The environment to change.
        settings: Their settings, as JSON; None leaves them to `TINKER_GUARD_*`.
    """
    places = environment.get("PYTHONPATH", "").split(os.pathsep)
    others = os.pathsep.join(place for place in places if place != _BOOTSTRAP)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [_BOOTSTRAP, others]))
    if settings is not None:
        environment[SETTINGS] = settings


def changed_since(environment: Mapping[str, str], settings: str | None) -> str | None:
    """The variable that no longer has what `inject` put into it; None if both have.

    Args:
        environment: The environment that child processes will inherit.
        settings: As they were given to `inject`.
    """
    if _BOOTSTRAP not in environment.get("PYTHONPATH", "").split(os.pathsep):
        return "PYTHONPATH"
    return None if environment.get(SETTINGS) == settings else SETTINGS


def remove(environment: MutableMapping[str, str]) -> None:
    """Undo `inject`, also that of a parent process."""
    environment.pop(SETTINGS, None)
    places = environment.get("PYTHONPATH", "").split(os.pathsep)
    if _BOOTSTRAP not in places:
        return
    others = os.pathsep.join(place for place in places if place != _BOOTSTRAP)
    if others:
        environment["PYTHONPATH"] = others
    else:
        del environment["PYTHONPATH"]
