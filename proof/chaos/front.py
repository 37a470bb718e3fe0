"""What clients connect to: passes requests on to the backend, and breaks what it can.

`python -m proof.chaos.front '{"seed": ...}'` serves until it is killed, which it is now and then.
What it did goes to stdout as lines of JSON, at once, since it cannot be asked afterwards.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
import socket
import ssl
import struct
import sys
from collections import deque
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from proof.chaos.backend import CONNECTION_HEADER
from proof.chaos.faults import ConnectionFault, HandshakeFault, Http1Fault, RequestFault
from proof.chaos.plan import draw

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from enum import StrEnum

HOST: Final = "127.0.0.1"
CONNECTION_HITCH: Final = 0.03
"""How many connections meet a fault before their first request."""
SILENCE: Final = 2.5
"""Seconds that a connection says nothing; then it is reset."""
LINGER: Final = 1.0
"""Seconds for which a half-closed connection stays so."""
TRICKLE: Final = 0.12
"""Seconds between the pieces of a body that trickles."""
_JOB: Final = re.compile(rb"/rlorTrainerJobs/[^/]+/([^/]+)")
_GAUGE_EVERY: Final = 0.25


@dataclass
class Request:
    """A whole request."""

    method: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes


@dataclass
class Answer:
    """A whole answer."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


UNAVAILABLE: Final = Answer(503, [(b"content-type", b"text/plain")], b"no healthy upstream")


class Client:
    """One connection of a client's."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: str
    ) -> None:
        self.reader = reader
        self.writer = writer
        self.number = number

    def reset(self) -> None:
        """Close it by a RST."""
        if (connection := self.writer.get_extra_info("socket")) is not None:
            reset(connection)
        self.writer.transport.abort()

    async def half_close(self) -> None:
        """Send a FIN and nothing more, though what comes is still taken; then close."""
        connection = self.writer.get_extra_info("socket")
        with suppress(OSError):
            # None if the client was faster.
            if connection is not None:
                connection.shutdown(socket.SHUT_WR)
        await asyncio.sleep(LINGER)
        self.writer.transport.abort()


def reset(connection: socket.socket) -> None:
    """Let closing send a RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Upstream:
    """Exchanges with the backend, over connections that are kept."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: deque[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = deque()

    async def exchange(self, request: Request, client: Client) -> Answer:
        """Send a request on, as one that came over this connection."""
        if self._idle:
            reader, writer = self._idle.pop()
        else:
            reader, writer = await asyncio.open_connection(HOST, self._port)
        headers = [*request.headers, (CONNECTION_HEADER, client.number.encode())]
        writer.write(head_of(b"%s %s HTTP/1.1" % (request.method, request.target), headers))
        writer.write(request.body)
        first, headers = await read_head(reader)
        body = await reader.readexactly(length_of(headers))
        self._idle.append((reader, writer))
        return Answer(int(first.split(b" ")[1]), headers, body)


class Front:
    """Decides what goes wrong, and counts.

    Args:
        seed: Of the run.
        incarnation: How often the front was restarted.
        upstream: Port of the backend.
        has_404s: As in `draw`.
        met: Faults that came before it was restarted; the others come first.
    """

    def __init__(
        self,
        seed: int,
        incarnation: int,
        upstream: int,
        *,
        has_404s: bool,
        met: Collection[str] = (),
    ) -> None:
        self.upstream = Upstream(upstream)
        self._seed = seed
        self._incarnation = incarnation
        self._has_404s = has_404s
        self._met = set(met)
        self._chance = random.Random(f"{seed} front {incarnation}")
        self._connections = 0
        self._requests = 0
        self._in_flight = 0
        self._decks: dict[tuple[type[StrEnum], ...], list[StrEnum]] = {}

    async def serve(self, listener: socket.socket, context: ssl.SSLContext | None) -> None:
        """Accept connections, for ever."""
        loop = asyncio.get_running_loop()
        tasks: set[asyncio.Task[None]] = set()
        while True:
            connection, _ = await loop.sock_accept(listener)
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = asyncio.create_task(self._connected(connection, context))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async def report(self) -> None:
        """Say how much is going on, for ever."""
        while True:
            say(event="flow", in_flight=self._in_flight, requests=self._requests)
            self._requests = 0
            await asyncio.sleep(_GAUGE_EVERY)

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Count a request as in flight."""
        self._requests += 1
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    def fault_for(self, request: Request, *kinds: type[StrEnum]) -> StrEnum | None:
        """What shall befall a request."""
        found = _JOB.search(request.target)
        if found is None:
            return None
        plan = draw(self._seed, found[1].decode(), has_404s=self._has_404s)
        return self.deal(*kinds) if self._chance.random() < plan.hitch else None

    def deal(self, *kinds: type[StrEnum]) -> StrEnum:
        """The next fault of these kinds; all of them come before one comes again."""
        deck = self._decks.setdefault(kinds, [])
        if not deck:
            deck += [fault for kind in kinds for fault in kind]
            self._chance.shuffle(deck)
            deck.sort(key=lambda fault: fault not in self._met)
        fault = deck.pop()
        self._met.add(fault)
        say(event="fault", fault=fault)
        return fault

    async def _connected(self, connection: socket.socket, context: ssl.SSLContext | None) -> None:
        self._connections += 1
        number = f"{self._incarnation}.{self._connections}"
        loop = asyncio.get_running_loop()
        with suppress(OSError, EOFError, ssl.SSLError, asyncio.LimitOverrunError):
            if self._chance.random() < CONNECTION_HITCH:
                await self._break(connection, is_tls=context is not None)
                return
            reader = asyncio.StreamReader()
            protocol = asyncio.StreamReaderProtocol(reader)
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol, connection, ssl=context
            )
            writer = asyncio.StreamWriter(transport, protocol, reader, loop)
            client = Client(reader, writer, number)
            tls = transport.get_extra_info("ssl_object")
            try:
                if tls is not None and tls.selected_alpn_protocol() == "h2":
                    # Imported here, since it needs this module's.
                    from proof.chaos.http2 import serve_http2

                    await serve_http2(self, client)
                else:
                    await serve_http1(self, client)
            finally:
                writer.close()

    async def _break(self, connection: socket.socket, *, is_tls: bool) -> None:
        loop = asyncio.get_running_loop()
        with connection:
            # The first bytes of the client's, so that it is sure to be connected.
            await loop.sock_recv(connection, 1)
            match self.deal(*((HandshakeFault,) if is_tls else ()), ConnectionFault):
                case HandshakeFault.ALERT:
                    await loop.sock_sendall(connection, b"\x15\x03\x03\x00\x02\x02\x28")
                case HandshakeFault.GARBAGE:
                    await loop.sock_sendall(connection, b"HTTP/1.0 400 Bad Request\r\n\r\n")
                case ConnectionFault.RESET:
                    reset(connection)
                case ConnectionFault.NO_ANSWER:
                    await asyncio.sleep(SILENCE)
                    reset(connection)


async def serve_http1(front: Front, client: Client) -> None:
    """Serve requests over HTTP/1.1 until the client leaves or is left."""
    while True:
        first, headers = await read_head(client.reader)
        method, target, _ = first.split(b" ")
        body = await client.reader.readexactly(length_of(headers))
        request = Request(method, target, headers, body)
        with front.answering():
            fault = front.fault_for(request, RequestFault, Http1Fault)
            if not await _answer_http1(front, client, request, fault):
                return


async def _answer_http1(
    front: Front, client: Client, request: Request, fault: StrEnum | None
) -> bool:
    """Answer one request; whether the connection can be used again."""
    writer = client.writer
    if await is_broken_off(client, fault, "before"):
        return False
    if fault is Http1Fault.NO_HTTP:
        writer.write(b"\x00\x01 no HTTP\r\n\r\n")
        return False
    is_refused = fault is RequestFault.UNAVAILABLE
    answer = UNAVAILABLE if is_refused else await front.upstream.exchange(request, client)
    if await is_broken_off(client, fault, "after"):
        return False
    headers = [(name, value) for name, value in answer.headers if name != b"content-length"]
    headers.append((b"content-length", b"%d" % len(answer.body)))
    head = head_of(b"HTTP/1.1 %d -" % answer.status, headers)
    if fault is RequestFault.TRUNCATED:
        # With nothing to cut in the body, the head is cut.
        writer.write((head + answer.body)[: -1 - len(answer.body) // 2])
        await writer.drain()
        return False
    if fault is RequestFault.SLOW:
        writer.write(head)
        for piece in pieces_of(answer.body):
            await writer.drain()
            await asyncio.sleep(TRICKLE)
            writer.write(piece)
    else:
        writer.write(head + answer.body)
    await writer.drain()
    return fault is not RequestFault.CLOSED


async def is_broken_off(
    client: Client, fault: StrEnum | None, when: Literal["before", "after"]
) -> bool:
    """Do to a connection what ends it before or after a request went on; whether it has."""
    match fault, when:
        case (RequestFault.RESET_BEFORE, "before") | (RequestFault.RESET_AFTER, "after"):
            client.reset()
        case (RequestFault.HALF_CLOSED_BEFORE, "before") | (
            RequestFault.HALF_CLOSED_AFTER,
            "after",
        ):
            await client.half_close()
        case (RequestFault.SILENCE, "before"):
            await asyncio.sleep(SILENCE)
            client.reset()
        case _:
            return False
    return True


def pieces_of(body: bytes) -> list[bytes]:
    """A body in six pieces, or fewer."""
    size = len(body) // 6 + 1
    return [body[start : start + size] for start in range(0, len(body), size)]


async def read_head(reader: asyncio.StreamReader) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """The first line and the headers, names in small letters."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n"))[:-4].split(b"\r\n")
    pairs = (line.partition(b":") for line in lines)
    return first, [(name.lower(), value.strip()) for name, _, value in pairs]


def head_of(first: bytes, headers: list[tuple[bytes, bytes]]) -> bytes:
    """The bytes of a first line and headers."""
    lines = [first, *(b"%s: %s" % header for header in headers), b"", b""]
    return b"\r\n".join(lines)


def length_of(headers: list[tuple[bytes, bytes]]) -> int:
    """Length of the body; both the SDK and the backend say it."""
    return next((int(value) for name, value in headers if name == b"content-length"), 0)


def say(**what: object) -> None:
    """Write a line that the conductor reads."""
    # In one piece, since threads do it too.
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def _serve(given: dict[str, Any]) -> None:
    front = Front(
        given["seed"],
        given["incarnation"],
        given["upstream"],
        has_404s=given["has_404s"],
        met=given["met"],
    )
    async with asyncio.TaskGroup() as group:
        for entrance, port in given["ports"].items():
            context = None
            if entrance != "plain":
                context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
                context.load_cert_chain(given["certificate"])
                protocols = ["h2", "http/1.1"] if entrance == "h2" else ["http/1.1"]
                context.set_alpn_protocols(protocols)
            listener = socket.create_server((HOST, port), backlog=1024)
            listener.setblocking(False)
            group.create_task(front.serve(listener, context))
        group.create_task(front.report())
        say(event="serving")


if __name__ == "__main__":
    # It says when something is written to a connection that is gone, which is so all the time.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    asyncio.run(_serve(json.loads(sys.argv[1])))
