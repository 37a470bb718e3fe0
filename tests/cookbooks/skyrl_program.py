"""Starts SkyRL's server, or its engine, where SkyRL 0.4.0 by itself would not.

The server starts its engine with `uv run` and no other way. Both want Python 3.12, for nothing but
what pydantic says of `typing.TypedDict` on an older one. And where logprobs of a prompt are asked
for, the one on JAX leaves out those of the first token, which has none; the SDK counts it.
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

from skyrl.tinker import api, engine, proto_serialization
from skyrl.tinker.config import EngineConfig, add_model, config_to_argv

_serialize = proto_serialization.serialize_sample_output
_THIS = [sys.executable, "-m", "tests.cookbooks.skyrl_program"]


def _engine_command(_: list[str], config: EngineConfig) -> list[str]:
    return [*_THIS, "engine", *config_to_argv(config)]


def _serialize_all_tokens(sequences: Any, prompt: list[float | None] | None, topk: Any) -> bytes:
    whole = None if prompt is None else [None, *prompt]
    serialized: bytes = _serialize(sequences, whole, topk)
    return serialized


def _serve() -> None:
    parser = argparse.ArgumentParser()
    add_model(parser, EngineConfig)
    parser.add_argument("--port", type=int)
    options = vars(parser.parse_args())
    port = options.pop("port")
    proto_serialization.serialize_sample_output = _serialize_all_tokens
    api._build_uv_run_cmd_engine = _engine_command
    api.app.state.engine_config = EngineConfig.model_validate(options)
    uvicorn.run(api.app, host="127.0.0.1", port=port, timeout_keep_alive=600)


if __name__ == "__main__":
    if sys.argv[1] == "engine":
        del sys.argv[1]
        engine.main()
    else:
        _serve()
