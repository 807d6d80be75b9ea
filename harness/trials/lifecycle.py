"""Follow adapters through their life: trained, merged, trained upon, continued, swapped, unloaded.

Every stage is `mud-puppy` itself or plain PEFT, in a process of its own, and what it left is
measured in another. The stories that go wrong on purpose are those of the adapter report.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from harness.attempts import start_attempt
from harness.facts.lifecycle import Kind, Lifecycle, Stage
from harness.observations import Observations
from harness.phases import run_phase
from harness.trials.order import CHECKPOINT, Order
from mudpuppy.cli import main as run_command
from mudpuppy.errors import ConfigError, EngineError
from mudpuppy.files import write_json_atomic
from mudpuppy.tiny import resolve_model

LIMIT_S = 300.0
"""Time of one stage; it takes a second."""
Story = Literal[
    "rounds", "continued", "swapped", "unloaded", "stacked", "leftover", "growth", "collapse"
]


class LifecycleOptions(BaseModel):
    """The options of a cell."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    story: Story
    """What is done."""
    rounds: int = Field(default=1, ge=1, le=100)
    """How often, where the story has rounds."""
    preferences: str = "preferences.jsonl"
    """Dataset of the second stage, beside the first one's."""
    dpo: dict[str, Any] = Field(default_factory=dict)
    """Settings of the second stage, over those of the cell."""


@dataclass
class _Tale:
    """A story while it is being told."""

    order: Order
    options: LifecycleOptions
    base: str
    """Folder of the model that the story begins with."""
    stages: list[Stage] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """The cell's folder."""
        return self.order.folder

    def command(self, name: str, words: list[str]) -> int:
        """Run `mud-puppy` and return its peak memory in bytes.

        Raises:
            EngineError: it did not end well.
        """
        place = self.folder / "commands" / name.replace(" ", "-")
        running = start_attempt(name, lambda: run_command(words), place, timeout_s=LIMIT_S)
        ending = running.wait()
        if ending.words != "0":
            raise EngineError(f"{name} ended with {ending.words}: {' '.join(ending.said[-3:])}")
        return ending.peak_rss_bytes

    def train(self, name: str, base: str, dataset: Path, **settings: Any) -> tuple[Path, int]:
        """Train an adapter, and return its folder and the peak memory."""
        output = self.folder / name.replace(" ", "-")
        plain = {key: value for key, value in self.order.config.items() if value is not None}
        path = output.with_suffix(".yaml")
        write_json_atomic(path, {**plain, **settings, "model": base, "dataset": str(dataset)})
        return output, self.command(name, ["--config", str(path), "--output", str(output)])

    def look(self, folder: Path, name: str, kind: Kind, base: str, **more: Any) -> None:
        """Have a stage measured, in a process that may compute."""
        found = self.folder / "stage.json"
        step = name.partition(" ")[2] or name

        def measure() -> None:
            from harness.stages import measure_stage

            seen = measure_stage(folder, name=name, step=step, kind=kind, base=Path(base), **more)
            write_json_atomic(found, asdict(seen))

        run_phase(f"measuring {name}", measure)
        stage = TypeAdapter(Stage).validate_json(found.read_bytes())
        print(f"{stage.name}: {stage.verdict}, {stage.bytes} bytes, {stage.adapters} adapters")
        self.stages.append(stage)

    def topic(self, number: int) -> Path:
        """Return the dataset of a round: every other row, beginning with another one."""
        rows = Path(self.order.config["dataset"]).read_text(encoding="utf-8").splitlines()
        path = self.folder / f"topic-{number % 2}.jsonl"
        path.write_text("\n".join(rows[number % 2 :: 2]) + "\n", encoding="utf-8")
        return path

    def by_hand(self, name: str, *words: Any) -> None:
        """Run one of the stories that are made with plain PEFT."""

        def work() -> None:
            from harness import by_hand

            getattr(by_hand, name)(self.base, *words)

        run_phase(name, work)

    def texts(self) -> list[str]:
        """Return the texts that are trained by hand."""
        from harness.by_hand import read_texts

        return read_texts(Path(self.order.config["dataset"]))


def perform(order: Order) -> Observations:
    """Tell the story of the cell, and return what every stage left.

    Raises:
        ConfigError: the options of the cell are wrong.
        EngineError: a stage fails.
    """
    options = check_options(order.options)
    order.import_engine()
    tale = _Tale(order, options, resolve_model(order.config["model"]))
    began = time.monotonic()
    last = STORIES[options.story](tale)
    shutil.copytree(last, order.folder / CHECKPOINT)
    live = order.folder / "live.json"
    seen = Lifecycle(
        story=options.story,
        rounds=options.rounds,
        stages=tuple(tale.stages),
        live_model=json.loads(live.read_text(encoding="utf-8")) if live.is_file() else None,
    )
    seconds = {"story": round(time.monotonic() - began, 3)}
    return Observations(ending="measured", trial=asdict(seen), seconds=seconds)


def check_options(words: dict[str, Any]) -> LifecycleOptions:
    """Return the options, checked.

    Raises:
        ConfigError: they are wrong.
    """
    try:
        return LifecycleOptions.model_validate(words)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError([f"options: {where}: {first['msg']}"]) from None


def _rounds(tale: _Tale) -> Path:
    """SFT, merge, DPO, merge, and the next topic on what came out."""
    base = tale.base
    preferences = Path(tale.order.config["dataset"]).with_name(tale.options.preferences)
    for number in range(1, tale.options.rounds + 1):
        for step, dataset, settings in (
            ("sft", tale.topic(number), {}),
            ("dpo", preferences, {"method": "dpo", **tale.options.dpo}),
        ):
            base = str(_train_and_merge(tale, f"{number} {step}", base, dataset, settings))
    return Path(base)


def _train_and_merge(
    tale: _Tale, name: str, base: str, dataset: Path, settings: Mapping[str, Any]
) -> Path:
    """Train an adapter, merge it with the command for that, and have both measured."""
    adapter, peak = tale.train(name, base, dataset, **settings)
    tale.look(adapter, name, "adapter", base, peak_rss_bytes=peak)
    merged = tale.folder / f"{adapter.name}-merged"
    words = ["merge", base, str(adapter), str(merged)]
    peak = tale.command(f"{name} merged", words)
    tale.look(merged, f"{name} merged", "merged", base, adapter=adapter, peak_rss_bytes=peak)
    return merged


def _continued(tale: _Tale) -> Path:
    """Train an adapter on one topic, go on with it on the next, and merge it."""
    adapter, _ = tale.train("1 sft", tale.base, tale.topic(1))
    tale.look(adapter, "1 sft", "adapter", tale.base)
    for number in range(2, tale.options.rounds + 2):
        name = f"{number} sft"
        adapter, peak = tale.train(name, tale.base, tale.topic(number), adapter=str(adapter))
        tale.look(adapter, name, "adapter", tale.base, peak_rss_bytes=peak)
    merged = tale.folder / "merged"
    tale.command("merge", ["merge", tale.base, str(adapter), str(merged)])
    tale.look(merged, "3 merged", "merged", tale.base, adapter=adapter)
    return merged


def _swapped(tale: _Tale) -> Path:
    """Put one adapter in the place of another: what is saved is the second, and it alone."""
    first, _ = tale.train("1 sft", tale.base, tale.topic(1))
    second, _ = tale.train("2 sft", tale.base, tale.topic(2))
    output = tale.folder / "swapped"
    tale.by_hand("swap", first, second, output)
    for folder, name in ((first, "1 sft"), (second, "2 sft")):
        tale.look(folder, name, "adapter", tale.base)
    tale.look(output, "3 swapped", "adapter", tale.base, same_as=second)
    return output


def _unloaded(tale: _Tale) -> Path:
    """Take an adapter off: what is saved is the base, bit for bit."""
    adapter, _ = tale.train("1 sft", tale.base, tale.topic(1))
    tale.look(adapter, "1 sft", "adapter", tale.base)
    output = tale.folder / "unloaded"
    tale.by_hand("unload", adapter, output)
    tale.look(output, "2 unloaded", "base", tale.base, same_as=Path(tale.base))
    return output


def _stacked(tale: _Tale) -> Path:
    """Put an adapter on an adapter."""
    output = tale.folder / "stacked"
    tale.by_hand("stack", tale.texts(), output)
    tale.look(output, "1 stacked", "adapter", tale.base, planted=True)
    return output


def _leftover(tale: _Tale) -> Path:
    """Merge, and leave the settings of the adapter on the model in memory."""
    output = tale.folder / "merged"
    tale.by_hand("leave_settings", tale.texts(), output)
    tale.look(output, "1 merged", "base", tale.base)
    return output


def _growth(tale: _Tale) -> Path:
    """Go on by adding one adapter more at each round."""
    folders = [tale.folder / f"round-{n}" for n in range(1, tale.options.rounds + 1)]
    tale.by_hand("grow", tale.texts(), folders)
    for number, folder in enumerate(folders, start=1):
        tale.look(folder, f"{number} grown", "adapter", tale.base, planted=number > 1)
    return folders[-1]


def _collapse(tale: _Tale) -> Path:
    """Train until nothing is left of what the model knew, and ask it."""
    output = tale.folder / CHECKPOINT
    work = tale.folder / "work" / CHECKPOINT
    tale.by_hand("collapse", tale.texts(), work)

    def ask() -> None:
        from harness.evidence.behaviour.answers import to_json
        from harness.evidence.behaviour.behaviour import measure_behaviour
        from harness.evidence.behaviour.given import BEHAVIOUR_FILE

        base = Path(tale.base)
        facts = measure_behaviour(work, base, base / "quiz.jsonl", base / "voice.yaml")
        write_json_atomic(output.parent / BEHAVIOUR_FILE, to_json(facts))

    run_phase("asking", ask)
    tale.look(work, "1 collapsed", "base", tale.base)
    return work


STORIES: Mapping[Story, Callable[[_Tale], Path]] = {
    "rounds": _rounds,
    "continued": _continued,
    "swapped": _swapped,
    "unloaded": _unloaded,
    "stacked": _stacked,
    "leftover": _leftover,
    "growth": _growth,
    "collapse": _collapse,
}
"""What each story does; returns what it leaves at last."""
