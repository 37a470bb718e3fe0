"""A backend for OTLP/HTTP that counts what it gets."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING

from testkit.http_server import Handler, on_a_thread

if TYPE_CHECKING:
    from collections.abc import Iterator


class Backend(ThreadingHTTPServer):
    """Takes anything over OTLP/HTTP, and keeps the names of the guard's spans.

    Args:
        refuses: How often it answers 503 at first.
    """

    daemon_threads = True

    def __init__(self, refuses: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), _TakeSpans)
        self.span_names: Counter[str] = Counter()
        self.paths: Counter[str] = Counter()
        self.refuses = refuses


class _TakeSpans(Handler):
    def do_POST(self) -> None:
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

        body = self.rfile.read(int(self.headers["content-length"]))
        assert isinstance(self.server, Backend)
        if self.server.refuses > 0:
            self.server.refuses -= 1
            self.reply(503, b"")
            return
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
        self.reply(200, b"")


@contextmanager
def backend(refuses: int = 0) -> Iterator[Backend]:
    with on_a_thread(Backend(refuses)) as server:
        yield server
