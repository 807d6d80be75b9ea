"""A setting was asked for and not followed.

What it does: compares the settings of the run with what was seen while it computed and with what
its files say: streaming, recomputation, compiling, sharding, offloading, precision, rounding,
packing, batches, checkpoints, workers, schedule, steps, held-out samples, the adapter to continue,
the adapter's form, GPTQ's group size, and the type of the saved weights.

Why it is bad: a flag that is declared and read nowhere changes no loss: the run looks right, and
memory, speed or the result are not what was paid for (FM10 is one of the family, FM15 follows from
another).

Example: `--precision fp16` on a CPU, where the library computes in fp32 without a word.

What to do: look at the setting named: does anything read it?
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from harness.findings import Evidence, Finding, Severity
from harness.observations import (
    ArtefactFacts,
    Calibration,
    LabelsSeen,
    Mechanics,
    Observations,
    ParameterMotion,
)
from harness.registry import Missing, probe

COMPUTED = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp8": "bfloat16"}
SAVED = {"fp32": "F32", "bf16": "BF16", "fp16": "F16", "fp8": "BF16"}
OFFLOADED = {"zero_offload": "OffloadedAdamW", "stream": "StreamedAdamW"}
"""Optimizers that step on the host, by the setting that asks for them."""
SCALES = {"gptq": {"F16"}, "int8": {"F32"}}
RECOMPUTED = 1.9
"""Calls per batch from which a layer counts as recomputed: the second is the recomputation."""
SAME_RATE = 1e-6
"""Relative difference of a learning rate that rounding explains."""


@probe("MPD712", modes=("FM10", "FM15"), severity=Severity.CRITICAL)
def check(observations: Observations, expectation: Mapping[str, Any]) -> Finding | str:
    """Fail when a setting was not followed."""
    if observations.ending != "trained":
        raise Missing("the run did not end by itself")
    config = expectation.get("config")
    if not config:
        raise Missing("the settings of the run are not known")
    wrong = [
        *_check_mechanics(config, observations.mechanics),
        *_check_batches(config, observations.labels),
        *_check_motion(config, observations.motion),
        *_check_calibration(config, observations.calibration),
        *_check_steps(config, observations, bool(expectation.get("stops_early"))),
        *(item for facts in observations.artefacts for item in _check_artefact(config, facts)),
    ]
    if not wrong:
        return "every setting that can be seen was followed"
    return Finding(
        message=f"{wrong[0].what}: found {wrong[0].found}, asked for {wrong[0].expected}"
        + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""),
        evidence=tuple(wrong),
        cause="the setting is not read, or something overrides it",
        remedy="follow the setting from its flag to the library that must obey it",
    )


def _differ(what: str, found: Any, expected: Any, file: str | None = None) -> Iterator[Evidence]:
    if found != expected:
        yield Evidence(what=what, found=found, expected=expected, file=file)


def _check_mechanics(config: Mapping[str, Any], seen: Mechanics | None) -> Iterator[Evidence]:
    if seen is None:
        return
    wanted = COMPUTED[config["precision"]]
    yield from _differ("type of the computation", list(seen.compute_dtypes), [wanted])
    yield from _differ("layers streamed", seen.streamed, bool(config.get("stream")))
    recomputes = bool(config.get("gradient_checkpointing") or config.get("stream"))
    found = seen.calls_per_batch >= RECOMPUTED
    yield from _differ("activations recomputed", found, recomputes)
    rounds = config["precision"] == "fp8" or config["method"] == "qat"
    yield from _differ("products rounded (fp8, int8)", seen.rounding > 0, rounds)
    known = {
        "ranges.input_peak": config.get("qat_activations") == "tensor",
        "ranges.weight_stretch": config.get("qat_ranges") == "learned",
        "fp8_history.peaks": config.get("fp8_scaling") == "delayed",
    }
    for name, wanted_too in known.items():
        what = f"rounding remembers earlier steps ({name})"
        yield from _differ(what, name in seen.remembers, wanted_too)
    compiles = bool(config.get("compile"))
    yield from _differ("model compiled", seen.compiled_graphs > 0, compiles)
    if seen.dropouts:
        asked = [float(config.get("lora_dropout") or 0.0)]
        yield from _differ("dropout while training", list(seen.dropouts), asked)
    if config.get("adapter"):
        yield from _differ("began with the adapter to continue", seen.starts_from_adapter, True)


def _check_batches(config: Mapping[str, Any], seen: LabelsSeen | None) -> Iterator[Evidence]:
    if seen is None:
        return
    yield from _differ("held-out rows that were trained on", seen.held_out_trained, 0)
    evaluates = config.get("early_stopping") is not None
    yield from _differ("rows were held out", seen.held_out_rows > 0, evaluates)
    packs = bool(config.get("packing"))
    yield from _differ("batches packed", seen.packed_batches > 0, packs)
    limit = config.get("tokens_per_batch")
    if packs:
        limit = config["batch_size"] * config["max_length"]
    if limit is not None and seen.widest_batch > limit:
        yield Evidence(what="tokens of a batch", found=seen.widest_batch, expected=f"<= {limit}")
    workers = int(config.get("num_workers") or 0)
    yield from _differ("processes that prepare batches", min(seen.workers, workers), workers)
    every, planned = config.get("save_steps"), config.get("max_steps")
    if every and planned and config.get("early_stopping") is None:
        wanted = [f"checkpoint-{step}" for step in range(every, planned, every)]
        missing = [name for name in wanted[-1:] if name not in seen.checkpoints]
        yield from _differ("checkpoints that were never written", missing, [])


def _check_motion(config: Mapping[str, Any], seen: ParameterMotion | None) -> Iterator[Evidence]:
    if seen is None or config["method"] == "gptq":
        return
    shards = config.get("fsdp", "none") != "none"
    yield from _differ("weights sharded", seen.sharded, shards)
    asked = next((kind for name, kind in OFFLOADED.items() if config.get(name)), "another")
    if asked != "another" or seen.optimizer in OFFLOADED.values():
        yield from _differ("optimizer", seen.optimizer, asked)


def _check_calibration(config: Mapping[str, Any], seen: Calibration | None) -> Iterator[Evidence]:
    if seen is not None:
        wanted = min(config["calibration_samples"], seen.samples)
        yield from _differ("calibration samples", seen.passes, wanted)


def _check_steps(
    config: Mapping[str, Any], seen: Observations, stops_early: bool
) -> Iterator[Evidence]:
    planned = config.get("max_steps")
    if planned is None or config["method"] == "gptq":
        return
    if not stops_early:
        yield from _differ("optimizer steps", len(seen.losses), planned, "steps.jsonl")
    if config["precision"] == "fp16" or config.get("learning_rate") is None:
        return  # loss scaling skips steps, and the schedule with them
    for step, found in enumerate(seen.learning_rates):
        share = _expected_share(config, step, planned)
        wanted = None if share is None else share * config["learning_rate"]
        if wanted is not None and not math.isclose(found, wanted, rel_tol=SAME_RATE, abs_tol=1e-12):
            yield Evidence(
                what=f"learning rate of step {step + 1}",
                file="steps.jsonl",
                found=found,
                expected=wanted,
            )
            return


def _expected_share(config: Mapping[str, Any], step: int, planned: int) -> float | None:
    """Return the share of the peak rate at a step (from 0), or None for a schedule not known."""
    warmup = int(config.get("warmup_steps") or 0)
    if step < warmup:
        return step / warmup
    progress = (step - warmup) / max(1, planned - warmup)
    known = {
        "linear": 1.0 - progress,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
        "constant": 1.0,
    }
    return known.get(str(config.get("lr_scheduler") or "linear"))


def _check_artefact(config: Mapping[str, Any], facts: ArtefactFacts) -> Iterator[Evidence]:
    name = facts.artefact
    if name == "adapter":
        yield from _differ("rank of the adapter", facts.lora_r, config["lora_r"], name)
        alpha = config.get("lora_alpha") or 2 * config["lora_r"]
        yield from _differ("alpha of the adapter", facts.lora_alpha, alpha, name)
        dropout = config.get("lora_dropout") or 0.0
        yield from _differ("dropout of the adapter", facts.lora_dropout, dropout, name)
        yield from _differ("DoRA", facts.dora, bool(config.get("use_dora")), name)
        yield from _differ("rsLoRA", facts.rslora, bool(config.get("use_rslora")), name)
        asked = sorted(config.get("lora_target_modules") or ())
        if asked and asked != ["all-linear"]:
            yield from _differ("targets of the adapter", list(facts.lora_targets), asked, name)
        return
    merged_in = config.get("merge_precision") if name == "merged" else None
    wanted = {SAVED[merged_in or config["precision"]]}
    # Scales of GPTQ are fp16 by its layout, those of int8 fp32, whatever the rest is saved in.
    found = set(facts.dtypes) - (SCALES.get(name, set()) - wanted)
    yield from _differ("type of the saved weights", sorted(found), sorted(wanted), name)
    if name == "gptq":
        asked_size = config.get("gptq_group_size")
        yield from _differ("group size of GPTQ", facts.group_size, asked_size, name)
