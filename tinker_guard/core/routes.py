"""Trainer routes: how one is read out of a URL, and what a process knows about each.

What is known process-wide (is the route warm?) is plain data; what requests wait for together
belongs to one event loop, and to requests with the same credentials and control plane.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

from tinker_guard.core.single_flight import SingleFlight, new_flight
from tinker_guard.observability.logs import RouteLog
from tinker_guard.policy.deployment import named_deployment
from tinker_guard.policy.not_found import shows_route
from tinker_guard.policy.route import Route, RoutePatterns, patterns_of
from tinker_guard.transports import runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    import httpx

    from tinker_guard.core.findings import ProbingEnd
    from tinker_guard.core.guarded_request import GuardedRequest
    from tinker_guard.policy.judgement import JobAnswer, Judgement


_Owner: TypeAlias = asyncio.AbstractEventLoop | runtime.Threads
_Key: TypeAlias = tuple[str, str, str, int | None, str]
_Place: TypeAlias = tuple[RoutePatterns, tuple[str | int | None, ...]]


_KEYS: Final = 8
"""Different credentials or control planes whose flights are kept for one route and event loop."""


class SpentBudget(NamedTuple):
    """The end of a request whose whole budget was spent."""

    judgement: Judgement
    answers: int
    """`RouteState.answers` then."""
    ended_at: float
    """When that was, by the event loop's clock."""


class Flights:
    """What the requests of one event loop with the same credentials find out together.

    Args:
        key: What they have in common; see `SharedControlPlane.key_for`.
    """

    __slots__ = (
        "clock",
        "key",
        "lookup",
        "missing_since",
        "probing",
        "race",
        "spent",
        "warmup",
    )

    def __init__(self, key: Hashable) -> None:
        self.key: Hashable = key
        self.clock: Callable[[], float] = runtime.clock()
        self.missing_since: float | None = None
        """When the control plane was first asked of those times, up to the last one, at which it
        has known no such job; None if it knew the job last."""
        self.spent: SpentBudget | None = None
        """How a request's whole budget ended last."""
        self.race: Judgement | None = None
        """The verdict on what the warmup under way has met, if that is a race."""
        self.warmup: SingleFlight[ProbingEnd] = new_flight()
        """Whether a cold route's gate may open."""
        self.probing: SingleFlight[ProbingEnd] = new_flight()
        """When a route that was lost answers again."""
        self.lookup: SingleFlight[JobAnswer] = new_flight()
        """What the control plane says."""

    @property
    def are_under_way(self) -> bool:
        """Whether a request leads or waits in one of them."""
        return self.warmup.is_under_way or self.probing.is_under_way or self.lookup.is_under_way


_DOUBTED_FOR: Final = 10.0
"""Seconds for which another application may go on answering probes in the trainer's place."""


class RouteState:
    """What this process knows about one route.

    A route is *cold* until its trainer has answered, then *warm*. It is *exhausted* from the end of
    a request's whole budget until it answers again; if it never has, for that request's key alone.
    """

    __slots__ = (
        "_balanced_until",
        "_exhausted_by",
        "_flights",
        "_lock",
        "_lost_at",
        "_router_doubted_until",
        "ambiguous_ends",
        "answers",
        "has_shown_trainer",
        "is_exhausted",
        "is_warm",
        "last_used",
        "log",
        "route",
        "under_way",
        "warm_since",
    )

    def __init__(self, route: Route) -> None:
        self.route: Route = route
        self.is_warm: bool = False
        """Whether requests are sent at once, and looked at only if they are answered with 404."""
        self.warm_since: float | None = None
        """Loop time at which the route came up; None if it never has, or the job stopped since."""
        self.has_shown_trainer: bool = False
        """Whether an answer on this route has ever been recognised as the trainer's."""
        self._exhausted_by: set[Hashable] = set()
        """The keys of requests whose whole budget has ended on this route before it came up."""
        self.is_exhausted: bool = False
        """Whether a request's whole budget has ended since the route answered last."""
        self.answers: int = 0
        """How often the route has come up."""
        self.ambiguous_ends: int = 0
        """How often in a row a request got through after probes had met only unknown 404s."""
        self.log: RouteLog = RouteLog()
        """What was logged of this route."""
        self._balanced_until = self._router_doubted_until = self._lost_at = float("-inf")
        self.last_used: int = 0
        """Position in the order of use of all routes."""
        self.under_way: set[GuardedRequest] = set()
        """The guarded requests under way: a route with one is not dropped."""
        self._flights: WeakKeyDictionary[_Owner, dict[Hashable, Flights]] = WeakKeyDictionary()
        # Reentrant, here as below: a signal handler may send a request while it is held.
        self._lock = threading.RLock()

    @property
    def is_cold(self) -> bool:
        """Whether the first requests of this route have to wait for a warmup."""
        return not (self.is_warm or self.is_exhausted)

    def is_cold_for(self, key: Hashable) -> bool:
        """The same for requests with one key: another one's wait in vain may be that key's fault.

        Args:
            key: As for `flights`.
        """
        return self.is_cold or (self.warm_since is None and key not in self._exhausted_by)

    @property
    def is_probe_path_unsupported(self) -> bool:
        """Whether probes say nothing: there are none, or this route's trainer lacks their path."""
        return self.ambiguous_ends >= _AMBIGUOUS_LIMIT or not self.route.has_probe

    def answered(self, at: float) -> None:
        """Note that the trainer has answered.

        Args:
            at: When the answer came. If the route was lost after that, it shows only that the
                trainer is there.
        """
        self.has_shown_trainer = True
        if not self.is_warm and at >= self._lost_at:
            if self.warm_since is None:
                self.warm_since = at
            self.answers += 1
            self.is_warm = True
            self.is_exhausted = False

    def meets(self, request: httpx.Request, response: httpx.Response) -> None:
        """Note an answer to a request that the guard did not look after."""
        if shows_route(request.url.raw_path, response.status_code, response.headers):
            self.has_shown_trainer = True

    def exhausted(self, now: float, key: Hashable) -> None:
        """Note that the whole budget of a request with this key has ended."""
        self.is_warm, self.is_exhausted, self._lost_at = False, True, now
        if self.warm_since is None:
            self._exhausted_by.add(key)

    def stopped(self, now: float) -> None:
        """Note that the job is gone or stopped: one that is resumed is warmed anew."""
        self.is_warm = self.is_exhausted = self.has_shown_trainer = False
        self.warm_since, self._lost_at = None, now
        self._exhausted_by.clear()

    def meets_another_router(self, now: float) -> None:
        """Note that another application has answered what the trainer's router knows.

        It would answer probes too, and what it says to them must not pass for the trainer's word.
        """
        self._router_doubted_until = now + _DOUBTED_FOR

    def believes_routers(self, now: float) -> bool:
        """Whether a probe whose path some router does not know has reached the trainer."""
        return self.has_shown_trainer and now >= self._router_doubted_until

    def picks_replica_per_request(self, now: float) -> None:
        """Note that of two requests on one connection, one was routed and one was not."""
        self._balanced_until = now + _BALANCED_FOR

    def is_balanced_per_request(self, now: float) -> bool:
        """Whether the gateway was lately seen to pick a replica for each request."""
        return now < self._balanced_until

    def flights(self, key: Hashable) -> Flights:
        """What is found out together on the running event loop, or by all threads of sync clients.

        Args:
            key: The credentials and the control plane, as `SharedControlPlane.key_for` gives it.
        """
        if not runtime.is_blocking():
            # A loop's flights are used by its own thread alone.
            return self._known(key)
        with self._lock:
            return self._known(key)

    def _known(self, key: Hashable) -> Flights:
        by_key = self._flights_of(runtime.owner())
        # Taken out and put in again: the order of the dictionary is that of use.
        flights = by_key.pop(key, None) or Flights(key)
        excess = len(by_key) + 1 - _KEYS
        if excess > 0:
            # A request that reads a 404, or sleeps, leads and waits in none of its flights.
            held = [guarded.flights for guarded in tuple(self.under_way)]
            idle = [
                other
                for other, known in by_key.items()
                if not known.are_under_way and known not in held
            ]
            for other in idle[:excess]:
                del by_key[other]
        by_key[flights.key] = flights
        return flights

    def forget_closed_loops(self) -> None:
        """Forget what was found out, and is still under way, on event loops that were closed.

        What was waited for there refers to its loop, which the weak keys cannot undo; and the
        requests that lead or wait refer to themselves by it, so that they would never end.
        """
        # Another thread may add its own loop meanwhile, hence a list of them first.
        for reference in self._flights.keyrefs():
            known = reference()
            if known is not None and known.is_closed():
                gone = self._flights.pop(known, {}).values()
                left = [guarded for guarded in tuple(self.under_way) if guarded.flights in gone]
                self.under_way.difference_update(left)

    def _flights_of(self, owner: _Owner) -> dict[Hashable, Flights]:
        by_key = self._flights.get(owner)
        if by_key is None:
            self.forget_closed_loops()
            by_key = self._flights[owner] = {}
        return by_key


_AMBIGUOUS_LIMIT: Final = 3


_BALANCED_FOR: Final = 30.0
"""Seconds for which it is remembered that a gateway picks a replica for each request."""


_RECENT: Final = 256
"""URLs that are remembered: those of a run's operations, and some with ids in them."""


_PATH_AND_BEFORE: Final = 5
"""Which of a URL's parts a route depends on: not the query, which may differ each time."""


_DEFAULT: Final = patterns_of()


class RouteTable:
    """The routes that a process has met; beyond `limit`, the least recently used are dropped.

    One that a guarded request is under way on is never dropped. Safe among threads.
    """

    def __init__(self, limit: int = 1024) -> None:
        self._limit = limit
        self._states: dict[_Key, RouteState] = {}
        # A short cut, by the patterns and all of a URL but a query. Emptied by putting another
        # one in its place, so that a thread which looks something up needs no lock.
        self._recent: dict[_Place, RouteState] = {}
        self._next_use = itertools.count().__next__
        self._last: RouteState | None = None
        """The route that was used last, which need not be noted again."""
        self._lock = threading.RLock()

    def find(self, url: httpx.URL, patterns: RoutePatterns = _DEFAULT) -> RouteState | None:
        """The state of the trainer route that `url` lies on; None if it lies on none.

        Args:
            url: The URL.
            patterns: What routes look like. Those of equal patterns share their state.
        """
        # httpx's public properties make bytes of each part, which is most of a look-up's cost.
        parts = url._uri_reference
        # Taken before the look-up: where a route is dropped meanwhile, this one is replaced, and
        # what is put in below is never looked at.
        recent = self._recent
        # The parts as they are, since another tuple of them would cost as much as the look-up.
        place: _Place = (patterns, parts)
        state = recent.get(place)
        if state is None and parts.query is not None:
            place = (patterns, parts[:_PATH_AND_BEFORE])
            state = recent.get(place)
        if state is not None:
            if state is not self._last:
                self._note_use(state)
            return state
        scheme, userinfo, host, port, path, _, _ = parts
        state = self._find(patterns, scheme, host, port, path)
        # A password would be kept as long as the process runs.
        if state is not None and not userinfo:
            if len(recent) >= _RECENT:
                recent = self._recent = {}
            recent[place] = state
        return state

    def _find(
        self, patterns: RoutePatterns, scheme: str, host: str, port: int | None, path: str
    ) -> RouteState | None:
        found = patterns.find(scheme, host, port, path)
        if found is None:
            return None
        pattern, base = found
        key = (pattern.text, scheme, host, port, base)
        state = self._states.get(key) or self._add(key, pattern.route(*key[1:]))
        self._note_use(state)
        return state

    def find_deployment(self, request: httpx.Request) -> RouteState | None:
        """The state of the deployment's route that a hot-load or a completion is on.

        Args:
            request: The request. Its URL is on no trainer route.

        Returns:
            None for any other request.
        """
        named = named_deployment(request)
        if named is None:
            return None
        base, name = named
        scheme, _, host, port, _, _, _ = request.url._uri_reference
        key = (base, scheme, host, port, name)
        state = self._states.get(key)
        if state is None:
            route = Route.of_deployment(*key)
            if route is None:
                return None
            state = self._add(key, route)
        self._note_use(state)
        return state

    def _note_use(self, state: RouteState) -> None:
        # Threads may do this at the same time: the order is off by one use then, until the next.
        state.last_used = self._next_use()
        self._last = state

    def clear(self) -> None:
        """Forget every route."""
        self._states, self._recent, self._last = {}, {}, None
        # After a fork, a thread that held the lock does not exist in the child.
        self._lock = threading.RLock()

    def _add(self, key: _Key, route: Route) -> RouteState:
        with self._lock:
            # Another thread may have met the same route meanwhile.
            state = self._states.get(key)
            if state is None:
                self._make_room()
                state = RouteState(route)
                # Before another thread can see it: it would be the first one to be dropped.
                state.last_used = self._next_use()
                self._states[key] = state
        return state

    def _make_room(self) -> None:
        excess = len(self._states) + 1 - self._limit
        if excess <= 0:
            return
        # A signal handler may add a route meanwhile.
        for state in list(self._states.values()):
            if state.under_way:
                state.forget_closed_loops()
        idle = [item for item in list(self._states.items()) if not item[1].under_way]
        idle.sort(key=lambda item: item[1].last_used)
        for key, _ in idle[:excess]:
            self._states.pop(key, None)
        self._recent = {}


ROUTES: Final = RouteTable()
"""The routes of this process; one warmup serves every transport."""


# A child has other connections and no tasks of its parent: what a parent's task led at the fork
# would never end there.
if hasattr(os, "register_at_fork"):  # pragma: no branch - no other system forks
    os.register_at_fork(after_in_child=ROUTES.clear)
