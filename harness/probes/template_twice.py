"""Two files hold two different chat templates.

What it does: where chat_template.jinja and tokenizer_config.json both hold one, renders both with
the same conversations and compares what they write. Templates that differ in nothing but their own
text are fine.

Why it is bad: transformers takes chat_template.jinja; readers that are older or smaller take the
one in tokenizer_config.json. The same model sees two formats, one of which it was not trained on
(FM04).

Example: a template was set for training and saved as chat_template.jinja into a folder whose
tokenizer_config.json still holds that of the base.

What to do: delete the one that the model was not trained with.
"""

from __future__ import annotations

from harness.facts.chat import Rendered
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe

BOTH = ("chat_template.jinja", "tokenizer_config.json")


@probe("MPD814", modes=["FM04"], severity=Severity.HIGH)
def check(renderings: tuple[Rendered, ...]) -> Finding | str:
    """Compare what the two templates write."""
    two = [one for one in renderings if one.file in BOTH and not one.problem]
    if len(two) < 2:
        raise NotApplicable("there are no two places that hold a template")
    first, second = two
    differing = [
        name
        for name in sorted({*first.texts, *second.texts})
        if first.texts.get(name, "").strip() != second.texts.get(name, "").strip()
    ]
    if not differing:
        return "both templates write the same"
    name = "question" if "question" in differing else differing[0]
    return Finding(
        message=f"{first.file} and {second.file} hold two chat templates that write different "
        "conversations",
        evidence=tuple(
            Evidence(
                what=f"rendered: {name}",
                file=one.file,
                found=one.texts.get(name, one.raised.get(name, ""))[:200],
            )
            for one in two
        ),
        cause="a new template was saved beside the old one",
        remedy="delete the template that the model was not trained with: the file "
        f"{first.file}, or chat_template in {second.file}",
    )
