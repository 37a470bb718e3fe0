"""Trainer routes: how one is read out of a URL, and what a process knows about each.

What is known process-wide (is the route warm?) is plain data; what requests wait on (locks,
the control plane's latest answer) belongs to one event loop each.
"""

from __future__ import annotations

import asyncio
import os
import re
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary, WeakSet

from tinker_guard.single_flight import SingleFlight

if TYPE_CHECKING:
    from collections.abc import Hashable

    import httpx

    from tinker_guard.verdict import Answer, Judgement, Refusal

_PREFIX: Final = b"/training/v1/rlorTrainerJobs/"
# Unreserved characters only (RFC 3986, 2.3): an id with an escape in it could mean another
# path to the control plane than it does to the gateway, so such a URL is no trainer route.
_TRAINER_PATH: Final = re.compile(
    rb"/training/v1/rlorTrainerJobs/(?!\.{1,2}/)([A-Za-z0-9._~-]+)/(?!\.{1,2}/)([A-Za-z0-9._~-]+)/"
)

_Key: TypeAlias = tuple[bytes, bytes, int | None, bytes]


class Route(NamedTuple):
    """One trainer job behind one gateway."""

    origin: str
    """Scheme, host and port of the gateway, such as `https://api.example.com`."""
    account: str
    job: str

    @property
    def path(self) -> str:
        """The path of the trainer's base URL, without a slash at its end."""
        return f"/training/v1/rlorTrainerJobs/{self.account}/{self.job}"

    @property
    def url(self) -> str:
        """The trainer's base URL, without a slash at its end."""
        return self.origin + self.path

    def __str__(self) -> str:
        return f"{self.account}/{self.job}"


_ASKERS: Final = 8
"""Different credentials whose answers are kept for one route and event loop."""

_MISLED_LIMIT: Final = 3


class LoopState:
    """What the requests of one event loop find out together about one route."""

    __slots__ = ("_questions", "scouting", "warmup")

    def __init__(self) -> None:
        self.warmup: SingleFlight[Refusal | None] = SingleFlight()
        """Whether a cold route's gate may open."""
        self.scouting: SingleFlight[Refusal | None] = SingleFlight()
        """When a route that was lost answers again."""
        self._questions: dict[Hashable, SingleFlight[Answer]] = {}

    def question(self, key: Hashable) -> SingleFlight[Answer]:
        """What the control plane says to one asker; other askers may be told otherwise."""
        flight = self._questions.get(key)
        if flight is None:
            while len(self._questions) >= _ASKERS:
                del self._questions[next(iter(self._questions))]
            flight = self._questions[key] = SingleFlight()
        return flight


class RouteState:
    """What this process knows about one route."""

    __slots__ = ("_loops", "is_warm", "misled", "race_met_at", "route", "said")

    def __init__(self, route: Route) -> None:
        self.route = route
        self.is_warm = False
        """Whether the gate is open: requests are sent without waiting."""
        self.misled = 0
        """How often in a row a request got through after probes had met 404s that name nobody."""
        self.race_met_at: float | None = None
        """Loop time at which the current race was first met; None when there is none."""
        self.said: tuple[Judgement | None, float] = (None, 0.0)
        """The last verdict that was logged with a 404 handed back, and the loop time then."""
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, LoopState] = WeakKeyDictionary()

    @property
    def are_probes_blind(self) -> bool:
        """Whether probes say nothing about this route: its trainer does not know their path."""
        return self.misled >= _MISLED_LIMIT

    @property
    def here(self) -> LoopState:
        """The state shared on the running event loop."""
        loop = asyncio.get_running_loop()
        state = self._loops.get(loop)
        if state is None:
            # A lock that was waited for refers to its loop, which the weak keys cannot undo.
            # Another thread may add its own meanwhile, hence a list of them first.
            for reference in self._loops.keyrefs():
                known = reference()
                if known is not None and known.is_closed():
                    self._loops.pop(known, None)
            state = self._loops[loop] = LoopState()
        return state


class RouteTable:
    """The routes that a process has met, the oldest dropped beyond `limit`."""

    def __init__(self, limit: int = 1024) -> None:
        self._limit = limit
        self._states: dict[_Key, RouteState] = {}
        _tables.add(self)

    def find(self, url: httpx.URL) -> RouteState | None:
        """The state of the trainer route that `url` lies on; None if it lies on none."""
        path = url.raw_path
        if not path.startswith(_PREFIX):
            return None
        # The key ends with the slash behind the job id. Without that slash `find` gives -1, and
        # what is left of the path is no route.
        account_end = path.find(b"/", len(_PREFIX))
        job_end = path.find(b"/", account_end + 1)
        key = (url.raw_scheme, url.raw_host, url.port, path[: job_end + 1])
        return self._states.get(key) or self._add(key)

    def clear(self) -> None:
        """Forget every route."""
        self._states = {}

    def _add(self, key: _Key) -> RouteState | None:
        scheme, host, port, path = key
        match = _TRAINER_PATH.fullmatch(path)
        if match is None or scheme not in (b"http", b"https") or not host:
            return None
        account, job = (part.decode("ascii") for part in match.groups())
        name = host.decode("ascii")
        authority = f"[{name}]" if ":" in name else name
        origin = f"{scheme.decode()}://{authority}" + (f":{port}" if port is not None else "")
        while len(self._states) >= self._limit:
            self._states.pop(next(iter(self._states)), None)
        # `setdefault`: two threads may meet a new route at the same moment.
        return self._states.setdefault(key, RouteState(Route(origin, account, job)))


_tables: WeakSet[RouteTable] = WeakSet()

ROUTES: Final = RouteTable()
"""The routes of this process; one warmup serves every transport."""


def _forget_after_fork() -> None:
    # A child has other connections and no tasks of its parent: a lock that a parent's task
    # held at the fork would never be released there.
    for table in list(_tables):
        table.clear()


if hasattr(os, "register_at_fork"):  # pragma: no branch - no other system forks
    os.register_at_fork(after_in_child=_forget_after_fork)
