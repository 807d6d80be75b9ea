"""Random tiny models of other families: they load with the plain classes, and repeat exactly."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from mudpuppy.errors import ModelError
from mudpuppy.tiny.families import EXTRA_TOKENS, build_family, make_family_model
from mudpuppy.tiny.fingerprint import file_sha256
from mudpuppy.tiny.names import FAMILIES

VISION = ("llava", "qwen2-vl")
MODEL_TYPES = {"llama-tied": "llama", "gemma3": "gemma3_text", "qwen2-vl": "qwen2_vl"}


def load(family: str, folder: Path) -> tuple[Any, Any, dict[str, Any]]:
    import transformers

    name = "AutoModelForImageTextToText" if family in VISION else "AutoModelForCausalLM"
    auto = getattr(transformers, name)
    model, loading = auto.from_pretrained(folder, output_loading_info=True)
    return model, transformers.AutoTokenizer.from_pretrained(folder), loading


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_loads_back_whole_with_identical_logits(family: str, tmp_path: Path) -> None:
    import torch

    build_family(family, tmp_path)
    model, tokenizer, loading = load(family, tmp_path)
    assert not any(loading.values())
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        made = make_family_model(family, tokenizer)
        ids = torch.tensor([tokenizer("What is the capital of France?")["input_ids"]])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        logits = model(**inputs).logits
        assert torch.equal(logits, made(**inputs).logits)
    assert logits.shape == (1, ids.shape[1], len(tokenizer))
    assert bool(torch.isfinite(logits).all())
    assert float(logits.std()) > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_consistent_and_the_same_every_time(family: str, tmp_path: Path) -> None:
    build_family(family, tmp_path / "a")
    started = time.process_time()
    build_family(family, tmp_path / "b")
    assert time.process_time() - started < 3.0, "a second or less, with room for a busy machine"
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert file_sha256(tmp_path / "a" / name) == file_sha256(tmp_path / "b" / name)
    _, tokenizer, _ = load(family, tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    settings = json.loads((tmp_path / "a" / "generation_config.json").read_text())
    text = config.get("text_config", config)
    assert config["model_type"] == MODEL_TYPES.get(family, family)
    assert text["vocab_size"] == len(tokenizer)
    assert text["eos_token_id"] == settings["eos_token_id"] == tokenizer.eos_token_id
    assert text["pad_token_id"] == settings["pad_token_id"] == tokenizer.pad_token_id
    for token in EXTRA_TOKENS.get(family, ()):
        assert len(tokenizer(token)["input_ids"]) == 1


@pytest.mark.parametrize(("family", "tied"), [("llama", False), ("llama-tied", True)])
def test_llama_comes_tied_and_untied(family: str, tied: bool, tmp_path: Path) -> None:
    from safetensors import safe_open

    build_family(family, tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as weights:
        assert ("lm_head.weight" in weights.keys()) is not tied  # noqa: SIM118 - not a dict


@pytest.mark.parametrize("family", VISION)
def test_a_picture_changes_the_answer_of_a_vision_model(family: str, tmp_path: Path) -> None:
    import torch

    build_family(family, tmp_path)
    model, tokenizer, _ = load(family, tmp_path)
    image, count = ("<image>", 4) if family == "llava" else ("<|image_pad|>", 1)
    text = tokenizer(image * count + "What is this?")["input_ids"]
    ids = torch.tensor([text])
    answers = []
    for seed in (0, 1):
        generator = torch.Generator().manual_seed(seed)
        if family == "llava":
            extra = {"pixel_values": torch.rand(1, 3, 16, 16, generator=generator)}
        else:
            extra = {
                "pixel_values": torch.rand(4, 3 * 2 * 8 * 8, generator=generator),
                "image_grid_thw": torch.tensor([[1, 2, 2]]),
                "mm_token_type_ids": (ids == text[0]).long(),
            }
        with torch.no_grad():
            answers.append(model(input_ids=ids, **extra).logits)
    assert not torch.equal(answers[0], answers[1])


def test_llava_comes_with_a_processor_that_fits_the_model(tmp_path: Path) -> None:
    import torch
    from PIL import Image
    from transformers import AutoProcessor

    build_family("llava", tmp_path)
    model, _, _ = load("llava", tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    asked = [
        {"type": "image", "image": Image.new("RGB", (40, 20), "red")},
        {"type": "text", "text": "What is this?"},
    ]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": asked}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert processor.decode(inputs["input_ids"][0]) == (
        "<|user|>" + "<image>" * 4 + "What is this?<|end|><|assistant|>"
    )
    with torch.no_grad():
        assert bool(torch.isfinite(model(**inputs).logits).all())


def test_an_unknown_family_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="tiny:lama"):
        build_family("lama", tmp_path / "out")
    assert not (tmp_path / "out").exists()
