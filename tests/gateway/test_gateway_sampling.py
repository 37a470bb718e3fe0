"""The trainer samples what its weights and the seed say, once for each request."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tinker_guard.gateway.bigram import Bigram, SamplingParams
from tinker_guard.gateway.wire import Call

from .conftest import TrainerClient, ended, forward_backward_body, optim_step_body

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tinker_guard.gateway.wire import Steps

PROMPT = np.array([5, 1])


@pytest.fixture
def bigram() -> Bigram:
    """After token 1 comes 2 with probability 0.6, 3 with 0.3 and 4 with 0.1; after others, 1."""
    bigram = Bigram()
    bigram.logits[:] = -1e9
    bigram.logits[:, 1] = 0.0
    bigram.logits[1] = -1e9
    bigram.logits[1, [2, 3, 4]] = np.log([0.6, 0.3, 0.1])
    return bigram


# -- the model -----------------------------------------------------------------------------------


def test_a_seed_gives_the_same_tokens_again(bigram: Bigram) -> None:
    drawn = [bigram.sample(PROMPT, SamplingParams(max_tokens=40), 7, n).tokens for n in (0, 0, 1)]
    assert drawn[0].tolist() == drawn[1].tolist() != drawn[2].tolist()
    assert len(drawn[0]) == 40


def test_tokens_come_as_often_as_they_should(bigram: Bigram) -> None:
    tokens = bigram.sample(PROMPT, SamplingParams(max_tokens=4000), 0).tokens
    frequencies = np.bincount(tokens, minlength=5) / 2000
    assert frequencies[1] == 1.0
    assert frequencies[2:5] == pytest.approx([0.6, 0.3, 0.1], abs=0.03)


def test_the_logprobs_are_the_models_own(bigram: Bigram) -> None:
    sample = bigram.sample(PROMPT, SamplingParams(max_tokens=20, temperature=5.0), 0)
    expected = {1: 0.0, 2: math.log(0.6), 3: math.log(0.3), 4: math.log(0.1)}
    assert sample.logprobs.tolist() == pytest.approx([expected[t] for t in sample.tokens.tolist()])


@pytest.mark.parametrize(
    ("params", "drawn"),
    [
        (SamplingParams(200), {1, 2, 3, 4}),
        (SamplingParams(200, temperature=0.0), {1, 2}),
        (SamplingParams(200, temperature=0.05), {1, 2}),
        (SamplingParams(200, top_k=1), {1, 2}),
        (SamplingParams(200, top_k=2), {1, 2, 3}),
        (SamplingParams(200, top_p=0.5), {1, 2}),
        (SamplingParams(200, top_p=0.7), {1, 2, 3}),
        (SamplingParams(0), set()),
    ],
)
def test_params_say_what_may_be_drawn(
    bigram: Bigram, params: SamplingParams, drawn: set[int]
) -> None:
    assert set(bigram.sample(PROMPT, params, 0).tokens.tolist()) == drawn


def test_a_stop_token_ends_a_sequence_and_is_its_last(bigram: Bigram) -> None:
    sample = bigram.sample(PROMPT, SamplingParams(200, stop=frozenset({1, 4})), 0)
    assert sample.is_stopped
    assert set(sample.tokens[:-1].tolist()) <= {2, 3}
    assert sample.tokens[-1] in (1, 4)


# -- over the wire -------------------------------------------------------------------------------


@pytest.fixture
def sampling(client: TrainerClient) -> Iterator[str]:
    """The id of a sampling session from the base model, whose samples take no time."""
    session = {"session_id": "s", "sampling_session_seq_id": 0, "base_model": "m"}
    sampler_id = client.json("create_sampling_session", session)["sampling_session_id"]
    yield sampler_id
    assert client.trainer.unexpected == []


def sample_body(sampler_id: str, seq_id: int = 0, **other: Any) -> dict[str, Any]:
    return {
        "sampling_session_id": sampler_id,
        "seq_id": seq_id,
        "num_samples": 2,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1, 2]}]},
        "sampling_params": {"max_tokens": 3, "seed": 1, "temperature": 1, "top_k": -1, "top_p": 1},
        **other,
    }


def poll(client: TrainerClient, sampler_id: str, cursor: int = 0, clone: int = 0) -> Any:
    target = {"sampling_session_id": sampler_id, "cloned_sampler_id": clone}
    return client.json("retrieve_futures", {"target": target, "prev_cursor": cursor})


def test_a_resent_request_is_sampled_once(client: TrainerClient, sampling: str) -> None:
    first, again = (client.json("asample", sample_body(sampling), key=key) for key in ("a", "b"))
    assert first == again
    assert len(first["sample_sequence_ids"]) == 2
    (drawn,) = client.trainer.sampled
    found = client.result(first)["sequences"]
    assert [tuple(sequence["tokens"]) for sequence in found] == list(drawn.tokens)
    assert [sequence["stop_reason"] for sequence in found] == ["length", "length"]
    assert drawn.tokens[0] != drawn.tokens[1]


def test_a_used_seq_id_with_another_body_is_refused(client: TrainerClient, sampling: str) -> None:
    client.json("asample", sample_body(sampling))
    reply = client.post("asample", json.dumps(sample_body(sampling, num_samples=1)).encode())
    assert reply.status == 400
    assert len(client.trainer.sampled) == 1
    assert len(client.trainer.unexpected) == 1
    client.trainer.unexpected.clear()


def test_without_a_seed_the_place_decides(client: TrainerClient, sampling: str) -> None:
    for seq_id in (0, 1):
        client.json("asample", sample_body(sampling, seq_id, sampling_params={"max_tokens": 9}))
    client.json("asample", sample_body(sampling, 2, sampling_params={"max_tokens": 9, "seed": 1}))
    tokens = [drawn.tokens for drawn in client.trainer.sampled]
    assert tokens[0] != tokens[1] == tokens[2]


def test_a_poll_tells_what_has_finished_since_its_cursor(
    client: TrainerClient, sampling: str
) -> None:
    assert poll(client, sampling) == {"completions": [], "cursor": 0}
    ids = [client.json("asample", sample_body(sampling, n))["request_id"] for n in range(3)]
    bad = sample_body(sampling, 3, topk_prompt_logprobs=5)
    ids.append(client.json("asample", bad)["request_id"])
    other = client.json("asample", sample_body(sampling, 7_000_000_002))["request_id"]

    expected = [{"state": "finished", "request_id": request_id} for request_id in ids]
    expected[3]["state"] = "failed"
    # Asked twice, as after a lost reply, it says the same.
    for _ in range(2):
        assert poll(client, sampling) == {"completions": expected, "cursor": 4}
    assert poll(client, sampling, cursor=3) == {"completions": expected[3:], "cursor": 4}
    assert poll(client, sampling, cursor=4) == {"completions": [], "cursor": 4}
    (of_a_clone,) = poll(client, sampling, clone=7)["completions"]
    assert of_a_clone["request_id"] == other


def test_a_held_poll_is_answered_when_a_sample_is_due_or_the_server_stops() -> None:
    client = TrainerClient(hold_seconds=60.0, sample_seconds=0.5)
    session = {"session_id": "s", "sampling_session_seq_id": 0, "base_model": "m"}
    sampler_id = client.json("create_sampling_session", session)["sampling_session_id"]
    target = {"sampling_session_id": sampler_id, "cloned_sampler_id": 0}

    def held(cursor: int, **other: Any) -> Steps:
        body = json.dumps({"target": target, "prev_cursor": cursor, **other}).encode()
        return client.trainer.answer(Call("POST", "retrieve_futures", {}, body), 0.0)

    promise = client.json("asample", sample_body(sampler_id))
    assert json.loads(ended(held(0, timeout=0)).content) == {"completions": [], "cursor": 0}
    steps = held(0)
    assert next(steps) == 0.5
    with pytest.raises(StopIteration) as end:
        steps.send(0.5)
    assert json.loads(end.value.value.content)["completions"] == [
        {"state": "finished", "request_id": promise["request_id"]}
    ]
    steps = held(1)
    assert next(steps) == 60.0
    client.trainer.is_closing = True
    with pytest.raises(StopIteration) as end:
        steps.send(1.0)
    assert json.loads(end.value.value.content) == {"completions": [], "cursor": 1}


def test_weights_are_sampled_as_they_were_saved(client: TrainerClient, sampling: str) -> None:
    def train(seq_id: int) -> None:
        client.json("forward_backward", forward_backward_body(client.model_id, seq_id))
        body = optim_step_body(client.model_id, seq_id + 1)
        client.json("optim_step", {**body, "adam_params": {"learning_rate": 5.0}})

    train(1)
    named = {"model_id": client.model_id, "seq_id": 3, "path": "here"}
    path = client.result(client.json("save_weights_for_sampler", named))["path"]
    unnamed = {"model_id": client.model_id, "seq_id": 4, "sampling_session_seq_id": 1}
    saved = client.result(client.json("save_weights_for_sampler", unnamed))
    train(5)
    by_path = {"session_id": "s", "sampling_session_seq_id": 2, "model_path": path}
    session = client.json("create_sampling_session", by_path)
    found = []
    for sampler_id in (saved["sampling_session_id"], session["sampling_session_id"]):
        # 1 is followed by 2, 2 by 3, and 3 by anything.
        body = sample_body(sampler_id, prompt={"chunks": [{"tokens": [1]}]}, prompt_logprobs=True)
        result = client.result(client.json("asample", body))
        assert [sequence["tokens"][:2] for sequence in result["sequences"]] == [[2, 3], [2, 3]]
        assert result["prompt_logprobs"] == [None]
        found.append(result["sequences"])
    assert found[0] == found[1]
    info = json.loads(client.post(f"samplers/{sampler_id}", b"", method="GET").content)
    assert info == {"sampler_id": sampler_id, "base_model": "m", "model_path": path}


def test_protobuf_and_json_mean_the_same(client: TrainerClient, sampling: str) -> None:
    conv = pytest.importorskip("tinker.proto.response_conv")
    body = sample_body(sampling, prompt_logprobs=True)
    body["sampling_params"]["stop"] = list(range(32))
    promise = client.json("asample", body)
    expected = client.result(promise)
    assert {sequence["stop_reason"] for sequence in expected["sequences"]} == {"stop"}
    request = json.dumps({"request_id": promise["request_id"]}).encode()
    reply = client.post("retrieve_future", request, accept="application/x-protobuf")
    response = conv.deserialize_sample_response(reply.content)
    for sequence, wanted in zip(response.sequences, expected["sequences"], strict=True):
        assert (sequence.stop_reason, sequence.tokens) == (wanted["stop_reason"], wanted["tokens"])
        assert sequence.logprobs == pytest.approx(wanted["logprobs"])
    assert response.prompt_logprobs == pytest.approx(expected["prompt_logprobs"])


def test_each_client_that_joins_a_session_gets_a_number(
    client: TrainerClient, sampling: str
) -> None:
    body = {"sampling_session_id": sampling}
    answers = [client.json("join_sampling_session", body, key=key) for key in ("a", "b", "a")]
    assert [answer["client_counter"] for answer in answers] == [1, 2, 1]


def test_a_resent_session_keeps_its_samples(client: TrainerClient, sampling: str) -> None:
    promise = client.json("asample", sample_body(sampling))
    again = {"session_id": "s", "sampling_session_seq_id": 0, "base_model": "m"}
    assert client.json("create_sampling_session", again)["sampling_session_id"] == sampling
    assert client.json("asample", sample_body(sampling)) == promise


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"topk_sample_logprobs": 1}, "topk_sample_logprobs"),
        ({"prompt": {"chunks": []}}, "empty"),
        ({"prompt": {"chunks": [{"type": "image"}]}}, "text tokens"),
        ({"sampling_params": {"stop": "\n"}}, "stops at tokens"),
        ({"sampling_params": {"stop": ["\n"]}}, "stops at tokens"),
    ],
)
def test_what_it_cannot_sample_is_the_users_error(
    client: TrainerClient, sampling: str, wanted: dict[str, Any], says: str
) -> None:
    failed = client.result(client.json("asample", sample_body(sampling, **wanted)))
    assert failed["category"] == "user"
    assert says in failed["error"]
    assert client.trainer.sampled == []


@pytest.mark.parametrize(
    ("operation", "body"),
    [
        ("asample", sample_body("gone")),
        ("join_sampling_session", {"sampling_session_id": "gone"}),
        ("retrieve_futures", {"target": {"sampling_session_id": "gone"}, "prev_cursor": 0}),
    ],
)
def test_an_unknown_session_is_reported(
    client: TrainerClient, operation: str, body: dict[str, Any]
) -> None:
    reply = client.post(operation, json.dumps(body).encode())
    assert (reply.status, json.loads(reply.content)) == (
        404,
        {"detail": "Sampling session not found"},
    )
    assert len(client.trainer.unexpected) == 1


def test_a_missing_checkpoint_is_a_plain_404(client: TrainerClient) -> None:
    body = {"session_id": "s", "sampling_session_seq_id": 0, "model_path": "tinker://gone"}
    reply = client.post("create_sampling_session", json.dumps(body).encode())
    assert (reply.status, json.loads(reply.content)) == (404, {"detail": "Checkpoint not found"})
    assert client.trainer.unexpected == []
