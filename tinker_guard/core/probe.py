"""One probe: a cheap request whose answer shows whether a route is known."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import httpx

from tinker_guard import faults, telemetry
from tinker_guard.core.findings import Failed, NotFound, Reached
from tinker_guard.core.guarded_request import SEEN_TO
from tinker_guard.policy.not_found import Source, author_of, is_from_trainer
from tinker_guard.policy.pacing import retry_after
from tinker_guard.policy.reach import Reach, cookies_set_by
from tinker_guard.transports import runtime
from tinker_guard.transports.body_prefix import read_prefix
from tinker_guard.transports.cleanup import discard, unless_abandoned
from tinker_guard.transports.failure import failure_of

if TYPE_CHECKING:
    from tinker_guard.core.findings import ProbeResult
    from tinker_guard.core.guarded_request import GuardedRequest
    from tinker_guard.transports.body_prefix import BodyPrefix


async def probe(guarded: GuardedRequest) -> ProbeResult:
    """Send one probe over the transport that the request will be sent over."""
    settings, state = guarded.settings, guarded.state
    had_shown_trainer = state.believes_routers(guarded.clock())
    reach = Reach.of(guarded.request)
    timeout = httpx.Timeout(min(settings.probe_timeout, runtime.LONGEST_WAIT))
    request = httpx.Request(
        "GET",
        state.route.url + settings.warmup_probe_path,
        # A cache's copy would prove nothing.
        headers=[*reach.headers, (b"cache-control", b"no-cache, no-store")],
        extensions={"timeout": timeout.as_dict(), **reach.extensions},
    )
    result: ProbeResult = Failed()
    # The `id()` alone, as in `GuardedRequest`.
    transport_error_id: int | None = None
    guarded.probes += 1
    try:
        with telemetry.probe_span(request, state, settings) as report:
            async with runtime.timeout(settings.probe_timeout):
                guarded.probed_on = guarded.line.transport
                before = SEEN_TO.set(request.stream)
                try:
                    response = await report.send(guarded.probed_on)
                except Exception as error:
                    transport_error_id = id(error)
                    raise
                finally:
                    with suppress(ValueError):
                        SEEN_TO.reset(before)
                met_at = guarded.clock()
                async with unless_abandoned(lambda: discard(response)):
                    body = await read_prefix(response)
                    result = _result_of(guarded, response, body, met_at, had_shown_trainer)
                    if response.status_code == 404:
                        is_trainers = isinstance(result, Reached)
                        report.met_404(body.of(response), is_trainers=is_trainers)
            report.result = _WORDS[type(result)]
    except (httpx.HTTPError, httpx.StreamError, OSError) as error:
        # Refused, broken or too slow.
        result = Failed(failure_of(error))
    except asyncio.CancelledError:
        if runtime.is_cancelled():
            raise
    except Exception as error:
        if id(error) == transport_error_id:
            faults.log_foreign_error()
            result = Failed(failure_of(error))
        else:
            faults.log_fault("a probe")
    if isinstance(result, Reached):
        state.has_shown_trainer = True
    return result


_WORDS: Final = {Reached: "reached", NotFound: "not_found", Failed: "failed"}


def _result_of(
    guarded: GuardedRequest,
    response: httpx.Response,
    body: BodyPrefix,
    met_at: float,
    had_shown_trainer: bool,
) -> ProbeResult:
    answer = body.of(response)
    if response.status_code == 404:
        source = author_of(
            answer,
            had_shown_trainer=had_shown_trainer,
            shapes=guarded.shapes,
            ids=guarded.state.route.ids,
        )
        if source is not Source.TRAINER:
            asked_to_wait = retry_after(response.headers, now=time.time())
            return NotFound.of(response, body, source, met_at, asked_to_wait)
    elif not (body.is_complete and is_from_trainer(answer)):
        return Failed(status_code=response.status_code)
    return Reached(met_at, cookies_set_by(response))
