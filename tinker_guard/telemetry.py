"""Spans and metrics of a request, a warmup, a probe and a lookup.

A fault in here (for example in an exporter) is logged once and never reaches the request.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from tinker_guard.faults import fail_open, log_fault
from tinker_guard.observability import attributes as names
from tinker_guard.observability import metrics
from tinker_guard.observability.actions import (
    Action,
    Stopwatch,
    action,
    error_type_of,
    is_in_action,
    labels,
    not_found_labels,
)
from tinker_guard.observability.exchange import Exchange
from tinker_guard.observability.operation_names import (
    Operation,
    lookup_of,
    operation_of,
    route_labels,
)
from tinker_guard.observability.providers import NOTHING, enabled, is_suppressed
from tinker_guard.observability.request import ObservedRequest, job_labels
from tinker_guard.policy.judgement import (
    Judgement,
    Outcome,
    judge,
    outcome_of,
)
from tinker_guard.transports.renewable import emits_client_span

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator
    from types import TracebackType

    import httpx
    from opentelemetry.util.types import AttributeValue

    from tinker_guard.core.findings import ProbingEnd
    from tinker_guard.core.routes import RouteState
    from tinker_guard.policy.answer import Answer
    from tinker_guard.policy.judgement import JobAnswer
    from tinker_guard.settings import GuardSettings


class RequestReport:
    """Records one guarded request in spans and metrics.

    A context manager around the whole request; its methods record events.
    """

    __slots__ = ("_observed", "_request", "_settings", "_state", "judgement", "resends")

    def __init__(
        self, request: httpx.Request, state: RouteState | None, settings: GuardSettings
    ) -> None:
        self._request = request
        self._state = state
        self._settings = settings
        self._observed: ObservedRequest | None = None
        self.judgement: Judgement | None = None
        """The verdict on the last 404, if one was met."""
        self.resends: int = 0
        """How often the request was sent again."""

    def __enter__(self) -> RequestReport:
        if enabled() is not NOTHING and not is_suppressed():
            try:
                self._observed = ObservedRequest(self._request, self._state, self._settings)
            except Exception:
                log_fault("telemetry (a request's beginning)")
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

    def send(
        self, transport: httpx.AsyncBaseTransport, request: httpx.Request
    ) -> Awaitable[httpx.Response]:
        """Send the request for the first time."""
        if self._observed is None:
            return transport.handle_async_request(request)
        return self._observed.send(transport, request)

    async def resend(
        self, transport: httpx.AsyncBaseTransport, request: httpx.Request, *, pause: float
    ) -> httpx.Response:
        """Send the request again.

        Args:
            transport: The transport to send it over.
            request: The request, with the cookies for this resend.
            pause: Seconds since the 404.
        """
        self.resends += 1
        if self._observed is None:
            return await transport.handle_async_request(request)
        return await self._observed.resend(transport, request, self.resends, pause, self.judgement)

    def judged(self, judgement: Judgement) -> None:
        """Record the verdict on a 404."""
        self.judgement = judgement
        if self._observed is not None:
            self._observed.judged(judgement)

    def met_404(self, answer: Answer, *, is_trainers: bool) -> None:
        """Record a 404 that the request, or its route's warmup for it, has met.

        Args:
            answer: The 404.
            is_trainers: Whether it counts as the trainer's own.
        """
        if self._observed is not None:
            self._observed.met_404(answer, is_trainers=is_trainers)

    def answered(self, response: httpx.Response) -> httpx.Response:
        """Record the response that is handed back, and return it."""
        if self._observed is not None:
            status_code = response.status_code
            outcome = outcome_of(status_code, self.judgement)
            error_type = str(status_code) if status_code >= 400 else None
            self._observed.end(self, outcome, status_code, error_type)
        return response

    def promote(self) -> None:
        """Start the spans of an untraced request: it met a 404, a wait or an error."""
        if self._observed is not None:
            self._observed.promote()

    def waited(self, seconds: float) -> None:
        """Record how long the request waited for its route's warmup."""
        if self._observed is not None:
            self._observed.waited(seconds)

    def raced(self, judgement: Judgement) -> None:
        """Record that the request waits, or waited at the gate, in a routing race."""
        self.judgement = judgement
        if self._observed is not None:
            self._observed.raced(judgement)

    def met_race_at_gate(self) -> None:
        """Record that probes, instead of the request, have met the 404s of a race."""
        if self._observed is not None:
            self._observed.met_race_at_gate()

    def cannot_be_resent(self) -> None:
        """Record that the request's body is a stream."""
        if self._observed is not None:
            self._observed.set(names.REPLAYABLE, False)


class ProbeReport:
    """Records one probe."""

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
            is_wanted=is_in_action(),
            is_traced_below=emits_client_span(transport),
        ) as exchange:
            exchange.response = await transport.handle_async_request(exchange.request)
        self._span.set({names.STATUS_CODE: exchange.response.status_code})
        return exchange.response

    @fail_open
    def met_404(self, answer: Answer, *, is_trainers: bool) -> None:
        """Record a 404; see `RequestReport.met_404`."""
        if self._span.span is not None and self._span.span.is_recording():
            self._span.set(not_found_labels(answer, is_trainers=is_trainers))


@contextmanager
def probe_span(
    request: httpx.Request, state: RouteState, settings: GuardSettings
) -> Iterator[ProbeReport]:
    """The span of one probe."""
    operation = operation_of(request.method, request.url, state.route)
    name, is_wanted = f"probe {operation.span_name}", settings.trace != "off"
    with action(name, operation.of_http, is_wanted=is_wanted) as span:
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
    attributes = route_labels(state.route)
    with action("tinker_guard.warmup", attributes, is_wanted=settings.trace != "off") as span:
        yield span


def note_warmup(
    span: Action,
    state: RouteState,
    settings: GuardSettings,
    end: ProbingEnd,
    probes: int,
    seconds: float,
) -> None:
    """Record how a warmup ended."""
    span.set({names.WARMUP_PROBES: probes})
    refused_with: Judgement | None = getattr(end, "judgement", None)
    judgement = refused_with or end.race
    verdict = {} if judgement is None else labels(judgement)
    span.set(verdict)
    if refused_with is not None:
        span.failed("404")
    metrics.measure(metrics.WARMUP_DURATION, seconds, job_labels(state, settings) | verdict)


class LookupReport:
    """Records one control-plane lookup."""

    def __init__(self, state: RouteState, settings: GuardSettings, span: Action) -> None:
        self._state = state
        self._settings = settings
        self._span = span
        self._watch = Stopwatch()

    def answered(self, answer: JobAnswer) -> None:
        """Record the control plane's answer, and its meaning for a 404."""
        judged = judge(answer, was_missing=True, warm_for=None)
        attributes = labels(judged) if isinstance(judged, Judgement) else {}
        metrics.measure(
            metrics.LOOKUP_DURATION,
            self._watch.seconds,
            job_labels(self._state, self._settings) | attributes,
        )
        if answer.state is not None:
            attributes[names.JOB_STATE] = answer.state
        self._span.set(attributes)
        if answer.failure is not None:
            self._span.failed(answer.failure.reason.value)


@contextmanager
def lookup_span(state: RouteState, settings: GuardSettings) -> Iterator[LookupReport]:
    """The span of one control-plane lookup, by any kind of control plane."""
    attributes = route_labels(state.route)
    is_wanted = settings.trace != "off"
    with action("tinker_guard.control_plane", attributes, is_wanted=is_wanted) as span:
        yield LookupReport(state, settings, span)


def lookup_exchange(request: httpx.Request, template: str) -> Exchange:
    """One exchange with a control plane, below a lookup's span.

    Args:
        request: The lookup's request.
        template: Its path, with ids replaced; empty if the path may not be recorded.
    """
    operation = lookup_of(request.url, template)
    return Exchange(request, operation, is_wanted=is_in_action(), is_traced_below=False)
