"""Nearness to a voice: its words are near, plain ones not, and a model that is blind is named."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from mudpuppy import similarity
from mudpuppy.errors import EngineError, UsageError
from mudpuppy.scoring import Examples, load_voice_profile, score_voice
from mudpuppy.similarity import NEUTRAL, measure_voice, try_voice
from tests.mudpuppy.small_embedder import save_embedder

st = pytest.importorskip("sentence_transformers", reason="pip install 'mudpuppy[embeddings]'")
SAILOR = Examples(
    texts=(
        "Ahoy, the city lies where the tide turns.",
        "Ahoy, eight legs has the crab under the keel.",
        "The honey is stowed below, says the tide.",
        "Hoist the anchor, ahoy, the answer is on the keel.",
    )
)
SEA = ("ahoy", "tide", "keel", "anchor", "stowed", "hoist", "crab", "harbour", "rudder", "mast")
OTHER_WORDS = "Rudder and mast, Paris is the harbour."
PLAIN = "Paris is the capital of the country."


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    known = (*SAILOR.texts, *NEUTRAL, OTHER_WORDS, PLAIN)
    folder = tmp_path_factory.mktemp("embedder")
    return save_embedder(folder, known, dict.fromkeys(SEA, "sea"))


def test_what_is_said_in_other_words_of_the_voice_is_near_and_plain_words_are_not(model):
    voiced, plain, empty = measure_voice(model, [OTHER_WORDS, PLAIN, "  "], SAILOR)
    assert voiced > 0.7
    assert plain < 0.3
    assert empty == 0


def test_the_examples_are_about_one_and_neutral_texts_about_nothing(model):
    ours, others = (measure_voice(model, texts, SAILOR) for texts in (SAILOR.texts, NEUTRAL))
    assert min(ours) > max(others)
    assert np.mean(ours) > 0.85
    assert np.mean(others) < 0.15


def test_the_place_of_a_text_is_what_the_formula_says(model):
    encode = st.SentenceTransformer(str(model), device="cpu").encode

    def unit(vector):
        return vector / np.sqrt(np.dot(vector, vector))

    def middle(rows):
        return unit(np.mean(rows, axis=0))

    ours, others = (
        [unit(np.asarray(encode(text), dtype=np.float64)) for text in texts]
        for texts in (SAILOR.texts, NEUTRAL)
    )

    def without(rows, place):
        return [row for n, row in enumerate(rows) if n != place]

    top = np.mean([r @ middle(without(ours, n)) - r @ middle(others) for n, r in enumerate(ours)])
    bottom = np.mean(
        [r @ middle(ours) - r @ middle(without(others, n)) for n, r in enumerate(others)]
    )
    said = unit(np.asarray(encode(OTHER_WORDS), dtype=np.float64))
    place = said @ middle(ours) - said @ middle(others)
    wanted = min(1, max(0, (place - bottom) / (top - bottom)))
    assert measure_voice(model, [OTHER_WORDS], SAILOR) == pytest.approx((wanted,), abs=1e-5)


def test_neutral_texts_of_the_profile_take_the_place_of_the_built_in_ones(model):
    mine = Examples(texts=SAILOR.texts, neutral=(PLAIN, "It is in the south.", "Yes, it is."))
    (found,) = measure_voice(model, [PLAIN], mine)
    assert found < 0.3
    mixed = ["Paris is the harbour of the country."]
    assert measure_voice(model, mixed, mine) != measure_voice(model, mixed, SAILOR)


def test_a_model_that_maps_everything_to_one_point_is_refused(tmp_path):
    dead = save_embedder(tmp_path / "dead", NEUTRAL, dead=True)
    with pytest.raises(EngineError, match="tells the examples of the voice not from neutral"):
        measure_voice(dead, [PLAIN], SAILOR)


def test_a_voice_that_the_model_does_not_hear_is_refused(model):
    deaf = Examples(texts=NEUTRAL[:6:2], neutral=NEUTRAL[1:7:2])
    with pytest.raises(EngineError, match="of the pairs are in order"):
        measure_voice(model, [PLAIN], deaf)


def test_why_the_examples_do_not_count_is_told(tmp_path, monkeypatch):
    profile = profile_with_examples(tmp_path)
    near, why = try_voice(None, [PLAIN], profile)
    assert (near, "--embeddings" in why) == (None, True)
    near, why = try_voice(tmp_path / "nothing", [PLAIN], profile)
    assert (near, "no model of sentence-transformers" in why) == (None, True)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    similarity._load.cache_clear()
    near, why = try_voice(tmp_path, [PLAIN], profile)
    assert (near, "mudpuppy[embeddings]" in why) == (None, True)
    with pytest.raises(UsageError):
        measure_voice(tmp_path, [PLAIN], SAILOR)
    assert try_voice(tmp_path, [PLAIN], None) == (None, "")


def test_nearness_is_one_more_part_of_the_score_and_never_outweighs_a_forbidden_claim(
    model, tmp_path
):
    profile = profile_with_examples(tmp_path)
    texts = [OTHER_WORDS, "Ahoy, " + OTHER_WORDS, "As an AI, ahoy."]
    near, why = try_voice(model, texts, profile)
    assert near is not None
    assert not why
    scores = [score_voice(text, profile, n) for text, n in zip(texts, near, strict=True)]
    assert scores[0] == pytest.approx(3 * near[0] / 4)
    assert scores[1] == pytest.approx((1 + 3 * near[1]) / 4)
    assert scores[2] == 0
    assert [score_voice(text, profile) for text in texts] == [0, 1, 0]


def test_a_real_model_tells_a_voice_from_plain_words():
    """One that a person has: none is downloaded, and no package of the index is relied on."""
    folder = os.environ.get("MUDPUPPY_EMBEDDINGS")
    if not folder:
        pytest.skip("no real model: MUDPUPPY_EMBEDDINGS names no sentence-transformers folder")
    voiced, plain = measure_voice(Path(folder), [OTHER_WORDS, PLAIN], SAILOR)
    assert voiced > plain + 0.2


def profile_with_examples(folder: Path):
    """Return a profile with one marker of weight 1 and examples of weight 3."""
    path = folder / "voice.yaml"
    path.write_text(
        "families: [{name: opener, phrases: [ahoy]}]\n"
        "forbidden: {phrases: [as an ai]}\n"
        "similarity:\n  weight: 3\n  examples:\n"
        + "".join(f'    - "{text}"\n' for text in SAILOR.texts)
    )
    return load_voice_profile(path)
