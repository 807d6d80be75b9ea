"""Open what a run left, each artefact by the code that a person would open it with.

Adapters by plain PEFT and models by plain transformers, on the class of the method; only 4-bit
bases, GPTQ and int8 folders need the engine's own loaders.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from transformers.utils import logging
from transformers.utils.logging import disable_progress_bar

from harness.watching.logits import PLAIN, ROUNDED
from mudpuppy.quant.formats import find_format
from mudpuppy.quant.gptq_read import load_gptq
from mudpuppy.quant.int8 import load_int8
from mudpuppy.quant.linear4bit import replace_linears
from mudpuppy.runtime import DTYPES

CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "rm": ("AutoModelForSequenceClassification", {"num_labels": 1}),
    "prm": ("AutoModelForTokenClassification", {"num_labels": 2}),
    "multimodal": ("AutoModelForImageTextToText", {}),
}
"""Class of transformers and settings by method, where it is not a causal model."""
SAME_WEIGHTS = 1e-4
"""Largest logit difference relative to the largest logit where nothing was rounded and the sums are
made in the same order: an adapter or a packed model, on a CPU (measured: 0)."""
ROUNDED_WEIGHTS = {"fp32": SAME_WEIGHTS, "bf16": 0.03, "fp16": 0.005}
"""The same where master or merged weights were rounded once to 8 or 11 significant bits, or where a
GPU may sum in another order (measured for another order: 6e-3 in bf16, 8e-4 in fp16)."""
INT8_WEIGHTS = {"fp32": 1e-3, "bf16": 0.06, "fp16": 0.03}
"""The same for int8 models, where a value that rounding pushes over the border between two levels
moves by a whole level, 1/127 of the largest of its token (measured: 1e-2 in bf16, 1.9e-2 in
fp16)."""
STORED = {"fp32": "fp32", "bf16": "bf16", "fp16": "fp16", "fp8": "bf16"}
"""Type that weights are stored in, by the precision of the run."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """One artefact, and what it must differ from."""

    name: str
    """adapter, merged, model, int8 or gptq."""
    loader: str
    """Whose code opened it."""
    model: Any
    """The model."""
    untouched: Callable[[Any], AbstractContextManager[Any]]
    """Gives its base, loaded and computed the same way."""
    tolerance: float
    """What may lie between the trained model and this artefact, relative to the largest logit."""
    kind: str = PLAIN
    """Which logits of the trained model it is held against."""


class Opener:
    """Opens the artefacts of one run by its manifest."""

    def __init__(self, folder: Path, provenance: dict[str, Any]) -> None:
        """Read how the run computed.

        Args:
            folder: the run's output.
            provenance: its `mudpuppy.json`.
        """
        disable_progress_bar()
        self._folder = folder
        self._provenance = provenance
        self._config = provenance["config"]
        self._base = provenance["base"]["path"]
        self._stored = STORED[provenance["precision"]]
        self._dtype = DTYPES[self._stored]
        self._device = str(provenance["run"]["choices"]["device"]["value"])
        name, self._settings = CLASSES.get(self._config["method"], ("AutoModelForCausalLM", {}))
        self._class: Any = getattr(transformers, name)

    def open_all(self) -> Iterator[Opened]:
        """Yield every artefact, one at a time."""
        kind = self._provenance["kind"]
        if kind == "gptq":
            packed = load_gptq(self._folder / "gptq", self._dtype).to(self._device)
            yield self._opened("gptq", "mudpuppy.quant.gptq", packed)
        elif kind == "model":
            yield self._opened("model", "transformers", self._load(self._folder))
            if (self._folder / "int8").is_dir():
                int8 = load_int8(self._folder / "int8").to(self._device)
                yield self._opened("int8", "mudpuppy.quant.int8", int8)
        else:
            yield self._open_adapter()
            if (self._folder / "merged").is_dir():
                yield self._open_merged()

    def _open_adapter(self) -> Opened:
        model, loader = self._load(self._base), "peft"
        quantised = self._provenance["quantisation"]
        if quantised:
            replace_linears(
                model,
                find_format(quantised["scheme"]),
                block_size=quantised["block_size"],
                search=quantised.get("search", 0),
                compute_dtype=self._dtype,
            )
            loader = "peft on mudpuppy.quant.linear4bit"
        with warnings.catch_warnings():
            # PEFT still asks by the name that transformers has given up
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
            adapted = PeftModel.from_pretrained(model, str(self._folder))
        return self._opened("adapter", loader, adapted, _without_adapter)

    def _open_merged(self) -> Opened:
        precision = self._config.get("merge_precision") or self._stored
        merged = self._load(self._folder / "merged", DTYPES[precision])
        return self._opened("merged", "transformers", merged, precision=precision)

    def _opened(
        self,
        name: str,
        loader: str,
        model: Any,
        untouched: Callable[[Any], AbstractContextManager[Any]] | None = None,
        precision: str = "",
    ) -> Opened:
        return Opened(
            name=name,
            loader=loader,
            model=model,
            untouched=untouched or self._plain_base,
            tolerance=self._tolerance(name, precision or self._stored),
            kind=ROUNDED if name == "int8" else PLAIN,
        )

    def _tolerance(self, name: str, precision: str) -> float:
        """Return what rounding may change: that of the run, or of a merge in another type.

        FSDP casts every parameter it gathers to the precision of the run, the adapter's too, and
        what it saves is not rounded.
        """
        is_rounded = name in ("model", "merged", "int8") or self._device != "cpu"
        is_rounded = is_rounded or bool(self._config.get("fsdp"))
        if not is_rounded:
            return SAME_WEIGHTS
        known = INT8_WEIGHTS if name == "int8" else ROUNDED_WEIGHTS
        return max(known[self._stored], known[precision])

    @contextmanager
    def _plain_base(self, model: Any) -> Iterator[Any]:
        del model
        yield self._load(self._base)

    def _load(self, path: str | Path, dtype: torch.dtype | None = None) -> Any:
        # A base has no head of this kind: what is reported there is meant to be so.
        quiet = logging.set_verbosity_error if str(path) == self._base else lambda: None
        before = logging.get_verbosity()
        quiet()
        model = self._class.from_pretrained(
            str(path),
            dtype=dtype or self._dtype,
            use_safetensors=True,
            trust_remote_code=self._config["trust_remote_code"],
            **self._settings,
        )
        logging.set_verbosity(before)
        return model.to(self._device)


@contextmanager
def _without_adapter(model: Any) -> Iterator[Any]:
    """Yield the very same base with its adapter switched off."""
    with model.disable_adapter():
        yield model
