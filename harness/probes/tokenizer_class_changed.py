"""The class of the tokenizer is not the one that the base names.

What it does: compares `tokenizer_class` of tokenizer_config.json with that of the base.
`TokenizersBackend`, which transformers 5 writes, is worth a note where the base names a class that
other readers know.

Why it is bad: readers before transformers 5, among them older vLLM, llama.cpp's converter and
mlx-lm, stop with "Tokenizer class TokenizersBackend does not exist or is not currently imported."
(FM31). A class of another family may cut texts in another way; whether tokenizer.json does so is
looked at by itself.

Example: the base names Qwen2Tokenizer, the fine-tuned model TokenizersBackend.

What to do: write the class of the base into tokenizer_config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.facts.chat import Naming
from harness.facts.tokenizers import NEW, TAKEN_AS_IT_IS
from harness.findings import Evidence, Finding, Severity
from harness.registry import Missing, NotApplicable, probe

FILE = "tokenizer_config.json"


@probe("MPD818", modes=["FM31"], severity=Severity.NOTE)
def check(
    naming: Naming, base_naming: Naming | None, config_or_empty: Mapping[str, Any]
) -> Finding | str:
    """Compare the classes, with and without `Fast`; without a base, class and version."""
    mine = naming.settings.get("tokenizer_class")
    if not isinstance(mine, str):
        raise NotApplicable("the tokenizer names no class")
    if base_naming is None:
        version = str(config_or_empty.get("transformers_version", ""))[:20]
        if mine in NEW and version.startswith(("3.", "4.")):
            return _find(mine, f"one that transformers {version} knows, which saved the model")
        raise Missing("without the base, nobody says which class is right; pass --base PATH")
    theirs = base_naming.settings.get("tokenizer_class")
    if not isinstance(theirs, str):
        raise NotApplicable("the tokenizer of the base names no class")
    if mine.removesuffix("Fast") == theirs.removesuffix("Fast"):
        return f"both are of the class {mine[:60]}"
    if (mine in TAKEN_AS_IT_IS and mine not in NEW) or theirs in NEW:
        return f"the class is {mine[:60]}, that of the base {theirs[:60]}"
    return _find(mine, f"{theirs[:60]}, the class of the base")


def _find(mine: str, expected: str) -> Finding:
    is_new = mine in NEW
    return Finding(
        message=f"the tokenizer is of the class {mine[:60]}, expected {expected}"
        + (': readers before transformers 5 say that it "does not exist"' if is_new else ""),
        evidence=(Evidence(what="tokenizer_class", file=FILE, found=mine[:60], expected=expected),),
        cause="transformers 5 saved it" if is_new else "the files of two tokenizers were mixed",
        remedy=f"write the class of the base as tokenizer_class into {FILE}, or "
        "PreTrainedTokenizerFast, which every reader knows",
    )
