"""The front over HTTP/2: streams that are reset, and goodbyes in the middle of work."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from hyperframe.frame import GoAwayFrame

from proof.chaos.faults import Http2Fault, RequestFault
from proof.chaos.front import TRICKLE, UNAVAILABLE, Request, is_broken_off, pieces_of

if TYPE_CHECKING:
    from enum import StrEnum

    from h2.events import Event

    from proof.chaos.front import Answer, Client, Front

_PIECE: Final = 8192
_OF_ONE_CONNECTION: Final = frozenset({b"connection", b"transfer-encoding", b"keep-alive"})
"""Headers that HTTP/2 does not know."""


async def serve_http2(front: Front, client: Client) -> None:
    """Serve streams until the client leaves or is left."""
    session = _Session(front, client)
    try:
        await session.run()
    finally:
        for task in session.tasks:
            task.cancel()


class _Session:
    """One connection."""

    def __init__(self, front: Front, client: Client) -> None:
        self.tasks: set[asyncio.Task[None]] = set()
        self._front = front
        self._client = client
        self._http2 = H2Connection(H2Configuration(client_side=False, header_encoding=None))
        self._requests: dict[int, Request] = {}
        self._window_opened = asyncio.Event()
        self._goodbye_after: int | None = None
        """The last stream that is answered, once goodbye was said."""

    async def run(self) -> None:
        self._http2.initiate_connection()
        await self._flush()
        while data := await self._client.reader.read(65536):
            try:
                events = self._http2.receive_data(data)
            except ProtocolError:
                break
            for event in events:
                if isinstance(event, ConnectionTerminated):
                    return
                self._receive(event)
            await self._flush()
            if self._is_done:
                return

    def _receive(self, event: Event) -> None:
        match event:
            case RequestReceived():
                assert event.stream_id is not None
                headers = dict(event.headers or [])
                self._requests[event.stream_id] = Request(
                    bytes(headers.pop(b":method")),
                    bytes(headers.pop(b":path")),
                    [(b"host", bytes(headers.pop(b":authority")))]
                    + [(bytes(n), bytes(v)) for n, v in headers.items() if n[:1] != b":"],
                    b"",
                )
            case DataReceived():
                assert event.stream_id is not None
                self._http2.acknowledge_received_data(
                    event.flow_controlled_length or 0, event.stream_id
                )
                if event.stream_id in self._requests:
                    self._requests[event.stream_id].body += event.data or b""
            case StreamEnded():
                assert event.stream_id is not None
                request = self._requests.pop(event.stream_id, None)
                if request is not None:
                    self._start(event.stream_id, request)
            case StreamReset():
                self._requests.pop(event.stream_id or 0, None)
                self._window_opened.set()
            case WindowUpdated():
                self._window_opened.set()

    def _start(self, stream: int, request: Request) -> None:
        if self._goodbye_after is not None and stream > self._goodbye_after:
            # It crossed the goodbye; the client knows that it was not looked at.
            return
        task = asyncio.create_task(self._answer(stream, request))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    @property
    def _is_done(self) -> bool:
        return self._goodbye_after is not None and not self.tasks

    async def _answer(self, stream: int, request: Request) -> None:
        front, client = self._front, self._client
        # Streams end by themselves, connections under them.
        with front.answering(), suppress(ProtocolError, OSError, EOFError):
            fault = front.fault_for(request, RequestFault, Http2Fault)
            if await is_broken_off(client, fault, "before"):
                return
            if fault is Http2Fault.REFUSED_STREAM:
                await self._reset(stream, ErrorCodes.REFUSED_STREAM)
                return
            if fault is Http2Fault.GOAWAY_DROPPED:
                await self._say_goodbye(stream - 2)
                client.writer.transport.close()
                return
            if fault is Http2Fault.GOAWAY:
                await self._say_goodbye(self._http2.highest_inbound_stream_id)
            is_refused = fault is RequestFault.UNAVAILABLE
            answer = UNAVAILABLE if is_refused else await front.upstream.exchange(request, client)
            if await is_broken_off(client, fault, "after"):
                return
            if fault is Http2Fault.RESET_STREAM:
                await self._reset(stream, ErrorCodes.INTERNAL_ERROR)
                return
            await self._send(stream, answer, fault)
            if fault is RequestFault.CLOSED or self._is_last_after_goodbye:
                client.writer.close()

    @property
    def _is_last_after_goodbye(self) -> bool:
        return self._goodbye_after is not None and len(self.tasks) == 1

    async def _send(self, stream: int, answer: Answer, fault: StrEnum | None) -> None:
        is_cut = fault in (RequestFault.TRUNCATED, Http2Fault.RESET_IN_BODY)
        body = answer.body[: len(answer.body) // 2] if is_cut else answer.body
        headers = [(b":status", b"%d" % answer.status)]
        headers += [(n, v) for n, v in answer.headers if n not in _OF_ONE_CONNECTION]
        self._http2.send_headers(stream, headers)
        is_slow = fault is RequestFault.SLOW
        size = _PIECE
        pieces = (
            pieces_of(body) if is_slow else [body[n : n + size] for n in range(0, len(body), size)]
        )
        for piece in pieces:
            while self._http2.local_flow_control_window(stream) < len(piece):
                self._window_opened.clear()
                await self._window_opened.wait()
            self._http2.send_data(stream, piece)
            await self._flush()
            if is_slow:
                await asyncio.sleep(TRICKLE)
        if fault is Http2Fault.RESET_IN_BODY:
            await self._reset(stream, ErrorCodes.CANCEL)
        elif fault is RequestFault.TRUNCATED:
            self._client.writer.transport.close()
        else:
            self._http2.end_stream(stream)
            await self._flush()

    async def _reset(self, stream: int, code: ErrorCodes) -> None:
        self._http2.reset_stream(stream, code)
        await self._flush()

    async def _say_goodbye(self, last: int) -> None:
        """Send a GOAWAY; h2's own would forbid to answer what is open."""
        await self._flush()
        if self._goodbye_after is None:
            self._goodbye_after = last
            self._client.writer.write(GoAwayFrame(0, last_stream_id=last).serialize())
            await self._client.writer.drain()

    async def _flush(self) -> None:
        self._client.writer.write(self._http2.data_to_send())
        await self._client.writer.drain()
