"""What people see of the guard: spans and metrics of a request, a warmup, a probe, a question.

A fault in here (an exporter that raises, say) is logged once and never reaches the request.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context, trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, Status, StatusCode, TraceFlags

from tinker_guard import attributes as names
from tinker_guard import metrics
from tinker_guard.line import emits_client_span
from tinker_guard.logs import harmless
from tinker_guard.observers import observers
from tinker_guard.operations import Operation, operation_of
from tinker_guard.spans import (
    Action,
    Exchange,
    Stopwatch,
    action,
    error_type_of,
    exchange_attributes,
    is_in_action,
    labels,
    told_context,
    tracer,
)
from tinker_guard.verdict import (
    NO_CONTROL_PLANE,
    ROUTING_RACE,
    TRAINER_ANSWERED,
    Judgement,
    Outcome,
    outcome_of,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator
    from contextvars import Token
    from types import TracebackType

    import httpx
    from opentelemetry.trace import Span
    from opentelemetry.util.types import AttributeValue

    from tinker_guard.route import RouteState
    from tinker_guard.settings import GuardSettings
    from tinker_guard.verdict import Answer, Refusal

_EVERYDAY: Final = frozenset({TRAINER_ANSWERED, NO_CONTROL_PLANE})
"""404s that are nobody's trouble: a server without an endpoint, say."""


class RequestReport:
    """What is known about one guarded request, for those who look at spans and metrics.

    A context manager around the request's whole way; what happens is noted on it as it comes.
    """

    __slots__ = ("_observed", "_request", "_settings", "_state", "judgement", "resends")

    def __init__(
        self, request: httpx.Request, state: RouteState | None, settings: GuardSettings
    ) -> None:
        self._request = request
        self._state = state
        self._settings = settings
        self._observed: _Observed | None = None
        self.judgement: Judgement | None = None
        """The verdict on the last 404, if one was met."""
        self.resends = 0
        """How often the request was sent again."""

    def __enter__(self) -> RequestReport:
        if True in observers():
            self._observed = _observe(self._request, self._state, self._settings)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._observed is not None and exc is not None:
            error_type = error_type_of(exc)
            outcome = Outcome.CANCELLED if error_type is None else Outcome.ERROR
            self._observed.end(self, outcome, None, error_type)

    def send(self, transport: httpx.AsyncBaseTransport) -> Awaitable[httpx.Response]:
        """Send the request for the first time."""
        if self._observed is None:
            return transport.handle_async_request(self._request)
        return self._observed.send(transport)

    async def resend(self, transport: httpx.AsyncBaseTransport, *, pause: float) -> httpx.Response:
        """Send the request again.

        Args:
            transport: What to send it over.
            pause: Seconds since the 404.
        """
        self.resends += 1
        if self._observed is None:
            return await transport.handle_async_request(self._request)
        return await self._observed.resend(transport, self.resends, pause, self.judgement)

    def judged(self, judgement: Judgement) -> None:
        """Note the verdict on a 404."""
        self.judgement = judgement
        if self._observed is not None:
            self._observed.judged(judgement)

    def answered(self, response: httpx.Response) -> httpx.Response:
        """Note the response that is handed back, and return it."""
        if self._observed is not None:
            status_code = response.status_code
            outcome = outcome_of(status_code, self.resends, self.judgement)
            error_type = str(status_code) if status_code >= 400 else None
            self._observed.end(self, outcome, status_code, error_type)
        return response

    def wake(self) -> None:
        """Something happens to the request that people want to see, whatever they chose to."""
        if self._observed is not None:
            self._observed.wake()

    def waited(self, seconds: float) -> None:
        """Note that the request waited so long for its route's warmup."""
        if self._observed is not None:
            self._observed.waited(seconds)

    def cannot_be_resent(self) -> None:
        """Note that the request's body is a stream."""
        if self._observed is not None:
            self._observed.set(names.REPLAYABLE, False)


@harmless
def _observe(
    request: httpx.Request, state: RouteState | None, settings: GuardSettings
) -> _Observed:
    return _Observed(request, state, settings)


class _Observed:
    """The span of one guarded request, if it has one, and what goes into metrics.

    A request that the settings do not want is *quiet* at first: what is below the guard finds
    itself in a trace that is not sampled. If something happens to the request after all, `wake`
    makes its span, and that of its first exchange, from the times that were kept.
    """

    __slots__ = (
        "_attributes",
        "_caller",
        "_first",
        "_first_404_at",
        "_is_dropped",
        "_is_quiet",
        "_is_traced_above",
        "_is_wanted",
        "_operation",
        "_race_met",
        "_request",
        "_settings",
        "_span",
        "_state",
        "_token",
        "_warmup_wait",
        "_watch",
    )

    def __init__(
        self, request: httpx.Request, state: RouteState | None, settings: GuardSettings
    ) -> None:
        self._request = request
        self._state = state
        self._settings = settings
        self._is_wanted = settings.trace != "off"
        base = None if state is None else state.route.path
        self._operation = operation_of(request.method, request.url.raw_path, base)
        self._attributes = exchange_attributes(self._operation, request)
        self._watch = Stopwatch()
        self._first_404_at: float | None = None
        self._race_met = False
        self._warmup_wait: float | None = None
        self._first: Exchange | None = None
        self._span: Span | None = None
        self._token: Token[context.Context] | None = None
        self._caller = trace.get_current_span()
        self._is_quiet = self._is_dropped = self._is_traced_above = False
        if self._is_wanted and observers().of_spans:
            self._is_traced_above = _has_told(self._caller.get_span_context(), request)
            if settings.trace == "all" or (
                settings.trace == "work" and not self._operation.is_background
            ):
                self._start_span()
            else:
                self._be_quiet()

    async def send(self, transport: httpx.AsyncBaseTransport) -> httpx.Response:
        """Send the request for the first time."""
        self._first = exchange = self._exchange(transport)
        with exchange:
            exchange.response = await transport.handle_async_request(exchange.request)
        return exchange.response

    async def resend(
        self,
        transport: httpx.AsyncBaseTransport,
        resend: int,
        pause: float,
        judgement: Judgement | None,
    ) -> httpx.Response:
        """Send the request again; see `RequestReport.resend`."""
        attributes = dict(self._attributes)
        attributes[names.RESEND_COUNT] = resend
        attributes[names.PAUSE] = round(pause, 3)
        if judgement is not None:
            attributes |= labels(judgement)
        name = f"resend {self._operation.span_name}"
        result: dict[str, AttributeValue] = {}
        try:
            with (
                action(name, attributes, is_wanted=self._is_wanted) as span,
                self._exchange(transport, resend) as exchange,
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
        """Note a wait for the route's warmup."""
        self._warmup_wait = seconds

    def judged(self, judgement: Judgement) -> None:
        """Note the verdict on a 404."""
        if self._first_404_at is None:
            self._first_404_at = self._watch.seconds
        self._race_met = self._race_met or judgement == ROUTING_RACE
        metrics.count(metrics.VERDICTS, self._labels | labels(judgement))
        if judgement not in _EVERYDAY:
            self._tell_caller(judgement)

    @harmless
    def set(self, name: str, value: AttributeValue) -> None:
        """Put an attribute on the span."""
        if self._span is not None:
            self._span.set_attribute(name, value)

    @harmless
    def wake(self) -> None:
        """Be quiet no more."""
        if not self._is_quiet:
            return
        self._is_quiet = False
        self._detach()
        self._start_span()
        is_unrecorded = self._first is not None and (
            self._first.is_mine or (self._first.is_traced_below and self._is_dropped)
        )
        if self._first is not None and is_unrecorded:
            self._first.record_late()

    @harmless
    def end(
        self,
        report: RequestReport,
        outcome: Outcome,
        status_code: int | None,
        error_type: str | None,
    ) -> None:
        """The request is over; `error_type` is None if that is nobody's error."""
        if error_type is not None:
            self.wake()
        self._detach()
        span, self._span = self._span, None
        verdict = {} if report.judgement is None else labels(report.judgement)
        if span is not None and span.is_recording():
            result: dict[str, AttributeValue] = {
                names.OUTCOME: outcome.value,
                names.RETRIES: report.resends,
                **verdict,
            }
            met = ", ".join(map(str, verdict.values()))
            if self._warmup_wait is not None:
                result[names.WARMUP_WAIT] = round(self._warmup_wait, 3)
                met = met or f"waited {self._warmup_wait:.2f} s for the warmup"
            if met:
                result[names.INPUT] = self._operation.span_name
                result[names.OUTPUT] = f"{outcome.value}: {met}"
            if status_code is not None:
                result[names.STATUS_CODE] = status_code
            if error_type is not None:
                result[names.ERROR_TYPE] = error_type
                span.set_status(Status(StatusCode.ERROR))
            span.set_attributes(result)
            span.end(self._watch.now_ns)
        if observers().of_metrics:
            seconds = self._watch.seconds
            ended = self._labels | {names.OUTCOME: outcome.value}
            metrics.measure(metrics.REQUEST_DURATION, seconds, ended | verdict)
            if self._race_met and self._first_404_at is not None:
                metrics.measure(metrics.RECOVERY_DURATION, seconds - self._first_404_at, ended)

    def _exchange(self, transport: httpx.AsyncBaseTransport, resend: int = 0) -> Exchange:
        return Exchange(
            self._request,
            self._operation,
            self._attributes,
            is_wanted=self._is_wanted,
            is_traced_below=emits_client_span(transport),
            is_traced_above=self._is_traced_above and resend == 0,
            has_span=self._span is not None,
            resend=resend,
        )

    def _start_span(self) -> None:
        attributes = dict(self._attributes)
        if self._operation.method == "_OTHER":
            attributes[names.METHOD_ORIGINAL] = self._request.method
        if self._operation.label is not None:
            attributes[names.OPERATION] = self._operation.label
        if self._state is not None:
            attributes[names.ACCOUNT] = self._state.route.account
            attributes[names.JOB] = self._state.route.job
        self._span = tracer().start_span(
            self._operation.span_name, attributes=attributes, start_time=self._watch.began_ns
        )
        # Current, also if it is not sampled: what is below it shall be sampled as it is.
        self._token = context.attach(trace.set_span_in_context(self._span))

    def _be_quiet(self) -> None:
        self._is_quiet = True
        parent = self._caller.get_span_context()
        if not self._is_traced_above and _follows_parent(trace.get_tracer_provider()):
            self._is_dropped = True
            unsampled = NonRecordingSpan(_unsampled(parent))
            self._token = context.attach(trace.set_span_in_context(unsampled))

    def _detach(self) -> None:
        token, self._token = self._token, None
        if token is not None:
            context.detach(token)

    @harmless
    def _tell_caller(self, judgement: Judgement) -> None:
        if self._is_wanted and self._caller.is_recording():
            self._caller.set_attribute(names.MET, judgement.verdict.value)

    @property
    def _labels(self) -> dict[str, AttributeValue]:
        """What tells a request's metrics apart."""
        found = job_labels(self._state, self._settings)
        if self._operation.label is not None:
            found[names.OPERATION] = self._operation.label
        return found


def _has_told(current: SpanContext, request: httpx.Request) -> bool:
    """Whether somebody above the guard has put the current span into the request's headers."""
    if not current.is_valid:
        return False
    span_id = f"{current.span_id:016x}"
    return any(span_id in value for value in told_context(request).values())


def _unsampled(parent: SpanContext) -> SpanContext:
    """The context of a span that nobody records, in the caller's trace if there is one."""
    if parent.is_valid:
        trace_id, span_id = parent.trace_id, parent.span_id
    else:
        # Not the module `random`: its numbers are the training's.
        trace_id, span_id = (int.from_bytes(os.urandom(size)) | 1 for size in (16, 8))
    return SpanContext(trace_id, span_id, is_remote=False, trace_flags=TraceFlags.get_default())


@lru_cache(maxsize=4)
def _follows_parent(provider: Any) -> bool:
    """Whether what is below an unsampled span is not sampled either, as by default."""
    unsampled = _unsampled(SpanContext(1, 1, is_remote=False))
    inside = trace.set_span_in_context(NonRecordingSpan(unsampled))
    try:
        result = provider.sampler.should_sample(inside, unsampled.trace_id, "tinker_guard")
    except Exception:
        # Not the SDK's provider, or a sampler of its own kind.
        return False
    return not result.decision.is_recording()


def job_labels(state: RouteState | None, settings: GuardSettings) -> dict[str, AttributeValue]:
    """Account and job for a metric, if the settings want metrics by job."""
    if state is None or not settings.metrics_by_job:
        return {}
    return {names.ACCOUNT: state.route.account, names.JOB: state.route.job}


# -- what else the guard does --------------------------------------------------------------------


class ProbeReport:
    """What is known about one probe."""

    def __init__(self, request: httpx.Request, operation: Operation, span: Action) -> None:
        self.result = "failed"
        """`reached`, `not_found` or `failed`."""
        self._request = request
        self._operation = operation
        self._span = span

    async def send(self, transport: httpx.AsyncBaseTransport) -> httpx.Response:
        """Send the probe."""
        with Exchange(
            self._request,
            self._operation,
            exchange_attributes(self._operation, self._request),
            is_wanted=is_in_action(),
            is_traced_below=emits_client_span(transport),
        ) as exchange:
            exchange.response = await transport.handle_async_request(exchange.request)
        self._span.set({names.STATUS_CODE: exchange.response.status_code})
        return exchange.response


@contextmanager
def probe_span(
    request: httpx.Request, state: RouteState, settings: GuardSettings
) -> Iterator[ProbeReport]:
    """The span of one probe."""
    operation = operation_of(request.method, request.url.raw_path, state.route.path)
    attributes = exchange_attributes(operation, request)
    is_wanted = settings.trace != "off"
    with action(f"probe {operation.span_name}", attributes, is_wanted=is_wanted) as span:
        report = ProbeReport(request, operation, span)
        try:
            yield report
        finally:
            result: dict[str, AttributeValue] = {names.PROBE_RESULT: report.result}
            span.set(result)
            if report.result == "not_found":
                span.failed("404")
            metrics.count(metrics.PROBES, job_labels(state, settings) | result)


@contextmanager
def warmup_span(state: RouteState, settings: GuardSettings) -> Iterator[Action]:
    """The span of one route's warmup."""
    attributes: dict[str, AttributeValue] = {
        names.ACCOUNT: state.route.account,
        names.JOB: state.route.job,
    }
    with action("tinker_guard.warmup", attributes, is_wanted=settings.trace != "off") as span:
        yield span


def note_warmup(
    span: Action,
    state: RouteState,
    settings: GuardSettings,
    *,
    probes: int,
    seconds: float,
    refusal: Refusal | None,
) -> None:
    """Note how a warmup ended."""
    span.set({names.WARMUP_PROBES: probes})
    verdict = {} if refusal is None else labels(refusal.judgement)
    if refusal is not None:
        span.set(verdict)
        span.failed("404")
    metrics.measure(metrics.WARMUP_DURATION, seconds, job_labels(state, settings) | verdict)


class QuestionReport:
    """What is known about one control-plane question."""

    def __init__(self, state: RouteState, settings: GuardSettings, span: Action) -> None:
        self._state = state
        self._settings = settings
        self._span = span
        self._watch = Stopwatch()

    def answered(self, answer: Answer, judgement: Judgement) -> None:
        """Note what the control plane said, and what that means for a 404."""
        attributes = labels(judgement)
        metrics.measure(
            metrics.QUESTION_DURATION,
            self._watch.seconds,
            job_labels(self._state, self._settings) | attributes,
        )
        if answer.state is not None:
            attributes[names.JOB_STATE] = answer.state
        self._span.set(attributes)
        if answer.failure is not None:
            self._span.failed(answer.failure.reason.value)


@contextmanager
def question_span(state: RouteState, settings: GuardSettings) -> Iterator[QuestionReport]:
    """The span of one control-plane question, however it is asked."""
    attributes: dict[str, AttributeValue] = {
        names.ACCOUNT: state.route.account,
        names.JOB: state.route.job,
    }
    is_wanted = settings.trace != "off"
    with action("tinker_guard.control_plane", attributes, is_wanted=is_wanted) as span:
        yield QuestionReport(state, settings, span)


def question_exchange(request: httpx.Request) -> Exchange:
    """One exchange with the Fireworks control plane, below a question's span."""
    template = "/v1/accounts/{account}/rlorTrainerJobs/{job}"
    path = request.url.raw_path.partition(b"?")[0].decode("ascii", "replace")
    operation = Operation(request.method, f"GET {template}", None, path, is_background=False)
    attributes = exchange_attributes(operation, request)
    return Exchange(request, operation, attributes, is_wanted=is_in_action(), is_traced_below=False)
