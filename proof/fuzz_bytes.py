"""Feeds bytes from strangers to what reads them, led by coverage (atheris).

    python proof/fuzz_bytes.py TARGET [libFuzzer options, such as -max_total_time=60]

tests/proof/test_fuzz.py draws inputs that look right but for a detail; this one is led by coverage.
An input that breaks a target is written to a file, and is tried again by
`python proof/fuzz_bytes.py TARGET FILE`.
"""

from __future__ import annotations

import io
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import atheris

# What finds its way by comparing bytes is followed into the standard library too.
with atheris.instrument_imports(include=["tinker_guard", "json", "email", "httpx"]):
    import httpx

    from tinker_guard.cli.doctor.base_url import check_base_url
    from tinker_guard.cli.report import reading, tally
    from tinker_guard.cli.report.machine import as_document
    from tinker_guard.cli.report.page import page_of
    from tinker_guard.control_plane.fireworks import state_in
    from tinker_guard.control_plane.protocol import ControlPlaneError, is_state_name
    from tinker_guard.control_plane.question import document_in
    from tinker_guard.core.routes import RouteTable
    from tinker_guard.policy import pacing
    from tinker_guard.policy.answer import Answer
    from tinker_guard.policy.codings import CodingError, decoded
    from tinker_guard.policy.gateways import gateway_of
    from tinker_guard.policy.job_missing import is_control_planes_404
    from tinker_guard.policy.not_found import is_from_trainer, source_of
    from tinker_guard.settings import GuardSettings

if TYPE_CHECKING:
    from collections.abc import Callable

URL: Final = httpx.URL("https://gateway.test/v1/accounts/acc/rlorTrainerJobs/job-1")
JSON: Final = {"content-type": "application/json"}
PREFIX: Final = "https://gateway.test/training/v1/rlorTrainerJobs/"


def not_found(data: bytes) -> None:
    """An answer's body, with any content type and coding."""
    kind, coding, body = (*data.split(b"\n", 2), b"", b"")[:3]
    given = {"content-type": kind.decode("latin-1"), "content-encoding": coding.decode("latin-1")}
    likely = [{"content-type": "application/json", "content-encoding": known} for known in _KNOWN]
    for headers, content in ((given, body), *((headers, data) for headers in likely)):
        source_of(Answer(headers, content))
        gateway_of(Answer(headers, content))
        is_from_trainer(Answer(headers, content, status_code=200))
        is_control_planes_404(Answer(headers, content))


_KNOWN: Final = ("", "gzip", "deflate", "zstd", "gzip, gzip")


def codings(data: bytes) -> None:
    """A body in its coding."""
    for known in _KNOWN:
        with suppress(CodingError):
            assert len(decoded(known, data, 100)) <= 100


def retry_after(data: bytes) -> None:
    """A `Retry-After`, and a `Date` beside it."""
    value, _, date = data.decode("latin-1").partition("\n")
    for name in ("retry-after", "retry-after-ms"):
        headers = {name: value, "date": date} if date else {name: value}
        seconds = pacing.retry_after(headers, now=1_790_000_000.0)
        assert 0.0 <= seconds < float("inf")


def control_plane(data: bytes) -> None:
    """A control plane's answer: its status, then its body."""
    status = 100 + int.from_bytes(data[:2].ljust(2, b"\0"), "big") % 500
    for status_code in (status, 200):
        try:
            answer = Answer(httpx.Headers(JSON), data[2:], status_code=status_code)
            state = state_in(URL, document_in(URL, answer))
        except ControlPlaneError as error:
            assert "gateway.test" in str(error)  # noqa: PT017 - no pytest here
        else:
            assert state is None if status_code == 404 else is_state_name(state)


def route(data: bytes) -> None:
    """A URL: one that is found to be a route is asked about at its own place."""
    for text in (data.decode("utf-8", "replace"), PREFIX + data.decode("utf-8", "replace")):
        try:
            url = httpx.URL(text)
        except (httpx.InvalidURL, ValueError):
            continue
        list(check_base_url(text, GuardSettings()))
        state = RouteTable().find(url)
        if state is None:
            continue
        there = httpx.URL(state.route.url + "/")
        # httpx escapes what no host can hold, in capitals or not.
        assert there.raw_host == url.raw_host.lower()
        assert (there.scheme, there.port) == (url.scheme, url.port)
        assert url.raw_path.startswith(there.raw_path)
        assert there.path.split("/")[4:6] == [state.route.account, state.route.job]
        assert not {state.route.account, state.route.job} & {"", ".", ".."}


def report(data: bytes) -> None:
    """A file of spans."""
    notes, sums = reading.Notes(files=["spans.jsonl"]), tally.Tally()
    for record in reading._read_stream(io.BytesIO(data), notes):  # type: ignore[arg-type]
        sums.add(record)
    made = sums.report()
    as_document(made, notes)
    page_of(made, notes)


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    target.__name__: target
    for target in (not_found, codings, retry_after, control_plane, route, report)
}

SEEDS: Final[dict[str, tuple[bytes, ...]]] = {
    "not_found": (
        b'application/json\n\n{"error": {"code": "NOT_FOUND", "param": "jobId"}}',
        b'application/json\ngzip\n{"detail": "Not Found"}',
    ),
    "codings": (b"\x1f\x8b\x08\x00", b"x\x9c\x03\x00", b"\x28\xb5\x2f\xfd\x20\x00\x01\x00\x00"),
    "retry_after": (b"3", b"Wed, 21 Oct 2026 07:28:00 GMT\nWed Oct 21 07:27:00 2026", b"1e3"),
    "control_plane": (b'\x00\x64{"state": "JOB_STATE_RUNNING"}',),
    "route": (PREFIX.encode() + b"acc/job-1/api/v1/x", b"acc/job-1/", b"https://[::1]:8/%2e%2e/"),
    "report": (
        b'{"resourceSpans": [{"scopeSpans": [{"scope": {"name": "tinker_guard"}, "spans": [{"name":'
        b' "POST", "traceId": "1", "spanId": "2", "startTimeUnixNano": "1", "endTimeUnixNano": "9",'
        b' "attributes": [{"key": "tinker_guard.outcome", "value": {"stringValue": "ok"}}]}]}]}]}',
    ),
}


def main(arguments: list[str]) -> None:
    """Fuzz one target until libFuzzer's options end it."""
    name, *options = arguments
    is_one_file = any(not option.startswith("-") for option in options)
    with TemporaryDirectory() as corpus:
        for number, seed in enumerate(SEEDS[name]):
            Path(corpus, str(number)).write_bytes(seed)
        given = options if is_one_file else [*options, corpus]
        atheris.Setup([sys.argv[0], *given], lambda data: TARGETS[name](bytes(data)))
        atheris.Fuzz()


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        raise SystemExit(f"{__doc__}\nTARGET is one of {', '.join(TARGETS)}.")
    main(sys.argv[1:])
