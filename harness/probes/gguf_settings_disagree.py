"""Settings of a GGUF model that its tensors, or its base model, contradict.

What it does: width, heads and feed-forward size must be those of the tensors; the context length
must be there; and with `--base` the rotation of positions (`rope.freq_base` and scaling) must be
that of the base model's config.json.

Why it is bad: sizes that disagree do not load, or read rows across each other (FM46). A lost rope
base turns every position wrong: the model is fluent for a sentence and then falls apart, and no
program says a word, since 10,000 is what readers take where nothing is stored (FM30).

Example: Llama 3 with `rope_theta` 500,000 whose GGUF has no `llama.rope.freq_base`: the converter
was older than the settings of transformers 5, which moved it into `rope_parameters`.

What to do: convert again with today's converter; or `gguf-set-metadata FILE KEY VALUE` where the
key is there and only the number is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from harness.facts.checkpoint import Base
from harness.facts.gguf import Gguf
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe

ALIKE = ("llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3")
"""Architectures whose blocks all have the sizes that the settings give."""
DEFAULT_THETA = 10_000.0
"""What readers take where no base of the rotation is stored."""


@probe("MPD844", modes=["FM46", "FM30"], severity=Severity.CRITICAL)
def check(gguf: Gguf, any_base: Base | None) -> Finding | str:
    """Compare settings with tensors and with the base."""
    if not gguf.is_model:
        raise NotApplicable("the file is no language model")
    evidence = [*_lost(gguf), *_sizes(gguf)]
    if any_base is not None:
        evidence += _rope(gguf, any_base.config)
    if not evidence:
        beside = "" if any_base is None else ", and positions turn as in the base"
        return f"the settings of {gguf.architecture} fit its tensors{beside}"
    first = evidence[0]
    return Finding(
        message=f"{first.what} is {first.found}, expected {first.expected}",
        evidence=tuple(evidence),
        cause="an older converter, settings of another model, or an edit",
        remedy="convert the model again with today's convert_hf_to_gguf.py, or set the number: "
        "gguf-set-metadata FILE KEY VALUE",
    )


def _lost(gguf: Gguf) -> Iterator[Evidence]:
    keys = ("context_length", "embedding_length", "block_count", "attention.head_count")
    known = sum(gguf.number(f"%.{key}") is not None for key in keys)
    for key in keys[:3]:
        name = f"{gguf.architecture}.{key}"
        value = gguf.number(name)
        is_lost = value is None and known == len(keys) - 1
        if gguf.architecture in ALIKE and (is_lost or (value is not None and value <= 0)):
            said = "absent" if value is None else value
            yield Evidence(what=name, found=said, expected="a positive number")


def _sizes(gguf: Gguf) -> Iterator[Evidence]:
    """Yield the first tensor of each kind whose shape the settings contradict."""
    if gguf.architecture not in ALIKE or gguf.array("%.attention.head_count_kv") is not None:
        return  # sizes that differ from block to block
    wide, heads = gguf.number("%.embedding_length"), gguf.number("%.attention.head_count")
    keys = gguf.number("%.attention.head_count_kv") or heads
    feed = gguf.number("%.feed_forward_length")
    if not wide or not heads or wide <= 0 or heads <= 0:
        return
    size = gguf.number("%.attention.key_length") or wide // heads
    wanted = {"token_embd.weight": (1, wide), "attn_q.weight": (0, heads * size)}
    wanted |= {"attn_k.weight": (0, (keys or heads) * size), "attn_output.weight": (0, wide)}
    if feed and not any("_exps" in name for name in gguf.tensors):
        wanted["ffn_up.weight"] = (0, 2 * feed if gguf.architecture == "phi3" else feed)
    for end, (place, expected) in wanted.items():
        for name, tensor in gguf.tensors.items():
            is_one = name == end or name.endswith(f".{end}")
            if is_one and len(tensor.shape) == 2 and tensor.shape[place] != expected:
                yield Evidence(
                    what=f"dimension {place} of {name}",
                    tensor=name,
                    found=tensor.shape[place],
                    expected=f"{int(expected)}, by the settings",
                )
                break


def _rope(gguf: Gguf, config: Mapping[str, Any]) -> Iterator[Evidence]:
    """Yield how the rotation of positions differs from the base's."""
    nested = config.get("text_config")
    settings = nested if isinstance(nested, dict) else config
    rope = settings.get("rope_parameters") or settings.get("rope_scaling")
    rope = rope if isinstance(rope, dict) else {}
    theta = rope.get("rope_theta", settings.get("rope_theta"))
    key = f"{gguf.architecture}.rope.freq_base"
    stored = gguf.number(key)
    taken = DEFAULT_THETA if stored is None else stored
    if isinstance(theta, (int, float)) and abs(taken - theta) > 1e-3 * theta:
        said = f"absent, so {DEFAULT_THETA:.0f}" if stored is None else stored
        yield Evidence(what=key, found=said, expected=f"{theta}, as in the base")
    kind = str(rope.get("rope_type") or rope.get("type") or "default")
    if kind == "llama3" and "rope_freqs.weight" not in gguf.tensors:
        yield Evidence(
            what="rope_freqs.weight", found="absent", expected="the llama3 scaling of the base"
        )
    scaling = gguf.text(f"{gguf.architecture}.rope.scaling.type")
    if kind in ("yarn", "linear") and scaling != kind:
        yield Evidence(
            what=f"{gguf.architecture}.rope.scaling.type",
            found=scaling or "absent",
            expected=f"{kind}, as in the base",
        )
