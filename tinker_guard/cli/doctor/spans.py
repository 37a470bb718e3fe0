"""Checks of spans: whether they are recorded, and their destination by the `OTEL_*` variables."""

from __future__ import annotations

import os
from functools import partial
from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import TYPE_CHECKING, Final

from tinker_guard.cli.doctor.finding import Finding, Section, Status, listed
from tinker_guard.cli.doctor.network import find_obstacle
from tinker_guard.observability import providers
from tinker_guard.policy.url import origin, parse_http

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from tinker_guard.settings import GuardSettings

_GRPC: Final = "grpc"
_OTLP_PORTS: Final = {_GRPC: 4317, "http/protobuf": 4318}
_OTLP_PLUGINS: Final = {_GRPC: "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}
_ALSO_OTLP: Final = frozenset({"otlp", *_OTLP_PLUGINS.values()})


def check_recording() -> Iterator[Finding]:
    """Report whether this process records spans."""
    say = partial(Finding, Section.SPANS, "OpenTelemetry")
    try:
        release = f"SDK {version('opentelemetry-sdk')}"
    except PackageNotFoundError:
        yield say(
            Status.SKIPPED,
            "no SDK is installed: no spans",
            "For spans, run: pip install 'tinker-guard[otlp]'",
        )
        return
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        yield say(
            Status.WARNING, f"{release}, switched off by OTEL_SDK_DISABLED", "Unset it for spans."
        )
        return
    provider = providers.provider_name()
    if provider is None:
        yield say(
            Status.SKIPPED,
            f"{release}; no tracer provider in this process, your program may set one up",
            "To see what opentelemetry-instrument (with opentelemetry-distro) sets up, run: "
            "opentelemetry-instrument tinker-guard doctor",
        )
    else:
        yield say(Status.OK, f"{release}; spans go to a {provider}")


def check_exporter(settings: GuardSettings) -> Iterator[Finding]:
    """Report the destination of spans, and whether a server listens there.

    Args:
        settings: The setting `export` is read; without it, the `OTEL_*` variables count.
    """
    say = partial(Finding, Section.SPANS, "exporter")
    destination = (settings.export or "").partition(":")[0]
    if destination and destination != "otlp":
        where = "stderr" if destination == "console" else "a file"
        yield say(Status.OK, f"to {where}, by TINKER_GUARD_EXPORT")
        return
    plugins = entry_points(group="opentelemetry_traces_exporter").names
    asked_for = os.environ.get("OTEL_TRACES_EXPORTER", "")
    names = [name for name in map(str.strip, asked_for.split(",")) if name]
    if names == ["none"]:
        yield say(Status.WARNING, "none, by OTEL_TRACES_EXPORTER", "Unset it to have spans sent.")
    elif not all(name in plugins or name in _ALSO_OTLP for name in names):
        # The value is not shown: it may be a secret for another variable.
        yield say(
            Status.WARNING,
            "OTEL_TRACES_EXPORTER names one that is not installed",
            f"Installed: {listed(sorted(plugins)) or 'none'}.",
        )
    elif names and _ALSO_OTLP.isdisjoint(names):
        yield say(Status.OK, f"{listed(names)}, by OTEL_TRACES_EXPORTER")
    else:
        yield _look_at_otlp(names, plugins)


def _otlp_variable(name: str) -> str | None:
    """The value for traces, or the one for all signals."""
    return os.environ.get(f"OTEL_EXPORTER_OTLP_TRACES_{name}") or os.environ.get(
        f"OTEL_EXPORTER_OTLP_{name}"
    )


def _look_at_otlp(names: list[str], plugins: Collection[str]) -> Finding:
    say = partial(Finding, Section.SPANS, "exporter")
    installed = [protocol for protocol, plugin in _OTLP_PLUGINS.items() if plugin in plugins]
    configured = _otlp_variable("ENDPOINT")
    is_wanted = configured is not None or bool(names)
    if not installed:
        return say(
            Status.WARNING if is_wanted else Status.SKIPPED,
            "no OTLP exporter is installed",
            "To send spans, run: pip install 'tinker-guard[otlp]'",
        )
    named = [protocol for protocol, plugin in _OTLP_PLUGINS.items() if plugin in names]
    # For OpenTelemetry, plain `otlp` means gRPC.
    default_protocol = _GRPC if "otlp" in names else installed[-1]
    protocol = (*named, _otlp_variable("PROTOCOL") or default_protocol)[0]
    if protocol not in installed:
        return say(
            Status.WARNING,
            "OTLP is to be sent by a protocol whose exporter is not installed",
            f"Set OTEL_EXPORTER_OTLP_PROTOCOL={installed[-1]}",
        )
    default = f"http://localhost:{_OTLP_PORTS[protocol]}"
    # gRPC endpoints may lack a scheme.
    endpoint = configured or default
    url = parse_http(endpoint if "://" in endpoint else f"http://{endpoint}")
    if url is None:
        return say(
            Status.WARNING,
            "OTEL_EXPORTER_OTLP_ENDPOINT is no URL",
            f"It should look like {default}",
        )
    obstacle = find_obstacle(url)
    place = f"OTLP to {origin(url)}" + ("" if configured else ", the default")
    if obstacle is None:
        return say(Status.OK, f"{place}: somebody listens")
    to_do = "Start a collector there, or name yours in OTEL_EXPORTER_OTLP_ENDPOINT."
    return say(
        Status.WARNING if is_wanted else Status.SKIPPED, f"{place}: {obstacle.reason}", to_do
    )
