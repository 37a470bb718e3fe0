"""One request on a route that is not warm, or after a 404, with all that its way needs."""

from __future__ import annotations

import math
from contextlib import suppress
from contextvars import ContextVar
from functools import cached_property
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from tinker_guard import faults
from tinker_guard.core.findings import Ambiguous
from tinker_guard.core.routes import SpentBudget
from tinker_guard.observability import logs
from tinker_guard.observability.operation_names import operation_of
from tinker_guard.policy.job import may_settle
from tinker_guard.policy.judgement import (
    CONTROL_PLANE_ERROR,
    CONTROL_PLANE_TIMEOUT,
    JOB_MISSING,
    JOB_NOT_RUNNING,
    NO_CONTROL_PLANE,
    REMEMBERED_FOR,
    TRAINER_ANSWERED,
    AskAgain,
    JobAnswer,
    Verdict,
    judge,
    judge_by_reach,
)
from tinker_guard.policy.not_found import shows_route
from tinker_guard.policy.not_found_shapes import shapes_of
from tinker_guard.policy.reach import copy_of, with_cookies
from tinker_guard.transports import runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import httpx

    from tinker_guard.control_plane.shared import SharedControlPlane
    from tinker_guard.core.findings import ProbingEnd
    from tinker_guard.core.routes import Flights, RouteState
    from tinker_guard.policy.judgement import Judgement, KeepWaiting
    from tinker_guard.policy.not_found_shapes import ServerShape
    from tinker_guard.policy.reach import Cookies
    from tinker_guard.settings import GuardSettings
    from tinker_guard.telemetry import RequestReport
    from tinker_guard.transports.renewable import RenewableTransport


NEVER_REACHED: Final = JobAnswer(
    failure=NO_CONTROL_PLANE,
    detail="no control plane is set for this route, and nothing has ever reached its trainer. Is "
    "base_url right? TINKER_GUARD_UNREACHED_TIMEOUT waits longer.",
)
LOST: Final = JobAnswer(
    failure=NO_CONTROL_PLANE,
    detail="no control plane is set for this route, and its trainer, which was reached before, is "
    "not any more. TINKER_GUARD_CONTROL_PLANE names one to ask.",
)
SPARED: Final = JobAnswer(
    failure=NO_CONTROL_PLANE,
    detail="another request has waited for the same in vain, less than a minute ago.",
)
NOT_ASKED: Final = JobAnswer(
    failure=NO_CONTROL_PLANE,
    detail="no control plane that is asked about deployments is set, and this one has not answered "
    "yet.",
)
"""What stands in the place of an answer where there is no control plane."""


SEEN_TO: Final[ContextVar[object]] = ContextVar("tinker_guard_seen_to", default=None)
"""The body of the request that a guard sends now, and sees to: one below, such as a program's own
below the installed one, leaves it alone. A copy of a request has the same body, and another request
has another one, even if a signal handler sends it meanwhile."""

HANDED_BACK: Final[WeakKeyDictionary[httpx.Response, Judgement]] = WeakKeyDictionary()
"""404s with their verdicts, which a guard above hands back as they are."""


class GuardedRequest:
    """What belongs to one request that is seen through a warmup or a recovery.

    Its route is not dropped from the table until this is discarded from `state.under_way`.

    Args:
        request: The request, as the caller gave it.
        state: Its route.
        line: The transport that it is sent over.
        settings: How to behave.
        control_plane: Where to ask whether the job runs.
        report: What happens is noted there.
        is_at_gate: Whether it waits for a warmup if its route is cold.
    """

    def __init__(
        self,
        request: httpx.Request,
        state: RouteState,
        line: RenewableTransport,
        settings: GuardSettings,
        control_plane: SharedControlPlane,
        report: RequestReport,
        *,
        is_at_gate: bool = False,
    ) -> None:
        self._given = request
        self.request: httpx.Request = copy_of(request) if line.may_change_requests else request
        """The request as it was given, whatever the transport below makes of it."""
        self.state = state
        self.line = line
        self.settings = settings
        self.report = report
        self.flights: Flights = state.flights(control_plane.key_for(request))
        self.clock: Callable[[], float] = self.flights.clock
        self.arrived_at: float = self.clock()
        self.came_cold: bool = is_at_gate and self.is_cold
        """Whether it came to a cold route."""
        self.sent_on: httpx.AsyncBaseTransport = line.transport
        """The transport that the request was sent over last."""
        self.probed_on: httpx.AsyncBaseTransport = line.transport
        """The transport that its last probe was sent over."""
        self.resends: int = 0
        """How often the request was sent again."""
        self.answer: JobAnswer | None = None
        """What the control plane said last."""
        self.asked_before: float = -math.inf
        """When the last lookup about the same 404 began whose answer called for a second one."""
        self.transport_error_id: int | None = None
        """The `id()` of what the transport raised as the request was sent. The error itself refers
        to the frames that it came through, and these to this object: a program would keep them,
        and what they hold, until the garbage collector runs."""
        self.settle: float = 0.0
        """Seconds for which a stopped state that a resume leaves behind is not believed."""
        self._stopped_at: float | None = None
        self.is_ambiguous = False
        """Whether the request was sent once because probes met only unknown 404s."""
        self.probes = 0
        """How many probes it has sent."""
        self.has_control_plane: bool = control_plane.asks_about(state.route)
        """Whether somebody can be asked about the route."""
        self._control_plane = control_plane
        state.under_way.add(self)

    @cached_property
    def wait(self) -> logs.Wait:
        """What the log says of its waits."""
        request = self.request
        operation = operation_of(request.method, request.url, self.state.route)
        wait = logs.Wait(operation.span_name)
        return wait.within("warmup_timeout", self.settings.warmup_timeout)

    @property
    def shapes(self) -> Sequence[ServerShape]:
        """How the user's own server writes a 404."""
        return shapes_of(self.settings.trainer_404)

    @property
    def is_cold(self) -> bool:
        """Whether the route is cold for requests with its key."""
        return self.state.is_cold_for(self.flights.key)

    @property
    def exhausted_with(self) -> Judgement | None:
        """The verdict with which the budget of a request with the same key ended on this route.

        None once the route has answered again.
        """
        spent = self.flights.spent
        return spent.judgement if spent and spent.answers == self.state.answers else None

    @property
    def is_spared(self) -> bool:
        """Whether the request does not wait, because another one did so lately and in vain.

        Where a control plane is asked, each request hears its word for itself.
        """
        if self.has_control_plane or self.exhausted_with is None or self.flights.spent is None:
            return False
        return self.clock() < self.flights.spent.ended_at + REMEMBERED_FOR

    async def send(self, cookies: Cookies = (), *, pause: float | None = None) -> httpx.Response:
        """Send the request.

        Args:
            cookies: Those that pin it to the replica which a probe has reached.
            pause: Seconds since the 404 after which it is sent again; None for the first time.
        """
        self.sent_on = self.line.transport
        request = self._given
        try:
            if pause is not None and self.line.may_change_requests:
                request = copy_of(self.request)
            request = with_cookies(request, cookies)
        except Exception:
            faults.log_fault("pinning a request")
        before = SEEN_TO.set(request.stream)
        try:
            if pause is None:
                return await self.report.send(self.sent_on, request)
            self.resends += 1
            return await self.report.resend(self.sent_on, request, pause=pause)
        except BaseException as error:
            self.transport_error_id = id(error)
            raise
        finally:
            # What is left of a closed event loop ends in another context.
            with suppress(ValueError):
                SEEN_TO.reset(before)

    def answered(self, response: httpx.Response, end: ProbingEnd) -> None:
        """Note an answer that is no 404.

        Args:
            response: The answer.
            end: What was found out before the request was sent.
        """
        raw_path = self.request.url.raw_path
        shows = shows_route(raw_path, response.status_code, response.headers)
        if shows:
            self.state.answered(self.clock())
            self.state.ambiguous_ends += isinstance(end, Ambiguous)
        if shows or self.resends > 0:
            logs.log_race_over(self.state, self.resends)
        if response.status_code == 409 and self.resends > 0:
            logs.log_conflict(self.state, self.wait)

    async def look_up(
        self, met_at: float | None, deadline: float, *, up_since: float | None, is_first: bool
    ) -> Judgement | KeepWaiting:
        """Ask the control plane about a 404 until its answer is good for a verdict.

        Where there is none, what has been reached is the evidence.

        Args:
            met_at: When the 404 came; None for the one that was asked about last.
            deadline: Until when to wait for an answer.
            up_since: Since when the route was warm as the 404 came; None if it was not.
            is_first: Whether none was asked for before it: then it may always take its full time,
                so that no request is judged unheard.

        Raises:
            TimeoutError: There is none by then.
        """
        if not self.has_control_plane:
            now = self.clock()
            has_reached = self.state.has_shown_trainer
            unreached = NEVER_REACHED if self.state.route.has_probe else NOT_ASKED
            self.answer = (LOST if has_reached else unreached).timed(now, now)
            return judge_by_reach(has_reached=has_reached)
        if met_at is None:
            assert self.answer is not None
            not_found_at = self.answer.earliest_later
        else:
            not_found_at, self.asked_before = met_at, -math.inf
        if is_first:
            deadline = max(deadline, not_found_at + self.settings.control_plane_timeout)
        if up_since is not None and up_since > not_found_at:
            # It has come up since.
            up_since = None
        async with runtime.timeout_at(deadline):
            while True:
                self.answer = await self._control_plane.ask(
                    self.state, self.request, self.line, not_found_at=not_found_at
                )
                now = self.clock()
                missing_since = self.flights.missing_since
                # Whoever heard since then, or then, that there is such a job has set this later.
                was_missing = missing_since is not None and missing_since <= self.asked_before
                warm_for = None if up_since is None else self.answer.asked_at - up_since
                judged = judge(self.answer, was_missing=was_missing, warm_for=warm_for)
                if not isinstance(judged, AskAgain):
                    return judged
                # Another request may have heard it some time ago.
                pause = max(judged.seconds - (now - self.answer.answered_at), 0.0)
                if now + pause >= deadline:
                    # One negative answer is not the truth, and there is no time for a second one.
                    return CONTROL_PLANE_ERROR
                await runtime.sleep(pause)
                # Only now: whatever is asked next is asked some time after this.
                self.asked_before = self.answer.asked_at
                # The second word on a missing job comes some time after the first. On another one,
                # what somebody else asked after this answer was asked for is as good.
                not_found_at = (
                    self.clock() if self.answer.is_missing else self.answer.earliest_later
                )

    def may_settle(self) -> bool:
        """Whether the job may have been resumed a moment ago, and still show its old state."""
        now = self.clock()
        self._stopped_at = now if self._stopped_at is None else self._stopped_at
        is_old = self.answer is not None and may_settle(self.answer.state)
        return is_old and now - self._stopped_at < self.settle

    def log_waiting(
        self, race: Judgement | None, deadline: float, *, obstacle: str | None = None
    ) -> None:
        """Log that the request waits, if that is to be told now.

        Args:
            race: The verdict, if its 404s are known to come from a race.
            deadline: Until when it may wait.
            obstacle: What is in the way, if that is no 404.
        """
        left = deadline - self.clock()
        said = obstacle or logs.say_why(self.answer, race, has_control_plane=self.has_control_plane)
        logs.log_waiting(self.state, self.wait, said, left=left, is_race=race is not None)

    def hand_back(
        self, response: httpx.Response, judgement: Judgement, *, is_replayable: bool = True
    ) -> httpx.Response:
        """Hand a 404 back to the caller: judged, logged, and noted for the route.

        Args:
            response: The 404.
            judgement: The verdict on it.
            is_replayable: Whether the request could have been sent again.
        """
        if not self.has_control_plane and judgement.is_race and is_replayable:
            # It was taken for a race for the whole budget. What was reached before may be gone.
            judgement = NO_CONTROL_PLANE
        if self.answer is None and self.is_spared:
            self.answer = SPARED
        self.report.judged(judgement)
        if not is_replayable and judgement.verdict is not Verdict.GENUINE_NOT_FOUND:
            self.report.cannot_be_resent()
        # Without a probe, a request waits between its resends, or for a control plane.
        has_waited = (
            self.resends > 0 or self.state.route.has_probe or judgement is CONTROL_PLANE_TIMEOUT
        )
        if judgement in (JOB_NOT_RUNNING, JOB_MISSING):
            self.state.stopped(self.clock())
        elif judgement is not TRAINER_ANSWERED and is_replayable and has_waited:
            self.state.exhausted(self.clock(), self.flights.key)
            if not self.is_spared:
                self.flights.spent = SpentBudget(judgement, self.state.answers, self.clock())
        HANDED_BACK[response] = judgement
        logs.log_handed_back(
            self.state,
            judgement,
            self.answer,
            self.clock() - self.arrived_at,
            self.wait,
            is_replayable=is_replayable,
        )
        return response

    def hand_back_unjudged(self) -> None:
        """Note that a 404 is handed back because of a fault of the guard's own. Never raises."""
        self.report.judged(CONTROL_PLANE_ERROR)
        seconds = self.clock() - self.arrived_at
        logs.log_handed_back(self.state, CONTROL_PLANE_ERROR, None, seconds, self.wait)
