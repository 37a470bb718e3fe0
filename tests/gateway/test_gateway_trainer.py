"""The trainer computes real gradients, in strict order and exactly once."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from tinker_guard.gateway.bigram import AdamParams, Bigram, Example
from tinker_guard.gateway.trainer import Applied
from tinker_guard.gateway.wire import Call

from .conftest import JSON_DATA, TrainerClient, forward_backward_body, optim_step_body

EXAMPLES = [
    Example(np.array([1, 2, 1]), np.array([2, 3, 2]), np.array([1.0, 0.5, 2.0])),
    Example(np.array([3, 70]), np.array([1, 64]), np.array([-1.0, 1.0])),
]


def some_bigram() -> Bigram:
    bigram = Bigram()
    bigram.logits = np.random.default_rng(0).normal(size=bigram.logits.shape)
    return bigram


# -- the model ---------------------------------------------------------------------------------


def test_untrained_loss_is_the_logarithm_of_the_vocabulary() -> None:
    example = Example(np.array([5]), np.array([6]), np.array([1.0]))
    assert Bigram().forward([example]).loss == pytest.approx(math.log(64))


def test_gradient_agrees_with_finite_differences() -> None:
    bigram = some_bigram()
    bigram.forward(EXAMPLES, backward=True)
    width = 1e-6
    for row, column in [(1, 2), (1, 3), (2, 3), (3, 1), (6, 0), (6, 5), (4, 4)]:
        losses = []
        for step in (width, -width):
            moved = bigram.copy()
            moved.logits[row, column] += step
            losses.append(moved.forward(EXAMPLES).loss)
        slope = (losses[0] - losses[1]) / (2 * width)
        assert bigram.gradient[row, column] == pytest.approx(slope, abs=1e-7)


def test_gradients_add_up_until_a_step_and_forward_adds_none() -> None:
    once, twice = some_bigram(), some_bigram()
    once.forward(EXAMPLES, backward=True)
    once.forward(EXAMPLES)
    twice.forward(EXAMPLES, backward=True)
    twice.forward(EXAMPLES, backward=True)
    np.testing.assert_array_equal(twice.gradient, 2 * once.gradient)
    once.optim_step(AdamParams())
    assert not once.gradient.any()


def test_adam_follows_its_formula() -> None:
    bigram = some_bigram()
    params = AdamParams(
        learning_rate=0.1, beta1=0.8, beta2=0.9, eps=1e-8, weight_decay=0.01, grad_clip_norm=0.5
    )
    weight, mean, mean_square = float(bigram.logits[1, 2]), 0.0, 0.0
    for step in (1, 2, 3):
        bigram.forward(EXAMPLES, backward=True)
        norm = math.sqrt(float((bigram.gradient**2).sum()))
        assert norm > 0.5
        gradient = float(bigram.gradient[1, 2]) * 0.5 / norm
        mean = 0.8 * mean + 0.2 * gradient
        mean_square = 0.9 * mean_square + 0.1 * gradient**2
        weight *= 1 - 0.1 * 0.01
        weight -= 0.1 * (mean / (1 - 0.8**step)) / (math.sqrt(mean_square / (1 - 0.9**step)) + 1e-8)
        bigram.optim_step(params)
        assert bigram.logits[1, 2] == pytest.approx(weight, rel=1e-12)


def test_parts_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="one length"):
        Example(np.array([1, 2]), np.array([2]), np.array([1.0]))


# -- order and repeats ---------------------------------------------------------------------------


def test_a_later_request_waits_for_the_missing_one(client: TrainerClient) -> None:
    step = client.json("optim_step", optim_step_body(client.model_id, 2))
    assert client.result(step)["type"] == "try_again"
    assert client.trainer.applied == []

    client.json("forward_backward", forward_backward_body(client.model_id, 1))
    assert client.result(step) == {"metrics": {}}
    assert client.trainer.applied == [Applied(1, "forward_backward"), Applied(2, "optim_step")]
    assert client.trainer.unexpected == []


@pytest.mark.parametrize("how", ["the work is done", "the server stops", "time is over"])
def test_a_poll_is_held_until(how: str) -> None:
    client = TrainerClient(hold_seconds=60.0)
    step = client.json("optim_step", optim_step_body(client.model_id, 2))
    body = json.dumps({"request_id": step["request_id"]}).encode()
    steps = client.trainer.answer(Call("POST", "retrieve_future", {}, body), 5.0)
    assert next(steps) == steps.send(64.0) == 65.0
    if how == "the work is done":
        client.json("forward_backward", forward_backward_body(client.model_id, 1))
    client.trainer.is_closing = how == "the server stops"
    with pytest.raises(StopIteration) as end:
        steps.send(65.0 if how == "time is over" else 64.0)
    expected = {"metrics": {}} if how == "the work is done" else "try_again"
    answer = json.loads(end.value.value.content)
    assert answer.get("type", answer) == expected


@pytest.mark.parametrize("second_key", ["a", "b"])
def test_a_resent_request_is_done_once(client: TrainerClient, second_key: str) -> None:
    # The guard keeps the key; the SDK's own retry after a 5xx draws a new one.
    body = forward_backward_body(client.model_id, 1)
    first = client.json("forward_backward", body, key="a")
    again = client.json("forward_backward", body, key=second_key)
    assert again["request_id"] == first["request_id"]
    assert client.trainer.applied == [Applied(1, "forward_backward")]
    assert client.trainer.unexpected == []


def test_the_same_work_under_a_new_seq_id_is_done_again(client: TrainerClient) -> None:
    client.json("forward_backward", forward_backward_body(client.model_id, 1), key="a")
    client.json("forward_backward", forward_backward_body(client.model_id, 2), key="b")
    assert [applied.seq_id for applied in client.trainer.applied] == [1, 2]


@pytest.mark.parametrize("second_key", ["a", "b"])
def test_a_used_seq_id_with_another_body_is_refused(client: TrainerClient, second_key: str) -> None:
    client.json("forward_backward", forward_backward_body(client.model_id, 1), key="a")
    body = forward_backward_body(client.model_id, 1, loss_fn="other")
    reply = client.post("forward_backward", json.dumps(body).encode(), key=second_key)
    assert reply.status == 400
    assert len(client.trainer.unexpected) == 1
    assert len(client.trainer.applied) == 1


def test_a_session_and_a_model_are_created_once(client: TrainerClient) -> None:
    sessions = [client.json("create_session", {}, key="s")["session_id"] for _ in range(2)]
    assert sessions[0] == sessions[1]
    model = {"session_id": sessions[0], "model_seq_id": 0, "base_model": "m"}
    futures = [client.json("create_model", model, key="m")["request_id"] for _ in range(2)]
    assert futures[0] == futures[1]
    assert client.trainer.unexpected == []


# -- bodies --------------------------------------------------------------------------------------


def protobuf_body(model_id: str, seq_id: int) -> bytes:
    types = pytest.importorskip("tinker").types
    request_conv = pytest.importorskip("tinker.proto.request_conv")
    datum: Any = JSON_DATA[0]
    request = types.ForwardBackwardRequest(
        model_id=model_id,
        seq_id=seq_id,
        forward_backward_input=types.ForwardBackwardInput(
            loss_fn="cross_entropy",
            data=[
                types.Datum(
                    model_input=types.ModelInput(**datum["model_input"]),
                    loss_fn_inputs={
                        name: types.TensorData(**tensor)
                        for name, tensor in datum["loss_fn_inputs"].items()
                    },
                )
            ],
        ),
    )
    body: bytes = request_conv.forward_backward_request_to_proto(request).SerializeToString()
    return body


@pytest.mark.parametrize("is_compressed", [False, True], ids=["plain", "zstd"])
def test_protobuf_and_json_mean_the_same(client: TrainerClient, is_compressed: bool) -> None:
    body = protobuf_body(client.model_id, 1)
    headers = {"content_type": "application/x-protobuf"}
    if is_compressed:
        body = pytest.importorskip("zstandard").ZstdCompressor().compress(body)
        headers["content_encoding"] = "zstd"
    by_protobuf = json.loads(client.post("forward_backward", body, **headers).content)
    by_json = client.json("forward_backward", forward_backward_body(client.model_id, 2))
    assert client.result(by_protobuf) == client.result(by_json)
    assert client.trainer.unexpected == []

    from tinker.proto.response_conv import deserialize_forward_backward_output

    poll = json.dumps({"request_id": by_json["request_id"]}).encode()
    reply = client.post("retrieve_future", poll, accept="application/x-protobuf")
    output = deserialize_forward_backward_output(reply.content)
    expected = client.result(by_json)
    assert output.metrics == expected["metrics"]
    assert output.loss_fn_outputs[0]["logprobs"].tolist() == pytest.approx(
        expected["loss_fn_outputs"][0]["logprobs"]["data"]
    )


def test_a_forward_pass_of_an_older_sdk(client: TrainerClient) -> None:
    body = forward_backward_body(client.model_id, 1)
    body["forward_input"] = body.pop("forward_backward_input")
    future = client.json("forward", body)
    assert "loss:sum" in client.result(future)["metrics"]
    assert client.trainer.applied == [Applied(1, "forward")]


def test_work_that_fails_uses_up_its_turn(client: TrainerClient) -> None:
    body = forward_backward_body(client.model_id, 1, loss_fn="ppo")
    failed = client.result(client.json("forward_backward", body))
    assert failed["category"] == "user"
    assert "ppo" in failed["error"]
    step = client.json("optim_step", optim_step_body(client.model_id, 2))
    assert client.result(step) == {"metrics": {}}


def test_weights_can_be_saved_and_loaded(client: TrainerClient) -> None:
    def losses(first_seq_id: int, steps: int) -> list[float]:
        found = []
        for seq_id in range(first_seq_id, first_seq_id + 2 * steps, 2):
            body = forward_backward_body(client.model_id, seq_id)
            result = client.result(client.json("forward_backward", body))
            client.json("optim_step", optim_step_body(client.model_id, seq_id + 1))
            found.append(result["metrics"]["loss:sum"])
        return found

    losses(1, steps=2)
    save = {"model_id": client.model_id, "seq_id": 5, "path": "here"}
    path = client.result(client.json("save_weights", save))["path"]
    after_saving = losses(6, steps=2)
    load = {"model_id": client.model_id, "seq_id": 10, "path": path, "optimizer": True}
    client.json("load_weights", load)
    assert losses(11, steps=2) == after_saving

    by_session = {"session_id": "other", "model_seq_id": 0, "path": path, "optimizer": False}
    loaded = client.json("load_weights", by_session)
    assert client.result(loaded)["model_id"] == "other:train:0"
    assert client.trainer.unexpected == []


# -- refusals ------------------------------------------------------------------------------------


def test_an_unknown_path_is_the_trainers_own_404(client: TrainerClient) -> None:
    reply = client.post("no/such/thing", b"", method="GET")
    assert (reply.status, json.loads(reply.content)) == (404, {"detail": "Not Found"})
    assert client.trainer.unexpected == ["GET no/such/thing: Not Found"]


@pytest.mark.parametrize(
    ("operation", "body"),
    [
        ("retrieve_future", {"request_id": "request-99"}),
        (
            "load_weights",
            {"session_id": "s", "model_seq_id": 1, "path": "tinker://gone", "optimizer": False},
        ),
    ],
)
def test_what_is_not_there_is_a_plain_404(
    client: TrainerClient, operation: str, body: dict[str, Any]
) -> None:
    reply = client.post(operation, json.dumps(body).encode())
    assert reply.status == 404
    assert set(json.loads(reply.content)) == {"detail"}
    assert client.trainer.unexpected == []


@pytest.mark.parametrize("body", [b"{", b"[]", b"{}", b'{"model_id": null}', b"\xff"])
@pytest.mark.parametrize("operation", ["forward_backward", "create_model"])
def test_a_body_that_makes_no_sense_is_reported(
    client: TrainerClient, operation: str, body: bytes
) -> None:
    reply = client.post(operation, body)
    assert reply.status in (404, 422)
    assert len(client.trainer.unexpected) == 1


def test_a_protobuf_body_that_makes_no_sense_is_reported(client: TrainerClient) -> None:
    pytest.importorskip("tinker.proto")
    reply = client.post("forward_backward", b"\xff\xff", content_type="application/x-protobuf")
    assert reply.status == 422
    assert len(client.trainer.unexpected) == 1
