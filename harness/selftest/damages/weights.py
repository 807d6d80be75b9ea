"""Damages of values: zeros, copies, explosions, values that are not finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness.selftest.edit import Tensors, edit_tensors
from harness.selftest.registry import Patient, damage

DEEP = "weights-six-layers"
TUNED = "weights-six-layers-tuned"


def _edit(patient: Patient, name: str, change: Callable[[Any], Any]) -> None:
    """Replace the tensors in whose names `name` occurs."""

    def apply(tensors: Tensors) -> Tensors:
        return {key: change(one) if name in key else one for key, one in tensors.items()}

    edit_tensors(patient.path, apply)


def _fill(patient: Patient, name: str, index: Any, value: float) -> None:
    """Set a part of the tensors in whose names `name` occurs to one value."""

    def fill(tensor: Any) -> Any:
        tensor[index] = value
        return tensor

    _edit(patient, name, fill)


@damage("weights-slice-never-filled", patient=DEEP, mode="FM60", probe="rows-dead")
def leave_slice(patient: Patient) -> None:
    """Leave the second of four slices of one matrix as it was allocated."""
    _fill(patient, "layers.3.mlp.up_proj", slice(12, 24), 0)


@damage("weights-columns-never-gathered", patient=DEEP, mode="FM60", probe="rows-dead")
def lose_columns(patient: Patient) -> None:
    """Lose the half of a row-parallel layer that another device held."""
    _fill(patient, "layers.2.self_attn.o_proj", (slice(None), slice(16)), 0)


@damage("weights-shard-gathered-twice", patient=DEEP, mode="FM60", probe="rows-dead")
def gather_twice(patient: Patient) -> None:
    """Put the first half of a matrix into its second half as well."""
    _edit(patient, "layers.4.mlp.gate_proj", lambda one: one[:24].repeat(2, 1))


@damage("weights-row-lost-against-base", patient=TUNED, mode="FM60", probe="rows-dead")
def lose_rows(patient: Patient) -> None:
    """Zero three scattered rows of a matrix whose base has them."""
    _fill(patient, "layers.1.mlp.up_proj", [3, 17, 31], 0)


@damage("weights-front-zero", patient=DEEP, mode="FM60", probe="rows-dead")
def zero_front(patient: Patient) -> None:
    """Zero the first half of a matrix."""
    _fill(patient, "layers.0.self_attn.q_proj", slice(16), 0)


@damage("weights-layer-exploded", patient=DEEP, mode="FM61", probe="layer-off-its-siblings")
def explode_layer(patient: Patient) -> None:
    """Make one layer fifty times as large."""
    _edit(patient, "layers.2.mlp.", lambda one: one * 50)


@damage("weights-layer-shrunk", patient=DEEP, mode="FM61", probe="layer-off-its-siblings")
def shrink_layer(patient: Patient) -> None:
    """Scale one matrix down to nothing."""
    _edit(patient, "layers.5.self_attn.v_proj", lambda one: one * 1e-3)


@damage("weights-two-layers-exploded", patient=DEEP, mode="FM61", probe="layer-off-its-siblings")
def explode_two(patient: Patient) -> None:
    """Let two neighbouring layers run away together."""
    _edit(patient, "layers.3.mlp.down_proj", lambda one: one * 20)
    _edit(patient, "layers.4.mlp.down_proj", lambda one: one * 25)


@damage("weights-one-value-huge", patient=DEEP, mode="FM61", probe="layer-off-its-siblings")
def flip_bit(patient: Patient) -> None:
    """Flip the top bit of the exponent of one value."""
    _fill(patient, "layers.1.self_attn.k_proj", (3, 7), 1e30)


@damage("weights-exploded-against-base", patient=TUNED, mode="FM61", probe="weights-exploded")
def explode_all(patient: Patient) -> None:
    """Make every matrix of the layers fifteen times as large."""
    _edit(patient, "_proj", lambda one: one * 15)


@damage("adapter-exploded", patient="peft-lora", mode="FM61", probe="adapter-exploded")
def explode_adapter(patient: Patient) -> None:
    """Let every factor B run away."""
    _edit(patient, "lora_B", lambda one: one * 1000)


@damage("adapter-one-module-exploded", patient="peft-lora", mode="FM61", probe="adapter-exploded")
def explode_module(patient: Patient) -> None:
    """Let the factors of one module run away."""
    _edit(patient, "layers.1.self_attn.v_proj.lora_B", lambda one: one * 300)


@damage("weights-one-nan", patient=DEEP, mode="FM41", probe="weights-nonfinite")
def put_nan(patient: Patient) -> None:
    """Put one NaN into the last value of a matrix."""
    _fill(patient, "layers.5.mlp.down_proj", (-1, -1), float("nan"))


@damage("weights-one-infinity", patient=DEEP, mode="FM12", probe="weights-nonfinite")
def put_infinity(patient: Patient) -> None:
    """Put one negative infinity into a norm."""
    _fill(patient, "layers.0.input_layernorm", 0, float("-inf"))


@damage("weights-filled-with-ones", patient=DEEP, mode="FM60", probe="weights-constant")
def fill(patient: Patient) -> None:
    """Fill a matrix with the value that its buffer was made with."""
    _fill(patient, "layers.3.self_attn.q_proj", slice(None), 0.02)
