"""Watches a training run from inside the worker: hashes, gradients and the labels really seen.

Everything here is measured on the live model; the engine's own counts are not consulted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from harness.mechanics import MechanicsWatcher
from harness.observations import LabelsSeen, Mechanics, ParameterMotion

IGNORED = -100
NUM_REFERENCE_ROWS = 4
"""Samples whose logits are kept to compare reloaded artefacts with."""
NUM_LOSS_ROWS = 32
"""Samples whose loss is compared before and after: the same ones, so that batches make no noise."""
REFERENCE_FILE = "reference.npz"


class TrainingWatcher:
    """Implements `mudpuppy.engine.Watcher`."""

    def __init__(self, folder: Path, answers: Iterable[str], *, trains_adapter: bool) -> None:
        """Prepare to watch.

        Args:
            folder: where the reference logits go.
            answers: the texts that the dataset's assistant says, to compare trained text with.
            trains_adapter: whether only adapter tensors may train.
        """
        self._folder = folder
        self._answers = {" ".join(text.split()) for text in answers}
        self._trains_adapter = trains_adapter
        self._before: dict[str, str] = {}
        self._trainable: dict[str, nn.Parameter] = {}
        self._touched: set[str] = set()
        self._hooks: list[Any] = []
        self._tokenizer: Any = None
        self._eos_ids: frozenset[int] = frozenset()
        self._rows: list[list[int]] = []
        self._loss_rows: list[tuple[list[int], list[int]]] = []
        self._counts = dict.fromkeys(("rows", "tokens", "trained", "eos", "off"), 0)
        self._example = ""
        self._mechanics: MechanicsWatcher | None = None
        self.mechanics: Mechanics | None = None
        self.motion: ParameterMotion | None = None
        self.loss_before: float | None = None
        self.loss_after: float | None = None

    def on_prepared(
        self, model: Any, tokenizer: Any, samples: Sequence[Any], eos_ids: frozenset[int]
    ) -> None:
        """Hash every tensor and start listening to gradients and batches."""
        del eos_ids  # worked out again here, so that a wrong set in the engine shows
        self._tokenizer = tokenizer
        self._eos_ids = find_eos_ids(model, tokenizer)
        self._rows = [list(s.input_ids) for s in samples[:NUM_REFERENCE_ROWS]]
        self._loss_rows = [(s.input_ids, s.labels) for s in samples[:NUM_LOSS_ROWS]]
        self.loss_before = measure_loss(model, self._loss_rows)
        self._before = hash_tensors(model)
        self._trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
        for name, parameter in self._trainable.items():
            listen: Any = parameter.register_post_accumulate_grad_hook
            self._hooks.append(listen(self._gradient_listener(name)))
        self._hooks.append(model.register_forward_pre_hook(self._see_batch, with_kwargs=True))
        self._mechanics = MechanicsWatcher(model)

    def on_fitted(self, model: Any) -> None:
        """Compare the hashes and keep the trained model's logits."""
        for hook in self._hooks:
            hook.remove()
        if self._mechanics is not None:
            self.mechanics = self._mechanics.conclude()
        self.loss_after = measure_loss(model, self._loss_rows)
        after = hash_tensors(model)
        moved = {name for name in self._before if after.get(name) != self._before[name]}
        trainable = set(self._trainable)
        foreign = [n for n in trainable if self._trains_adapter and ".lora_" not in n]
        self.motion = ParameterMotion(
            trainable=len(trainable),
            frozen=len(self._before) - len(trainable),
            still=tuple(sorted(trainable - moved)),
            frozen_moved=tuple(sorted(moved - trainable)),
            foreign_trainable=tuple(sorted(foreign)),
            without_gradient=tuple(sorted(trainable - self._touched)),
        )
        save_reference(self._folder / REFERENCE_FILE, model, self._rows)

    @property
    def labels(self) -> LabelsSeen | None:
        """What the batches taught, or None when no batch was seen."""
        if not self._counts["rows"]:
            return None
        return LabelsSeen(
            rows=self._counts["rows"],
            tokens=self._counts["tokens"],
            trained_tokens=self._counts["trained"],
            rows_ending_in_eos=self._counts["eos"],
            rows_off_answer=self._counts["off"],
            example_off_answer=self._example,
        )

    def _gradient_listener(self, name: str) -> Any:
        def listen(parameter: torch.Tensor) -> None:
            gradient = parameter.grad
            if gradient is not None and bool(gradient.count_nonzero()):
                self._touched.add(name)

        return listen

    def _see_batch(self, model: nn.Module, args: Any, batch: dict[str, Any]) -> None:
        """Count what one training batch teaches."""
        del args
        if batch.get("labels") is None:
            return
        if self._mechanics is not None:
            self._mechanics.see_batch(batch)
        if not model.training:
            return
        ids, labels = batch["input_ids"].cpu(), batch["labels"].cpu()
        mask = batch.get("attention_mask")
        present = torch.ones_like(ids) if mask is None else mask.cpu()
        for row in range(ids.shape[0]):
            self._count_row(ids[row].tolist(), labels[row].tolist(), int(present[row].sum()))

    def _count_row(self, ids: list[int], labels: list[int], tokens: int) -> None:
        """Count one row, span by span: each must be one whole answer that ends in EOS."""
        spans = [list(span) for is_on, span in groupby(labels, lambda x: x != IGNORED) if is_on]
        self._counts["rows"] += 1
        self._counts["tokens"] += tokens
        self._counts["trained"] += sum(map(len, spans))
        self._counts["eos"] += bool(spans) and all(s[-1] in self._eos_ids for s in spans)
        texts = [
            " ".join(self._tokenizer.decode(span, skip_special_tokens=True).split())
            for span in spans
        ]
        # A label that is not the token itself teaches something else than the sample.
        is_shifted = any(x not in (IGNORED, t) for x, t in zip(labels, ids, strict=True))
        off = [text for text in texts if text not in self._answers]
        if off or is_shifted or not spans:
            self._counts["off"] += 1
            self._example = self._example or (off or texts or [""])[0][:200]


def find_eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return the ids that end a turn, from the tokenizer and the generation config."""
    declared = model.generation_config.eos_token_id
    several = declared if isinstance(declared, list) else [declared]
    return frozenset(t for t in [tokenizer.eos_token_id, *several] if t is not None)


def hash_tensors(model: nn.Module) -> dict[str, str]:
    """Return a hash of the bytes of every parameter and persistent buffer."""
    persistent = set(model.state_dict())
    tensors: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    tensors |= {n: b for n, b in model.named_buffers() if n in persistent}
    return {name: hash_tensor(tensor) for name, tensor in tensors.items()}


def hash_tensor(tensor: torch.Tensor) -> str:
    """Return a hash of the tensor's bytes, type and shape."""
    flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    digest = hashlib.blake2b(flat.numpy().tobytes(), digest_size=16)
    digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    return digest.hexdigest()


def measure_loss(model: Any, rows: Sequence[tuple[list[int], list[int]]]) -> float | None:
    """Return the mean negative log-likelihood of the labelled tokens, or None if not finite."""
    total, tokens = 0.0, 0
    logits_of_rows = compute_logits(model, [ids for ids, _ in rows])
    for (_, labels), logits in zip(rows, logits_of_rows, strict=True):
        targets = torch.tensor(labels[1:])
        scores = torch.from_numpy(logits[:-1])
        total += float(nn.functional.cross_entropy(scores, targets, reduction="sum"))
        tokens += int((targets != IGNORED).sum())
    loss = total / max(tokens, 1)
    return loss if np.isfinite(loss) else None


@torch.no_grad()
def compute_logits(model: Any, rows: Sequence[Sequence[int]]) -> list[np.ndarray[Any, Any]]:
    """Return the logits of each row by itself (no padding), as fp32 arrays (tokens, vocabulary)."""
    was_training = model.training
    model.eval()
    device = model.get_input_embeddings().weight.device
    found = []
    for row in rows:
        output = model(input_ids=torch.tensor([list(row)], device=device), use_cache=False)
        found.append(output.logits[0].float().cpu().numpy())
    model.train(was_training)
    return found


def save_reference(path: Path, model: Any, rows: Sequence[Sequence[int]]) -> None:
    """Keep the rows and their logits for the comparison in a fresh process."""
    arrays: dict[str, Any] = {}
    for index, (row, logits) in enumerate(zip(rows, compute_logits(model, rows), strict=True)):
        arrays[f"ids{index}"] = np.asarray(row, dtype=np.int64)
        arrays[f"logits{index}"] = logits
    np.savez(path, **arrays)


def read_reference(path: Path) -> tuple[list[list[int]], list[np.ndarray[Any, Any]]]:
    """Return the rows and logits that `save_reference` kept."""
    with np.load(path) as stored:
        num = sum(name.startswith("ids") for name in stored.files)
        rows = [stored[f"ids{i}"].tolist() for i in range(num)]
        return rows, [stored[f"logits{i}"] for i in range(num)]
