"""Bugs in reinforcement learning: GRPO."""

from __future__ import annotations

from typing import Any

from harness.mutants.form import mutant, part, replaces


def _change_config(**values: Any) -> None:
    @replaces(part("methods.grpo"), "GRPOConfig")
    def make(original: Any, **named: Any) -> Any:
        return original(**{**named, **values})


def _change_batch(change: Any) -> None:
    """Change what generation and rewards give before the loss is computed."""

    @replaces(part("methods.grpo:ReadyPromptsGRPOTrainer"), "_generate_and_score_completions")
    def generate(original: Any, self: Any, *words: Any, **named: Any) -> Any:
        made = original(self, *words, **named)
        change(made)
        return made


@mutant("grpo", caught_by="MPD722")
def advantages_not_normalised() -> None:
    """Take rewards less their group's mean, and do not divide by its deviation."""
    _change_config(scale_rewards="none")


@mutant("grpo-groups", caught_by="MPD722")
def advantages_of_the_whole_batch() -> None:
    """Compare answers to different prompts with each other: the deviation is the batch's."""
    _change_config(scale_rewards="batch")


@mutant("grpo-beta", caught_by="MPD723")
def distance_without_its_ratio() -> None:
    """Add the distance to the reference unweighted, so that its slope is not that of the KL."""
    _change_config(use_bias_correction_kl=False)


@mutant("grpo-beta", caught_by="MPD722")
def distance_left_out() -> None:
    """Accept `--beta` and let the model go as far from the reference as it likes."""
    _change_config(beta=0.0)


@mutant("grpo", caught_by="MPD722")
def rewards_of_the_neighbour() -> None:
    """Give every answer the reward of the one before it."""

    @replaces(part("methods.rewards:RewardFunction"), "__call__")
    def call(original: Any, self: Any, **given: Any) -> Any:
        rewards = original(self, **given)
        return [rewards[-1], *rewards[:-1]]


@mutant("grpo", caught_by="MPD722")
def answers_trained_past_their_end() -> None:
    """Train the tokens behind the end of an answer, too (verl#3226)."""

    def fill(made: dict[str, Any]) -> None:
        made["completion_mask"].fill_(1)

    _change_batch(fill)


@mutant("grpo", caught_by="MPD722 MPD723")
def advantages_inverted() -> None:
    """Make the worse answers likelier: a loss with the wrong sign."""

    def invert(made: dict[str, Any]) -> None:
        made["advantages"] = -made["advantages"]

    _change_batch(invert)


@mutant("grpo", caught_by="MPD722")
def too_few_answers() -> None:
    """Accept `--num-generations` and make two answers to each prompt."""
    _change_config(num_generations=2)


@mutant("grpo", caught_by="MPD706")
def prompts_without_template() -> None:
    """Generate after the bare text of the prompt, without the header of the assistant's turn."""

    @replaces(part("methods.grpo"), "prompt_ids_of")
    def ids(original: Any, *words: Any) -> Any:
        return original(*words)[:-1]


@mutant("grpo", caught_by="MPD722")
def long_answers_rewarded() -> None:
    """Give more for a longer answer, where `length` gives less."""

    @replaces(part("methods.rewards"), "reward_length")
    def reward(original: Any, completions: Any, completion_ids: Any) -> list[float]:
        return [1.0 - earned for earned in original(completions, completion_ids)]
