"""The merge on disk: equal to PEFT's for every kind of adapter, and nothing left half done."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from mudpuppy.adapters import fold, shard_merge
from mudpuppy.adapters.fold import row_blocks
from mudpuppy.adapters.shard_merge import merge_shards
from mudpuppy.cli import main
from mudpuppy.config_check import load_config
from mudpuppy.engine import train
from mudpuppy.errors import EngineError, ModelError, OutputError
from mudpuppy.provenance import fingerprint_model, read_provenance
from mudpuppy.safefile import checkpoint_tensors

pytestmark = pytest.mark.filterwarnings("ignore:::peft", "ignore::FutureWarning")

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
IDS = torch.arange(24).view(2, 12)


def make_llama(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE | changes))


def make_gpt2(**_: Any) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4))


def save_base(model: Any, folder: Path, dtype: torch.dtype = torch.float32, shard="20KB") -> Path:
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    return folder


def save_random_adapter(base: Path, folder: Path, *, rows: int | None = None, **options) -> Path:
    """Attach with PEFT, fill every trained tensor with noise, save."""
    torch.manual_seed(1)
    kind = AutoModelForCausalLM
    if options.get("task_type") == "SEQ_CLS":
        kind = AutoModelForSequenceClassification
    model = kind.from_pretrained(base)
    if rows is not None:
        model.resize_token_embeddings(rows, mean_resizing=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 6} | options))
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn_like(parameter) * 0.05
                parameter.data = parameter.data + noise if "magnitude" in name else noise
        adapted.peft_config["default"].base_model_name_or_path = str(base)
        adapted.save_pretrained(folder)
    return folder


def merge_with_peft(base: Path, adapter: Path, folder: Path, rows: int | None = None) -> Any:
    kind = AutoModelForCausalLM
    if json.loads((adapter / "adapter_config.json").read_text())["task_type"] == "SEQ_CLS":
        kind = AutoModelForSequenceClassification
    model = kind.from_pretrained(base)
    if rows is not None:
        model.resize_token_embeddings(rows, mean_resizing=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    merged.save_pretrained(folder)
    return merged


def load_all(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        found.update(load_file(file))
    return found


def assert_same_tensors(ours: Path, theirs: Path) -> None:
    found, expected = load_all(ours), load_all(theirs)
    assert sorted(found) == sorted(expected)
    wrong = [
        name
        for name, tensor in expected.items()
        if tensor.dtype != found[name].dtype or not torch.equal(tensor, found[name])
    ]
    assert wrong == []


@torch.no_grad()
def logits_of(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks also in a tiny matrix, or no test would see a block's edge."""
    monkeypatch.setattr(fold, "BLOCK_BYTES", 1024)
    monkeypatch.setattr(fold, "ALIGN", 16)


LLAMA = {"target_modules": ["q_proj", "v_proj", "down_proj"]}
KINDS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "plain": (make_llama, {}, LLAMA),
    "all-linear": (make_llama, {}, {"target_modules": "all-linear"}),
    "rslora": (make_llama, {}, LLAMA | {"use_rslora": True}),
    "patterns": (
        make_llama,
        {},
        LLAMA
        | {
            "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 8},
            "alpha_pattern": {"v_proj": 3, r"model.layers.0.self_attn.q_proj": 11},
        },
    ),
    "dora": (make_llama, {}, LLAMA | {"use_dora": True}),
    "some layers": (make_llama, {}, LLAMA | {"layers_to_transform": [1]}),
    "modules to save": (make_llama, {}, LLAMA | {"modules_to_save": ["lm_head", "norm"]}),
    "saved embeddings": (make_llama, {}, LLAMA | {"modules_to_save": ["embed_tokens"]}),
    "head": (make_llama, {}, {"target_modules": ["lm_head", "q_proj"]}),
    "embedding": (make_llama, {}, {"target_modules": ["embed_tokens", "o_proj"]}),
    "bias, lora only": (make_llama, {"attention_bias": True}, LLAMA | {"bias": "lora_only"}),
    "bias, all": (make_llama, {"attention_bias": True}, LLAMA | {"bias": "all"}),
    "bias of B": (
        make_llama,
        {"attention_bias": True},
        {"target_modules": ["q_proj"], "lora_bias": True},
    ),
    "trained tokens": (make_llama, {}, LLAMA | {"trainable_token_indices": [3, 95, 40]}),
    "trained tokens, tied": (
        make_llama,
        {"tie_word_embeddings": True},
        LLAMA | {"trainable_token_indices": [3, 95, 40]},
    ),
    "tied": (make_llama, {"tie_word_embeddings": True}, LLAMA),
    "conv1d": (make_gpt2, {}, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "classifier": (make_llama, {}, LLAMA | {"task_type": "SEQ_CLS"}),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_bits_are_those_of_peft(kind: str, dtype: torch.dtype, tmp_path: Path):
    make, shape, options = KINDS[kind]
    base = save_base(make(**shape), tmp_path / "base", dtype)
    adapter = save_random_adapter(base, tmp_path / "adapter", **options)
    merge_with_peft(base, adapter, tmp_path / "peft")

    report = merge_shards(base, adapter, tmp_path / "ours")

    assert_same_tensors(tmp_path / "ours", tmp_path / "peft")
    assert report.changed > 0
    names = {entry.file.name for entry in checkpoint_tensors(tmp_path / "ours").values()}
    assert names == {entry.file.name for entry in checkpoint_tensors(base).values()}


@pytest.mark.parametrize(
    ("make", "targets", "fan"),
    [(make_gpt2, ["c_attn", "c_proj"], True), (make_llama, ["embed_tokens"], False)],
    ids=["conv1d", "embedding"],
)
def test_dora_on_transposed_weights_is_peft_up_to_rounding(make, targets, fan, tmp_path: Path):
    base = save_base(make(), tmp_path / "base")
    adapter = save_random_adapter(
        base, tmp_path / "adapter", target_modules=targets, fan_in_fan_out=fan, use_dora=True
    )
    merge_with_peft(base, adapter, tmp_path / "peft")

    merge_shards(base, adapter, tmp_path / "ours")

    found, expected = load_all(tmp_path / "ours"), load_all(tmp_path / "peft")
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("is_tied", [False, True], ids=["untied", "tied"])
def test_a_grown_vocabulary_grows_the_config(is_tied: bool, tmp_path: Path):
    base = save_base(make_llama(tie_word_embeddings=is_tied), tmp_path / "base")
    adapter = save_random_adapter(base, tmp_path / "adapter", rows=104, **LLAMA)
    expected = merge_with_peft(base, adapter, tmp_path / "peft", rows=104)

    merge_shards(base, adapter, tmp_path / "ours")

    assert_same_tensors(tmp_path / "ours", tmp_path / "peft")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert (104, is_tied) == (merged.config.vocab_size, merged.config.tie_word_embeddings)
    assert torch.equal(logits_of(merged), logits_of(expected))


@pytest.mark.parametrize("is_tied", [False, True], ids=["untied", "tied"])
def test_our_own_saving_keeps_embeddings_that_were_resized(is_tied: bool, tmp_path: Path):
    from transformers import AutoTokenizer

    from mudpuppy.adapters.attach import attach_adapter
    from mudpuppy.saving import save_adapter
    from mudpuppy.tiny import resolve_model

    base = Path(resolve_model("tiny:llama-tied" if is_tied else "tiny:llama"))
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(model.config.vocab_size + 8)
    config = load_config({"model": "m", "dataset": "d.jsonl", "output": "o", "lora_r": 4})
    adapted = attach_adapter(model, config)
    torch.nn.init.normal_(next(p for n, p in adapted.named_parameters() if "lora_B" in n))
    save_adapter(adapted, AutoTokenizer.from_pretrained(base), tmp_path / "adapter", str(base))
    expected = logits_of(adapted)

    merge_shards(base, tmp_path / "adapter", tmp_path / "ours")

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert (model.config.vocab_size, is_tied) == (
        merged.config.vocab_size,
        merged.config.tie_word_embeddings,
    )
    torch.testing.assert_close(logits_of(merged), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["lm_head", "q_proj"]},
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
    ids=["head", "embedding", "both", "saved embedding", "saved head"],
)
def test_embeddings_that_part_are_untied(options, tmp_path: Path):
    base = save_base(make_llama(tie_word_embeddings=True), tmp_path / "base")
    adapter = save_random_adapter(base, tmp_path / "adapter", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unmerged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    expected = logits_of(unmerged)

    merge_shards(base, adapter, tmp_path / "ours")

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert not merged.config.tie_word_embeddings
    assert (logits_of(merged) - logits_of(AutoModelForCausalLM.from_pretrained(base))).norm() > 0.01
    torch.testing.assert_close(logits_of(merged), expected, rtol=0, atol=1e-5)


def test_a_classifier_brings_its_head(tmp_path: Path):
    base = save_base(make_llama(), tmp_path / "base")
    adapter = save_random_adapter(base, tmp_path / "adapter", **LLAMA | {"task_type": "SEQ_CLS"})

    merge_shards(base, adapter, tmp_path / "ours")

    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert ["LlamaForSequenceClassification"] == config["architectures"]
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours")
    assert torch.equal(loaded.score.weight, load_all(tmp_path / "ours")["score.weight"])


@pytest.mark.parametrize("family", ["llava", "qwen2-vl"])
def test_a_file_may_name_its_tensors_otherwise_than_the_model(family: str, tmp_path: Path):
    from transformers import AutoModelForImageTextToText

    from mudpuppy.tiny import resolve_model

    base = Path(resolve_model(f"tiny:{family}"))
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(base)
    pattern = r".*language_model.*(q_proj|down_proj)"
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=pattern))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    adapted.save_pretrained(tmp_path / "adapter")
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "peft")

    report = merge_shards(base, tmp_path / "adapter", tmp_path / "ours")

    assert 4 == report.changed
    assert_same_tensors(tmp_path / "ours", tmp_path / "peft")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_another_precision_is_one_rounding_of_the_fp32_sum(precision: str, tmp_path: Path):
    base = save_base(make_llama(), tmp_path / "base")
    adapter = save_random_adapter(base, tmp_path / "adapter", **LLAMA)
    exact = merge_with_peft(base, adapter, tmp_path / "peft")
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]

    merge_shards(base, adapter, tmp_path / "ours", precision=precision)

    found = load_all(tmp_path / "ours")
    for name, tensor in exact.state_dict().items():
        assert torch.equal(found[name], tensor.to(dtype)), name
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["dtype"] == str(dtype)[6:]


@pytest.mark.parametrize("size", [1, 10_000, 10**9])
def test_files_may_be_divided_otherwise(size: int, tmp_path: Path):
    base = save_base(make_llama(), tmp_path / "base")
    adapter = save_random_adapter(base, tmp_path / "adapter", **LLAMA)
    merge_with_peft(base, adapter, tmp_path / "peft")

    merge_shards(base, adapter, tmp_path / "ours", max_shard_bytes=size)

    assert_same_tensors(tmp_path / "ours", tmp_path / "peft")
    files = list((tmp_path / "ours").glob("*.safetensors"))
    assert (len(files) == 1) == (size == 10**9)
    for file in files:
        assert len(load_file(file)) == 1 or file.stat().st_size < size + 4000
    assert torch.equal(
        logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "ours")),
        logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "peft")),
    )


@given(
    rows=st.integers(1, 300),
    columns=st.integers(1, 80),
    rank=st.integers(1, 24),
    block=st.sampled_from([256, 1024, 4096, 1 << 20]),
    fan=st.booleans(),
)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_shape_in_any_blocks_is_the_sum(rows, columns, rank, block, fan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")
    torch.manual_seed(rows * columns + rank)
    a, b = torch.randn(rank, columns), torch.randn(rows, rank)
    weight = torch.randn(columns, rows) if fan else torch.randn(rows, columns)
    make_pair(folder, {"x.up.weight": weight}, {"x.up": (a, b)}, r=rank, fan_in_fan_out=fan)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fold, "BLOCK_BYTES", block)
        merge_shards(folder / "base", folder / "adapter", folder / "ours")

    delta = b.double() @ a.double() * 2
    found = load_all(folder / "ours")["x.up.weight"]
    torch.testing.assert_close(
        found.double(), weight.double() + (delta.T if fan else delta), rtol=1e-5, atol=1e-4
    )


@given(st.integers(0, 5000), st.integers(0, 5000), st.sampled_from([8, 64]))
def test_blocks_cover_every_row_once(rows, columns, align):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fold, "ALIGN", align)
        blocks = list(row_blocks(rows, columns))

    assert [row for start, stop in blocks for row in range(start, stop)] == list(range(rows))
    assert all(start % align == 0 for start, _ in blocks)
    assert all(stop - start >= align for start, stop in blocks) or len(blocks) == 1


def make_pair(folder: Path, base: dict, modules: dict, *, extra: dict | None = None, **options):
    """Write a base and an adapter by hand; `modules` maps names to (A, B)."""
    (folder / "base").mkdir(parents=True)
    (folder / "adapter").mkdir()
    (folder / "base" / "config.json").write_text('{"model_type": "llama"}')
    save_file({k: v.contiguous() for k, v in base.items()}, folder / "base" / "model.safetensors")
    tensors = {f"base_model.model.{name}": tensor for name, tensor in (extra or {}).items()}
    for name, (a, b) in modules.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = a
        tensors[f"base_model.model.{name}.lora_B.weight"] = b
    save_file(tensors, folder / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 2 * options.get("r", 4)} | options
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))


ONE = {"x.up.weight": torch.ones(8, 6)}
PAIR = {"x.up": (torch.ones(4, 6), torch.ones(8, 4))}
REFUSED: list[tuple[str, dict, dict, dict, dict]] = [
    ("type 'IA3'", ONE, PAIR, {}, {"peft_type": "IA3"}),
    ("type 'VERA'", ONE, PAIR, {}, {"peft_type": "VERA"}),
    ("type 'OFT'", ONE, PAIR, {}, {"peft_type": "OFT"}),
    ("the type None", ONE, PAIR, {}, {"peft_type": None}),
    ("fused expert parameters", ONE, PAIR, {}, {"target_parameters": ["experts.up"]}),
    ("uses layer_replication", ONE, PAIR, {}, {"layer_replication": [[0, 1]]}),
    ("uses alora_invocation_tokens", ONE, PAIR, {}, {"alora_invocation_tokens": [1]}),
    ("uses new_idea", ONE, PAIR, {}, {"new_idea": 3}),
    ("started with 'pissa'", ONE, PAIR, {}, {"init_lora_weights": "pissa"}),
    ("are not in the base, such as 'x.down'", ONE, {"x.down": PAIR["x.up"]}, {}, {}),
    ("has the shape (8, 6), and the base", {"x.up.weight": torch.ones(8, 5)}, PAIR, {}, {}),
    ("do not fit each other", ONE, {"x.up": (torch.ones(4, 6), torch.ones(8, 3))}, {}, {}),
    ("rank 4, and adapter_config.json says 8", ONE, PAIR, {}, {"r": 8}),
    ("rank 4, and adapter_config.json says 2", ONE, PAIR, {}, {"rank_pattern": {"up": 2}}),
    ("gives x.up the value 'a'", ONE, PAIR, {}, {"alpha_pattern": {"up": "a"}}),
    ("cannot be used", ONE, PAIR, {}, {"alpha_pattern": {"(a+)+x": 2}}),
    ("cannot be used", ONE, PAIR, {}, {"alpha_pattern": {"(": 2}}),
    ("and no mapping", ONE, PAIR, {}, {"rank_pattern": [1]}),
    ("lacks lora_magnitude_vector", ONE, PAIR, {}, {"use_dora": True}),
    ("has lora_magnitude_vector", ONE, PAIR, {"x.up.lora_magnitude_vector": torch.ones(8)}, {}),
    ("A and B belong", ONE, {}, {"x.up.lora_A.weight": torch.ones(4, 6)}, {}),
    ("is for is not known", ONE, PAIR, {"x.up.lora_C.weight": torch.ones(4)}, {}),
    ("the base has no tensor 'x.up.bias'", ONE, PAIR, {"x.up.lora_B.bias": torch.ones(8)}, {}),
    ("has the shape (9, 6), and the base", ONE, PAIR, {"x.up.weight": torch.ones(9, 6)}, {}),
    (
        "stores x.up.weight as 'I32'",
        {"x.up.weight": torch.ones(8, 6, dtype=torch.int32)},
        PAIR,
        {},
        {},
    ),
    (
        "does not fit trainable_token_indices",
        ONE,
        {},
        {"x.up.token_adapter.trainable_tokens_delta": torch.ones(2, 6)},
        {"trainable_token_indices": [1, 99]},
    ),
]


@pytest.mark.parametrize(("words", "base", "modules", "extra", "options"), REFUSED)
def test_what_cannot_be_merged_is_refused_by_name(words, base, modules, extra, options, tmp_path):
    make_pair(tmp_path, base, modules, extra=extra, **options)

    with pytest.raises(ModelError) as caught:
        merge_shards(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    assert words in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_stacked_and_compiled_names_are_refused(tmp_path):
    for number, prefix in enumerate(("base_model.model.base_model.model.x", "_orig_mod.x", "x")):
        folder = tmp_path / str(number)
        make_pair(folder, ONE, {})
        save_file(
            {f"{prefix}.lora_A.weight": torch.ones(4, 6)},
            folder / "adapter" / "adapter_model.safetensors",
        )
        with pytest.raises(ModelError, match="does not have PEFT's name"):
            merge_shards(folder / "base", folder / "adapter", folder / "out")


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "text", "pickle only", "none"])
def test_adapters_that_cannot_be_read_are_refused(damage: str, tmp_path):
    make_pair(tmp_path, ONE, PAIR)
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    if damage == "missing":
        (tmp_path / "adapter" / "adapter_config.json").unlink()
    elif damage == "empty":
        weights.write_bytes(b"")
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-40])
    elif damage == "text":
        weights.write_text("version https://git-lfs.github.com/spec/v1")
    elif damage == "pickle only":
        weights.rename(weights.with_name("adapter_model.bin"))
    else:
        save_file({}, weights)

    with pytest.raises(ModelError):
        merge_shards(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", ""])
def test_an_index_may_not_name_files_elsewhere(name: str, tmp_path):
    make_pair(tmp_path, ONE, PAIR)
    (tmp_path / "base" / "model.safetensors").rename(tmp_path / "x.safetensors")
    index = {"weight_map": {"x.up.weight": name}}
    (tmp_path / "base" / "model.safetensors.index.json").write_text(json.dumps(index))

    with pytest.raises(ModelError, match="leaves the folder"):
        merge_shards(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")


@pytest.mark.parametrize("precision", [None, "fp16"])
def test_what_is_not_finite_is_refused_and_named(precision, tmp_path):
    big = torch.full((4, 6), 3e38 if precision is None else 1e4)
    make_pair(tmp_path, ONE, {"x.up": (big, torch.ones(8, 4) * 4)})

    with pytest.raises(EngineError, match=r"MP-E09: the merged tensor x.up.weight is not finite"):
        merge_shards(tmp_path / "base", tmp_path / "adapter", tmp_path / "out", precision=precision)
    assert not (tmp_path / "out").exists()


def test_large_sums_of_finite_values_are_fine(tmp_path):
    make_pair(tmp_path, {"x.up.weight": torch.full((8, 6), 3e38)}, PAIR)

    merge_shards(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")

    assert load_all(tmp_path / "out")["x.up.weight"].isfinite().all()


def test_a_quantised_base_is_refused_and_a_stale_declaration_goes(tmp_path):
    packed = {"y.weight": torch.ones(4, dtype=torch.uint8)}
    for number, more in enumerate((packed, {})):
        folder = tmp_path / str(number)
        make_pair(folder, ONE | more, PAIR)
        config = {"quantization_config": {"quant_method": "bitsandbytes"}}
        (folder / "base" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"MP-Q02.*y: the levels have no quant_state"):
        merge_shards(tmp_path / "0/base", tmp_path / "0/adapter", tmp_path / "out")

    merge_shards(tmp_path / "1/base", tmp_path / "1/adapter", tmp_path / "out")
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())


def test_another_base_is_refused_unless_asked_for(tmp_path):
    make_pair(tmp_path, ONE, PAIR)
    facts = {"base": {"fingerprint": fingerprint_model(tmp_path / "base"), "name": "mine"}}
    (tmp_path / "adapter" / "mudpuppy.json").write_text(json.dumps(facts))
    merge_shards(tmp_path / "base", tmp_path / "adapter", tmp_path / "right")
    save_file({"x.up.weight": torch.zeros(8, 6)}, tmp_path / "base" / "model.safetensors")

    with pytest.raises(ModelError, match=r"trained on another base.*'mine'"):
        merge_shards(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    merge_shards(tmp_path / "base", tmp_path / "adapter", tmp_path / "out", other_base=True)


def test_a_4_bit_base_without_provenance_is_told(tmp_path):
    make_pair(tmp_path, ONE, PAIR, base_model_name_or_path="unsloth/llama-bnb-4bit")
    said: list[str] = []

    merge_shards(tmp_path / "base", tmp_path / "adapter", tmp_path / "out", say=said.append)

    assert any("trained on quantised weights" in line for line in said)


def test_an_output_that_is_not_empty_is_refused(tmp_path):
    make_pair(tmp_path, ONE, PAIR)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")

    with pytest.raises(OutputError, match="not empty"):
        merge_shards(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    assert ["mine.txt"] == [path.name for path in (tmp_path / "out").iterdir()]


def test_kill_9_leaves_no_model_and_the_next_merge_works(tmp_path):
    weight = {f"x{i}.up.weight": torch.ones(512, 512) for i in range(8)}
    make_pair(tmp_path, weight, {"x3.up": (torch.ones(4, 512), torch.ones(512, 4))})
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from mudpuppy.adapters import fold, shard_merge\n"
        "whole = shard_merge.fold\n"
        "def slow(output, *rest):\n"
        "    print(output.name, flush=True)\n"
        "    time.sleep(60 if output.name.startswith('x5') else 0)\n"
        "    return whole(output, *rest)\n"
        "shard_merge.fold = slow\n"
        "shard_merge.merge_shards(*map(Path, sys.argv[1:]))\n"
    )
    out = tmp_path / "out"
    words = [str(tmp_path / "base"), str(tmp_path / "adapter"), str(out)]
    with subprocess.Popen(
        [sys.executable, "-c", code, *words], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        while not child.stdout.readline().startswith("x5"):
            assert child.poll() is None
        child.send_signal(signal.SIGKILL)
    assert -signal.SIGKILL == child.returncode
    assert [] == [path.name for path in out.iterdir() if not path.name.startswith(".")]

    merge_shards(*map(Path, words))

    assert load_all(out)["x3.up.weight"].unique().tolist() == [9.0]
    assert {"config.json", "model.safetensors", "mudpuppy.json"} == {p.name for p in out.iterdir()}


class Killed(BaseException):
    """Stands for SIGKILL: what comes after it is not what is looked at."""


@pytest.mark.parametrize("last", ["config.json", "mudpuppy.json"])
def test_a_merge_killed_while_it_is_moved_is_done_again(last, tmp_path, monkeypatch):
    make_pair(tmp_path, ONE, PAIR)
    words = [tmp_path / "base", tmp_path / "adapter", tmp_path / "out"]
    left, rename = tmp_path / "left", Path.rename

    def kill(path: Path, target: Path) -> Path:
        if path.name == last:
            shutil.copytree(words[2], left)
            raise Killed
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", kill)
        with pytest.raises(Killed):
            merge_shards(*words)
    assert (left / "model.safetensors").is_file()
    assert not (left / last).exists()
    words[2] = left

    merge_shards(*words)

    whole = {"config.json", "model.safetensors", "mudpuppy.json"}
    assert whole == {p.name for p in left.iterdir()}
    with pytest.raises(OutputError, match="not empty"):
        merge_shards(*words)


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupted_merge_says_what_there_is(when, tmp_path, monkeypatch, capsys):
    make_pair(tmp_path, ONE, PAIR)
    whole = shard_merge.merge_shards

    def interrupted(*words, **named):
        if when == "after":
            whole(*words, **named)
        raise KeyboardInterrupt

    monkeypatch.setattr(shard_merge, "merge_shards", interrupted)
    words = [str(tmp_path / name) for name in ("base", "adapter", "out")]

    assert 130 == main(["merge", *words])

    assert ("is complete" if when == "after" else "nothing was finished") in capsys.readouterr().err


def test_a_pipe_in_place_of_the_adapter_is_not_waited_for(tmp_path):
    make_pair(tmp_path, ONE, PAIR)
    (tmp_path / "adapter" / "adapter_config.json").unlink()
    os.mkfifo(tmp_path / "adapter" / "adapter_config.json")
    with pytest.raises(ModelError, match="no regular file"):
        merge_shards(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")


def test_the_model_is_not_held_in_memory(tmp_path, monkeypatch):
    monkeypatch.undo()  # blocks of their real size
    weight = {f"x{i}.up.weight": torch.ones(2048, 2048) for i in range(8)}  # 134 MB in one file
    modules = {f"x{i}.up": (torch.ones(4, 2048), torch.ones(2048, 4)) for i in range(8)}
    make_pair(tmp_path, weight, modules)
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from mudpuppy.adapters.shard_merge import merge_shards\n"
        "def peak():\n"
        "    status = Path('/proc/self/status').read_text()\n"
        "    return int(status.split('VmHWM:')[1].split()[0])\n"
        "before = peak()\n"
        "merge_shards(*map(Path, sys.argv[1:]))\n"
        "print(peak() - before)\n"
    )
    words = [str(tmp_path / name) for name in ("base", "adapter", "out")]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
    )

    assert int(done.stdout.split()[-1]) < 60_000


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    """Adapters of the engine on a tiny Llama: lora and qlora, merged by the engine too."""
    from mudpuppy.tiny import resolve_model

    folder = tmp_path_factory.mktemp("trained")
    base = Path(resolve_model("tiny:llama"))
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Q{i}?"},
                {"role": "assistant", "content": "A."},
            ]
        }
        for i in range(8)
    ]
    (folder / "chat.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for method in ("lora", "qlora"):
        config = {"model": str(base), "dataset": folder / "chat.jsonl", "output": folder / method}
        options = {"precision": "bf16", "max_steps": 2, "lora_r": 4, "learning_rate": 5e-3}
        train(load_config(config | options | {"method": method, "merge_lora": True}))
    return {"base": base, "lora": folder / "lora", "qlora": folder / "qlora"}


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_the_command_merges_verifies_and_tells_what_it_made(method, trained, tmp_path, capsys):
    words = [str(trained["base"]), str(trained[method]), str(tmp_path / "out")]

    assert 0 == main(["merge", *words, "--verify", "--precision", "fp32"])

    said = capsys.readouterr().out
    assert "verify: logits differ by" in said
    assert "verify: 3 of 3 answers" in said
    written = read_provenance(tmp_path / "out")
    assert written is not None
    assert ("merged", fingerprint_model(trained["base"])) == (
        written["kind"],
        written["base"]["fingerprint"],
    )
    assert (tmp_path / "out" / written["adapter"]).resolve() == trained[method].resolve()
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert (tmp_path / "out" / "chat_template.jinja").is_file()


def test_a_merge_that_does_not_agree_is_not_published(trained, tmp_path, monkeypatch, capsys):
    import mudpuppy.adapters.merge_plan as plan

    whole = plan.AdapterFiles.scale
    monkeypatch.setattr(plan.AdapterFiles, "scale", lambda *words: 9 * whole(*words))
    words = [str(trained["base"]), str(trained["lora"]), str(tmp_path / "out")]

    assert 3 == main(["merge", *words, "--verify"])
    assert "nothing was published" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_starts_without_torch_and_refuses_in_one_line(tmp_path):
    started = time.monotonic()
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys\nfrom mudpuppy.cli import main\n"
            "code = main(['merge', 'no/such/folder', 'a', 'b'])\n"
            "assert 'torch' not in sys.modules\nsys.exit(code)",
        ],
        capture_output=True,
        text=True,
        check=False,
    )

    assert 2 == done.returncode, done.stderr
    assert "no/such/folder does not exist" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - started < 10
