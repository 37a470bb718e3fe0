"""What happens after a 404 on a trainer route: a verdict, and for a race a resend."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, assert_never

import httpx

from tinker_guard import faults
from tinker_guard.core.attempts import attempts, stay_back
from tinker_guard.core.budget import budget_after_404
from tinker_guard.core.findings import (
    INCONCLUSIVE,
    Ambiguous,
    Failed,
    Inconclusive,
    ProbingEnd,
    Reached,
    Refused,
    Routable,
    TimedOut,
)
from tinker_guard.core.probe import probe
from tinker_guard.core.probing import probe_until_routable
from tinker_guard.policy.judgement import (
    CONTROL_PLANE_ERROR,
    CONTROL_PLANE_TIMEOUT,
    JOB_NOT_RUNNING,
    JOB_RUNNING,
    TRAINER_ANSWERED,
    TRAINER_REACHED,
    Judgement,
    Verdict,
    is_essential_to_sdks,
    waits_once,
)
from tinker_guard.policy.not_found import Source, author_of
from tinker_guard.policy.pacing import retry_after
from tinker_guard.transports import runtime
from tinker_guard.transports.body_prefix import read_prefix
from tinker_guard.transports.cleanup import discard

if TYPE_CHECKING:
    from tinker_guard.core.guarded_request import GuardedRequest


_DIRECT_RESENDS: Final = 8
"""So many resends in a row follow each other at once where the gateway picks a replica for each: as
many as there are replicas, if it takes them in turn. The next one waits for a probe."""


async def recover(guarded: GuardedRequest, not_found: httpx.Response) -> httpx.Response:
    """Turn a 404 into what the caller gets.

    Args:
        guarded: The request that met it.
        not_found: The 404, its body unread.

    Returns:
        The answer of a resend after a race; else the last 404, its body whole.

    Raises:
        Exception: What the inner transport raises on a resend.
    """
    recovery: Recovery | None = None
    try:
        recovery = Recovery(guarded, not_found)
        return await recovery.run()
    except Exception as error:
        if id(error) == guarded.transport_error_id:
            raise
        # A bug of the guard's own, or no memory left.
        faults.log_fault("the recovery")
        response = await recovery.give_up() if recovery else not_found
        if response.status_code == 404:
            guarded.hand_back_unjudged()
        return response
    except GeneratorExit:
        # The event loop was closed under it: nothing can be awaited any more.
        raise
    except BaseException:
        await discard(recovery.response if recovery else not_found)
        raise


class Recovery:
    """Sees one request through the routing race that its 404 may come from.

    Resends the very same request (same bytes, same `X-Idempotency-Key`) and no other, so that
    the trainer can tell a repeat from new work. It does so when a probe has reached the trainer,
    or when probes and waiting can tell no more: while a route with probes is lost, all that is
    sent on it is one small probe at a time, however many requests wait and however large they are.
    """

    def __init__(self, guarded: GuardedRequest, not_found: httpx.Response) -> None:
        self.response: httpx.Response = not_found
        """The last answer to the request."""
        self._guarded = guarded
        self._settings = guarded.settings
        self._clock = guarded.clock
        self._met_at = self._clock()
        """When the 404 in hand came."""
        self._budget = budget_after_404(guarded, self._met_at)
        guarded.wait = guarded.wait.within(self._budget.setting, self._budget.seconds)
        self._is_held = False
        """Whether all of the 404 is in memory, so that it can be handed back after a wait."""
        self._is_discarded = False
        self._race: Judgement | None = None
        """The last verdict, if that was a race."""
        self._route: ProbingEnd | None = None
        """What the resend has to know, if that was found out for the verdict already."""
        self._direct_resends = 0
        """How many resends in a row were sent without a probe."""
        self._proved_on: httpx.AsyncBaseTransport | None = None
        """The transport on which a probe of this request has reached the trainer."""

    async def run(self) -> httpx.Response:
        """Judge the 404, wait, find a connection that is routed, resend; within the budget."""
        judgement = CONTROL_PLANE_ERROR
        async for attempt in attempts(
            self._settings,
            self._budget.ends_at,
            on_wait=lambda: self._guarded.log_waiting(self._race, self._budget.ends_at),
        ):
            if self._race is not None:
                route = self._route or await self._find_route()
                if isinstance(route, Refused) and self._is_held:
                    judgement = route.judgement
                    break
                await self._resend(route, self._race)
                if self.response.status_code != 404:
                    self._guarded.answered(self.response, route)
                    return self.response
            judgement = await self._judge()
            if not (judgement.is_race and self._may_resend):
                break
            self._race = judgement
            self._guarded.report.raced(judgement)
            if not self._is_held and self._clock() < self._budget.ends_at:
                self._is_discarded = True
                await discard(self.response)
            attempt.retry_state.set_result(self._least_wait())
        response = await self.give_up()
        if response.status_code != 404:
            self._guarded.answered(response, INCONCLUSIVE)
            return response
        return self._guarded.hand_back(response, judgement, is_replayable=self._is_replayable)

    def _least_wait(self) -> float | None:
        """Seconds to wait before the next resend; None if it follows at once, without a probe.

        That is so where the gateway picks a replica for each request: no probe could tell which one
        the resend will meet, and the next one in turn may know the route.
        """
        asked_to_wait = retry_after(self.response.headers, now=time.time())
        is_balanced = self._guarded.state.is_balanced_per_request(self._clock())
        if asked_to_wait or self._route or not is_balanced:
            return asked_to_wait
        self._direct_resends = (self._direct_resends + 1) % (_DIRECT_RESENDS + 1)
        if self._direct_resends == 0:
            return asked_to_wait
        self._route = Inconclusive()
        return None

    async def give_up(self) -> httpx.Response:
        """The 404 in hand; what one more resend gives, if the 404 was too large to be kept."""
        if self._is_discarded:
            self.response = await self._guarded.send(pause=self._clock() - self._met_at)
            self._is_discarded = False
        return self.response

    async def _judge(self) -> Judgement:
        """Give the 404 in hand its verdict."""
        guarded = self._guarded
        self._route = None
        self._met_at = self._clock()
        # While the body is read, another request may find that the job has stopped.
        had_shown_trainer, up_since = guarded.state.has_shown_trainer, guarded.state.warm_since
        # The last one comes when the budget is over, and may be the trainer's.
        until = max(self._budget.ends_at, self._met_at + self._settings.probe_timeout)
        body = await read_prefix(self.response, until=until, clock=self._clock)
        self._is_held = body.is_held
        answer = body.of(self.response)
        author = author_of(
            answer,
            had_shown_trainer=had_shown_trainer,
            is_essential=is_essential_to_sdks(guarded.request.url.raw_path),
            shapes=guarded.shapes,
            ids=guarded.state.route.ids,
        )
        if author is Source.ANOTHER_APPLICATION:
            guarded.state.meets_another_router(self._met_at)
        is_trainers = author is Source.TRAINER
        guarded.report.met_404(answer, is_trainers=is_trainers)
        if is_trainers:
            guarded.state.answered(self._met_at)
            return TRAINER_ANSWERED
        # The answer to a HEAD has no body: the trainer itself may have written it.
        if self._proved_on is guarded.sent_on and guarded.request.method != "HEAD":
            guarded.state.picks_replica_per_request(self._clock())
        if (in_vain := self._in_vain) is not None:
            return in_vain
        try:
            judged = await guarded.look_up(
                self._met_at, self._budget.ends_at, up_since=up_since, is_first=self._race is None
            )
        except TimeoutError:
            return self._race or CONTROL_PLANE_TIMEOUT
        if isinstance(judged, Judgement) and judged.verdict is not Verdict.UNVERIFIED:
            return judged
        # Meanwhile another request may have waited in vain for the job to come up.
        unproved = judged if isinstance(judged, Judgement) else self._in_vain or JOB_NOT_RUNNING
        if not (self._is_held and self._may_resend and guarded.state.route.has_probe):
            return unproved
        self._route = route = await self._find_route(needs_proof=True)
        match route:
            case Routable():
                return route.race or TRAINER_REACHED
            case Refused():
                return route.judgement
            case Inconclusive() | Ambiguous() | TimedOut():
                return route.race or unproved
            case _:
                assert_never(route)

    async def _find_route(self, *, needs_proof: bool = False) -> ProbingEnd:
        """Wait until a probe has reached the trainer, this request's or another's.

        Ends early when the job has stopped, the budget is spent, or probes say nothing about this
        route: the resend that follows then shows what there is.
        """
        guarded = self._guarded
        # Whether this request itself probes, and follows no other.
        self._has_scouted = False
        try:
            if guarded.resends > 0 or guarded.state.is_probe_path_unsupported:
                # A follower's connection is replaced only now that it proved stale by itself:
                # building one for each of many that wait would hold up their event loop.
                await guarded.line.replace(guarded.sent_on)
            if guarded.state.is_probe_path_unsupported and not needs_proof:
                return Inconclusive()
            ends_at = self._budget.ends_at
            if needs_proof:
                # The last probe begins at the deadline.
                ends_at = min(ends_at, self._budget.proof_ends_at + self._settings.probe_timeout)
            while True:
                # No timeout around it: one for each of thousands that wait would cost much.
                end = await guarded.flights.probing.run(
                    self._scout, ends_at, needs_proof, until=ends_at
                )
                if self._has_scouted:
                    return end
                if end.serves(self._met_at, needs_proof=needs_proof):
                    # One that was given before this request's 404 is no answer about it.
                    if isinstance(end, Refused):
                        guarded.answer = end.answer
                    # All followers are released at once; they need not arrive at once.
                    async with runtime.timeout_at(ends_at):
                        await stay_back(self._settings, self._clock() - self._met_at)
                    return end
        except TimeoutError:
            answer = guarded.answer
            if answer is not None and answer.is_running:
                # It was said about a probe's 404, after the one in hand.
                return Inconclusive(race=JOB_RUNNING)
        except Exception:
            faults.log_fault("probing")
        return Inconclusive()

    async def _scout(self, ends_at: float, needs_proof: bool) -> ProbingEnd:
        self._has_scouted = True
        async with runtime.timeout_at(ends_at):
            return await self._probe(needs_proof=needs_proof)

    async def _probe(self, *, needs_proof: bool) -> ProbingEnd:
        guarded = self._guarded
        await guarded.line.replace(guarded.sent_on)
        deadline = self._budget.proof_ends_at if needs_proof else self._budget.ends_at
        end = await probe_until_routable(
            guarded, successes=1, deadline=deadline, needs_proof=needs_proof
        )
        if isinstance(end, Routable):
            self._proved_on = guarded.probed_on
            # Where replicas are taken in turn, resends that each follow one probe stay in step.
            for _ in range(guarded.resends % _DIRECT_RESENDS):
                if self._clock() >= deadline or isinstance(found := await probe(guarded), Failed):
                    # What is proved has to do: the next probe may hang as long.
                    break
                if isinstance(found, Reached):
                    end = Routable(found.cookies, proved_at=found.met_at, race=end.race)
        return end

    async def _resend(self, route: ProbingEnd, race: Judgement) -> None:
        guarded = self._guarded
        guarded.report.judged(race)
        cookies = route.cookies if isinstance(route, Routable) else ()
        self.response = await guarded.send(cookies, pause=self._clock() - self._met_at)
        self._is_discarded = False

    @property
    def _is_replayable(self) -> bool:
        # Any other body may have been a one-way stream, and is spent.
        return isinstance(self._guarded.request.stream, httpx.ByteStream)

    @property
    def _in_vain(self) -> Judgement | None:
        """The verdict on a request that is not worth a wait, on an exhausted route."""
        guarded = self._guarded
        is_spared = guarded.is_spared or waits_once(guarded.request.url.raw_path)
        return guarded.exhausted_with if is_spared else None

    @property
    def _may_resend(self) -> bool:
        return self._is_replayable and self._in_vain is None
