"""Read a curriculum: every file of every topic, checked before anything is trained. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mudpuppy.config import TrainingConfig
from mudpuppy.config_check import load_config
from mudpuppy.data.read import read_dataset
from mudpuppy.errors import ConfigError, UsageError
from mudpuppy.pipelines.curriculum.replay import read_lines
from mudpuppy.pipelines.curriculum.settings import (
    DEFAULT_LEAST,
    DPO_METHODS,
    SFT_METHODS,
    CurriculumForm,
    Settings,
    TopicForm,
    check_form,
)
from mudpuppy.preflight import check_model
from mudpuppy.scoring import (
    LEVELS,
    MEASURES,
    Question,
    VoiceProfile,
    load_quiz,
    load_voice_profile,
)
from mudpuppy.yamlfile import Document, read_document

DEMO = "demo"
"""The name that stands for the curriculum of this package."""
DEMO_FILE = Path(__file__).with_name("demo") / "curriculum.yaml"
SFT_RANK = 8
DPO_RANK = 1
"""Ranks where nobody says otherwise: a voice needs less room than facts do."""


@dataclass(frozen=True, kw_only=True)
class Topic:
    """One topic, with its files read."""

    number: int
    """From 1, over the whole curriculum."""
    name: str
    """Unit, chapter and topic, as reports call it."""
    unit: str
    chapter: str
    sft: Path
    """What it teaches."""
    preferences: Path | None
    """Pairs, where it brings some."""
    questions: tuple[Question, ...]
    """Its quiz; ids, topics, chapters and units are those of the curriculum."""


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """A curriculum that can be run."""

    source: Path
    """The file."""
    form: CurriculumForm
    """What it says."""
    topics: tuple[Topic, ...]
    """In order."""
    profile: VoiceProfile | None
    """The voice."""
    voice: Path | None
    """Its file."""
    embeddings: Path | None
    """Folder of the model that measures nearness to the profile's examples."""
    retain: tuple[Question, ...]
    """What must not be lost."""
    identity: str
    """Hash of everything that the result depends on but the model and the machine."""

    @property
    def questions(self) -> tuple[Question, ...]:
        """Every question of every topic."""
        return tuple(question for topic in self.topics for question in topic.questions)

    @property
    def told_of_examples(self) -> str:
        """Whether the examples of the profile count; empty where it has none."""
        if self.profile is None or self.profile.similarity is None:
            return ""
        count = len(self.profile.similarity.texts)
        if self.embeddings is None:
            return (
                f"the voice is scored by its markers alone: its {count} examples do not count, as "
                "no model measures them (--embeddings FOLDER)"
            )
        return f"nearness to {count} examples counts in the voice, by {self.embeddings.name}"

    def least(self, measure: str, level: str) -> float:
        """Return a threshold: the file's, the profile's, or the usual one."""
        own = self.form.thresholds.get(measure, {}).get(level)
        given = self.profile.thresholds if self.profile is not None else {}
        return given.get(f"{measure} {level}", DEFAULT_LEAST) if own is None else own

    def settings(self, stage: str) -> Settings:
        """Return the settings of a stage, `sft` or `dpo`, without those that depend on its turn."""
        method, rank = (SFT_METHODS[0], SFT_RANK) if stage == "sft" else (DPO_METHODS[0], DPO_RANK)
        chosen = self.form.sft if stage == "sft" else self.form.dpo
        own = {"method": method, "lora_r": rank, "eval_fraction": 0.0}
        return {**own, **self.form.defaults, **chosen}


def find_curriculum(name: str) -> Path:
    """Return the file that a person named; `demo` is the one of this package."""
    return DEMO_FILE if name == DEMO and not Path(name).exists() else Path(name)


def read_curriculum(path: Path, embeddings: Path | None = None) -> Curriculum:
    """Read a curriculum and every file that it names.

    Args:
        path: the file.
        embeddings: embedding model, in place of the one that the file names.

    Raises:
        ConfigError: everything that is wrong with it and its files, all at once.
    """
    try:
        document = read_document(path.read_text(encoding="utf-8"), str(path))
    except (OSError, ValueError) as error:
        hint = f"`{DEMO}` is a curriculum that is always there"
        raise ConfigError([f"cannot be read: {error}"], source=str(path), hint=hint) from None
    form = check_form(document)
    if embeddings is not None:
        form = form.model_copy(update={"embeddings": embeddings.resolve()})
    reader = _Reader(document, path.parent, form)
    made = reader.read(path)
    if reader.problems:
        raise ConfigError(reader.problems, hint="nothing was trained and nothing was written")
    return made


class _Reader:
    """Reads what a form names, and collects every problem on the way."""

    def __init__(self, document: Document, home: Path, form: CurriculumForm) -> None:
        self.document, self.home, self.form = document, home, form
        self.problems: list[str] = []
        self.files: list[Path] = []

    def read(self, path: Path) -> Curriculum:
        form = self.form
        self._try(lambda: check_model(self._model()))
        voice = self._place(form.voice)
        retain = self._place(form.retain)
        profile = None if voice is None else self._try(lambda: load_voice_profile(voice))
        embeddings = self._embeddings(profile)
        kept = () if retain is None else self._try(lambda: load_quiz(retain)) or ()
        topics = tuple(self._topics())
        made = Curriculum(
            source=path,
            form=form.model_copy(update={"model": self._model()}),
            topics=topics,
            profile=profile,
            voice=voice,
            embeddings=embeddings,
            retain=kept,
            identity=self._identify(),
        )
        for stage in ("sft", "dpo"):
            self._check_stage(made, stage)
        self._check_continued(made)
        return made

    def _embeddings(self, profile: VoiceProfile | None) -> Path | None:
        """Return the folder of the embedding model; what is in it is part of the identity."""
        if self.form.embeddings is None:
            return None
        folder = (self.home / self.form.embeddings.expanduser()).resolve()
        if not (folder / "modules.json").is_file():
            self.problems.append(
                f"embeddings: {folder} is no model of sentence-transformers: no modules.json"
            )
        elif self.form.voice is None or (profile is not None and profile.similarity is None):
            self.problems.append("embeddings: no voice profile with `similarity` would be measured")
        else:
            self.files += sorted(folder.rglob("*"))
        return folder

    def _model(self) -> str:
        """Return the model; a folder that lies beside the file is found there."""
        beside = self.home / self.form.model
        return str(beside) if self.form.model and beside.is_dir() else self.form.model

    def _topics(self) -> Iterator[Topic]:
        seen: dict[str, int] = {}
        number = 0
        for u, unit in enumerate(self.form.units):
            for c, chapter in enumerate(unit.chapters):
                for t, form in enumerate(chapter.topics):
                    number += 1
                    name = f"{unit.name} / {chapter.name} / {form.name}"
                    where = self.document.where(("units", u, "chapters", c, "topics", t))
                    if name in seen:
                        self.problems.append(f"{where}: the topic '{name}' stands twice")
                    seen[name] = number
                    yield self._topic(number, name, (unit.name, chapter.name), form)

    def _topic(self, number: int, name: str, of: tuple[str, str], form: TopicForm) -> Topic:
        sft, quiz, pairs = (self._place(one) for one in (form.sft, form.quiz, form.preferences))
        assert sft is not None
        assert quiz is not None
        self._try(lambda: read_dataset(sft, self.form.sft.get("method", SFT_METHODS[0])))
        if self.form.replay:
            self._try(lambda: read_lines(sft))
        if pairs is not None:
            self._try(lambda: read_dataset(pairs, self.form.dpo.get("method", DPO_METHODS[0])))
            if self.form.replay:
                self._try(lambda: read_lines(pairs))
        asked = self._try(lambda: load_quiz(quiz)) or ()
        unit, chapter = of
        return Topic(
            number=number,
            name=name,
            unit=unit,
            chapter=f"{unit} / {chapter}",
            sft=sft,
            preferences=pairs,
            questions=tuple(
                replace(
                    one,
                    id=f"{number:02d}-{one.id}",
                    topic=name,
                    chapter=f"{unit} / {chapter}",
                    unit=unit,
                )
                for one in asked
            ),
        )

    def _check_stage(self, made: Curriculum, stage: str) -> None:
        """Check the settings of a stage as its runs will be checked."""
        topic = made.topics[0]
        values = {"model": made.form.model, "dataset": topic.sft, "output": Path("out")}
        self._try(lambda: load_config({**made.settings(stage), **values}), before=f"{stage}: ")

    def _check_continued(self, made: Curriculum) -> None:
        """Refuse what the engine would only refuse after SFT: other weights under the adapter."""
        is_continued = made.profile is not None and self.form.dpo_adapter == "continued"
        if is_continued and made.settings("sft")["method"] == "qlora":
            self.problems.append(
                "dpo_adapter: continued: SFT by qlora trains the adapter on weights in 4 bits, and "
                "DPO holds them whole: use dpo_adapter: fresh, or sft: {method: lora}"
            )

    def _place(self, path: Path | None) -> Path | None:
        if path is None:
            return None
        found = (self.home / path.expanduser()).resolve()
        self.files.append(found)
        return found

    def _try(self, work: Any, before: str = "") -> Any:
        """Return what `work` does, or None where it finds a mistake of the person's."""
        try:
            return work()
        except ConfigError as error:
            self.problems += [f"{before}{one}" for one in error.problems]
        except UsageError as error:
            self.problems.append(f"{before}{error.message}")
        return None

    def _identify(self) -> str:
        digest = hashlib.sha256(
            self.form.model_dump_json(exclude={"voice", "retain", "embeddings"}).encode()
        )
        for file in self.files:
            digest.update(file.read_bytes() if file.is_file() else b"")
        return digest.hexdigest()[:32]


def describe_plan(made: Curriculum) -> list[str]:
    """Return what a run would do, as lines of text."""
    form = made.form
    lines = [
        f"{form.name}: {len(form.units)} units, {len(made.topics)} topics, "
        f"{len(made.questions)} questions, on {form.model}",
        f"voice: {made.profile.name if made.profile else 'none, so that DPO is never trained'}; "
        f"DPO trains {_ADAPTERS[form.dpo_adapter]}; pairs: {_PAIRS[form.pairs]}",
        *filter(None, (made.told_of_examples,)),
        "at least: " + ", ".join(_thresholds(made)),
    ]
    unit = chapter = ""
    for topic in made.topics:
        if topic.unit != unit:
            unit = topic.unit
            lines.append(f"unit {unit} (merged at its end)")
        if topic.chapter != chapter:
            chapter = topic.chapter
            lines.append(f"  chapter {chapter.partition(' / ')[2]}")
        taught = len(read_dataset(topic.sft).samples)
        pairs = "pairs of its own" if topic.preferences else "pairs are made"
        lines.append(
            f"    {topic.number}. {topic.name.rpartition(' / ')[2]}: {taught} samples, "
            f"{len(topic.questions)} questions, {pairs}"
        )
    return lines + [f"{stage}: {json.dumps(made.settings(stage))}" for stage in ("sft", "dpo")]


_ADAPTERS = {
    "fresh": "a new adapter on the merged model",
    "continued": "the adapter of SFT further",
}
_PAIRS = {"data": "made from the SFT data", "model": "made from the model's answers", "none": "own"}


def _thresholds(made: Curriculum) -> Sequence[str]:
    return [
        f"{measure} {' '.join(f'{level} {made.least(measure, level):g}' for level in LEVELS)}"
        for measure in MEASURES
    ]


def stage_config(made: Curriculum, stage: str, **values: Any) -> TrainingConfig:
    """Return the checked configuration of one training run.

    Args:
        made: the curriculum.
        stage: `sft` or `dpo`.
        values: model, dataset, output and, where one is continued, adapter.

    Raises:
        ConfigError: settings that are wrong.
        UnsupportedCombination: settings that do not go together.
    """
    settings = made.settings(stage)
    if values.get("adapter") is not None:  # its rank and targets are its own
        for name in ("lora_r", "lora_alpha", "lora_target_modules"):
            settings.pop(name, None)
    return load_config({**settings, **values})
