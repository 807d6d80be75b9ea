"""What builders of healthy checkpoints share: random models, values as training leaves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
"""The shape of the small random models of the self-test."""
SPECIAL: dict[str, Any] = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
"""Their special tokens."""
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""torch's names of the dtypes that the command line knows."""


def make_config(name: str, /, **settings: Any) -> Any:
    """Return a configuration of transformers by the name of its class."""
    import transformers

    return getattr(transformers, name)(**settings)


def save_random(
    folder: Path,
    config: Any,
    *,
    dtype: str = "fp32",
    auto: str = "AutoModelForCausalLM",
    seed: int = 0,
    **how: Any,
) -> Any:
    """Save a model with the random weights that transformers gives it, and return it."""
    import torch
    import transformers

    torch.manual_seed(seed)
    kind = getattr(transformers, auto)
    model = kind.from_config(config, dtype=getattr(torch, DTYPES[dtype]))
    model.save_pretrained(folder, **how)
    return model


def load_model(folder: Path, *, dtype: str = "fp32", auto: str = "AutoModelForCausalLM") -> Any:
    """Load a model as people load one."""
    import torch
    import transformers

    return getattr(transformers, auto).from_pretrained(folder, dtype=getattr(torch, DTYPES[dtype]))


def train_a_little(model: Any, *, scale: float = 0.02, seed: int = 1) -> None:
    """Move every trainable parameter as a short training would, without one."""
    import torch

    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * scale)


def save_tuned(
    folder: Path,
    base: Path,
    settings: Any,
    *,
    auto: str = "AutoModelForCausalLM",
    dtype: str = "fp32",
    scale: float = 0.02,
    **how: Any,
) -> Any:
    """Save an adapter of PEFT on `base` with values as training leaves them, and return it."""
    from peft import get_peft_model

    wrapped = get_peft_model(load_model(base, dtype=dtype, auto=auto), settings)
    train_a_little(wrapped, scale=scale)
    wrapped.save_pretrained(folder, **how)
    return wrapped


def save_merge(
    folder: Path,
    base: Path,
    adapter: Path,
    *,
    dtype: str = "fp32",
    auto: str = "AutoModelForCausalLM",
) -> None:
    """Save the merge that PEFT makes."""
    from peft import PeftModel

    model = load_model(base, dtype=dtype, auto=auto)
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(folder)


def reward_variety(completions: list[Any], **_: Any) -> list[float]:
    """Reward an answer for the variety of its letters."""
    texts = [str(one) for one in completions]
    return [len(set(text)) / (len(text) or 1) for text in texts]
