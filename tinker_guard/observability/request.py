"""The spans and metrics of one guarded request."""

from __future__ import annotations

import os
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context, trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, Status, StatusCode, TraceFlags

from tinker_guard.faults import fail_open
from tinker_guard.observability import attributes as names
from tinker_guard.observability import metrics
from tinker_guard.observability.actions import (
    Stopwatch,
    action,
    error_type_of,
    labels,
    not_found_labels,
    tracer,
)
from tinker_guard.observability.begun import can_begin_again, tracer_beginning_again
from tinker_guard.observability.exchange import Exchange, propagated_headers
from tinker_guard.observability.operation_names import operation_of, route_labels
from tinker_guard.observability.providers import enabled
from tinker_guard.policy.judgement import (
    NO_CONTROL_PLANE,
    TRAINER_ANSWERED,
    Judgement,
    Outcome,
)
from tinker_guard.transports.renewable import emits_client_span

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextvars import Token

    import httpx
    from opentelemetry.trace import Span, Tracer
    from opentelemetry.util.types import AttributeValue

    from tinker_guard.core.routes import RouteState
    from tinker_guard.policy.answer import Answer
    from tinker_guard.settings import GuardSettings
    from tinker_guard.telemetry import RequestReport


_EVERYDAY: Final = frozenset({TRAINER_ANSWERED, NO_CONTROL_PLANE})
"""404s that need no attention, for instance of a server that lacks an endpoint."""


class ObservedRequest:
    """The spans of one guarded request, if it has any, and its metrics.

    A clean request has one span: the CLIENT span of its exchange if the guard creates that one,
    else an INTERNAL span. At the first event (`promote`: a 404, a wait or an error), the request
    gets an INTERNAL span, with the exchange and all further actions below it. A CLIENT span that
    was started for both is then abandoned, and both are recreated from the recorded times; the
    exchange keeps the id that was sent to the gateway.

    A request that the settings exclude is *quiet* at first: below the guard, the current trace is
    not sampled. Its spans, too, are created at the first event.
    """

    _first: Exchange | None = None
    _first_404_at: float | None = None
    _not_found: Mapping[str, AttributeValue] = {}
    _race_met = False
    _span: Span | None = None
    _token: Token[context.Context] | None = None
    _unsampled: Span | None = None
    _warmup_wait: float | None = None

    def __init__(
        self, request: httpx.Request, state: RouteState | None, settings: GuardSettings
    ) -> None:
        self._watch = Stopwatch()
        self._state = state
        self._settings = settings
        route = None if state is None else state.route
        self._operation = operation_of(request.method, request.url, route)
        wanted = settings.trace
        self._is_wanted = wanted != "off"
        self._has_spans = self._is_wanted and enabled().spans
        self._is_quiet = wanted == "eventful" or (
            wanted == "work" and self._operation.is_background
        )
        self._caller = trace.get_current_span() if self._is_wanted else trace.INVALID_SPAN
        self._is_traced_above = (
            self._has_spans
            and self._caller is not trace.INVALID_SPAN
            and _is_propagated(self._caller.get_span_context(), request)
        )

    async def send(
        self, transport: httpx.AsyncBaseTransport, request: httpx.Request
    ) -> httpx.Response:
        """Send the request for the first time."""
        self._choose_span(transport, request)
        if self._first is None:
            return await transport.handle_async_request(request)
        with self._first as exchange:
            response = await transport.handle_async_request(exchange.request)
            exchange.response = response
        if response.status_code == 404:
            self._first_404_at = self._watch.seconds
        return response

    async def resend(
        self,
        transport: httpx.AsyncBaseTransport,
        request: httpx.Request,
        resend: int,
        pause: float,
        judgement: Judgement | None,
    ) -> httpx.Response:
        """Send the request again; see `RequestReport.resend`."""
        attributes = {**self._operation.of_http, names.RESEND_COUNT: resend}
        attributes[names.PAUSE] = round(pause, 3)
        if judgement is not None:
            attributes |= labels(judgement)
        name = f"resend {self._operation.span_name}"
        result: dict[str, AttributeValue] = {}
        try:
            with (
                action(name, attributes, is_wanted=self._is_wanted) as span,
                Exchange(
                    request,
                    self._operation,
                    is_wanted=self._is_wanted,
                    is_traced_below=emits_client_span(transport),
                    has_span=self._span is not None,
                    resend=resend,
                ) as exchange,
            ):
                response = await transport.handle_async_request(exchange.request)
                exchange.response = response
                span.answered(response.status_code)
            result[names.STATUS_CODE] = response.status_code
        except Exception as error:
            result[names.ERROR_TYPE] = error_type_of(error) or ""
            raise
        finally:
            metrics.count(metrics.RESENDS, self._labels | result)
        return response

    def waited(self, seconds: float) -> None:
        """Record a wait for the route's warmup."""
        self._warmup_wait = seconds

    def judged(self, judgement: Judgement) -> None:
        """Record the verdict on a 404."""
        metrics.count(metrics.VERDICTS, self._labels | labels(judgement))
        if judgement.is_race:
            self.raced(judgement)
        elif judgement not in _EVERYDAY:
            self._tell_caller(judgement)

    def raced(self, judgement: Judgement) -> None:
        """Record a race of the request itself or, before it was sent, of its route."""
        self._race_met = self._race_met or self._first_404_at is not None
        self._tell_caller(judgement)

    def met_race_at_gate(self) -> None:
        """Record that the request has waited in a race since its arrival."""
        self._race_met, self._first_404_at = True, 0.0

    @fail_open
    def set(self, name: str, value: AttributeValue) -> None:
        """Set an attribute of the span."""
        if self._span is not None:
            self._span.set_attribute(name, value)

    @fail_open
    def met_404(self, answer: Answer, *, is_trainers: bool) -> None:
        """Record the author of a 404; see `RequestReport.met_404`."""
        if self._span is not None and self._span.is_recording():
            # Set at the end, because attributes of an earlier 404 cannot be removed from a span.
            self._not_found = not_found_labels(answer, is_trainers=is_trainers)

    @fail_open
    def promote(self) -> None:
        """Make the request's INTERNAL span current at its first event; start it if there is none.

        It is current even if it is not sampled, so that spans below it get the same decision.
        """
        if not self._has_spans or self._token is not None:
            return
        first, span, record = self._first, self._span, None
        if span is None and first is not None and first.span is not None:
            span, record = self._begin_again(first, first.span)
        elif span is None:
            span = self._start_span(tracer())
            is_unsampled = self._unsampled is not None
            if first and (first.is_mine or (first.is_traced_below and is_unsampled)):
                record = first.record_late
        self._span = span
        self._token = context.attach(trace.set_span_in_context(span))
        if record is not None:
            record()

    @fail_open
    def end(
        self,
        report: RequestReport,
        outcome: Outcome,
        status_code: int | None,
        error_type: str | None,
    ) -> None:
        """End the request's spans and record its metrics; `error_type` is None without an error."""
        first, span = self._first, self._span
        is_one_span = span is None and first is not None and first.is_mine
        if error_type is not None and self._has_spans and not is_one_span:
            self.promote()
            span = self._span
        if self._token is not None:
            context.detach(self._token)
        result: dict[str, AttributeValue] = {}
        if is_one_span and first is not None and self._has_spans:
            span, result = first.span, first.result
            if span is None and error_type is not None:
                span = first.start_span(is_whole_request=True)
        self._span = None
        verdict = {} if report.judgement is None else labels(report.judgement)
        # Before the spans end: a processor of the program's own may fail.
        if enabled().metrics:
            seconds = self._watch.seconds
            ended = self._labels | {names.OUTCOME: outcome.value}
            metrics.measure(metrics.REQUEST_DURATION, seconds, ended | verdict)
            if self._race_met and self._first_404_at is not None:
                metrics.measure(metrics.RECOVERY_DURATION, seconds - self._first_404_at, ended)
        if span is not None and span.is_recording():
            result[names.OUTCOME] = ended_as = outcome.value
            result[names.RETRIES] = report.resends
            met = ""
            if verdict or self._not_found:
                result |= {**verdict, **self._not_found}
                met = ", ".join(map(str, verdict.values()))
            if self._warmup_wait is not None:
                result[names.WARMUP_WAIT] = round(self._warmup_wait, 3)
                met = met or f"waited {self._warmup_wait:.2f} s for the warmup"
            result[names.INPUT] = self._operation.span_name
            result[names.OUTPUT] = f"{ended_as}: {met}" if met else ended_as
            if status_code is not None:
                result[names.STATUS_CODE] = status_code
            if error_type is not None:
                result[names.ERROR_TYPE] = error_type
                span.set_status(Status(StatusCode.ERROR))
            span.set_attributes(result)
            span.end(first.ended_ns if is_one_span and first else self._watch.now_ns)

    @fail_open
    def _choose_span(self, transport: httpx.AsyncBaseTransport, request: httpx.Request) -> None:
        """Choose the request's span until its first event, for the first exchange."""
        is_below = emits_client_span(transport)
        is_above = self._is_traced_above
        current: Span | None = None
        is_both = False
        if self._has_spans and self._token is None:
            if self._is_quiet:
                if not is_above and _follows_parent(trace.get_tracer_provider()):
                    parent = self._caller.get_span_context()
                    current = self._unsampled = NonRecordingSpan(_unsampled(parent))
            elif is_below or is_above:
                current = self._span = self._start_span(tracer())
            elif can_begin_again(tracer()):
                is_both = True
            else:
                self.promote()
        self._first = Exchange(
            request,
            self._operation,
            is_traced_below=is_below,
            is_traced_above=is_above,
            is_wanted=self._is_wanted,
            has_span=self._span is not None or is_both,
            is_whole_request=is_both,
            current=current,
        )

    def _start_span(self, by: Tracer) -> Span:
        return by.start_span(
            self._operation.span_name,
            attributes=dict(self._operation.of_request),
            start_time=self._watch.began_ns,
        )

    def _begin_again(
        self, first: Exchange, given_up: Span
    ) -> tuple[Span, Callable[[], object] | None]:
        """Replace the one span of the request and its first exchange by two.

        Returns:
            The request's, and what records the exchange's as soon as the first one is current.
        """
        if not given_up.is_recording():
            # The sampler has dropped the span, and the spans below.
            return given_up, None
        begun = given_up.get_span_context()
        span = self._start_span(tracer_beginning_again(begun))
        return span, partial(first.record_late, tracer_beginning_again(begun, begun.span_id))

    @fail_open
    def _tell_caller(self, judgement: Judgement) -> None:
        if self._is_wanted and self._caller.is_recording():
            self._caller.set_attribute(names.MET, judgement.verdict.value)

    @property
    def _labels(self) -> dict[str, AttributeValue]:
        """The attributes of a request's metrics."""
        return {**job_labels(self._state, self._settings), **self._operation.label}


def _is_propagated(current: SpanContext, request: httpx.Request) -> bool:
    """Whether an instrumentation above the guard has put the current span into the headers."""
    if not current.is_valid:
        return False
    told = propagated_headers(request)
    if not told:
        return False
    span_id = f"{current.span_id:016x}"
    return any(span_id in value for value in told.values())


def _unsampled(parent: SpanContext) -> SpanContext:
    """The context of a span that is not recorded, in the caller's trace if there is one."""
    if parent.is_valid:
        trace_id, span_id = parent.trace_id, parent.span_id
    else:
        # Not from the module `random`: that would change the training's random numbers.
        both = int.from_bytes(os.urandom(24))
        trace_id, span_id = both >> 64 | 1, both & 0xFFFF_FFFF_FFFF_FFFF | 1
    return SpanContext(trace_id, span_id, is_remote=False, trace_flags=TraceFlags.get_default())


@lru_cache(maxsize=4)
def _follows_parent(provider: Any) -> bool:
    """Whether spans below an unsampled span are not sampled either, as by default."""
    unsampled = _unsampled(SpanContext(1, 1, is_remote=False))
    inside = trace.set_span_in_context(NonRecordingSpan(unsampled))
    try:
        result = provider.sampler.should_sample(inside, unsampled.trace_id, "tinker_guard")
    except Exception:
        # Another provider than the SDK's, or a sampler with another interface.
        return False
    return not result.decision.is_recording()


def job_labels(state: RouteState | None, settings: GuardSettings) -> dict[str, AttributeValue]:
    """The attributes that name a route on a metric, if `metrics_by_job` is set."""
    if state is None or not settings.metrics_by_job:
        return {}
    return route_labels(state.route)
