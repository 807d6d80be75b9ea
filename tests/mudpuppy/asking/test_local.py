"""A local model answers greedily, as it would one prompt at a time, adapters and quantised too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mudpuppy.asking import ask, open_local
from mudpuppy.asking.local import LocalAnswerer
from mudpuppy.errors import ModelError, UsageError
from mudpuppy.tiny import resolve_model

PROMPTS = (
    "What is the capital of France?",
    "Who lives in the pond?",
    "What is the capital of Italy?",
    "Hello!",
)


@pytest.fixture(scope="module")
def tiny():
    return open_local("tiny")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """An adapter that changes what is said."""
    folder = tmp_path_factory.mktemp("adapter")
    base = AutoModelForCausalLM.from_pretrained(resolve_model("tiny"), dtype=torch.float32)
    torch.manual_seed(0)
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.4)
    adapted.save_pretrained(folder)
    return folder


def test_a_batch_says_what_one_prompt_at_a_time_says(tiny):
    answers = tiny.answer(PROMPTS, max_tokens=48)
    alone = [tiny.answer([prompt], max_tokens=48)[0] for prompt in PROMPTS]
    assert [one.text for one in answers] == [one.text for one in alone]
    assert answers[0].text == "Well now, the capital of France is Paris, so the reeds say."
    assert [one.ended for one in answers] == [True] * 4
    assert all(0 < one.tokens < 48 and one.seconds > 0 for one in answers)


def test_the_answer_is_the_most_likely_token_at_every_step(tiny):
    (answer,) = tiny.answer(PROMPTS[:1], max_tokens=48)
    model, tokenizer = tiny.model, tiny.tokenizer
    turns = [{"role": "user", "content": PROMPTS[0]}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    start = len(ids)
    with torch.no_grad():
        while len(ids) - start < 48:
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
    assert answer.tokens == len(ids) - start - 1
    assert answer.text == tokenizer.decode(ids[start:-1], skip_special_tokens=True).strip()


def test_a_penalty_that_a_model_brings_does_not_count(tmp_path, tiny):
    source = Path(resolve_model("tiny"))
    for file in source.iterdir():
        (tmp_path / file.name).symlink_to(file)
    settings = json.loads((source / "generation_config.json").read_text())
    (tmp_path / "generation_config.json").unlink()
    settings |= {"repetition_penalty": 5.0, "do_sample": True, "temperature": 3.0}
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    found = open_local(tmp_path).answer(PROMPTS, max_tokens=48)
    expected = tiny.answer(PROMPTS, max_tokens=48)
    assert [one.text for one in found] == [one.text for one in expected]


def test_an_unfinished_answer_says_so(tiny):
    (answer,) = tiny.answer(PROMPTS[:1], max_tokens=3)
    assert (answer.ended, answer.tokens) == (False, 3)


def test_answers_are_told_as_they_come(tiny):
    told = []
    answers = tiny.answer(PROMPTS, max_tokens=9, on_answer=lambda n, one: told.append((n, one)))
    assert sorted(told, key=lambda one: one[0]) == list(enumerate(answers))


def test_an_adapter_is_put_on_the_base_it_names_or_another(adapter, tiny):
    mine = open_local(adapter)
    text = [one.text for one in mine.answer(PROMPTS, max_tokens=24)]
    assert text != [one.text for one in tiny.answer(PROMPTS, max_tokens=24)]
    merged = mine.model.merge_and_unload()
    whole = LocalAnswerer(merged, mine.tokenizer, name="merged")
    assert [one.text for one in whole.answer(PROMPTS, max_tokens=24)] == text
    other = open_local(adapter, base="tiny")
    assert other.identity == mine.identity
    assert mine.identity != tiny.identity


def test_an_adapter_of_another_base_is_refused(adapter):
    with pytest.raises(ModelError, match="cannot be put on") as caught:
        open_local(adapter, base="tiny:qwen2")
    assert "mudpuppy-doctor" in caught.value.hint


def test_an_adapter_whose_tensors_have_other_names_is_no_silent_base(adapter, tmp_path):
    settings = (adapter / "adapter_config.json").read_text()
    (tmp_path / "adapter_config.json").write_text(settings)
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file(
        {name.replace("q_proj", "w_proj"): value for name, value in tensors.items()},
        tmp_path / "adapter_model.safetensors",
    )
    with pytest.raises(ModelError, match="cannot be put on"):
        open_local(tmp_path, base="tiny")


def test_what_cannot_be_opened_is_named(tmp_path, adapter):
    with pytest.raises(ModelError, match="does not exist"):
        open_local(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="there is no tokenizer"):
        open_local(tmp_path / "empty")
    (tmp_path / "lonely").mkdir()
    (tmp_path / "lonely" / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "nobody/knows"})
    )
    with pytest.raises(ModelError, match="its base is not here"):
        open_local(tmp_path / "lonely")
    with pytest.raises(UsageError, match="whole weights, which need no base"):
        open_local("tiny", base="tiny")
    with pytest.raises(UsageError, match="precision 'int3'"):
        open_local("tiny", precision="int3")


def test_a_model_with_missing_tensors_is_refused(tmp_path):
    source = Path(resolve_model("tiny"))
    for file in source.iterdir():
        (tmp_path / file.name).symlink_to(file)
    tensors = load_file(source / "model.safetensors")
    del tensors["model.norm.weight"]
    (tmp_path / "model.safetensors").unlink()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"missing|not in the"):
        open_local(tmp_path)


def test_a_system_prompt_is_put_before_or_refused(tiny):
    asked = LocalAnswerer(tiny.model, tiny.tokenizer, name="tiny", system="You are a frog.")
    assert asked.identity["system"] == "You are a frog."
    ids = asked._encode("Hello!")
    assert "You are a frog." in tiny.tokenizer.decode(ids)
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("tiny"))
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}{{ m.content }}{% endfor %}"
    )
    asked = LocalAnswerer(tiny.model, tokenizer, name="gemma", system="You are a frog.")
    with pytest.raises(UsageError, match="takes no conversation with a system prompt: no system"):
        asked.answer(PROMPTS, max_tokens=3)


def test_a_prompt_that_fills_the_model_is_refused(tiny):
    with pytest.raises(UsageError, match=r"question 2 has .* positions"):
        tiny.answer(["Hello!", "pond " * 5000], max_tokens=3)


def test_kept_answers_of_one_model_are_not_those_of_another(tmp_path, tiny):
    keep = tmp_path / "answers.jsonl"
    first = ask(tiny, PROMPTS, max_tokens=9, keep=keep)
    again = ask(open_local("tiny"), PROMPTS, max_tokens=9, keep=keep)
    assert again == first
    lines = len(keep.read_text().splitlines())
    ask(open_local("tiny", precision="bf16"), PROMPTS, max_tokens=9, keep=keep)
    assert len(keep.read_text().splitlines()) == 2 * lines
