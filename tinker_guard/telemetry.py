"""What people see: OpenTelemetry spans and log lines. No other module knows OpenTelemetry.

A fault in here (an exporter that raises, say) is logged once and never reaches the request.
"""

from __future__ import annotations

import asyncio
import logging
import re
from contextlib import contextmanager, nullcontext
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar, assert_never

from opentelemetry import context, trace
from opentelemetry.instrumentation.utils import suppress_http_instrumentation
from opentelemetry.trace import SpanKind, Status, StatusCode

from tinker_guard._version import __version__
from tinker_guard.verdict import TRAINER_ANSWERED, Judgement, Outcome, Reason, outcome_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextvars import Token
    from types import TracebackType

    import httpx
    from opentelemetry.trace import Span
    from opentelemetry.util.types import AttributeValue

    from tinker_guard.route import RouteState
    from tinker_guard.verdict import Answer

logger: Final = logging.getLogger("tinker_guard")

_NOT_RECORDING: Final = (trace.ProxyTracerProvider, trace.NoOpTracerProvider)

# `forward_backward` or `v1`; anything with other characters in it is an id of something, and so
# is what follows the name of a collection in the SDK's paths.
_PATH_WORD: Final = re.compile(r"[a-z_]*|v\d")
_COLLECTIONS: Final = frozenset({"checkpoints", "samplers", "sessions", "training_runs"})


def _is_recording() -> bool:
    """Whether anybody may want spans; a misconfigured OpenTelemetry wants none."""
    try:
        return not isinstance(trace.get_tracer_provider(), _NOT_RECORDING)
    except Exception:
        log_fault("telemetry (the tracer provider)")
        return False


@lru_cache(maxsize=1)
def _tracer() -> trace.Tracer:
    return trace.get_tracer("tinker_guard", __version__)


_P = ParamSpec("_P")
_T = TypeVar("_T")

_REPEAT_AFTER: Final = 10.0

_faults_logged: set[str] = set()


def log_fault(where: str) -> None:
    """Log a fault of the guard's own, once per place; the request goes on without it."""
    if where not in _faults_logged:
        _faults_logged.add(where)
        logger.warning(
            "tinker_guard: a fault of its own in %s; requests go on without it. Please report it.",
            where,
            exc_info=True,
        )


def _harmless(function: Callable[_P, _T]) -> Callable[_P, _T | None]:
    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T | None:
        try:
            return function(*args, **kwargs)
        except Exception:
            log_fault(f"telemetry ({function.__name__})")
            return None

    return call


def labels(judgement: Judgement) -> dict[str, AttributeValue]:
    """The attributes that label a span with a verdict."""
    return {
        "tinker_guard.verdict": judgement.verdict.value,
        "tinker_guard.verdict.reason": judgement.reason.value,
    }


class RequestReport:
    """What is known about one guarded request, and its span if anybody records.

    A context manager around the request's whole way; `http` facts and verdicts are noted on it
    as they come, and its exit ends the span.
    """

    __slots__ = ("_attributes", "_request", "_span", "_state", "_token", "judgement", "resends")

    def __init__(self, request: httpx.Request, state: RouteState | None) -> None:
        self._request = request
        self._state = state
        self._span: Span | None = None
        self._token: Token[context.Context] | None = None
        self.judgement: Judgement | None = None
        """The verdict on the last 404, if one was met."""
        self.resends = 0
        """How often the request was sent again."""
        self._attributes: dict[str, AttributeValue] | None = None

    def __enter__(self) -> RequestReport:
        if _is_recording():
            self._start_span()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._span is not None and exc is not None:
            outcome = (
                Outcome.CANCELLED if isinstance(exc, asyncio.CancelledError) else Outcome.ERROR
            )
            self._end_span(outcome, None, type(exc).__qualname__)

    def answered(self, response: httpx.Response) -> httpx.Response:
        """Note the response that is handed back, and return it."""
        if self._span is not None:
            status_code = response.status_code
            self._end_span(
                outcome_of(status_code, self.resends, self.judgement),
                status_code,
                str(status_code) if status_code >= 400 else None,
            )
        return response

    def note(self, name: str, value: AttributeValue) -> None:
        """Put a further attribute on the span."""
        if self._attributes is None:
            self._attributes = {}
        self._attributes[name] = value

    @_harmless
    def _start_span(self) -> None:
        attributes = _exchange_attributes(self._request)
        state = self._state
        if state is not None:
            attributes["tinker_guard.account"] = state.route.account
            attributes["tinker_guard.job"] = state.route.job
        span = _tracer().start_span(
            span_name(self._request, state), kind=SpanKind.INTERNAL, attributes=attributes
        )
        if span.is_recording():
            self._span = span
            # Current, so that the spans of resends, questions and the inner transport nest in it.
            self._token = context.attach(trace.set_span_in_context(span))

    @_harmless
    def _end_span(self, outcome: Outcome, status_code: int | None, error_type: str | None) -> None:
        span, self._span = self._span, None
        if span is None:
            return
        if self._token is not None:
            context.detach(self._token)
        attributes = self._attributes or {}
        attributes["tinker_guard.outcome"] = outcome.value
        attributes["tinker_guard.retries"] = self.resends
        if self.judgement is not None:
            attributes.update(labels(self.judgement))
        if status_code is not None:
            attributes["http.response.status_code"] = status_code
        # A caller that cancels has not met an error.
        if error_type is not None and outcome is not Outcome.CANCELLED:
            attributes["error.type"] = error_type
            span.set_status(Status(StatusCode.ERROR))
        span.set_attributes(attributes)
        span.end()


class Child:
    """A span below a request's; every method does nothing when nobody records."""

    __slots__ = ("span",)

    def __init__(self, span: Span | None) -> None:
        self.span = span

    @_harmless
    def set(self, attributes: Mapping[str, AttributeValue]) -> None:
        """Set attributes on the span."""
        if self.span is not None:
            self.span.set_attributes(attributes)

    def answered(self, status_code: int) -> None:
        """Note the status of the exchange that the span stands for."""
        self.set({"http.response.status_code": status_code})
        if status_code >= 400:
            self.failed(str(status_code))

    @_harmless
    def failed(self, error_type: str) -> None:
        """Mark the span as an error of this type (a status code or an exception's name)."""
        if self.span is not None:
            self.span.set_attribute("error.type", error_type)
            self.span.set_status(Status(StatusCode.ERROR))


@contextmanager
def _child(name: str, kind: SpanKind, attributes: Mapping[str, AttributeValue]) -> Iterator[Child]:
    opened = _open_child(name, kind, attributes)
    child = Child(opened[0] if opened else None)
    try:
        yield child
    except BaseException as error:
        if not isinstance(error, asyncio.CancelledError):
            child.failed(type(error).__qualname__)
        raise
    finally:
        if opened:
            _close_child(*opened)


@_harmless
def _open_child(
    name: str, kind: SpanKind, attributes: Mapping[str, AttributeValue]
) -> tuple[Span, Token[context.Context]] | None:
    if not _is_recording():
        return None
    span = _tracer().start_span(name, kind=kind, attributes=attributes)
    return span, context.attach(trace.set_span_in_context(span))


@_harmless
def _close_child(span: Span, token: Token[context.Context]) -> None:
    context.detach(token)
    span.end()


@contextmanager
def resend_span(
    request: httpx.Request,
    state: RouteState,
    *,
    resend: int,
    pause: float,
    judgement: Judgement,
    is_client_span: bool,
) -> Iterator[Child]:
    """The span of one resend.

    Args:
        request: What is sent again.
        state: The route it is sent on.
        resend: 1 for the first one.
        pause: Seconds waited before it.
        judgement: Why it is sent again.
        is_client_span: Whether this span is the exchange's CLIENT span; False when the inner
            transport emits one itself, so that a trace holds one for each exchange.
    """
    attributes = _exchange_attributes(request) | labels(judgement)
    attributes["http.request.resend_count"] = resend
    attributes["tinker_guard.pause"] = round(pause, 3)
    kind = SpanKind.CLIENT if is_client_span else SpanKind.INTERNAL
    # An instrumented httpx would add a second CLIENT span to ours.
    is_alone = suppress_http_instrumentation() if is_client_span else nullcontext()
    with _child(f"resend {span_name(request, state)}", kind, attributes) as child, is_alone:
        yield child


@contextmanager
def question_span(state: RouteState, url: httpx.URL | None) -> Iterator[Child]:
    """The span of one control-plane question.

    Args:
        state: The route whose job is asked about.
        url: What is fetched; None for a control plane of the user's own, whose exchange, if it
            is one, is theirs to trace.
    """
    attributes: dict[str, AttributeValue] = {
        "tinker_guard.account": state.route.account,
        "tinker_guard.job": state.route.job,
    }
    if url is None:
        with _child("tinker_guard.control_plane", SpanKind.INTERNAL, attributes) as child:
            yield child
        return
    attributes["http.request.method"] = "GET"
    attributes |= _server_attributes(url)
    # This span is the exchange's CLIENT span; an instrumented httpx would add a second one.
    with (
        _child(
            "GET /v1/accounts/{account}/rlorTrainerJobs/{job}", SpanKind.CLIENT, attributes
        ) as child,
        suppress_http_instrumentation(),
    ):
        yield child


def note_answer(child: Child, answer: Answer, judgement: Judgement) -> None:
    """Put what the control plane said onto a question's span."""
    attributes = labels(judgement)
    if answer.state is not None:
        attributes["tinker_guard.job.state"] = answer.state
    child.set(attributes)
    if answer.failure is not None:
        child.failed(answer.failure.reason.value)
    if answer.status_code is not None:
        child.answered(answer.status_code)


@contextmanager
def warmup_span(state: RouteState) -> Iterator[Child]:
    """The span of one route's warmup."""
    attributes: dict[str, AttributeValue] = {
        "tinker_guard.account": state.route.account,
        "tinker_guard.job": state.route.job,
    }
    with _child("tinker_guard.warmup", SpanKind.INTERNAL, attributes) as child:
        yield child


def span_name(request: httpx.Request, state: RouteState | None) -> str:
    """A name of low cardinality, such as `POST /api/v1/forward_backward`.

    Ids in the path become `{id}`; off trainer routes the method alone is the name, as the HTTP
    conventions ask for where no template is known.
    """
    if state is None:
        return request.method
    path = request.url.raw_path.partition(b"?")[0].decode("ascii", "replace")
    words: list[str] = []
    for word in path[len(state.route.path) :].split("/")[1:]:
        is_id = words[-1:] and words[-1] in _COLLECTIONS and word != "search"
        words.append("{id}" if is_id or not _PATH_WORD.fullmatch(word) else word)
    return f"{request.method} /{'/'.join(words)}"


def _server_attributes(url: httpx.URL) -> dict[str, AttributeValue]:
    return {
        "server.address": url.host,
        "server.port": url.port or (443 if url.scheme == "https" else 80),
    }


def _exchange_attributes(request: httpx.Request) -> dict[str, AttributeValue]:
    return {"http.request.method": request.method, **_server_attributes(request.url)}


def log_race_met(state: RouteState) -> None:
    """Say once per race that a running job's route is not known everywhere yet."""
    now = asyncio.get_running_loop().time()
    if state.race_met_at is None:
        state.race_met_at = now
        logger.warning(
            "routing race: the gateway answers 404 for job %s, but the control plane says that it "
            "runs. Resending until the route is known.",
            state.route,
        )


def log_race_over(state: RouteState, resends: int) -> None:
    """Say once per race that it is over, and how long it took."""
    met_at, state.race_met_at = state.race_met_at, None
    if met_at is not None:
        logger.warning(
            "routing race over: job %s answers again after %.2f s (resends of this request: %d).",
            state.route,
            asyncio.get_running_loop().time() - met_at,
            resends,
        )


def log_waiting(state: RouteState, what: str, seconds: float) -> None:
    """Say that something waits, and for what."""
    logger.info("job %s: %s; next look in %.2f s.", state.route, what, seconds)


def log_warm(state: RouteState, seconds: float, probes: int) -> None:
    """Say that a route's gate opened."""
    logger.info("job %s: route is warm after %.2f s and %d probes.", state.route, seconds, probes)


def log_handed_back(
    state: RouteState,
    judgement: Judgement,
    answer: Answer | None,
    seconds: float,
    *,
    is_replayable: bool = True,
) -> None:
    """Say why a 404 is handed back, after how long, and what a person can do about it.

    Requests that fail together say it once: the same verdict on the same route is repeated at
    the DEBUG level only, for `_REPEAT_AFTER` seconds.
    """
    state.race_met_at = None
    now = asyncio.get_running_loop().time()
    said, said_at = state.said
    is_news = said != judgement or now - said_at >= _REPEAT_AFTER
    if judgement is TRAINER_ANSWERED:
        # A trainer's own 404 is part of normal traffic (a server without an endpoint, say).
        level = logging.DEBUG
    elif is_news:
        level = logging.WARNING
        state.said = (judgement, now)
    else:
        level = logging.DEBUG
    logger.log(
        level,
        "404 for job %s handed back after %.2f s (%s, %s): %s",
        state.route,
        seconds,
        judgement.verdict.value,
        judgement.reason.value,
        _explanation(judgement, answer, is_replayable=is_replayable),
    )


def _explanation(judgement: Judgement, answer: Answer | None, *, is_replayable: bool) -> str:
    match judgement.reason:
        case Reason.JOB_RUNNING if not is_replayable:
            return (
                "the job runs, but the request's body is a stream and cannot be sent again. Give "
                "it as bytes."
            )
        case Reason.JOB_RUNNING:
            return (
                "the job runs, but the gateway has not learnt its route. If this lasts, tell the "
                "operator of the gateway; a longer TINKER_GUARD_RETRY_TIMEOUT waits longer."
            )
        case Reason.JOB_NOT_RUNNING:
            return f"the control plane says that it is {answer.state if answer else 'stopped'}."
        case Reason.JOB_MISSING:
            return (
                "the control plane knows no such job. Check the account and job in base_url, and "
                "TINKER_GUARD_CONTROL_PLANE_URL if the control plane lives elsewhere."
            )
        case Reason.TRAINER_ANSWERED:
            return "the trainer itself answered."
        case Reason.NO_CONTROL_PLANE:
            return "there is nobody to ask."
        case Reason.CONTROL_PLANE_ERROR | Reason.CONTROL_PLANE_TIMEOUT:
            return f"it could not be verified: {answer.detail if answer else 'see above'}"
        case _:
            assert_never(judgement.reason)


def provider_name() -> str | None:
    """The class of the tracer provider that takes this process's spans; None if none does."""
    return type(trace.get_tracer_provider()).__qualname__ if _is_recording() else None
