"""Bugs in weights of few bits."""

from __future__ import annotations

import contextlib
from typing import Any

from harness.mutants.form import change_settings, mutant, part, replaces


def _silence_self_test() -> None:
    """Let the engine's own check of 4 bits pass."""

    @replaces(part("loading"), "check_round_trip")
    def check(*_: Any) -> float:
        return 0.1


def _change_packed(change: Any) -> None:
    """Change what packing to 4 bits gives, everywhere, and silence the engine's check of it."""
    _silence_self_test()

    @replaces(part("quant.formats.interface:Format"), "quantise")
    def quantise(original: Any, *words: Any, **named: Any) -> Any:
        return change(original(*words, **named))


@mutant("qlora-merge", "qlora-int4", caught_by="MPD712 MPD722")
def four_bit_block_ignored() -> None:
    """Quantise with blocks of 32, whatever was asked for (FM64)."""

    @replaces(part("loading"), "FourBitConfig")
    def make(original: Any, **named: Any) -> Any:
        return original(**{**named, "block_size": 32})


@mutant("qlora-merge", "qlora-int4", "qlora-mxfp4", "qlora-int8", caught_by="MPD722")
def four_bit_scales_misplaced() -> None:
    """Give every row the scales of the row before it, in training and afterwards.

    A kernel that reads them transposed (FM64). Everything agrees, and the base is ruined.
    """
    _change_packed(lambda packed: packed._replace(scales=packed.scales.roll(1, 0)))


@mutant("qlora-merge", "qlora-mxfp4", caught_by="MPD722")
def four_bit_scale_of_the_neighbour() -> None:
    """Read the scale of the block before, as where a kernel counts blocks from one."""
    _change_packed(lambda packed: packed._replace(scales=packed.scales.roll(1, 1)))


@mutant("qlora-merge", "qlora-int4", caught_by="MPD722")
def four_bit_off_by_one_level() -> None:
    """Read every level as the one after it: offset 7 for 8."""
    _silence_self_test()
    for name in ("int4:Int4", "nf4:Nf4"):
        form = part(f"quant.formats.{name}")
        form.levels = (*form.levels[1:], form.levels[0])


@mutant("qlora-merge", caught_by="MPD722")
def nf4_table_entry_wrong() -> None:
    """Read one of the 16 levels of NF4 wrongly: 0.25 is the neighbour's 0.34."""
    _silence_self_test()
    form = part("quant.formats.nf4:Nf4")
    form.levels = (*form.levels[:10], form.levels[11], *form.levels[11:])


@mutant("qlora-merge", "qlora-int4", "qlora-mxfp4", caught_by="MPD722")
def four_bit_nibbles_swapped() -> None:
    """Hold the even column in the high half of a byte and read it from the low one."""
    _change_packed(
        lambda packed: packed._replace(qweight=(packed.qweight << 4) | (packed.qweight >> 4))
    )


@mutant("qlora-int4", "qlora-mxfp4", "qlora-int8", caught_by="MPD712 MPD722")
def four_bit_format_ignored() -> None:
    """Accept `--quant`, and hold the base in NF4 all the same."""

    @replaces(part("loading"), "FourBitConfig")
    def make(original: Any, **named: Any) -> Any:
        return original(**{**named, "format": "nf4"})


@mutant("qlora-search", caught_by="MPD712 MPD722")
def four_bit_search_ignored() -> None:
    """Accept `--quant-search`, note it, and take the largest weight for the scale all the same."""

    @replaces(part("quant.formats.nf4"), "best_scales")
    def best_scales(original: Any, form: Any, blocks: Any, full: Any, _: int) -> Any:
        return original(form, blocks, full, 0)


@mutant("qlora-mxfp4", caught_by="MPD722")
def mxfp4_exponent_off_by_one() -> None:
    """Read the shared exponents of MXFP4 with a bias of 128."""
    _silence_self_test()

    @replaces(part("quant.formats.mxfp4:Mxfp4"), "scale_values")
    def scale_values(original: Any, self: Any, scales: Any) -> Any:
        return original(self, scales) / 2


@mutant("qlora-int8", caught_by="MPD722")
def int8_without_sign() -> None:
    """Lose the sign of every byte on the way back to a weight."""
    _silence_self_test()

    @replaces(part("quant.formats.int8"), "expand_bytes")
    def expand(original: Any, qweight: Any, *words: Any) -> Any:
        return original(qweight & 127, *words)


@mutant("qlora", caught_by="MPD712 MPD722")
def qlora_not_quantised() -> None:
    """Accept QLoRA and leave the base as it is: what is measured is LoRA."""
    change_settings(part("loading"), "_open", method="lora")


@mutant("gptq", caught_by="MPD710")
def gptq_is_rounding() -> None:
    """Round to the nearest level and call it GPTQ."""
    rounding = part("quant.gptq_matrix:_Rounding")

    @replaces(rounding, "run")
    def run(_: Any, self: Any, *__: Any) -> None:
        self.run_nearest()


@mutant("gptq", caught_by="MPD751")
def gptq_zero_point_of_another_version() -> None:
    """Store zero points as they are where the declared format stores one less (FM47).

    The own loader knows and adds nothing, others read weights one level off.
    """
    pack = part("quant.gptq_pack")
    for name in ("quant.gptq_matrix", "quant.gptq_pack"):

        @replaces(part(name), "pack_matrix")
        def pack_matrix(original: Any, levels: Any, scales: Any, zeros: Any, *more: Any) -> Any:
            return original(levels, scales, zeros + 1, *more)

    for name in ("quant.gptq_linear", "quant.gptq_read", "quant.gptq", "quant.gptq_pack"):
        module = part(name)
        if hasattr(module, "dequantise_gptq"):

            @replaces(module, "dequantise_gptq")
            def dequantise(_: Any, tensors: Any, bits: int, dtype: Any, **__: Any) -> Any:
                levels = pack.unpack_rows(tensors.qweight, bits).float()
                zeros = pack.unpack_rows(tensors.qzeros.T, bits).T.float()
                group = tensors.g_idx.long()
                weight = (levels - zeros[group]) * tensors.scales.float()[group]
                return weight.T.to(dtype).contiguous()


@mutant("gptq", caught_by="MPD710")
def gptq_calibrated_on_unrounded_inputs() -> None:
    """Calibrate every block on what the full model puts out, not on the quantised blocks' output.

    Each layer still beats rounding; the errors of the blocks before it are left to add up.
    """

    @replaces(part("quant.gptq"), "_quantise_block")
    def quantise(original: Any, model: Any, block: Any, *words: Any) -> Any:
        index, walking = words[2], words[3]
        plain = [one.route.run(block, index, one.hidden.get()) for one in walking]
        yield from original(model, block, *words)
        for one, output in zip(walking, plain, strict=True):
            slot, put = one.hidden, type(one.hidden).put
            slot.put = lambda _, slot=slot, put=put, output=output: put(slot, output)


@mutant("gptq", caught_by="MPD712")
def gptq_calibrated_on_one_sample() -> None:
    """Accept `--calibration-samples` and calibrate on the first sample alone."""

    @replaces(part("methods.gptq"), "quantise_model")
    def quantise(original: Any, model: Any, inputs: Any, *more: Any, **named: Any) -> Any:
        return original(model, inputs[:1], *more, **named)


@mutant("gptq", caught_by="MPD712")
def gptq_group_size_ignored() -> None:
    """Accept `--gptq-group-size` and use 16."""

    @replaces(part("methods.gptq"), "GptqConfig")
    def make(original: Any, **named: Any) -> Any:
        return original(**{**named, "group_size": 16})


@mutant("qat", caught_by="MPD712 MPD722")
def qat_without_fake_quantisation() -> None:
    """Train as if nothing were quantised, and quantise at the end: rounding, called training."""

    @replaces(part("methods.qat"), "fake_quantised")
    def nothing(*_: Any) -> Any:
        return contextlib.nullcontext([])


@mutant("qat", caught_by="MPD707")
def int8_of_the_base() -> None:
    """Write the int8 levels of the weights as they were before training."""

    @replaces(part("engine"), "load")
    def load(original: Any, *words: Any) -> Any:
        loaded = original(*words)
        loaded.model._before = part("methods.qat").quantise_weights(loaded.model)
        return loaded

    @replaces(part("methods.qat"), "quantise_weights")
    def quantise(original: Any, model: Any) -> Any:
        return vars(model).get("_before") or original(model)


@mutant("qat", caught_by="MPD707")
def int8_scales_of_the_whole_matrix() -> None:
    """Use one int8 scale for a whole matrix in what is saved, where training had one a row."""

    @replaces(part("methods.qat"), "quantise_weights")
    def quantise(original: Any, model: Any) -> Any:
        made = original(model)
        return {
            name: rows._replace(scales=rows.scales.mean().expand_as(rows.scales).contiguous())
            for name, rows in made.items()
        }


@mutant("full-fp8", caught_by="MPD712")
def fp8_ignored() -> None:
    """Accept fp8 and compute in bf16 (engines.md, section 5, number 9)."""

    @replaces(part("engine"), "fp8_linears")
    def nothing(*_: Any) -> Any:
        return contextlib.nullcontext([])
