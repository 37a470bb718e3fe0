"""A guarded `requests` session, for programs that call a trainer with requests.

    session = requests.Session()
    session.mount("https://", GuardedAdapter())

Requests on no trainer route, and answers other than 404, pass through. The guard sends
over adapters of requests itself, with the session's own `verify`, `cert`, `proxies` and `timeout`.
Only control-plane lookups use the proxy and certificates of the environment (`HTTPS_PROXY`,
`SSL_CERT_FILE`). Do not let the session retry a 404 by itself: each retry would wait again.

To try it:

    TINKER_API_KEY=... python examples/requests_adapter.py \
        https://HOST/training/v1/rlorTrainerJobs/ACCOUNT/JOB
"""

from __future__ import annotations

import io
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

import httpx
import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPHeaderDict, HTTPResponse

from tinker_guard import SyncGuardTransport

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tinker_guard import ControlPlane, GuardSettings


class GuardedAdapter(HTTPAdapter):
    """Protects the requests of a session against routing races.

    Args:
        settings: The guard's settings; None reads `TINKER_GUARD_*` and the defaults.
        control_plane: A control plane to use instead of Fireworks'.
        **for_adapter: Arguments of `HTTPAdapter`, `pool_maxsize` for instance.
    """

    def __init__(
        self,
        settings: GuardSettings | None = None,
        control_plane: ControlPlane | None = None,
        **for_adapter: Any,
    ) -> None:
        super().__init__(**for_adapter)
        self._options = _Options()

        def new_transport() -> httpx.BaseTransport:
            return _AdapterTransport(HTTPAdapter(**for_adapter), self._options)

        self._guard = SyncGuardTransport(
            new_transport(),
            settings=settings,
            control_plane=control_plane,
            new_transport=new_transport,
        )

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: Any = True,
        cert: Any = None,
        proxies: Any = None,
    ) -> requests.Response:
        """Send a request of the session.

        Raises:
            requests.RequestException: As from `HTTPAdapter`.
        """
        del stream  # the session itself reads the body, unless the caller streams it
        # The guard must not resend a body that can be read only once.
        body = request.body
        content = body if body is None or isinstance(body, str | bytes) else iter(())
        sent = httpx.Request(
            request.method or "GET",
            request.url or "",
            headers=_as_bytes(request.headers.items()),
            content=content,
            extensions={"prepared": request},
        )
        # Probes go the same way, in this thread.
        self._options.given = {"verify": verify, "cert": cert, "proxies": proxies}
        self._options.timeout = timeout
        answer = self._guard.handle_request(sent)
        found = answer.extensions.get("answer")
        raw = HTTPResponse(
            body=_Body(answer),
            headers=HTTPHeaderDict(_as_text(answer.headers.raw)),
            status=answer.status_code,
            reason=answer.reason_phrase if found is None else found.reason,
            preload_content=False,
            # Here requests looks for cookies.
            original_response=None if found is None else found.raw._original_response,  # noqa: SLF001
        )
        return self.build_response(request, raw)

    def close(self) -> None:
        """Close all connections."""
        self._guard.close()
        super().close()


class _Options(threading.local):
    """The options of a thread's current request."""

    given: dict[str, Any]
    timeout: Any


class _AdapterTransport(httpx.BaseTransport):
    """Sends the guard's requests over an adapter of requests."""

    def __init__(self, adapter: HTTPAdapter, options: _Options) -> None:
        self._adapter = adapter
        self._options = options

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        timeout = self._options.timeout
        prepared: requests.PreparedRequest | None = request.extensions.get("prepared")
        if prepared is None:  # a probe
            headers = dict(_as_text(request.headers.raw))
            prepared = requests.Request(request.method, str(request.url), headers).prepare()
            limits = request.extensions["timeout"]
            timeout = limits["connect"], limits["read"]
        elif "cookie" in request.headers:
            # The guard may have pinned the request to the replica that a probe has reached.
            prepared = prepared.copy()
            prepared.headers["Cookie"] = request.headers["cookie"]
        answer = self._adapter.send(prepared, stream=True, timeout=timeout, **self._options.given)
        return httpx.Response(
            answer.status_code,
            headers=_as_bytes(answer.raw.headers.items()),
            stream=_Stream(answer),
            extensions={"answer": answer},
        )

    def close(self) -> None:
        self._adapter.close()


class _Stream(httpx.SyncByteStream):
    """The body of an answer as it was sent, still compressed."""

    def __init__(self, answer: requests.Response) -> None:
        self._answer = answer

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._answer.raw.stream(1 << 16, decode_content=False))

    def close(self) -> None:
        self._answer.close()


class _Body(io.RawIOBase):
    """The body of the guard's response, as a file."""

    def __init__(self, answer: httpx.Response) -> None:
        super().__init__()
        assert isinstance(answer.stream, httpx.SyncByteStream)
        self._stream = answer.stream
        self._chunks = iter(answer.stream)
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._left = chunk
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


def _as_bytes(headers: Any) -> list[tuple[bytes, bytes]]:
    return [(_encoded(name), _encoded(value)) for name, value in headers]


def _encoded(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("latin-1")


def _as_text(headers: list[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]


def main(trainer_url: str) -> None:
    """Print the trainer's capabilities."""
    with requests.Session() as session:
        session.mount("http://", GuardedAdapter())
        session.mount("https://", GuardedAdapter())
        session.headers["X-Api-Key"] = os.environ["TINKER_API_KEY"]
        answer = session.get(f"{trainer_url}/api/v1/get_server_capabilities", timeout=60)
    # A 404 here is genuine, or could not be judged, or outlasted the budget; see the log.
    answer.raise_for_status()
    sys.stdout.write(answer.text + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
