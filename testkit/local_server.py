"""A trainer and its control plane over a real socket, for what only a real connection shows."""

from __future__ import annotations

import ssl
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from testkit.fakes import GATEWAY_BODY
from testkit.http_server import JSON, Handler, on_a_thread
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


class _Handler(Handler):
    server: LocalServer

    def do_GET(self) -> None:
        self.server.keys.add(self.headers["X-Api-Key"])
        if self.path == "/v1/accounts/acc/rlorTrainerJobs/job-1":
            self.server.is_route_known = True
            self.reply(200, b'{"state": "JOB_STATE_RUNNING"}', JSON)
        elif self.server.is_route_known:
            self.reply(200, b"{}", JSON)
        else:
            self.reply(404, GATEWAY_BODY, JSON)


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
            # Not in the thread that accepts, where a client that was cancelled as it connected
            # would hold up the end: httpcore leaves its socket to the garbage collector.
            server.socket = context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
            server.scheme = "https"
        # What is trusted is remembered for the life of the process.
        ssl_context.cache_clear()
        try:
            with on_a_thread(server):
                yield server
        finally:
            ssl_context.cache_clear()
