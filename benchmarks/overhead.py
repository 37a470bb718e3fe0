"""What an untouched request costs: bare, httpx-retries, OpenTelemetry's httpx layer, the guard.

    python -m benchmarks.overhead [--json PATH]

Measured at the transport, below httpx's client, on a warm trainer route with a canned answer. Once
without an OpenTelemetry SDK and once with one that records (a batch processor before an exporter
that throws everything away), each in a process of its own because the provider is global. Rounds
of all contestants take turns; a round's cost is its excess over the bare round beside it.
"""

from __future__ import annotations

import asyncio
import gc
import time
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
CONTESTANTS: Final = ("bare", "httpx-retries", "OpenTelemetry's httpx layer", "guard")
GOALS: Final = {False: 5.0, True: 70.0}
"""Microseconds that the guard may add, by whether an SDK records."""


class Canned(httpx.AsyncBaseTransport):
    """Answers with the same response at once."""

    def __init__(self) -> None:
        self._response = httpx.Response(200, content=b"{}")

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer."""
        return self._response


def measure(*, is_recording: bool, rounds: int = 101, requests: int = 0) -> dict[str, list[float]]:
    """Microseconds per request of each contestant, a figure for each round.

    Args:
        is_recording: Whether an OpenTelemetry SDK records.
        rounds: How many rounds each contestant gets.
        requests: Requests in a round; 0 chooses a number that takes some ten milliseconds.
    """
    work = partial(_measure, is_recording, rounds, requests or (200 if is_recording else 2000))
    figures = in_process(work, 300.0)
    if figures is None:
        raise RuntimeError("the measuring process failed")
    return figures


def _measure(is_recording: bool, rounds: int, requests: int) -> dict[str, list[float]]:
    flush = _record() if is_recording else lambda: None
    from httpx_retries import RetryTransport
    from opentelemetry.instrumentation.httpx import AsyncOpenTelemetryTransport

    transports: dict[str, httpx.AsyncBaseTransport] = dict(
        zip(
            CONTESTANTS,
            (
                Canned(),
                RetryTransport(Canned()),
                AsyncOpenTelemetryTransport(Canned()),
                # Warm from the first request on.
                GuardTransport(Canned(), settings=GuardSettings(warmup_successes=0)),
            ),
            strict=True,
        )
    )
    figures: dict[str, list[float]] = {name: [] for name in transports}
    with asyncio.Runner() as runner:
        for name, transport in transports.items():
            runner.run(_round(transport, requests))
            assert name in figures
        for _ in range(rounds):
            for name, transport in transports.items():
                # Neither the collection of garbage nor the exporting thread shall be counted
                # with whoever happens to run when they do.
                flush()
                gc.collect()
                gc.disable()
                figures[name].append(runner.run(_round(transport, requests)))
                gc.enable()
    return figures


async def _round(transport: httpx.AsyncBaseTransport, requests: int) -> float:
    request = httpx.Request("POST", URL, content=b"{}", headers={"X-Api-Key": "none"})
    started_at = time.perf_counter()
    for _ in range(requests):
        await transport.handle_async_request(request)
    return (time.perf_counter() - started_at) / requests * 1e6


def _record() -> Callable[[], object]:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    class Nowhere(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            assert all(isinstance(span, ReadableSpan) for span in spans)
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    trace.set_tracer_provider(provider)
    return provider.force_flush


def added(figures: dict[str, list[float]]) -> dict[str, list[float]]:
    """Microseconds on top of the bare round beside it."""
    return {
        name: [each - bare for each, bare in zip(values, figures["bare"], strict=True)]
        for name, values in figures.items()
        if name != "bare"
    }


def rows(figures: dict[bool, dict[str, list[float]]]) -> list[Row]:
    """The lines of the table of goals that this benchmark fills."""
    found = []
    for is_recording, goal in GOALS.items():
        extra = {name: median(values) for name, values in added(figures[is_recording]).items()}
        _, retries, peer, guard = (name for name in CONTESTANTS)
        found.append(
            Row(
                "untouched request, "
                + ("recording SDK" if is_recording else "no OpenTelemetry SDK"),
                f"<= {goal:g} us",
                f"httpx-retries {extra[retries]:.1f} us, {peer} {extra[peer]:.0f} us",
                f"{extra[guard]:.1f} us",
                ratio_of(extra[guard], extra[peer]),
                extra[guard] <= goal,
            )
        )
    return found


def show(figures: dict[bool, dict[str, list[float]]]) -> None:
    """Print every figure."""
    for is_recording, measured in figures.items():
        extra = added(measured)
        table(
            "Untouched request, microseconds: median (middle half), "
            + ("with a recording SDK" if is_recording else "without an OpenTelemetry SDK"),
            ("transport", "a request", "on top of bare"),
            (
                (name, spread(values), spread(extra[name]) if name in extra else "")
                for name, values in measured.items()
            ),
        )


def details(figures: dict[bool, dict[str, list[float]]]) -> dict[str, Any]:
    """Everything measured, for `--json`."""
    names = {False: "no SDK", True: "recording SDK"}
    return {"overhead_us": {names[key]: value for key, value in figures.items()}}


def measure_both(rounds: int = 101) -> dict[bool, dict[str, list[float]]]:
    """Without and with a recording SDK."""
    return {
        is_recording: measure(is_recording=is_recording, rounds=rounds)
        for is_recording in (False, True)
    }


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
