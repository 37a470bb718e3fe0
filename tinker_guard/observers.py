"""Whether anybody wants spans or metrics; where nobody does, no request shall pay for them."""

from __future__ import annotations

import time
from typing import Final, NamedTuple

from opentelemetry import metrics, trace

from tinker_guard.logs import log_fault

LOOK_AGAIN_AFTER: Final = 0.1
"""Seconds for which one look serves. Where no SDK is set up, a look reads the environment and
costs as much as the rest of a request's way through the guard."""


class Observers(NamedTuple):
    """Who looks at what the guard does."""

    of_spans: bool
    of_metrics: bool


_NOBODY: Final = Observers(of_spans=False, of_metrics=False)
_seen: tuple[float, Observers] = (-LOOK_AGAIN_AFTER, _NOBODY)


def observers() -> Observers:
    """Who observes now; a provider that is set up later is noticed within a tenth of a second."""
    looked_at, seen = _seen
    return seen if time.monotonic() - looked_at < LOOK_AGAIN_AFTER else look_again()


def look_again() -> Observers:
    """Look whether providers are set up, however short ago the last look was."""
    global _seen
    seen = Observers(of_spans=_has_tracers(), of_metrics=_has_meters())
    _seen = (time.monotonic(), seen)
    return seen


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
    # The stand-in until a provider is set has no public name.
    is_stand_in = type(provider).__name__ == "_ProxyMeterProvider"
    return not (is_stand_in or isinstance(provider, metrics.NoOpMeterProvider))


def provider_name() -> str | None:
    """The class of the tracer provider that takes this process's spans; None if none does."""
    return type(trace.get_tracer_provider()).__qualname__ if look_again().of_spans else None
