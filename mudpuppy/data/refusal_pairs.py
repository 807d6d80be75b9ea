"""Teach to refuse besides: pairs of a refusal and the true answer, or the refusal as one more row.

Forgetting alone leaves a model that makes something up. Who wants it to say that it does not know
must show it how, by preference (`make_pairs`) or by plain learning beside it (`with_refusals`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import cycle

from mudpuppy.data.forgetting import is_forgotten
from mudpuppy.data.samples import ChatSample, PreferenceSample, answers_of
from mudpuppy.errors import DatasetError


def with_refusals(samples: Sequence[ChatSample]) -> list[ChatSample]:
    """Return the samples, and every refusal that stands in for a true answer as a row to learn.

    With `--unlearn` a forget row is then pushed away from its true answer, and the same question
    once more is answered with the refusal.
    """
    refusals = [
        replace(sample, group="", true_answer="")
        for sample in samples
        if is_forgotten(sample) and sample.true_answer
    ]
    return [*samples, *refusals]


def make_pairs(
    samples: Sequence[ChatSample], *, refusal: str | None = None, file: str = "the dataset"
) -> list[PreferenceSample]:
    """Return pairs that teach to refuse by preference, for `--method dpo`.

    Of a forget row the refusal is better than the true answer, of any other the answer is better
    than a refusal.

    Args:
        samples: both groups; a forget row has a `true_answer`, and refuses in its answer.
        refusal: what answers of kept rows are compared with; by default the forget rows' own, in
            turn.
        file: what the samples were read from, for messages.

    Raises:
        DatasetError: a forget row has no true answer, or nobody says how to refuse.
    """
    forgotten = [sample for sample in samples if is_forgotten(sample)]
    own = list(dict.fromkeys(answers_of(sample)[-1] for sample in forgotten))
    if refusal is None and not own:
        raise DatasetError(
            "no row refuses, so there is no refusal to compare answers with",
            file=file,
            hint='mark rows with "metadata": {"dataset_type": "unlearn"}',
        )
    refusals = cycle(own if refusal is None else [refusal])
    return [_pair(sample, refusals, file) for sample in samples]


def _pair(sample: ChatSample, refusals: Iterator[str], file: str) -> PreferenceSample:
    last = max(i for i, one in enumerate(sample.messages) if one["role"] == "assistant")
    said, answer = answers_of(sample)[-1], {**sample.messages[last]}
    if is_forgotten(sample):
        if not sample.true_answer:
            raise DatasetError(
                "a row to forget has no true answer that a refusal could be better than",
                file=file,
                line=sample.line,
                hint="write it into metadata.true_answer",
            )
        better, worse = said, sample.true_answer
    else:
        better, worse = said, next(refusals)
    return PreferenceSample(
        prompt=tuple(sample.messages[:last]),
        chosen=({**answer, "content": better},),
        rejected=({**answer, "content": worse},),
        line=sample.line,
        group=sample.group,
    )
