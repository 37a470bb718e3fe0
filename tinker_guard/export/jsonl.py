"""Export to files in the OTLP JSON file format."""

from __future__ import annotations

import base64
import json
import os
from typing import TYPE_CHECKING, Any, Final

from tinker_guard.export.exporters import FILE_DELAY, Exporters, Failures

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from opentelemetry.sdk.metrics.export import MetricsData
    from opentelemetry.sdk.trace import ReadableSpan


def jsonl_exporters(path: Path) -> Exporters:
    """Exporters to a file of spans, and to a file of metrics beside it.

    What is no regular file, such as `/dev/stderr` or a pipe, gets the spans alone: the format
    allows one kind of data in a file, and there may be no place for another one beside it.

    Raises:
        OSError: A file cannot be written.
    """
    from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
    from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    failures = Failures(f"spans and metrics cannot be written to {path}; training goes on without.")
    write_spans = _LineWriter(path).write
    beside = path.with_name(f"{path.stem}.metrics{path.suffix}")
    write_metrics = _LineWriter(beside).write if path.is_file() else None

    class SpanFile(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            write_spans(encode_spans(spans))
            return SpanExportResult.SUCCESS

    class MetricFile(MetricExporter):
        def export(
            self, metrics_data: MetricsData, timeout_millis: float = 0, **kwargs: Any
        ) -> MetricExportResult:
            if write_metrics is not None:
                write_metrics(encode_metrics(metrics_data))
            return MetricExportResult.SUCCESS

        def force_flush(self, timeout_millis: float = 0) -> bool:
            return True

        def shutdown(self, timeout_millis: float = 0, **kwargs: Any) -> None:
            pass

    return failures.of(Exporters(SpanFile(), MetricFile(), span_delay=FILE_DELAY))


class _LineWriter:
    """Appends messages to a file, one line each.

    Each line is one write, so that processes can share the file and no buffer holds data. The file
    is opened for each: a program that becomes a daemon closes all files, and the number of one that
    was kept would soon be that of a file of the program's own.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        os.close(self._open())

    def _open(self) -> int:
        # A pipe that nobody reads from fails at once, where it would block for ever.
        how = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        return os.open(self._path, how, 0o644)

    def write(self, message: Any) -> None:
        from google.protobuf.json_format import MessageToDict

        content = MessageToDict(message, use_integers_for_enums=True)
        _use_hex(content)
        line = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
        file = self._open()
        try:
            os.write(file, f"{line}\n".encode())
        finally:
            os.close(file)


_IDS: Final = frozenset({"traceId", "spanId", "parentSpanId"})


def _use_hex(content: Any) -> None:
    """Write ids in hexadecimal, as OTLP's JSON requires; protobuf's JSON has them in base64."""
    if isinstance(content, list):
        for item in content:
            _use_hex(item)
    elif isinstance(content, dict):
        for key, value in content.items():
            if key in _IDS:
                content[key] = base64.b64decode(value).hex()
            else:
                _use_hex(value)
