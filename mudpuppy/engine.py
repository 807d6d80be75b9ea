"""train(config): load, prepare, fit, save, account. Read this first.

The engine writes numbers and holds no opinions: whether the artefact is any good is for
`harness.probes` to say, which know nothing of this file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import set_seed

from mudpuppy.adapters.attach import adapter_settings, attach_adapter
from mudpuppy.adapters.merge import merge_adapter
from mudpuppy.config import TrainingConfig
from mudpuppy.data.chat import ChatSample
from mudpuppy.data.render import RenderedSample, Renderer, count_labels, render_all
from mudpuppy.files import write_json_atomic
from mudpuppy.loading import Loaded, load, local_folder
from mudpuppy.memory.streaming import stream_layers
from mudpuppy.methods import gptq, sft
from mudpuppy.preflight import preflight
from mudpuppy.provenance import (
    PROVENANCE_FILE,
    PROVENANCE_SCHEMA_VERSION,
    fingerprint_model,
    hash_names,
    hash_text,
    package_versions,
)
from mudpuppy.quant import int4
from mudpuppy.records import Choice, LabelShares, RunRecord
from mudpuppy.runtime import Runtime, choose_runtime, peak_device_bytes, peak_rss_bytes
from mudpuppy.saving import count_parameters, save_adapter, save_model, staging
from mudpuppy.tiny import resolve_model


class Watcher(Protocol):
    """Somebody who measures for himself what the engine does (the pressure matrix's worker)."""

    def on_prepared(
        self, model: Any, tokenizer: Any, samples: Sequence[RenderedSample], eos_ids: frozenset[int]
    ) -> None:
        """Look at the model right before the first step."""

    def on_fitted(self, model: Any) -> None:
        """Look at the model right after the last step, before anything is merged or saved."""


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What the stages of one run share."""

    config: TrainingConfig
    base: str
    runtime: Runtime
    loaded: Loaded
    samples: list[RenderedSample]
    records_dir: Path


def train(
    config: TrainingConfig,
    *,
    samples: Sequence[ChatSample] | None = None,
    watcher: Watcher | None = None,
    records_dir: Path | None = None,
    report: sft.Report | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> RunRecord:
    """Train as configured and leave a complete artefact in `config.output`.

    Args:
        config: the settings; `mudpuppy.config.load_config` makes and checks them.
        samples: the dataset, when `preflight` has read it already.
        watcher: sees the model before the first and after the last step.
        records_dir: where `steps.jsonl` and `run.json` go; by default the output folder.
        report: called with every step.
        say: called with what is about to happen, one line each.

    Raises:
        UsageError: something the person can mend; nothing was written.
        EngineError: the run diverged or its artefact cannot be believed.
    """
    started = time.monotonic()
    chats = preflight(config) if samples is None else samples
    is_new = not config.output.exists()
    try:
        job = _prepare(config, chats, records_dir, say)
        config.output.mkdir(parents=True, exist_ok=True)
        job.records_dir.mkdir(parents=True, exist_ok=True)
        stage = _quantise if config.method == "gptq" else _fine_tune
        record = stage(job, watcher, report, say, started)
    except BaseException:
        if is_new and config.output.is_dir() and not any(config.output.iterdir()):
            config.output.rmdir()
        raise
    return record


def _prepare(
    config: TrainingConfig,
    chats: Sequence[ChatSample],
    records_dir: Path | None,
    say: Callable[[str], None],
) -> _Job:
    """Choose device and precision, load the model, render the samples; write nothing."""
    set_seed(config.seed)
    runtime = choose_runtime(config)
    base = resolve_model(config.model)
    say(f"loading {config.model}")
    loaded = load(base, config, runtime)
    template = loaded.tokenizer.chat_template if config.chat_template else None
    reason = "the tokenizer has one" if template else "the tokenizer has none"
    runtime.choices["chat_template"] = Choice(
        value="applied" if template else "not applied",
        reason=reason if config.chat_template else "--no-chat-template",
    )
    renderer = Renderer(
        tokenizer=loaded.tokenizer,
        eos_ids=loaded.eos_ids,
        use_template=template is not None,
        response_only=config.response_only,
        max_length=config.max_length,
    )
    for name, choice in runtime.choices.items():
        say(f"{name}: {choice.value} ({choice.reason})")
    return _Job(
        config=config,
        base=base,
        runtime=runtime,
        loaded=loaded,
        samples=render_all(renderer, chats, str(config.dataset)),
        records_dir=config.output if records_dir is None else records_dir,
    )


def _fine_tune(
    job: _Job,
    watcher: Watcher | None,
    report: sft.Report | None,
    say: Callable[[str], None],
    started: float,
) -> RunRecord:
    """Train all weights or an adapter, save it, and merge it when asked."""
    config, loaded = job.config, job.loaded
    model = attach_adapter(loaded.model, config) if config.trains_adapter else loaded.model
    trainable, total = count_parameters(model)
    say(f"training {trainable:,} of {total:,} parameters on {len(job.samples)} samples")
    with stream_layers(model, job.runtime.device) if config.stream else nullcontext():
        if watcher is not None:
            watcher.on_prepared(model, loaded.tokenizer, job.samples, loaded.eos_ids)
        result = sft.fit(
            model,
            loaded.tokenizer,
            job.samples,
            config,
            job.runtime,
            steps_file=job.records_dir / "steps.jsonl",
            report=report,
        )
        if watcher is not None:
            watcher.on_fitted(model)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    losses = [r.loss for r in result.records if r.loss is not None]
    evals = [r.eval_loss for r in result.records if r.eval_loss is not None]
    record = _record(
        job,
        started,
        steps=max((r.step for r in result.records), default=0),
        stopped_early=result.stopped_early,
        first_loss=losses[0] if losses else None,
        final_loss=losses[-1] if losses else None,
        eval_loss=evals[-1] if evals else None,
        trainable_parameters=trainable,
        total_parameters=total,
        labels=count_labels(job.samples, loaded.eos_ids),
        quantisation=int4.scheme(config.quant_block_size) if loaded.quantised else {},
        train_s=round(result.seconds, 3),
    )
    trained = {"count": len(names), "names_hash": hash_names(names)}
    with staging(config.output) as folder:
        if config.trains_adapter:
            trained["adapter"] = adapter_settings(model)
            save_adapter(model, job.base, folder)
            if config.merge_lora:
                say("merging the adapter")
                _save_merged(job, model, folder / "merged", record, trained)
        else:
            save_model(model, job.base, folder, job.runtime.dtype)
    kind = "adapter" if config.trains_adapter else "model"
    return _finish(job, record, kind, trained, started)


def _save_merged(
    job: _Job, model: Any, folder: Path, record: RunRecord, trained: dict[str, Any]
) -> None:
    """Save the merged model and its own provenance below the adapter's folder."""
    merged = merge_adapter(model, job.runtime.dtype)
    save_model(merged, job.base, folder, job.runtime.dtype)
    provenance = _provenance(job, record, "merged", trained)
    write_json_atomic(folder / PROVENANCE_FILE, {**provenance, "adapter": ".."})


def _quantise(
    job: _Job,
    watcher: Watcher | None,
    report: sft.Report | None,
    say: Callable[[str], None],
    started: float,
) -> RunRecord:
    """Quantise the model with GPTQ into `OUTPUT/gptq`; nothing is trained."""
    job.loaded.model.requires_grad_(False)
    if watcher is not None:
        watcher.on_prepared(job.loaded.model, job.loaded.tokenizer, job.samples, job.loaded.eos_ids)
    result = gptq.quantise(job.loaded.model, job.samples, job.config, job.runtime, say)
    if watcher is not None:
        watcher.on_fitted(job.loaded.model)
    _, total = count_parameters(job.loaded.model)
    record = _record(
        job, started, steps=0, total_parameters=total, quantisation=result.quantisation
    )
    with staging(job.config.output) as folder:
        gptq.save(job.loaded.model, job.base, folder / "gptq", result)
        write_json_atomic(
            folder / "gptq" / PROVENANCE_FILE, _provenance(job, record, "gptq", {"count": 0})
        )
    return _finish(job, record, "gptq", {"count": 0}, started)


def _record(job: _Job, started: float, **numbers: Any) -> RunRecord:
    """Make the run's record; what is not given keeps its default."""
    config = job.config
    merged = str(config.output / "merged") if config.merge_lora else None
    return RunRecord(
        method=config.method,
        precision=config.precision,
        output=str(config.output),
        merged=merged,
        choices=job.runtime.choices,
        total_s=round(time.monotonic() - started, 3),
        peak_rss_bytes=peak_rss_bytes(),
        peak_device_bytes=peak_device_bytes(job.runtime.device),
        **numbers,
    )


def _finish(
    job: _Job, record: RunRecord, kind: str, trained: dict[str, Any], started: float
) -> RunRecord:
    """Write `run.json` and, last of all, the manifest whose presence means complete."""
    finished = RunRecord(**{**vars(record), "total_s": round(time.monotonic() - started, 3)})
    write_json_atomic(job.records_dir / "run.json", finished.to_json())
    provenance = _provenance(job, finished, kind, trained)
    write_json_atomic(job.config.output / PROVENANCE_FILE, provenance)
    return finished


def _provenance(job: _Job, record: RunRecord, kind: str, trained: dict[str, Any]) -> dict[str, Any]:
    """Return what `mudpuppy.json` says (design, rule 7)."""
    folder = local_folder(job.base)
    template = job.loaded.tokenizer.chat_template
    labels: LabelShares | None = record.labels
    return {
        "schema_version": PROVENANCE_SCHEMA_VERSION,
        "kind": kind,
        "method": record.method,
        "precision": record.precision,
        "base": {
            "name": job.config.model,
            "path": job.base if folder is None else str(folder),
            "fingerprint": None if folder is None else fingerprint_model(folder),
        },
        "trainable": trained,
        "labels": None if labels is None else asdict(labels),
        "quantisation": record.quantisation,
        "chat_template_hash": hash_text(template) if isinstance(template, str) else None,
        "versions": package_versions(),
        "torch": {"hip": torch.version.hip, "cuda": torch.version.cuda},
        "config": job.config.model_dump(mode="json"),
        "run": record.to_json(),
    }
