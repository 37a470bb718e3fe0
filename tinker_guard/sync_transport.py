"""The way of a request of a sync client: the same as in `transport`, in the calling thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import httpx

from tinker_guard.core.routes import ROUTES
from tinker_guard.observability.providers import NOTHING, enabled
from tinker_guard.policy.reach import copy_of
from tinker_guard.telemetry import RequestReport
from tinker_guard.transport import GuardTransport
from tinker_guard.transports.blocking import (
    BlockingTransport,
    blocking_factory,
    response_for_coroutines,
    response_of_client,
)
from tinker_guard.transports.runtime import run_blocking

if TYPE_CHECKING:
    from collections.abc import Callable

    from tinker_guard.control_plane.protocol import AnyControlPlane
    from tinker_guard.settings import GuardSettings


class SyncGuardTransport(httpx.BaseTransport):
    """Guards a transport of a sync client; it waits by blocking the calling thread.

    It needs no event loop and no further thread, and threads may share it. What one of them finds
    out about a route serves them all. A timeout of the guard ends what it waits for, but no
    request under way: that one has the timeouts of its client.

        make = httpx.HTTPTransport
        httpx.Client(transport=SyncGuardTransport(make(), new_transport=make))

    Args:
        transport: The transport to guard. Closed with this one.
        settings: How to behave; None reads `TINKER_GUARD_*` and the defaults.
        control_plane: As for `GuardTransport`. One of your own must not need an event loop.
        new_transport: As for `GuardTransport`.
        routes_only: As for `GuardTransport`.

    Raises:
        InvalidSettingsError: A `TINKER_GUARD_*` variable has a value that cannot work.
    """

    def __init__(
        self,
        transport: httpx.BaseTransport,
        *,
        settings: GuardSettings | None = None,
        control_plane: AnyControlPlane | None = None,
        new_transport: Callable[[], httpx.BaseTransport] | None = None,
        routes_only: bool = False,
    ) -> None:
        self._original = transport
        self._blocking = BlockingTransport(transport)
        self._guard = GuardTransport(
            self._blocking,
            settings=settings,
            control_plane=control_plane,
            new_transport=blocking_factory(new_transport),
            routes_only=routes_only,
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request; see `GuardTransport` for what may happen on the way."""
        guard = self._guard
        state, given = None, request
        try:
            state = ROUTES.find(request.url, guard._patterns)
            if state is None and guard._guards_deployments:
                state = ROUTES.find_deployment(request)
            # As below for coroutines, which cost more than all the rest: a request needs them on a
            # route that is not warm, after a 404, or where it is observed.
            is_untouched = (
                (state is None or state.is_warm)
                and (enabled() is NOTHING or (state is None and guard._routes_only))
                and guard._is_enabled
                and guard._line.transport is self._blocking
            )
            if is_untouched and guard._line.may_change_requests:
                given = copy_of(request)
        except Exception:
            # The coroutine meets the same, and says so.
            is_untouched = False
        if not is_untouched:
            return response_of_client(
                run_blocking(guard.handle_async_request(request), is_request=True)
            )
        response = self._original.handle_request(request)
        if state is None:
            return response
        if response.status_code != 404:
            if not state.is_warm:
                state.meets(given, response)
            return response
        report = RequestReport(given, state, guard._settings)
        not_found = response_for_coroutines(response)
        recovery = guard._after_404(given, state, report, self._blocking, not_found)
        return response_of_client(run_blocking(recovery, is_request=True))

    @property
    def settings(self) -> GuardSettings:
        """How it behaves now."""
        return self._guard.settings

    def configure(self, settings: GuardSettings, control_plane: AnyControlPlane | None) -> None:
        """Use other settings from the next request on; the arguments are those of the class."""
        self._guard.configure(settings, control_plane)

    def release(self) -> httpx.BaseTransport:
        """Stop guarding the requests that come later; return the first wrapped transport.

        Requests under way are seen to their end.
        """
        self._guard.release()
        return self._original

    def __enter__(self) -> Self:
        run_blocking(self._guard.__aenter__())
        return self

    def __exit__(self, *error: Any) -> None:
        self._guard._line.left_by = error
        self.close()

    def close(self) -> None:
        """Close the wrapped transport and its replacements; what waits fails after its pause."""
        run_blocking(self._guard.aclose())
