"""Merges that PEFT makes: every kind of LoRA, every dtype, every size, several families."""

from __future__ import annotations

from functools import partial
from typing import Any

from harness.selftest.healthy.peft_lora import make_lora
from harness.selftest.make import load_model, save_merge, save_tuned
from harness.selftest.registry import Patient, Ward, healthy

KINDS = (
    "all-linear",
    "rslora",
    "rank-pattern",
    "alpha-pattern",
    "modules-to-save",
    "embeddings",
    "head",
    "dora",
    "bias-all",
    "tokens",
    "some-layers",
)
"""Adapters of the Llama that are merged; the dtypes take turns."""
FAMILIES = ("llama-tied", "qwen2", "gemma3", "mistral", "mixtral", "gpt2", "phi3", "qwen3-moe")
STRENGTHS = {"faint": 1e-5, "small": 1e-4, "usual": 3e-3, "strong": 0.1}
"""Standard deviation of what training moved."""
MERGEABLE = ("oft", "ia3", "loha", "lokr", "vera")


def save_kind(ward: Ward, *, kind: str, dtype: str) -> Patient:
    """Save the merge of an adapter of the ward."""
    base = ward.get("transformers-llama").path
    adapter = ward.get(f"peft-lora-{kind}").path
    save_merge(ward.folder, base, adapter, dtype=dtype)
    return Patient(path=ward.folder, options={"base": base, "adapter": adapter})


def save_family(ward: Ward, *, family: str) -> Patient:
    """Save the merge of an adapter on all linear layers of another family."""
    base = ward.get(f"transformers-{family}").path
    adapter = ward.get(f"peft-lora-{family}").path
    save_merge(ward.folder, base, adapter)
    return Patient(path=ward.folder, options={"base": base, "adapter": adapter})


def save_size(ward: Ward, *, scale: float, base: str, dtype: str) -> Patient:
    """Save adapter and merge of an update of some size, base and merge in some dtypes."""
    source = ward.get(base).path
    folder, adapter = ward.folder / "merged", ward.folder / "adapter"
    settings = make_lora(target_modules=["q_proj", "v_proj"])
    save_tuned(adapter, source, settings, scale=scale)
    save_merge(folder, source, adapter, dtype=dtype)
    return Patient(path=folder, options={"base": source, "adapter": adapter})


def save_method(ward: Ward, *, method: str) -> Patient:
    """Save the merge of an adapter that is no LoRA."""
    base, adapter = ward.get("transformers-llama").path, ward.get(f"peft-{method}").path
    save_merge(ward.folder, base, adapter)
    return Patient(path=ward.folder, options={"base": base, "adapter": adapter})


for _number, _kind in enumerate(KINDS):
    _dtype = ("fp32", "bf16", "fp16")[_number % 3]
    healthy(f"peft-merged-{_kind}")(partial(save_kind, kind=_kind, dtype=_dtype))
for _family in FAMILIES:
    healthy(f"peft-merged-{_family}")(partial(save_family, family=_family))
for _method in MERGEABLE:
    healthy(f"peft-merged-{_method}")(partial(save_method, method=_method))
for _name, _scale in STRENGTHS.items():
    for _base, _dtype in (("llama", "bf16"), ("bf16", "bf16"), ("bf16", "fp32")):
        healthy(f"peft-merged-{_name}-{_base}-{_dtype}")(
            partial(save_size, scale=_scale, base=f"transformers-{_base}", dtype=_dtype)
        )


@healthy("peft-merged-inside-output")
def save_inside_output(ward: Ward) -> Patient:
    """Save checkpoints, the adapter and its merge in one output folder, as people do."""
    base = ward.get("transformers-llama").path
    settings: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"]}
    for folder in (ward.folder, ward.folder / "checkpoint-4"):
        save_tuned(folder, base, make_lora(**settings))
    save_merge(ward.folder / "merged", base, ward.folder, dtype="bf16")
    return Patient(path=ward.folder)


@healthy("peft-merged-two")
def merge_two(ward: Ward) -> Patient:
    """Merge one adapter, put another on the result, and save that: the merge is its base."""
    source = ward.get("peft-merged").path
    save_tuned(ward.folder, source, make_lora(target_modules=["k_proj"]))
    return Patient(path=ward.folder, options={"base": source})


@healthy("peft-unloaded")
def unload(ward: Ward) -> Patient:
    """Save the base after an adapter was taken off it again; nobody calls it a fine-tune."""
    from peft import PeftModel

    base, adapter = ward.get("transformers-llama").path, ward.get("peft-lora").path
    PeftModel.from_pretrained(load_model(base), adapter).unload().save_pretrained(ward.folder)
    return Patient(path=ward.folder)
