"""Undoes a body's Content-Encoding, in bounded memory: a few bytes can stand for gigabytes.

It covers every coding that httpx offers. The libraries for zstd and br are imported when the first
such body is met, since the package does not depend on them.
"""

from __future__ import annotations

import zlib
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

CHAIN_LIMIT: Final = 4
"""How many codings a body may have been put through, one on top of the other."""

_NO_CODINGS: Final = frozenset({"", "identity", "none", "utf-8", "aws-chunked"})
"""What servers write by mistake where there is none, too."""

_OVERHEAD: Final = 4096
"""Bytes by which a layer below the last may exceed the limit: coding makes random bytes longer."""

_PIECE: Final = 4096
"""Bytes that a decoder is given at a time where one body may hold many streams in a row: what is
left of a piece is copied at the end of each stream."""

_STREAM_LIMIT: Final = 1000
"""How many streams in a row are decoded. An empty one takes nine bytes and 10 microseconds."""

_ZSTD_WINDOW_LOG: Final = 23
"""8 MiB, the largest window that the coding zstd may use over HTTP (RFC 9659); the library's own
limit would let a body of a few bytes take 128 MiB."""

_BROTLI_PIECE: Final = 8
"""Bytes that a brotli decoder is given at a time where it has no limit for its output.

Ten bytes are the least that can stand for 16 MiB, the most that one meta-block can. So a piece
gives 32 MiB at worst.
"""


class CodingError(ValueError):
    """A body cannot be decoded: an unknown coding, a missing library, or bytes of another form."""


def decoded(content_encoding: str, body: bytes, limit: int) -> bytes:
    """Undo a body's Content-Encoding, up to a number of bytes.

    Args:
        content_encoding: The header's value, possibly a list of codings, or an empty string.
        body: The body as it came over the wire, possibly only its beginning.
        limit: How many bytes the result has at the most. The layers of a list are held to it too,
            but for a few thousand bytes.

    Returns:
        The decoded body, or as much of it as the limit and the given beginning allow.

    Raises:
        CodingError: A coding is not known, its library is not installed, there are more than
            `CHAIN_LIMIT` of them, or the body is not in its coding.
    """
    names = [name.strip().lower() for name in content_encoding.split(",")]
    decoders = [_DECODERS.get(name) for name in names if name not in _NO_CODINGS]
    if len(decoders) > CHAIN_LIMIT:
        raise CodingError(f"more than {CHAIN_LIMIT} codings")
    # The last one named was applied last.
    for layer, decode in enumerate(reversed(decoders), start=1):
        if decode is None:
            raise CodingError("an unknown coding")
        if limit <= 0:
            # To zlib, 0 means no limit.
            break
        try:
            body = decode(body, limit if layer == len(decoders) else limit + _OVERHEAD)
        except ImportError as error:
            raise CodingError("the library for this coding is not installed") from error
        except Exception as error:
            # Each library, and each version of brotli, has an error type of its own.
            raise CodingError("the body is not in its coding") from error
    return body[: max(limit, 0)]


def _gzip(body: bytes, limit: int) -> bytes:
    result = bytearray()
    position = 0
    # Members may follow each other (RFC 1952, 2.2); what else follows is ignored, as httpx does.
    for _ in range(_STREAM_LIMIT):
        if len(result) >= limit or (position and not body.startswith(b"\x1f\x8b", position)):
            break
        position = _append_stream(zlib.decompressobj(wbits=31), body, position, limit, result)
    return bytes(result)


def _deflate(body: bytes, limit: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(body, limit)
    except zlib.error:
        # Some servers leave out zlib's header, which RFC 9110 (8.4.1.2) asks for.
        return zlib.decompressobj(wbits=-zlib.MAX_WBITS).decompress(body, limit)


def _zstd(body: bytes, limit: int) -> bytes:
    try:
        zstandard = import_module("zstandard")
    except ImportError:
        # Since Python 3.14.
        return _zstd_by_standard_library(import_module("compression.zstd"), body, limit)
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << _ZSTD_WINDOW_LOG)
    reader = decompressor.stream_reader(body, read_across_frames=True)
    return bytes(reader.read(limit))


def _zstd_by_standard_library(library: Any, body: bytes, limit: int) -> bytes:
    options = {library.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG}
    result = bytearray()
    position = 0
    for _ in range(_STREAM_LIMIT):
        if position >= len(body) or len(result) >= limit:
            break
        decompressor = library.ZstdDecompressor(options=options)
        position = _append_stream(decompressor, body, position, limit, result)
    return bytes(result)


def _append_stream(
    decompressor: Any, body: bytes, position: int, limit: int, result: bytearray
) -> int:
    """Append the content of the stream at `position` to the result, and return where it ends."""
    while position < len(body) and len(result) < limit and not decompressor.eof:
        piece = body[position : position + _PIECE]
        result += decompressor.decompress(piece, limit - len(result))
        position += len(piece) - len(decompressor.unused_data)
    return position


def _brotli(body: bytes, limit: int) -> bytes:
    try:
        library = import_module("brotli")
    except ImportError:
        library = import_module("brotlicffi")
    decompressor = library.Decompressor()
    # brotlipy, which is imported as `brotli` too, calls it by the other name.
    process = getattr(decompressor, "process", None) or decompressor.decompress
    if hasattr(decompressor, "can_accept_more_data"):
        # Since 1.2.0; the limit is where the buffer stops growing, so there may be a little more.
        return bytes(process(body, output_buffer_limit=limit))[:limit]
    result = bytearray()
    for start in range(0, len(body), _BROTLI_PIECE):
        result += process(body[start : start + _BROTLI_PIECE])
        if len(result) >= limit:
            break
    return bytes(result[:limit])


_DECODERS: Final[dict[str, Callable[[bytes, int], bytes]]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _deflate,
    "zstd": _zstd,
    "br": _brotli,
}
