"""train(config): load, prepare, fit, save, account. Read this first.

The engine writes numbers and holds no opinions: whether the artefact is any good is for
`harness.probes` to say, which know nothing of this file.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeGuard

from transformers import set_seed

from mudpuppy import team
from mudpuppy.accounting import (
    Job,
    describe_trained,
    finish,
    make_provenance,
    make_record,
    progress_of,
)
from mudpuppy.adapters.attach import adapter_settings, attach_adapter
from mudpuppy.adapters.continued import continue_adapter
from mudpuppy.adapters.merge import merge_adapter
from mudpuppy.adapters.shard_merge import merge_shards
from mudpuppy.attention.documents import attending_by_document
from mudpuppy.base_path import local_folder
from mudpuppy.checkpoints import Resumable, identify, remove_checkpoints, take_up
from mudpuppy.config import TrainingConfig
from mudpuppy.data.parallel import render_rows
from mudpuppy.data.render import count_labels
from mudpuppy.data.samples import Sample, is_plain
from mudpuppy.errors import DatasetError, clip
from mudpuppy.estimate.record import predict_run
from mudpuppy.files import write_json_atomic
from mudpuppy.loading import Loaded, load, require_known_ids, within_positions
from mudpuppy.logs import settle_environment
from mudpuppy.memory.sharding import gather_shards
from mudpuppy.memory.streaming import stream_layers
from mudpuppy.methods import gptq
from mudpuppy.methods.family import Row, find_family
from mudpuppy.methods.fitting import FitResult, fit
from mudpuppy.methods.steplog import Report
from mudpuppy.parameters import count_parameters
from mudpuppy.preflight import locked, preflight
from mudpuppy.provenance import PROVENANCE_FILE, fingerprint_model
from mudpuppy.quant.fp8 import choose_fp8_path, fp8_linears
from mudpuppy.quant.fp8_history import describe_saturation
from mudpuppy.records import Choice, RunRecord
from mudpuppy.refusals import telling_of_failed_writes, telling_of_memory
from mudpuppy.runtime import DTYPES, Runtime, choose_runtime
from mudpuppy.safefile import weight_files
from mudpuppy.saving import save_adapter, save_model, staging, write_card
from mudpuppy.tiny import resolve_model

Say = Callable[[str], None]
LESS_MEMORY = (
    "lower --batch-size (with --gradient-accumulation) or --max-length, add "
    "--gradient-checkpointing or --zero-offload; mud-puppy estimate tells what would fit"
)


class Watcher(Protocol):
    """Somebody who measures for himself what the engine does (the pressure matrix's worker)."""

    def on_prepared(
        self, model: Any, tokenizer: Any, samples: Sequence[Row], eos_ids: frozenset[int]
    ) -> None:
        """Look at the model right before the first step."""

    def on_fitted(self, model: Any) -> None:
        """Look at the model right after the last step, before anything is merged or saved."""


def train(
    config: TrainingConfig,
    *,
    samples: Sequence[Sample] | None = None,
    held_out: Sequence[Sample] = (),
    keep_checkpoints: bool = False,
    watcher: Watcher | None = None,
    records_dir: Path | None = None,
    report: Report | None = None,
    say: Say | None = None,
) -> RunRecord:
    """Train as configured and leave a complete artefact in `config.output`.

    Args:
        config: the settings; `mudpuppy.config_check.load_config` makes and checks them.
        samples: the dataset, when `preflight` has read it already.
        held_out: evaluated every `eval_steps` and at the end; nothing of the dataset then is.
        keep_checkpoints: whether what a run goes on from stays once it has ended.
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
    read = preflight(config) if samples is None else samples
    is_new = not config.output.exists()
    team.join(on_cpu="cpu" in (config.device, config.device_map))
    if not team.is_first():
        say = report = None  # the first process speaks for all
    speak: Say = say or (lambda _: None)
    try:
        with ExitStack() as held:
            held.enter_context(telling_of_memory(config.method, LESS_MEMORY))
            for sentence in settle_environment(config):
                speak(sentence)
            job = team.agree(lambda: _prepare(config, read, held_out, records_dir, speak, started))
            held.enter_context(telling_of_failed_writes(config.output))
            team.first_only(lambda: held.enter_context(locked(config.output, resume=config.resume)))
            job.records_dir.mkdir(parents=True, exist_ok=True)
            if config.method == "gptq":
                return _quantise(job, watcher, speak)
            record = _fine_tune(job, watcher, report, speak)
            if not keep_checkpoints:
                team.first_only(lambda: remove_checkpoints(config.output))
            return record
    finally:
        if is_new and config.output.is_dir() and not any(config.output.iterdir()):
            config.output.rmdir()
        team.leave()


def _prepare(
    config: TrainingConfig,
    samples: Sequence[Sample],
    held_out: Sequence[Sample],
    records_dir: Path | None,
    say: Say,
    started: float,
) -> Job:
    """Choose device and precision, load the model, render the samples; write nothing."""
    asked = config
    set_seed(config.seed)
    runtime = choose_runtime(config)
    family = find_family(config.method)
    base = resolve_model(config.model)
    say(f"loading {config.model}")
    loaded = load(base, config, runtime, family.form)
    config = within_positions(asked, loaded.model)
    if config is not asked:
        reason = f"the model has no more positions; the setting is {asked.max_length}"
        runtime.choices["max_length"] = Choice(value=str(config.max_length), reason=reason)
    _record_choices(config, runtime, loaded, samples)
    runtime.choices.update(family.choose(loaded, config))
    for name, choice in runtime.choices.items():
        say(f"{name}: {choice.value} ({choice.reason})")
    ignored = Counter(key for sample in samples for key in sample.ignored)
    if ignored:
        named = ", ".join(f"{clip(key)} ({n})" for key, n in ignored.most_common(5))
        say(f"not used: {named}")
    rows = render_rows(loaded, samples, config)
    require_known_ids(config.model, loaded.model, [row.input_ids for row in rows])
    if family.learns_to_end and config.method != "gptq":
        _require_ends(rows, loaded.eos_ids, config)
    dropped = max(0, len(samples) - len(rows))  # a pair may become two rows
    if dropped:
        say(
            f"left out {dropped} of {len(samples)} samples: nothing within {config.max_length} "
            "tokens would be trained"
        )
    folder = local_folder(base)
    fingerprint = None if folder is None else _fingerprint(folder, say)
    return Job(
        config=config,
        family=family,
        base=base,
        folder=folder,
        fingerprint=fingerprint,
        identity=identify(asked, samples, fingerprint),
        runtime=runtime,
        loaded=loaded,
        rows=rows,
        held_out=render_rows(loaded, held_out, config) if held_out else (),
        dropped=dropped,
        records_dir=config.output if records_dir is None else records_dir,
        started=started,
    )


def _record_choices(
    config: TrainingConfig, runtime: Runtime, loaded: Loaded, samples: Sequence[Sample]
) -> None:
    """Add to the choices what could only be chosen once the model was there."""
    is_text = all(map(is_plain, samples))
    is_applied = config.chat_template and bool(loaded.tokenizer.chat_template) and not is_text
    reason = f"the tokenizer has {'one' if loaded.tokenizer.chat_template else 'none'}"
    if is_text and loaded.tokenizer.chat_template:
        reason = "the samples are plain texts; write them as messages to have it applied"
    runtime.choices["chat_template"] = Choice(
        value="applied" if is_applied else "not applied",
        reason=reason if config.chat_template else "--no-chat-template",
    )
    if config.precision == "fp8":
        path = choose_fp8_path(runtime.device)
        value = "hardware" if path.hardware else "emulated"
        runtime.choices["fp8"] = Choice(value=value, reason=path.reason)
    if config.stream and config.gradient_checkpointing:
        runtime.choices["gradient_checkpointing"] = Choice(
            value="by streaming", reason="streaming recomputes every layer already"
        )


def _fingerprint(folder: Path, say: Say) -> str | None:
    """Return the base's fingerprint; one that cannot be made is told and costs nothing else."""
    try:
        return fingerprint_model(folder)
    except (OSError, ValueError) as error:
        say(f"no fingerprint of the base model is recorded: {error}")
        return None


def _require_ends(rows: Sequence[Row], eos_ids: frozenset[int], config: TrainingConfig) -> None:
    """Refuse samples of which none keeps the end of its answer: the model would never stop."""
    if not count_labels(rows, eos_ids).samples_ending_in_eos:
        raise DatasetError(
            f"no answer keeps its end within {config.max_length} tokens, so the model would "
            "never learn to stop",
            file=str(config.dataset),
            hint="raise --max-length",
        )


def _fine_tune(job: Job, watcher: Watcher | None, report: Report | None, say: Say) -> RunRecord:
    """Train all weights or an adapter, save it, and merge it when asked."""
    config, loaded = job.config, job.loaded
    model = loaded.model
    if config.trains_adapter and config.adapter is not None:
        say(f"continuing the adapter {config.adapter}")
        model = continue_adapter(model, config.adapter, config)
    elif config.trains_adapter:
        model = attach_adapter(model, config, job.family.task_type)
    counted = count_parameters(model)
    say(
        f"training {counted.trainable:,} of {counted.total:,} parameters on "
        f"{len(job.rows)} sample{'' if len(job.rows) == 1 else 's'}"
    )
    resumed = team.told_by_first(lambda: take_up(config, job.identity, say))
    predicted = predict_run(model, config, job.rows, job.runtime.device, say)
    result = _fit(job, model, resumed, watcher, report)
    if config.fsdp != "none":
        gather_shards(model)
    trained = describe_trained(model)
    record = make_record(
        job,
        **progress_of(result),
        predicted_bytes=predicted,
        trainable_parameters=counted.trainable,
        total_parameters=counted.total,
        labels=count_labels(job.rows, loaded.eos_ids, job.dropped),
        quantisation=dict(loaded.quantisation),
    )
    saved = team.first_only(lambda: _save(job, model, record, trained, say))
    return saved or record


def _save(job: Job, model: Any, record: RunRecord, trained: dict[str, Any], say: Say) -> RunRecord:
    """Leave the artefact, complete with its manifest."""
    config, loaded = job.config, job.loaded
    if config.trains_adapter:
        return _save_adapter(job, model, record, trained, say)
    saved = loaded.processor or loaded.original_tokenizer
    with staging(config.output, manifest_follows=True) as folder:
        if job.family.export is not None:  # before the weights are rounded to be saved
            exported = job.family.export(model, loaded, folder, config, job.runtime)
            record = replace(record, quantisation=exported.quantisation)
            manifest = make_provenance(job, record, exported.folder, trained)
            write_json_atomic(folder / exported.folder / PROVENANCE_FILE, manifest)
        save_model(model, saved, folder, job.runtime.dtype)
    return finish(job, record, "model", trained)


def _save_adapter(
    job: Job, model: Any, record: RunRecord, trained: dict[str, Any], say: Say
) -> RunRecord:
    """Save the adapter and, when asked, the model that it makes of its base."""
    config, loaded = job.config, job.loaded
    trained["adapter"] = adapter_settings(model)
    with staging(config.output, manifest_follows=True) as folder:
        save_adapter(model, loaded.processor or loaded.original_tokenizer, folder, job.base)
        form = job.family.form
        settings = dict(form.settings)
        if form.needs_pad:
            settings["pad_token_id"] = loaded.tokenizer.pad_token_id
        write_card(folder, config.method, config.model, form.auto_class, settings)
    finished = finish(job, record, "adapter", trained)
    if not config.merge_lora:
        return finished
    # The adapter is complete by now: a merge that runs out of memory does not lose it.
    say("merging the adapter")
    merged = replace(record, merged=str(config.output / "merged"))
    with staging(config.output) as folder:
        _save_merged(job, model, folder / "merged", merged, trained)
    return finish(job, merged, "adapter", trained)


def _fit(
    job: Job,
    model: Any,
    resumed: Resumable | None,
    watcher: Watcher | None,
    report: Report | None,
) -> FitResult:
    """Run the trainer in front of the watcher, inside whatever surrounds it."""
    config, loaded, runtime = job.config, job.loaded, job.runtime
    with ExitStack() as around:
        if config.packing:  # before anything whose rounding depends on the whole batch
            around.enter_context(attending_by_document(model))
        if config.precision == "fp8":
            window = config.fp8_window if config.fp8_scaling == "delayed" else None
            around.enter_context(fp8_linears(model, choose_fp8_path(runtime.device), window))
        around.enter_context(job.family.around_fit(model, config, runtime))
        if config.stream:  # after everything that gives a layer further parameters
            slots = config.stream_layers
            around.enter_context(stream_layers(model, runtime.device, slots=slots))
        if watcher is not None:
            watcher.on_prepared(model, loaded.tokenizer, job.rows, loaded.eos_ids)
        result = fit(
            model,
            job.family,
            loaded,
            job.rows,
            config,
            runtime,
            held_out=job.held_out,
            steps_file=job.records_dir / "steps.jsonl",
            identity=job.identity,
            resumed=resumed,
            report=report,
        )
        if config.fp8_scaling == "delayed":
            runtime.choices["fp8_clipped"] = describe_saturation(model)
        if watcher is not None:
            watcher.on_fitted(model)
    return result


def _save_merged(
    job: Job, model: Any, folder: Path, record: RunRecord, trained: dict[str, Any]
) -> None:
    """Save the merged model and its own provenance below the adapter's folder."""
    names = {DTYPES[name]: name for name in ("fp32", "bf16", "fp16")}
    precision = job.config.merge_precision or names[job.runtime.dtype]
    alone = f"mud-puppy merge {job.base} {job.config.output} MERGED"
    hint = f"the adapter is complete in {job.config.output}; merge on its own: {alone}"
    with telling_of_memory("the merge", hint):
        if job.family.task_type == "CAUSAL_LM" and _is_on_disk(job.folder):
            merge_shards(job.folder, job.config.output, folder, precision=precision)
        else:
            merged = merge_adapter(model, DTYPES[precision])
            saved = job.loaded.processor or job.loaded.original_tokenizer
            save_model(merged, saved, folder, DTYPES[precision])
    provenance = make_provenance(job, record, "merged", trained)
    write_json_atomic(folder / PROVENANCE_FILE, {**provenance, "adapter": ".."})


def _is_on_disk(base: Path | None) -> TypeGuard[Path]:
    """Return whether the base can be merged block by block: it lies here, as safetensors."""
    try:
        return base is not None and bool(weight_files(base))
    except (OSError, ValueError):
        return False


def _quantise(job: Job, watcher: Watcher | None, say: Say) -> RunRecord:
    """Quantise the model with GPTQ into `OUTPUT/gptq`; nothing is trained."""
    config, loaded = job.config, job.loaded
    resumed = take_up(config, job.identity, say)
    blocks = gptq.open_blocks(
        loaded, config, job.runtime, job.identity, resumed=resumed, stays=watcher is not None
    )
    if watcher is not None:
        watcher.on_prepared(loaded.model, loaded.tokenizer, job.rows, loaded.eos_ids)
    total = count_parameters(loaded.model).total
    result = gptq.quantise(loaded, job.rows, config, job.runtime, say, blocks, job.base)
    if watcher is not None:
        watcher.on_fitted(result.model)
    record = make_record(job, steps=0, total_parameters=total, quantisation=result.quantisation)
    with staging(config.output, manifest_follows=True) as folder:
        result.save(folder / "gptq")
        manifest = make_provenance(job, record, "gptq", {"count": 0})
        write_json_atomic(folder / "gptq" / PROVENANCE_FILE, manifest)
    finished = finish(job, record, "gptq", {"count": 0})
    remove_checkpoints(config.output)
    return finished
