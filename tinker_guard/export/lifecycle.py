"""Exports spans and metrics from programs that have not set up OpenTelemetry themselves.

The setting `export`, its variable `TINKER_GUARD_EXPORT` and `start_export()` use this module. They
need the extra `otlp`; without it, or after any other failure, one log line reports it, and the
program continues.

A thread of OpenTelemetry's SDK sends spans in batches, so that no request waits for it. When a
backend is down, spans are dropped. At the end of the process, sending the rest takes `EXIT_TIMEOUT`
seconds at the most.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import UUID

from opentelemetry import metrics, trace

from tinker_guard.export.console import console_exporters
from tinker_guard.export.exporters import Exporters, Failures, not_in_children
from tinker_guard.export.jsonl import jsonl_exporters
from tinker_guard.export.otlp import otlp_exporters
from tinker_guard.faults import log, log_fault
from tinker_guard.observability.metrics import use as measure_with
from tinker_guard.observability.providers import refresh
from tinker_guard.settings import check_destination

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider


EXIT_TIMEOUT: Final = 3.0
"""Seconds by which sending the rest may delay the end of the process."""


_EXTRA: Final = "pip install 'tinker-guard[otlp]'"


_lock = threading.Lock()
_exported_to: str | None = None


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # pragma: no branch - no other system forks
    # The thread that held the lock does not exist in the child.
    os.register_at_fork(after_in_child=_renew_lock)


def start_export(destination: str) -> bool:
    """Export spans and metrics, if the program has not set up OpenTelemetry itself.

    The first destination of a process counts; another one is refused. Never raises: errors are
    logged.

    Args:
        destination: `console` writes to stderr a tree for each request that met a 404, a wait or
            an error, and the guard's metrics at the end. `otlp` sends spans and metrics over
            OTLP/HTTP to the endpoint of the `OTEL_EXPORTER_OTLP_*` variables, by default
            `http://localhost:4318`. `jsonl:PATH` appends spans to a file in the OTLP JSON file
            format, and metrics to another file beside it, with `.metrics` before its suffix.
            A relative PATH counts from the working directory of this call; what is no regular file
            gets the spans alone.

    Returns:
        Whether this process exports to that destination now.
    """
    global _exported_to
    try:
        destination = check_destination(destination)
    except ValueError as problem:
        log(logging.WARNING, "start_export(): the destination %s; nothing is exported.", problem)
        return False
    with _lock:
        if _exported_to is not None:
            if _exported_to != destination:
                log(
                    logging.WARNING,
                    "export=%s comes too late: this process exports to %s already.",
                    destination,
                    _exported_to,
                )
            return _exported_to == destination
        try:
            if _start(destination):
                _exported_to = destination
        except ImportError as error:
            log(
                logging.WARNING,
                "export=%s needs %s, which is not installed; nothing is exported. Run: %s",
                destination,
                error.name,
                _EXTRA,
            )
        except OSError as error:
            log(
                logging.WARNING,
                "export=%s: the file cannot be written (%s); nothing is exported.",
                destination,
                error.strerror,
            )
        except ValueError as error:
            # The SDK and its exporters raise this for invalid values of their own variables.
            log(
                logging.WARNING,
                "export=%s cannot be set up (%s); nothing is exported. Check the OTEL_* variables.",
                destination,
                error,
            )
        except Exception:
            log_fault("setting up the export")
        return _exported_to is not None


def _start(destination: str) -> bool:
    seen = refresh()
    if seen.spans and seen.metrics:
        log(
            logging.INFO,
            "export=%s is not needed: this program has set up OpenTelemetry, which "
            "gets the guard's spans and metrics.",
            destination,
        )
        return False
    exporters = _exporters(destination)
    resource = _resource()
    tracers = meters = None
    if not seen.spans and _is_wanted("TRACES"):
        tracers = _trace_to(exporters, resource)
    if not seen.metrics and _is_wanted("METRICS"):
        meters = _measure_to(exporters, resource)
    # Set only when both are ready: OpenTelemetry cannot remove a provider.
    if tracers is not None:
        trace.set_tracer_provider(tracers)
    if meters is not None:
        metrics.set_meter_provider(meters)
    refresh()
    at_exit = _AtExit(
        [provider for provider in (tracers, meters) if provider is not None],
        "the backend" if destination == "otlp" else destination.removeprefix("jsonl:"),
    )
    if meters is not None and hasattr(os, "register_at_fork"):

        def begin_at_zero() -> MeterProvider:
            own = _measure_to(_exporters(destination), _resource())
            at_exit.add(own)
            return own

        os.register_at_fork(after_in_child=lambda: measure_with(begin_at_zero))
    return True


def _is_wanted(kind: str) -> bool:
    """Whether OpenTelemetry's own variable enables a signal: some backends accept only traces."""
    return os.environ.get(f"OTEL_{kind}_EXPORTER", "").strip().lower() != "none"


def _trace_to(exporters: Exporters, resource: Resource) -> TracerProvider:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from tinker_guard.export.ids import OwnIds
    from tinker_guard.export.without_secrets import WithoutSecrets

    delay = exporters.span_delay
    # By default, the SDK would wait half a minute at exit for a backend that is down.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False, id_generator=OwnIds())
    provider.add_span_processor(WithoutSecrets())
    provider.add_span_processor(
        BatchSpanProcessor(
            exporters.spans, schedule_delay_millis=None if delay is None else delay * 1000
        )
    )
    return provider


def _measure_to(exporters: Exporters, resource: Resource) -> MeterProvider:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    interval = exporters.metric_interval
    reader = PeriodicExportingMetricReader(
        not_in_children(exporters.metrics),
        export_interval_millis=None if interval is None else interval * 1000,
    )
    return MeterProvider([reader], resource=resource, shutdown_on_exit=False)


def _resource() -> Resource:
    from opentelemetry.sdk.resources import (
        PROCESS_PID,
        SERVICE_INSTANCE_ID,
        SERVICE_NAME,
        Resource,
    )

    resource = Resource.create()
    own: dict[str, str | int] = {}
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        own[SERVICE_NAME] = "tinker-guard"
    # These distinguish processes that share a file or a backend.
    if not resource.attributes.get(SERVICE_INSTANCE_ID):
        own[SERVICE_INSTANCE_ID] = str(UUID(bytes=os.urandom(16), version=4))
    if PROCESS_PID not in resource.attributes:
        own[PROCESS_PID] = os.getpid()
    return resource.merge(Resource(own))


class _AtExit:
    """Sends the rest when the process ends, within a bounded time.

    A thread that was started at the beginning sends: at exit, no thread can be started.

    Args:
        providers: They are shut down.
        taker: Where they send to, for the line that is logged if that takes too long.
    """

    def __init__(self, providers: list[TracerProvider | MeterProvider], taker: str) -> None:
        self._providers = providers
        self._taker = taker
        self._wait()
        atexit.register(self._flush)
        if hasattr(os, "register_at_fork"):
            # A forked child has none of its parent's threads.
            os.register_at_fork(after_in_child=self._wait)

    def add(self, provider: MeterProvider) -> None:
        """Shut down one more."""
        self._providers.append(provider)

    def _wait(self) -> None:
        self._is_wanted, self._is_done = threading.Event(), threading.Event()
        threading.Thread(target=self._shut_down, name="tinker-guard-export", daemon=True).start()

    def _flush(self) -> None:
        self._is_wanted.set()
        if not self._is_done.wait(EXIT_TIMEOUT) and not Failures.has_logged:
            log(
                logging.WARNING,
                "%s did not take the last spans and metrics within %g s; the end of this run is "
                "missing there.%s",
                self._taker,
                EXIT_TIMEOUT,
                " Does it run where OTEL_EXPORTER_OTLP_ENDPOINT says?"
                if self._taker == "the backend"
                else "",
            )

    def _shut_down(self) -> None:
        self._is_wanted.wait()
        for provider in self._providers:
            try:
                provider.shutdown()
            except Exception:
                log_fault("the end of the export")
        self._is_done.set()


def _exporters(destination: str) -> Exporters:
    """Build the exporters of a destination that has been checked.

    Raises:
        ImportError: The extra is not installed.
        OSError: The file cannot be written.
    """
    if destination == "console":
        return console_exporters()
    if destination == "otlp":
        return otlp_exporters()
    return jsonl_exporters(Path(destination.removeprefix("jsonl:")))
