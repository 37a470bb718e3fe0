"""Breaks the guard in a client process, to see that the judge finds it out: `--sabotage NAME`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import httpx

from tinker_guard.control_plane import SharedControlPlane
from tinker_guard.line import _Spare
from tinker_guard.recovery import Recovery
from tinker_guard.transport import GuardTransport
from tinker_guard.verdict import Answer

if TYPE_CHECKING:
    from collections.abc import Callable


def _put(owner: type, function: Any, name: str = "") -> None:
    setattr(owner, name or function.__name__, function)


def no_resend() -> None:
    """Hand every 404 back."""

    async def run(self: Recovery, not_found: httpx.Response, _: Any) -> httpx.Response:
        return not_found

    _put(Recovery, run)


def never_asks() -> None:
    """Take every 404 for a race."""

    async def ask(*_: Any) -> Answer:
        return Answer(state="JOB_STATE_RUNNING")

    _put(SharedControlPlane, ask)


def other_body() -> None:
    """Resend another body."""
    original = Recovery._resend

    async def resend(self: Recovery, pause: float) -> None:
        content = self._request.content + b" "
        self._request.stream = httpx.ByteStream(content)
        self._request.headers["content-length"] = str(len(content))
        await original(self, pause)

    _put(Recovery, resend, "_resend")


def leaks_tasks() -> None:
    """Leave a task behind with every tenth request."""
    original = GuardTransport.handle_async_request
    left: list[Any] = []

    async def handle(self: GuardTransport, request: httpx.Request) -> httpx.Response:
        left.append(None)
        if len(left) % 10 == 0:
            left.append(asyncio.ensure_future(asyncio.sleep(1e6)))
        return await original(self, request)

    _put(GuardTransport, handle, "handle_async_request")


def leaks_connections() -> None:
    """Never close a transport that a probe was sent over, or that was replaced."""
    left: list[Any] = []

    async def aclose(self: _Spare) -> None:
        left.append(self.transport)
        self.is_closed = True

    _put(_Spare, aclose)


def leaks_memory() -> None:
    """Keep some kilobytes of every request."""
    original = GuardTransport.handle_async_request
    left: list[bytes] = []

    async def handle(self: GuardTransport, request: httpx.Request) -> httpx.Response:
        left.append(bytes(20_000))
        return await original(self, request)

    _put(GuardTransport, handle, "handle_async_request")


class JobGoneError(Exception):
    """Looks like an exception of the guard's."""

    __module__ = "tinker_guard.recovery"


def own_exception() -> None:
    """Raise something of its own in the place of a 404."""
    original = Recovery.run

    async def run(self: Recovery, *given: Any) -> httpx.Response:
        response = await original(self, *given)
        if response.status_code == 404:
            raise JobGoneError
        return response

    _put(Recovery, run)


def waits_for_ever() -> None:
    """Let every hundredth recovery hang."""
    original = Recovery.run
    runs: list[None] = []

    async def run(self: Recovery, *given: Any) -> httpx.Response:
        runs.append(None)
        if len(runs) % 100 == 0:
            await asyncio.Event().wait()
        return await original(self, *given)

    _put(Recovery, run)


def key_to_strangers() -> None:
    """Ask the control plane with the request's key, though it has one of its own."""
    original = SharedControlPlane.__init__

    def init(self: SharedControlPlane, settings: Any, control_plane: Any = None) -> None:
        original(self, settings.model_copy(update={"control_plane_api_key": None}), control_plane)

    _put(SharedControlPlane, init, "__init__")


SABOTAGE: Final[dict[str, Callable[[], None]]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        no_resend,
        never_asks,
        other_body,
        leaks_tasks,
        leaks_connections,
        leaks_memory,
        own_exception,
        waits_for_ever,
        key_to_strangers,
    )
}
