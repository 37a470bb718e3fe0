from __future__ import annotations

import asyncio
import gc
import itertools
import os
import pickle
import signal
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from typing import TYPE_CHECKING, Any, cast

import httpx
import pytest

from testkit.fakes import (
    Exchange,
    FakeControlPlane,
    FakeGateway,
    gateway_404,
    ok,
    post,
    settle,
    trainer_404,
)
from testkit.virtual_time import VirtualTimeLoop
from tinker_guard import GuardSettings, GuardTransport
from tinker_guard.core import routes as route
from tinker_guard.core.routes import ROUTES, Flights, RouteState, RouteTable
from tinker_guard.policy.route import Route, RoutePatterns, patterns_of
from tinker_guard.transports import runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from tinker_guard.core.single_flight import SingleFlight
    from tinker_guard.policy.route import RoutePattern

BASE = "https://gateway.test/training/v1/rlorTrainerJobs/acc/job-1"


class _Counted(RoutePatterns):
    """Counts how often a URL is read, which is what a look-up is to spare."""

    __slots__ = ("reads",)

    def __init__(self) -> None:
        super().__init__(patterns_of().texts)
        self.reads = 0

    def find(
        self, scheme: str, host: str, port: int | None, path: str
    ) -> tuple[RoutePattern, str] | None:
        self.reads += 1
        return super().find(scheme, host, port, path)


@pytest.mark.parametrize(
    ("urls", "reads"),
    [
        ([f"{BASE}/api"] * 3, 1),
        ([f"{BASE}/api", f"{BASE}/api/v1", f"{BASE}/api"], 2),
        # Whatever the query is: each may differ from all others.
        ([f"{BASE}/api?a=1", f"{BASE}/api?a=2", f"{BASE}/api?a=1"], 1),
        # A password is not kept.
        (["https://u:p@gateway.test/training/v1/rlorTrainerJobs/acc/job-1/api"] * 2, 2),
        # Nor are more than so many.
        ([*(f"{BASE}/{n}" for n in range(256)), f"{BASE}/0"], 256),
        ([*(f"{BASE}/{n}" for n in range(257)), f"{BASE}/0"], 258),
    ],
)
def test_a_url_is_read_once(urls: list[str], reads: int) -> None:
    table, patterns = RouteTable(), _Counted()
    states = {table.find(httpx.URL(url), patterns) for url in urls}
    assert len(states) == 1
    assert patterns.reads == reads


@pytest.mark.parametrize("query", ["", "?a=1"])
def test_as_many_routes_as_are_kept_are_each_read_once(query: str) -> None:
    table, patterns = RouteTable(limit=2), _Counted()
    other = BASE.replace("job-1", "job-2")
    for base in (BASE, other, BASE, other):
        state = table.find(httpx.URL(f"{base}/api{query}"), patterns)
        assert state is not None
        assert state.route.url == base
    assert patterns.reads == 2


def test_threads_with_two_keys_share_nothing() -> None:
    state = RouteState(Route.of_job("https://gateway.test", "acc", "job-1"))

    async def flights(key: str) -> Flights:
        return state.flights(key)

    one, other = runtime.run_blocking(flights("one")), runtime.run_blocking(flights("other"))
    assert one is not other
    assert runtime.run_blocking(flights("one")) is one


@pytest.mark.parametrize(
    ("url", "route"),
    [
        (f"{BASE}/api/v1/healthz", Route.of_job("https://gateway.test", "acc", "job-1")),
        (f"{BASE}/", Route.of_job("https://gateway.test", "acc", "job-1")),
        (f"{BASE}/api?x=/y", Route.of_job("https://gateway.test", "acc", "job-1")),
        (
            "http://[::1]:8080/training/v1/rlorTrainerJobs/a.b~c/j_1/api",
            Route.of_job("http://[::1]:8080", "a.b~c", "j_1"),
        ),
        (
            "https://user:password@gateway.test:444/training/v1/rlorTrainerJobs/a/b/c",
            Route.of_job("https://gateway.test:444", "a", "b"),
        ),
    ],
)
def test_trainer_routes(url: str, route: Route) -> None:
    state = RouteTable().find(httpx.URL(url))
    assert state is not None
    assert state.route == route


@pytest.mark.parametrize(
    "url",
    [
        BASE,
        f"{BASE}?x=/y",
        "https://gateway.test/training/v1/rlorTrainerJobs/acc/",
        "https://gateway.test/training/v1/rlorTrainerJobs/acc",
        "https://gateway.test/training/v1/rlorTrainerJobs//job/api",
        "https://gateway.test/training/v1/rlorTrainerJobs/acc//api",
        "https://gateway.test/training/v1/rlorTrainerJobs/acc/a%2Fb/api",
        "https://gateway.test/training/v1/rlorTrainerJobs/acc/%2e%2e/api",
        f"{BASE}/%2e%2E/job-2/api",
        f"{BASE}/..%2fjob-2/api",
        "https://gateway.test/training/v1/rlorTrainerJobs/../job/api",
        "https://gateway.test/training/v1/rlorTrainerJobs/acc/../api",
        "https://gateway.test/prefix/training/v1/rlorTrainerJobs/acc/job/api",
        "https://gateway.test/api/v1/forward_backward",
        "https://gateway.test/",
        "/training/v1/rlorTrainerJobs/acc/job/api",
        "ftp://gateway.test/training/v1/rlorTrainerJobs/acc/job/api",
    ],
)
def test_everything_else_is_no_trainer_route(url: str) -> None:
    table = RouteTable()
    table.find(httpx.URL(f"{BASE}/api"))
    assert table.find(httpx.URL(url)) is None


def test_a_route_is_one_state_whatever_the_request() -> None:
    table = RouteTable()
    one = table.find(httpx.URL(f"{BASE}/api/v1/a"))
    assert table.find(httpx.URL(f"{BASE}/api/v1/b?c=d")) is one
    assert table.find(httpx.URL(BASE.replace("job-1", "job-10") + "/api")) is not one
    assert table.find(httpx.URL(BASE.replace("https", "http") + "/api")) is not one


def test_url_of_a_route() -> None:
    route = Route.of_job("https://gateway.test", "acc", "job-1")
    assert route.url == BASE
    assert str(route) == "acc/job-1"
    assert pickle.loads(pickle.dumps(route)) == route


def test_guards_with_other_patterns_know_other_routes() -> None:
    table = RouteTable()
    hidden, shown = patterns_of(("/t/{_tenant}/{job}",)), patterns_of(("/t/{tenant}/{job}",))
    url = httpx.URL("https://gateway.test/t/secret/job/api/v1/x")
    assert table.find(url) is None
    one, other = table.find(url, hidden), table.find(url, shown)
    assert table.find(url, hidden) is one is not None
    assert table.find(url, shown) is other is not None
    assert one is not other
    assert (str(one.route), str(other.route)) == (
        "https://gateway.test/t/{_tenant}/job",
        "https://gateway.test/t/secret/job",
    )
    # What no pattern of the setting is about is shared.
    jobs = {id(table.find(url_of("a"), patterns)) for patterns in (hidden, shown, patterns_of())}
    assert len(jobs) == 1


@pytest.mark.parametrize("query", ["", "?a=1"])
def test_a_password_in_a_url_is_not_remembered(query: str) -> None:
    table = RouteTable()
    url = f"{BASE}/api/v1/x{query}"
    with_password = httpx.URL(url.replace("://", "://me:hunter2@"))
    state = table.find(with_password)
    assert state is not None
    assert state is table.find(httpx.URL(url)) is table.find(with_password)
    assert "hunter2" not in repr(vars(table))


def test_each_base_path_is_a_state_of_its_own() -> None:
    table, patterns = RouteTable(), patterns_of(("http://head:8000/m/{model}", "http://head:8000"))
    urls = ["/m/a/api/v1/x", "/m/b/api/v1/x", "/api/v1/x", "/m/a/y", "/m/b", "/m"]
    found = [table.find(httpx.URL(f"http://head:8000{path}"), patterns) for path in urls]
    a, b, rest, a_again, *rest_again = found
    assert len({id(state) for state in (a, b, rest)}) == 3
    assert a_again is a
    assert all(state is rest for state in rest_again)


# -- what is dropped -------------------------------------------------------------------------------


def url_of(job: object) -> httpx.URL:
    return httpx.URL(f"https://gateway.test/training/v1/rlorTrainerJobs/acc/{job}/api")


def found(table: RouteTable, job: object) -> RouteState:
    state = table.find(url_of(job))
    assert state is not None
    return state


def test_table_is_bounded_and_drops_the_least_recently_used() -> None:
    table = RouteTable(limit=3)
    states = {job: found(table, job) for job in "abc"}
    # Used again, so that b is the one that was not for longest.
    assert found(table, "a") is states["a"]
    found(table, "d")
    assert found(table, "a") is states["a"]
    assert found(table, "c") is states["c"]
    # Which drops d.
    assert found(table, "b") is not states["b"]
    assert found(table, "a") is states["a"]
    assert found(table, "c") is states["c"]


def test_a_process_remembers_a_thousand_routes() -> None:
    table = RouteTable()
    states = [found(table, n) for n in range(1024)]
    assert [found(table, n) for n in range(1024)] == states
    found(table, "one-more")
    assert [found(table, n) for n in range(1, 1024)] == states[1:]
    assert found(table, 0) is not states[0]


def test_a_job_in_steady_use_outlasts_any_number_of_others() -> None:
    table = RouteTable(limit=8)
    steady = found(table, "steady")
    for n in range(1000):
        found(table, n)
        if n % 5 == 0:
            assert found(table, "steady") is steady


def test_one_that_a_guarded_request_is_under_way_on_is_not_dropped() -> None:
    table = RouteTable(limit=3)
    held = found(table, "held")
    held.under_way.add(cast("Any", "a request"))
    others = [found(table, n) for n in range(9)]
    assert found(table, "held") is held
    assert found(table, 8) is others[8]
    held.under_way.clear()
    for n in range(9, 12):
        found(table, n)
    assert found(table, "held") is not held


def test_where_all_are_in_use_it_grows_and_shrinks_again() -> None:
    table = RouteTable(limit=2)
    held: list[RouteState] = []
    for n in range(5):
        held.append(found(table, n))
        held[-1].under_way.add(cast("Any", n))
    assert [found(table, n) for n in range(5)] == held
    for state in held:
        state.under_way.clear()
    newest = found(table, "new")
    assert found(table, 4) is held[4]
    assert found(table, "new") is newest
    assert found(table, 3) is not held[3]


def test_one_that_a_request_was_left_on_by_its_event_loop_is_dropped() -> None:
    gateway = FakeGateway(lambda _: gateway_404())
    transport = GuardTransport(
        gateway.new_transport(), settings=GuardSettings(), control_plane=FakeControlPlane()
    )

    def begin(loop: VirtualTimeLoop) -> weakref.ref[asyncio.Task[httpx.Response]]:
        task = loop.create_task(transport.handle_async_request(post()))
        loop.run_until_complete(asyncio.sleep(1))
        return weakref.ref(task)

    def forget() -> None:
        for n in range(1024):
            found(ROUTES, n)
        gc.collect()

    closed, kept = VirtualTimeLoop(), VirtualTimeLoop()
    left = [begin(closed), begin(closed)]
    under_way = begin(kept)
    state = ROUTES.find(post().url)
    closed.close()
    forget()
    assert [task() for task in left] == [None, None]
    # On the other loop, a request is still under way.
    assert ROUTES.find(post().url) is state
    kept.close()
    forget()
    assert under_way() is None
    assert ROUTES.find(post().url) is not state


def _raise(_: Exchange) -> httpx.Response:
    raise httpx.ReadError("broken")


@pytest.mark.anyio
@pytest.mark.parametrize(
    "answer",
    [
        *(pytest.param(answer, id=answer.__name__) for answer in (ok, gateway_404, trainer_404)),
        pytest.param(None, id="an error"),
    ],
)
@pytest.mark.parametrize("was_warm", [False, True])
async def test_a_request_that_is_over_holds_its_route_no_more(
    answer: Callable[[], httpx.Response] | None, was_warm: bool
) -> None:
    gateway = FakeGateway()
    transport = GuardTransport(
        gateway.new_transport(),
        settings=GuardSettings(warmup_successes=0, retry_timeout=1),
        control_plane=FakeControlPlane(),
    )
    if was_warm:
        await transport.handle_async_request(post())
    gateway.answer = _raise if answer is None else lambda _: answer()
    with nullcontext() if answer is not None else pytest.raises(httpx.ReadError):
        await transport.handle_async_request(post())
    state = ROUTES.find(post().url)
    assert state is not None
    assert state.under_way == set()


@pytest.mark.anyio
@pytest.mark.parametrize("meets", ["a warmup", "a race"])
async def test_no_other_jobs_end_what_requests_find_out_together(meets: str) -> None:
    """A second warmup, or a second scout, would begin beside the first."""
    is_warmup = meets == "a warmup"
    now = most = 0

    async def answer(exchange: Exchange) -> httpx.Response:
        nonlocal now, most
        if not exchange.is_probe:
            return ok() if is_warmup or exchange.at >= 1.0 else gateway_404()
        now += 1
        most = max(most, now)
        await asyncio.sleep(1)
        now -= 1
        return ok()

    gateway = FakeGateway(answer)
    guard = GuardTransport(
        gateway.new_transport(),
        settings=GuardSettings(warmup_successes=1 if is_warmup else 0),
        control_plane=FakeControlPlane(),
    )
    tasks = []
    for k in range(3):
        tasks.append(asyncio.create_task(guard.handle_async_request(post())))
        await asyncio.sleep(0.01)
        for n in range(1024 if k == 0 else 50):
            ROUTES.find(url_of(f"{k}-{n}"))
    assert {response.status_code for response in await asyncio.gather(*tasks)} == {200}
    assert most == 1
    assert len(gateway.probes) == 1


# -- threads ---------------------------------------------------------------------------------------


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads take turns a thousand times as often."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("hasty")
def test_any_number_of_threads_may_look_for_routes() -> None:
    table = RouteTable(limit=50)

    def look(first: int) -> int:
        for n in range(3000):
            job = (first * 371 + n) % 120
            assert found(table, job).route.job == str(job)
        return 1

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(look, range(8))) == 8


@pytest.mark.usefixtures("hasty")
def test_threads_that_meet_a_route_together_share_it() -> None:
    for _ in range(50):
        table = RouteTable()
        with ThreadPoolExecutor(8) as pool:
            states = list(pool.map(lambda _, table=table: found(table, "job"), range(8)))
        assert len({id(state) for state in states}) == 1


def test_a_route_that_was_just_met_is_not_the_least_recently_used() -> None:
    """Another thread may make room in that very moment."""
    table = RouteTable(limit=2)
    found(table, "a")
    made_room = False

    def trace(frame: FrameType, event: str, value: Any) -> Any:
        nonlocal made_room
        is_inner = frame.f_back is not None and frame.f_back.f_code.co_filename == route.__file__
        if event == "return" and isinstance(value, RouteState) and is_inner and not made_room:
            made_room = True
            with ThreadPoolExecutor(1) as pool:
                pool.submit(found, table, "c").result()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        state = found(table, "b")
    finally:
        sys.settrace(before)
    assert made_room
    assert found(table, "b") is state


# -- what a state knows ----------------------------------------------------------------------------


def test_a_route_is_cold_then_warm_and_may_be_exhausted_or_stopped() -> None:
    state = found(RouteTable(), "job")

    def seen() -> tuple[bool, bool, bool, float | None, int]:
        return (
            state.is_cold,
            state.is_warm,
            state.has_shown_trainer,
            state.warm_since,
            state.answers,
        )

    assert seen() == (True, False, False, None, 0)
    state.answered(5.0)
    assert seen() == (False, True, True, 5.0, 1)
    state.answered(9.0)
    assert seen() == (False, True, True, 5.0, 1)
    # A request's budget is over: no request waits at a gate, and it has been up since.
    state.exhausted(15.0, "a key")
    assert seen() == (False, False, True, 5.0, 1)
    # An answer came before that, and took until now to be judged.
    state.answered(14.9)
    assert (state.is_exhausted, *seen()) == (True, False, False, True, 5.0, 1)
    state.answered(20.0)
    assert seen() == (False, True, True, 5.0, 2)
    assert not state.is_exhausted
    state.stopped(25.0)
    assert seen() == (True, False, False, None, 2)
    state.answered(24.9)
    assert seen() == (True, False, True, None, 2)
    state.answered(30.0)
    assert seen() == (False, True, True, 30.0, 3)


def test_a_route_that_was_exhausted_before_it_ever_answered() -> None:
    """Found by the simulation: it counted as warm since the loop's beginning."""
    state = found(RouteTable(), "job")
    state.exhausted(5.0, "a key")
    assert (state.is_cold, state.warm_since) == (False, None)
    assert not state.is_cold_for("a key")
    assert state.is_cold_for("another")
    state.answered(7.0)
    assert (state.is_exhausted, state.warm_since) == (False, 7.0)
    # Once it has come up, its being lost is no key's fault.
    state.exhausted(9.0, "a key")
    assert not state.is_cold_for("another")
    state.stopped(10.0)
    state.exhausted(11.0, "another")
    assert (state.is_cold_for("a key"), state.is_cold_for("another")) == (True, False)
    state.stopped(12.0)
    state.exhausted(13.0, "a key")
    assert (state.is_cold_for("a key"), state.is_cold_for("another")) == (False, True)


def test_three_ambiguous_ends_in_a_row_say_that_probes_say_nothing() -> None:
    state = found(RouteTable(), "job")
    seen = []
    for _ in range(4):
        seen.append(state.is_probe_path_unsupported)
        state.ambiguous_ends += 1
    assert seen == [False, False, False, True]
    state.ambiguous_ends = 0
    assert not state.is_probe_path_unsupported


def test_how_a_gateway_picks_replicas_is_remembered_for_half_a_minute() -> None:
    state = found(RouteTable(), "job")
    assert not state.is_balanced_per_request(0.0)
    state.picks_replica_per_request(10.0)
    assert state.is_balanced_per_request(39.9)
    assert not state.is_balanced_per_request(40.0)


# -- event loops and keys --------------------------------------------------------------------------


async def flights(state: RouteState, key: str = "key") -> Flights:
    return state.flights(key)


def test_each_event_loop_and_key_has_its_own_flights() -> None:
    state = found(RouteTable(), "job")

    async def both() -> tuple[Flights, Flights]:
        one, other = state.flights("one"), state.flights("other")
        assert state.flights("one") is one
        assert state.flights("other") is other
        return one, other

    made = [*asyncio.run(both()), *asyncio.run(both())]
    assert len({id(one) for one in made}) == 4


@pytest.mark.anyio
async def test_of_many_keys_those_used_last_are_kept() -> None:
    state = found(RouteTable(), "job")
    made = [state.flights(n) for n in range(8)]
    assert state.flights(0) is made[0]
    state.flights("one more")
    assert [state.flights(n) for n in (0, *range(2, 8))] == [made[0], *made[2:]]
    assert state.flights(1) is not made[1]


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["warmup", "probing", "lookup"])
async def test_no_number_of_keys_ends_what_is_under_way(kind: str) -> None:
    state = found(RouteTable(), "job")
    busy = state.flights("busy")

    async def compute() -> Any:
        await asyncio.sleep(1)
        return "found"

    flight: SingleFlight[Any] = getattr(busy, kind)
    task = asyncio.create_task(flight.run(compute))
    await settle()
    for n in range(20):
        state.flights(n)
    assert state.flights("busy") is busy
    await task
    for n in range(20):
        state.flights(n)
    assert state.flights("busy") is not busy


@pytest.mark.anyio
@pytest.mark.parametrize("route", ["/training/v1/rlorTrainerJobs/acc/", "/other/acc/"])
async def test_a_route_that_was_forgotten_under_a_request_is_shared_again(
    route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinker_guard.transport.ROUTES", RouteTable(limit=1))
    plane = FakeControlPlane(takes=0.5)

    def to(job: str) -> httpx.Request:
        request = post()
        request.url = request.url.copy_with(path=f"{route}{job}/api/v1/forward_backward")
        return request

    async def answer(exchange: Exchange) -> httpx.Response:
        is_known = not 0.5 <= exchange.at < 2.0
        await asyncio.sleep(0.25)
        return ok() if is_known else gateway_404()

    async def send(at: float, request: httpx.Request) -> None:
        await asyncio.sleep(at)
        assert (await transport.handle_async_request(request)).status_code == 200

    transport = GuardTransport(
        FakeGateway(answer).new_transport(),
        settings=GuardSettings(warmup_successes=0, routes=("/other/{account}/{job}",)),
        control_plane=plane,
    )
    # The second one is sent on a warm route, which the third one's takes the place of.
    jobs = ((0.0, "job-1"), (0.6, "job-1"), (0.65, "job-2"), (0.7, "job-1"))
    await asyncio.gather(*(send(at, to(job)) for at, job in jobs))
    assert sorted(job for _, _, job, _ in plane.asked) == ["job-1", "job-2"]


def test_loops_that_have_ended_are_forgotten() -> None:
    state = found(RouteTable(), "job")

    async def contend() -> weakref.ref[asyncio.AbstractEventLoop]:
        async def hold() -> Any:
            await asyncio.sleep(0)
            return "found"

        scouting: SingleFlight[Any] = state.flights("key").probing
        await asyncio.gather(*(scouting.run(hold) for _ in range(3)))
        return weakref.ref(asyncio.get_running_loop())

    loops = [asyncio.run(contend()) for _ in range(5)]
    asyncio.run(flights(state))
    gc.collect()
    assert [loop() for loop in loops] == [None] * 5


def test_what_was_found_out_on_a_loop_that_has_ended_is_forgotten_though_the_loop_is_kept() -> None:
    class Found:
        pass

    async def find_out() -> weakref.ref[Found]:
        async def compute() -> Any:
            return Found()

        lookup: SingleFlight[Any] = state.flights("key").lookup
        return weakref.ref(await lookup.run(compute))

    state = found(RouteTable(), "job")
    with asyncio.Runner() as runner:
        loop, result = runner.get_loop(), runner.run(find_out())
    gc.collect()
    assert loop.is_closed()
    assert result() is not None
    asyncio.run(flights(state))
    gc.collect()
    assert result() is None


def test_a_loop_that_is_kept_open_keeps_what_it_has_found_out() -> None:
    state = found(RouteTable(), "job")
    with asyncio.Runner() as one, asyncio.Runner() as other:
        first = one.run(flights(state))
        assert other.run(flights(state)) is not first
        assert one.run(flights(state)) is first


def test_a_loop_may_come_on_another_thread_meanwhile() -> None:
    state = found(RouteTable(), "job")

    class Loop(asyncio.SelectorEventLoop):
        is_watched = False

        def is_closed(self) -> bool:
            if self.is_watched:
                self.is_watched = False
                with ThreadPoolExecutor(1) as pool:
                    pool.submit(asyncio.run, flights(state)).result()
            return super().is_closed()

    with closing(Loop()) as loop:
        loop.run_until_complete(flights(state))
        loop.is_watched = True
        asyncio.run(flights(state))
        assert not loop.is_watched


@pytest.mark.usefixtures("hasty")
def test_any_number_of_loops_may_come_and_go_on_threads() -> None:
    state = found(RouteTable(), "job")

    def come_and_go(_: int) -> int:
        return len({id(asyncio.run(flights(state))) for _ in range(20)})

    with ThreadPoolExecutor(8) as pool:
        assert min(pool.map(come_and_go, range(8))) >= 1


# -- forks -----------------------------------------------------------------------------------------

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def ends_well_in_a_child(check: Callable[[], bool]) -> bool:
    child = os.fork()
    if child == 0:
        # Ended by a signal if it hangs.
        signal.alarm(10)
        os._exit(0 if check() else 1)
    return os.waitpid(child, 0)[1] == 0


@needs_fork
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_forgets_what_its_parent_knew() -> None:
    state = found(ROUTES, "job")
    assert ends_well_in_a_child(lambda: found(ROUTES, "job") is not state)
    assert found(ROUTES, "job") is state


@needs_fork
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_waits_for_no_thread_that_only_its_parent_has() -> None:
    """One may meet a new route in the moment of the fork."""
    stop = threading.Event()

    def meet() -> None:
        for n in itertools.count():
            found(ROUTES, n)
            if stop.is_set():
                return

    with ThreadPoolExecutor(2) as pool:
        meeting = [pool.submit(meet) for _ in range(2)]
        try:
            ends = [ends_well_in_a_child(lambda: found(ROUTES, "job").is_cold) for _ in range(20)]
        finally:
            stop.set()
        assert [future.result() for future in meeting] == [None, None]
    assert all(ends)


def test_what_is_forgotten() -> None:
    """Without a fork, since no measurement of branches looks into a child."""
    table = RouteTable()
    state = found(table, "job")
    table.clear()
    assert found(table, "job") is not state


def test_what_a_router_says_to_probes_is_doubted_for_a_while() -> None:
    state = RouteState(Route.of_job("https://gateway.test", "acc", "job-1"))
    assert not state.believes_routers(0.0)
    state.answered(0.0)
    assert state.believes_routers(0.0)
    state.meets_another_router(5.0)
    assert not state.believes_routers(5.0)
    assert not state.believes_routers(14.9)
    assert state.believes_routers(15.0)
