"""What happens after a 404 on a trainer route: a verdict, and for a race a resend."""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Final

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_result

from tinker_guard import logs
from tinker_guard.closing import discard
from tinker_guard.peek import read_source
from tinker_guard.probing import Probing
from tinker_guard.verdict import (
    CONTROL_PLANE_ERROR,
    JOB_MISSING,
    JOB_NOT_RUNNING,
    ROUTING_RACE,
    Source,
    Verdict,
    backoff,
    judge,
    may_begin,
    retry_after,
    weigh,
)

if TYPE_CHECKING:
    from tinker_guard.control_plane import SharedControlPlane
    from tinker_guard.line import Line
    from tinker_guard.route import RouteState
    from tinker_guard.settings import GuardSettings
    from tinker_guard.telemetry import RequestReport
    from tinker_guard.verdict import Answer, Judgement, Refusal


_DISTANCES: Final = 4
"""Of as many replicas in turn, one that knows the route is met within as many resends."""


class Recovery:
    """Sees one request through the routing race that its 404 may come from.

    Resends the very same request (same bytes, same `X-Idempotency-Key`) and no other, so that
    the trainer can tell a repeat from new work. It does so when a probe has reached the trainer,
    or when probes and waiting can tell no more: while a route is lost, all that is sent on it is
    one small probe at a time, however many requests wait and however large they are.
    """

    def __init__(
        self,
        settings: GuardSettings,
        control_plane: SharedControlPlane,
        request: httpx.Request,
        line: Line,
        state: RouteState,
        report: RequestReport,
    ) -> None:
        self._settings = settings
        self._control_plane = control_plane
        self._request = request
        self._line = line
        self._state = state
        self._report = report
        self._clock = asyncio.get_running_loop().time
        self._started_at = self._clock()
        self._deadline = self._started_at + settings.retry_timeout
        self._refused_at: float | None = None
        """When the last 404 was judged to be a race; None before that."""
        self._has_reached = False
        """Whether a probe of this request's own reached the trainer just before the resend."""
        self._is_unclear = False
        """Whether it gave up probing because the 404s of its probes name nobody."""
        self._reached_in_a_row = 0
        self._is_discarded = False
        """Whether the last 404 was closed, so that it can be handed back no more."""
        self._error: Exception | None = None
        """What the transport raised on a resend."""
        self._answer: Answer | None = None
        """What the control plane said to the last 404, if it was asked."""

    async def run(
        self, not_found: httpx.Response, sent_on: httpx.AsyncBaseTransport
    ) -> httpx.Response:
        """Turn a 404 into what the caller gets.

        Args:
            not_found: The 404, its body unread.
            sent_on: The transport that it came from.

        Returns:
            The answer of a resend after a race; else the last 404, its body whole.

        Raises:
            Exception: What the inner transport raises on a resend.
        """
        self._response = not_found
        self._sent_on = sent_on
        attempts = AsyncRetrying(
            retry=retry_if_result(lambda is_racing: is_racing),
            wait=self._delay,
            stop=self._is_budget_spent,
            sleep=self._discard_and_sleep,
            retry_error_callback=lambda _: None,
        )
        try:
            await attempts(self._attempt)
            self._conclude()
        except Exception as error:
            if error is self._error:
                raise
            # A bug of the guard's own, or no memory left.
            logs.log_fault("the recovery")
            if self._is_discarded:
                return await self._line.transport.handle_async_request(self._request)
        except GeneratorExit:
            # The event loop was closed under it: nothing can be waited for any more.
            raise
        except BaseException:
            await discard(self._response)
            raise
        return self._response

    async def _attempt(self) -> bool:
        """Resend, but for the first time, and judge; True while the route is racing."""
        if self._refused_at is not None:
            await self._wait_for_route()
            await self._resend(self._clock() - self._refused_at)
            if self._response.status_code != 404:
                if self._is_unclear:
                    self._state.misled += 1
                return False
        try:
            judgement = await self._judge()
        except Exception:
            logs.log_fault("the verdict")
            judgement = CONTROL_PLANE_ERROR
        self._report.judged(judgement)
        if judgement.verdict is not Verdict.ROUTING_RACE:
            return False
        if not self._is_replayable:
            self._report.cannot_be_resent()
            return False
        logs.log_race_met(self._state)
        self._refused_at = self._clock()
        return True

    async def _judge(self) -> Judgement:
        source = await read_source(self._response)
        is_evidence = source is Source.UNKNOWN and self._has_reached
        self._reached_in_a_row = self._reached_in_a_row + 1 if is_evidence else 0
        source = weigh(source, self._reached_in_a_row)
        self._answer = None
        judgement = judge(source, None)
        if judgement is not None:
            return judgement
        try:
            # The budget holds later questions; the first one always gets its full time, so that
            # no request is judged unheard.
            async with asyncio.timeout_at(self._deadline if self._report.resends else None):
                self._answer = await self._control_plane.ask(
                    self._state, self._request.headers, self._line
                )
        except TimeoutError:
            return ROUTING_RACE
        judgement = judge(source, self._answer)
        assert judgement is not None
        return judgement

    async def _wait_for_route(self) -> None:
        """Wait until a probe has reached the trainer, this request's or another's.

        Ends early when the job has stopped, the budget is spent, or probes say nothing about
        this route: the resend that follows then shows what there is.
        """
        self._has_reached = self._is_unclear = False
        try:
            if self._report.resends > 0 or self._state.are_probes_blind:
                # A follower's connection is replaced only now that it proved stale by itself:
                # building one for each of many that wait would hold up their event loop.
                await self._line.replace(self._sent_on)
            if not self._state.are_probes_blind:
                async with asyncio.timeout_at(self._deadline):
                    await self._scout()
        except TimeoutError:
            pass
        except Exception:
            logs.log_fault("scouting")

    async def _scout(self) -> None:
        is_leader = False

        async def lead() -> Refusal | None:
            nonlocal is_leader
            is_leader = True
            await self._line.replace(self._sent_on)
            probing = Probing(
                self._settings,
                self._control_plane,
                self._request,
                self._line,
                self._state,
                successes=1,
                timeout=self._deadline - self._clock(),
                awaits_start=False,
            )
            refusal = await probing.run()
            self._has_reached, self._is_unclear = probing.has_reached, probing.is_unclear
            if probing.has_reached:
                # A balancer that takes its replicas in turn could show every probe one that knows
                # the route and every resend one that does not. So each resend comes at another
                # distance from a replica that knows it.
                for _ in range(self._report.resends % _DISTANCES):
                    self._has_reached &= await probing.probe_once()
            return refusal

        while True:
            refusal = await self._state.here.scouting.run(lead)
            if is_leader or (refusal is not None and refusal.judgement != ROUTING_RACE):
                return
            if refusal is None:
                # All followers are released at once; they need not arrive at once.
                await asyncio.sleep(random.random() * self._settings.backoff_initial)
                return
            # The leader's budget was spent, not this one's: its turn has come.

    async def _resend(self, pause: float) -> None:
        self._sent_on = self._line.transport
        try:
            self._response = await self._report.resend(self._sent_on, pause=pause)
        except Exception as error:
            self._error = error
            raise
        self._is_discarded = False

    async def _discard_and_sleep(self, seconds: float) -> None:
        self._is_discarded = True
        await discard(self._response)
        if seconds > 0:
            logs.log_waiting(self._state, "a resend met the race again", seconds)
        await asyncio.sleep(seconds)

    def _delay(self, call: RetryCallState) -> float:
        delay = backoff(
            call.attempt_number,
            initial=self._settings.backoff_initial,
            maximum=self._settings.backoff_max,
            jitter=random.random(),
        )
        return max(delay, retry_after(self._response.headers, now=time.time()))

    def _is_budget_spent(self, call: RetryCallState) -> bool:
        return not may_begin(
            elapsed=self._clock() - self._started_at,
            delay=call.upcoming_sleep,
            budget=self._settings.retry_timeout,
        )

    def _conclude(self) -> None:
        if self._response.status_code != 404:
            logs.log_race_over(self._state, self._report.resends)
            return
        judgement = self._report.judgement
        assert judgement is not None
        if judgement in (JOB_NOT_RUNNING, JOB_MISSING):
            # A job that is resumed comes up anew, replica by replica.
            self._state.is_warm = False
        logs.log_handed_back(
            self._state,
            judgement,
            self._answer,
            self._clock() - self._started_at,
            is_replayable=self._is_replayable,
        )

    @property
    def _is_replayable(self) -> bool:
        # Any other body may have been a one-way stream, and is spent.
        return isinstance(self._request.stream, httpx.ByteStream)
