"""What an untouched request costs: bare, httpx-retries, OpenTelemetry's httpx layer, the guard.

    python -m benchmarks.overhead [--json PATH]

Measured at the transport, below httpx's client, on a warm trainer route with a canned answer:
without an OpenTelemetry SDK, with one that records spans (a batch processor before an exporter
that throws everything away), and with one that records metrics too; each in a process of its own
because providers are global. Rounds of all contestants take turns; a round's cost is its excess
over the bare round beside it.

"The guard" makes the exchange's CLIENT span and tells the gateway its context, as over httpx's own
transports; "over pyqwest" leaves that to the transport below, as with the SDK's default one.
"""

from __future__ import annotations

import asyncio
import gc
import time
from enum import StrEnum
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import httpx

from benchmarks.report import Row, parser, ratio_of, show_goals, spread, table, write_json
from benchmarks.runs import in_process
from tinker_guard import GuardSettings, GuardTransport

if TYPE_CHECKING:
    from collections.abc import Callable

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


class Mode(StrEnum):
    """Who observes."""

    NOBODY = "no OpenTelemetry SDK"
    SPANS = "recording SDK"
    SPANS_AND_METRICS = "recording SDK, metrics too"


GOALS: Final = (
    (Mode.NOBODY, "guard", 5.0),
    (Mode.SPANS, "guard, over pyqwest", 70.0),
    (Mode.SPANS, "guard", 70.0),
)
"""Microseconds that the guard may add."""


class Canned(httpx.AsyncBaseTransport):
    """Answers with the same response at once."""

    def __init__(self) -> None:
        self._response = httpx.Response(200, content=b"{}")

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer."""
        return self._response


class CannedPyqwest(Canned):
    """The same where the guard takes it for a transport that traces by itself."""

    __module__ = "pyqwest.canned"


def measure(mode: Mode, *, rounds: int = 101, requests: int = 0) -> dict[str, list[float]]:
    """Microseconds per request of each contestant, a figure for each round.

    Args:
        mode: Who observes.
        rounds: How many rounds each contestant gets.
        requests: Requests in a round; 0 chooses a number that takes some ten milliseconds.
    """
    work = partial(_measure, mode, rounds, requests or (2000 if mode is Mode.NOBODY else 200))
    figures = in_process(work, 300.0)
    if figures is None:
        raise RuntimeError("the measuring process failed")
    return figures


def _measure(mode: Mode, rounds: int, requests: int) -> dict[str, list[float]]:
    flush = _record(mode) if mode is not Mode.NOBODY else lambda: None
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
    figures: dict[str, list[float]] = {name: [] for name in transports}
    with asyncio.Runner() as runner:
        for name, transport in transports.items():
            runner.run(_round(name, transport, requests))
            assert name in figures
        for _ in range(rounds):
            for name, transport in transports.items():
                # Neither the collection of garbage nor the exporting thread shall be counted
                # with whoever happens to run when they do.
                flush()
                gc.collect()
                gc.disable()
                figures[name].append(runner.run(_round(name, transport, requests)))
                gc.enable()
    return figures


async def _round(name: str, transport: httpx.AsyncBaseTransport, requests: int) -> float:
    url = POLL if "poll" in name else URL
    request = httpx.Request("POST", url, content=b"{}", headers={"X-Api-Key": "none"})
    started_at = time.perf_counter()
    for _ in range(requests):
        await transport.handle_async_request(request)
    return (time.perf_counter() - started_at) / requests * 1e6


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
    return found


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


def details(figures: dict[Mode, dict[str, list[float]]]) -> dict[str, Any]:
    """Everything measured, for `--json`."""
    return {"overhead_us": {str(mode): value for mode, value in figures.items()}}


def measure_both(rounds: int = 101) -> dict[Mode, dict[str, list[float]]]:
    """Whoever observes."""
    return {mode: measure(mode, rounds=rounds) for mode in Mode}


def main() -> None:
    """Measure, print, write."""
    given = parser(__doc__).parse_args()
    figures = measure_both()
    show(figures)
    found = rows(figures)
    show_goals(found)
    if given.json:
        write_json(given.json, found, details(figures))


if __name__ == "__main__":
    main()
