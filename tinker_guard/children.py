"""Gives child processes the guard, by the environment that they inherit.

When Python starts, it imports the first `sitecustomize` that it finds, in PYTHONPATH first; the
directory `bootstrap/` holds one. This covers `subprocess`, multiprocessing's spawn and forkserver,
and the SDK's sampling sidecar; not `python -E`, `-I` and `-S`, nor processes that a service starts,
as Ray does.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import MutableMapping

SETTINGS = "TINKER_GUARD_INHERITED"
"""The variable with settings that a program gave in code, as JSON, without the secret one."""

_BOOTSTRAP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "bootstrap")


def bequeath(environment: MutableMapping[str, str], settings: str | None = None) -> None:
    """Have Python processes that are started with an environment guard the SDKs they import.

    Args:
        environment: Where to put what they need.
        settings: How they shall behave, as JSON; None leaves it to their `TINKER_GUARD_*`.
    """
    before = environment.get("PYTHONPATH")
    if _BOOTSTRAP not in (before or "").split(os.pathsep):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [_BOOTSTRAP, before]))
    if settings is not None:
        environment[SETTINGS] = settings


def withhold(environment: MutableMapping[str, str]) -> None:
    """Take all of that out of an environment again, whoever put it there."""
    environment.pop(SETTINGS, None)
    places = environment.get("PYTHONPATH", "").split(os.pathsep)
    if _BOOTSTRAP not in places:
        return
    others = os.pathsep.join(place for place in places if place != _BOOTSTRAP)
    if others:
        environment["PYTHONPATH"] = others
    else:
        del environment["PYTHONPATH"]
