"""What is guarded in a process, and how, as values and as text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import httpx

from tinker_guard import __version__
from tinker_guard.policy.route import patterns_of, suggest_pattern
from tinker_guard.policy.url import origin
from tinker_guard.settings import variable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tinker_guard.settings import GuardSettings


class Place(NamedTuple):
    """The destination of clients: the part of their base URL that may be shown."""

    origin: str
    """Scheme, host and port."""
    job: str | None
    """The trainer route's name: account and job, such as `acc/job-1`, or its base URL; None off
    trainer routes."""
    pattern: str = ""
    """The pattern for `routes` that would guard this place; empty on a trainer route."""

    @classmethod
    def of(cls, base_url: str, routes: Sequence[str] = ()) -> Place:
        """The place of a base URL.

        Args:
            base_url: The URL.
            routes: The setting of this name.

        Raises:
            httpx.InvalidURL: The text is no URL.
        """
        url = httpx.URL(f"{base_url.rstrip('/')}/")
        route = patterns_of(tuple(routes)).route_of(url)
        if route is None:
            return cls(origin(url), None, suggest_pattern(url))
        return cls(origin(url), str(route))

    def __str__(self) -> str:
        """What the guard does there."""
        if self.job is None:
            return (
                f"{self.origin} is no trainer route: requests there pass through, and a 404 is "
                f"handed back as it comes ({variable('routes')}={self.pattern} would guard them)"
            )
        if self.job.startswith(self.origin):
            return f"requests to {self.job} are guarded"
        return f"requests for trainer job {self.job} at {self.origin} are guarded"


class RestStatus(NamedTuple):
    """Whether the plain httpx clients that an SDK has beside its own are guarded."""

    what: str
    """`guarded`, `guarded when imported`, `not guarded`, `none in this release`."""
    clients: int
    """How many of them have been guarded so far."""

    def __str__(self) -> str:
        """What the guard does there."""
        if self.what != "guarded":
            return self.what
        return f"guarded on trainer routes ({clients(self.clients)})"


@dataclass(frozen=True, slots=True)
class GuardStatus:
    """What is guarded in a process, and how."""

    settings: GuardSettings | None
    """The guard's settings; None if it is not installed."""
    sdks: dict[str, str]
    """By each SDK's name: `guarded`, `guarded when imported`, `not guarded`, `not installed`."""
    clients: dict[Place, int]
    """How many clients have been guarded so far, by their destination."""
    rest_clients: dict[str, RestStatus]
    """By the name of an installed SDK that has plain httpx clients beside its own."""
    unguarded: list[str]
    """The requests that are not guarded."""
    child_processes: str
    """Python processes that this one starts: `guarded`, `not guarded`; with a reason if a variable
    of the environment was changed since the installation."""
    has_own_control_plane: bool
    """Whether the program set a control plane of its own."""

    @property
    def is_installed(self) -> bool:
        """Whether the guard is installed."""
        return self.settings is not None

    def __str__(self) -> str:
        """Several lines for people."""
        settings = self.settings
        if settings is None:
            return "tinker_guard is not installed: requests go unguarded."
        from tinker_guard.control_plane.chosen import place_asked

        if self.has_own_control_plane:
            asked = "the program's own"
        else:
            asked = place_asked(settings, "at each route's own origin")
        return "\n".join(
            [
                f"tinker_guard {__version__} is installed.",
                *(f"  {name}: {what}" for name, what in self.sdks.items()),
                *(f"  {name}, REST clients: {rest}" for name, rest in self.rest_clients.items()),
                *(f"  {place} ({clients(count)})" for place, count in self.clients.items()),
                *(f"  not guarded: {what}" for what in self.unguarded),
                f"  waits: up to {settings.warmup_timeout:g} s for a new route, "
                f"{settings.retry_timeout:g} s after a 404 on one that worked",
                f"  control plane: {asked}",
                f"  child processes: {self.child_processes}",
            ]
        )


def clients(count: int) -> str:
    """A number of clients in words, such as `1 client`."""
    return f"{count} client{'s' if count != 1 else ''}"
