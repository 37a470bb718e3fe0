"""Helpers of the gateway's tests."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tinker_guard.gateway.trainer import Trainer
from tinker_guard.gateway.wire import Call, Reply

if TYPE_CHECKING:
    from tinker_guard.gateway.wire import Steps

JSON_DATA = [
    {
        "model_input": {"chunks": [{"type": "encoded_text", "tokens": [1, 2, 1]}]},
        "loss_fn_inputs": {
            "target_tokens": {"data": [2, 3, 2], "dtype": "int64", "shape": [3]},
            "weights": {"data": [1.0, 0.5, 1.0], "dtype": "float32", "shape": [3]},
        },
    }
]


def forward_backward_body(model_id: str, seq_id: int, loss_fn: str = "cross_entropy") -> Any:
    """Return the JSON body of a forward_backward."""
    return {
        "model_id": model_id,
        "seq_id": seq_id,
        "forward_backward_input": {"loss_fn": loss_fn, "data": JSON_DATA},
    }


def optim_step_body(model_id: str, seq_id: int) -> Any:
    """Return the JSON body of an optim_step."""
    return {"model_id": model_id, "seq_id": seq_id, "adam_params": {"learning_rate": 0.1}}


def ended(steps: Steps) -> Reply:
    """What a call is answered with at once."""
    try:
        next(steps)
    except StopIteration as end:
        reply: Reply = end.value
        return reply
    raise AssertionError("it waits")


class TrainerClient:
    """Asks a trainer whose time stands still."""

    def __init__(self, *, hold_seconds: float = 0.0, sample_seconds: float = 0.0) -> None:
        self.trainer = Trainer(hold_seconds=hold_seconds, sample_seconds=sample_seconds)
        self.keys = 0
        session = self.json("create_session", {"tags": []})["session_id"]
        created = self.json(
            "create_model",
            {
                "session_id": session,
                "model_seq_id": 0,
                "base_model": "m",
                "lora_config": {"rank": 8},
            },
        )
        self.model_id: str = self.result(created)["model_id"]

    def post(
        self,
        operation: str,
        body: bytes,
        *,
        key: str | None = None,
        method: str = "POST",
        **headers: str,
    ) -> Reply:
        """Send one request; every request has a key of its own unless one is given."""
        self.keys += 1
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        named["x-idempotency-key"] = key if key is not None else f"key-{self.keys}"
        return ended(self.trainer.answer(Call(method, operation, named, body), 0.0))

    def json(self, operation: str, body: Any, *, key: str | None = None) -> Any:
        """Send a JSON body and read a JSON answer."""
        return json.loads(self.post(operation, json.dumps(body).encode(), key=key).content)

    def result(self, future: Any) -> Any:
        """Poll once."""
        return self.json("retrieve_future", {"request_id": future["request_id"]})


@pytest.fixture
def client() -> TrainerClient:
    """A trainer with one model."""
    return TrainerClient()
