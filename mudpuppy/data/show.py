"""The report of `mud-puppy data`, as lines of text."""

from __future__ import annotations

import pprint
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, TextIO

from mudpuppy.config import TrainingConfig
from mudpuppy.data.facts import TokenFacts
from mudpuppy.data.read import KIND_WORDS, DatasetRead
from mudpuppy.data.samples import (
    KINDS_OF_METHOD,
    CompletionSample,
    Sample,
    StepsSample,
    TextSample,
)
from mudpuppy.errors import clip, printable
from mudpuppy.tuning import describe_advice

BAR_CHARS = 40
"""Characters of the longest bar."""
MAX_CHARS = 2000
"""Characters of the sample that are shown; what is more is cut out of its middle."""
MAX_LINES_NAMED = 5
"""Lines that are named where something concerns many."""


@dataclass(frozen=True, kw_only=True)
class Marks:
    """How trained text is told from the rest."""

    start: str = "[["
    stop: str = "]]"
    colour: str = ""
    """Escape sequence before trained text."""
    plain: str = ""
    """Escape sequence after it."""

    @classmethod
    def for_stream(cls, stream: TextIO) -> Marks:
        """Return brackets that the stream can print, and green where it is a terminal."""
        from rich.console import Console

        is_utf = (stream.encoding or "").lower().replace("-", "").startswith("utf")
        brackets = {"start": "⟦", "stop": "⟧"} if is_utf else {}
        console = Console(file=stream)
        if console.is_terminal and not console.no_color:
            return cls(**brackets, colour="\x1b[32m", plain="\x1b[0m")
        return cls(**brackets)


def describe(
    read: DatasetRead,
    shown: Sample,
    repeated: Sequence[int],
    *,
    facts: TokenFacts | None,
    config: TrainingConfig | None,
    tokens: list[tuple[str, bool]] | None,
    marks: Marks,
    has_template: bool = False,
) -> Iterator[str]:
    """Yield the lines of the report.

    Args:
        read: the dataset.
        shown: the sample that is shown.
        repeated: lines of the samples that repeat an earlier one.
        facts: what its rendering measured, where a model was named.
        config: the settings of the rendering.
        tokens: the shown sample as texts, each with whether it is trained; None where nothing is.
        marks: how trained text is marked.
        has_template: whether conversations pass through a chat template.
    """
    methods = [name for name, kinds in KINDS_OF_METHOD.items() if read.kind in kinds]
    yield printable(read.where)
    yield _fact("kind", f"{read.kind}: {KIND_WORDS[read.kind]}")
    yield _fact("format", f"{read.format} ({read.container})")
    yield _fact("samples", f"{len(read.samples):,}")
    yield _fact("methods", ", ".join(methods))
    yield _fact("duplicates", _which(repeated, read.unit, "repeats an earlier one") or "none")
    if "lora" in methods:
        yield _fact("advice", describe_advice(len(read.samples)))
    groups = Counter(getattr(sample, "group", "") for sample in read.samples)
    groups.pop("", None)
    if groups:
        yield _fact("groups", ", ".join(f"{name} {count:,}" for name, count in groups.items()))
    ignored = Counter(name for sample in read.samples for name in sample.ignored)
    if ignored:
        listed = ", ".join(f"{clip(name)} ({n:,})" for name, n in ignored.most_common(5))
        yield _fact("not used", printable(listed))
    yield ""
    if facts is None or config is None:
        yield f"{read.unit} {shown.line}, as it was read (name a --model to see its tokens)"
        yield from _plain_sample(shown)
        return
    yield from _sample(read, shown, tokens, marks, config, has_template)
    yield ""
    yield from _histogram(facts, len(read.samples), config.max_length)
    yield ""
    if read.kind == "prompts":
        yield "nothing of a prompt is trained: its answers are generated and rewarded"
        return
    yield from _shares(facts, read.unit, config.max_length)


def _fact(name: str, text: str) -> str:
    return f"  {name:<11} {text}"


def _which(lines: Sequence[int], unit: str, what: str) -> str:
    """Return how many samples something is true of, and where they stand."""
    if not lines:
        return ""
    named = ", ".join(f"{line}" for line in lines[:MAX_LINES_NAMED])
    more = " ..." if len(lines) > MAX_LINES_NAMED else ""
    many = len(lines) > 1
    verb = {"repeats": "repeat", "is": "are"}
    words = [verb.get(word, word) if many else word for word in what.split(" ")]
    return f"{len(lines):,} sample{'s' * many} {' '.join(words)} ({unit}{'s' * many} {named}{more})"


def _plain_sample(sample: Sample) -> Iterator[str]:
    for field in fields(sample):
        value = getattr(sample, field.name)
        if field.name in ("line", "ignored") or value in ("", 0, ()):
            continue
        lines = _shorten(pprint.pformat(value, width=90, sort_dicts=False)).splitlines()
        yield printable(f"  {field.name:<11} {lines[0]}")
        for line in lines[1:]:
            yield printable(f"  {'':<11} {line}")


def _sample(
    read: DatasetRead,
    shown: Sample,
    tokens: list[tuple[str, bool]] | None,
    marks: Marks,
    config: TrainingConfig,
    has_template: bool,
) -> Iterator[str]:
    """Yield the rendered sample; every line break of its text begins a line here."""
    template = "" if _is_plain(shown) else ", through its chat template" * has_template
    yield (
        f"{read.unit} {shown.line} as {config.method} reads it for {config.model}{template}; "
        f"{marks.start}trained{marks.stop}"
    )
    if tokens is None:
        yield f"  nothing of it is trained within {config.max_length:,} tokens"
        return
    text = ""
    for part, on in tokens:
        clean = printable(_shorten(part))
        if on:
            clean = f"{marks.start}{clean}{marks.stop}"
            clean = "\n".join(f"{marks.colour}{x}{marks.plain}" for x in clean.split("\n"))
        text += clean
    for line in text.split("\n"):
        yield f"  | {line}"
    images: Any = getattr(shown, "images", ())
    for path in images:
        yield printable(f"  image {path if not path.startswith('data:') else 'inside the dataset'}")


def _is_plain(sample: Sample) -> bool:
    """Whether a sample is texts, which no chat template touches."""
    return isinstance(sample, TextSample | CompletionSample | StepsSample) or isinstance(
        getattr(sample, "prompt", ()), str
    )


def _shorten(text: str) -> str:
    if len(text) <= MAX_CHARS:
        return text
    half = MAX_CHARS // 2
    return f"{text[:half]} [... {len(text) - MAX_CHARS:,} characters ...] {text[-half:]}"


def _histogram(facts: TokenFacts, num_samples: int, max_length: int) -> Iterator[str]:
    """Yield one bar a range of lengths."""
    lengths = facts.lengths
    of = "" if facts.samples == num_samples else f" ({facts.samples:,} of {num_samples:,} samples)"
    yield (
        f"tokens a sample{of}: {lengths.smallest:,} to {lengths.largest:,}, median "
        f"{lengths.median:,}, mean {lengths.mean:,}, 95% up to {lengths.p95:,}"
    )
    width = max(len(f"{one.stop - 1:,}") for one in facts.bins)
    count_width = max(len(f"{one.count:,}") for one in facts.bins)
    most = max(one.count for one in facts.bins)
    is_single = facts.bins[0].stop - facts.bins[0].start == 1
    for one in facts.bins:
        bar = "#" * max(round(BAR_CHARS * one.count / most), one.count > 0)
        cut = "  cut" if one.start > max_length and one.count else ""
        span = f"{one.start:>{width},} - {one.stop - 1:>{width},}"
        span = f"{one.start:>{width},}" if is_single else span
        yield f"  {span}  {one.count:>{count_width},} {bar}{cut}".rstrip()


def _shares(facts: TokenFacts, unit: str, max_length: int) -> Iterator[str]:
    """Yield what of it is learnt."""
    left = facts.samples - len(facts.nothing_trained)
    ending = left - len(facts.not_ending_in_eos)
    yield (
        f"trained     {facts.trained_tokens:,} of {facts.tokens:,} tokens "
        f"({_percent(facts.trained_tokens, facts.tokens)})"
    )
    yield (
        f"EOS         {facts.eos_tokens:,} of the trained tokens "
        f"({_percent(facts.eos_tokens, facts.trained_tokens)}); {ending:,} of {left:,} samples end "
        "in it"
    )
    whole = facts.tokens + facts.lost_tokens
    cut = _which(facts.truncated, unit, "is cut") or "no sample is cut"
    lost = f", {facts.lost_tokens:,} tokens lost ({_percent(facts.lost_tokens, whole)})"
    yield f"cut         at {max_length:,} tokens: {cut}{lost if facts.truncated else ''}"
    no_end = _which(facts.not_ending_in_eos, unit, "is without a trained EOS")
    if no_end:
        yield f"no end      {no_end}: from these the model does not learn to stop"
    nothing = _which(facts.nothing_trained, unit, "is without anything to train")
    if nothing:
        yield f"left out    {nothing}"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}%" if whole else "0%"
