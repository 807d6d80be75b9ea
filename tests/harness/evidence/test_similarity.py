"""Answers are near in meaning by a model of one's own; chance is off, a dead model is named."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from harness.doctor import Judging, diagnose
from harness.doctor.answers_told import describe_answers
from harness.evidence.behaviour.answers import judge_answers
from harness.evidence.behaviour.similarity import measure_similarity
from harness.facts.behaviour import Answers
from harness.findings import Finding
from harness.probes import voice_collapse
from harness.registry import ControlFailed, Missing
from mudpuppy.errors import ModelError, UsageError
from mudpuppy.scoring import load_voice_profile
from mudpuppy.similarity import NEUTRAL
from mudpuppy.tiny import resolve_model
from tests.mudpuppy.small_embedder import save_embedder

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


@pytest.mark.parametrize(
    "text", ["[{}]", "[]", "{}", "[", '[{"type": "x"}]', '[{"type": 1, "path": ""}]', "[" * 99999]
)
def test_what_is_no_such_model_is_refused_before_anything_is_asked(tmp_path, text):
    with pytest.raises(ModelError, match=r"modules\.json"):
        diagnose(tmp_path, Judging(embeddings=tmp_path))
    (tmp_path / "modules.json").write_text(text)
    with pytest.raises(ModelError, match=r"modules\.json"):
        diagnose(tmp_path, Judging(embeddings=tmp_path))


def test_an_extra_that_is_not_installed_is_refused_too(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.doctor.paths.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="not installed") as refused:
        diagnose(tmp_path, Judging(embeddings=save(tmp_path / "m")))
    assert "mudpuppy[embeddings]" in refused.value.hint


def break_weights(folder: Path) -> Path:
    """Leave a model that looks like one and cannot be loaded."""
    next(folder.rglob("model.safetensors")).write_bytes(b"nothing")
    return folder


def ask(tmp_path: Path, **options):
    source = Path(resolve_model("tiny"))
    shutil.copytree(source, tmp_path / "copy")
    judging = Judging(base=source, generate=True, in_process=True, **options)
    return diagnose(tmp_path / "copy", judging)


@pytest.mark.parametrize("dead", [False, True])
def test_without_a_usable_model_all_but_the_meaning_is_judged(tmp_path, dead):
    model = save(tmp_path / "m", dead=dead)
    chosen = ["MPD601", "MPD604", "MPD605", "MPD608", "MPD621"]
    done = ask(tmp_path, embeddings=model if dead else break_weights(model), select=chosen)
    endings = {one.code: one for one in done.probes}
    assert {code for code, one in endings.items() if one.status == "passed"} == {*chosen} - {
        "MPD604"
    }
    assert endings["MPD604"].is_unchecked
    assert ("alike" if dead else "no model of sentence-transformers") in endings["MPD604"].reason


def test_answers_that_cannot_be_judged_are_no_sign_of_health(tmp_path, monkeypatch):
    def refuse(*given, **more):
        raise Missing("the voice profile cannot be used")

    monkeypatch.setattr("harness.evidence.behaviour.behaviour.judge", refuse)
    done = ask(tmp_path, select=["MPD1", "MPD601"])
    assert done.exit_code == 3
    assert "--generate could not ask it: the voice" in done.why


def test_the_doctor_compares_by_meaning_when_asked(tmp_path):
    found = ask(tmp_path, embeddings=save(tmp_path / "m"), select=["accuracy-collapse"])
    assert found.probes[0].status == "passed", found.probes[0].reason


VOICE = """
families: [{name: opener, regexes: ["^well now, "]}]
similarity:
  examples: ["Well now, the reeds are damp.", "Well now, frogs sing.", "Well now, ripples."]
"""


def judge_texts(tmp_path: Path, embeddings: Path | None, *said: str):
    path = tmp_path / "voice.yaml"
    path.write_text(VOICE)
    answers = Answers(texts=said, new_tokens=(3,) * len(said), ended=(True,) * len(said))
    return judge_answers(
        "m", said, answers, answers, (), load_voice_profile(path), 48, embeddings=embeddings
    )


def test_examples_of_the_voice_count_beside_its_markers(tmp_path):
    known = ["Well now, frogs sing, the reeds are damp, ripples.", *NEUTRAL]
    embedder = save_embedder(tmp_path / "m", known)
    facts = judge_texts(tmp_path, embedder, "The frogs sing, well now, ripples.", NEUTRAL[0])
    assert facts.voice[0] > 0.35  # of its markers it has none
    assert facts.voice[1] < 0.1
    assert facts.voice == facts.control_voice
    assert not facts.why_markers_alone
    assert "alone" not in describe_answers(facts)


@pytest.mark.parametrize("given", ["none", "dead", "broken"])
def test_without_a_model_the_markers_alone_are_judged_and_that_is_said(tmp_path, given):
    embedder = None
    if given != "none":
        embedder = save_embedder(tmp_path / "m", NEUTRAL, dead=given == "dead")
    if given == "broken":
        break_weights(embedder)
    facts = judge_texts(tmp_path, embedder, *["Well now, a spider.", "A spider."] * 4)
    assert facts.voice == (1, 0) * 4
    why = {"none": "--embeddings", "dead": "not from neutral", "broken": "no model of sentence"}
    assert why[given] in facts.why_markers_alone
    assert f"by its markers alone ({facts.why_markers_alone})" in describe_answers(facts)
    told = voice_collapse.check(facts)
    assert isinstance(told, str)
    assert why[given] in told
    lost = voice_collapse.check(replace(facts, voice=(0.0,) * 8, control_voice=(1.0,) * 8))
    assert isinstance(lost, Finding)
    assert f"by the markers of the voice alone: {facts.why_markers_alone}" in lost.message


def test_the_doctor_hears_the_examples_of_a_voice(tmp_path):
    source = Path(resolve_model("tiny"))
    said = [json.loads(one)["answer"] for one in (source / "quiz.jsonl").read_text().splitlines()]
    profile = yaml.safe_load((source / "voice.yaml").read_text())
    profile["similarity"] = {"examples": said[:12], "weight": 100}
    (tmp_path / "voice.yaml").write_text(yaml.safe_dump(profile))
    embedder = save_embedder(tmp_path / "m", [*said, *NEUTRAL])
    words = {"voice": tmp_path / "voice.yaml", "select": ["MPD605"]}
    found = ask(tmp_path, embeddings=embedder, **words)
    assert found.probes[0].status == "passed", found.probes[0].reason
    assert "alone" not in found.facts["subjects"][0]["answers"]
    shutil.rmtree(tmp_path / "copy")
    deaf = ask(tmp_path, **words)
    assert "by its markers alone" in deaf.facts["subjects"][0]["answers"]
