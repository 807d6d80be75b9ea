"""Probes of a training run: each fires on its fault, and stays quiet on a healthy run."""

from dataclasses import replace
from typing import Any

import pytest

from harness.facts import Files
from harness.findings import Status
from harness.observations import (
    ArtefactFacts,
    Comparison,
    LabelsSeen,
    Mechanics,
    Observations,
    ParameterMotion,
)
from harness.registry import Missing, load_probes, run_probe

MOTION = ParameterMotion(
    trainable=4, frozen=10, still=(), frozen_moved=(), foreign_trainable=(), without_gradient=()
)
LABELS = LabelsSeen(rows=8, tokens=80, trained_tokens=30, rows_ending_in_eos=8, rows_off_answer=0)
ADAPTER = Comparison(
    artefact="adapter", loader="peft", max_difference=0.0, scale=10.0, effect=1.0, tolerance=1e-4
)
MECHANICS = Mechanics(
    compute_dtypes=("float32",),
    calls_per_batch=1.0,
    streamed=False,
    held_out_rows=0,
    held_out_trained=0,
)
FACTS = ArtefactFacts(
    artefact="adapter",
    dtypes=("F32",),
    lora_r=8,
    lora_alpha=16,
    lora_dropout=0.0,
    lora_targets=("q_proj",),
    group_size=None,
    vocabulary_kept=True,
    template_kept=True,
    eos_kept=True,
)
CONFIG = {
    "method": "lora",
    "precision": "fp32",
    "lora_r": 8,
    "lora_alpha": None,
    "lora_dropout": 0.0,
    "lora_target_modules": ["q_proj"],
    "max_steps": 3,
    "learning_rate": 0.3,
    "lr_scheduler": "linear",
    "gptq_group_size": 32,
}
HEALTHY = Observations(
    ending="trained",
    learning_rates=(0.3, 0.2, 0.1),
    mechanics=MECHANICS,
    artefacts=(FACTS,),
    losses=(2.0, 1.5, 1.0),
    loss_before=2.0,
    loss_after=1.0,
    motion=MOTION,
    labels=LABELS,
    comparisons=(ADAPTER,),
    expected_artefacts=("adapter",),
)
GPTQ = replace(
    HEALTHY,
    losses=(),
    learning_rates=(),
    mechanics=None,
    artefacts=(replace(FACTS, artefact="gptq", dtypes=("F16", "F32"), group_size=32),),
    labels=None,
    motion=replace(MOTION, trainable=0, frozen_moved=("layer.0.weight",)),
    expected_artefacts=("gptq",),
    comparisons=(replace(ADAPTER, artefact="gptq"),),
    gptq_errors=(("layer.0", 1.0, 3.0),),
)
FILES = Files(root=".", names=("adapter_config.json", "mudpuppy.json"), weights=(), adapter=())
PROBES = {probe.code: probe for probe in load_probes() if probe.code.startswith("MPD7")}


class Source:
    """Evidence that is given."""

    def __init__(self, seen: Observations, **more: Any) -> None:
        method = "gptq" if "gptq" in seen.expected_artefacts else "lora"
        config = {**CONFIG, "method": method}
        expectation = {"stops_early": False, "max_steps": 40, "config": config}
        self.evidence = {"observations": seen, "files": FILES, "expectation": expectation, **more}

    def get(self, name: str) -> Any:
        if name not in self.evidence:
            raise Missing(f"no {name}")
        return self.evidence[name]


def ending(code: str, seen: Observations, **more: Any):
    return run_probe(PROBES[code], Source(seen, **more))


def moved(**changes: Any) -> Observations:
    return replace(HEALTHY, motion=replace(MOTION, **changes))


def taught(**changes: Any) -> Observations:
    return replace(HEALTHY, labels=replace(LABELS, **changes))


def compared(**changes: Any) -> Observations:
    return replace(HEALTHY, comparisons=(replace(ADAPTER, **changes),))


def computed(**changes: Any) -> Observations:
    return replace(HEALTHY, mechanics=replace(MECHANICS, **changes))


def made(artefact: str = "adapter", **changes: Any) -> Observations:
    return replace(HEALTHY, artefacts=(replace(FACTS, artefact=artefact, **changes),))


FAULTS = [
    ("MPD712", computed(compute_dtypes=("float16",)), "type of the computation"),
    ("MPD712", computed(streamed=True), "layers streamed: found True, asked for False"),
    ("MPD712", computed(calls_per_batch=2.0), "activations recomputed"),
    ("MPD712", computed(held_out_rows=3), "rows were held out"),
    ("MPD712", computed(held_out_rows=3, held_out_trained=1), "held-out rows that were trained"),
    ("MPD712", replace(HEALTHY, losses=(2.0, 1.0)), "optimizer steps: found 2, asked for 3"),
    ("MPD712", replace(HEALTHY, learning_rates=(0.3, 0.3, 0.3)), "learning rate of step 2"),
    ("MPD712", made(lora_r=4), "rank of the adapter: found 4, asked for 8"),
    ("MPD712", made(lora_alpha=8), "alpha of the adapter: found 8, asked for 16"),
    ("MPD712", made(lora_dropout=0.1), "dropout of the adapter"),
    ("MPD712", made(lora_targets=("q_proj", "v_proj")), "targets of the adapter"),
    ("MPD712", made("model", dtypes=("BF16",)), "type of the saved weights"),
    ("MPD712", replace(GPTQ, artefacts=made("gptq", group_size=128).artefacts), "group size"),
    ("MPD713", made(vocabulary_kept=False), "tokenizer vocabulary of the adapter"),
    ("MPD713", made(template_kept=False), "chat template of the adapter"),
    ("MPD713", made("model", eos_kept=False), "EOS ids of the generation config of the model"),
    ("MPD701", moved(frozen_moved=("embed",)), "1 of 10 frozen tensors changed"),
    ("MPD701", replace(GPTQ, gptq_errors=()), "1 of 10 frozen tensors changed"),
    ("MPD702", moved(still=("a.lora_A",)), "1 of 4 tensors"),
    ("MPD702", replace(GPTQ, motion=replace(MOTION, trainable=0)), "1 of 1 tensors"),
    ("MPD703", moved(foreign_trainable=("embed",)), "1 of 4 trainable tensors are base weights"),
    ("MPD703", moved(trainable=0), "no tensor is trainable"),
    ("MPD704", replace(HEALTHY, loss_after=2.5), "went from 2.0000 to 2.5000"),
    ("MPD704", replace(HEALTHY, loss_after=None), "not finite"),
    ("MPD704", replace(HEALTHY, losses=(0.0, 0.0, 0.0)), "not a positive number"),
    ("MPD705", taught(rows_ending_in_eos=0), "only 0 of 8 rows train the end"),
    ("MPD706", taught(rows_off_answer=8, example_off_answer="Who?"), "8 of 8 rows train text"),
    ("MPD707", compared(max_difference=1.0), "0.1 of the scale off"),
    ("MPD707", replace(HEALTHY, expected_artefacts=("adapter", "merged")), "promised merged"),
    ("MPD708", compared(effect=0.0), "logits of the untouched base"),
    ("MPD710", replace(GPTQ, gptq_errors=(("layer.0", 4.0, 3.0),)), "1 of 1 layers are worse"),
    ("MPD711", replace(HEALTHY, folders=("leftover",)), "leftover/ does not belong"),
    ("MPD711", replace(HEALTHY, folders=(".saving-7",)), ".saving-7/ does not belong"),
]


@pytest.mark.parametrize(("code", "seen", "expected"), FAULTS)
def test_the_probe_meant_for_a_fault_finds_it(code, seen, expected):
    result = ending(code, seen)

    assert result.status is Status.FAILED, result
    assert expected in result.message
    assert result.evidence
    assert result.cause
    assert result.remedy


@pytest.mark.parametrize(("code", "seen", "expected"), FAULTS)
def test_no_other_probe_fires_on_that_fault(code, seen, expected):
    del expected
    others = {other for other in PROBES if ending(other, seen).status is Status.FAILED} - {code}

    assert not others


@pytest.mark.parametrize("seen", [HEALTHY, GPTQ], ids=["adapter", "gptq"])
@pytest.mark.parametrize("code", sorted(PROBES))
def test_a_healthy_run_is_left_alone(code, seen):
    assert ending(code, seen).status in (Status.PASSED, Status.SKIPPED)


def test_every_probe_of_a_run_answers_on_a_healthy_run_of_its_kind():
    answered = {
        code
        for code in PROBES
        for seen in (HEALTHY, GPTQ)
        if ending(code, seen).status is Status.PASSED
    }

    assert set(PROBES) - {"MPD709"} == answered


def test_an_early_stop_is_asked_for_only_where_the_scenario_wants_it():
    asked = {"stops_early": True, "max_steps": 3, "config": CONFIG}
    assert Status.SKIPPED is ending("MPD709", HEALTHY).status
    assert Status.FAILED is ending("MPD709", HEALTHY, expectation=asked).status
    assert Status.PASSED is ending("MPD709", HEALTHY, expectation={**asked, "max_steps": 9}).status


def test_a_folder_without_its_manifest_is_an_unfinished_save():
    torn = Files(root=".", names=("adapter_model.safetensors",), weights=(), adapter=())

    assert "not complete" in ending("MPD711", HEALTHY, files=torn).message


@pytest.mark.parametrize("code", sorted(PROBES))
def test_without_observations_nothing_is_judged(code):
    result = run_probe(
        PROBES[code],
        Source(
            replace(
                HEALTHY, ending="crashed", motion=None, labels=None, comparisons=(), artefacts=()
            )
        ),
    )

    assert Status.SKIPPED is result.status
    assert result.reason
