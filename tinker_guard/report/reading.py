"""Files of exported spans, read one span at a time into typed records.

Reads the OpenTelemetry protocol's JSON, a document on each line or one over many lines, and what
the Python SDK's `ReadableSpan.to_json` writes; either may be compressed with gzip. What cannot be
read is counted and named by its place, never by its content, which may hold secrets.
"""

from __future__ import annotations

import gzip
import io
import json
import sys
import zlib
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple, TypeAlias

import ijson

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

OUTCOMES: Final = (
    "ok",
    "recovered",
    "not_found",
    "exhausted",
    "unverified",
    "error",
    "cancelled",
)
"""How a guarded request can have ended."""
REASONS: Final = (
    "job_running",
    "job_not_running",
    "job_missing",
    "trainer_answered",
    "control_plane_error",
    "control_plane_timeout",
    "no_control_plane",
)
"""Why a verdict can have been reached."""
OTHER: Final = "other"
"""What an outcome or a reason that this version does not know is counted as."""


class Request(NamedTuple):
    """One guarded request, resends included. Times are nanoseconds since the epoch, everywhere."""

    span_id: int
    trace_id: str
    name: str
    account: str | None
    """None on no trainer route."""
    job: str | None
    start: int
    end: int
    outcome: str
    resends: int
    is_race: bool
    """Whether the verdict on its last 404 was a routing race."""
    reason: str | None
    """Why that verdict was reached; None if it met no 404."""


class Resend(NamedTuple):
    """One resend of a request."""

    parent_id: int | None
    number: int
    """1 for the first one."""
    start: int


class Question(NamedTuple):
    """One question to the control plane."""

    parent_id: int | None
    account: str | None
    job: str | None
    reason: str | None
    """Why the verdict that its answer gave was reached; None if there was no answer."""


class Warmup(NamedTuple):
    """The wait before the first request on a route."""

    span_id: int
    parent_id: int | None
    account: str | None
    job: str | None
    start: int
    end: int
    is_refused: bool
    """Whether it ended with the 404 instead of an open gate."""


Record: TypeAlias = Request | Resend | Question | Warmup


class Broken(NamedTuple):
    """Something that could not be read."""

    file: str
    place: str
    """Such as `line 17`."""
    reason: str


_NAMED_AT_MOST: Final = 5


@dataclass(slots=True)
class Notes:
    """What was met while reading, beside the records."""

    files: list[str] = field(default_factory=list)
    """Their names, without folders."""
    bytes_read: int = 0
    """As stored, so before decompression."""
    guard_spans: int = 0
    other_spans: int = 0
    """Spans that say nothing of a 404 or a wait: exchanges, probes, other libraries'."""
    other_signals: int = 0
    """Lines of metrics or logs."""
    broken: int = 0
    """Lines and spans that could not be read."""
    first_broken: list[Broken] = field(default_factory=list)
    """The first few of them."""

    def add_broken(self, place: str, reason: str) -> None:
        """Count something that could not be read, in the file that was begun last."""
        self.broken += 1
        if len(self.first_broken) < _NAMED_AT_MOST:
            self.first_broken.append(Broken(self.files[-1], place, reason))


def read(
    paths: Iterable[Path], notes: Notes, on_bytes: Callable[[int], None] = lambda _: None
) -> Iterator[Record]:
    """Read files one after another, in memory that does not grow with them.

    Args:
        paths: The files; `-` is the standard input.
        notes: Filled in on the way.
        on_bytes: Called with the number of bytes of each chunk that is read, as stored.

    Yields:
        The guard's own spans, in the order in which they stand in the files.
    """

    def count(size: int) -> None:
        notes.bytes_read += size
        on_bytes(size)

    for path in paths:
        name = str(path)
        notes.files.append("standard input" if name == "-" else clean(path.name))
        try:
            with _opened(name, count) as stream:
                yield from _read_stream(stream, notes)
        except (OSError, EOFError, zlib.error) as error:
            what = error.strerror if isinstance(error, OSError) else None
            notes.add_broken(
                "the rest", f"cannot be read: {what or 'the compressed data is damaged or ends'}"
            )


def clean(text: str) -> str:
    """Make text of unknown origin fit to be shown: of bounded length, nothing that acts."""
    text = text[:_LONGEST_TEXT]
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


_LONGEST_TEXT: Final = 160


# -- streams -------------------------------------------------------------------------------------

_CHUNK: Final = 1 << 20
_LONGEST_LINE: Final = 16 << 20
_SNIFFED_LINES: Final = 64


class _Counted(io.RawIOBase):
    def __init__(self, raw: BinaryIO, on_bytes: Callable[[int], None]) -> None:
        self._raw = raw
        self._on_bytes = on_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = self._raw.read(len(buffer))
        buffer[: len(chunk)] = chunk
        self._on_bytes(len(chunk))
        return len(chunk)


@contextmanager
def _opened(name: str, on_bytes: Callable[[int], None]) -> Iterator[io.BufferedIOBase]:
    with nullcontext(sys.stdin.buffer) if name == "-" else Path(name).open("rb") as raw:
        stream = io.BufferedReader(_Counted(raw, on_bytes), _CHUNK)
        is_gzip = stream.peek(2)[:2] == b"\x1f\x8b"
        yield gzip.GzipFile(fileobj=stream) if is_gzip else stream


def _read_stream(stream: io.BufferedIOBase, notes: Notes) -> Iterator[Record]:
    """Find out whether each line is a document, then read on in that way."""
    numbered = enumerate(_lines(stream), start=1)
    held: list[tuple[int, bytes]] = []
    head = b""
    has_lines = False
    for number, line in numbered:
        held.append((number, line))
        head += line
        has_lines = _is_document(line)
        if has_lines or len(held) == _SNIFFED_LINES or len(head) > _LONGEST_LINE:
            break
    is_one_line = len(held) == 1 and len(head) <= _LONGEST_LINE
    if not has_lines and not is_one_line and head.lstrip()[:1] in (b"{", b"["):
        yield from _read_documents(_Joined(head, stream), notes, head)
        return
    for number, line in chain(held, numbered):
        yield from _read_line(number, line, notes)


def _lines(stream: io.BufferedIOBase) -> Iterator[bytes]:
    """Lines, one by one; of one that is too long, its beginning, longer than allowed."""
    while line := stream.readline(_LONGEST_LINE + 1):
        yield line
        while len(line) > _LONGEST_LINE and not line.endswith(b"\n"):
            line = stream.readline(_LONGEST_LINE + 1)


def _is_document(line: bytes) -> bool:
    """Whether a line by itself holds spans, or another signal of OpenTelemetry."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, dict) and not _KNOWN_KEYS.isdisjoint(first)


_SDK_KEY: Final = "context"
_OTHER_SIGNALS: Final = frozenset({"resourceMetrics", "resourceLogs", "resourceProfiles"})
_KNOWN_KEYS: Final = _OTHER_SIGNALS | {"resourceSpans", _SDK_KEY}


def _read_line(number: int, line: bytes, notes: Notes) -> list[Record]:
    if not line.strip():
        return []
    place = f"line {number}"
    if len(line) > _LONGEST_LINE:
        notes.add_broken(place, f"longer than {_LONGEST_LINE >> 20} MiB")
        return []
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
                    span
                    for resource in item["resourceSpans"] or ()
                    for scope in resource.get("scopeSpans") or ()
                    for span in scope.get("spans") or ()
                ]
            except (AttributeError, TypeError):
                notes.add_broken(place, "its resourceSpans are not built as OTLP says")
                continue
            _take(records, spans, _facts_of_otlp, place, notes)
        elif _SDK_KEY in keys:
            _take(records, [item], _facts_of_sdk, place, notes)
        elif not _OTHER_SIGNALS.isdisjoint(keys):
            notes.other_signals += 1
        else:
            notes.add_broken(place, "JSON, but no spans")
    return records


class _Joined:
    """What has been read of a stream already, followed by the rest of it."""

    def __init__(self, head: bytes, rest: io.BufferedIOBase) -> None:
        self._head = head
        self._rest = rest

    def read(self, size: int) -> bytes:
        if self._head:
            chunk, self._head = self._head[:size], self._head[size:]
            return chunk
        return self._rest.read(size)


def _read_documents(stream: _Joined, notes: Notes, head: bytes) -> Iterator[Record]:
    """Read what goes over many lines: one document of OTLP, or spans of the SDK."""
    is_otlp = b'"resourceSpans"' in head
    prefix = "item" if head.lstrip().startswith(b"[") else ""
    if is_otlp:
        prefix = f"{prefix}.resourceSpans.item.scopeSpans.item.spans.item".lstrip(".")
    facts_of = _facts_of_otlp if is_otlp else _facts_of_sdk
    number = 0
    try:
        for number, span in enumerate(
            ijson.items(stream, prefix, multiple_values=True, use_float=True), start=1
        ):
            records: list[Record] = []
            _take(records, [span], facts_of, f"span {number}", notes)
            yield from records
    except (ijson.JSONError, ValueError):
        notes.add_broken(f"after span {number}", "not JSON from there on, or cut off")


# -- spans ---------------------------------------------------------------------------------------

_OUTCOME: Final = "tinker_guard.outcome"
_RETRIES: Final = "tinker_guard.retries"
_VERDICT: Final = "tinker_guard.verdict"
_REASON: Final = "tinker_guard.verdict.reason"
_ACCOUNT: Final = "tinker_guard.account"
_JOB: Final = "tinker_guard.job"
_PAUSE: Final = "tinker_guard.pause"
_RESEND_COUNT: Final = "http.request.resend_count"
_PROBES: Final = "tinker_guard.warmup.probes"
_WANTED: Final = frozenset(
    {_OUTCOME, _RETRIES, _VERDICT, _REASON, _ACCOUNT, _JOB, _PAUSE, _RESEND_COUNT, _PROBES}
)
_WARMUP_NAME: Final = "tinker_guard.warmup"


class _Facts(NamedTuple):
    """What is wanted of a span, whatever form it came in."""

    attributes: Mapping[str, Any]
    name: str
    trace_id: str
    span_id: str
    parent_id: str | None
    start: int
    end: int


def _take(
    records: list[Record],
    spans: Iterable[Any],
    facts_of: Callable[[Any], _Facts | None],
    place: str,
    notes: Notes,
) -> None:
    for span in spans:
        try:
            facts = facts_of(span)
            record = None if facts is None else _record_of(facts)
        except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError):
            notes.add_broken(place, "a span without an id or a time, or with one that is none")
            continue
        if record is None:
            notes.other_spans += 1
        else:
            notes.guard_spans += 1
            records.append(record)


def _facts_of_otlp(span: Any) -> _Facts | None:
    attributes = {}
    for pair in span.get("attributes") or ():
        key = pair["key"]
        if key in _WANTED:
            # A union of which one member is set: {"stringValue": "..."}.
            (attributes[key],) = pair["value"].values()
    if not attributes:
        return None
    return _Facts(
        attributes,
        span["name"],
        span["traceId"],
        span["spanId"],
        span.get("parentSpanId"),
        int(span["startTimeUnixNano"]),
        int(span["endTimeUnixNano"]),
    )


def _facts_of_sdk(span: Any) -> _Facts | None:
    attributes = span["attributes"] or {}
    if _WANTED.isdisjoint(attributes):
        return None
    context = span["context"]
    return _Facts(
        attributes,
        span["name"],
        context["trace_id"].removeprefix("0x"),
        context["span_id"],
        span.get("parent_id"),
        _nanoseconds(span["start_time"]),
        _nanoseconds(span["end_time"]),
    )


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST: Final = 1 << 64


def _nanoseconds(text: str) -> int:
    return (datetime.fromisoformat(text) - _EPOCH) // timedelta(microseconds=1) * 1000


def _record_of(facts: _Facts) -> Record | None:
    """The record that a span stands for; None if it is not one of the guard's."""
    attributes = facts.attributes
    is_request = _OUTCOME in attributes
    # One that was cancelled has no number of probes.
    is_warmup = facts.name == _WARMUP_NAME or _PROBES in attributes
    is_resend = _PAUSE in attributes
    # Questions go by other names where the control plane is not asked over HTTP.
    is_question = _JOB in attributes
    if not (is_request or is_warmup or is_resend or is_question):
        # Any span may carry further labels, those of a demo or of a newer guard.
        return None
    start = facts.start
    if not 0 < start < _LATEST or not 0 < facts.end < _LATEST:
        raise ValueError("no time")
    # Clocks that are set back must not give negative durations.
    end = max(start, facts.end)
    parent_id = int(facts.parent_id, 16) if facts.parent_id else None
    if is_resend and not is_request:
        return Resend(parent_id, _count(attributes[_RESEND_COUNT]), start)
    account, job = _text(attributes.get(_ACCOUNT)), _text(attributes.get(_JOB))
    reason = _known(attributes.get(_REASON), REASONS)
    if is_request:
        return Request(
            int(facts.span_id, 16),
            clean(facts.trace_id),
            clean(facts.name),
            account,
            job,
            start,
            end,
            _known(attributes[_OUTCOME], OUTCOMES) or OTHER,
            _count(attributes.get(_RETRIES, 0)),
            attributes.get(_VERDICT) == "routing_race",
            reason,
        )
    if is_warmup:
        is_refused = _VERDICT in attributes
        return Warmup(int(facts.span_id, 16), parent_id, account, job, start, end, is_refused)
    return Question(parent_id, account, job, reason)


def _text(value: Any) -> str | None:
    return None if value is None else clean(value)


def _count(value: Any) -> int:
    # OTLP writes integers as strings.
    number = int(value)
    if not 0 <= number < _LATEST:
        raise ValueError("no count")
    return number


def _known(value: Any, words: tuple[str, ...]) -> str | None:
    if value is None:
        return None
    return value if value in words else OTHER
