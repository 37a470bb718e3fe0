"""Spans, metrics and log lines. They observe requests and decide nothing."""
