"""Two files of one tokenizer name different special tokens.

What it does: compares the roles (end, begin, padding, unknown) in tokenizer_config.json and
special_tokens_map.json. A role that only one of them names is fine.

Why it is bad: transformers takes tokenizer_config.json, other readers special_tokens_map.json. One
of them ends answers with a token that the model never writes (FM03).

Example: eos_token is `<|im_end|>` in one and `</s>` in the other, after an edit of one of them.

What to do: make both name the same, or delete special_tokens_map.json, which transformers 5 no
longer writes.
"""

from __future__ import annotations

from harness.facts.chat import Naming
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe

FIRST, SECOND = "tokenizer_config.json", "special_tokens_map.json"
_WEIGHTY = ("eos_token", "bos_token", "pad_token")


@probe("MPD820", modes=["FM03"], severity=Severity.MEDIUM)
def check(naming: Naming) -> Finding | str:
    """Compare the roles that both files name."""
    first, second = naming.by_file.get(FIRST), naming.by_file.get(SECOND)
    if first is None or second is None:
        raise NotApplicable("only one file names special tokens")
    both = [role for role in first if role in second]
    unlike = [role for role in both if first[role] != second[role]]
    if not unlike:
        return f"{FIRST} and {SECOND} name the same {len(both)} tokens"
    worst = next((role for role in unlike if role in _WEIGHTY), unlike[0])
    return Finding(
        message=f"{worst} is {second[worst][:40]!r} in {SECOND} and {first[worst][:40]!r} in "
        f"{FIRST}",
        evidence=tuple(
            Evidence(what=role, file=SECOND, found=second[role][:60], expected=first[role][:60])
            for role in unlike
        ),
        cause="one of the files was edited, or comes from another model",
        remedy=f"make {SECOND} say what {FIRST} says, or delete it",
        severity=Severity.MEDIUM if worst in _WEIGHTY else Severity.NOTE,
    )
