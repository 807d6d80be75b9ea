"""Damages of the tensors of a model: missing, renamed, not finite, zero, untied."""

from __future__ import annotations

from functools import partial

from harness.selftest.edit import Tensors, drop_tensors, edit_json, edit_tensors, rename_tensors
from harness.selftest.registry import Patient, damage

Q0 = "model.layers.0.self_attn.q_proj.weight"
UP2 = "model.layers.2.mlp.up_proj.weight"


def rename(patient: Patient, old: str, new: str) -> None:
    """Replace a part of every name."""
    rename_tensors(patient.path, old, new)


def prefix(patient: Patient, words: str) -> None:
    """Put words before every name."""
    edit_tensors(patient.path, lambda tensors: {words + k: v for k, v in tensors.items()})


def drop(patient: Patient, part: str) -> None:
    """Leave out tensors."""
    drop_tensors(patient.path, part)


def put(patient: Patient, name: str, value: float, where: tuple[int, ...]) -> None:
    """Set one number, or one row, of a tensor."""

    def change(tensors: Tensors) -> None:
        tensors[name][where] = value

    edit_tensors(patient.path, change)


# --- wrappers (FM22, FM23) -----------------------------------------------------------------------

for _name, _words, _mode in (
    ("compiled-model", "_orig_mod.", "FM22"),
    ("ddp-model", "module.", "FM23"),
    ("engine-model", "_forward_module.", "FM23"),
):
    damage(_name, patient="transformers-llama", mode=_mode, probe="wrapper-prefix-left")(
        partial(prefix, words=_words)
    )
for _name, _patient, _old, _new in (
    ("fsdp-model", "transformers-llama", "self_attn.", "_fsdp_wrapped_module.self_attn."),
    ("streamed-model", "transformers-llama", "layers.1.", "layers.1.inner."),
    ("peft-model-as-model", "transformers-llama", "q_proj.", "q_proj.base_layer."),
    ("peft-tied-as-model", "transformers-llama-tied", "v_proj.", "v_proj.base_layer."),
    ("recomputed-model", "transformers-qwen2", "layers.0.", "layers.0._checkpoint_wrapped_module."),
):
    damage(_name, patient=_patient, mode="FM23", probe="wrapper-prefix-left")(
        partial(rename, old=_old, new=_new)
    )
damage("compiled-bf16", patient="transformers-bf16", mode="FM22", probe="wrapper-prefix-left")(
    partial(prefix, words="_orig_mod.")
)


# --- not finite (FM41, FM12) ---------------------------------------------------------------------

for _name, _patient, _tensor, _value in (
    ("nan", "transformers-llama", Q0, float("nan")),
    ("inf-bf16", "transformers-bf16", Q0, float("inf")),
    ("nan-fp16", "transformers-fp16", UP2, float("nan")),
    ("minus-inf-norm", "transformers-qwen2", "model.norm.weight", -float("inf")),
    (
        "nan-adapter",
        "peft-lora",
        "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight",
        float("nan"),
    ),
):
    damage(_name, patient=_patient, mode="FM41", probe="weights-nonfinite")(
        partial(put, name=_tensor, value=_value, where=(-1,))
    )


@damage("all-nan-adapter", patient="peft-lora-all-linear", mode="FM41", probe="weights-nonfinite")
def fill_with_nan(patient: Patient) -> None:
    """Save an adapter whose training had diverged: every number is NaN."""
    edit_tensors(patient.path, lambda tensors: {k: v * float("nan") for k, v in tensors.items()})


@damage("overflow", patient="transformers-llama", mode="FM12", probe="half-precision-overflow")
def overflow(patient: Patient) -> None:
    """Ask for fp16 where a weight is beyond it."""
    put(patient, Q0, 70_000.0, (0, 0))
    edit_json(patient.path / "config.json", dtype="float16")


@damage("cast-to-inf", patient="transformers-llama", mode="FM12", probe="weights-nonfinite")
def cast_to_half(patient: Patient) -> None:
    """Cast a model to fp16 in which one weight is beyond it."""
    put(patient, Q0, 70_000.0, (0, 0))
    edit_tensors(patient.path, lambda tensors: {k: v.half() for k, v in tensors.items()})
    edit_json(patient.path / "config.json", dtype="float16")


# --- missing (FM34, FM46) ------------------------------------------------------------------------

for _name, _patient, _part in (
    ("layer-gone", "transformers-llama", "layers.2."),
    ("projection-gone", "transformers-llama", "layers.1.mlp.up_proj"),
    ("norm-gone", "transformers-qwen3", "layers.0.self_attn.k_norm"),
    ("head-gone", "transformers-llama", "lm_head"),
    ("embedding-gone", "transformers-llama-tied", "embed_tokens"),
    ("bias-gone", "transformers-qwen2", "layers.1.self_attn.q_proj.bias"),
    ("expert-gone", "transformers-mixtral", "layers.1.block_sparse_moe.experts.1.w2"),
    ("last-norm-gone", "transformers-gemma2", "model.norm"),
    ("projection-of-gpt2-gone", "transformers-gpt2", "h.1.mlp.c_fc.weight"),
    ("layer-of-phi3-gone", "transformers-phi3", "layers.1.self_attn.qkv_proj"),
    ("bias-of-the-tower-gone", "transformers-whisper", "encoder.layers.1.fc1.bias"),
    ("layer-of-neox-gone", "transformers-gpt-neox", "layers.1.attention.dense"),
    ("half-a-layer-of-bloom-gone", "transformers-bloom", "h.1.mlp.dense_h_to_4h.weight"),
    ("part-of-an-expert-gone", "transformers-qwen3-moe", "layers.1.mlp.experts.2.up_proj"),
    ("router-gone", "transformers-qwen3-moe", "layers.1.mlp.gate."),
):
    damage(_name, patient=_patient, mode="FM34", probe="missing-tensors")(partial(drop, part=_part))


@damage("too-many-layers", patient="transformers-llama", mode="FM46", probe="missing-tensors")
def add_layers(patient: Patient) -> None:
    """Take the settings of a model with more layers."""
    edit_json(patient.path / "config.json", num_hidden_layers=5)


@damage("keys-not-shared", patient="transformers-kv-shared", mode="FM46", probe="missing-tensors")
def stop_sharing(patient: Patient) -> None:
    """Say of layers that take the keys of earlier ones that they have their own."""
    edit_json(patient.path / "config.json", num_kv_shared_layers=0)


@damage("whole-expert-gone", patient="transformers-qwen3-moe", mode="FM34", probe="missing-tensors")
def drop_expert(patient: Patient) -> None:
    """Lose an expert of one layer."""
    drop_tensors(patient.path, "layers.1.mlp.experts.2.")


@damage("int8-layer-gone", patient="engine-int8", mode="FM34", probe="missing-tensors")
def drop_int8(patient: Patient) -> None:
    """Lose a projection of the int8 form of a model."""
    drop_tensors(patient.path / "int8", "1.mlp.up_proj")


@damage("wider-config", patient="transformers-llama", mode="FM46", probe="shapes-disagree")
def widen_config(patient: Patient) -> None:
    """Take the settings of a model with a wider middle."""
    edit_json(patient.path / "config.json", intermediate_size=64)


@damage("more-key-heads", patient="transformers-qwen2", mode="FM46", probe="shapes-disagree")
def add_heads(patient: Patient) -> None:
    """Take the settings of a model without grouped keys."""
    edit_json(patient.path / "config.json", num_key_value_heads=4)


# --- zero and constant (FM60), untied (FM27) -----------------------------------------------------


def zero_tail(patient: Patient, name: str, share: float) -> None:
    """Lose the end of a tensor, as a copy does that was padded with zeros."""

    def change(tensors: Tensors) -> None:
        rows = tensors[name].shape[0]
        tensors[name][int(rows * share) :] = 0

    edit_tensors(patient.path, change)


for _name, _patient, _tensor, _share in (
    ("zero-matrix", "transformers-llama", Q0, 0.0),
    ("zero-tail", "transformers-llama", UP2, 0.5),
    ("zero-matrix-bf16", "transformers-bf16", "model.layers.1.mlp.down_proj.weight", 0.0),
    ("zero-norm", "transformers-mistral", "model.layers.1.input_layernorm.weight", 0.0),
    ("zero-head", "transformers-llama", "lm_head.weight", 0.0),
    ("zero-value-qwen2", "transformers-qwen2", "model.layers.1.self_attn.v_proj.weight", 0.3),
):
    damage(_name, patient=_patient, mode="FM60", probe="weights-all-zero")(
        partial(zero_tail, name=_tensor, share=_share)
    )


@damage("constant-matrix", patient="transformers-llama", mode="FM60", probe="weights-constant")
def make_constant(patient: Patient) -> None:
    """Fill a projection with one number, as memory that was never written may be."""

    def change(tensors: Tensors) -> None:
        tensors[UP2][:] = 0.5

    edit_tensors(patient.path, change)


for _patient in ("transformers-llama-tied", "transformers-gemma2", "transformers-qwen2-tied"):

    @damage(f"untied-{_patient}", patient=_patient, mode="FM27", probe="tied-embedding-diverged")
    def untie(patient: Patient) -> None:
        """Save a head that training moved away from the embedding it is tied to."""
        edit_tensors(
            patient.path,
            lambda tensors: {
                **tensors,
                "lm_head.weight": tensors["model.embed_tokens.weight"] + 0.1,
            },
        )


@damage(
    "merged-head-still-tied",
    patient="peft-lora-tied-head",
    mode="FM27",
    probe="tied-embedding-diverged",
)
def merge_tied_head(patient: Patient) -> Patient:
    """Merge an adapter with a head of its own, and leave the settings tied."""
    from harness.selftest.make import save_merge

    target = patient.path / "merged"
    save_merge(target, patient.options["base"], patient.path)
    edit_json(target / "config.json", tie_word_embeddings=True)
    return Patient(path=target)
