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
    from collections.abc import Callable, MutableMapping

SETTINGS = "TINKER_GUARD_INHERITED"
"""The variable with settings that a program gave in code, as JSON, without the secret one."""

_BOOTSTRAP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "bootstrap")


def bequeath(
    environment: MutableMapping[str, str], settings: str | None = None
) -> Callable[[], None]:
    """Have Python processes that are started with an environment guard the SDKs they import.

    Args:
        environment: Where to put what they need.
        settings: How they shall behave, as JSON; None leaves it to their `TINKER_GUARD_*`.

    Returns:
        Takes out of the environment what was put in.
    """
    before = environment.get("PYTHONPATH")
    is_new = _BOOTSTRAP not in (before or "").split(os.pathsep)
    if is_new:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [_BOOTSTRAP, before]))
    settings_before = environment.get(SETTINGS)
    if settings is not None:
        environment[SETTINGS] = settings

    def undo() -> None:
        if is_new:
            places = environment.get("PYTHONPATH", "").split(os.pathsep)
            _set(environment, "PYTHONPATH", os.pathsep.join(p for p in places if p != _BOOTSTRAP))
        if settings is not None and environment.get(SETTINGS) == settings:
            _set(environment, SETTINGS, settings_before)

    return undo


def _set(environment: MutableMapping[str, str], name: str, value: str | None) -> None:
    if value:
        environment[name] = value
    else:
        environment.pop(name, None)
