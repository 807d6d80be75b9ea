"""The step log: `steps.jsonl`, written while training runs, and the stop at the first bad loss."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from mudpuppy.errors import EngineError
from mudpuppy.files import write_text_atomic
from mudpuppy.records import StepRecord

Report = Callable[[StepRecord, int], None]
"""Called with every record and the planned number of steps."""


class StepWriter(TrainerCallback):  # type: ignore[misc]  # nor does transformers
    """Writes `steps.jsonl` while training runs, and stops at the first loss that is not finite."""

    def __init__(
        self,
        path: Path,
        report: Report | None,
        resumed_step: int = 0,
        *,
        skips_overflow: bool = False,
    ) -> None:
        self.records = _records_until(resumed_step, path)
        self._path = path
        self._report = report
        # fp16 leaves a step out whose gradient overflowed; elsewhere it would ruin every weight
        self._watched = ("loss", "eval_loss", *(() if skips_overflow else ("grad_norm",)))
        elapsed = self.records[-1].elapsed_s if self.records else 0.0
        self._started = time.monotonic() - elapsed

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Drop what a run that was stopped had logged after its last checkpoint.

        What is missing before it, in a log that was torn, is taken from the checkpoint's own.
        """
        del args, control
        self._fill(state)
        if not state.is_world_process_zero:
            return
        if self.records:
            lines = [json.dumps(asdict(record)) + "\n" for record in self.records]
            write_text_atomic(self._path, "".join(lines))
        else:
            self._path.unlink(missing_ok=True)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Record one optimizer step or evaluation.

        Raises:
            EngineError: loss or gradient is NaN or infinite; going on would save ruined weights,
                at the next checkpoint or at the end (FM41).
        """
        if not logs or not ({"loss", "eval_loss"} & set(logs)):
            return
        elapsed = round(time.monotonic() - self._started, 3)
        record = _record(logs, state.global_step, float(state.epoch or 0.0), elapsed)
        for name in self._watched:
            value = logs.get(name)
            if value is not None and not math.isfinite(float(value)):
                raise EngineError(
                    f"{name} is {value} at step {state.global_step}: the run diverged",
                    hint="lower --learning-rate, or use --precision bf16 or fp32",
                )
        self.records.append(record)
        if not state.is_world_process_zero:
            return
        with self._path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(asdict(record)) + "\n")
        if self._report is not None:
            self._report(record, state.max_steps)

    def _fill(self, state: Any) -> None:
        """Add the records that the checkpoint knows and the log does not."""
        known = {_key(record) for record in self.records}
        for logs in state.log_history:
            if not {"loss", "eval_loss"} & set(logs) or logs["step"] > state.global_step:
                continue
            record = _record(logs, logs["step"], float(logs["epoch"]), 0.0)
            if _key(record) not in known:
                self.records.append(record)
        self.records.sort(key=_key)


def _key(record: StepRecord) -> tuple[int, bool]:
    """Return what tells records apart: the step, and whether it is an evaluation."""
    return record.step, record.eval_loss is not None


def _record(logs: dict[str, Any], step: int, epoch: float, elapsed_s: float) -> StepRecord:
    return StepRecord(
        step=step,
        epoch=epoch,
        loss=_number(logs, "loss"),
        grad_norm=_number(logs, "grad_norm"),
        learning_rate=_number(logs, "learning_rate"),
        eval_loss=_number(logs, "eval_loss"),
        reward=_number(logs, "reward"),
        kl=_number(logs, "kl"),
        metrics=_metrics(logs),
        elapsed_s=elapsed_s,
    )


_NO_METRICS = frozenset(field.name for field in fields(StepRecord)) | {"total_flos", "step_time"}
_OF_THE_CLOCK = ("_runtime", "_per_second")


def _metrics(logs: dict[str, Any]) -> dict[str, float]:
    """Return the finite numbers of the trainer's log that have no field of their own."""
    return {
        name: float(value)
        for name, value in logs.items()
        if name not in _NO_METRICS
        and not name.endswith(_OF_THE_CLOCK)
        and isinstance(value, int | float)
        and math.isfinite(value)
    }


def _records_until(step: int, path: Path) -> list[StepRecord]:
    """Return what was logged up to a step; a last line that was cut by a kill lies behind it."""
    if not step or not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = StepRecord(**json.loads(line))
        except (ValueError, TypeError):
            break
        if record.step <= step:
            records.append(record)
    return records


def _number(logs: dict[str, Any], name: str) -> float | None:
    """Return a finite number from the trainer's log, or None (fp16 skips steps with inf norms)."""
    value = logs.get(name)
    if value is None or not math.isfinite(float(value)):
        return None
    return float(value)
