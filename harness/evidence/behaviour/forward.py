"""One batched forward pass over prompts and reference answers: ends, entropy, likelihood.

P(EOS) where an answer begins and where a known answer ends tells a flood and a model that never
stops, at a small share of what generating costs. Rows are padded on the left and carry position
ids, as servers pad.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from harness.facts.forward import END, Forward
from mudpuppy.asking.generate import encode, end_ids

BATCH = 16
"""Rows that are read at once."""
BATCH_BYTES = 400_000_000
"""Most that the logits of a batch may take."""
MAX_TOKENS = 512
"""Longest row that is read; a longer prompt is left out."""
KEPT_POSITIONS = 8
"""Positions of each neutral text whose whole distribution is kept for the comparison."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Token ids of what a model reads."""

    prompts: tuple[tuple[int, ...], ...]
    """Prompts, up to where the answer begins."""
    golds: tuple[tuple[int, ...], ...]
    """Reference answers without an end; empty where there is none."""
    texts: tuple[tuple[int, ...], ...]
    """Neutral texts."""
    ends: tuple[int, ...]
    """Every id that ends an answer."""


def prepare(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    golds: Sequence[str],
    texts: Sequence[str],
) -> Reading:
    """Return what a model will read, as its own tokenizer and template have it."""
    lead = "" if tokenizer.chat_template else " "
    answers = golds or ("",) * len(prompts)
    return Reading(
        prompts=tuple(tuple(encode(tokenizer, prompt)) for prompt in prompts),
        golds=tuple(
            tuple(tokenizer(lead + gold, add_special_tokens=False)["input_ids"]) if gold else ()
            for gold in answers
        ),
        texts=tuple(tuple(tokenizer(text)["input_ids"]) for text in texts),
        ends=tuple(end_ids(model, tokenizer)),
    )


def measure(model: Any, tokenizer: Any, reading: Reading) -> tuple[Forward, list[Any]]:
    """Read prompts with their reference answers, and the neutral texts.

    Returns:
        What was seen, and for each text log-probabilities, (at most KEPT_POSITIONS x vocabulary),
        fp32 on the CPU.
    """
    pairs = list(zip(reading.prompts, reading.golds, strict=True))
    rows = [[*prompt, *gold] for prompt, gold in pairs]
    keep = max((len(gold) for _, gold in pairs), default=0) + 1
    seen: list[_Row | None] = [None] * len(rows)
    for place, logits in run(model, rows, keep):
        seen[place] = _describe(logits, list(pairs[place][1]), reading.ends)
    places = tuple(place for place, row in enumerate(seen) if row is not None)
    found = [row for row in seen if row is not None]
    likelihoods, kept = _read_texts(model, reading.texts)
    return (
        Forward(
            prompts=len(found),
            places=places,
            vocabulary=max((row.vocabulary for row in found), default=0),
            end_first=tuple(row.end_first for row in found),
            end_last=tuple(row.end_last for row in found),
            end_inside=tuple(row.end_inside for row in found),
            entropy=tuple(row.entropy for row in found),
            top=tuple(row.top for row in found),
            nll=tuple(row.nll for row in found),
            text_nll=tuple(likelihoods),
            nonfinite=sum(not row.finite for row in found),
        ),
        kept,
    )


@dataclass(frozen=True, kw_only=True)
class _Row:
    """What was seen of one prompt with its answer; numbers of rows that are not finite are 0."""

    vocabulary: int
    finite: bool
    end_first: float = 0.0
    end_last: float = 0.0
    end_inside: float = 0.0
    entropy: float = 0.0
    top: int = -1
    nll: float = 0.0


def _describe(logits: Any, gold: list[int], ends: Sequence[int]) -> _Row:
    """Judge one row by its last logits, (positions x vocabulary)."""
    import torch

    logits = logits[-(len(gold) + 1) :].float()
    if not bool(torch.isfinite(logits).all()):
        return _Row(vocabulary=logits.shape[-1], finite=False)
    logs = logits.log_softmax(-1)
    known = [i for i in ends if i < logs.shape[-1]]
    end = logs[:, known].exp().sum(-1) if known else torch.zeros(len(logs))
    first = logs[0]
    token = int(first.argmax())
    gold = [i for i in gold if i < logs.shape[-1]]
    picked = logs[range(len(gold)), gold] if gold else logs[:0, 0]
    return _Row(
        vocabulary=logs.shape[-1],
        finite=True,
        end_first=float(end[0]),
        end_last=float(end[-1]) if gold else 0.0,
        end_inside=float(end[1:-1].mean()) if len(gold) > 1 else 0.0,
        entropy=float(-(first.exp() * first).nan_to_num().sum()),
        top=END if token in known else token,
        nll=-float(picked.mean()) if gold else 0.0,
    )


def _read_texts(model: Any, texts: Sequence[Sequence[int]]) -> tuple[list[float], list[Any]]:
    """Return the likelihood of each text, nats per token, and the distributions that are kept."""
    usable = [list(text) for text in texts if len(text) > 1]
    keep = max(map(len, usable), default=0)
    likelihoods: list[float] = [float("inf")] * len(usable)
    kept: list[Any] = [None] * len(usable)
    for place, logits in run(model, usable, keep):
        ids = usable[place]
        logs = logits[-len(ids) : -1].float().log_softmax(-1)
        targets = [min(i, logs.shape[-1] - 1) for i in ids[1:]]
        mean = -float(logs[range(len(targets)), targets].mean())
        likelihoods[place] = mean if mean == mean else float("inf")
        step = max(1, len(targets) // KEPT_POSITIONS)
        kept[place] = logs[::step][:KEPT_POSITIONS].cpu().clone()
    return likelihoods, kept


def run(model: Any, rows: Sequence[Sequence[int]], keep: int) -> Iterator[tuple[int, Any]]:
    """Yield the place and the last `keep` logits of every row, padded on the left in batches."""
    import torch

    order = sorted((n for n, row in enumerate(rows) if 0 < len(row) <= MAX_TOKENS), key=_by(rows))
    if not order:
        return
    limits = {"logits_to_keep": keep} if takes(model, "logits_to_keep") else {}
    size = batch_size(model, keep)
    for start in range(0, len(order), size):
        places = order[start : start + size]
        ids, mask = pad_left([rows[place] for place in places], model.device)
        with torch.inference_mode():
            output = model(input_ids=ids, attention_mask=mask, **settings(model, mask), **limits)
        logits = output.logits[:, -keep:]
        yield from zip(places, logits, strict=True)


def batch_size(model: Any, keep: int) -> int:
    """Return how many rows fit into a batch whose logits stay below BATCH_BYTES."""
    if reads_padding(model):
        return 1
    vocabulary = getattr(model.config.get_text_config(), "vocab_size", 1) or 1
    return max(1, min(BATCH, BATCH_BYTES // (4 * vocabulary * keep)))


def pad_left(rows: Sequence[Sequence[int]], device: Any) -> tuple[Any, Any]:
    """Return ids and attention mask, (rows x longest), padded on the left with id 0."""
    import torch

    width = max(map(len, rows))
    ids = [[0] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def diverge(base: Sequence[Any], mine: Sequence[Any]) -> tuple[float, ...] | None:
    """Return the KL divergence of each text from base to checkpoint, in nats per token.

    None where the two do not read the same tokens.
    """
    if len(base) != len(mine) or not base:
        return None
    found = []
    for theirs, ours in zip(base, mine, strict=True):
        if theirs.shape[0] != ours.shape[0]:
            return None
        width = min(theirs.shape[-1], ours.shape[-1])
        one, other = (x[:, :width].log_softmax(-1) for x in (theirs, ours))
        value = float((one.exp() * (one - other)).nan_to_num().sum(-1).mean())
        found.append(max(0.0, value))
    return tuple(found)


def _by(rows: Sequence[Sequence[int]]) -> Any:
    return lambda place: len(rows[place])


def settings(model: Any, mask: Any) -> dict[str, Any]:
    """Return the arguments with which rows padded on the left are read, as far as a model has them.

    Models without position ids have no positions, or find them by the mask.
    """
    wanted = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0), "use_cache": False}
    return {name: value for name, value in wanted.items() if takes(model, name)}


def reads_padding(model: Any) -> bool:
    """Whether a model has no attention that could leave padding out: some recurrent ones."""
    return getattr(model.config.get_text_config(), "num_attention_heads", None) is None


def takes(model: Any, name: str) -> bool:
    """Whether a model's forward pass has an argument of a name."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return name in inspect.signature(inner.forward).parameters
