"""How good the doctor is, as the self-test found: for the console, as Markdown and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator

from harness.selftest.modes import UNPLANTED
from harness.selftest.results import Accuracy, Examination, ModeFigures, ProbeFigures
from reports.text import clean, code_markdown, escape_markdown, write_columns

INTRODUCTION = """\
The doctor is held against checkpoints of which it is known what they are: healthy ones, made with
the real libraries and saved in every way they offer, about which it has to be silent; and damaged
ones, copies of healthy ones in which one thing was broken, of which it has to name that thing, and
nothing else. `mudpuppy-doctor selftest` builds them, asks about each, and adds up; `--write` writes
this page. Every checkpoint is a tiny one, and every fault is planted: the figures say that a probe
works and keeps quiet, not how often the fault is met. There are damages and healthy checkpoints
that are not among these."""


def summarise(accuracy: Accuracy) -> str:
    """Return the figures in one sentence."""
    parts = []
    if accuracy.damages:
        parts.append(f"{accuracy.num_found} of {len(accuracy.damages)} damages were found")
    if accuracy.healthy:
        sound = sum(one.is_right for one in accuracy.healthy)
        parts.append(f"{sound} of {len(accuracy.healthy)} healthy checkpoints are called healthy")
    parts.append(f"recall {_percent(accuracy.recall)}, precision {_percent(accuracy.precision)}")
    number = accuracy.num_alarms
    parts.append(f"{number} false alarm{'' if number == 1 else 's'}")
    failed = sum(bool(one.crashed) for one in accuracy.examinations)
    parts += [f"{failed} could not be examined"] if failed else []
    return ", ".join(parts)


def describe_wrong(one: Examination) -> str:
    """Return what was wrong about one checkpoint, as a line."""
    what = f"{one.name} ({one.mode or 'no mode'} in {one.patient})" if one.is_damage else one.name
    said = []
    if one.crashed:
        said.append(f"could not be examined: {'; '.join(one.crashed)}")
    elif one.missed:
        said.append(f"missed by {', '.join(one.missed)}")
    if one.alarms:
        said.append(f"false alarm of {', '.join(one.alarms)}")
    return clean(f"{what}: {', '.join(said)}{f' ({one.verdict})' if one.verdict else ''}")


def write_console(accuracy: Accuracy, *, all_tables: bool = True) -> str:
    """Return figures, tables and what went wrong as text."""
    lines = [f"{summarise(accuracy)}; {accuracy.seconds:.0f} s"]
    if accuracy.wrong:
        lines += ["", "what went wrong:", *(f"  {describe_wrong(one)}" for one in accuracy.wrong)]
    if all_tables:
        lines += ["", _mode_columns(accuracy), "", _probe_columns(accuracy)]
    if accuracy.whole and accuracy.uncovered:
        lines += ["", "modes without a damage:"]
        lines += [
            f"  {mode.number} {mode.name}: {mode.reason or 'NO REASON IS GIVEN'}"
            for mode in accuracy.uncovered
        ]
    return "\n".join(lines) + "\n"


def _mode_columns(accuracy: Accuracy) -> str:
    rows = [
        (one.mode.number, one.mode.name, one.mode.depth, _share(one), " ".join(one.probes))
        for one in accuracy.by_mode()
        if one.damages
    ]
    headers = ("mode", "what goes wrong", "shows in", "found", "by")
    return write_columns(rows, headers, right=(3,)) if rows else "no damage was examined"


def _probe_columns(accuracy: Accuracy) -> str:
    rows = [
        (one.code, one.name, _found(one), str(one.quiet), str(one.alarms))
        for one in accuracy.by_probe()
        if one.damages or one.quiet or one.alarms
    ]
    headers = ("code", "probe", "found", "quiet", "alarms")
    return write_columns(rows, headers, right=(2, 3, 4)) if rows else "no probe examined anything"


def write_markdown(accuracy: Accuracy) -> str:
    """Return the page of the documentation; it holds no times, so that it only changes with it."""
    return "\n".join(_page(accuracy)) + "\n"


def _page(accuracy: Accuracy) -> Iterator[str]:
    yield from ("# How good the doctor is", "", INTRODUCTION, "")
    yield f"**{escape_markdown(summarise(accuracy))}.**"
    if accuracy.wrong:
        yield from ("", "## What went wrong", "")
        yield from (f"- {escape_markdown(describe_wrong(one))}" for one in accuracy.wrong)
    yield from ("", "## Probes", "")
    yield (
        "*found*: damages that the probe has to name, and names. *quiet*: healthy checkpoints that "
        "it examined and said nothing about. *alarms*: checkpoints about which it spoke and should "
        "not have."
    )
    yield from ("", "| code | probe | found | quiet | alarms |", "| --- | --- | --: | --: | --: |")
    for one in accuracy.by_probe():
        yield f"| {one.code} | {one.name} | {_found(one)} | {one.quiet} | {one.alarms} |"
    yield from ("", "## Failure modes", "")
    yield from (
        "| mode | what goes wrong | severity | shows in | found | by |",
        "| --- | --- | --- | --- | --: | --- |",
    )
    for row in accuracy.by_mode():
        by = ", ".join(row.probes) or "-"
        mode = row.mode
        yield (
            f"| {mode.number} | {escape_markdown(mode.name)} | {mode.severity} | {mode.depth} | "
            f"{_share(row)} | {by} |"
        )
    if accuracy.uncovered:
        yield from ("", "## Modes without a damage", "")
        for mode in accuracy.uncovered:
            why = escape_markdown(mode.reason or "no reason is given")
            yield f"- **{mode.number}** {escape_markdown(mode.name)}: {why}"
    yield from ("", "## Not measured here", "")
    yield (
        "These judge a run of the pressure matrix that was watched from inside, a model object in "
        "memory, a server or the machine; `mudpuppy-pressure mutants` and tests plant bugs for "
        "them."
    )
    yield from ("", ", ".join(f"`{code_markdown(code)} {name}`" for code, name in accuracy.others))
    yield from ("", "For these no checkpoint can be broken; tests hold them against figures:", "")
    yield from (f"- `{name}`: it takes {escape_markdown(what)}" for name, what in UNPLANTED.items())


def write_json(accuracy: Accuracy) -> str:
    """Return everything for machines."""
    return json.dumps(accuracy.to_json(), indent=1, allow_nan=False) + "\n"


def _percent(share: float | None) -> str:
    """Return a share so that 100 % is said of nothing less."""
    if share is None:
        return "unknown"
    return "100 %" if share == 1 else f"{min(share * 100, 99.9):.1f} %"


def _share(one: ModeFigures) -> str:
    return f"{one.found}/{one.damages}" if one.damages else "-"


def _found(one: ProbeFigures) -> str:
    return f"{one.found}/{one.damages}" if one.damages else "-"
