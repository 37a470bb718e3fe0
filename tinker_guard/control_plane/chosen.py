"""The control plane that the settings name."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import httpx

from tinker_guard.control_plane.fireworks import FireworksControlPlane
from tinker_guard.control_plane.http import STOPPED, HttpControlPlane
from tinker_guard.control_plane.kubernetes import KubernetesControlPlane
from tinker_guard.control_plane.protocol import (
    AnyControlPlane,
    ControlPlane,
    ControlPlaneError,
    RouteControlPlane,
)
from tinker_guard.control_plane.ray_serve import ray_serve
from tinker_guard.policy.job import DEPLOYMENT_PHASES, JobPhase
from tinker_guard.policy.url import origin as origin_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tinker_guard.policy.route import Route
    from tinker_guard.settings import GuardSettings


def control_plane_of(settings: GuardSettings) -> AnyControlPlane | None:
    """The control plane that settings name; None if they name none."""
    url, asked = settings.control_plane_url or "", settings.control_plane_object or ""
    given: dict[str, Any] = {
        "api_key": settings.control_plane_api_key,
        "timeout": settings.control_plane_timeout,
        "is_key_lost": settings.is_control_plane_key_lost,
    }
    match settings.control_plane:
        case None | "fireworks":
            return FireworksControlPlane(url or None, **given)
        case "none":
            return None
        case "http":
            return HttpControlPlane(
                url,
                tuple(settings.control_plane_state.split(".")),
                settings.control_plane_running,
                STOPPED
                if settings.control_plane_stopped is None
                else settings.control_plane_stopped,
                **given,
            )
        case "ray-serve":
            return ray_serve(url, asked, **given)
        case "kubernetes":
            return KubernetesControlPlane(asked, settings.control_plane_timeout)
        case name:
            return ImportedControlPlane(name)


def asks_about(plane: AnyControlPlane | None, route: Route, *, is_default: bool) -> bool:
    """Whether a control plane can be asked about a route.

    Args:
        plane: The control plane, if there is one.
        route: The route.
        is_default: Whether neither settings nor program name one.
    """
    if route.deployment is not None:
        # What others are asked about are trainers.
        return isinstance(plane, FireworksControlPlane)
    if isinstance(plane, FireworksControlPlane):
        # Another server's route may have an account and a job too.
        return route.is_fireworks if is_default else route.is_named_by_job
    if isinstance(plane, HttpControlPlane | KubernetesControlPlane):
        return plane.asks_about(route.names)
    return plane is not None


def place_asked(settings: GuardSettings, origin: str) -> str:
    """Where settings have a route's control plane asked, as it may be shown.

    Args:
        settings: They name a control plane, or leave that to the default.
        origin: Of the route.
    """
    match settings.control_plane:
        case "kubernetes":
            return "the API server of Kubernetes"
        case None | "fireworks" | "http" | "ray-serve":
            url = settings.control_plane_url or "/"
            if url.startswith("/"):
                return origin
            return origin_of(httpx.URL(url))
        case name:
            return name


async def ask(
    plane: AnyControlPlane, route: Route, credentials: Mapping[str, str]
) -> tuple[str | None, JobPhase | None]:
    """Ask in what state a route's trainer is.

    Returns:
        The state, None if there is no such trainer; and what it means, None if it is one of those
        of Fireworks.
    """
    if isinstance(plane, ImportedControlPlane):
        plane = _imported(plane.name)
    account = route.account or ""
    asked: dict[str, Any] = {"origin": route.origin, "credentials": credentials}
    phases: Mapping[str, str] | None = getattr(plane, "phases", None)
    if route.deployment is not None and isinstance(plane, FireworksControlPlane):
        phases = DEPLOYMENT_PHASES
        state = await plane.deployment_state(account, route.deployment, **asked)
    elif isinstance(plane, RouteControlPlane):
        state = await plane.route_state(route.names, **asked)
    else:
        state = await plane.job_state(account, route.job or "", **asked)
    if phases is None or state is None:
        return state, None
    return state, JobPhase(phases.get(state, JobPhase.STARTING))


@dataclass(frozen=True)
class ImportedControlPlane:
    """A user's own class by its name. Imported when it is first asked: the program begins before.

    Args:
        name: `module:Class`. The class is called without arguments, once in a process.
    """

    name: str

    async def route_state(
        self, names: Mapping[str, str], *, origin: str, credentials: Mapping[str, str]
    ) -> str | None:
        """Never called: `ask` asks the class itself."""
        raise NotImplementedError


@lru_cache(maxsize=8)
def _imported(name: str) -> AnyControlPlane:
    module, _, names = name.partition(":")
    try:
        made = attrgetter(names)(importlib.import_module(module))()
    except Exception as error:
        # Only the type: somebody else's text may hold anything.
        raise ControlPlaneError(
            f"TINKER_GUARD_CONTROL_PLANE names a class that cannot be had "
            f"({type(error).__name__}). Does {name} import, and take no arguments?"
        ) from None
    if not isinstance(made, ControlPlane | RouteControlPlane):
        raise ControlPlaneError(f"{name} has neither a method route_state nor job_state.")
    return made
