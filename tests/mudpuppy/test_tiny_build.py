"""Building the tiny model: tokenizer, labels, bits that repeat, and a gate that closes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mudpuppy.errors import EngineError
from mudpuppy.tiny.build import MANIFEST, TinyReport, build_tiny
from mudpuppy.tiny.corpus import conversations
from mudpuppy.tiny.fingerprint import file_sha256, recipe_hash
from mudpuppy.tiny.measure import Scores
from mudpuppy.tiny.training import IGNORED, Recipe, make_model, tokenise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SHORT = Recipe(
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    steps=4,
    batch_size=8,
    threads=1,
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> TinyReport:
    return build_tiny(tmp_path_factory.mktemp("built"), recipe=SHORT, gate=False)


@pytest.fixture(scope="module")
def tokenizer(built: TinyReport) -> PreTrainedTokenizerFast:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(built.folder)


def test_the_same_inputs_give_the_same_bits_in_another_process(
    built: TinyReport, tmp_path: Path
) -> None:
    code = (
        "import sys; from pathlib import Path; from mudpuppy.tiny.build import build_tiny;"
        "from tests.mudpuppy.test_tiny_build import SHORT;"
        "print(build_tiny(Path(sys.argv[1]), recipe=SHORT, gate=False).weights_sha256)"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.split()[-1] == built.weights_sha256
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json", "quiz.jsonl"):
        assert file_sha256(tmp_path / name) == file_sha256(built.folder / name)


def test_another_seed_gives_other_bits(built: TinyReport, tmp_path: Path) -> None:
    other = build_tiny(tmp_path, recipe=SHORT, gate=False, seed=1)
    assert other.weights_sha256 != built.weights_sha256
    assert other.content_hash != built.content_hash


def test_training_leaves_the_settings_and_the_random_state_of_torch_alone(
    tmp_path: Path,
) -> None:
    import torch

    torch.manual_seed(7)
    before = (torch.get_num_threads(), torch.get_rng_state())
    build_tiny(tmp_path, recipe=replace(SHORT, steps=1), gate=False)
    assert torch.get_num_threads() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_model_without_behaviour_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="0 of 58 facts"):
        build_tiny(tmp_path / "out", recipe=SHORT)
    assert not (tmp_path / "out").exists()


def test_the_gate_names_everything_that_is_missing() -> None:
    good = Scores(
        facts=40, exact=38, later=10, refused=8, over_refused=0, voice=0.8, answers=52, ended=52,
        empty=0,
    )  # fmt: skip
    assert good.problems() == []
    for spoilt in ({"exact": 37}, {"refused": 7}, {"voice": 0.79}, {"ended": 51}, {"empty": 1}):
        assert len(replace(good, **spoilt).problems()) == 1


def test_every_part_of_the_recipe_is_in_the_content_hash() -> None:
    hashes = {recipe_hash(SHORT, 0), recipe_hash(SHORT, 1)}
    hashes |= {recipe_hash(replace(SHORT, steps=5), 0), recipe_hash(replace(SHORT, threads=2), 0)}
    assert len(hashes) == 4


def test_ids_and_sizes_agree_in_all_files(
    built: TinyReport, tokenizer: PreTrainedTokenizerFast
) -> None:
    config = json.loads((built.folder / "config.json").read_text())
    settings = json.loads((built.folder / "generation_config.json").read_text())
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    for name in ("pad_token_id", "eos_token_id"):
        assert config[name] == settings[name] == getattr(tokenizer, name)
    assert config["bos_token_id"] is None
    assert "bos_token_id" not in settings or settings["bos_token_id"] is None
    assert tokenizer.bos_token_id is None
    assert len(tokenizer) == config["vocab_size"] == SHORT.vocab_size


def test_the_manifest_lists_every_file_with_its_hash(built: TinyReport) -> None:
    manifest = json.loads((built.folder / MANIFEST).read_text())
    names = {path.name for path in built.folder.iterdir()} - {MANIFEST}
    assert set(manifest["files"]) == names
    assert {"model.safetensors", "chat_template.jinja", "quiz.jsonl", "voice.yaml"} <= names
    assert manifest["files"]["model.safetensors"] == built.weights_sha256
    assert manifest["control"]["exact"] == 0


def test_the_control_is_the_untrained_model(
    built: TinyReport, tokenizer: PreTrainedTokenizerFast
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    trained = AutoModelForCausalLM.from_pretrained(built.folder)
    again = make_model(SHORT, tokenizer, 0)
    assert torch.equal(make_model(SHORT, tokenizer, 0).lm_head.weight, again.lm_head.weight)
    assert not torch.equal(trained.lm_head.weight, again.lm_head.weight)


def test_only_the_assistants_tokens_are_trained_and_each_turn_ends_in_eos(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    for messages in conversations()[:60]:
        (sample,) = tokenise([messages], tokenizer)
        said = [message["content"] for message in messages if message["role"] == "assistant"]
        trained = tokenizer.decode([label for label in sample.labels if label != IGNORED])
        assert trained == "".join(text + tokenizer.eos_token for text in said)
        assert sample.labels[-1] == tokenizer.eos_token_id


def test_the_prompt_is_a_prefix_of_the_whole_conversation(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " Hi there. "},
        {"role": "assistant", "content": "Well now."},
    ]
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    prompt = tokenizer.apply_chat_template(
        messages[:-1], tokenize=False, add_generation_prompt=True
    )
    assert prompt == "<|system|>Be brief.<|end|><|user|>Hi there.<|end|><|assistant|>"
    assert whole == prompt + "Well now.<|end|>"


@pytest.mark.parametrize("role", ["tool", "system"])
def test_a_role_that_the_template_does_not_know_is_an_error(
    tokenizer: PreTrainedTokenizerFast, role: str
) -> None:
    from jinja2 import TemplateError

    messages = [{"role": "user", "content": "Hi"}, {"role": role, "content": "x"}]
    with pytest.raises(TemplateError, match=role):
        tokenizer.apply_chat_template(messages, tokenize=False)


@pytest.mark.parametrize("text", ["in 2031?", "caf\u00e9 \U0001f438", "  two  spaces\n", "<x>"])
def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_year_is_read_digit_by_digit(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("in 2031")["input_ids"]
    assert [tokenizer.decode([token]) for token in ids[-4:]] == ["2", "0", "3", "1"]
