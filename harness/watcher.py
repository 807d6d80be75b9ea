"""Watches a training run from inside the worker: what moves, what is trained, what it lowers.

Everything here is measured on the live model; the engine's own counts are not consulted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.mechanics import MechanicsWatcher
from harness.observations import (
    Calibration,
    DatasetHeld,
    LabelsSeen,
    Mechanics,
    Memory,
    ParameterMotion,
)
from harness.watching.batches import BatchWatcher
from harness.watching.logits import remembered, save_reference
from harness.watching.motion import (
    MotionWatcher,
    device_peak_bytes,
    peak_bytes,
    resident_bytes,
    starts_from,
)
from harness.watching.objective import Objective
from harness.watching.packed import CALIBRATION_FILE, CalibrationWatcher
from harness.watching.rows import sequences_of
from harness.watching.truth import read_truth
from mudpuppy.config import TrainingConfig

NUM_REFERENCE_ROWS = 4
"""Rows whose logits are kept to compare reloaded artefacts with."""
REFERENCE_FILE = "reference.npz"
SPEAKING = ("full", "lora", "qlora", "qat")
"""Methods whose targets are the tokens of answers."""
WITH_HEAD = ("rm", "prm")
"""Methods that train a head of their own beside an adapter."""


@dataclass
class _Listening:
    """What listens while the trainer runs."""

    batches: BatchWatcher
    motion: MotionWatcher
    mechanics: MechanicsWatcher
    objective: Objective
    calibration: CalibrationWatcher | None


class TrainingWatcher:
    """Implements `mudpuppy.engine.Watcher`."""

    def __init__(self, folder: Path, config: TrainingConfig, base: str) -> None:
        """Prepare to watch.

        Args:
            folder: where the reference logits go.
            config: the run's settings.
            base: path of the base model, for its processor.
        """
        self._folder = folder
        self._config = config
        self._base = base
        self._rows: list[Any] = []
        self._listening: _Listening | None = None
        self._before_bytes = 0
        self._continues: bool | None = None
        self.mechanics: Mechanics | None = None
        self.motion: ParameterMotion | None = None
        self.calibration: Calibration | None = None
        self.dataset: DatasetHeld | None = None
        self.labels: LabelsSeen | None = None
        self.memory: Memory | None = None
        self.loss_before: float | None = None
        self.loss_after: float | None = None
        self.loss_noise = 0.0

    def on_prepared(
        self, model: Any, tokenizer: Any, samples: Sequence[Any], eos_ids: frozenset[int]
    ) -> None:
        """Measure the untouched model and start listening."""
        del eos_ids  # worked out again here, so that a wrong set in the engine shows
        config = self._config
        ends = find_eos_ids(model, tokenizer)
        processor = self._load_processor()
        truth = read_truth(
            config.dataset,
            config.method,
            processor or tokenizer,
            ends,
            max_length=_max_length(config, model),
            chat_template=config.chat_template,
            response_only=config.response_only,
            forgets=config.unlearn != "none",
            system_prompt=config.system_prompt,
        )
        if truth is not None and config.method in SPEAKING and config.response_only:
            self.dataset = truth.count(ends)
        kept = samples[:NUM_REFERENCE_ROWS]
        self._rows = [sequences_of(row, processor)[0].inputs() for row in kept]
        objective = Objective(
            config.method,
            samples,
            beta=config.beta,
            unlearn=config.unlearn,
            processor=processor,
        )
        self.loss_before, self.loss_noise = objective.measure_control(model)
        if config.adapter is not None:
            self._continues = starts_from(model, config.adapter)
        self._listening = _Listening(
            motion=MotionWatcher(
                model,
                trains_adapter=config.trains_adapter,
                has_head=config.method in WITH_HEAD,
            ),
            calibration=CalibrationWatcher(model, len(samples))
            if config.method == "gptq"
            else None,
            batches=BatchWatcher(
                model,
                config.method,
                truth,
                tokenizer,
                ends,
                config.output,
                batch_size=config.batch_size,
            ),
            mechanics=MechanicsWatcher(model),
            objective=objective,
        )
        self._before_bytes = resident_bytes()

    def on_fitted(self, model: Any) -> None:
        """Stop listening, compare, and keep the trained model's logits."""
        listening = self._listening
        assert listening is not None
        self.memory = Memory(
            before_bytes=self._before_bytes,
            peak_bytes=peak_bytes(),
            device_peak_bytes=device_peak_bytes(),
        )
        if listening.calibration is not None:
            self.calibration = listening.calibration.conclude(self._folder / CALIBRATION_FILE)
        self.labels = listening.batches.conclude()
        mechanics = listening.mechanics.conclude()
        self.motion = listening.motion.conclude(model)
        self.loss_after = listening.objective.measure(model)
        rounding = save_reference(self._folder / REFERENCE_FILE, model, self._rows)
        if mechanics is not None:
            self.mechanics = replace(
                mechanics,
                rounding=rounding,
                remembers=remembered(model),
                compiled_graphs=_count_graphs(),
                starts_from_adapter=self._continues,
            )

    def stop(self) -> None:
        """Keep what was seen of a run that did not come to its end."""
        if self._listening is not None and self.labels is None:
            self.labels = self._listening.batches.conclude()
            self.mechanics = self._listening.mechanics.conclude()

    def _load_processor(self) -> Any:
        """Return the base's processor of text and images, where the method reads any."""
        if self._config.method != "multimodal":
            return None
        from transformers import AutoProcessor

        processor: Any = AutoProcessor.from_pretrained(self._base)
        return processor


def find_eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return the ids that end a turn, from the tokenizer and the generation config."""
    generation = getattr(model, "generation_config", None)
    declared = getattr(generation, "eos_token_id", None)
    several = declared if isinstance(declared, list) else [declared]
    return frozenset(t for t in [tokenizer.eos_token_id, *several] if t is not None)


def _max_length(config: TrainingConfig, model: Any) -> int:
    """Return how many tokens a row may have: as many as the model tells apart."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return min(config.max_length, positions) if isinstance(positions, int) else config.max_length


def _count_graphs() -> int:
    """Return the graphs that torch.compile has made in this process."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])
