"""The demo's training loop, as a user of the SDK would write it."""

from __future__ import annotations

from typing import Any

STEPS = 5
SEQUENCES = (
    [1, 2, 3, 4, 5, 6, 7, 8],
    [2, 4, 6, 8, 10, 12, 14, 16],
    [3, 1, 4, 1, 5, 9, 2, 6],
)


def train_five_steps(service_client: Any, types: Any = None) -> list[float]:
    """Train five steps and return the loss per token of each step.

    Args:
        service_client: A `tinker.ServiceClient`, or that of a compatible SDK.
        types: That SDK's module `types`. Default `tinker.types`.
    """
    if types is None:
        from tinker import types as tinker_types

        types = tinker_types

    created = service_client.create_lora_training_client(base_model="tinker-guard/bigram", rank=8)
    # Older SDKs return the client itself, newer ones a future of it.
    training_client = created.result() if hasattr(created, "result") else created

    data = [
        types.Datum(
            model_input=types.ModelInput.from_ints(tokens[:-1]),
            loss_fn_inputs={
                "target_tokens": types.TensorData(
                    data=tokens[1:], dtype="int64", shape=[len(tokens) - 1]
                ),
                "weights": types.TensorData(
                    data=[1.0] * (len(tokens) - 1), dtype="float32", shape=[len(tokens) - 1]
                ),
            },
        )
        for tokens in SEQUENCES
    ]
    tokens_in_all = sum(len(tokens) - 1 for tokens in SEQUENCES)

    losses = []
    for _ in range(STEPS):
        # Send both before waiting for either, so that the trainer is never idle.
        forward_backward = training_client.forward_backward(data, "cross_entropy")
        optim_step = training_client.optim_step(types.AdamParams(learning_rate=0.1))
        losses.append(forward_backward.result().metrics["loss:sum"] / tokens_in_all)
        optim_step.result()
    return losses
