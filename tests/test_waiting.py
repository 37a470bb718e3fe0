from __future__ import annotations

import asyncio
import gc
import logging
import socket
import ssl
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from testkit.cli import invoke
from testkit.fakes import (
    BASE,
    KEY,
    Exchange,
    FakeControlPlane,
    FakeGateway,
    gateway_404,
    known_from,
    loop_time,
    ok,
    plain_404,
    router_404,
)
from testkit.local_server import serving
from tinker_guard import ControlPlaneError, GuardSettings
from tinker_guard.cli import wait as command
from tinker_guard.core.attempts import JITTER
from tinker_guard.core.routes import ROUTES
from tinker_guard.waiting import SETTLE_SECONDS, Readiness, until_routable, wait_until_routable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.anyio


async def wait(
    answer: Callable[[Exchange], httpx.Response],
    plane: FakeControlPlane,
    *,
    url: str = BASE,
    **more: Any,
) -> Readiness:
    gateway = FakeGateway(answer)
    try:
        return await until_routable(
            url,
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


@pytest.mark.parametrize("state", ["JOB_STATE_RUNNING", "JOB_STATE_CREATING", "JOB_STATE_NEW"])
async def test_timed_out(state: str) -> None:
    """The last probe begins at the very end."""
    answer = await wait(lambda _: gateway_404(), FakeControlPlane(state), timeout=10)
    assert (answer, loop_time()) == (Readiness.TIMED_OUT, 10.0)


@pytest.mark.parametrize(
    ("state", "questions", "seconds"),
    [
        ("JOB_STATE_FAILED", 1, 0.0),
        ("JOB_STATE_EXPIRED", 1, 0.0),
        ("JOB_STATE_DELETING_CLEANING_UP", 1, 0.0),
        ("JOB_STATE_ARCHIVED", 1, 0.0),
        # Asked twice: one negative answer is not the truth.
        (None, 2, 2.0),
    ],
)
async def test_job_gone(state: str | None, questions: int, seconds: float) -> None:
    plane = FakeControlPlane(state)
    answer = await wait(lambda _: gateway_404(), plane)
    assert (answer, plane.questions, loop_time()) == (Readiness.JOB_GONE, questions, seconds)


_RESUMABLE = [
    *("JOB_STATE_PAUSED", "JOB_STATE_COMPLETED", "JOB_STATE_CANCELLED", "JOB_STATE_CANCELLING"),
    *("JOB_STATE_EARLY_STOPPED", "JOB_STATE_DELETING"),
]


@pytest.mark.parametrize("state", _RESUMABLE)
@pytest.mark.parametrize("resumed_after", [0.5, 12.0, 29.0])
@pytest.mark.parametrize("began", [0.0, 1000.0])
async def test_the_state_of_a_job_that_was_just_resumed_settles(
    state: str, resumed_after: float, began: float, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tinker_guard")
    await asyncio.sleep(began)
    resumed_at = began + resumed_after
    known_at = resumed_at + 8.0
    plane = FakeControlPlane(
        state,
        states=[(resumed_at, "JOB_STATE_CREATING"), (resumed_at + 4, "JOB_STATE_RUNNING")],
    )
    assert await wait(known_from(known_at), plane) is Readiness.READY
    assert known_at <= loop_time() <= known_at + 3.0
    told = [line.rpartition(" ")[2].strip(".") for line in caplog.messages]
    # Each state is told, at the latest with the next line.
    assert list(dict.fromkeys(told))[:3] == [state, "JOB_STATE_CREATING", "JOB_STATE_RUNNING"]
    assert len(told) <= 3 + loop_time() / 10 + 1


@pytest.mark.parametrize("state", _RESUMABLE)
@pytest.mark.parametrize(("settle", "latest"), [(0.0, 0.0), (2.0, 3.0), (30.0, 33.0)])
async def test_a_stopped_state_that_stays_is_believed(
    state: str, settle: float, latest: float
) -> None:
    answer = await wait(lambda _: gateway_404(), FakeControlPlane(state), settle=settle)
    assert answer is Readiness.JOB_GONE
    assert settle <= loop_time() <= latest


async def test_half_a_minute_is_what_a_state_gets_by_default() -> None:
    answer = await wait(lambda _: gateway_404(), FakeControlPlane("JOB_STATE_PAUSED"))
    assert answer is Readiness.JOB_GONE
    assert 30.0 <= loop_time() <= 33.0


async def test_a_job_that_stops_after_it_had_run_is_gone() -> None:
    """What a resume leaves behind comes first; a state that comes later is a new one."""
    plane = FakeControlPlane(
        "JOB_STATE_PAUSED", states=[(5.0, "JOB_STATE_RUNNING"), (40.0, "JOB_STATE_PAUSED")]
    )
    assert await wait(lambda _: gateway_404(), plane) is Readiness.JOB_GONE
    assert 40.0 <= loop_time() <= 43.0


async def test_a_state_that_has_not_settled_in_time_is_not_believed() -> None:
    plane = FakeControlPlane("JOB_STATE_PAUSED")
    answer = await wait(lambda _: gateway_404(), plane, timeout=10, settle=30)
    assert (answer, loop_time()) == (Readiness.TIMED_OUT, 10.0)


async def test_a_final_state_is_believed_while_another_one_settles() -> None:
    plane = FakeControlPlane("JOB_STATE_CANCELLING", states=[(3.0, "JOB_STATE_FAILED")])
    assert await wait(lambda _: gateway_404(), plane) is Readiness.JOB_GONE
    assert 3.0 <= loop_time() < 4.0


@pytest.mark.parametrize("status", [200, 204, 302, 400, 401, 403, 405])
async def test_unverifiable(status: int, caplog: pytest.LogCaptureFixture) -> None:
    answer = await wait(lambda _: httpx.Response(status), FakeControlPlane())
    assert (answer, loop_time()) == (Readiness.UNVERIFIABLE, 0.0)
    assert caplog.messages == [
        f"job acc/job-1: its route cannot be probed: gateway.test:443 answers {status}."
    ]


_NO_ANSWERS = [
    (OSError("tml-secret"), "FakeControlPlane raised OSError"),
    (ControlPlaneError("it is out of order.", 500), "it is out of order"),
    (ControlPlaneError("it refused the key (401).", 401), "it refused the key (401)"),
    (ControlPlaneError("it has no job's state.", 200), "it has no job's state"),
    (ControlPlaneError(""), "the control plane gives no usable answer"),
]


@pytest.mark.parametrize(("error", "said"), _NO_ANSWERS)
async def test_that_no_state_is_known_is_told_too(
    error: Exception, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tinker_guard")
    answer = await wait(lambda _: gateway_404(), FakeControlPlane(error))
    assert answer is Readiness.UNVERIFIABLE
    assert 120.0 <= loop_time() < 121.0
    ending = f"the gateway answers 404, and {said}."
    assert all(line.endswith(ending) for line in caplog.messages)
    assert len(caplog.messages) in (11, 12, 13)


@pytest.mark.parametrize(("error", "said"), _NO_ANSWERS)
async def test_a_trainer_that_comes_up_is_waited_for_whatever_the_control_plane_answers(
    error: Exception, said: str
) -> None:
    assert await wait(known_from(20.0), FakeControlPlane(error)) is Readiness.READY
    assert 20.0 <= loop_time() < 24.0


@pytest.mark.parametrize("status", [200, 302, 401, 403, 408])
async def test_an_odd_answer_to_a_probe_in_a_race_is_waited_past(status: int) -> None:
    """It says as little as before, but that the route is not known yet was said in between."""

    def answer(exchange: Exchange) -> httpx.Response:
        if 3.0 < exchange.at < 6.0:
            return httpx.Response(status)
        return known_from(20.0)(exchange)

    assert await wait(answer, FakeControlPlane()) is Readiness.READY
    assert 20.0 <= loop_time() < 24.0


async def test_it_is_asked_once_for_each_probe_that_is_answered() -> None:
    plane = FakeControlPlane(OSError(), takes=0.1)
    probes = 0

    def answer(_: Exchange) -> httpx.Response:
        nonlocal probes
        probes += 1
        return gateway_404()

    await wait(answer, plane, timeout=20)
    assert plane.questions in (probes, probes - 1)


async def test_a_control_plane_that_takes_longer_than_the_wait_is_told_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    plane = FakeControlPlane(takes=60.0)
    assert await wait(lambda _: gateway_404(), plane, timeout=1) is Readiness.UNVERIFIABLE
    assert caplog.messages[0].endswith(
        "the gateway answers 404, and the control plane gives no usable answer."
    )


async def test_that_there_is_no_such_job_is_no_obstacle(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tinker_guard")
    assert await wait(lambda _: gateway_404(), FakeControlPlane(None)) is Readiness.JOB_GONE
    assert caplog.messages == []


@pytest.mark.parametrize("not_found", [plain_404, router_404, lambda: httpx.Response(404)])
@pytest.mark.parametrize("known_at", [1.0, 20.0, 100.0])
async def test_404s_of_any_kind_are_waited_out(
    not_found: Callable[[], httpx.Response], known_at: float
) -> None:
    """There is no request that could be sent to see what there is."""
    answer = await wait(lambda e: ok() if e.at >= known_at else not_found(), FakeControlPlane())
    assert answer is Readiness.READY
    assert known_at <= loop_time() <= known_at + max(0.5, known_at / 4)


async def test_where_all_404s_are_unknown_to_the_end_nothing_is_verified() -> None:
    answer = await wait(lambda _: plain_404(), FakeControlPlane(), timeout=30)
    assert (answer, loop_time()) == (Readiness.UNVERIFIABLE, 30.0)


async def test_it_leaves_no_knowledge_behind() -> None:
    await wait(known_from(0.0), FakeControlPlane())
    state = ROUTES.find(httpx.URL(f"{BASE}/api"))
    assert state is not None
    assert not state.is_warm


@pytest.mark.parametrize("url", ["https://tinker.test/services", "http://localhost:8000"])
def test_a_url_on_no_trainer_route_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"no trainer route; it should look like https://HOST/tr"):
        wait_until_routable(url)


async def test_a_route_by_configuration_is_waited_for() -> None:
    gateway = FakeGateway(known_from(3.0))
    ends = until_routable(
        "http://head:8000/m/a",
        settings=GuardSettings(routes="/m/{model}"),
        control_plane=FakeControlPlane(),
        new_transport=gateway.new_transport,
    )
    assert await ends is Readiness.READY
    assert 3.0 <= loop_time() < 4.0


@pytest.mark.parametrize(
    ("routes", "base"),
    [((), BASE), ("http://head:8000/{account}/{job}", "http://head:8000/acc/job-1")],
)
@pytest.mark.parametrize("behind", ["/api/v1", "/api/v1/", "/geheim/x", "/api/v1/create_model"])
def test_a_url_that_goes_on_behind_the_job_is_refused(routes: str, base: str, behind: str) -> None:
    """A run with it would fail: the SDK puts its own paths behind it."""
    with pytest.raises(ValueError, match=r"^this URL goes on behind the job") as told:
        wait_until_routable(f"{base}{behind}", timeout=0, settings=GuardSettings(routes=routes))
    assert str(told.value).endswith(f": give {base}")
    assert "geheim" not in str(told.value)


@pytest.mark.parametrize("routes", ["http://head:8000", "http://head:8000/m", "/m/{model}"])
async def test_below_a_route_that_names_no_job_there_may_be_a_trainer(routes: str) -> None:
    gateway = FakeGateway(known_from(3.0))
    ends = until_routable(
        "http://head:8000/m/a/b",
        settings=GuardSettings(routes=routes),
        new_transport=gateway.new_transport,
    )
    assert await ends is Readiness.READY


def test_the_command_says_which_url_to_give() -> None:
    ended = invoke("wait", f"{BASE}/api/v1", "--timeout", "0.1")
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert ended.stderr == (
        "tinker-guard wait: this URL goes on behind the job, where the SDK puts /api/v1/... "
        f"itself: give {BASE}\n"
    )


def test_a_url_on_no_trainer_route_is_told_how_it_would_be_one() -> None:
    with pytest.raises(
        ValueError, match=r"TINKER_GUARD_ROUTES, for example to http://head:8000/\{_part1}$"
    ):
        wait_until_routable("http://head:8000/geheim")


@pytest.mark.parametrize("more", ["?x=1", "#top", "/?key=geheim", "?"])
def test_a_url_with_a_query_is_refused_without_showing_it(more: str) -> None:
    with pytest.raises(ValueError, match="must have no query") as told:
        wait_until_routable(f"{BASE}{more}")
    assert "geheim" not in str(told.value)


def test_what_is_no_url_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^this is no URL with .*: 'http://x:port...'$"):
        wait_until_routable("http://x:port/")


@pytest.mark.parametrize(
    ("port", "said"),
    [(0, "this is no URL"), (1, "no trainer"), (65535, "no trainer"), (65536, "this is no URL")],
)
def test_the_ports_that_can_be(port: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        wait_until_routable(f"http://localhost:{port}")


@pytest.mark.parametrize("url", [BASE, f"{BASE}/"])
async def test_by_the_same_rule_as_a_guarded_runs_warmup(url: str) -> None:
    gateway = FakeGateway()
    assert await until_routable(url, new_transport=gateway.new_transport) is Readiness.READY
    assert [probe.connection for probe in gateway.probes] == [0, 0, 0]
    assert not any("x-api-key" in probe.headers for probe in gateway.probes)


async def test_where_a_run_would_not_warm_up_one_probe_is_enough() -> None:
    gateway, settings = FakeGateway(), GuardSettings(warmup_successes=0)
    ready = await until_routable(BASE, settings=settings, new_transport=gateway.new_transport)
    assert (ready, len(gateway.probes)) == (Readiness.READY, 1)


def test_without_an_event_loop_it_waits_in_the_same_way() -> None:
    gateway, plane = FakeGateway(lambda _: gateway_404()), FakeControlPlane()
    readiness = wait_until_routable(
        BASE,
        api_key=KEY,
        timeout=0,
        settings=GuardSettings(warmup_successes=2),
        control_plane=plane,
        new_transport=gateway.new_transport,
    )
    assert readiness is Readiness.TIMED_OUT
    assert len(gateway.probes) == 1
    assert plane.credentials == [{"x-api-key": KEY}]


def test_without_an_event_loop_it_is_told_how_to_wait() -> None:
    gateway, plane = FakeGateway(lambda _: gateway_404()), FakeControlPlane("JOB_STATE_PAUSED")
    settings = GuardSettings(warmup_probe_path="/api/v1/healthz")
    readiness = wait_until_routable(
        BASE,
        timeout=0,
        settle=0.0,
        settings=settings,
        control_plane=plane,
        new_transport=gateway.new_transport,
    )
    assert readiness is Readiness.JOB_GONE
    assert [e.path.rpartition("/")[2] for e in gateway.exchanges] == ["healthz"]


@pytest.mark.parametrize("is_tls", [False, True])
def test_by_itself_it_sends_as_a_client_does(
    is_tls: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    if not is_tls:
        monkeypatch.delenv("SSL_CERT_FILE")
    clients: list[httpx.AsyncClient] = []

    class Client(httpx.AsyncClient):
        def __init__(self, **more: Any) -> None:
            super().__init__(**more)
            clients.append(self)

        async def send(self, *_: Any, **__: Any) -> httpx.Response:
            raise AssertionError("it writes the whole URL to the log, and may read all of a body")

    monkeypatch.setattr(httpx, "AsyncClient", Client)
    with serving(tmp_path if is_tls else None) as server:
        url = f"{server.origin}/training/v1/rlorTrainerJobs/acc/job-1"
        settings = GuardSettings(backoff_initial=0.01)
        assert wait_until_routable(url, api_key=KEY, settings=settings) is Readiness.READY
        assert server.keys == {KEY}
    # One for each of the two connections, and one for the lookup between them.
    assert len(clients) == 3
    assert all(client.is_closed for client in clients)


@pytest.mark.filterwarnings("error")
def test_on_a_running_loop_it_names_what_to_await() -> None:
    async def call() -> None:
        wait_until_routable(BASE)

    with pytest.raises(RuntimeError, match=r"await until_routable\(\) instead"):
        asyncio.run(call())
    gc.collect()


def test_a_gateway_that_nobody_vouches_for_gets_no_key(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        url = f"{server.origin}/training/v1/rlorTrainerJobs/acc/job-1"
        assert wait_until_routable(url, api_key=KEY, timeout=0.5) is Readiness.UNVERIFIABLE
        assert server.keys == set()


@pytest.mark.parametrize(("given", "settle"), [((), 30.0), (("--settle", "7.5"), 7.5)])
def test_the_command_lets_a_state_settle_as_long_as_it_is_told(
    given: tuple[str, ...], settle: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    def wait(url: str, **options: object) -> Readiness:
        asked.update(options, url=url)
        return Readiness.JOB_GONE

    monkeypatch.setattr(command, "wait_until_routable", wait)
    ended = invoke("wait", BASE, "--timeout", "60", *given)
    assert (ended.exit_code, ended.output) == (4, "Gone: the job is stopped or does not exist.\n")
    assert asked == {"url": BASE, "api_key": None, "timeout": 60.0, "settle": settle}


def test_the_command_says_what_settling_is() -> None:
    said = " ".join(invoke("wait", "--help").output.split())
    assert "--settle" in said
    assert "ignore a stopped state, such as JOB_STATE_PAUSED, that may be left from before" in said
    assert "(default: 30)" in said
    assert SETTLE_SECONDS == 30.0
    assert invoke("wait", BASE, "--settle", "-1").exit_code == 2


@pytest.mark.parametrize("variables", [{}, {"TINKER_GUARD_WARMUP_TIMEOUT": "600"}])
def test_the_command_waits_as_long_as_a_run_would(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[object] = []

    def wait(_: str, **options: object) -> Readiness:
        waited.append(options["timeout"])
        return Readiness.READY

    monkeypatch.setattr(command, "wait_until_routable", wait)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert invoke("wait", BASE).exit_code == 0
    assert waited == [600.0 if variables else 120.0]


@pytest.mark.meets_fault
def test_a_misspelt_variable_is_named_by_a_wait_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    said = "TINKER_GUARD_WARMUP_TIMOUT is no setting; did you mean TINKER_GUARD_WARMUP_TIMEOUT?"
    monkeypatch.setenv("TINKER_GUARD_WARMUP_TIMOUT", "600")
    with pytest.raises(ValueError, match="no trainer route"):
        wait_until_routable("https://gateway.test")
    assert caplog.messages == [said]
    monkeypatch.setenv("TINKER_GUARD_STRICT", "true")
    ended = invoke("wait", BASE)
    assert ended == (
        2,
        "",
        f"tinker-guard wait: strict is set, but:\n  {said}\n",
    )


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("gateway.test/training", "gateway.test..."),
        ("notaurl", "notaurl"),
        ("", ""),
        ("ftp://h/", "ftp://h..."),
        ("https://", "https://"),
        ("user:SECRET@h?k=SECRET", "h..."),
        ("h\n\x1b[1m/SECRET\nSECRET", r"h\n\x1b[1m..."),
        ("https://gateway.test:99999/SECRET", "https://gateway.test:99999..."),
        ("https://two words/SECRET", "https://two words..."),
    ],
)
def test_what_is_no_url_is_called_so(url: str, shown: str) -> None:
    ended = invoke("wait", url)
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert ended.stderr == (
        "tinker-guard wait: this is no URL with http:// or https://, a host, and a port from 1 to "
        f"65535 if any: '{shown}'\n"
    )


@pytest.mark.parametrize(
    ("bypassed", "said"),
    [
        ("", "nothing listens at the proxy for localhost:9."),
        ("localhost", "nothing listens at localhost:9."),
        ("localhost:9", "nothing listens at localhost:9."),
        ("localhost:8", "nothing listens at the proxy for localhost:9."),
    ],
)
def test_a_proxy_that_is_not_there_is_told_from_the_gateway(
    bypassed: str, said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, bypassed)
    url = "http://localhost:9/training/v1/rlorTrainerJobs/acc/job-1"
    assert wait_until_routable(url, timeout=0.1) is Readiness.UNVERIFIABLE
    assert caplog.messages[0].endswith(said)


@pytest.mark.parametrize("key", ["SECRET\n", "SECR\u00c9T", " SECRET", "SECRET\x00"])
def test_a_key_that_cannot_be_sent_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(ValueError, match=r"^no header can carry this API key: ") as raised:
        wait_until_routable(BASE, api_key=key)
    assert "SECR" not in str(raised.value)


@pytest.mark.parametrize("name", ["timeout", "settle"])
@pytest.mark.parametrize("value", [-1, -0.001, float("nan"), float("inf"), "5", "soon", [5.0]])
def test_seconds_that_cannot_be_are_refused(name: str, value: Any) -> None:
    gateway = FakeGateway()
    with pytest.raises(ValueError, match=rf"^{name} must be a finite number of seconds, at least"):
        wait_until_routable(BASE, new_transport=gateway.new_transport, **{name: value})
    assert gateway.exchanges == []


def test_no_time_to_settle_is_refused_too() -> None:
    settle: Any = None
    with pytest.raises(ValueError, match=r"^settle must be"):
        wait_until_routable(BASE, new_transport=FakeGateway().new_transport, settle=settle)


@pytest.mark.parametrize("seconds", [0, 1, 0.5, Fraction(1, 2)])
async def test_any_kind_of_number_will_do(seconds: Any) -> None:
    plane = FakeControlPlane()
    answer = await wait(lambda _: gateway_404(), plane, timeout=seconds, settle=seconds)
    assert (answer, loop_time()) == (Readiness.TIMED_OUT, float(seconds))


def test_how_it_ended_reads() -> None:
    assert [str(end).partition(":")[0] for end in Readiness] == [
        *("Ready", "Timed out", "Gone", "Not verifiable")
    ]


# -- a gateway that is not there yet -------------------------------------------------------------


def caused_by(error: Exception) -> httpx.ConnectError:
    failed = httpx.ConnectError("secret")
    failed.__cause__ = error
    return failed


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (caused_by(socket.gaierror(-2, "secret")), "the name gateway.test is not known (DNS)"),
        (
            caused_by(ssl.SSLCertVerificationError("secret")),
            "TLS with gateway.test:443 fails (SSLCertVerificationError)",
        ),
        (caused_by(ConnectionRefusedError()), "nothing listens at gateway.test:443"),
        (httpx.ConnectTimeout("secret"), "gateway.test:443 does not answer in time"),
        (httpx.ReadError("secret"), "gateway.test:443 cannot be reached (ReadError)"),
    ],
)
async def test_what_is_not_there_yet_is_waited_for_and_named(
    error: Exception, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(exchange: Exchange) -> httpx.Response:
        if exchange.at < 25:
            raise error
        return ok()

    assert await wait(answer, FakeControlPlane()) is Readiness.READY
    assert 25.0 <= loop_time() < 29.0
    first, *still = caplog.messages
    assert first == f"waiting up to 120 s (timeout) for the route of job acc/job-1: {said}."
    assert len(still) in (2, 3)
    assert "secret" not in caplog.text


@pytest.mark.parametrize("status", [500, 502, 503, 429])
async def test_a_gateway_that_comes_up_is_waited_for(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(exchange: Exchange) -> httpx.Response:
        return httpx.Response(status) if exchange.at < 9 else ok()

    assert await wait(answer, FakeControlPlane()) is Readiness.READY
    assert f"gateway.test:443 answers {status}." in caplog.messages[0]


def refuse(_: Exchange) -> httpx.Response:
    raise caused_by(ConnectionRefusedError())


_UNANSWERED: list[Callable[[Exchange], httpx.Response]] = [
    lambda _: httpx.Response(503),
    lambda _: httpx.Response(429),
    refuse,
]


@pytest.mark.parametrize("answer", _UNANSWERED)
@pytest.mark.parametrize(
    ("states", "gone_at"),
    [
        ([(0.0, "JOB_STATE_FAILED")], 0.0),
        ([(0.0, "JOB_STATE_RUNNING"), (20.0, "JOB_STATE_EXPIRED")], 20.0),
        # Twice, and with nothing in between.
        ([(0.0, None)], 2.0),
        ([(0.0, OSError()), (10.0, None)], 12.0),
        # What a resume leaves behind.
        ([(0.0, "JOB_STATE_PAUSED")], 30.0),
        ([(0.0, "JOB_STATE_PAUSED"), (5.0, "JOB_STATE_RUNNING"), (50.0, "JOB_STATE_PAUSED")], 50.0),
    ],
)
async def test_a_job_that_is_gone_is_told_where_the_gateway_answers_no_probe_too(
    answer: Callable[[Exchange], httpx.Response],
    states: list[tuple[float, str | Exception | None]],
    gone_at: float,
) -> None:
    plane = FakeControlPlane(None, states=states)
    assert await wait(answer, plane) is Readiness.JOB_GONE
    assert gone_at <= loop_time() < gone_at + 3.5


@pytest.mark.parametrize("answer", _UNANSWERED)
@pytest.mark.parametrize(
    ("state", "takes"),
    [("JOB_STATE_RUNNING", 0.0), ("JOB_STATE_NEW", 0.0), (OSError(), 0.0), (None, 60.0)],
)
async def test_nor_is_it_told_to_be_gone_where_it_is_not_known(
    answer: Callable[[Exchange], httpx.Response], state: str | Exception | None, takes: float
) -> None:
    plane = FakeControlPlane(state, takes=takes)
    assert await wait(answer, plane, timeout=20) is Readiness.UNVERIFIABLE
    assert 20.0 <= loop_time() < 21.0


async def test_a_control_plane_is_waited_for_until_the_end_and_no_longer() -> None:
    plane = FakeControlPlane(takes=60.0)
    assert await wait(lambda _: httpx.Response(503), plane, timeout=7) is Readiness.UNVERIFIABLE
    assert loop_time() == 7.0


@pytest.mark.parametrize(("settle", "seconds"), [(0.0, 0.0), (10.0, 12.0)])
async def test_a_state_settles_from_when_it_was_first_heard(settle: float, seconds: float) -> None:
    await asyncio.sleep(1000)
    plane = FakeControlPlane("JOB_STATE_PAUSED")
    answer = await wait(lambda _: httpx.Response(503), plane, settle=settle)
    assert answer is Readiness.JOB_GONE
    assert settle <= loop_time() - 1000 <= seconds


async def test_a_job_that_is_resumed_behind_a_gateway_that_answers_no_probe_is_waited_for() -> None:
    plane = FakeControlPlane("JOB_STATE_PAUSED", states=[(12.0, "JOB_STATE_RUNNING")])

    def answer(exchange: Exchange) -> httpx.Response:
        return ok() if exchange.at > 15 else httpx.Response(503)

    assert await wait(answer, plane) is Readiness.READY


@pytest.mark.parametrize(
    ("origin", "place"),
    [
        ("https://gateway.test", "gateway.test:443"),
        ("http://gateway.test", "gateway.test:80"),
        ("http://gateway.test:8080", "gateway.test:8080"),
        ("https://gateway.test:8443", "gateway.test:8443"),
    ],
)
async def test_the_place_that_is_waited_for_has_its_port(
    origin: str, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"{origin}/training/v1/rlorTrainerJobs/acc/job-1"
    answer = await wait(lambda _: httpx.Response(503), FakeControlPlane(), url=url, timeout=1)
    assert answer is Readiness.UNVERIFIABLE
    assert caplog.messages[0].endswith(f": {place} answers 503.")


async def test_a_gateway_that_is_not_there_is_tried_with_growing_waits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(JITTER, "random", lambda: 0.0)
    caplog.set_level(logging.INFO)
    times: list[float] = []
    await asyncio.sleep(50)

    def answer(exchange: Exchange) -> httpx.Response:
        times.append(exchange.at - 50)
        return ok() if len(times) >= 4 else httpx.Response(503)

    assert await wait(answer, FakeControlPlane()) is Readiness.READY
    assert times[:4] == pytest.approx([0.0, 0.1, 0.1 + 0.115, 0.1 + 0.115 + 0.13225])
    assert times[4:] == [times[3]] * 2
    *_, last = caplog.messages
    assert last == "job acc/job-1: its route answers after 0.35 s and 6 probes."


async def test_a_key_that_is_refused_is_not_waited_for() -> None:
    assert await wait(lambda _: httpx.Response(401), FakeControlPlane()) is Readiness.UNVERIFIABLE
    assert loop_time() == 0.0


async def test_what_never_comes_is_not_verifiable() -> None:
    def answer(_: Exchange) -> httpx.Response:
        raise httpx.ConnectError("no")

    assert await wait(answer, FakeControlPlane()) is Readiness.UNVERIFIABLE
    assert 120.0 <= loop_time() < 121.0


async def test_a_control_plane_that_is_not_there_yet_is_waited_for() -> None:
    plane = FakeControlPlane(OSError(), states=[(20.0, "JOB_STATE_RUNNING")])
    assert await wait(known_from(30.0), plane) is Readiness.READY
    assert 30.0 <= loop_time() < 36.0


async def test_an_environment_that_cannot_be_used_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ALL_PROXY", "nonsense://127.0.0.1:1")
    with pytest.raises(ValueError, match="proxies or certificates") as raised:
        await until_routable(BASE)
    assert str(raised.value) == (
        "the proxies or certificates that the environment names cannot be used (ValueError): check "
        "HTTPS_PROXY, ALL_PROXY, NO_PROXY, SSL_CERT_FILE"
    )


@pytest.mark.parametrize("variable", ["ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY"])
@pytest.mark.parametrize(
    ("cause", "directly", "by_proxy"),
    [
        (
            socket.gaierror(),
            "the name gateway.test is not known (DNS)",
            "the name of the proxy for gateway.test is not known (DNS)",
        ),
        (
            OSError(),
            "gateway.test:443 cannot be reached (ConnectError)",
            "gateway.test:443 cannot be reached through the proxy (ConnectError)",
        ),
    ],
)
async def test_an_obstacle_on_the_way_to_a_proxy_is_told_as_one(
    cause: OSError,
    directly: str,
    by_proxy: str,
    variable: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(*_: object) -> httpx.Response:
        raise httpx.ConnectError("no") from cause

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", fail)
    monkeypatch.setenv(variable, "http://proxy.test:1")
    ends = await until_routable(BASE, control_plane=FakeControlPlane(), timeout=5)
    assert ends is Readiness.UNVERIFIABLE
    assert (directly if variable == "HTTP_PROXY" else by_proxy) in caplog.text


async def test_what_builds_transports_raises_its_own_error() -> None:
    def new_transport() -> httpx.AsyncBaseTransport:
        raise ValueError("not today")

    with pytest.raises(ValueError, match="not today"):
        await until_routable(BASE, new_transport=new_transport)
