"""Answers are near in meaning by a model of one's own; chance is off, a dead model is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from harness.doctor import diagnose
from harness.evidence.behaviour.similarity import measure_similarity
from harness.registry import ControlFailed, Missing
from mudpuppy.errors import ModelError
from mudpuppy.tiny import resolve_model

st = pytest.importorskip("sentence_transformers", reason="pip install 'mudpuppy[embeddings]'")
GOLDS = ["The capital of France is Paris.", "A spider has eight legs.", "Bees make honey."]


def save(folder: Path, *, dead: bool = False) -> Path:
    """Save a model of random word vectors."""
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer

    torch.manual_seed(0)
    words = Tokenizer.from_file(str(Path(resolve_model("tiny")) / "tokenizer.json"))
    static = StaticEmbedding(words, embedding_dim=64)
    if dead:
        torch.nn.init.ones_(static.embedding.weight)
    st.SentenceTransformer(modules=[static], device="cpu").save(str(folder))
    return folder


def test_the_same_is_one_and_the_unrelated_near_nothing(tmp_path):
    model = save(tmp_path / "m")
    assert measure_similarity(model, GOLDS, GOLDS) == pytest.approx((1, 1, 1), abs=1e-5)
    near = measure_similarity(
        model, ["Well, the capital of France is Paris.", "Bees make honey.", ""], GOLDS
    )
    assert near[0] > 0.5
    assert near[1] < 0.4
    assert near[2] == 0


def test_a_model_that_tells_nothing_apart_has_failed_its_control(tmp_path):
    with pytest.raises(ControlFailed, match="alike"):
        measure_similarity(save(tmp_path / "dead", dead=True), GOLDS, GOLDS)


def test_what_is_no_such_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"modules\.json"):
        diagnose(tmp_path, embeddings=tmp_path)
    (tmp_path / "modules.json").write_text("[{}]")
    with pytest.raises(Missing, match="no model of sentence-transformers"):
        measure_similarity(tmp_path, GOLDS, GOLDS)


def test_the_doctor_compares_by_meaning_when_asked(tmp_path):
    source = Path(resolve_model("tiny"))
    shutil.copytree(source, tmp_path / "copy")
    found = diagnose(
        tmp_path / "copy",
        base=source,
        generate=True,
        in_process=True,
        embeddings=save(tmp_path / "m"),
        select=["accuracy-collapse"],
    )
    assert found.probes[0].status == "passed", found.probes[0].reason
