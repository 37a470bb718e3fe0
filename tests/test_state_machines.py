"""Hypothesis looks for orders of events that a simple model of each part did not foresee."""

from __future__ import annotations

import asyncio
import importlib.machinery
import sys
import types
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    precondition,
    rule,
)

from tests.fakes import (
    Exchange,
    FakeControlPlane,
    FakeGateway,
    FakeTransport,
    gateway_404,
    ok,
    post,
    settle,
    trainer_404,
)
from tests.virtual_time import VirtualTimeLoop
from tinker_guard import GuardSettings, GuardTransport, hooks, install_guard, uninstall_guard
from tinker_guard.hooks import AlreadyInstalledError
from tinker_guard.route import ROUTES
from tinker_guard.sdks import Sdk
from tinker_guard.single_flight import SingleFlight

if TYPE_CHECKING:
    from collections.abc import Coroutine

# The same examples in each run: what fails here fails everywhere.
REPEATABLE = settings(
    derandomize=True, database=None, deadline=None, max_examples=50, stateful_step_count=25
)


class OnALoop(RuleBasedStateMachine):
    """A machine with an event loop in virtual time, which runs until everything waits."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualTimeLoop()

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self.loop.create_task(coroutine)
        self.run()
        return task

    def run(self, seconds: float = 0.0) -> None:
        async def pause() -> None:
            await asyncio.sleep(seconds)
            await settle()

        self.loop.run_until_complete(pause())

    def teardown(self) -> None:
        self.loop.close()


@dataclass(eq=False)
class Asker:
    """One that wants to know, and what the model expects for it."""

    ttl: float
    task: asyncio.Task[Any] = field(init=False)
    found: asyncio.Future[int] = field(init=False)
    is_leading: bool = False


class Flights(OnALoop):
    """`SingleFlight`: the first in line leads, and what it finds is for all in line."""

    def __init__(self) -> None:
        super().__init__()
        self.flight: SingleFlight[int] = SingleFlight()
        self.line: list[Asker] = []
        self.served: list[tuple[Asker, int]] = []
        self.results = 0
        self.last: tuple[float, int] | None = None

    async def lead(self, asker: Asker) -> int:
        asker.is_leading = True
        try:
            return await asker.found
        finally:
            asker.is_leading = False

    def is_fresh_for(self, asker: Asker) -> bool:
        return self.last is not None and self.loop.now - self.last[0] < asker.ttl

    def serve_fresh(self) -> None:
        """Whoever comes to the head of the line takes a result that is fresh enough for it."""
        while self.line and self.is_fresh_for(self.line[0]):
            assert self.last is not None
            self.served.append((self.line.pop(0), self.last[1]))

    @rule(ttl=st.sampled_from([0.0, 1.0, 10.0]))
    def ask(self, ttl: float) -> None:
        asker = Asker(ttl)
        asker.found = self.loop.create_future()
        self.line.append(asker)
        if len(self.line) == 1:
            self.serve_fresh()
        asker.task = self.start(self.flight.run(lambda: self.lead(asker), ttl=ttl))

    @precondition(lambda self: self.line)
    @rule()
    def find(self) -> None:
        self.results += 1
        self.last = self.loop.now, self.results
        self.served += [(asker, self.results) for asker in self.line]
        self.line[0].found.set_result(self.results)
        self.line = []
        self.run()

    @precondition(lambda self: self.line)
    @rule()
    def fail(self) -> None:
        leader = self.line.pop(0)
        leader.found.set_exception(OSError("not found out"))
        self.serve_fresh()
        self.run()
        assert isinstance(leader.task.exception(), OSError)

    @precondition(lambda self: self.line)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        asker = self.line.pop(data.draw(st.integers(0, len(self.line) - 1)))
        if asker.is_leading:
            self.serve_fresh()
        asker.task.cancel()
        self.run()
        assert asker.task.cancelled()

    @precondition(lambda self: len(self.line) > 1)
    @rule(is_found_first=st.booleans())
    def cancel_the_leader_in_the_moment_of_its_result(self, is_found_first: bool) -> None:
        leader = self.line.pop(0)
        if is_found_first:
            leader.found.set_result(-1)
        leader.task.cancel()
        self.serve_fresh()
        self.run()
        assert leader.task.cancelled()

    @precondition(lambda self: self.line)
    @rule(seconds=st.sampled_from([0.5, 1.0, 10.0]))
    def wait(self, seconds: float) -> None:
        self.run(seconds)

    @rule(seconds=st.sampled_from([0.5, 1.0, 10.0]))
    def wait_alone(self, seconds: float) -> None:
        self.run(seconds)

    @invariant()
    def the_first_in_line_leads(self) -> None:
        assert [asker.is_leading for asker in self.line] == [i == 0 for i in range(len(self.line))]
        assert not any(asker.task.done() for asker in self.line)
        assert self.flight._lock.locked() is bool(self.line)

    @invariant()
    def all_are_served(self) -> None:
        for asker, result in self.served:
            assert asker.task.result() == result
        self.served = []

    def teardown(self) -> None:
        for asker in self.line:
            asker.task.cancel()
        self.run()
        assert asyncio.all_tasks(self.loop) == set()
        super().teardown()


class Gates(OnALoop):
    """The gate: requests wait while a round of probes is out; its end decides for all."""

    SUCCESSES = 2

    def __init__(self) -> None:
        super().__init__()
        ROUTES.clear()
        self.probes: list[asyncio.Future[httpx.Response]] = []
        self.gateway = FakeGateway(self.answer)
        self.plane = FakeControlPlane()
        self.guard = GuardTransport(
            self.gateway.new_transport(),
            settings=GuardSettings(
                warmup_successes=self.SUCCESSES,
                warmup_timeout=1000,
                probe_timeout=1000,
                backoff_initial=1,
                backoff_max=1,
                verdict_ttl=0,
            ),
            control_plane=self.plane,
            new_transport=self.gateway.new_transport,
        )
        self.waiting: list[asyncio.Task[Any]] = []
        self.passed = 0
        self.is_warm = False
        self.is_pausing = False

    async def answer(self, exchange: Exchange) -> httpx.Response:
        if not exchange.is_probe:
            return ok()
        future: asyncio.Future[httpx.Response] = self.loop.create_future()
        self.probes.append(future)
        return await future

    async def send(self) -> int:
        response = await self.guard.handle_async_request(post())
        await response.aread()
        return response.status_code

    def expect(self, status_code: int) -> None:
        """Everybody who waits gets this."""
        assert [task.result() for task in self.waiting] == [status_code] * len(self.waiting)
        self.passed += len(self.waiting) if status_code == 200 else 0
        self.waiting = []

    def finish_round(self, answers: list[httpx.Response | Exception]) -> None:
        probes, self.probes = self.probes, []
        for probe, answer in zip(probes, answers, strict=True):
            if isinstance(answer, Exception):
                probe.set_exception(answer)
            else:
                probe.set_result(answer)
        self.run()

    @rule()
    def request(self) -> None:
        task = self.start(self.send())
        if self.is_warm:
            assert task.result() == 200
            self.passed += 1
        else:
            self.waiting.append(task)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.waiting) - 1))
        task = self.waiting.pop(index)
        task.cancel()
        if index == 0:
            # Its probes are cut, and the next in line begins a round of its own.
            self.probes = []
            self.is_pausing = False
        self.run()
        assert task.cancelled()

    @precondition(lambda self: self.probes)
    @rule(own_404=st.booleans())
    def all_probes_reach_the_trainer(self, own_404: bool) -> None:
        self.finish_round([trainer_404() if own_404 else ok(), ok()])
        self.is_warm = True
        self.expect(200)

    @precondition(lambda self: self.probes)
    @rule(first=st.booleans())
    def one_probe_meets_the_gateways_404(self, first: bool) -> None:
        self.plane.state = "JOB_STATE_RUNNING"
        self.finish_round([gateway_404(), ok()] if first else [ok(), gateway_404()])
        self.is_pausing = True

    @precondition(lambda self: self.probes)
    @rule(state=st.sampled_from(["JOB_STATE_PAUSED", None]))
    def the_job_is_gone(self, state: str | None) -> None:
        self.plane.state = state
        self.finish_round([gateway_404(), gateway_404()])
        self.expect(404)

    @precondition(lambda self: self.probes)
    @rule()
    def the_control_plane_fails(self) -> None:
        self.plane.state = OSError()
        self.finish_round([gateway_404(), ok()])
        self.is_warm = True
        self.expect(200)

    @precondition(lambda self: self.probes)
    @rule()
    def a_probe_breaks(self) -> None:
        self.finish_round([httpx.ConnectError("refused"), ok()])
        self.is_warm = True
        self.expect(200)

    @precondition(lambda self: self.is_pausing)
    @rule()
    def the_pause_is_over(self) -> None:
        self.run(1.0)
        self.is_pausing = False

    @precondition(lambda self: self.is_warm)
    @rule()
    def the_route_goes_cold(self) -> None:
        state = ROUTES.find(post().url)
        assert state is not None
        state.is_warm = self.is_warm = False

    @invariant()
    def one_round_is_out(self) -> None:
        has_round = bool(self.waiting) and not self.is_pausing
        assert len(self.probes) == (self.SUCCESSES if has_round else 0)
        assert not any(task.done() for task in self.waiting)

    @invariant()
    def only_those_who_passed_were_sent(self) -> None:
        assert len(self.gateway.sent) == self.passed

    def teardown(self) -> None:
        for task in self.waiting:
            task.cancel()
        self.run()
        assert asyncio.all_tasks(self.loop) == set()
        assert self.gateway.unclosed() == []
        self.loop.run_until_complete(self.guard.aclose())
        assert all(transport.is_closed for transport in self.gateway.transports)
        ROUTES.clear()
        super().teardown()


SDK_SOURCE = """
import httpx
class Client:
    _client: httpx.AsyncClient
    def __init__(self, make):
        self._client = make()
class ClientConnectionPool:
    def aclient(self): ...
"""

CHOICES = {
    "default": GuardSettings(),
    "patient": GuardSettings(retry_timeout=300),
    "off": GuardSettings(enabled=False),
}


class Installations(RuleBasedStateMachine):
    """Install, replace and uninstall, with clients that come and go."""

    clients = Bundle("clients")

    def __init__(self) -> None:
        super().__init__()
        self.module: Any = types.ModuleType("simple_sdk")
        exec(SDK_SOURCE, self.module.__dict__)
        self.module.__spec__ = importlib.machinery.ModuleSpec("simple_sdk", None)
        self.original = self.module.Client.__init__
        self.patch = pytest.MonkeyPatch()
        self.patch.setitem(sys.modules, "simple_sdk", self.module)
        sdk = Sdk("simple_sdk", "simple_sdk", "simple_sdk", "Client", tested=("1", "2"))
        self.patch.setattr(hooks, "SDKS", (sdk,))
        self.gateway = FakeGateway()
        self.live: dict[Any, FakeTransport] = {}
        self.installed: tuple[GuardSettings, FakeControlPlane | None] | None = None
        self.planes = {"own": FakeControlPlane(), "none": None}

    @rule(target=clients)
    def build(self) -> Any:
        transport = self.gateway.new_transport()
        client = self.module.Client(lambda: httpx.AsyncClient(transport=transport))
        self.live[client] = transport
        return client

    @rule(client=consumes(clients))
    def drop(self, client: Any) -> None:
        del self.live[client]
        # What is not referred to any more must not be found, and guarded, again.
        client._client = None

    @rule(
        choice=st.sampled_from(sorted(CHOICES)),
        plane=st.sampled_from(["own", "none"]),
        replace=st.booleans(),
    )
    def install(self, choice: str, plane: str, replace: bool) -> None:
        wanted = CHOICES[choice], self.planes[plane]
        is_other = self.installed is not None and self.installed != wanted
        if is_other and not replace:
            with pytest.raises(AlreadyInstalledError):
                install_guard(wanted[0], control_plane=wanted[1])
            return
        install_guard(wanted[0], control_plane=wanted[1], replace=replace)
        self.installed = wanted if wanted[0].enabled else None

    @rule()
    def uninstall(self) -> None:
        uninstall_guard()
        self.installed = None

    @invariant()
    def all_clients_are_guarded_once_or_none_is(self) -> None:
        for client, inner in self.live.items():
            transport = client._client._transport
            if self.installed is None:
                assert transport is inner
            else:
                assert isinstance(transport, GuardTransport)
                assert transport.transport is inner
                assert transport._settings == self.installed[0]
                plane = transport._control_plane._control_plane
                assert self.installed[1] is None or plane is self.installed[1]

    @invariant()
    def the_constructor_is_wrapped_once_or_untouched(self) -> None:
        init = self.module.Client.__init__
        assert (init is self.original) is (self.installed is None)
        assert getattr(init, "__wrapped__", self.original) is self.original

    def teardown(self) -> None:
        uninstall_guard()
        assert self.module.Client.__init__ is self.original
        self.patch.undo()


TestFlights = Flights.TestCase
TestFlights.settings = REPEATABLE
TestGates = Gates.TestCase
TestGates.settings = REPEATABLE
TestInstallations = Installations.TestCase
# Each installation asks the garbage collector for clients, which takes milliseconds.
TestInstallations.settings = settings(REPEATABLE, max_examples=20, stateful_step_count=15)
