"""The arguments of `install_guard()`, which the OpenTelemetry instrumentor takes too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, cast

from tinker_guard import faults
from tinker_guard.control_plane.protocol import check_given
from tinker_guard.install.import_hooks import is_findable
from tinker_guard.settings import GuardSettings, InvalidSettingsError, check_type, no_setting

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tinker_guard.control_plane.protocol import AnyControlPlane
    from tinker_guard.settings import SettingValues


class Arguments(NamedTuple):
    """The arguments, after they were checked."""

    settings: GuardSettings | None
    """None if no setting was given."""
    control_plane: AnyControlPlane | None
    """An object of the program's own, if one was given."""


def read_arguments(
    settings: GuardSettings | None,
    control_plane: AnyControlPlane | str | None,
    values: Mapping[str, object],
) -> Arguments:
    """Check arguments, and read settings that are given by name.

    Args:
        settings: As for `install_guard()`; any object.
        control_plane: As for `install_guard()`; any object.
        values: Settings by name.

    Raises:
        InvalidSettingsError: An argument is of a wrong type, a value is invalid, or settings are
            given in both ways.
    """
    named = dict(values)
    if isinstance(control_plane, str):
        named["control_plane"] = control_plane
        control_plane = None
    if control_plane is not None:
        check_given(control_plane)
    if settings is not None:
        check_type(settings)
        if named:
            raise InvalidSettingsError(
                f"give either settings or {', '.join(named)}, not both; "
                "GuardSettings(...) takes the same names."
            )
    given = GuardSettings(**cast("SettingValues", named)) if named else settings
    return Arguments(given, control_plane)


def check_module(settings: GuardSettings) -> None:
    """Log once that the module of a control plane's class was not found yet.

    The class is imported at the first lookup, and the first 404 would be too late to learn of a
    misspelt name. Nothing is imported here, so only the top-level module is looked for.

    Raises:
        InvalidSettingsError: It was not found, and `strict` is set.
    """
    name = settings.control_plane or ""
    module, colon, _ = name.partition(":")
    top = module.partition(".")[0]
    try:
        if not colon or is_findable(top):
            return
    except Exception:
        # A finder of another library failed; the import may succeed nevertheless.
        return
    if settings.strict:
        raise InvalidSettingsError(
            f"strict is set, but:\n  control_plane: {name} cannot be imported; there is no module "
            f"{top}"
        )
    faults.log_once(
        f"control_plane {name}: the module {top} was not found yet. It is imported at the first "
        "lookup; if it is missing then, the control plane is not asked."
    )


_PROVIDERS: Final = ("logger_provider", "meter_provider", "tracer_provider")
"""Arguments that OpenTelemetry's own instrumentations take."""


def without_unknown(values: Mapping[str, object]) -> dict[str, object]:
    """The arguments of an instrumentor that are settings; log the others, once."""
    unknown = [name for name in values if name not in GuardSettings.model_fields]
    if unknown:
        said = ", ".join(f"{name} ({_why_ignored(name)})" for name in unknown)
        faults.log_once(f"TinkerGuardInstrumentor ignores arguments: {said}.")
    return {name: value for name, value in values.items() if name not in unknown}


def _why_ignored(name: str) -> str:
    if name in _PROVIDERS:
        return "the guard uses the program's global provider"
    return no_setting(name)
