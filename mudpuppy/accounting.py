"""Account for a run: its record, and `mudpuppy.json`, whose presence means complete."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from mudpuppy.checkpoints import Identity
from mudpuppy.config import TrainingConfig
from mudpuppy.files import write_json_atomic
from mudpuppy.leftovers import RUN_FILE, forget_moves
from mudpuppy.loading import Loaded
from mudpuppy.methods.family import Family, Row
from mudpuppy.methods.fitting import FitResult
from mudpuppy.provenance import (
    PROVENANCE_FILE,
    PROVENANCE_SCHEMA_VERSION,
    hash_names,
    hash_text,
    package_versions,
)
from mudpuppy.records import RunRecord
from mudpuppy.runtime import Runtime, peak_device_bytes, peak_rss_bytes


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the stages of one run share."""

    config: TrainingConfig
    """The settings."""
    family: Family
    """The family of the method."""
    base: str
    """Path or hub id that the base was loaded from."""
    folder: Path | None
    """Folder of the base, where it is on this machine."""
    fingerprint: str | None
    """The base's fingerprint, where it could be made."""
    identity: Identity
    """What a run must share with the one whose checkpoint it goes on from."""
    runtime: Runtime
    """Device and precision."""
    loaded: Loaded
    """The base model and its tokenizer."""
    rows: Sequence[Row]
    """Samples as the model sees them."""
    dropped: int
    """Samples left out, since nothing in them would be learnt."""
    held_out: Sequence[Row] = ()
    """Samples to evaluate on that came apart from the others, as the model sees them."""
    records_dir: Path
    """Where `steps.jsonl` and `run.json` go."""
    started: float = field(default_factory=time.monotonic)
    """When the run began, on the monotonic clock."""


def make_record(job: Job, **numbers: Any) -> RunRecord:
    """Make the run's record; what is not given keeps its default."""
    return RunRecord(
        method=job.config.method,
        precision=job.config.precision,
        output=str(job.config.output),
        choices=job.runtime.choices,
        total_s=round(time.monotonic() - job.started, 3),
        peak_rss_bytes=peak_rss_bytes(),
        peak_device_bytes=peak_device_bytes(job.runtime.device),
        **numbers,
    )


def progress_of(result: FitResult) -> dict[str, Any]:
    """Return what the run's record says of the steps."""
    losses = [r.loss for r in result.records if r.loss is not None]
    evals = [r.eval_loss for r in result.records if r.eval_loss is not None]
    return {
        "steps": max((r.step for r in result.records), default=0),
        "stopped_early": result.stopped_early,
        "first_loss": losses[0] if losses else None,
        "final_loss": losses[-1] if losses else None,
        "eval_loss": evals[-1] if evals else None,
        "learnt_nothing": bool(losses) and not any(r.grad_norm for r in result.records),
        "train_s": round(result.seconds, 3),
        "metrics": result.metrics,
    }


def describe_trained(model: Any) -> dict[str, Any]:
    """Return number and hash of the names of the parameters that train."""
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    return {"count": len(names), "names_hash": hash_names(names)}


def finish(job: Job, record: RunRecord, kind: str, trained: dict[str, Any]) -> RunRecord:
    """Write `run.json` and, last of all, the manifest."""
    finished = replace(record, total_s=round(time.monotonic() - job.started, 3))
    write_json_atomic(job.records_dir / RUN_FILE, finished.to_json())
    manifest = make_provenance(job, finished, kind, trained)
    write_json_atomic(job.config.output / PROVENANCE_FILE, manifest)
    forget_moves(job.config.output)
    return finished


def make_provenance(
    job: Job, record: RunRecord, kind: str, trained: dict[str, Any]
) -> dict[str, Any]:
    """Return what `mudpuppy.json` says of one artefact (design, rule 7)."""
    folder = job.folder
    template = job.loaded.tokenizer.chat_template
    return {
        "schema_version": PROVENANCE_SCHEMA_VERSION,
        "kind": kind,
        "method": record.method,
        "precision": record.precision,
        "base": {
            "name": job.config.model,
            "path": job.base if folder is None else str(folder),
            "revision": folder.name if folder and folder.parent.name == "snapshots" else None,
            "fingerprint": job.fingerprint,
        },
        "trainable": trained,
        "labels": None if record.labels is None else asdict(record.labels),
        "quantisation": record.quantisation,
        "chat_template_hash": hash_text(template) if isinstance(template, str) else None,
        "versions": package_versions(),
        "torch": {"hip": torch.version.hip, "cuda": torch.version.cuda},
        "config": job.config.model_dump(mode="json"),
        "run": record.to_json(),
    }
