"""The SDK's bodies: JSON or protobuf in, JSON or protobuf out.

Protobuf needs the SDK's own message classes. They are imported with the first such body, so
that the gateway itself does not need the SDK.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .bigram import Example, ForwardResult, SampleResult, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Generator, Hashable, Mapping

    from .bigram import Ints

PROTOBUF = "application/x-protobuf"


Steps: TypeAlias = "Generator[float, float, Reply]"
"""The steps of an answer: a generator that yields the time to wait for, receives the current time,
and returns the reply. Resume it at that time, or sooner when another call has been answered."""


@dataclass(frozen=True)
class Reply:
    """An answer.

    Args:
        status: HTTP status; 0 if the connection breaks in the middle of the answer.
        content: Body.
        media_type: Content type.
        headers: Further headers.
    """

    status: int
    content: bytes = b""
    media_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()

    @classmethod
    def json(cls, data: object, status: int = 200) -> Reply:
        """Build a JSON answer; status 200 by default."""
        return cls(status, json.dumps(data).encode())


@dataclass(frozen=True)
class Call:
    """One request.

    Args:
        method: HTTP method.
        path: Path of the URL, without the query.
        headers: Request headers; names are in lower case.
        body: The body as it came, possibly compressed.
        connection: Identifies its connection.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""
    connection: Hashable = None

    @property
    def operation(self) -> str:
        """The path below the trainer's `/api/v1/`."""
        return self.path.rpartition("/api/v1/")[2]

    @property
    def idempotency_key(self) -> str | None:
        """The SDK's key, which is the same on every resend of one request."""
        return self.headers.get("x-idempotency-key")

    @property
    def wants_protobuf(self) -> bool:
        """Whether the caller reads a protobuf answer."""
        return PROTOBUF in self.headers.get("accept", "")

    @cached_property
    def body_sha256(self) -> str:
        """Digest of the bytes on the wire, to tell a resend from a new request."""
        return hashlib.sha256(self.body).hexdigest()

    @cached_property
    def fields(self) -> dict[str, Any]:
        """The body's fields, with JSON's names for any encoding.

        Raises:
            ValueError: The body cannot be read.
        """
        body = self.body
        if self.headers.get("content-encoding") == "zstd":
            import zstandard

            try:
                body = zstandard.ZstdDecompressor().decompressobj().decompress(body)
            except zstandard.ZstdError as error:
                raise ValueError(f"bad zstd body: {error}") from error
        if PROTOBUF in self.headers.get("content-type", ""):
            return _forward_backward_fields(body)
        fields = json.loads(body or b"{}")
        if not isinstance(fields, dict):
            raise ValueError("the body is no JSON object")
        return fields

    @property
    def seq_id(self) -> int | None:
        """The request's place in its model's sequence, or None if it has none."""
        try:
            seq_id = self.fields.get("seq_id")
        except ValueError:
            return None
        return seq_id if isinstance(seq_id, int) else None


def examples_of(request: Mapping[str, Any]) -> list[Example]:
    """Read the sequences of a forward_backward input.

    Raises:
        ValueError: Something else than cross-entropy over plain token lists was asked for.
    """
    if request["loss_fn"] != "cross_entropy":
        raise ValueError(f"this trainer knows only cross_entropy, not {request['loss_fn']!r}")
    examples = []
    for datum in request["data"]:
        tokens = _tokens_of(datum["model_input"])
        inputs = datum["loss_fn_inputs"]
        targets = np.asarray(inputs["target_tokens"]["data"], dtype=np.int64)
        weights = inputs["weights"]["data"] if "weights" in inputs else np.ones(targets.shape)
        examples.append(Example(tokens, targets, np.asarray(weights, dtype=np.float64)))
    return examples


def prompt_of(request: Mapping[str, Any]) -> Ints:
    """Read the prompt of an asample.

    Raises:
        ValueError: It is empty or no text, or the request is for more than samples and prompt
            logprobs.
    """
    for name in _NOT_SAMPLED:
        if request.get(name):
            raise ValueError(f"this trainer does not know {name}")
    prompt = _tokens_of(request["prompt"])
    if not len(prompt):
        raise ValueError("the prompt is empty")
    return prompt


_NOT_SAMPLED = (
    "topk_prompt_logprobs",
    "topk_sample_logprobs",
    "target_prompt_logprobs",
    "prompt_alt_tokens_k",
    "prompt_logprobs_last_n",
)


def sampling_params_of(request: Mapping[str, Any]) -> SamplingParams:
    """Read the sampling parameters of an asample.

    Raises:
        ValueError: It has stop strings, which need a tokenizer.
    """
    given = {name: value for name, value in request["sampling_params"].items() if value is not None}
    stop = given.pop("stop", ())
    if isinstance(stop, str) or not all(isinstance(token, int) for token in stop):
        raise ValueError("this trainer stops at tokens only, not at strings")
    known = {parameter.name for parameter in fields(SamplingParams)}
    params = {name: value for name, value in given.items() if name in known}
    return SamplingParams(**params, stop=frozenset(stop))


def _tokens_of(model_input: Mapping[str, Any]) -> Ints:
    chunks = model_input["chunks"]
    if any("tokens" not in chunk for chunk in chunks):
        raise ValueError("this trainer reads text tokens only")
    tokens = [np.asarray(chunk["tokens"], dtype=np.int64) for chunk in chunks]
    return np.concatenate([np.empty(0, dtype=np.int64), *tokens])


def result_json(result: ForwardResult | SampleResult) -> dict[str, Any]:
    """Return the answer of a forward pass or a sample as JSON data."""
    return _sample_json(result) if isinstance(result, SampleResult) else _forward_json(result)


def result_protobuf(result: ForwardResult | SampleResult) -> bytes:
    """Return the answer of a forward pass or a sample as a protobuf message."""
    if isinstance(result, SampleResult):
        return bytes(_sample_protobuf(result).SerializeToString())
    return bytes(_forward_protobuf(result).SerializeToString())


def _forward_json(result: ForwardResult) -> dict[str, Any]:
    return {
        "loss_fn_output_type": "ArrayRecord",
        "loss_fn_outputs": [
            {"logprobs": {"data": row.tolist(), "dtype": "float32", "shape": [len(row)]}}
            for row in result.logprobs
        ],
        "metrics": {"loss:sum": result.loss},
    }


def _sample_json(result: SampleResult) -> dict[str, Any]:
    sequences = [
        {
            "stop_reason": "stop" if sequence.is_stopped else "length",
            "tokens": sequence.tokens.tolist(),
            "logprobs": sequence.logprobs.tolist(),
        }
        for sequence in result.sequences
    ]
    prompt_logprobs = None
    if result.prompt_logprobs is not None:
        prompt_logprobs = [None, *result.prompt_logprobs[1:].tolist()]
    return {"type": "sample", "sequences": sequences, "prompt_logprobs": prompt_logprobs}


def _forward_protobuf(result: ForwardResult) -> Any:
    pb = _messages()
    message = pb.ForwardBackwardOutput(loss_fn_output_type="ArrayRecord")
    message.metrics["loss:sum"] = result.loss
    record = message.loss_fn_outputs.add(type_tag="ArrayRecord", num_datums=len(result.logprobs))
    field = record.fields["logprobs"]
    rows = [row.astype(np.float32) for row in result.logprobs]
    field.dtype = pb.DTYPE_FLOAT32
    field.data = b"".join(row.tobytes() for row in rows)
    # Byte offsets, one more than there are rows.
    field.offsets = np.cumsum([0, *(row.nbytes for row in rows)], dtype=np.int64).tobytes()
    return message


def _sample_protobuf(result: SampleResult) -> Any:
    pb = _messages()
    message = pb.SampleResponse()
    for sequence in result.sequences:
        message.sequences.add(
            stop_reason=pb.STOP_REASON_STOP if sequence.is_stopped else pb.STOP_REASON_LENGTH,
            tokens=sequence.tokens.astype(np.int32).tobytes(),
            logprobs=sequence.logprobs.astype(np.float32).tobytes(),
        )
    if result.prompt_logprobs is not None:
        message.prompt_logprobs = result.prompt_logprobs.astype(np.float32).tobytes()
    return message


def _messages() -> Any:
    """The message classes of the installed SDK; both SDKs have the same wire format."""
    try:
        return importlib.import_module("tinker.proto.tinker_public_pb2")
    except ModuleNotFoundError:
        return importlib.import_module("fireworks.training.sdk._core.proto.tinker_public_pb2")


def _forward_backward_fields(body: bytes) -> dict[str, Any]:
    pb = _messages()
    dtypes = {pb.DTYPE_FLOAT32: np.float32, pb.DTYPE_INT64: np.int64, pb.DTYPE_INT32: np.int32}
    message = pb.ForwardBackwardRequest()
    try:
        message.ParseFromString(body)
    except Exception as error:  # protobuf's DecodeError, which has no typed import
        raise ValueError(f"bad protobuf body: {error}") from error
    data = []
    for datum in message.data:
        chunks: list[dict[str, Any]] = [
            {"tokens": np.frombuffer(chunk.encoded_text.tokens, dtype=np.int32)}
            if chunk.HasField("encoded_text")
            else {}
            for chunk in datum.model_input
        ]
        inputs = {}
        for name, tensor in datum.loss_fn_inputs.items():
            if tensor.HasField("sparse_csr") or tensor.dtype not in dtypes:
                raise ValueError(f"this trainer reads dense float32 and integer {name} only")
            values = np.frombuffer(tensor.dense, dtype=dtypes[tensor.dtype])
            inputs[name] = {"data": values.reshape(tuple(tensor.shape) or -1)}
        data.append({"model_input": {"chunks": chunks}, "loss_fn_inputs": inputs})
    return {
        "model_id": message.model_id,
        "seq_id": message.seq_id,
        # tinker before 0.22.3 has a separate operation for it, and no such field.
        "forward_only": getattr(message, "forward_only", False),
        "forward_backward_input": {"loss_fn": message.loss_fn, "data": data},
    }
