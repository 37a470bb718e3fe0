"""The guard's settings: arguments first, then `TINKER_GUARD_*`, then the defaults."""

from __future__ import annotations

import hashlib
import json
import os
import re
from contextlib import suppress
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Final,
    Literal,
    NotRequired,
    Self,
    TypeAlias,
    TypedDict,
    Unpack,
)
from urllib.parse import unquote

import httpx
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    FieldSerializationInfo,
    PrivateAttr,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from tinker_guard import faults
from tinker_guard.policy.not_found_shapes import parse_shape
from tinker_guard.policy.route import FIREWORKS, parse_pattern
from tinker_guard.policy.template import names_in

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Mapping

_PREFIX: Final = "TINKER_GUARD_"
_KEY: Final = "control_plane_api_key"
_URL: Final = "control_plane_url"
_INHERITED: Final = f"{_PREFIX}INHERITED"
"""An internal variable for child processes, not a setting."""
_LOST: Final = "is_control_plane_key_lost"
"""Member of the JSON for child processes: whether a key was left out."""
_LOST_URL: Final = "is_control_plane_url_lost"
"""The same of a URL with a key in it, whose place the part without it takes."""
_VARIABLES: Final = "variables"
"""Another member: digests of the parent's variables, by the setting."""


class InvalidSettingsError(ValueError):
    """A setting has an invalid value; the message names the setting and the valid values."""


def _control_plane_url(value: str, info: ValidationInfo) -> str:
    """A base URL; with `http` a template, which may be a path, and may have a query."""
    if info.data.get("control_plane") != "http":
        if "{" in value or "}" in value:
            raise ValueError("may hold placeholders only with control_plane http")
        return _http_url(value)
    names_in(value)
    if "#" in value:
        raise ValueError("must hold no fragment")
    if value.startswith("/"):
        return value
    where = re.match(r"[^/]*//[^/?]*", value)
    if where is not None and "{" in where[0]:
        raise ValueError("may hold placeholders in path and query alone")
    base, question, query = value.partition("?")
    _http_url(base)
    return base + question + query


def _revealed(value: object) -> object:
    """The URL of a `_UrlWithKey`, such as `model_dump()` has; anything else as it is."""
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def without_keys(url: str) -> str:
    """A control plane's URL without the values in its query, and what in its path may be a key."""
    base, question, query = url.partition("?")
    base = re.sub(r"(?<=[^/]/)(?=[\w~.-]*\d)[\w~.-]{16,}(?=/|\Z)", "...", base)
    shown = []
    for pair in query.split("&"):
        name, equals, value = pair.partition("=") if "=" in pair else ("", "", pair)
        shown.append(name + equals + (value if re.fullmatch(r"(\{\w+\})?", value) else "..."))
    return base + question + "&".join(shown)


def _is_cut(url: str) -> bool:
    """Whether a URL has passed through `without_keys`, as one copied from a log has."""
    base, _, query = url.partition("?")
    pairs = (pair.rpartition("=")[2] for pair in query.split("&"))
    return "..." in (*base.split("/"), *pairs)


class _UrlWithKey(SecretStr):
    """A control plane's URL, shown without what may be a key, where pydantic would show stars."""

    def _display(self) -> str:
        return without_keys(self.get_secret_value())


def _concealed(url: str | None) -> str | SecretStr | None:
    """A control plane's URL as an object that shows no key; as it is, if it holds none."""
    return url if url is None or without_keys(url) == url else _UrlWithKey(url)


def _http_url(value: str) -> str:
    try:
        url = httpx.URL(value)
        host, port = url.host, url.port
    except (httpx.InvalidURL, ValueError):
        raise ValueError("must be a URL such as https://api.example.com") from None
    if url.scheme not in ("http", "https") or not host:
        raise ValueError("must begin with http:// or https:// and name a host")
    if url.userinfo or "?" in value or "#" in value:
        raise ValueError("must hold neither a user name nor a query nor a fragment")
    if " " in value:
        # httpx would treat a space as part of the host.
        raise ValueError("must hold no spaces")
    if port is not None and not 0 < port < 65536:
        raise ValueError("must have a port from 1 to 65535")
    return value.rstrip("/")


def _absolute_path(value: str) -> str:
    if not re.fullmatch(r"/[!-~]*", value) or "?" in value or "#" in value:
        raise ValueError("must be a path such as /api/v1/get_server_capabilities")
    if {".", ".."} & set(unquote(value).replace("\\", "/").split("/")):
        raise ValueError("must hold no . or .. segment, which would lead off the route")
    return value


def _split(value: object) -> object:
    """Split a variable's text: a JSON list, or values separated by commas or whitespace."""
    if not isinstance(value, str):
        return value
    if not value.lstrip().startswith("["):
        return tuple(filter(None, re.split(r"[\s,]+", value)))
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError("must be separated by commas, or a list in JSON") from None


def _patterns(values: tuple[str, ...]) -> tuple[str, ...]:
    for number, value in enumerate(values, 1):
        try:
            parse_pattern(value)
        except ValueError as problem:
            raise ValueError(f"pattern {number} {problem}") from None
    return values


def _documents(value: object) -> object:
    """Split a variable's JSON: an object, or a list of objects. Returns each one as text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError("must be JSON, with objects in it") from None
    if not isinstance(value, list | tuple):
        value = (value,)
    try:
        return tuple(one if isinstance(one, str) else json.dumps(one) for one in value)
    except (TypeError, ValueError, RecursionError):
        raise ValueError("must hold what JSON can hold") from None


def _shapes(values: tuple[str, ...]) -> tuple[str, ...]:
    for number, value in enumerate(values, 1):
        try:
            parse_shape(value)
        except ValueError as problem:
            raise ValueError(f"shape {number} {problem}") from None
    return values


def _kind(value: str) -> str:
    if value not in ("fireworks", "http", "kubernetes", "none", "ray-serve") and not re.fullmatch(
        r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", value, re.ASCII
    ):
        raise ValueError(
            "must be fireworks, http, kubernetes, none, ray-serve, or a class of yours such as "
            "mypackage.module:MyControlPlane"
        )
    return value


def _template(value: str) -> str:
    names_in(value)
    return value


def _state_names(values: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if values is None:
        return None
    names = tuple(re.sub(r"[^A-Z0-9]+", "_", value.upper()).strip("_") for value in values)
    if not all(re.fullmatch(r"[A-Z][A-Z0-9_]{0,63}", name) for name in names):
        raise ValueError("must be names of states, such as running")
    return names


def check_destination(value: str) -> str:
    """Return a value of the setting `export`, the path in it absolute: a program may move on.

    Raises:
        ValueError: It is none. The message shows nothing of it: an endpoint may hold a key.
    """
    if not isinstance(value, str) or not re.fullmatch(r"console|otlp|jsonl:[^\0]+", value):
        raise ValueError("must be console, otlp or jsonl:PATH")
    kind, _, path = value.partition(":")
    if path.lower().endswith(_PACKED):
        raise ValueError("must name a file that is not packed: lines are appended as they are")
    # The working directory may be gone.
    with suppress(OSError):
        value = f"{kind}:{os.path.abspath(path)}" if path else value
    return value


_PACKED: Final = (".gz", ".bz2", ".xz", ".zst", ".zip")


def _no_boolean(value: object) -> object:
    # Python and pydantic take True as 1, and so the True of NumPy and PyTorch, whose `dtype`
    # is `bool` or `torch.bool`.
    kind = str(getattr(value, "dtype", ""))
    if isinstance(value, bool) or kind.rpartition(".")[2] == "bool":
        raise ValueError("must be a number, not a boolean")
    return value


Seconds = Annotated[float, BeforeValidator(_no_boolean), Field(gt=0, allow_inf_nan=False)]
_SecondsOrZero: TypeAlias = Annotated[
    float, BeforeValidator(_no_boolean), Field(ge=0, allow_inf_nan=False)
]
Trace: TypeAlias = Literal["all", "work", "eventful", "off"]


class Trainer404(TypedDict):
    """The form of a server's own 404, for the setting `trainer_404`."""

    members: Mapping[str, Any]
    """All members of its JSON object."""
    generic: NotRequired[bool]
    """Whether gateways may write this form too; True by default."""


class PlainSettingValues(TypedDict, total=False):
    """The keyword arguments of `install_guard()`, whose `control_plane` may be an object too."""

    enabled: bool
    strict: bool
    child_processes: bool
    routes: tuple[str, ...] | list[str] | str
    deployments: bool
    warmup_successes: int
    warmup_timeout: float
    warmup_probe_path: str
    unreached_timeout: float
    probe_timeout: float
    retry_timeout: float
    backoff_initial: float
    backoff_max: float
    trainer_404: tuple[Trainer404, ...] | list[Trainer404] | Trainer404 | tuple[str, ...] | str
    control_plane_url: str | None
    control_plane_object: str | None
    control_plane_state: str
    control_plane_running: tuple[str, ...] | list[str] | str
    control_plane_stopped: tuple[str, ...] | list[str] | str | None
    control_plane_timeout: float
    control_plane_api_key: str | SecretStr | None
    verdict_ttl: float
    trace: Trace
    metrics_by_job: bool
    export: str | None


class SettingValues(PlainSettingValues, total=False):
    """The settings as keyword arguments, for type checkers and editors; see `GuardSettings`."""

    control_plane: str | None


class _ShortHelp(type(BaseSettings)):  # type: ignore[misc]
    """`help()` and completion show the settings, not the several hundred lines of pydantic."""

    def __dir__(cls) -> list[str]:
        return [*cls.__pydantic_fields__, _LOST, "model_copy"]


class GuardSettings(BaseSettings, metaclass=_ShortHelp):
    """The guard's settings; every field is also read from `TINKER_GUARD_<NAME>`.

    Arguments come first, then the environment, then the defaults. Settings are frozen: they are
    read once, when the guard is installed. `install_guard()` explains each.

    Raises:
        InvalidSettingsError: A value is invalid. The message names the argument or variable and
            the valid values.
    """

    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(
        env_prefix=_PREFIX,
        frozen=True,
        extra="forbid",
        # A rejected value may be a secret in the wrong variable.
        hide_input_in_errors=True,
        # `VARIABLE=` in a shell or a compose file means that nothing is set.
        env_ignore_empty=True,
    )

    enabled: bool = True
    """False: `install_guard()` does nothing, and the SDK runs as without the guard."""
    strict: bool = False
    """True: a program that would run unguarded stops with an error instead, under `tinker-guard
    run` and in child processes too. Causes: an SDK without the hook point, a client that cannot be
    guarded, an invalid setting, an unknown `TINKER_GUARD_*` variable."""
    child_processes: bool = True
    """Whether Python processes that this one starts guard their SDKs too, through PYTHONPATH
    (see `tinker_guard.install.child_env`). They have the settings that were given in code, unless
    they are given a variable of their own, but never a key: see `is_control_plane_key_lost`."""
    routes: Annotated[
        tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_patterns)
    ] = ()
    """Patterns of base URLs to guard in addition to Fireworks' trainer jobs, such as
    `https://trainers.example.com/{_tenant}/{job}`: see `parse_pattern` in `policy/route.py`. In a
    variable: separated by commas or whitespace, or a JSON list."""
    deployments: bool = True
    """Whether hot-loads and completions of Fireworks' deployments are guarded too."""
    warmup_successes: Annotated[int, BeforeValidator(_no_boolean), Field(ge=0, le=20)] = 3
    """Probes that must reach the trainer in a row before a route's first request is sent;
    0 switches the warmup off."""
    warmup_timeout: Seconds = 120.0
    """Seconds after which waiting requests get the gateway's last 404."""
    warmup_probe_path: Annotated[str, AfterValidator(_absolute_path)] = (
        "/api/v1/get_server_capabilities"
    )
    """Path of probes, below the route. Not `healthz`, which can be routable earlier."""
    unreached_timeout: Seconds = 10.0
    """Seconds that a request waits on a route without a control plane whose trainer was never
    reached."""
    probe_timeout: Seconds = 5.0
    """Time-out of one probe, in seconds."""
    retry_timeout: _SecondsOrZero = 30.0
    """Seconds that one request may spend on a race: waits, probes and lookups included."""
    backoff_initial: Seconds = 0.1
    """Seconds before the second probe or resend; the first is sent at once."""
    backoff_max: Seconds = 3.0
    """Longest wait between two resends, in seconds, except for a longer `Retry-After`."""
    trainer_404: Annotated[
        tuple[str, ...], NoDecode, BeforeValidator(_documents), AfterValidator(_shapes)
    ] = ()
    """The form of your server's own 404, if the guard does not recognise it, such as
    `{"members": {"kind": "not_found", "reason": "{text}"}}`; see `parse_shape` in
    `policy/not_found_shapes.py`. In a variable: JSON, one object or a list. Stored as JSON."""
    control_plane: Annotated[str, AfterValidator(_kind)] | None = None
    """The kind of control plane: `fireworks`, `http`, `kubernetes`, `ray-serve`, `none`,
    or the `module:Class` of your own class. None asks Fireworks' control plane about Fireworks'
    trainer jobs, and nothing about other routes."""
    control_plane_url: (
        Annotated[str, BeforeValidator(_revealed), AfterValidator(_control_plane_url)] | None
    ) = None
    """Its URL; None asks the route's own origin. For `http` a URL with placeholders of the route's
    pattern in path and query, or a path at the route's own origin."""
    control_plane_object: Annotated[str, AfterValidator(_template)] | None = None
    """The object to look up, as a template: `NAMESPACE/KIND/NAME` for `kubernetes` (KIND:
    deployments, endpointslices, jobs, statefulsets), the application for `ray-serve`."""
    control_plane_state: Annotated[str, Field(min_length=1), AfterValidator(_template)] = "state"
    """For `http`: position of the state in the JSON, such as `status.phase` or `jobs.{job}.x`."""
    control_plane_running: Annotated[
        tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_state_names)
    ] = ("RUNNING", "JOB_STATE_RUNNING")
    """For `http`: states of a running trainer, in upper or lower case."""
    control_plane_stopped: Annotated[
        tuple[str, ...] | None, NoDecode, BeforeValidator(_split), AfterValidator(_state_names)
    ] = None
    """For `http`: states of a trainer that will not come up again. None takes Fireworks' states,
    and similar words such as STOPPED, SUCCEEDED, CANCELED and TERMINATING."""
    control_plane_timeout: Seconds = 5.0
    """Time-out of one control-plane lookup, in seconds. Keep it well below `retry_timeout`: where a
    control plane is silent, a probe follows the lookup."""
    control_plane_api_key: Annotated[SecretStr, Field(min_length=1)] | None = None
    """Key for `control_plane_url`, which must be set too: this key goes to no other host. None
    uses the request's own key."""
    verdict_ttl: _SecondsOrZero = 1.0
    """Seconds for which the answer RUNNING serves all requests of a route with the same key."""
    trace: Trace = "work"
    """Which requests have spans. `work`: all but polls, heartbeats and the SDK's own telemetry;
    `eventful`: none. With both, requests that met a 404, a wait or an error have spans too.
    `off`: no request has spans."""
    metrics_by_job: bool = False
    """True: the guard's metrics have account and job, so each job is a new time series."""
    export: Annotated[str, AfterValidator(check_destination)] | None = None
    """Destination of spans and metrics if the program has not set up OpenTelemetry: `console`,
    `otlp` (to `OTEL_EXPORTER_OTLP_ENDPOINT`) or `jsonl:PATH`. None sets up nothing."""

    _was_key_left_out: bool = PrivateAttr(default=False)
    _was_url_left_out: bool = PrivateAttr(default=False)

    @property
    def is_control_plane_key_lost(self) -> bool:
        """Whether a key for the control plane was given but is missing in this process.

        Pickles and child processes do not get `control_plane_api_key`. If
        `TINKER_GUARD_CONTROL_PLANE_API_KEY` is set in their own environment, they use that one, and
        this is False; unless the key is one in the URL: see `is_control_plane_url_lost`.
        """
        is_missing = self._was_key_left_out and self.control_plane_api_key is None
        return is_missing or self._was_url_left_out

    @property
    def is_control_plane_url_lost(self) -> bool:
        """Whether a `control_plane_url` was given that may hold a key, but is cut short here.

        Pickles and child processes do not get values in its query, nor what in its path may be a
        key. If `TINKER_GUARD_CONTROL_PLANE_URL` is set in their own environment, they use that one,
        and this is False.
        """
        return self._was_url_left_out

    @property
    def _has_or_lost_key(self) -> bool:
        return self._was_key_left_out or self.control_plane_api_key is not None

    @property
    def _url_to_leave_out(self) -> str | None:
        """What stands for the URL where it must not arrive; None if it may go along."""
        url = self.control_plane_url
        shown = None if url is None else without_keys(url)
        return shown if self._was_url_left_out or shown != url else None

    def dump_without_key(self) -> str:
        """JSON for a child process: what was given in code, and whether there was a key.

        It never holds the key, nor one in the URL. The child process reads other settings from its
        own variables.
        """
        members = json.loads(self.model_dump_json(exclude_unset=True, exclude={_KEY}))
        variables = {
            name: _digest(value) for name, value in _set_variables().items() if name in members
        }
        if self._has_or_lost_key:
            members[_LOST] = True
        left = self._url_to_leave_out
        # A URL from a variable is left to the variable.
        if left is not None and (_URL in members or self._was_url_left_out):
            members |= {_URL: left, _LOST_URL: True}
        if variables:
            members[_VARIABLES] = variables
        return json.dumps(members)

    @classmethod
    def load_without_key(cls, text: str) -> Self:
        """Read what `dump_without_key` wrote; a key comes from this process's own variable.

        A variable of this process counts more than the text, unless the parent process had it with
        the same value: there, code came first. Settings that this release does not know are
        ignored.

        Raises:
            InvalidSettingsError: The text is something else, or a variable has an invalid value.
        """
        members = _members(text)
        was_key_left_out = members.get(_LOST, False)
        parents = members.get(_VARIABLES)
        own = {name: _digest(value) for name, value in _set_variables().items()}
        if isinstance(parents, dict):
            own = {name: digest for name, digest in own.items() if parents.get(name) != digest}
        known = cls.model_fields.keys() - own.keys()
        settings = cls(**{name: value for name, value in members.items() if name in known})
        settings._was_key_left_out = was_key_left_out and settings.control_plane_api_key is None
        settings._was_url_left_out |= bool(members.get(_LOST_URL, False)) and _URL in known
        return settings

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """The arguments for `repr`, without what may be a key in a URL."""
        for name, value in super().__repr_args__():
            is_url = name == _URL and value is not None
            yield name, without_keys(value) if is_url else value

    def __iter__(self) -> Generator[tuple[str, Any], None, None]:
        """The settings for `dict()`, with a URL that may hold a key as `model_dump()` has it."""
        for name, value in super().__iter__():
            yield name, _concealed(value) if name == _URL else value

    @field_serializer("control_plane_url")
    def _dump_url(self, url: str | None, info: FieldSerializationInfo) -> str | SecretStr | None:
        """What `model_dump()` has: as of a key, an object that shows none, and text in JSON."""
        concealed = _concealed(url)
        return concealed if concealed is None or not info.mode_is_json() else str(concealed)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse to change a setting, as pydantic does, but do not show the value."""
        if name.startswith("_"):
            super().__setattr__(name, value)
            return
        problem = InitErrorDetails(type="frozen_instance", loc=(name,), input=None)
        raise ValidationError.from_exception_data(type(self).__name__, [problem], hide_input=True)

    def __getstate__(self) -> dict[Any, Any]:
        """The state for a pickle: all but the key, or one in the URL, and whether there was one."""
        state = super().__getstate__()
        left = self._url_to_leave_out
        return state | {
            "__dict__": state["__dict__"] | {_KEY: None} | ({} if left is None else {_URL: left}),
            "__pydantic_private__": {
                **(state["__pydantic_private__"] or {}),
                "_was_key_left_out": self._has_or_lost_key,
                "_was_url_left_out": left is not None,
            },
        }

    def __setstate__(self, state: dict[Any, Any]) -> None:
        """Restore a pickle; a missing key or URL comes from this process's own variable."""
        super().__setstate__(state)
        if self._was_key_left_out:
            key = EnvSettingsSource(type(self))().get(_KEY)
            if key is not None and can_be_sent(key):
                self.__dict__[_KEY] = SecretStr(key)
                self._was_key_left_out = False
        if self._was_url_left_out:
            url = EnvSettingsSource(type(self))().get(_URL)
            # One that does not fit the other settings is as good as none.
            with suppress(InvalidSettingsError):
                if url is not None:
                    found = type(self)(**self.__dict__ | {_URL: url})
                    self.__dict__[_URL] = found.control_plane_url
                    self._was_url_left_out = found._was_url_left_out

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy the settings within this process, with the key."""
        copied = super().model_copy(update=update, deep=deep)
        # A copy with a new key, or a new URL, lacks none.
        copied._was_key_left_out &= copied.control_plane_api_key is None
        copied._was_url_left_out &= _URL not in (update or {})
        return copied

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments and the environment, but no files."""
        return init_settings, env_settings

    def __init__(self, **values: Unpack[SettingValues]) -> None:
        """Read the settings from arguments, the environment and the defaults."""
        try:
            try:
                super().__init__(**values)
            except KeyError:
                # A variable was removed from the environment during the read, for example by
                # `uninstall_guard()` in another thread.
                super().__init__(**values)
        except ValidationError as error:
            raise InvalidSettingsError(_explain(error, values)) from None
        # Nothing is asked at the URL of a log line, or of JSON: the key in it is missing.
        self._was_url_left_out = _is_cut(self.control_plane_url or "")
        # Only what was given in code: child processes read the variables themselves.
        self.model_fields_set.intersection_update(values)

    @field_validator("control_plane_api_key")
    @classmethod
    def _check_key(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and not can_be_sent(key.get_secret_value()):
            # A secret read from a file ends with a newline, which a header cannot contain.
            raise ValueError("must be printable ASCII, without spaces or newlines around it")
        if key is not None and key.get_secret_value() == str(key):
            raise ValueError("must be the key itself, not the stars that are shown in its place")
        return key

    @model_validator(mode="after")
    def _check_together(self) -> GuardSettings:
        # In the messages, `_explain` replaces names of settings between backticks.
        url = self.control_plane_url
        if self.control_plane_api_key is not None and (url is None or url.startswith("/")):
            # A gateway can redirect a request to any origin, which would then get the lookup.
            raise ValueError(
                "`control_plane_api_key` needs `control_plane_url`, the only place it is sent to"
                + ("" if url is None else ", with a host")
            )
        self._check_control_plane(url or "", self.control_plane_object or "")
        if self.strict and not self.enabled:
            raise ValueError(
                "`strict` needs `enabled`: without the guard, everything runs unguarded"
            )
        if self.backoff_initial > self.backoff_max:
            raise ValueError("`backoff_initial` must not exceed `backoff_max`")
        return self

    def _check_control_plane(self, url: str, asked: str) -> None:
        kind = self.control_plane
        if kind in ("http", "ray-serve") and not url:
            raise ValueError(
                f"`control_plane` {kind} needs `control_plane_url`, which is to be asked"
            )
        if kind == "ray-serve" and not asked:
            raise ValueError(
                "`control_plane` ray-serve needs `control_plane_object`, the name of the "
                "application"
            )
        if kind == "kubernetes" and not _KUBERNETES_OBJECT.fullmatch(asked):
            raise ValueError(
                "`control_plane` kubernetes needs `control_plane_object`, such as "
                "training/deployments/{job}: NAMESPACE/KIND/NAME, KIND being deployments, "
                "endpointslices, jobs or statefulsets"
            )
        captured = {name for text in (*self.routes, FIREWORKS) for name in names_in(text)}
        asked_for = {*names_in(url), *names_in(asked)}
        if kind == "http":
            asked_for |= {*names_in(self.control_plane_state)}
        if not asked_for <= captured:
            raise ValueError(
                "`control_plane_url`, `control_plane_object` and `control_plane_state` may hold "
                "only names that a pattern of `routes` captures"
            )


def _members(text: str) -> dict[str, Any]:
    """The members of the JSON that `GuardSettings.dump_without_key` writes."""
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError, RecursionError):
        raise InvalidSettingsError(
            f"{_INHERITED} holds no settings. The guard sets it for child processes; unset it."
        ) from None


def _set_variables() -> dict[str, str]:
    """The values of the variables that are set, by the setting."""
    # Not `items()`: another thread may remove a variable meanwhile.
    found = {name.upper(): os.environ.get(name) for name in list(os.environ)}
    values = {name: found.get(variable(name)) for name in GuardSettings.model_fields}
    return {name: value for name, value in values.items() if value}


def _digest(value: str) -> str:
    """A value of a variable as it is passed on: two can be compared, and none be read."""
    return hashlib.sha256(value.encode(errors="surrogatepass")).hexdigest()[:16]


def can_be_sent(key: str) -> bool:
    """Whether a header can carry a key."""
    return key.isascii() and key.isprintable() and key == key.strip()


_KUBERNETES_OBJECT: Final = re.compile(
    r"[^/\s]+/(deployments|endpointslices|jobs|statefulsets)/[^/\s]+"
)


def _explain(error: ValidationError, arguments: Mapping[str, Any]) -> str:
    lines = ["tinker_guard cannot use these settings:"]
    variables = {name.upper() for name, value in os.environ.items() if value}
    from_variables = {
        name
        for name in GuardSettings.model_fields
        if name not in arguments and variable(name) in variables
    }
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        field = str(problem["loc"][0]) if problem["loc"] else ""
        name = variable(field) if field in from_variables else field or "settings"
        wanted = _wanted(field, problem["type"], problem["msg"])
        lines.append(f"  {name}: {wanted if field else _named(wanted, from_variables, arguments)}")
    return "\n".join(lines)


def _named(message: str, from_variables: set[str], arguments: Mapping[str, Any]) -> str:
    """A message about several settings, with the name of each argument or variable."""
    names = set(re.findall("`(.+?)`", message))
    # A missing one is named in the form of the others.
    by_variable = names - set(arguments) if names & from_variables else set()
    return re.sub("`(.+?)`", lambda m: variable(m[1]) if m[1] in by_variable else m[1], message)


def _wanted(field: str, kind: str, message: str) -> str:
    if kind == "extra_forbidden":
        return no_setting(field)
    known = GuardSettings.model_fields.get(field)
    wanted = message.removeprefix("Value error, ")
    has_default = known is not None and known.default not in (None, ())
    example = f" (default: {known.default})" if known is not None and has_default else ""
    return f"{wanted[:1].lower()}{wanted[1:]}{example}"


def no_setting(name: str) -> str:
    """What to tell of a name that is no setting, with the most similar setting if there is one."""
    near = _nearest(name, GuardSettings.model_fields)
    return "is no setting" + (f"; did you mean {near}?" if near else "")


def variable(setting: str) -> str:
    """The environment variable of a setting."""
    return _PREFIX + setting.upper()


_LIKENESS: Final = 0.9
"""The least similarity of a variable without our prefix that is reported as misspelt."""


def misspelt_variables() -> Iterator[tuple[str, str | None]]:
    """Find variables of the environment that resemble a setting but are none.

    Yields:
        The variable's name, and that of the most similar setting; None for a variable with the
        guard's prefix that resembles none.
    """
    known = [variable(name) for name in GuardSettings.model_fields]
    # The ratio is 2 * matching letters / letters of both: a shorter name cannot reach it.
    shortest = min(map(len, known)) * _LIKENESS / (2 - _LIKENESS)
    for name in sorted(os.environ):
        upper = name.upper()
        if upper in known or upper == _INHERITED:
            continue
        if upper.startswith(_PREFIX):
            # Without the prefix, which they all share.
            near = _nearest(name[len(_PREFIX) :].lower(), GuardSettings.model_fields)
            yield name, variable(near) if near else None
        elif len(upper) >= shortest and (near := _nearest(upper, known, _LIKENESS)):
            yield name, near


def _nearest(word: str, names: Iterable[str], likeness: float = 0.6) -> str | None:
    """The name most similar to a word; None if none is similar enough."""
    # Imported only for a variable or an argument that may be misspelt.
    from difflib import get_close_matches

    return next(iter(get_close_matches(word, list(names), n=1, cutoff=likeness)), None)


def check_type(settings: GuardSettings) -> None:
    """Refuse a bare number or a dictionary instead of settings.

    Raises:
        InvalidSettingsError: The argument is no `GuardSettings`.
    """
    if not isinstance(settings, GuardSettings):
        raise InvalidSettingsError(
            f"settings: must be a GuardSettings, and is of type {type(settings).__name__}; give "
            "settings by name, such as GuardSettings(retry_timeout=60)"
        )


def unknown_inherited(text: str) -> list[str]:
    """The settings of a parent process that this release does not know.

    Args:
        text: As for `GuardSettings.load_without_key`.

    Raises:
        InvalidSettingsError: The text is something else.
    """
    known = {*GuardSettings.model_fields, _LOST, _LOST_URL, _VARIABLES}
    unknown = [name for name in _members(text) if name not in known]
    # The text may be anybody's, and lines be forged by it.
    return [name if re.fullmatch(r"[a-z]\w{0,40}", name, re.ASCII) else "..." for name in unknown]


def check_inherited(text: str) -> None:
    """Log the settings of a parent process that this release does not know, once.

    Args:
        text: As for `GuardSettings.load_without_key`.

    Raises:
        InvalidSettingsError: The text is something else.
    """
    if unknown := unknown_inherited(text):
        faults.log_once(
            f"{_INHERITED} holds settings that this release does not know: {', '.join(unknown)}. "
            "The parent process has another release of tinker_guard; they are ignored."
        )


def check_url(settings: GuardSettings) -> None:
    """Log once that no control plane is asked, since its URL has lost a key."""
    if settings.is_control_plane_url_lost:
        faults.log_once(
            f"{_URL} was given with a key in it, which is not in this process: no control plane is "
            f"asked. Set {variable(_URL)} to the whole URL."
        )


def check_variables(settings: GuardSettings) -> None:
    """Log each variable that resembles a setting but is none, once.

    Raises:
        InvalidSettingsError: There is such a variable, and `strict` is set.
    """
    problems = {
        name: f"{name} is no setting" + (f"; did you mean {meant}?" if meant else ".")
        for name, meant in misspelt_variables()
    }
    if problems and settings.strict:
        raise InvalidSettingsError("\n  ".join(["strict is set, but:", *problems.values()]))
    for problem in problems.values():
        faults.log_once(problem)
