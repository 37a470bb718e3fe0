"""Decodes one line of JSON into records.

Lines are decoded into types with only the needed fields, so that no objects are built for
the others. A line that does not fit these types is read a second time, span by span, so that
one broken span does not affect the others.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import UNSET, Raw, UnsetType

from tinker_guard.cli.report.records import (
    OTHER,
    OUTCOMES,
    REASONS,
    UNKNOWN_PROCESS,
    Probe,
    Process,
    Question,
    Record,
    Request,
    Resend,
    Warmup,
    clean,
)
from tinker_guard.observability.attributes import (
    ACCOUNT,
    ERROR_TYPE,
    JOB,
    OUTCOME,
    PAUSE,
    PROBE_RESULT,
    REASON,
    RESEND_COUNT,
    RETRIES,
    ROUTE,
    STATUS_CODE,
    VERDICT,
    WARMUP_PROBES,
    WARMUP_WAIT,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from functools import _lru_cache_wrapper

    from tinker_guard.cli.report.reading import Notes


# -- the forms -----------------------------------------------------------------------------------


class _Value(msgspec.Struct, rename="camel", gc=False):
    string_value: str | None = None
    int_value: int | None = None
    double_value: float | None = None


class _Pair(msgspec.Struct, gc=False):
    key: str
    value: _Value | None = None


class _OtlpSpan(msgspec.Struct, rename="camel", gc=False):
    trace_id: str
    span_id: str
    name: str
    start_time_unix_nano: int
    end_time_unix_nano: int
    parent_span_id: str | None = None
    attributes: Raw = Raw(b"[]")


class _Scope(msgspec.Struct, rename="camel", gc=False):
    spans: list[_OtlpSpan] | None = None


class _ResourceSpans(msgspec.Struct, rename="camel", gc=False):
    resource: Raw = Raw(b"{}")
    scope_spans: list[_Scope] | None = None


class _OtlpResource(msgspec.Struct):
    attributes: list[_Pair] | None = None


class _SdkContext(msgspec.Struct, gc=False):
    trace_id: str
    span_id: str


class _SdkResource(msgspec.Struct):
    attributes: dict[str, Any] | None = None


class _SdkSpan(msgspec.Struct, gc=False):
    context: _SdkContext
    name: str
    start_time: str
    end_time: str
    parent_id: str | None = None
    attributes: Raw = Raw(b"{}")
    resource: Raw = Raw(b"{}")


_OTHER_SIGNALS: Final = ("resourceMetrics", "resourceLogs", "resourceProfiles")


class _Line(
    msgspec.Struct,
    rename={
        "resource_spans": "resourceSpans",
        **dict(zip(("metrics", "logs", "profiles"), _OTHER_SIGNALS, strict=True)),
    },
):
    resource_spans: list[_ResourceSpans] | UnsetType | None = UNSET
    metrics: Raw | UnsetType = UNSET
    logs: Raw | UnsetType = UNSET
    profiles: Raw | UnsetType = UNSET
    context: Raw | UnsetType = UNSET
    """The fields that identify a span of the SDK."""


# OTLP writes integers as strings; some exporters write numbers.
_line: Final = msgspec.json.Decoder(_Line, strict=False)
_otlp_span: Final = msgspec.json.Decoder(_OtlpSpan, strict=False)
_otlp_attributes: Final = msgspec.json.Decoder(list[_Pair] | None, strict=False)
_otlp_resource: Final = msgspec.json.Decoder(_OtlpResource, strict=False)
_sdk_span: Final = msgspec.json.Decoder(_SdkSpan)
_sdk_attributes: Final = msgspec.json.Decoder(dict[str, Any] | None)
_sdk_resource: Final = msgspec.json.Decoder(_SdkResource)

_BROKEN_SPAN: Final = "a span without an id or a time, or with one that is none"
_UNREADABLE: Final = (
    *(AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError),
    *(msgspec.DecodeError, RecursionError),
)


def is_document(line: bytes) -> bool:
    """Whether a single line holds spans, or another signal of OpenTelemetry."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, dict) and not _KNOWN_KEYS.isdisjoint(first)


_SDK_KEY: Final = "context"
_KNOWN_KEYS: Final = frozenset((*_OTHER_SIGNALS, "resourceSpans", _SDK_KEY))


def decode_line(line: bytes, place: str, notes: Notes) -> list[Record]:
    """Read one line, and add to `notes`.

    Args:
        line: The line.
        place: Its name in reports of broken parts.
        notes: Updated.
    """
    records: list[Record] = []
    try:
        decoded = _line.decode(line)
        if not isinstance(decoded.resource_spans, UnsetType):
            others = 0
            for resource in decoded.resource_spans or ():
                process = process_of(resource.resource)
                for scope in resource.scope_spans or ():
                    for span in scope.spans or ():
                        record = _of_otlp(span, process)
                        if record is None:
                            others += 1
                        else:
                            records.append(record)
            notes.other_spans += others
            notes.guard_spans += len(records)
            return records
        if not isinstance(decoded.context, UnsetType):
            record = _of_sdk(_sdk_span.decode(line))
            _add(record, records, notes)
            return records
        is_other = not all(
            isinstance(signal, UnsetType)
            for signal in (decoded.metrics, decoded.logs, decoded.profiles)
        )
        if is_other:
            notes.other_signals += 1
            return records
    except _UNREADABLE:
        pass
    return _decode_carefully(line, place, notes)


def _decode_carefully(line: bytes, place: str, notes: Notes) -> list[Record]:
    """Read a line that is malformed in part or as a whole."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        notes.add_broken(place, "not JSON")
        return []
    records: list[Record] = []
    for item in value if isinstance(value, list) else [value]:
        keys = item.keys() if isinstance(item, dict) else frozenset[str]()
        if "resourceSpans" in keys:
            try:
                spans = [
                    (span, process_of_value(resource.get("resource")))
                    for resource in item["resourceSpans"] or ()
                    for scope in resource.get("scopeSpans") or ()
                    for span in scope.get("spans") or ()
                ]
            except (AttributeError, TypeError):
                notes.add_broken(place, "its resourceSpans are not built as OTLP says")
                continue
            for span, process in spans:
                take_otlp(span, process, place, notes, records)
        elif _SDK_KEY in keys:
            take_sdk(item, place, notes, records)
        elif not keys.isdisjoint(_OTHER_SIGNALS):
            notes.other_signals += 1
        else:
            notes.add_broken(place, "JSON, but no spans")
    return records


def take_otlp(span: Any, process: Process, place: str, notes: Notes, records: list[Record]) -> None:
    """Read a span of OTLP that is a dictionary already."""
    try:
        record = _of_otlp(_otlp_span.decode(msgspec.json.encode(span)), process)
    except _UNREADABLE:
        notes.add_broken(place, _BROKEN_SPAN)
    else:
        _add(record, records, notes)


def take_sdk(span: Any, place: str, notes: Notes, records: list[Record]) -> None:
    """Read a span of the SDK that is a dictionary already."""
    try:
        record = _of_sdk(_sdk_span.decode(msgspec.json.encode(span)))
    except _UNREADABLE:
        notes.add_broken(place, _BROKEN_SPAN)
    else:
        _add(record, records, notes)


def _add(record: Record | None, records: list[Record], notes: Notes) -> None:
    if record is None:
        notes.other_spans += 1
    else:
        notes.guard_spans += 1
        records.append(record)


# -- processes -----------------------------------------------------------------------------------

_MOST_PROCESSES: Final = 1024
_LONGEST_KEPT: Final = 8192
_processes: Final[dict[bytes, Process]] = {}


def process_of(resource: Raw | bytes) -> Process:
    """The process of a resource of OTLP, or of the SDK."""
    # All batches of one process begin with the same bytes.
    found = _processes.get(key := bytes(resource))
    if found is None:
        found = _decode_process(key)
        if len(_processes) >= _MOST_PROCESSES:
            _processes.clear()
        if len(key) <= _LONGEST_KEPT:
            _processes[key] = found
    return found


def process_of_value(resource: Any) -> Process:
    """The same for a resource that is a dictionary already."""
    try:
        return process_of(msgspec.json.encode(resource or {}))
    except _UNREADABLE:
        # A lone surrogate, for instance, which cannot be encoded.
        return UNKNOWN_PROCESS


def _decode_process(resource: bytes) -> Process:
    try:
        pairs = _otlp_resource.decode(resource).attributes or ()
        told: Mapping[str, Any] = {pair.key: _value_of(pair.value) for pair in pairs}
    except msgspec.DecodeError:
        try:
            told = _sdk_resource.decode(resource).attributes or {}
        except msgspec.DecodeError:
            return UNKNOWN_PROCESS
    names = ("service.instance.id", "host.name", "process.pid")
    values = [told.get(name) for name in names]
    return Process(*(None if value is None else clean(str(value)) for value in values))


# -- spans ---------------------------------------------------------------------------------------

_WANTED: Final = frozenset(
    (
        *(OUTCOME, RETRIES, VERDICT, REASON, ERROR_TYPE, ACCOUNT, JOB, ROUTE, PAUSE),
        *(RESEND_COUNT, STATUS_CODE, PROBE_RESULT, WARMUP_PROBES, WARMUP_WAIT),
    )
)
_WARMUP_NAME: Final = "tinker_guard.warmup"
_OWN: Final = b"tinker_guard."
"""Part of the attributes of every span of the guard, except for exchanges."""
_PROBE_RESULTS: Final = ("reached", "not_found", "failed")


def _value_of(value: _Value | None) -> str | int | float | None:
    if value is None:
        return None
    if value.string_value is not None:
        return value.string_value
    return value.double_value if value.int_value is None else value.int_value


class _Facts(msgspec.Struct, gc=False):
    """The facts in the attributes of a span; all but the outcome of a request may be missing."""

    kind: type[Record]
    account: str | None
    job: str | None
    verdict: str | None
    reason: str | None
    error: str | None
    outcome: str = ""
    count: int = 0
    """Number of a request's resends, or number of the resend itself."""
    gate_wait: int | None = None
    result: str = ""
    """Result of a probe or a resend."""


def _of_otlp(span: _OtlpSpan, process: Process) -> Record | None:
    attributes = bytes(span.attributes)
    if _OWN not in attributes:
        return None
    return _record_of(
        _cached(_otlp_facts, attributes),
        span.name,
        span.trace_id,
        span.span_id,
        span.parent_span_id,
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        process,
    )


def _of_sdk(span: _SdkSpan) -> Record | None:
    attributes = bytes(span.attributes)
    if _OWN not in attributes:
        return None
    return _record_of(
        _cached(_sdk_facts, attributes),
        span.name,
        span.context.trace_id.removeprefix("0x"),
        span.context.span_id,
        span.parent_id,
        _nanoseconds(span.start_time),
        _nanoseconds(span.end_time),
        process_of(span.resource),
    )


def _cached(facts_of: _lru_cache_wrapper[_Facts | None], attributes: bytes) -> _Facts | None:
    # The cache must stay small for any file.
    is_short = len(attributes) <= _LONGEST_KEPT
    return facts_of(attributes) if is_short else facts_of.__wrapped__(attributes)


# Clean requests have the same attributes again and again.
@lru_cache(maxsize=256)
def _otlp_facts(attributes: bytes) -> _Facts | None:
    return _facts_of(
        {
            pair.key: _value_of(pair.value)
            for pair in _otlp_attributes.decode(attributes) or ()
            if pair.key in _WANTED
        }
    )


@lru_cache(maxsize=256)
def _sdk_facts(attributes: bytes) -> _Facts | None:
    return _facts_of(_sdk_attributes.decode(attributes) or {})


def _facts_of(attributes: Mapping[str, Any]) -> _Facts | None:
    """The facts in attributes; None if they do not belong to a span of the guard.

    Raises:
        ValueError: A value that must be a number is none.
        TypeError: A value that must be text is none.
    """
    get = attributes.get
    outcome = get(OUTCOME)
    kind: type[Record] | None = None
    if outcome is not None:
        kind = Request
    elif WARMUP_PROBES in attributes:
        kind = Warmup
    elif PAUSE in attributes:
        kind = Resend
    elif PROBE_RESULT in attributes:
        kind = Probe
    elif JOB in attributes or ROUTE in attributes:
        # Questions have other names if the control plane is not asked over HTTP.
        kind = Question
    if kind is None:
        # Any span may have further labels, of the demo or of a newer guard.
        return None
    error, route = get(ERROR_TYPE), _text(get(ROUTE))
    facts = _Facts(
        kind,
        # A trainer without account and job is named by its base URL.
        _text(get(ACCOUNT)) if route is None else None,
        _text(get(JOB)) if route is None else route,
        get(VERDICT),
        _known(get(REASON), REASONS),
        None if error is None else clean(str(error)),
    )
    if kind is Request:
        facts.outcome = outcome if outcome in OUTCOMES else OTHER
        facts.count = _count(get(RETRIES, 0))
        wait = get(WARMUP_WAIT)
        facts.gate_wait = None if wait is None else max(0, round(float(wait) * 1e9))
    elif kind is Resend:
        facts.count = _count(get(RESEND_COUNT))
        facts.result = clean(str(get(STATUS_CODE) or error or ""))
    elif kind is Probe:
        facts.result = _known(get(PROBE_RESULT), _PROBE_RESULTS) or OTHER
    return facts


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST: Final = 1 << 64


def _nanoseconds(text: str) -> int:
    return (datetime.fromisoformat(text) - _EPOCH) // timedelta(microseconds=1) * 1000


def _record_of(
    facts: _Facts | None,
    name: str,
    trace_id: str,
    span_id: str,
    parent: str | None,
    start: int,
    end: int,
    process: Process,
) -> Record | None:
    """The record of a span; None if it is not one of the guard's.

    Raises:
        ValueError: An id or a time is invalid.
    """
    if facts is None:
        return None
    if not 0 < start < _LATEST or not 0 < end < _LATEST:
        raise ValueError("no time")
    # No negative durations, even if the clock was set back.
    end = max(start, end)
    account, job, kind = facts.account, facts.job, facts.kind
    if kind is Request:
        verdict, wait = facts.verdict, facts.gate_wait
        return Request(
            int(span_id, 16),
            # Shown only for a request that met a race.
            "" if verdict is None else clean(trace_id),
            clean(name),
            account,
            job,
            start,
            end,
            facts.outcome,
            facts.count,
            verdict == "routing_race",
            facts.reason,
            None if wait is None else min(wait, end - start),
            facts.error,
            process,
        )
    parent_id = int(parent, 16) if parent else None
    # A cancelled warmup has no number of probes.
    if kind is Warmup or name == _WARMUP_NAME:
        # A warmup that waited in a race has the label of the race too, but was not refused.
        is_refused = facts.verdict is not None and (
            facts.verdict != "routing_race" or facts.error is not None
        )
        return Warmup(int(span_id, 16), parent_id, account, job, start, end, is_refused, process)
    if kind is Resend:
        return Resend(parent_id, facts.count, start, end, facts.result)
    if kind is Probe:
        return Probe(parent_id, start, end, facts.result)
    return Question(parent_id, account, job, facts.reason, start, end)


def _text(value: Any) -> str | None:
    return None if value is None else clean(value)


def _count(value: Any) -> int:
    number = int(value)
    if not 0 <= number < _LATEST:
        raise ValueError("no count")
    return number


def _known(value: Any, words: tuple[str, ...]) -> str | None:
    if value is None:
        return None
    return value if value in words else OTHER
