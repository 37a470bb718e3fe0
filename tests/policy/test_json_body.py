"""Coded bodies of answers, within bounds."""

from __future__ import annotations

import gzip
import zlib
from typing import TYPE_CHECKING

import httpx
import pytest
import zstandard

from tests.policy.answers import CONTROL_PLANES, GATEWAYS, JSON, SERVERS
from tinker_guard.policy.answer import Answer
from tinker_guard.policy.job_missing import is_control_planes_404
from tinker_guard.policy.json_body import BODY_LIMIT, media_types
from tinker_guard.policy.not_found import Source, is_from_trainer, source_of

if TYPE_CHECKING:
    from collections.abc import Callable


CODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda body: gzip.compress(body, mtime=0),
    "deflate": zlib.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "gzip, gzip": lambda body: gzip.compress(gzip.compress(body, mtime=0), mtime=0),
}


@pytest.mark.parametrize(("coding", "encode"), CODERS.items(), ids=[*CODERS])
def test_a_coded_body_says_the_same(coding: str, encode: Callable[[bytes], bytes]) -> None:
    for case in (*GATEWAYS.values(), *SERVERS.values(), *CONTROL_PLANES.values()):
        headers, wire = case.headers(content_encoding=coding), encode(case.wire)
        assert source_of(Answer(headers, wire)) is case.source
        assert is_control_planes_404(Answer(headers, wire)) is case.is_control_planes
        # Undone below: the header still stands there.
        assert source_of(Answer(headers, case.wire, is_decoded=True)) is case.source
        is_control_planes = is_control_planes_404(Answer(headers, case.wire, is_decoded=True))
        assert is_control_planes is case.is_control_planes
        is_trainers = is_from_trainer(Answer(headers, case.wire, is_decoded=True))
        assert is_trainers is (case.source is Source.TRAINER)
        if case.source is not Source.UNKNOWN:
            assert source_of(Answer(headers, case.wire)) is Source.UNKNOWN
            assert source_of(Answer(headers, wire[:20])) is Source.UNKNOWN
    headers = httpx.Headers({"content-type": JSON, "content-encoding": coding})
    assert is_from_trainer(Answer(headers, encode(b'{"a": 1}'), status_code=200))
    assert is_from_trainer(Answer(headers, b'{"a": 1}', status_code=200, is_decoded=True))


@pytest.mark.parametrize("coding", ["br", "compress", "gzip", "x, gzip"])
def test_a_body_that_cannot_be_decoded_shows_nothing(coding: str) -> None:
    case = SERVERS["fastapi"]
    assert source_of(Answer(case.headers(content_encoding=coding), case.wire)) is Source.UNKNOWN


@pytest.mark.parametrize(("coding", "encode"), CODERS.items(), ids=[*CODERS])
def test_a_bomb_shows_nothing(coding: str, encode: Callable[[bytes], bytes]) -> None:
    for size in (BODY_LIMIT, 2**26):
        wire = encode(b'{"detail": "' + b"x" * size + b'"}')
        headers = SERVERS["fastapi"].headers(content_encoding=coding)
        assert source_of(Answer(headers, wire)) is Source.UNKNOWN
        assert is_control_planes_404(Answer(headers, wire)) is False


@pytest.mark.parametrize("coding", ["identity", "gzip"])
def test_the_limit_is_that_of_the_decoded_body_too(coding: str) -> None:
    body = b'{"detail": "' + b"x" * 100 + b'"}'
    headers = SERVERS["fastapi"].headers(content_encoding=coding)
    wire = gzip.compress(body, mtime=0) if coding == "gzip" else body
    for limit, source in ((len(body), Source.TRAINER), (len(body) - 1, Source.UNKNOWN)):
        assert source_of(Answer(headers, wire, limit=limit)) is source
        assert is_from_trainer(Answer(headers, wire, limit=limit)) is (source is Source.TRAINER)


@pytest.mark.parametrize("value", ["", ",", " ; charset=utf-8", ", ,"])
def test_a_content_type_that_names_nothing(value: str) -> None:
    assert media_types(httpx.Headers({"content-type": value})) == set()


def test_an_answer_shows_neither_header_nor_body() -> None:
    """Some loggers and test runners write tracebacks with the values of variables."""
    answer = Answer(httpx.Headers({"x-key": "geheim"}), b"geheim", status_code=403)
    assert repr(answer) == "Answer(403, 6 bytes)"


def test_a_body_is_decoded_and_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who wrote it, and by which gateway it may be written, are told from one reading."""
    read = []

    def count(*given: object, **more: object) -> object:
        read.append(given)
        return {"detail": "Model not found"}

    monkeypatch.setattr("tinker_guard.policy.answer.read_json", count)
    answer = Answer(httpx.Headers({"content-type": JSON}), b"x")
    assert source_of(answer) is Source.TRAINER
    assert is_control_planes_404(answer) is False
    assert is_from_trainer(answer) is True
    assert len(read) == 1
