"""What the front can do to a connection or a request, by name; figures are counted under these."""

from __future__ import annotations

from enum import StrEnum


class ConnectionFault(StrEnum):
    """What befalls a connection before its first request."""

    RESET = "connection reset at once"
    NO_ANSWER = "connection accepted, then nothing"


class HandshakeFault(StrEnum):
    """What befalls a TLS handshake, after the client's hello."""

    ALERT = "TLS handshake refused by an alert"
    GARBAGE = "TLS handshake answered with no TLS"
    CLOSED = "TLS handshake cut off"


class RequestFault(StrEnum):
    """What befalls a request, whatever the protocol."""

    RESET_BEFORE = "reset before the request went on"
    RESET_AFTER = "reset after the request went on"
    HALF_CLOSED_BEFORE = "half-closed before the request went on"
    HALF_CLOSED_AFTER = "half-closed after the request went on"
    SILENCE = "no answer, then a reset"
    TRUNCATED = "body truncated"
    SLOW = "body trickles"
    UNAVAILABLE = "503 of the gateway"
    CLOSED = "closed after the answer, unannounced"


class Http1Fault(StrEnum):
    """What only HTTP/1.1 can do."""

    NO_HTTP = "answer that is no HTTP"


class Http2Fault(StrEnum):
    """What only HTTP/2 can do."""

    REFUSED_STREAM = "RST_STREAM before the request went on"
    RESET_STREAM = "RST_STREAM after the request went on"
    RESET_IN_BODY = "RST_STREAM in the body"
    GOAWAY = "GOAWAY, open streams answered"
    GOAWAY_DROPPED = "GOAWAY, open streams dropped"


class PlaneFault(StrEnum):
    """What befalls a question to the control plane; named after what a plan says."""

    DOWN = "control plane down"
    SLOW = "control plane slow"
    UNAUTHORIZED = "control plane unauthorized"
    DROPPED = "control plane dropped"
    NOT_JSON = "control plane not_json"
    REDIRECTS = "control plane redirects"
    SAYS_RUNNING = "control plane says running"
    SAYS_DELETED = "control plane says deleted"


class ProcessFault(StrEnum):
    """What befalls whole processes; done by the conductor."""

    FRONT_KILLED = "gateway killed and restarted"
    FRONT_FROZEN = "gateway frozen"
    CLIENT_KILLED = "client killed and restarted"


FAULTS: tuple[type[StrEnum], ...] = (
    ConnectionFault,
    HandshakeFault,
    RequestFault,
    Http1Fault,
    Http2Fault,
    PlaneFault,
    ProcessFault,
)
