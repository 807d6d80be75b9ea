"""An adapter's life on one model: attach, train, merge or unload, and again, with nothing left."""

import copy
import gc
import json
import resource
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
)

from mudpuppy.adapters.attach import attach_adapter, verify_adapter
from mudpuppy.adapters.clean import adapter_parts, digests, require_clean, verify_clean
from mudpuppy.adapters.continued import continue_adapter
from mudpuppy.adapters.merge import merge_adapter, unload_adapter
from mudpuppy.config import TrainingConfig
from mudpuppy.config_check import load_config
from mudpuppy.errors import ConfigError, EngineError, ModelError
from mudpuppy.provenance import fingerprint_model
from mudpuppy.quant.formats import FORMATS
from mudpuppy.quant.linear4bit import Linear4bit, replace_linears

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
IDS = torch.arange(24).view(2, 12)


def make_llama(seed: int = 0, **settings) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**SHAPE | settings)).eval()


def settings(**changes) -> TrainingConfig:
    return load_config({"model": "m", "dataset": "d.jsonl", "output": "o", "lora_r": 4, **changes})


def train_a_little(model, loss_of, steps: int = 3) -> None:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()


def sft_loss(model):
    return model(input_ids=IDS, labels=IDS).loss


def dpo_loss(model):
    """Prefer ascending over descending ids, against the model without its adapter."""

    def log_odds():
        pair = [model(input_ids=x, labels=x).loss for x in (IDS, IDS.flip(1))]
        return pair[1] - pair[0]

    with torch.no_grad(), model.disable_adapter():
        reference = log_odds()
    return -torch.nn.functional.logsigmoid(0.1 * (log_odds() - reference))


def deltas(model) -> dict[str, torch.Tensor]:
    """Return scale * BA of every adapted weight, by the name of the weight."""
    found = {}
    for name, part in model.get_base_model().named_modules():
        if hasattr(part, "lora_A"):
            product = (
                part.lora_B["default"].weight.double() @ part.lora_A["default"].weight.double()
            )
            found[f"{name}.weight"] = product.detach() * part.scaling["default"]
    return found


def tensor_bytes() -> int:
    gc.collect()
    storages = {}
    for item in gc.get_objects():
        if issubclass(type(item), torch.Tensor):
            storage = item.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def test_ten_rounds_of_sft_and_dpo_leave_one_clean_model_of_the_same_size():
    model = make_llama()
    start = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    total = copy.deepcopy(start)
    sizes, resident = [], []
    for _ in range(10):
        for loss_of in (sft_loss, dpo_loss):
            adapted = attach_adapter(model, settings())
            train_a_little(adapted, loss_of, steps=2)
            for name, delta in deltas(adapted).items():
                total[name] += delta
            model = merge_adapter(adapted)
            del adapted
        sizes.append((sum(p.numel() for p in model.parameters()), tensor_bytes()))
        resident.append(rss_mb())

    assert len(set(sizes[1:])) == 1, sizes
    assert sizes[0][0] == sizes[-1][0] == sum(p.numel() for p in start.values())
    assert resident[-1] - resident[1] < 20
    assert any(not torch.equal(start[name], total[name]) for name in start)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.double(), total[name], rtol=0, atol=2e-6)
    assert adapter_parts(model) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_unloaded_model_is_the_base_bit_for_bit(dtype: torch.dtype):
    model = make_llama().to(dtype)
    before = digests(model)
    adapted = attach_adapter(model, settings())
    train_a_little(adapted, sft_loss)

    base = unload_adapter(adapted)

    verify_clean(base, before)
    require_clean(base)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_merged_weight_is_what_peft_makes_of_it_rounded_once(dtype: torch.dtype):
    adapted = attach_adapter(make_llama().to(dtype), settings())
    for name, p in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.02)
    twin = copy.deepcopy(adapted).merge_and_unload()

    merged = merge_adapter(adapted)

    verify_clean(merged, digests(twin))
    assert merged.dtype == dtype


def test_a_merged_dora_computes_what_the_adapter_did():
    adapted = attach_adapter(make_llama(), settings(use_dora=True))
    train_a_little(adapted, sft_loss)
    with torch.no_grad():
        expected = adapted.eval()(input_ids=IDS).logits
    merged = merge_adapter(adapted)

    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=IDS).logits, expected, rtol=0, atol=1e-5)


def test_a_merged_classifier_keeps_its_trained_head():
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(LlamaConfig(**SHAPE, num_labels=1, pad_token_id=0))
    before = model.score.weight.detach().clone()
    adapted = attach_adapter(model.eval(), settings(), "SEQ_CLS")
    train_a_little(adapted, lambda m: m(input_ids=IDS).logits.square().mean())
    with torch.no_grad():
        expected = adapted.eval()(input_ids=IDS).logits
    merged = merge_adapter(adapted)

    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=IDS).logits, expected, rtol=0, atol=1e-5)
    assert not torch.equal(merged.score.weight, before)
    require_clean(merged)


def test_a_head_trains_in_fp32_and_is_merged_in_the_type_of_its_base():
    config = LlamaConfig(**SHAPE, num_labels=1, pad_token_id=0)
    adapted = attach_adapter(
        LlamaForSequenceClassification(config).bfloat16(), settings(), "SEQ_CLS"
    )
    trained = {p.dtype for p in adapted.parameters() if p.requires_grad}

    assert trained == {torch.float32}
    assert {p.dtype for p in merge_adapter(adapted).parameters()} == {torch.bfloat16}


def test_rank_stabilised_adapters_are_scaled_by_the_root_of_the_rank():
    plain, stable = (attach_adapter(make_llama(), settings(use_rslora=x)) for x in (False, True))

    def scales(model):
        return {m.scaling["default"] for m in model.modules() if hasattr(m, "lora_A")}

    assert scales(plain) == {8 / 4}
    assert scales(stable) == {8 / 4**0.5}


def test_a_merge_of_fused_experts_is_refused_before_the_first_step():
    config = MixtralConfig(**SHAPE, num_local_experts=2, num_experts_per_tok=1)
    attention = ("q_proj", "k_proj", "v_proj", "o_proj")

    attach_adapter(
        MixtralForCausalLM(config), settings(merge_lora=True, lora_target_modules=attention)
    )
    with pytest.raises(ConfigError, match=r"fused experts .*cannot be merged") as caught:
        attach_adapter(MixtralForCausalLM(config), settings(merge_lora=True))
    assert "--lora-target-modules q_proj" in caught.value.hint


def test_an_adapter_as_large_as_its_model_is_refused():
    with pytest.raises(EngineError, match=r"MP-E05: the adapter is 9\d% .* more than 90%"):
        attach_adapter(make_llama(), settings(lora_r=1024))


@pytest.mark.parametrize("kind", ["forward_pre", "full_backward", "full_backward_pre", "forward"])
def test_a_hook_is_a_trace(kind):
    model = make_llama()
    verify_clean(model)
    getattr(model.model.layers[1], f"register_{kind}_hook")(lambda *_: None)

    with pytest.raises(EngineError, match=r"MP-E07.*model.layers.1 still has a hook"):
        verify_clean(model)


def test_a_merge_may_be_asked_for_in_another_type():
    adapted = attach_adapter(make_llama().bfloat16(), settings())
    torch.nn.init.normal_(next(p for n, p in adapted.named_parameters() if "lora_B" in n))
    exact = merge_adapter(copy.deepcopy(adapted), torch.float32)
    rounded = merge_adapter(adapted, torch.bfloat16)

    assert exact.dtype == torch.float32
    for one, other in zip(exact.parameters(), rounded.parameters(), strict=True):
        assert torch.equal(one.bfloat16(), other)


def test_gradient_checkpointing_leaves_no_hook():
    model = make_llama()
    adapted = attach_adapter(model, settings())
    adapted.enable_input_require_grads()
    with pytest.raises(EngineError, match=r"MP-E07.*still has a hook"):
        verify_clean(adapted.get_base_model())

    verify_clean(unload_adapter(adapted))


@pytest.mark.parametrize("remains", ["layer", "parameter", "config", "flag", "hook", "strided"])
def test_every_trace_of_an_adapter_is_found(remains: str):
    model = make_llama()
    layer = model.model.layers[0].self_attn
    if remains == "layer":
        get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    elif remains == "parameter":
        layer.q_proj.register_parameter("lora_A", torch.nn.Parameter(torch.ones(1)))
    elif remains == "config":
        model.peft_config = {}
    elif remains == "flag":
        model._hf_peft_config_loaded = True
    elif remains == "hook":
        layer.register_forward_hook(lambda *_: None)
    else:
        layer.q_proj.weight.data = layer.q_proj.weight.data.T

    with pytest.raises(EngineError, match=r"MP-E07: the model is not clean"):
        verify_clean(model)


def test_one_changed_bit_of_the_base_is_found():
    model = make_llama()
    before = digests(model)
    verify_clean(model, before)
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] += 1e-7

    with pytest.raises(EngineError, match=r"MP-E08: 1 of \d+ base tensors.*layers.1.mlp.up_proj"):
        verify_clean(model, before)


def test_a_merge_that_does_nothing_is_found(monkeypatch):
    adapted = attach_adapter(make_llama(), settings(lora_target_modules=("q_proj",)))
    torch.nn.init.normal_(next(p for n, p in adapted.named_parameters() if "lora_B" in n))
    kind = type(adapted.base_model.model.model.layers[0].self_attn.q_proj)
    monkeypatch.setattr(kind, "merge", lambda *_, **__: None)

    with pytest.raises(EngineError, match=r"MP-E08: the merge of .*q_proj is wrong"):
        merge_adapter(adapted)


def test_a_merge_that_overflows_is_refused():
    adapted = attach_adapter(make_llama().half(), settings())
    torch.nn.init.constant_(next(p for n, p in adapted.named_parameters() if "lora_B" in n), 1e6)

    with pytest.raises(EngineError, match=r"MP-E09: .*q_proj.*not finite in torch.float16"):
        merge_adapter(adapted)


def test_a_merged_4_bit_model_holds_plain_layers():
    model = make_llama()
    replace_linears(model, FORMATS["nf4"], block_size=16)
    dequantised = (
        model.model.layers[0].mlp.up_proj.weight.detach().clone().as_subclass(torch.Tensor)
    )
    adapted = attach_adapter(model, settings(lora_target_modules=("q_proj",)))
    merged = merge_adapter(adapted, torch.bfloat16)

    assert not [m for m in merged.modules() if isinstance(m, Linear4bit)]
    assert torch.equal(merged.model.layers[0].mlp.up_proj.weight, dequantised.bfloat16())


@pytest.mark.parametrize("state", ["attached", "merged and dirty"])
def test_a_second_adapter_is_refused_by_code(state: str):
    model = attach_adapter(make_llama(), settings())
    if state == "attached":
        with pytest.raises(EngineError, match=r"MP-E01") as caught:
            attach_adapter(model, settings())
        assert "MP-E01" == caught.value.code
        with pytest.raises(EngineError, match=r"MP-E01"):
            attach_adapter(model.get_base_model(), settings())
    else:
        plain = merge_adapter(model)
        plain._hf_peft_config_loaded = True
        with pytest.raises(EngineError, match=r"MP-E02"):
            attach_adapter(plain, settings())


class TestContinue:
    @pytest.fixture
    def base(self, tmp_path: Path) -> Path:
        make_llama().save_pretrained(tmp_path / "base")
        return tmp_path / "base"

    @pytest.fixture
    def saved(self, base: Path, tmp_path: Path) -> Path:
        adapted = attach_adapter(load(base), settings(lora_target_modules=("q_proj", "v_proj")))
        train_a_little(adapted, sft_loss)
        adapted.save_pretrained(tmp_path / "adapter")
        facts = {"base": {"fingerprint": fingerprint_model(base)}}
        (tmp_path / "adapter" / "mudpuppy.json").write_text(json.dumps(facts))
        return tmp_path / "adapter"

    def test_it_goes_on_where_it_was(self, base, saved):
        reference = PeftModel.from_pretrained(load(base), saved)
        model = continue_adapter(load(base).bfloat16().float(), saved, settings_of_nothing())
        model.eval()

        with torch.no_grad():
            torch.testing.assert_close(
                model(input_ids=IDS).logits, reference(input_ids=IDS).logits, rtol=0, atol=0.02
            )
        trained = [p for p in model.parameters() if p.requires_grad]
        assert {torch.float32} == {p.dtype for p in trained}
        verify_adapter(model)
        loss = sft_loss(model).item()
        train_a_little(model, sft_loss)
        assert sft_loss(model).item() < loss

    def test_adapter_weights_are_fp32_on_a_16_bit_base(self, base, saved):
        model = continue_adapter(load(base).bfloat16(), saved, settings_of_nothing())

        assert {torch.float32} == {p.dtype for n, p in model.named_parameters() if "lora_" in n}

    def test_a_16_bit_head_is_continued_in_fp32(self, tmp_path):
        config = LlamaConfig(**SHAPE, num_labels=1, pad_token_id=0)
        base = LlamaForSequenceClassification(config).bfloat16()
        attach_adapter(copy.deepcopy(base), settings(), "SEQ_CLS").bfloat16().save_pretrained(
            tmp_path / "reward"
        )
        asked = load_config({"model": "m", "dataset": "d", "output": "o", "method": "rm"})
        model = continue_adapter(base, tmp_path / "reward", asked)

        heads = {p.dtype for n, p in model.named_parameters() if "score.modules_to_save" in n}
        assert heads == {torch.float32}

    def test_another_rank_or_other_targets_are_refused(self, base, saved):
        with pytest.raises(ConfigError, match=r"--lora-r is 8, and the adapter in .* has 4"):
            continue_adapter(load(base), saved, settings(lora_r=8))
        with pytest.raises(ConfigError, match=r"--lora-target-modules is k_proj"):
            continue_adapter(load(base), saved, settings(lora_target_modules=("k_proj",)))

    def test_another_base_is_refused(self, base, saved, tmp_path):
        make_llama(seed=1).save_pretrained(tmp_path / "other")

        with pytest.raises(ModelError, match=r"MP-E06: .* was trained on another base"):
            continue_adapter(load(tmp_path / "other"), saved, settings_of_nothing())

    def test_a_base_of_another_shape_is_refused(self, saved):
        with pytest.raises(ModelError, match=r"MP-E06: .* does not fit the model: .*size mismatch"):
            continue_adapter(make_llama(hidden_size=64), saved, settings_of_nothing())

    def test_an_adapter_with_missing_or_foreign_tensors_is_refused(self, base, saved):
        from safetensors.torch import load_file, save_file

        path = saved / "adapter_model.safetensors"
        tensors = load_file(path)
        name = sorted(tensors)[0]
        tensor = tensors.pop(name)
        save_file(tensors, path)
        with pytest.raises(ModelError, match=r"MP-E06.*does not fit"):
            continue_adapter(load(base), saved, settings_of_nothing())
        foreign = {name.replace("layers.0", "layers.7"): tensor.clone()}
        save_file({**tensors, name: tensor, **foreign}, path)
        with pytest.raises(ModelError, match=r"MP-E06.*layers.7.*in the file and not in the model"):
            continue_adapter(load(base), saved, settings_of_nothing())

    def test_what_is_no_lora_adapter_is_refused(self, base, saved):
        path = saved / "adapter_config.json"
        text = path.read_text()
        path.write_text(text.replace('"LORA"', '"IA3"'))
        with pytest.raises(ModelError, match="type 'IA3'"):
            continue_adapter(load(base), saved, settings_of_nothing())
        path.write_text("[" * 100_000)
        with pytest.raises(ModelError, match="cannot be read"):
            continue_adapter(load(base), saved, settings_of_nothing())
        path.write_text(text)
        (saved / "adapter_model.safetensors").rename(saved / "adapter_model.bin")
        with pytest.raises(ModelError, match="pickled weights"):
            continue_adapter(load(base), saved, settings_of_nothing())

    def test_adapted_embeddings_bring_their_base_along(self, base, tmp_path):
        model = get_peft_model(load(base), LoraConfig(r=4, target_modules=["embed_tokens"]))
        for name, parameter in model.named_parameters():
            if "lora_embedding_B" in name:
                torch.nn.init.normal_(parameter)
        model.save_pretrained(tmp_path / "embedding")

        again = continue_adapter(load(base), tmp_path / "embedding", settings_of_nothing())

        with torch.no_grad():
            ours, theirs = (m.eval()(input_ids=IDS).logits for m in (again, model))
        assert torch.equal(ours, theirs)

    def test_a_dirty_model_is_refused(self, base, saved):
        dirty = attach_adapter(load(base), settings())

        with pytest.raises(EngineError, match=r"MP-E01"):
            continue_adapter(dirty, saved, settings_of_nothing())


def settings_of_nothing() -> TrainingConfig:
    return load_config({"model": "m", "dataset": "d.jsonl", "output": "o"})


def load(path: Path):
    return AutoModelForCausalLM.from_pretrained(path)
