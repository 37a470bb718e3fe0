"""Checks of the SDKs: installed releases, whether they can be guarded, and their API key."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pydantic import SecretStr

from tinker_guard.cli.doctor.finding import Finding, Section, Status, listed
from tinker_guard.hooks import install_guard, uninstall_guard
from tinker_guard.install.clients import transports_of
from tinker_guard.install.sdks import SDKS, UnsupportedSdkError, unguarded_requests
from tinker_guard.settings import can_be_sent
from tinker_guard.sync_transport import SyncGuardTransport
from tinker_guard.transport import GuardTransport

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import httpx

    from tinker_guard.install.sdks import RestClients, Sdk
    from tinker_guard.settings import GuardSettings

KEY_VARIABLES: Final[Mapping[str, str]] = {
    "tinker": "TINKER_API_KEY",
    "fireworks-ai": "FIREWORKS_API_KEY",
}
_FOR_A_LOOK: Final = {"enabled": True, "export": None, "child_processes": False}
"""Settings of a guard that is installed for a check: no export, and no guard in child
processes."""
_STAND_IN_KEY: Final = "tml-doctor"
"""A key for clients that are built but send nothing."""


class Key(NamedTuple):
    """An API key, and its variable."""

    variable: str
    value: SecretStr


def find_key() -> Key | None:
    """The key that the first installed SDK would read from the environment, if it can be sent."""
    found = [
        (not sdk.is_installed(), Key(variable, SecretStr(os.environ[variable])))
        for sdk in SDKS
        if (value := os.environ.get(variable := KEY_VARIABLES[sdk.distribution]))
        and can_be_sent(value)
    ]
    return min(found, key=lambda entry: entry[0])[1] if found else None


def check_any_sdk() -> Iterator[Finding]:
    """Report what to install if there is no SDK to guard."""
    if not any(_is_importable(sdk) for sdk in SDKS):
        yield Finding(
            Section.SDKS,
            "SDK",
            Status.PROBLEM,
            "there is nothing to guard: no SDK can be imported",
            "Install tinker or fireworks-ai[training-sdk], or run this with the Python of your "
            "training.",
        )


def _is_importable(sdk: Sdk) -> bool:
    if not sdk.is_installed():
        return False
    try:
        sdk.find_hook_point()
    except ModuleNotFoundError:
        return False
    except Exception:
        # The finding of that SDK reports the fault.
        return True
    return True


def check_sdk(sdk: Sdk, settings: GuardSettings) -> Iterator[Finding]:
    """Install the guard, build clients of an SDK and check their transports.

    Args:
        sdk: The SDK.
        settings: The settings; the guard is installed even if they disable it.
    """
    say = partial(Finding, Section.SDKS, sdk.distribution)
    if not sdk.is_installed():
        yield say(Status.SKIPPED, "not installed")
        return
    try:
        with _guard(settings):
            client_class = sdk.find_hook_point()
            carriers = _carriers(client_class)
    except UnsupportedSdkError as error:
        # Either SDK may lack the hook point, and then neither is guarded.
        detail, _, to_do = str(error).partition(". ")
        yield say(Status.PROBLEM, detail, to_do)
        return
    except ModuleNotFoundError as error:
        yield say(
            Status.SKIPPED,
            f"{sdk.version}, but it cannot be imported: there is no module {error.name}",
            "To train with it, install what it needs: fireworks-ai[training-sdk], say.",
        )
        return
    guarded = "guarded" if settings.enabled else "would be guarded"
    guarded += f" over {listed([name for name, _ in carriers])}"
    unguarded = [name for name, is_guarded in carriers if not is_guarded]
    if unguarded:
        yield say(
            Status.PROBLEM,
            f"{sdk.version}, but its clients send unguarded over {listed(unguarded)}",
            f"Install a tested release: {sdk.tested_versions}.",
        )
    elif not sdk.is_tested():
        yield say(
            Status.WARNING,
            f"{sdk.version}, {guarded}, but no release that was tested",
            f"Tested releases: {sdk.tested_versions}.",
        )
    else:
        yield say(Status.OK, f"{sdk.version}, {guarded}")
    yield _look_at_key(sdk, client_class)


def check_rest_clients(rest: RestClients, settings: GuardSettings) -> Iterator[Finding]:
    """Install the guard, build the plain httpx clients of an SDK and check their transports."""
    if not rest.is_installed():
        return
    say = partial(Finding, Section.SDKS, "REST clients")
    if not rest.may_be_there():
        yield say(Status.SKIPPED, f"{rest.distribution} has none in this release")
        return
    with _guard(settings):
        try:
            importlib.import_module(rest.module)
        except ModuleNotFoundError as error:
            yield say(
                Status.SKIPPED,
                f"those of {rest.distribution} cannot be imported: there is no module {error.name}",
            )
            return
        unguarded = _unguarded_rest_clients(rest)
    if unguarded is None:
        yield say(Status.SKIPPED, f"{rest.distribution} has none in this release")
    elif unguarded:
        yield say(
            Status.PROBLEM,
            f"those of {rest.distribution} send unguarded: {listed(unguarded)}",
        )
    else:
        guarded = "guarded" if settings.enabled else "would be guarded"
        yield say(Status.OK, f"those of {rest.distribution} are {guarded} on trainer routes")


def check_unguarded(settings: GuardSettings) -> Iterator[Finding]:
    """Report the requests that are never guarded."""
    detail = f"not guarded: {'; '.join(unguarded_requests(settings))}"
    yield Finding(Section.SDKS, "other requests", Status.SKIPPED, detail)


def _unguarded_rest_clients(rest: RestClients) -> list[str] | None:
    """The attributes whose clients are not guarded; None if there are no such clients."""
    rest_class = rest.find_class()
    if rest_class is None:
        return None
    holder = rest_class(api_key=_STAND_IN_KEY, base_url="http://localhost")
    unguarded = []
    for name, _ in rest.builders:
        setattr(holder, name, rest.find_builder(name)(False))
        transports = [transport for _, transport in transports_of(getattr(holder, name))]
        if not all(isinstance(one, GuardTransport | SyncGuardTransport) for one in transports):
            unguarded.append(name)
    return unguarded


@contextmanager
def _guard(settings: GuardSettings) -> Iterator[None]:
    # A guard that an instrumentation has installed already may have other settings.
    install_guard(settings.model_copy(update=_FOR_A_LOOK), replace=True)
    try:
        yield
    finally:
        uninstall_guard()


def _carriers(client_class: type[Any]) -> list[tuple[str, bool]]:
    """The transports of an SDK's clients, by library, and whether they are guarded."""

    async def look() -> dict[str, bool]:
        found: dict[str, bool] = {}
        for arguments in _variants(client_class):
            sdk_client = client_class(
                api_key=_STAND_IN_KEY, base_url="http://localhost", **arguments
            )
            client: httpx.AsyncClient = sdk_client._client
            try:
                mounts = [mount for mount in client._mounts.values() if mount is not None]
                for transport in (client._transport, *mounts):
                    inner = (
                        transport.transport if isinstance(transport, GuardTransport) else transport
                    )
                    name = type(inner).__module__.partition(".")[0]
                    name += " through the proxy" if transport in mounts else ""
                    found[name] = found.get(name, True) and inner is not transport
            finally:
                await client.aclose()
        return found

    return list(asyncio.run(look()).items())


def _variants(client_class: type[Any]) -> Iterator[dict[str, Any]]:
    """Constructor arguments for a client as most requests use it, and for one over httpx.

    Since tinker 0.22 the server chooses the transport of most requests; some always use httpx.
    """
    yield {}
    parameter = inspect.signature(client_class).parameters.get("_client_config")
    if parameter is not None and hasattr(parameter.default, "use_pyqwest_transport"):
        yield {"_client_config": type(parameter.default)(use_pyqwest_transport=False)}


def _look_at_key(sdk: Sdk, client_class: type[Any]) -> Finding:
    variable = KEY_VARIABLES[sdk.distribution]
    say = partial(Finding, Section.SDKS, variable)
    is_set = bool(os.environ.get(variable))
    if not can_be_sent(os.environ.get(variable, "")):
        return say(
            Status.PROBLEM,
            "set, but no header can carry it",
            "Look for a line break or a space at its end, or a character that is not ASCII.",
        )
    try:
        client_class(base_url="http://localhost")
    except Exception as error:
        if is_set:
            return say(
                Status.WARNING,
                f"set, but {sdk.distribution} refuses it ({type(error).__name__})",
                "Look for a wrong beginning, a space or a quotation mark in it"
                + ("; tinker's keys begin with tml-." if sdk.package == "tinker" else "."),
            )
        return say(
            Status.WARNING,
            f"not set, and {sdk.distribution} finds no other key",
            f"Run: export {variable}=..., unless your program gives api_key itself.",
        )
    if is_set:
        return say(Status.OK, "set")
    return say(
        Status.SKIPPED,
        f"not set; {sdk.distribution} finds a key elsewhere, which is not used here",
        f"Set {variable} to have it tried out.",
    )
