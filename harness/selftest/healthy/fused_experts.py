"""Merges of adapters on experts that lie in one parameter, by PEFT."""

from __future__ import annotations

from harness.selftest.make import (
    SIZES,
    SPECIAL,
    load_model,
    make_config,
    save_random,
    train_a_little,
)
from harness.selftest.registry import Patient, Ward, healthy


@healthy("peft-merged-experts")
def merge_experts(ward: Ward) -> Patient:
    """Merge an adapter of both parameters of a Mixtral's experts."""
    from peft import LoraConfig, get_peft_model

    base, adapter = ward.folder / "base", ward.folder / "adapter"
    save_random(base, make_config("MixtralConfig", **SIZES, **SPECIAL, num_local_experts=4))
    settings = LoraConfig(
        r=2,
        lora_alpha=4,
        target_modules=["q_proj"],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    )
    wrapped = get_peft_model(load_model(base), settings)
    train_a_little(wrapped)
    wrapped.save_pretrained(adapter)
    wrapped.merge_and_unload().save_pretrained(ward.folder / "merged")
    options = {"base": base, "adapter": adapter}
    return Patient(path=ward.folder / "merged", options=options)
