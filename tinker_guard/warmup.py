"""The gate in front of a cold route: its first requests wait until probes reach the trainer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import httpx

from tinker_guard import logs, telemetry
from tinker_guard.probing import Probing

if TYPE_CHECKING:
    from tinker_guard.control_plane import SharedControlPlane
    from tinker_guard.line import Line
    from tinker_guard.route import RouteState
    from tinker_guard.settings import GuardSettings
    from tinker_guard.telemetry import RequestReport
    from tinker_guard.verdict import Refusal


class Gate:
    """Holds a cold route's requests back until `warmup_successes` probes in a row got through.

    One request leads, the others wait for what it finds; a leader that is cancelled hands over
    to the next.
    """

    def __init__(self, settings: GuardSettings, control_plane: SharedControlPlane) -> None:
        self._settings = settings
        self._control_plane = control_plane

    async def wait(
        self, request: httpx.Request, line: Line, state: RouteState, report: RequestReport
    ) -> httpx.Response | None:
        """Wait until the route is warm.

        Returns:
            None when the request may be sent; the 404 to hand back when the job is stopped or
            missing, or when `warmup_timeout` is over.
        """
        clock = asyncio.get_running_loop().time
        came_at = clock()
        deadline = came_at + self._settings.warmup_timeout

        async def lead() -> Refusal | None:
            # Another one may have opened the gate while this one waited for its turn.
            return None if state.is_warm else await self._warm_up(request, line, state, deadline)

        if self._settings.warmup_successes > 0 and not state.are_probes_blind:
            report.wake()
            try:
                refusal = await state.here.warmup.run(lead)
            finally:
                report.waited(clock() - came_at)
            if refusal is not None:
                report.judged(refusal.judgement)
                not_found = refusal.not_found
                stream = httpx.ByteStream(not_found.body)
                return httpx.Response(404, headers=not_found.headers, stream=stream)
        state.is_warm = True
        return None

    async def _warm_up(
        self, request: httpx.Request, line: Line, state: RouteState, deadline: float
    ) -> Refusal | None:
        clock = asyncio.get_running_loop().time
        started_at = clock()
        probing = Probing(
            self._settings,
            self._control_plane,
            request,
            line,
            state,
            successes=self._settings.warmup_successes,
            # Counted from when this request came: it may have waited for other leaders before.
            timeout=deadline - started_at,
            awaits_start=True,
        )
        with telemetry.warmup_span(state, self._settings) as span:
            refusal = await probing.run()
            seconds = clock() - started_at
            telemetry.note_warmup(
                span,
                state,
                self._settings,
                probes=probing.probes,
                seconds=seconds,
                refusal=refusal,
            )
            if refusal is None:
                logs.log_warm(state, seconds, probing.probes)
            else:
                logs.log_handed_back(state, refusal.judgement, refusal.answer, seconds)
        return refusal
