"""The begin token is written twice.

What it does: renders the chat template and counts the begin tokens at its start, and counts those
that the tokenizer's post-processor adds. A template or a post-processor that writes two alone is a
fault. Where each writes one, as with Llama and Gemma, all depends on the reader, which is worth a
note; if the base had only one of the two, it is a risk.

Why it is bad: every prompt begins with a pair that the model saw never or only in training: a small
loss everywhere, and positions that are off by one (FM05).

Example: `{{ bos_token }}{{ bos_token }}` after a template was joined with another.

What to do: take `bos_token` out of the template, or encode the rendered text with
`add_special_tokens=False`.
"""

from __future__ import annotations

from harness.facts.chat import Chat, Naming
from harness.findings import Evidence, Finding, Severity
from harness.registry import probe


@probe("MPD816", modes=["FM05"], severity=Severity.MEDIUM)
def check(
    naming: Naming, any_chat: Chat | None, base_begins: tuple[int, int] | None
) -> Finding | str:
    """Count the begin tokens that template and post-processor write."""
    begin = naming.chosen.get("bos_token", "")
    added = sum(text == begin for text in naming.begins) if begin else 0
    written = any_chat.begins if any_chat is not None else 0
    if added < 2 and written < 2 and not (added and written):
        return f"the template writes {written} begin tokens, the tokenizer adds {added}"
    severity = Severity.MEDIUM
    if max(added, written) < 2:
        severity = Severity.MEDIUM if base_begins and not all(base_begins) else Severity.NOTE
    who = "template" if written > 1 else "tokenizer" if added > 1 else "template and tokenizer"
    return Finding(
        message=f"{who} together write {begin[:40]!r} {written + added} times at the start of a "
        "chat",
        evidence=(
            Evidence(what="begin tokens that the template writes", found=written),
            Evidence(what="begin tokens that the tokenizer adds", found=added, expected="0 or 1"),
        ),
        cause="the template writes the begin token, and the tokenizer adds it again",
        remedy="take bos_token out of the chat template, or encode rendered chats with "
        "add_special_tokens=False",
        severity=severity,
    )
