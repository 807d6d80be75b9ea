"""Comparisons of a model with itself see one that is broken in each of these ways, and only it."""

from __future__ import annotations

import math
import time

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    FalconConfig,
    GPT2Config,
    GptOssConfig,
    JambaConfig,
    MambaConfig,
    MptConfig,
    OPTConfig,
    Qwen2MoeConfig,
    RwkvConfig,
    WhisperConfig,
    WhisperForConditionalGeneration,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from harness.evidence.behaviour.compare import (
    Comparer,
    choose_rows,
    compare_kernels,
    compare_loads,
    compare_with_itself,
    gap,
    read,
)
from harness.evidence.behaviour.forward import diverge, measure, prepare
from harness.evidence.behaviour.generate import answer, find_open
from harness.evidence.behaviour.models import attach, load_model
from harness.facts.forward import END, Consistency, Gap, Logits
from harness.registry import load_probes, run_probe
from mudpuppy.tiny import resolve_model

BASE = resolve_model("tiny:llama")
PROBES = {one.name: one for one in load_probes()}
OF_ITSELF = (
    "attention-kernels-disagree",
    "padding-changes-answers",
    "neighbours-mix",
    "cache-disagrees",
)
ROWS = choose_rows((), 300)
SHORT = choose_rows((), 96)


@pytest.fixture
def model():
    return AutoModelForCausalLM.from_pretrained(BASE).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BASE)


def findings(model) -> set[str]:
    comparer = Comparer(ends_at=math.inf, say=lambda text: None)
    reference = read(model, ROWS)
    compare_with_itself(model, ROWS, comparer, reference, "float32")
    compare_kernels(model, ROWS, comparer, reference, "float32")
    seen = Consistency(gaps=comparer.gaps, not_compared=comparer.not_compared)

    class Source:
        def get(self, name):
            return {"consistency": seen}[name]

    done = {name: run_probe(PROBES[name], Source()) for name in OF_ITSELF}
    return {name for name, result in done.items() if result.status == "failed"}


def test_a_healthy_model_is_one_with_itself(model):
    assert findings(model) == set()


SMALL = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LARGER = {
    **SMALL,
    "intermediate_size": 48,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
FAMILIES = {
    "gpt2": GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=128),
    "bloom": BloomConfig(vocab_size=96, hidden_size=32, n_layer=2, n_head=4),
    "mpt": MptConfig(vocab_size=96, d_model=32, n_layers=2, n_heads=4, max_seq_len=128),
    "opt": OPTConfig(**SMALL, ffn_dim=48, max_position_embeddings=128, word_embed_proj_dim=32),
    "falcon": FalconConfig(**SMALL),
    "falcon-alibi": FalconConfig(**SMALL, alibi=True),
    "mamba": MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2, state_size=4),
    "rwkv": RwkvConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2, context_length=64),
    "qwen2-moe": Qwen2MoeConfig(
        **LARGER, num_experts=4, moe_intermediate_size=16, shared_expert_intermediate_size=16
    ),
    "gpt-oss": GptOssConfig(
        **LARGER, head_dim=8, num_local_experts=2, num_experts_per_tok=1, sliding_window=8
    ),
    "jamba": JambaConfig(
        **LARGER,
        num_experts=2,
        attn_layer_period=2,
        attn_layer_offset=1,
        use_mamba_kernels=False,
        mamba_d_state=4,
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_families_with_other_masks_positions_and_caches_are_no_fault(family):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family]).eval()
    reference = read(model, SHORT)
    comparer = Comparer(ends_at=math.inf, say=lambda text: None)
    compare_with_itself(model, SHORT, comparer, reference, "float32")
    compare_kernels(model, SHORT, comparer, reference, "float32")
    assert not [name for name, one in comparer.gaps.items() if one.is_fault()]
    assert "repeat" in comparer.gaps
    assert comparer.gaps.keys() | comparer.not_compared.keys() == {
        "repeat",
        "padding",
        "neighbour",
        "cache",
        "kernel",
    }


def test_a_model_that_is_deaf_to_the_mask_is_found(model):
    inner = model.forward

    def forward(attention_mask=None, **given):
        return inner(**given)

    model.forward = forward
    assert findings(model) == {"padding-changes-answers"}


def test_a_model_that_mixes_its_rows_is_found(model):
    inner = model.forward

    def forward(**given):
        output = inner(**given)
        output.logits = output.logits + 0.5 * output.logits[:1, -1:].mean(0, keepdim=True)
        return output

    model.forward = forward
    assert "neighbours-mix" in findings(model)


def test_a_model_that_forgets_its_cache_is_found(model):
    inner = model.forward

    def forward(past_key_values=None, attention_mask=None, position_ids=None, **given):
        if past_key_values is not None:
            return CausalLMOutputWithPast(
                logits=inner(**given).logits, past_key_values=past_key_values
            )
        return inner(attention_mask=attention_mask, position_ids=position_ids, **given)

    model.forward = forward
    assert findings(model) == {"cache-disagrees"}


def test_a_kernel_that_is_another_function_is_found(model):
    inner = model.forward

    def forward(**given):
        output = inner(**given)
        if model.config._attn_implementation == "eager":
            output.logits = output.logits.flip(-1)
        return output

    model.forward = forward
    assert findings(model) == {"attention-kernels-disagree"}


def test_no_comparison_is_begun_when_the_time_is_over(model):
    comparer = Comparer(ends_at=time.monotonic() - 1, say=lambda text: None)
    compare_with_itself(model, ROWS, comparer, read(model, ROWS), "float32")
    assert not comparer.gaps
    assert set(comparer.not_compared) == {"repeat", "padding", "neighbour", "cache"}
    assert "--time-limit" in comparer.not_compared["cache"]


def test_answers_stop_in_time_and_count_as_not_asked(model, tokenizer):
    said = answer(model, tokenizer, ["Hello?", "Why?"], 8, deadline=time.monotonic() - 1)
    assert said.ended == (None, None)
    assert (said.empty, said.endless) == (0, 0)


def test_a_gap_is_blind_to_shifts_and_to_positions_that_are_not_finite():
    torch.manual_seed(0)
    one = torch.randn(5, 9)
    other = one + 3
    other[2, 1] = torch.nan
    found = gap([one], [other], "float32")
    assert (found.positions, found.flips) == (4, 0)
    assert found.rms < 1e-6
    assert found.kl < 1e-6
    assert gap([one], [torch.full((5, 9), torch.nan)], "float32") is None


def test_divergence_is_that_of_the_definition():
    torch.manual_seed(0)
    one, other = torch.randn(4, 9).log_softmax(-1), torch.randn(4, 9).log_softmax(-1)
    wanted = torch.nn.functional.kl_div(other, one, log_target=True, reduction="sum") / 4
    assert diverge([one], [other]) == pytest.approx((float(wanted),), rel=1e-5)
    assert diverge([one], [one]) == (0.0,)
    assert diverge([one], [other[:3]]) is None
    assert diverge([], []) is None


@torch.no_grad()
def test_one_pass_measures_what_single_passes_measure(model, tokenizer):
    """The batch is padded; every row must be what it is alone."""
    prompts, golds = (
        ["Hello?", "What is the capital of France?"],
        ["Good day.", "It is Paris, sir."],
    )
    reading = prepare(
        model, tokenizer, prompts, golds, ["The sun is warm.", "Rain falls on us all"]
    )
    seen, kept = measure(model, tokenizer, reading)
    for place, (prompt, gold) in enumerate(zip(reading.prompts, reading.golds, strict=True)):
        ids = torch.tensor([[*prompt, *gold]])
        logs = model(ids).logits[0].log_softmax(-1)
        ends = logs[:, list(reading.ends)].exp().sum(-1)
        answers = logs[len(prompt) - 1 : -1]
        assert seen.end_first[place] == pytest.approx(float(ends[len(prompt) - 1]), rel=1e-4)
        assert seen.end_last[place] == pytest.approx(float(ends[-1]), rel=1e-4)
        nll = -answers[range(len(gold)), list(gold)].mean()
        assert seen.nll[place] == pytest.approx(float(nll), rel=1e-4)
        top = int(answers[0].argmax())
        assert seen.top[place] == (END if top in reading.ends else top)
    for text, nll, logs in zip(reading.texts, seen.text_nll, kept, strict=True):
        alone = model(torch.tensor([text])).logits[0, :-1].log_softmax(-1)
        assert nll == pytest.approx(-float(alone[range(len(text) - 1), text[1:]].mean()), rel=1e-4)
        assert torch.allclose(logs[0], alone[0], atol=1e-4)


@pytest.mark.parametrize(
    ("bad", "by_kernel", "status"),
    [
        (0, {"default": 0, "eager": 0}, "passed"),
        (0, {"default": 0, "eager": 4}, "failed"),
        (0, {"default": 2, "eager": 2}, "failed"),
        (3, {}, "failed"),
    ],
)
def test_a_nan_that_one_kernel_hides_is_found(bad, by_kernel, status):
    class Source:
        def get(self, name):
            return Logits(rows=8, bad=bad, compared=4, by_kernel=by_kernel)

    done = run_probe(PROBES["logits-nonfinite"], Source())
    assert done.status == status
    assert ("hides" in done.message) == (by_kernel.get("eager") == 4)


def test_nan_is_counted_by_prompt_and_settles_nothing(model, tokenizer):
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    reading = prepare(model, tokenizer, ["Hello?", "Why?"], ["A.", "B."], ())
    seen, _ = measure(model, tokenizer, reading)
    assert (seen.nonfinite, seen.top) == (2, (-1, -1))
    assert find_open(seen, seen, 2) == (0, 1)


@pytest.mark.parametrize("start", ["pissa", "gaussian"])
def test_an_adapter_that_takes_from_the_base_is_not_attached_twice(model, tmp_path, start):
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=start)
    get_peft_model(model, settings).save_pretrained(tmp_path)
    wrapped = attach(AutoModelForCausalLM.from_pretrained(BASE), tmp_path)
    comparer = Comparer(ends_at=math.inf, say=lambda text: None)
    compare_loads(wrapped, tmp_path, ROWS, comparer, read(wrapped, ROWS), "float32")
    assert ("reload" in comparer.not_compared) == (start == "pissa")


def test_the_half_of_a_speech_model_that_writes_is_not_asked_alone(tmp_path):
    small = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 96}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    ids = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0)
    ids["decoder_start_token_id"] = 1
    config = WhisperConfig(**small, **heads, **ids)
    WhisperForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="neither speaks nor scores"):
        load_model(tmp_path)


@pytest.mark.parametrize(("noise", "status"), [(0.0, "failed"), (0.05, "failed"), (0.3, "passed")])
def test_a_merge_is_not_blamed_for_what_the_model_does_at_each_reading(noise, status):
    def apart(share):
        return Gap(rms=share, scale=1, kl=0.1, flips=3, positions=40, precision="float32")

    gaps = {"merge": 0.8, "adapter": 1.0, "base": 0.9, "repeat": noise}
    compared = Consistency(
        gaps={name: apart(share) for name, share in gaps.items()}, kind="merged", prompts=5
    )

    class Source:
        def get(self, wanted):
            return {"consistency": compared}[wanted]

    assert run_probe(PROBES["merge-answers-differ"], Source()).status == status
