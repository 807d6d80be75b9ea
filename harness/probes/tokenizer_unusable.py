"""tokenizer.json is JSON, but no tokenizer can be made of it.

What it does: looks at the parts without which loaders give up: the model inside, its vocabulary of
the right form, ids that are whole numbers, and merges whose tokens the vocabulary has.

Why it is bad: the weights load and nothing can be asked of them; some programs fall back on another
tokenizer and answer with nonsense (FM11, FM46).

Example: tokenizer.json holds the settings of tokenizer_config.json, copied onto the wrong name; or
tokens were deleted from the vocabulary by hand while the merges still need them.

What to do: copy tokenizer.json from the base model.
"""

from __future__ import annotations

from harness.facts.files import TokenizerForm
from harness.findings import Evidence, Finding, Severity
from harness.registry import probe

FILE = "tokenizer.json"


@probe("MPD805", modes=["FM11", "FM46"], severity=Severity.CRITICAL)
def check(tokenizer_form: TokenizerForm) -> Finding | str:
    """Report what keeps loaders from using tokenizer.json."""
    if not tokenizer_form.problems:
        return f"tokenizer.json is a tokenizer of {tokenizer_form.tokens:,} tokens"
    return Finding(
        message=f"no tokenizer can be made of tokenizer.json: {tokenizer_form.problems[0]}",
        evidence=tuple(
            Evidence(what="unusable", file=FILE, found=problem, expected="a tokenizer")
            for problem in tokenizer_form.problems
        ),
        cause="another file was copied onto this name, or it was edited by hand",
        remedy="copy tokenizer.json from the base model",
    )
