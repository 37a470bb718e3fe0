"""What an untouched request costs: bare, httpx-retries, OpenTelemetry's httpx layer, the guard.

    python -m benchmarks.overhead [--json PATH]

Measured at the transport, below httpx's client, on a warm trainer route with a canned answer:
without an OpenTelemetry SDK, with one that records spans (a batch processor before an exporter
that throws everything away), and with one that records metrics too; each in a process of its own
because providers are global. Rounds of all contestants take turns; a round's cost is its excess
over the bare round beside it.

"The guard" makes the exchange's CLIENT span and tells the gateway its context, as over httpx's own
transports; "over pyqwest" leaves that to the transport below, as with the SDK's default one.

A sync client is measured without an SDK. httpx-retries leaves a POST alone unless it is told to
retry it: then it looks after the request as the guard does, and is its peer.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from enum import StrEnum
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import httpx

from benchmarks.report import Row, ratio_of, run_benchmarks, spread, table
from benchmarks.runs import in_process
from tinker_guard import GuardSettings, GuardTransport, SyncGuardTransport

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

URL: Final = "https://gateway.test/training/v1/rlorTrainerJobs/acc/job-1/api/v1/forward_backward"
POLL: Final = URL.replace("forward_backward", "retrieve_future")
CONTESTANTS: Final = (
    "bare",
    "httpx-retries",
    "OpenTelemetry's httpx layer",
    "guard",
    "guard, over pyqwest",
    "guard, a poll",
    "guard, a poll over pyqwest",
    "guard, trace=off",
)
RETRIES_POST: Final = "httpx-retries, told to retry POST"
SYNC_CONTESTANTS: Final = (*CONTESTANTS[:3], RETRIES_POST, "guard")
SYNC_LIMIT: Final = 1.2
"""How many times what `RETRIES_POST` adds the guard of a sync client may add."""


class Mode(StrEnum):
    """Who observes."""

    NOBODY = "no OpenTelemetry SDK"
    SPANS = "recording SDK"
    SPANS_AND_METRICS = "recording SDK, metrics too"
    SYNC = "no OpenTelemetry SDK, a sync client"

    @property
    def contestants(self) -> tuple[str, ...]:
        """Who is measured."""
        return SYNC_CONTESTANTS if self is Mode.SYNC else CONTESTANTS

    @property
    def records(self) -> bool:
        """Whether an OpenTelemetry SDK is set up."""
        return self in (Mode.SPANS, Mode.SPANS_AND_METRICS)


GOALS: Final = (
    (Mode.NOBODY, "guard", 5.0),
    (Mode.SPANS, "guard, over pyqwest", 70.0),
    (Mode.SPANS, "guard", 70.0),
)
"""Microseconds that the guard may add."""


class Canned(httpx.AsyncHTTPTransport):
    """Answers with the same response at once; the guard takes it for httpx's own transport."""

    # Others may change what they are given, and are given copies.
    __module__ = "httpx"

    def __init__(self) -> None:
        self._response = httpx.Response(200, content=b"{}")

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer."""
        return self._response


class CannedPyqwest(Canned):
    """The same where the guard takes it for a transport that traces by itself."""

    __module__ = "pyqwest.canned"


class SyncCanned(httpx.HTTPTransport):
    """The same for a sync client."""

    __module__ = "httpx"

    def __init__(self) -> None:
        self._response = httpx.Response(200, content=b"{}")

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Answer."""
        return self._response


def measure(mode: Mode, *, rounds: int = 101, requests: int = 0) -> dict[str, list[float]]:
    """Microseconds per request of each contestant, a figure for each round.

    Args:
        mode: Who observes.
        rounds: How many rounds each contestant gets.
        requests: Requests in a round; 0 chooses a number that takes some ten milliseconds.
    """
    measure_in_process = _measure_sync if mode is Mode.SYNC else _measure
    work = partial(measure_in_process, mode, rounds, requests or (200 if mode.records else 2000))
    figures = in_process(work, 300.0)
    if figures is None:
        raise RuntimeError("the measuring process failed")
    return figures


def _measure(mode: Mode, rounds: int, requests: int) -> dict[str, list[float]]:
    flush = _record(mode) if mode.records else lambda: None
    from httpx_retries import RetryTransport
    from opentelemetry.instrumentation.httpx import AsyncOpenTelemetryTransport

    # Warm from the first request on.
    settings = GuardSettings(warmup_successes=0)
    off = GuardSettings(warmup_successes=0, trace="off")
    transports: dict[str, httpx.AsyncBaseTransport] = dict(
        zip(
            CONTESTANTS,
            (
                Canned(),
                RetryTransport(Canned()),
                AsyncOpenTelemetryTransport(Canned()),
                GuardTransport(Canned(), settings=settings),
                GuardTransport(CannedPyqwest(), settings=settings),
                GuardTransport(Canned(), settings=settings),
                GuardTransport(CannedPyqwest(), settings=settings),
                GuardTransport(Canned(), settings=off),
            ),
            strict=True,
        )
    )
    with asyncio.Runner() as runner:
        return _in_turn(
            {
                name: partial(_run_round, runner, name, transport, requests)
                for name, transport in transports.items()
            },
            rounds,
            flush,
        )


def _measure_sync(mode: Mode, rounds: int, requests: int) -> dict[str, list[float]]:
    from httpx_retries import Retry, RetryTransport
    from opentelemetry.instrumentation.httpx import SyncOpenTelemetryTransport

    transports: tuple[httpx.BaseTransport, ...] = (
        SyncCanned(),
        RetryTransport(SyncCanned()),
        SyncOpenTelemetryTransport(SyncCanned()),
        RetryTransport(SyncCanned(), Retry(allowed_methods=["POST"])),
        SyncGuardTransport(SyncCanned(), settings=GuardSettings(warmup_successes=0)),
    )
    contestants = {
        name: partial(_sync_round, transport, requests)
        for name, transport in zip(mode.contestants, transports, strict=True)
    }
    return _in_turn(contestants, rounds, lambda: None)


def _in_turn(
    contestants: Mapping[str, Callable[[], float]], rounds: int, flush: Callable[[], object]
) -> dict[str, list[float]]:
    """The figures of each contestant's rounds, after one to warm up."""
    for measure_round in contestants.values():
        measure_round()
    figures: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, measure_round in contestants.items():
            # Neither the collection of garbage nor the exporting thread shall be counted with
            # whoever happens to run when they do.
            flush()
            gc.collect()
            gc.disable()
            figures[name].append(measure_round())
            gc.enable()
    return figures


def _run_round(
    runner: asyncio.Runner, name: str, transport: httpx.AsyncBaseTransport, requests: int
) -> float:
    return runner.run(_round(name, transport, requests))


async def _round(name: str, transport: httpx.AsyncBaseTransport, requests: int) -> float:
    request = _request(POLL if "poll" in name else URL)
    started_at = time.perf_counter()
    for _ in range(requests):
        await transport.handle_async_request(request)
    return (time.perf_counter() - started_at) / requests * 1e6


def _sync_round(transport: httpx.BaseTransport, requests: int) -> float:
    request = _request(URL)
    started_at = time.perf_counter()
    for _ in range(requests):
        transport.handle_request(request)
    return (time.perf_counter() - started_at) / requests * 1e6


def _request(url: str) -> httpx.Request:
    return httpx.Request("POST", url, content=b"{}", headers={"X-Api-Key": "none"})


def _record(mode: Mode) -> Callable[[], object]:
    from opentelemetry import metrics, trace
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    class Nowhere(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            assert all(isinstance(span, ReadableSpan) for span in spans)
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    trace.set_tracer_provider(provider)
    if mode is Mode.SPANS_AND_METRICS:
        metrics.set_meter_provider(MeterProvider([InMemoryMetricReader()]))
    return provider.force_flush


def added(figures: dict[str, list[float]]) -> dict[str, list[float]]:
    """Microseconds on top of the bare round beside it."""
    return {
        name: [each - bare for each, bare in zip(values, figures["bare"], strict=True)]
        for name, values in figures.items()
        if name != "bare"
    }


def rows(figures: dict[Mode, dict[str, list[float]]]) -> list[Row]:
    """The lines of the table of goals that this benchmark fills."""
    found = []
    for mode, name, goal in GOALS:
        extra = {name: median(values) for name, values in added(figures[mode]).items()}
        retries, peer = CONTESTANTS[1:3]
        found.append(
            Row(
                f"untouched request, {mode}{name.removeprefix('guard')}",
                f"<= {goal:g} us",
                f"httpx-retries {extra[retries]:.1f} us, {peer} {extra[peer]:.0f} us",
                f"{extra[name]:.1f} us",
                ratio_of(extra[name], extra[peer]),
                extra[name] <= goal,
            )
        )
    found.append(_sync_row(figures[Mode.SYNC]))
    return found


def _sync_row(figures: dict[str, list[float]]) -> Row:
    extra = {name: median(values) for name, values in added(figures).items()}
    ours, peer = extra["guard"], extra[RETRIES_POST]
    return Row(
        f"untouched request, {Mode.SYNC}",
        f"<= {SYNC_LIMIT:g} times httpx-retries",
        f"{RETRIES_POST} {peer:.2f} us, by default {extra['httpx-retries']:.2f} us",
        f"{ours:.2f} us",
        ratio_of(ours, peer),
        ours <= SYNC_LIMIT * peer,
    )


def show(figures: dict[Mode, dict[str, list[float]]]) -> None:
    """Print every figure."""
    for mode, measured in figures.items():
        extra = added(measured)
        peer = median(extra[CONTESTANTS[2]])
        table(
            f"Untouched request, microseconds: median (middle half), {mode}",
            ("transport", "a request", "on top of bare", "of OpenTelemetry's"),
            (
                (
                    name,
                    spread(values),
                    spread(extra[name]) if name in extra else "",
                    f"{median(extra[name]) / peer:.2f}" if name in extra else "",
                )
                for name, values in measured.items()
            ),
        )


def measure_all(rounds: int = 101) -> dict[Mode, dict[str, list[float]]]:
    """Whoever observes."""
    return {mode: measure(mode, rounds=rounds) for mode in Mode}


if __name__ == "__main__":
    run_benchmarks(__doc__, sys.modules[__name__])
