"""What one probe found and how probing ended, as values: a type checker sees a forgotten one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self, TypeAlias

import httpx

from tinker_guard.policy.json_body import BODY_LIMIT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tinker_guard.policy.judgement import JobAnswer, Judgement
    from tinker_guard.policy.not_found import Source
    from tinker_guard.policy.reach import Cookies
    from tinker_guard.transports.body_prefix import BodyPrefix
    from tinker_guard.transports.failure import Failure


@dataclass(frozen=True, slots=True)
class Reached:
    """The trainer itself answered the probe."""

    met_at: float
    """Time of the event loop's clock."""
    cookies: Cookies = field(default=(), repr=False)
    """What the answer set: a balancer's cookies pin a request to the replica that was reached."""


@dataclass(frozen=True, slots=True)
class NotFound:
    """The probe met a 404 that the trainer did not write."""

    source: Source
    met_at: float
    """Time of the event loop's clock."""
    headers: httpx.Headers = field(repr=False)
    body: bytes = field(repr=False)
    asked_to_wait: float
    """Seconds that its Retry-After asks for."""
    status_line: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    """Of its extensions, those that a status line gives. Any other one is of the connection."""

    @classmethod
    def of(
        cls,
        response: httpx.Response,
        body: BodyPrefix,
        source: Source,
        met_at: float,
        asked_to_wait: float,
    ) -> Self:
        """Keep what may be handed to requests that wait for the probe."""
        headers, content = response.headers.copy(), body.content
        # The body is not in chunks any more; and cookies are the prober's own.
        for name in ("transfer-encoding", "set-cookie"):
            headers.pop(name, None)
        is_coded = headers.get("content-encoding") is not None
        if is_coded and (body.is_decoded or not body.is_complete):
            headers.pop("content-encoding")
            headers.pop("content-length", None)
            # A part of a coded body could not be decoded.
            content = content if body.is_decoded else b""
        given = ((name, response.extensions.get(name)) for name in _OF_STATUS_LINE)
        status_line = {name: value for name, value in given if isinstance(value, bytes)}
        return cls(source, met_at, headers, content[:BODY_LIMIT], asked_to_wait, status_line)

    def response(self, method: str) -> httpx.Response:
        """The same 404, for a request that waited for the probe.

        Args:
            method: That of the request. The probe was a `GET`.
        """
        headers, body = self.headers.copy(), self.body
        if method == "HEAD":
            # The length is that of the body which a `GET` would get.
            body = b""
        elif headers.get("content-length") != str(len(body)):
            headers.pop("content-length", None)
        stream, extensions = httpx.ByteStream(body), {**self.status_line}
        return httpx.Response(404, headers=headers, stream=stream, extensions=extensions)


_OF_STATUS_LINE: Final = ("http_version", "reason_phrase")


@dataclass(frozen=True, slots=True)
class Failed:
    """The probe proves nothing: it failed, or something on the way answered it."""

    failure: Failure | None = None
    """Why the transport raised an error."""
    status_code: int | None = None
    """What was answered."""


ProbeResult: TypeAlias = Reached | NotFound | Failed


@dataclass(frozen=True, slots=True)
class _End:
    race: Judgement | None = field(default=None, kw_only=True)
    """The verdict on the 404s that were met on the way, if they were a race."""
    proved_at: float = field(default=float("-inf"), kw_only=True)
    """Since when its evidence holds, by the event loop's clock: when the trainer was reached, or
    the first of the lookups that it rests on began."""

    def serves(self, met_at: float, *, needs_proof: bool) -> bool:
        """Whether it holds for another request that waited for it.

        Args:
            met_at: When that request met its 404.
            needs_proof: Whether it may be sent again only if the trainer was reached, or the job is
                said to run.
        """
        return not needs_proof or self.proved_at >= met_at

    def serves_at_gate(self, came_at: float) -> bool:
        """Whether it holds for another request that waited for it at the gate.

        Args:
            came_at: When that request came.
        """
        return True


@dataclass(frozen=True, slots=True)
class Routable(_End):
    """The trainer was reached: the request is sent on the connection that was proved."""

    cookies: Cookies = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Inconclusive(_End):
    """Probes show nothing about this route: the request itself shows what there is."""

    failed: Failed | None = None
    """The last probe, if that failed."""


INCONCLUSIVE: Final = Inconclusive()
"""Of a request that sent no probe."""


@dataclass(frozen=True, slots=True)
class Ambiguous(_End):
    """The job runs, but the trainer itself may answer the probe's path with such a 404."""


@dataclass(frozen=True, slots=True)
class Refused(_End):
    """The job is gone or stopped, whatever the 404s were before."""

    judgement: Judgement
    not_found: NotFound | None
    """The probe's 404; None if the probe failed, and the request's own was judged."""
    answer: JobAnswer

    def serves(self, met_at: float, *, needs_proof: bool) -> bool:  # noqa: D102 - as above
        return self.proved_at >= met_at

    def serves_at_gate(self, came_at: float) -> bool:  # noqa: D102 - as above
        # The job may have been resumed before the request came.
        return self.answer.asked_at >= came_at


@dataclass(frozen=True, slots=True)
class TimedOut(_End):
    """The time is over, and the last probe met a 404."""

    judgement: Judgement
    not_found: NotFound

    def serves(self, met_at: float, *, needs_proof: bool) -> bool:  # noqa: D102 - as above
        # The time that was over is the leader's.
        return False

    def serves_at_gate(self, came_at: float) -> bool:  # noqa: D102 - as above
        return False


ProbingEnd: TypeAlias = Routable | Inconclusive | Ambiguous | Refused | TimedOut
