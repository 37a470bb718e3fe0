"""A world behind httpx in one process, and on a local port."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import threading
from typing import TYPE_CHECKING

import httpx
import pytest

from testkit.cli import python
from tinker_guard.gateway import FAULTS, Fault, InProcessGateway, LocalGateway, World

if TYPE_CHECKING:
    from tinker_guard.gateway.wire import Call, Reply

HEALTH = "/api/v1/healthz"
JOB = "/v1/accounts/demo/rlorTrainerJobs/job-1"
# Made once, because making it is most of the cost of an httpx client.
TLS = ssl.create_default_context()


def get(url: str, **headers: str) -> httpx.Response:
    return httpx.get(url, headers=headers, trust_env=False, verify=TLS)


def ask(gateway: LocalGateway) -> httpx.Response:
    return get(gateway.origin + JOB, **{"X-Api-Key": gateway.api_key})


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


# -- in one process ------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_each_transport_is_a_connection_of_its_own() -> None:
    gateway = InProcessGateway(World(FAULTS["half-stale"]), latency=0.5)
    clock = asyncio.get_running_loop().time
    transports = [gateway.new_transport() for _ in range(2)]
    for _ in range(2):
        statuses = []
        for transport in transports:
            async with httpx.AsyncClient(transport=transport) as client:
                statuses.append((await client.get(gateway.base_url + HEALTH)).status_code)
        # What was closed is forgotten: then each of them gets the next replica.
        assert statuses == [200, 404]
    assert clock() == 2.0
    assert gateway.world.connections == {}
    assert [exchange.replica for exchange in gateway.world.exchanges] == [0, 1, 2, 3]


@pytest.mark.anyio
async def test_what_is_waited_for_comes_in_time() -> None:
    world = World(Fault(control_plane="slow", control_plane_delay=10.0))
    gateway = InProcessGateway(world)
    clock = asyncio.get_running_loop().time
    async with httpx.AsyncClient(transport=gateway.new_transport()) as client:
        asked = [client.get(gateway.origin + JOB) for _ in range(2)]
        slow, closed = (asyncio.create_task(one) for one in asked)
        # Another call is a reason to look again, but not to answer.
        await client.get(gateway.base_url + HEALTH)
        await slow
        assert clock() == 10.0
        await closed
        late = asyncio.create_task(client.get(gateway.origin + JOB))
        await asyncio.sleep(1)
        gateway.looped.close()
        await late
        assert clock() == 11.0


@pytest.mark.anyio
async def test_a_connection_may_be_dropped_and_a_bug_is_told() -> None:
    gateway = InProcessGateway(World(Fault(control_plane="dropped")))

    def bug(_: Call) -> Reply:
        raise AttributeError("oh")

    gateway.world.trainer.operations["GET", "healthz"] = bug
    async with httpx.AsyncClient(transport=gateway.new_transport()) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get(gateway.origin + JOB)
        assert (await client.get(gateway.base_url + HEALTH)).status_code == 500
    path = gateway.base_url.removeprefix(gateway.origin)
    assert gateway.world.trainer.unexpected == [f"GET {path}{HEALTH}: AttributeError('oh')"]


# -- on a port -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("localhost", "localhost"),
        *(("0.0.0.0", "127.0.0.1"), ("0", "127.0.0.1"), ("", "127.0.0.1")),
        *(("::1", "[::1]"), ("::", "[::1]"), ("0:0::0", "[::1]")),
    ],
)
def test_a_client_can_use_the_url_whatever_address_is_served_on(host: str, shown: str) -> None:
    if ":" in host and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    with LocalGateway(host=host) as gateway:
        assert httpx.URL(gateway.origin).netloc.decode().rpartition(":")[0] == shown
        assert get(gateway.base_url + HEALTH).status_code == 200
        assert ask(gateway).status_code == 200


def test_what_goes_over_the_wire() -> None:
    fault = Fault(replicas=2, affinity="cookie", control_plane="redirect")
    with LocalGateway(fault) as gateway, httpx.Client(trust_env=False, verify=TLS) as client:
        assert ask(gateway).headers["location"] == "/login"
        assert "sign in" in get(gateway.origin + "/login").text
        for expected in ({"gateway-replica": "0"}, {}):
            reply = client.post(gateway.base_url + "/api/v1/telemetry?x=1", json={"seq_id": 3})
            assert (reply.status_code, reply.json()) == (200, {"status": "accepted"})
            assert reply.headers["content-type"] == "application/json"
            assert reply.cookies == expected
    found = [(e.path, e.replica, e.connection, e.seq_id) for e in gateway.requests]
    assert found == [(JOB, None, 0, None)] + [("/api/v1/telemetry", 0, 1, 3)] * 2
    assert gateway.unexpected == []


def test_a_control_plane_that_drops_the_connection() -> None:
    with LocalGateway(Fault(control_plane="dropped")) as gateway:
        with pytest.raises(httpx.TransportError):
            ask(gateway)
        assert [exchange.status for exchange in gateway.requests] == [0]


def test_a_client_that_goes_away_is_no_bug() -> None:
    with LocalGateway() as gateway:
        port = int(gateway.origin.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n123")
        assert get(gateway.base_url + HEALTH).status_code == 200
    assert gateway.unexpected == []


@pytest.mark.filterwarnings("error")
def test_nothing_is_left_behind() -> None:
    gc.collect()
    threads = set(threading.enumerate())
    with LocalGateway() as gateway, httpx.Client(trust_env=False, verify=TLS) as client:
        client.get(gateway.base_url + HEALTH)
        # Stopping with an idle connection open must neither hang nor leak it.
        gateway.stop()
    assert set(threading.enumerate()) <= threads
    gc.collect()
    with pytest.raises(httpx.ConnectError):
        get(gateway.origin)


def test_connections_that_come_as_it_stops_are_closed(recwarn: pytest.WarningsRecorder) -> None:
    with LocalGateway() as gateway:
        url = httpx.URL(gateway.origin)
        clients = [socket.socket() for _ in range(100)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex((url.host, url.port))
    for client in clients:
        client.close()
    del gateway
    gc.collect()
    assert [str(warning.message) for warning in recwarn] == []


def test_a_port_can_be_chosen_and_is_free_afterwards() -> None:
    with LocalGateway() as gateway:
        port = int(gateway.origin.rpartition(":")[2])
        with pytest.raises(OSError, match="in use"):
            LocalGateway(port=port).start()
    with LocalGateway(FAULTS["late-route"], port=port) as gateway:
        assert gateway.origin == f"http://127.0.0.1:{port}"
        assert get(gateway.base_url + HEALTH).status_code == 404


def test_stopping_does_not_wait_for_a_slow_control_plane() -> None:
    gateway = LocalGateway(Fault(control_plane="slow", control_plane_delay=3600.0))
    gateway.start()
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(ask(gateway)))
    asking.start()
    while gateway.questions == 0:
        asking.join(0.001)
    gateway.stop()
    asking.join()
    assert answers[0].json()["state"] == "JOB_STATE_RUNNING"


def test_the_gateway_does_without_the_sdk_until_protobuf_comes() -> None:
    code = "import sys, tinker_guard.gateway; sys.exit('tinker' in sys.modules)"
    assert python("-c", code).returncode == 0
