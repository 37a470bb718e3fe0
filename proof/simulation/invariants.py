"""What must hold after every schedule, checked on the facts that the world recorded.

Each has an obvious reading; this is the exact one, and why it is not stricter.

1. **Work is applied once and in order.** The trainer's log of applied `seq_id`s is the beginning
   of 1, 2, 3, ... without a repeat, and complete if every dispatch was answered. What was answered
   with 200 was received. Each resend equals the request byte for byte: method, URL, headers,
   body, extensions; where spans are recorded, all but `traceparent`, which names the exchange's
   own span; and where a balancer keeps to replicas by cookie, all but that cookie, whose value is
   one that the answer to a probe that reached the trainer has set, and which may come to a request
   that had none. That is so for the first send too, after a warmup. Where the last probe that a
   request itself led has reached, its very value goes along. A body that is a stream
   is sent once. Probes carry no cookie, no idempotency key and nothing else of the program's own.
   (That a run can end early is true of the SDK too: after a 404 that nobody could verify, or a
   cancellation.)

2. **The caller gets what the transport below gave.** The response is the very object that the
   transport returned for the request's last send, with its status, headers and whole body; an
   exception is the very one that it raised. There are two exceptions to that, both documented: at
   the gate nothing has been sent yet, so that a refusal is a copy of a 404 that a probe on this
   route met while the request waited; and a client that is closed under a request gives httpx's
   `TransportError`. `CancelledError` comes out if and only if the caller cancelled. A fault of the
   guard's own, which it would log and swallow, breaks this one too, and so does an error where
   nobody can catch it, as in a callback. Where an event loop is closed under a request, nobody is
   there to get anything. All that happens below the guard for a request (each exchange, each
   question, each read of a body and its closing) happens in the task of its caller.

3. **Everybody comes to an end.** A request's time is counted from its own beginning, whoever asked
   before. It waits at the gate until somebody has probed, where nobody has had a word of the
   trainer's yet, and not at all once the trainer has answered one like it with 200. At the gate
   that is `warmup_timeout`; the last probe begins by then, and may take `probe_timeout`. Whoever
   takes over from a leader that was cancelled probes once more, even if it is later by then.
   After a 404 it is `retry_timeout` from its first one, or on a route
   that is cold then, `warmup_timeout` from its arrival if that is later; its first question may
   have `control_plane_timeout` if that is longer. No send begins later, and the request ends with
   the last of them: when its answer has come, and if that is a 404, its body. (The time that a body
   takes is the transport's.) Two things add to it. While an answer or a transport is being closed,
   whoever closes it waits, but not longer than a second. And while the process stands still,
   nothing ends; afterwards one send is begun for a request whose budget is over, and no second one.
   An answer other than 404 is handed back in the moment in which it comes, and so is a 404 that
   shows that the trainer wrote it, and any 404 when the answer to the request's own question has
   said that the job has stopped, or a second time that it is missing. A cancellation ends the
   request at once, closing aside. After a request has spent its budget on a route in vain, one in
   the background is sent once, without waiting, until the trainer answers. Closing all guards at
   the end takes no longer than what they close. What somebody does to the wall clock changes none
   of that.

4. **One finds out for all.** For one route, event loop and key: the probes of one request come one
   after another; no two requests lead warmups in turns or at the same time, and no two scout at the
   same time. No two questions are under way at the same time; none begins within `verdict_ttl`
   after one that said that the job runs; and none is asked for a 404 to which the answer to an
   earlier question that began after it is known already. A question that was cut short because its
   asker was cancelled, or ran out of its own budget, has no answer, even if that was while its
   connection was being closed. A refused connection is tried again once, as part of the same
   question. What a control plane asks to wait, whoever asked it waits. Where the process keeps
   fewer routes than it meets (1,024 in truth, one or two in some schedules), it never forgets one
   that is in use, so that all of that holds for requests that overlap.

5. **Nothing is left.** When all callers have ended: no task, no locked flight, no open answer, no
   span that was begun and not ended, no more routes than the limit, no event loop that was closed,
   and no transport open but the first and the present one of each line. The connection of a
   question is closed with the question. After `aclose()`, none at all; but a transport that was
   released is its owner's. A 404 holds no connection while its request waits. What ran on an event
   loop that was closed under it ends as soon as the garbage collector finds it, and waits for
   nothing; its answers and transports cannot be closed any more, and are not counted.

6. **No race is called genuine, no genuine not-found is resent.** The guard cannot know more than
   the control plane and the trainer say; `truth` says what they said to whom, and when. A resend
   follows only on a 404, one that does not show that the trainer wrote it, and for which it was in
   force that the job runs: an answer said so within `verdict_ttl` before the 404's body had come,
   or later; or no usable answer could be had to a question that began after the 404, and a probe
   over another connection has reached the trainer since. It does not follow sooner than the 404
   asked for, by the gateway's clock, unless the budget is over. One that follows without a probe in
   its time does so because the gateway was seen, within 30 s, to route one exchange on a connection
   and not another one, and because an answer was in force that the job runs; after eight such in a
   row comes one that does not. A 404 that the trainer did not
   write, or that does not show it, is handed back only if an answer to a question that began after
   it has arrived said so: stopped; missing, and missing again, asked some two seconds later, with
   no other word between them; or on its way, on a route that has answered for over a second. Or
   else when the budget is over: `exhausted` if it was a race, or `unverified`. At the gate nothing
   is handed back because a job is on its way, but when the time is over. An answer of anybody but
   the trainer (an edge, a cache) is no evidence, however often it comes. Where there is no control
   plane, that the trainer was reached stands for the word that the job runs; a 404 is handed back
   as `unverified` when the budget is over, or `unreached_timeout` where the trainer never was, or
   at once if somebody has spent that within the last minute. Where the trainer was reached before,
   it is not handed back without one resend. A request that waited at
   the gate while its route raced is `recovered`, and one whose resend is answered with 5xx is in
   `error`. Where spans are recorded, outcome and reason must agree with all that, and none is
   shorter than what it tells of, whatever the wall clock says.

7. **The key stays where it belongs.** All that is sent for a request goes to its own origin and
   route with its own key; questions go to the configured control plane with the configured key, or
   to the route's origin with the request's key, over a connection of their own if one can be had.
   No answer of the control plane's, no 404 of a probe's and no cookie that its answer set is used
   for a request with another key. No key, and nothing of any header, query, body or error of
   somebody else's is in a log line, a span, a metric, an error of the guard's own, or what is kept
   for sharing answers.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import httpx

from proof.simulation.bodies import CODED, MUCH, SECRET
from proof.simulation.model import QUERY, affinity_in
from proof.simulation.plane import PLANE_KEY, PLANE_URL
from proof.simulation.record import KEYS, origin_of
from proof.simulation.schedule import RUNNING, BuildFault, CloseFault, Stall
from proof.simulation.truth import (
    EPSILON,
    NOT_FOUND,
    ROUNDING,
    Truth,
    has_missing_pair,
    is_stopped,
)
from tinker_guard.transports.cleanup import CLOSE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace import ReadableSpan

    from proof.simulation.model import ModelTransport, ModelWorld
    from proof.simulation.record import Call, Exchange, Question, Span
    from tinker_guard import GuardSettings

_DIRECT_RESENDS: Final = 8
"""So many resends of a request may follow each other without a probe."""
_REPEATED_AFTER: Final = 0.05
"""Seconds after which a question is repeated whose connection broke."""
_CLOSINGS: Final = frozenset(
    {"closing a replaced transport", "closing a discarded answer", "closing a 404"}
)
"""Faults that are logged where something else does not close well."""


@dataclass(frozen=True, slots=True)
class Violation:
    """An invariant that did not hold, by its number."""

    invariant: int
    what: str

    def __str__(self) -> str:
        return f"invariant {self.invariant}: {self.what}"


class EndedSpan(NamedTuple):
    """A span of the guard's."""

    call: int
    """The number of the call that it belongs to; -1 if it was begun by the garbage collector."""
    span: ReadableSpan
    lasted: float
    """Seconds of monotonic time."""


@dataclass
class Remains:
    """What is left when all callers have ended, before the transports are closed."""

    have_all_ended: bool
    tasks: list[str]
    in_use: set[int]
    open_before_close: list[ModelTransport]
    held: list[str]
    routes: int
    faults: set[str]
    errors: list[str]
    """What was raised where nobody could catch it."""
    said: list[str]
    kept: list[str]
    """What is kept to tell those apart who ask the control plane."""
    measured: list[tuple[float, dict[str, Any]]]
    """What metrics were given: the amount and the attributes."""
    open_spans: int
    ended_spans: list[EndedSpan]
    still_running: list[str]
    """What would not end after its event loop was closed."""


def check(world: ModelWorld, settings: GuardSettings, remains: Remains) -> list[Violation]:
    """All violations of one run, after its transports were closed."""
    facts = _Facts(world, settings, remains)
    return [
        Violation(number, what)
        for number, rule in enumerate(
            (
                facts.work_applied_once,
                facts.answers_from_below,
                facts.ends_in_time,
                facts.one_for_all,
                facts.nothing_left,
                facts.true_verdicts,
                facts.keys_at_home,
            ),
            start=1,
        )
        for what in rule()
    ]


class _Facts:
    def __init__(self, world: ModelWorld, settings: GuardSettings, remains: Remains) -> None:
        self.world = world
        self.settings = settings
        self.remains = remains
        # A reconfigured transport waits a second longer.
        self.truth = Truth(world, settings, 1.0 if world.reconfigured else 0.0)
        self.lost_time = _merged(
            [
                *((stall.began_at, stall.ended_at) for stall in world.stalls),
                *(
                    (closing.began_at, min(closing.ended_at, closing.began_at + CLOSE_SECONDS))
                    for closing in world.closings
                ),
            ]
        )

    # 1

    def work_applied_once(self) -> Iterator[str]:
        dispatches = [call for call in self.world.calls if call.path.endswith("forward_backward")]
        for route, trainer in enumerate(self.world.trainers):
            order = trainer.order
            if trainer.applied != order[: len(trainer.applied)]:
                yield f"route {route}: applied {trainer.applied} of {order}"
            answered = {
                call.seq_id
                for call in dispatches
                if call.route == route and call.response and call.response.status_code == 200
            }
            for seq_id in sorted(answered):
                if not trainer.has_received(seq_id):
                    yield f"route {route}: {seq_id} was answered with 200, but never received"
            if answered == set(order) and trainer.applied != order:
                yield f"route {route}: all was answered, but applied is {trainer.applied}"
        for call in self.world.calls:
            for resend in call.sends[1:]:
                if call.caller.asks == "upload":
                    yield f"call {call.number}: a streamed body was sent again"
                elif not _is_same(resend, call.sends[0]):
                    yield f"call {call.number}: a resend differs from the request"
            yield from self._cookies(call)
            for probe in call.probes:
                for name in (b"cookie", b"x-idempotency-key", b"x-user"):
                    if probe.header(name) is not None:
                        yield f"call {call.number}: a probe carries {name.decode()}"

    def _cookies(self, call: Call) -> Iterator[str]:
        """Whether each send has the request's cookies, and of the balancer's the right one."""
        affinities, foreign = self._affinities(call), self._foreign_affinities(call)
        headers = _other_headers(call.request.headers.raw)
        for number, send in enumerate(call.sends):
            if _other_headers(send.headers) != headers:
                yield f"call {call.number}: sent with other headers than the request has"
            if send.affinity not in affinities and send.affinity not in foreign:
                yield f"call {call.number}: sent with affinity {send.affinity!r}"
            since = call.sends[number - 1].ended if number else call.began
            probes = [probe for probe in call.probes if since < probe.ended < send.began]
            if probes and self._has_surely_reached(probes[-1], until=send):
                affinity = probes[-1].sets_affinity
                if affinity and send.affinity != affinity:
                    yield (
                        f"call {call.number}: sent with affinity {send.affinity!r}, though its "
                        f"probe had reached {affinity!r}"
                    )

    def _has_surely_reached(self, probe: Exchange, *, until: Exchange) -> bool:
        """Whether a probe reached the trainer, and had the time to say so."""
        call = probe.call
        if not probe.has_reached or probe.stream is None or not probe.stream.is_exhausted:
            return False
        if call.slot in self.world.released_slots or self._slack(call) > EPSILON:
            return False
        if probe.is_warmup:
            return True
        return until.began_at < self.truth.budget(call).earliest - ROUNDING

    def _foreign_affinities(self, call: Call) -> set[str]:
        """The values of that cookie which probes with another key were given; see invariant 7."""
        return {
            probe.sets_affinity
            for other in self.world.calls
            if other.route == call.route and other.key != call.key
            for probe in other.probes
        }

    def _affinities(self, call: Call) -> set[str]:
        """The values that the balancer's cookie may have in what is sent of a call."""
        return {affinity_in(call.request.headers.raw)} | {
            probe.sets_affinity
            for other in self.truth.like(call)
            for probe in other.probes
            if probe.sets_affinity and probe.may_have_reached
        }

    # 2

    def answers_from_below(self) -> Iterator[str]:
        for call in self.world.calls:
            ends = asyncio.CancelledError | GeneratorExit
            if call.cancels and not isinstance(call.error, ends):
                yield f"call {call.number}: a cancellation was swallowed ({call.cancels[0][1]})"
            if call.response is not None:
                yield from self._response_from_below(call)
            elif call.error is not None:
                yield from self._error_from_below(call)
        allowed: set[str] = set()
        for event in self.world.schedule.events:
            match event:
                case BuildFault():
                    allowed |= {"building a new transport", "closing a replaced transport"}
                case Stall() | CloseFault():
                    # What was being closed during a stall seems to have taken too long.
                    allowed |= _CLOSINGS
        for fault in sorted(self.remains.faults - allowed):
            yield f"a fault of the guard's own in {fault}"
        for error in self.remains.errors:
            yield f"nobody could catch it: {error}"
        for stray in sorted(set(self.world.strays)):
            yield f"{stray} in a task that is not its caller's"

    def _response_from_below(self, call: Call) -> Iterator[str]:
        response = call.response
        assert response is not None
        if not call.sends:
            yield from self._refused_at_gate(call, response)
            return
        last = call.sends[-1]
        if response is not last.response:
            yield f"call {call.number}: the response is not that of its last send"
        elif (response.status_code, response.headers.raw) != (
            last.status_code,
            last.response_headers,
        ):
            yield f"call {call.number}: the response's head was changed"
        elif call.body is not None and call.body != last.body:
            yield f"call {call.number}: the response's body was changed"
        elif call.read_error is not None and last.stream is not None:
            is_own = call.read_error is last.stream.error or isinstance(
                call.read_error, asyncio.CancelledError | GeneratorExit
            )
            if not is_own:
                yield f"call {call.number}: reading the body raised {call.read_error!r}"

    def _refused_at_gate(self, call: Call, response: httpx.Response) -> Iterator[str]:
        origin = next(
            (
                exchange
                for exchange in self.world.exchanges
                if str(exchange.began) == response.headers.get("x-exchange")
            ),
            None,
        )
        if response.status_code != 404 or origin is None:
            yield f"call {call.number}: an answer from nowhere"
        elif not (origin.is_probe and origin.call.route == call.route and origin.is_404):
            yield f"call {call.number}: refused with an answer that is no probe's"
        elif origin.author == "trainer":
            yield f"call {call.number}: refused with the trainer's own answer to a probe"
        elif origin.ended > call.ended or origin.call.ended < call.began:
            yield f"call {call.number}: refused with an answer from another time"
        elif not _is_copy(call.body, origin) or not set(response.headers.raw) <= set(
            origin.response_headers
        ):
            yield f"call {call.number}: the gate's refusal differs from the probe's answer"

    def _error_from_below(self, call: Call) -> Iterator[str]:
        error = call.error
        if call.is_lost_with_its_loop:
            if call.slot not in {transport.slot for transport in self.world.orphans}:
                yield f"call {call.number}: ended with GeneratorExit on a loop that runs"
        elif isinstance(error, asyncio.CancelledError):
            if not (call.cancels or call.has_timed_out or call.waits_for_ever):
                yield f"call {call.number}: cancelled by nobody"
        elif call.sends and error is call.sends[-1].error:
            pass
        elif not (type(error) is httpx.TransportError and call.slot in self.world.closed_slots):
            yield f"call {call.number}: raised {error!r}, which is not from below"

    # 3

    def ends_in_time(self) -> Iterator[str]:
        if not self.remains.have_all_ended:
            yield "somebody waits for ever"
        for call in self.world.calls:
            if not call.is_over or call.is_lost_with_its_loop:
                continue
            latest_end = self._when_not_cut(call, self._latest_end(call))
            limit = max(latest_end, self._held_below_until(call) + self._slack(call))
            if call.ended_at > limit:
                yield (
                    f"call {call.number}: ended at {call.ended_at:.3f}, {limit:.3f} was the latest"
                )
            yield from self._passes_gate(call)
            yield from self._sends_in_time(call)
            yield from self._fails_fast(call)
            if self.truth.must_be_without_patience(call):
                yield from self._has_no_patience(call)
        closing = self.world.closing_guards
        if closing.ended_at > closing.began_at + self._slack(closing):
            yield f"closing the guards took {closing.ended_at - closing.began_at:.3f} s"

    def _passes_gate(self, call: Call) -> Iterator[str]:
        """Whether a call waited at the gate where it had to, and nowhere else."""
        if call.route is None or not call.sends:
            return
        first = call.sends[0]
        if self.truth.is_surely_warm(call):
            if first.began_at > call.began_at + self._slack(call):
                yield f"call {call.number}: waited at the gate of a route that is warm"
        elif self.truth.is_surely_cold(call) and not any(
            probe.ended < first.began
            and call.began < (other.sends[0].began if other.sends else other.ended)
            for other in self.truth.like(call)
            for probe in other.probes
        ):
            yield f"call {call.number}: passed the gate of a cold route, and nobody had probed"

    def _sends_in_time(self, call: Call) -> Iterator[str]:
        if call.met_404_at is None:
            return
        slack = self._slack(call)
        ends_at = self.truth.budget(call).latest + slack
        late = [send for send in call.sends[1:] if send.began_at > ends_at]
        if not late:
            return
        first = call.sends[0]
        if late[0] is call.sends[1]:
            ends_at = max(ends_at, self.truth.first_question_ends_at(call, first) + slack)
        ends_at = self._when_not_cut(call, ends_at)
        if len(late) > 1 or (late[0].began_at > ends_at and late[0].is_over):
            yield f"call {call.number}: resent after its budget"

    def _fails_fast(self, call: Call) -> Iterator[str]:
        """Whether a call ended as soon as its own question told it that the job is gone."""
        if call.error is not None or any(map(self.truth.cannot_be_kept, call.sends)):
            # What was given away has to be had again.
            return
        own = [question for question in self.world.questions if question.call is call]
        for question in own:
            if self._may_come_too_late(question, own):
                continue
            about = max(
                (x.ended for x in (*call.sends, *call.probes) if x.ended < question.began),
                default=0,
            )
            before = [q for q in own if about < q.began <= question.began]
            if is_stopped(question.answer):
                what = "stopped"
            elif question.answer == "missing" and has_missing_pair(
                [question], before, self.truth.questions(call)
            ):
                what = "missing"
            else:
                continue
            settled_at = question.settled_at
            is_answered = any(
                question.began < exchange.ended and exchange.began < question.ended
                for exchange in call.sends
            )
            if not is_answered and call.ended_at > settled_at + self._slack(call):
                yield (
                    f"call {call.number}: heard at {settled_at:.3f} that its job is {what}, and "
                    f"ended at {call.ended_at:.3f}"
                )
                return

    def _has_no_patience(self, call: Call) -> Iterator[str]:
        slack = self._slack(call)
        if call.error is not None or (call.sends and not call.sends[0].is_404):
            return
        if len(call.sends) != 1 or call.probes:
            yield f"call {call.number}: in the background, and was not just sent once"
        elif call.sends[0].began_at > call.began_at + slack:
            yield f"call {call.number}: in the background, and waited at the gate"
        elif call.ended_at > call.sends[0].body_at + slack:
            yield f"call {call.number}: in the background, and its 404 was not handed back at once"

    def _slack(self, span: Span) -> float:
        """For how much of this time something was being closed, or the process stood still."""
        lost = (
            min(span.ended_at, until) - max(span.began_at, since) for since, until in self.lost_time
        )
        return EPSILON + sum(seconds for seconds in lost if seconds > 0)

    def _when_not_cut(self, call: Call, limit: float) -> float:
        """A limit for a call. In threads, what was begun by then goes on to its own end.

        That is a probe, and the first question about its 404, of the call or of one that
        it waits for. A probe's answer is closed, and then the transport that met a 404; so is the
        question's connection.
        """
        if not self.world.setup.in_threads:
            return limit
        like = [call, *self.truth.like(call)]
        numbers = {one.number for one in like}
        asked = [question for question in self.world.questions if question.call.number in numbers]
        probes = [(probe.began_at, probe.body_at) for one in like for probe in one.probes]
        takes = self.world.setup.close_takes
        for spans in (
            [(began_at, body_at + 2 * takes) for began_at, body_at in probes],
            [(question.began_at, question.settled_at + takes) for question in asked],
        ):
            under_way = [end for began_at, end in spans if began_at <= limit + EPSILON < end]
            limit = max(under_way, default=limit) + EPSILON
        return limit

    def _held_below_until(self, call: Call) -> float:
        """Until when a transport below held a call that had been cancelled there.

        If that was a probe at the gate, the request is sent after it, and takes its own time.
        """
        held_until = call.held_below_until
        if call.sends and abs(call.sends[0].began_at - held_until) <= EPSILON:
            return call.sends[0].ended_at
        return held_until

    def _latest_end(self, call: Call) -> float:
        settings = self.settings
        slack = self._slack(call)
        if call.cancels:
            return call.cancels[0][0] + slack
        if call.caller.timeout is not None and call.has_timed_out:
            return call.began_at + call.caller.timeout + slack
        gate = closes_at = call.began_at + settings.warmup_timeout
        for probe in self._warmup_probes(call):
            # The last one begins in time, and may take its own.
            if probe.began_at <= closes_at + slack or self._is_handed_over(probe):
                takes_until = min(probe.body_at, probe.began_at + settings.probe_timeout)
                gate = max(gate, takes_until)
        for other in self.truth.like(call):
            met = [
                probe
                for probe in other.probes
                if probe.is_warmup and probe.is_404 and not probe.shows_trainer
            ]
            if met and other.ended > call.began:
                # Whoever leads may hear the answer to its first question in any case.
                first_ends_at = met[0].body_at + settings.control_plane_timeout
                if other is call or met[0].began_at <= closes_at or self._is_handed_over(met[0]):
                    gate = max(gate, first_ends_at)
            leads = other is not call and any(probe.is_warmup for probe in other.probes)
            if leads and other.began < call.ended and other.ended > call.began:
                # One that a transport below holds is waited for as long as if it could still end.
                longest = settings.probe_timeout + settings.control_plane_timeout
                gate = max(gate, min(other.held_below_until, closes_at + longest))
        gate = self._when_not_cut(call, gate)
        if not call.sends:
            return gate + slack
        first, last = call.sends[0], call.sends[-1]
        if first.began_at > gate + slack:
            return gate + slack
        if not last.is_404:
            # In the very moment; but a replaced transport may be closed with its last error.
            return last.ended_at + slack
        if last.shows_trainer:
            return last.body_at + slack
        end = max(last.body_at, self.truth.budget(call).latest)
        if last is first:
            end = max(end, self.truth.first_question_ends_at(call, first))
        return end + slack

    def _is_handed_over(self, probe: Exchange) -> bool:
        """Whether a probe is the first of a call that took over from one that was cancelled."""
        call = probe.call
        return probe is call.probes[0] and any(
            other.is_given_up
            and other.ended < probe.began
            and other.ended_at >= probe.began_at - EPSILON
            and any(earlier.is_warmup for earlier in other.probes)
            for other in self.truth.like(call)
        )

    def _warmup_probes(self, call: Call) -> Iterator[Exchange]:
        """The probes that a call at the gate waited for, its own and others'."""
        for other in self.truth.like(call):
            if other.ended > call.began:
                for probe in other.probes:
                    if probe.is_warmup and probe.body_at > call.began_at:
                        yield probe

    # 4

    def one_for_all(self) -> Iterator[str]:
        asked: dict[int, list[Question]] = {}
        for question in self.world.questions:
            asked.setdefault(question.call.number, []).append(question)
        askers: dict[tuple[int | None, int, str], list[Call]] = {}
        for call in self.world.calls:
            if call.route is not None:
                askers.setdefault(call.asker, []).append(call)
            for earlier, later in _overlaps(sorted(call.probes, key=lambda probe: probe.began)):
                yield f"call {call.number}: two probes at once, at {later.began_at:.3f}"
                del earlier
        for (route, _, _), calls in askers.items():
            warmups = [probe for call in calls for probe in call.probes if probe.is_warmup]
            scouts = [probe for call in calls for probe in call.probes if not probe.is_warmup]
            for kind, probes in (("warmup", warmups), ("scout", scouts)):
                probes.sort(key=lambda probe: probe.began)
                for earlier, later in _overlaps(probes):
                    if earlier.call is not later.call:
                        yield f"route {route}: two {kind}s at once, at {later.began_at:.3f}"
            leaders = [probe.call.number for probe in warmups]
            turns = [n for i, n in enumerate(leaders) if i == 0 or leaders[i - 1] != n]
            if len(turns) != len(set(turns)):
                yield f"route {route}: two warmups in turns, led by {turns}"
            questions = [question for call in calls for question in asked.get(call.number, ())]
            questions.sort(key=lambda question: question.began)
            yield from self._questions_shared(questions)

    def _questions_shared(self, questions: list[Question]) -> Iterator[str]:
        for _, later in _overlaps(questions):
            yield f"route {later.route}: two questions at once, at {later.began_at:.3f}"
        for number, question in enumerate(questions):
            if (reason := self._why_no_question(question, questions[:number])) is not None:
                yield f"route {question.route}: asked at {question.began_at:.3f}, though {reason}"

    def _may_come_too_late(self, question: Question, earlier: list[Question]) -> bool:
        """Whether an answer may not count, because the time for its lookup was over.

        A thread cannot end what it waits for: it finds only afterwards that the time is over.
        """
        if not self.world.setup.in_threads:
            return False
        lasted = question.ended_at - self._lookup_began_at(question, earlier)
        return lasted > self.settings.control_plane_timeout - EPSILON

    def _lookup_began_at(self, question: Question, earlier: list[Question]) -> float:
        """When the lookup began: it asks once more after a connection that broke."""
        calls = [other for other in earlier if other.call is question.call]
        broken = next((other for other in calls[::-1] if other.began < question.began), None)
        if broken is None or broken.answer != "reset":
            return question.began_at
        pause = question.began_at - broken.settled_at
        is_repeat = abs(pause - _REPEATED_AFTER) < EPSILON
        began_at = self._lookup_began_at(broken, earlier)
        # Not a third time.
        return began_at if is_repeat and began_at == broken.began_at else question.began_at

    def _why_no_question(self, question: Question, earlier: list[Question]) -> str | None:
        call, began_at = question.call, question.began_at
        met_at = max(
            (x.body_at for x in (*call.sends, *call.probes) if x.is_404 and x.ended_at <= began_at),
            default=None,
        )
        for other in earlier:
            may_be_forgotten = self.truth.forgets and call.began_at > other.ended_at
            is_in_force = began_at - other.settled_at < self.settings.verdict_ttl - EPSILON
            if self._may_come_too_late(other, earlier):
                continue
            if other.answer == RUNNING and is_in_force and not may_be_forgotten:
                return "an answer that said it runs was in force"
            is_known = met_at is not None and met_at < other.began_at - EPSILON
            if (
                is_known
                and is_stopped(other.answer)
                # The second word on a missing job comes some time later, whoever asked meanwhile.
                and not any(
                    first.answer == "missing" and first.began < other.began
                    for first in earlier
                    if first.call is call or first.ended > call.began
                )
                and self._slack(call) <= EPSILON
            ):
                return f"an answer of {other.ended_at:.3f} said already that it is stopped"
            if other.call is call and other.asks_to_wait:
                budget = self.truth.budget(call) if call.met_404_at is not None else None
                until = call.began_at + self.settings.warmup_timeout
                until = min(until, budget.earliest) if budget else until
                if began_at < min(other.ended_at + other.asks_to_wait, until) - ROUNDING:
                    return f"it was asked to wait for {other.asks_to_wait:g} s"
        return None

    # 5

    def nothing_left(self) -> Iterator[str]:
        remains, world = self.remains, self.world
        for task in remains.tasks:
            yield f"a task is left: {task}"
        for name in remains.held:
            yield f"a flight is held: {name}"
        for what in remains.still_running:
            yield f"did not end with its event loop: {what}"
        for exchange in world.exchanges:
            # On a loop that was closed, nothing can be waited for.
            stream = None if exchange.call.is_lost_with_its_loop else exchange.stream
            if stream is not None and not (stream.is_closed or stream.is_exhausted):
                yield f"call {exchange.call.number}: an answer of {exchange.ended_at:.3f} is open"
        for question in world.questions:
            stream = None if question.call.is_lost_with_its_loop else question.stream
            if stream is not None and not (stream.is_closed or stream.is_exhausted):
                yield f"an answer of the control plane's, of {question.ended_at:.3f}, is open"
            spare = question.transport
            if spare is None or spare in world.orphans or spare.carries_requests:
                continue
            if any(isinstance(event, BuildFault) for event in world.schedule.events):
                # Where none can be built, it goes over the requests' own.
                continue
            if spare.closed_at > question.call.ended_at:
                yield f"the connection of a question of {question.began_at:.3f} is not closed"
        if remains.routes > max(world.setup.routes_kept, self._most_routes_at_once()):
            yield f"{remains.routes} routes are kept"
        for call in world.calls:
            for earlier, later in pairwise(call.sends):
                stream = earlier.stream
                if stream is not None and stream.let_go_at > later.began_at:
                    yield f"call {call.number}: its 404 was open until {stream.let_go_at:.3f}"
        if remains.open_spans:
            yield f"{remains.open_spans} spans never end"
        per_slot: dict[int, int] = {}
        for transport in remains.open_before_close:
            if transport in world.orphans:
                continue
            per_slot[transport.slot] = per_slot.get(transport.slot, 0) + 1
        for slot, count in per_slot.items():
            if count > 2:
                yield f"slot {slot}: {count} transports are open"
        for transport in world.transports:
            if not (transport.is_closed or transport in world.orphans):
                yield f"transport {transport.number} of slot {transport.slot} is never closed"

    def _most_routes_at_once(self) -> int:
        calls = [call for call in self.world.calls if call.route is not None]
        return max(
            (len({y.route for y in calls if y.began <= x.began < y.ended}) for x in calls),
            default=0,
        )

    # 6

    def true_verdicts(self) -> Iterator[str]:
        for call in self.world.calls:
            if call.route is None:
                if len(call.sends) > 1:
                    yield f"call {call.number}: resent, though it is on no trainer route"
                continue
            for earlier, later in pairwise(call.sends):
                if (reason := self._why_no_resend(call, earlier, later)) is not None:
                    yield f"call {call.number}: resent at {later.began_at:.3f}, though {reason}"
            yield from self._direct_resends(call)
            if call.response is not None and call.response.status_code == 404:
                yield from self._true_404(call)
        yield from self._true_spans()

    def _why_no_resend(self, call: Call, earlier: Exchange, later: Exchange) -> str | None:
        if not earlier.is_404:
            return "it had been answered"
        if earlier.shows_trainer:
            return "the trainer had answered"
        truth = self.truth
        until = later.began_at
        is_known_to_run = truth.is_running(call, earlier, until)
        if until >= truth.budget(call).earliest - ROUNDING:
            # The last one, for a question that was cut at the same moment: what it met before, and
            # was known to be a race, it still meets.
            is_known_to_run |= any(
                truth.is_running(call, send, until) or truth.is_trainer_reached(call, send, until)
                for send in call.sends
                if send.began < later.began
            )
        if not (is_known_to_run or truth.is_trainer_reached(call, earlier, until)):
            heard = [question.answer for question in truth.heard_after(call, earlier.ended_at)]
            return f"it was not in force that the job runs ({heard})"
        is_too_soon = until < earlier.ended_at + earlier.asks_to_wait - EPSILON
        if is_too_soon and until < truth.budget(call).earliest - ROUNDING:
            return f"it was asked to wait for {earlier.asks_to_wait:g} s"
        return None

    def _direct_resends(self, call: Call) -> Iterator[str]:
        """Whether resends followed without a probe only where none can tell, and not for ever."""
        in_a_row = 0
        for earlier, later in pairwise(call.sends):
            if not self.truth.is_direct(call, earlier, later):
                in_a_row = 0
                continue
            in_a_row += 1
            at = f"call {call.number}: resent at {later.began_at:.3f} without a probe"
            if in_a_row > _DIRECT_RESENDS:
                yield f"{at}, the {in_a_row}th in a row"
            if not self.truth.is_balanced(call, earlier, later):
                yield f"{at}, though the gateway was not seen to choose for each exchange"
            if not self.truth.is_running(call, earlier, later.began_at):
                yield f"{at}, though it was not in force that the job runs"

    def _true_404(self, call: Call) -> Iterator[str]:
        if not self.truth.reasons(call):
            yield f"call {call.number}: its 404 was handed back at {call.ended_at:.3f}, unproven"
        elif len(call.sends) == 1 and not call.sends[0].shows and self.truth.must_be_resent(call):
            yield f"call {call.number}: it was never resent, though its trainer was reached before"

    def _true_spans(self) -> Iterator[str]:
        for number, span, lasted in self.remains.ended_spans:
            seconds = ((span.end_time or 0) - (span.start_time or 0)) / 1e9
            # One that is made late began before it was made.
            if seconds < 0 or seconds < lasted - EPSILON:
                yield f"call {number}: a span of {lasted:.3f} s says {seconds:.3f} s"
            attributes = span.attributes or {}
            outcome = attributes.get("tinker_guard.outcome")
            if outcome is None or number < 0:
                continue
            call = self.world.calls[number]
            expected = self._outcomes(call)
            if outcome not in expected:
                yield f"call {number}: outcome {outcome!r}, but true is {sorted(expected)}"
            elif (reason := attributes.get("tinker_guard.verdict.reason")) is not None:
                yield from self._true_reason(call, str(outcome), str(reason))
            # What was sent on a closed client is on no wire.
            retries = max(len(call.sends) - 1, 0)
            if retries != attributes["tinker_guard.retries"] and call.error is None:
                yield f"call {number}: {attributes['tinker_guard.retries']!r} retries recorded"
            waited = attributes.get("tinker_guard.warmup.wait")
            until = call.sends[0].began_at if call.sends else call.ended_at
            if waited is not None and waited != round(until - call.began_at, 3):
                yield f"call {number}: waited for a warmup until {until:.3f}, not {waited!r} s"
        for amount, _ in self.remains.measured:
            if amount < 0:
                yield f"a metric was given {amount}"

    def _true_reason(self, call: Call, outcome: str, reason: str) -> Iterator[str]:
        """Whether the reason that a span gives for its outcome is true."""
        if outcome == "not_found":
            expected = set(self.truth.reasons(call) & NOT_FOUND)
        elif outcome in ("recovered", "exhausted"):
            expected = {"job_running", "trainer_reached"}
        elif outcome == "unverified":
            expected = {"control_plane_error", "control_plane_timeout", "no_control_plane"}
        else:
            return
        if reason not in expected:
            yield f"call {call.number}: {outcome}, {reason!r}, but true is {sorted(expected)}"

    def _outcomes(self, call: Call) -> set[str]:
        if isinstance(call.error, asyncio.CancelledError):
            return {"cancelled"}
        if call.response is None:
            return {"error"}
        status_code = call.response.status_code
        if status_code == 404:
            if call.route is None:
                return {"unverified"}
            reasons = self.truth.reasons(call)
            return {"not_found" if reason in NOT_FOUND else reason for reason in reasons}
        if call.route is None or not call.sends:
            return {"ok"}
        if len(call.sends) > 1:
            return {"error" if status_code >= 500 else "recovered"}
        races = self.truth.races_at_gate(call)
        if status_code >= 500 and races != "no":
            return {"ok", "error"}
        return {"no": {"ok"}, "perhaps": {"ok", "recovered"}, "surely": {"recovered"}}[races]

    # 7

    def keys_at_home(self) -> Iterator[str]:
        for exchange in self.world.exchanges:
            call = exchange.call
            if exchange.header(b"x-api-key") != call.key.encode():
                yield f"call {call.number}: sent with another key"
            url, own = exchange.url, call.request.url
            base = own.raw_path.removesuffix((call.path + QUERY).encode()) + b"/"
            if _place(url) != _place(own) or not url.raw_path.startswith(base):
                yield f"call {call.number}: sent to {url}"
        for call in self.world.calls:
            yield from self._refusal_at_home(call)
            affinities = self._foreign_affinities(call) - self._affinities(call)
            if any(send.affinity in affinities for send in call.sends):
                yield f"call {call.number}: sent with a cookie that another key was given"
        plane = self.world.setup.plane
        if plane == "none" and self.world.questions:
            yield "a question was asked, and there is no control plane"
        for question in self.world.questions:
            origin = origin_of(question.route)
            home = {"own": "", "elsewhere": PLANE_URL}.get(plane, origin)
            key = PLANE_KEY if plane == "elsewhere" else None
            if question.origin != home:
                yield f"a question went to {question.origin}"
            if question.key not in ((key,) if key else KEYS):
                yield "a question went with another key"
            shared = question.transport
            if (
                shared is not None
                and shared.carries_requests
                and self.world.can_build(question.call.slot)
            ):
                yield f"a question went over connection {shared.number}"
        for text in self._told():
            if any(secret in text for secret in (*KEYS, PLANE_KEY, SECRET)):
                yield f"a secret was told: {text}"

    def _refusal_at_home(self, call: Call) -> Iterator[str]:
        if call.response is None or call.sends:
            return
        number = call.response.headers.get("x-exchange")
        for exchange in self.world.exchanges:
            if str(exchange.began) == number and exchange.call.key != call.key:
                yield f"call {call.number}: refused with what another key was told"

    def _told(self) -> Iterator[str]:
        """All that the guard told anybody."""
        yield from self.remains.said
        yield from self.remains.kept
        for _, span, _ in self.remains.ended_spans:
            events = [(event.name, dict(event.attributes or {})) for event in span.events]
            yield repr((span.name, dict(span.attributes or {}), events, span.status.description))
        for _, attributes in self.remains.measured:
            yield repr(attributes)
        for call in self.world.calls:
            # What was raised below, such as a cancellation there, is not told by the guard.
            raised_below = {id(x.error) for x in (*call.sends, *call.probes)}
            if call.error is not None and id(call.error) not in raised_below:
                # Python notes as its context what was being handled as it was raised.
                context, cause = call.error.__context__, call.error.__cause__
                told = (call.error, context, cause)
                yield repr([error for error in told if id(error) not in raised_below])


def _is_copy(body: bytes | None, of: Exchange) -> bool:
    """Whether a body is an exchange's, as far as that could be kept.

    Of a large one that is its beginning; of one that is coded and breaks off, nothing.
    """
    if body is None:
        return False
    is_broken = of.fault == "broken body" and of.body_kind in CODED
    return body == of.body or (
        of.body.startswith(body) and (len(of.body) > MUCH or (is_broken and not body))
    )


def _place(url: httpx.URL) -> tuple[bytes, bytes, int | None]:
    return url.raw_scheme, url.raw_host, url.port


def _is_same(one: Exchange, other: Exchange) -> bool:
    return _as_sent(one) == _as_sent(other)


def _as_sent(exchange: Exchange) -> tuple[object, ...]:
    headers = _other_headers(exchange.headers)
    return exchange.method, exchange.url, headers, exchange.content, exchange.extensions


def _other_headers(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """What is the request's own: all but the name of its span, and the balancer's cookie."""
    others = []
    for name, value in headers:
        if name == b"traceparent":
            continue
        if name.lower() == b"cookie" and b"affinity=" in value:
            first, _, last = value.partition(b"affinity=")
            rest = first.removesuffix(b"; ") + last.partition(b";")[2]
            if rest:
                others.append((name, rest))
            continue
        others.append((name, value))
    return others


_S = TypeVar("_S", bound="Span")


def _overlaps(spans: list[_S]) -> Iterator[tuple[_S, _S]]:
    """Pairs of which the second began before the first ended; in order of their beginning."""
    under_way: list[_S] = []
    for span in spans:
        under_way = [earlier for earlier in under_way if earlier.ended > span.began]
        yield from ((earlier, span) for earlier in under_way)
        under_way.append(span)


def _merged(times: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same times without overlaps, in order."""
    merged: list[tuple[float, float]] = []
    for since, until in sorted(times):
        if merged and since <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(until, merged[-1][1])
        else:
            merged.append((since, until))
    return merged
