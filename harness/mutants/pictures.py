"""Bugs in training on pictures."""

from __future__ import annotations

from typing import Any

from harness.mutants.form import change_rows, mutant, part, replaces


def _change_batch(change: Any) -> None:
    @replaces(part("methods.multimodal:ImageCollator"), "__call__")
    def collate(original: Any, self: Any, rows: Any) -> Any:
        batch = original(self, rows)
        change(batch)
        return batch


@mutant("multimodal", caught_by="MPD725")
def pictures_dropped() -> None:
    """Show an empty picture for every real one."""

    def blank(batch: dict[str, Any]) -> None:
        batch["pixel_values"] = batch["pixel_values"] * 0.0

    _change_batch(blank)


@mutant("multimodal", caught_by="MPD725")
def pictures_swapped() -> None:
    """Show every conversation the picture of its neighbour in the batch."""

    def swap(batch: dict[str, Any]) -> None:
        batch["pixel_values"] = batch["pixel_values"].roll(1, 0)

    _change_batch(swap)


@mutant("multimodal", caught_by="MPD706")
def picture_tokens_trained() -> None:
    """Train the tokens that stand for the picture."""

    def train(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for row in rows:
            end = row["image_end"]
            row["labels"] = [*row["input_ids"][:end], *row["labels"][end:]]
        return rows

    change_rows(train)


@mutant("multimodal", caught_by="MPD726")
def vision_tower_adapted() -> None:
    """Adapt the part that sees as well, which was to stay frozen."""

    @replaces(part("adapters.attach"), "language_targets")
    def targets(_: Any, model: Any, wanted: Any) -> Any:
        return wanted
