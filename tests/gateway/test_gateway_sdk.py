"""The real SDK against the gateway, unguarded: what works, and how each fault ends a run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.end_to_end.leftovers import LEFT_BEHIND
from tests.end_to_end.sdk import ONCE_EACH, connected, work_of
from tinker_guard.gateway import FAULTS, Fault, LocalGateway, LostReply, Race
from tinker_guard.gateway.train import train_five_steps

if TYPE_CHECKING:
    from tinker_guard.gateway.faults import Transport

tinker = pytest.importorskip("tinker")

pytestmark = [*LEFT_BEHIND, pytest.mark.usefixtures("loopback")]


def run(fault: Fault) -> tuple[list[float], LocalGateway]:
    with LocalGateway(fault) as gateway, connected(gateway) as client:
        return train_five_steps(client), gateway


def one_datum() -> list[Any]:
    inputs = {"target_tokens": [2, 3], "weights": [1.0, 1.0]}
    text = tinker.types.ModelInput.from_ints([1, 2])
    return [tinker.types.Datum(model_input=text, loss_fn_inputs=inputs)]


def new_model(client: Any) -> Any:
    return client.create_lora_training_client("tinker-guard/bigram", rank=8).result()


@pytest.fixture(scope="module")
def healthy_losses() -> list[float]:
    """The losses of a run in which nothing goes wrong."""
    return run(FAULTS["none"])[0]


@pytest.mark.parametrize(
    "fault",
    [
        FAULTS["none"],
        replace(FAULTS["none"], transport="httpx"),
        FAULTS["fresh-404"],
        replace(FAULTS["none"], name="compressed", compress=True),
    ],
    ids=lambda fault: f"{fault.name}-{fault.transport}",
)
def test_a_healthy_run(fault: Fault, healthy_losses: list[float]) -> None:
    losses, gateway = run(fault)
    assert losses == healthy_losses
    assert losses == sorted(set(losses), reverse=True)
    assert work_of(gateway) == ONCE_EACH
    assert gateway.unexpected == []
    assert gateway.questions == 0
    assert gateway.api_key not in repr(gateway.requests)


def test_weights_and_information() -> None:
    with LocalGateway() as gateway, connected(gateway) as client:
        training_client = new_model(client)
        assert training_client.get_info().lora_rank == 8
        saved = training_client.save_state("here").result()
        assert saved.path == f"tinker://{training_client.model_id}/weights/here"
        sampler = training_client.save_weights_for_sampler("there").result()
        assert sampler.path.endswith("/sampler_weights/there")
        loaded = client.create_training_client_from_state(saved.path).result()
        assert loaded.get_info().model_data.model_name == "tinker-guard/bigram"
        with pytest.raises(tinker.NotFoundError, match="Checkpoint not found"):
            client.create_training_client_from_state("tinker://gone/weights/x").result()
    assert gateway.unexpected == []


def test_chunks_of_one_forward_backward_have_seq_ids_of_their_own() -> None:
    data = one_datum() * 1025
    with LocalGateway() as gateway, connected(gateway) as client:
        training_client = new_model(client)
        result = training_client.forward_backward(data, "cross_entropy").result()
        training_client.optim_step(tinker.types.AdamParams()).result()
    assert len(result.loss_fn_outputs) == 1025
    assert work_of(gateway) == [
        (1, "forward_backward"),
        (2, "forward_backward"),
        (3, "optim_step"),
    ]
    # The SDK sends the first chunk last; the trainer holds the others back until it comes.
    sent = [e.seq_id for e in gateway.requests if e.path.endswith("/forward_backward")]
    assert sent == [2, 1]
    assert gateway.unexpected == []


# -- unguarded faults ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "work"),
    [
        ("dispatch", ONCE_EACH[:2]),
        ("reply-lost", ONCE_EACH[:3]),
        ("deleted", ONCE_EACH[:4]),
        ("plain-text", ONCE_EACH[:2]),
        ("create-model", []),
        ("get-info", []),
        ("stale-replica", []),
    ],
)
def test_a_404_where_work_is_sent_ends_the_run(fault: str, work: list[tuple[int, str]]) -> None:
    # Half of them over each transport; the SDK treats a 404 the same.
    over: Transport = "httpx" if fault in ("dispatch", "deleted", "get-info") else "pyqwest"
    with (
        LocalGateway(replace(FAULTS[fault], transport=over)) as gateway,
        connected(gateway) as client,
        pytest.raises(tinker.NotFoundError),
    ):
        train_five_steps(client)
    assert work_of(gateway)[: len(work)] == work
    assert gateway.unexpected == []


@pytest.mark.parametrize("transport", ["pyqwest", "httpx"])
def test_a_404_at_a_poll_ends_the_run_as_a_value_error(transport: Transport) -> None:
    with (
        LocalGateway(replace(FAULTS["poll"], transport=transport)) as gateway,
        connected(gateway) as client,
        pytest.raises(ValueError, match="Error retrieving result: Error code: 404"),
    ):
        train_five_steps(client)
    # The work itself was done; only its result was not fetched.
    assert work_of(gateway)[:3] == ONCE_EACH[:3]


@pytest.mark.parametrize("fault", ["late-route", "client-config", "half-stale"])
def test_a_404_at_the_start_ends_the_constructor(fault: str) -> None:
    with (
        LocalGateway(FAULTS[fault]) as gateway,
        pytest.raises(tinker.NotFoundError),
        connected(gateway) as client,
    ):
        train_five_steps(client)
    assert gateway.applied == []


def test_a_retry_in_user_code_does_the_lost_work_twice() -> None:
    fault = Fault(lost_replies=(LostReply("forward_backward"),))
    with LocalGateway(fault) as gateway, connected(gateway) as client:
        training_client = new_model(client)
        with pytest.raises(tinker.NotFoundError):
            training_client.forward_backward(one_datum(), "cross_entropy").result()
        training_client.forward_backward(one_datum(), "cross_entropy").result()
    assert work_of(gateway) == [(1, "forward_backward"), (2, "forward_backward")]


def test_a_retry_in_user_code_waits_for_ever_for_the_lost_seq_id() -> None:
    fault = Fault(
        races=(
            Race("forward_backward", seconds=0.0),
            # Ends the second poll of the retried work, which would otherwise go on for ever.
            Race("retrieve_future", occurrence=3, seconds=0.0),
        )
    )
    with LocalGateway(fault, hold_seconds=0.01) as gateway, connected(gateway) as client:
        training_client = new_model(client)
        with pytest.raises(tinker.NotFoundError):
            training_client.forward_backward(one_datum(), "cross_entropy").result()
        with pytest.raises(ValueError, match="404"):
            training_client.forward_backward(one_datum(), "cross_entropy").result()
    polls = [e.status for e in gateway.requests if e.path.endswith("/retrieve_future")]
    assert polls == [200, 200, 404]
    assert gateway.applied == []
