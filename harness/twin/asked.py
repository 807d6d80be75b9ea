"""What a cell asked for, with every default resolved here and not by the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAIRED = frozenset({"dpo", "ipo", "orpo", "rm"})
"""Methods whose rows are two answers to one prompt."""
REFERENCED = frozenset({"dpo", "ipo", "kto"})
"""Methods that always compare with a reference model."""
WITHOUT_ADAPTER = frozenset({"full", "gptq", "qat"})
"""Methods that have no adapter."""
PREFERENCE_BETA = 0.1
"""The weight of the reference in DPO, IPO, KTO and ORPO where none is asked for: TRL's."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The settings of a cell, as a person would read them."""

    settings: Mapping[str, Any]
    """Every setting of `TrainingConfig` but the output folder."""

    def __getattr__(self, name: str) -> Any:
        """Return a setting by its name.

        Raises:
            AttributeError: there is none of that name.
        """
        if name.startswith("_") or name not in self.settings:
            raise AttributeError(name)
        return self.settings[name]

    @property
    def adapter_trains(self) -> bool:
        """Whether an adapter is what trains."""
        return self.method not in WITHOUT_ADAPTER and self.settings["use_peft"] is not False

    @property
    def rate(self) -> float:
        """Peak learning rate: 2e-4 for adapters and 2e-5 for all weights, unless asked for."""
        if self.settings["learning_rate"] is not None:
            return float(self.settings["learning_rate"])
        return 2e-4 if self.adapter_trains else 2e-5

    @property
    def scale(self) -> float:
        """What an adapter's product is multiplied by: alpha / r, or alpha / sqrt(r) (rsLoRA)."""
        return self.alpha / float(self.lora_r**0.5 if self.use_rslora else self.lora_r)

    @property
    def alpha(self) -> float:
        """Alpha of a fresh adapter."""
        return float(self.settings["lora_alpha"] or 2 * self.lora_r)

    @property
    def reference_weight(self) -> float:
        """Beta; 0 for GRPO without one."""
        if self.settings["beta"] is not None:
            return float(self.settings["beta"])
        return 0.0 if self.method == "grpo" else PREFERENCE_BETA

    @property
    def tells_groups_apart(self) -> bool:
        """Whether rows are forgotten, or held near the untrained model."""
        asked = self.settings
        return asked.get("unlearn", "none") != "none" or bool(asked.get("retain_kl"))

    @property
    def dataset_path(self) -> Path:
        """The file that is learnt from."""
        return Path(self.settings["dataset"])

    def count_held_out(self, rows: int) -> int:
        """Return how many of `rows` are evaluated and not trained."""
        if self.settings["early_stopping"] is None:
            return 0
        return max(1, round(rows * float(self.eval_fraction)))
