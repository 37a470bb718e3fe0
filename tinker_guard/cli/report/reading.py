"""Files of exported spans, read one span at a time into typed records.

Reads the OpenTelemetry protocol's JSON, a document on each line or one over many lines, and the
output of the Python SDK's `ReadableSpan.to_json`; both may be compressed with gzip. Unreadable
parts are counted and named by their place, never by their content, which may hold secrets.
"""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple

import ijson

from tinker_guard.cli.report.decoding import (
    decode_line,
    is_document,
    process_of_value,
    take_otlp,
    take_sdk,
)
from tinker_guard.cli.report.records import UNKNOWN_PROCESS, clean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tinker_guard.cli.report.records import Process, Record


class Broken(NamedTuple):
    """An unreadable part."""

    file: str
    place: str
    """Such as `line 17`."""
    reason: str


_NAMED_AT_MOST: Final = 5


@dataclass(slots=True)
class Notes:
    """Observations while reading, besides the records."""

    files: list[str] = field(default_factory=list)
    """The names of the files, without folders."""
    bytes_read: int = 0
    """Bytes as stored, before decompression."""
    guard_spans: int = 0
    other_spans: int = 0
    """Spans without information on a 404 or a wait: exchanges, probes, other libraries' spans."""
    other_signals: int = 0
    """Lines of metrics or logs."""
    broken: int = 0
    """Lines and spans that could not be read."""
    first_broken: list[Broken] = field(default_factory=list)
    """The first few of them."""

    def add_broken(self, place: str, reason: str) -> None:
        """Count an unreadable part, in the file that was begun last."""
        self.broken += 1
        if len(self.first_broken) < _NAMED_AT_MOST:
            self.first_broken.append(Broken(self.files[-1], place, reason))


def read(
    paths: Iterable[Path], notes: Notes, on_bytes: Callable[[int], None] = lambda _: None
) -> Iterator[Record]:
    """Read files one after another, in bounded memory.

    Args:
        paths: The files; `-` is the standard input.
        notes: Updated while reading.
        on_bytes: Called with the number of bytes of each chunk, as stored.

    Yields:
        The guard's own spans, in the order of the files.
    """

    def count(size: int) -> None:
        notes.bytes_read += size
        on_bytes(size)

    seen: set[tuple[int, int]] = set()
    for path in paths:
        name = str(path)
        if _is_again(path, seen):
            continue
        notes.files.append("standard input" if name == "-" else clean(path.name))
        try:
            with _opened(name, count) as stream:
                yield from _read_stream(stream, notes)
        except (OSError, EOFError, zlib.error) as error:
            what = error.strerror if isinstance(error, OSError) else None
            notes.add_broken(
                "the rest", f"cannot be read: {what or 'the compressed data is damaged or ends'}"
            )


def _is_again(path: Path, seen: set[tuple[int, int]]) -> bool:
    """Whether a file was read already, under this name or another, as by `run.jsonl *.jsonl`."""
    try:
        found = path.stat()
    except OSError:
        return False
    place = found.st_dev, found.st_ino
    is_again = S_ISREG(found.st_mode) and place in seen
    seen.add(place)
    return is_again


# -- streams -------------------------------------------------------------------------------------

_CHUNK: Final = 1 << 20
LONGEST_LINE: Final = 16 << 20
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
    """Detect whether each line is a document, then read the rest accordingly."""
    numbered = enumerate(_lines(stream), start=1)
    held: list[tuple[int, bytes]] = []
    head = b""
    has_lines = False
    for number, line in numbered:
        held.append((number, line))
        head += line
        has_lines = is_document(line)
        if has_lines or len(held) == _SNIFFED_LINES or len(head) > LONGEST_LINE:
            break
    is_one_line = len(held) == 1 and len(head) <= LONGEST_LINE
    if not has_lines and not is_one_line and head.lstrip()[:1] in (b"{", b"["):
        yield from _read_documents(_Joined(head, stream), notes, head)
        return
    for number, line in chain(held, numbered):
        yield from _read_line(number, line, notes)


def _lines(stream: io.BufferedIOBase) -> Iterator[bytes]:
    """Lines, one by one; of a too long line only its beginning, still longer than allowed."""
    while line := stream.readline(LONGEST_LINE + 1):
        yield line
        while len(line) > LONGEST_LINE and not line.endswith(b"\n"):
            line = stream.readline(LONGEST_LINE + 1)


def _read_line(number: int, line: bytes, notes: Notes) -> list[Record]:
    if not line.strip():
        return []
    if len(line) > LONGEST_LINE:
        notes.add_broken(f"line {number}", f"longer than {LONGEST_LINE >> 20} MiB")
        return []
    return decode_line(line, f"line {number}", notes)


class _Joined:
    """The part of a stream that has been read already, followed by the rest."""

    def __init__(self, head: bytes, rest: io.BufferedIOBase) -> None:
        self._head = head
        self._rest = rest

    def read(self, size: int) -> bytes:
        if self._head:
            chunk, self._head = self._head[:size], self._head[size:]
            return chunk
        return self._rest.read(size)


def _read_documents(stream: _Joined, notes: Notes, head: bytes) -> Iterator[Record]:
    """Read documents over many lines: one of OTLP, or spans of the SDK."""
    is_otlp = b'"resourceSpans"' in head
    item = "item" if head.lstrip().startswith(b"[") else ""
    number = 0
    records: list[Record] = []
    try:
        if is_otlp:
            for number, (span, process) in enumerate(_otlp_spans(stream, item), start=1):
                take_otlp(span, process, f"span {number}", notes, records)
                yield from records
                records.clear()
        else:
            spans = ijson.items(stream, item, multiple_values=True, use_float=True)
            for number, span in enumerate(spans, start=1):
                take_sdk(span, f"span {number}", notes, records)
                yield from records
                records.clear()
    except (ijson.JSONError, ValueError):
        notes.add_broken(f"after span {number}", "not JSON from there on, or cut off")


def _otlp_spans(stream: _Joined, item: str) -> Iterator[tuple[Any, Process]]:
    """The spans of a document, each with the process of its resource."""
    resources = f"{item}.resourceSpans.item".lstrip(".")
    wanted = (f"{resources}.resource", f"{resources}.scopeSpans.item.spans.item")
    process = UNKNOWN_PROCESS
    builder = None
    for prefix, event, value in ijson.parse(stream, multiple_values=True, use_float=True):
        if builder is None:
            if event != "start_map" or not prefix.startswith(resources):
                continue
            if prefix == resources:
                process = UNKNOWN_PROCESS
            if prefix not in wanted:
                continue
            builder = ijson.ObjectBuilder()
        builder.event(event, value)
        if event != "end_map" or prefix not in wanted:
            continue
        built, builder = builder.value, None
        if prefix == wanted[0]:
            process = process_of_value(built)
        else:
            yield built, process
