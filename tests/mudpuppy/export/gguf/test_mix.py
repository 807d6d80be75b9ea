import json
import re
from pathlib import Path

import pytest

from mudpuppy.export.gguf.mix import choose_types, lossless_quant
from mudpuppy.export.gguf.tensors import MIXED, Part, Plan, Planned
from mudpuppy.safefile import TensorEntry

GOLDENS = json.loads((Path(__file__).parent / "goldens/mixes.json").read_text(encoding="utf-8"))
ARCHITECTURES = {
    "gemma-3-4b-it": "gemma3",
    "meta-llama-3.1-70b-instruct": "llama",
    "qwen3-0.6b": "qwen3",
    "qwen3-14b": "qwen3",
    "gpt-oss-120b": "gpt-oss",
}
BASE = {"q6_k": "Q6_K", "q5_k_m": "Q5_K", "q4_k_m": "Q4_K", "q4_k_s": "Q4_K", "q3_k_m": "Q3_K"}


def planned(name, *shape, dtype="BF16", is_exact=False):
    rows = 1
    for length in shape[:-1]:
        rows *= length
    entry = TensorEntry("w", Path("model.safetensors"), dtype, (rows, shape[-1]), 0, 0)
    return Planned(name=name, shape=shape, parts=(Part(entry, 0, rows),), is_exact=is_exact)


def make_plan(
    *,
    architecture="llama",
    layers=8,
    width=512,
    inner=1024,
    heads=8,
    kv_heads=8,
    experts=0,
    has_output=True,
    rows=2048,
    head=64,
):
    tensors = [planned("token_embd.weight", rows, width)]
    if has_output:
        tensors.append(planned("output.weight", rows, width))
    tensors.append(planned("output_norm.weight", width, is_exact=True))
    stack, suffix = ((experts,), "_exps") if experts else ((), "")
    for layer in range(layers):
        block = f"blk.{layer}."
        tensors += [
            planned(f"{block}attn_norm.weight", width, is_exact=True),
            planned(f"{block}attn_q.weight", heads * head, width),
            planned(f"{block}attn_q.bias", heads * head, is_exact=True),
            planned(f"{block}attn_k.weight", kv_heads * head, width),
            planned(f"{block}attn_v.weight", kv_heads * head, width),
            planned(f"{block}attn_output.weight", width, heads * head),
            planned(f"{block}ffn_gate{suffix}.weight", *stack, inner, width),
            planned(f"{block}ffn_up{suffix}.weight", *stack, inner, width),
            planned(f"{block}ffn_down{suffix}.weight", *stack, width, inner),
        ]
        if experts:
            tensors.append(planned(f"{block}ffn_gate_inp.weight", experts, width, is_exact=True))
    return Plan(
        architecture=architecture,
        tensors=tuple(tensors),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        num_rows=rows,
        num_experts=experts,
        is_tied=not has_output,
    )


def plan_of(name):
    settings = GOLDENS[name]["settings"]
    types = GOLDENS[name]["types"]["q4_k_m"]
    return make_plan(
        architecture=ARCHITECTURES[name],
        layers=settings["n_layer"],
        width=settings["n_embd"],
        inner=settings["n_ff"],
        heads=settings["n_head"],
        kv_heads=settings["n_head_kv"],
        experts=settings.get("n_expert", 0),
        has_output="output.weight" in types,
        head=256 if name.startswith("gemma") else 128 if name != "gpt-oss-120b" else 64,
    )


@pytest.mark.parametrize("quant", MIXED)
@pytest.mark.parametrize("name", GOLDENS)
def test_published_models_get_the_types_that_llama_cpp_gives_them(name, quant):
    plan = plan_of(name)
    kinds = GOLDENS[name]["types"][quant]
    expected = {}
    for one in plan.tensors:
        layer = re.match(r"blk\.(\d+)\.", one.name)
        layers = kinds.get(re.sub(r"^blk\.\d+\.", "blk.*.", one.name), {})
        wanted = [
            kind for kind, found in layers.items() if (int(layer[1]) if layer else -1) in found
        ]
        expected[one.name] = "F32" if one.is_exact else wanted[0] if wanted else BASE[quant]

    assert expected == choose_types(plan, quant)


def test_snapshots_say_something_about_every_kind_of_exception():
    found = {
        kind
        for model in GOLDENS.values()
        for one in model["types"]["q4_k_m"].values()
        for kind in one
    }

    assert {"Q6_K", "Q5_K", "Q5_0", "Q8_0"} <= found


@pytest.mark.parametrize("quant", MIXED)
def test_mixtral_gets_more_bits_in_its_attention(quant):
    types = choose_types(make_plan(experts=8, kv_heads=2), quant)

    assert {types["blk.3.attn_k.weight"], types["blk.3.attn_v.weight"]} == {"Q8_0"}
    assert types["blk.3.attn_q.weight"] == BASE[quant]
    has_few_bits = quant in ("q3_k_m", "q4_k_m", "q4_k_s")
    assert types["blk.3.attn_output.weight"] == ("Q5_K" if has_few_bits else BASE[quant])
    assert types["blk.3.ffn_gate_inp.weight"] == "F32"


def test_fused_queries_keys_and_values_count_as_values():
    plan = make_plan()
    fused = [
        planned(one.name.replace("attn_v", "attn_qkv"), *one.shape)
        for one in plan.tensors
        if "attn_v" in one.name
    ]
    types = choose_types(
        Plan(
            architecture="phi3",
            tensors=tuple(fused),
            num_layers=8,
            num_heads=8,
            num_kv_heads=8,
            num_rows=2048,
        ),
        "q4_k_m",
    )

    more = [layer for layer in range(8) if types[f"blk.{layer}.attn_qkv.weight"] == "Q6_K"]
    assert more == [0, 3, 6, 7]


def test_layers_count_by_their_number_and_not_as_text():
    types = choose_types(make_plan(layers=16, kv_heads=2), "q4_k_s")

    assert [n for n in range(16) if types[f"blk.{n}.attn_v.weight"] == "Q5_K"] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("quant", "width", "expected"),
    [
        ("q4_k_m", 96, ("Q5_0", "Q8_0")),
        ("q5_k_m", 96, ("Q5_1", "Q8_0")),
        ("q6_k", 96, ("Q8_0", "Q8_0")),
        ("q3_k_m", 96, ("Q4_0", "Q8_0")),
        ("q4_k_m", 40, ("F16", "F16")),
        ("q8_0", 96, ("Q8_0", "Q8_0")),
        ("q8_0", 40, ("F16", "F16")),
        ("bf16", 40, ("BF16", "BF16")),
    ],
)
def test_rows_that_blocks_do_not_fill_get_smaller_blocks(quant, width, expected):
    types = choose_types(make_plan(width=width), quant)

    assert (types["blk.1.attn_q.weight"], types["output.weight"]) == expected
    assert types["output_norm.weight"] == "F32"


def test_a_tied_embedding_is_quantised_as_the_output_layer_would_be():
    assert choose_types(make_plan(has_output=False), "q4_k_m")["token_embd.weight"] == "Q6_K"
    assert choose_types(make_plan(), "q4_k_m")["token_embd.weight"] == "Q4_K"


def test_what_loses_nothing_follows_what_is_stored():
    tensors = (planned("a.weight", 4, 256), planned("b.weight", 4, 256, dtype="F16"))

    def plan(*some):
        sizes = {"num_layers": 1, "num_heads": 1, "num_kv_heads": 1, "num_rows": 4}
        return Plan(architecture="llama", tensors=some, **sizes)

    assert lossless_quant(plan(tensors[0])) == "bf16"
    assert lossless_quant(plan(tensors[1])) == "f16"
    assert lossless_quant(plan(*tensors)) == "f32"


def test_an_unknown_quant_is_named():
    with pytest.raises(ValueError, match="q2_k"):
        choose_types(make_plan(), "q2_k")


def test_a_stack_of_mixed_types_is_kept_whole():
    first = planned("blk.0.ffn_up_exps.weight", 64, 256, dtype="F16").parts[0]
    other = planned("blk.0.ffn_up_exps.weight", 64, 256, dtype="F32").parts[0]
    stack = Planned(name="blk.0.ffn_up_exps.weight", shape=(2, 64, 256), parts=(first, other))

    assert stack.dtype == "F32"
