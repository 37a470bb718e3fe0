"""Two replicas of a gateway behind a balancer, in front of the local trainer."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import ExitStack, contextmanager
from itertools import cycle, repeat
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from testkit.programs import free_port
from testkit.relay import Balancer
from tinker_guard.gateway import LocalGateway
from tinker_guard.gateway.app import App

from .programs import ROUTE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .programs import Gateway

Fault: TypeAlias = Literal["none", "late", "lost"]
"""The second replica learns the route late, or loses it as the third step begins."""

SECONDS: Final = 1.5
"""How long after a route is lost the gateway is told of it again."""
STEP: Final = 3


class Outage:
    """A route that is lost for a while.

    Args:
        set_route: Has the gateway learn or lose it, and returns when it has.
    """

    def __init__(self, set_route: Callable[[bool], None]) -> None:
        self.seconds: float = 0.0
        """How long it took."""
        self.held_back: float = 0.0
        """For how long a request was held back until it began."""
        self._set_route = set_route
        self._timer: threading.Timer | None = None

    def begin(self) -> None:
        """Lose the route; it comes back by itself."""
        self._set_route(False)
        self._began_at = time.monotonic()
        self._timer = threading.Timer(SECONDS, self._end)
        self._timer.start()

    def begin_in_a_request(self) -> None:
        """The same, while a request waits for it."""
        asked_at = time.monotonic()
        self.begin()
        self.held_back = time.monotonic() - asked_at

    def _end(self) -> None:
        self._set_route(True)
        self.seconds = time.monotonic() - self._began_at

    def wait(self) -> None:
        """Wait until the route is back."""
        if self._timer is not None:
            self._timer.join()


class Trainer(LocalGateway):
    """The trainer and its control plane, reached through a balancer.

    Args:
        port: Where it listens.
        balancer: What its clients connect to.
        outage: What befalls its route.
        on_step: Called when the third step's first request has come; it is answered afterwards.
    """

    def __init__(
        self, port: int, balancer: Balancer, outage: Outage, on_step: Callable[[], None]
    ) -> None:
        super().__init__(port=port)
        self.outage: Outage = outage
        self._balancer = balancer
        self.app = _Holding(self.app, on_step)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._balancer.port}{ROUTE.rstrip('/')}"


class _Holding(App):
    """Holds one request back until something has been done."""

    def __init__(self, inner: App, on_step: Callable[[], None]) -> None:
        super().__init__(inner.looped)
        self._on_step = on_step
        self._steps = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"].endswith("/forward_backward"):
            self._steps += 1
            if self._steps == STEP:
                await asyncio.to_thread(self._on_step)
        await super().__call__(scope, receive, send)


class Fleet:
    """Both replicas, which run as long as this does.

    Args:
        kind: Which gateway.
        place: An empty directory.
    """

    def __init__(self, kind: type[Gateway], place: Path) -> None:
        self.kind = kind
        self._upstream = free_port()
        self._replicas = []
        for name in ("first", "second"):
            (place / name).mkdir()
            self._replicas.append(kind(place / name, self._upstream))
        self._stack = ExitStack()

    def __enter__(self) -> Fleet:
        with ExitStack() as stack:
            for replica in self._replicas:
                stack.enter_context(replica.running(is_routed=True))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def not_found(self) -> str:
        """What the 404 of a replica without the route looks like."""
        second = self._replicas[1]
        second.set_route(False)
        response = second.not_found()
        assert response is not None
        kind = response.headers.get("content-type", "no type").partition(";")[0]
        server = response.headers.get("server")
        named = f", `Server: {server}`" if server else ""
        return f"{kind}, {len(response.content)} bytes{named}"

    @contextmanager
    def trainer(self, fault: Fault) -> Iterator[Trainer]:
        """A trainer that has done nothing, behind both replicas."""
        first, second = self._replicas

        def lose() -> None:
            if fault == "lost":
                outage.begin_in_a_request()
                balancer.turns = cycle([second.port, first.port])

        # One that loses the route is the one that all connections stick to.
        turns = repeat(second.port) if fault == "lost" else cycle([first.port, second.port])
        balancer = Balancer(turns)
        outage = Outage(second.set_route)
        trainer = Trainer(self._upstream, balancer, outage, lose)
        with balancer, trainer:
            for replica in self._replicas:
                replica.set_route(True)
            if fault == "late":
                outage.begin()
            try:
                yield trainer
            finally:
                outage.wait()
