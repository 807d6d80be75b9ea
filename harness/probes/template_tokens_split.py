"""The chat template marks turns with tokens that this tokenizer does not have, or never makes.

What it does: renders the template and looks up what it writes between the messages. The text that
ends an answer must be one token; and the markers of one family (`<|im_start|>` and `<|im_end|>`,
and the like) must all be tokens if one of them is. Heads such as `<|user|>` may be plain text:
Zephyr's are. A token that is in the vocabulary, but neither added nor the end of a merge, counts
as none: its text is cut like any other.

Why it is bad: the marker is cut into pieces of text. The model never learns them as one sign, and
no stop id can match the end of a turn (FM65, FM03).

Example: a ChatML template on the tokenizer of a model that has `<s>` and `</s>` only.

What to do: put the template of this tokenizer's model back, or add the tokens before training:
`tokenizer.add_special_tokens(...)` and `model.resize_token_embeddings(len(tokenizer))`. Tokens that
the vocabulary has already keep their ids when they are added again.
"""

from __future__ import annotations

from harness.facts.chat import Chat, Marker
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe

FAMILIES = (
    ("<|im_start|>", "<|im_end|>", "<|im_sep|>"),
    ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"),
    ("<start_of_turn>", "<end_of_turn>"),
    ("<|start_of_role|>", "<|end_of_role|>"),
    ("<|start|>", "<|message|>", "<|channel|>"),
    ("[INST]", "[/INST]"),
    ("<|turn>", "<turn|>"),
)
"""Markers that belong together: a model has all of them or none."""


@probe("MPD813", modes=["FM65", "FM04"], severity=Severity.HIGH)
def check(chat: Chat) -> Finding | str:
    """Report markers that are cut into pieces and must not be."""
    if not chat.markers:
        raise NotApplicable("the template writes no marker")
    split = dict.fromkeys([*_split_ends(chat), *_split_families(chat)])
    if not split:
        return f"{len(chat.markers)} markers are as the tokenizer has them"
    first = next(iter(split))
    return Finding(
        message=f"the chat template writes {first.text[:40]!r}, which this tokenizer does not "
        "take for one token: it is cut into pieces",
        evidence=tuple(
            Evidence(what="marker", file=chat.file, found=one.text[:60], expected="one token")
            for one in split
        ),
        cause="the template belongs to the tokenizer of another model, or tokens were taken out",
        remedy="put the template of this model back, or add the tokens before training with "
        "tokenizer.add_special_tokens(...) and model.resize_token_embeddings(len(tokenizer))",
    )


def _split_ends(chat: Chat) -> list[Marker]:
    """Return what ends an answer, when no token ends it."""
    if not chat.ends or any(one.number is not None for one in chat.ends):
        return []
    return [chat.ends[0]]


def _split_families(chat: Chat) -> list[Marker]:
    """Return markers that are split though others of their family are tokens."""
    found = []
    for family in FAMILIES:
        mine = [one for one in chat.markers if one.text in family]
        if any(one.number is not None for one in mine):
            found += [one for one in mine if one.number is None]
    return found
