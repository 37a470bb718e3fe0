"""Puts the guard into installed SDKs, tells what is guarded, and takes it out again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack, cast

from tinker_guard.install import installation
from tinker_guard.settings import (
    GuardSettings,
    InvalidSettingsError,
    PlainSettingValues,
    SettingValues,
    check_type,
)

if TYPE_CHECKING:
    from tinker_guard.control_plane.protocol import AnyControlPlane
    from tinker_guard.install.status import GuardStatus


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

    Call it once at start-up; later is fine too, clients that exist already are guarded as well.
    Calling it again with the same arguments does nothing. An SDK that has not been imported yet
    is not imported for this, but guarded when it is. The plain httpx clients that `fireworks-ai`
    has for its REST API are guarded on trainer routes, and where they hot-load a deployment or ask
    it for completions.

    Args:
        settings: How to behave, as one object; else give the settings below by name. What is
            given neither way comes from `TINKER_GUARD_<NAME>`, or is the default.
        control_plane: What to ask whether a job runs: an object of yours, which child processes do
            not inherit; or the setting of that name: `fireworks`, `http`, `kubernetes`,
            `ray-serve`, `none` or `module:Class`. None asks the Fireworks control plane about
            trainer jobs of Fireworks, by default at the route's own origin, and nothing about other
            routes.
        replace: Whether to put these settings in the place of other ones.
        **values: Settings, by name; times are in seconds.

            - `enabled`: False installs nothing (default: True).
            - `strict`: True stops what would run unguarded (False).
            - `child_processes`: Whether Python processes that this one starts guard too (True).
            - `routes`: Patterns of base URLs that are guarded beside Fireworks' trainer jobs, such
              as `http://head:8000` or `https://trainers.example.com/{_tenant}/{job}` (none).
            - `deployments`: False leaves hot-loads and completions of Fireworks' deployments
              alone (True).
            - `warmup_successes`: Probes in a row that open a new route; 0 is no warmup (3).
            - `warmup_timeout`: How long a request waits for a new route (120).
            - `warmup_probe_path`: Path that is probed (/api/v1/get_server_capabilities).
            - `unreached_timeout`: How long a request waits for the first sign of a trainer on a
              route without a control plane (10).
            - `probe_timeout`: How long one probe may take (5).
            - `retry_timeout`: How long a request waits after a 404 on a route that worked (30).
            - `backoff_initial`, `backoff_max`: First and longest wait between two resends (0.1, 3).
            - `trainer_404`: What your server's own 404 looks like, such as `{"members": {"kind":
              "not_found", "reason": "{text}"}}`, or a list of such (none).
            - `control_plane_url`: Where to ask for a job's state (the route's own origin).
            - `control_plane_object`: What to ask about: `NAMESPACE/KIND/NAME` of Kubernetes, the
              application of Ray Serve (None).
            - `control_plane_state`, `control_plane_running`, `control_plane_stopped`: For `http`,
              where the state stands in the answer, and which states run and are stopped (state,
              running, and Fireworks' states).
            - `control_plane_timeout`: How long one question may take (5).
            - `control_plane_api_key`: Key for that URL (the one that the request carries).
            - `verdict_ttl`: How long one answer serves every request of a route (1).
            - `trace`: Which requests have spans: all, work, eventful or off (work).
            - `metrics_by_job`: Whether metrics carry account and job (False).
            - `export`: Where spans go if the program has set up no OpenTelemetry: console, otlp or
              jsonl:PATH (None).

    Raises:
        InvalidSettingsError: A setting or a `TINKER_GUARD_*` variable has a value that cannot
            work, there is no such setting, or `settings` is given beside others by name.
        UnsupportedSdkError: No SDK is installed, or its version lacks the hook point. If only
            importing the SDK shows this, its `import` statement raises it.
        AlreadyInstalledError: The guard is installed with other settings.
    """
    named = cast("SettingValues", values)
    if isinstance(control_plane, str):
        named["control_plane"] = control_plane
        control_plane = None
    if settings is not None:
        check_type(settings)
        if named:
            raise InvalidSettingsError(
                f"give either settings or {', '.join(named)}, not both; "
                "GuardSettings(...) takes the same names."
            )
    given = GuardSettings(**named) if named else settings
    installation.install(given, control_plane, replace=replace, is_automatic=False)


def uninstall_guard() -> None:
    """Leave the SDK as it was before `install_guard()`; does nothing if that was not called.

    Requests that are under way keep their guard to the end.
    """
    installation.uninstall()


def status() -> GuardStatus:
    """Tell what is guarded in this process, and how; `print(status())` reads as text."""
    return installation.describe()
