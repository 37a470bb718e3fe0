"""The demo's spans: recorded in memory, read back as trees, sent to a backend on request."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit, urlunsplit

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import DEFAULT_ON
from opentelemetry.trace import SpanKind

from tinker_guard import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from opentelemetry.context import Context

    from tinker_guard.cli.demo.run import Run

_RUN: Final = "tinker_guard.cli.demo.run"
_EXPORT_TIMEOUT: Final = 3.0


class MissingExporterError(Exception):
    """The extra `otlp` is not installed."""


class _RunLabels(SpanProcessor):
    """Adds the name of the current run to every span that starts."""

    def __init__(self) -> None:
        self.run = ""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        span.set_attribute(_RUN, self.run)


class Recorder:
    """Records the spans of this process, each labelled with its run."""

    def __init__(self) -> None:
        provider = trace.get_tracer_provider()
        # A process has one provider, which may be set already.
        if not isinstance(provider, TracerProvider):
            resource = Resource.create(
                {"service.name": "tinker-guard-demo", "service.version": __version__}
            )
            provider = TracerProvider(resource=resource, sampler=DEFAULT_ON)
            trace.set_tracer_provider(provider)
        self._labels = _RunLabels()
        self._exporter = InMemorySpanExporter()
        provider.add_span_processor(self._labels)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def begin(self, run: str) -> None:
        """Assign the spans that start from now on to this run."""
        self._labels.run = run

    def spans(self, run: str | None = None) -> list[ReadableSpan]:
        """The finished spans of one run, or of all."""
        return [
            span
            for span in self._exporter.get_finished_spans()
            if run is None or _attributes(span).get(_RUN) == run
        ]


@dataclass
class Node:
    """A span and its children, in the order in which they started."""

    span: ReadableSpan
    children: list[Node] = field(default_factory=list)

    @property
    def attributes(self) -> dict[str, Any]:
        """The span's attributes, without the demo's own label."""
        return {name: value for name, value in _attributes(self.span).items() if name != _RUN}

    @property
    def is_guards_own(self) -> bool:
        """Whether the guard created it."""
        return self.scope == "tinker_guard"

    @property
    def is_question(self) -> bool:
        """Whether it is a lookup."""
        return self.span.name == "tinker_guard.control_plane"

    @property
    def is_exchange(self) -> bool:
        """Whether it is an exchange over the network."""
        return self.span.kind is SpanKind.CLIENT

    @property
    def scope(self) -> str:
        """The name of the library that created it."""
        scope = self.span.instrumentation_scope
        return scope.name if scope is not None else ""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return ((self.span.end_time or 0) - (self.span.start_time or 0)) / 1e9

    def below(self) -> Iterator[Node]:
        """All descendants of this node."""
        for child in self.children:
            yield child
            yield from child.below()


def trees(spans: Sequence[ReadableSpan]) -> list[Node]:
    """Arrange spans into trees; one whose parent is not among them is a root."""
    nodes = {
        span.context.span_id: Node(span)
        for span in sorted(spans, key=lambda span: span.start_time or 0)
        if span.context is not None
    }
    roots: list[Node] = []
    for node in nodes.values():
        parent = nodes.get(node.span.parent.span_id) if node.span.parent is not None else None
        (roots if parent is None else parent.children).append(node)
    return roots


_TELLING: Final = {"recovered": 2, "exhausted": 1, "unverified": 1, "not_found": 1}


def most_telling(roots: Sequence[Node]) -> Node | None:
    """The request with the most actions of the guard to show; None without any.

    A recovered one comes first, then one whose 404 was handed back, then one that waited for
    the warmup; among equals, the one under which the control plane was asked.
    """

    def rank(node: Node) -> tuple[int, bool]:
        outcome = node.attributes.get("tinker_guard.outcome")
        return _TELLING.get(str(outcome), 0), any(below.is_question for below in node.below())

    return max((node for node in roots if rank(node) > (0, False)), key=rank, default=None)


def with_guards_numbers(run: Run, roots: Sequence[Node]) -> Run:
    """A run with the guard's numbers from its spans: resends and verdicts."""
    verdicts: Counter[str] = Counter()
    for root in roots:
        verdict = root.attributes.get("tinker_guard.verdict")
        # A request that only waited for the warmup has none of its own.
        verdicts.update(
            {str(verdict)}
            if verdict is not None
            else {
                str(node.attributes["tinker_guard.verdict"])
                for node in root.below()
                if "tinker_guard.verdict" in node.attributes
            }
        )
    resends = sum(int(root.attributes.get("tinker_guard.retries", 0)) for root in roots)
    return replace(run, resends=resends, verdicts=verdicts)


def traces_url(url: str) -> str:
    """Complete the URL of an OTLP/HTTP backend: without a path, it gets `/v1/traces`.

    Raises:
        ValueError: It is no HTTP URL.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be a URL such as http://localhost:4318")
    return urlunsplit(parts._replace(path="/v1/traces")) if parts.path in ("", "/") else url


def without_secrets(url: str) -> str:
    """A URL to show, without user name, password and query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def otlp_exporter(url: str) -> SpanExporter:
    """Build the exporter for a backend.

    Raises:
        MissingExporterError: The extra `otlp` is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ModuleNotFoundError:
        raise MissingExporterError from None
    return OTLPSpanExporter(endpoint=url, timeout=int(_EXPORT_TIMEOUT))


def send(spans: Sequence[ReadableSpan], exporter: SpanExporter) -> bool:
    """Send spans to a backend; False if the backend did not accept them."""
    results = []

    def export() -> None:
        try:
            results.append(exporter.export(spans))
            exporter.shutdown()
        except Exception:
            results.append(SpanExportResult.FAILURE)

    # Older exporters retry for a minute, regardless of their time-out.
    thread = threading.Thread(target=export, name="tinker-guard-otlp", daemon=True)
    thread.start()
    thread.join(2 * _EXPORT_TIMEOUT)
    return results[:1] == [SpanExportResult.SUCCESS]


def _attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})
