"""A trainer that speaks the SDK's protocol and does its work in strict order, exactly once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from dataclasses import dataclass, field, fields
from itertools import count
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np

from .bigram import AdamParams, Bigram, Example, ForwardResult, SampleResult
from .wire import (
    PROTOBUF,
    Call,
    Reply,
    Steps,
    examples_of,
    prompt_of,
    result_json,
    result_protobuf,
    sampling_params_of,
)

Result: TypeAlias = dict[str, Any] | ForwardResult | SampleResult
Work: TypeAlias = Callable[[], Result]
T = TypeVar("T")


class Sequence(Generic[T]):
    """Takes pieces of work in any order, and returns them in the order of their numbers.

    Args:
        numbers: The expected numbers, in order.
    """

    def __init__(self, numbers: Iterable[int]) -> None:
        self._numbers = iter(numbers)
        self._next = next(self._numbers, None)
        self._waiting: dict[int | None, T] = {}

    def take(self, number: int, work: T) -> Iterator[tuple[int, T]]:
        """Take a piece of work; yields the work that can be done now, with its numbers."""
        self._waiting[number] = work
        while self._next is not None and self._next in self._waiting:
            yield self._next, self._waiting.pop(self._next)
            self._next = next(self._numbers, None)


@dataclass(frozen=True)
class Applied:
    """One piece of work that the trainer has applied."""

    seq_id: int
    operation: str


@dataclass(frozen=True)
class Sampled:
    """The samples of one request: the tokens of each sequence."""

    sampling_session_id: str
    seq_id: int
    tokens: tuple[tuple[int, ...], ...]


@dataclass
class _Future:
    """The answer to a piece of work, and the data that identify a resend of its request."""

    request_id: str
    operation: str
    body_sha256: str
    promise: dict[str, Any]
    """The answer to the request and to each resend of it."""
    result: Result | None = None
    due_at: float = 0.0
    """When the result may be returned."""

    def is_done(self, at: float) -> bool:
        return self.result is not None and self.due_at <= at


@dataclass
class _Model:
    model_id: str
    base_model: str
    rank: int
    bigram: Bigram
    # The SDK numbers all requests of one training client from 1; number 0 is the request
    # that created the model (create_model, or a load_weights without one).
    futures: dict[int, _Future]
    sequence: Sequence[tuple[str, Work]] = field(default_factory=lambda: Sequence(count(1)))


SEQ_IDS_PER_CLONE = 1_000_000_000
"""An unpickled client of a sampling session numbers its requests from its own number times this."""


@dataclass
class _Sampler:
    """A sampling session: fixed weights, and the requests to sample from them."""

    sampler_id: str
    base_model: str
    model_path: str | None
    bigram: Bigram
    futures: dict[int, _Future] = field(default_factory=dict)
    clones: defaultdict[int, list[_Future]] = field(default_factory=lambda: defaultdict(list))
    """The samples of each client of the session, in the order of their due times."""
    joined: dict[str, int] = field(default_factory=dict)


class _RejectedError(Exception):
    """The request gets an error; `expected` if a correct client can cause it."""

    def __init__(self, status: int, detail: str, *, expected: bool = False) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.expected = expected


class Trainer:
    """The trainer behind all replicas of a gateway.

    Args:
        lacks: Operations that this old trainer lacks. Default none.
        use_pyqwest: Whether `client/config` selects pyqwest as inner transport. Default true.
        protobuf: Whether `client/config` asks for protobuf bodies. Default true.
        compress: Whether `client/config` asks for zstd bodies. Default false.
        hold_seconds: How long a poll for unfinished work is held open before the answer
            "try again". The SDK polls again at once, so without this it would poll in a busy
            loop. Default 2 s.
        session_poller: Whether `client/config` asks for one poll for all samples of a sampling
            session. Default true.
        sample_seconds: How long samples take. Default 0.05 s.
    """

    def __init__(
        self,
        *,
        lacks: Collection[str] = (),
        use_pyqwest: bool = True,
        protobuf: bool = True,
        compress: bool = False,
        hold_seconds: float = 2.0,
        session_poller: bool = True,
        sample_seconds: float = 0.05,
    ) -> None:
        self.applied: list[Applied] = []
        self.sampled: list[Sampled] = []
        self.unexpected: list[str] = []
        self._lacks = lacks
        self._use_pyqwest = use_pyqwest
        self._protobuf = protobuf
        self._compress = compress
        self._hold_seconds = hold_seconds
        self._session_poller = session_poller
        self._sample_seconds = sample_seconds
        self.is_closing = False
        """Whether polls are answered at once, so that a server can stop without delay."""
        self._now = 0.0
        self._request_numbers = count(1)
        self._session_numbers = count(1)
        self._sessions: dict[str, str] = {}
        self._models: dict[str, _Model] = {}
        self._samplers: dict[str, _Sampler] = {}
        self._futures: dict[str, _Future] = {}
        self._checkpoints: dict[str, tuple[Bigram, str, int]] = {}
        self.operations: dict[tuple[str, str], Callable[[Call], Reply]] = {
            ("GET", "healthz"): lambda call: Reply.json({"status": "ok"}),
            ("GET", "get_server_capabilities"): self._capabilities,
            ("POST", "client/config"): self._client_config,
            ("POST", "client/dynamic_config"): lambda call: Reply.json({}),
            ("POST", "telemetry"): lambda call: Reply.json({"status": "accepted"}),
            ("POST", "create_session"): self._create_session,
            ("POST", "session_heartbeat"): lambda call: Reply.json({"type": "session_heartbeat"}),
            ("POST", "sessions/finish"): lambda call: Reply.json({}),
            # Of Fireworks' serverless trainer.
            ("POST", "create_sampling_route"): lambda call: Reply.json({}),
            ("POST", "create_model"): self._create_model,
            ("POST", "get_info"): self._get_info,
            ("POST", "unload_model"): self._unload_model,
            ("POST", "load_weights"): self._load_weights,
            ("POST", "forward"): self._in_sequence,
            ("POST", "forward_backward"): self._in_sequence,
            ("POST", "optim_step"): self._in_sequence,
            ("POST", "save_weights"): self._in_sequence,
            ("POST", "save_weights_for_sampler"): self._in_sequence,
            ("POST", "create_sampling_session"): self._create_sampling_session,
            ("POST", "join_sampling_session"): self._join_sampling_session,
            ("GET", "samplers"): self._get_sampler,
            ("POST", "asample"): self._sample,
        }

    def answer(self, call: Call, at: float) -> Steps:
        """Answer one request that arrived at a time; errors have FastAPI's form."""
        self._now = at
        try:
            return (yield from self._answer(call))
        except _RejectedError as rejected:
            status, detail, expected = rejected.status, rejected.detail, rejected.expected
        except (KeyError, TypeError, ValueError) as error:
            status, detail, expected = 422, f"{type(error).__name__}: {error}", False
        if not expected:
            self.unexpected.append(f"{call.method} {call.operation}: {detail}")
        return Reply.json({"detail": detail}, status)

    def _answer(self, call: Call) -> Steps:
        operation = call.operation
        if operation in self._lacks:
            raise _RejectedError(404, "Not Found", expected=True)
        if (call.method, operation) == ("POST", "retrieve_future"):
            return (yield from self._retrieve_future(call))
        if (call.method, operation) == ("POST", "retrieve_futures"):
            return (yield from self._retrieve_futures(call))
        if operation.startswith("sessions/") and operation.endswith("/finish"):
            operation = "sessions/finish"
        if operation.startswith("samplers/"):
            operation = "samplers"
        handler = self.operations.get((call.method, operation))
        if handler is None:
            raise _RejectedError(404, "Not Found")
        return handler(call)

    def _capabilities(self, call: Call) -> Reply:
        model = {"model_name": "tinker-guard/bigram", "max_context_length": 4096, "trainable": True}
        return Reply.json({"supported_models": [model]})

    def _client_config(self, call: Call) -> Reply:
        return Reply.json(
            {
                "pjwt_auth_enabled": False,
                "credential_default_source": "api_key",
                "use_pyqwest_transport": self._use_pyqwest,
                "proto_write_fwdbwd": self._protobuf,
                "proto_compress_fwdbwd": self._compress,
                "sample_use_retrieve_futures": self._session_poller,
                "sample_join_sampling_session": True,
            }
        )

    def _create_session(self, call: Call) -> Reply:
        key = call.idempotency_key
        session_id = self._sessions.get(key) if key is not None else None
        if session_id is None:
            session_id = f"session-{next(self._session_numbers)}"
            self._sessions[key or session_id] = session_id
        return Reply.json({"type": "create_session", "session_id": session_id})

    def _create_model(self, call: Call) -> Reply:
        base_model = str(call.fields["base_model"])
        rank = int((call.fields.get("lora_config") or {}).get("rank", 32))
        return self._new_model(call, Bigram(), base_model, rank)

    def _load_weights(self, call: Call) -> Reply:
        if call.fields.get("model_id") is not None:
            return self._in_sequence(call)
        if call.fields["path"] not in self._checkpoints:
            raise _RejectedError(404, "Checkpoint not found", expected=True)
        bigram, base_model, rank = self._checkpoints[call.fields["path"]]
        optimizer = bool(call.fields["optimizer"])
        return self._new_model(call, bigram.copy(optimizer=optimizer), base_model, rank)

    def _new_model(self, call: Call, bigram: Bigram, base_model: str, rank: int) -> Reply:
        # The SDK computes the same id itself when it creates a model from a checkpoint.
        model_id = f"{call.fields['session_id']}:train:{int(call.fields['model_seq_id'])}"
        if model_id in self._models:
            return self._repeat(call, self._models[model_id].futures[0])
        future = self._new_future(call, model_id=model_id)
        self._models[model_id] = _Model(model_id, base_model, rank, bigram, {0: future})
        future.result = {"type": call.operation, "model_id": model_id}
        return Reply.json(future.promise)

    def _get_info(self, call: Call) -> Reply:
        model = self._model(call)
        return Reply.json(
            {
                "type": "get_info",
                "model_id": model.model_id,
                "model_name": model.base_model,
                "model_data": {"arch": "bigram", "model_name": model.base_model},
                "is_lora": True,
                "lora_rank": model.rank,
            }
        )

    def _unload_model(self, call: Call) -> Reply:
        model = self._model(call)
        future = self._new_future(call, model_id=model.model_id)
        future.result = {"type": "unload_model", "model_id": model.model_id}
        return Reply.json(future.promise)

    def _in_sequence(self, call: Call) -> Reply:
        """Add one piece of work, then do all work whose turn has come."""
        model = self._model(call)
        seq_id = call.fields["seq_id"]
        if not isinstance(seq_id, int) or seq_id < 1:
            raise ValueError("seq_id must be an integer from 1")
        if seq_id in model.futures:
            return self._repeat(call, model.futures[seq_id])
        work = self._work(call, model)
        future = model.futures[seq_id] = self._new_future(call, model_id=model.model_id)
        for number, (operation, do) in model.sequence.take(seq_id, work):
            self.applied.append(Applied(number, operation))
            model.futures[number].result = _result_of(do)
        return Reply.json(future.promise)

    def _work(self, call: Call, model: _Model) -> tuple[str, Work]:
        """Return the operation's name and the work to do when its turn comes."""
        request, operation = call.fields, call.operation
        if operation in ("forward", "forward_backward"):
            # Newer SDKs send a forward pass as a forward_backward with a flag.
            forward_only = operation == "forward" or bool(request.get("forward_only"))
            given = request["forward_input" if operation == "forward" else "forward_backward_input"]
            name = "forward" if forward_only else "forward_backward"
            return name, lambda: model.bigram.forward(examples_of(given), backward=not forward_only)
        if operation == "optim_step":
            params = _adam_params(request["adam_params"])

            def optim_step() -> Result:
                model.bigram.optim_step(params)
                return {"metrics": {}}

            return operation, optim_step
        if operation == "load_weights":
            path, optimizer = str(request["path"]), bool(request.get("optimizer"))
            return operation, lambda: self._restore(model, path, optimizer)
        return operation, lambda: self._save(model, operation, request)

    def _save(self, model: _Model, operation: str, request: dict[str, Any]) -> Result:
        name = request.get("path")
        if operation == "save_weights_for_sampler" and name is None:
            if request.get("kind", "snapshot") != "snapshot":
                raise ValueError("this trainer samples from snapshots only")
            session_id = model.model_id.partition(":train:")[0]
            sampler_id = f"{session_id}:sample:{request['sampling_session_seq_id']}"
            self._samplers[sampler_id] = _Sampler(
                sampler_id, model.base_model, None, model.bigram.copy()
            )
            return {"type": operation, "sampling_session_id": sampler_id}
        kind = "weights" if operation == "save_weights" else "sampler_weights"
        path = f"tinker://{model.model_id}/{kind}/{name or request['seq_id']}"
        self._checkpoints[path] = model.bigram.copy(), model.base_model, model.rank
        return {"type": operation, "path": path}

    def _restore(self, model: _Model, path: str, optimizer: bool) -> Result:
        if path not in self._checkpoints:
            raise ValueError("no such checkpoint")
        model.bigram = self._checkpoints[path][0].copy(optimizer=optimizer)
        return {"type": "load_weights", "path": path, "model_id": model.model_id}

    def _create_sampling_session(self, call: Call) -> Reply:
        request = call.fields
        sampler_id = f"{request['session_id']}:sample:{int(request['sampling_session_seq_id'])}"
        path = request.get("model_path")
        if path is None:
            bigram, base_model = Bigram(), str(request["base_model"])
        elif path in self._checkpoints:
            bigram, base_model, _ = self._checkpoints[path]
        else:
            raise _RejectedError(404, "Checkpoint not found", expected=True)
        # Keep an existing one: a resent request must not lose its samples.
        self._samplers.setdefault(sampler_id, _Sampler(sampler_id, base_model, path, bigram))
        return Reply.json({"type": "create_sampling_session", "sampling_session_id": sampler_id})

    def _join_sampling_session(self, call: Call) -> Reply:
        joined = self._sampler(call.fields["sampling_session_id"]).joined
        next_number = len(joined) + 1
        number = joined.setdefault(call.idempotency_key or str(next_number), next_number)
        return Reply.json({"type": "join_sampling_session", "client_counter": number})

    def _get_sampler(self, call: Call) -> Reply:
        sampler = self._sampler(call.operation.removeprefix("samplers/"))
        return Reply.json(
            {
                "sampler_id": sampler.sampler_id,
                "base_model": sampler.base_model,
                "model_path": sampler.model_path,
            }
        )

    def _sample(self, call: Call) -> Reply:
        """Draw samples at once, and return them when they are due."""
        request = call.fields
        sampler = self._sampler(request["sampling_session_id"])
        seq_id = request["seq_id"]
        if not isinstance(seq_id, int) or seq_id < 0:
            raise ValueError("seq_id must be an integer from 0")
        if seq_id in sampler.futures:
            return self._repeat(call, sampler.futures[seq_id])
        future = sampler.futures[seq_id] = self._new_future(call)
        # The SDK requires one for each sequence.
        future.promise["sample_sequence_ids"] = [
            f"{future.request_id}:{index}" for index in range(request["num_samples"])
        ]
        result = _result_of(lambda: _draw(sampler.bigram, request))
        if isinstance(result, SampleResult):
            tokens = tuple(tuple(sequence.tokens.tolist()) for sequence in result.sequences)
            self.sampled.append(Sampled(sampler.sampler_id, seq_id, tokens))
        future.result, future.due_at = result, self._now + self._sample_seconds
        sampler.clones[seq_id // SEQ_IDS_PER_CLONE].append(future)
        return Reply.json(future.promise)

    def _retrieve_future(self, call: Call) -> Steps:
        future = self._futures.get(str(call.fields.get("request_id")))
        if future is None:
            raise _RejectedError(404, "Future not found", expected=True)
        at = yield from self._hold(lambda: [future])
        if not future.is_done(at) or future.result is None:
            again = {"type": "try_again", "request_id": future.request_id, "queue_state": "active"}
            return Reply.json(again)
        if isinstance(future.result, dict):
            return Reply.json(future.result)
        if call.wants_protobuf:
            return Reply(200, result_protobuf(future.result), PROTOBUF)
        return Reply.json(result_json(future.result))

    def _retrieve_futures(self, call: Call) -> Steps:
        """Return the samples that have finished since the client's cursor."""
        request = call.fields
        target = request["target"]
        sampler = self._sampler(target["sampling_session_id"])
        clone = sampler.clones[target["cloned_sampler_id"]]
        seen: int = request["prev_cursor"]
        at = self._now
        if request.get("timeout") != 0:
            at = yield from self._hold(lambda: clone[seen:])
        finished = [future for future in clone if future.is_done(at)]
        completions = [
            {
                "state": "failed" if isinstance(future.result, dict) else "finished",
                "request_id": future.request_id,
            }
            for future in finished[seen:]
        ]
        return Reply.json({"completions": completions, "cursor": len(finished)})

    def _hold(self, wanted: Callable[[], list[_Future]]) -> Generator[float, float, float]:
        """Wait until one of these is done, with a time-out; returns the time after the wait."""
        at = self._now
        until = at + self._hold_seconds
        while not (self.is_closing or at >= until or any(one.is_done(at) for one in wanted())):
            due = [one.due_at for one in wanted() if one.result is not None]
            at = yield min([until, *due])
        return at

    def _sampler(self, sampler_id: str) -> _Sampler:
        sampler = self._samplers.get(sampler_id)
        if sampler is None:
            raise _RejectedError(404, "Sampling session not found")
        return sampler

    def _model(self, call: Call) -> _Model:
        model = self._models.get(call.fields["model_id"])
        if model is None:
            raise _RejectedError(404, "Model not found")
        return model

    def _new_future(self, call: Call, **promise: Any) -> _Future:
        request_id = f"request-{next(self._request_numbers)}"
        promise = {"request_id": request_id, **promise}
        future = _Future(request_id, call.operation, call.body_sha256, promise)
        self._futures[future.request_id] = future
        return future

    def _repeat(self, call: Call, future: _Future) -> Reply:
        """Answer a resent request with its first future, and refuse any other request.

        The idempotency key is ignored: the SDK's own retry after a 5xx sends the same bytes
        under a new key.
        """
        if (call.operation, call.body_sha256) != (future.operation, future.body_sha256):
            raise _RejectedError(400, f"seq_id {call.seq_id} was resent with another body")
        return Reply.json(future.promise)


def _result_of(work: Work) -> Result:
    """Do a piece of work; an unsupported one is the user's error."""
    try:
        return work()
    except (KeyError, TypeError, ValueError) as error:
        return {"error": f"{type(error).__name__}: {error}", "category": "user"}


def _draw(bigram: Bigram, request: dict[str, Any]) -> SampleResult:
    prompt, params = prompt_of(request), sampling_params_of(request)
    # Without a given seed, the request's number is the seed, so that a run can be repeated.
    seed = request["sampling_params"].get("seed")
    seed = request["seq_id"] if seed is None else seed % 2**64
    sequences = [bigram.sample(prompt, params, seed, n) for n in range(request["num_samples"])]
    if not request.get("prompt_logprobs"):
        return SampleResult(sequences)
    example = Example(prompt[:-1], prompt[1:], np.ones(len(prompt) - 1))
    (logprobs,) = bigram.forward([example]).logprobs
    return SampleResult(sequences, np.concatenate([[np.nan], logprobs]))


def _adam_params(given: dict[str, Any]) -> AdamParams:
    names = {parameter.name for parameter in fields(AdamParams)}
    return AdamParams(**{name: float(value) for name, value in given.items() if name in names})
