"""Fixtures for all tests: virtual time, a recording tracer, a clean process state."""

from __future__ import annotations

# Before any tracer provider is made: in a forked child, one asks threads for resources, and waits
# for ever if this module was imported after it (OpenTelemetry SDK 1.45).
import concurrent.futures.thread  # noqa: F401
import gc
import os
import random
from collections import Counter as Counter_
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import Counter, Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    InMemoryMetricReader,
    NumberDataPoint,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from testkit.threads import VirtualTime
from testkit.virtual_time import VirtualTimeLoop
from tinker_guard import faults, uninstall_guard
from tinker_guard.core.attempts import JITTER
from tinker_guard.core.routes import ROUTES
from tinker_guard.observability import providers
from tinker_guard.transports.runtime import THREADS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.metrics.export import DataPointT


# Read here, because the guard is not to see a variable that looks like a setting.
_SEED: Final = os.environ.get("TINKER_GUARD_TEST_SEED", "1")
_KINDS: Final = {
    "unit": {
        *("policy", "core", "control_plane", "transports", "observability"),
        *("test_transport.py", "test_waiting.py", "test_settings.py"),
    },
    "tools": {
        "cli",
        "docs",
        "proof",
        "test_architecture.py",
        "test_documents.py",
        "test_examples.py",
        "test_requests_adapter.py",
        "test_ids.py",
        "test_notebook.py",
        "test_typing.py",
    },
}
"""Folders and files in this one, by the marker of their tests; all others are `sockets`."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its kind, unless it has a marker of its own."""
    # What takes longest runs first: at the end, one worker would run it while the other one waits.
    items.sort(key=lambda item: item.path.name != "test_ids.py")
    for item in items:
        if not any(item.get_closest_marker(kind) for kind in ("unit", "sockets", "tools")):
            first = item.path.relative_to(Path(__file__).parent).parts[0]
            kinds = [kind for kind, places in _KINDS.items() if first in places]
            item.add_marker(kinds[0] if kinds else "sockets")


@pytest.fixture(scope="module", autouse=True)
def garbage_of_this_module() -> None:
    """Keep what stays to the end from the garbage collector.

    Thousands of tests, and what they import: a collection, of which many tests ask for one, would
    look at them all each time. mypy, in one of these tests, gives back what was kept from it.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    """Coroutine tests run where a sleep of an hour takes no time."""
    return "asyncio", {"loop_factory": VirtualTimeLoop}


@pytest.fixture
def virtual_time(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    """The time of threads that wait."""
    time = VirtualTime()
    monkeypatch.setattr(THREADS, "clock", time.clock)
    monkeypatch.setattr(THREADS, "sleep", time.sleep)
    return time


@pytest.fixture
def loopback(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No proxy is before this machine, and what clients leave behind is collected afterwards."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield
    gc.collect()


@pytest.fixture
def sdk_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK reports to the trainer how it fares.

    Elsewhere it does not: its end waits a tenth of a second for that, and in many releases for half
    a minute if the trainer has just gone.
    """
    monkeypatch.setenv("TINKER_TELEMETRY", "1")


@pytest.fixture(autouse=True)
def clean_process(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """No test sees what another one left in the process, and jitter is the same in every run.

    Nor does one pass by a fault of the guard's own, which is logged and reaches no caller, unless
    it is marked to meet one.
    """
    for chance in (random, JITTER):
        chance.seed(_SEED)
    for name in set(os.environ):
        # pytest-xdist makes terminals narrow.
        if name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "COLUMNS") or name.startswith(
            ("TINKER_", "OTEL_")
        ):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TINKER_TELEMETRY", "0")
    # Not at the end: there, what the test itself has patched is still in place.
    providers.refresh()
    faults.already_logged.clear()
    faults.already_told.clear()
    yield
    uninstall_guard()
    ROUTES.clear()
    met = {where for where in faults.already_logged if not where.startswith("closing ")}
    assert not met or request.node.get_closest_marker("meets_fault")


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
    providers.refresh()
    yield _exporter
    _exporter.clear()


def _how_often(point: DataPointT) -> Any:
    return point.value if isinstance(point, NumberDataPoint) else point.count


class Measured:
    """What has been measured during this test, by the metric's name."""

    def __init__(self, reader: InMemoryMetricReader) -> None:
        self._reader = reader

    def _drain(self) -> Iterator[tuple[str, str, DataPointT]]:
        data = self._reader.get_metrics_data()
        for resource in data.resource_metrics if data is not None else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        yield scope.scope.name, metric.name, point

    def counts(self) -> list[tuple[str, str, float]]:
        """What was counted, of all libraries: scope, metric's name, and how often in all."""
        found: Counter_[tuple[str, str]] = Counter_()
        for scope, name, point in self._drain():
            found[scope, name] += _how_often(point)
        return [(scope, name, how_often) for (scope, name), how_often in found.items()]

    def collect_own(self) -> dict[str, list[tuple[dict[str, Any], float]]]:
        """Each of the guard's own metrics: its points, as attributes and count."""
        found: dict[str, list[tuple[dict[str, Any], float]]] = {}
        for name, point in self.points():
            found.setdefault(name, []).append((dict(point.attributes or {}), _how_often(point)))
        return {name: sorted(points, key=str) for name, points in found.items()}

    def points(self) -> list[tuple[str, DataPointT]]:
        """Each point of the guard's own metrics, with the metric's name."""
        return [(name, point) for scope, name, point in self._drain() if scope == "tinker_guard"]


@pytest.fixture(scope="session")
def _reader() -> InMemoryMetricReader:
    # Of each collection only what is new, because the provider is shared too.
    reader = InMemoryMetricReader(
        preferred_temporality={
            Counter: AggregationTemporality.DELTA,
            Histogram: AggregationTemporality.DELTA,
        }
    )
    metrics.set_meter_provider(MeterProvider([reader]))
    return reader


@pytest.fixture
def measured(_reader: InMemoryMetricReader) -> Measured:
    """What is measured during this test."""
    providers.refresh()
    measured = Measured(_reader)
    measured.points()
    return measured
