from __future__ import annotations

import asyncio
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import httpx
import pytest

from tinker_guard import route
from tinker_guard.route import Route, RouteTable

BASE = "https://gateway.test/training/v1/rlorTrainerJobs/acc/job-1"


@pytest.mark.parametrize(
    ("url", "route"),
    [
        (f"{BASE}/api/v1/healthz", Route("https://gateway.test", "acc", "job-1")),
        (f"{BASE}/", Route("https://gateway.test", "acc", "job-1")),
        (f"{BASE}/api?x=/y", Route("https://gateway.test", "acc", "job-1")),
        (
            "http://[::1]:8080/training/v1/rlorTrainerJobs/a.b~c/j_1/api",
            Route("http://[::1]:8080", "a.b~c", "j_1"),
        ),
        (
            "https://user:password@gateway.test:444/training/v1/rlorTrainerJobs/a/b/c",
            Route("https://gateway.test:444", "a", "b"),
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
    assert RouteTable().find(httpx.URL(url)) is None


def test_a_route_is_one_state_whatever_the_request() -> None:
    table = RouteTable()
    one = table.find(httpx.URL(f"{BASE}/api/v1/a"))
    assert table.find(httpx.URL(f"{BASE}/api/v1/b?c=d")) is one
    assert table.find(httpx.URL(BASE.replace("job-1", "job-10") + "/api")) is not one
    assert table.find(httpx.URL(BASE.replace("https", "http") + "/api")) is not one


def test_url_of_a_route() -> None:
    route = Route("https://gateway.test", "acc", "job-1")
    assert route.url == BASE
    assert str(route) == "acc/job-1"
    assert pickle.loads(pickle.dumps(route)) == route


def test_table_is_bounded_and_drops_the_oldest() -> None:
    table = RouteTable(limit=2)
    urls = [httpx.URL(BASE.replace("job-1", f"job-{n}") + "/api") for n in range(3)]
    first, second, third = (table.find(url) for url in urls)
    assert table.find(urls[1]) is second
    assert table.find(urls[2]) is third
    assert table.find(urls[0]) is not first


def test_a_process_remembers_a_thousand_routes() -> None:
    table = RouteTable()
    urls = [httpx.URL(BASE.replace("job-1", f"job-{n}") + "/api") for n in range(1025)]
    first, second, *_ = [table.find(url) for url in urls]
    assert table.find(urls[1]) is second
    assert table.find(urls[0]) is not first


def test_each_event_loop_has_its_own_locks() -> None:
    state = RouteTable().find(httpx.URL(f"{BASE}/api"))
    assert state is not None

    async def here() -> object:
        assert state.here is state.here
        return state.here

    assert asyncio.run(here()) is not asyncio.run(here())


def test_loops_that_have_ended_are_forgotten() -> None:
    state = RouteTable().find(httpx.URL(f"{BASE}/api"))
    assert state is not None

    async def contend() -> None:
        async def hold() -> None:
            await asyncio.sleep(0)

        await asyncio.gather(*(state.here.scouting.run(hold) for _ in range(3)))

    for _ in range(5):
        asyncio.run(contend())
    assert len(state._loops) == 1


def test_a_loop_may_come_on_another_thread_meanwhile() -> None:
    state = RouteTable().find(httpx.URL(f"{BASE}/api"))
    assert state is not None

    async def here() -> object:
        return state.here

    class Loop(asyncio.SelectorEventLoop):
        is_watched = False

        def is_closed(self) -> bool:
            if self.is_watched:
                self.is_watched = False
                with ThreadPoolExecutor(1) as pool:
                    pool.submit(asyncio.run, here()).result()
            return super().is_closed()

    with closing(Loop()) as loop:
        loop.run_until_complete(here())
        loop.is_watched = True
        asyncio.run(here())
        assert not loop.is_watched


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_forgets_what_its_parent_knew() -> None:
    table = RouteTable()
    state = table.find(httpx.URL(f"{BASE}/api"))
    child = os.fork()
    if child == 0:
        os._exit(0 if table.find(httpx.URL(f"{BASE}/api")) is not state else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert table.find(httpx.URL(f"{BASE}/api")) is state


def test_what_a_forked_child_forgets() -> None:
    """All tables; without a fork, since no measurement of branches looks into a child."""
    tables = [RouteTable(), RouteTable()]
    states = [table.find(httpx.URL(f"{BASE}/api")) for table in tables]
    route._forget_after_fork()
    for table, state in zip(tables, states, strict=True):
        assert table.find(httpx.URL(f"{BASE}/api")) is not state
