"""Recreates spans with ids that have been sent to a server already.

A span of OpenTelemetry cannot change its kind or its parent. The SDK's tracers, however, have their
id generator and their sampler in public attributes. A copy of a tracer, used for one span, returns
a given id and a given sampling decision.
"""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tinker_guard.observability.actions import tracer

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext, Tracer


@lru_cache(maxsize=4)
def can_begin_again(by: Any) -> bool:
    """Whether a tracer is the SDK's, or has the same public attributes."""
    return hasattr(by, "id_generator") and hasattr(by, "sampler")


def tracer_beginning_again(begun: SpanContext, span_id: int | None = None) -> Tracer:
    """A tracer for one span in the trace of a span that was started and then abandoned.

    Args:
        begun: The context of the abandoned span.
        span_id: The id of the new span; None generates one.
    """
    again: Any = copy.copy(tracer())
    again.id_generator = _KnownIds(again.id_generator, begun.trace_id, span_id)
    again.sampler = _KnownDecision(begun)
    by: Tracer = again
    return by


class _KnownIds:
    def __init__(self, others: Any, trace_id: int, span_id: int | None) -> None:
        self._others = others
        self._trace_id = trace_id
        self._span_id = span_id

    def generate_trace_id(self) -> int:
        return self._trace_id

    def generate_span_id(self) -> int:
        if self._span_id is not None:
            return self._span_id
        span_id: int = self._others.generate_span_id()
        return span_id

    def is_trace_id_random(self) -> bool:
        # The SDK has called this since 1.39.
        return bool(self._others.is_trace_id_random())


class _KnownDecision:
    def __init__(self, begun: SpanContext) -> None:
        self._begun = begun

    def should_sample(
        self,
        parent_context: Any,
        trace_id: int,
        name: str,
        kind: Any = None,
        attributes: Any = None,
        *_: Any,
        **__: Any,
    ) -> Any:
        # Only the SDK's tracers call this, so the SDK can be imported.
        from opentelemetry.sdk.trace.sampling import Decision, SamplingResult

        is_sampled = self._begun.trace_flags.sampled
        decision = Decision.RECORD_AND_SAMPLE if is_sampled else Decision.RECORD_ONLY
        return SamplingResult(decision, attributes, self._begun.trace_state)
