"""Ray Serve: the status of an application, from the dashboard's `/api/serve/applications/`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tinker_guard.control_plane.http import HttpControlPlane

if TYPE_CHECKING:
    from pydantic import SecretStr

RUNNING: Final = ("RUNNING", "UNHEALTHY", "DEPLOYING")
"""An application with a replica that fails its health check keeps its route, and so does one that
is deployed anew, which Ray 2.60.0 calls DEPLOYING for seconds: a 404 is that of a proxy which does
not know the route."""
STOPPED: Final = ("DELETING", "DEPLOY_FAILED")
"""Of `ApplicationStatus` in Ray 2.60.0. The other one, NOT_STARTED, is on the way."""


def ray_serve(
    url: str,
    application: str,
    *,
    api_key: SecretStr | None = None,
    timeout: float = 5.0,
    is_key_lost: bool = False,
) -> HttpControlPlane:
    """The control plane of an application of Ray Serve.

    One that is not in the list does not exist. Without a controller the list is empty: before the
    first application is deployed, and while the dashboard does not find the controller.

    Args:
        url: Base URL of the dashboard, such as `http://head:8265`.
        application: Its name; `{name}` stands for what the route's pattern has captured.
        api_key: For a proxy in front of the dashboard, which takes none itself.
        timeout: Seconds for each phase of the exchange.
        is_key_lost: Whether there was a key that is not in this process.
    """
    return HttpControlPlane(
        f"{url}/api/serve/applications/",
        ("applications", application, "status"),
        RUNNING,
        STOPPED,
        listed_at=1,
        known_by="controller_info",
        api_key=api_key,
        timeout=timeout,
        is_key_lost=is_key_lost,
    )
