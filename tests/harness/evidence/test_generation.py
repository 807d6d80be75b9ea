"""With --generate real models are loaded and asked; a model that cannot be asked is not healthy."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from harness.doctor import diagnose
from harness.evidence.behaviour import PROMPTS, measure_behaviour
from harness.findings import Status, Verdict
from tests.harness.checkpoints import copy, edit_json, edit_tensors, save_adapter, save_base

WORDS = sorted({word for prompt in PROMPTS for word in prompt.replace("?", " ?").split()})


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A random model that babbles, with a tokenizer whose end token is id 0."""
    folder = save_base(tmp_path_factory.mktemp("generation") / "base")
    vocab = {"<end>": 0} | {word: number for number, word in enumerate(WORDS, start=1)}
    words = Tokenizer(models.WordLevel(vocab, unk_token="<end>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>").save_pretrained(folder)
    for name in ("config.json", "generation_config.json"):
        edit_json(folder / name, eos_token_id=0)
    return folder


@pytest.fixture(scope="module")
def flooded(base, tmp_path_factory):
    """The same model with a head of zeros: token 0, the end, is always the most probable."""
    folder = copy(base, tmp_path_factory.mktemp("generation") / "flooded")
    edit_tensors(folder, lambda t: t | {"lm_head.weight": torch.zeros_like(t["lm_head.weight"])})
    return folder


def test_an_eos_flood_is_found_in_a_real_model(base, flooded):
    found = diagnose(flooded, base=base, generate=True, select=["MPD6"])
    assert [r.name for r in found.findings] == ["eos-flood"]
    assert found.findings[0].evidence[0].found == len(PROMPTS)
    assert diagnose(flooded, generate=True, select=["eos-flood"]).verdict is Verdict.SICK


def test_a_flooded_control_concludes_nothing(flooded, tmp_path):
    folder = copy(flooded, tmp_path / "twin")
    found = diagnose(folder, base=flooded, generate=True, select=["eos-flood"])
    assert found.verdict is Verdict.UNKNOWN
    assert "control failed" in found.probes[0].reason


def test_an_adapter_is_asked_on_its_base(base, tmp_path):
    adapter = save_adapter(tmp_path / "a", base)
    found = diagnose(adapter, generate=True, select=["MPD601", "MPD606"])
    assert found.verdict is Verdict.HEALTHY


def test_a_model_that_cannot_be_asked_is_unknown(base, tmp_path):
    folder = copy(base, tmp_path / "strange")
    edit_json(folder / "config.json", model_type="no-such-family")
    found = diagnose(folder, base=base, generate=True, select=["MPD6"])
    assert found.verdict is Verdict.UNKNOWN
    assert all(r.status is Status.CRASHED for r in found.probes)


def test_code_of_a_checkpoint_is_not_run(base, tmp_path):
    folder = copy(base, tmp_path / "remote")
    marker = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    auto = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    edit_json(folder / "config.json", auto_map=auto, model_type="evil")
    diagnose(folder, base=base, generate=True)
    assert not marker.exists()


def test_answers_are_the_same_twice_and_alone(base, tmp_path):
    quiz = tmp_path / "quiz.jsonl"
    lines = [
        {"id": str(i), "prompt": p, "answer": "x", "topic": "t", "kind": "fact"}
        for i, p in enumerate(PROMPTS)
    ]
    quiz.write_text("\n".join(json.dumps(line) for line in lines))
    first = measure_behaviour(base, None, quiz)
    assert first == measure_behaviour(base, None, quiz)
    assert first.exact == (False,) * len(PROMPTS)
    quiz.write_text(json.dumps(lines[3]))
    assert measure_behaviour(base, None, quiz).answers.texts[0] == first.answers.texts[3]
