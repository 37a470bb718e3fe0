"""Export to files in the OTLP JSON file format."""

from __future__ import annotations

import base64
import errno
import json
import os
import select
import stat
from typing import TYPE_CHECKING, Any, Final

from tinker_guard.export.exporters import FILE_DELAY, Exporters, Failures

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from opentelemetry.sdk.metrics.export import MetricsData
    from opentelemetry.sdk.trace import ReadableSpan


def jsonl_exporters(path: Path) -> Exporters:
    """Exporters to a file of spans, and to a file of metrics beside it.

    Args:
        path: An absolute path. Where it is no regular file, metrics are left out.

    Raises:
        OSError: A file cannot be written.
    """
    from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
    from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    failures = Failures(f"spans and metrics cannot be written to {path}; training goes on without.")
    # One that the program holds open itself, such as a piped stdout, is a link.
    if path.is_fifo() and not path.is_symlink():
        raise OSError(errno.EINVAL, "it is a named pipe; name a regular file")
    span_lines = _LineWriter(path)
    write_spans = span_lines.write
    write_metrics: Callable[[Any], None] | None = None
    if span_lines.has_neighbours:
        # The format allows one kind of data in a file.
        write_metrics = _LineWriter(path.with_name(f"{path.stem}.metrics{path.suffix}")).write

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


_FLAGS: Final = (
    os.O_WRONLY
    | os.O_APPEND
    | os.O_CREAT
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOCTTY", 0)
    # A pipe without a reader, or one that is full, must not block the program.
    | getattr(os, "O_NONBLOCK", 0)
)
_PATIENCE: Final = 1000
"""Milliseconds for which a full pipe is waited for, by the thread that exports."""


class _LineWriter:
    """Appends messages to a file, one line each.

    Each line is one write, so that processes can share the file and no buffer holds data. The file
    is open only while something is written: a program that closes all descriptors, as daemons do,
    gives the number of one that stays open to a file of its own.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        file = os.open(path, _FLAGS, 0o644)
        try:
            found = os.fstat(file)
        finally:
            os.close(file)
        is_regular, is_link = stat.S_ISREG(found.st_mode), path.is_symlink()
        # A link such as /dev/stdout leads to another file once the program has reused the number.
        self._only = (found.st_dev, found.st_ino) if is_link or not is_regular else None
        is_descriptor = is_link and path.parts[1] in ("dev", "proc")
        self._is_cut = False
        self.has_neighbours = is_regular and not is_descriptor
        """Whether it lies in a directory in which another file may be created."""

    def write(self, message: Any) -> None:
        from google.protobuf.json_format import MessageToDict

        content = MessageToDict(message, use_integers_for_enums=True)
        _use_hex(content)
        line = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
        self._append(f"{line}\n".encode())

    def _append(self, line: bytes) -> None:
        file = os.open(self._path, _FLAGS, 0o644)
        try:
            found = os.fstat(file)
            if self._only not in (None, (found.st_dev, found.st_ino)):
                raise OSError(errno.ESTALE, "this is another file now")
            if self._is_cut:
                line = b"\n" + line
            # A regular file takes all in one write, unless the disk is full.
            rest = line
            while rest:
                try:
                    rest = rest[os.write(file, rest) :]
                    self._is_cut = bool(rest)
                except BlockingIOError:
                    waiting = select.poll()
                    waiting.register(file, select.POLLOUT)
                    if not waiting.poll(_PATIENCE):
                        raise
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
