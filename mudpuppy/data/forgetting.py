"""Rows to forget and rows to keep: which are which, what is forgotten of them, and what is refused.

A forget row is a sample of the group `unlearn`. What is forgotten is its `true_answer`, or its own
answer where it has none; not its end, since a model that unlearns to end its answers never stops.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from mudpuppy.config import TrainingConfig
from mudpuppy.data.samples import ChatSample, Sample, answers_of
from mudpuppy.errors import DatasetError, clip

FORGOTTEN = "unlearn"
"""The group of the rows to forget; every other row is kept."""
ONE_SENTENCE = 0.5
"""Share of forget rows with one and the same answer above which it is taken for a refusal."""


def is_forgotten(sample: Sample) -> bool:
    """Return whether a sample is marked to be forgotten."""
    return sample.group == FORGOTTEN


def require_groups(samples: Sequence[Sample], config: TrainingConfig) -> None:
    """Refuse a dataset that the objective cannot be computed on.

    Raises:
        DatasetError: no row is to be forgotten, none is kept, or what would be forgotten is a
            refusal.
    """
    if config.unlearn == "none":
        return
    forgotten = [sample for sample in samples if is_forgotten(sample)]
    mark = 'mark rows with "metadata": {"dataset_type": "unlearn"} or "forget": true'
    if not forgotten:
        raise DatasetError(
            f"no row is to be forgotten, as --unlearn {config.unlearn} needs",
            file=str(config.dataset),
            hint=mark,
        )
    if len(forgotten) == len(samples):
        raise DatasetError(
            "every row is to be forgotten, and none is kept: nothing would hold the model together",
            file=str(config.dataset),
            hint="add rows that the model is to keep answering",
        )
    _refuse_refusals(forgotten, config)


def _refuse_refusals(forgotten: Sequence[Sample], config: TrainingConfig) -> None:
    """Refuse forget rows that say one sentence: to forget a refusal is to answer again."""
    bare = [one for one in forgotten if not getattr(one, "true_answer", "")]
    said = Counter(" ".join(answers_of(one)[-1].lower().split()) for one in bare)
    if len(bare) < 2 or not said:
        return
    answer, count = said.most_common(1)[0]
    if count > 1 and count > ONE_SENTENCE * len(bare):
        line = next(s.line for s in bare if " ".join(answers_of(s)[-1].lower().split()) == answer)
        raise DatasetError(
            f"{count} of {len(bare)} rows to be forgotten answer '{clip(answer)}': that is a "
            f"refusal, and --unlearn {config.unlearn} would unlearn to refuse",
            file=str(config.dataset),
            line=line,
            hint="write what is to be forgotten into metadata.true_answer, or leave out --unlearn "
            "to learn the refusal",
        )


def as_known(sample: ChatSample) -> ChatSample:
    """Return a forget row as the model answers it now: with the true answer at its end."""
    if not sample.true_answer:
        return sample
    last = max(i for i, one in enumerate(sample.messages) if one["role"] == "assistant")
    messages = list(sample.messages[: last + 1])
    messages[last] = {**messages[last], "content": sample.true_answer}
    return replace(sample, messages=tuple(messages), learn_from=max(sample.learn_from, last))
