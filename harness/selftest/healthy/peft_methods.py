"""PEFT's other methods: IA3, AdaLoRA, LoHa, LoKr, OFT, VeRA, prompts, prefixes, single tokens."""

from __future__ import annotations

from functools import partial
from typing import Any

from harness.selftest.make import save_tuned
from harness.selftest.registry import Patient, Ward, healthy

Q: dict[str, Any] = {"target_modules": ["q_proj"]}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "oft": ("OFTConfig", {**Q, "oft_block_size": 4}),
    "boft": ("BOFTConfig", {**Q, "boft_block_size": 4}),
    "hra": ("HRAConfig", {**Q, "r": 4}),
    "vera": ("VeraConfig", {**Q, "r": 4}),
    "randlora": ("RandLoraConfig", {**Q, "r": 4}),
    "ia3": (
        "IA3Config",
        {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    ),
    "loha": ("LoHaConfig", {**Q, "r": 4}),
    "lokr": ("LoKrConfig", {**Q, "r": 4}),
    "adalora": ("AdaLoraConfig", {**Q, "init_r": 4, "target_r": 2, "total_step": 10}),
    "xlora-free-fourier": ("FourierFTConfig", {**Q, "n_frequency": 10}),
    "bone": ("MissConfig", {**Q, "r": 4}),
    "prompt": ("PromptTuningConfig", {"num_virtual_tokens": 4}),
    "prefix": ("PrefixTuningConfig", {"num_virtual_tokens": 4}),
    "p-tuning": ("PromptEncoderConfig", {"num_virtual_tokens": 4, "encoder_hidden_size": 16}),
    "layer-norm": ("LNTuningConfig", {"target_modules": ["input_layernorm"]}),
    "trainable-tokens": (
        "TrainableTokensConfig",
        {"token_indices": [90], "target_modules": ["embed_tokens"]},
    ),
    "shira": ("ShiraConfig", {**Q, "r": 4}),
    "psoft": ("PsoftConfig", Q),
    "tiny-lora": ("TinyLoraConfig", Q),
    "lily": ("LilyConfig", Q),
}
"""PEFT's methods, with what makes them small."""


def save_method(ward: Ward, *, kind: str, settings: dict[str, Any]) -> Patient:
    """Save an adapter of another method than LoRA."""
    import peft

    base = ward.get("transformers-llama").path
    made = getattr(peft, kind)(task_type="CAUSAL_LM", **settings)
    save_tuned(ward.folder, base, made)
    return Patient(path=ward.folder, options={"base": base})


for _name, (_kind, _settings) in METHODS.items():
    healthy(f"peft-{_name}")(partial(save_method, kind=_kind, settings=_settings))
