"""Each part of the guard is broken on purpose: the request ends as it would without the guard."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
import weakref
from collections import Counter
from contextlib import contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from testkit import fakes
from testkit.cli import python
from testkit.fakes import (
    BASE,
    GATEWAY_BODY,
    TRAINER_BODY,
    Exchange,
    FakeControlPlane,
    FakeGateway,
    FakeTransport,
    TrackedStream,
    gateway_404,
    guard,
    known_from,
    loop_time,
    ok,
    post,
    send,
    settle,
    trainer_404,
)
from testkit.threads import VirtualTime
from testkit.virtual_time import VirtualTimeLoop
from tests.core.test_both_transports import sync_guard
from tinker_guard import GuardSettings, GuardTransport
from tinker_guard import faults as guard_faults
from tinker_guard.core import attempts
from tinker_guard.core.routes import ROUTES
from tinker_guard.gateway import Fault, LocalGateway, Race
from tinker_guard.observability.providers import NOTHING
from tinker_guard.policy.json_body import BODY_LIMIT
from tinker_guard.transports import runtime
from tinker_guard.transports.cleanup import CLOSE_SECONDS
from tinker_guard.waiting import until_routable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import CodeType, FrameType

    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


def faults(caplog: pytest.LogCaptureFixture) -> list[str]:
    said = ("a fault of its own", "is left to itself")
    return [line for line in caplog.messages if any(words in line for words in said)]


# -- a fault anywhere ----------------------------------------------------------------------------

# Nobody of ours is there to catch what these raise at their very beginning: some are all that
# stands below the caller, the others stand in for a transport or a stream.
_OUTERMOST = {
    "GuardTransport._look_after",
    "GuardTransport._after_404",
    "GuardTransport._send_on_cold_route",
    # Below a sync client; on an event loop the timeouts are asyncio's.
    "SyncGuardTransport.handle_request",
    "_BlockingStream.__init__",
    "_BlockingTimeout.__aexit__",
    "_StreamOfClient.__init__",
    "response_for_coroutines",
    "response_of_client",
    "run_blocking",
    "GuardedRequest.send",
    "_CountedStream.__init__",
    "DrainingTransport._close_if_done",
    "DrainingTransport._finish_one",
    "recover",
}
_TELEMETRY = {
    "telemetry.py",
    *(f"observability/{name}.py" for name in ("actions", "begun", "exchange", "logs")),
    *(f"observability/{name}.py" for name in ("metrics", "providers", "request")),
}
_OF_A_TRANSPORT = {"handle_async_request", "aclose", "__aiter__"}
# The same of a sync one: the fakes' streams are read so.
_OF_A_TRANSPORT |= {"__iter__", "_next"}
# Taken for a bad answer, as which it is told where it matters.
_OF_AN_ANSWER = {
    "SharedControlPlane._answer",
    "SharedControlPlane._plane_on",
    "is_state_name",
    "_unique",
    "decoded",
    "decoded.<locals>.<listcomp>",
}

# What one of these was about to wrap or close is left to the garbage collector.
_OF_A_LIFE = {
    "RenewableTransport.replace.<locals>.<listcomp>",
    "DrainingTransport.__init__",
    "close_quietly",
    "discard",
    "unless_abandoned.__aenter__",
    "unless_abandoned.__aexit__",
    "unless_abandoned.__init__",
}


# Who enters a function of the guard from which line, and how often that has happened by then.
_Entry = tuple["CodeType", "CodeType | None", int, int]
_OFTEN = 2
"""How often an entry is tried: a loop enters its functions by the hundred."""


class _OneFault:
    """Raises an error as one function of the guard is entered from one place.

    Args:
        at: The entry; None raises nothing.
    """

    def __init__(self, at: _Entry | None = None) -> None:
        self.place: str | None = None
        self.entries: list[_Entry] = []
        """All that are worth a try, in their order."""
        self._at = at
        self._error: type[Exception] = (MemoryError, RecursionError)[at[-1] % 2 if at else 0]
        self._counts: Counter[tuple[CodeType, CodeType | None, int]] = Counter()
        self._entered: set[FrameType] = set()

    def __call__(self, frame: FrameType, event: str, arg: object) -> None:
        # A coroutine that goes on after a wait is told of as a call too.
        code = frame.f_code
        if not _is_the_guards(code.co_filename) or frame in self._entered:
            return
        self._entered.add(frame)
        if code.co_qualname in _OUTERMOST:
            return
        if any(_is_left_out(caller.f_code.co_filename) for caller in _stack(frame)):
            return
        # `logging` itself tells of what `__str__` raises.
        if code.co_name in _OF_A_TRANSPORT or code.co_name == "__str__":
            return
        caller = frame.f_back
        pair = code, caller and caller.f_code, caller.f_lineno if caller else 0
        self._counts[pair] += 1
        entry = (*pair, self._counts[pair])
        if entry[-1] <= _OFTEN:
            self.entries.append(entry)
        if entry == self._at:
            places = [caller.f_code.co_qualname for caller in _stack(frame)]
            # What closing calls fails as closing does, and so does what asks.
            whole = _OF_A_LIFE | _OF_AN_ANSWER
            self.place = next((place for place in places if place in whole), places[0])
            raise self._error

    @contextmanager
    def armed(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self)
        try:
            yield
        finally:
            sys.settrace(before)
            self._entered.clear()


@cache
def _is_the_guards(path: str) -> bool:
    return "/tinker_guard/" in path


@cache
def _is_left_out(path: str) -> bool:
    """Whether a file's functions have tests of their own for faults, below, or are the fakes'."""
    return path == fakes.__file__ or path.rpartition("/tinker_guard/")[2] in _TELEMETRY


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


async def _run_with(fault: _OneFault, transport: GuardTransport) -> httpx.Response:
    with fault.armed():
        response = await transport.handle_async_request(post())
    await response.aread()
    await response.aclose()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    await transport.aclose()
    return response


class _RefusesTwice:
    """Picks a replica for each request: the first two, and no probe, meet one that is stale."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._requests = 0

    def __call__(self, exchange: Exchange) -> httpx.Response:
        if self._loop is not asyncio.get_running_loop():
            self._loop, self._requests = asyncio.get_running_loop(), 0
        self._requests += not exchange.is_probe
        return ok() if exchange.is_probe or self._requests > 2 else gateway_404()


@pytest.fixture
def _no_tracebacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody reads those of thousands of faults, and to write them takes long."""
    monkeypatch.setattr(logging.Formatter, "formatException", lambda *_: "")


# It counts functions by a trace of its own.
@pytest.mark.tools
@pytest.mark.parametrize(
    ("answer", "warmup", "statuses"),
    [
        pytest.param(lambda _: ok(), 2, {200}, id="healthy"),
        pytest.param(known_from(0.05), 2, {200, 404}, id="cold"),
        pytest.param(lambda e: gateway_404() if e.at < 0.05 else ok(), 0, {200, 404}, id="race"),
        pytest.param(_RefusesTwice(), 0, {200, 404}, id="balanced"),
        pytest.param(
            lambda e: gateway_404() if e.connection == 0 else ok(), 0, {200, 404}, id="stale"
        ),
        pytest.param(lambda _: gateway_404(), 0, {404}, id="gone"),
        pytest.param(lambda _: gateway_404(), 2, {404}, id="gone-while-cold"),
        pytest.param(lambda _: trainer_404(), 2, {404}, id="the-trainers-404"),
    ],
)
@pytest.mark.parametrize("has_plane", [True, False])
@pytest.mark.usefixtures("_no_tracebacks")
def test_a_fault_in_any_function(
    answer: Callable[[Exchange], httpx.Response],
    warmup: int,
    statuses: set[int],
    has_plane: bool,
    caplog: pytest.LogCaptureFixture,
    spans: InMemorySpanExporter,
) -> None:
    """No memory left, or the stack full, at every function in turn."""
    settings = GuardSettings(
        warmup_successes=warmup,
        control_plane=None if has_plane else "none",
        unreached_timeout=0.2,
    )
    entries: list[_Entry | None] = [None]
    for at in entries:
        ROUTES.clear()
        guard_faults.already_logged.clear()
        caplog.clear()
        spans.clear()
        gateway = FakeGateway(answer)
        plane = FakeControlPlane(None if statuses == {404} else "JOB_STATE_RUNNING")
        transport = GuardTransport(
            gateway.new_transport(),
            settings=settings,
            control_plane=plane if has_plane else None,
            new_transport=gateway.new_transport,
        )
        fault = _OneFault(at)
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            response = runner.run(_run_with(fault, transport))
        if at is None:
            entries += fault.entries
        if fault.place is None:
            # By chance, a loop has turned less often.
            continue
        where = f"a fault in {fault.place}"
        assert response.status_code in statuses, where
        assert response.status_code == 200 or response.content in (
            GATEWAY_BODY,
            TRAINER_BODY,
        ), where
        refused = [e for e in gateway.sent if e.response and e.response.status_code == 404]
        assert len(gateway.sent) <= 1 + len(refused), where
        assert gateway.unclosed() == [] or fault.place in _OF_A_LIFE, where
        are_closed = all(there.is_closed for there in gateway.transports)
        assert are_closed or fault.place in _OF_A_LIFE, where
        told = ("fault of its own", "left to itself", "Error.")
        lines = [line for line in caplog.messages if any(words in line for words in told)]
        assert len(lines) == 1 or fault.place in _OF_AN_ANSWER, where
    guard_faults.already_logged.clear()
    assert len(entries) > 5


@pytest.mark.tools
@pytest.mark.parametrize("is_observed", [True, False])
@pytest.mark.parametrize(
    ("answer", "statuses"),
    [
        pytest.param(lambda _: ok(), {200}, id="healthy"),
        pytest.param(
            lambda e: gateway_404() if e.connection == 0 else ok(), {200, 404}, id="stale"
        ),
        pytest.param(lambda _: gateway_404(), {404}, id="gone"),
        pytest.param(lambda _: trainer_404(), {404}, id="the-trainers-404"),
    ],
)
@pytest.mark.usefixtures("_no_tracebacks")
def test_a_fault_in_any_function_below_a_sync_client(
    answer: Callable[[Exchange], httpx.Response],
    statuses: set[int],
    is_observed: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    spans: InMemorySpanExporter,
) -> None:
    """On a warm route: one that is cold goes by the same coroutines as above."""
    if not is_observed:
        for module in ("sync_transport", "transport", "telemetry"):
            monkeypatch.setattr(f"tinker_guard.{module}.enabled", lambda: NOTHING)
    settings = GuardSettings(warmup_successes=0)
    entries: list[_Entry | None] = [None]
    for at in entries:
        ROUTES.clear()
        guard_faults.already_logged.clear()
        caplog.clear()
        spans.clear()
        state = ROUTES.find(post().url)
        assert state is not None
        state.answered(0.0)
        time = VirtualTime()
        monkeypatch.setattr(runtime.THREADS, "clock", time.clock)
        monkeypatch.setattr(runtime.THREADS, "sleep", time.sleep)
        gateway = FakeGateway(answer)
        plane = FakeControlPlane(None if statuses == {404} else "JOB_STATE_RUNNING")
        transport = sync_guard(gateway, plane, settings)
        fault = _OneFault(at)
        with fault.armed():
            response = transport.handle_request(post())
        if at is None:
            entries += fault.entries
        if fault.place is None:
            # By chance, a loop has turned less often.
            continue
        where = f"a fault in {fault.place}"
        assert response.status_code in statuses, where
        bodies = (b'{"ok": true}', GATEWAY_BODY, TRAINER_BODY)
        assert response.read() in bodies, where
        refused = [e for e in gateway.sent if e.response and e.response.status_code == 404]
        assert len(gateway.sent) <= 1 + len(refused), where
        transport.close()
    guard_faults.already_logged.clear()
    assert len(entries) > 1


@pytest.mark.anyio
@pytest.mark.meets_fault
async def test_a_fault_after_the_404_is_gone_sends_once_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Chance:
        def random(self) -> float:
            raise MemoryError

    # Drawn from before each wait, when a 404 that is too long to be kept has been closed.
    monkeypatch.setattr(attempts, "JITTER", Chance())
    gateway = FakeGateway(
        lambda _: (
            httpx.Response(404, stream=TrackedStream([b"x" * BODY_LIMIT] * 2))
            if len(gateway.exchanges) < 2
            else ok()
        )
    )
    assert (await send(guard(gateway, warmup_successes=0))).status_code == 200
    assert len(gateway.sent) == 2
    assert faults(caplog) == [
        "a fault of its own in the recovery; requests go on without it. Please report it."
    ]


@pytest.mark.anyio
@pytest.mark.meets_fault
async def test_a_fault_in_a_probe_is_told_from_an_error_of_its_transport(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("tinker_guard.core.probe.author_of", fail)
    gateway = FakeGateway(lambda e: gateway_404() if e.is_probe else ok())
    assert (await send(guard(gateway, warmup_successes=1))).status_code == 200
    assert faults(caplog) == [
        "a fault of its own in a probe; requests go on without it. Please report it."
    ]


@pytest.mark.anyio
@pytest.mark.meets_fault
async def test_an_error_of_a_probes_transport_is_told_as_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def answer(exchange: Exchange) -> httpx.Response:
        if exchange.is_probe:
            raise MemoryError("the transport's own")
        return ok()

    assert (await send(guard(FakeGateway(answer), warmup_successes=1))).status_code == 200
    assert faults(caplog) == []
    [line] = caplog.messages
    assert line.startswith("a probe's transport raised an error that is none of httpx's")


@pytest.mark.anyio
async def test_an_error_of_the_transport_is_no_fault_of_ours(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def answer(exchange: Exchange) -> httpx.Response:
        if exchange.is_probe:
            return ok()
        if len(gateway.sent) == 1:
            return gateway_404()
        raise MemoryError("the transport's own")

    gateway = FakeGateway(answer)
    with pytest.raises(MemoryError, match="the transport's own"):
        await send(guard(gateway, warmup_successes=0))
    assert len(gateway.sent) == 2
    assert faults(caplog) == []


# -- telemetry -----------------------------------------------------------------------------------


class _Hook(SpanProcessor):
    """Does in the tests' tracer provider what a test sets it to."""

    on_start_do: Callable[[], object] = staticmethod(lambda: None)
    on_end_do: Callable[[ReadableSpan], object] = staticmethod(lambda _: None)

    def on_start(self, span: object, parent_context: object = None) -> None:
        self.on_start_do()

    def on_end(self, span: ReadableSpan) -> None:
        self.on_end_do(span)


@pytest.fixture(scope="session")
def hook(_exporter: InMemorySpanExporter) -> _Hook:
    provider, hook = trace.get_tracer_provider(), _Hook()
    assert isinstance(provider, TracerProvider)
    provider.add_span_processor(hook)
    return hook


def _fail(*_: object, **__: object) -> Any:
    raise MemoryError


@pytest.mark.anyio
@pytest.mark.parametrize(
    "broken",
    [
        "a processor as a span starts",
        "a processor as a span ends",
        "opentelemetry.context.attach",
        "opentelemetry.context.detach",
        "opentelemetry.trace.set_span_in_context",
        "opentelemetry.sdk.trace.TracerProvider.get_tracer",
        "opentelemetry.sdk.trace.Tracer.start_span",
        "opentelemetry.sdk.trace.Span.is_recording",
        "opentelemetry.sdk.trace.Span.set_attribute",
        "opentelemetry.sdk.trace.Span.set_attributes",
        "opentelemetry.sdk.trace.Span.set_status",
        "opentelemetry.sdk.trace.Span.end",
    ],
)
@pytest.mark.meets_fault
async def test_broken_opentelemetry(
    broken: str,
    hook: _Hook,
    spans: InMemorySpanExporter,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if broken.startswith("a processor"):
        monkeypatch.setattr(hook, "on_start_do" if "starts" in broken else "on_end_do", _fail)
    else:
        monkeypatch.setattr(broken, _fail)
    gateway = FakeGateway(lambda e: gateway_404() if e.at < 0.3 else ok())
    transport = guard(gateway, warmup_successes=2)
    for _ in range(3):
        assert (await send(transport)).status_code == 200
    gateway.answer = lambda e: gateway_404() if e.at < 20 else ok()
    assert (await send(transport)).status_code == 200
    said = faults(caplog)
    assert len(said) == len(set(said))
    assert gateway.unclosed() == []


class _StuckExporter(SpanExporter):
    """Hangs as soon as it has something to export."""

    def __init__(self) -> None:
        self.is_stuck = threading.Event()
        self.may_go = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.is_stuck.set()
        self.may_go.wait(30)
        return SpanExportResult.SUCCESS


@pytest.mark.anyio
async def test_an_exporter_that_hangs_holds_up_no_request(
    hook: _Hook, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = _StuckExporter()
    processor = BatchSpanProcessor(
        exporter, schedule_delay_millis=1, max_queue_size=8, max_export_batch_size=4
    )
    monkeypatch.setattr(hook, "on_end_do", processor.on_end)
    gateway = FakeGateway(lambda e: gateway_404() if e.at < 0.3 else ok())
    transport = guard(gateway, warmup_successes=2)
    try:
        assert (await send(transport)).status_code == 200
        assert exporter.is_stuck.wait(30)
        for _ in range(50):
            assert (await send(transport)).status_code == 200
    finally:
        exporter.may_go.set()
        processor.shutdown()  # type: ignore[no-untyped-call]


# -- the control plane ---------------------------------------------------------------------------


class _Plane:
    """A control plane of the user's own, which does what a test gives it."""

    def __init__(self, job_state: Callable[..., Any]) -> None:
        self._job_state = job_state

    def job_state(self, *_: object, **__: object) -> Any:
        return self._job_state()


async def _cancels_itself() -> str:
    task = asyncio.ensure_future(asyncio.sleep(99))
    await asyncio.sleep(0)
    task.cancel()
    await task
    return "JOB_STATE_RUNNING"


async def _raises(error: BaseException) -> str:
    raise error


async def _hangs() -> str:
    await asyncio.Event().wait()
    return "JOB_STATE_RUNNING"


async def _says(value: Any) -> Any:
    return value


async def _anext_of_nothing() -> object:
    return await anext(aiter(TrackedStream([])))


class _BrokenHandler(logging.Handler):
    def handle(self, record: logging.LogRecord) -> bool:
        raise ZeroDivisionError


@pytest.mark.anyio
@pytest.mark.parametrize("state", ["JOB_STATE_RUNNING", None])
@pytest.mark.meets_fault
async def test_a_log_handler_that_raises(state: str | None) -> None:
    gateway = FakeGateway(known_from(2.0))
    plane = FakeControlPlane(state)
    broken = _BrokenHandler()
    guard_faults.logger.addHandler(broken)
    try:
        response = await send(guard(gateway, plane, warmup_successes=0))
    finally:
        guard_faults.logger.removeHandler(broken)
    assert response.status_code == (200 if state else 404)


@pytest.mark.anyio
@pytest.mark.parametrize("warmup", [0, 2])
@pytest.mark.parametrize(
    ("job_state", "said"),
    [
        (lambda: _raises(MemoryError("secret")), "_Plane raised MemoryError."),
        (lambda: _raises(asyncio.CancelledError("secret")), "_Plane cancelled itself."),
        (_cancels_itself, "_Plane cancelled itself."),
        (_anext_of_nothing, "_Plane raised"),
        (lambda: _raises(ExceptionGroup("secret", [OSError("secret")])), "raised ExceptionGroup."),
        (_hangs, "did not answer within 5 s"),
        (lambda: _says(b"JOB_STATE_RUNNING"), "must return None or a state's name"),
        (lambda: _says({"state": "JOB_STATE_RUNNING"}), "must return None or a state's name"),
        (lambda: _says(True), "must return None or a state's name"),
        (lambda: "JOB_STATE_RUNNING", "_Plane raised TypeError."),
        (_fail, "_Plane raised MemoryError."),
    ],
)
async def test_a_control_plane_that_fails(
    job_state: Callable[..., Any], said: str, warmup: int, caplog: pytest.LogCaptureFixture
) -> None:
    gateway, tasks = FakeGateway(lambda _: gateway_404()), asyncio.all_tasks()
    response = await send(guard(gateway, _Plane(job_state), warmup_successes=warmup))
    assert (response.status_code, response.content) == (404, GATEWAY_BODY)
    assert len(gateway.sent) == 1
    assert len([line for line in caplog.messages if said in line]) == 1
    assert faults(caplog) == []
    assert "secret" not in caplog.text
    assert asyncio.all_tasks() == tasks


@pytest.mark.anyio
async def test_a_request_cancelled_while_the_control_plane_is_asked_is_cancelled() -> None:
    transport = guard(FakeGateway(lambda _: gateway_404()), _Plane(_hangs), warmup_successes=0)
    task = asyncio.create_task(send(transport))
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert loop_time() == 0.0


# -- transports ----------------------------------------------------------------------------------


class _HangsToClose(FakeTransport):
    async def aclose(self) -> None:
        await asyncio.Event().wait()


@pytest.mark.anyio
@pytest.mark.parametrize("warmup", [0, 2])
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_fail, "building a new transport"),
        (lambda: None, "building a new transport"),
        (object, "building a new transport"),
        (lambda: httpx.MockTransport(_fail), "a probe"),
    ],
)
@pytest.mark.meets_fault
async def test_transports_that_cannot_be_had(
    make: Callable[[], Any], said: str, warmup: int, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = FakeGateway(lambda e: gateway_404() if e.at < 1 and not e.is_probe else ok())
    transport = GuardTransport(
        gateway.new_transport(),
        settings=GuardSettings(warmup_successes=warmup),
        control_plane=FakeControlPlane(),
        new_transport=make,
    )
    if said == "a probe":
        # Resends go over such a transport too, and what it raises is the transport's.
        with pytest.raises(MemoryError):
            await send(transport)
    else:
        assert (await send(transport)).status_code == 200
        assert len(faults(caplog)) == 1
    assert said in caplog.text


@pytest.mark.anyio
async def test_a_transport_that_hangs_as_it_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    gateway = FakeGateway(lambda e: gateway_404() if e.at < 1 else ok())
    transport = GuardTransport(
        gateway.new_transport(),
        settings=GuardSettings(warmup_successes=3, probe_timeout=1),
        control_plane=FakeControlPlane(),
        new_transport=lambda: _HangsToClose(gateway, 1),
    )
    async with asyncio.timeout(600):
        assert (await send(transport)).status_code == 200
    assert len(faults(caplog)) == 1
    assert "closing a replaced transport" in caplog.text


@pytest.mark.anyio
async def test_a_404_that_hangs_as_it_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    class Stuck(TrackedStream):
        async def aclose(self) -> None:
            await super().aclose()
            await asyncio.Event().wait()

    def answer(exchange: Exchange) -> httpx.Response:
        # Longer than what is looked at, so that it is still open as it is discarded.
        stuck = httpx.Response(404, stream=Stuck([b"x" * BODY_LIMIT] * 2))
        return stuck if len(gateway.sent) == 1 and not exchange.is_probe else ok()

    gateway = FakeGateway(answer)
    assert (await send(guard(gateway, warmup_successes=0))).status_code == 200
    assert CLOSE_SECONDS <= loop_time() < CLOSE_SECONDS + 1
    assert len(faults(caplog)) == 1


# -- settings, uninstalling, loops and clocks ------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("change", ["configure", "switch off", "release"])
@pytest.mark.parametrize("at", [n / 10 for n in range(12)])
async def test_changed_under_way(change: str, at: float) -> None:
    async def answer(exchange: Exchange) -> httpx.Response:
        await asyncio.sleep(0.03)
        is_known = exchange.at < 0.02 if exchange.is_probe else False
        return ok() if is_known or exchange.at >= 1 else gateway_404()

    gateway = FakeGateway(answer)
    transport = guard(gateway, FakeControlPlane(takes=0.02), warmup_successes=2)
    task = asyncio.create_task(send(transport))
    await asyncio.sleep(at)
    if change == "configure":
        transport.configure(GuardSettings(warmup_successes=0, retry_timeout=9), FakeControlPlane())
    elif change == "switch off":
        transport.configure(GuardSettings(enabled=False), FakeControlPlane())
    else:
        transport.release()
    # Seen to its end with what it began with.
    assert (await task).status_code == 200
    assert gateway.unclosed() == []
    later = loop_time()
    assert (await send(transport)).status_code == 200
    assert loop_time() - later < 0.05
    await transport.aclose()


@pytest.mark.anyio
@pytest.mark.parametrize(
    "settings",
    [
        GuardSettings(),
        GuardSettings(routes=("/other/{job}",)),
        GuardSettings(routes=("/mine/{job}/api",)),
        GuardSettings(enabled=False),
    ],
    ids=["no-routes", "others", "longer", "off"],
)
async def test_a_route_that_other_settings_do_not_explain(
    settings: GuardSettings, caplog: pytest.LogCaptureFixture
) -> None:
    """A request that was on it when it was sent is seen to its end."""

    async def answer(exchange: Exchange) -> httpx.Response:
        if not exchange.is_probe and loop_time() >= 1:
            await asyncio.sleep(0.2)
        return gateway_404() if 1 <= exchange.at < 2 and not exchange.is_probe else ok()

    transport = guard(FakeGateway(answer), routes=("/mine/{job}",))
    request = httpx.Request("GET", f"{fakes.ORIGIN}/mine/job-1/api/v1/get_info")
    assert (await transport.handle_async_request(request)).status_code == 200
    await asyncio.sleep(1 - loop_time())
    task = asyncio.create_task(transport.handle_async_request(request))
    await asyncio.sleep(0.1)
    transport.configure(settings, None)
    assert (await task).status_code == 200
    assert faults(caplog) == []


@pytest.mark.anyio
@pytest.mark.parametrize("jump", [3600.0, 1e9])
@pytest.mark.parametrize("warmup", [0, 2])
async def test_time_that_jumps_ends_a_wait_and_no_more(jump: float, warmup: int) -> None:
    """A machine that slept: the budget is spent at once, and what there is is handed back."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    gateway = FakeGateway(lambda _: gateway_404())
    transport = guard(gateway, warmup_successes=warmup)
    task = asyncio.create_task(send(transport))
    await asyncio.sleep(1)
    loop.now += jump
    response = await task
    assert (response.status_code, response.content) == (404, GATEWAY_BODY)
    assert loop_time() < jump + 10
    gateway.answer = lambda _: ok()
    assert (await send(transport)).status_code == 200


@pytest.mark.parametrize("at", [0.0, 0.01, 0.05, 0.5])
@pytest.mark.parametrize("warmup", [0, 2])
def test_a_loop_that_is_closed_under_a_race(
    at: float, warmup: int, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = FakeGateway(lambda _: gateway_404())
    transport = guard(gateway, FakeControlPlane(takes=0.02), warmup_successes=warmup)
    loop = VirtualTimeLoop()
    task = loop.create_task(send(transport))
    loop.run_until_complete(asyncio.sleep(at))
    loop.close()
    ended = weakref.ref(task)
    del task
    gc.collect()
    gateway.answer = lambda _: ok()
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        assert runner.run(send(transport)).status_code == 200
    gc.collect()
    assert ended() is None
    assert faults(caplog) == []


@pytest.mark.parametrize("at", [0.01, 0.15, 1.5])
@pytest.mark.parametrize("is_waiting", [False, True])
@pytest.mark.parametrize("warmup", [0, 2])
def test_what_a_closed_loop_leaves_cancels_nobody(
    at: float, warmup: int, is_waiting: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The garbage collector ends it wherever it happens to run, here in a task of another loop.

    Found by the simulation: a timer that bounds the closing of a connection hit that task.
    """

    async def answer(exchange: Exchange) -> httpx.Response:
        await asyncio.sleep(0.1)
        # Of later ones, the loop is closed in the middle of the body.
        return gateway_404() if exchange.at < 1 else httpx.Response(404, stream=SlowStream())

    class SlowStream(TrackedStream):
        def __init__(self) -> None:
            super().__init__([b"{"], pause=0.5)

        async def aclose(self) -> None:
            await asyncio.sleep(0.1)
            await super().aclose()

    class SlowToClose(FakeTransport):
        async def aclose(self) -> None:
            await asyncio.sleep(0.1)
            await super().aclose()

    def new_transport() -> SlowToClose:
        return SlowToClose(gateway, 1)

    gateway = FakeGateway(answer)
    settings = GuardSettings(warmup_successes=warmup)
    plane = FakeControlPlane(takes=0.02)
    transport = GuardTransport(
        new_transport(), settings=settings, control_plane=plane, new_transport=new_transport
    )

    async def wait() -> None:
        await until_routable(
            BASE, settings=settings, control_plane=plane, new_transport=new_transport
        )

    loop = VirtualTimeLoop()
    begin = wait if is_waiting else partial(send, transport)
    tasks = [loop.create_task(begin()) for _ in range(3)]
    loop.run_until_complete(asyncio.sleep(at))
    loop.close()

    async def innocent() -> bool:
        # Tasks that wait for others are known to the route until another loop's request comes, and
        # those that read a body to its answer.
        tasks.clear()
        ROUTES.clear()
        gateway.exchanges.clear()
        gc.collect()
        await asyncio.sleep(10 * CLOSE_SECONDS)
        return True

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        assert runner.run(innocent())
    assert faults(caplog) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.anyio
async def test_a_fork_in_the_middle_of_a_warmup() -> None:
    """The child waits for nobody that only its parent has; the parent goes on."""
    gateway = FakeGateway(known_from(1.0))
    transport = guard(gateway, warmup_successes=2)
    task = asyncio.create_task(send(transport))
    await asyncio.sleep(0.5)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        gateway.answer = known_from(0.3)
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            is_found = runner.run(send(transport)).status_code == 200
            os._exit(0 if is_found and runner.get_loop().time() < 1 else 1)
    _, status = os.waitpid(child, 0)  # noqa: ASYNC222 - virtual time stands still meanwhile
    assert os.waitstatus_to_exitcode(status) == 0
    assert (await task).status_code == 200
    assert 1.0 <= loop_time() < 1.5


# -- the end of the process ------------------------------------------------------------------------

_IN_FLIGHT = """
import asyncio, logging, sys, threading
import httpx
from tinker_guard import GuardSettings, GuardTransport

logging.disable()
base_url, key, how, warmup = sys.argv[1:]
make = httpx.AsyncHTTPTransport
transport = GuardTransport(
    make(), settings=GuardSettings(warmup_successes=int(warmup)), new_transport=make
)
waiting = threading.Event()

async def run():
    headers = {"X-Api-Key": key}
    async with httpx.AsyncClient(transport=transport, base_url=base_url, headers=headers) as client:
        requests = [asyncio.create_task(client.get("/api/v1/healthz")) for _ in range(5)]
        await asyncio.sleep(0.5)
        print("in flight:", sum(not request.done() for request in requests), flush=True)
        waiting.set()
        await asyncio.gather(*requests)

if how == "interrupt":
    import os, signal
    # Programs that are started in the background ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=lambda: (waiting.wait(), os.kill(os.getpid(), signal.SIGINT))).start()
    try:
        asyncio.run(run())
    except KeyboardInterrupt:
        sys.exit(7)
# As the SDK does it: a loop on a thread that nobody waits for.
threading.Thread(target=lambda: asyncio.run(run()), daemon=True).start()
waiting.wait()
sys.exit(7)
"""


@pytest.mark.sockets
@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize("how", ["exit", "interrupt"])
def test_the_interpreter_ends_with_requests_in_flight(how: str, warmup: int) -> None:
    # Not found from the first request on, or known to the probes of the warmup alone.
    with LocalGateway(Fault(races=(Race("healthz", 1, 60.0),), route_known_after=(60.0,))) as there:
        given = there.base_url, there.api_key, how, warmup
        ended = python("-c", _IN_FLIGHT, *given)
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, "in flight: 5\n", "")
