"""Load tokenizer and base model in the types that the method needs."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from mudpuppy.config import TrainingConfig
from mudpuppy.errors import EngineError, ModelError
from mudpuppy.memory.streaming import place_for_streaming
from mudpuppy.quant.int4 import check_round_trip, replace_linears
from mudpuppy.runtime import Runtime


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A base model, ready for a method."""

    model: Any
    """The transformers model, on its device."""
    tokenizer: Any
    """Its tokenizer, with a pad token."""
    original_tokenizer: Any
    """The same as the base has it, to be saved: a pad token set for training must not spread."""
    eos_ids: frozenset[int]
    """Ids that end a turn: the tokenizer's, the config's and the generation config's."""
    quantised: tuple[str, ...]
    """Names of the modules that were replaced by 4-bit ones."""


def load(path: str, config: TrainingConfig, runtime: Runtime) -> Loaded:
    """Load the base model.

    Full fine-tuning holds fp32 master weights and computes under autocast; an adapter's frozen base
    is held in the precision itself, and for QLoRA in 4 bits.

    Raises:
        ModelError: the model cannot be loaded, or its tokenizer has no EOS token.
    """
    # One line a file is noise beside the lines a step.
    disable_progress_bar()
    original = load_tokenizer(path, config.trust_remote_code)
    dtype = torch.float32 if config.method == "full" else runtime.dtype
    model = _load_model(path, dtype, config.trust_remote_code)
    quantised: list[str] = []
    if config.method == "qlora":
        # Wrong 4-bit kernels raise nothing: some GPUs had them (engines.md, section 4).
        check_round_trip(runtime.device)
        quantised = replace_linears(
            model, block_size=config.quant_block_size, compute_dtype=runtime.dtype
        )
        if not quantised:
            raise EngineError(f"{path}: no linear layer could be quantised to 4 bits")
    if config.stream:
        place_for_streaming(model, runtime.device)
    else:
        model.to(runtime.device)
    model.config.use_cache = False
    tokenizer = with_pad_token(original)
    return Loaded(
        model=model,
        tokenizer=tokenizer,
        original_tokenizer=original,
        eos_ids=collect_eos_ids(model, tokenizer),
        quantised=tuple(quantised),
    )


def load_tokenizer(path: str, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer as it is.

    Raises:
        ModelError: there is no tokenizer, or it has no EOS token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{path}: the tokenizer cannot be loaded: {_first_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{path}: the tokenizer has no EOS token, so no answer could ever end")
    return tokenizer


def with_pad_token(tokenizer: Any) -> Any:
    """Return the tokenizer, or a copy with a pad token where it has none."""
    if tokenizer.pad_token_id is not None:
        return tokenizer
    padded = copy.deepcopy(tokenizer)
    # Padding is masked by position, never by id, so EOS stays trained even where it pads.
    padded.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return padded


def _load_model(path: str, dtype: torch.dtype, trust_remote_code: bool) -> Any:
    """Load the weights and refuse a checkpoint that does not fill the model."""
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, trust_remote_code=trust_remote_code, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{path}: the model cannot be loaded: {_first_line(error)}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        # transformers fills these at random and only warns (FM34).
        raise ModelError(
            f"{path}: {len(missing)} tensors are not in the checkpoint and would be random, "
            f"such as {missing[0]}",
            hint=f"see what is wrong with it: mudpuppy-doctor {path}",
        )
    return model


def collect_eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return every id that ends a turn for this model."""
    found = {tokenizer.eos_token_id}
    for source in (model.config.get_text_config(), model.generation_config):
        ids = source.eos_token_id if source is not None else None
        found.update(ids if isinstance(ids, list) else [ids])
    return frozenset(token for token in found if token is not None)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def local_folder(path: str) -> Path | None:
    """Return the folder of a model: its own, or that of a hub id in the hub's cache."""
    folder = Path(path)
    if folder.is_dir():
        return folder.resolve()
    cached = try_to_load_from_cache(path, "config.json")
    return Path(cached).parent if isinstance(cached, str) else None
