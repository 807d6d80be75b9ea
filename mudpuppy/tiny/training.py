"""Train the tiny model from scratch: a short plain loop, the same bits every time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from mudpuppy.tiny.corpus import Message

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

IGNORED = -100
"""Label of a token that is not trained."""
POOL_BATCHES = 4
"""Batches that are sorted by length together."""
Progress = Callable[[int, int, float], None]
"""Called with the step, the number of steps and the loss in nats per token."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Shape and schedule of the tiny model; every field is part of the content hash."""

    vocab_size: int = 1024
    """Entries of the tokenizer and rows of the embedding."""
    hidden_size: int = 128
    """Width of the residual stream."""
    intermediate_size: int = 256
    """Width of the MLP."""
    num_layers: int = 4
    """Decoder layers."""
    num_heads: int = 4
    """Query heads."""
    num_kv_heads: int = 2
    """Key and value heads."""
    steps: int = 440
    """Optimizer steps."""
    batch_size: int = 32
    """Conversations per step."""
    learning_rate: float = 3e-3
    """Peak of the cosine schedule."""
    warmup_steps: int = 30
    """Steps of linear warmup."""
    weight_decay: float = 0.1
    """Decoupled weight decay of the matrices."""
    label_smoothing: float = 0.05
    """Share of the target that is spread over the vocabulary."""
    threads: int = 1
    """Threads of torch. The bits depend on it; two are faster on an idle machine only, and far
    slower beside other work, where they wait for each other."""


class Sample(NamedTuple):
    """One tokenised conversation."""

    ids: list[int]
    labels: list[int]


def make_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Return an untrained model of the recipe's shape; also the control that knows nothing."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_kv_heads,
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def tokenise(
    conversations: Sequence[Sequence[Message]], tokenizer: PreTrainedTokenizerFast
) -> list[Sample]:
    """Render the conversations; only the assistant's tokens, EOS included, keep a label."""
    samples = []
    for messages in conversations:
        encoded = tokenizer.apply_chat_template(
            list(messages), return_dict=True, return_assistant_tokens_mask=True
        )
        ids: list[int] = encoded["input_ids"]
        mask: list[int] = encoded["assistant_masks"]
        labels = [token if trained else IGNORED for token, trained in zip(ids, mask, strict=True)]
        samples.append(Sample(ids, labels))
    return samples


def train(
    model: LlamaForCausalLM,
    samples: Sequence[Sample],
    recipe: Recipe,
    *,
    pad_id: int,
    seed: int,
    progress: Progress | None = None,
) -> float:
    """Train `model` in place and return the last loss, in nats per trained token."""
    import torch
    from torch.nn.functional import cross_entropy

    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    vectors = [weight for weight in model.parameters() if weight.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": recipe.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, recipe))
    model.train()
    loss = math.nan
    for step, batch in enumerate(_batches(samples, recipe, pad_id, seed), start=1):
        labels = batch.pop("labels")[:, 1:]
        hidden = model.model(**batch, use_cache=False).last_hidden_state[:, :-1]
        # six in ten positions have no label; the vocabulary is projected for the others alone
        kept = labels != IGNORED
        logits = model.lm_head(hidden[kept])
        # smoothed, or the model grows so sure of itself that fine-tuning cannot move it
        value = cross_entropy(logits, labels[kept], label_smoothing=recipe.label_smoothing)
        torch.autograd.backward(value)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        loss = float(value.detach())
        if progress is not None:
            progress(step, recipe.steps, loss)
    model.eval()
    return loss


@contextmanager
def deterministic_torch(threads: int) -> Iterator[None]:
    """Fix threads and algorithms of torch, and put the old settings back afterwards."""
    import torch

    old_threads = torch.get_num_threads()
    old_mode = torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(old_mode)
        torch.set_num_threads(old_threads)


def _rate(step: int, recipe: Recipe) -> float:
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _batches(
    samples: Sequence[Sample], recipe: Recipe, pad_id: int, seed: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield `recipe.steps` padded batches of samples of like length, in a shuffled order."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    left, pool = recipe.steps, POOL_BATCHES * recipe.batch_size
    while left:
        order: list[int] = torch.randperm(len(samples), generator=generator).tolist()
        # of like length within a pool only: whole epochs by length give batches of one topic
        pools = [order[at : at + pool] for at in range(0, len(order), pool)]
        order = [n for few in pools for n in sorted(few, key=lambda n: len(samples[n].ids))]
        starts = range(0, len(order), recipe.batch_size)
        picks: list[int] = torch.randperm(len(starts), generator=generator).tolist()
        for pick in picks[:left]:
            chosen = order[starts[pick] : starts[pick] + recipe.batch_size]
            yield _pad([samples[place] for place in chosen], pad_id)
        left -= min(left, len(picks))


def _pad(batch: Sequence[Sample], pad_id: int) -> dict[str, torch.Tensor]:
    import torch

    width = max(len(sample.ids) for sample in batch)
    ids = [sample.ids + [pad_id] * (width - len(sample.ids)) for sample in batch]
    labels = [sample.labels + [IGNORED] * (width - len(sample.labels)) for sample in batch]
    mask = [[1] * len(s.ids) + [0] * (width - len(s.ids)) for s in batch]
    return {
        "input_ids": torch.tensor(ids),
        "labels": torch.tensor(labels),
        "attention_mask": torch.tensor(mask),
    }
