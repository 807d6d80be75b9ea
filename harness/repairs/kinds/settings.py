"""Settings that contradict the weights beside them, where the weights decide."""

from __future__ import annotations

from harness.evidence.source import CheckpointEvidence
from harness.facts.checkpoint import Adapter, TiedPair
from harness.repairs.draft import Draft, NotCertain
from harness.repairs.registry import repair

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"


@repair("quantisation-left-declared")
def clear_quantisation(draft: Draft, evidence: CheckpointEvidence) -> None:
    """Take a declaration of quantised weights away from weights that are not."""
    del evidence
    config = draft.read_json(CONFIG)
    if config.pop("quantization_config", None) is None:
        raise NotCertain("the declaration is not in config.json")
    draft.put_json(CONFIG, config, "quantization_config taken out: the weights are not quantised")


@repair("tied-embedding-diverged")
def untie_embeddings(draft: Draft, evidence: CheckpointEvidence) -> None:
    """Have both matrices loaded as they were saved, since they differ."""
    pair: TiedPair = evidence.get("tied_pair")
    if pair.base_head:
        raise NotCertain("the head is not in the files; it must be taken from a complete copy")
    config = draft.read_json(CONFIG)
    places = [config, *(config[key] for key in ("text_config", "llm_config") if key in config)]
    tied = [one for one in places if isinstance(one, dict) and one.get("tie_word_embeddings", 1)]
    for one in tied:
        one["tie_word_embeddings"] = False
    config["tie_word_embeddings"] = False
    draft.put_json(CONFIG, config, "tie_word_embeddings false: embedding and head are two matrices")


@repair("adapter-config-disagrees")
def set_rank_from_shapes(draft: Draft, evidence: CheckpointEvidence) -> None:
    """Set the rank that the shapes show; the scale (lora_alpha) is not theirs to decide."""
    adapter: Adapter = evidence.get("adapter")
    ranks = {pair.a.shape[0] for pair in adapter.pairs if pair.a and len(pair.a.shape) == 2}
    config = draft.read_json(ADAPTER_CONFIG)
    if len(ranks) != 1 or any(not (pair.a and pair.b) for pair in adapter.pairs):
        raise NotCertain("the factors have several ranks, or are not all there")
    if config.get("rank_pattern") or config.get("use_rslora"):
        raise NotCertain("patterns of ranks, or a scale that follows the rank, are settings too")
    alpha, old, rank = config.get("lora_alpha"), config.get("r"), ranks.pop()
    if type(alpha) not in (int, float) or not alpha:
        raise NotCertain("lora_alpha is not known, and the shapes do not show it")
    if old == rank:
        raise NotCertain("the rank is right already")
    config["r"] = rank
    draft.put_json(ADAPTER_CONFIG, config, f"r {old} becomes {rank}, the rank of every factor")
