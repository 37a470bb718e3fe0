"""Whether spans and metrics are recorded, so that requests save the work where they are not."""

from __future__ import annotations

from time import monotonic
from typing import Final, NamedTuple

from opentelemetry import context, metrics, trace
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY

from tinker_guard.faults import log_fault

REFRESH_AFTER: Final = 0.1
"""Seconds for which an answer is kept. Without an SDK, OpenTelemetry reads the environment for each
answer, which takes as long as the rest of a request's way through the guard."""


class Enabled(NamedTuple):
    """What is recorded in this process."""

    spans: bool
    metrics: bool


NOTHING: Final = Enabled(spans=False, metrics=False)
"""The object that `enabled` returns, always the same, where nothing is recorded."""

_seen: Enabled = NOTHING
_good_until = float("-inf")


def enabled() -> Enabled:
    """What is recorded; a provider that is set up later counts within a tenth of a second."""
    return _seen if monotonic() < _good_until else refresh()


def is_suppressed() -> bool:
    """Whether the program wants nothing recorded here, as for the requests of an exporter.

    An exporter that sends over a guarded client would else export the spans of its own requests.
    """
    return bool(context.get_value(_SUPPRESS_INSTRUMENTATION_KEY))


def refresh() -> Enabled:
    """Ask OpenTelemetry again, without regard to the answer that is kept."""
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
    # The proxy that stands in until a provider is set has no public name.
    is_stand_in = type(provider).__name__ == "_ProxyMeterProvider"
    return not (is_stand_in or isinstance(provider, metrics.NoOpMeterProvider))


def provider_name() -> str | None:
    """The class of the tracer provider that takes this process's spans; None if none does."""
    return type(trace.get_tracer_provider()).__qualname__ if refresh().spans else None
