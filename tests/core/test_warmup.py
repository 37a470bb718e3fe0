from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from opentelemetry.sdk.metrics.export import HistogramDataPoint

from testkit.fakes import (
    GATEWAY_BODY,
    KEY,
    Exchange,
    FakeControlPlane,
    FakeGateway,
    TrackedStream,
    gateway_404,
    guard,
    known_from,
    loop_time,
    ok,
    plain_404,
    post,
    router_404,
    settle,
    trainer_404,
)
from tinker_guard import ControlPlaneError, GuardTransport
from tinker_guard.core.routes import ROUTES
from tinker_guard.transports.renewable import RenewableTransport

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.conftest import Measured

pytestmark = pytest.mark.anyio


async def send(transport: GuardTransport, request: httpx.Request | None = None) -> int:
    response = await transport.handle_async_request(request or post())
    await response.aread()
    await response.aclose()
    return response.status_code


async def test_the_first_request_goes_over_a_connection_that_three_probes_have_proved() -> None:
    gateway = FakeGateway()
    assert await send(guard(gateway)) == 200
    assert [exchange.is_probe for exchange in gateway.exchanges] == [True, True, True, False]
    assert {exchange.connection for exchange in gateway.exchanges} == {0}
    assert len(gateway.transports) == 1
    assert gateway.unclosed() == []


async def test_what_was_proved_of_a_connection_that_was_replaced_says_nothing_of_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A request on another route of the same client may replace it at any time."""
    lines: list[RenewableTransport] = []

    def kept(*given: Any) -> RenewableTransport:
        lines.append(RenewableTransport(*given))
        return lines[-1]

    monkeypatch.setattr("tinker_guard.transport.RenewableTransport", kept)

    async def answer(exchange: Exchange) -> httpx.Response:
        if len(gateway.exchanges) == 1:
            await lines[0].replace(transport.transport)
        return gateway_404() if exchange.connection == 1 else ok()

    gateway = FakeGateway(answer)
    transport = guard(gateway)
    assert await send(transport) == 200
    state = ROUTES.find(post().url)
    assert state is not None
    assert not state.is_balanced_per_request(loop_time())
    assert [exchange.connection for exchange in gateway.exchanges] == [0, 1, 2, 2, 2, 2]


async def test_probes_run_one_after_another_in_the_requests_own_task() -> None:
    """A transport may hold a cancel scope or a context variable of the task that it runs in."""
    tasks: set[asyncio.Task[Any] | None] = set()
    under_way = most = 0

    async def answer(_: Exchange) -> httpx.Response:
        nonlocal under_way, most
        tasks.add(asyncio.current_task())
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.1)
        under_way -= 1
        return ok()

    task = asyncio.create_task(send(guard(FakeGateway(answer))))
    assert await task == 200
    assert (tasks, most) == ({task}, 1)


@pytest.mark.parametrize(
    ("header", "value"),
    [
        (b"Host", b"api.fireworks.ai"),
        (b"Authorization", b"Bearer abc"),
        (b"CF-Access-Client-Secret", b"abc"),
        (b"Modal-Key", b"abc"),
        (b"User-Agent", "Jürgen".encode()),
        (b"X-Api-Key", "schlüssel".encode("latin-1")),
    ],
)
async def test_probes_carry_what_makes_a_request_arrive_byte_for_byte(
    header: bytes, value: bytes
) -> None:
    seen: list[bytes] = []

    class Transport(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            seen.extend(v for n, v in request.headers.raw if n.lower() == header.lower())
            assert request.extensions.get("sni_hostname") == "api.fireworks.ai"
            return ok()

    request = httpx.Request(
        "POST",
        post().url,
        headers=[(header, value)],
        content=b"{}",
        extensions={"sni_hostname": "api.fireworks.ai"},
    )
    transport = GuardTransport(Transport(), control_plane=FakeControlPlane())
    assert await send(transport, request) == 200
    assert seen == [value] * 4


@pytest.mark.parametrize(
    "header",
    ["Cookie", "Idempotency-Key", "X-Idempotency-Key", "X-User", "Content-Type", "X-Trace"],
)
async def test_probes_carry_nothing_else(header: str) -> None:
    gateway = FakeGateway()
    request = post()
    request.headers[header] = "LB=3"
    await send(guard(gateway), request)
    assert gateway.sent[0].headers[header] == "LB=3"
    for probe in gateway.probes:
        assert header not in probe.headers
        assert probe.headers["cache-control"] == "no-cache, no-store"


async def test_probes_go_the_generic_way_with_the_requests_key_and_without_its_body() -> None:
    gateway = FakeGateway()
    await send(guard(gateway, probe_timeout=4))
    for probe in gateway.probes:
        assert (probe.method, probe.body) == ("GET", b"")
        assert probe.path.endswith("/acc/job-1/api/v1/get_server_capabilities")
        assert probe.headers["x-api-key"] == KEY
        assert not {"x-idempotency-key", "content-length", "content-type"} & set(probe.headers)
        assert probe.extensions["timeout"] == httpx.Timeout(4).as_dict()


async def test_later_requests_do_not_wait() -> None:
    gateway = FakeGateway()
    transport = guard(gateway)
    await send(transport)
    await send(transport)
    assert len(gateway.probes) == 3


async def test_one_warmup_serves_every_transport_of_the_process() -> None:
    gateway = FakeGateway()
    await asyncio.gather(*(send(guard(gateway)) for _ in range(20)))
    assert len(gateway.probes) == 3
    assert len(gateway.sent) == 20


async def test_waits_until_the_route_is_known() -> None:
    gateway, plane = FakeGateway(known_from(3.0)), FakeControlPlane()
    assert await send(guard(gateway, plane)) == 200
    assert [exchange.at >= 3.0 for exchange in gateway.sent] == [True]
    assert loop_time() < 3.75
    assert plane.questions <= 4
    assert gateway.unclosed() == []


async def test_a_stale_replica_is_left_for_another_connection() -> None:
    """Connections stick to their replicas; two of three are stale, for twenty seconds."""
    gateway = FakeGateway(lambda e: ok() if e.connection % 3 == 2 or e.at > 20 else gateway_404())
    assert await send(guard(gateway)) == 200
    assert [probe.connection for probe in gateway.probes] == [0, 1, 2, 2, 2]
    assert gateway.sent[0].connection == 2
    assert loop_time() < 0.3


@pytest.mark.parametrize("known", [(0,), (1,), (0, 1), (0, 2), (1, 3)])
async def test_replicas_that_are_taken_in_turn_do_not_keep_the_gate_shut(
    known: tuple[int, ...],
) -> None:
    """No number of probes in a row could prove the next request's replica."""

    def answer(exchange: Exchange) -> httpx.Response:
        replica = (len(gateway.exchanges) - 1) % 4
        return ok() if replica in known or exchange.at > 20 else gateway_404()

    gateway = FakeGateway(answer)
    transport = guard(gateway)
    for _ in range(5):
        assert await send(transport) == 200
    assert loop_time() < 3.0


async def test_a_trainers_own_404_reaches_the_trainer() -> None:
    gateway = FakeGateway(lambda exchange: trainer_404() if exchange.is_probe else ok())
    plane = FakeControlPlane()
    assert await send(guard(gateway, plane)) == 200
    assert (len(gateway.probes), plane.questions) == (3, 0)


def _edge(status_code: int, body: bytes = b"", **headers: str) -> Callable[[], httpx.Response]:
    return lambda: httpx.Response(
        status_code,
        headers={name.replace("_", "-"): value for name, value in headers.items()},
        stream=TrackedStream([body]),
    )


_JSON = {"content_type": "application/json"}


@pytest.mark.parametrize(
    "edge",
    [
        pytest.param(_edge(200), id="an empty 200"),
        pytest.param(_edge(200, b"<html>", content_type="text/html"), id="a page"),
        pytest.param(_edge(200, b"{}", age="30", **_JSON), id="a cached copy"),
        pytest.param(_edge(200, b"{}", x_cache="HIT from edge", **_JSON), id="a cached copy, too"),
        pytest.param(_edge(200, b"{", **_JSON), id="broken JSON"),
        pytest.param(_edge(204), id="204"),
        pytest.param(_edge(302, location="/login"), id="a redirect"),
        *(pytest.param(_edge(code, b"{}", **_JSON), id=str(code)) for code in (401, 403, 429, 503)),
    ],
)
async def test_an_answer_that_anything_on_the_way_can_give_proves_nothing(
    edge: Callable[[], httpx.Response],
) -> None:
    """The request is sent; but the route is not warm, and the race that it meets is recovered."""
    gateway = FakeGateway(lambda e: edge() if e.is_probe else plain_404() if e.at < 8 else ok())
    transport = guard(gateway)
    assert await send(transport) == 200
    assert 8.0 <= loop_time() < 10.0
    before = len(gateway.probes)
    assert await send(transport) == 200
    assert len(gateway.probes) == before, "the request's own 200 has made the route warm"


@pytest.mark.parametrize("error", [httpx.ConnectError("refused"), httpx.ReadTimeout("slow")])
async def test_another_failure_opens_the_gate(error: Exception) -> None:
    def answer(exchange: Exchange) -> httpx.Response:
        if exchange.is_probe:
            raise error
        return ok()

    gateway = FakeGateway(answer)
    transport = guard(gateway)
    assert [await send(transport), await send(transport)] == [200, 200]
    assert len(gateway.probes) == 1


async def test_a_probe_that_hangs_opens_the_gate() -> None:
    async def answer(exchange: Exchange) -> httpx.Response:
        if exchange.is_probe:
            await asyncio.sleep(1000)
        return ok()

    gateway = FakeGateway(answer)
    assert await send(guard(gateway, probe_timeout=2)) == 200
    assert loop_time() == 2.0


async def test_a_404_that_hangs_as_it_is_closed_keeps_the_gate_shut() -> None:
    class Stuck(TrackedStream):
        async def aclose(self) -> None:
            await super().aclose()
            await asyncio.Event().wait()

    def answer(exchange: Exchange) -> httpx.Response:
        if exchange.at > 20:
            return ok()
        headers = {"content-type": "application/json"}
        return httpx.Response(404, headers=headers, stream=Stuck([GATEWAY_BODY]))

    gateway = FakeGateway(answer)
    assert await send(guard(gateway)) == 200
    assert loop_time() > 20
    assert len(gateway.sent) == 1


@pytest.mark.parametrize(
    "state", ["JOB_STATE_FAILED", "JOB_STATE_PAUSED", "JOB_STATE_EXPIRED", "JOB_STATE_DELETING"]
)
async def test_a_stopped_job_ends_it_at_once(state: str) -> None:
    gateway, plane = FakeGateway(lambda _: gateway_404()), FakeControlPlane(state)
    transport = guard(gateway, plane)
    responses = await asyncio.gather(*(transport.handle_async_request(post()) for _ in range(5)))
    for response in responses:
        assert response.status_code == 404
        assert await response.aread() == GATEWAY_BODY
        assert response.headers["content-type"] == "application/json"
    assert (len(gateway.probes), plane.questions, gateway.sent) == (1, 1, [])
    assert loop_time() == 0.0


async def test_a_missing_job_ends_it_once_the_control_plane_has_said_so_twice() -> None:
    gateway, plane = FakeGateway(lambda _: gateway_404()), FakeControlPlane(None)
    assert await send(guard(gateway, plane)) == 404
    assert [at for at, *_ in plane.asked] == [0.0, 2.0]
    assert gateway.sent == []


@pytest.mark.parametrize("missing_for", [0.5, 1.5, 1.99])
async def test_a_job_that_was_just_created_may_be_missing_for_a_moment(missing_for: float) -> None:
    plane = FakeControlPlane(
        None, states=[(missing_for, "JOB_STATE_CREATING"), (3.0, "JOB_STATE_RUNNING")]
    )
    assert await send(guard(FakeGateway(known_from(4.0)), plane)) == 200
    assert 4.0 <= loop_time() < 5.0


async def test_a_job_that_comes_up_is_asked_about_anew() -> None:
    """An answer that was heard before the job ran judges no 404 that is met after."""
    up_at = 0.3
    plane = FakeControlPlane("JOB_STATE_CREATING", states=[(up_at, "JOB_STATE_RUNNING")])
    gateway = FakeGateway(
        lambda e: ok() if e.at >= (up_at if e.is_probe else 1.2) else gateway_404()
    )
    assert await send(guard(gateway, plane, verdict_ttl=5)) == 200


@pytest.mark.parametrize("lag", [0.2, 0.5, 0.8])
async def test_a_control_plane_that_lags_is_asked_again_while_the_route_comes_up(
    lag: float,
) -> None:
    """The route has answered, and the control plane still says CREATING."""
    plane = FakeControlPlane("JOB_STATE_CREATING", states=[(lag, "JOB_STATE_RUNNING")])
    gateway = FakeGateway(lambda e: ok() if e.is_probe or e.at >= 1.2 else gateway_404())
    assert await send(guard(gateway, plane)) == 200


async def test_a_job_on_its_way_is_waited_for() -> None:
    gateway = FakeGateway(known_from(40.0))
    plane = FakeControlPlane("JOB_STATE_CREATING", states=[(35.0, "JOB_STATE_RUNNING")])
    assert await send(guard(gateway, plane)) == 200
    assert 40.0 <= loop_time() < 44.0


async def test_a_control_plane_that_cannot_say_opens_the_gate() -> None:
    gateway = FakeGateway(lambda e: gateway_404() if e.is_probe else ok())
    assert await send(guard(gateway, FakeControlPlane(RuntimeError()))) == 200
    assert loop_time() == 0.0


async def test_after_the_timeout_every_waiter_gets_the_404() -> None:
    gateway = FakeGateway(lambda _: gateway_404())
    transport = guard(gateway, warmup_timeout=20)
    assert await asyncio.gather(*(send(transport) for _ in range(3))) == [404] * 3
    assert loop_time() == 20.0
    assert gateway.sent == []


async def test_where_a_gates_whole_time_was_over_the_next_request_shows_what_there_is() -> None:
    gateway = FakeGateway(lambda _: gateway_404())
    transport = guard(gateway, warmup_timeout=20)
    assert await send(transport) == 404
    gateway.answer, probes = (lambda _: ok()), len(gateway.probes)
    assert await send(transport) == 200
    assert (len(gateway.probes), len(gateway.sent)) == (probes, 1)


async def test_a_job_that_is_still_on_its_way_at_the_end_is_warmed_anew(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gateway = FakeGateway(lambda _: gateway_404())
    transport = guard(gateway, FakeControlPlane("JOB_STATE_CREATING"), warmup_timeout=20)
    assert await send(transport) == 404
    assert "handed back after 20.00 s (genuine_not_found, job_not_running)" in caplog.text
    gateway.answer, probes = (lambda _: ok()), len(gateway.probes)
    assert await send(transport) == 200
    assert len(gateway.probes) == probes + 3


@pytest.mark.parametrize("status_code", [409, 500])
async def test_what_a_gates_probes_have_proved_does_not_hang_on_the_requests_own_answer(
    status_code: int,
) -> None:
    gateway = FakeGateway(lambda e: ok() if e.is_probe else httpx.Response(status_code))
    transport = guard(gateway)
    assert [await send(transport), await send(transport)] == [status_code] * 2
    assert len(gateway.probes) == 3


async def test_a_gate_that_only_requests_find_open_is_probed_no_more_after_three_times() -> None:
    """The trainer answers the probes' path with a 404 that could be anybody's."""
    gateway, plane = FakeGateway(), FakeControlPlane()
    transport = guard(gateway, plane)
    probes = []
    for _ in range(5):
        gateway.answer = lambda e: plain_404() if e.is_probe else ok()
        plane.state = "JOB_STATE_RUNNING"
        assert await send(transport) == 200
        probes.append(len(gateway.probes))
        await asyncio.sleep(60)
        # The job is stopped, which makes the route cold.
        gateway.answer, plane.state = (lambda _: gateway_404()), "JOB_STATE_PAUSED"
        assert await send(transport) == 404
        await asyncio.sleep(60)
    assert probes == [3, 6, 9, 9, 9]


async def test_a_late_waiter_has_its_own_time() -> None:
    """The budget counts from each request's own arrival, whoever probed before."""
    gateway = FakeGateway(known_from(25.0))
    transport = guard(gateway, warmup_timeout=20)
    first = asyncio.create_task(send(transport))
    await asyncio.sleep(10)
    late = asyncio.create_task(send(transport))
    assert await first == 404
    assert loop_time() == 20.0
    assert await late == 200
    assert 25.0 <= loop_time() < 29.0


@pytest.mark.parametrize("body", [plain_404, router_404, lambda: httpx.Response(404)])
async def test_a_404_of_any_kind_has_the_whole_budget_of_a_cold_route(
    body: Callable[[], httpx.Response], caplog: pytest.LogCaptureFixture
) -> None:
    """Envoy's is empty, Traefik's a line of text; both come up after a minute."""
    caplog.set_level(logging.INFO, "tinker_guard")
    gateway = FakeGateway(lambda e: ok() if e.at >= 60 else body())
    assert await send(guard(gateway, retry_timeout=3)) == 200
    assert 60.0 <= loop_time() < 64.0
    assert " probes." not in caplog.text


@pytest.mark.parametrize("seconds", ["3", "500"])
async def test_retry_after_is_obeyed_but_cut_to_the_budget(seconds: str) -> None:
    def answer(exchange: Exchange) -> httpx.Response:
        if exchange.at >= 1.0:
            return ok()
        response = gateway_404()
        response.headers["retry-after"] = seconds
        return response

    gateway = FakeGateway(answer)
    assert await send(guard(gateway, warmup_timeout=20)) == 200
    assert gateway.probes[1].at == min(float(seconds), 20.0)


async def test_time_is_counted_from_the_request_not_from_the_start_of_the_program(
    caplog: pytest.LogCaptureFixture, measured: Measured
) -> None:
    caplog.set_level(logging.INFO, "tinker_guard")
    await asyncio.sleep(1000)
    transport = guard(FakeGateway(lambda _: gateway_404()), warmup_timeout=20)
    assert await send(transport) == 404
    assert loop_time() == 1020.0
    ROUTES.clear()
    transport = guard(FakeGateway(known_from(loop_time() + 1)), warmup_timeout=20)
    assert await send(transport) == 200
    assert "handed back after 20." in caplog.text
    assert "its route answers after 1." in caplog.text
    points = [p for name, p in measured.points() if name.endswith("warmup.duration")]
    (both,) = points
    assert isinstance(both, HistogramDataPoint)
    assert (both.count, both.max) == (2, 20.0)
    assert 1.0 <= both.min <= 1.5


async def test_after_a_refusal_the_next_request_warms_anew() -> None:
    gateway = FakeGateway(known_from(5.0))
    transport = guard(gateway, FakeControlPlane(None, states=[(5.0, "JOB_STATE_RUNNING")]))
    assert await send(transport) == 404
    await asyncio.sleep(6)
    assert await send(transport) == 200


async def test_404s_that_name_nobody_do_not_hold_a_running_jobs_gate_for_long() -> None:
    gateway = FakeGateway(lambda e: plain_404() if e.is_probe else ok())
    assert await send(guard(gateway)) == 200
    assert loop_time() < 0.5


async def test_no_waiter_waits_longer_than_its_own_timeout() -> None:
    gateway = FakeGateway(lambda _: gateway_404())
    transport = guard(gateway, warmup_timeout=20)
    leaders = [asyncio.create_task(send(transport)) for _ in range(3)]
    last = asyncio.create_task(send(transport))
    for number, leader in enumerate(leaders):
        await asyncio.sleep(19 if number == 0 else 0.1)
        leader.cancel()
    assert await last == 404
    assert loop_time() <= 20.0


async def test_a_404_that_names_nobody_for_a_stopped_job() -> None:
    gateway = FakeGateway(lambda _: plain_404())
    transport = guard(gateway, FakeControlPlane("JOB_STATE_FAILED"))
    response = await transport.handle_async_request(post())
    assert (response.status_code, await response.aread()) == (404, b"404 page not found")


async def test_a_cancelled_leader_hands_over() -> None:
    gateway = FakeGateway(known_from(2.0))
    transport = guard(gateway)
    leader, heir = (asyncio.create_task(send(transport)) for _ in range(2))
    await asyncio.sleep(1)
    leader.cancel()
    assert await heir == 200
    assert leader.cancelled()
    assert loop_time() < 2.75
    assert gateway.unclosed() == []


async def test_a_gate_that_was_opened_meanwhile_is_not_warmed_again() -> None:
    """Here by a request with another key, which does not wait for this one's warmup."""

    async def answer(exchange: Exchange) -> httpx.Response:
        is_slow = exchange.is_probe and exchange.headers["x-api-key"] == KEY
        await asyncio.sleep(4 if is_slow else 0)
        return ok()

    gateway = FakeGateway(answer)
    transport = guard(gateway)
    leader, waiter = (asyncio.create_task(send(transport)) for _ in range(2))
    await asyncio.sleep(1)
    other = post()
    other.headers["x-api-key"] = "another"
    assert await send(transport, other) == 200
    leader.cancel()
    assert await waiter == 200
    assert loop_time() == 1.0


async def test_keys_share_neither_a_warmup_nor_a_refusal() -> None:
    """The control plane hides the job from a stranger, and its owner waits until it is routed."""

    class Plane(FakeControlPlane):
        async def job_state(
            self, account: str, job: str, *, origin: str, credentials: Mapping[str, str]
        ) -> str | None:
            await super().job_state(account, job, origin=origin, credentials=credentials)
            return "JOB_STATE_RUNNING" if credentials["x-api-key"] == KEY else None

    gateway = FakeGateway(known_from(5.0))
    transport = guard(gateway, Plane())
    stranger = post()
    stranger.headers["x-api-key"] = "stranger"
    for pair in ((stranger, post()), (post(), stranger)):
        ROUTES.clear()
        gateway.answer = known_from(loop_time() + 5.0)
        answers = await asyncio.gather(*(send(transport, request) for request in pair))
        expected = {id(stranger): 404}
        assert answers == [expected.get(id(request), 200) for request in pair]


async def test_a_cancelled_waiter_leaves_the_leader_alone() -> None:
    gateway = FakeGateway(known_from(2.0))
    transport = guard(gateway)
    leader, waiter = (asyncio.create_task(send(transport)) for _ in range(2))
    await asyncio.sleep(1)
    waiter.cancel()
    assert await leader == 200
    assert waiter.cancelled()


@pytest.mark.parametrize("at", [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
async def test_cancelled_at_any_time_nothing_is_left(at: float) -> None:
    async def answer(exchange: Exchange) -> httpx.Response:
        await asyncio.sleep(0.1)
        return gateway_404()

    gateway, tasks = FakeGateway(answer), asyncio.all_tasks()
    transport = guard(gateway, FakeControlPlane(takes=0.1))
    task = asyncio.create_task(send(transport))
    await settle()
    await asyncio.sleep(at)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.all_tasks() == tasks
    assert gateway.unclosed() == []
    await transport.aclose()
    assert all(transport.is_closed for transport in gateway.transports)


async def test_without_warmup_the_request_goes_at_once() -> None:
    gateway = FakeGateway()
    assert await send(guard(gateway, warmup_successes=0)) == 200
    assert gateway.probes == []


async def test_without_new_transports_the_probes_share_the_one() -> None:
    gateway = FakeGateway()
    transport = GuardTransport(gateway.new_transport(), control_plane=FakeControlPlane())
    assert await send(transport) == 200
    assert [probe.connection for probe in gateway.probes] == [0, 0, 0]


@pytest.mark.meets_fault
async def test_a_fault_of_the_gates_own_lets_the_request_through(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = FakeGateway()
    transport = guard(gateway)
    monkeypatch.setattr("tinker_guard.core.warmup.probe_until_routable", _raise)
    assert await send(transport) == 200
    (record,) = [r for r in caplog.records if r.name == "tinker_guard"]
    assert "a fault of its own in the warmup" in record.getMessage()


async def _raise(*_: object, **__: object) -> None:
    raise ZeroDivisionError


async def test_a_server_that_knows_neither_the_probes_path_nor_a_control_plane() -> None:
    """Its requests are sent, and once one got through, no further one waits."""
    gateway = FakeGateway(lambda e: plain_404() if e.is_probe else ok())
    transport = guard(gateway, FakeControlPlane(ControlPlaneError("an nginx's 404")))
    assert [await send(transport) for _ in range(3)] == [200, 200, 200]
    assert (len(gateway.probes), loop_time()) == (1, 0.0)


class _OfTheTransport(BaseException):
    pass


async def test_what_the_transport_raises_reaches_the_caller_as_it_is() -> None:
    error = _OfTheTransport("mine")

    def answer(_: Exchange) -> httpx.Response:
        raise error

    with pytest.raises(_OfTheTransport) as raised:
        await send(guard(FakeGateway(answer)))
    assert raised.value is error


async def test_says_that_it_waits_and_for_what(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tinker_guard")
    await send(guard(FakeGateway(known_from(0.3))))
    lines = [record.getMessage() for record in caplog.records if record.name == "tinker_guard"]
    # Once, although there were several rounds.
    assert len(lines) == 2
    assert lines[0] == (
        "routing race: POST /api/v1/forward_backward waits up to 120 s "
        "(TINKER_GUARD_WARMUP_TIMEOUT) for the route of job acc/job-1: the gateway answers 404, "
        "but the control plane says JOB_STATE_RUNNING."
    )
    assert lines[-1].startswith("job acc/job-1: its route answers after 0.")


async def test_says_why_it_refuses(caplog: pytest.LogCaptureFixture) -> None:
    await send(guard(FakeGateway(lambda _: gateway_404()), FakeControlPlane("JOB_STATE_DELETED")))
    (line,) = [record.getMessage() for record in caplog.records if record.name == "tinker_guard"]
    assert line == (
        "404 for job acc/job-1 handed back after 0.00 s (genuine_not_found, job_not_running): "
        "the control plane says that it is JOB_STATE_DELETED."
    )


async def test_requests_on_no_trainer_route_are_not_gated() -> None:
    gateway = FakeGateway()
    request = httpx.Request("GET", "https://gateway.test/api/v1/healthz")
    assert await send(guard(gateway), request) == 200
    assert len(gateway.exchanges) == 1


async def test_a_transport_that_cancels_itself_in_a_probe_cancels_no_request() -> None:
    def answer(exchange: Exchange) -> httpx.Response:
        if exchange.is_probe:
            raise asyncio.CancelledError
        return ok()

    gateway = FakeGateway(answer)
    assert await send(guard(gateway)) == 200


async def test_nobody_waits_longer_at_the_gate_because_the_next_leader_has_more_time() -> None:
    """The next one to lead need not be the next one whose time is over."""

    async def send_at(at: float, transport: GuardTransport) -> tuple[int, float]:
        await asyncio.sleep(at)
        return await send(transport), loop_time()

    gateway, plane = FakeGateway(lambda _: gateway_404()), FakeControlPlane()
    guards = [guard(gateway, plane, warmup_timeout=seconds) for seconds in (5.0, 20.0, 6.0)]
    ended = await asyncio.gather(*(send_at(float(at), one) for at, one in enumerate(guards)))
    assert ended == [(404, 5.0), (404, 21.0), (404, 8.0)]
    assert gateway.sent == []


async def test_a_leader_that_other_settings_give_more_time_holds_no_request_up() -> None:
    """Once its own time is over, a request is sent, and shows what there is."""
    gateway, plane = FakeGateway(lambda _: gateway_404()), FakeControlPlane()
    seconds = {"probe_timeout": 2.0, "control_plane_timeout": 2.0, "retry_timeout": 2.0}
    leader, other = (guard(gateway, plane, warmup_timeout=t, **seconds) for t in (60.0, 5.0))
    leading = asyncio.create_task(send(leader))
    await asyncio.sleep(1.0)
    assert await send(other) == 404
    # Its own time, what a leader's last probe and lookup may take, and what follows its own 404.
    assert loop_time() <= 1.0 + 5.0 + 2.0 + 2.0 + 2.0
    assert await leading == 404
    assert loop_time() == 60.0


@pytest.mark.parametrize("state", ["JOB_STATE_PAUSED", "JOB_STATE_FAILED"])
async def test_a_job_that_was_resumed_before_a_request_came_does_not_refuse_it(state: str) -> None:
    """The lookup of another request, which came before, is still under way."""
    gateway = FakeGateway(known_from(2.0))

    class Plane:
        async def job_state(self, account: str, job: str, **_: Any) -> str:
            said = state if loop_time() < 1.0 else "JOB_STATE_RUNNING"
            await asyncio.sleep(3.0)
            return said

    transport = guard(gateway, Plane())
    before = asyncio.create_task(send(transport))
    await asyncio.sleep(1.5)
    assert await send(transport) == 200
    assert await before == 404
    assert loop_time() < 3.5


async def test_a_job_that_stays_stopped_refuses_all_that_wait_by_two_lookups() -> None:
    gateway = FakeGateway(lambda _: gateway_404())
    plane = FakeControlPlane("JOB_STATE_FAILED", takes=0.1)
    transport = guard(gateway, plane)

    async def send_at(at: float) -> int:
        await asyncio.sleep(at)
        return await send(transport)

    assert await asyncio.gather(*(send_at(n / 1000) for n in range(100))) == [404] * 100
    assert plane.questions == 2
    assert loop_time() < 0.5


@pytest.mark.parametrize("at", [60.0, 121.0])
async def test_a_wait_in_vain_with_another_key_takes_nothing_from_a_requests_budget(
    at: float,
) -> None:
    """In a notebook, a wrong key comes before the right one, and asks in vain all the time."""

    class Plane(FakeControlPlane):
        async def job_state(
            self, account: str, job: str, *, origin: str, credentials: Mapping[str, str]
        ) -> str | None:
            if credentials["x-api-key"] != KEY:
                raise ControlPlaneError("HTTP 401", status_code=401)
            return "JOB_STATE_RUNNING" if loop_time() >= 175 else "JOB_STATE_CREATING"

    async def send_late() -> int:
        await asyncio.sleep(at)
        return await send(transport)

    transport = guard(FakeGateway(known_from(175)), Plane())
    wrong = post()
    wrong.headers["X-Api-Key"] = "wrong"
    ends = await asyncio.gather(send(transport, wrong), send_late())
    assert list(ends) == [404, 200]
    assert 175 <= loop_time() < 180


async def test_what_was_said_before_a_request_came_does_not_refuse_it_when_its_time_ends() -> None:
    """A job is resumed as two requests come, and then meets a race that outlasts the warmup."""

    class Plane(FakeControlPlane):
        async def job_state(
            self, account: str, job: str, *, origin: str, credentials: Mapping[str, str]
        ) -> str | None:
            is_first = loop_time() < 0.2
            await asyncio.sleep(4 if is_first else 0)
            return "JOB_STATE_PAUSED" if is_first else "JOB_STATE_RUNNING"

    async def answer(exchange: Exchange) -> httpx.Response:
        # The last probes are slow, so that the third request's time ends before the second's probe.
        await asyncio.sleep(0.01 if exchange.at < 50 else 1.0)
        return gateway_404() if exchange.at < 125 else ok()

    async def send_at(at: float) -> int:
        await asyncio.sleep(at)
        return await send(transport)

    transport = guard(FakeGateway(answer), Plane())
    assert list(await asyncio.gather(*map(send_at, (0.0, 0.5, 0.7)))) == [404, 404, 200]


async def test_a_guard_above_another_one_waits_for_no_warmup_of_its_own() -> None:
    """As where a program guards its client by itself, below a transport that retries."""

    class Retrying(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            return await below.handle_async_request(request)

    gateway, plane = FakeGateway(known_from(1.0)), FakeControlPlane()
    below = guard(gateway, plane)
    above = GuardTransport(Retrying(), control_plane=plane)
    assert await send(above) == 200
    assert loop_time() < 1.5
    assert len(gateway.sent) == 1
