"""Sampling with the real SDK over real sockets: in this process, and in others.

The oracle is the tokens: with a fault and the guard, they equal the fault-free ones, and the
trainer drew each of them once.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.end_to_end import sampling_process, sdk
from tests.end_to_end.leftovers import LEFT_BEHIND
from tests.end_to_end.sdk import Gateway, connected
from tinker_guard import install_guard
from tinker_guard.gateway import FAULTS, Fault, LocalGateway, LostReply, Race

if TYPE_CHECKING:
    from tinker_guard.gateway.faults import Transport

pytestmark = [
    *LEFT_BEHIND,
    pytest.mark.usefixtures("loopback"),
    pytest.mark.skipif(
        sdk.IS_FIREWORKS, reason=f"{sdk.NAME} samples at a deployment, not at the trainer"
    ),
]
needs_session_poller = pytest.mark.skipif(
    not sdk.HAS_SESSION_POLLER, reason=f"{sdk.NAME} polls for each sample"
)
needs_pickles = pytest.mark.skipif(
    not sdk.CAN_PICKLE_CLIENTS, reason=f"{sdk.NAME} cannot pickle a sampling client"
)
needs_sidecar = pytest.mark.skipif(
    not sdk.HAS_SIDECAR, reason=f"{sdk.NAME} has no sampling sidecar process"
)

SEEDS = list(range(16))
POLL = "retrieve_futures" if sdk.HAS_SESSION_POLLER else "retrieve_future"
"""What the SDK asks whether samples are there."""


def sample_after_a_step(service: Any) -> dict[str, Any]:
    """Train one step, and sample from what was saved, from the base model and from a snapshot."""
    types = sdk.types
    training = sdk.create_training_client(service)
    tokens = [1, 2, 3, 4, 5, 6]
    weights = types.TensorData(data=[1.0] * 5, dtype="float32", shape=[5])
    targets = types.TensorData(data=tokens[1:], dtype="int64", shape=[5])
    datum = types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": targets, "weights": weights},
    )
    training.forward_backward([datum], "cross_entropy").result()
    training.optim_step(types.AdamParams(learning_rate=2.0)).result()

    path = training.save_weights_for_sampler("after-one-step").result().path
    saved = sdk.for_running_loop(service.create_sampling_client(model_path=path))
    base = sdk.for_running_loop(service.create_sampling_client(base_model="tinker-guard/bigram"))
    snapshot = sdk.for_running_loop(training.save_weights_and_get_sampling_client())
    prompt = types.ModelInput.from_ints(tokens)
    return {
        "saved": sampling_process.outcomes(saved, SEEDS[:8]),
        "base": sampling_process.outcomes(base, SEEDS[:2]),
        "snapshot": sampling_process.outcomes(snapshot, SEEDS[:2]),
        "logprobs": saved.compute_logprobs(prompt).result(),
    }


def run(fault: Fault) -> tuple[dict[str, Any], LocalGateway]:
    with Gateway(fault, sample_seconds=0.02) as gateway, connected(gateway) as service:
        return sample_after_a_step(service), gateway


@pytest.fixture(scope="module")
def fault_free_run() -> tuple[dict[str, Any], LocalGateway]:
    return run(FAULTS["none"])


@pytest.fixture(scope="module")
def fault_free(fault_free_run: tuple[dict[str, Any], LocalGateway]) -> dict[str, Any]:
    return fault_free_run[0]


@pytest.fixture(scope="module")
def operations(fault_free_run: tuple[dict[str, Any], LocalGateway]) -> set[str]:
    """What this release of the SDK asks a trainer."""
    return {e.path.removeprefix("/api/v1/") for e in fault_free_run[1].requests}


def samples_in(found: dict[str, Any]) -> list[Any]:
    return [*found["saved"], *found["base"], *found["snapshot"]]


def drawn_once_each(gateway: LocalGateway, found: dict[str, Any]) -> None:
    assert gateway.unexpected == []
    requests = [(drawn.sampling_session_id, drawn.seq_id) for drawn in gateway.sampled]
    assert len(set(requests)) == len(requests)
    drawn = Counter(tokens for sample in gateway.sampled for tokens in sample.tokens)
    drawn.subtract(map(tuple, samples_in(found)))
    # For logprobs the SDK asks for a sample of one token, which nobody sees.
    assert [len(tokens) for tokens, times in drawn.items() if times] == [1]


def test_what_is_sampled_depends_on_weights_and_seed(
    fault_free: dict[str, Any], fault_free_run: tuple[dict[str, Any], LocalGateway]
) -> None:
    drawn_once_each(fault_free_run[1], fault_free)
    assert fault_free["saved"][:2] != fault_free["base"]
    assert fault_free["saved"][:2] == fault_free["snapshot"]
    assert len({tuple(tokens) for tokens in fault_free["saved"]}) > 1
    assert fault_free["logprobs"][0] is None
    assert all(logprob > -1.0 for logprob in fault_free["logprobs"][1:])


PRESETS = ("sampling-session", "save-for-sampler", "sample", "sample-poll", "sample-lost")
ONE_RACE = [
    *(sdk.soon_over(FAULTS[name]) for name in PRESETS),
    Fault("sampler-info", races=(Race("samplers/session-1:sample:0", seconds=0.2),)),
    # The futures before it: of create_model, of the step and of what was saved.
    Fault("fetch", races=(Race("retrieve_future", occurrence=7, seconds=0.2),)),
]
MORE = [
    Fault("asample-reply", lost_replies=tuple(LostReply("asample", n) for n in (1, 2, 8))),
    Fault(
        "each-sample-polled",
        session_poller=False,
        lost_replies=(LostReply("retrieve_future", 7),),
    ),
    Fault(
        "several",
        replicas=3,
        route_known_after=(0.0, 0.2, 0.0),
        races=(
            Race("asample", 5, 0.2, replicas=(0, 1)),
            Race(POLL, 3, 0.0),
            Race("retrieve_future", 11, 0.2),
        ),
        lost_replies=(LostReply("asample", 9), LostReply("retrieve_future", 9)),
    ),
]


@pytest.mark.parametrize("fault", [*ONE_RACE, *MORE], ids=lambda fault: fault.name)
def test_guarded_sampling_equals_fault_free_sampling(
    fault: Fault, fault_free: dict[str, Any], operations: set[str]
) -> None:
    if unsent := sdk.operations_of(fault) - operations:
        pytest.skip(f"{sdk.NAME} does not send {', '.join(sorted(unsent))} here")
    install_guard()
    # About half of them over each inner transport.
    over: Transport = "pyqwest" if len(fault.name) % 2 else "httpx"
    found, gateway = run(replace(fault, transport=over))
    assert found == fault_free
    drawn_once_each(gateway, found)
    assert any(exchange.answered_by == "gateway" for exchange in gateway.requests)


@pytest.mark.parametrize("fault", ONE_RACE, ids=lambda fault: fault.name)
def test_unguarded_sampling_fails(fault: Fault, operations: set[str]) -> None:
    if unsent := sdk.operations_of(fault) - operations:
        pytest.skip(f"{sdk.NAME} does not send {', '.join(sorted(unsent))} here")
    try:
        found, _ = run(fault)
    except (sdk.SdkError, ValueError) as error:
        failed = str(error)
    else:
        failed = "".join(sample for sample in samples_in(found) if isinstance(sample, str))
    assert "404" in failed


# -- one poll for many ---------------------------------------------------------------------------

ONE_404 = [
    Fault("refused", races=(Race(POLL, seconds=0.0),)),
    Fault("reply-lost", lost_replies=(LostReply(POLL),)),
]


def wait_for_sixteen(fault: Fault) -> tuple[list[Any], LocalGateway]:
    # Samples take long enough for all to be asked for before the poller hears of the first.
    gateway = Gateway(fault, sample_seconds=0.3)
    with gateway, connected(gateway) as service:
        client = sdk.for_running_loop(
            service.create_sampling_client(base_model="tinker-guard/bigram")
        )
        return sampling_process.outcomes(client, SEEDS), gateway


@needs_session_poller
@pytest.mark.parametrize("fault", ONE_404, ids=lambda fault: fault.name)
def test_one_404_for_the_poller_fails_every_waiter(fault: Fault) -> None:
    found, gateway = wait_for_sixteen(fault)
    assert [e.status for e in gateway.requests if e.path == f"/api/v1/{POLL}"] == [404]
    assert len(gateway.sampled) == 16
    assert all("retrieve_futures polling failed" in outcome for outcome in found)


@needs_session_poller
@pytest.mark.parametrize("fault", ONE_404, ids=lambda fault: fault.name)
def test_one_404_for_the_poller_fails_no_waiter_of_a_guarded_session(fault: Fault) -> None:
    expected, _ = wait_for_sixteen(FAULTS["none"])
    install_guard()
    found, gateway = wait_for_sixteen(fault)
    polls = [e for e in gateway.requests if e.path == f"/api/v1/{POLL}"]
    assert [poll.status for poll in polls].count(404) == 1
    assert polls[0].status == 404
    # The same cursor again: what a lost reply held is told once more.
    assert polls[0].body_sha256 == polls[1].body_sha256
    assert polls[0].idempotency_key == polls[1].idempotency_key
    assert found == expected
    assert [len(drawn.tokens) for drawn in gateway.sampled] == [1] * 16


# -- other processes -----------------------------------------------------------------------------

RACY = Fault(races=(Race("asample", seconds=0.3),), lost_replies=(LostReply(POLL),))
FOUR = SEEDS[:4]


@pytest.fixture(scope="module")
def four_samples() -> list[Any]:
    with Gateway() as gateway, connected(gateway) as service:
        client = sdk.for_running_loop(
            service.create_sampling_client(base_model="tinker-guard/bigram")
        )
        return sampling_process.outcomes(client, FOUR)


def seen_by(gateway: LocalGateway) -> list[int]:
    """The statuses of what another process asked for."""
    return [e.status for e in gateway.requests if e.path in ("/api/v1/asample", f"/api/v1/{POLL}")]


@needs_pickles
@pytest.mark.parametrize("installs", ["parent", "worker"])
def test_a_client_in_a_guarded_worker(installs: str, four_samples: list[Any]) -> None:
    if installs == "parent":
        install_guard()
    work = {
        "parent": sampling_process.outcomes,
        "worker": sampling_process.install_and_sample,
    }[installs]
    with Gateway(RACY) as gateway, connected(gateway) as service:
        client = sdk.for_running_loop(
            service.create_sampling_client(base_model="tinker-guard/bigram")
        )
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(work, (client, FOUR))
    assert found == four_samples
    assert 404 in seen_by(gateway)
    assert len({drawn.seq_id for drawn in gateway.sampled}) == len(gateway.sampled) == len(FOUR)
    # A clone of the session: its requests are counted apart from the parent's.
    assert min(drawn.seq_id for drawn in gateway.sampled) >= 1_000_000_000
    assert gateway.unexpected == []


@needs_pickles
def test_a_client_in_an_unguarded_worker() -> None:
    with Gateway(RACY) as gateway, connected(gateway) as service:
        client = sdk.for_running_loop(
            service.create_sampling_client(base_model="tinker-guard/bigram")
        )
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(sampling_process.outcomes, (client, FOUR))
    assert any("404" in outcome for outcome in found)


def run_program(case: str, gateway: LocalGateway, stdin: bytes = b"", **environment: str) -> Any:
    program = Path(sampling_process.__file__)
    arguments = [case, json.dumps(FOUR), gateway.base_url, gateway.api_key]
    ended = subprocess.run(
        [sys.executable, program, *arguments],
        input=stdin,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(program.parent.parent), **environment},
        timeout=50,
        check=True,
    )
    return json.loads(ended.stdout)


@needs_pickles
@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_a_forked_worker_is_guarded_by_its_parent(method: str, four_samples: list[Any]) -> None:
    with Gateway(RACY) as gateway, connected(gateway) as service:
        client = sdk.for_running_loop(
            service.create_sampling_client(base_model="tinker-guard/bigram")
        )
        found = run_program(method, gateway, pickle.dumps(client), TEST_INSTALLS_GUARD="1")
    assert found == four_samples
    assert 404 in seen_by(gateway)
    assert gateway.unexpected == []


@needs_sidecar
def test_the_sidecar_is_guarded_by_its_parent(four_samples: list[Any]) -> None:
    with Gateway(RACY) as gateway:
        found = run_program(
            "sidecar", gateway, TINKER_SUBPROCESS_SAMPLING="1", TEST_INSTALLS_GUARD="1"
        )
    assert found == four_samples
    assert 404 in seen_by(gateway)
    # The sidecar samples as a clone, so that it was not the parent who did.
    assert min(drawn.seq_id for drawn in gateway.sampled) >= 1_000_000_000
    assert gateway.unexpected == []


@needs_sidecar
def test_an_unguarded_sidecar_fails() -> None:
    with Gateway(RACY) as gateway:
        found = run_program("sidecar", gateway, TINKER_SUBPROCESS_SAMPLING="1")
    assert any("404" in outcome for outcome in found)
