"""Asks the control plane whether a job runs, once for all requests that want to know."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

import httpx
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_fixed

from tinker_guard import telemetry
from tinker_guard.control_plane.chosen import (
    ImportedControlPlane,
    ask,
    asks_about,
    control_plane_of,
)
from tinker_guard.control_plane.fireworks import FireworksControlPlane
from tinker_guard.control_plane.http import HttpControlPlane
from tinker_guard.control_plane.kubernetes import KubernetesControlPlane
from tinker_guard.control_plane.protocol import ControlPlaneError, check_given, is_state_name
from tinker_guard.control_plane.question import CREDENTIAL_HEADERS, DisconnectedError
from tinker_guard.policy.judgement import (
    CONTROL_PLANE_ERROR,
    CONTROL_PLANE_TIMEOUT,
    NO_CONTROL_PLANE,
    JobAnswer,
    is_in_force,
)
from tinker_guard.policy.reach import Reach, credentials_of
from tinker_guard.transports import runtime

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Hashable

    from tinker_guard.control_plane.protocol import AnyControlPlane
    from tinker_guard.core.routes import RouteState
    from tinker_guard.policy.route import Route
    from tinker_guard.settings import GuardSettings
    from tinker_guard.transports.renewable import RenewableTransport


_T = TypeVar("_T")


class SharedControlPlane:
    """One control plane, asked by one request at a time for each route, event loop and key.

    Requests that want to know while a lookup is under way wait for its answer, and use it if it
    is in force for their 404 (`is_in_force`). A request that is cancelled while it asks takes
    nothing with it: the next one asks.
    """

    def __init__(
        self, settings: GuardSettings, control_plane: AnyControlPlane | None = None
    ) -> None:
        if control_plane is not None:
            check_given(control_plane)
        self._given = control_plane
        self._control_plane = control_plane or control_plane_of(settings)
        self._is_default = control_plane is None and settings.control_plane is None
        self._settings = settings
        self._timeout = settings.control_plane_timeout
        self._identity: Hashable = (
            self._control_plane
            if isinstance(self._control_plane, _BUILT_IN)
            else _Same(self._control_plane)
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are made anew: settings may find their key where they arrive."""
        return type(self), (self._settings, self._given)

    def asks_about(self, route: Route) -> bool:
        """Whether there is a control plane that can be asked about a route.

        If not, a 404 there is judged by what has reached the trainer: see `judge_by_reach`.
        """
        return asks_about(self._control_plane, route, is_default=self._is_default)

    def key_for(self, request: httpx.Request) -> Hashable:
        """With whom a request shares what it finds out: same credentials, same control plane."""
        # Kept for as long as the route, so not the credentials themselves.
        told_apart = (*Reach.of(request), credentials_of(request))
        digest = hashlib.sha256(repr(told_apart).encode()).digest()
        return self._identity, digest

    async def ask(
        self,
        state: RouteState,
        request: httpx.Request,
        line: RenewableTransport | None = None,
        *,
        not_found_at: float | None = None,
    ) -> JobAnswer:
        """Ask about a route's job; never raises but for cancellation.

        Args:
            state: The route.
            request: The guarded request, for its credentials.
            line: What the guarded request goes over. So does a lookup at the route's own origin,
                if it may: that request's proxy may be the only way there.
            not_found_at: When the 404 came that is to be judged; None for now.
        """
        clock = runtime.clock()
        since = clock() if not_found_at is None else not_found_at
        flights = state.flights(self.key_for(request))

        async def look_up() -> JobAnswer:
            answer = await self._look_up(state, request, line)
            if not answer.is_missing:
                if answer.failure is None:
                    flights.missing_since = None
            elif flights.missing_since is None:
                flights.missing_since = answer.asked_at
            return answer

        return await flights.lookup.run(
            look_up,
            accepts=lambda answer: is_in_force(
                answer, now=clock(), not_found_at=since, ttl=self._settings.verdict_ttl
            ),
        )

    async def _look_up(
        self, state: RouteState, request: httpx.Request, line: RenewableTransport | None
    ) -> JobAnswer:
        clock = runtime.clock()
        asked_at = clock()
        if getattr(self._control_plane, "is_key_lost", False):
            return JobAnswer(
                failure=NO_CONTROL_PLANE,
                detail="the key that was given for the control plane is not in this process, so "
                "that it is not asked. Set TINKER_GUARD_CONTROL_PLANE_API_KEY.",
            ).timed(asked_at, asked_at)

        def begin() -> None:
            nonlocal asked_at
            asked_at = clock()

        with telemetry.lookup_span(state, self._settings) as report:
            answer = await self._answer(state, request, line, begin)
            report.answered(answer)
        return answer.timed(asked_at, clock())

    @asynccontextmanager
    async def _plane_on(
        self, line: RenewableTransport | None, request: httpx.Request, origin: str
    ) -> AsyncIterator[AnyControlPlane]:
        plane = self._control_plane
        assert plane is not None
        if not (isinstance(plane, _OVER_HTTP) and plane.is_at(origin)):
            yield plane
            return
        plane = replace(plane, reach=Reach.of(request).to_origin())
        if line is None or plane.transport is not None:
            yield plane
            return
        async with line.lookup_transport() as transport:
            yield replace(plane, transport=transport)

    async def _answer(
        self,
        state: RouteState,
        request: httpx.Request,
        line: RenewableTransport | None,
        begin: Callable[[], None],
    ) -> JobAnswer:
        route = state.route
        name = type(self._control_plane).__name__
        sent = request.headers
        credentials = {header: sent[header] for header in CREDENTIAL_HEADERS if header in sent}
        try:
            async with (
                self._plane_on(line, request, route.origin) as plane,
                runtime.timeout(self._timeout),
            ):
                job_state, phase = await _ask_twice(lambda: ask(plane, route, credentials), begin)
            if job_state is not None and not is_state_name(job_state):
                raise ControlPlaneError(
                    f"{name}.job_state() must return None or a state's name such as "
                    "JOB_STATE_RUNNING."
                )
        except (TimeoutError, httpx.TimeoutException):
            return JobAnswer(
                failure=CONTROL_PLANE_TIMEOUT,
                detail=f"the control plane did not answer within {self._timeout:g} s. "
                "TINKER_GUARD_CONTROL_PLANE_TIMEOUT allows it longer.",
            )
        except asyncio.CancelledError:
            if runtime.is_cancelled():
                raise
            return JobAnswer(failure=CONTROL_PLANE_ERROR, detail=f"{name} cancelled itself.")
        except ControlPlaneError as error:
            return JobAnswer(
                failure=CONTROL_PLANE_ERROR,
                detail=str(error),
                status_code=error.status_code,
                retry_after=_pause_of(error),
            )
        except Exception as error:
            # Only the type: the text of somebody else's error may hold a header or a URL.
            return JobAnswer(
                failure=CONTROL_PLANE_ERROR, detail=f"{name} raised {type(error).__name__}."
            )
        found = 404 if job_state is None else 200
        is_http = isinstance(self._control_plane, _OVER_HTTP)
        return JobAnswer(
            state=job_state, status_code=found if is_http else None, stated_phase=phase
        )


async def _ask_twice(call: Callable[[], Coroutine[Any, Any, _T]], begin: Callable[[], None]) -> _T:
    """Ask, and once more if the connection breaks; `begin` is called before each question."""

    async def ask_once() -> _T:
        begin()
        return await runtime.isolated(call)

    retrying = AsyncRetrying(
        retry=retry_if_exception_type(DisconnectedError),
        stop=stop_after_attempt(2),
        wait=wait_fixed(0.05),
        sleep=runtime.sleep,
        reraise=True,
    )
    answer: _T = await retrying(ask_once)
    return answer


_LONGEST_PAUSE: Final = 60.0
"""Seconds for which a control plane is not asked because it wishes so. Servers under maintenance
name hours; all 404s until then would have no verdict."""


def _pause_of(error: ControlPlaneError) -> float:
    """Seconds for which not to ask again; a user's class may have put anything there."""
    try:
        seconds = float(error.retry_after)
    except OverflowError:
        return _LONGEST_PAUSE
    except (TypeError, ValueError):
        return 0.0
    # What is no number is not above 0.
    return min(seconds, _LONGEST_PAUSE) if seconds > 0 else 0.0


_OVER_HTTP: Final = (FireworksControlPlane, HttpControlPlane)
_BUILT_IN: Final = (*_OVER_HTTP, KubernetesControlPlane, ImportedControlPlane)
"""Equal ones are one: every transport has one of its own."""


class _Same:
    """Equal to another one for the very same object, which it keeps alive.

    An `id()` could be given to another control plane once the first one is gone.
    """

    __slots__ = ("_object",)

    def __init__(self, it: object) -> None:
        self._object = it

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other._object is self._object

    def __hash__(self) -> int:
        return id(self._object)
