"""Classes of tokenizers that no family of models owns, before transformers 5 and since."""

from __future__ import annotations

GENERAL = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""Classes that take everything from tokenizer.json: no family's rules, no end token of its own."""
TAKEN_AS_IT_IS = (*GENERAL, "PreTrainedTokenizer", "AutoTokenizer")
"""Names that promise no rules of a family."""
NEW_OF_FILES = ("TokenizersBackend", "PythonBackend", "SentencePieceBackend")
"""Classes of transformers 5 that read the same files as those before it."""
NEW = (*NEW_OF_FILES, "MistralCommonBackend")
"""Classes that transformers 5 brought; older readers do not know them."""
