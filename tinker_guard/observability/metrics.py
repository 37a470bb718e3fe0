"""Every metric of the guard, declared once. Without a meter provider, recording is nearly free."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from opentelemetry import metrics

from tinker_guard import __version__
from tinker_guard.faults import fail_open
from tinker_guard.observability import attributes as names
from tinker_guard.observability.providers import enabled, is_suppressed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opentelemetry.metrics import Counter, Histogram
    from opentelemetry.util.types import AttributeValue

# The buckets recommended by the HTTP conventions.
_EXCHANGE_BOUNDS: Final = (
    *(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
)
# A recovery lasts up to `retry_timeout` and a warmup up to `warmup_timeout`: 30 s and 120 s.
_WAIT_BOUNDS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0)


class Metric(NamedTuple):
    """The declaration of one metric."""

    name: str
    unit: str
    meaning: str
    attributes: tuple[str, ...]
    """Its attributes; with `metrics_by_job`, account and job in addition."""
    bounds: tuple[float, ...] | None
    """Upper bounds of a histogram's buckets; None for a counter."""


METRICS: Final[dict[str, Metric]] = {}
"""All of them, by name."""


def _declare(
    name: str,
    unit: str,
    meaning: str,
    attributes: tuple[str, ...],
    bounds: tuple[float, ...] | None = None,
) -> str:
    METRICS[name] = Metric(name, unit, meaning, attributes, bounds)
    return name


EXCHANGE_DURATION: Final = _declare(
    "http.client.request.duration",
    "s",
    "Duration of HTTP client requests.",
    (
        *(names.METHOD, names.SERVER_ADDRESS, names.SERVER_PORT, names.STATUS_CODE),
        *(names.PROTOCOL_VERSION, names.ERROR_TYPE),
    ),
    _EXCHANGE_BOUNDS,
)
REQUEST_DURATION: Final = _declare(
    "tinker_guard.request.duration",
    "s",
    "Duration of guarded requests, waits and resends included.",
    (names.OPERATION, names.OUTCOME, names.VERDICT, names.REASON),
    (*_EXCHANGE_BOUNDS, 30.0, 60.0, 120.0),
)
VERDICTS: Final = _declare(
    "tinker_guard.verdicts",
    "{verdict}",
    "404s on guarded requests, by verdict; those of probes at the gate count as one.",
    (names.OPERATION, names.VERDICT, names.REASON),
)
RESENDS: Final = _declare(
    "tinker_guard.resends",
    "{resend}",
    "Requests sent again.",
    (names.OPERATION, names.STATUS_CODE, names.ERROR_TYPE),
)
RECOVERY_DURATION: Final = _declare(
    "tinker_guard.recovery.duration",
    "s",
    "Time from the first 404 to the end, of requests that met a routing race; from the arrival, if "
    "probes met it at the gate.",
    (names.OPERATION, names.OUTCOME),
    _WAIT_BOUNDS,
)
WARMUP_DURATION: Final = _declare(
    "tinker_guard.warmup.duration",
    "s",
    "Duration of warmups; one that met a race or ended with a 404 has its verdict.",
    (names.VERDICT, names.REASON),
    _WAIT_BOUNDS,
)
PROBES: Final = _declare(
    "tinker_guard.probes", "{probe}", "Probes, by how they ended.", (names.PROBE_RESULT,)
)
LOOKUP_DURATION: Final = _declare(
    "tinker_guard.question.duration",
    "s",
    "Duration of control-plane questions, by the verdict on the 404.",
    (names.VERDICT, names.REASON),
    _EXCHANGE_BOUNDS,
)


_own_provider: Callable[[], metrics.MeterProvider] | None = None


def use(provider: Callable[[], metrics.MeterProvider]) -> None:
    """Record with another provider than the process's from now on.

    OpenTelemetry cannot replace that one, and a forked process continues its parent's sums.

    Args:
        provider: Makes it, before the first metric is recorded.
    """
    global _own_provider
    _own_provider = lru_cache(maxsize=1)(provider)
    for cached in (_histogram, _counter):
        cached.cache_clear()


def _meter() -> metrics.Meter:
    provider = None if _own_provider is None else _own_provider()
    return metrics.get_meter("tinker_guard", __version__, provider)


@lru_cache(maxsize=len(METRICS))
def _histogram(name: str) -> Histogram:
    metric, meter = METRICS[name], _meter()
    try:
        return meter.create_histogram(
            name, metric.unit, metric.meaning, explicit_bucket_boundaries_advisory=metric.bounds
        )
    except TypeError:
        # The API before 1.30 lacks the parameter for bucket bounds.
        return meter.create_histogram(name, metric.unit, metric.meaning)


@lru_cache(maxsize=len(METRICS))
def _counter(name: str) -> Counter:
    metric, meter = METRICS[name], _meter()
    return meter.create_counter(name, metric.unit, metric.meaning)


@fail_open
def measure(name: str, seconds: float, attributes: Mapping[str, AttributeValue]) -> None:
    """Record a duration."""
    if enabled().metrics and not is_suppressed():
        _histogram(name).record(seconds, attributes)


@fail_open
def count(name: str, attributes: Mapping[str, AttributeValue]) -> None:
    """Increment a counter."""
    if enabled().metrics and not is_suppressed():
        _counter(name).add(1, attributes)
