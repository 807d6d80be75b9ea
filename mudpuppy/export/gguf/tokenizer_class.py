"""The class that transformers loads a tokenizer by, told without importing torch.

`AutoTokenizer` needs the settings of all models, and they need torch: two seconds, where writing a
small model takes one. For the families below its choice follows from two settings; everything else
is left to it. A test holds the choice here against its own.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

GENERIC = "TokenizersBackend"
"""The class that takes tokenizer.json as it is."""
MODULES = {
    GENERIC: "transformers.tokenization_utils_tokenizers",
    "Qwen2Tokenizer": "transformers.models.qwen2.tokenization_qwen2",
    "GemmaTokenizer": "transformers.models.gemma.tokenization_gemma",
}
"""Where the classes lie, none of which needs torch."""
REGISTERED: Mapping[str, str | None] = {
    "llama": None,
    "phi3": GENERIC,
    "qwen2": "Qwen2Tokenizer",
    "qwen2_moe": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
    "qwen3_moe": "Qwen2Tokenizer",
    "gemma2": "GemmaTokenizer",
    "gemma3": "GemmaTokenizer",
    "gemma3_text": "GemmaTokenizer",
}
"""What transformers registers for a family; None where it takes what tokenizer_config.json says."""
FORCED = ("qwen2",)
"""Families whose files transformers does not believe."""
_SPELLINGS = {"PreTrainedTokenizer": GENERIC, GENERIC: GENERIC}


def known_class(settings: Mapping[str, Any], config: Mapping[str, Any]) -> str | None:
    """Return the name of the class that AutoTokenizer takes; None where only it knows.

    Args:
        settings: tokenizer_config.json.
        config: config.json.
    """
    stated, family = settings.get("tokenizer_class"), config.get("model_type")
    if not isinstance(stated, str) or not isinstance(family, str):
        return None
    if "auto_map" in settings or family not in REGISTERED:
        return None
    name = stated.removesuffix("Fast")
    name = _SPELLINGS.get(name, name)
    if name not in MODULES:
        return None
    registered = REGISTERED[family]
    if registered == GENERIC or family in FORCED:
        return registered
    return name


def load_class(name: str) -> Any:
    """Return one of the classes of `MODULES`."""
    return getattr(importlib.import_module(MODULES[name]), name)
