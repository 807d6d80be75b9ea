"""Settings of tokenizer, template and positions that contradict each other, where one is proved."""

from __future__ import annotations

from typing import Any

from harness.evidence.source import CheckpointEvidence
from harness.facts.chat import Naming, RopeFacts, StopTokens
from harness.facts.tokenizers import NEW_OF_FILES
from harness.repairs.draft import Draft, NotCertain
from harness.repairs.registry import repair

CONFIG, GENERATION = "config.json", "generation_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
ROPE_KEYS = ("rope_parameters", "rope_theta", "rope_scaling")
"""How the two dialects declare rotary positions."""


@repair("stop-tokens-disagree")
def agree_on_stop_tokens(draft: Draft, evidence: CheckpointEvidence) -> None:
    """Stop on the template's end of a turn and on the tokenizer's end, in both configurations."""
    facts: StopTokens = evidence.get("stop_tokens")
    turns = [marker.number for marker in facts.chat.ends] if facts.chat else []
    if None in turns:
        raise NotCertain("the template's end of a turn is no token of this tokenizer")
    if facts.chat is not None and not facts.was_trained and facts.model_type.startswith("qwen"):
        raise NotCertain("a base model may carry a template that it was not trained with")
    kept = [one for one in sorted(facts.effective) if facts.naming.is_special(one)]
    ends = [one for one in (*turns[:1], facts.end, *kept) if one is not None]
    stops = list(dict.fromkeys(ends))
    if not stops:
        raise NotCertain("no token is known to end an answer")
    names = [name for name in (GENERATION, CONFIG) if name in draft.names]
    if not names:
        raise NotCertain("the stop tokens of an adapter are those of its base")
    for name in names:
        value = draft.read_json(name)
        value["eos_token_id"] = stops if len(stops) > 1 else stops[0]
        draft.put_json(name, value, f"eos_token_id becomes {value['eos_token_id']}")
    if facts.end is None and facts.chat is not None and turns and TOKENIZER_CONFIG in draft.names:
        value = draft.read_json(TOKENIZER_CONFIG)
        value["eos_token"] = facts.chat.ends[0].text
        draft.put_json(TOKENIZER_CONFIG, value, f"eos_token becomes {value['eos_token'][:40]!r}")


@repair("tokenizer-class-changed")
def restore_tokenizer_class(draft: Draft, evidence: CheckpointEvidence) -> None:
    """Name the class that the base names, which older readers know too."""
    base: Naming | None = evidence.get("base_naming")
    theirs = base.settings.get("tokenizer_class") if base else None
    value = draft.read_json(TOKENIZER_CONFIG)
    if value.get("tokenizer_class") not in NEW_OF_FILES or not isinstance(theirs, str):
        raise NotCertain("the two classes cut texts in different ways; only a person can decide")
    value["tokenizer_class"] = theirs
    draft.put_json(
        TOKENIZER_CONFIG, value, f"tokenizer_class becomes {theirs[:60]}, as in the base"
    )


@repair("rope-disagrees")
def take_positions_of_the_base(draft: Draft, evidence: CheckpointEvidence) -> None:
    """Have both dialects say what the base says, where one of them does already."""
    rope: RopeFacts = evidence.get("rope")
    if rope.base is None:
        raise NotCertain("without the base it is not known which positions are right; pass --base")
    theirs = rope.base.effective
    if theirs is None or theirs not in (rope.new, rope.old):
        raise NotCertain("neither dialect says what the base says: a longer context may be meant")
    source: CheckpointEvidence = evidence.get("base_evidence")
    settings: dict[str, Any] = dict(source.get("config"))
    config = draft.read_json(CONFIG)
    for key in ROPE_KEYS:
        config.pop(key, None)
        if key in settings:
            config[key] = settings[key]
    draft.put_json(CONFIG, config, "rotary positions as in the base")
