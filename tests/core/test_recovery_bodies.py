from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from testkit.fakes import (
    GATEWAY_BODY,
    TRAINER_BODY,
    Exchange,
    FakeControlPlane,
    FakeGateway,
    FakeTransport,
    ReadingTransport,
    TrackedStream,
    gateway_404,
    loop_time,
    ok,
    plain_404,
    post,
    send,
    trainer_404,
)
from testkit.fakes import ungated as guard
from tinker_guard import ControlPlaneError, GuardSettings, GuardTransport
from tinker_guard.core import attempts
from tinker_guard.core.guarded_request import GuardedRequest
from tinker_guard.core.routes import ROUTES
from tinker_guard.policy.json_body import BODY_LIMIT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

pytestmark = pytest.mark.anyio


async def test_a_404_too_long_to_be_kept_is_closed_before_any_wait() -> None:
    streams: list[TrackedStream] = []

    def answer(exchange: Exchange) -> httpx.Response:
        if exchange.at >= 5 or exchange.is_probe:
            # Probes are sent only when what the request met is closed.
            assert all(stream.is_closed for stream in streams)
        if exchange.at >= 5:
            return ok()
        streams.append(TrackedStream([b"x" * BODY_LIMIT, b"y"]))
        return httpx.Response(404, stream=streams[-1])

    gateway = FakeGateway(answer)
    assert (await send(guard(gateway))).status_code == 200
    assert 5.0 <= loop_time() < 6.25
    assert gateway.unclosed() == []


@pytest.mark.parametrize("budget", [0.0, 3.0])
async def test_a_404_too_long_to_be_kept_is_handed_back_whole_at_the_end(budget: float) -> None:
    """That of the last resend, which nothing follows."""
    gateway = FakeGateway(
        lambda _: httpx.Response(404, stream=TrackedStream([b"x" * BODY_LIMIT, b"y", b"z"]))
    )
    response = await send(guard(gateway, retry_timeout=budget))
    assert (response.status_code, response.content) == (404, b"x" * BODY_LIMIT + b"yz")
    assert gateway.sent[-1].at == loop_time() == budget
    assert len([exchange for exchange in gateway.sent if exchange.at == budget]) == 1
    assert gateway.unclosed() == []


async def test_one_more_resend_for_a_404_too_long_to_be_kept_is_a_resend_like_others(
    spans: InMemorySpanExporter,
) -> None:
    """Here the job has stopped, and the 404 in hand was closed before the wait."""
    plane = FakeControlPlane(states=[(101.0, "JOB_STATE_FAILED")])
    gateway = FakeGateway(
        lambda e: (
            gateway_404()
            if e.is_probe
            else httpx.Response(404, stream=TrackedStream([b"x" * BODY_LIMIT, b"y"]))
        )
    )
    await asyncio.sleep(100)
    assert (await send(guard(gateway, plane, retry_timeout=10))).status_code == 404
    (resend,) = [span for span in spans.get_finished_spans() if span.name.startswith("resend ")]
    attributes = resend.attributes or {}
    assert attributes["http.request.resend_count"] == 1
    pause = attributes["tinker_guard.pause"]
    assert pause == pytest.approx(gateway.sent[1].at - 100.0, abs=0.001)
    assert 1.0 <= gateway.sent[1].at - 100.0 < 2.0


async def test_an_answer_to_that_one_more_resend_ends_the_race(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The closing of the 404 outlasts the budget."""

    class Slow(TrackedStream):
        async def aclose(self) -> None:
            await asyncio.sleep(2.0)
            await super().aclose()

    answers = iter([gateway_404(), httpx.Response(404, stream=Slow([b"x" * BODY_LIMIT, b"y"]))])
    caplog.set_level(logging.INFO, "tinker_guard")
    gateway = FakeGateway(lambda e: ok() if e.is_probe else next(answers, ok()))
    assert (await send(guard(gateway, retry_timeout=0.5))).status_code == 200
    assert len(gateway.sent) == 3
    assert caplog.messages[-1].startswith("job acc/job-1: its route answers after")
    state = ROUTES.find(post().url)
    assert state is not None
    assert state.is_warm


@pytest.mark.meets_fault
@pytest.mark.parametrize("is_large", [True, False])
async def test_a_fault_after_the_answer_of_a_resend_sends_nothing_more(
    is_large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(TrackedStream):
        async def aclose(self) -> None:
            await asyncio.sleep(2.0)
            await super().aclose()

    def fail(*_: object) -> None:
        raise RuntimeError("fault")

    large = httpx.Response(404, stream=Slow([b"x" * BODY_LIMIT, b"y"]))
    answers = iter([gateway_404(), large] if is_large else [gateway_404()])
    gateway = FakeGateway(lambda e: ok() if e.is_probe else next(answers, ok()))
    monkeypatch.setattr(GuardedRequest, "answered", fail)
    assert (await send(guard(gateway, retry_timeout=0.5))).status_code == 200
    assert len(gateway.sent) == (3 if is_large else 2)


@pytest.mark.parametrize("state", ["JOB_STATE_FAILED", None, OSError()])
async def test_a_404_too_long_to_be_kept_is_not_given_away_for_a_doubt(
    state: str | Exception | None,
) -> None:
    gateway = FakeGateway(
        lambda _: httpx.Response(404, stream=TrackedStream([b"x" * BODY_LIMIT, b"y", b"z"]))
    )
    response = await send(guard(gateway, FakeControlPlane(state)))
    assert (response.status_code, response.content) == (404, b"x" * BODY_LIMIT + b"yz")
    assert (len(gateway.exchanges), loop_time()) == (1, 2.0 if state is None else 0.0)


@pytest.mark.parametrize(
    "error",
    [
        httpx.ReadError("cut"),
        RuntimeError("a bug below"),
        ExceptionGroup("a nursery's", [OSError()]),
        asyncio.CancelledError(),
    ],
)
async def test_what_a_transport_raises_as_the_404_is_read_reaches_the_reader(
    error: Exception,
) -> None:
    """At the same place: after the bytes that came before."""
    gateway = FakeGateway(
        lambda _: httpx.Response(404, stream=TrackedStream([b"ab", b"cd"], error=error))
    )
    transport = guard(gateway, FakeControlPlane("JOB_STATE_FAILED"))
    response = await transport.handle_async_request(post())
    chunks = response.aiter_raw()
    assert [await anext(chunks), await anext(chunks)] == [b"ab", b"cd"]
    with pytest.raises(type(error)) as raised:
        await anext(chunks)
    assert raised.value is error


async def test_a_404_that_breaks_off_during_a_race_is_no_end_of_it() -> None:
    def answer(exchange: Exchange) -> httpx.Response:
        if exchange.at >= 2:
            return ok()
        stream = TrackedStream([b'{"err'], error=httpx.ReadError("cut"))
        return httpx.Response(404, stream=stream)

    gateway = FakeGateway(answer)
    assert (await send(guard(gateway))).status_code == 200
    assert 2.0 <= loop_time() < 2.5
    assert gateway.unclosed() == []


@pytest.mark.parametrize(
    ("not_found", "known_at"),
    [
        (trainer_404, None),
        (gateway_404, 3.0),
        (plain_404, 3.0),
        (lambda: httpx.Response(404, stream=TrackedStream([b"x" * BODY_LIMIT] * 2)), 3.0),
    ],
)
async def test_a_404_that_something_below_has_read_is_judged_by_its_content(
    not_found: Callable[[], httpx.Response], known_at: float | None
) -> None:
    """Requests, waits and answers are the same as above a transport that reads nothing."""

    async def run(kind: type[FakeTransport]) -> list[tuple[float, bool]]:
        def build() -> FakeTransport:
            gateway.transports.append(kind(gateway, len(gateway.transports)))
            return gateway.transports[-1]

        began = loop_time()
        ROUTES.clear()
        attempts.JITTER.seed(1)
        gateway = FakeGateway(
            lambda e: ok() if known_at and e.at >= began + known_at else not_found()
        )
        transport = GuardTransport(
            build(),
            settings=GuardSettings(warmup_successes=0),
            control_plane=FakeControlPlane(),
            new_transport=build,
        )
        for response in await asyncio.gather(*(send(transport) for _ in range(3))):
            assert response.status_code == (404 if known_at is None else 200)
            assert response.content == (TRAINER_BODY if known_at is None else b'{"ok": true}')
        return [(round(e.at - began, 6), e.is_probe) for e in gateway.exchanges]

    assert await run(ReadingTransport) == await run(FakeTransport)


async def test_a_404_is_read_in_the_requests_own_task_however_long_that_takes() -> None:
    tasks: set[asyncio.Task[Any] | None] = set()

    class Stream(TrackedStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for chunk in super().__aiter__():
                tasks.add(asyncio.current_task())
                yield chunk

        async def aclose(self) -> None:
            tasks.add(asyncio.current_task())
            await super().aclose()

    headers = {"content-type": "application/json"}
    gateway = FakeGateway(
        lambda _: httpx.Response(404, headers=headers, stream=Stream([TRAINER_BODY], pause=600))
    )
    task = asyncio.create_task(send(guard(gateway)))
    assert (await task).content == TRAINER_BODY
    assert (tasks, loop_time(), len(gateway.sent)) == ({task}, 600.0, 1)


class _CutBody(httpx.AsyncByteStream):
    """The beginning of the gateway's own body; then the connection breaks."""

    def __init__(self) -> None:
        self.is_closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield GATEWAY_BODY[:20]
        raise httpx.ReadError("cut off")

    async def aclose(self) -> None:
        self.is_closed = True


@pytest.mark.parametrize("up_at", [0.0, 1.0, None])
async def test_a_404_whose_body_breaks_off_is_waited_with_where_no_control_plane_answers(
    up_at: float | None,
) -> None:
    """What came of it is in memory, like the whole of another one."""
    bodies: list[_CutBody] = []

    def answer(exchange: Exchange) -> httpx.Response:
        is_up = up_at is not None and exchange.at >= up_at and len(gateway.exchanges) > 1
        if is_up or exchange.is_probe:
            return ok() if is_up else gateway_404()
        bodies.append(_CutBody())
        return httpx.Response(404, headers={"content-type": "application/json"}, stream=bodies[-1])

    gateway, plane = FakeGateway(answer), FakeControlPlane(ControlPlaneError("down"))
    transport = guard(gateway, plane, warmup_successes=0, retry_timeout=6.0)
    response = await transport.handle_async_request(post())
    assert [body.is_closed for body in bodies] == [True]
    if up_at is not None:
        assert response.status_code == 200
        assert loop_time() <= up_at + 0.5
        return
    assert response.status_code == 404
    assert loop_time() == pytest.approx(6.0, abs=0.5)
    with pytest.raises(httpx.ReadError, match="cut off"):
        await response.aread()


async def test_that_the_trainer_was_reached_meanwhile_serves_all_whose_probe_fails() -> None:
    """No control plane can be asked: each of them would be sent only on such a proof."""

    async def answer(exchange: Exchange) -> httpx.Response:
        if exchange.is_probe:
            await asyncio.sleep(1.0)
            raise httpx.ConnectError("refused")
        return ok() if exchange.at >= 0.5 else gateway_404()

    gateway = FakeGateway(answer)
    transport = _unasked(gateway)
    two = [asyncio.create_task(send(transport)) for _ in range(2)]
    await asyncio.sleep(0.5)
    assert (await send(transport)).status_code == 200
    assert [(await one).status_code for one in two] == [200, 200]
    assert (len(gateway.probes), len(gateway.sent)) == (1, 5)


async def test_a_trainer_that_shows_itself_meanwhile_allows_the_whole_budget() -> None:
    """It is a race from then on; the time for a first sign of the trainer was over at 20 s."""

    def answer(exchange: Exchange) -> httpx.Response:
        is_known = exchange.at >= 40.0 or exchange.headers.get("x-replica") == "1"
        return ok() if is_known else gateway_404()

    gateway = FakeGateway(answer)
    transport = _unasked(gateway, retry_timeout=60.0, unreached_timeout=20.0)
    waits = asyncio.create_task(send(transport))
    await asyncio.sleep(1.0)
    other = post()
    other.headers["x-replica"] = "1"
    assert (await send(transport, other)).status_code == 200
    assert (await waits).status_code == 200
    resent = [exchange.at for exchange in gateway.sent if "x-replica" not in exchange.headers][1:]
    assert resent[0] == 20.0
    assert resent[1] >= 40.0


def _unasked(gateway: FakeGateway, **settings: Any) -> GuardTransport:
    """A guard that asks no control plane."""
    return GuardTransport(
        gateway.new_transport(),
        settings=GuardSettings(warmup_successes=0, control_plane="none", **settings),
        new_transport=gateway.new_transport,
    )
