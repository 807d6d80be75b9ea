"""Models in few bits: GPTQ, AWQ, bitsandbytes and fp8, as their writers save them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.selftest.make import SIZES
from harness.selftest.packing import (
    Pack,
    pack_awq,
    pack_gptq,
    pack_int8,
    pack_nf4,
    pack_nf4_double,
)
from harness.selftest.registry import Patient, Ward, healthy

GPTQ: dict[str, Any] = {
    "quant_method": "gptq",
    "bits": 4,
    "group_size": 32,
    "desc_act": False,
    "sym": True,
    "lm_head": False,
    "true_sequential": True,
    "checkpoint_format": "gptq",
    "pack_dtype": "int32",
    "meta": {"quantizer": ["gptqmodel:5.6.0"]},
}
"""What GPTQModel writes."""
BNB: dict[str, Any] = {
    "quant_method": "bitsandbytes",
    "_load_in_4bit": True,
    "_load_in_8bit": False,
    "load_in_4bit": True,
    "load_in_8bit": False,
    "bnb_4bit_compute_dtype": "bfloat16",
    "bnb_4bit_quant_storage": "uint8",
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": False,
    "llm_int8_enable_fp32_cpu_offload": False,
    "llm_int8_has_fp16_weight": False,
    "llm_int8_skip_modules": None,
    "llm_int8_threshold": 6.0,
}
"""What transformers writes of bitsandbytes."""


@healthy("quantisable-llama")
def save_plain(ward: Ward) -> Patient:
    """Save a random model in bf16 whose layers are large enough for groups and blocks."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(4)
    sizes = {**SIZES, "hidden_size": 128, "intermediate_size": 256}
    LlamaForCausalLM(LlamaConfig(**sizes)).to(torch.bfloat16).save_pretrained(ward.folder)
    return Patient(path=ward.folder)


def save_packed(ward: Ward, pack: Pack, declared: dict[str, Any], *, beside: str = "") -> Patient:
    """Save the model with every linear layer of its blocks packed."""
    import torch
    from safetensors.torch import load_file, save_file

    base = ward.get("quantisable-llama").path
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(base / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            tensors[name] = tensor
            continue
        module = name.removesuffix(".weight")
        for part, value in pack(tensor.float().numpy()).items():
            tensors[f"{module}.{part}"] = torch.from_numpy(value.copy())
    save_file(tensors, ward.folder / "model.safetensors", {"format": "pt"})
    _declare(base, ward.folder, declared, beside)
    return Patient(path=ward.folder, options={"base": base})


def _declare(base: Path, folder: Path, declared: dict[str, Any], beside: str) -> None:
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = declared
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    if beside:
        (folder / beside).write_text(json.dumps(declared, indent=2), encoding="utf-8")


@healthy("gptq-v1")
def save_gptq(ward: Ward) -> Patient:
    """Save symmetric 4-bit GPTQ of version 1, the usual one."""
    return save_packed(ward, pack_gptq, GPTQ, beside="quantize_config.json")


@healthy("gptq-v2-asymmetric")
def save_gptq_v2(ward: Ward) -> Patient:
    """Save asymmetric GPTQ of version 2, in the order of the activations."""
    declared = {**GPTQ, "checkpoint_format": "gptq_v2", "sym": False, "desc_act": True}
    return save_packed(
        ward, lambda w: pack_gptq(w, symmetric=False, act_order=True, version=2), declared
    )


@healthy("gptq-v1-asymmetric")
def save_gptq_asymmetric(ward: Ward) -> Patient:
    """Save asymmetric GPTQ of version 1 as AutoGPTQ described it: no format is named."""
    declared = {**GPTQ, "sym": False, "checkpoint_format": None, "meta": None}
    return save_packed(ward, lambda w: pack_gptq(w, symmetric=False), declared)


@healthy("gptq-8-bit")
def save_gptq_8(ward: Ward) -> Patient:
    """Save GPTQ of 8 bits with one group a row."""
    declared = {**GPTQ, "bits": 8, "group_size": -1}
    return save_packed(ward, lambda w: pack_gptq(w, bits=8, size=w.shape[1]), declared)


@healthy("gptq-3-bit")
def save_gptq_3(ward: Ward) -> Patient:
    """Save GPTQ of 3 bits, whose levels run from word to word."""
    return save_packed(ward, lambda w: pack_gptq(w, bits=3), {**GPTQ, "bits": 3})


@healthy("awq-gemm")
def save_awq(ward: Ward) -> Patient:
    """Save AWQ in the packing of its gemm kernels."""
    declared: dict[str, Any] = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": 32,
        "zero_point": True,
    }
    declared |= {"version": "gemm", "modules_to_not_convert": None}
    return save_packed(ward, pack_awq, declared)


@healthy("bnb-nf4")
def save_nf4(ward: Ward) -> Patient:
    """Save NF4 of bitsandbytes."""
    return save_packed(ward, pack_nf4, BNB)


@healthy("bnb-nf4-double")
def save_nf4_double(ward: Ward) -> Patient:
    """Save NF4 with scales that are quantised too."""
    return save_packed(ward, pack_nf4_double, {**BNB, "bnb_4bit_use_double_quant": True})


@healthy("bnb-nf4-rocm")
def save_nf4_rocm(ward: Ward) -> Patient:
    """Save NF4 in blocks of 128 and say so, as bitsandbytes does on older AMD GPUs."""
    return save_packed(ward, lambda w: pack_nf4(w, size=128), BNB)


@healthy("bnb-nf4-in-bf16-storage")
def save_nf4_stored(ward: Ward) -> Patient:
    """Save NF4 whose levels lie in bf16 numbers, so that FSDP can shard them."""
    patient = save_packed(ward, pack_nf4, {**BNB, "bnb_4bit_quant_storage": "bfloat16"})
    import torch
    from safetensors.torch import load_file, save_file

    path = ward.folder / "model.safetensors"
    tensors = {
        name: value.flatten().view(torch.bfloat16)[:, None]
        if name.endswith("_proj.weight")
        else value
        for name, value in load_file(path).items()
    }
    save_file(tensors, path, {"format": "pt"})
    return patient


@healthy("bnb-int8")
def save_int8(ward: Ward) -> Patient:
    """Save LLM.int8 of bitsandbytes."""
    declared = {**BNB, "_load_in_4bit": False, "load_in_4bit": False, "load_in_8bit": True}
    return save_packed(ward, pack_int8, declared | {"_load_in_8bit": True})


@healthy("fp8-tiles")
def save_fp8(ward: Ward) -> Patient:
    """Save fp8 with one scale a tile of 128 by 128, as DeepSeek and transformers do."""
    import torch
    from safetensors.torch import load_file, save_file

    declared: dict[str, Any] = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    declared |= {"weight_block_size": [128, 128]}
    base = ward.get("quantisable-llama").path
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(base / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            tensors[name] = tensor
            continue
        rows, columns = -(-tensor.shape[0] // 128), -(-tensor.shape[1] // 128)
        scale = torch.full((rows, columns), float(tensor.abs().max()) / 448)
        tensors[name] = (tensor.float() / scale[0, 0]).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scale
    save_file(tensors, ward.folder / "model.safetensors", {"format": "pt"})
    _declare(base, ward.folder, declared, "")
    return Patient(path=ward.folder, options={"base": base})


def save_trained(ward: Ward, pack: Pack, declared: dict[str, Any], *, share: float) -> Patient:
    """Pack a model that training moved by `share` of every norm, in low rank and beside it.

    The base that is named is the one before training, as for the packed models of a hub.
    """
    import torch

    generator = torch.Generator().manual_seed(6)

    def train(weight: NDArray[np.float32]) -> NDArray[np.float32]:
        tuned = torch.from_numpy(weight)
        left = torch.randn(weight.shape[0], 8, generator=generator)
        change = left @ torch.randn(8, weight.shape[1], generator=generator)
        change = change / change.norm() + torch.randn(weight.shape, generator=generator) / 1e4
        moved: NDArray[np.float32] = (tuned + share * tuned.norm() * change / change.norm()).numpy()
        return moved

    return save_packed(ward, lambda weight: pack(train(weight)), declared)


@healthy("bnb-int8-trained-far")
def save_int8_trained(ward: Ward) -> Patient:
    """Save LLM.int8 of a model that training moved by a third of its norm."""
    declared = {**BNB, "_load_in_4bit": False, "load_in_4bit": False, "load_in_8bit": True}
    return save_trained(ward, pack_int8, declared | {"_load_in_8bit": True}, share=0.35)


@healthy("gptq-trained-far")
def save_gptq_trained(ward: Ward) -> Patient:
    """Save GPTQ of a model that training moved by half of its norm."""
    return save_trained(ward, pack_gptq, GPTQ, share=0.5)


@healthy("nf4-trained-far")
def save_nf4_trained(ward: Ward) -> Patient:
    """Save NF4 of a model that training moved by half of its norm."""
    return save_trained(ward, pack_nf4, BNB, share=0.5)


def save_own(ward: Ward, form: str, search: int = 0) -> Patient:
    """Save the model in one of our formats, as transformers quantises it while it reads."""
    import torch

    from mudpuppy.quant.opening import open_model
    from mudpuppy.quant.registered import FourBitConfig

    base = ward.get("quantisable-llama").path
    settings = FourBitConfig(format=form, search=search)
    open_model(base, torch.bfloat16, fourbit=settings).save_pretrained(ward.folder)
    return Patient(path=ward.folder, options={"base": base})


@healthy("mudpuppy-nf4")
def save_own_nf4(ward: Ward) -> Patient:
    """Save our NF4."""
    return save_own(ward, "nf4")


@healthy("mudpuppy-nf4-searched")
def save_own_searched(ward: Ward) -> Patient:
    """Save our NF4 with scales that were searched."""
    return save_own(ward, "nf4", search=8)


@healthy("mudpuppy-int4")
def save_own_int4(ward: Ward) -> Patient:
    """Save our int4."""
    return save_own(ward, "int4")


@healthy("mudpuppy-mxfp4")
def save_own_mxfp4(ward: Ward) -> Patient:
    """Save our MXFP4."""
    return save_own(ward, "mxfp4")
