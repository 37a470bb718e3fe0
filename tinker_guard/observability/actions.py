"""Spans of the guard's actions: a resend, a probe, a lookup, a warmup."""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

from opentelemetry import context, trace
from opentelemetry.trace import Status, StatusCode

from tinker_guard import __version__
from tinker_guard.faults import fail_open
from tinker_guard.observability import attributes as names
from tinker_guard.observability.providers import enabled, is_suppressed
from tinker_guard.policy.gateways import gateway_of
from tinker_guard.policy.not_found import Source
from tinker_guard.transports.interrupts import Interrupted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextvars import Token

    from opentelemetry.context import Context
    from opentelemetry.trace import Span
    from opentelemetry.util.types import AttributeValue

    from tinker_guard.policy.answer import Answer
    from tinker_guard.policy.judgement import Judgement


_SCHEMA: Final = "https://opentelemetry.io/schemas/1.27.0"


class _Tracer(NamedTuple):
    provider: trace.TracerProvider | None
    tracer: trace.Tracer


_tracer = _Tracer(None, trace.NoOpTracer())


def tracer() -> trace.Tracer:
    """The guard's tracer, from the program's current provider.

    A tracer that was created before the provider stays a proxy, without the attributes that
    `begun` needs.
    """
    global _tracer
    provider = trace.get_tracer_provider()
    if _tracer.provider is not provider:
        made = provider.get_tracer("tinker_guard", __version__, schema_url=_SCHEMA)
        _tracer = _Tracer(provider, made)
    return _tracer.tracer


def labels(judgement: Judgement) -> dict[str, AttributeValue]:
    """The attributes that label a span or a metric with a verdict."""
    return {names.VERDICT: judgement.verdict.value, names.REASON: judgement.reason.value}


def not_found_labels(answer: Answer, *, is_trainers: bool) -> dict[str, AttributeValue]:
    """The attributes that name the author of a 404.

    Args:
        answer: The 404.
        is_trainers: Whether it counts as the trainer's own.
    """
    if is_trainers:
        return {names.NOT_FOUND_SOURCE: Source.TRAINER.value}
    gateway = gateway_of(answer)
    if gateway is None:
        return {names.NOT_FOUND_SOURCE: Source.UNKNOWN.value}
    return {names.NOT_FOUND_SOURCE: Source.GATEWAY.value, names.NOT_FOUND_GATEWAY: gateway}


def error_type_of(error: BaseException) -> str | None:
    """An exception's name by the HTTP conventions; None for the caller's cancellation."""
    error = error.error if isinstance(error, Interrupted) else error
    if isinstance(error, asyncio.CancelledError):
        return None
    kind = type(error)
    is_builtin = kind.__module__ == "builtins"
    return kind.__qualname__ if is_builtin else f"{kind.__module__}.{kind.__qualname__}"


class Stopwatch:
    """Start time and elapsed time, correct even if the system's clock is changed meanwhile."""

    __slots__ = ("_began_at", "began_ns")

    def __init__(self) -> None:
        self.began_ns: int = time.time_ns()
        """Nanoseconds since the epoch, for the beginning of a span."""
        self._began_at = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._began_at

    @property
    def now_ns(self) -> int:
        """Nanoseconds since the epoch, for the end of a span."""
        return self.began_ns + int(self.seconds * 1e9)


class Action:
    """A span of one action of the guard; without a recorder, its methods do nothing."""

    __slots__ = ("span",)

    def __init__(self, span: Span | None) -> None:
        self.span: Span | None = span

    @fail_open
    def set(self, attributes: Mapping[str, AttributeValue]) -> None:
        """Set attributes on the span."""
        if self.span is not None:
            self.span.set_attributes(attributes)

    def answered(self, status_code: int) -> None:
        """Record the status of the exchange below."""
        self.set({names.STATUS_CODE: status_code})
        if status_code >= 400:
            self.failed(str(status_code))

    @fail_open
    def failed(self, error_type: str) -> None:
        """Mark the span as an error of this type."""
        if self.span is not None:
            self.span.set_attribute(names.ERROR_TYPE, error_type)
            self.span.set_status(Status(StatusCode.ERROR))


@contextmanager
def action(
    name: str, attributes: Mapping[str, AttributeValue], *, is_wanted: bool
) -> Iterator[Action]:
    """Open the span of an action; spans that start meanwhile are its children.

    Args:
        name: The span's name, of low cardinality.
        attributes: Those known at the start, so that samplers get them.
        is_wanted: Whether the settings enable spans.
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


@fail_open
def _open(
    name: str, attributes: Mapping[str, AttributeValue]
) -> tuple[Span, Token[Context], Stopwatch] | None:
    if True not in enabled() or is_suppressed():
        return None
    watch = Stopwatch()
    span = tracer().start_span(name, attributes=dict(attributes), start_time=watch.began_ns)
    inside = context.set_value(_IN_ACTION, True, trace.set_span_in_context(span))
    return span, context.attach(inside), watch


@fail_open
def _close(span: Span, token: Token[Context], watch: Stopwatch) -> None:
    context.detach(token)
    span.end(watch.now_ns)


_IN_ACTION: Final = context.create_key("tinker_guard-action")


def is_in_action() -> bool:
    """Whether the span of an action is open, so that exchanges get spans too."""
    return context.get_value(_IN_ACTION) is True
