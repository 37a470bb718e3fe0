"""Spans of the guard's actions, and the one CLIENT span of each exchange over the network.

An *action* of the guard (a resend, a probe, a lookup, a warmup) is an INTERNAL span with the label.
Below it, each *exchange* has exactly one CLIENT span. It is created by

* the inner transport, if it traces by itself as pyqwest's does. It also sends its context to the
  gateway, so the guard removes other contexts from the request's headers;
* an instrumentation above the guard that has put the current span into the request's headers, as
  OpenTelemetry's httpx instrumentation of a single client does. Its span is the first exchange;
* otherwise the guard. The first exchange's span is then the span of the whole request, unless
  the request met a 404, a wait or an error: see `request`.

During an exchange, other HTTP instrumentations are suppressed.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

from opentelemetry import context, propagate, trace
from opentelemetry.context import (
    # `suppress_http_instrumentation()` sets it too, but takes fifteen times as long.
    _SUPPRESS_HTTP_INSTRUMENTATION_KEY,
)
from opentelemetry.trace import SpanKind, Status, StatusCode

from tinker_guard.faults import fail_open, log_fault
from tinker_guard.observability import attributes as names
from tinker_guard.observability import metrics
from tinker_guard.observability.actions import Stopwatch, error_type_of, tracer
from tinker_guard.observability.providers import enabled
from tinker_guard.policy.reach import copy_of

if TYPE_CHECKING:
    from contextvars import Token
    from types import TracebackType

    import httpx
    from opentelemetry.context import Context
    from opentelemetry.propagators.textmap import TextMapPropagator
    from opentelemetry.trace import Span, Tracer
    from opentelemetry.util.types import AttributeValue

    from tinker_guard.observability.operation_names import Operation


_PROTOCOLS: Final = {b"HTTP/1.0": "1.0", b"HTTP/1.1": "1.1", b"HTTP/2": "2"}


class Exchange:
    """One request over the network and its response: a context manager around the sending.

    Inside the block, `request` is the one to send: the given one or, if a header must differ,
    a shallow copy. The caller's own request is never changed.

    Args:
        request: The request.
        operation: Its operation.
        is_traced_below: Whether the inner transport creates the CLIENT span.
        is_traced_above: Whether an instrumentation above the guard has created it.
        is_wanted: Whether the guard observes the exchange; if not, it changes and records nothing.
        has_span: Whether the guard creates the span now, if it is the guard's to create.
        resend: Number of the resend; 0 for the first attempt.
        is_whole_request: Whether its CLIENT span is the whole request's too: then it is left open,
            without the attributes in `result`.
        current: The current span during the exchange if the guard creates none; None leaves the
            caller's.
    """

    response: httpx.Response | None = None
    """The response; set by the code that sends."""
    span: Span | None = None
    """The CLIENT span that the guard has created."""
    ended_ns: int | None = None
    """When it ended, in nanoseconds since the epoch; None until then."""
    _token: Token[Context] | None = None

    def __init__(
        self,
        request: httpx.Request,
        operation: Operation,
        *,
        is_traced_below: bool,
        is_traced_above: bool = False,
        is_wanted: bool = True,
        has_span: bool = True,
        resend: int = 0,
        is_whole_request: bool = False,
        current: Span | None = None,
    ) -> None:
        self.request: httpx.Request = request
        self.is_traced_below: bool = is_traced_below
        self.is_mine: bool = not (is_traced_below or is_traced_above)
        """Whether the guard creates the CLIENT span."""
        self.result: dict[str, AttributeValue] = {}
        """Attributes that are known after the exchange."""
        self._operation = operation
        self._is_wanted = is_wanted
        self._has_span = has_span
        self._resend = resend
        self._is_whole_request = is_whole_request
        self._current = current

    def __enter__(self) -> Exchange:
        if self._is_wanted:
            # Not by `fail_open`: this is done for each request, and a call less is cheaper.
            try:
                self._begin()
            except Exception:
                log_fault("telemetry (before an exchange)")
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._is_wanted:
            try:
                self._end(exc)
            except Exception:
                log_fault("telemetry (after an exchange)")

    def _begin(self) -> None:
        self._watch = Stopwatch()
        inside = context.set_value(_SUPPRESS_HTTP_INSTRUMENTATION_KEY, True)
        if self.is_mine and self._has_span:
            self.span = self.start_span(is_whole_request=self._is_whole_request)
        current = self.span or self._current
        if current is not None:
            inside = trace.set_span_in_context(current, inside)
        self._token = context.attach(inside)
        if self.is_mine:
            self.request = _with_context(self.request)
        elif self.is_traced_below:
            self.request = _without_context(self.request)

    def _end(self, error: BaseException | None) -> None:
        if self._token is not None:
            context.detach(self._token)
        if self._has_span and not self.is_mine:
            # Recorded by the transport below, or by the instrumentation above.
            return
        self.ended_ns = self._watch.now_ns
        self._describe(error)
        if self.is_mine and enabled().metrics:
            attributes = {**self._operation.of_http, **self.result}
            metrics.measure(metrics.EXCHANGE_DURATION, self._watch.seconds, attributes)
        if self.span is not None and not self._is_whole_request:
            self._finish(self.span)

    def start_span(self, by: Tracer | None = None, *, is_whole_request: bool = False) -> Span:
        """Start the CLIENT span.

        Args:
            by: The tracer; None uses the guard's own.
            is_whole_request: Whether it is the span of the whole request, too.
        """
        operation = self._operation
        known = operation.of_both if is_whole_request else operation.of_exchange
        attributes = dict(known)
        if self._resend:
            attributes[names.RESEND_COUNT] = self._resend
        return (by or tracer()).start_span(
            operation.span_name,
            kind=SpanKind.CLIENT,
            attributes=attributes,
            start_time=self._watch.began_ns,
        )

    @fail_open
    def record_late(self, by: Tracer | None = None) -> None:
        """Create the CLIENT span of a completed exchange without one; see `start_span`."""
        if self.ended_ns is not None:
            self._finish(self.start_span(by))

    def _finish(self, span: Span) -> None:
        span.set_attributes(self.result)
        if names.ERROR_TYPE in self.result:
            span.set_status(Status(StatusCode.ERROR))
        span.end(self.ended_ns)

    def _describe(self, error: BaseException | None) -> None:
        result = self.result
        if self.response is not None:
            status_code = self.response.status_code
            result[names.STATUS_CODE] = status_code
            if status_code >= 400:
                result[names.ERROR_TYPE] = str(status_code)
            protocol = _PROTOCOLS.get(self.response.extensions.get("http_version", b""))
            if protocol is not None:
                result[names.PROTOCOL_VERSION] = protocol
        elif error is not None and (error_type := error_type_of(error)) is not None:
            result[names.ERROR_TYPE] = error_type


def _with_context(request: httpx.Request) -> httpx.Request:
    """A request with the current trace in its headers."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    if not carrier:
        return request
    told = copy_of(request)
    for name, value in carrier.items():
        told.headers[name] = value
    return told


def _without_context(request: httpx.Request) -> httpx.Request:
    """A request without the headers of a trace that a transport adds by itself.

    Any other is the program's, such as a `baggage` where the current context has none.
    """
    told = propagated_headers(request)
    if not told:
        return request
    added: dict[str, str] = {}
    propagate.inject(added)
    again = {name.lower() for name in added}
    without = copy_of(request)
    for name in told:
        if name.lower() in again:
            del without.headers[name]
    return without


def propagated_headers(request: httpx.Request) -> dict[str, str]:
    """The headers of a request that propagate a trace."""
    fields = _fields(propagate.get_global_textmap())
    if fields.isdisjoint([name.lower() for name, _ in request.headers.raw]):
        return {}
    return {
        name.decode("ascii"): value.decode("ascii", "replace")
        for name, value in request.headers.raw
        if name.lower() in fields
    }


@lru_cache(maxsize=4)
def _fields(propagator: TextMapPropagator) -> frozenset[bytes]:
    return frozenset(field.lower().encode() for field in propagator.fields)
