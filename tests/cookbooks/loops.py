"""Training loops: one for each client, on data that is made here.

Each trains a new model from the same start, and returns all that it has measured except times.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tinker import types

from tests.end_to_end import sdk

if TYPE_CHECKING:
    from pathlib import Path

    from tinker_guard.gateway import LocalGateway

RANK: Final = 4
_TIMEOUT: Final = 20.0
"""Seconds after which no answer is waited for; the SDK repeats what met a conflict for 300 s."""
TEXTS: Final = ("the cat sat on the mat", "a dog ran to the door", "rain fell on the old roof")


def train_with_the_sdk(gateway: LocalGateway, model: str, _place: Path) -> Any:
    """Three steps by the SDK's own client, and samples from what came out."""
    with sdk.connected(gateway) as service:
        training = sdk.for_running_loop(
            service.create_lora_training_client(base_model=model, rank=RANK)
        )
        data = [datum(list(text.encode())) for text in TEXTS]
        steps = []
        for _ in range(3):
            forward_backward = training.forward_backward(data, "cross_entropy")
            optim_step = training.optim_step(types.AdamParams(learning_rate=0.01))
            result = forward_backward.result()
            logprobs = [output["logprobs"].data for output in result.loss_fn_outputs]
            steps.append((result.metrics, logprobs, optim_step.result().metrics))
        path = training.save_weights_for_sampler("final").result().path
        sampling = sdk.for_running_loop(service.create_sampling_client(model_path=path))
        prompt = types.ModelInput.from_ints(list(b"the "))
        params = types.SamplingParams(max_tokens=6)
        asked = [sampling.sample(prompt, 1, params) for _ in range(4)]
        samples = [(s.tokens, s.logprobs) for one in asked for s in one.result().sequences]
    return steps, samples


def ask_for_everything(gateway: LocalGateway, model: str) -> None:
    """Ask for all that a trainer does, each once."""
    with sdk.connected(gateway) as service:
        training = sdk.for_running_loop(
            service.create_lora_training_client(base_model=model, rank=RANK)
        )
        training.forward_backward([datum([1, 2, 3])], "cross_entropy").result(_TIMEOUT)
        training.optim_step(types.AdamParams(learning_rate=0.01)).result(_TIMEOUT)
        kept = training.save_state("kept").result(_TIMEOUT).path
        path = training.save_weights_for_sampler("kept").result(_TIMEOUT).path
        sampling = sdk.for_running_loop(service.create_sampling_client(model_path=path))
        prompt, params = types.ModelInput.from_ints([1, 2]), types.SamplingParams(max_tokens=2)
        sampling.sample(prompt, 1, params).result(_TIMEOUT)
        # What the SDK asks at once, `create_training_client_from_state`, SkyRL 0.4.0 refuses (422).
        again = sdk.for_running_loop(
            service.create_lora_training_client(base_model=model, rank=RANK)
        )
        again.load_state(kept).result(_TIMEOUT)


def datum(tokens: list[int]) -> Any:
    """A sequence to train on, all of it."""
    length = len(tokens) - 1
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": types.TensorData(data=tokens[1:], dtype="int64", shape=[length]),
            "weights": types.TensorData(data=[1.0] * length, dtype="float32", shape=[length]),
        },
    )
