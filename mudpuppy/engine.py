"""train(config): load, prepare, fit, save, account. Read this first.

The engine writes numbers and holds no opinions: whether the artefact is any good is for
`harness.probes` to say, which know nothing of this file.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import set_seed

from mudpuppy.adapters.attach import adapter_settings, attach_adapter
from mudpuppy.adapters.merge import merge_adapter
from mudpuppy.config import TrainingConfig
from mudpuppy.data.render import RenderedSample, Renderer, count_labels, render_all
from mudpuppy.data.samples import ChatSample
from mudpuppy.errors import DatasetError, EngineError, clip
from mudpuppy.files import write_json_atomic
from mudpuppy.loading import Loaded, load, local_folder, require_known_ids
from mudpuppy.memory.streaming import stream_layers
from mudpuppy.methods import gptq, sft
from mudpuppy.parameters import count_parameters
from mudpuppy.preflight import locked, preflight
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
from mudpuppy.saving import (
    save_adapter,
    save_model,
    staging,
    telling_of_failed_writes,
    write_card,
)
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
    folder: Path | None
    fingerprint: str | None
    runtime: Runtime
    loaded: Loaded
    samples: list[RenderedSample]
    dropped: int
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
        OutputError: another run writes into the same folder, or has meanwhile.
        EngineError: the run diverged, its artefact cannot be believed, or cannot be written.
    """
    started = time.monotonic()
    chats = preflight(config) if samples is None else samples
    is_new = not config.output.exists()
    try:
        job = _prepare(config, chats, records_dir, say)
        stage = _quantise if config.method == "gptq" else _fine_tune
        with telling_of_failed_writes(config.output), locked(config.output):
            job.records_dir.mkdir(parents=True, exist_ok=True)
            return stage(job, watcher, report, say, started)
    except torch.OutOfMemoryError as error:
        raise EngineError(
            f"{config.method} ran out of device memory: {str(error).splitlines()[0]}",
            hint="lower --batch-size or --max-length, add --gradient-checkpointing, or use "
            "--method qlora",
        ) from error
    finally:
        if is_new and config.output.is_dir() and not any(config.output.iterdir()):
            config.output.rmdir()


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
    if config.stream and config.gradient_checkpointing:
        runtime.choices["gradient_checkpointing"] = Choice(
            value="by streaming", reason="streaming recomputes every layer already"
        )
    for name, choice in runtime.choices.items():
        say(f"{name}: {choice.value} ({choice.reason})")
    ignored = Counter(key for chat in chats for key in chat.ignored)
    if ignored:
        named = ", ".join(f"{clip(key)} ({n})" for key, n in ignored.most_common(5))
        say(f"not used, since only role and content of a message are: {named}")
    samples = render_all(renderer, chats, str(config.dataset))
    require_known_ids(config.model, loaded.model, [sample.input_ids for sample in samples])
    dropped = len(chats) - len(samples)
    _require_ends(samples, loaded.eos_ids, config)
    if dropped:
        say(
            f"left out {dropped} of {len(chats)} samples: nothing within {config.max_length} "
            "tokens would be trained"
        )
    folder = local_folder(base)
    return _Job(
        config=config,
        base=base,
        folder=folder,
        fingerprint=None if folder is None else _fingerprint(folder, say),
        runtime=runtime,
        loaded=loaded,
        samples=samples,
        dropped=dropped,
        records_dir=config.output if records_dir is None else records_dir,
    )


def _fingerprint(folder: Path, say: Callable[[str], None]) -> str | None:
    """Return the base's fingerprint; one that cannot be made is told and costs nothing else."""
    try:
        return fingerprint_model(folder)
    except (OSError, ValueError) as error:
        say(f"no fingerprint of the base model is recorded: {error}")
        return None


def _require_ends(
    samples: Sequence[RenderedSample], eos_ids: frozenset[int], config: TrainingConfig
) -> None:
    """Refuse samples of which none keeps the end of its answer: the model would never stop."""
    if config.method != "gptq" and not count_labels(samples, eos_ids).samples_ending_in_eos:
        raise DatasetError(
            f"no answer keeps its end within {config.max_length} tokens, so the model would "
            "never learn to stop",
            file=str(config.dataset),
            hint="raise --max-length",
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
    counted = count_parameters(model)
    say(
        f"training {counted.trainable:,} of {counted.total:,} parameters on "
        f"{len(job.samples)} sample{'' if len(job.samples) == 1 else 's'}"
    )
    result = _fit(job, model, watcher, report)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    trained: dict[str, Any] = {"count": len(names), "names_hash": hash_names(names)}
    record = _record(
        job,
        started,
        **_progress(result),
        trainable_parameters=counted.trainable,
        total_parameters=counted.total,
        labels=count_labels(job.samples, loaded.eos_ids, job.dropped),
        quantisation=int4.scheme(config.quant_block_size) if loaded.quantised else {},
    )
    if not config.trains_adapter:
        with staging(config.output) as folder:
            save_model(model, loaded.original_tokenizer, folder, job.runtime.dtype)
        return _finish(job, record, "model", trained, started)
    trained["adapter"] = adapter_settings(model)
    with staging(config.output) as folder:
        save_adapter(model, loaded.original_tokenizer, folder, job.base)
        write_card(folder, config.method, config.model)
    finished = _finish(job, record, "adapter", trained, started)
    if not config.merge_lora:
        return finished
    # The adapter is complete by now: a merge that runs out of memory does not lose it.
    say("merging the adapter")
    merged = replace(record, merged=str(config.output / "merged"))
    with staging(config.output) as folder:
        _save_merged(job, model, folder / "merged", merged, trained)
    return _finish(job, merged, "adapter", trained, started)


def _fit(
    job: _Job, model: Any, watcher: Watcher | None, report: sft.Report | None
) -> sft.FitResult:
    """Run the trainer, with the layers streamed when asked, in front of the watcher."""
    config, loaded = job.config, job.loaded
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
    return result


def _progress(result: sft.FitResult) -> dict[str, Any]:
    """Return what the run's record says of the steps."""
    losses = [r.loss for r in result.records if r.loss is not None]
    evals = [r.eval_loss for r in result.records if r.eval_loss is not None]
    return {
        "steps": max((r.step for r in result.records), default=0),
        "stopped_early": result.stopped_early,
        "first_loss": losses[0] if losses else None,
        "final_loss": losses[-1] if losses else None,
        "eval_loss": evals[-1] if evals else None,
        "train_s": round(result.seconds, 3),
    }


def _save_merged(
    job: _Job, model: Any, folder: Path, record: RunRecord, trained: dict[str, Any]
) -> None:
    """Save the merged model and its own provenance below the adapter's folder."""
    try:
        merged = merge_adapter(model, job.runtime.dtype)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise EngineError(
            f"the merge ran out of memory; the adapter is complete in {job.config.output}",
            hint="merge on a machine with more memory: load base and adapter with PEFT and call "
            "merge_and_unload()",
        ) from error
    save_model(merged, job.loaded.original_tokenizer, folder, job.runtime.dtype)
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
    total = count_parameters(job.loaded.model).total
    record = _record(
        job, started, steps=0, total_parameters=total, quantisation=result.quantisation
    )
    with staging(job.config.output) as folder:
        gptq.save(job.loaded.model, job.loaded.original_tokenizer, folder / "gptq", result)
        write_json_atomic(
            folder / "gptq" / PROVENANCE_FILE, _provenance(job, record, "gptq", {"count": 0})
        )
    return _finish(job, record, "gptq", {"count": 0}, started)


def _record(job: _Job, started: float, **numbers: Any) -> RunRecord:
    """Make the run's record; what is not given keeps its default."""
    config = job.config
    return RunRecord(
        method=config.method,
        precision=config.precision,
        output=str(config.output),
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
    finished = replace(record, total_s=round(time.monotonic() - started, 3))
    write_json_atomic(job.records_dir / "run.json", finished.to_json())
    provenance = _provenance(job, finished, kind, trained)
    write_json_atomic(job.config.output / PROVENANCE_FILE, provenance)
    return finished


def _provenance(job: _Job, record: RunRecord, kind: str, trained: dict[str, Any]) -> dict[str, Any]:
    """Return what `mudpuppy.json` says (design, rule 7)."""
    folder = job.folder
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
            "revision": folder.name if folder and folder.parent.name == "snapshots" else None,
            "fingerprint": job.fingerprint,
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
