"""Bugs in folding an adapter into its base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from harness.mutants.form import mutant, part, replaces


def _change_plan(change: Callable[[Any], Any]) -> None:
    """Change every output of the plan of a merge that the adapter has a change for."""

    @replaces(part("adapters.shard_merge"), "plan_merge")
    def plan(original: Any, *words: Any, **named: Any) -> Any:
        whole = original(*words, **named)
        outputs = [one if one.change is None else change(one) for one in whole.outputs]
        return replace(whole, outputs=tuple(outputs))


def _scaled(output: Any, factor: float) -> Any:
    return replace(output, change=replace(output.change, scale=output.change.scale * factor))


@mutant("lora-merge", "qlora-merge", caught_by="MPD707 MPD711")
def merge_does_nothing() -> None:
    """Write the base without the adapter's change (engines.md, section 5, number 1)."""
    _change_plan(lambda output: replace(output, change=None))


@mutant("lora-merge", caught_by="MPD707")
def merge_applied_twice() -> None:
    """Add the adapter's change twice, as where one that is merged is merged again (FM19)."""
    _change_plan(lambda output: _scaled(output, 2.0))


@mutant("lora-merge", caught_by="MPD707")
def merge_ignores_alpha() -> None:
    """Add BA without its factor alpha / r (FM26)."""
    _change_plan(lambda output: replace(output, change=replace(output.change, scale=1.0)))


@mutant("lora-merge", caught_by="MPD707")
def merge_misses_a_layer() -> None:
    """Leave one layer as it was in the base (mlx-lm#1172, fuse)."""
    _change_plan(lambda out: replace(out, change=None) if "layers.1.mlp.down" in out.name else out)


@mutant("qlora-merge", caught_by="MPD707")
def merge_on_unquantised_base() -> None:
    """Fold an adapter that was trained on 4-bit weights into the 16-bit ones (FM13)."""

    @replaces(part("adapters.shard_merge"), "plan_merge")
    def plan(original: Any, *words: Any, **named: Any) -> Any:
        return original(*words, **{**named, "packed": None})


@mutant("lora-merge", caught_by="MPD707")
def merge_rounded_on_the_way() -> None:
    """Round the sum to bf16 before it is written in fp32: rounded where nothing had to be."""

    @replaces(part("adapters.fold"), "_round")
    def rounded(original: Any, block: Any, *words: Any) -> Any:
        return original(block.bfloat16().to(block.dtype), *words)


@mutant("lora-merge", caught_by="MPD729")
def merge_rounded_twice() -> None:
    """Round the change to bf16 before it is added and rounded again.

    As PEFT does where the adapter is held in the type of a half-precision base.
    """

    @replaces(part("adapters.fold:_Change"), "_delta")
    def delta(original: Any, self: Any, start: int, stop: int) -> Any:
        return original(self, start, stop).bfloat16().float()


@mutant("lora-dora-merge", caught_by="MPD707")
def merge_drops_magnitude() -> None:
    """Merge a DoRA adapter as if it were plain LoRA."""
    _change_plan(lambda out: replace(out, change=replace(out.change, magnitude=None)))


@mutant("lora-merge", caught_by="MPD202")
def merge_leaves_adapter_config() -> None:
    """Leave the adapter's settings beside the merged weights.

    Their loader then adds the adapter again (FM19).
    """

    @replaces(part("adapters.shard_merge"), "_copy_files")
    def copy(original: Any, folder: Any, inputs: Any) -> None:
        original(folder, inputs)
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            (folder / name).write_bytes((inputs.adapter.folder / name).read_bytes())


@mutant("rm-merge", caught_by="MPD707")
def merged_head_random() -> None:
    """Lose the trained score head in the merge, so that the loader makes a random one (FM63)."""

    @replaces(part("engine"), "merge_adapter")
    def merge(original: Any, *words: Any) -> Any:
        merged = original(*words)
        merged.score.weight.data.normal_(0.0, 0.02)
        return merged


@mutant("lora-merge", caught_by="MPD713")
def merged_without_template() -> None:
    """Merge weights and leave tokenizer and template behind (FM04)."""

    @replaces(part("adapters.shard_merge"), "_copy_files")
    def copy(*_: Any) -> None:
        return None


@mutant("lora-merge-precision", caught_by="MPD712")
def merge_precision_ignored() -> None:
    """Save the merged model in the type of the computation, whatever was asked for."""

    @replaces(part("engine"), "merge_shards")
    def merge(original: Any, *words: Any, precision: str) -> Any:
        return original(*words, precision="bf16" if precision == "fp32" else "fp32")
