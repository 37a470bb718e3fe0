from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.fakes import (
    BASE,
    KEY,
    Exchange,
    FakeControlPlane,
    FakeGateway,
    gateway_404,
    known_from,
    loop_time,
    plain_404,
)
from tinker_guard import GuardSettings
from tinker_guard.route import ROUTES
from tinker_guard.waiting import Readiness, until_routable, wait_until_routable

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio


async def wait(
    answer: Callable[[Exchange], httpx.Response], plane: FakeControlPlane, **more: Any
) -> Readiness:
    gateway = FakeGateway(answer)
    try:
        return await until_routable(
            BASE,
            api_key=KEY,
            control_plane=plane,
            new_transport=gateway.new_transport,
            settings=GuardSettings(),
            **more,
        )
    finally:
        assert all(transport.is_closed for transport in gateway.transports)
        assert {probe.headers["x-api-key"] for probe in gateway.exchanges} == {KEY}


async def test_ready_once_three_probes_got_through() -> None:
    assert await wait(known_from(20.0), FakeControlPlane("JOB_STATE_CREATING")) is Readiness.READY
    assert 20.0 <= loop_time() <= 23.0


async def test_timed_out() -> None:
    answer = await wait(lambda _: gateway_404(), FakeControlPlane(), timeout=10)
    assert answer is Readiness.TIMED_OUT
    assert 8.0 < loop_time() < 10.0


@pytest.mark.parametrize("state", ["JOB_STATE_FAILED", None])
async def test_job_gone(state: str | None) -> None:
    answer = await wait(lambda _: gateway_404(), FakeControlPlane(state))
    assert (answer, loop_time()) == (Readiness.JOB_GONE, 0.0)


def _refused(_: Exchange) -> httpx.Response:
    raise httpx.ConnectError("refused")


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (_refused, "JOB_STATE_RUNNING"),
        (lambda _: gateway_404(), OSError()),
        (lambda _: plain_404(), "JOB_STATE_RUNNING"),
    ],
)
async def test_unverifiable(
    answer: Callable[[Exchange], httpx.Response], state: str | Exception
) -> None:
    assert await wait(answer, FakeControlPlane(state)) is Readiness.UNVERIFIABLE


async def test_it_leaves_no_knowledge_behind() -> None:
    await wait(known_from(0.0), FakeControlPlane())
    state = ROUTES.find(httpx.URL(f"{BASE}/api"))
    assert state is not None
    assert not state.is_warm


@pytest.mark.parametrize("url", ["https://tinker.test/services", "nonsense", "http://x:port/"])
def test_a_url_on_no_trainer_route_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"no trainer route|no URL"):
        wait_until_routable(url)
