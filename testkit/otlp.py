"""A backend for OTLP/HTTP that counts what it gets."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


class Backend(ThreadingHTTPServer):
    """Takes anything over OTLP/HTTP, and keeps the names of the guard's spans."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _TakeSpans)
        self.span_names: Counter[str] = Counter()
        self.paths: Counter[str] = Counter()


class _TakeSpans(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

        body = self.rfile.read(int(self.headers["content-length"]))
        assert isinstance(self.server, Backend)
        self.server.paths[self.path] += 1
        if self.path == "/v1/traces":
            sent = trace_service_pb2.ExportTraceServiceRequest.FromString(body)
            self.server.span_names.update(
                span.name
                for resource in sent.resource_spans
                for scope in resource.scope_spans
                if scope.scope.name == "tinker_guard"
                for span in scope.spans
            )
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@contextmanager
def backend() -> Iterator[Backend]:
    with Backend() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
