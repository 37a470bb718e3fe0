"""Export over OTLP/HTTP."""

from __future__ import annotations

from tinker_guard.export.exporters import Exporters, Failures


def otlp_exporters() -> Exporters:
    """Exporters to the endpoint of the `OTEL_EXPORTER_OTLP_*` variables."""
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    failures = Failures(
        "spans and metrics do not reach the backend; training goes on, and what is not taken is "
        "lost. Does it run where OTEL_EXPORTER_OTLP_ENDPOINT says (default: http://localhost:4318)?"
    )
    return failures.of(Exporters(OTLPSpanExporter(), OTLPMetricExporter()))
