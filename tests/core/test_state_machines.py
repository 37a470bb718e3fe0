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

from testkit.clients import CLIENT, transport_of
from testkit.fakes import (
    Exchange,
    FakeControlPlane,
    FakeGateway,
    FakeTransport,
    gateway_404,
    ok,
    plain_404,
    post,
    router_404,
    settle,
    trainer_404,
)
from testkit.virtual_time import VirtualTimeLoop
from tinker_guard import GuardSettings, GuardTransport, install_guard, uninstall_guard
from tinker_guard.core.routes import ROUTES
from tinker_guard.core.single_flight import SingleFlight
from tinker_guard.install import installation
from tinker_guard.install.installation import AlreadyInstalledError
from tinker_guard.install.sdks import Sdk

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from tinker_guard.control_plane.protocol import AnyControlPlane

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


@dataclass(frozen=True)
class Result:
    number: int
    at: float


@dataclass(eq=False)
class Asker:
    """One that wants to know, and what the model expects for it."""

    ttl: float | None
    """How old a result may be; None wants one that was found since it came."""
    came_after: int
    task: asyncio.Task[Any] = field(init=False)
    found: asyncio.Future[Result] = field(init=False)
    is_leading: bool = False

    def accepts(self, result: Result, now: float) -> bool:
        if self.ttl is None:
            return result.number > self.came_after
        return now - result.at < self.ttl


class Flights(OnALoop):
    """`SingleFlight`: the first in line leads, and what it finds is for all that accept it."""

    def __init__(self) -> None:
        super().__init__()
        self.flight: SingleFlight[Result] = SingleFlight()
        self.line: list[Asker] = []
        self.served: list[tuple[Asker, Result]] = []
        self.results = 0
        self.last: Result | None = None

    async def compute(self, asker: Asker) -> Result:
        asker.is_leading = True
        try:
            return await asker.found
        finally:
            asker.is_leading = False

    def serve(self) -> None:
        """All in line that accept the last result have it; the others stay in their order."""
        last = self.last
        assert last is not None
        accepting = [asker for asker in self.line if asker.accepts(last, self.loop.now)]
        self.served += [(asker, last) for asker in accepting]
        self.line = [asker for asker in self.line if asker not in accepting]

    @rule(ttl=st.sampled_from([None, 0.0, 1.0, 10.0]))
    def ask(self, ttl: float | None) -> None:
        asker = Asker(ttl, self.results)
        asker.found = self.loop.create_future()
        if self.last is not None and asker.accepts(self.last, self.loop.now):
            self.served.append((asker, self.last))
        else:
            self.line.append(asker)

        def accepts(result: Result) -> bool:
            return asker.accepts(result, self.loop.now)

        running = self.flight.run(
            lambda: self.compute(asker), accepts=None if ttl is None else accepts
        )
        asker.task = self.start(running)

    @precondition(lambda self: self.line)
    @rule()
    def find(self) -> None:
        self.results += 1
        self.last = Result(self.results, self.loop.now)
        leader = self.line.pop(0)
        leader.found.set_result(self.last)
        self.served.append((leader, self.last))
        self.serve()
        self.run()

    @precondition(lambda self: self.line)
    @rule()
    def fail(self) -> None:
        leader = self.line.pop(0)
        leader.found.set_exception(OSError("not found out"))
        self.run()
        assert isinstance(leader.task.exception(), OSError)

    @precondition(lambda self: self.line)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        asker = self.line.pop(data.draw(st.integers(0, len(self.line) - 1)))
        asker.task.cancel()
        self.run()
        assert asker.task.cancelled()

    @precondition(lambda self: len(self.line) > 1)
    @rule(is_found_first=st.booleans())
    def cancel_the_leader_in_the_moment_of_its_result(self, is_found_first: bool) -> None:
        leader = self.line.pop(0)
        if is_found_first:
            leader.found.set_result(Result(-1, self.loop.now))
        leader.task.cancel()
        self.run()
        assert leader.task.cancelled()

    @precondition(lambda self: len(self.line) > 2)
    @rule(turns=st.integers(0, 3))
    def cancel_the_leader_and_then_its_heir(self, turns: int) -> None:
        leader, heir = self.line.pop(0), self.line.pop(0)
        leader.task.cancel()
        for _ in range(turns):
            self.loop.run_until_complete(asyncio.sleep(0))
        heir.task.cancel()
        self.run()
        assert leader.task.cancelled()
        assert heir.task.cancelled()

    @rule(seconds=st.sampled_from([0.5, 1.0, 10.0]))
    def wait(self, seconds: float) -> None:
        self.run(seconds)

    @invariant()
    def the_first_in_line_leads(self) -> None:
        assert [asker.is_leading for asker in self.line] == [i == 0 for i in range(len(self.line))]
        assert not any(asker.task.done() for asker in self.line)
        assert self.flight.is_under_way is bool(self.line)

    @invariant()
    def all_are_served(self) -> None:
        for asker, result in self.served:
            assert asker.task.result() is result
        self.served = []

    def teardown(self) -> None:
        for asker in self.line:
            asker.task.cancel()
        self.run()
        assert asyncio.all_tasks(self.loop) == set()
        assert not self.flight.is_under_way
        super().teardown()


class Gates(OnALoop):
    """The gate: the first request in line probes, one probe after another; its end is for all."""

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
        self.sent = 0
        self.row = 0
        """How many probes of the leader's in a row have reached the trainer."""
        self.unknown_rounds = 0
        """How many unknown 404s of a running job the leader's probes have met."""
        self.ambiguous_ends = 0
        """How many requests in a row got through after three of those."""
        self.is_warm = False
        self.is_pausing = False
        self.has_shown_trainer = False
        self.is_down = False

    async def answer(self, exchange: Exchange) -> httpx.Response:
        if not exchange.is_probe:
            return gateway_404() if self.is_down else ok()
        future: asyncio.Future[httpx.Response] = self.loop.create_future()
        self.probes.append(future)
        return await future

    async def send(self) -> int:
        response = await self.guard.handle_async_request(post())
        await response.aread()
        return response.status_code

    @property
    def has_gate(self) -> bool:
        return not self.is_warm and self.ambiguous_ends < 3

    def end(self, status_code: int) -> None:
        """Everybody who waits gets this: sent and answered, or refused."""
        assert [task.result() for task in self.waiting] == [status_code] * len(self.waiting)
        if status_code == 200:
            self.sent += len(self.waiting)
            self.is_warm = self.has_shown_trainer = True
        else:
            self.has_shown_trainer = False
        self.waiting = []
        self.lead_anew()

    def lead_anew(self) -> None:
        self.row = self.unknown_rounds = 0
        self.is_pausing = False

    def finish_probe(self, answer: httpx.Response | Exception) -> None:
        (probe,) = self.probes
        self.probes = []
        # No two answers come in the very same moment.
        self.run(0.01)
        if isinstance(answer, Exception):
            probe.set_exception(answer)
        else:
            probe.set_result(answer)
        self.run()

    def reach(self, answer: httpx.Response) -> None:
        self.finish_probe(answer)
        self.has_shown_trainer = True
        self.row += 1
        if self.row == self.SUCCESSES:
            self.ambiguous_ends = 0
            self.end(200)

    def open_after_one_that_reached(self) -> None:
        self.ambiguous_ends = 0
        self.end(200)

    @rule()
    def request(self) -> None:
        task = self.start(self.send())
        self.waiting.append(task)
        if not self.has_gate:
            self.end(200)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.waiting) - 1))
        task = self.waiting.pop(index)
        task.cancel()
        if index == 0:
            # Its probe is cut, and the next in line begins a row of its own.
            self.probes = []
            self.lead_anew()
        self.run()
        assert task.cancelled()

    @precondition(lambda self: self.probes)
    @rule(is_own_404=st.booleans())
    def a_probe_reaches_the_trainer(self, is_own_404: bool) -> None:
        self.reach(trainer_404() if is_own_404 else ok())

    @precondition(lambda self: self.probes)
    @rule()
    def a_probe_meets_the_gateways_404(self) -> None:
        self.plane.state = "JOB_STATE_RUNNING"
        self.finish_probe(gateway_404())
        if self.row:
            # The gateway picks a replica for each request: no connection could be proved.
            self.open_after_one_that_reached()
        else:
            self.is_pausing = True

    @precondition(lambda self: self.probes)
    @rule(is_routers=st.booleans())
    def a_probe_meets_a_404_that_anybody_may_have_written(self, is_routers: bool) -> None:
        self.plane.state = "JOB_STATE_RUNNING"
        if is_routers and self.has_shown_trainer:
            self.reach(router_404())
            return
        self.finish_probe(router_404() if is_routers else plain_404())
        if self.row:
            self.open_after_one_that_reached()
            return
        self.unknown_rounds += 1
        if self.unknown_rounds == 3:
            self.ambiguous_ends += len(self.waiting)
            self.end(200)
        else:
            self.is_pausing = True

    @precondition(lambda self: self.probes)
    @rule(state=st.sampled_from(["JOB_STATE_CREATING", "NEW_STATE"]))
    def the_job_is_on_its_way(self, state: str) -> None:
        self.plane.state = state
        self.finish_probe(gateway_404())
        if self.row:
            self.open_after_one_that_reached()
        else:
            self.is_pausing = True

    @precondition(lambda self: self.probes)
    @rule(state=st.sampled_from(["JOB_STATE_PAUSED", "JOB_STATE_EXPIRED", None]))
    def the_job_is_gone(self, state: str | None) -> None:
        self.plane.state = state
        self.finish_probe(gateway_404())
        if self.row:
            self.open_after_one_that_reached()
            return
        if state is None:
            assert not any(task.done() for task in self.waiting)
            # Asked again before it is believed.
            self.run(2.0)
        self.end(404)

    @precondition(lambda self: self.probes)
    @rule()
    def the_control_plane_fails(self) -> None:
        self.plane.state = OSError()
        self.finish_probe(gateway_404())
        if self.row:
            self.ambiguous_ends = 0
        self.end(200)

    @precondition(lambda self: self.probes)
    @rule(is_refused=st.booleans())
    def a_probe_says_nothing(self, is_refused: bool) -> None:
        self.finish_probe(httpx.ConnectError("refused") if is_refused else httpx.Response(503))
        if self.row:
            self.ambiguous_ends = 0
        self.end(200)

    @precondition(lambda self: self.is_pausing)
    @rule()
    def the_pause_is_over(self) -> None:
        self.run(1.0)
        self.is_pausing = False

    @precondition(lambda self: self.is_warm)
    @rule()
    def the_job_stops(self) -> None:
        """A request meets that, and the route goes cold."""
        self.plane.state, self.is_down = "JOB_STATE_PAUSED", True
        self.run(0.01)
        assert self.start(self.send()).result() == 404
        self.sent += 1
        self.is_down = self.is_warm = self.has_shown_trainer = False

    @invariant()
    def the_first_in_line_has_one_probe_out(self) -> None:
        assert len(self.probes) == (1 if self.waiting and not self.is_pausing else 0)
        assert not any(task.done() for task in self.waiting)

    @invariant()
    def only_those_who_passed_were_sent(self) -> None:
        assert len(self.gateway.sent) == self.sent

    @invariant()
    def nothing_runs_in_a_task_of_its_own(self) -> None:
        assert asyncio.all_tasks(self.loop) == set(self.waiting)

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


class KeptGuard(GuardTransport):
    """A guard that keeps the control plane which it was told to ask."""

    def configure(self, settings: GuardSettings, control_plane: AnyControlPlane | None) -> None:
        self.control_plane = control_plane
        super().configure(settings, control_plane)


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
        self.patch.setattr(installation, "SDKS", (sdk,))
        self.patch.setattr("tinker_guard.transport.GuardTransport", KeptGuard)
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
        setattr(client, CLIENT, None)

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
            transport = transport_of(client)
            if self.installed is None:
                assert transport is inner
            else:
                assert isinstance(transport, KeptGuard)
                assert transport.transport is inner
                assert transport.settings == self.installed[0]
                assert transport.control_plane is self.installed[1]

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
TestInstallations = pytest.mark.sockets(Installations.TestCase)
TestInstallations.settings = settings(REPEATABLE, max_examples=20, stateful_step_count=15)
