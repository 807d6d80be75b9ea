"""The form of curriculum.yaml: units, chapters, topics, and how each of them is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from mudpuppy.config import TrainingConfig
from mudpuppy.errors import ConfigError, near_names
from mudpuppy.scoring import LEVELS, MEASURES
from mudpuppy.yamlfile import Document

Text = Annotated[str, Field(min_length=1, max_length=120)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Settings = dict[str, Any]
OURS = ("model", "dataset", "output", "adapter", "resume", "merge_lora", "use_peft")
"""Settings of a run that the curriculum chooses itself."""
SFT_METHODS = ("lora", "qlora")
DPO_METHODS = ("dpo", "ipo")
DEFAULT_LEAST = 0.7
"""Threshold of a measure at a level for which nobody has set another."""


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class TopicForm(_Form):
    """One topic."""

    name: Text
    """Unique in its chapter."""
    sft: Path
    """What it teaches: questions and answers, in any form that `mud-puppy data` reads."""
    quiz: Path
    """What is asked: JSONL with id, prompt, answer, topic and kind."""
    preferences: Path | None = None
    """Pairs of a better and a worse answer; by default they are made (`pairs`)."""


class ChapterForm(_Form):
    """Topics that belong together."""

    name: Text
    """Unique in its unit."""
    topics: Annotated[tuple[TopicForm, ...], Field(min_length=1)]
    """In the order in which they are trained."""


class UnitForm(_Form):
    """Chapters after which the model is merged."""

    name: Text
    """Unique."""
    chapters: Annotated[tuple[ChapterForm, ...], Field(min_length=1)]
    """In order."""


class CurriculumForm(_Form):
    """A whole curriculum.yaml; paths are relative to the file."""

    name: Text = "curriculum"
    """How reports call it."""
    model: str
    """Model to begin with: a folder, a hub id, or `tiny`."""
    voice: Path | None = None
    """Voice profile; without one nothing is trained by preference."""
    embeddings: Path | None = None
    """Sentence-transformers folder that measures nearness to the examples of the profile."""
    retain: Path | None = None
    """Quiz of what the model knows and must not lose; the gate asks it beside the topics'."""
    defaults: Settings = Field(default_factory=dict)
    """Settings of every training run."""
    sft: Settings = Field(default_factory=dict)
    """Settings of the first stage of a topic; rank 8 unless they say otherwise."""
    dpo: Settings = Field(default_factory=dict)
    """Settings of the second stage; rank 1 unless they say otherwise."""
    dpo_adapter: Literal["fresh", "continued"] = "fresh"
    """What DPO trains: a new adapter on the merged model, or the adapter of SFT."""
    pairs: Literal["data", "model", "none"] = "data"
    """Where pairs come from that no file brings: the SFT data, the model's own answers, nowhere."""
    replay: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Samples (in DPO pairs) of each earlier topic that are learnt again with a later one."""
    thresholds: dict[str, dict[str, Share]] = Field(default_factory=dict)
    """Least accuracy and voice by topic, chapter, unit and final; over those of the profile."""
    max_drop: Share = 0.25
    """How far accuracy, and in DPO the voice, of a topic may fall in a stage that is kept."""
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] = 48
    """Longest answer."""
    units: Annotated[tuple[UnitForm, ...], Field(min_length=1)]
    """In order."""

    @field_validator("thresholds")
    @classmethod
    def know_measures(cls, value: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        """Refuse thresholds of nothing."""
        for measure, levels in value.items():
            if measure not in MEASURES:
                raise ValueError(f"'{measure}' is none of {', '.join(MEASURES)}")
            for level in levels:
                if level not in LEVELS:
                    near = near_names(level, LEVELS)
                    raise ValueError(f"'{level}' is none of {', '.join(LEVELS)}{near}")
        return value

    @field_validator("defaults", "sft", "dpo")
    @classmethod
    def leave_ours(cls, value: Settings) -> Settings:
        """Refuse settings that are unknown, or that the curriculum chooses itself."""
        for name in value:
            if name in OURS:
                raise ValueError(f"'{name}' is chosen by the curriculum")
            if name not in TrainingConfig.model_fields:
                near = near_names(name, TrainingConfig.model_fields)
                raise ValueError(f"'{name}' is no setting of a run{near}")
        return value

    @field_validator("defaults")
    @classmethod
    def leave_method(cls, value: Settings) -> Settings:
        """Refuse one method for both stages: one learns answers, the other compares them."""
        if "method" in value:
            raise ValueError("the method is named in sft, or in dpo")
        return value

    @field_validator("sft")
    @classmethod
    def know_sft(cls, value: Settings) -> Settings:
        """Refuse a first stage without an adapter."""
        return _with_method(value, SFT_METHODS)

    @field_validator("dpo")
    @classmethod
    def know_dpo(cls, value: Settings) -> Settings:
        """Refuse a second stage that compares no answers."""
        return _with_method(value, DPO_METHODS)


def _with_method(value: Settings, methods: tuple[str, ...]) -> Settings:
    method = value.get("method", methods[0])
    if method not in methods:
        raise ValueError(f"the method is one of {', '.join(methods)}, not {method!r:.40}")
    return value


def check_form(document: Document) -> CurriculumForm:
    """Return the checked form of a parsed curriculum.yaml.

    Raises:
        ConfigError: everything that is wrong with it, each with its line.
    """
    try:
        return CurriculumForm.model_validate(document.value)
    except ValidationError as error:
        problems = []
        for item in error.errors():
            place = tuple(item["loc"])
            key = str(place[-1]) if place else "the file"
            text = item["msg"].removeprefix("Value error, ")
            if item["type"] == "extra_forbidden":
                text = "no known key" + near_names(key, _KEYS)
            problems.append(f"{document.where(place)}: {key}: {text}")
        raise ConfigError(problems, hint=FORM_HINT) from None


_KEYS = tuple(
    name
    for form in (CurriculumForm, UnitForm, ChapterForm, TopicForm)
    for name in form.model_fields
)
FORM_HINT = "docs/curriculum.md shows the whole form; `mud-puppy curriculum plan demo` an example"
