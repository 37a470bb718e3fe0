"""The parts of a destination, and how failures to export are logged."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple

from tinker_guard.faults import log

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricExporter
    from opentelemetry.sdk.trace.export import SpanExporter


FILE_DELAY: Final = 0.5
"""Seconds after which spans are written to their file: a killed process loses at most the spans
of this time."""


class Exporters(NamedTuple):
    """The destination of spans and metrics, and the intervals of sending."""

    spans: SpanExporter
    metrics: MetricExporter
    span_delay: float | None = None
    """Seconds between batches; None leaves it to the SDK."""
    metric_interval: float | None = None
    """Seconds between collections; None leaves it to the SDK."""


_EXPORTING: Final = (
    "opentelemetry.exporter",
    "opentelemetry.sdk._shared_internal",
    "opentelemetry.sdk.metrics._internal.export",
    "opentelemetry.sdk.trace.export",
)
"""The loggers to which OpenTelemetry writes each failed export, with a traceback."""


def log_failures_once(message: str) -> None:
    """Log one line at the first failure, instead of OpenTelemetry's traceback at each."""
    handler = LogFirstFailure(message)
    for name in _EXPORTING:
        exporting = logging.getLogger(name)
        exporting.addHandler(handler)
        exporting.propagate = False


class LogFirstFailure(logging.Handler):
    """Logs one line of the guard at the first record, and drops the others."""

    has_logged: ClassVar[bool] = False
    """Whether any handler of this class has logged its line."""

    def __init__(self, message: str) -> None:
        super().__init__(logging.WARNING)
        self._message = message

    def emit(self, record: logging.LogRecord) -> None:
        """Handle a record of a failed export."""
        if not LogFirstFailure.has_logged:
            LogFirstFailure.has_logged = True
            log(logging.WARNING, self._message)
