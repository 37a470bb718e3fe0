"""Fixtures for all tests: virtual time, a recording tracer, a clean process state."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.virtual_time import VirtualTimeLoop
from tinker_guard import logs, observers, uninstall_guard
from tinker_guard.route import ROUTES

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    """Coroutine tests run where a sleep of an hour takes no time."""
    return "asyncio", {"loop_factory": VirtualTimeLoop}


@pytest.fixture(autouse=True)
def clean_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test sees what another one left in the process, and jitter is the same in every run."""
    random.seed(os.environ.get("TINKER_GUARD_TEST_SEED", "1"))
    for name in ("TINKER_GUARD_ENABLED", "HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield
    uninstall_guard()
    ROUTES.clear()
    logs._faults_logged.clear()
    observers.look_again()


@pytest.fixture(scope="session")
def _exporter() -> InMemorySpanExporter:
    # OpenTelemetry allows one provider per process, so tests share it.
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
def spans(_exporter: InMemorySpanExporter) -> Iterator[InMemorySpanExporter]:
    """What has been recorded during this test."""
    _exporter.clear()
    observers.look_again()
    yield _exporter
    _exporter.clear()
