"""SkyRL's real server, and a faulty gateway before it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import tarfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import httpx

from testkit.programs import free_port, serving
from tests import ROOT
from tinker_guard.gateway import LocalGateway
from tinker_guard.gateway.trainer import Trainer
from tinker_guard.gateway.wire import Reply

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tinker_guard.gateway import Fault
    from tinker_guard.gateway.in_process import LoopedWorld
    from tinker_guard.gateway.wire import Call, Steps

_SEED: Final = 7
"""Of new models, which the SDK gives only if it is told to."""
_POLL: Final = 400.0
"""Seconds after which a request is looked after, should nobody have said that it was answered."""


class Server:
    """SkyRL's server.

    Args:
        url: Where it is.
        checkpoints: Where it keeps what is saved.
    """

    def __init__(self, url: str, checkpoints: Path) -> None:
        self.url = url
        self._checkpoints = checkpoints

    def saved(self) -> dict[str, str]:
        """All weights that have been saved for sampling: a digest for each path, in their order."""
        found = self._checkpoints.glob("*/sampler_weights/*.tar.gz")
        ordered = sorted(found, key=lambda path: path.stat().st_mtime)
        return {str(path): _digest(path) for path in ordered}

    def behind(self, fault: Fault) -> Gateway:
        """Return a gateway with this fault."""
        return Gateway(self, fault)

    def forget(self, gateway: LocalGateway) -> None:
        """Unload models, so that the next one gets their place and nothing is compiled for it.

        SkyRL 0.4.0 would leave the gradients of a run that has died to the next model.
        """
        forwarding = gateway.world.trainer
        assert isinstance(forwarding, Forwarding)
        adam = {"learning_rate": 0.0}
        for model_id in forwarding.models:
            self._do("optim_step", model_id=model_id, adam_params=adam)
            self._do("unload_model", model_id=model_id)

    def _do(self, operation: str, **fields: Any) -> None:
        with httpx.Client(base_url=f"{self.url}/api/v1/", timeout=300, trust_env=False) as client:
            promised = client.post(operation, json=fields).raise_for_status().json()
            request_id = {"request_id": promised["request_id"]}
            client.post("retrieve_future", json=request_id).raise_for_status()


def _digest(path: Path) -> str:
    with tarfile.open(path) as archive:
        weights = archive.extractfile("adapter_model.safetensors")
        assert weights is not None
        return hashlib.sha256(weights.read()).hexdigest()


@contextmanager
def running(model: Path, place: Path) -> Iterator[Server]:
    """Run the server until the end of the block.

    What it computes depends on no other request: sequences come one by one, to be trained on and
    to be continued.

    Args:
        model: A directory with a model and a tokenizer.
        place: An empty directory.
    """
    port = free_port()
    backend = {
        "max_lora_adapters": 4,
        "max_lora_rank": 8,
        "train_micro_batch_size": 1,
        "sample_max_num_sequences": 1,
    }
    command = [sys.executable, "-m", "tests.cookbooks.skyrl_program", "--port", port]
    command += ["--base-model", model, "--backend", "jax", "--backend-config", json.dumps(backend)]
    command += ["--checkpoints-base", place / "checkpoints"]
    command += ["--database-url", f"sqlite:///{place}/tinker.db"]
    url = f"http://127.0.0.1:{port}"
    with serving(
        [str(part) for part in command],
        f"{url}/api/v1/healthz",
        place / "log",
        PYTHONPATH=ROOT,
        JAX_PLATFORMS="cpu",
        # The model is small: what takes time is the compiler.
        JAX_DISABLE_MOST_OPTIMIZATIONS=1,
    ):
        yield Server(url, place / "checkpoints")


class Forwarding(Trainer):
    """Asks a server in the trainer's place, and adds what SkyRL 0.4.0 lacks of tinker 0.38.

    Args:
        url: Where the server is.
        looped: The world that this is the trainer of.
    """

    def __init__(self, url: str, looped: LoopedWorld) -> None:
        super().__init__()
        self.models: list[str] = []
        """Those that were created."""
        self.answers: list[tuple[str, int, Any]] = []
        """What the server has answered: operation, status, and what it promised."""
        self._url = url
        self._looped = looped

    def answer(self, call: Call, at: float) -> Steps:
        """Answer a call, when the server has."""
        if call.path.endswith("/finish"):
            return Reply.json({})
        asking = asyncio.ensure_future(self._ask(call))
        asking.add_done_callback(lambda _: self._looped.look_again())
        now = at
        while not (asking.done() or self.is_closing):
            now = yield now + _POLL
        if not asking.done():
            asking.cancel()
            return Reply(0)
        response = asking.result()
        content = response.content
        is_json = response.headers.get("content-type") == "application/json"
        self.answers.append(
            (call.operation, response.status_code, response.json() if is_json else None)
        )
        if call.operation == "asample" and response.is_success:
            promised = response.json()
            ids = [f"{promised['request_id']}-{n}" for n in range(call.fields["num_samples"])]
            content = json.dumps({**promised, "sample_sequence_ids": ids}).encode()
        elif call.operation == "create_model" and response.is_success:
            self.models.append(response.json()["model_id"])
        media_type = response.headers.get("content-type", "")
        return Reply(response.status_code, content, media_type)

    async def _ask(self, call: Call) -> httpx.Response:
        headers = {
            name: value
            for name, value in call.headers.items()
            if name not in ("host", "content-length", "connection", "transfer-encoding")
        } | {"accept-encoding": "identity"}
        url = f"{self._url}/api/v1/{call.operation}"
        async with httpx.AsyncClient(timeout=None, trust_env=False, verify=False) as client:
            return await client.request(
                call.method, url, content=_without_chance(call), headers=headers
            )


def _without_chance(call: Call) -> bytes:
    """The body, with a seed where SkyRL would draw one."""
    if call.operation == "create_model":
        seeded, seed = call.fields["lora_config"], _SEED
    elif call.operation == "asample":
        seeded, seed = call.fields["sampling_params"], call.fields["seq_id"]
    else:
        return call.body
    if seeded.get("seed") is None:
        seeded["seed"] = seed
    return json.dumps(call.fields).encode()


class Gateway(LocalGateway):
    """A gateway with a fault, before SkyRL's server.

    Args:
        server: The server.
        fault: What goes wrong.
    """

    def __init__(self, server: Server, fault: Fault) -> None:
        super().__init__(fault)
        self.forwarding = Forwarding(server.url, self.app.looped)
        self.world.trainer = self.forwarding
