"""Export to stderr: a tree for each request that met a 404, a wait or an error, and metrics."""

from __future__ import annotations

import sys
import time
from collections import OrderedDict
from contextlib import suppress
from io import StringIO
from typing import TYPE_CHECKING, Final

from tinker_guard.export.exporters import FILE_DELAY, Exporters
from tinker_guard.observability import attributes as names

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import TextIO

    from opentelemetry.sdk.metrics.export import MetricsData
    from opentelemetry.sdk.trace import ReadableSpan

_SCOPE: Final = "tinker_guard"
_LONG: Final = 1.0
"""Seconds: a request that waited as long for a warmup gets a tree even without a 404."""
_REMEMBERED: Final = 10_000


def console_exporters() -> Exporters:
    """Exporters to stderr: a tree for each eventful request; at the end, the metrics."""
    from opentelemetry.sdk.metrics.export import ConsoleMetricExporter
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    trees = Trees(_Stderr())

    class TreeExporter(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            for span in spans:
                trees.add(span)
            return SpanExportResult.SUCCESS

    return Exporters(
        TreeExporter(),
        ConsoleMetricExporter(
            out=_Stderr(), formatter=lambda data: "".join(f"{line}\n" for line in _lines(data))
        ),
        span_delay=FILE_DELAY,
        metric_interval=_A_DAY,
    )


class _Stderr(StringIO):
    """What `sys.stderr` is as something is written: a test runner replaces it, and closes its own.

    Nothing is written where there is none, or where it is closed.
    """

    def write(self, text: str) -> int:
        with suppress(ValueError, AttributeError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(ValueError, AttributeError):
            sys.stderr.flush()


# Metrics are collected once, at the end; without an interval, the reader would never collect.
_A_DAY: Final = 86400.0


class Trees:
    """Writes a tree for each request that met a 404, a wait or an error.

    A span arrives when it ends, so the spans below a request arrive before it.

    Args:
        stream: The output.
        remembered: How many spans are kept for requests that have not ended yet.
    """

    def __init__(self, stream: TextIO, remembered: int = _REMEMBERED) -> None:
        self._stream = stream
        self._most = remembered
        self._below: OrderedDict[int, list[ReadableSpan]] = OrderedDict()
        self._count = 0

    def add(self, span: ReadableSpan) -> None:
        """Take a span that has ended."""
        attributes = span.attributes or {}
        is_request = names.OUTCOME in attributes
        if not is_request:
            if span.parent is not None:
                self._below.setdefault(span.parent.span_id, []).append(span)
                self._count += 1
            while self._count > self._most:
                self._count -= len(self._below.popitem(last=False)[1])
            return
        waited = attributes.get(names.WARMUP_WAIT, 0.0)
        met = names.VERDICT in attributes or (isinstance(waited, float) and waited >= _LONG)
        lines = list(self._tree(span))
        if met or names.ERROR_TYPE in attributes:
            at = time.strftime("%H:%M:%S", time.localtime((span.start_time or 0) / 1e9))
            self._stream.write(f"{at}  " + "\n          ".join(lines) + "\n")
            self._stream.flush()

    def _tree(self, span: ReadableSpan) -> Iterator[str]:
        yield _label(span)
        context = span.get_span_context()
        below = self._below.pop(context.span_id, []) if context is not None else []
        self._count -= len(below)
        below.sort(key=lambda child: child.start_time or 0)
        for number, child in enumerate(below, start=1):
            is_last = number == len(below)
            head, *rest = self._tree(child)
            yield f"{'`-' if is_last else '|-'} {head}"
            yield from (f"{'  ' if is_last else '| '} {line}" for line in rest)


_TOLD: Final = (
    *(names.STATUS_CODE, names.OUTCOME, names.VERDICT, names.REASON),
    *(names.JOB_STATE, names.PROBE_RESULT, names.ERROR_TYPE),
)


def _label(span: ReadableSpan) -> str:
    attributes = span.attributes or {}
    seconds = ((span.end_time or 0) - (span.start_time or 0)) / 1e9
    told = dict.fromkeys(str(attributes[name]) for name in _TOLD if name in attributes)
    return "  ".join([f"{seconds:.3f} s", span.name, *told])


def _lines(data: MetricsData) -> Iterator[str]:
    from opentelemetry.sdk.metrics.export import NumberDataPoint

    for resource in data.resource_metrics:
        for scope in resource.scope_metrics:
            if scope.scope.name != _SCOPE:
                continue
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
