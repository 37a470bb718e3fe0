"""Spans of what the guard does, and the one CLIENT span of each exchange over the network.

An *action* of the guard (a request, a resend, a probe, a question, a warmup) is an INTERNAL span
with the label. Below it, an *exchange* is one CLIENT span, and one only, whoever makes it:

* The inner transport, if it traces by itself as pyqwest's does. It also gives the gateway its
  context, so that what others have put into the request's headers is left out.
* Somebody above the guard who put the current span into the request's headers already, as
  OpenTelemetry's httpx instrumentation of a single client does. Their span is the first exchange.
* Else the guard.

While an exchange is under way, other instrumentations of HTTP are told to keep out of it.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from opentelemetry import context, propagate, trace
from opentelemetry.context import (
    # `suppress_http_instrumentation()` sets it too, at fifteen times the cost.
    _SUPPRESS_HTTP_INSTRUMENTATION_KEY,
)
from opentelemetry.trace import SpanKind, Status, StatusCode

from tinker_guard import attributes as names
from tinker_guard import metrics
from tinker_guard._version import __version__
from tinker_guard.logs import harmless
from tinker_guard.observers import observers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextvars import Token
    from types import TracebackType

    import httpx
    from opentelemetry.context import Context
    from opentelemetry.propagators.textmap import TextMapPropagator
    from opentelemetry.trace import Span
    from opentelemetry.util.types import AttributeValue

    from tinker_guard.operations import Operation
    from tinker_guard.verdict import Judgement

_SCHEMA: Final = "https://opentelemetry.io/schemas/1.27.0"
_PROTOCOLS: Final = {b"HTTP/1.0": "1.0", b"HTTP/1.1": "1.1", b"HTTP/2": "2"}


@lru_cache(maxsize=1)
def tracer() -> trace.Tracer:
    """The guard's tracer."""
    return trace.get_tracer("tinker_guard", __version__, schema_url=_SCHEMA)


def labels(judgement: Judgement) -> dict[str, AttributeValue]:
    """The attributes that label a span or a metric with a verdict."""
    return {names.VERDICT: judgement.verdict.value, names.REASON: judgement.reason.value}


def error_type_of(error: BaseException) -> str | None:
    """An exception's name as the HTTP conventions want it; None for the caller's cancellation."""
    if isinstance(error, asyncio.CancelledError):
        return None
    kind = type(error)
    is_builtin = kind.__module__ == "builtins"
    return kind.__qualname__ if is_builtin else f"{kind.__module__}.{kind.__qualname__}"


def exchange_attributes(operation: Operation, request: httpx.Request) -> dict[str, AttributeValue]:
    """What the conventions ask for on every HTTP span and metric, known before anything is sent."""
    url = request.url
    return {
        names.METHOD: operation.method,
        names.SERVER_ADDRESS: url.host,
        names.SERVER_PORT: url.port or (443 if url.scheme == "https" else 80),
    }


class Stopwatch:
    """When something began, and how long ago; it may be that somebody sets the clock meanwhile."""

    __slots__ = ("_began_at", "began_ns")

    def __init__(self) -> None:
        self.began_ns = time.time_ns()
        """Nanoseconds since the epoch, for the beginning of a span."""
        self._began_at = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since then."""
        return time.perf_counter() - self._began_at

    @property
    def now_ns(self) -> int:
        """For the end of a span: the beginning, and what has passed since."""
        return self.began_ns + int(self.seconds * 1e9)


# -- actions -------------------------------------------------------------------------------------


class Action:
    """A span of something that the guard does; its methods do nothing when nobody records."""

    __slots__ = ("span",)

    def __init__(self, span: Span | None) -> None:
        self.span = span

    @harmless
    def set(self, attributes: Mapping[str, AttributeValue]) -> None:
        """Set attributes on the span."""
        if self.span is not None:
            self.span.set_attributes(attributes)

    def answered(self, status_code: int) -> None:
        """Note the status of the exchange below."""
        self.set({names.STATUS_CODE: status_code})
        if status_code >= 400:
            self.failed(str(status_code))

    @harmless
    def failed(self, error_type: str) -> None:
        """Mark the span as an error of this type."""
        if self.span is not None:
            self.span.set_attribute(names.ERROR_TYPE, error_type)
            self.span.set_status(Status(StatusCode.ERROR))


@contextmanager
def action(
    name: str, attributes: Mapping[str, AttributeValue], *, is_wanted: bool
) -> Iterator[Action]:
    """Open the span of an action; what happens meanwhile is below it.

    Args:
        name: Of low cardinality.
        attributes: What is known from the beginning, so that samplers see it.
        is_wanted: Whether the settings want spans.
    """
    opened = _open(name, attributes) if is_wanted else None
    opened_action = Action(opened[0] if opened else None)
    try:
        yield opened_action
    except BaseException as error:
        if (error_type := error_type_of(error)) is not None:
            opened_action.failed(error_type)
        raise
    finally:
        if opened:
            _close(*opened)


@harmless
def _open(
    name: str, attributes: Mapping[str, AttributeValue]
) -> tuple[Span, Token[Context], Stopwatch] | None:
    if True not in observers():
        return None
    watch = Stopwatch()
    span = tracer().start_span(name, attributes=attributes, start_time=watch.began_ns)
    inside = context.set_value(_IN_ACTION, True, trace.set_span_in_context(span))
    return span, context.attach(inside), watch


@harmless
def _close(span: Span, token: Token[Context], watch: Stopwatch) -> None:
    context.detach(token)
    span.end(watch.now_ns)


_IN_ACTION: Final = context.create_key("tinker_guard-action")


def is_in_action() -> bool:
    """Whether the span of an action is open, and exchanges shall have theirs."""
    return context.get_value(_IN_ACTION) is True


# -- exchanges -----------------------------------------------------------------------------------


class Exchange:
    """One request on its way over the network and back: a context manager around the sending.

    `request` is what is to be sent then: the one that was given or, where a header has to differ,
    a shallow copy of it. The caller's own stays as it is.

    Args:
        request: What is sent.
        operation: What it asks for.
        attributes: Its `exchange_attributes`.
        is_traced_below: Whether the inner transport makes the CLIENT span.
        is_traced_above: Whether somebody above has made it.
        is_wanted: Whether the guard has to do with it at all; if not, nothing is changed or noted.
        has_span: Whether the guard makes one now, if it is the guard's to make.
        resend: 0 for the first time that the request is sent.
    """

    __slots__ = (
        "_attributes",
        "_ended_ns",
        "_has_span",
        "_is_wanted",
        "_operation",
        "_resend",
        "_result",
        "_span",
        "_token",
        "_watch",
        "is_mine",
        "is_traced_below",
        "request",
        "response",
    )

    def __init__(
        self,
        request: httpx.Request,
        operation: Operation,
        attributes: Mapping[str, AttributeValue],
        *,
        is_traced_below: bool,
        is_traced_above: bool = False,
        is_wanted: bool = True,
        has_span: bool = True,
        resend: int = 0,
    ) -> None:
        self.request = request
        self.response: httpx.Response | None = None
        """What came back; set by whoever sends."""
        self._operation = operation
        self._attributes = attributes
        self.is_traced_below = is_traced_below
        self.is_mine = not (is_traced_below or is_traced_above)
        """Whether the CLIENT span is the guard's to make."""
        self._is_wanted = is_wanted
        self._has_span = has_span
        self._resend = resend
        self._span: Span | None = None
        self._token: Token[Context] | None = None
        self._ended_ns: int | None = None

    def __enter__(self) -> Exchange:
        if self._is_wanted:
            self._begin()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._is_wanted:
            self._end(exc)

    @harmless
    def _begin(self) -> None:
        self._watch = Stopwatch()
        inside = context.set_value(_SUPPRESS_HTTP_INSTRUMENTATION_KEY, True)
        if self.is_mine and self._has_span:
            self._span = self._start_span()
            inside = trace.set_span_in_context(self._span, inside)
        self._token = context.attach(inside)
        if self.is_mine:
            self.request = _with_context(self.request)
        elif self.is_traced_below:
            self.request = _without_context(self.request)

    @harmless
    def _end(self, error: BaseException | None) -> None:
        if self._token is not None:
            context.detach(self._token)
        self._ended_ns = self._watch.now_ns
        self._result = self._describe(error)
        if self._span is not None:
            self._finish(self._span)
        if self.is_mine and observers().of_metrics:
            seconds = self._watch.seconds
            metrics.measure(
                metrics.EXCHANGE_DURATION, seconds, {**self._attributes, **self._result}
            )

    @harmless
    def record_late(self) -> None:
        """Make the CLIENT span of an exchange that is over, and that nobody has recorded."""
        if self._ended_ns is not None:
            self._finish(self._start_span())

    def _start_span(self) -> Span:
        attributes = dict(self._attributes)
        attributes[names.URL_FULL] = _url_without_secrets(self.request.url, self._operation.path)
        if self._operation.method == "_OTHER":
            attributes[names.METHOD_ORIGINAL] = self.request.method
        if self._resend:
            attributes[names.RESEND_COUNT] = self._resend
        return tracer().start_span(
            self._operation.span_name,
            kind=SpanKind.CLIENT,
            attributes=attributes,
            start_time=self._watch.began_ns,
        )

    def _finish(self, span: Span) -> None:
        span.set_attributes(self._result)
        if names.ERROR_TYPE in self._result:
            span.set_status(Status(StatusCode.ERROR))
        span.end(self._ended_ns)

    def _describe(self, error: BaseException | None) -> dict[str, AttributeValue]:
        result: dict[str, AttributeValue] = {}
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
        return result


def _with_context(request: httpx.Request) -> httpx.Request:
    """A request that tells the server in which trace it is made."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    if not carrier:
        return request
    headers = request.headers.copy()
    for name, value in carrier.items():
        headers[name] = value
    return _with_headers(request, headers)


def _without_context(request: httpx.Request) -> httpx.Request:
    """A request that tells nothing of a trace, for a transport that would say it a second time."""
    told = told_context(request)
    if not told:
        return request
    headers = request.headers.copy()
    for name in told:
        del headers[name]
    return _with_headers(request, headers)


def told_context(request: httpx.Request) -> dict[str, str]:
    """The headers of a request that tell in which trace it is made."""
    fields = _fields(propagate.get_global_textmap())
    return {
        name.decode("ascii"): value.decode("ascii", "replace")
        for name, value in request.headers.raw
        if name.lower() in fields
    }


@lru_cache(maxsize=4)
def _fields(propagator: TextMapPropagator) -> frozenset[bytes]:
    return frozenset(field.lower().encode() for field in propagator.fields)


def _with_headers(request: httpx.Request, headers: httpx.Headers) -> httpx.Request:
    # `copy.copy` would lose stream and extensions, timeouts among them.
    twin = object.__new__(type(request))
    vars(twin).update(vars(request))
    twin.headers = headers
    return twin


def _url_without_secrets(url: httpx.URL, path: str) -> str:
    host, port = url.host, url.port
    authority = f"[{host}]" if ":" in host else host
    return f"{url.scheme}://{authority}{'' if port is None else f':{port}'}{path}"
