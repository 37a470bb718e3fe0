"""The gate in front of a cold route: its first requests wait until probes reach the trainer."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Final, NamedTuple

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_result

from tinker_guard import telemetry
from tinker_guard.peek import read_source
from tinker_guard.route import Refusal
from tinker_guard.verdict import (
    PEEK_LIMIT,
    JobPhase,
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
    from tinker_guard.telemetry import RequestReport
    from tinker_guard.verdict import Answer

# Of the first request's headers, those that describe its body, its tracing or its identity: a
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


class Gate:
    """Holds a cold route's requests back until `warmup_successes` probes in a row got through.

    One request leads, the others wait for what it finds; a leader that is cancelled hands over
    to the next.
    """

    def __init__(self, settings: GuardSettings, control_plane: SharedControlPlane) -> None:
        self._settings = settings
        self._control_plane = control_plane

    async def wait(
        self, request: httpx.Request, line: Line, state: RouteState, report: RequestReport
    ) -> httpx.Response | None:
        """Wait until the route is warm.

        Returns:
            None when the request may be sent; the 404 to hand back when the job is stopped or
            missing, or when `warmup_timeout` is over.
        """
        if self._settings.warmup_successes == 0:
            state.is_warm = True
            return None
        clock = asyncio.get_running_loop().time
        arrived_at = clock()
        here = state.here
        async with here.warmup_lock:
            if state.is_warm:
                return None
            if here.refusal is not None and here.refusal[0] >= arrived_at:
                refusal: Refusal | None = here.refusal[1]
            else:
                warmup = _Warmup(self._settings, self._control_plane, request, line, state)
                refusal = await warmup.run()
                here.refusal = None if refusal is None else (clock(), refusal)
            if refusal is None:
                state.is_warm = True
                return None
        report.judgement = refusal.judgement
        return httpx.Response(404, headers=refusal.headers, content=refusal.body)


class _Warmup:
    """One warmup of one route.

    The probes of a round go side by side, over connections of their own where those can be had:
    a healthy start then costs one exchange, and a connection that sticks to a replica which
    knows the route counts once. A 404 in a round starts the count again.
    """

    def __init__(
        self,
        settings: GuardSettings,
        control_plane: SharedControlPlane,
        request: httpx.Request,
        line: Line,
        state: RouteState,
    ) -> None:
        self._settings = settings
        self._control_plane = control_plane
        self._request = request
        self._line = line
        self._state = state
        self._clock = asyncio.get_running_loop().time
        self._started_at = self._clock()
        self._probes = 0
        self._not_found: _NotFound | None = None
        """The last round's 404."""
        self._answer: Answer | None = None
        """What the control plane said to it."""

    async def run(self) -> Refusal | None:
        """Probe until the gate may open (None) or more waiting cannot help."""
        rounds = AsyncRetrying(
            retry=retry_if_result(lambda may_open: not may_open),
            wait=self._delay,
            stop=self._is_over,
            sleep=asyncio.sleep,
            before_sleep=self._say_what_is_waited_for,
            retry_error_callback=lambda _: self._may_open_unverified(),
        )
        with telemetry.warmup_span(self._state) as span:
            may_open: bool = await rounds(self._round)
            seconds = self._clock() - self._started_at
            span.set({"tinker_guard.warmup.probes": self._probes})
            if may_open:
                telemetry.log_warm(self._state, seconds, self._probes)
                return None
            assert self._not_found is not None
            judgement = judge(self._not_found.source, self._answer)
            assert judgement is not None
            span.set(telemetry.labels(judgement))
            span.failed("404")
            telemetry.log_handed_back(self._state, judgement, self._answer, seconds)
            return Refusal(judgement, self._not_found.headers, self._not_found.body)

    async def _round(self) -> bool:
        """Send one round of probes; True if the gate may open."""
        count = self._settings.warmup_successes
        async with asyncio.TaskGroup() as group:
            # The first goes over the connection that the request itself will use.
            probes = [group.create_task(self._probe(self._line.transport))]
            probes += [group.create_task(self._probe_afresh()) for _ in range(count - 1)]
        self._probes += count
        not_founds = [result for probe in probes if (result := probe.result()) is not None]
        if not not_founds:
            return True
        # Where replicas disagree, the gateway's own word says the most.
        self._not_found = min(not_founds, key=lambda found: found.source is not Source.GATEWAY)
        self._answer = await self._control_plane.ask(self._state, self._request.headers)
        # Without an answer the warmup knows nothing; the request itself shows what there is.
        return self._answer.failure is not None

    async def _probe_afresh(self) -> _NotFound | None:
        async with self._line.probe_transport() as transport:
            return await self._probe(transport)

    async def _probe(self, transport: httpx.AsyncBaseTransport) -> _NotFound | None:
        """Send one probe; a 404 if it met one that the trainer did not write."""
        settings = self._settings
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
        response: httpx.Response | None = None
        try:
            async with asyncio.timeout(settings.probe_timeout):
                response = await transport.handle_async_request(probe)
                if response.status_code != 404:
                    return None
                source = await read_source(response)
                if source is Source.TRAINER:
                    return None
                found = _NotFound(source, *await _kept(response))
        except Exception:
            # Refused, broken or too slow: what that means, the real request shows.
            return None
        finally:
            if response is not None:
                await response.aclose()
        await self._line.replace(transport)
        return found

    def _delay(self, call: RetryCallState) -> float:
        # A resend may follow at once, a round of probes waits from the first time: hence `+ 1`.
        return backoff(
            call.attempt_number + 1,
            initial=self._settings.backoff_initial,
            maximum=self._settings.backoff_max,
            jitter=random.random(),
        )

    def _is_over(self, call: RetryCallState) -> bool:
        assert self._answer is not None
        if self._answer.phase is JobPhase.STOPPED:
            return True
        budget = self._settings.warmup_timeout
        if self._is_unnamed:
            budget = min(budget, self._settings.retry_timeout)
        return not may_begin(
            elapsed=self._clock() - self._started_at, delay=call.upcoming_sleep, budget=budget
        )

    def _may_open_unverified(self) -> bool:
        # Nobody can be named for these 404s, and the job runs: perhaps this trainer answers the
        # probe's path like that. Refusing would break a run that works without the guard.
        assert self._answer is not None
        return self._is_unnamed and self._answer.phase is not JobPhase.STOPPED

    @property
    def _is_unnamed(self) -> bool:
        return self._not_found is not None and self._not_found.source is Source.UNKNOWN

    def _say_what_is_waited_for(self, call: RetryCallState) -> None:
        assert self._answer is not None
        telemetry.log_waiting(
            self._state,
            f"waiting for its route (control plane: {self._answer.state})",
            call.upcoming_sleep,
        )


class _NotFound(NamedTuple):
    """A probe's 404 that the trainer did not write."""

    source: Source
    headers: httpx.Headers
    body: bytes


async def _kept(response: httpx.Response) -> tuple[httpx.Headers, bytes]:
    """What of a probe's 404 can be handed back to a waiting request."""
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > PEEK_LIMIT:
            break
    headers = response.headers.copy()
    # The body is kept decoded and whole, which these would contradict.
    for name in ("content-encoding", "transfer-encoding", "content-length"):
        headers.pop(name, None)
    return headers, bytes(body)
