"""Servers of the standard library, each on a thread of its own."""

from __future__ import annotations

from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

JSON: Final = ("Content-Type", "application/json")
_S = TypeVar("_S", bound=ThreadingHTTPServer)


class Handler(BaseHTTPRequestHandler):
    """Answers, and logs nothing."""

    def reply(
        self, status: int, body: bytes, *headers: tuple[str, str], reason: str | None = None
    ) -> None:
        """Send an answer."""
        self.send_response(status, reason)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def on_a_thread(server: _S) -> Iterator[_S]:
    """Serve until the end of the block."""
    with server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
