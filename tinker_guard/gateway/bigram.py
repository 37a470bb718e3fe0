"""A model small enough to check by hand: one table of next-token logits, trained for real."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

VOCABULARY = 64
"""Size of the table. Larger token ids are folded into it, so that any tokenizer can be used."""


@dataclass(frozen=True)
class Example:
    """One sequence: input tokens, the token that follows each, and each one's loss weight."""

    inputs: Ints
    targets: Ints
    weights: Floats

    def __post_init__(self) -> None:
        """Refuse sequences whose parts do not match."""
        if self.inputs.ndim != 1 or not (
            self.inputs.shape == self.targets.shape == self.weights.shape
        ):
            raise ValueError("tokens, target_tokens and weights must be lists of one length")


@dataclass(frozen=True)
class ForwardResult:
    """Log-probability of every target, one array per example, and the weighted loss sum."""

    logprobs: list[Floats]
    loss: float


@dataclass(frozen=True)
class AdamParams:
    """Parameters of one Adam step, named and defaulted as in the SDK's `AdamParams`."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0


@dataclass(frozen=True)
class SamplingParams:
    """How to draw tokens, named as in the SDK's `SamplingParams`; by default 16 tokens.

    Args:
        max_tokens: How many tokens at the most.
        temperature: 0 takes the likeliest token, for any seed.
        top_k: Draw from this many of the likeliest tokens; -1 for all.
        top_p: Draw from the likeliest tokens whose probabilities add up to this.
        stop: Tokens that end a sequence, of which they are the last.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0
    stop: frozenset[int] = frozenset()


@dataclass(frozen=True)
class SampledSequence:
    """Tokens, the model's log-probability of each, and whether a stop token ended them."""

    tokens: Ints
    logprobs: Floats
    is_stopped: bool


@dataclass(frozen=True)
class SampleResult:
    """The sequences that were drawn, and the log-probability of each token of the prompt.

    The latter is NaN for the first token, and None if it was not requested.
    """

    sequences: list[SampledSequence]
    prompt_logprobs: Floats | None = None


class Bigram:
    """A softmax over the next token given the current one, and its Adam state.

    All arithmetic is float64 in a fixed order: the same requests in the same order give the same
    numbers to the last digit.
    """

    def __init__(self) -> None:
        shape = (VOCABULARY, VOCABULARY)
        self.logits: Floats = np.zeros(shape)
        self.gradient: Floats = np.zeros(shape)
        self.steps: int = 0
        self._mean: Floats = np.zeros(shape)
        self._mean_square: Floats = np.zeros(shape)

    def forward(self, examples: list[Example], *, backward: bool = False) -> ForwardResult:
        """Compute the cross-entropy of some examples.

        Args:
            examples: The sequences.
            backward: Also add the loss's gradient to `gradient`. Default false.
        """
        logprobs = []
        loss = 0.0
        for example in examples:
            inputs, targets = example.inputs % VOCABULARY, example.targets % VOCABULARY
            rows = _log_softmax(self.logits[inputs])
            positions = np.arange(len(inputs))
            chosen = rows[positions, targets]
            logprobs.append(chosen)
            loss -= float(np.sum(example.weights * chosen))
            if backward:
                slope = np.exp(rows)
                slope[positions, targets] -= 1.0
                # Unbuffered, because an input token may occur several times.
                np.add.at(self.gradient, inputs, slope * example.weights[:, None])
        return ForwardResult(logprobs, loss)

    def optim_step(self, params: AdamParams) -> None:
        """Apply one AdamW step to the gathered gradient and clear it."""
        gradient = self.gradient
        norm = float(np.sqrt(np.sum(gradient**2)))
        if 0.0 < params.grad_clip_norm < norm:
            gradient = gradient * (params.grad_clip_norm / norm)
        self.steps += 1
        self._mean = params.beta1 * self._mean + (1 - params.beta1) * gradient
        self._mean_square = params.beta2 * self._mean_square + (1 - params.beta2) * gradient**2
        mean = self._mean / (1 - params.beta1**self.steps)
        mean_square = self._mean_square / (1 - params.beta2**self.steps)
        self.logits = self.logits * (1 - params.learning_rate * params.weight_decay)
        self.logits -= params.learning_rate * mean / (np.sqrt(mean_square) + params.eps)
        self.gradient = np.zeros_like(self.gradient)

    def sample(self, prompt: Ints, params: SamplingParams, *seed: int) -> SampledSequence:
        """Draw one sequence that continues a prompt.

        Args:
            prompt: At least one token; this model uses only the last one.
            params: How to draw.
            seed: Numbers from 0, the only source of randomness.
        """
        chance = np.random.default_rng(seed)
        token = int(prompt[-1]) % VOCABULARY
        tokens: list[int] = []
        logprobs: list[float] = []
        while len(tokens) < params.max_tokens and not (tokens and token in params.stop):
            row = _log_softmax(self.logits[token])
            token = int(chance.choice(VOCABULARY, p=_probabilities(row, params)))
            tokens.append(token)
            logprobs.append(float(row[token]))
        is_stopped = bool(tokens) and token in params.stop
        return SampledSequence(np.array(tokens, dtype=np.int64), np.array(logprobs), is_stopped)

    def copy(self, *, optimizer: bool = True) -> Bigram:
        """Return a copy of the weights, with the optimizer's state or a fresh one."""
        twin = Bigram()
        twin.logits = self.logits.copy()
        if optimizer:
            twin.steps = self.steps
            twin._mean, twin._mean_square = self._mean.copy(), self._mean_square.copy()
        return twin


def _log_softmax(logits: Floats) -> Floats:
    logits = logits - logits.max(axis=-1, keepdims=True)
    logprobs: Floats = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return logprobs


def _probabilities(logprobs: Floats, params: SamplingParams) -> Floats:
    """The distribution of the next token: tempered, then reduced to the likeliest tokens."""
    probabilities: Floats = np.zeros(len(logprobs))
    order = np.argsort(-logprobs, kind="stable")
    if params.temperature == 0:
        probabilities[order[0]] = 1.0
        return probabilities
    probabilities = np.exp(_log_softmax(logprobs / params.temperature))
    ranked = probabilities[order]
    is_kept = np.cumsum(ranked) - ranked < params.top_p
    if params.top_k > 0:
        is_kept[params.top_k :] = False
    probabilities[order[~is_kept]] = 0.0
    probabilities /= probabilities.sum()
    return probabilities
