"""The gate in front of a cold route: its first requests wait until a probe reaches the trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinker_guard import telemetry
from tinker_guard.core.findings import INCONCLUSIVE, Inconclusive, Refused, Routable, TimedOut
from tinker_guard.core.probing import probe_until_routable
from tinker_guard.observability import logs

if TYPE_CHECKING:
    from tinker_guard.core.findings import ProbingEnd
    from tinker_guard.core.guarded_request import GuardedRequest
    from tinker_guard.policy.judgement import Judgement


async def pass_gate(guarded: GuardedRequest) -> ProbingEnd:
    """Wait until the request may be sent, or has to be refused.

    One request leads and probes the connection that it will be sent on; the others with the same
    key wait for what it finds. A leader that is cancelled hands over to the next.
    """
    state, settings, report = guarded.state, guarded.settings, guarded.report
    has_gate = settings.warmup_successes > 0 and not state.is_probe_path_unsupported
    if not (guarded.is_cold and has_gate):
        return INCONCLUSIVE
    ends_at = guarded.arrived_at + settings.warmup_timeout
    end: ProbingEnd = INCONCLUSIVE
    report.promote()
    try:
        # A leader may take so long to end. One that other settings give more time is left to it.
        longest = settings.probe_timeout + settings.control_plane_timeout
        end = await guarded.flights.warmup.run(_warm_up, guarded, until=ends_at + longest)
        while not end.serves_at_gate(guarded.arrived_at) and guarded.clock() < ends_at:
            # The leader's time was over, or it had asked before this request came.
            end = await guarded.flights.warmup.run(_warm_up, guarded, until=ends_at)
    except TimeoutError:
        # What was said before this request came does not refuse it, at its end either.
        end = INCONCLUSIVE if isinstance(end, Refused) else end
    except BaseException:
        # A request that is cancelled has waited in that race all the same.
        _note_race(guarded, guarded.flights.race, is_judged=True)
        raise
    finally:
        report.waited(guarded.clock() - guarded.arrived_at)
    if isinstance(end, Routable):
        state.answered(guarded.clock())
    # A 404 that is handed back is judged there.
    _note_race(guarded, end.race, is_judged=not isinstance(end, TimedOut))
    return end


def _note_race(guarded: GuardedRequest, race: Judgement | None, *, is_judged: bool) -> None:
    if race is not None:
        guarded.report.met_race_at_gate()
        note = guarded.report.judged if is_judged else guarded.report.raced
        note(race)


async def _warm_up(guarded: GuardedRequest) -> ProbingEnd:
    state, settings = guarded.state, guarded.settings
    if state.is_warm:
        # Another event loop has opened the gate while this request waited for its turn.
        return Routable()
    started_at = guarded.clock()
    guarded.flights.race = None
    with telemetry.warmup_span(state, settings) as span:
        end: ProbingEnd | None = None
        try:
            end = await probe_until_routable(
                guarded,
                successes=settings.warmup_successes,
                # Counted from when this request came: it may have waited for other leaders before.
                deadline=guarded.arrived_at + settings.warmup_timeout,
            )
        finally:
            seconds = guarded.clock() - started_at
            ended_as = Inconclusive(race=guarded.flights.race) if end is None else end
            telemetry.note_warmup(span, state, settings, ended_as, guarded.probes, seconds)
        if isinstance(end, Routable):
            logs.log_warm(state, seconds, guarded.probes)
    return end
