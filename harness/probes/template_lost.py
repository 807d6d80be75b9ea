"""The chat template is not there, or not the one that was trained with.

What it does: looks for a chat template where the base model has one, where mudpuppy.json recorded
one, and where the tokenizer's end token is an end of turn, which only chat models have. A template
that is there is held against the recorded hash.

Why it is bad: servers refuse the model or fall back on a template of their own, and the model sees
turns that it was never trained on (FM04).

Example: the template lived in the settings of the training program and was never saved.

What to do: copy chat_template.jinja from the base model, or set `tokenizer.chat_template` to the
one of the training and save the tokenizer again.
"""

from __future__ import annotations

from harness.facts.chat import TemplatePlaces
from harness.findings import Evidence, Finding, Severity
from harness.registry import probe

FILE = "chat_template.jinja"


@probe("MPD815", modes=["FM04"], severity=Severity.HIGH)
def check(template_places: TemplatePlaces) -> Finding | str:
    """Report a template that is gone or exchanged."""
    places = template_places
    if places.hashes:
        if places.recorded and places.recorded not in places.hashes:
            return _find(
                "the chat template is not the one that mudpuppy.json recorded while training",
                Evidence(
                    what="hash of the template",
                    file=places.files[0],
                    found=", ".join(places.hashes),
                    expected=places.recorded,
                ),
                Severity.HIGH,
            )
        return "a chat template is there"
    if places.recorded:
        found = Evidence(what="chat_template_hash", file="mudpuppy.json", found=places.recorded)
        return _find("the chat template of the training was not saved", found, Severity.HIGH)
    if places.base:
        found = Evidence(what="template of the base", file=places.base, found="not here")
        return _find(
            "the base has a chat template and this checkpoint has lost it", found, Severity.HIGH
        )
    if places.turn_end:
        found = Evidence(what="eos_token", file="tokenizer_config.json", found=places.turn_end)
        return _find(
            f"answers end with {places.turn_end!r}, as those of a chat model, and there is no chat "
            "template",
            found,
            Severity.MEDIUM,
        )
    return "no chat template is needed, as far as can be told"


def _find(message: str, evidence: Evidence, severity: Severity) -> Finding:
    return Finding(
        message=message,
        evidence=(evidence,),
        cause="the template was not saved with the tokenizer, or another was saved after training",
        remedy=f"copy {FILE} from the base model, or set tokenizer.chat_template to the one of the "
        "training and call tokenizer.save_pretrained(FOLDER)",
        severity=severity,
    )
