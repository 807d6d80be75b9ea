"""Models and data to measure with: random Llamas of any size, conversations of varied length."""

from __future__ import annotations

import json
import math
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.children import code_bytes, forget_peak, peak_bytes, release_memory, resident_bytes


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The size of a Llama."""

    width: int
    layers: int
    heads: int
    vocabulary: int = 2048
    inner: int | None = None
    """Width inside the MLP; by default 2.7 times the width, as Llama's is."""
    positions: int = 2048

    @property
    def parameters(self) -> int:
        """Return the number of weights, embeddings and head included."""
        inner = self.inner_width
        layer = 3 * self.width**2 + self.width**2 + 3 * self.width * inner + 2 * self.width
        return self.layers * layer + 2 * self.vocabulary * self.width + self.width

    @property
    def inner_width(self) -> int:
        """Return the width inside the MLP."""
        return self.inner or self.width * 43 // 16

    def settings(self, **more: Any) -> Any:
        """Return transformers' configuration."""
        from transformers import LlamaConfig

        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.inner_width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=self.positions,
            tie_word_embeddings=False,
            **more,
        )


def build_model(folder: Path, shape: Shape, precision: str = "fp32") -> Path:
    """Write a random Llama with a tokenizer, and return its folder."""
    import torch
    from transformers import LlamaForCausalLM

    from mudpuppy.runtime import DTYPES
    from mudpuppy.tiny.build import save_folder
    from mudpuppy.tiny.corpus import conversations
    from mudpuppy.tiny.tokenizer import train_tokenizer

    texts = [message["content"] for one in conversations() for message in one]
    tokenizer = train_tokenizer(texts, 1024)
    tokenizer.model_max_length = shape.positions
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    settings = shape.settings(bos_token_id=None, dtype=DTYPES[precision], **ids)
    torch.manual_seed(0)
    with torch.device("meta"):
        model = LlamaForCausalLM(settings)
    model = model.to(DTYPES[precision]).to_empty(device="cpu")
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.ones_(parameter)
        else:
            torch.nn.init.normal_(parameter, std=0.02)
    save_folder(folder, model, tokenizer)
    return folder


def write_chats(path: Path, documents: int, most_words: int, sigma: float = 1.6) -> Path:
    """Write conversations of lognormal length, as instruction data have them; return the path."""
    from mudpuppy.tiny.corpus import conversations

    chance = random.Random(7)
    words = " ".join(message["content"] for one in conversations() for message in one).split()
    with path.open("w", encoding="utf-8") as handle:
        for _ in range(documents):
            # about 1.5 tokens a word
            number = min(most_words, max(4, round(chance.lognormvariate(math.log(35), sigma))))
            answer = " ".join(chance.choices(words, k=number))
            messages = [("user", "Tell me something."), ("assistant", answer)]
            line = {"messages": [{"role": role, "content": text} for role, text in messages]}
            handle.write(json.dumps(line) + "\n")
    return path


@dataclass
class Stopwatch:
    """A watcher of the engine that times training from its first forward pass to its last step.

    What comes once, such as making the trainer, is left out: it takes as long as a step does here.
    """

    rows: list[Any] = field(default_factory=list)
    wall_s: float = 0.0
    cpu_s: float = 0.0
    is_running: bool = False

    def on_prepared(self, model: Any, tokenizer: Any, samples: Any, eos_ids: Any) -> None:
        """Be ready to start."""
        self.rows = list(samples)
        model.register_forward_pre_hook(self.start)

    def start(self, *_: Any) -> None:
        """Start, at the first of many calls."""
        if not self.is_running:
            self.is_running = True
            self.wall_s, self.cpu_s = time.perf_counter(), time.process_time()

    def on_fitted(self, model: Any) -> None:
        """Stop."""
        _wait_for_device()
        self.wall_s = time.perf_counter() - self.wall_s
        self.cpu_s = time.process_time() - self.cpu_s


@dataclass
class Scales(Stopwatch):
    """A watcher that weighs, too: what the process holds at most from the first step to the last.

    The memory of this process when this object was made (its imports) is not counted; nor is code,
    which is read in when it is used first; nor what loading took and gave back, such as the 16-bit
    weights of a base that was quantised. On a GPU what torch allocated there is counted.
    """

    before: int = field(default_factory=lambda: resident_bytes() - code_bytes())
    peak: int = 0

    def on_prepared(self, model: Any, tokenizer: Any, samples: Any, eos_ids: Any) -> None:
        """Forget what was held while the model was loaded."""
        super().on_prepared(model, tokenizer, samples, eos_ids)
        release_memory()
        forget_peak()
        if _has_gpu():
            import torch

            torch.cuda.reset_peak_memory_stats()

    def on_fitted(self, model: Any) -> None:
        """Read the scales."""
        super().on_fitted(model)
        self.peak = peak_bytes() - code_bytes() - self.before
        if _has_gpu():
            import torch

            self.peak = int(torch.cuda.max_memory_allocated())


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _wait_for_device() -> None:
    if _has_gpu():
        import torch

        torch.cuda.synchronize()
