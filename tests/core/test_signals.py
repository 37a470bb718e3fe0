"""What a program raises below a sync client is its own, as a time limit of its own is."""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

import httpx
import pytest

from testkit.fakes import (
    GATEWAY_BODY,
    FakeControlPlane,
    FakeGateway,
    TrackedStream,
    gateway_404,
    known_from,
    ok,
    post,
)
from testkit.threads import SyncFakeTransport
from tests.core.test_both_transports import sync_guard
from tinker_guard import GuardSettings, SyncGuardTransport
from tinker_guard.transports import runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from testkit.fakes import Exchange
    from testkit.threads import VirtualTime


_T = TypeVar("_T")


class TimeLimitError(Exception):
    """As RQ's and Celery's."""


class ScopeCancelledError(asyncio.CancelledError):
    """As Prefect's."""


ERRORS = [TimeLimitError, ScopeCancelledError, TimeoutError, OSError, ValueError]


def end_it(error: type[BaseException], *_: object) -> NoReturn:
    raise error("over")


class _Limit:
    def __init__(self, error: type[BaseException]) -> None:
        self._error = error

    def end(self, *_: object) -> NoReturn:
        raise self._error("over")

    __call__ = end


def _function(error: type[BaseException]) -> Callable[..., object]:
    def handler(*_: object) -> NoReturn:
        raise error("over")

    return handler


def _one_shot(error: type[BaseException]) -> Callable[..., object]:
    """As those of time limits that put back what was there before."""

    def handler(_: int, frame: object) -> NoReturn:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        end_it(error)

    return handler


def _one_shot_of_any_arguments(error: type[BaseException]) -> Callable[..., object]:
    def handler(*_: object) -> NoReturn:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        raise error("over")

    return handler


def _walking(error: type[BaseException]) -> Callable[..., object]:
    """As those that show where the program was."""

    def handler(_: int, frame: FrameType | None) -> NoReturn:
        while frame is not None:
            frame = frame.f_back
        raise error("over")

    return handler


HANDLERS: list[Callable[[type[BaseException]], Callable[..., object]]] = [
    _function,
    lambda error: _Limit(error).end,
    _Limit,
    lambda error: partial(end_it, error),
    # What raises need not be the handler itself.
    lambda error: lambda *_: end_it(error),
    # It need not be installed any more, nor have code of its own, nor keep what it was given.
    _one_shot,
    _one_shot_of_any_arguments,
    lambda error: lru_cache(_function(error)),
    lambda error: cast("Callable[..., object]", staticmethod(_function(error))),
    _walking,
]


@pytest.fixture(autouse=True)
def _own_handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


def _ring() -> None:
    signal.raise_signal(signal.SIGUSR1)


def _while_handling_one(call: Callable[[], _T]) -> _T:
    try:
        _ring()
    except TimeLimitError:
        return call()
    raise AssertionError


class _RingingPlane(FakeControlPlane):
    async def job_state(self, *args: Any, **more: Any) -> str | None:
        _ring()
        return await super().job_state(*args, **more)


class _RingingStream(TrackedStream):
    async def __aiter__(self) -> Any:
        _ring()
        async for chunk in super().__aiter__():
            yield chunk


def _probed(exchange: Exchange) -> httpx.Response:
    if exchange.is_probe:
        _ring()
    return ok()


def _resent(exchange: Exchange) -> httpx.Response:
    if exchange.connection > 0 and not exchange.is_probe:
        _ring()
    return known_from(1.0)(exchange)


def _read(_: Exchange) -> httpx.Response:
    response = gateway_404()
    response.stream = _RingingStream([GATEWAY_BODY])
    return response


WHERE = {
    "a probe at the gate": (_probed, FakeControlPlane, 3),
    "a lookup": (known_from(5.0), _RingingPlane, 0),
    "a lookup at the gate": (known_from(5.0), _RingingPlane, 3),
    "a resend": (_resent, FakeControlPlane, 0),
    "a 404's body": (_read, FakeControlPlane, 0),
}


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("handler", HANDLERS)
def test_it_reaches_the_caller(
    where: str,
    error: type[BaseException],
    handler: Callable[[type[BaseException]], Callable[..., Any]],
    virtual_time: VirtualTime,
) -> None:
    answer, plane, warmup_successes = WHERE[where]
    guard = sync_guard(
        FakeGateway(answer), plane(), GuardSettings(warmup_successes=warmup_successes)
    )
    signal.signal(signal.SIGUSR1, handler(error))
    with pytest.raises(error, match="over") as raised:
        guard.handle_request(post())
    assert type(raised.value) is error
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None


class _Rings:
    """A sync transport on which a signal comes as it is built, or closed."""

    def __init__(self, gateway: FakeGateway, *, is_built: bool) -> None:
        self._is_built = is_built
        self._gateway = gateway

    def __call__(self) -> SyncFakeTransport:
        if self._is_built:
            _ring()
        transport = SyncFakeTransport(self._gateway.new_transport())
        transport.close = _ring  # type: ignore[method-assign]
        return transport


@pytest.mark.parametrize("is_built", [True, False])
@pytest.mark.parametrize("error", ERRORS)
def test_so_does_what_is_raised_as_a_transport_is_built_or_closed(
    is_built: bool, error: type[BaseException], virtual_time: VirtualTime
) -> None:
    gateway = FakeGateway(known_from(5.0))
    guard = SyncGuardTransport(
        SyncFakeTransport(gateway.new_transport()),
        settings=GuardSettings(warmup_successes=0),
        control_plane=FakeControlPlane(),
        new_transport=_Rings(gateway, is_built=is_built),
    )
    signal.signal(signal.SIGUSR1, _function(error))
    with pytest.raises(error, match="over"):
        guard.handle_request(post())


@pytest.mark.parametrize("error", ERRORS)
def test_so_does_what_is_raised_as_an_answer_is_closed(
    error: type[BaseException], virtual_time: VirtualTime
) -> None:
    class Stream(TrackedStream):
        async def aclose(self) -> None:
            await super().aclose()
            _ring()

    def answer(_: Exchange) -> httpx.Response:
        response = ok()
        response.stream = Stream([b"{}"])
        return response

    signal.signal(signal.SIGUSR1, _function(error))
    guard = sync_guard(FakeGateway(answer), FakeControlPlane(), GuardSettings())
    with pytest.raises(error, match="over"):
        guard.handle_request(post())


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("warmup_successes", [0, 3])
def test_so_does_what_is_raised_in_a_wait(
    error: type[BaseException],
    warmup_successes: int,
    virtual_time: VirtualTime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever raises it: a thread may be given an exception from another one."""

    def sleep(_: float) -> None:
        raise error("over")

    monkeypatch.setattr(runtime.THREADS, "sleep", sleep)
    guard = sync_guard(
        FakeGateway(known_from(5.0)),
        FakeControlPlane(),
        GuardSettings(warmup_successes=warmup_successes),
    )
    with pytest.raises(error, match="over"):
        guard.handle_request(post())


@pytest.mark.parametrize("mapped", [httpx.ReadTimeout, httpx.ReadError])
def test_so_does_what_a_transport_has_made_of_it(
    mapped: type[httpx.TransportError], virtual_time: VirtualTime
) -> None:
    """Httpx makes its own errors of TimeoutError and OSError, with and without a guard."""

    def answer(exchange: Exchange) -> httpx.Response:
        if not exchange.is_probe:
            return ok()
        try:
            _ring()
        except OSError as error:
            try:
                raise ConnectionError from error
            except ConnectionError:
                raise mapped("over")  # noqa: B904 - as httpcore's
        raise AssertionError

    signal.signal(signal.SIGUSR1, _function(TimeoutError))
    guard = sync_guard(FakeGateway(answer), FakeControlPlane(), GuardSettings())
    with pytest.raises(mapped, match="over"):
        guard.handle_request(post())


def test_a_probe_that_fails_while_the_program_handles_such_an_error_has_failed(
    virtual_time: VirtualTime,
) -> None:
    """It cleans up, say. What it is handling is the context of all that is raised."""

    def answer(exchange: Exchange) -> httpx.Response:
        if exchange.is_probe:
            raise httpx.ConnectError("no")
        return ok()

    signal.signal(signal.SIGUSR1, _function(TimeLimitError))
    guard = sync_guard(FakeGateway(answer), FakeControlPlane(), GuardSettings())
    assert _while_handling_one(lambda: guard.handle_request(post())).status_code == 200


def test_so_has_one_whose_answer_breaks_off(virtual_time: VirtualTime) -> None:
    class Broken(TrackedStream):
        async def __aiter__(self) -> Any:
            yield b"{"
            raise httpx.ReadError("no")

    def answer(exchange: Exchange) -> httpx.Response:
        response = ok()
        if exchange.is_probe:
            response.stream = Broken([])
        return response

    signal.signal(signal.SIGUSR1, _function(TimeLimitError))
    guard = sync_guard(FakeGateway(answer), FakeControlPlane(), GuardSettings())
    assert _while_handling_one(lambda: guard.handle_request(post())).status_code == 200


def _fail(*_: object) -> NoReturn:
    raise httpx.ConnectError("no")


@pytest.mark.parametrize(
    "call",
    [
        lambda frame: _fail(frame),
        # As a tracer is.
        lambda frame: _fail(frame, "line", None),
        lambda frame: _fail(1, frame.f_back),
        lambda frame: _fail(1, None),
    ],
)
def test_what_is_given_a_frame_in_another_way_is_no_handler(
    call: Callable[[FrameType | None], NoReturn], virtual_time: VirtualTime
) -> None:
    def answer(exchange: Exchange) -> httpx.Response:
        if exchange.is_probe:
            call(inspect.currentframe())
        return ok()

    guard = sync_guard(FakeGateway(answer), FakeControlPlane(), GuardSettings())
    assert guard.handle_request(post()).status_code == 200


@pytest.mark.parametrize("handler", [print, signal.default_int_handler, signal.SIG_IGN])
def test_a_handler_without_code_of_its_own_raises_nothing(
    handler: Any, virtual_time: VirtualTime
) -> None:
    def answer(exchange: Exchange) -> httpx.Response:
        if exchange.is_probe:
            raise httpx.ConnectError("no")
        return ok()

    signal.signal(signal.SIGUSR1, handler)
    guard = sync_guard(FakeGateway(answer), FakeControlPlane(), GuardSettings())
    assert guard.handle_request(post()).status_code == 200


# -- of the transport, or of another thread --------------------------------------------------------


def _of_a_library(*bases: type[BaseException], module: str = "limits") -> type[BaseException]:
    return type("TimeLimitError", bases, {"__module__": module})


def _put_in(error: type[BaseException]) -> None:
    """Put an error into this thread, as another one would."""
    thread = ctypes.c_ulong(threading.get_ident())
    ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(error))


def _raise_in_c(error: type[BaseException]) -> None:
    ctypes.pythonapi.PyErr_SetNone(ctypes.py_object(error))


def _raise(error: type[BaseException]) -> None:
    raise error


@pytest.mark.parametrize(
    ("fail", "error"),
    [
        pytest.param(_raise, _of_a_library(Exception), id="another library's"),
        pytest.param(_raise_in_c, ValueError, id="Python's own"),
        pytest.param(_raise_in_c, _of_a_library(Exception), id="a C library's"),
        # What another thread puts into this one cannot be told from it.
        pytest.param(_put_in, RuntimeError, id="one of Python's own that is put in"),
        pytest.param(_put_in, TimeLimitError, id="one that is put in"),
    ],
)
@pytest.mark.meets_fault
def test_what_a_transport_raises_is_a_failed_probe_and_no_fault_of_the_guard(
    fail: Callable[[type[BaseException]], None],
    error: type[BaseException],
    virtual_time: VirtualTime,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def answer(exchange: Exchange) -> httpx.Response:
        if exchange.is_probe:
            fail(error)
        return ok()

    guard = sync_guard(FakeGateway(answer), FakeControlPlane(), GuardSettings())
    assert guard.handle_request(post()).status_code == 200
    [line] = caplog.messages
    assert line.startswith("a probe's transport raised an error that is none of httpx's")


# -- what is no exception of the program's -------------------------------------------------------


class State(Enum):
    RUNNING = "running"


class _StrictPlane(FakeControlPlane):
    async def job_state(self, *_: Any, **__: Any) -> str | None:
        return State("preempting").value


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN, _function(TimeLimitError)])
def test_a_value_that_an_enumeration_lacks_is_the_control_planes_failure(
    handler: Any, virtual_time: VirtualTime
) -> None:
    """`signal.getsignal` names handlers that are none by an enumeration of its own."""
    signal.signal(signal.SIGUSR1, handler)
    settings = GuardSettings(warmup_successes=0, retry_timeout=2.0)
    guard = sync_guard(FakeGateway(lambda _: gateway_404()), _StrictPlane(), settings)
    assert guard.handle_request(post()).status_code == 404


def test_in_another_thread_a_probe_has_failed(virtual_time: VirtualTime) -> None:
    """Handlers run in the main thread alone."""

    def answer(exchange: Exchange) -> httpx.Response:
        if exchange.is_probe:
            raise httpx.ConnectError("no")
        return ok()

    guard = sync_guard(FakeGateway(answer), FakeControlPlane(), GuardSettings())
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(guard.handle_request, post()).result(10).status_code == 200


def test_what_is_raised_as_a_thread_waits_for_another_is_no_failure() -> None:
    class Changed:
        def wait(self, _: float | None) -> bool:
            raise TimeLimitError("over")

    async def wait() -> None:
        try:
            runtime.wait(cast("threading.Condition", Changed()))
        except Exception as error:
            raise AssertionError from error

    with pytest.raises(TimeLimitError):
        runtime.run_blocking(wait())


def test_errors_that_are_tied_to_a_ring_are_followed_once(virtual_time: VirtualTime) -> None:
    first, second = httpx.ConnectError("no"), httpx.ConnectError("no")

    def answer(exchange: Exchange) -> httpx.Response:
        if exchange.is_probe:
            first.__context__, second.__context__ = second, first
            raise first
        return ok()

    guard = sync_guard(FakeGateway(answer), FakeControlPlane(), GuardSettings())
    assert guard.handle_request(post()).status_code == 200


@pytest.mark.parametrize(
    ("error", "outcome", "error_type"),
    [
        (TimeLimitError, "error", f"{__name__}.TimeLimitError"),
        (ScopeCancelledError, "cancelled", None),
    ],
)
def test_its_span_names_it(
    error: type[BaseException],
    outcome: str,
    error_type: str | None,
    virtual_time: VirtualTime,
    spans: InMemorySpanExporter,
) -> None:
    signal.signal(signal.SIGUSR1, _function(error))
    guard = sync_guard(FakeGateway(_probed), FakeControlPlane(), GuardSettings())
    with pytest.raises(error):
        guard.handle_request(post())
    [root] = [span for span in spans.get_finished_spans() if span.parent is None]
    attributes = root.attributes or {}
    assert attributes["tinker_guard.outcome"] == outcome
    assert attributes.get("error.type") == error_type
