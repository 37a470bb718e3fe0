"""Exports spans and metrics from programs that have not set up OpenTelemetry themselves."""
