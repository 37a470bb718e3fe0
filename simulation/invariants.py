"""What must hold after every schedule, checked on the facts that the world recorded.

Each has an obvious reading; this is the exact one, and why it is not stricter.

1. **Work is applied once and in order.** The trainer's log of applied `seq_id`s is the beginning
   of 1, 2, 3, ... without a repeat, and complete if every dispatch was answered. What was answered
   with 200 was received. Each resend equals the request byte for byte: method, URL, headers,
   body, extensions; where spans are recorded, all but `traceparent`, which names the exchange's
   own span. A body that is a stream is sent once. (That a run can end early is true of the
   SDK too: after a 404 that nobody could verify, or a cancellation.)

2. **The caller gets what the transport below gave.** The response is the very object that the
   transport returned for the request's last send, with its status, headers and whole body; an
   exception is the very one that it raised. There are two exceptions to that, both documented: at
   the gate nothing has been sent yet, so that a refusal is a copy of a 404 that a probe on this
   route met while the request waited; and a client that is closed under a request gives httpx's
   `TransportError`. `CancelledError` comes out if and only if the caller cancelled. A fault of the
   guard's own, which it would log and swallow, breaks this one too, and so does an error where
   nobody can catch it, as in a callback. Where an event loop is closed under a request, nobody is
   there to get anything.

3. **Everybody comes to an end.** At the gate, a request waits for `warmup_timeout` and one round
   that began within it (`probe_timeout` and a question). After its first 404 it resends within
   `retry_timeout`, and is answered as soon as the send that began last is over and, where that was
   a 404, judged: `PEEK_SECONDS` for the body, and for the first 404 one question, which always
   gets its whole time. Three things add to it. Whoever leads a question or a warmup and is
   cancelled hands over, so that those in line wait for another one. While an answer or a transport
   is being closed, whoever closes it waits, but not longer than a second. And while the process
   stands still, nothing ends; afterwards one send is begun for a request whose budget is over, and
   no second one. An answer other than 404 is handed back in the moment in which it comes, and a
   cancellation ends the request at once, closing aside. Closing all guards at the end takes no
   longer than what they close. What somebody does to the wall clock changes none of that.

4. **One finds out for all.** On one route and event loop, no two requests lead warmups in turns or
   at the same time, and no two lead scouts at the same time. No two questions with the same key
   are under way at the same time; and none begins within `verdict_ttl` after one that was
   answered. A question that was cut short because its asker was cancelled, or ran out of its own
   budget, has no answer, even if that was while its connection was being closed. A refused
   connection is tried again once, as part of the same question. Where the process keeps fewer
   routes than it meets (1,024 in truth, one in some schedules), a route that it forgot is a new
   one, and this invariant is not checked.

5. **Nothing is left.** When all callers have ended: no task, no locked flight, no open answer, no
   span that was begun and not ended, no more routes than the limit, no event loop that was closed,
   and no transport open but the first and the present one of each line. The connection of a
   question is closed with the question. After `aclose()`, none at all; but a transport that was
   released is its owner's. What ran on an event loop that was closed under it ends as soon as the
   garbage collector finds it, and waits for nothing; its answers and transports cannot be closed
   any more, and are not counted.

6. **No race is called genuine, no genuine not-found is resent.** The guard cannot know more than
   the control plane says, so that "genuine" is: the control plane said so (stopped, missing,
   starting) in an answer that was in force. A 404 that the trainer did not write is handed back
   only then; or if no answer could be had, or the budget is spent, or the body cannot be sent
   again. A resend follows only on a 404, one that does not show within `PEEK_SECONDS` that the
   trainer wrote it, and for which an answer in force said that the job runs; and not sooner than
   the 404 asked for, by the gateway's clock. In force: given to the same event loop after the 404,
   or at most `verdict_ttl` before, counted from when its connection was closed. That answer can be
   out of date when the resend begins: a job may stop in between, and the resend shows it. A 404 of
   the trainer's that names nobody is resent like a race, and is believed after `EVIDENCE_NEEDED`
   resends; one of a gateway's never is. Where spans are recorded, outcome and verdict must agree
   with all that, and none is shorter than what it tells of, whatever the wall clock says.

7. **The key stays where it belongs.** All that is sent for a request goes to its own origin and
   route with its own key; questions go to the configured control plane with the configured key, or
   to the route's origin with the request's key, over a connection of their own if one can be had.
   No key, and nothing of any header, query, body or error of somebody else's is in a log line, a
   span, a metric, an error of the guard's own, or what is kept for sharing answers.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import httpx

from simulation.model import KEYS, PLANE_KEY, PLANE_URL, QUERY, SECRET, origin_of
from simulation.schedule import RUNNING, BuildFault, CloseFault, Stall
from tinker_guard.closing import CLOSE_SECONDS
from tinker_guard.peek import PEEK_SECONDS
from tinker_guard.verdict import EVIDENCE_NEEDED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace import ReadableSpan

    from simulation.model import Call, Exchange, ModelTransport, Question, Span, World
    from tinker_guard import GuardSettings

_EPSILON: Final = 1e-6


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


def check(world: World, settings: GuardSettings, remains: Remains) -> list[Violation]:
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
    def __init__(self, world: World, settings: GuardSettings, remains: Remains) -> None:
        self.world = world
        self.settings = settings
        self.remains = remains
        # A reconfigured transport waits a second longer.
        self.budget = settings.retry_timeout + (1.0 if world.reconfigured else 0.0)
        self.lost_time = _merged(
            [
                *((stall.began_at, stall.ended_at) for stall in world.stalls),
                *(
                    (closing.began_at, min(closing.ended_at, closing.began_at + CLOSE_SECONDS))
                    for closing in world.closings
                ),
            ]
        )
        self.forgets = world.setup.routes_kept < world.setup.routes

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
        elif call.body != origin.body or not set(response.headers.raw) <= set(
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
            limit = self._latest_end(call)
            if call.ended_at > limit:
                yield (
                    f"call {call.number}: ended at {call.ended_at:.3f}, {limit:.3f} was the latest"
                )
            if (met_at := call.met_404_at) is not None:
                budget_ends_at = met_at + self.budget + _EPSILON
                late = [x for x in call.sends[1:] if x.began_at > budget_ends_at]
                if len(late) > 1 or any(
                    x.began_at > budget_ends_at + self._slack(call) and x.is_over for x in late
                ):
                    yield f"call {call.number}: resent after its budget"

        closing = self.world.closing_guards
        if closing.ended_at > closing.began_at + self._slack(closing):
            yield f"closing the guards took {closing.ended_at - closing.began_at:.3f} s"

    def _slack(self, span: Span) -> float:
        """For how much of this time something was being closed, or the process stood still."""
        lost = (
            min(span.ended_at, until) - max(span.began_at, since) for since, until in self.lost_time
        )
        return _EPSILON + sum(seconds for seconds in lost if seconds > 0)

    def _latest_end(self, call: Call) -> float:
        settings = self.settings
        slack = self._slack(call)
        others = [
            other
            for other in self.world.calls
            if other is not call
            and (other.route, other.loop) == (call.route, call.loop)
            and other.began < call.ended
            and other.ended > call.began
        ]
        handed_over = sum(isinstance(o.error, asyncio.CancelledError) for o in others)
        question = settings.control_plane_timeout * (1 + len(others))
        if call.cancels:
            return call.cancels[0][0] + slack
        if call.caller.timeout is not None and call.has_timed_out:
            return call.began_at + call.caller.timeout + slack
        gate = settings.warmup_timeout + (1 + handed_over) * (settings.probe_timeout + question)
        if not call.sends:
            return call.began_at + gate + slack
        first, last = call.sends[0], call.sends[-1]
        if first.began_at > call.began_at + gate + slack:
            return call.began_at + gate + slack
        if not last.is_404:
            # In the very moment; but a replaced transport may be closed with its last error.
            return last.ended_at + slack
        if last.shows_trainer:
            assert last.stream is not None
            return last.ended_at + last.stream.pause + slack
        end = last.ended_at + PEEK_SECONDS + slack
        if last is first:
            return max(end + question, last.ended_at + self.budget + slack)
        assert call.met_404_at is not None
        return max(end, call.met_404_at + self.budget + slack)

    # 4

    def one_for_all(self) -> Iterator[str]:
        if self.forgets:
            return
        shared = {(x.call.route, x.call.loop) for x in self.world.exchanges}
        for route, loop in sorted(shared - {(None, x) for _, x in shared}):
            probes = [
                x
                for x in self.world.exchanges
                if x.is_probe and (x.call.route, x.call.loop) == (route, loop)
            ]
            warmups = [probe for probe in probes if probe.is_warmup]
            scouts = [probe for probe in probes if not probe.is_warmup]
            for kind, some in (("warmup", warmups), ("scout", scouts)):
                for earlier, later in _overlaps(some):
                    if earlier.call is not later.call:
                        yield f"route {route}: two {kind}s at once, at {later.began_at:.3f}"
            leaders = [probe.call.number for probe in warmups]
            turns = [n for i, n in enumerate(leaders) if i == 0 or leaders[i - 1] != n]
            if len(turns) != len(set(turns)):
                yield f"route {route}: two warmups in turns, led by {turns}"
            limit = self.settings.warmup_successes
            limit = max(limit, 3 - limit) if self.world.reconfigured else limit
            most = max(_most_at_once(warmups), default=0)
            if most > limit:
                yield f"route {route}: {most} probes of a warmup at once"
        yield from self._questions_shared()

    def _questions_shared(self) -> Iterator[str]:
        by_asker: dict[tuple[int, int, str], list[Question]] = {}
        for question in self.world.questions:
            asker = question.route, question.call.loop, question.key
            by_asker.setdefault(asker, []).append(question)
        for (route, _, _), questions in by_asker.items():
            for _, later in _overlaps(questions):
                yield f"route {route}: two questions at once, at {later.began_at:.3f}"
            answered_at = float("-inf")
            refused: Question | None = None
            for question in questions:
                if question.began_at - answered_at < self.settings.verdict_ttl:
                    yield f"route {route}: asked again too soon, at {question.began_at:.3f}"
                if question.answer == "reset" and not (refused and refused.call is question.call):
                    refused = question
                    continue
                refused = None
                if question.answer != "cut" or self._is_timeout(question):
                    answered_at = question.ended_at

    def _is_timeout(self, question: Question) -> bool:
        """Whether a question was cut short by its own timeout, which is an answer to all."""
        call = question.call
        met_at = call.met_404_at
        if call.cancels or call.has_timed_out or call.is_lost_with_its_loop:
            return False
        if met_at is not None and question.ended_at >= met_at + self.settings.retry_timeout:
            return False
        lasted = question.ended_at - question.began_at
        return lasted >= self.settings.control_plane_timeout - _EPSILON

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
        if remains.routes > world.setup.routes_kept:
            yield f"{remains.routes} routes are kept"
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
            if call.response is not None and call.response.status_code == 404:
                yield from self._true_404(call)
        yield from self._true_spans()

    def _why_no_resend(self, call: Call, earlier: Exchange, later: Exchange) -> str | None:
        if not earlier.is_404:
            return "it had been answered"
        if earlier.shows_trainer:
            return "the trainer had answered"
        answers = self._answers(call, earlier.ended_at, later.began_at)
        if not any(question.answer == RUNNING for question in answers):
            return f"no answer in force said so ({[q.answer for q in answers]})"
        if later.began_at < earlier.ended_at + earlier.asks_to_wait - _EPSILON:
            return f"it was asked to wait for {earlier.asks_to_wait:g} s"
        return None

    def _answers(self, call: Call, since: float, until: float) -> list[Question]:
        """What the control plane said to this caller, in force between two times."""
        since -= self.settings.verdict_ttl
        return [
            question
            for question in self.world.questions
            if (question.route, question.call.loop) == (call.route, call.loop)
            and question.key in (call.key, PLANE_KEY)
            and since - _EPSILON <= question.settled_at
            and question.ended_at <= until
        ]

    def _true_404(self, call: Call) -> Iterator[str]:
        reasons = self._reasons(call)
        if not reasons:
            yield f"call {call.number}: its 404 was a race, and was handed back at {call.ended_at}"

    def _reasons(self, call: Call) -> set[str]:
        """The outcomes that a 404 which was handed back may truly have."""
        if not call.sends:
            return self._reasons_at_gate(call)
        last = call.sends[-1]
        released_at = self.world.released_slots.get(call.slot, float("inf"))
        if last.shows_trainer:
            return {"not_found"}
        if call.began_at >= released_at or last.author == "trainer":
            return {"not_found", "exhausted", "unverified"}
        reasons = set()
        for question in self._answers(call, last.ended_at, call.ended_at):
            if question.answer in ("useless", "reset", "cut"):
                reasons.add("unverified")
            elif question.answer != RUNNING:
                reasons.add("not_found")
        if last.author == "odd" and len(call.sends) > EVIDENCE_NEEDED:
            reasons.add("not_found")
        assert call.met_404_at is not None
        # Dates have whole seconds: both are rounded so that nobody comes too early.
        asked = last.asks_to_wait + (2.0 if b"date" in dict(last.response_headers) else 0.0)
        delay = max(self.settings.backoff_max, asked)
        if call.ended_at + delay + _EPSILON >= call.met_404_at + self.settings.retry_timeout:
            reasons.add("exhausted")
        if call.caller.asks == "upload":
            reasons.add("exhausted")
        return reasons

    def _reasons_at_gate(self, call: Call) -> set[str]:
        settings = self.settings
        reasons = set()
        for question in self.world.questions:
            if (
                (question.route, question.call.loop) == (call.route, call.loop)
                and call.began_at - settings.verdict_ttl <= question.ended_at <= call.ended_at
                and question.answer not in (RUNNING, "useless", "reset", "cut")
            ):
                reasons.add("not_found")
        for leader in self.world.calls:
            waited = call.ended_at - leader.began_at
            if (
                (leader.route, leader.loop) == (call.route, call.loop)
                and leader.probes
                and leader.began <= call.ended
                and waited + settings.backoff_max + _EPSILON >= settings.warmup_timeout
            ):
                reasons.add("exhausted")
        return reasons

    def _true_spans(self) -> Iterator[str]:
        for number, span, lasted in self.remains.ended_spans:
            seconds = ((span.end_time or 0) - (span.start_time or 0)) / 1e9
            # One that is made late began before it was made.
            if seconds < 0 or seconds < lasted - _EPSILON:
                yield f"call {number}: a span of {lasted:.3f} s says {seconds:.3f} s"
            attributes = span.attributes or {}
            outcome = attributes.get("tinker_guard.outcome")
            if outcome is None or number < 0:
                continue
            call = self.world.calls[number]
            expected = self._outcomes(call)
            if outcome not in expected:
                yield f"call {number}: outcome {outcome!r}, but true is {sorted(expected)}"
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

    def _outcomes(self, call: Call) -> set[str]:
        if isinstance(call.error, asyncio.CancelledError):
            return {"cancelled"}
        if call.response is None:
            return {"error"}
        if call.response.status_code != 404:
            return {"recovered" if len(call.sends) > 1 else "ok"}
        return {"unverified"} if call.route is None else self._reasons(call)

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
        plane = self.world.setup.plane
        for question in self.world.questions:
            origin = origin_of(question.route)
            home = {"own": "", "elsewhere": PLANE_URL}.get(plane, origin)
            key = PLANE_KEY if plane == "elsewhere" else None
            if question.origin != home:
                yield f"a question went to {question.origin}"
            if question.key not in ((key,) if key else KEYS):
                yield "a question went with another key"
            shared = question.transport
            if shared is not None and shared.carries_requests and self._has_its_own(question):
                yield f"a question went over connection {shared.number}"
        for text in self._told():
            if any(secret in text for secret in (*KEYS, PLANE_KEY, SECRET)):
                yield f"a secret was told: {text}"

    def _has_its_own(self, question: Question) -> bool:
        """Whether a connection of its own could be had for a question."""
        world, slot = self.world, question.call.slot
        return (
            world.setup.renewable
            and not world.builds_failed
            and slot not in world.closed_slots
            and slot not in world.released_slots
        )

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
            if call.error is not None and not (call.sends and call.error is call.sends[-1].error):
                yield repr((call.error, call.error.__context__, call.error.__cause__))


def _place(url: httpx.URL) -> tuple[bytes, bytes, int | None]:
    return url.raw_scheme, url.raw_host, url.port


def _is_same(one: Exchange, other: Exchange) -> bool:
    return _as_sent(one) == _as_sent(other)


def _as_sent(exchange: Exchange) -> tuple[object, ...]:
    headers = [header for header in exchange.headers if header[0] != b"traceparent"]
    return exchange.method, exchange.url, headers, exchange.content, exchange.extensions


_S = TypeVar("_S", bound="Span")


def _overlaps(spans: list[_S]) -> Iterator[tuple[_S, _S]]:
    """Pairs of which the second began before the first ended; in order of their beginning."""
    under_way: list[_S] = []
    for span in spans:
        under_way = [earlier for earlier in under_way if earlier.ended > span.began]
        yield from ((earlier, span) for earlier in under_way)
        under_way.append(span)


def _most_at_once(spans: list[Exchange]) -> Iterator[int]:
    for span in spans:
        yield sum(other.began <= span.began < other.ended for other in spans)


def _merged(times: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same times without overlaps, in order."""
    merged: list[tuple[float, float]] = []
    for since, until in sorted(times):
        if merged and since <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(until, merged[-1][1])
        else:
            merged.append((since, until))
    return merged
