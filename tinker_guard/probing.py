"""Probes: cheap requests that find out whether a route is known, before real ones are sent."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Final

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_result

from tinker_guard import logs, telemetry
from tinker_guard.closing import discard
from tinker_guard.peek import read_source
from tinker_guard.verdict import (
    PEEK_LIMIT,
    JobPhase,
    NotFound,
    Refusal,
    Source,
    backoff,
    judge,
    may_begin,
)

if TYPE_CHECKING:
    from tinker_guard.control_plane import SharedControlPlane
    from tinker_guard.line import Line
    from tinker_guard.route import RouteState
    from tinker_guard.settings import GuardSettings

# Of the guarded request's headers, those that describe its body, its tracing or its identity: a
# probe has no body, and must not look to the trainer like a repeat of the request.
_NOT_FOR_PROBES: Final = frozenset(
    {
        "content-encoding",
        "content-length",
        "content-type",
        "traceparent",
        "tracestate",
        "transfer-encoding",
        "x-idempotency-key",
    }
)


_UNCLEAR_ROUNDS: Final = 3
"""After how many rounds of 404s that name nobody the real request is sent, if the job runs."""


class Probing:
    """Probes one route until it is known, waiting between rounds.

    The probes of a round go side by side, over connections of their own where those can be had:
    a healthy start then costs one exchange, and a connection that sticks to a replica which
    knows the route counts once. A 404 in a round starts the count again.

    Args:
        settings: Path, timeouts and backoff.
        control_plane: Asked after each round that met a 404.
        request: The guarded request, for its headers.
        line: The transport that the request will go over. One probe of each round goes over it.
        state: The route.
        successes: Probes in one round.
        timeout: Seconds within which a round must begin.
        awaits_start: Whether to wait for a job that is only on its way to running.
    """

    def __init__(
        self,
        settings: GuardSettings,
        control_plane: SharedControlPlane,
        request: httpx.Request,
        line: Line,
        state: RouteState,
        *,
        successes: int,
        timeout: float,
        awaits_start: bool,
    ) -> None:
        self.probes = 0
        """How many probes were sent."""
        self.has_reached = False
        """Whether every probe of the last round got an answer that came from the trainer."""
        self.is_unclear = False
        """Whether probing was given up because its 404s name nobody and the job runs."""
        self._settings = settings
        self._control_plane = control_plane
        self._request = request
        self._line = line
        self._state = state
        self._successes = successes
        self._timeout = timeout
        self._awaits_start = awaits_start
        self._clock = asyncio.get_running_loop().time
        self._started_at = self._clock()

    async def run(self) -> Refusal | None:
        """Probe until the real request should be sent (None) or more waiting cannot help.

        None also when a probe fails in another way, or when the control plane cannot say
        anything: what that means, the real request shows.
        """
        rounds = AsyncRetrying(
            retry=retry_if_result(lambda refusal: refusal is not None),
            wait=self._delay,
            stop=self._is_over,
            sleep=asyncio.sleep,
            before_sleep=self._say_what_is_waited_for,
            retry_error_callback=self._end,
        )
        refusal: Refusal | None = await rounds(self._round)
        return refusal

    async def probe_once(self) -> bool:
        """Send one more probe where the request will go; whether it reached the trainer."""
        self.probes += 1
        return await self._probe_on_line() is True

    async def _round(self) -> Refusal | None:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._probe_on_line())]
            tasks += [group.create_task(self._probe_afresh()) for _ in range(self._successes - 1)]
        self.probes += self._successes
        # A transport that cancels itself has not cancelled the request.
        results = [False if task.cancelled() else task.result() for task in tasks]
        not_founds = [result for result in results if isinstance(result, NotFound)]
        self.has_reached = all(result is True for result in results)
        if self.has_reached:
            self._state.misled = 0
        if not not_founds:
            return None
        # Where replicas answer differently, the gateway's own word says the most.
        not_found = min(not_founds, key=lambda found: found.source is not Source.GATEWAY)
        answer = await self._control_plane.ask(self._state, self._request.headers, self._line)
        if answer.failure is not None:
            return None
        judgement = judge(not_found.source, answer)
        assert judgement is not None
        return Refusal(judgement, not_found, answer)

    async def _probe_on_line(self) -> NotFound | bool:
        return await self._probe(self._line.transport)

    async def _probe_afresh(self) -> NotFound | bool:
        async with self._line.probe_transport() as transport:
            return await self._probe(transport)

    async def _probe(self, transport: httpx.AsyncBaseTransport) -> NotFound | bool:
        """Send one probe; the 404 it met, or whether it reached the trainer."""
        settings = self._settings
        response: httpx.Response | None = None
        probe = httpx.Request(
            "GET",
            self._state.route.url + settings.warmup_probe_path,
            headers=[
                (name, value)
                for name, value in self._request.headers.multi_items()
                if name.lower() not in _NOT_FOR_PROBES
            ],
            extensions={"timeout": httpx.Timeout(settings.probe_timeout).as_dict()},
        )
        try:
            with telemetry.probe_span(probe, self._state, settings) as report:
                async with asyncio.timeout(settings.probe_timeout):
                    response = await report.send(transport)
                    is_404 = response.status_code == 404
                    source = await read_source(response) if is_404 else Source.TRAINER
                    # Read to its end, so that the connection which was proved can be used again.
                    kept = await _kept(response)
                report.result = "reached" if source is Source.TRAINER else "not_found"
        except (httpx.HTTPError, httpx.StreamError, OSError):
            # Refused, broken or too slow.
            return False
        except Exception:
            logs.log_fault("a probe")
            return False
        except GeneratorExit:
            # See `Afterwards`.
            response = None
            raise
        finally:
            # Without an answer an error is on its way.
            if response is not None:  # pragma: no branch
                await discard(response)
        if source is Source.TRAINER:
            return True
        await self._line.replace(transport)
        return NotFound(source, *kept)

    def _delay(self, call: RetryCallState) -> float:
        # The first round has been sent at once; from here on each one waits, hence `+ 1`.
        return backoff(
            call.attempt_number + 1,
            initial=self._settings.backoff_initial,
            maximum=self._settings.backoff_max,
            jitter=random.random(),
        )

    def _is_over(self, call: RetryCallState) -> bool:
        refusal = _refusal_of(call)
        phase = refusal.answer.phase
        if phase is JobPhase.STOPPED or (phase is JobPhase.STARTING and not self._awaits_start):
            return True
        if _is_unclear(refusal) and call.attempt_number >= _UNCLEAR_ROUNDS:
            return True
        elapsed = self._clock() - self._started_at
        return not may_begin(elapsed=elapsed, delay=call.upcoming_sleep, budget=self._timeout)

    def _end(self, call: RetryCallState) -> Refusal | None:
        refusal = _refusal_of(call)
        self.is_unclear = _is_unclear(refusal)
        return None if self.is_unclear else refusal

    def _say_what_is_waited_for(self, call: RetryCallState) -> None:
        logs.log_waiting(
            self._state,
            f"waiting for its route (control plane: {_refusal_of(call).answer.state})",
            call.upcoming_sleep,
        )


def _refusal_of(call: RetryCallState) -> Refusal:
    """The refusal with which the last round ended; tenacity asks only after one."""
    assert call.outcome is not None
    refusal: Refusal = call.outcome.result()
    return refusal


def _is_unclear(refusal: Refusal) -> bool:
    """Whether a running job's trainer may itself answer the probe's path like that.

    Then the real request has to show what there is: a refusal, or a long wait, would harm a run
    that works without the guard.
    """
    is_running = refusal.answer.phase is JobPhase.RUNNING
    return is_running and refusal.not_found.source is Source.UNKNOWN


async def _kept(response: httpx.Response) -> tuple[httpx.Headers, bytes]:
    """Read a probe's answer, and keep what of a 404 can be handed back to a waiting request."""
    assert isinstance(response.stream, httpx.AsyncByteStream)
    body = bytearray()
    # As it came over the wire: decoded, a small body can become a huge one.
    async for chunk in response.stream:
        body += chunk
        if len(body) > PEEK_LIMIT:
            break
    headers = response.headers.copy()
    # Nothing of the body's framing is kept; and cookies are the prober's own.
    for name in ("transfer-encoding", "content-length", "set-cookie"):
        headers.pop(name, None)
    if len(body) > PEEK_LIMIT and headers.pop("content-encoding", None) is not None:
        # A part of it could not be decoded.
        body.clear()
    return headers, bytes(body)
