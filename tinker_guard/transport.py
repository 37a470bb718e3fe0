"""The way of one request: route, gate, send, and after a 404 verdict, recovery, hand back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import httpx

from tinker_guard import faults
from tinker_guard.control_plane.shared import SharedControlPlane
from tinker_guard.core.deployments import settings_by_path
from tinker_guard.core.findings import INCONCLUSIVE, Refused, Routable, TimedOut
from tinker_guard.core.guarded_request import HANDED_BACK, SEEN_TO, GuardedRequest
from tinker_guard.core.recovery import recover
from tinker_guard.core.routes import ROUTES, RouteState
from tinker_guard.core.warmup import pass_gate
from tinker_guard.observability.providers import NOTHING, enabled
from tinker_guard.policy.answer import Answer
from tinker_guard.policy.judgement import NO_CONTROL_PLANE
from tinker_guard.policy.reach import copy_of
from tinker_guard.policy.route import patterns_of
from tinker_guard.settings import GuardSettings, check_type
from tinker_guard.telemetry import RequestReport
from tinker_guard.transports import runtime
from tinker_guard.transports.draining import CLOSED
from tinker_guard.transports.renewable import RenewableTransport, layers

if TYPE_CHECKING:
    from collections.abc import Callable

    from tinker_guard.control_plane.protocol import AnyControlPlane
    from tinker_guard.core.findings import ProbingEnd
    from tinker_guard.policy.judgement import Judgement


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
        control_plane: Whom to ask whether a job runs; None asks the one that the settings name.
        new_transport: Builds another transport like `transport`, for probes and resends over
            new connections; it is closed, but not entered. None sends them over `transport`,
            where a connection can be stuck to a stale replica.
        routes_only: Whether requests that are on no trainer route are handed through unseen: they
            have no spans, no metrics, and no verdict on a 404.

    Raises:
        InvalidSettingsError: A `TINKER_GUARD_*` variable has a value that cannot work, or an
            argument is of a wrong type.
    """

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport,
        *,
        settings: GuardSettings | None = None,
        control_plane: AnyControlPlane | None = None,
        new_transport: Callable[[], httpx.AsyncBaseTransport] | None = None,
        routes_only: bool = False,
    ) -> None:
        self._line = RenewableTransport(transport, new_transport)
        self._routes_only = routes_only
        self.configure(GuardSettings() if settings is None else settings, control_plane)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request, through a warmup or a recovery where it needs one."""
        if (sent_on := self._line.transport) is CLOSED:
            self._line = self._line.reopened()
            sent_on = self._line.transport
        if not self._is_enabled:
            return await sent_on.handle_async_request(request)
        given = request
        try:
            state = ROUTES.find(request.url, self._patterns)
            if state is None and self._guards_deployments:
                state = ROUTES.find_deployment(request)
            if self._line.may_change_requests:
                given = copy_of(request)
        except Exception:
            faults.log_fault("reading the route")
            state = None
        if state is None and self._routes_only:
            return await sent_on.handle_async_request(request)
        if (state is None or state.is_warm) and enabled() is NOTHING:
            response = await sent_on.handle_async_request(request)
            if response.status_code != 404:
                if state is not None and not state.is_warm:
                    state.meets(given, response)
                return response
            report = RequestReport(given, state, self._settings)
            return await self._after_404(given, state, report, sent_on, response)
        if SEEN_TO.get() is request.stream:
            # A guard above sees to it.
            return await sent_on.handle_async_request(request)
        with RequestReport(request, state, self._settings) as report:
            if state is not None and not state.is_warm:
                return report.answered(await self._send_on_cold_route(request, state, report))
            response = await report.send(sent_on, request)
            if response.status_code == 404:
                response = await self._after_404(given, state, report, sent_on, response)
            elif state is not None and not state.is_warm:
                state.meets(given, response)
            return report.answered(response)

    async def _after_404(
        self,
        request: httpx.Request,
        state: RouteState | None,
        report: RequestReport,
        sent_on: httpx.AsyncBaseTransport,
        response: httpx.Response,
    ) -> httpx.Response:
        """See to a 404 of a request that was not looked after until then."""
        report.promote()
        if SEEN_TO.get() is request.stream:
            return response
        judgement = None
        try:
            judgement = self._verdict_below(response)
        except Exception:
            faults.log_fault("looking for a guard below")
        if judgement is not None:
            report.judged(judgement)
        elif state is None:
            report.judged(NO_CONTROL_PLANE)
        elif guarded := self._look_after(request, state, report, is_at_gate=False):
            guarded.sent_on = sent_on
            try:
                return await recover(guarded, response)
            finally:
                guarded.state.under_way.discard(guarded)
        return response

    def _verdict_below(self, response: httpx.Response) -> Judgement | None:
        """The verdict with which a guard below has handed back a 404."""
        judgement = HANDED_BACK.get(response)
        if judgement is None:
            return None
        # A transport of a test may answer with the same response again and again.
        has_guard_below = any(
            isinstance(each, GuardTransport)
            for layer in layers(self._line.transport)
            for each in (layer, *getattr(layer, "__dict__", {}).values())
        )
        return judgement if has_guard_below else None

    async def _send_on_cold_route(
        self, request: httpx.Request, state: RouteState, report: RequestReport
    ) -> httpx.Response:
        guarded = self._look_after(request, state, report, is_at_gate=True)
        if guarded is None:
            return await report.send(self._line.transport, request)
        end: ProbingEnd = INCONCLUSIVE
        try:
            try:
                end = await pass_gate(guarded)
                if isinstance(end, Refused | TimedOut) and (found := end.not_found):
                    report.met_404(Answer(found.headers, found.body), is_trainers=False)
                    not_found = found.response(request.method)
                    return guarded.hand_back(not_found, end.judgement)
            except Exception:
                faults.log_fault("the warmup")
            response = await guarded.send(end.cookies if isinstance(end, Routable) else ())
            if response.status_code == 404:
                report.promote()
                return await recover(guarded, response)
            try:
                guarded.answered(response, end)
            except Exception:
                faults.log_fault("noting an answer")
            return response
        finally:
            guarded.state.under_way.discard(guarded)

    def _look_after(
        self, request: httpx.Request, state: RouteState, report: RequestReport, *, is_at_gate: bool
    ) -> GuardedRequest | None:
        try:
            if not runtime.is_running():
                faults.log_no_loop()
                return None
            # Since the request was sent, a process with many routes may have forgotten this one,
            # and other settings may explain it no more.
            found = ROUTES.find(request.url, self._patterns) or ROUTES.find_deployment(request)
            state = found or state
            is_deployments = state.route.deployment is not None
            settings = self._for_deployments[state.route.path] if is_deployments else self._settings
            return GuardedRequest(
                request,
                state,
                self._line,
                settings,
                self._control_plane,
                report,
                is_at_gate=is_at_gate,
            )
        except Exception:
            faults.log_fault("looking after a request")
            return None

    @property
    def transport(self) -> httpx.AsyncBaseTransport:
        """The transport that requests are sent on now."""
        return self._line.transport

    @property
    def settings(self) -> GuardSettings:
        """How it behaves now."""
        return self._settings

    def configure(self, settings: GuardSettings, control_plane: AnyControlPlane | None) -> None:
        """Use other settings from the next request on; the arguments are those of the class."""
        check_type(settings)
        self._settings = settings
        self._control_plane = SharedControlPlane(settings, control_plane)
        self._patterns = patterns_of(settings.routes)
        self._is_enabled = settings.enabled
        self._guards_deployments = settings.deployments
        self._for_deployments = settings_by_path(settings)

    def release(self) -> httpx.AsyncBaseTransport:
        """Stop guarding the requests that come later; return the first wrapped transport."""
        self._is_enabled = False
        return self._line.release()

    async def __aenter__(self) -> Self:
        await self._line.enter()
        return self

    async def __aexit__(self, *error: Any) -> None:
        self._line.left_by = error
        await self.aclose()

    async def aclose(self) -> None:
        """Close the wrapped transport and its replacements; what waits fails after its pause."""
        await self._line.aclose()
