"""A callback for the trainers of transformers and TRL: each checkpoint is examined when saved."""

from __future__ import annotations

import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from harness.doctor.judging import Judging
from harness.doctor.paths import (
    require_adapter,
    require_embeddings,
    require_model,
    require_questions,
    require_stage,
)
from harness.doctor.visit import choose_probes, diagnose, summarise
from harness.evidence.source import Depth
from harness.findings import Diagnosis
from harness.hub.names import is_hub_name
from mudpuppy.errors import UsageError, near_names

LOG = logging.getLogger(__name__)


class DoctorCallback(TrainerCallback):  # type: ignore[misc]
    """Examines `checkpoint-*` after each save, and may end a run whose checkpoints are sick.

    `diagnoses` holds what was found, by step. Findings are logged as warnings, and so is a
    checkpoint that could not be examined: that never ends a run, and no error of the doctor does.
    """

    def __init__(
        self, *, stop: bool = False, depth: Depth | str = Depth.WEIGHTS, **options: Any
    ) -> None:
        """Prepare.

        Args:
            stop: end the training when a finding fails, by `fail_on` of the options.
            depth: how deep to look; the values of the weights, but nothing is compared with them.
            options: what else is asked, as fields of `harness.doctor.Judging`.

        Raises:
            ModelError: a path of the options is not what it should be.
            UsageError: another of the options is not usable.
        """
        self.judging = _make_judging({"depth": depth, **options})
        self.stop = stop
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
        try:
            diagnosis = diagnose(folder, self.judging)
        except Exception as failure:  # a training is worth more than a diagnosis
            LOG.warning("%s could not be examined: %s", folder, failure, exc_info=True)
            return control
        self.diagnoses[state.global_step] = diagnosis
        if diagnosis.exit_code:
            LOG.warning("%s", summarise(diagnosis))
        if diagnosis.exit_code == 1:
            control.should_training_stop = control.should_training_stop or self.stop
        return control


def _make_judging(options: dict[str, Any]) -> Judging:
    """Refuse before a long training what would fail at each save of it."""
    known = [field.name for field in fields(Judging)]
    for name in options:
        if name not in known:
            raise UsageError(f"DoctorCallback has no option '{name}'{near_names(name, known)}")
    judging = Judging(**options)
    try:
        Depth(options["depth"])
    except ValueError:
        raise UsageError(
            f"'{options['depth']}' is no depth; there are {', '.join(Depth)}"
        ) from None
    choose_probes(judging.select, judging.ignore)
    require_questions(judging.quiz, judging.voice)
    require_embeddings(judging.embeddings)
    require_stage(judging.against)
    for path, require in ((judging.base, require_model), (judging.adapter, require_adapter)):
        if not is_hub_name(path):
            require(path)
    return judging
