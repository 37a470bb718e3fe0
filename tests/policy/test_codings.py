from __future__ import annotations

import gzip
import random
import sys
import tracemalloc
import zlib
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from testkit.cli import python
from tinker_guard.policy.codings import CHAIN_LIMIT, CodingError, decoded

if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT = 64 * 1024
DOCUMENT = b'{"detail": "Checkpoint tinker://run-17/weights/000400 not found"}'
RANDOM = random.Random(1).randbytes(20_000)


def gzipped(body: bytes) -> bytes:
    # Without a stamp: the same bytes in every run.
    return gzip.compress(body, mtime=0)


def raw_deflated(body: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(body) + compressor.flush()


def zstd(body: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(body)


def zstd_stream(body: bytes) -> bytes:
    """As a server writes it that does not know the length before."""
    compressor = zstandard.ZstdCompressor().compressobj()
    return compressor.compress(body) + compressor.flush()


ENCODERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "none": ("", bytes),
    "identity": ("identity", bytes),
    "of-no-coding": ("none, utf-8, AWS-Chunked", bytes),
    "gzip": ("gzip", gzipped),
    "x-gzip": ("x-gzip", gzipped),
    "deflate": ("deflate", zlib.compress),
    "deflate-raw": ("deflate", raw_deflated),
    "zstd": ("zstd", zstd),
    "zstd-stream": ("zstd", zstd_stream),
    "case": ("GZip", gzipped),
    "spaces": ("  deflate\t", zlib.compress),
    "empty-members": (", gzip,, ", gzipped),
    "gzip-gzip": ("gzip, gzip", lambda body: gzipped(gzipped(body))),
    "deflate-then-zstd": ("deflate,zstd", lambda body: zstd(zlib.compress(body))),
    "zstd-then-x-gzip": ("ZSTD , X-GZIP", lambda body: gzipped(zstd(body))),
    "with-identity": ("identity, gzip, identity", gzipped),
    "four": (
        "gzip, deflate, gzip, zstd",
        lambda body: zstd(gzipped(zlib.compress(gzipped(body)))),
    ),
}
coded = pytest.mark.parametrize(("name", "encode"), ENCODERS.values(), ids=[*ENCODERS])


@coded
@pytest.mark.parametrize("body", [DOCUMENT, b"", RANDOM], ids=["document", "empty", "random"])
def test_every_coding(name: str, encode: Callable[[bytes], bytes], body: bytes) -> None:
    assert decoded(name, encode(body), LIMIT) == body
    assert decoded(name, encode(body), 7) == body[:7]
    assert decoded(name, encode(body), 0) == b""


@coded
def test_the_beginning_of_a_body_gives_what_it_holds(
    name: str, encode: Callable[[bytes], bytes]
) -> None:
    wire = encode(RANDOM)
    for length in (*range(40), len(wire) // 2, len(wire) - 1):
        assert RANDOM.startswith(decoded(name, wire[:length], LIMIT))
    # Of what is not compressible, nearly all can be had.
    assert len(decoded(name, wire[:-100], LIMIT)) > len(RANDOM) - 1000


@pytest.mark.parametrize(
    ("name", "wire", "body"),
    [
        pytest.param("gzip", gzipped(b"one") + gzipped(b"two"), b"onetwo", id="gzip-members"),
        pytest.param("gzip", gzipped(b"one") + b"\0" * 9, b"one", id="gzip-padding"),
        pytest.param("gzip", gzipped(b"") * 5000 + gzipped(b"x"), b"", id="gzip-too-many"),
        pytest.param("deflate", zlib.compress(b"one") + b"rest", b"one", id="deflate-rest"),
        pytest.param("zstd", zstd(b"one") + zstd(b"two"), b"onetwo", id="zstd-frames"),
        pytest.param(
            "zstd", b"\x50\x2a\x4d\x18\2\0\0\0ab" + zstd(b"x"), b"x", id="zstd-skippable-frame"
        ),
    ],
)
def test_streams_in_a_row(name: str, wire: bytes, body: bytes) -> None:
    assert decoded(name, wire, LIMIT) == body


@pytest.mark.parametrize(
    ("name", "wire"),
    [
        pytest.param("compress", DOCUMENT, id="unknown"),
        pytest.param("x", b"", id="unknown-empty"),
        pytest.param("gzip, x", gzipped(DOCUMENT), id="unknown-on-top"),
        pytest.param("gzip;q=1", gzipped(DOCUMENT), id="parameter"),
        pytest.param("gzip", DOCUMENT, id="not-gzip"),
        pytest.param("gzip", zlib.compress(DOCUMENT), id="deflate-as-gzip"),
        pytest.param("deflate", gzipped(DOCUMENT), id="gzip-as-deflate"),
        pytest.param("gzip", gzipped(DOCUMENT)[:-8] + bytes(8), id="gzip-checksum"),
        pytest.param("gzip", gzipped(b"x") + b"\x1f\x8b" + DOCUMENT, id="gzip-broken-member"),
        pytest.param("deflate", DOCUMENT, id="not-deflate"),
        pytest.param("zstd", DOCUMENT, id="not-zstd"),
        pytest.param("zstd", zstd(DOCUMENT) + DOCUMENT, id="zstd-rest"),
        pytest.param("gzip, gzip", gzipped(DOCUMENT), id="once-instead-of-twice"),
        pytest.param("gzip," * (CHAIN_LIMIT + 1), gzipped(DOCUMENT), id="too-many"),
        pytest.param("x" * 1_000_000, DOCUMENT, id="long-name"),
    ],
)
def test_what_cannot_be_decoded(name: str, wire: bytes) -> None:
    with pytest.raises(CodingError) as raised:
        decoded(name, wire, LIMIT)
    # Neither a header nor a body may reach a log line.
    reasons = {
        f"more than {CHAIN_LIMIT} codings",
        "an unknown coding",
        "the body is not in its coding",
    }
    assert str(raised.value) in reasons


def test_a_limit_of_one_byte() -> None:
    assert decoded("gzip", gzipped(b"abc"), 1) == b"a"


ZEROS = bytes(2**26)
# Each takes long, and this is done at each collection.
GZIPPED, DEFLATED, OF_ZSTD = gzipped(ZEROS), zlib.compress(ZEROS), zstd(ZEROS)
BOMBS = {
    "gzip": ("gzip", GZIPPED),
    "deflate": ("deflate", DEFLATED),
    # Without zlib's header and checksum.
    "deflate-raw": ("deflate", DEFLATED[2:-4]),
    "zstd": ("zstd", OF_ZSTD),
    "zstd-stream": ("zstd", zstd_stream(ZEROS)),
    "gzip-gzip": ("gzip, gzip", gzipped(GZIPPED)),
    "zstd-then-gzip": ("zstd, gzip", gzipped(OF_ZSTD)),
    # The outermost layer is the bomb: what it gives is never all there.
    "gzip-of-zeros-then-deflate": ("gzip, deflate", DEFLATED),
    "four": ("gzip, gzip, gzip, gzip", gzipped(gzipped(gzipped(GZIPPED)))),
    "gzip-members": ("gzip", gzipped(bytes(2**20)) * 64),
    "zstd-frames": ("zstd", zstd(bytes(2**20)) * 64),
    "gzip-empty-members": ("gzip", gzipped(b"") * 50_000),
    "zstd-empty-frames": ("zstd", zstd(b"") * 100_000),
}


@pytest.mark.parametrize(("name", "wire"), BOMBS.values(), ids=[*BOMBS])
def test_a_bomb_takes_a_bounded_amount_of_memory(name: str, wire: bytes) -> None:
    tracemalloc.start()
    try:
        result = decoded(name, wire, LIMIT)
    except CodingError:
        result = b""
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert len(result) <= LIMIT
    assert peak < 6 * LIMIT + len(wire)


def test_a_zstd_window_is_bounded() -> None:
    """A frame may ask for a window of gigabytes before its first byte; RFC 9659 allows 8 MiB."""

    def encode(window_log: int) -> bytes:
        parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=window_log)
        compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        return compressor.compress(b"x") + compressor.flush()

    assert decoded("zstd", encode(23), LIMIT) == b"x"
    for window_log in (24, 27):
        with pytest.raises(CodingError):
            decoded("zstd", encode(window_log), LIMIT)


@settings(derandomize=True, database=None, deadline=None, max_examples=300)
@given(
    st.one_of(
        st.lists(st.sampled_from(["gzip", "x-gzip", "deflate", "zstd", "identity", "br"])).map(
            ", ".join
        ),
        st.text(max_size=30),
    ),
    st.one_of(
        st.binary(max_size=300),
        st.builds(
            lambda wire, start, end, middle: wire[:start] + middle + wire[start + end :],
            st.sampled_from(
                [encode(RANDOM[:500]) for _, encode in ENCODERS.values()]
                + [wire for _, wire in BOMBS.values()]
            ),
            st.integers(0, 600),
            st.integers(0, 9),
            st.binary(max_size=4),
        ),
    ),
    st.integers(-1, 2000),
)
def test_anything_gives_few_bytes_or_one_error(name: str, wire: bytes, limit: int) -> None:
    try:
        assert len(decoded(name, wire, limit)) <= max(limit, 0)
    except CodingError:
        return


# -- br --------------------------------------------------------------------------------------------


class _OldDecompressor:
    """As brotli before 1.2.0: it has no limit. Each byte stands for as many as it says."""

    fed: list[bytes]

    def process(self, data: bytes) -> bytes:
        self.fed.append(data)
        if 255 in data:
            raise RuntimeError("brotli.error")
        return b"".join(b"x" * byte for byte in data)


class _NewDecompressor(_OldDecompressor):
    """As brotli since 1.2.0; the limit may be exceeded a little."""

    def process(self, data: bytes, output_buffer_limit: int | None = None) -> bytes:
        assert output_buffer_limit is not None
        return super().process(data)[: output_buffer_limit + 5]

    def can_accept_more_data(self) -> bool:
        raise NotImplementedError


class _OtherName:
    """As brotlipy, whose method has another name."""

    def __init__(self) -> None:
        self.decompress = _OldDecompressor().process


@pytest.mark.parametrize("module", ["brotli", "brotlicffi"])
@pytest.mark.parametrize("decompressor", [_OldDecompressor, _NewDecompressor, _OtherName])
def test_every_interface_of_a_brotli_library(
    monkeypatch: pytest.MonkeyPatch, module: str, decompressor: type
) -> None:
    monkeypatch.setitem(sys.modules, "brotli", None)
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(Decompressor=decompressor))
    monkeypatch.setattr(_OldDecompressor, "fed", [], raising=False)
    assert decoded("br", bytes([1]) * 100, LIMIT) == b"x" * 100
    assert decoded("br", bytes([200]) * 5000, 900) == b"x" * 900
    with pytest.raises(CodingError):
        decoded("BR", bytes([255]), LIMIT)
    if decompressor is _NewDecompressor:
        assert [*map(len, _OldDecompressor.fed)] == [100, 5000, 1]
        return
    # Small pieces, and none beyond what is needed.
    assert max(map(len, _OldDecompressor.fed)) <= 8
    assert sum(map(len, _OldDecompressor.fed)) < 200
    _OldDecompressor.fed.clear()
    assert decoded("br", bytes([100]) * 5000, 800) == b"x" * 800
    assert [*map(len, _OldDecompressor.fed)] == [8]


@pytest.mark.parametrize("name", ["br", "zstd"])
def test_a_missing_library(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for module in ("brotli", "brotlicffi", "zstandard", "compression", "compression.zstd"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(CodingError, match="not installed"):
        decoded(name, DOCUMENT, LIMIT)


@pytest.mark.parametrize("module", ["brotli", "brotlicffi"])
def test_a_real_brotli_library(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    library = pytest.importorskip(module)
    monkeypatch.setitem(sys.modules, "brotli", library)
    wire = library.compress(DOCUMENT)
    assert decoded("br", wire, LIMIT) == DOCUMENT
    assert decoded("br, gzip", gzipped(wire), LIMIT) == DOCUMENT
    assert decoded("br", library.compress(RANDOM), LIMIT) == RANDOM
    for length in range(len(wire)):
        assert DOCUMENT.startswith(decoded("br", wire[:length], LIMIT))
    assert decoded("br", library.compress(bytes(2**26)), LIMIT) == bytes(LIMIT)
    with pytest.raises(CodingError):
        decoded("br", DOCUMENT, LIMIT)


# -- the standard library's zstd -------------------------------------------------------------------


class _StandardDecompressor:
    """As `compression.zstd.ZstdDecompressor` of Python 3.14: one frame, with a limit."""

    def __init__(self, options: dict[Any, int]) -> None:
        window = 1 << options["window_log_max"]
        self._inner = zstandard.ZstdDecompressor(max_window_size=window).decompressobj()
        self._pending = b""

    @property
    def eof(self) -> bool:
        return self._inner.eof and not self._pending

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        self._pending += self._inner.decompress(data)
        result, self._pending = self._pending[:max_length], self._pending[max_length:]
        return result


@pytest.fixture
def without_zstandard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the standard library's module is there; where it is not, one that behaves like it."""
    monkeypatch.setitem(sys.modules, "zstandard", None)
    try:
        import_module("compression.zstd")
    except ImportError:
        library = ModuleType("compression.zstd")
        library.__dict__["ZstdDecompressor"] = _StandardDecompressor
        library.__dict__["DecompressionParameter"] = SimpleNamespace(
            window_log_max="window_log_max"
        )
        monkeypatch.setitem(sys.modules, "compression", ModuleType("compression"))
        monkeypatch.setitem(sys.modules, "compression.zstd", library)


@pytest.mark.usefixtures("without_zstandard")
@pytest.mark.parametrize("encode", [zstd, zstd_stream])
def test_zstd_of_the_standard_library(encode: Callable[[bytes], bytes]) -> None:
    assert decoded("zstd", encode(DOCUMENT), LIMIT) == DOCUMENT
    assert decoded("zstd", encode(RANDOM) + encode(b"two"), LIMIT) == RANDOM + b"two"
    assert decoded("zstd", encode(b"") * 5000 + encode(b"x"), LIMIT) == b""
    assert RANDOM.startswith(decoded("zstd", encode(RANDOM)[:-50], LIMIT))
    assert decoded("zstd", encode(bytes(2**20)), LIMIT) == bytes(LIMIT)
    with pytest.raises(CodingError):
        decoded("zstd", DOCUMENT, LIMIT)


def test_the_libraries_are_imported_on_first_use_only() -> None:
    program = (
        "import sys\n"
        "for name in ('zstandard', 'brotli', 'brotlicffi'): sys.modules[name] = None\n"
        "from tinker_guard.policy.codings import decoded\n"
        f"assert decoded('gzip', {gzipped(DOCUMENT)!r}, 100) == {DOCUMENT!r}\n"
    )
    assert python("-c", program).returncode == 0
