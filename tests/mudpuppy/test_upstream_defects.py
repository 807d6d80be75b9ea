"""The accidents of another engine (research: engines.md, section 5), each of which fails here.

The numbers are those of the list. Whole files are about the others: 4 in
`attention/test_documents.py`, 5 in `methods/test_preference.py`, `test_reward.py` and
`test_grpo.py`, 6 in `methods/test_multimodal.py`, 10 in `test_resume.py`, and of 11 what counts
padding in `data/test_batches.py`.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from mudpuppy.config_check import load_config
from mudpuppy.engine import train
from mudpuppy.errors import ModelError, UnsupportedCombination
from mudpuppy.quant.formats import FORMATS
from mudpuppy.quant.linear4bit import replace_linears
from mudpuppy.tiny import resolve_model

PAIRS = [("Where?", "In the pond."), ("What does it eat?", "Worms, and sometimes more worms.")] * 2


@pytest.fixture(scope="module")
def base() -> str:
    return resolve_model("tiny:llama")


@pytest.fixture
def configure(base: str, tmp_path: Path):
    dataset = tmp_path / "chat.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in PAIRS
    ]
    dataset.write_text("\n".join(map(json.dumps, rows)))

    def go(**settings):
        values = {"model": base, "dataset": dataset, "output": tmp_path / "out"}
        least = {"precision": "fp32", "max_steps": 2, "batch_size": 2, "lora_r": 4}
        return load_config({**values, **least, **settings})

    return go


class BatchKeeper:
    """Keeps the batches that reach the model while it trains, and the model."""

    def __init__(self):
        self.batches = []

    def on_prepared(self, model, tokenizer, samples, eos_ids):
        del samples, eos_ids
        self.tokenizer = tokenizer
        self.trained_types = {p.dtype for p in model.parameters() if p.requires_grad}
        self.hook = model.register_forward_pre_hook(self.keep, with_kwargs=True)

    def keep(self, model, args, kwargs):
        del args
        if model.training:
            self.batches.append({k: v for k, v in kwargs.items() if torch.is_tensor(v)})

    def on_fitted(self, model):
        del model
        self.hook.remove()


def test_1_a_merged_qlora_model_is_not_its_base(configure, base, tmp_path):
    train(configure(method="qlora", merge_lora=True, learning_rate=1e-2))

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "merged", dtype=torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    replace_linears(plain, FORMATS["nf4"], block_size=64, compute_dtype=torch.float32)
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    assert (merged(ids).logits - plain(ids).logits).abs().max() > 1e-3
    names = load_file(tmp_path / "out" / "merged" / "model.safetensors")
    assert not [name for name in names if "qweight" in name or "scale" in name]


def test_2_the_end_of_the_answer_is_trained_although_it_also_pads(configure, base, tmp_path):
    """The tokenizer's pad token is its EOS here, as so many engines set it."""
    from transformers import AutoTokenizer

    folder = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    seen = BatchKeeper()

    train(configure(model=str(folder)), watcher=seen)

    assert seen.batches
    for batch in seen.batches:
        for labels in batch["labels"]:
            assert labels[labels != -100][-1] == tokenizer.eos_token_id


def test_3_samples_of_different_lengths_share_a_batch(configure):
    seen = BatchKeeper()

    train(configure(batch_size=4), watcher=seen)

    batch = seen.batches[0]
    lengths = batch["attention_mask"].sum(1).tolist() if "attention_mask" in batch else []
    assert len(set(lengths)) > 1, "nothing was padded, so nothing was shown"
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()


def test_response_only_is_read(configure):
    trained = {}
    for response_only in (True, False):
        seen = BatchKeeper()
        output = configure().output.with_name(str(response_only))
        train(configure(response_only=response_only, output=output), watcher=seen)
        trained[response_only] = sum(int((b["labels"] != -100).sum()) for b in seen.batches)

    assert trained[True] < trained[False]


def test_7_gptq_quantises_a_plain_model_and_refuses_a_quantised_one(configure, tmp_path):
    train(configure(method="gptq", gptq_group_size=32))
    quantised = tmp_path / "out" / "gptq"

    with pytest.raises(ModelError):
        train(configure(method="gptq", model=str(quantised), output=tmp_path / "again"))
    assert not (tmp_path / "again").exists()


def test_8_the_target_modules_that_were_asked_for_get_an_adapter_and_no_others(configure, tmp_path):
    train(configure(lora_target_modules=["o_proj", "up_proj"]))

    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    modules = {name.split(".lora_")[0].rpartition(".")[2] for name in tensors}
    assert {"o_proj", "up_proj"} == modules


def test_9_master_weights_are_fp32_also_in_fp8(configure):
    seen = BatchKeeper()

    train(configure(method="full", precision="fp8"), watcher=seen)

    assert {torch.float32} == seen.trained_types


def test_11_packing_images_is_refused_and_not_ignored(configure):
    with pytest.raises(UnsupportedCombination):
        configure(method="multimodal", packing=True)
