"""Installs the guard into SDKs, reports the guarded clients, and uninstalls it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from tinker_guard.install import installation
from tinker_guard.install.arguments import read_arguments

if TYPE_CHECKING:
    from tinker_guard.control_plane.protocol import AnyControlPlane
    from tinker_guard.install.status import GuardStatus
    from tinker_guard.settings import GuardSettings, PlainSettingValues


def install_guard(
    settings: GuardSettings | None = None,
    *,
    control_plane: AnyControlPlane | str | None = None,
    replace: bool = False,
    **values: Unpack[PlainSettingValues],
) -> None:
    """Guard every request of the `tinker` and `fireworks-ai` training SDKs against routing races.

        install_guard()
        install_guard(retry_timeout=60)

    Call it once at start-up or later; clients that exist already are guarded as well.
    Calling it again with the same arguments does nothing, unless `PYTHONPATH` was changed since:
    then child processes are guarded again. An SDK that has not been imported yet
    is guarded when the program imports it. The plain httpx clients that `fireworks-ai`
    has for its REST API are guarded on trainer routes, and for hot-loads and completions of a
    deployment.

    Args:
        settings: The settings as one object; else give the settings below by name. A setting
            that is not given comes from `TINKER_GUARD_<NAME>`, or has its default.
        control_plane: The control plane: an object of yours, which child processes do
            not inherit; or the setting of that name: `fireworks`, `http`, `kubernetes`,
            `ray-serve`, `none` or `module:Class`. None asks the Fireworks control plane about
            trainer jobs of Fireworks, by default at the route's own origin, and nothing about other
            routes.
        replace: Whether to replace the settings of an installed guard.
        **values: Settings, by name; times are in seconds.

            - `enabled`: False installs nothing (default: True).
            - `strict`: True stops a program that would run unguarded (False).
            - `child_processes`: Whether Python processes that this one starts guard too (True).
            - `routes`: Patterns of base URLs to guard in addition to Fireworks' trainer jobs, such
              as `http://head:8000` or `https://trainers.example.com/{_tenant}/{job}` (none).
            - `deployments`: Whether hot-loads and completions of Fireworks' deployments are
              guarded (True).
            - `warmup_successes`: Probes in a row that open a new route; 0 is no warmup (3).
            - `warmup_timeout`: How long a request waits for a new route (120).
            - `warmup_probe_path`: Path of probes (/api/v1/get_server_capabilities).
            - `unreached_timeout`: How long a request waits on a route without a control plane
              whose trainer was never reached (10).
            - `probe_timeout`: Time-out of one probe (5).
            - `retry_timeout`: How long a request waits after a 404 on a route that worked (30).
            - `backoff_initial`, `backoff_max`: First and longest wait between two resends (0.1, 3).
            - `trainer_404`: The form of your server's own 404, such as `{"members": {"kind":
              "not_found", "reason": "{text}"}}`, or a list of forms (none).
            - `control_plane_url`: URL of the control plane (the route's own origin).
            - `control_plane_object`: Object to look up: `NAMESPACE/KIND/NAME` of Kubernetes, the
              application of Ray Serve (None).
            - `control_plane_state`, `control_plane_running`, `control_plane_stopped`: For `http`,
              the position of the state in the answer, and the running and stopped states (state,
              running, and Fireworks' states).
            - `control_plane_timeout`: Time-out of one lookup (5).
            - `control_plane_api_key`: Key for that URL (the key of the request).
            - `verdict_ttl`: How long the answer RUNNING serves all requests with one key (1).
            - `trace`: Which requests have spans: all, work, eventful or off (work).
            - `metrics_by_job`: Whether metrics have account and job (False).
            - `export`: Destination of spans if the program has not set up OpenTelemetry: console,
              otlp or jsonl:PATH (None).

    Raises:
        InvalidSettingsError: A setting or a `TINKER_GUARD_*` variable has an invalid
            value, there is no such setting, or `settings` is given together with others by name.
        UnsupportedSdkError: No SDK is installed, or its version lacks the hook point. If only
            importing the SDK shows this, its `import` statement raises it.
        AlreadyInstalledError: The guard is installed with other settings.
    """
    given = read_arguments(settings, control_plane, values)
    installation.install(*given, replace=replace, is_automatic=False)


def uninstall_guard() -> None:
    """Restore the SDK as it was before `install_guard()`; does nothing if that was not called.

    Requests in progress keep their guard to the end. Close clients before that, if you can: after a
    race, connections of a transport that replaced a client's own stay open until the garbage
    collector finds them.
    """
    installation.uninstall()


def status() -> GuardStatus:
    """Report what is guarded in this process, and how; `print(status())` prints it as text."""
    return installation.describe()
