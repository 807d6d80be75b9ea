"""Added tokens have two ids, or two tokens one id.

What it does: compares the added tokens of tokenizer.json with its vocabulary, with
`added_tokens_decoder` of tokenizer_config.json and with added_tokens.json.

Why it is bad: which id a special token gets depends on the file that a reader takes. One of the two
rows of the embedding was trained, the other was not (FM11, FM65).

Example: `<|im_end|>` is 32000 in tokenizer.json and 32001 in added_tokens.json.

What to do: copy all tokenizer files from one save, or save the tokenizer again with
`tokenizer.save_pretrained(FOLDER)` into an empty folder.
"""

from __future__ import annotations

from harness.facts.chat import Clash
from harness.findings import Evidence, Finding, Severity
from harness.registry import probe


@probe("MPD821", modes=["FM11", "FM65"], severity=Severity.HIGH)
def check(added_clashes: tuple[Clash, ...]) -> Finding | str:
    """Report every disagreement about an added token."""
    if not added_clashes:
        return "every added token has one id in all files"
    first = added_clashes[0]
    return Finding(
        message=f"{first.what} is {first.found} in {first.file}, and {first.expected} elsewhere",
        evidence=tuple(
            Evidence(what=one.what, file=one.file, found=one.found, expected=one.expected)
            for one in added_clashes
        ),
        cause="the files of two tokenizers were mixed, or one was edited by hand",
        remedy="copy all tokenizer files from one save, or call tokenizer.save_pretrained(FOLDER) "
        "again",
    )
