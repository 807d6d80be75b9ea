"""A chat template that does not parse.

What it does: parses every chat template of the folder (chat_template.jinja, and those inside
tokenizer_config.json) in jinja's sandbox, with the tags and filters that transformers has. It
renders nothing, so a template that raises or never ends is not found here.

Why it is bad: the first conversation stops with a TemplateSyntaxError; servers that catch it fall
back on another template, and the model sees turns that it was never trained on (FM04).

Example: `{% if message.role == 'user' %}` without its `{% endif %}`, after an edit by hand.

What to do: copy chat_template.jinja from the base model, or mend the line that is named.
"""

from __future__ import annotations

from harness.facts.files import Template
from harness.findings import Evidence, Finding, Severity
from harness.registry import probe


@probe("MPD806", modes=["FM04"], severity=Severity.HIGH)
def check(templates: tuple[Template, ...]) -> Finding | str:
    """Report templates that jinja refuses."""
    bad = [one for one in templates if one.problem]
    if not bad:
        return "the chat template parses" if len(templates) == 1 else "the chat templates parse"
    first = bad[0]
    line = "" if first.line is None else f", line {first.line}"
    return Finding(
        message=f"the chat template in {first.file}{line} does not parse: {first.problem}",
        evidence=tuple(
            Evidence(
                what=f"template {one.name}".strip()
                + ("" if one.line is None else f" line {one.line}"),
                file=one.file,
                found=one.problem,
            )
            for one in bad
        ),
        cause="the template was edited by hand, or cut off",
        remedy=f"copy {first.file} from the base model, or mend the template",
    )
