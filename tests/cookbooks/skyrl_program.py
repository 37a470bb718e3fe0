"""Starts SkyRL's server, or its engine, where SkyRL 0.4.0 by itself would not.

The server starts its engine with `uv run` and no other way. Both want Python 3.12, for nothing but
what pydantic says of `typing.TypedDict` on an older one. And the results of the backend on JAX lack
what tinker 0.38 reads: the loss of a pass, and a place for the first token of a prompt.
"""

from __future__ import annotations

import argparse
import sys
import typing
from typing import Any

import typing_extensions
import uvicorn

if sys.version_info < (3, 12):
    typing.TypedDict = typing_extensions.TypedDict

from skyrl.tinker import api, engine
from skyrl.tinker.config import EngineConfig, add_model, config_to_argv

_serialize = api.serialize_result
_THIS = [sys.executable, "-m", "tests.cookbooks.skyrl_program"]


def _engine_command(_: list[str], config: EngineConfig) -> list[str]:
    return [*_THIS, "engine", *config_to_argv(config)]


def _serialize_completed(request_type: Any, result: dict[str, Any]) -> bytes:
    if result.get("prompt_logprobs") is not None:
        result["prompt_logprobs"].insert(0, None)
    if "loss_fn_outputs" in result:
        losses = [output["elementwise_loss"]["data"] for output in result["loss_fn_outputs"]]
        result["metrics"].setdefault("loss:sum", sum(map(sum, losses)))
    serialized: bytes = _serialize(request_type, result)
    return serialized


def _serve() -> None:
    parser = argparse.ArgumentParser()
    add_model(parser, EngineConfig)
    parser.add_argument("--port", type=int)
    options = vars(parser.parse_args())
    port = options.pop("port")
    api.serialize_result = _serialize_completed
    api._build_uv_run_cmd_engine = _engine_command
    api.app.state.engine_config = EngineConfig.model_validate(options)
    uvicorn.run(api.app, host="127.0.0.1", port=port, timeout_keep_alive=600)


if __name__ == "__main__":
    if sys.argv[1] == "engine":
        del sys.argv[1]
        engine.main()
    else:
        _serve()
