"""Counts, inside a client process, what the guard does and what the process holds."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import httpx
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from tinker_guard.observability import attributes as names

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan, Span

_BACKGROUND: Final = ("/telemetry", "/session_heartbeat", "/finish")
"""What is sent but once where a budget has just ended in vain."""
_GUARD: Final = "tinker_guard"
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class Tally(SpanProcessor):
    """Counts spans as they end, and those that do not."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: defaultdict[str, set[int]] = defaultdict(set)
        """Ids of spans: one that was begun and is made anew under its id, is one."""
        self.counts: Counter[str] = Counter()
        self.longest: defaultdict[str, float] = defaultdict(float)
        """The longest request of each outcome, in seconds."""
        self._verdicts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._strange_errors: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._met_404_at: dict[int, int | None] = {}
        """For each request that is under way, by its span's id, when its first 404 came."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Note that a span is open."""
        with self._lock:
            self._open[_scope(span)].add(span.context.span_id)
            if names.OPERATION in (span.attributes or {}):
                self._open["requests"].add(span.context.span_id)
                self._met_404_at[span.context.span_id] = None

    def on_end(self, span: ReadableSpan) -> None:
        """Note what a span says."""
        said = span.attributes or {}
        with self._lock:
            for spans in (self._open[_scope(span)], self._open["requests"]):
                spans.discard(span.context.span_id)
            if outcome := said.get(names.OUTCOME):
                self._request(span, str(outcome))
            elif result := said.get(names.PROBE_RESULT):
                self.counts[f"probe {result}"] += 1
            elif span.name == "tinker_guard.warmup":
                self.counts["warmup"] += 1
            elif span.name == "tinker_guard.control_plane":
                self.counts["question"] += 1
            elif said.get(names.STATUS_CODE) == 404 and span.parent is not None:
                above = span.parent.span_id
                if above in self._met_404_at and self._met_404_at[above] is None:
                    self._met_404_at[above] = span.end_time

    def _request(self, span: ReadableSpan, outcome: str) -> None:
        said = span.attributes or {}
        ended = span.end_time or 0
        took = (ended - (span.start_time or 0)) / 1e9
        met_404_at = self._met_404_at.pop(span.context.span_id, None) if span.context else None
        retries = said.get(names.RETRIES, 0)
        assert isinstance(retries, int)
        self.counts[f"request {outcome}"] += 1
        self.counts["resend"] += retries
        self.longest[outcome] = max(self.longest[outcome], took)
        error_type = str(said.get(names.ERROR_TYPE))
        if outcome == "error" and not is_of_the_network(error_type):
            self._strange_errors[str(said.get(names.JOB))][error_type] += 1
        if (verdict := said.get(names.VERDICT)) is None:
            return
        label = f"{verdict}, {said.get(names.REASON)}"
        self.counts[f"verdict {label}"] += 1
        found = self._verdicts[str(said.get(names.JOB))]
        found[label] += 1
        # A race that lasts for the whole budget is handed back too.
        gives_up = "exhausted" if outcome == "exhausted" else str(verdict)
        is_given_up = gives_up in ("exhausted", "unverified")
        if is_given_up and met_404_at is not None and not _is_background(span.name):
            held_ms, shortest = round((ended - met_404_at) / 1e6), f"shortest {gives_up}, ms"
            found[shortest] = min(found.get(shortest, held_ms), held_ms)
        if verdict == "genuine_not_found":
            found["resends of what was genuine"] += retries
            # How long the gateway took to answer is not the guard's doing. At the gate there is no
            # answer to count from.
            held = (ended - met_404_at) / 1e9 if met_404_at is not None else took
            found["longest genuine, ms"] = max(found["longest genuine, ms"], round(held * 1000))

    def verdicts_of(self, job: str) -> dict[str, int]:
        """What the 404s of a job turned out to be, once."""
        with self._lock:
            return dict(self._verdicts.pop(job, {}))

    def strange_errors_of(self, job: str) -> dict[str, int]:
        """What requests of a job ended with that no network does to them, once."""
        with self._lock:
            return dict(self._strange_errors.pop(job, {}))

    def open(self, what: Literal["tinker_guard", "others", "requests"]) -> int:
        """How many spans are open: all of the guard's, others' (pyqwest's), those of requests."""
        with self._lock:
            return len(self._open[what])


def is_of_the_network(error_type: str) -> bool:
    """Whether an `error.type` is what a broken network does to a request.

    Transports raise kinds of `httpx.TransportError`, never that itself: the guard does, where a
    transport was closed that is still in use. What is below them (httpcore, pyqwest, anyio, ssl)
    now and then lets errors of its own through, and builtins (a `ValueError`, say), of which nobody
    can tell by the name whose they are.
    """
    module, _, name = error_type.rpartition(".")
    if module == "httpx":
        kind = getattr(httpx, name, None)
        is_request_error = isinstance(kind, type) and issubclass(kind, httpx.RequestError)
        return is_request_error and kind not in (httpx.RequestError, httpx.TransportError)
    return module.partition(".")[0] not in ("tinker", "tinker_guard")


def _is_background(name: str) -> bool:
    return name.endswith(_BACKGROUND)


def _scope(span: ReadableSpan | Span) -> str:
    scope = span.instrumentation_scope
    return _GUARD if scope is not None and scope.name.startswith(_GUARD) else "others"


class Faults(logging.Handler):
    """Keeps the lines in which the guard admits a fault of its own."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line, and where it came from."""
        if "a fault of its own" in record.msg:
            self.lines.append(self.format(record))


def observe() -> tuple[Tally, Faults]:
    """Begin to look at what the guard says in this process."""
    tally, faults = Tally(), Faults()
    provider = TracerProvider()
    provider.add_span_processor(tally)
    trace.set_tracer_provider(provider)
    logging.getLogger(_GUARD).addHandler(faults)
    return tally, faults


def sdk_loop() -> asyncio.AbstractEventLoop:
    """The event loop on which the SDK does everything."""
    from tinker.lib import internal_client_holder as holder

    loop: asyncio.AbstractEventLoop
    loop = holder._internal_client_holder_thread_singleton.get_loop()
    return loop


def tasks() -> list[str]:
    """What the SDK's event loop has to do, a name for each task."""

    async def look() -> list[str]:
        here = asyncio.current_task()
        return [_name_of(task) for task in asyncio.all_tasks() if task is not here]

    return asyncio.run_coroutine_threadsafe(look(), sdk_loop()).result(60)


def _name_of(task: asyncio.Task[Any]) -> str:
    """The name of a task's coroutine, and after it what that waits in."""
    coroutine: Any = task.get_coro()
    path: list[str] = []
    while (name := getattr(coroutine, "__qualname__", None)) is not None and len(path) < 20:
        path.append(name)
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "ag_await", None)
    return " > ".join(path) or repr(task)


def connections(ports: set[int]) -> int:
    """How many connections of this process to local ports are open."""
    mine = {link for link in map(_target, Path("/proc/self/fd").iterdir()) if link}
    rows = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    return sum(
        1
        for row in rows
        if int(row[2].rpartition(":")[2], 16) in ports and f"socket:[{row[9]}]" in mine
    )


def _target(descriptor: Path) -> str:
    try:
        return str(descriptor.readlink())
    except OSError:
        return ""


_POOL: Final = "tokio-rt-worker"
"""What pyqwest's runtime calls its threads."""


def _threads() -> tuple[int, int]:
    """How many threads there are: those of pyqwest's runtime, and all others."""
    names = []
    for task in Path("/proc/self/task").iterdir():
        # It may have ended meanwhile.
        with suppress(OSError):
            names.append((task / "comm").read_text().strip())
    pool = names.count(_POOL)
    return pool, len(names) - pool


def resources(tally: Tally) -> dict[str, float]:
    """What this process holds now."""
    pool, threads = _threads()
    return {
        "at": time.time(),
        "rss": int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE / 2**20,
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threads,
        "pool": pool,
        "tasks": len(tasks()),
        "spans": tally.open("tinker_guard"),
        "requests": tally.open("requests"),
    }
