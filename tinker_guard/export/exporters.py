"""The parts of a destination, and how failures to export are logged."""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

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
    "opentelemetry.exporter.",
    "opentelemetry.sdk._shared_internal",
    "opentelemetry.sdk.metrics._internal.export",
    "opentelemetry.sdk.trace.export",
)
"""The loggers to which OpenTelemetry writes each failed export, with a traceback."""


class _Thread(threading.local):
    """Whether a thread exports for the guard: the program may have exporters of its own."""

    exports: bool = False


_thread: Final = _Thread()


def not_in_children(exporter: MetricExporter) -> MetricExporter:
    """The same exporter, but for forked processes: they would export their parent's sums again."""
    from opentelemetry.sdk.metrics.export import MetricExportResult

    export, process = exporter.export, os.getpid()

    def only_here(*args: Any, **kwargs: Any) -> MetricExportResult:
        return export(*args, **kwargs) if os.getpid() == process else MetricExportResult.SUCCESS

    exporter.export = only_here  # type: ignore[method-assign]
    return exporter


class Failures:
    """Logs one line of the guard at the first failed export, in place of OpenTelemetry's.

    Args:
        message: The line.
    """

    has_logged: ClassVar[bool] = False
    """Whether the line of any destination has been logged."""

    def __init__(self, message: str) -> None:
        self._message = message

    def of(self, exporters: Exporters) -> Exporters:
        """The same exporters, whose failures are told of in that way."""
        from opentelemetry.sdk.metrics.export import MetricExportResult
        from opentelemetry.sdk.trace.export import SpanExportResult

        self._watch(exporters.spans, SpanExportResult.FAILURE)
        self._watch(exporters.metrics, MetricExportResult.FAILURE)
        for name in list(logging.root.manager.loggerDict):
            if name.startswith(_EXPORTING):
                logging.getLogger(name).addFilter(_is_the_programs)
        return exporters

    def _watch(self, exporter: Any, failure: object) -> None:
        export = exporter.export

        def watched(*args: Any, **kwargs: Any) -> Any:
            _thread.exports = True
            try:
                result = export(*args, **kwargs)
            except Exception:
                result = failure
            finally:
                _thread.exports = False
            if result is failure and not Failures.has_logged:
                Failures.has_logged = True
                log(logging.WARNING, self._message)
            return result

        exporter.export = watched


def _is_the_programs(_: logging.LogRecord) -> bool:
    return not _thread.exports
