"""What a person reads at the default level while something waits, and afterwards."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from testkit.fakes import (
    BASE,
    Exchange,
    FakeControlPlane,
    FakeGateway,
    gateway_404,
    guard,
    known_from,
    loop_time,
    ok,
    post,
    tracked,
    trainer_404,
    ungated,
)
from tinker_guard.install import last_words
from tinker_guard.install.last_words import repeat_after_tracebacks

if TYPE_CHECKING:
    from collections.abc import Callable

    from tinker_guard import GuardTransport

pytestmark = pytest.mark.anyio

STARTS = (
    "{race}POST /api/v1/forward_backward waits up to {budget} for the route of job acc/job-1: the "
    "gateway answers 404, {said}."
)
RUNS = "but the control plane says JOB_STATE_RUNNING"
WARMUP = "120 s (TINKER_GUARD_WARMUP_TIMEOUT)"
RETRY = "30 s (TINKER_GUARD_RETRY_TIMEOUT)"


async def send(transport: GuardTransport) -> int:
    response = await transport.handle_async_request(post())
    await response.aread()
    return response.status_code


def starts(budget: str, said: str = RUNS, *, is_race: bool = True) -> str:
    return STARTS.format(race="routing race: " if is_race else "", budget=budget, said=said)


async def test_a_healthy_start_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    await send(guard(FakeGateway()))
    assert caplog.messages == []


async def test_a_long_wait_is_told_of_every_ten_seconds(caplog: pytest.LogCaptureFixture) -> None:
    transport = guard(FakeGateway(known_from(35.0)))
    assert await asyncio.gather(*(send(transport) for _ in range(20))) == [200] * 20
    first, *still, last = caplog.messages
    assert first == starts(WARMUP)
    assert len(still) == 3
    for number, line in enumerate(still, 1):
        assert line.startswith("job acc/job-1: still waiting for its route after ")
        passed, left = (int(word) for word in line.split() if word.isdigit())
        assert 10 * number <= passed <= 10 * number + 3 * number
        assert 119 <= passed + left <= 121
        assert line.endswith(f"s left; the gateway answers 404, {RUNS}.")
    assert last.startswith("job acc/job-1: its route answers after 3")
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


async def test_a_wait_that_the_gateway_asks_for_is_told_of_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def answer(exchange: Exchange) -> httpx.Response:
        response = ok() if exchange.at >= 45 else gateway_404()
        response.headers["retry-after"] = "45"
        return response

    assert await send(guard(FakeGateway(answer))) == 200
    assert loop_time() == 45.0
    assert [line.partition(" s left")[0].rpartition(" ")[2] for line in caplog.messages[1:-1]] == [
        *("110", "100", "90", "80")
    ]


async def test_a_job_on_its_way_is_waited_for_aloud(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tinker_guard")
    plane = FakeControlPlane("JOB_STATE_CREATING", states=[(4.0, "JOB_STATE_RUNNING")])
    assert await send(guard(FakeGateway(known_from(5.0)), plane)) == 200
    first, news, last = caplog.records
    creating = "and the control plane says JOB_STATE_CREATING"
    assert first.getMessage() == starts(WARMUP, creating, is_race=False)
    assert news.getMessage().endswith("the control plane says JOB_STATE_RUNNING.")
    assert last.getMessage().startswith("job acc/job-1: its route answers after 5.")
    assert last.getMessage().endswith(" probes.")
    levels = [record.levelno for record in (first, news, last)]
    assert levels == [logging.WARNING, logging.INFO, logging.WARNING]


@pytest.mark.parametrize("warmup", [0, 3])
async def test_where_one_replica_of_two_stays_stale_a_race_is_told_of_once(
    warmup: int, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = FakeGateway(lambda e: gateway_404() if len(gateway.exchanges) % 2 else ok())
    transport = guard(gateway, warmup_successes=warmup)
    while loop_time() < 25:
        assert await send(transport) == 200
        await asyncio.sleep(0.1)
    assert len(gateway.sent) > 250
    assert len(caplog.messages) <= 4
    assert caplog.messages[0] == starts(WARMUP if warmup else RETRY)
    assert caplog.messages[1].startswith("job acc/job-1: its route answers after 0.")
    for line in caplog.messages[2:]:
        assert "more requests met a 404 of the gateway and recovered; some replica" in line


async def test_a_race_after_a_quiet_minute_is_another_one(caplog: pytest.LogCaptureFixture) -> None:
    lost = [(0.0, 1.0), (100.0, 101.0)]
    gateway = FakeGateway(lambda e: gateway_404() if any(a <= e.at < b for a, b in lost) else ok())
    transport = guard(gateway, warmup_successes=0)
    await send(transport)
    await asyncio.sleep(100.0 - loop_time())
    await send(transport)
    assert len(caplog.messages) == 4
    assert caplog.messages[0] == caplog.messages[2] == starts(RETRY)


@pytest.mark.parametrize(
    ("warmup", "control_plane", "named"),
    [
        (3, "JOB_STATE_RUNNING", "a longer TINKER_GUARD_WARMUP_TIMEOUT waits longer."),
        (3, "JOB_STATE_CREATING", "a longer TINKER_GUARD_WARMUP_TIMEOUT waits longer."),
        (0, "JOB_STATE_RUNNING", "a longer TINKER_GUARD_RETRY_TIMEOUT waits longer."),
        (0, "JOB_STATE_CREATING", "a longer TINKER_GUARD_RETRY_TIMEOUT waits longer."),
    ],
)
async def test_the_advice_names_the_setting_that_would_have_helped(
    warmup: int, control_plane: str, named: str, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = FakeGateway(lambda _: gateway_404())
    plane = FakeControlPlane(control_plane)
    transport = guard(gateway, plane, warmup_successes=warmup, warmup_timeout=15, retry_timeout=5)
    assert await send(transport) == 404
    assert caplog.messages[-1].endswith(named)


async def test_a_404_that_no_setting_would_have_delayed_names_none(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The route had answered: a job that is queued again is gone."""
    gateway = FakeGateway(lambda e: gateway_404() if e.at >= 5.0 else ok())
    plane = FakeControlPlane("JOB_STATE_RUNNING", states=[(5.0, "JOB_STATE_RE_QUEUEING")])
    transport = guard(gateway, plane)
    assert await send(transport) == 200
    await asyncio.sleep(6.0)
    assert await send(transport) == 404
    assert caplog.messages[-1].endswith("the control plane says that it is JOB_STATE_RE_QUEUEING.")


async def test_a_control_plane_that_is_late_names_its_setting(
    caplog: pytest.LogCaptureFixture,
) -> None:
    plane = FakeControlPlane(takes=60.0)
    transport = guard(FakeGateway(lambda _: gateway_404()), plane, warmup_successes=0)
    assert await send(transport) == 404
    assert caplog.messages[0] == starts(
        RETRY, "and the control plane gives no usable answer", is_race=False
    )
    assert "TINKER_GUARD_CONTROL_PLANE_TIMEOUT" in caplog.messages[-1]


async def test_a_trainers_404_after_a_race_ends_the_wait(caplog: pytest.LogCaptureFixture) -> None:
    gateway = FakeGateway(lambda e: trainer_404() if e.at >= 2 else gateway_404())
    assert await send(guard(gateway, warmup_successes=0)) == 404
    first, last = caplog.messages
    assert first == starts(RETRY)
    assert last.startswith("job acc/job-1: its route answers after 2.")


async def test_a_resend_that_ends_in_a_conflict_is_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The gateway lost the reply to each request; the trainer takes no repeat."""
    met: set[bytes] = set()

    def answer(exchange: Exchange) -> httpx.Response:
        if exchange.is_probe:
            return ok()
        is_repeat = exchange.body in met
        met.add(exchange.body)
        if not is_repeat:
            return gateway_404()
        return tracked(409, b'{"detail": "exists"}', "application/json")

    transport = guard(FakeGateway(answer))
    for name in (b"a", b"b"):
        request = post("/api/v1/save_weights", name)
        assert (await transport.handle_async_request(request)).status_code == 409
    (line,) = [line for line in caplog.messages if "409" in line]
    assert line == (
        "job acc/job-1: POST /api/v1/save_weights was sent again after a 404, and the trainer "
        "answers that it conflicts (409). It has probably done it the first time: only the answer "
        "was lost, and asking once more will not help."
    )


async def test_a_wait_that_a_request_itself_ends_is_over(caplog: pytest.LogCaptureFixture) -> None:
    """Probes met unknown 404s only, and the request got through."""
    gateway = FakeGateway(lambda e: httpx.Response(404) if e.is_probe else ok())
    assert await send(guard(gateway)) == 200
    assert len(caplog.messages) == 2
    assert caplog.messages[1].endswith("(resends of this request: 0).")


async def test_a_conflict_at_the_first_sending_is_the_programs_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gateway = FakeGateway(lambda e: ok() if e.is_probe else httpx.Response(409))
    assert await send(guard(gateway)) == 409
    assert caplog.messages == []


@pytest.mark.parametrize(("resends", "is_over"), [(0, False), (1, True)])
async def test_an_edges_error_is_told_of_as_the_end_of_a_wait_after_a_resend_only(
    resends: int, is_over: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Without one, the request had met no 404 that could be over."""
    met = 0

    def answer(exchange: Exchange) -> httpx.Response:
        nonlocal met
        if exchange.is_probe:
            return httpx.Response(404) if resends == 0 else ok()
        met += 1
        return gateway_404() if met <= resends else httpx.Response(503)

    assert await send(guard(FakeGateway(answer))) == 503
    told = [line for line in caplog.messages if "its route answers after" in line]
    assert len(told) == is_over
    if is_over:
        assert told[0].endswith(f"(resends of this request: {resends}).")


async def test_without_logging_set_up_lines_name_their_author(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    await send(guard(FakeGateway(known_from(1.0))))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"tinker_guard: {starts(WARMUP)}"
    assert len(lines) == 2


# -- the end of a traceback ----------------------------------------------------------------------


class NotFoundError(Exception):
    status_code = 404


def _caused_by(cause: BaseException) -> Exception:
    error = ValueError("poll failed")
    error.__cause__ = cause
    return error


def _wrapped() -> Exception:
    return _caused_by(NotFoundError("Trainer job not found or not running"))


def _own_cause(error: Exception) -> Exception:
    error.__cause__ = ExceptionGroup("", [error])
    return error


@pytest.mark.parametrize(
    ("make", "is_told"),
    [
        (lambda: NotFoundError("Trainer job not found or not running"), True),
        (_wrapped, True),
        (lambda: ExceptionGroup("a TaskGroup's", [KeyError("a"), _wrapped()]), True),
        (lambda: BaseExceptionGroup("outer", [_caused_by(ExceptionGroup("", [_wrapped()]))]), True),
        (lambda: ExceptionGroup("a TaskGroup's", [KeyError("a"), ValueError("b")]), False),
        (lambda: _own_cause(KeyError("a")), False),
        (lambda: ValueError("Error code: 404 - not found"), True),
        (lambda: ValueError("Error retrieving result: gone with status 404 for x"), True),
        (lambda: ZeroDivisionError("division by zero"), False),
        (lambda: ValueError("loss is nan at step 14042"), False),
        (lambda: OSError("404 Client Error: Not Found for url: https://models.test/x"), False),
    ],
)
async def test_a_traceback_of_a_404_ends_with_the_line_that_says_why(
    make: Callable[[], Exception],
    is_told: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = sys.__excepthook__
    monkeypatch.setattr(sys, "excepthook", before)
    undo = repeat_after_tracebacks()
    await send(guard(FakeGateway(lambda _: gateway_404()), FakeControlPlane("JOB_STATE_FAILED")))
    error = make()
    sys.excepthook(type(error), error, None)
    last = capsys.readouterr().err.splitlines()[-1]
    line = f"tinker_guard: {caplog.messages[-1]}"
    assert (last == line) is is_told
    assert line.endswith(
        "(genuine_not_found, job_not_running): the control plane says that it is JOB_STATE_FAILED."
    )
    shown = sys.excepthook
    undo()
    assert sys.excepthook is before
    shown(type(error), error, None)
    assert line not in capsys.readouterr().err


@pytest.mark.parametrize("after", ["a trainer's own 404", "a while"])
async def test_a_404_that_the_program_has_got_over_is_not_told_of(
    after: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    undo = repeat_after_tracebacks()
    await send(guard(FakeGateway(lambda _: gateway_404()), FakeControlPlane("JOB_STATE_FAILED")))
    if after == "a while":
        monkeypatch.setattr(last_words, "monotonic", lambda: time.monotonic() + 3600.0)
    else:
        await send(guard(FakeGateway(lambda _: trainer_404()), warmup_successes=0))
    sys.excepthook(NotFoundError, NotFoundError("checkpoint c not found"), None)
    assert "tinker_guard" not in capsys.readouterr().err.replace("tests.", "")
    undo()


OF_ANOTHER = NotFoundError("Error code: 404 - the model does not exist")
"""What a client of another service raises later in the same program."""


@pytest.mark.parametrize("state", ["JOB_STATE_FAILED", "JOB_STATE_RUNNING"])
async def test_a_404_of_a_route_that_answers_again_is_not_told_of(
    state: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    undo = repeat_after_tracebacks()
    is_up, control_plane = False, FakeControlPlane(state)
    gateway = FakeGateway(lambda _: ok() if is_up else gateway_404())
    transport = guard(gateway, control_plane, warmup_timeout=5.0)
    assert await send(transport) == 404
    is_up, control_plane.state = True, "JOB_STATE_RUNNING"
    assert await send(transport) == 200
    sys.excepthook(NotFoundError, OF_ANOTHER, None)
    assert "tinker_guard: 404" not in capsys.readouterr().err
    undo()


async def test_a_404_is_told_of_after_an_answer_on_another_route(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    undo = repeat_after_tracebacks()
    await send(guard(FakeGateway(lambda _: gateway_404()), FakeControlPlane("JOB_STATE_FAILED")))
    await guard(FakeGateway()).handle_async_request(
        httpx.Request("POST", f"{BASE}-2/api/v1/forward_backward")
    )
    sys.excepthook(NotFoundError, NotFoundError("Trainer job not found or not running"), None)
    assert "404 for job acc/job-1 handed back" in capsys.readouterr().err
    undo()


async def test_a_route_that_is_lost_again_at_once_is_told_of_again(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The log repeats no verdict within seconds; the end of a traceback has to have its line."""
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    undo = repeat_after_tracebacks()
    is_up, control_plane = False, FakeControlPlane("JOB_STATE_FAILED")
    transport = guard(FakeGateway(lambda _: ok() if is_up else gateway_404()), control_plane)
    for is_up in (False, True, False):
        control_plane.state = "JOB_STATE_RUNNING" if is_up else "JOB_STATE_FAILED"
        assert await send(transport) == (200 if is_up else 404)
    assert len([line for line in caplog.messages if "handed back" in line]) == 1
    sys.excepthook(NotFoundError, NotFoundError("Trainer job not found or not running"), None)
    assert "404 for job acc/job-1 handed back" in capsys.readouterr().err
    undo()


def test_a_hook_that_came_later_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    undo = repeat_after_tracebacks()

    def own(*_: object) -> None:
        pass

    sys.excepthook = own
    undo()
    assert sys.excepthook is own


async def test_each_request_says_what_the_control_plane_has_said_of_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Those that follow another one's probes too."""
    caplog.set_level(logging.DEBUG, "tinker_guard")
    gateway = FakeGateway(lambda _: gateway_404())
    plane = FakeControlPlane(states=[(0.0, "JOB_STATE_RUNNING"), (3.0, "JOB_STATE_FAILED")])
    transport = ungated(gateway, plane)
    codes = await asyncio.gather(*(send(transport) for _ in range(3)))
    assert codes == [404] * 3
    told = [line for line in caplog.messages if "(genuine_not_found, job_not_running)" in line]
    assert len(told) == 3
    assert all("it is JOB_STATE_FAILED" in line for line in told)
