"""Which tensor of a GGUF file gets which type: the mixtures of llama.cpp's quantiser. No numbers.

`q4_k_m` and its kin name a mixture, not a type: some layers of the values and of the MLP's way
down, and the output layer, get more bits. What stands here was read in llama.cpp (b10605):
`prepare_tensors` of the converter for the plain types, `llama_tensor_get_type` and
`tensor_type_fallback` of the quantiser for the mixtures.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

from mudpuppy.export.gguf.tensors import MIXED, PLAIN, Plan, Planned

BASE = {"q6_k": "Q6_K", "q5_k_m": "Q5_K", "q4_k_m": "Q4_K", "q4_k_s": "Q4_K", "q3_k_m": "Q3_K"}
"""What a mixture gives to every tensor that nothing is said of."""
SMALLER_BLOCKS = {"Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""What takes the place of a type whose blocks of 256 values do not fill the rows."""
LARGE_BLOCK, SMALL_BLOCK = 256, 32
"""Values of a block of the K types, and of all others."""
MIXTRAL_EXPERTS = 8
"""Experts from whose number llama.cpp tells Mixtral, whose attention is small beside its experts
and gets more bits."""
LARGE_LAYERS = 80
"""Layers from whose number llama.cpp tells the models of 70 billion weights."""
_LAYER = re.compile(r"blk\.(\d+)\.")
_VALUES = ("attn_qkv.weight", "attn_kv_b.weight", "attn_v.weight")


def choose_types(plan: Plan, quant: str) -> dict[str, str]:
    """Return the type of every tensor, by its name.

    Args:
        plan: what the file will hold.
        quant: a name of `tensors.QUANTS`.

    Returns:
        Names of ggml's types such as `Q4_K`. Exact tensors are F32. Where rows are no multiple of a
        block, the type is what llama.cpp falls back to; where its quantiser gives up altogether
        (an output layer whose rows are no multiple of 32), F16.

    Raises:
        ValueError: there is no such name.
    """
    if quant in PLAIN:
        return {one.name: _plain_type(one, quant) for one in plan.tensors}
    if quant not in MIXED:
        raise ValueError(f"unknown quant {quant!r}")
    kept = lossless_quant(plan).upper()
    types = {one.name: "F32" if one.is_exact else kept for one in plan.tensors}
    mixed = _Mixture(plan, quant)
    return types | {one.name: mixed.next_type(one) for one in mixed.tensors}


def lossless_quant(plan: Plan) -> str:
    """Return the smallest plain quant that keeps every stored value as it is."""
    stored = {one.dtype for one in plan.tensors if not one.is_exact}
    return {frozenset({"BF16"}): "bf16", frozenset({"F16"}): "f16"}.get(frozenset(stored), "f32")


def _plain_type(planned: Planned, quant: str) -> str:
    if planned.is_exact:
        return "F32"
    if quant == "q8_0" and planned.columns % SMALL_BLOCK:
        return "F16"
    return quant.upper()


class _Mixture:
    """Hands out the types of a mixture; the place of a tensor among its like decides.

    `tensors` is what the quantiser touches at all, in its order: what belongs to no layer first,
    then layer by layer, each by name.
    """

    def __init__(self, plan: Plan, quant: str) -> None:
        self.plan, self.quant, self.base = plan, quant, BASE[quant]
        self.tensors = sorted(filter(_is_quantised, plan.tensors), key=_place)
        names = [one.name for one in plan.tensors]
        self.is_tied = "output.weight" not in names
        self.num_values = sum(map(_holds_values, names))
        self._values_seen, self._down_seen = itertools.count(), itertools.count()

    def next_type(self, planned: Planned) -> str:
        """Return the type of the next of `tensors`."""
        return _fitting(self._wanted(planned), planned.columns)

    def _wanted(self, planned: Planned) -> str:
        name = planned.name
        if name == "output.weight" or (self.is_tied and name == "token_embd.weight"):
            return "Q8_0" if planned.columns % LARGE_BLOCK else "Q6_K"
        if _holds_values(name):
            return self._type_of_values(next(self._values_seen))
        if "attn_k.weight" in name:
            return "Q8_0" if self.plan.num_experts == MIXTRAL_EXPERTS else self.base
        if "attn_output.weight" in name:
            return self._type_of_attention_output()
        if "ffn_down" in name:
            seen = next(self._down_seen)
            return self._type_of_down(_layer(name) if self.plan.num_experts > 1 else seen)
        return self.base

    def _type_of_values(self, place: int) -> str:
        if self.plan.num_experts == MIXTRAL_EXPERTS:
            return "Q8_0"
        if self.quant == "q3_k_m":
            found = "Q5_K" if place < 2 else "Q4_K"
        elif self.quant == "q4_k_s":
            found = "Q5_K" if place < 4 else "Q4_K"
        else:
            found = self._with_more_bits(place, self.num_values)
        return "Q5_K" if found == "Q4_K" and _is_large(self.plan) else found

    def _type_of_attention_output(self) -> str:
        if self.plan.num_experts == MIXTRAL_EXPERTS:
            return "Q5_K" if self.base in ("Q3_K", "Q4_K") else self.base
        return "Q4_K" if self.base == "Q3_K" else self.base

    def _type_of_down(self, place: int) -> str:
        if self.quant == "q3_k_m":
            return "Q5_K" if place < self.plan.num_layers // 16 else "Q4_K"
        if self.quant == "q4_k_s":
            return "Q5_K" if place < self.plan.num_layers // 8 else "Q4_K"
        return self._with_more_bits(place, self.plan.num_layers)

    def _with_more_bits(self, place: int, total: int) -> str:
        """Return Q6_K for the first and the last eighth, and every third place between them."""
        eighth = total // 8
        is_chosen = place < eighth or place >= 7 * total // 8 or (place - eighth) % 3 == 2
        return "Q6_K" if is_chosen else self.base


def _is_quantised(planned: Planned) -> bool:
    """Return whether the quantiser touches a tensor; norms, routers, biases and vectors it leaves.

    Axes of length one before the last do not count as axes there.
    """
    name = planned.name
    return (
        not planned.is_exact
        and planned.rows > 1
        and name.endswith("weight")
        and not name.endswith(("_norm.weight", "ffn_gate_inp.weight"))
    )


def _holds_values(name: str) -> bool:
    return any(part in name for part in _VALUES)


def _place(planned: Planned) -> tuple[int, str]:
    return _layer(planned.name), planned.name


def _layer(name: str) -> int:
    found = _LAYER.match(name)
    return int(found[1]) if found else -1


def _is_large(plan: Plan) -> bool:
    """Return whether llama.cpp takes a model for one of 70 billion weights."""
    shares_values = plan.num_heads != plan.num_kv_heads
    return plan.num_layers == LARGE_LAYERS and (
        plan.architecture == "qwen2" or (plan.architecture == "llama" and shares_values)
    )


def _fitting(wanted: str, columns: int) -> str:
    """Return a type whose blocks fill rows of so many columns."""
    if wanted in SMALLER_BLOCKS and columns % LARGE_BLOCK:
        wanted = SMALLER_BLOCKS[wanted]
    is_large = wanted in SMALLER_BLOCKS
    return "F16" if not is_large and columns % SMALL_BLOCK else wanted


def native_types(types: Iterable[str]) -> set[str]:
    """Return those that only llama.cpp's own code makes here."""
    return set(types) - {"F32", "F16", "BF16", "Q8_0"}
