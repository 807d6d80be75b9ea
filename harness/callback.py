"""A callback for the trainers of transformers and TRL: each checkpoint is examined when saved."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from harness.doctor import diagnose, summarise
from harness.evidence.source import Depth
from harness.findings import Diagnosis

LOG = logging.getLogger(__name__)


class DoctorCallback(TrainerCallback):  # type: ignore[misc]
    """Examines `checkpoint-*` after each save, and may end a run whose checkpoints are sick.

    `diagnoses` holds what was found, by step. Findings are logged as warnings.
    """

    def __init__(
        self, *, stop: bool = False, depth: Depth | str = Depth.WEIGHTS, **options: Any
    ) -> None:
        """Prepare.

        Args:
            stop: end the training when a finding fails, by `fail_on` of the options.
            depth: how deep to look; the values of the weights, but nothing is compared with them.
            options: further arguments of `harness.doctor.diagnose`.
        """
        self.stop = stop
        self.options = {"depth": depth, **options}
        self.diagnoses: dict[int, Diagnosis] = {}

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> TrainerControl:
        """Examine the checkpoint that was just saved, in the first process alone."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if not state.is_world_process_zero or not folder.is_dir():
            return control
        diagnosis = diagnose(folder, **self.options)
        self.diagnoses[state.global_step] = diagnosis
        if diagnosis.exit_code == 1:
            LOG.warning("%s", summarise(diagnosis))
            control.should_training_stop = control.should_training_stop or self.stop
        return control
