"""Which situations a run really met: a simulation that never meets one proves nothing about it."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import httpx

from proof.simulation.schedule import RUNNING
from proof.simulation.truth import Truth, is_on_its_way

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proof.simulation.invariants import Remains
    from proof.simulation.model import ModelWorld
    from proof.simulation.record import Call, Exchange
    from tinker_guard import GuardSettings

IMPORTANT: Final = (
    "a healthy run",
    "race met",
    "race met again by a resend",
    "recovered",
    "recovered: all replicas had lost the route",
    "exhausted",
    "not found: the job is stopped",
    "not found: the job is missing",
    "not found: the trainer's own",
    "a trainer's odd 404, resent to the end",
    "resent because a probe reached the trainer",
    "resent at once, without a probe",
    "raced at the gate",
    "a resend was answered with an error",
    "unverified",
    "recovered without a control plane",
    "unverified without a control plane",
    "unverified without a control plane, at once",
    "refused at the gate: stopped or missing",
    "refused at the gate: time is over",
    "gate opened after a 404",
    "a job was resumed",
    "a replica lost its route again",
    "lost reply, recovered",
    "reset after the work was done, and sent again by the SDK",
    "streamed body met a race",
    "slow body of a 404",
    "broken body of a 404",
    "probe failed otherwise",
    "probes were blind",
    "question failed",
    "question was cut",
    "question was shared",
    "question was late",
    "a job changed under an answer in force",
    "missing once, then running",
    "on its way, asked again",
    "asked to wait by the control plane",
    "a control plane's 404 that it did not write",
    "two keys were told different things",
    "warmup was handed over",
    "probing was handed over",
    "question was handed over",
    "cancelled at the gate, waiting",
    "cancelled at the gate, probing",
    "cancelled in a question",
    "cancelled while it waited for a question",
    "cancelled while scouting",
    "cancelled while it waited for a scout",
    "cancelled while sending",
    "cancelled while resending",
    "cancelled while reading a 404",
    "cancelled while closing",
    "cancelled in a pause",
    "cancelled twice",
    "given up by its caller's timeout",
    "transport was replaced",
    "transport could not be built",
    "no further transport can be had",
    "closed under a request",
    "released under a request",
    "reconfigured under a request",
    "stalled under a request",
    "stalled until its budget was over, and resent once",
    "clock was set under a request",
    "asked to wait until a date, by a clock that is wrong",
    "answer hung as it was closed",
    "answer did not close well",
    "transport hung as it was closed",
    "transport did not close well",
    "question over a connection of its own",
    "question over a connection of its own was cut",
    "question had to share a connection",
    "two event loops on one route",
    "route was warm for a second event loop",
    "event loop ended under a request: cancel",
    "event loop ended under a request: close",
    "an edge answered the probes of a race",
    "asked to wait for longer than the budget",
    "in the background after a spent budget",
    "sent by affinity cookie",
    "resent with another affinity",
    "sent with the balancer's cookie, of a request that had none",
    "404 in a coding, the gateway's: gzip",
    "404 in a coding, the gateway's: zstd",
    "404 in a coding, the gateway's: gzip, gzip",
    "404 in a coding, the trainer's: gzip",
    "404 in a coding, the trainer's: zstd",
    "404 in a coding, the trainer's: gzip, gzip",
    "a gateway's 404 with a detail: problem",
    "a gateway's 404 with a detail: router",
    "a 404 too large to read",
    "a router's 404 of a trainer that had shown itself",
    "404 was read below",
    "more routes in use than kept",
    "several routes",
    "two keys on one route",
    "route was forgotten",
    "not on a trainer route",
    "spans recorded",
)
"""What every run of some thousand schedules must meet."""


def situations(world: ModelWorld, settings: GuardSettings, remains: Remains) -> Counter[str]:
    """Count the situations of one run."""
    return Counter(_situations(world, settings, remains))


def _situations(world: ModelWorld, settings: GuardSettings, remains: Remains) -> Iterator[str]:
    setup = world.setup
    if all(x.response and x.response.status_code == 200 and len(x.sends) == 1 for x in world.calls):
        yield "a healthy run"
    truth = Truth(world, settings, 0.0)
    for call in world.calls:
        yield from _of_call(world, settings, call)
        if call.route is not None:
            yield from _of_judgement(truth, call)
    for route in range(setup.routes):
        yield from _of_route(world, settings, route)
    for exchange in world.exchanges:
        if exchange.is_404 and exchange.stream is not None:
            if exchange.stream.pause:
                yield "slow body of a 404"
            if exchange.stream.error is not None:
                yield "broken body of a 404"
        if exchange.is_probe and isinstance(exchange.error, httpx.HTTPError):
            yield "probe failed otherwise"
        yield from _of_404(world, exchange)
    yield from _of_answers(world, settings)
    for question in world.questions:
        if question.answer in ("useless", "reset"):
            yield "question failed"
        if question.asks_to_wait:
            yield "asked to wait by the control plane"
        if question.fault.endswith("404"):
            yield "a control plane's 404 that it did not write"
        if question.answer == "cut":
            yield "question was cut"
        if question.transport is not None:
            if question.transport.carries_requests:
                yield "question had to share a connection"
            else:
                was_cut = " was cut" if question.answer == "cut" else ""
                yield f"question over a connection of its own{was_cut}"
        state = world.state_of(question.route, question.ended_at) or "missing"
        if question.answer not in ("useless", "reset", "cut", state):
            yield "question was late"
    for closing in world.closings:
        if closing.kind:
            how = "hung as it was closed" if closing.kind == "hang" else "did not close well"
            yield f"{closing.what} {how}"
    if len(world.transports) > setup.slots and any(
        exchange.transport.number >= setup.slots and not exchange.is_probe
        for exchange in world.exchanges
    ):
        yield "transport was replaced"
    if world.builds_failed:
        yield "transport could not be built"
    if not setup.renewable:
        yield "no further transport can be had"
    if setup.routes > 1:
        yield "several routes"
    routes = {call.route for call in world.calls} - {None}
    if setup.routes_kept < len(routes):
        yield "route was forgotten"
    if any(
        setup.routes_kept < len({x.route for x in world.calls if x.began <= call.began < x.ended})
        for call in world.calls
    ):
        yield "more routes in use than kept"
    if remains.ended_spans:
        yield "spans recorded"


def _of_404(world: ModelWorld, exchange: Exchange) -> Iterator[str]:
    if not exchange.is_404:
        return
    if world.setup.is_read_below:
        yield "404 was read below"
    if coding := dict(exchange.response_headers).get(b"content-encoding", b"").decode():
        whose = "the trainer's" if exchange.author == "trainer" else "the gateway's"
        yield f"404 in a coding, {whose}: {coding}"
    if exchange.body_kind in ("problem", "router"):
        yield f"a gateway's 404 with a detail: {exchange.body_kind}"
    if exchange.body_kind == "large":
        yield "a 404 too large to read"
    if exchange.call.caller.asks == "unrouted" and exchange.shows_trainer:
        yield "a router's 404 of a trainer that had shown itself"


def _of_answers(world: ModelWorld, settings: GuardSettings) -> Iterator[str]:
    told: dict[tuple[int, int], dict[str, set[str]]] = {}
    for question in world.questions:
        call = question.call
        told.setdefault((question.route, call.loop), {}).setdefault(call.key, set()).add(
            question.answer
        )
        if question.answer == "missing" and any(
            q.answer == RUNNING and q.call.asker == call.asker and q.began > question.ended
            for q in world.questions
        ):
            yield "missing once, then running"
        if (
            is_on_its_way(question.answer)
            and call.sends
            and any(q.call is call and q.began > question.ended for q in world.questions)
        ):
            yield "on its way, asked again"
        if question.answer == RUNNING and any(
            send.is_404
            and question.settled_at <= send.ended_at <= question.settled_at + settings.verdict_ttl
            and world.state_of(question.route, send.ended_at) != RUNNING
            for other in world.calls
            if other.asker == call.asker
            for send in other.sends
        ):
            yield "a job changed under an answer in force"
    if any(
        len(answers) > 1 and not set.intersection(*answers.values()) for answers in told.values()
    ):
        yield "two keys were told different things"
    if any(
        probe.author == "edge" and any(send.is_lost for send in call.sends)
        for call in world.calls
        for probe in call.probes
    ):
        yield "an edge answered the probes of a race"


def _of_call(world: ModelWorld, settings: GuardSettings, call: Call) -> Iterator[str]:
    lost = [exchange for exchange in call.sends if exchange.is_lost]
    if lost:
        yield "race met"
        if len(lost) > 1:
            yield "race met again by a resend"
        if call.caller.asks == "upload":
            yield "streamed body met a race"
    if call.route is None:
        yield "not on a trainer route"
    if any(send.asks_to_wait > settings.retry_timeout for send in lost):
        yield "asked to wait for longer than the budget"
    if "affinity=" not in call.request.headers.get("cookie", "") and any(
        send.affinity for send in call.sends
    ):
        yield "sent with the balancer's cookie, of a request that had none"
    if call.sends and call.sends[0].affinity:
        yield "sent by affinity cookie"
        if call.sends[-1].affinity != call.sends[0].affinity:
            yield "resent with another affinity"
    for what, slots in (("closed", world.closed_slots), ("released", world.released_slots)):
        at = slots.get(call.slot)
        if at is not None and call.began_at < at < call.ended_at:
            yield f"{what} under a request"
    if (at := world.reconfigured.get(call.slot)) and call.began_at < at < call.ended_at:
        yield "reconfigured under a request"
    if any(call.began_at < stall.ended_at < call.ended_at for stall in world.stalls):
        yield "stalled under a request"
        budget_ends_at = (call.met_404_at or 0.0) + settings.retry_timeout
        if len(call.sends) > 1 and call.sends[-1].began_at > budget_ends_at:
            yield "stalled until its budget was over, and resent once"
    if any(call.began_at < at < call.ended_at for at in world.clock_set_at):
        yield "clock was set under a request"
    if world.clock.is_wrong_by and any(
        b"date" in dict(exchange.response_headers) for exchange in call.sends
    ):
        yield "asked to wait until a date, by a clock that is wrong"
    for kind in world.loop_ends:
        if call.is_lost_with_its_loop or (kind == "cancel" and call.is_cancelled_with_its_loop):
            yield f"event loop ended under a request: {kind}"
    if call.has_timed_out:
        yield "given up by its caller's timeout"
    for _, where in call.cancels:
        yield f"cancelled {_place(call, where)}"
    if call.is_cancelled_twice:
        yield "cancelled twice"
    yield from _of_end(world, settings, call)


def _of_judgement(truth: Truth, call: Call) -> Iterator[str]:
    if truth.must_be_without_patience(call):
        yield "in the background after a spent budget"
    if any(
        earlier.is_404 and not truth.is_running(call, earlier, later.began_at)
        for earlier, later in pairwise(call.sends)
    ):
        yield "resent because a probe reached the trainer"
    if any(truth.is_direct(call, *pair) for pair in pairwise(call.sends)):
        yield "resent at once, without a probe"
    if call.sends and call.probes and truth.races_at_gate(call) == "surely":
        yield "raced at the gate"


def _of_end(world: ModelWorld, settings: GuardSettings, call: Call) -> Iterator[str]:
    response = call.response
    if response is None or call.route is None:
        return
    if response.status_code != 404:
        if len(call.sends) > 1 and response.status_code >= 500:
            yield "a resend was answered with an error"
        if len(call.sends) > 1:
            yield "recovered"
            if world.setup.plane == "none":
                yield "recovered without a control plane"
            if any(x.fault == "lost reply" and x.is_404 for x in call.sends[:-1]):
                yield "lost reply, recovered"
            if any(x.is_lost and x.fault != "lost reply" for x in call.probes):
                yield "recovered: all replicas had lost the route"
        elif any(probe.is_lost for probe in call.probes):
            yield "gate opened after a 404"
        if any(
            other is not call
            and other.caller is call.caller
            and other.path == call.path
            and any(x.fault == "reset after" for x in other.sends)
            for other in world.calls
        ):
            yield "reset after the work was done, and sent again by the SDK"
        return
    said = [
        question.answer
        for question in world.questions
        if question.route == call.route
        and call.began_at - settings.verdict_ttl <= question.ended_at <= call.ended_at
    ]
    is_refused = any(answer not in (RUNNING, "useless", "reset", "cut") for answer in said)
    if not call.sends:
        yield f"refused at the gate: {'stopped or missing' if is_refused else 'time is over'}"
        return
    last = call.sends[-1]
    if last.author == "trainer":
        yield "not found: the trainer's own"
    elif is_refused:
        yield f"not found: the job is {'missing' if 'missing' in said else 'stopped'}"
    elif any(answer in ("useless", "reset", "cut") for answer in said):
        yield "unverified"
    elif world.setup.plane == "none":
        is_at_once = call.ended_at - call.began_at < settings.unreached_timeout / 2
        yield f"unverified without a control plane{', at once' if is_at_once else ''}"
    elif last.author == "odd" and len(call.sends) > 1:
        yield "a trainer's odd 404, resent to the end"
    elif call.caller.asks != "upload":
        yield "exhausted"


def _of_route(world: ModelWorld, settings: GuardSettings, route: int) -> Iterator[str]:
    calls = [call for call in world.calls if call.route == route]
    if len({call.key for call in calls}) > 1:
        yield "two keys on one route"
    loops = {call.loop for call in calls if call.sends}
    if len(loops) > 1:
        yield "two event loops on one route"
        if settings.warmup_successes and len(loops) > len(
            {call.loop for call in calls if call.probes}
        ):
            yield "route was warm for a second event loop"
    if world.is_resumed(route):
        yield "a job was resumed"
    if world.has_flapped(route):
        yield "a replica lost its route again"
    if world.setup.probe_answer == "odd 404" and any(
        later.ended_at - earlier.ended_at > 0 and not later.call.probes
        for call in calls
        for earlier, later in pairwise(call.sends)
    ):
        yield "probes were blind"
    for what, probes in (
        ("warmup", [x for c in calls for x in c.probes if x.is_warmup]),
        ("probing", [x for c in calls for x in c.probes if not x.is_warmup]),
    ):
        probes.sort(key=lambda probe: probe.began)
        for earlier, later in pairwise(probes):
            leader = earlier.call
            if leader.cancels and leader is not later.call and later.began_at == leader.ended_at:
                yield f"{what} was handed over"
    questions = [question for question in world.questions if question.route == route]
    for before, after in pairwise(questions):
        is_next = after.call is not before.call and after.began_at == before.ended_at
        if before.answer == "cut" and is_next:
            yield "question was handed over"
    waiting = [
        call
        for call in calls
        if len(call.sends) > 1 and not any(question.call is call for question in questions)
    ]
    if waiting:
        yield "question was shared"


def _place(call: Call, where: str) -> str:
    """Where a request was cancelled, from the functions in which it waited."""
    functions = {name.rpartition(".")[2] for name in where.split(" > ")}
    if functions & {"discard", "close_quietly", "aclose", "drain", "replace"}:
        return "while closing"
    if "read_prefix" in functions and "probe" not in functions:
        return "while reading a 404"
    if "ask" in functions:
        return "in a question" if "_look_up" in functions else "while it waited for a question"
    is_probing = "probe_until_routable" in functions
    if "pass_gate" in functions:
        return "at the gate, probing" if is_probing else "at the gate, waiting"
    if "_find_route" in functions:
        return "while scouting" if is_probing else "while it waited for a scout"
    if "resend" in functions:
        return "while resending"
    if "look_up" in functions or "__anext__" in functions:
        return "in a pause"
    return "while sending" if call.met_404_at is None else f"elsewhere: {where}"
