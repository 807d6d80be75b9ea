"""An artefact lacks what belongs to a model beside its weights.

What it does: compares tokenizer, chat template and the ids that end a generation with those of the
base.

Why it is bad: a model without its tokenizer or template is served with another one and answers
oddly (FM04); without its EOS ids it runs on for ever on some servers (FM03).

Example: only the weights are saved, and the generation config is made anew.

What to do: copy tokenizer files, chat_template.jinja and generation_config.json from the base.
"""

from __future__ import annotations

from harness.findings import Evidence, Finding, Severity
from harness.observations import Observations
from harness.registry import Missing, probe


@probe("MPD713", modes=("FM03", "FM04"), severity=Severity.CRITICAL)
def check(observations: Observations) -> Finding | str:
    """Fail when tokenizer, template or EOS ids are not the base's."""
    if not observations.artefacts:
        raise Missing("no artefact was described")
    wrong = [
        Evidence(what=what, file=facts.artefact, found="not the base's", expected="the base's")
        for facts in observations.artefacts
        for what, is_kept in (
            ("tokenizer vocabulary", facts.vocabulary_kept),
            ("chat template", facts.template_kept),
            ("tokens that begin, end and pad", facts.specials_kept),
            ("EOS ids of the generation config", facts.eos_kept),
        )
        if not is_kept
    ]
    wrong += [
        Evidence(what=f"{name} in config.json", file=facts.artefact, found="not the base's")
        for facts in observations.artefacts
        for name in facts.config_changed
    ]
    if not wrong:
        return f"{len(observations.artefacts)} artefacts carry the base's tokenizer and ends"
    return Finding(
        message=f"the {wrong[0].what} of the {wrong[0].file} is missing or not the base's",
        evidence=tuple(wrong),
        cause="only the weights were saved, or a configuration was made anew",
        remedy="copy tokenizer files, chat_template.jinja and generation_config.json from the base",
    )
