"""The chat template ignores `add_generation_prompt`.

What it does: renders a question with and without the generation prompt, and the same question with
its answer. When the flag changes nothing and something stands between question and answer, the
prompt is missing. Templates that need none, such as Mistral's, are fine.

Why it is bad: the model must write the head of its own turn first. Many go on in the user's name
instead, or print `assistant` into the answer (FM04).

Example: the last lines, `{% if add_generation_prompt %}...{% endif %}`, were cut off.

What to do: add them again, with the head that the template writes before an answer:
`{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}`.
"""

from __future__ import annotations

from harness.facts.chat import Chat
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe


@probe("MPD811", modes=["FM04"], severity=Severity.HIGH)
def check(chat: Chat) -> Finding | str:
    """Compare what stands before an answer with what the prompt writes."""
    if not chat.knows_answer:
        raise NotApplicable("the template renders no answer, so nothing can be compared")
    head = _without(chat.needed, chat.given)
    if chat.has_prompt or not head:
        return "what stands before an answer is there when one is wanted"
    return Finding(
        message=f"add_generation_prompt changes nothing: {head[:60]!r}, which stands before every "
        "answer, is left to the model",
        evidence=(
            Evidence(what="between question and answer", file=chat.file, found=chat.needed[:200]),
            Evidence(what="after the question, with the prompt", found=chat.given[:200]),
        ),
        cause="the template was cut off or written by hand without its generation prompt",
        remedy=f"end {chat.file} with {{% if add_generation_prompt %}}{{{{ {head[:60]!r} }}}}"
        "{% endif %}",
    )


def _without(needed: str, given: str) -> str:
    """Return what `needed` has beyond `given`; empty when they part before its end."""
    start = given.rstrip()
    return needed[len(start) :].strip() if needed.startswith(start) else ""
