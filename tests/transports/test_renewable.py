from __future__ import annotations

import asyncio
import copy
import gc
import logging
import os
import signal
import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import httpx
import pytest

from testkit.fakes import FakeGateway, FakeTransport, ReadingTransport, ok, post, settle, tracked
from tinker_guard.transports.borrowed import BorrowedTransport
from tinker_guard.transports.draining import DrainingTransport
from tinker_guard.transports.locked import renew_locks
from tinker_guard.transports.renewable import RenewableTransport, emits_client_span
from tinker_guard.transports.runtime import run_blocking

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio


async def test_a_stale_transport_is_replaced_once() -> None:
    gateway = FakeGateway()
    first = gateway.new_transport()
    line = RenewableTransport(first, gateway.new_transport)
    await line.replace(first)
    second = line.transport
    await line.replace(first)
    assert line.transport is second is not first
    await line.transport.handle_async_request(post())
    assert gateway.exchanges[-1].connection == 1


async def test_without_a_factory_nothing_is_replaced() -> None:
    transport = FakeGateway().new_transport()
    line = RenewableTransport(transport)
    await line.replace(transport)
    assert line.transport is transport


@pytest.mark.meets_fault
async def test_a_factory_that_fails_leaves_the_transport(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> FakeTransport:
        raise OSError("no more descriptors")

    transport = FakeGateway().new_transport()
    line = RenewableTransport(transport, fail)
    with caplog.at_level(logging.WARNING):
        await line.replace(transport)
        await line.replace(transport)
    assert line.transport is transport
    assert [record.name for record in caplog.records] == ["tinker_guard"]


@pytest.mark.meets_fault
async def test_a_factory_of_something_else_is_told_what_to_make(
    caplog: pytest.LogCaptureFixture,
) -> None:
    transport = FakeGateway().new_transport()
    line = RenewableTransport(transport, lambda: None)  # type: ignore[arg-type, return-value]
    await line.replace(transport)
    assert line.transport is transport
    assert "new_transport must return an httpx.AsyncBaseTransport" in caplog.text


@pytest.mark.parametrize("is_the_first", [True, False])
async def test_a_factory_that_returns_what_is_there_already_closes_nothing(
    is_the_first: bool,
) -> None:
    """Requests in flight on it would end."""
    gateway = FakeGateway()
    first = gateway.new_transport()
    always = first if is_the_first else gateway.new_transport()
    line = RenewableTransport(first, lambda: always)
    for _ in range(3):
        await line.replace(line.transport)
        async with line.lookup_transport():
            pass
    assert not first.is_closed
    assert not always.is_closed


async def test_a_replaced_one_is_closed_with_its_last_body() -> None:
    gateway = FakeGateway(lambda _: tracked(200, b"body", "text/plain"))
    line = RenewableTransport(gateway.new_transport(), gateway.new_transport)
    await line.replace(line.transport)
    stale = gateway.transports[1]
    one, two = [await line.transport.handle_async_request(post()) for _ in range(2)]
    await line.replace(line.transport)
    assert gateway.transports[2].connection == 2
    assert await one.aread() == b"body"
    assert not stale.is_closed
    assert await two.aread() == b"body"
    assert stale.is_closed


async def test_a_body_that_is_closed_twice_counts_once() -> None:
    gateway = FakeGateway(lambda _: tracked(200, b"body", "text/plain"))
    line = RenewableTransport(gateway.new_transport(), gateway.new_transport)
    await line.replace(line.transport)
    one, two = [await line.transport.handle_async_request(post()) for _ in range(2)]
    await line.replace(line.transport)
    for response, is_closed in ((one, False), (one, False), (two, True)):
        assert isinstance(response.stream, httpx.AsyncByteStream)
        await response.stream.aclose()
        assert gateway.transports[1].is_closed is is_closed


async def test_those_that_are_closed_are_forgotten() -> None:
    gateway = FakeGateway()
    line = RenewableTransport(gateway.new_transport(), gateway.new_transport)
    replaced: list[weakref.ref[httpx.AsyncBaseTransport]] = []
    for _ in range(100):
        await line.replace(line.transport)
        replaced.append(weakref.ref(line.transport))
    gc.collect()
    # The one in use, and the last one that was closed.
    assert sum(reference() is not None for reference in replaced) <= 2
    assert [transport.is_closed for transport in gateway.transports] == [False, *[True] * 99, False]


@pytest.mark.parametrize("status_code", [200, 404, 503])
async def test_an_answer_that_something_below_has_read_is_in_flight_no_more(
    status_code: int,
) -> None:
    def build() -> ReadingTransport:
        transport = ReadingTransport(gateway, len(gateway.transports))
        gateway.transports.append(transport)
        return transport

    gateway = FakeGateway(lambda _: tracked(status_code, b"body", "text/plain"))
    line = RenewableTransport(build(), build)
    await line.replace(line.transport)
    response = await line.transport.handle_async_request(post())
    assert response.content == b"body"
    await line.replace(line.transport)
    assert [transport.is_closed for transport in gateway.transports] == [False, True, False]


@pytest.mark.parametrize("others", [0, 1])
async def test_a_request_that_lost_its_event_loop_is_in_flight_no_more(others: int) -> None:
    async def hang(_: object) -> httpx.Response:
        await is_answered.wait()
        return ok()

    is_answered = asyncio.Event()
    gateway = FakeGateway(hang)
    draining = DrainingTransport(gateway.new_transport())
    lost = draining.handle_async_request(post())
    lost.send(None)
    tasks = [asyncio.create_task(draining.handle_async_request(post())) for _ in range(others)]
    await settle()
    # As the garbage collector does.
    lost.close()
    await draining.drain()
    assert gateway.transports[0].is_closed is (others == 0)
    is_answered.set()
    for response in await asyncio.gather(*tasks):
        assert not gateway.transports[0].is_closed
        await response.aclose()
    assert gateway.transports[0].is_closed


async def test_a_replaced_one_is_closed_after_a_cancellation_too() -> None:
    async def hang(_: object) -> httpx.Response:
        await asyncio.Event().wait()
        return ok()

    gateway = FakeGateway(hang)
    line = RenewableTransport(gateway.new_transport(), gateway.new_transport)
    await line.replace(line.transport)
    requests = [
        asyncio.ensure_future(line.transport.handle_async_request(post())) for _ in range(2)
    ]
    await settle()
    await line.replace(line.transport)
    for request, is_closed in zip(requests, (False, True), strict=True):
        request.cancel()
        await settle()
        assert gateway.transports[1].is_closed is is_closed
        assert request.cancelled()


async def test_a_replaced_one_is_closed_after_an_error_too() -> None:
    async def fail(_: object) -> httpx.Response:
        await line.replace(line.transport)
        raise httpx.ReadError("cut")

    gateway = FakeGateway(fail)
    line = RenewableTransport(gateway.new_transport(), gateway.new_transport)
    await line.replace(line.transport)
    with pytest.raises(httpx.ReadError):
        await line.transport.handle_async_request(post())
    assert gateway.transports[1].is_closed
    assert not gateway.transports[2].is_closed


async def test_one_that_does_not_close_keeps_no_other_open() -> None:
    @dataclass
    class Stubborn(httpx.AsyncBaseTransport):
        """Not hashable, and raises when it is closed."""

        name: str

        async def aclose(self) -> None:
            raise OSError(self.name)

    gateway = FakeGateway()
    stubborn = Stubborn("first")
    line = RenewableTransport(stubborn, gateway.new_transport)
    await line.replace(stubborn)
    with pytest.raises(OSError, match="first"):
        await line.aclose()
    assert gateway.transports[0].is_closed
    await line.replace(line.transport)
    assert len(gateway.transports) == 1


async def test_released_it_goes_back_to_the_first_for_good(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gateway = FakeGateway(lambda _: ok())
    first = gateway.new_transport()
    line = RenewableTransport(first, gateway.new_transport)
    await line.replace(first)
    in_flight = await line.transport.handle_async_request(post())
    assert line.release() is first is line.transport
    await line.replace(first)
    assert line.transport is first
    await in_flight.aread()
    assert [transport.is_closed for transport in gateway.transports] == [False, True]
    assert caplog.messages == []


async def test_released_an_idle_one_is_closed_with_the_line() -> None:
    gateway = FakeGateway()
    line = RenewableTransport(gateway.new_transport(), gateway.new_transport)
    await line.replace(line.transport)
    line.release()
    await line.aclose()
    assert [transport.is_closed for transport in gateway.transports] == [True, True]


async def test_released_after_it_was_closed_it_still_refuses_what_waits() -> None:
    gateway = FakeGateway(lambda _: ok())
    first = gateway.new_transport()
    line = RenewableTransport(first, gateway.new_transport)
    await line.replace(first)
    await line.aclose()
    assert line.release() is first
    with pytest.raises(httpx.TransportError, match="closed"):
        await line.transport.handle_async_request(post())
    assert gateway.exchanges == []


def test_threads_that_replace_it_one_after_the_other_leave_none_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Even if one comes to a stop as it looks through those that were replaced before."""
    gateway = FakeGateway(lambda _: tracked(200, b"body", "text/plain"))
    line = RenewableTransport(gateway.new_transport(), gateway.new_transport)
    looks, may_go_on = threading.Event(), threading.Event()

    def is_closed(_: DrainingTransport) -> bool:
        if threading.current_thread() is first:
            looks.set()
            may_go_on.wait(0.2)
        return False

    async def send_and_replace() -> None:
        # Its answer is never read to the end.
        sent_on = line.transport
        unread.append(await sent_on.handle_async_request(post()))
        await line.replace(sent_on)

    unread: list[httpx.Response] = []
    run_blocking(line.replace(line.transport))
    run_blocking(send_and_replace())
    watched = property(is_closed, lambda *_: None)
    monkeypatch.setattr(DrainingTransport, "is_closed", watched, raising=False)
    first, second = [
        threading.Thread(target=lambda: run_blocking(send_and_replace())) for _ in range(2)
    ]
    first.start()
    assert looks.wait(10)
    second.start()
    second.join(0.5)
    may_go_on.set()
    first.join(10)
    second.join(10)
    run_blocking(line.aclose())
    assert all(transport.is_closed for transport in gateway.transports)


async def test_threads_that_reopen_it_at_the_same_time_have_the_same_one() -> None:
    """What one of two lines was replaced by would never be closed."""
    gateway = FakeGateway()
    closed = RenewableTransport(gateway.new_transport(), gateway.new_transport)
    await closed.aclose()
    line = closed.reopened()
    assert line is not closed
    assert closed.reopened() is line is line.reopened()
    await line.replace(line.transport)
    await line.aclose()
    assert closed.reopened() is not line
    assert [transport.is_closed for transport in gateway.transports] == [True, True]


def in_a_child(check: Callable[[], None]) -> bool:
    child = os.fork()
    if child == 0:
        # Ended by a signal if it hangs.
        signal.alarm(10)
        check()
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def in_this_process(check: Callable[[], None]) -> bool:
    """No measurement of branches looks into a child."""
    renew_locks()
    check()
    return True


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize(
    "where",
    [
        pytest.param(
            in_a_child,
            marks=pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
        ),
        in_this_process,
    ],
)
@pytest.mark.parametrize("moved", [lambda line: line, copy.copy, copy.deepcopy])
def test_a_child_waits_for_no_thread_that_only_its_parent_has(
    where: Callable[[Callable[[], None]], bool],
    moved: Callable[[RenewableTransport], RenewableTransport],
) -> None:
    """One may build a new transport in the moment of the fork."""
    begun, may_end = threading.Event(), threading.Event()

    def build() -> httpx.AsyncBaseTransport:
        begun.set()
        assert may_end.wait(10)
        return httpx.MockTransport(lambda _: ok())

    line = moved(RenewableTransport(httpx.MockTransport(lambda _: ok()), build))
    builder = threading.Thread(target=lambda: asyncio.run(line.replace(line.transport)))
    builder.start()
    assert begun.wait(10)
    try:
        assert where(lambda: asyncio.run(line.aclose()))
    finally:
        may_end.set()
        builder.join(10)


@pytest.mark.anyio
async def test_closing_the_line_closes_them_all() -> None:
    gateway = FakeGateway(lambda _: ok())
    line = RenewableTransport(gateway.new_transport(), gateway.new_transport)
    for _ in range(3):
        await line.transport.handle_async_request(post())
        await line.replace(line.transport)
    await line.aclose()
    assert [transport.is_closed for transport in gateway.transports] == [True] * 4


async def test_a_borrowed_transport_closes_its_owner() -> None:
    transport = FakeGateway().new_transport()
    client = httpx.AsyncClient(transport=transport)
    borrowed = BorrowedTransport(transport, client)
    assert (await borrowed.handle_async_request(post())).status_code == 200
    await borrowed.aclose()
    assert client.is_closed
    assert transport.is_closed


async def test_pyqwest_traces_its_own_exchanges() -> None:
    pyqwest = pytest.importorskip("pyqwest", reason="comes with the tinker SDK")
    from pyqwest.httpx import AsyncPyqwestTransport

    transport = AsyncPyqwestTransport(pyqwest.HTTPTransport())
    client = httpx.AsyncClient(transport=FakeGateway().new_transport())
    assert emits_client_span(transport)
    assert emits_client_span(BorrowedTransport(transport, client))
    assert not emits_client_span(FakeGateway().new_transport())


class _Retries(httpx.AsyncBaseTransport):
    """As httpx-retries, which holds one transport for each kind of client."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self.sync_transport = httpx.HTTPTransport()
        self.transport = transport

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self.transport.handle_async_request(request)


def test_a_transport_is_looked_for_below_those_that_wrap_it() -> None:
    pyqwest = pytest.importorskip("pyqwest", reason="comes with the tinker SDK")
    from pyqwest.httpx import AsyncPyqwestTransport

    class Own(AsyncPyqwestTransport):  # type: ignore[misc]
        pass

    own = Own(pyqwest.HTTPTransport())
    assert emits_client_span(own)
    assert emits_client_span(_Retries(_Retries(own)))
    assert not emits_client_span(_Retries(httpx.AsyncHTTPTransport()))
    around = _Retries(own)
    around.transport = around
    assert not emits_client_span(around)


def test_a_transport_need_not_be_of_httpxs_classes() -> None:
    class Alike:
        __slots__ = ()

    assert not emits_client_span(cast("httpx.AsyncBaseTransport", Alike()))


@pytest.mark.parametrize(
    ("make", "is_lent"),
    [
        (lambda: httpx.MockTransport(lambda _: httpx.Response(200)), True),
        (lambda: _Retries(httpx.AsyncHTTPTransport()), True),
        (lambda: _Retries(FakeGateway().new_transport()), False),
    ],
)
async def test_a_question_goes_the_way_of_the_requests_where_that_follows_no_redirect(
    make: Callable[[], httpx.AsyncBaseTransport], is_lent: bool
) -> None:
    """A test's transport among them: past it, the key would go out to the network."""
    line = RenewableTransport(make())
    async with line.lookup_transport() as lent:
        assert (lent is not None) is is_lent
    await line.aclose()


async def test_a_question_closes_nothing_that_it_was_lent() -> None:
    class Own(httpx.AsyncHTTPTransport):
        is_closed = False

        async def aclose(self) -> None:
            self.is_closed = True

    own = Own()
    line = RenewableTransport(own)
    async with line.lookup_transport() as lent:
        async with httpx.AsyncClient(transport=lent):
            pass
        assert lent is not None
    assert not own.is_closed
    await line.aclose()
    assert own.is_closed


async def test_a_question_has_a_new_connection_where_that_can_be_had() -> None:
    built: list[httpx.AsyncHTTPTransport] = []

    def build() -> httpx.AsyncHTTPTransport:
        built.append(httpx.AsyncHTTPTransport())
        return built[-1]

    line = RenewableTransport(build(), build)
    async with line.lookup_transport() as lent:
        assert lent is not None
        assert len(built) == 2
    await line.aclose()


async def test_a_question_is_not_asked_over_a_transport_that_may_follow_redirects() -> None:
    gateway = FakeGateway()
    line = RenewableTransport(gateway.new_transport(), gateway.new_transport)
    async with line.lookup_transport() as lent:
        assert lent is None
    await line.aclose()


@pytest.mark.parametrize("times", [1, 3000])
async def test_a_request_on_a_replaced_one_that_is_closed_goes_to_its_successor(times: int) -> None:
    """A thread may look up where to send its request, and send it when another has replaced that.

    Its client is open, so that it must not be told that it was closed.
    """
    gateway = FakeGateway()
    line = RenewableTransport(gateway.new_transport(), gateway.new_transport)
    await line.replace(line.transport)
    replaced = line.transport
    for _ in range(times):
        await line.replace(line.transport)
    assert gateway.transports[1].is_closed
    response = await replaced.handle_async_request(post())
    assert (response.status_code, gateway.exchanges[-1].connection) == (200, 1 + times)
    await line.replace(line.transport)
    assert not gateway.transports[1 + times].is_closed
    await response.aread()
    assert gateway.transports[1 + times].is_closed
    await line.aclose()
    request = post()
    with pytest.raises(httpx.TransportError, match="the client was closed") as caught:
        await replaced.handle_async_request(request)
    assert caught.value.request is request
    assert all(transport.is_closed for transport in gateway.transports)


async def test_a_request_on_one_that_is_closed_after_a_release_goes_to_the_first() -> None:
    gateway = FakeGateway()
    line = RenewableTransport(gateway.new_transport(), gateway.new_transport)
    await line.replace(line.transport)
    spare = line.transport
    in_flight = await spare.handle_async_request(post())
    line.release()
    await in_flight.aread()
    assert gateway.transports[1].is_closed
    assert (await spare.handle_async_request(post())).status_code == 200
    assert gateway.exchanges[-1].connection == 0


@pytest.mark.parametrize("is_closed_twice", [False, True])
@pytest.mark.parametrize("closes", ["a replacement", "a response"])
async def test_one_whose_closing_is_cancelled_is_closed_with_the_line(
    closes: str, is_closed_twice: bool
) -> None:
    class Slow(FakeTransport):
        async def aclose(self) -> None:
            await asyncio.sleep(0.1)
            await super().aclose()

    def build() -> Slow:
        transport = Slow(gateway, len(gateway.transports))
        gateway.transports.append(transport)
        return transport

    gateway = FakeGateway()
    line = RenewableTransport(build(), build)
    await line.replace(line.transport)
    stale = line.transport
    if closes == "a response":
        response = await stale.handle_async_request(post())
        await line.replace(stale)
        closing: asyncio.Future[Any] = asyncio.ensure_future(response.aread())
    else:
        closing = asyncio.ensure_future(line.replace(stale))
    await asyncio.sleep(0.05)
    if is_closed_twice:
        await stale.aclose()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    # Those that are closed already are forgotten here.
    await line.replace(line.transport)
    await line.aclose()
    assert [transport.is_closed for transport in gateway.transports] == [True] * 4


@pytest.mark.parametrize("is_replaced", [False, True])
async def test_a_lookup_for_a_transport_that_was_closed_goes_nowhere(is_replaced: bool) -> None:
    built: list[httpx.AsyncHTTPTransport] = []

    def build() -> httpx.AsyncHTTPTransport:
        built.append(httpx.AsyncHTTPTransport())
        return built[-1]

    line = RenewableTransport(build(), build)
    if is_replaced:
        await line.replace(line.transport)
    await line.aclose()
    # Neither past the requests' proxy nor over connections that nobody closes any more.
    async with line.lookup_transport() as lent:
        assert lent is not None
        with pytest.raises(httpx.TransportError, match="the client was closed"):
            await lent.handle_async_request(httpx.Request("GET", "http://gateway.test"))
    assert len(built) == 1 + is_replaced


async def test_a_copy_can_be_replaced_as_the_first_one_can() -> None:
    """It has a lock of its own: locks cannot be copied."""
    twin = copy.deepcopy(RenewableTransport(_Nothing(), _Nothing))
    first = twin.transport
    await twin.replace(first)
    assert twin.transport is not first


class _Nothing(httpx.AsyncBaseTransport):
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        raise NotImplementedError
