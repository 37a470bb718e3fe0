"""Sends spans and metrics somewhere in programs that have set up no OpenTelemetry of their own.

`TINKER_GUARD_EXPORT`, the setting `export` and `start_export()` come here. Needs the extra `otlp`;
without it, or if anything else is wrong, one log line says so and the program goes on.

Spans are sent in batches by a thread of the SDK's, and never keep a request waiting: when a
backend is down, they are dropped. At the end of the process there are `EXIT_TIMEOUT` seconds for
what is still to be sent.
"""

from __future__ import annotations

import atexit
import base64
import json
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

from opentelemetry import metrics, trace

from tinker_guard import attributes as names
from tinker_guard.logs import log_fault, logger
from tinker_guard.observers import look_again

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import MetricExporter, MetricsData
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

EXIT_TIMEOUT: Final = 3.0
"""Seconds by which sending what is left may delay the end of the process."""
FILE_DELAY: Final = 0.5
"""Seconds after which spans are in their file; a process that is killed loses no more."""

_EXTRA: Final = "pip install 'tinker-guard[otlp]'"

_lock = threading.Lock()
_exported_to: str | None = None


def start_export(destination: str) -> bool:
    """Send spans and metrics somewhere, if the program has not set up OpenTelemetry itself.

    The first destination of a process counts, another one is refused. Never raises: what is wrong
    is logged.

    Args:
        destination: `console` writes a line for each span to stderr, and the metrics in the end.
            `otlp` sends both over OTLP/HTTP to where the `OTEL_EXPORTER_OTLP_*` variables say,
            by default `http://localhost:4318`. `jsonl:PATH` appends spans to a file in the OTLP
            JSON file format, and metrics to another one beside it, `.metrics` before its suffix.

    Returns:
        Whether something is sent there now.
    """
    global _exported_to
    with _lock:
        if _exported_to is not None:
            if _exported_to != destination:
                logger.warning(
                    "export=%s comes too late: this process exports to %s already.",
                    destination,
                    _exported_to,
                )
            return _exported_to == destination
        try:
            if _start(destination):
                _exported_to = destination
        except ImportError as error:
            logger.warning(
                "TINKER_GUARD_EXPORT=%s needs %s, which is not installed; nothing is exported. "
                "Run: %s",
                destination,
                error.name,
                _EXTRA,
            )
        except OSError as error:
            logger.warning(
                "TINKER_GUARD_EXPORT=%s: the file cannot be written (%s); nothing is exported.",
                destination,
                error.strerror,
            )
        except Exception:
            log_fault("setting up the export")
        return _exported_to is not None


def _start(destination: str) -> bool:
    seen = look_again()
    if seen.of_spans and seen.of_metrics:
        logger.info(
            "TINKER_GUARD_EXPORT=%s is not needed: this program has set up OpenTelemetry, which "
            "gets the guard's spans and metrics.",
            destination,
        )
        return False
    exporters = _exporters(destination)
    resource = _resource()
    started: list[TracerProvider | MeterProvider] = []
    if not seen.of_spans and _is_wanted("TRACES"):
        started.append(_trace_to(exporters, resource))
    if not seen.of_metrics and _is_wanted("METRICS"):
        started.append(_measure_to(exporters, resource))
    look_again()
    _AtExit(started)
    return True


def _is_wanted(kind: str) -> bool:
    """Whether OpenTelemetry's own variable leaves it on: some backends take traces alone."""
    return os.environ.get(f"OTEL_{kind}_EXPORTER", "").strip().lower() != "none"


class _Exporters(NamedTuple):
    of_spans: SpanExporter
    of_metrics: MetricExporter
    span_delay: float | None = None
    """Seconds between batches; None leaves it to the SDK."""
    metric_interval: float | None = None
    """Seconds between collections; None leaves it to the SDK."""


def _trace_to(exporters: _Exporters, resource: Resource) -> TracerProvider:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    delay = exporters.span_delay
    # At exit, the SDK alone would wait for a backend that is down for half a minute.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(
        BatchSpanProcessor(
            exporters.of_spans, schedule_delay_millis=None if delay is None else delay * 1000
        )
    )
    trace.set_tracer_provider(provider)
    return provider


def _measure_to(exporters: _Exporters, resource: Resource) -> MeterProvider:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    interval = exporters.metric_interval
    reader = PeriodicExportingMetricReader(
        exporters.of_metrics, export_interval_millis=None if interval is None else interval * 1000
    )
    provider = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
    metrics.set_meter_provider(provider)
    return provider


def _resource() -> Resource:
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource

    resource = Resource.create()
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        return resource.merge(Resource({SERVICE_NAME: "tinker-guard"}))
    return resource


class _AtExit:
    """Sends what is left when the process ends, for a bounded time.

    On a thread that waits for this from the beginning: at exit, none can be started any more.
    """

    def __init__(self, providers: Sequence[TracerProvider | MeterProvider]) -> None:
        self._providers = providers
        self._wait()
        atexit.register(self._flush)
        if hasattr(os, "register_at_fork"):
            # A child has none of its parent's threads.
            os.register_at_fork(after_in_child=self._wait)

    def _wait(self) -> None:
        self._is_wanted, self._is_done = threading.Event(), threading.Event()
        threading.Thread(target=self._shut_down, name="tinker-guard-export", daemon=True).start()

    def _flush(self) -> None:
        self._is_wanted.set()
        if not self._is_done.wait(EXIT_TIMEOUT) and not _OneLine.is_said:
            logger.warning(
                "the backend did not take the last spans and metrics within %g s; the end of this "
                "run is missing there.",
                EXIT_TIMEOUT,
            )

    def _shut_down(self) -> None:
        self._is_wanted.wait()
        for provider in self._providers:
            try:
                provider.shutdown()
            except Exception:
                log_fault("the end of the export")
        self._is_done.set()


def _exporters(destination: str) -> _Exporters:
    """Build what sends; destinations have been checked by the settings.

    Raises:
        ImportError: The extra is not installed.
        OSError: The file cannot be written.
    """
    if destination == "console":
        return _to_console()
    if destination == "otlp":
        return _to_backend()
    kind, _, path = destination.partition(":")
    if kind != "jsonl" or not path:
        raise ValueError("must be console, otlp or jsonl:PATH")
    return _to_files(Path(path))


# -- a backend -----------------------------------------------------------------------------------


def _to_backend() -> _Exporters:
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    _say_once(
        "spans and metrics do not reach the backend; training goes on, and what is not taken is "
        "lost. Does it run where OTEL_EXPORTER_OTLP_ENDPOINT says (default: http://localhost:4318)?"
    )
    return _Exporters(OTLPSpanExporter(), OTLPMetricExporter())


_EXPORTING: Final = (
    "opentelemetry.exporter",
    "opentelemetry.sdk._shared_internal",
    "opentelemetry.sdk.metrics._internal.export",
    "opentelemetry.sdk.trace.export",
)
"""The loggers on which OpenTelemetry tells of exports that fail, each time and with tracebacks."""


def _say_once(message: str) -> None:
    """Have one line of the guard's in the place of all that."""
    handler = _OneLine(message)
    for name in _EXPORTING:
        exporting = logging.getLogger(name)
        exporting.addHandler(handler)
        exporting.propagate = False


class _OneLine(logging.Handler):
    is_said: ClassVar[bool] = False
    """Whether people know already that exports fail."""

    def __init__(self, message: str) -> None:
        super().__init__(logging.WARNING)
        self._message = message

    def emit(self, record: logging.LogRecord) -> None:
        if not _OneLine.is_said:
            _OneLine.is_said = True
            logger.warning(self._message)


# -- files ---------------------------------------------------------------------------------------


def _to_files(path: Path) -> _Exporters:
    from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
    from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    _say_once(f"spans and metrics cannot be written to {path}; training goes on without.")
    write_spans = _LineWriter(path).write
    # A file holds one kind of data, says the format.
    write_metrics = _LineWriter(path.with_name(f"{path.stem}.metrics{path.suffix}")).write

    class SpanFile(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            write_spans(encode_spans(spans))
            return SpanExportResult.SUCCESS

    class MetricFile(MetricExporter):
        def export(
            self, metrics_data: MetricsData, timeout_millis: float = 0, **kwargs: Any
        ) -> MetricExportResult:
            write_metrics(encode_metrics(metrics_data))
            return MetricExportResult.SUCCESS

        def force_flush(self, timeout_millis: float = 0) -> bool:
            return True

        def shutdown(self, timeout_millis: float = 0, **kwargs: Any) -> None:
            pass

    return _Exporters(SpanFile(), MetricFile(), span_delay=FILE_DELAY)


class _LineWriter:
    """Appends messages to a file, a line each.

    Each line is one write, so that processes can share the file and nothing is left in a buffer.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def write(self, message: Any) -> None:
        from google.protobuf.json_format import MessageToDict

        content = MessageToDict(message, use_integers_for_enums=True)
        _use_hex(content)
        line = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
        os.write(self._file, f"{line}\n".encode())


_IDS: Final = frozenset({"traceId", "spanId", "parentSpanId"})


def _use_hex(content: Any) -> None:
    """Write ids as OTLP's JSON wants them; protobuf's own JSON has all bytes in base64."""
    if isinstance(content, list):
        for item in content:
            _use_hex(item)
    elif isinstance(content, dict):
        for key, value in content.items():
            if key in _IDS:
                content[key] = base64.b64decode(value).hex()
            else:
                _use_hex(value)


# -- the console ---------------------------------------------------------------------------------


def _to_console() -> _Exporters:
    from opentelemetry.sdk.metrics.export import ConsoleMetricExporter
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter

    return _Exporters(
        ConsoleSpanExporter(out=sys.stderr, formatter=_span_line),
        ConsoleMetricExporter(
            out=sys.stderr, formatter=lambda data: "".join(f"{line}\n" for line in _lines(data))
        ),
        span_delay=FILE_DELAY,
        metric_interval=_A_DAY,
    )


# Once, in the end: a reader without any interval does not collect then either.
_A_DAY: Final = 86400.0
_TOLD: Final = (
    *(names.STATUS_CODE, names.ERROR_TYPE, names.OUTCOME, names.VERDICT, names.REASON),
    *(names.RESEND_COUNT, names.JOB_STATE, names.PROBE_RESULT),
)


def _span_line(span: ReadableSpan) -> str:
    started_ns, ended_ns = span.start_time or 0, span.end_time or 0
    at = time.strftime("%H:%M:%S", time.localtime(started_ns / 1e9))
    attributes = span.attributes or {}
    told = [f"{name}={attributes[name]!s}" for name in _TOLD if name in attributes]
    seconds = (ended_ns - started_ns) / 1e9
    return "  ".join([at, f"{seconds:8.3f} s", span.name, span.kind.name, *told]) + "\n"


def _lines(data: MetricsData) -> Iterator[str]:
    from opentelemetry.sdk.metrics.export import NumberDataPoint

    for resource in data.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    labels = ", ".join(
                        f"{key}={value!s}" for key, value in (point.attributes or {}).items()
                    )
                    value = (
                        f"{point.value:g}"
                        if isinstance(point, NumberDataPoint)
                        else f"{point.count} in {point.sum:.3f} {metric.unit or ''}"
                    )
                    yield f"{metric.name}  {labels}  {value}".rstrip()
