"""Run a curriculum with the doctor as its gate, healthy or with a root cause planted into it.

The pipeline forks a child for each phase from this very process, which computes nothing.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.facts.curriculum import CurriculumRun, CurriculumStage
from harness.mutants.curriculum import PLANTS
from harness.observations import Observations
from harness.stage_gate import DoctorGate
from harness.trials.order import CHECKPOINT, Order
from mudpuppy.errors import ConfigError
from mudpuppy.files import write_json_atomic
from mudpuppy.pipelines.curriculum.plan import DEMO_FILE, read_curriculum
from mudpuppy.pipelines.curriculum.state import open_state
from mudpuppy.pipelines.curriculum.story import Story
from mudpuppy.yamlfile import read_document

CURRICULUM = "curriculum"
"""Folder of the run inside the cell's."""
TAKEN = ("precision", "seed", "device", "max_length", "batch_size")
"""Settings of the cell that every stage takes over."""


class CurriculumOptions(BaseModel):
    """The options of a cell."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    topics: int = Field(default=2, ge=1, le=100)
    """Topics of the demo that are trained."""
    steps: int | None = Field(default=None, ge=1, le=1000)
    """Steps of SFT, after which DPO comes whatever was learnt; by default the demo's epochs."""
    planted: str = ""
    """A root cause of `harness.mutants.curriculum`; empty for none."""
    dpo_adapter: Literal["fresh", "continued"] = "fresh"
    """What DPO trains."""
    dpo_rate: float | None = Field(default=None, gt=0)
    """Learning rate of DPO; by default the demo's, which is one for an adapter of rank 1."""
    stop_after: int = Field(default=2, ge=0)
    """Stages that may fail in a row for the same reason."""


def perform(order: Order) -> Observations:
    """Run the curriculum of the cell, and return what was kept and what was rolled back.

    Raises:
        ConfigError: the options of the cell are wrong.
        EngineError: a phase died.
    """
    options = check_options(order.options)
    made = read_curriculum(write_curriculum(order, options))
    order.import_engine()
    from mudpuppy.pipelines.curriculum.run import Run
    from mudpuppy.pipelines.curriculum.stages import import_libraries

    import_libraries()
    if options.planted:
        PLANTS[options.planted]()
    began = time.monotonic()
    output = order.folder / CURRICULUM
    with open_state(output, made.identity) as state:
        story = Run(
            made=made,
            state=state,
            gate=DoctorGate(),
            say=lambda text: print(text, flush=True),
            stop_after=options.stop_after,
        ).tell()
    _keep_artefact(story, output, order.folder / CHECKPOINT)
    seconds = {"curriculum": round(time.monotonic() - began, 3)}
    seen = asdict(describe(story, options.planted, len(made.topics)))
    return Observations(ending="measured", trial=seen, seconds=seconds)


def check_options(words: dict[str, Any]) -> CurriculumOptions:
    """Return the options, checked.

    Raises:
        ConfigError: they are wrong.
    """
    try:
        options = CurriculumOptions.model_validate(words)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError([f"options: {where}: {first['msg']}"]) from None
    if options.planted and options.planted not in PLANTS:
        raise ConfigError([f"options: planted: '{options.planted}' is none of {', '.join(PLANTS)}"])
    return options


def write_curriculum(order: Order, options: CurriculumOptions) -> Path:
    """Write the curriculum of a cell: the first topics of the demo, with the cell's settings."""
    text = DEMO_FILE.read_text(encoding="utf-8")
    form: dict[str, Any] = json.loads(json.dumps(read_document(text, str(DEMO_FILE)).value))
    home, left = DEMO_FILE.parent, options.topics
    for unit in form["units"]:
        for chapter in unit["chapters"]:
            chapter["topics"] = chapter["topics"][:left]
            left -= len(chapter["topics"])
            for topic in chapter["topics"]:
                topic |= {name: str(home / topic[name]) for name in ("sft", "quiz")}
        unit["chapters"] = [one for one in unit["chapters"] if one["topics"]]
    form["units"] = [unit for unit in form["units"] if unit["chapters"]]
    form["voice"] = str(home / form["voice"])
    form["model"] = order.config["model"]
    form["dpo_adapter"] = options.dpo_adapter
    if options.steps is not None:
        del form["sft"]["epochs"]
        form["sft"]["max_steps"] = options.steps
        form["thresholds"]["accuracy"]["topic"] = 0.0
    if options.dpo_rate is not None:
        form["dpo"]["learning_rate"] = options.dpo_rate
    given = {name: order.config[name] for name in TAKEN if order.config.get(name) is not None}
    form["defaults"] |= given
    path = order.folder / "curriculum.yaml"
    write_json_atomic(path, form)
    return path


def describe(story: Story, planted: str, topics: int) -> CurriculumRun:
    """Return the facts of a story."""
    numbers = {topic.name: topic.number for topic in story.topics}
    stages = tuple(
        CurriculumStage(
            topic=name,
            number=numbers.get(name, len(story.topics)),
            kind=stage.kind,
            kept=stage.kept,
            roots=tuple(dict.fromkeys(one.root for one in stage.faults if one.root)),
            codes=tuple(dict.fromkeys(one.code for one in stage.faults)),
            message=stage.faults[0].message if stage.faults else "",
        )
        for name, stage in story.stages
    )
    start, end = story.start["final"], (story.end or {}).get("final", {})
    return CurriculumRun(
        planted=planted,
        topics=topics,
        topics_begun=len(story.topics),
        stages=stages,
        accuracy_before=start["accuracy"],
        accuracy_after=end.get("accuracy"),
        voice_before=start["voice"],
        voice_after=end.get("voice"),
    )


def _keep_artefact(story: Story, output: Path, target: Path) -> None:
    """Leave for the doctor what was rolled back first, or else what the run ends with."""
    rolled_back = [output / stage.folder for _, stage in story.rolled_back if stage.folder]
    found = next((folder for folder in rolled_back if folder.is_dir()), output / "final")
    if found.is_dir():
        shutil.copytree(found, target)
