"""Probing: one probe after another finds out when a route is known, before requests are sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, assert_never

from tinker_guard.core.attempts import attempts
from tinker_guard.core.findings import (
    Ambiguous,
    Failed,
    Inconclusive,
    NotFound,
    Reached,
    Refused,
    Routable,
    TimedOut,
)
from tinker_guard.core.probe import probe
from tinker_guard.policy.judgement import JOB_MISSING, JOB_NOT_RUNNING, Judgement, Verdict
from tinker_guard.policy.not_found import Source

if TYPE_CHECKING:
    import httpx

    from tinker_guard.core.findings import ProbeResult, ProbingEnd
    from tinker_guard.core.guarded_request import GuardedRequest

_AMBIGUOUS_ROUNDS: Final = 3
"""After how many unknown 404s of a running job the request itself is sent; twice as many after that
has met a 404 too."""


async def probe_until_routable(
    guarded: GuardedRequest,
    *,
    successes: int,
    deadline: float,
    needs_proof: bool = False,
    may_send: bool = True,
) -> ProbingEnd:
    """Probe a route until the request should be sent, or more waiting cannot help.

    After each 404 the control plane is asked, and the next probe goes over a new connection.

    Args:
        guarded: The request that waits.
        successes: How many probes in a row must reach the trainer.
        deadline: When the last probe begins, by the event loop's clock.
        needs_proof: Whether to go on where probes and control plane say nothing, since the request
            may be sent only if the trainer was reached, or the job is said to run.
        may_send: Whether there is a request that shows what there is, where unknown 404s of a
            running job do not. Without one, probing goes on to the deadline.
    """
    rounds = _Rounds(guarded, deadline)
    end: ProbingEnd = Inconclusive()
    async for attempt in attempts(
        guarded.settings,
        deadline,
        attempts_before=1,
        on_wait=lambda: guarded.log_waiting(rounds.race, deadline),
    ):
        found = await _probe_in_a_row(guarded, successes, deadline)
        match found:
            case Reached():
                guarded.state.ambiguous_ends = 0
                return Routable(found.cookies, proved_at=found.met_at, race=rounds.race)
            case NotFound():
                end = await rounds.judge(found)
            case Failed() if needs_proof:
                # The request's own 404, which is still in hand, has no verdict yet.
                end = await rounds.judge(None)
            case Failed():
                end = Inconclusive(found, race=rounds.race)
            case _:
                assert_never(found)
        match end:
            case Refused():
                return end
            case Ambiguous() if may_send:
                return end
            case Inconclusive() if rounds.race or not needs_proof:
                return end
        asked_to_wait = found.asked_to_wait if isinstance(found, NotFound) else 0.0
        attempt.retry_state.set_result(asked_to_wait)
    return end


class _Rounds:
    """What the rounds of one probing have met so far."""

    def __init__(self, guarded: GuardedRequest, deadline: float) -> None:
        self.race: Judgement | None = None
        """The verdict on the 404s, once the control plane has said that the job runs."""
        self._guarded = guarded
        self._deadline = deadline
        self._has_asked = False
        self._ambiguous_rounds = 0
        self._last_end: Ambiguous | TimedOut | None = None

    async def judge(self, not_found: NotFound | None) -> ProbingEnd:
        """Ask the control plane about a probe's 404; about the request's own, if that is None.

        Returns:
            `TimedOut` where waiting may help; `Inconclusive` where there is no usable answer, or
            nothing was found.
        """
        guarded, is_first = self._guarded, not self._has_asked
        self._has_asked = True
        try:
            judged = await guarded.look_up(
                None if not_found is None else not_found.met_at,
                self._deadline,
                up_since=guarded.state.warm_since,
                is_first=is_first,
            )
        except TimeoutError:
            # A verdict that was given in time, with the 404 that it was given on.
            return self._last_end or Inconclusive()
        answer = guarded.answer
        assert answer is not None
        if not isinstance(judged, Judgement):
            judged = JOB_NOT_RUNNING
        elif judged.is_race:
            self.race = guarded.flights.race = judged
            if not_found is None:
                return Inconclusive(proved_at=answer.asked_at, race=judged)
            self._ambiguous_rounds += not_found.source is Source.UNKNOWN
            if self._ambiguous_rounds >= _AMBIGUOUS_ROUNDS * (1 + guarded.is_ambiguous):
                guarded.is_ambiguous = True
                self._last_end = Ambiguous(race=judged)
                return self._last_end
        elif judged.verdict is Verdict.UNVERIFIED:
            return Inconclusive(race=self.race)
        elif not guarded.may_settle():
            # That a job is missing was said twice.
            asked_at = guarded.asked_before if judged is JOB_MISSING else answer.asked_at
            return Refused(judged, not_found, answer, proved_at=asked_at)
        if not_found is None:
            return Inconclusive(race=self.race)
        self._last_end = TimedOut(judged, not_found, race=self.race)
        return self._last_end


async def _probe_in_a_row(guarded: GuardedRequest, successes: int, deadline: float) -> ProbeResult:
    """Send probes over one connection; `Reached` if the request may be sent on it.

    A connection that meets a 404 is left for a new one, unless it has reached the trainer before:
    then the gateway picks a replica for each request, and no connection could be proved. What a
    connection has proved that another request has replaced since says nothing about the new one.
    """
    reached: Reached | None = None
    reached_on: httpx.AsyncBaseTransport | None = None
    for _ in range(successes):
        if reached is not None and guarded.clock() >= deadline:
            # No further probe begins: what is proved by now has to do.
            break
        transport = guarded.line.transport
        found = await probe(guarded)
        if isinstance(found, Reached):
            reached, reached_on = found, transport
            continue
        if isinstance(found, NotFound):
            if reached_on is not transport:
                await guarded.line.replace(transport)
                return found
            guarded.state.picks_replica_per_request(guarded.clock())
        return reached or found
    assert reached is not None
    return reached
