"""Loops of Fireworks' cookbook, on data that is made here.

As in `loops`. The cookbook is on no index: it is a checkout, which FIREWORKS_COOKBOOK names.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from fireworks.training.sdk.client import FiretitanServiceClient
from fireworks.training.sdk.trainer import TrainerServiceEndpoint
from tinker import types

from tests.cookbooks.loops import TEXTS, datum
from tests.end_to_end import sdk
from tinker_guard.gateway import LocalGateway

if TYPE_CHECKING:
    from pathlib import Path

    from tinker_guard.gateway import Fault

_RANK: Final = 8
_QUESTIONS: Final = ("where?", "who?", "when?", "why?", "how?", "what?")


class Gateway(LocalGateway):
    """The local gateway and trainer, with a key that is no tinker's."""

    api_key = "fw-local-gateway-key"


class Trainer:
    """The local trainer, which is a new one behind each gateway."""

    def behind(self, fault: Fault) -> LocalGateway:
        """Return a gateway with this fault."""
        return Gateway(fault)

    def saved(self) -> dict[str, str]:
        """Return nothing: the loops measure what came out by another pass over the data."""
        return {}

    def forget(self, gateway: LocalGateway) -> None:
        """See that all was done once: the trainer is gone."""
        done = [applied.seq_id for applied in gateway.applied]
        assert done == list(range(1, len(done) + 1))


def _cookbook(module: str) -> Any:
    place = os.environ["FIREWORKS_COOKBOOK"]
    if place not in sys.path:
        sys.path.append(place)
    return importlib.import_module(f"training.{module}")


def reconnectable(gateway: LocalGateway, _model: str, _place: Path) -> Any:
    """Three steps by `ReconnectableClient`, and the logprobs of what came out."""
    client_class = _cookbook("utils.client").ReconnectableClient
    endpoint = TrainerServiceEndpoint("demo", "job-1", gateway.base_url)
    data = [datum(list(text.encode())) for text in TEXTS]
    with (
        sdk.garbage_kept(),
        client_class(
            None, "job-1", "a-model", _RANK, gateway.api_key, default_timeout=60, endpoint=endpoint
        ) as client,
    ):
        measured = []
        for _ in range(3):
            measured.append(client.forward_backward(data).metrics)
            measured.append(client.optim_step(types.AdamParams(learning_rate=0.1)).metrics)
        outputs = client.forward(data, "cross_entropy").loss_fn_outputs
        return measured, [output["logprobs"].data for output in outputs]


def supervised(gateway: LocalGateway, model: str, place: Path) -> Any:
    """Three steps by `sft_loop`, and the loss of what came out, on all of the data."""
    sft_loop = _cookbook("recipes.sft_loop")
    runner = _cookbook("utils.runner")
    file = place / "conversations.jsonl"
    talks = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
        for question, text in zip(_QUESTIONS, TEXTS * 2, strict=True)
    ]
    file.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    metrics = place / "metrics.jsonl"
    config = sft_loop.Config(
        log_path=str(place),
        base_model="accounts/fireworks/models/a-model",
        dataset=str(file),
        evaluation_dataset=str(file),
        tokenizer_model=model,
        renderer_name="role_colon",
        learning_rate=0.1,
        epochs=1,
        batch_size=2,
        max_seq_len=64,
        lora_rank=_RANK,
        render_workers=1,
        pipeline_depth=2,
        step_timeout=60,
        save_final_checkpoint=False,
        runner=runner.RunnerConfig(metrics_file=str(metrics)),
    )
    sft_loop.build_service_client = lambda **_: _provisioned(gateway)
    handlers = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        with sdk.garbage_kept():
            sft_loop.main(config)
    finally:
        for one, handler in handlers.items():
            signal.signal(one, handler)
    return [
        {name: value for name, value in json.loads(line).items() if not _is_of_time(name)}
        for line in metrics.read_text().splitlines()
    ]


def _provisioned(gateway: LocalGateway) -> Any:
    """A service whose trainer is there: what provisions one asks Fireworks for machines."""
    service = FiretitanServiceClient(base_url=gateway.base_url, api_key=gateway.api_key)
    return SimpleNamespace(
        create_training_client=service.create_training_client,
        close=service.close,
        list_checkpoints=lambda *_, **__: [],
        trainer_job_id="job-1",
        max_context_length=64,
        accelerator_type=None,
        accelerator_count=None,
        training_profile=None,
    )


def _is_of_time(name: str) -> bool:
    return name.startswith("perf/") or "time" in name or "per_sec" in name
