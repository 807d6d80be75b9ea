"""What the phases of a curriculum do: train, merge, ask. Each runs in a child of its own."""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mudpuppy.asking import open_local
from mudpuppy.errors import EngineError
from mudpuppy.files import write_text_atomic
from mudpuppy.pipelines.curriculum.gates import StageGate
from mudpuppy.pipelines.curriculum.plan import Curriculum, stage_config
from mudpuppy.pipelines.curriculum.scores import score_answers, summarise
from mudpuppy.pipelines.curriculum.state import Point
from mudpuppy.preflight import preflight
from mudpuppy.provenance import fingerprint_model
from mudpuppy.scoring import Question
from mudpuppy.similarity import measure_voice
from mudpuppy.telling import say

ADAPTER = "adapter"
"""Folder of what a training phase leaves, inside the phase's."""
MODEL = "model"
"""Folder of what a merge leaves."""
LIVE = "live"
"""Folder of what the gate's watcher saw."""
MAX_NEW_TOKENS = 48
"""Longest answer where nobody says otherwise."""
ANSWERS = "answers.jsonl"
"""What was said, one answer a line."""


def import_libraries(*, measures_voice: bool = False) -> None:
    """Import what the phases use and compute nothing, so that their children need not.

    Args:
        measures_voice: whether an embedding model will be asked; one that is missing is told then.
    """
    import mudpuppy.adapters.shard_merge
    import mudpuppy.asking.local
    import mudpuppy.engine
    import mudpuppy.methods.preference
    import mudpuppy.methods.sft  # noqa: F401

    if measures_voice and find_spec("sentence_transformers") is not None:
        import_module("sentence_transformers")
    gc.collect()
    gc.freeze()  # what is here already is not looked through in every child, and not copied for it


def fingerprint(model: str) -> str | None:
    """Return the fingerprint of a model; an embedded one is built if it is not there.

    Raises:
        ModelError: there is no such model on this machine.
    """
    from mudpuppy.base_path import find_folder

    return fingerprint_model(find_folder(model))


def train_stage(
    made: Curriculum,
    stage: str,
    point: Point,
    dataset: Path,
    folder: Path,
    gate: StageGate | None,
) -> dict[str, Any]:
    """Train one stage and leave its adapter in `folder/adapter`; returns what the run wrote down.

    Args:
        made: the curriculum.
        stage: `sft` or `dpo`.
        point: where it begins; an adapter there is continued.
        dataset: what is learnt.
        folder: of the phase.
        gate: may watch.

    Raises:
        UsageError: the settings or the data cannot be used.
        EngineError: the run failed, or its result cannot be believed.
    """
    from mudpuppy.engine import train

    config = stage_config(
        made,
        stage,
        model=point.model,
        dataset=dataset,
        output=folder / ADAPTER,
        adapter=point.adapter,
    )
    watcher = None if gate is None else gate.watch(folder / LIVE)
    record = train(config, samples=preflight(config), watcher=watcher, say=say)
    if not (config.output / "adapter_config.json").is_file():
        raise EngineError("the run left no adapter", hint="look at its output in logs/")
    return {
        "steps": record.steps,
        "samples": None if record.labels is None else record.labels.samples,
        "first_loss": record.first_loss,
        "final_loss": record.final_loss,
        "trainable": record.trainable_parameters,
        "total": record.total_parameters,
        "learnt_nothing": record.learnt_nothing,
    }


def merge_stage(point: Point, folder: Path) -> dict[str, Any]:
    """Fold the adapter of a point into its model, in `folder/model`.

    Raises:
        ModelError: the two do not belong together.
        EngineError: a merged value is not finite, or the disk is full.
    """
    from mudpuppy.adapters.shard_merge import merge_shards
    from mudpuppy.base_path import find_folder

    assert point.adapter is not None
    folder.mkdir(parents=True)
    report = merge_shards(find_folder(point.model), Path(point.adapter), folder / MODEL, say=say)
    return {"tensors": report.tensors, "changed": report.changed, "bytes": report.bytes}


def ask_stage(
    made: Curriculum, point: Point, questions: Sequence[Question], folder: Path
) -> dict[str, Any]:
    """Ask a point questions, keep what it says, and return its scores by topic, chapter, unit.

    Raises:
        ModelError: the model cannot be loaded.
        UsageError: the embedding model cannot be used.
        EngineError: it tells the voice not from neutral texts.
    """
    said = _ask(made, point, [question.prompt for question in questions])
    near = measure_near(made, [text for text, _ in said])
    scored = score_answers(questions, said, made.profile, made.questions, near)
    folder.mkdir(parents=True)
    lines = [json.dumps(asdict(one), ensure_ascii=False) for one in scored]
    write_text_atomic(folder / ANSWERS, "\n".join(lines) + "\n")
    return {"scores": summarise(scored)}


def measure_near(made: Curriculum, texts: Sequence[str]) -> tuple[float, ...] | None:
    """Return how near texts are to the examples of the voice; None where they do not count.

    Raises:
        UsageError: the embedding model cannot be used.
        EngineError: it tells the voice not from neutral texts.
    """
    if made.embeddings is None or made.profile is None or made.profile.similarity is None:
        return None
    return measure_voice(made.embeddings, texts, made.profile.similarity)


def _ask(made: Curriculum, point: Point, prompts: Sequence[str]) -> list[tuple[str, bool | None]]:
    """Return the greedy answers of a point, and whether each ended by itself."""
    word = made.settings("sft").get("precision", "bf16")
    return ask_model(
        point.model,
        point.adapter,
        prompts,
        precision=word if word in ("fp32", "bf16", "fp16") else None,
        max_tokens=made.form.max_new_tokens,
    )


def ask_model(
    model: str,
    adapter: str | None,
    prompts: Sequence[str],
    *,
    precision: str | None = None,
    max_tokens: int = MAX_NEW_TOKENS,
) -> list[tuple[str, bool | None]]:
    """Return greedy answers, and whether each ended by itself.

    Args:
        model: folder, hub id or name of an embedded model.
        adapter: folder of an adapter on it.
        prompts: what is asked.
        precision: fp32, bf16 or fp16; by default as the weights are stored.
        max_tokens: longest answer.

    Raises:
        ModelError: the model cannot be opened.
        UsageError: its chat template takes no such conversation, or a prompt is too long.
    """
    base = None if adapter is None else model
    asked = open_local(adapter or model, base=base, precision=precision)
    return [(one.text, one.ended) for one in asked.answer(prompts, max_tokens=max_tokens)]


def ask_prompts(made: Curriculum, point: Point, prompts: Sequence[str]) -> list[str]:
    """Return what a point answers."""
    return [text for text, _ in _ask(made, point, prompts)]
