"""A trainer and its control plane over a real socket, for what only a real connection shows."""

from __future__ import annotations

import ssl
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING

import pytest

from testkit.fakes import GATEWAY_BODY
from tinker_guard.control_plane.question import ssl_context

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class LocalServer(ThreadingHTTPServer):
    """Knows the route of its trainer once its control plane was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.is_route_known = False
        self.keys: set[str | None] = set()
        self.scheme = "http"

    @property
    def origin(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: LocalServer

    def do_GET(self) -> None:
        self.server.keys.add(self.headers["X-Api-Key"])
        if self.path == "/v1/accounts/acc/rlorTrainerJobs/job-1":
            self.server.is_route_known = True
            self._answer(200, b'{"state": "JOB_STATE_RUNNING"}')
        elif self.server.is_route_known:
            self._answer(200, b"{}")
        else:
            self._answer(404, GATEWAY_BODY)

    def _answer(self, status_code: int, body: bytes) -> None:
        self.send_response(status_code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serving(directory: Path | None = None) -> Iterator[LocalServer]:
    """Serve on a thread; over TLS if there is a directory to keep the authority's certificate in.

    It is in `authority.pem` there.
    """
    with LocalServer() as server:
        if directory is not None:
            trustme = pytest.importorskip("trustme", reason="is in the group `test`")
            authority = trustme.CA()
            authority.cert_pem.write_to_path(directory / "authority.pem")
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            authority.issue_cert("127.0.0.1").configure_cert(context)
            server.socket = context.wrap_socket(server.socket, server_side=True)
            server.scheme = "https"
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        # What is trusted is remembered for the life of the process.
        ssl_context.cache_clear()
        try:
            yield server
        finally:
            ssl_context.cache_clear()
            server.shutdown()
            thread.join()
