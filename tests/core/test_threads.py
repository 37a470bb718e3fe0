"""What is particular to sync clients: threads, interrupts, lookups without an event loop."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import httpx
import pytest

from testkit.fakes import (
    GATEWAY_BODY,
    KEY,
    FakeControlPlane,
    FakeGateway,
    gateway_404,
    known_from,
    ok,
    post,
)
from testkit.threads import SyncFakeTransport, VirtualTime
from tests.core.test_both_transports import sync_guard
from tinker_guard import ControlPlaneError, GuardSettings, GuardTransport, SyncGuardTransport
from tinker_guard.control_plane.fireworks import FireworksControlPlane
from tinker_guard.control_plane.question import ssl_context
from tinker_guard.core.routes import ROUTES
from tinker_guard.core.single_flight import ThreadFlight
from tinker_guard.gateway import Fault, LocalGateway
from tinker_guard.observability.providers import NOTHING
from tinker_guard.transports import runtime
from tinker_guard.transports.blocking import BlockingTransport

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator, Mapping

    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from testkit.fakes import Exchange

_T = TypeVar("_T")

THREADS = 8


def test_threads_share_one_warmup() -> None:
    gateway, plane = FakeGateway(), FakeControlPlane()
    guard = sync_guard(gateway, plane, GuardSettings(warmup_successes=3))
    together = threading.Barrier(THREADS)

    def send(_: int) -> int:
        together.wait(10)
        return guard.handle_request(post()).status_code

    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(send, range(THREADS))) == [200] * THREADS
    assert len(gateway.probes) == 3


def test_threads_that_meet_a_race_ask_once() -> None:
    met = threading.Barrier(THREADS)
    settings = GuardSettings(warmup_successes=0, backoff_initial=0.01, verdict_ttl=60)

    def answer(exchange: Exchange) -> httpx.Response:
        if not exchange.is_probe and exchange.connection == 0:
            met.wait(10)
            return gateway_404()
        return ok()

    gateway, plane = FakeGateway(answer), FakeControlPlane()
    guard = sync_guard(gateway, plane, settings)
    with ThreadPoolExecutor(THREADS) as pool:
        sent = [pool.submit(guard.handle_request, post()) for _ in range(THREADS)]
        assert [one.result(30).status_code for one in sent] == [200] * THREADS
    assert plane.questions == 1
    assert len(gateway.sent) == 2 * THREADS


@pytest.mark.sockets
@pytest.mark.parametrize("seconds", [1e7, 1e10, 1e300])
def test_no_limit_is_too_long_for_locks_sleeps_and_sockets(
    seconds: float, caplog: pytest.LogCaptureFixture
) -> None:
    make = httpx.HTTPTransport
    settings = GuardSettings(
        warmup_timeout=seconds,
        retry_timeout=seconds,
        probe_timeout=seconds,
        control_plane_timeout=seconds,
        backoff_initial=0.01,
    )
    with LocalGateway(Fault(route_known_after=(0.2,))) as gateway:
        guard = SyncGuardTransport(make(), settings=settings, new_transport=make)
        headers = {"X-Api-Key": gateway.api_key}
        with httpx.Client(transport=guard, headers=headers) as client:
            url = f"{gateway.base_url}/api/v1/get_server_capabilities"
            with ThreadPoolExecutor(THREADS) as pool:
                answers = [*pool.map(client.get, [url] * THREADS)]
    assert [answer.status_code for answer in answers] == [200] * THREADS
    assert "JOB_STATE_RUNNING" in caplog.text


def test_a_route_by_configuration_is_guarded_where_nothing_is_recorded(
    virtual_time: VirtualTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("sync_transport", "transport", "telemetry"):
        monkeypatch.setattr(f"tinker_guard.{module}.enabled", lambda: NOTHING)
    gateway = FakeGateway(known_from(2.0))
    settings = GuardSettings(warmup_successes=0, routes=("/trainers/{job}",))
    guard = sync_guard(gateway, FakeControlPlane(), settings)
    request = httpx.Request("POST", "https://head.test/trainers/t-1/api/v1/x", content=b"{}")
    assert guard.handle_request(request).status_code == 200
    assert len(gateway.sent) > 1


def test_an_interrupt_reaches_the_caller_and_leaves_the_gate_to_others() -> None:
    def answer(exchange: Exchange) -> httpx.Response:
        if len(gateway.exchanges) == 1:
            raise KeyboardInterrupt
        return ok()

    gateway = FakeGateway(answer)
    guard = sync_guard(gateway, FakeControlPlane(), GuardSettings(warmup_successes=1))
    with pytest.raises(KeyboardInterrupt):
        guard.handle_request(post())
    assert guard.handle_request(post()).status_code == 200


def in_the_background(call: Callable[[], _T]) -> _T:
    """Call in a thread that may hang, and then fails the test instead of holding it up."""
    pool = ThreadPoolExecutor(1)
    try:
        return pool.submit(call).result(10)
    finally:
        pool.shutdown(wait=False)


class Interrupted:
    """Something that runs a signal handler in the thread that it is called in, once.

    Python runs it there between two instructions, or within a call that blocks.

    Args:
        call: What is called.
        calls_before: How many calls go before the signal.
    """

    def __init__(self, call: Callable[..., Any], calls_before: int = 0) -> None:
        self._call = call
        self._calls_left = calls_before
        self.handler: Callable[[], object] = lambda: None

    def __call__(self, *args: Any) -> Any:
        self._calls_left -= 1
        if self._calls_left == -1:
            self.handler()
        return self._call(*args)


@pytest.mark.parametrize("warmup_successes", [0, 3])
def test_a_signal_handlers_request_waits_for_none_that_it_interrupts(
    virtual_time: VirtualTime, monkeypatch: pytest.MonkeyPatch, warmup_successes: int
) -> None:
    gateway, plane = FakeGateway(known_from(2.0)), FakeControlPlane()
    guard = sync_guard(gateway, plane, GuardSettings(warmup_successes=warmup_successes))
    sleep = Interrupted(virtual_time.sleep)
    monkeypatch.setattr(runtime.THREADS, "sleep", sleep)
    statuses = []
    sleep.handler = lambda: statuses.append(guard.handle_request(post()).status_code)
    assert in_the_background(lambda: guard.handle_request(post())).status_code == 200
    assert statuses == [200]
    assert virtual_time.now < 3.0


def test_a_signal_handlers_request_has_its_own_time(
    virtual_time: VirtualTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ends the one that it interrupts is no exception of the handler's."""
    gateway, plane = FakeGateway(lambda _: gateway_404()), FakeControlPlane()
    guard = sync_guard(gateway, plane, GuardSettings(warmup_successes=0, retry_timeout=3.0))
    ends = []

    def handler() -> None:
        began = virtual_time.now
        ends.append((guard.handle_request(post()).status_code, virtual_time.now - began))

    # Before that, the wait of the first request has no timeout around it.
    sleep = Interrupted(virtual_time.sleep, calls_before=3)
    monkeypatch.setattr(runtime.THREADS, "sleep", sleep)
    sleep.handler = handler
    assert in_the_background(lambda: guard.handle_request(post())).status_code == 404
    [(status, seconds)] = ends
    assert status == 404
    assert seconds == pytest.approx(3.0)


def test_a_request_that_a_transport_sends_for_a_probe_has_its_own_time(
    virtual_time: VirtualTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A probe has `probe_timeout`, and what its transport has to ask for first has more."""
    path = "/api/v1/get_server_capabilities"
    met: list[tuple[int, float]] = []
    for module in ("sync_transport", "transport", "telemetry"):
        monkeypatch.setattr(f"tinker_guard.{module}.enabled", lambda: NOTHING)
    inner = FakeGateway()
    below = sync_guard(inner, FakeControlPlane(), GuardSettings(retry_timeout=20.0))
    assert below.handle_request(post()).status_code == 200

    class Asking(SyncFakeTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            if request.url.path.endswith(path) and not met:
                inner.answer = known_from(virtual_time.now + 12.0)
                answer = below.handle_request(post())
                met.append((answer.status_code, virtual_time.now))
            return super().handle_request(request)

    gateway = FakeGateway()
    guard = SyncGuardTransport(Asking(gateway.new_transport()), control_plane=FakeControlPlane())
    other = httpx.Request("GET", str(post().url).replace("job-1", "job-2"))
    assert in_the_background(lambda: guard.handle_request(other)).status_code == 200
    [(status_code, at)] = met
    assert (status_code, at >= 12.0) == (200, True)


def test_a_signal_handlers_request_finds_no_lock_held(virtual_time: VirtualTime) -> None:
    gateway, plane = FakeGateway(known_from(1.0)), FakeControlPlane()
    build = Interrupted(lambda: SyncFakeTransport(gateway.new_transport()))
    guard = SyncGuardTransport(
        SyncFakeTransport(gateway.new_transport()),
        settings=GuardSettings(warmup_successes=0),
        control_plane=plane,
        new_transport=build,
    )
    statuses = []
    build.handler = lambda: statuses.append(guard.handle_request(post()).status_code)
    assert in_the_background(lambda: guard.handle_request(post())).status_code == 200
    assert statuses == [200]


def test_a_guard_above_another_one_waits_for_no_warmup_of_its_own(
    virtual_time: VirtualTime,
) -> None:
    class Retrying(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            return below.handle_request(request)

    gateway, plane = FakeGateway(known_from(1.0)), FakeControlPlane()
    below = sync_guard(gateway, plane, GuardSettings())
    above = SyncGuardTransport(Retrying(), control_plane=plane)
    assert in_the_background(lambda: above.handle_request(post())).status_code == 200
    assert virtual_time.now < 1.5
    assert len(gateway.sent) == 1


def test_a_large_404_is_read_on_by_the_client(virtual_time: VirtualTime) -> None:
    large = [b"x" * 700_000] * 3

    class Body(httpx.SyncByteStream):
        closed = 0

        def __iter__(self) -> Iterator[bytes]:
            yield from large

        def close(self) -> None:
            Body.closed += 1

    class Transport(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            return httpx.Response(404, stream=Body())

    plane = FakeControlPlane("JOB_STATE_DELETED")
    guard = SyncGuardTransport(
        Transport(), settings=GuardSettings(warmup_successes=0), control_plane=plane
    )
    with httpx.Client(transport=guard) as client, client.stream("POST", post().url) as response:
        assert response.status_code == 404
        assert b"".join(response.iter_bytes()) == b"".join(large)
    assert Body.closed == 1


def test_a_control_plane_that_needs_an_event_loop_says_nothing(
    virtual_time: VirtualTime, caplog: pytest.LogCaptureFixture
) -> None:
    class Plane:
        async def job_state(
            self, account: str, job: str, *, origin: str, credentials: Mapping[str, str]
        ) -> str:
            await asyncio.sleep(0)
            return "JOB_STATE_RUNNING"

    gateway = FakeGateway(lambda _: gateway_404())
    settings = GuardSettings(warmup_successes=0, retry_timeout=0.5)
    guard = SyncGuardTransport(
        SyncFakeTransport(gateway.new_transport()), settings=settings, control_plane=Plane()
    )
    assert guard.handle_request(post()).status_code == 404
    assert "unverified, control_plane_error" in caplog.text
    assert "Plane raised RuntimeError" in caplog.text


class _Drip(httpx.SyncByteStream):
    """A body whose chunks each come in time for a read, and which takes long all the same."""

    def __init__(self, time: VirtualTime, end: bytes) -> None:
        self._time = time
        self._end = end
        self.is_closed = False

    def __iter__(self) -> Iterator[bytes]:
        for _ in range(1000):
            self._time.sleep(1.0)
            yield b" "
        yield self._end

    def close(self) -> None:
        self.is_closed = True


class _Dripping(httpx.BaseTransport):
    """Lets the bodies of its answers to `GET` drip, and answers what else is sent as it is told."""

    def __init__(self, time: VirtualTime, end: bytes, answer: httpx.Response) -> None:
        self._time = time
        self._end = end
        self._answer = answer
        self.drips: list[_Drip] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if request.method != "GET":
            return self._answer
        self.drips.append(_Drip(self._time, self._end))
        headers = {"content-type": "application/json"}
        return httpx.Response(200, headers=headers, stream=self.drips[-1])


def test_a_probe_whose_answer_drips_ends_in_time(virtual_time: VirtualTime) -> None:
    transport = _Dripping(virtual_time, b'{"supported_models": []}', httpx.Response(200, json={}))
    settings = GuardSettings(warmup_successes=1, probe_timeout=3.0)
    guard = SyncGuardTransport(transport, settings=settings, control_plane=FakeControlPlane())
    assert guard.handle_request(post()).status_code == 200
    assert virtual_time.now == 3.0 * len(transport.drips)
    assert all(drip.is_closed for drip in transport.drips)


def test_a_lookup_whose_answer_drips_ends_in_time(virtual_time: VirtualTime) -> None:
    not_found = httpx.Response(404, content=GATEWAY_BODY)
    transport = _Dripping(virtual_time, b'{"state": "JOB_STATE_RUNNING"}', not_found)
    settings = GuardSettings(warmup_successes=0, retry_timeout=0.0, control_plane_timeout=3.0)
    plane = FireworksControlPlane(transport=BlockingTransport(transport))
    guard = SyncGuardTransport(transport, settings=settings, control_plane=plane)
    assert guard.handle_request(post()).status_code == 404
    assert virtual_time.now == 3.0
    assert [drip.is_closed for drip in transport.drips] == [True]


def test_a_sync_client_may_be_used_within_an_event_loop(virtual_time: VirtualTime) -> None:
    gateway, plane = FakeGateway(known_from(1.0)), FakeControlPlane()
    guard = sync_guard(gateway, plane, GuardSettings(warmup_successes=1))

    async def send() -> int:
        return guard.handle_request(post()).status_code

    assert asyncio.run(send()) == 200
    assert 1.0 <= virtual_time.now <= 1.5


def test_both_kinds_of_clients_know_the_same_routes() -> None:
    gateway = FakeGateway()
    guard = sync_guard(gateway, FakeControlPlane(), GuardSettings(warmup_successes=2))
    guard.handle_request(post())
    state = ROUTES.find(post().url)
    assert state is not None
    assert state.is_warm


@pytest.mark.meets_fault
def test_what_is_no_transport_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    gateway = FakeGateway(known_from(0.3))
    guard = SyncGuardTransport(
        SyncFakeTransport(gateway.new_transport()),
        settings=GuardSettings(warmup_successes=0, backoff_initial=0.01),
        control_plane=FakeControlPlane(),
        new_transport=lambda: object(),  # type: ignore[arg-type,return-value]
    )
    gateway.answer = lambda e: gateway_404() if len(gateway.exchanges) < 3 else ok()
    assert guard.handle_request(post()).status_code == 200
    assert "building a new transport" in caplog.text
    assert "new_transport must return an httpx.BaseTransport" in caplog.text


# -- waiting ---------------------------------------------------------------------------------------


def test_what_suspends_needs_an_event_loop() -> None:
    async def suspend() -> None:
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="needs an event loop"):
        runtime.run_blocking(suspend())


def test_timeouts_end_waits_each_its_own(virtual_time: VirtualTime) -> None:
    ends: list[str] = []

    async def wait() -> None:
        try:
            async with runtime.timeout_at(2.0):
                try:
                    async with runtime.timeout(5.0):
                        await runtime.sleep(1.0)
                        await runtime.sleep(60.0)
                except TimeoutError:
                    ends.append("inner")
        except TimeoutError:
            ends.append("outer")
        async with runtime.timeout(5.0):
            await runtime.sleep(0.5)
            ends.append("none")

    runtime.run_blocking(wait())
    assert ends == ["outer", "none"]
    assert virtual_time.now == 2.5


def test_a_thread_waits_for_another_no_longer_than_its_timeout() -> None:
    flight: ThreadFlight[int] = ThreadFlight()
    leads, done = threading.Event(), threading.Event()

    async def compute() -> int:
        leads.set()
        done.wait(10)
        return 1

    async def follow() -> int:
        async with runtime.timeout(0.0):
            return await flight.run(compute)

    with ThreadPoolExecutor(1) as pool:
        leader = pool.submit(runtime.run_blocking, flight.run(compute))
        leads.wait(10)
        assert flight.is_under_way
        with pytest.raises(TimeoutError):
            runtime.run_blocking(follow())
        done.set()
        assert leader.result(10) == 1
    assert runtime.run_blocking(flight.run(compute, accepts=lambda found: found == 1)) == 1


class _Follower:
    """A call that tells when it waits: the second time that its clock is read."""

    def __init__(
        self, flight: ThreadFlight[int], accepts: Callable[[int], bool] | None = None
    ) -> None:
        self.waits = threading.Event()
        self._flight = flight
        self._accepts = accepts
        self._is_timed = False

    def run(self) -> int:
        return runtime.run_blocking(self._run(), runtime.Threads(self._clock))

    async def _run(self) -> int:
        async with runtime.timeout(10):
            return await self._flight.run(self._compute, accepts=self._accepts)

    async def _compute(self) -> int:
        raise AssertionError("it leads")

    def _clock(self) -> float:
        if self._is_timed:
            self.waits.set()
        self._is_timed = True
        return 0.0


def test_a_thread_waits_for_another_one_no_longer_than_its_limit() -> None:
    flight: ThreadFlight[int] = ThreadFlight()
    is_led, may_end = threading.Event(), threading.Event()

    async def lead() -> int:
        is_led.set()
        may_end.wait(10)
        return 1

    with ThreadPoolExecutor(1) as pool:
        leader = pool.submit(lambda: runtime.run_blocking(flight.run(lead, until=0.0)))
        is_led.wait(10)
        try:
            # By the monotonic clock, that was long ago.
            with pytest.raises(TimeoutError):
                runtime.run_blocking(flight.run(lead, until=0.0))
        finally:
            may_end.set()
        assert leader.result() == 1


def test_each_result_serves_those_that_waited_for_it() -> None:
    flight: ThreadFlight[int] = ThreadFlight()
    assert not flight.is_under_way
    for number in range(3):
        leads, done = threading.Event(), threading.Event()

        async def compute(
            number: int = number, leads: threading.Event = leads, done: threading.Event = done
        ) -> int:
            leads.set()
            done.wait(10)
            return number

        followers = [_Follower(flight) for _ in range(2)]
        with ThreadPoolExecutor(3) as pool:
            results = [pool.submit(runtime.run_blocking, flight.run(compute))]
            leads.wait(10)
            for follower in followers:
                results.append(pool.submit(follower.run))
                follower.waits.wait(10)
            done.set()
            assert [result.result(10) for result in results] == [number] * 3
    assert not flight.is_under_way


def test_a_flight_is_under_way_as_long_as_a_call_waits() -> None:
    """Also while none leads: the leader has failed, and those that wait wake one by one."""
    flight: ThreadFlight[int] = ThreadFlight()
    leads, fails = threading.Event(), threading.Event()
    seen: list[bool] = []

    async def compute() -> int:
        return 1

    async def fail() -> int:
        leads.set()
        fails.wait(10)
        raise ControlPlaneError("down")

    def accepts(_: int) -> bool:
        seen.append(flight.is_under_way)
        return fails.is_set()

    runtime.run_blocking(flight.run(compute))
    followers = [_Follower(flight, accepts) for _ in range(2)]
    with ThreadPoolExecutor(3) as pool:
        leader = pool.submit(
            runtime.run_blocking, flight.run(fail, accepts=lambda _: fails.is_set())
        )
        leads.wait(10)
        results = []
        for follower in followers:
            results.append(pool.submit(follower.run))
            follower.waits.wait(10)
        fails.set()
        assert [result.result(10) for result in results] == [1, 1]
        assert isinstance(leader.exception(10), ControlPlaneError)
    # Each looks once while the leader leads, and once after: the last one finds no other.
    assert seen == [True, True, True, False]
    assert not flight.is_under_way


def test_a_lookup_that_could_not_connect_is_tried_once_more(virtual_time: VirtualTime) -> None:
    class Transport(httpx.HTTPTransport):
        lookups: ClassVar[list[float]] = []

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            if not request.url.path.startswith("/v1/"):
                return gateway_404_of_client()
            self.lookups.append(virtual_time.now)
            if len(self.lookups) == 1:
                raise httpx.ConnectError("refused")
            return httpx.Response(200, json={"state": "JOB_STATE_DELETED"})

    guard = SyncGuardTransport(Transport(), settings=GuardSettings(warmup_successes=0))
    assert guard.handle_request(post()).status_code == 404
    assert Transport.lookups == [0.0, 0.05]


def test_a_leader_that_fails_hands_over() -> None:
    flight: ThreadFlight[int] = ThreadFlight()
    leads, fails = threading.Event(), threading.Event()

    async def fail() -> int:
        leads.set()
        fails.wait(10)
        raise ControlPlaneError("down")

    async def compute() -> int:
        return 2

    with ThreadPoolExecutor(2) as pool:
        leader = pool.submit(runtime.run_blocking, flight.run(fail))
        leads.wait(10)
        follower = pool.submit(runtime.run_blocking, flight.run(compute))
        fails.set()
        with pytest.raises(ControlPlaneError):
            leader.result(10)
        assert follower.result(10) == 2


def test_a_lookup_goes_as_the_environment_says(
    virtual_time: VirtualTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the requests' own transport could follow a redirect with the key."""
    asked: list[httpx.Request] = []

    def handle_request(_: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, json={"state": "JOB_STATE_RUNNING"})

    trusted: list[object] = []

    class Client(httpx.Client):
        def __init__(self, *, verify: ssl.SSLContext) -> None:
            trusted.append(verify)
            super().__init__(verify=verify)

    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", handle_request)
    monkeypatch.setattr(httpx, "Client", Client)
    gateway = FakeGateway(known_from(0.5))
    guard = SyncGuardTransport(
        SyncFakeTransport(gateway.new_transport()),
        settings=GuardSettings(warmup_successes=0),
        new_transport=lambda: SyncFakeTransport(gateway.new_transport()),
    )
    assert guard.handle_request(post()).status_code == 200
    assert {request.url.path for request in asked} == {"/v1/accounts/acc/rlorTrainerJobs/job-1"}
    assert {request.headers["x-api-key"] for request in asked} == {KEY}
    assert {*trusted} == {ssl_context()}


def test_a_lookup_at_the_routes_origin_goes_over_the_requests_own_transport(
    virtual_time: VirtualTime,
) -> None:
    """And so through its proxy."""

    class Transport(httpx.HTTPTransport):
        seen: ClassVar[list[str]] = []

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            self.seen.append(request.url.path)
            if request.url.path.startswith("/v1/"):
                return httpx.Response(200, json={"state": "JOB_STATE_DELETED"})
            return gateway_404_of_client()

    guard = SyncGuardTransport(
        Transport(verify=False), settings=GuardSettings(warmup_successes=0), new_transport=None
    )
    assert guard.handle_request(post()).status_code == 404
    assert Transport.seen == [post().url.path, "/v1/accounts/acc/rlorTrainerJobs/job-1"]


JSON = {"content-type": "application/json"}


def gateway_404_of_client() -> httpx.Response:
    return httpx.Response(404, content=GATEWAY_BODY, headers=JSON)


def test_a_closed_transport_closes_what_it_wraps() -> None:
    gateway = FakeGateway()
    transport = BlockingTransport(SyncFakeTransport(gateway.new_transport()))
    runtime.run_blocking(transport.aclose())
    assert gateway.transports[0].is_closed


class EnteredTransport(httpx.BaseTransport):
    """Opens in `__enter__` and closes in `__exit__` alone, as its own client would have it."""

    def __init__(self) -> None:
        self.calls: list[object] = []

    def __enter__(self) -> Self:
        self.calls.append("entered")
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        self.calls.append(kind)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        assert self.calls == ["entered"]
        return httpx.Response(200, json={"ok": True})


@pytest.mark.parametrize("error", [None, KeyError])
def test_a_client_that_is_left_leaves_the_transport_in_the_same_way(
    error: type[Exception] | None,
) -> None:
    inner = EnteredTransport()

    def run() -> None:
        with httpx.Client(transport=SyncGuardTransport(inner)) as client:
            client.get(str(post().url))
            if error is not None:
                raise error

    if error is None:
        run()
    else:
        with pytest.raises(error):
            run()
    assert inner.calls == ["entered", error]


def test_what_is_entered_is_the_guard() -> None:
    guard, blocking = SyncGuardTransport(EnteredTransport()), BlockingTransport(EnteredTransport())
    with guard as entered:
        assert entered is guard
    assert runtime.run_blocking(blocking.__aenter__()) is blocking


def test_closing_ends_what_waits() -> None:
    gateway = FakeGateway(lambda _: gateway_404())
    plane = FakeControlPlane()
    guard = SyncGuardTransport(
        SyncFakeTransport(gateway.new_transport()),
        settings=GuardSettings(backoff_initial=0.01, backoff_max=0.01),
        control_plane=plane,
    )
    asked = plane.job_state

    async def close_then_answer(*args: str, **kwargs: Any) -> str | None:
        guard.close()
        return await asked(*args, **kwargs)

    plane.job_state = close_then_answer  # type: ignore[method-assign]
    with pytest.raises(httpx.TransportError, match="closed"):
        guard.handle_request(post())
    assert len(gateway.exchanges) == 1


# -- a request that nothing happens to -----------------------------------------------------------

ELSEWHERE = "https://api.test/v1/accounts/acc/rlorTrainerJobs/job-1"


class Answers(httpx.BaseTransport):
    """Answers with these responses in turn, and with the last one from then on."""

    def __init__(self, *responses: httpx.Response) -> None:
        self.responses = list(responses)
        self.sent: list[httpx.Request] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.sent.append(request)
        return self.responses.pop(0) if len(self.responses) > 1 else self.responses[0]


@pytest.fixture
def unobserved(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("sync_transport", "transport", "telemetry"):
        monkeypatch.setattr(f"tinker_guard.{module}.enabled", lambda: NOTHING)


@pytest.mark.usefixtures("unobserved")
@pytest.mark.parametrize("url", [str(post().url), ELSEWHERE], ids=["warm", "elsewhere"])
def test_an_untouched_answer_is_the_inner_transports_own(url: str) -> None:
    first, second = httpx.Response(200, content=b"1"), httpx.Response(503, content=b"2")
    guard = SyncGuardTransport(Answers(first, second), settings=GuardSettings(warmup_successes=0))
    guard.handle_request(post())
    stream = second.stream
    assert guard.handle_request(httpx.Request("GET", url)) is second
    assert second.stream is stream


@pytest.mark.usefixtures("unobserved")
def test_a_404_elsewhere_is_the_inner_transports_own() -> None:
    answer = gateway_404_of_client()
    guard = SyncGuardTransport(Answers(answer))
    stream = answer.stream
    assert guard.handle_request(httpx.Request("GET", ELSEWHERE)) is answer
    assert answer.stream is stream


@pytest.mark.usefixtures("unobserved")
def test_an_answer_that_comes_after_a_verdict_shows_that_the_trainer_is_there() -> None:
    class Slow(Answers):
        """Answers a poll only when another request has been told that the job has stopped."""

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            if request.url.path.endswith("retrieve_future"):
                assert guard.handle_request(post("/api/v1/optim_step")).status_code == 404
                plane.state = "JOB_STATE_RUNNING"
            return super().handle_request(request)

    router_404 = httpx.Response(404, content=b'{"detail": "Not Found"}', headers=JSON)
    inner = Slow(httpx.Response(200), gateway_404_of_client(), httpx.Response(200), router_404)
    plane = FakeControlPlane("JOB_STATE_FAILED")
    guard = SyncGuardTransport(
        inner, settings=GuardSettings(warmup_successes=0), control_plane=plane
    )
    guard.handle_request(post())
    assert guard.handle_request(post("/api/v1/retrieve_future")).status_code == 200
    assert guard.handle_request(post("/api/v1/client/dynamic_config")).status_code == 404
    assert (len(inner.sent), plane.questions) == (4, 1)


@pytest.mark.parametrize("is_observed", [True, False])
@pytest.mark.parametrize("routes_only", [True, False])
def test_what_is_on_no_route_may_pass_unseen(
    routes_only: bool,
    is_observed: bool,
    spans: InMemorySpanExporter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not is_observed:
        monkeypatch.setattr("tinker_guard.sync_transport.enabled", lambda: NOTHING)
    inner = Answers(gateway_404_of_client())
    guard = SyncGuardTransport(
        inner, settings=GuardSettings(warmup_successes=0), routes_only=routes_only
    )
    answer = guard.handle_request(httpx.Request("GET", ELSEWHERE))
    assert (answer.status_code, answer.read()) == (404, GATEWAY_BODY)
    assert len(inner.sent) == 1
    assert bool(spans.get_finished_spans()) is (is_observed and not routes_only)
    inner.responses = [httpx.Response(200)]
    assert guard.handle_request(post()).status_code == 200


@pytest.mark.anyio
async def test_what_is_on_no_route_may_pass_an_async_guard_unseen(
    spans: InMemorySpanExporter,
) -> None:
    gateway = FakeGateway(lambda _: gateway_404())
    guard = GuardTransport(
        gateway.new_transport(), settings=GuardSettings(warmup_successes=0), routes_only=True
    )
    answer = await guard.handle_async_request(httpx.Request("GET", ELSEWHERE))
    assert answer.status_code == 404
    assert spans.get_finished_spans() == ()
    gateway.answer = lambda _: ok()
    assert (await guard.handle_async_request(post())).status_code == 200
    assert len(spans.get_finished_spans()) > 0


@pytest.mark.usefixtures("unobserved")
def test_after_a_stale_connection_the_new_one_is_used(virtual_time: VirtualTime) -> None:
    gateway = FakeGateway(lambda e: gateway_404() if e.connection == 0 else ok())
    guard = sync_guard(gateway, FakeControlPlane(), GuardSettings(warmup_successes=0))
    for _ in range(2):
        assert guard.handle_request(post()).read() == b'{"ok": true}'
    assert [exchange.connection for exchange in gateway.sent] == [0, 1, 1]


@pytest.mark.usefixtures("unobserved")
@pytest.mark.meets_fault
def test_a_fault_of_the_look_up_is_none_of_the_requests(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(ROUTES, "find", fail)
    guard = SyncGuardTransport(Answers(httpx.Response(200)))
    assert guard.handle_request(post()).status_code == 200
    assert caplog.text.count("a fault of its own in reading the route") == 1


def test_a_guard_of_a_sync_client_is_changed_and_released(virtual_time: VirtualTime) -> None:
    inner = Answers(gateway_404_of_client())
    plane = FakeControlPlane()
    first, second = GuardSettings(warmup_successes=0), GuardSettings(enabled=False)
    guard = SyncGuardTransport(inner, settings=first, control_plane=plane)
    assert guard.settings is first
    guard.configure(second, plane)
    assert guard.settings is second
    assert guard.handle_request(post()).status_code == 404
    guard.configure(first, plane)
    assert guard.release() is inner
    assert guard.handle_request(post()).status_code == 404
    assert len(inner.sent) == 2
    assert plane.questions == 0
