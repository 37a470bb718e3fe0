"""What the guard could know in a run, and so what it may have made of each 404.

An oracle of its own: it knows the rules of judgement and the world's records, and nothing of the
guard's code. Where the records leave open what the guard knew, such as whether a route was warm,
it allows both; what it calls certain, is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from proof.simulation.schedule import RUNNING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from proof.simulation.model import ModelWorld
    from proof.simulation.record import Call, Exchange, Question
    from tinker_guard import GuardSettings

EPSILON: Final = 1e-6
ROUNDING: Final = 0.002
"""Seconds by which a wait may come out shorter than it is said to be."""
SETTLES_FOR: Final = 1.0
"""Seconds after a route's first answer in which a state on its way proves nothing."""
ASKED_AGAIN_AFTER: Final = 1.9
"""About two seconds lie between the two answers that make a job a missing one: no fewer, ..."""
ASKED_AGAIN_BY: Final = 2.1
"""... and no more. Where a budget ends sooner there is one answer, which proves nothing."""

REMEMBERED_FOR: Final = 60.0
"""Seconds for which a budget that was spent in vain, on a route without a control plane, spares
others the same."""
BALANCED_FOR: Final = 30.0
"""Seconds for which a gateway counts as one that picks a replica for each exchange."""

_STOPPED: Final = frozenset(
    f"JOB_STATE_{name}"
    for name in (
        *("FAILED", "FAILED_CLEANING_UP", "CANCELLED", "CANCELLING", "COMPLETED", "EARLY_STOPPED"),
        *("EXPIRED", "DELETING", "DELETING_CLEANING_UP", "DELETED", "ARCHIVED", "PAUSED"),
    )
)
_NO_ANSWER: Final = frozenset({"useless", "reset", "cut"})

NOT_FOUND: Final = frozenset({"trainer_answered", "job_not_running", "job_missing"})
"""The reasons for which a 404 is genuine."""
ANY: Final = NOT_FOUND | {"exhausted", "unverified"}


def is_stopped(answer: str) -> bool:
    """Whether a job in this state does not run again by itself."""
    return answer in _STOPPED


def is_on_its_way(answer: str) -> bool:
    """Whether a job in this state, known or not, may run soon."""
    return not (answer in _STOPPED or answer in _NO_ANSWER or answer in (RUNNING, "missing"))


def is_usable(answer: str) -> bool:
    """Whether a question had an answer at all."""
    return answer not in _NO_ANSWER


class Budget(NamedTuple):
    """When the time of a request that met a 404 is over."""

    earliest: float
    latest: float


class Truth:
    """What was known to whom, and when.

    Args:
        world: The records.
        settings: The guard's; a transport that was reconfigured has `more_patience`.
        more_patience: Seconds.
    """

    def __init__(self, world: ModelWorld, settings: GuardSettings, more_patience: float) -> None:
        self.world = world
        self.settings = settings
        self._more_patience = more_patience
        self.forgets = world.setup.routes_kept < world.setup.routes
        """Whether the process may forget a route that nobody uses."""
        # The run is over: what was found out once stays true.
        self._reasons: dict[int, frozenset[str]] = {}
        self._budgets: dict[int, Budget] = {}
        # Where all questions go with one key of their own, answers do not depend on the key.
        self._shared = slice(2) if world.setup.plane == "elsewhere" else slice(3)
        self._questions: dict[object, list[Question]] = {}
        for question in world.questions:
            self._questions.setdefault(question.call.asker[self._shared], []).append(question)
        self._like: dict[object, list[Call]] = {}
        for call in world.calls:
            self._like.setdefault(call.asker, []).append(call)
        self._worked: dict[int | None, list[Exchange]] = {}
        """What the trainer of a route was asked."""
        self._blind: set[int | None] = set()
        """Routes of which it may seem that the trainer does not know the path of probes."""
        for exchange in world.exchanges:
            route = exchange.call.route
            if exchange.has_worked:
                self._worked.setdefault(route, []).append(exchange)
            if exchange.is_probe and exchange.author in ("unknown", "odd"):
                self._blind.add(route)

    def like(self, call: Call) -> list[Call]:
        """The calls, this one among them, that share what the guard finds out."""
        return self._like[call.asker]

    # Routes without a control plane

    @property
    def is_alone(self) -> bool:
        """Whether there is no control plane, so that what was reached is the evidence."""
        return self.world.setup.plane == "none"

    def _may_have_been_reached(self, call: Call, until: float) -> bool:
        """Whether something the trainer said on a route may have come, by then, to the guard."""
        return any(exchange.ended_at <= until for exchange in self._worked.get(call.route, ()))

    def _was_surely_reached(self, call: Call, at: float) -> bool:
        """Whether a request on a route had been answered with 200 before."""
        return not self.forgets and any(
            other.route == call.route
            and other.response is not None
            and other.response.status_code == 200
            and other.ended_at < at
            and other.slot not in self.world.released_slots
            for other in self.world.calls
        )

    def _budget_alone(self, call: Call, first: Exchange) -> Budget:
        patience, unreached = self.settings.retry_timeout, self.settings.unreached_timeout
        latest = first.body_at + max(patience + self._more_patience, unreached)
        if not self._was_surely_reached(call, first.ended_at):
            patience = min(patience, unreached)
        return Budget(first.ended_at + patience, latest)

    def _reasons_alone(self, call: Call, last: Exchange) -> Iterator[str]:
        """Why a 404 that the trainer did not write may have been handed back."""
        is_over = max(call.ended_at, last.body_at) >= self.budget(call).earliest - ROUNDING
        is_at_once = self.may_be_spared(call) or self.may_be_without_patience(call)
        if is_over or is_at_once or self.cannot_be_kept(last):
            yield "unverified"
        if call.caller.asks == "upload":
            yield "unverified"
            if self._may_have_been_reached(call, call.ended_at):
                # It is a race, but cannot be sent again.
                yield "exhausted"

    def may_be_spared(self, call: Call) -> bool:
        """Whether somebody may have spent a whole budget in vain within the last minute."""
        return any(
            other.route == call.route
            and other is not call
            and other.ended_at >= call.began_at - REMEMBERED_FOR
            and self._may_have_spent(other, call.ended_at)
            for other in self.world.calls
        )

    def must_be_resent(self, call: Call) -> bool:
        """Whether a call that has met a 404 had to be sent again before it was handed back.

        Its trainer was reached before, so that its 404 came of a race, and there was time for that:
        reading the 404, closing something, or a process that stood still did not last until the
        budget was over.
        """
        first = next(exchange for exchange in call.sends if exchange.is_404)
        over_at = self.budget(call).earliest - ROUNDING
        return (
            self.is_alone
            and first.body_at < over_at
            and not any(
                lost.began_at < call.ended_at and lost.ended_at >= over_at
                for lost in (*self.world.closings, *self.world.stalls)
            )
            and call.caller.asks != "upload"
            and self._was_surely_reached(call, first.began_at)
            and not self.cannot_be_kept(first)
            and not self.may_be_spared(call)
            and not self.may_be_without_patience(call)
            and call.slot not in self.world.closed_slots
            and call.slot not in self.world.released_slots
        )

    # Questions

    def questions(self, call: Call) -> Sequence[Question]:
        """The questions whose answers a call may use."""
        return self._questions.get(call.asker[self._shared], ())

    def heard_after(self, call: Call, not_found_at: float) -> list[Question]:
        """What a call heard of questions that began after a 404 had arrived."""
        return [
            question
            for question in self.questions(call)
            if question.began_at >= not_found_at - EPSILON and question.ended_at <= call.ended_at
        ]

    def is_running(self, call: Call, not_found: Exchange, until: float) -> bool:
        """Whether an answer was in force that the job runs, as a 404 was judged.

        Without a control plane, that the trainer was reached stands in its place.
        """
        if self.is_alone:
            return self._may_have_been_reached(call, until)
        since = not_found.body_at - self.settings.verdict_ttl - EPSILON
        return any(
            question.answer == RUNNING
            and (question.settled_at >= since or question.began_at >= not_found.ended_at - EPSILON)
            and question.ended_at <= until
            for question in self.questions(call)
        )

    def is_trainer_reached(self, call: Call, not_found: Exchange, until: float) -> bool:
        """Whether a probe proved that the job runs, where the control plane did not know."""
        since = not_found.ended_at - EPSILON
        # To hear a second time that the job is missing.
        too_late = self.budget(call).earliest - ASKED_AGAIN_BY
        is_plane_useless = self._may_have_asked_nobody(call, since, until) or any(
            question.ended_at <= until
            and (question.began_at >= since or question.settled_at + question.asks_to_wait >= since)
            and (
                self._says_nothing_yet(call, not_found, question)
                or (question.answer == "missing" and question.settled_at > too_late)
                or not (is_usable(question.answer) or self.is_abandoned(question))
            )
            for question in self.questions(call)
        )
        return is_plane_useless and any(
            probe.may_have_reached
            and since <= probe.ended_at <= until
            and (
                other is not call
                or probe.transport is not not_found.transport
                or not self.world.can_build(probe.call.slot)
            )
            for other in self.like(call)
            for probe in other.probes
        )

    def _says_nothing_yet(self, call: Call, not_found: Exchange, question: Question) -> bool:
        """Whether an answer says that the job is on its way, of a route that has not come up."""
        up_at = question.settled_at - SETTLES_FOR - ROUNDING
        return is_on_its_way(question.answer) and not (
            self._is_surely_warm(call, up_at) and self._is_surely_warm(call, not_found.ended_at)
        )

    def _may_have_asked_nobody(self, call: Call, since: float, until: float) -> bool:
        """Whether a question that a call may use the failure of was not let out of its process."""
        is_on_the_line = self.world.setup.plane == "line"
        return is_on_the_line and self._is_closed_under(call, since, until)

    def _is_closed_under(self, call: Call, since: float, until: float) -> bool:
        """Whether a call like this one went on, between two times, on a client that was closed.

        What it asks and probes then fails before it reaches the world, which records nothing.
        """
        return any(
            self.world.closed_slots.get(other.slot, float("inf")) <= min(other.ended_at, until)
            and other.began_at <= until
            and other.ended_at >= since - EPSILON
            for other in self.like(call)
        )

    def is_abandoned(self, question: Question) -> bool:
        """Whether a question has no answer because whoever asked it was gone, or out of time.

        One that took longer than it may is none of these: that it has no answer is known, even if
        whoever asked it is cancelled at the same moment, but later.
        """
        if question.answer != "cut":
            return False
        if question.is_abandoned:
            return True
        lasted = question.ended_at - question.began_at
        return lasted < self.settings.control_plane_timeout - EPSILON

    # Budgets

    def budget(self, call: Call) -> Budget:
        """When the budget of a call that met a 404 is over.

        `retry_timeout` after its first 404, and on a route that is still cold then, not before
        `warmup_timeout` after its arrival.
        """
        budget = self._budgets.get(call.number)
        if budget is None:
            budget = self._budgets[call.number] = self._budget(call)
        return budget

    def _budget(self, call: Call) -> Budget:
        first = next(exchange for exchange in call.sends if exchange.is_404)
        if self.is_alone:
            return self._budget_alone(call, first)
        earliest = first.ended_at + self.settings.retry_timeout
        latest = first.body_at + self.settings.retry_timeout + self._more_patience
        gate_ends_at = call.began_at + self.settings.warmup_timeout
        if self._is_surely_cold(call, first.ended_at):
            earliest = max(earliest, gate_ends_at)
        if not self._is_surely_warm(call, first.ended_at):
            latest = max(latest, gate_ends_at)
            if self.forgets:
                # On a route that was warm and is forgotten, a request counts from its 404.
                latest = max(latest, first.body_at + self.settings.warmup_timeout)
        return Budget(earliest, latest)

    def first_question_ends_at(self, call: Call, not_found: Exchange) -> float:
        """Until when the first question of a call may last, however short its budget is."""
        return not_found.body_at + self.settings.control_plane_timeout

    def _may_have_spent(self, call: Call, at: float) -> bool:
        """Whether a call may have been handed back a 404, before a time, with its budget spent."""
        if call.response is None or call.response.status_code != 404 or call.ended_at > at:
            return False
        # What happens at the same moment may count or not.
        return call.ended_at == at or bool(self.reasons(call) & {"exhausted", "unverified"})

    def is_surely_warm(self, call: Call) -> bool:
        """Whether the gate must be open to a call: the trainer has answered one like it with 200.

        Unless somebody has met a 404 since, which may have been a true one.
        """
        return self._is_surely_warm(call, call.began_at)

    def is_surely_cold(self, call: Call) -> bool:
        """Whether the gate must be closed to a call: nobody has had a word of the trainer's."""
        if call.slot in self.world.released_slots or self.may_be_without_patience(call):
            return False
        if call.route in self._blind:
            return False
        until = call.sends[0].began_at if call.sends else call.ended_at
        return self._is_surely_cold(call, until)

    def _is_surely_cold(self, call: Call, at: float) -> bool:
        if not self.settings.warmup_successes or self.world.reconfigured:
            # Without a warmup, nothing says when a route is warm.
            return False
        if any(
            other.route == call.route and self._may_have_spent(other, at)
            for other in self.world.calls
            if other is not call
        ):
            # Where a whole budget was spent in vain, the gate is not closed again.
            return False
        return not any(exchange.began_at <= at for exchange in self._worked.get(call.route, ()))

    def _is_surely_warm(self, call: Call, at: float) -> bool:
        if self.forgets:
            return False
        warm = False
        for other in self.world.calls:
            if other.route != call.route or other.response is None or other.ended_at > at:
                continue
            if other.response.status_code == 404:
                # Perhaps a true one, after which the route is cold, and at the same moment may be.
                return False
            if other.ended_at == at:
                continue
            if other.asker == call.asker and other.slot not in self.world.released_slots:
                warm |= other.response.status_code == 200
        return warm

    # 404s

    def reasons(self, call: Call) -> frozenset[str]:
        """Why a 404 that was handed back may have been handed back: of `ANY`."""
        reasons = self._reasons.get(call.number)
        if reasons is None:
            if not call.sends:
                reasons = frozenset(self._reasons_at_gate(call))
            else:
                reasons = frozenset(self._reasons_after_send(call, call.sends[-1]))
            self._reasons[call.number] = reasons
        return reasons

    def _reasons_after_send(self, call: Call, last: Exchange) -> Iterator[str]:
        if call.began_at >= self.world.released_slots.get(call.slot, float("inf")):
            yield from ANY
            return
        if last.shows_trainer:
            yield "trainer_answered"
            return
        if last.shows or self._shows_in_the_end(call, last):
            yield "trainer_answered"
        if self.is_alone:
            yield from self._reasons_alone(call, last)
            return
        heard = self.heard_after(call, last.ended_at)
        yield from self._genuine(call, heard)
        is_race = any(
            self.is_running(call, send, call.ended_at)
            or self.is_trainer_reached(call, send, call.ended_at)
            for send in call.sends
            if send.is_404
        )
        if self.may_be_without_patience(call):
            yield from ("exhausted", "unverified")
        if max(call.ended_at, last.body_at) >= self.budget(call).earliest - ROUNDING:
            yield "unverified"
            if is_race and not self._has_heard_otherwise(call, last, heard):
                yield "exhausted"
            if any(is_on_its_way(question.answer) for question in heard):
                yield "job_not_running"
        elif call.caller.asks == "upload":
            # It cannot be sent again.
            if is_race:
                yield "exhausted"
            yield from self._not_known(call, last)
        elif self.cannot_be_kept(last):
            # It would have to be given away before a wait.
            yield from self._not_known(call, last)

    def _shows_in_the_end(self, call: Call, last: Exchange) -> bool:
        """Whether a trainer wrote a router's 404, and had shown itself before that was judged.

        Until a transport is closed that the 404 was the last on, nobody is given it.
        """
        return last.author == "trainer" and any(
            exchange is not last and exchange.ended_at <= call.ended_at
            for exchange in self._worked.get(call.route, ())
        )

    def _has_heard_otherwise(self, call: Call, last: Exchange, heard: list[Question]) -> bool:
        """Whether a call knew of its last 404 that the job has stopped, whatever came before.

        However fast its resends followed each other, each 404 is judged by itself.
        """
        return not self.is_running(call, last, call.ended_at) and any(
            is_stopped(question.answer) and question.settled_at < call.ended_at - EPSILON
            for question in heard
        )

    def _not_known(self, call: Call, last: Exchange) -> Iterator[str]:
        """Why a 404 is handed back that cannot be waited with, by what was heard about it."""
        if self._may_have_asked_nobody(call, last.ended_at, call.ended_at):
            yield "unverified"
        for question in self.questions(call):
            is_in_force = (
                max(question.began_at, question.settled_at + question.asks_to_wait)
                >= last.ended_at - EPSILON
            )
            if not is_in_force or question.ended_at > call.ended_at:
                continue
            if is_on_its_way(question.answer):
                yield "job_not_running"
                settled_at = question.settled_at
                is_settling = settled_at < self._answers_since(call) + SETTLES_FOR
                if is_settling and self.budget(call).earliest <= settled_at + SETTLES_FOR:
                    # There is no time to ask again.
                    yield "unverified"
            elif question.answer == "missing" or not is_usable(question.answer):
                yield "unverified"

    def cannot_be_kept(self, not_found: Exchange) -> bool:
        """Whether a 404's body did not come to an end within what is read ahead."""
        is_large = not_found.body_kind == "large" and not self.world.setup.is_read_below
        return is_large or not_found.fault == "broken body"

    def _genuine(self, call: Call, heard: list[Question]) -> Iterator[str]:
        """Why a 404 is genuine, by answers to questions that began after it."""
        warm_since = self._answers_since(call)
        for question in heard:
            if is_stopped(question.answer) or (
                is_on_its_way(question.answer)
                and question.settled_at >= warm_since + SETTLES_FOR - ROUNDING
            ):
                yield "job_not_running"
        if has_missing_pair(heard):
            yield "job_missing"

    def _answers_since(self, call: Call) -> float:
        """Since when, at the longest, a route answers: its trainer's first word since it was cold.

        A 404 that was genuine makes it cold again.
        """
        was_cold_at = max(
            (
                other.ended_at
                for other in self.like(call)
                if other.ended < call.began
                and other.response is not None
                and other.response.status_code == 404
                and self.reasons(other) <= {"job_not_running", "job_missing"}
            ),
            default=float("-inf"),
        )
        return min(
            (
                exchange.ended_at
                for exchange in self._worked.get(call.route, ())
                if exchange.ended_at >= was_cold_at
            ),
            default=float("inf"),
        )

    def _reasons_at_gate(self, call: Call) -> Iterator[str]:
        """The same for a call of which nothing was sent: it was given the 404 of a probe."""
        first_404_at = min(
            (
                probe.ended_at
                for other in self.like(call)
                if other.ended > call.began
                for probe in other.probes
                if probe.is_404 and probe.ended_at <= call.ended_at
            ),
            default=float("inf"),
        )
        heard = self.heard_after(call, first_404_at)
        # Another loop's requests, or those with another key, may have brought the route up.
        up_since = self._answers_since(call)
        later_404_at = min(
            (
                probe.ended_at
                for other in self.like(call)
                for probe in other.probes
                if probe.is_404 and probe.ended_at >= up_since - EPSILON
            ),
            default=float("inf"),
        )
        for question in heard:
            is_on_its_way_back = (
                is_on_its_way(question.answer)
                and question.began_at >= later_404_at - EPSILON
                and question.settled_at >= up_since + SETTLES_FOR - ROUNDING
            )
            is_true = is_stopped(question.answer) or is_on_its_way_back
            # Those who wait hear it when the question's connection is closed.
            if is_true and question.settled_at >= call.began_at:
                yield "job_not_running"
        if has_missing_pair([q for q in heard if q.settled_at >= call.began_at], heard):
            yield "job_missing"
        if call.ended_at >= call.began_at + self.settings.warmup_timeout - ROUNDING:
            yield "unverified"
            if not self.is_alone:
                yield "exhausted"
            if any(is_on_its_way(question.answer) for question in heard):
                yield "job_not_running"

    # Resends that follow at once

    def is_direct(self, call: Call, earlier: Exchange, later: Exchange) -> bool:
        """Whether a resend surely followed without a word of a probe's since the last 404.

        Not at the end of a budget, nor where probes may be known to be blind.
        """
        if later.began_at >= self.budget(call).earliest - ROUNDING or call.route in self._blind:
            return False
        if any(
            probe.began < later.began and probe.body_at >= earlier.ended_at - EPSILON
            for other in self.like(call)
            for probe in other.probes
        ):
            return False
        if self._is_closed_under(call, earlier.ended_at, later.began_at):
            return False
        # What others probed and asked, and closed, is known only when they have done with it.
        return not any(
            question.call is not call
            and question.began < later.began
            and question.settled_at >= earlier.ended_at - EPSILON
            for question in self.questions(call)
        ) and not any(
            closing.began_at <= later.began_at and closing.ended_at >= earlier.ended_at - EPSILON
            for closing in self.world.closings
        )

    def is_balanced(self, call: Call, not_found: Exchange, resend: Exchange) -> bool:
        """Whether a gateway was seen, by a 404, shortly before it or since, to pick replicas anew.

        What others see while a 404 is judged counts for the resend that follows at once.
        """
        since = not_found.ended_at - BALANCED_FOR - EPSILON
        return any(
            since <= lost.ended_at
            and lost.ended < resend.began
            and any(
                probe.may_have_reached
                and probe.transport is lost.transport
                and probe.ended < lost.began
                for probe in other.probes
            )
            for other in self.world.calls
            if other.route == call.route
            for lost in (*other.sends, *other.probes)
            if lost.is_lost or (lost.is_404 and not lost.shows_trainer)
        )

    # Routes whose budget was spent

    def may_be_without_patience(self, call: Call) -> bool:
        """Whether a request in the background may have been handed its 404 at once."""
        return call.caller.asks == "telemetry" and any(
            other.route == call.route
            and other is not call
            and self._may_have_spent(other, call.ended_at)
            for other in self.world.calls
        )

    def must_be_without_patience(self, call: Call) -> bool:
        """Whether it must."""
        if call.caller.asks != "telemetry" or self.forgets or self.world.reconfigured:
            return False
        if call.began_at >= self.world.released_slots.get(call.slot, float("inf")):
            return False
        return any(
            other.asker == call.asker
            and len(other.sends) > 1
            and self.reasons(other) <= {"exhausted", "unverified"}
            and not any(
                later.route == call.route
                and later.response is not None
                and later.response.status_code == 404
                and other.ended < later.ended < call.began
                and self.reasons(later) & {"job_not_running", "job_missing"}
                for later in self.world.calls
            )
            and not any(
                exchange.call.route == call.route and exchange.author in ("trainer", "odd")
                for exchange in self.world.exchanges
                if other.sends[-1].began < exchange.ended and exchange.began < call.ended
            )
            for other in self._handed_back_before(call)
        )

    def _handed_back_before(self, call: Call) -> Iterator[Call]:
        for other in self.world.calls:
            if (
                other.ended < call.began
                and other.route == call.route
                and other.response is not None
                and other.response.status_code == 404
                and other.caller.asks not in ("telemetry", "upload")
            ):
                yield other

    # Ends of requests that got through

    def races_at_gate(self, call: Call) -> str:
        """Whether a call met a race while it waited at the gate: `no`, `perhaps` or `surely`."""
        until = call.sends[0].began
        own = [probe for probe in call.probes if probe.is_404 and probe.ended < until]
        if any(
            probe.author == "gateway"
            and question.call is call
            and question.answer == RUNNING
            and probe.ended < question.began
            and question.ended < until
            for probe in own
            for question in self.questions(call)
        ):
            return "surely"
        # Whoever comes while another one waits for its next probe is told of the last one too.
        is_possible = any(
            probe.is_404
            and probe.ended < until
            and call.began < (other.sends[0].began if other.sends else other.ended)
            for other in self.like(call)
            for probe in other.probes
        )
        return "perhaps" if is_possible else "no"


def has_missing_pair(
    heard: list[Question],
    before: list[Question] | None = None,
    others: Sequence[Question] = (),
) -> bool:
    """Whether two answers, the second to a question of its own some time later, said missing.

    Args:
        heard: Among these is the second.
        before: Among these is the first; None: among the same.
        others: What else was asked: another word between the two, heard with the same key, takes
            back the first.
    """
    before = heard if before is None else before
    return any(
        second.answer == "missing"
        and second.began_at >= first.ended_at + ASKED_AGAIN_AFTER
        and not any(
            is_usable(between.answer)
            and between.answer != "missing"
            and between.call.asker == second.call.asker
            and first.ended < between.ended < second.ended
            for between in (*before, *others)
        )
        for first in before
        if first.answer == "missing"
        for second in heard
    )
