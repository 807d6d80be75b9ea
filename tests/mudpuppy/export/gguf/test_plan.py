import json
from pathlib import Path

import pytest

from mudpuppy.export.gguf.architectures import CLASSES
from mudpuppy.export.gguf.blocks import Source, read_blocks
from mudpuppy.export.gguf.plan import make_plan
from mudpuppy.export.gguf.refusals import ExportRefused
from mudpuppy.export.gguf.settings import read_settings
from mudpuppy.export.gguf.tensors import Plan
from mudpuppy.safefile import checkpoint_tensors
from tests.mudpuppy.export.gguf.models import KINDS, edit_config, edit_tensors, make_model


def plan_of(folder: Path) -> Plan:
    return make_plan(folder, read_settings(folder))


def refusal(folder: Path) -> ExportRefused:
    with pytest.raises(ExportRefused) as caught:
        plan_of(folder)
    assert caught.value.exit_code == 2
    return caught.value


@pytest.mark.parametrize("kind", KINDS)
def test_every_stored_tensor_is_written_once_and_whole(kind: str, tmp_path: Path):
    plan = plan_of(make_model(tmp_path, kind, max_shard_size="100KB"))

    rows: dict[str, int] = {}
    for part in (part for one in plan.tensors for part in one.parts):
        rows[part.entry.name] = rows.get(part.entry.name, 0) + part.rows
    stored = checkpoint_tensors(tmp_path)
    assert rows == {
        name: entry.size // max(1, entry.shape[-1]) // 2 for name, entry in stored.items()
    }
    assert not plan.left_out
    assert all(
        one.rows == sum(part.rows for part in one.parts) for one in plan.tensors if one.parts
    )


def test_a_plan_reads_headers_alone(tmp_path: Path):
    folder = make_model(tmp_path, "llama")
    whole = plan_of(folder)
    path = folder / "model.safetensors"
    size = path.stat().st_size
    start = min(part.entry.start for one in whole.tensors for part in one.parts)
    with path.open("r+b") as handle:
        handle.truncate(start)
        handle.truncate(size)  # zeros, and nothing of them is looked at

    assert plan_of(folder) == whole


def test_an_unknown_architecture_is_refused_with_the_known_ones(tmp_path: Path):
    folder = make_model(tmp_path, "llama")
    edit_config(folder, architectures=["Qwen2ForCausalML"])

    error = refusal(folder)

    assert error.code == "MP-X01"
    assert "did you mean 'Qwen2ForCausalLM'" in str(error)
    assert all(name in str(error) for name in CLASSES)


def test_a_missing_tensor_is_named(tmp_path: Path):
    folder = make_model(tmp_path, "qwen3")
    name = "model.layers.1.self_attn.k_norm.weight"
    edit_tensors(folder, lambda t: {k: v for k, v in t.items() if k != name})

    error = refusal(folder)

    assert error.code == "MP-X02"
    assert f"{name} is missing" in str(error)


def test_of_the_experts_only_the_missing_one_is_named(tmp_path: Path):
    folder = make_model(tmp_path, "mixtral")
    name = "model.layers.1.block_sparse_moe.experts.2.w1.weight"
    edit_tensors(folder, lambda t: {k: v for k, v in t.items() if k != name})

    assert str(refusal(folder)).startswith(
        f"MP-X02: weights and config.json disagree: {name} is missing\n"
    )


def test_a_tensor_that_has_no_place_is_named(tmp_path: Path):
    folder = make_model(tmp_path, "llama")
    edit_tensors(folder, lambda t: {**t, "model.layers.2.mlp.up_proj.weight": t["lm_head.weight"]})

    error = refusal(folder)

    assert error.code == "MP-X02"
    assert "model.layers.2.mlp.up_proj.weight has no place" in str(error)


def test_a_shape_that_the_settings_contradict_is_told_in_both_ways(tmp_path: Path):
    folder = make_model(tmp_path, "llama")
    edit_config(folder, head_dim=32)

    error = refusal(folder)

    assert error.code == "MP-X02"
    assert "q_proj.weight has the shape 64 x 64, and config.json makes it 128 x 64" in str(error)


@pytest.mark.parametrize("kind", ["qwen2", "gemma3", "llama3"])
def test_a_tied_output_layer_that_is_the_embedding_is_left_out(kind: str, tmp_path: Path):
    folder = make_model(tmp_path, kind)
    edit_tensors(folder, lambda t: {**t, "lm_head.weight": t["model.embed_tokens.weight"].clone()})

    plan = plan_of(folder)

    assert plan.is_tied
    assert plan.left_out == {"lm_head.weight": "it is the embedding"}


@pytest.mark.parametrize("kind", ["qwen2", "gemma2"])
def test_a_tied_output_layer_that_differs_is_refused(kind: str, tmp_path: Path):
    folder = make_model(tmp_path, kind)
    edit_tensors(folder, lambda t: {**t, "lm_head.weight": t["model.embed_tokens.weight"] * 2})

    assert "lm_head.weight differs from the embedding" in str(refusal(folder))


def test_gemma_2_with_an_output_layer_of_its_own_is_refused(tmp_path: Path):
    folder = make_model(tmp_path, "gemma2")
    edit_config(folder, tie_word_embeddings=False)
    edit_tensors(folder, lambda t: {**t, "lm_head.weight": t["model.embed_tokens.weight"] * 2})

    assert "gemma2 has no output layer of its own" in str(refusal(folder))


def test_an_output_layer_that_is_lost_is_refused_where_nothing_ties_it(tmp_path: Path):
    folder = make_model(tmp_path, "llama")
    edit_tensors(folder, lambda t: {k: v for k, v in t.items() if k != "lm_head.weight"})

    assert "lm_head.weight is missing" in str(refusal(folder))


def test_where_llama_cpp_asks_for_an_output_layer_the_embedding_is_written_twice(tmp_path: Path):
    plan = plan_of(make_model(tmp_path, "qwen2moe", tie_word_embeddings=True))

    by_name = {one.name: one for one in plan.tensors}
    assert by_name["output.weight"].parts == by_name["token_embd.weight"].parts
    assert not plan.is_tied


def test_experts_in_one_tensor_are_the_experts_one_by_one(tmp_path: Path):
    import torch

    folder = make_model(tmp_path, "qwen3moe")
    apart = plan_of(folder)

    def fuse(tensors):
        found = {name: value for name, value in tensors.items() if ".experts." not in name}
        for start in ("model.layers.0.mlp.experts.", "model.layers.1.mlp.experts."):
            gate, up, down = (
                torch.stack([tensors[f"{start}{n}.{part}_proj.weight"] for n in range(4)])
                for part in ("gate", "up", "down")
            )
            found |= {f"{start}gate_up_proj": torch.cat([gate, up], 1), f"{start}down_proj": down}
        return found

    wanted = _values(apart)
    edit_tensors(folder, fuse)

    assert _values(plan_of(folder)) == wanted


def _values(plan: Plan) -> dict[str, bytes]:
    source = Source()
    return {
        one.name: b"".join(block.tobytes() for block in read_blocks(one, source))
        for one in plan.tensors
    }


def test_pictures_are_left_out_of_gemma_3(tmp_path: Path):
    import torch

    folder = make_model(tmp_path, "gemma3")
    alone = plan_of(folder)
    wrapped = {"text_config": json.loads((folder / "config.json").read_text())}
    wrapped["text_config"].pop("architectures")
    edit_config(
        folder,
        model_type="gemma3",
        architectures=["Gemma3ForConditionalGeneration"],
        **wrapped,
    )
    edit_tensors(
        folder,
        lambda t: {
            **{f"model.language_{k}" if k.startswith("model.") else k: v for k, v in t.items()},
            "model.vision_tower.head.weight": torch.zeros(2, 2),
            "model.multi_modal_projector.mm_input_projection_weight": torch.zeros(2, 2),
        },
    )

    plan = plan_of(folder)

    assert {one.name for one in plan.tensors} == {one.name for one in alone.tensors}
    assert dict(plan.metadata) == dict(alone.metadata)
    assert set(plan.left_out.values()) == {"it belongs to the part for pictures"}


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("llama", {"hidden_act": "gelu"}, "the activation is gelu"),
        ("qwen2", {"hidden_size": 60}, "60"),
        ("qwen3moe", {"norm_topk_prob": False}, "norm_topk_prob"),
        ("qwen2moe", {"norm_topk_prob": True}, "norm_topk_prob"),
        ("qwen3moe", {"mlp_only_layers": [0]}, "mlp_only_layers"),
        ("gemma2", {"query_pre_attn_scalar": 24}, "query_pre_attn_scalar is 24"),
        ("gemma2", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ("qwen2", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "llama3"),
        ("llama", {"num_hidden_layers": 0}, "num_hidden_layers"),
    ],
)
def test_settings_that_the_file_cannot_say_are_refused(
    kind: str, changes: dict, said: str, tmp_path: Path
):
    folder = make_model(tmp_path, kind)
    edit_config(folder, **changes)

    error = refusal(folder)

    assert error.code in ("MP-X03", "MP-X02")
    assert said in str(error)


def test_what_llama_cpp_computes_otherwise_beyond_a_window_is_told(tmp_path: Path):
    plan = plan_of(make_model(tmp_path, "mistral", sliding_window=64))

    assert any("sliding_window 64" in note for note in plan.notes)
