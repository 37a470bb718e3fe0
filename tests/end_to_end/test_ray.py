"""Actors of a real Ray on this machine train through guarded clients: `make ray`.

An actor is a process of its own, so what the driver installs does not reach it;
docs/recipes/ray.md says what does. The gateways run in the driver. The oracle is the same as in
`test_end_to_end.py`.
"""

from __future__ import annotations

import gc
import itertools
import os
import secrets
import tempfile
from collections import Counter
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

ray: Any = pytest.importorskip("ray", reason="needs Ray; `make ray` installs and runs it")
tinker: Any = pytest.importorskip("tinker", reason="needs the tinker SDK")

from tests.end_to_end.sdk import ONCE_EACH, work_of  # noqa: E402
from tinker_guard import GuardSettings, install_guard  # noqa: E402
from tinker_guard.gateway import FAULTS, Fault, LocalGateway, Race  # noqa: E402
from tinker_guard.gateway.train import train_five_steps  # noqa: E402
from tinker_guard.install.child_env import inject  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = [
    # A cluster takes seconds to start, and each actor imports the SDK.
    pytest.mark.timeout(180),
    # Ray leaves its subprocesses and their pipes to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

HOOK = {"worker_process_setup_hook": "tinker_guard.install_guard"}
TOKEN = secrets.token_hex(32)
"""Ray's own key; a process reads it once. Without one, Ray leaves one in the home directory."""

ANSWER_TIMEOUT = 90.0
"""Seconds for all actors together; the longest race lasts three."""


class Run:
    """An actor: one training run on one job, in a process of its own."""

    def __init__(self, base_url: str, api_key: str, *, installs: bool = False) -> None:
        if installs:
            install_guard()
        self._service = tinker.ServiceClient(base_url=base_url, api_key=api_key)

    def process(self) -> int:
        """The actor's process; answered when the client is connected."""
        return os.getpid()

    def train(self) -> list[float] | str:
        """The losses, or what the run died of."""
        try:
            losses = train_five_steps(self._service)
        except tinker.NotFoundError as error:
            return type(error).__name__
        self._service.close("success").result()
        return losses


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "NO_PROXY": "127.0.0.1",
        # Else the SDK tries for half a minute to report a failure to a trainer that is gone.
        "TINKER_TELEMETRY": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the default, with a FutureWarning
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_USAGE_STATS_ENABLED": "0",
    }.items():
        monkeypatch.setenv(name, value)


@contextmanager
def cluster(runtime_env: dict[str, Any] | None = None) -> Iterator[None]:
    """A Ray of its own on this machine."""
    # Not pytest's directory: the names of Ray's sockets are long already.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as directory:
        try:
            ray.init(
                address="local",
                runtime_env=dict(runtime_env or {}),  # Ray writes into what it is given
                num_cpus=4,
                object_store_memory=100 * 2**20,
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
                _node_ip_address="127.0.0.1",
                _temp_dir=directory,
            )
            yield
        finally:
            ray.shutdown()
            gc.collect()  # of Ray's subprocesses, here where their warnings are ignored


@contextmanager
def gateways(*faults: Fault) -> Iterator[list[LocalGateway]]:
    """Each with a job of its own."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(LocalGateway(fault, job=f"job-{number}"))
            for number, fault in enumerate(faults)
        ]


def start(gateway: LocalGateway, *, installs: bool = False, **options: Any) -> Any:
    actor = ray.remote(Run).options(num_cpus=1, **options)
    return actor.remote(gateway.base_url, gateway.api_key, installs=installs)


def train(actors: Sequence[Any]) -> list[list[float] | str]:
    """What became of the runs, which begin when the last actor is connected."""
    processes = ray.get([actor.process.remote() for actor in actors], timeout=ANSWER_TIMEOUT)
    assert len({*processes, os.getpid()}) == len(actors) + 1
    outcomes: list[list[float] | str] = ray.get(
        [actor.train.remote() for actor in actors], timeout=ANSWER_TIMEOUT
    )
    return outcomes


def asked_at(gateway: LocalGateway) -> list[float]:
    return [e.at for e in gateway.requests if e.answered_by == "control_plane"]


@pytest.fixture(scope="module")
def fault_free_losses() -> list[float]:
    with LocalGateway() as gateway:
        service = tinker.ServiceClient(base_url=gateway.base_url, api_key=gateway.api_key)
        losses = train_five_steps(service)
        service.close("success").result()
    return losses


def test_four_actors_with_a_job_and_a_fault_each(fault_free_losses: list[float]) -> None:
    names = ["dispatch", "poll", "reply-lost", "late-route"]
    with gateways(*(FAULTS[name] for name in names)) as jobs, cluster(HOOK):
        assert train([start(job) for job in jobs]) == [fault_free_losses] * 4
    for job in jobs:
        assert work_of(job) == ONCE_EACH
        assert job.unexpected == []
        # One process asks here, at most once per `verdict_ttl`.
        assert all(later - earlier >= 1.0 for earlier, later in itertools.pairwise(asked_at(job)))
    questions = [job.questions for job in jobs]
    # So one at the first 404, and one more for each second of the race.
    races = [1, 1, 0, 3]
    assert all(1 <= n <= 1 + seconds for n, seconds in zip(questions, races, strict=True))


def test_four_actors_on_one_job_meet_one_race(fault_free_losses: list[float]) -> None:
    seconds = 3
    fault = Fault(races=(Race("forward_backward", 3, seconds),))
    with gateways(fault) as (job,), cluster(HOOK):
        assert train([start(job) for _ in range(4)]) == [fault_free_losses] * 4
    assert Counter(work_of(job)) == dict.fromkeys(ONCE_EACH, 4)
    assert job.unexpected == []
    # Processes share nothing: each asks for itself before it waits, then at most once per
    # `verdict_ttl`. So within any second there are four questions at most.
    asked = asked_at(job)
    assert all(later - earlier >= 1.0 for earlier, later in zip(asked, asked[4:], strict=False))
    assert 4 <= len(asked) <= 4 * (1 + seconds)


def test_what_guards_an_actor_and_what_does_not(fault_free_losses: list[float]) -> None:
    injected: dict[str, str] = {}
    inject(injected)
    with gateways(*[FAULTS["dispatch"]] * 4) as jobs, cluster():
        install_guard()  # in the driver, when Ray's own processes run already
        outcomes = train(
            [
                start(jobs[0]),
                start(jobs[1], runtime_env=HOOK),
                start(jobs[2], installs=True),
                start(jobs[3], runtime_env={"env_vars": injected}),
            ]
        )
    # Ray ignores the hook of one actor, and says nothing.
    assert outcomes[:2] == ["NotFoundError"] * 2
    assert [job.questions for job in jobs[:2]] == [0, 0]
    assert outcomes[2:] == [fault_free_losses] * 2
    assert [work_of(job) for job in jobs[2:]] == [ONCE_EACH] * 2


def test_a_ray_that_a_guarded_driver_starts(fault_free_losses: list[float]) -> None:
    """Its processes are the driver's children, as they are nowhere but on one machine."""
    install_guard()
    with gateways(FAULTS["dispatch"]) as (job,), cluster():
        assert train([start(job)]) == [fault_free_losses]
    assert job.questions >= 1


def give_up_soon() -> None:
    install_guard(GuardSettings(retry_timeout=0.2))


def test_settings_in_the_hook() -> None:
    with (
        gateways(FAULTS["dispatch"]) as (job,),
        cluster({"worker_process_setup_hook": give_up_soon}),
    ):
        assert train([start(job)]) == ["NotFoundError"]
    assert job.questions == 1


def test_settings_in_the_environment_of_one_actor(fault_free_losses: list[float]) -> None:
    """Its runtime environment is added to the job's, the hook included."""
    soon = {"env_vars": {"TINKER_GUARD_RETRY_TIMEOUT": "0.2"}}
    with gateways(*[FAULTS["dispatch"]] * 2) as jobs, cluster(HOOK):
        outcomes = train([start(jobs[0], runtime_env=soon), start(jobs[1])])
    assert outcomes == ["NotFoundError", fault_free_losses]
    assert jobs[0].questions == 1
