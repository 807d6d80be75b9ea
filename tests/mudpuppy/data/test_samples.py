"""Samples: the texts of each kind that may be learnt."""

import pytest

from mudpuppy.data.samples import (
    KINDS,
    KINDS_OF_METHOD,
    ChatSample,
    CompletionSample,
    ImageSample,
    LabelledSample,
    PreferenceSample,
    PromptSample,
    StepsSample,
    TextSample,
    answers_of,
)

ASKED = {"role": "user", "content": "q"}
SAID = {"role": "assistant", "content": "a"}
SEEN = {
    "role": "assistant",
    "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}],
}


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        (ChatSample(messages=(ASKED, SAID, ASKED, SAID), line=1), ["a", "a"]),
        (ChatSample(messages=(ASKED, SAID, ASKED, SAID), learn_from=3, line=1), ["a"]),
        (ImageSample(messages=(ASKED, SEEN), images=(), line=1), ["bc"]),
        (TextSample(text="t", line=1), ["t"]),
        (CompletionSample(prompt="p", completion="c", line=1), ["c"]),
        (PreferenceSample(prompt="p", chosen="c", rejected="r", line=1), ["c", "r"]),
        (PreferenceSample(prompt=(ASKED,), chosen=(SAID,), rejected=(SEEN,), line=1), ["a", "bc"]),
        (LabelledSample(prompt="p", completion=(SAID,), label=True, line=1), ["a"]),
        (StepsSample(prompt="p", steps=("x", "y"), labels=(True, False), line=1), ["x", "y"]),
        (PromptSample(prompt="p", line=1), []),
    ],
)
def test_the_texts_that_may_be_learnt(sample, expected):
    assert expected == answers_of(sample)


def test_every_kind_has_a_method():
    assert set(KINDS) == {kind for kinds in KINDS_OF_METHOD.values() for kind in kinds}
