"""Whether spans and metrics are recorded, so that requests can skip the work if they are not."""

from __future__ import annotations

from time import monotonic
from typing import Final, NamedTuple

from opentelemetry import context, metrics, trace
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY

from tinker_guard.faults import log_fault

REFRESH_AFTER: Final = 0.1
"""Seconds for which a result is cached. Without an SDK, OpenTelemetry reads the environment each
time, which takes as long as the rest of the guard's work for a request."""


class Enabled(NamedTuple):
    """Whether this process records spans and metrics."""

    spans: bool
    metrics: bool


NOTHING: Final = Enabled(spans=False, metrics=False)
"""The one object that `enabled` returns if nothing is recorded."""

_seen: Enabled = NOTHING
_good_until = float("-inf")


def enabled() -> Enabled:
    """Whether spans and metrics are recorded; a new provider counts within a tenth of a second."""
    return _seen if monotonic() < _good_until else refresh()


def is_suppressed() -> bool:
    """Whether the program has suppressed instrumentation here, as for an exporter's requests.

    An exporter that sends over a guarded client would otherwise export its own requests' spans.
    """
    return bool(context.get_value(_SUPPRESS_INSTRUMENTATION_KEY))


def refresh() -> Enabled:
    """Ask OpenTelemetry again, ignoring the cached result."""
    global _seen, _good_until
    seen = Enabled(spans=_has_tracers(), metrics=_has_meters())
    _seen = seen if True in seen else NOTHING
    _good_until = monotonic() + REFRESH_AFTER
    return _seen


def _has_tracers() -> bool:
    try:
        provider = trace.get_tracer_provider()
    except Exception:
        # A misconfigured OpenTelemetry.
        log_fault("telemetry (the tracer provider)")
        return False
    return not isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider)


def _has_meters() -> bool:
    try:
        provider = metrics.get_meter_provider()
    except Exception:
        log_fault("telemetry (the meter provider)")
        return False
    # The proxy that OpenTelemetry uses before a provider is set has no public name.
    is_stand_in = type(provider).__name__ == "_ProxyMeterProvider"
    return not (is_stand_in or isinstance(provider, metrics.NoOpMeterProvider))


def provider_name() -> str | None:
    """The class of this process's tracer provider; None if there is none."""
    return type(trace.get_tracer_provider()).__qualname__ if refresh().spans else None
