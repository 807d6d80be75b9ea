"""GRPO (Shao et al. 2024) on TRL's trainer: answers are generated, rewarded, and learnt from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trl import GRPOConfig, GRPOTrainer

from mudpuppy import team
from mudpuppy.config import TrainingConfig
from mudpuppy.data.render_pairs import PromptRow, Side, cut_prompt, prompt_ids_of, render_prompts
from mudpuppy.errors import DatasetError
from mudpuppy.loading import Loaded
from mudpuppy.methods.family import Family, TrainerParts
from mudpuppy.methods.fitting import CpuHalfPrecision, configure
from mudpuppy.methods.preference import choose_reference, dropping_reference
from mudpuppy.methods.rewards import find_rewards
from mudpuppy.methods.sft import make_renderer
from mudpuppy.methods.trainers import LeavesNoReference
from mudpuppy.records import Choice


class ReadyPromptsGRPOTrainer(LeavesNoReference, CpuHalfPrecision, GRPOTrainer):  # type: ignore[misc]
    """TRL's GRPO trainer, with prompts tokenised by this project's rules."""

    def __init__(self, *, encode: Callable[[Side], list[int]], **settings: Any) -> None:
        self._encode = encode
        super().__init__(**settings)

    def _tokenize_prompts(
        self, prompts: Sequence[Side]
    ) -> tuple[list[list[int]], None, dict[str, Any]]:
        """Return the ids of the prompts; no images, and no fields of theirs."""
        return [self._encode(prompt) for prompt in prompts], None, {}


def render(loaded: Loaded, samples: Sequence[Any], config: TrainingConfig) -> list[PromptRow]:
    """Tokenise the prompts, once the reward functions are known to fit the dataset.

    Raises:
        ConfigError: a reward function cannot be used.
        DatasetError: a prompt cannot be used, or there are too few for one step.
        ModelError: the template does not end.
    """
    columns = set.intersection(*({*sample.fields} for sample in samples))
    find_rewards(config.reward_funcs, columns=columns)
    answers = config.batch_size * config.gradient_accumulation * team.size()
    needed = answers // config.num_generations
    if len(samples) < needed:
        raise DatasetError(
            f"{len(samples)} prompts are too few: a step takes {needed}, each with "
            f"{config.num_generations} answers",
            file=str(config.dataset),
            hint="lower --batch-size or --gradient-accumulation, or add prompts",
        )
    rows = render_prompts(make_renderer(loaded, config), samples, str(config.dataset))
    # A column that not every sample has would be empty for the others, and hide that it is not.
    return [PromptRow(**{**vars(r), "fields": {k: r.fields[k] for k in columns}}) for r in rows]


def choose(loaded: Loaded, config: TrainingConfig) -> Mapping[str, Choice]:
    """Say what the trained model is compared with."""
    if config.beta is None:
        return {"reference": Choice(value="none", reason="no --beta; TRL's default is 0")}
    return choose_reference(loaded, config)


def make_trainer(parts: TrainerParts) -> Any:
    """Make TRL's trainer, with generation by transformers."""
    config, loaded = parts.config, parts.loaded
    renderer = make_renderer(loaded, config)

    def encode(prompt: Side) -> list[int]:
        return cut_prompt(renderer, prompt_ids_of(renderer, prompt), config.max_length)

    with dropping_reference(parts):
        return ReadyPromptsGRPOTrainer(
            encode=encode,
            model=parts.model,
            reward_funcs=list(find_rewards(config.reward_funcs, eos_ids=loaded.eos_ids)),
            args=configure(
                GRPOConfig,
                parts.arguments,
                beta=config.beta or 0.0,
                num_generations=config.num_generations,
                max_completion_length=config.max_completion_length,
                temperature=config.temperature,
            ),
            train_dataset=parts.train,
            eval_dataset=parts.held_out,
            processing_class=loaded.tokenizer,
            callbacks=parts.callbacks,
        )


FAMILY = Family(render=render, make_trainer=make_trainer, choose=choose, learns_to_end=False)
"""Reinforcement learning."""
