"""The report of a curriculum, as Markdown and JSON, written anew after every topic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mudpuppy.errors import printable
from mudpuppy.files import write_json_atomic, write_text_atomic
from mudpuppy.pipelines.curriculum.plan import Curriculum
from mudpuppy.pipelines.curriculum.story import Scores, Stage, Story
from mudpuppy.scoring import LEVELS, MEASURES

MARKDOWN, JSON = "report.md", "report.json"
REPORT_SCHEMA_VERSION = 1
MOST_BELOW = 4
"""Groups below their threshold that the closing lines name; the report names all."""


def write_report(output: Path, made: Curriculum, story: Story) -> None:
    """Write `report.md` and `report.json` into the folder of a run."""
    value = {
        "schema_version": REPORT_SCHEMA_VERSION,
        "thresholds": {
            measure: {level: made.least(measure, level) for level in LEVELS} for measure in MEASURES
        },
        "missed": [list(one) for one in missed(made, story)],
        "examples": made.told_of_examples or None,
        **asdict(story),
    }
    write_json_atomic(output / JSON, value)
    write_text_atomic(output / MARKDOWN, printable("\n".join(to_lines(made, story))) + "\n")


def missed(made: Curriculum, story: Story) -> Iterator[tuple[str, str, float, float]]:
    """Yield measure, group, score and threshold of whatever ends below its threshold."""
    if story.end is None:
        return
    for group, scores in story.end.items():
        level = group.partition(" ")[0]
        for measure in MEASURES:
            score, least = scores[measure], made.least(measure, level)
            if score is not None and score < least:
                yield measure, group, score, least


def to_lines(made: Curriculum, story: Story) -> list[str]:
    """Return the report as lines of Markdown."""
    return [
        f"# {story.name}",
        "",
        f"Model: `{story.model}`. {story.ending or 'Not at its end yet'}.",
        "",
        *_examples(made.told_of_examples),
        *_whole(made, story),
        *_rolled_back(story),
        *_topics(story),
        *_groups(made, story),
    ]


def _examples(told: str) -> list[str]:
    """Return how the examples of a voice count, as a sentence; nothing where it has none."""
    return [f"{told[0].upper()}{told[1:]}.", ""] if told else []


def _whole(made: Curriculum, story: Story) -> Iterator[str]:
    end = story.end or {}
    yield "| all questions | before | after | at least |"
    yield "| --- | --- | --- | --- |"
    for measure in MEASURES:
        before, after = story.start["final"][measure], end.get("final", {}).get(measure)
        least = made.least(measure, "final")
        yield f"| {measure} | {show(before)} | {show(after)} | {least:g} |"
    yield ""


def _rolled_back(story: Story) -> Iterator[str]:
    found = story.rolled_back
    if not found:
        return
    yield f"## Rolled back: {len(found)} of {len(story.stages)} stages"
    yield ""
    for name, stage in found:
        for fault in stage.faults:
            root = f"**{fault.root}**: " if fault.root else ""
            yield f"- {name}, {stage.kind}: {root}{fault.code} {fault.name}. {fault.message}"
            yield f"  - because {fault.cause or 'unknown'}"
            yield f"  - fix: {fault.remedy or 'see the log of the phase'}"
        yield f"  - examine: `mudpuppy-doctor {stage.folder}`"
    yield ""


def _topics(story: Story) -> Iterator[str]:
    yield "## Stages"
    yield ""
    yield "| topic | stage | accuracy | voice | loss | |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name, stage in story.stages:
        yield (
            f"| {name} | {stage.kind} | {_pair(stage, 'accuracy')} | {_pair(stage, 'voice')} | "
            + (f"{_losses(stage)} | {_word(stage)} |")
        )
    yield ""


def _groups(made: Curriculum, story: Story) -> Iterator[str]:
    if story.end is None:
        return
    for level in LEVELS[:3]:
        yield f"## By {level}"
        yield ""
        yield f"| {level} | questions | accuracy before | after | voice before | after | |"
        yield "| --- | --- | --- | --- | --- | --- | --- |"
        for group, after in story.end.items():
            if group.partition(" ")[0] == level:
                before = story.start.get(group, after)
                yield _group_row(made, level, group.partition(" ")[2], before, after)
        yield ""


def _group_row(
    made: Curriculum, level: str, name: str, before: dict[str, Any], after: dict[str, Any]
) -> str:
    below = [
        f"{measure} below {made.least(measure, level):g}"
        for measure in MEASURES
        if after[measure] is not None and after[measure] < made.least(measure, level)
    ]
    cells = [name, after["questions"]]
    for measure in MEASURES:
        cells += [show(before[measure]), show(after[measure])]
    return f"| {' | '.join(map(str, cells))} | {', '.join(below)} |"


def _pair(stage: Stage, measure: str) -> str:
    """Return a score before and after a stage; what was measured where it was rolled back."""
    after: Scores = stage.measured or stage.after
    return f"{show(stage.before['final'][measure])} -> {show(after['final'][measure])}"


def _losses(stage: Stage) -> str:
    first, last = (stage.training.get(name) for name in ("first_loss", "final_loss"))
    return "" if first is None else f"{show(first)} -> {show(last)}"


def _word(stage: Stage) -> str:
    if stage.kept:
        return "kept"
    return "rolled back: " + ", ".join(dict.fromkeys(f.root or f.name for f in stage.faults))


def show(value: float | None) -> str:
    """Return a score with two digits, or a dash where there is none."""
    return "-" if value is None else f"{value:.2f}"


def describe_end(made: Curriculum, story: Story) -> list[str]:
    """Return the closing lines of a run."""
    lines = []
    if story.end is not None:
        for measure in MEASURES:
            before, after = story.start["final"][measure], story.end["final"][measure]
            lines.append(f"{measure}: {show(before)} -> {show(after)}")
    below = list(missed(made, story))
    lines += [
        f"below {least:g}: {what} of {group}: {score:.2f}"
        for what, group, score, least in below[:MOST_BELOW]
    ]
    if len(below) > MOST_BELOW:
        lines.append(f"and {len(below) - MOST_BELOW} more groups below their threshold")
    found = story.rolled_back
    lines.append(f"{len(story.stages) - len(found)} stages kept, {len(found)} rolled back")
    return lines
