"""The guard's settings: arguments first, then `TINKER_GUARD_*`, then the defaults."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Final, Literal
from urllib.parse import unquote

import httpx
from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

_PREFIX: Final = "TINKER_GUARD_"


class InvalidSettingsError(ValueError):
    """A setting has a value that cannot work; the message names it and what would be right."""


def _http_url(value: str | None) -> str | None:
    if value is None:
        return None
    try:
        url = httpx.URL(value)
        host, port = url.host, url.port
    except (httpx.InvalidURL, ValueError):
        raise ValueError("must be a URL such as https://api.example.com") from None
    if url.scheme not in ("http", "https") or not host:
        raise ValueError("must begin with http:// or https:// and name a host")
    if url.userinfo or "?" in value or "#" in value:
        raise ValueError("must hold neither a user name nor a query nor a fragment")
    if port is not None and not 0 < port < 65536:
        raise ValueError("must have a port from 1 to 65535")
    return value.rstrip("/")


def _absolute_path(value: str) -> str:
    if not re.fullmatch(r"/[!-~]*", value) or "?" in value or "#" in value:
        raise ValueError("must be a path such as /api/v1/get_server_capabilities")
    if {".", ".."} & set(unquote(value).replace("\\", "/").split("/")):
        raise ValueError("must hold no . or .. segment, which would lead off the route")
    return value


def _destination(value: str) -> str:
    if value not in ("console", "otlp") and not re.fullmatch(r"jsonl:.+", value):
        raise ValueError("must be console, otlp or jsonl:PATH")
    return value


Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class GuardSettings(BaseSettings):
    """How the guard behaves; every field is also read from `TINKER_GUARD_<NAME>`.

    Settings are frozen: they are read once, when the guard is installed.

    Raises:
        InvalidSettingsError: A value cannot work. The message names the argument or variable and
            says what would be right.
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        frozen=True,
        extra="forbid",
        # A rejected value may be a secret that was put into the wrong variable.
        hide_input_in_errors=True,
        # `VARIABLE=` in a shell or a compose file means that nothing is set.
        env_ignore_empty=True,
    )

    enabled: bool = True
    """False: `install_guard()` does nothing and the SDK behaves as if it were not there."""
    child_processes: bool = True
    """Whether Python processes that this one starts guard their SDKs too, by way of PYTHONPATH
    (see `tinker_guard.children`). They use the same settings, but never a key given in code."""
    warmup_successes: Annotated[int, Field(ge=0, le=20)] = 3
    """Probes that must reach the trainer in a row before a route's first request is sent;
    0 switches the warmup off."""
    warmup_timeout: Seconds = 120.0
    """Seconds after which waiting requests get the gateway's last 404."""
    warmup_probe_path: Annotated[str, AfterValidator(_absolute_path)] = (
        "/api/v1/get_server_capabilities"
    )
    """Path below the route that is probed. Not `healthz`, which can be routable earlier."""
    probe_timeout: Seconds = 5.0
    """Seconds that one probe may take."""
    retry_timeout: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 30.0
    """Seconds that one request may spend on a race: sleeps, questions and resends begun."""
    backoff_initial: Seconds = 0.1
    """Seconds before the second resend; the first is sent at once."""
    backoff_max: Seconds = 3.0
    """Seconds that no wait between two resends exceeds."""
    control_plane_url: Annotated[str | None, AfterValidator(_http_url)] = None
    """Where to ask for a job's state; None asks the route's own origin."""
    control_plane_timeout: Seconds = 5.0
    """Seconds that one control-plane question may take."""
    control_plane_api_key: Annotated[SecretStr, Field(min_length=1)] | None = None
    """Key for `control_plane_url`, which must be set too: this key goes to no other place. None
    uses the key that the request itself carries."""
    verdict_ttl: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Seconds for which one answer of the control plane serves every request of a route."""
    trace: Literal["all", "work", "eventful", "off"] = "work"
    """Which requests have spans. `work`: all but polls, heartbeats and the SDK's own telemetry;
    `eventful`: none. Both of these still have those that met a 404, a wait or an error. `off`:
    really none."""
    metrics_by_job: bool = False
    """True: the guard's metrics carry account and job, which makes a new time series for each."""
    export: Annotated[str, AfterValidator(_destination)] | None = None
    """Where spans and metrics go if the program has set up no OpenTelemetry: `console`, `otlp`
    (where `OTEL_EXPORTER_OTLP_ENDPOINT` says) or `jsonl:PATH`. None sets up nothing."""

    def __getstate__(self) -> dict[Any, Any]:
        """What a pickle holds: all but the key, as for child processes."""
        state = super().__getstate__()
        return state | {"__dict__": state["__dict__"] | {"control_plane_api_key": None}}

    def __init__(self, **values: Any) -> None:
        """Read the settings from arguments, the environment and the defaults."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise InvalidSettingsError(_explain(error, values)) from None

    @model_validator(mode="after")
    def _check_together(self) -> GuardSettings:
        if self.control_plane_api_key is not None and self.control_plane_url is None:
            # A gateway can redirect a request to any origin, which would then be asked.
            raise ValueError(
                "control_plane_api_key needs control_plane_url, the only place it is sent to"
            )
        if self.backoff_initial > self.backoff_max:
            raise ValueError("backoff_initial must not exceed backoff_max")
        return self


def _explain(error: ValidationError, arguments: dict[str, Any]) -> str:
    lines = ["tinker_guard cannot use these settings:"]
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        field = str(problem["loc"][0]) if problem["loc"] else ""
        variable = _PREFIX + field.upper()
        set_by_variable = field not in arguments and variable in (key.upper() for key in os.environ)
        name = variable if set_by_variable else field or "settings"
        wanted = problem["msg"].removeprefix("Value error, ")
        default = GuardSettings.model_fields[field].default if _has_default(field) else None
        example = f" (default: {default})" if default is not None else ""
        lines.append(f"  {name}: {wanted[:1].lower()}{wanted[1:]}{example}")
    return "\n".join(lines)


def _has_default(field: str) -> bool:
    return field in GuardSettings.model_fields
