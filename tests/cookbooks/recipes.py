"""Loops of tinker-cookbook, on data that is made here.

As in `loops`: each trains a new model from the same start, and returns all that it has measured
except times.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Final

import chz
import datasets
from tinker_cookbook import renderers
from tinker_cookbook.preference import train_dpo
from tinker_cookbook.preference.dpo_datasets import DPODatasetBuilderFromComparisons
from tinker_cookbook.preference.preference_datasets import ComparisonDatasetBuilder
from tinker_cookbook.preference.types import Comparison, LabeledComparison
from tinker_cookbook.rl import train as train_rl
from tinker_cookbook.rl.problem_env import ProblemEnv, ProblemGroupBuilder
from tinker_cookbook.rl.types import EnvGroupBuilder, RLDataset, RLDatasetBuilder
from tinker_cookbook.supervised import train as train_supervised
from tinker_cookbook.supervised.data import FromConversationFileBuilder
from tinker_cookbook.supervised.types import ChatDatasetBuilderCommonConfig
from tinker_cookbook.tokenizer_utils import get_tokenizer

from tests.cookbooks.loops import RANK
from tests.end_to_end import sdk

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tinker_guard.gateway import LocalGateway

_RENDERER: Final = "role_colon"
_PAIRS: Final = (
    ("where?", "on a mat", "nowhere"),
    ("who?", "a cat", "nobody"),
    ("when?", "at noon", "never"),
    ("why?", "to sleep", "no idea"),
    ("how?", "softly", "it did not"),
    ("what?", "a nap", "nothing"),
)
"""Questions, each with a better and a worse answer."""


def supervised(gateway: LocalGateway, model: str, place: Path) -> Any:
    """Two steps, with the loss on held-out data before each."""
    file = place / "conversations.jsonl"
    file.write_text("".join(json.dumps({"messages": _talk(q, a)}) + "\n" for q, a, _ in _PAIRS))
    config = train_supervised.Config(
        **_common(gateway, model, place),
        dataset_builder=FromConversationFileBuilder(
            common_config=_chat(model), file_path=str(file), test_size=2
        ),
        eval_every=1,
    )
    with sdk.garbage_kept():
        asyncio.run(train_supervised.main(config))
    return _measured(place)


def preferences(gateway: LocalGateway, model: str, place: Path) -> Any:
    """Two steps of DPO."""
    config = train_dpo.Config(
        **_common(gateway, model, place),
        dataset_builder=DPODatasetBuilderFromComparisons(
            common_config=_chat(model), comparison_builder=_Comparisons()
        ),
        eval_every=0,
        max_steps=2,
    )
    with sdk.garbage_kept():
        train_dpo.main(config)
    return _measured(place)


def rewards(gateway: LocalGateway, model: str, place: Path) -> Any:
    """Two steps of RL, each after sampling with the weights of the one before."""
    return _rewards(gateway, model, place)


def rewards_while_sampling(gateway: LocalGateway, model: str, place: Path) -> Any:
    """The same by the loop that samples and trains at once, with one group under way at a time.

    With more of them it does not repeat itself: what is sampled from which weights is by chance.
    """
    return _rewards(
        gateway,
        model,
        place,
        async_config=train_rl.AsyncConfig(
            max_steps_off_policy=0, groups_per_batch=1, loss_fn="importance_sampling"
        ),
    )


def _rewards(gateway: LocalGateway, model: str, place: Path, **options: Any) -> Any:
    config = train_rl.Config(
        **_common(gateway, model, place),
        dataset_builder=_Problems(model=model),
        max_tokens=5,
        eval_every=0,
        rollout_json_export=False,
        num_groups_to_log=0,
        **options,
    )
    with sdk.garbage_kept():
        asyncio.run(train_rl.main(config))
    return _measured(place)


def _common(gateway: LocalGateway, model: str, place: Path) -> dict[str, Any]:
    return {
        "base_url": gateway.base_url,
        "model_name": model,
        "recipe_name": "recipe_of_a_test",
        "renderer_name": _RENDERER,
        "log_path": str(place),
        "learning_rate": 0.01,
        "lora_rank": RANK,
        "save_every": 0,
    }


def _chat(model: str) -> ChatDatasetBuilderCommonConfig:
    return ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer=model, renderer_name=_RENDERER, max_length=64, batch_size=2
    )


def _talk(question: str, answer: str) -> list[renderers.Message]:
    return [
        renderers.Message(role="user", content=question),
        renderers.Message(role="assistant", content=answer),
    ]


def _measured(place: Path) -> list[dict[str, Any]]:
    """What was logged of each step; no times, and no paths, which hold a new model's id."""
    return [
        {
            name: value
            for name, value in json.loads(line).items()
            if "time" not in name and not isinstance(value, str)
        }
        for line in (place / "metrics.jsonl").read_text().splitlines()
    ]


@chz.chz
class _Comparisons(ComparisonDatasetBuilder):
    def get_train_and_test_datasets(self) -> tuple[datasets.Dataset, None]:
        names = ("question", "better", "worse")
        rows = [dict(zip(names, pair, strict=True)) for pair in _PAIRS]
        return datasets.Dataset.from_list(rows), None

    def example_to_labeled_comparison(self, example: dict[str, str]) -> LabeledComparison:
        question, better = _talk(example["question"], example["better"])
        _, worse = _talk(example["question"], example["worse"])
        return LabeledComparison(Comparison([question], [better], [worse]), "A")


class _Problem(ProblemEnv):
    """Asks for nothing that could be learnt: half of all answers are right."""

    def __init__(self, renderer: renderers.Renderer, question: str) -> None:
        super().__init__(renderer)
        self._question = question

    def get_question(self) -> str:
        return self._question

    def check_answer(self, sample_str: str) -> bool:
        return sum(map(ord, sample_str)) % 2 == 0

    def check_format(self, sample_str: str) -> bool:
        return True

    def get_reference_answer(self) -> str:
        return ""


class _ProblemDataset(RLDataset):
    def __init__(self, renderer: renderers.Renderer) -> None:
        self._renderer = renderer

    def get_batch(self, index: int) -> Sequence[EnvGroupBuilder]:
        asked = _PAIRS[2 * index : 2 * index + 2]
        return [
            ProblemGroupBuilder(lambda q=question: _Problem(self._renderer, q), num_envs=3)
            for question, _, _ in asked
        ]

    def __len__(self) -> int:
        return 2


@chz.chz
class _Problems(RLDatasetBuilder):
    model: str

    async def __call__(self) -> tuple[RLDataset, None]:
        return _ProblemDataset(renderers.get_renderer(_RENDERER, get_tokenizer(self.model))), None
