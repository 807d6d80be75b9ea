"""Damages of models in few bits: zeros, scales, groups, blocks, parts and what is declared."""

from __future__ import annotations

import json
from typing import Any

from harness.selftest.edit import Tensors, drop_tensors, edit_json, edit_tensors
from harness.selftest.registry import Patient, damage

ZEROS, PARTS, BLOCKS = (
    "gptq-zeros-shifted",
    "quantised-parts-damaged",
    "quantised-block-size-wrong",
)
LAYER = "layers.1.mlp.down_proj"
"""The layer that is broken where one is enough."""


def _declare(patient: Patient, **changes: Any) -> None:
    """Change what the model declares about its quantisation, in every file that does."""
    path = patient.path / "config.json"
    declared = json.loads(path.read_text(encoding="utf-8"))["quantization_config"]
    edit_json(path, quantization_config={**declared, **changes})
    if (patient.path / "quantize_config.json").exists():
        edit_json(patient.path / "quantize_config.json", **changes)


def _edit_part(patient: Patient, part: str, change: Any) -> None:
    """Change one part of one layer."""

    def apply(tensors: Tensors) -> None:
        (name,) = (key for key in tensors if f"{LAYER}." in key and key.endswith(part))
        tensors[name] = change(tensors[name].clone())

    edit_tensors(patient.path, apply)


@damage("gptq-v1-declared-v2", patient="gptq-v1", mode="FM47", probe=ZEROS)
def declare_version_2(patient: Patient) -> None:
    """Declare version 2 over zeros of version 1."""
    _declare(patient, checkpoint_format="gptq_v2")


@damage("gptq-v2-declared-v1", patient="gptq-v2-asymmetric", mode="FM47", probe=ZEROS)
def declare_version_1(patient: Patient) -> None:
    """Declare version 1 over asymmetric zeros of version 2, which only the levels give away."""
    _declare(patient, checkpoint_format="gptq")


@damage("gptq-zeros-raised", patient="gptq-v1", mode="FM47", probe=ZEROS)
def raise_zeros(patient: Patient) -> None:
    """Store 8 where version 1 stores 7."""
    import torch

    middle = torch.tensor(-0x77777778, dtype=torch.int32)  # 0x88888888
    edit_tensors(
        patient.path,
        lambda tensors: {
            name: middle.expand(value.shape).clone() if name.endswith("qzeros") else value
            for name, value in tensors.items()
        },
    )


@damage("gptq-zeros-raised-in-one-layer", patient="gptq-v1", mode="FM47", probe=ZEROS)
def raise_zeros_of_one_layer(patient: Patient) -> None:
    """Store 8 where version 1 stores 7, in one layer."""
    _edit_part(patient, "qzeros", lambda value: value.fill_(-0x77777778))


@damage("gptq-8-bit-declared-v2", patient="gptq-8-bit", mode="FM47", probe=ZEROS)
def declare_version_2_of_8_bits(patient: Patient) -> None:
    """Declare version 2 over zeros of version 1, at 8 bits."""
    _declare(patient, checkpoint_format="gptq_v2")


@damage("gptq-scales-nan", patient="gptq-v1", mode="FM48", probe=PARTS)
def break_scales(patient: Patient) -> None:
    """Make the scales of one group NaN."""
    _edit_part(patient, "scales", lambda value: _fill_first(value, float("nan")))


def _fill_first(value: Any, number: float) -> Any:
    value[0] = number
    return value


@damage("gptq-scales-zero", patient="gptq-v1", mode="FM48", probe=PARTS)
def clear_scales(patient: Patient) -> None:
    """Make the scales of one group zero."""
    _edit_part(patient, "scales", lambda value: _fill_first(value, 0.0))


@damage("gptq-scales-negative", patient="gptq-v2-asymmetric", mode="FM48", probe=PARTS)
def negate_scales(patient: Patient) -> None:
    """Turn the sign of the scales of one group."""
    _edit_part(patient, "scales", lambda value: _fill_first(value, -0.01))


@damage("gptq-group-out-of-range", patient="gptq-v2-asymmetric", mode="FM48", probe=PARTS)
def leave_range(patient: Patient) -> None:
    """Name a group that is not there."""
    _edit_part(patient, "g_idx", lambda value: _fill_first(value, 99))


@damage("gptq-group-index-cleared", patient="gptq-v1", mode="FM48", probe=PARTS)
def clear_groups(patient: Patient) -> None:
    """Put every input into the first group."""
    _edit_part(patient, "g_idx", lambda value: value.zero_())


@damage("gptq-act-order-not-declared", patient="gptq-v2-asymmetric", mode="FM48", probe=PARTS)
def hide_act_order(patient: Patient) -> None:
    """Declare groups of neighbouring inputs, where they are in another order."""
    _declare(patient, desc_act=False)


@damage("gptq-group-size-wrong", patient="gptq-v1", mode="FM48", probe=PARTS)
def declare_larger_groups(patient: Patient) -> None:
    """Declare groups of 64, where they have 32."""
    _declare(patient, group_size=64)


@damage("gptq-bits-wrong", patient="gptq-v1", mode="FM48", probe=PARTS)
def declare_more_bits(patient: Patient) -> None:
    """Declare 8 bits, where there are 4."""
    _declare(patient, bits=8)


@damage("gptq-scales-missing", patient="gptq-v1", mode="FM48", probe=PARTS)
def drop_scales(patient: Patient) -> None:
    """Leave out the scales of one layer."""
    drop_tensors(patient.path, f"{LAYER}.scales")


@damage("awq-scales-infinite", patient="awq-gemm", mode="FM48", probe=PARTS)
def break_awq(patient: Patient) -> None:
    """Make the scales of one group infinite."""
    _edit_part(patient, "scales", lambda value: _fill_first(value, float("inf")))


@damage("nf4-absmax-nan", patient="bnb-nf4", mode="FM48", probe=PARTS)
def break_absmax(patient: Patient) -> None:
    """Make the scale of one block NaN."""
    _edit_part(patient, "absmax", lambda value: _fill_first(value, float("nan")))


@damage("nf4-table-turned", patient="bnb-nf4", mode="FM48", probe=PARTS)
def turn_table(patient: Patient) -> None:
    """Turn the table of levels of one layer around."""
    _edit_part(patient, "quant_map", lambda value: value.flip(0))


@damage("nf4-state-missing", patient="bnb-nf4-double", mode="FM33", probe=PARTS)
def drop_state(patient: Patient) -> None:
    """Leave out the state of one layer, without which it is taken for a plain weight."""
    drop_tensors(patient.path, f"{LAYER}.weight.quant_state")


@damage("int8-scale-missing", patient="bnb-int8", mode="FM48", probe=PARTS)
def drop_scb(patient: Patient) -> None:
    """Leave out the scales of one layer."""
    drop_tensors(patient.path, f"{LAYER}.SCB")


@damage("fp8-scale-nan", patient="fp8-tiles", mode="FM48", probe=PARTS)
def break_fp8(patient: Patient) -> None:
    """Make the scale of one tile NaN."""
    _edit_part(patient, "weight_scale_inv", lambda value: _fill_first(value, float("nan")))


@damage("nf4-absmax-of-larger-blocks", patient="bnb-nf4", mode="FM64", probe=BLOCKS)
def halve_absmax(patient: Patient) -> None:
    """Keep every other absmax, as blocks of twice the size would have."""
    _edit_part(patient, "weight.absmax", lambda value: value[::2])


@damage("nf4-state-of-larger-blocks", patient="bnb-nf4", mode="FM64", probe=BLOCKS)
def declare_larger_blocks(patient: Patient) -> None:
    """Declare blocks of 128 over absmax for blocks of 64."""
    _change_state(patient, b'"blocksize": 64', b'"blocksize": 128')


def _change_state(patient: Patient, old: bytes, new: bytes) -> None:
    import torch

    def apply(tensors: Tensors) -> None:
        for name in [name for name in tensors if "quant_state" in name]:
            text = bytes(tensors[name].tolist()).replace(old, new)
            tensors[name] = torch.tensor(list(text), dtype=torch.uint8)

    edit_tensors(patient.path, apply)


@damage("nf4-levels-of-larger-blocks", patient="bnb-nf4-rocm", mode="FM64", probe=BLOCKS)
def claim_smaller_blocks(patient: Patient) -> None:
    """Describe levels made in blocks of 128 as of 64, state and absmax alike."""
    _change_state(patient, b'"blocksize": 128', b'"blocksize": 64')
    edit_tensors(
        patient.path,
        lambda tensors: {
            name: value.repeat_interleave(2) if name.endswith("weight.absmax") else value
            for name, value in tensors.items()
        },
    )


@damage(
    "gptq-declared-bitsandbytes", patient="gptq-v1", mode="FM33", probe="quantisation-disagrees"
)
def declare_another_method(patient: Patient) -> None:
    """Put the configuration of bitsandbytes over GPTQ's layers."""
    declared = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}
    edit_json(patient.path / "config.json", quantization_config=declared)


@damage("nf4-declared-8-bit", patient="bnb-nf4", mode="FM33", probe="quantisation-disagrees")
def declare_8_bits(patient: Patient) -> None:
    """Declare 8 bits over 4-bit layers."""
    _declare(patient, load_in_4bit=False, load_in_8bit=True)


@damage("nf4-with-a-plain-layer", patient="bnb-nf4", mode="FM32", probe="quantisation-disagrees")
def unpack_one_layer(patient: Patient) -> None:
    """Store one layer plain among packed ones, as a merge into it alone would."""
    from safetensors.torch import load_file

    base = load_file(patient.options["base"] / "model.safetensors")

    def apply(tensors: Tensors) -> dict[str, Any]:
        name = f"model.{LAYER}.weight"
        kept = {key: value for key, value in tensors.items() if not key.startswith(name)}
        return {**kept, name: base[name]}

    edit_tensors(patient.path, apply)


@damage("nf4-undeclared", patient="bnb-nf4", mode="FM33", probe="quantisation-undeclared")
def forget_declaration(patient: Patient) -> None:
    """Take the declaration out of config.json."""
    edit_json(patient.path / "config.json", quantization_config=None)


@damage(
    "nf4-declared-over-plain", patient="bnb-nf4", mode="FM32", probe="quantisation-left-declared"
)
def unpack_all(patient: Patient) -> Patient:
    """Store every layer plain and keep the declaration."""
    from safetensors.torch import load_file

    base = load_file(patient.options["base"] / "model.safetensors")
    edit_tensors(patient.path, lambda _: base)
    return Patient(path=patient.path)


FAR = "quantised-far-from-base"


@damage("gptq-groups-shuffled", patient="gptq-v2-asymmetric", mode="FM48", probe=FAR)
def shuffle_groups(patient: Patient) -> None:
    """Turn the order of the groups of one layer around; every count and range stays right."""
    _edit_part(patient, "g_idx", lambda value: value.max() - value)


@damage("gptq-levels-of-another-layer", patient="gptq-v1", mode="FM48", probe=FAR)
def swap_levels(patient: Patient) -> None:
    """Give one layer the levels of another."""

    def apply(tensors: Tensors) -> None:
        name = f"model.{LAYER}.qweight"
        tensors[name] = tensors[name.replace("layers.1", "layers.2")]

    edit_tensors(patient.path, apply)


@damage("gptq-inputs-dead", patient="gptq-v1", mode="FM48", probe=FAR)
def kill_inputs(patient: Patient) -> None:
    """Take the weight from eight inputs of one layer: all levels at the zero."""
    _edit_part(patient, "qweight", lambda value: _fill_first(value, -0x77777778))


@damage("nf4-rows-moved", patient="bnb-nf4", mode="FM48", probe=FAR)
def move_rows(patient: Patient) -> None:
    """Shift the levels of one layer by some blocks, as a wrong offset would."""
    _edit_part(patient, f"{LAYER}.weight", lambda value: value.roll(4096, 0))


@damage("int8-scales-of-another-layer", patient="bnb-int8", mode="FM48", probe=FAR)
def scale_otherwise(patient: Patient) -> None:
    """Make every scale of one layer twice as large."""
    _edit_part(patient, "SCB", lambda value: value * 2)


@damage("gptq-scales-far-too-large", patient="gptq-v1", mode="FM48", probe=PARTS)
def enlarge_scales(patient: Patient) -> Patient:
    """Make the scales of one layer fifty times as large; no base is known."""
    _edit_part(patient, "scales", lambda value: value * 50)
    return Patient(path=patient.path)


@damage("nf4-absmax-far-too-large", patient="bnb-nf4", mode="FM48", probe=PARTS)
def enlarge_absmax(patient: Patient) -> Patient:
    """Make the absmax of one layer fifty times as large; no base is known."""
    _edit_part(patient, "weight.absmax", lambda value: value * 50)
    return Patient(path=patient.path)


@damage("own-nf4-scales-nan", patient="mudpuppy-nf4", mode="FM48", probe=PARTS)
def break_own_scales(patient: Patient) -> None:
    """Make the scales of one row NaN."""
    _edit_part(patient, ".scales", lambda value: _fill_first(value, float("nan")))


@damage("own-mxfp4-scales-nan", patient="mudpuppy-mxfp4", mode="FM48", probe=PARTS)
def break_own_exponents(patient: Patient) -> None:
    """Make the scales of one row the byte that stands for NaN."""
    _edit_part(patient, ".scales", lambda value: _fill_first(value, 255))


@damage("own-int4-scales-negative", patient="mudpuppy-int4", mode="FM48", probe=PARTS)
def negate_own_scales(patient: Patient) -> None:
    """Turn the sign of the scales of one row."""
    _edit_part(patient, ".scales", lambda value: _fill_first(value, -0.01))


@damage(
    "own-layer-missing",
    patient="mudpuppy-nf4",
    mode="FM33",
    probe=PARTS,
    also=("missing-tensors",),
)
def drop_own_layer(patient: Patient) -> None:
    """Leave out levels and scales of one layer."""
    drop_tensors(patient.path, f"{LAYER}.qweight")
    drop_tensors(patient.path, f"{LAYER}.scales")


@damage("own-nf4-block-size-wrong", patient="mudpuppy-nf4", mode="FM64", probe=BLOCKS)
def declare_own_larger_blocks(patient: Patient) -> None:
    """Declare blocks of 128, where there are 64."""
    _declare(patient, block_size=128)


@damage("own-int4-blocks-merged", patient="mudpuppy-int4", mode="FM64", probe=BLOCKS)
def spread_own_scales(patient: Patient) -> None:
    """Declare blocks of 32 and repeat every scale: the levels were made in blocks of 64."""
    _declare(patient, block_size=32)
    edit_tensors(
        patient.path,
        lambda tensors: {
            name: value.repeat_interleave(2, 1) if name.endswith(".scales") else value
            for name, value in tensors.items()
        },
    )


@damage("own-nf4-nibbles-swapped", patient="mudpuppy-nf4", mode="FM48", probe=FAR)
def swap_nibbles(patient: Patient) -> None:
    """Exchange the two levels of every byte of one layer, which only the base gives away."""
    _edit_part(patient, ".qweight", lambda value: (value >> 4) | (value << 4))


@damage("trained-int8-scales-doubled", patient="bnb-int8-trained-far", mode="FM48", probe=FAR)
def scale_all_trained(patient: Patient) -> None:
    """Make every scale of every layer twice as large."""
    edit_tensors(
        patient.path,
        lambda tensors: {
            name: value * 2 if name.endswith("SCB") else value for name, value in tensors.items()
        },
    )


@damage("trained-levels-of-another-layer", patient="gptq-trained-far", mode="FM48", probe=FAR)
def swap_trained_levels(patient: Patient) -> None:
    """Give one layer of a trained model the levels of another."""
    swap_levels(patient)


@damage("int8-off-the-model-of-its-run", patient="engine-qat-far", mode="FM48", probe=FAR)
def scale_beside_its_model(patient: Patient) -> None:
    """Make the scales of one int8 layer a quarter larger than the model beside it asks for."""
    edit_tensors(
        patient.path / "int8",
        lambda tensors: {
            name: value * 1.25 if name.endswith("1.mlp.up_proj.weight_scale") else value
            for name, value in tensors.items()
        },
    )
