"""The way of one request: route, gate, send, and after a 404 verdict, recovery, hand back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import httpx

from tinker_guard import logs
from tinker_guard.control_plane import ControlPlane, SharedControlPlane
from tinker_guard.line import Line
from tinker_guard.recovery import Recovery
from tinker_guard.route import ROUTES, RouteState
from tinker_guard.settings import GuardSettings
from tinker_guard.telemetry import RequestReport
from tinker_guard.verdict import NO_CONTROL_PLANE
from tinker_guard.warmup import Gate

if TYPE_CHECKING:
    from collections.abc import Callable


class GuardTransport(httpx.AsyncBaseTransport):
    """An httpx transport that sees a request through the routing races of a trainer's gateway.

    It wraps the transport that does the work. Requests that are on no trainer route, and
    answers other than 404, pass through untouched; a 404 is handed back as the 404 response
    that it is, never as an exception. Needs asyncio.

    `install_guard()` puts one around every transport of the `tinker` SDK. For a client of your
    own:

        make = httpx.AsyncHTTPTransport
        httpx.AsyncClient(transport=GuardTransport(make(), new_transport=make))

    Args:
        transport: The transport to guard. Closed with this one.
        settings: How to behave; None reads `TINKER_GUARD_*` and the defaults.
        control_plane: Whom to ask whether a job runs; None asks the Fireworks control plane at
            the route's own origin, or at `settings.control_plane_url`.
        new_transport: Builds another transport like `transport`, for probes and resends over
            new connections. None sends them over `transport`, where a connection can be stuck
            to a stale replica.

    Raises:
        InvalidSettingsError: A `TINKER_GUARD_*` variable has a value that cannot work.
    """

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport,
        *,
        settings: GuardSettings | None = None,
        control_plane: ControlPlane | None = None,
        new_transport: Callable[[], httpx.AsyncBaseTransport] | None = None,
    ) -> None:
        self._line = Line(transport, new_transport)
        self.configure(settings or GuardSettings(), control_plane)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request; see the class for what may happen on the way."""
        if not self._is_enabled:
            return await self._line.transport.handle_async_request(request)
        try:
            state = ROUTES.find(request.url)
        except Exception:
            logs.log_fault("reading the route")
            state = None
        with RequestReport(request, state, self._settings) as report:
            if state is not None and not state.is_warm:
                refusal = await self._pass_gate(request, state, report)
                if refusal is not None:
                    return report.answered(refusal)
            sent_on = self._line.transport
            response = await report.send(sent_on)
            if response.status_code == 404:
                response = await self._after_404(request, response, sent_on, state, report)
            return report.answered(response)

    async def _pass_gate(
        self, request: httpx.Request, state: RouteState, report: RequestReport
    ) -> httpx.Response | None:
        try:
            return await self._gate.wait(request, self._line, state, report)
        except Exception:
            logs.log_fault("the warmup")
            return None

    async def _after_404(
        self,
        request: httpx.Request,
        response: httpx.Response,
        sent_on: httpx.AsyncBaseTransport,
        state: RouteState | None,
        report: RequestReport,
    ) -> httpx.Response:
        report.wake()
        if state is None:
            report.judged(NO_CONTROL_PLANE)
            return response
        try:
            recovery = Recovery(
                self._settings, self._control_plane, request, self._line, state, report
            )
        except Exception:
            logs.log_fault("the recovery")
            return response
        return await recovery.run(response, sent_on)

    @property
    def transport(self) -> httpx.AsyncBaseTransport:
        """The transport that requests are sent on now."""
        return self._line.transport

    def configure(self, settings: GuardSettings, control_plane: ControlPlane | None) -> None:
        """Use other settings from the next request on; see the class for the arguments."""
        self._settings = settings
        self._control_plane = SharedControlPlane(settings, control_plane)
        self._gate = Gate(settings, self._control_plane)
        self._is_enabled = settings.enabled

    def release(self) -> httpx.AsyncBaseTransport:
        """From now on hand every request through, and return the first wrapped transport.

        Requests under way are seen to their end.
        """
        self._is_enabled = False
        return self._line.release()

    async def __aenter__(self) -> Self:
        await self._line.transport.__aenter__()
        return self

    async def aclose(self) -> None:
        """Close the wrapped transport, and those it was replaced by."""
        await self._line.aclose()
