"""Bugs in learning which answer is better."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from harness.mutants.form import change_rows, change_settings, mutant, part, replaces


def _swap(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {**row, "chosen_ids": row["rejected_ids"], "rejected_ids": row["chosen_ids"]}
        for row in rows
    ]


@mutant("dpo", "orpo", "ipo", caught_by="MPD706")
def pairs_swapped() -> None:
    """Take the worse answer for the better one (trl#800)."""
    change_rows(_swap)


@mutant("rm", caught_by="MPD706")
def reward_pairs_swapped() -> None:
    """Score the worse answer higher."""
    change_rows(_swap)


@mutant("dpo-beta", "kto-beta", caught_by="MPD722")
def beta_ignored() -> None:
    """Accept `--beta` and use the default (engines.md, section 5, number 5)."""

    @replaces(part("methods.preference"), "_make")
    def make(original: Any, parts: Any, *words: Any) -> Any:
        config = parts.config.model_copy(update={"beta": None})
        return original(replace(parts, config=config), *words)


@mutant("dpo-full", "kto-full", caught_by="MPD722")
def reference_moves() -> None:
    """Compare the model with itself: the reference is the policy and not a copy.

    The loss is ln 2 for ever (FM36).
    """

    @replaces(part("methods.preference"), "reference_for")
    def reference(_: Any, parts: Any) -> Any:
        return None if parts.config.trains_adapter else copy.copy(parts.model)


@mutant("dpo-continued", caught_by="MPD722")
def reference_is_the_base() -> None:
    """Compare an adapter that is continued with the bare base.

    What it had learnt before counts as distance (FM36; ms-swift#8047).
    """

    @replaces(part("methods.preference"), "dropping_reference")
    def dropping(original: Any, parts: Any) -> Any:
        config = parts.config.model_copy(update={"adapter": None})
        return original(replace(parts, config=config))


@mutant("kto", caught_by="MPD706")
def labels_flipped() -> None:
    """Take good answers for bad ones."""
    change_rows(lambda rows: [{**row, "label": not row["label"]} for row in rows])


@mutant("ipo", caught_by="MPD722")
def ipo_is_dpo() -> None:
    """Accept IPO and compute DPO's loss: the loss type is not passed on."""

    @replaces(part("methods.preference"), "DPOConfig")
    def make(original: Any, **named: Any) -> Any:
        return original(**{**named, "loss_type": ["sigmoid"]})


@mutant("orpo", caught_by="MPD722")
def odds_ratio_dropped() -> None:
    """Learn the better answer alone: ORPO without its odds ratio is plain fine-tuning."""

    @replaces(part("methods.odds_ratio:OddsRatioTrainer"), "__init__")
    def init(original: Any, self: Any, *, beta: float, **settings: Any) -> None:
        del beta
        original(self, beta=0.0, **settings)


@mutant("dpo", "kto", caught_by="MPD706")
def answers_without_end() -> None:
    """Leave the EOS of every answer out of what is compared, so that nothing teaches to stop.

    Nothing then says where an answer ends (FM02).
    """

    def cut(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        names = ("chosen_ids", "rejected_ids", "completion_ids")
        return [{**row, **{n: row[n][:-1] for n in names if n in row}} for row in rows]

    change_rows(cut)


@mutant("rm", caught_by="MPD706 MPD722")
def scored_before_the_end() -> None:
    """Read the score at the last word and not at EOS."""

    def cut(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{name: ids[:-1] for name, ids in row.items()} for row in rows]

    change_rows(cut)


@mutant("prm", caught_by="MPD706")
def judged_one_token_late() -> None:
    """Judge every step at the first token of the next one."""

    def shift(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**row, "labels": [-100, *row["labels"][:-1]]} for row in rows]

    change_rows(shift)


@mutant("prm", caught_by="MPD706")
def judgements_flipped() -> None:
    """Take right steps for wrong ones."""

    def flip(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for row in rows:
            row["labels"] = [x if x == -100 else 1 - x for x in row["labels"]]
        return rows

    change_rows(flip)


@mutant("rm", caught_by="MPD407 MPD707")
def score_head_not_saved() -> None:
    """Save the adapter without the score head that was trained with it (FM63)."""
    from harness.mutants.form import change_saved_adapter

    change_saved_adapter(lambda name, x: None if "score" in name else (name, x))


@mutant("dpo", caught_by="MPD706")
def prompts_cut() -> None:
    """Cut prompts to a fixed number of tokens that nobody asked for.

    TRL's old `max_prompt_length`.
    """
    change_settings(part("methods.preference"), "make_renderer", max_length=24)
