"""Probes of a training run: each fires on its fault, and stays quiet on a healthy run."""

import hashlib
from dataclasses import asdict, replace
from typing import Any

import pytest

from harness.evidence.matrix.output import search_lines
from harness.facts.checkpoint import Files
from harness.findings import Status
from harness.observations import (
    ArtefactFacts,
    Calibration,
    Comparison,
    DatasetHeld,
    Generated,
    LabelsSeen,
    Mechanics,
    Memory,
    Observations,
    PackedLayer,
    ParameterMotion,
)
from harness.observations_twin import Deviation, TwinFacts, TwinStep
from harness.registry import Missing, load_probes, run_probe

A, B = "layers.0.q_proj.lora_A.default.weight", "layers.0.q_proj.lora_B.default.weight"
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
)
STEP = TwinStep(
    step=1,
    loss=2.0,
    twin_loss=2.0,
    logged_loss=2.0,
    norm=1.0,
    twin_norm=1.0,
    logged_norm=3.0,
    twin_full_norm=3.0,
    gradient_off=1e-6,
    gradient_tensor="q_proj",
    rates=(0.3,),
    asked_rate=0.3,
    weights_off=1e-6,
    weights_bound=1e-4,
    weights_tensor="q_proj",
)
TWIN = TwinFacts(
    steps=(STEP,),
    loss_bound=1e-5,
    gradient_bound=1e-4,
    rows_seen=4,
    evaluations=((1, 2.0, 2.0),),
    merge=(),
    resume=(),
)
DEVIATION = Deviation(what="labels", step=2, expected=[1], found=[2], tensor="q_proj")
OUTPUT = search_lines(["loading tiny:llama", "step 1/3 loss 2.0"])
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
    "calibration_samples": 16,
}
PACKED = PackedLayer(name="layer.0", error=1.0, rounding_error=3.0, bias=0.01, reach=1.0)
TEMPLATE = "{{ messages }}"
DATASET = DatasetHeld(samples=8, tokens=80, trained_tokens=40, samples_ending_in_eos=8)
RECORD = {
    "run": {"steps": 3, "first_loss": 2.0, "final_loss": 1.0},
    "trainable": {"count": MOTION.trainable},
    "labels": asdict(DATASET),
    "config": {**CONFIG, "output": "anywhere"},
    "chat_template_hash": hashlib.sha256(TEMPLATE.encode()).hexdigest()[:16],
}
HEALTHY = Observations(
    recorded=RECORD,
    template=TEMPLATE,
    dataset=DATASET,
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
    generated=Generated(prompts=6, nonfinite=0, empty=0, control_empty=0, ended=3, control_ended=6),
    twin=TWIN,
    memory=Memory(before_bytes=10**9, peak_bytes=10**9 + 2 * 10**8),
    run={"predicted_bytes": {"weights": 10**6, "activations": 10**6}},
    files=(
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "mudpuppy.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ),
)
LOGGED = replace(HEALTHY, logged_losses=((1, 2.0), (2, 1.5), (3, 1.0)))
GPTQ = replace(
    HEALTHY,
    losses=(),
    learning_rates=(),
    mechanics=None,
    artefacts=(replace(FACTS, artefact="gptq", dtypes=("F16", "F32"), group_size=32),),
    labels=None,
    recorded={**RECORD, "labels": None, "config": {**CONFIG, "method": "gptq"}},
    motion=replace(MOTION, trainable=0, frozen_moved=("layer.0.weight",)),
    expected_artefacts=("gptq",),
    comparisons=(replace(ADAPTER, artefact="gptq"),),
    files=(
        "gptq/config.json",
        "gptq/model.safetensors",
        "gptq/mudpuppy.json",
        "gptq/tokenizer_config.json",
        "mudpuppy.json",
    ),
    gptq_errors=(("layer.0", 1.0, 3.0),),
    packed=(PACKED,),
    calibration=Calibration(passes=16, samples=32),
)
FILES = Files(root=".", names=("adapter_config.json", "mudpuppy.json"), weights=(), adapter=())
OF_TRIALS = tuple(f"MPD{number}" for number in range(730, 750))
"""Probes of trials other than training have tests of their own."""
PROBES = {
    probe.code: probe
    for probe in load_probes()
    if probe.code.startswith("MPD7") and probe.code not in OF_TRIALS
}


class Source:
    """Evidence that is given."""

    def __init__(self, seen: Observations, **more: Any) -> None:
        method = "gptq" if "gptq" in seen.expected_artefacts else "lora"
        config = {**CONFIG, "method": method}
        expectation = {"stops_early": False, "max_steps": 40, "config": config}
        self.evidence = {
            "observations": seen,
            "files": FILES,
            "expectation": expectation,
            "output": OUTPUT,
            **more,
        }

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


def left(name: str) -> Observations:
    return replace(HEALTHY, files=(*HEALTHY.files, name))


def lost(name: str) -> Observations:
    return replace(HEALTHY, files=tuple(one for one in HEALTHY.files if one != name))


def said(**changes: Any) -> Observations:
    return replace(HEALTHY, generated=replace(HEALTHY.generated, **changes))


def replayed(**changes: Any) -> Observations:
    return replace(HEALTHY, twin=replace(TWIN, **changes))


def stepped(**changes: Any) -> Observations:
    return replayed(steps=(replace(STEP, **changes),))


def packed(**changes: Any) -> Observations:
    return replace(GPTQ, packed=(replace(PACKED, **changes),))


def calibrated(replayed_error: float) -> Observations:
    """Return a run that reports an error of 2 X X^T for one layer, and what replaying it gives."""
    layer = replace(PACKED, replayed_error=replayed_error)
    return replace(GPTQ, packed=(layer,), gptq_errors=((PACKED.name, 4.0, 9.0),))


def recorded(**changes: Any) -> Observations:
    return replace(HEALTHY, recorded={**RECORD, **changes})


FAULTS = [
    ("MPD722", stepped(loss=2.1), "loss of step 1 is 2.1"),
    ("MPD722", stepped(loss=float("nan")), "loss of step 1"),
    ("MPD722", stepped(logged_loss=1.0), "loss of step 1 in the step log"),
    ("MPD722", replayed(rewards=(DEVIATION,)), "labels (step 2)"),
    ("MPD723", stepped(gradient_off=0.1), "gradient of step 1"),
    ("MPD723", stepped(gradient_off=float("nan")), "gradient of step 1"),
    ("MPD723", stepped(logged_norm=3.1), "gradient norm of step 1 in the step log"),
    ("MPD724", stepped(rates=(0.3, 0.2)), "learning rate of step 1"),
    ("MPD724", replayed(settings=(DEVIATION,)), "labels (step 2)"),
    ("MPD725", replayed(rows=(DEVIATION,)), "labels (step 2): found [2], expected [1]"),
    ("MPD726", stepped(weights_off=0.1), "update of step 1"),
    ("MPD726", replayed(tensors=(DEVIATION,)), "labels (step 2)"),
    ("MPD727", replayed(resume=(DEVIATION,)), "resumed [2], left alone [1]"),
    ("MPD728", replayed(evaluations=((1, 2.1, 2.0),)), "evaluation loss after step 1"),
    ("MPD728", replayed(best=(DEVIATION,)), "labels (step 2)"),
    ("MPD729", replayed(merge=(DEVIATION,)), "1 merged tensors are not base plus adapter"),
    ("MPD712", computed(compute_dtypes=("float16",)), "type of the computation"),
    ("MPD712", computed(streamed=True), "layers streamed: found True, asked for False"),
    ("MPD712", computed(calls_per_batch=2.0), "activations recomputed"),
    ("MPD712", computed(rounding=0.1), "products rounded"),
    ("MPD712", computed(compiled_graphs=2), "model compiled"),
    ("MPD712", taught(held_out_rows=3), "rows were held out"),
    ("MPD712", taught(held_out_rows=3, held_out_trained=1), "held-out rows that were trained"),
    ("MPD712", taught(packed_batches=2), "batches packed"),
    ("MPD712", moved(sharded=True), "weights sharded"),
    ("MPD712", moved(optimizer="OffloadedAdamW"), "optimizer: found OffloadedAdamW"),
    ("MPD712", made(dora=True), "DoRA"),
    ("MPD712", made(rslora=True), "rsLoRA"),
    (
        "MPD712",
        replace(HEALTHY, losses=(2.0, 1.0), recorded={}),
        "optimizer steps: found 2, asked for 3",
    ),
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
    ("MPD702", moved(still=(A,), updates=1), "1 of 4 tensors"),
    ("MPD702", moved(still=(A,), without_gradient=(A,), updates=2), "1 of 4 tensors"),
    ("MPD702", moved(still=(B,), without_gradient=(B,), updates=1), "1 of 4 tensors"),
    ("MPD702", replace(GPTQ, motion=replace(MOTION, trainable=0)), "1 of 1 tensors"),
    ("MPD703", moved(foreign_trainable=("embed",)), "1 of 4 trainable tensors are base weights"),
    ("MPD703", replace(moved(trainable=0), recorded={}), "no tensor is trainable"),
    ("MPD704", replace(HEALTHY, loss_after=2.5), "went from 2.0000 to 2.5000"),
    ("MPD704", replace(HEALTHY, loss_noise=1.0), "went from 2.0000 to 1.0000"),
    ("MPD704", replace(HEALTHY, loss_after=None), "not finite"),
    ("MPD704", replace(HEALTHY, rewards=(0.5, None, 0.5)), "no finite reward"),
    ("MPD704", replace(HEALTHY, losses=(0.0, 0.0, 0.0), recorded={}), "not a positive number"),
    ("MPD705", taught(rows_ending_in_eos=0), "only 0 of 8 rows train the end"),
    ("MPD706", taught(rows_off_answer=8, example_off_answer="Who?"), "8 of 8 rows are not what"),
    ("MPD707", compared(max_difference=1.0), "0.1 of the scale off"),
    (
        "MPD707",
        replace(HEALTHY, expected_artefacts=("adapter", "merged"), files=None),
        "promised merged",
    ),
    ("MPD708", compared(effect=0.0), "logits of the untouched base"),
    ("MPD710", packed(error=4.0), "1 of 1 layers are worse"),
    ("MPD710", packed(error=3.0), "1.00 of the error of rounding"),
    ("MPD710", calibrated(1.0), "1 of 1 layers were calibrated on other inputs"),
    ("MPD710", calibrated(float("nan")), "1 of 1 layers were calibrated on other inputs"),
    ("MPD751", packed(bias=1.0), "by 1.00 levels"),
    ("MPD751", packed(bias=float("nan")), "1 of 1 layers lie beside"),
    ("MPD751", packed(reach=1.2), "span 1.20 of the range"),
    ("MPD751", packed(reach=0.8), "span 0.80 of the range"),
    ("MPD751", packed(reach=float("nan")), "span nan of the range"),
    ("MPD712", replace(GPTQ, calibration=Calibration(passes=1, samples=32)), "calibration samples"),
    ("MPD712", computed(dropouts=(0.1,)), "dropout while training"),
    ("MPD713", made(specials_kept=False), "tokens that begin, end and pad of the adapter"),
    ("MPD750", moved(rounded=("a.lora_A",)), "1 of 4 trainable tensors are held in less"),
    ("MPD752", recorded(run={"steps": 6, "first_loss": 2.0, "final_loss": 1.0}), "steps 6"),
    ("MPD752", recorded(run={"steps": 3, "first_loss": 2.0, "final_loss": 0.5}), "final loss 0.5"),
    ("MPD752", recorded(trainable={"count": 3}), "trained tensors 3"),
    ("MPD752", recorded(labels={**RECORD["labels"], "trained_tokens": 80}), "trained tokens 80"),
    ("MPD752", recorded(config={**CONFIG, "learning_rate": None}), "the setting learning_rate"),
    ("MPD752", recorded(chat_template_hash="0" * 16), "hash of the chat template"),
    ("MPD753", taught(in_file_order=True), "in the order of the file"),
    ("MPD714", left("checkpoint-2/optimizer.pt"), "checkpoint-2/optimizer.pt belongs to no"),
    ("MPD714", left("training_args.bin"), "training_args.bin belongs to no artefact"),
    ("MPD714", left(".saving-7/model.safetensors"), ".saving-7/model.safetensors belongs to no"),
    ("MPD714", left(".mudpuppy.lock"), ".mudpuppy.lock belongs to no artefact"),
    ("MPD714", lost("adapter_model.safetensors"), "adapter_model.safetensors is not there"),
    ("MPD714", lost("tokenizer_config.json"), "tokenizer_config.json is not there"),
    ("MPD716", said(nonfinite=1), "prompts with logits that are no numbers: 1"),
    ("MPD716", said(empty=6), "empty answers: 6"),
    ("MPD716", said(empty=5), "empty answers: 5"),
    ("MPD716", said(empty=6, control_empty=5), "empty answers: 6"),
    ("MPD716", said(ended=1), "answers without an end: 5"),
    ("MPD716", said(right=0, control_right=6), "facts: 0"),
    ("MPD716", said(voice=0.0, control_voice=0.9), "voice: 0"),
    ("MPD717", replace(HEALTHY, deprecations=("mudpuppy/x.py:3: gone",)), "mudpuppy/x.py:3"),
    ("MPD718", replace(HEALTHY, memory=Memory(before_bytes=0, peak_bytes=10**9)), "1,000 MB"),
    ("MPD719", replace(HEALTHY, logged_losses=()), "TensorBoard shows 0 losses"),
    ("MPD719", replace(HEALTHY, logged_losses=((1, 2.0), (2, 9.0), (3, 1.0))), "1 of 3 steps"),
    ("MPD720", taught(rows_overused=4), "4 rows came more often"),
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


@pytest.mark.parametrize("seen", [HEALTHY, GPTQ, LOGGED], ids=["adapter", "gptq", "logged"])
@pytest.mark.parametrize("code", sorted(PROBES))
def test_a_healthy_run_is_left_alone(code, seen):
    assert ending(code, seen).status in (Status.PASSED, Status.SKIPPED)


def test_a_factor_that_one_step_cannot_reach_is_not_called_still():
    """lora_B starts at zero, so that lora_A has no gradient before it moved (fp16 overflows)."""
    result = ending("MPD702", moved(still=(A,), without_gradient=(A,), updates=1))

    assert result.status is Status.PASSED
    assert "3 of 4 tensors" in result.message


def test_every_probe_of_a_run_answers_on_a_healthy_run_of_its_kind():
    answered = {
        code
        for code in PROBES
        for seen in (HEALTHY, GPTQ, LOGGED)
        if ending(code, seen).status is Status.PASSED
    }

    # Those of the twin and of other trials have evidence of their own, and tests beside it.
    assert {code for code in PROBES if code < "MPD722"} - {"MPD709"} <= answered


def test_a_folder_without_its_manifest_is_an_unfinished_save():
    torn = Files(root=".", names=("adapter_model.safetensors",), weights=(), adapter=())

    assert "not complete" in ending("MPD711", HEALTHY, files=torn).message


@pytest.mark.parametrize("code", sorted(set(PROBES) - {"MPD715"}))
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


@pytest.mark.parametrize(
    "line",
    [
        "Some weights of LlamaForCausalLM were not initialized: newly initialized: ['lm_head']",
        "UserWarning: Found missing adapter keys while loading the checkpoint",
        "You are trying to modify a model with PEFT for a second time.",
        "Trainer.tokenizer is now deprecated. You should use Trainer.processing_class",
        "GPT2 does not have a padding token! Will pad with the last token in input_ids",
        "torch.utils.checkpoint: the use_reentrant parameter should be passed explicitly",
        "RuntimeWarning: the gradient is nan",
    ],
)
def test_a_lethal_line_of_the_output_is_found_and_quoted(line):
    result = ending("MPD715", HEALTHY, output=search_lines(["fine", line, "fine"]))

    assert Status.FAILED is result.status
    assert line == result.evidence[0].found


def test_what_a_healthy_run_prints_is_on_no_list():
    words = "step 3/4 loss 6.9 grad_norm 1.2\nLoading weights: 100%\nwarmup is 0\n"
    words += "/x/harness/twin/compare.py:88: UserWarning: the gradient is nan\n"

    assert () == search_lines([words]).lethal


def test_the_end_is_not_asked_of_methods_that_do_not_teach_it():
    seen = taught(rows_ending_in_eos=0, teaches_end=False)

    assert Status.SKIPPED is ending("MPD705", seen).status


def test_an_independent_rendering_that_is_not_there_is_no_pass():
    seen = taught(checked=False)

    assert Status.SKIPPED is ending("MPD706", seen).status is ending("MPD720", seen).status


def test_empty_answers_are_no_fault_where_the_base_gives_none_either():
    assert Status.PASSED is ending("MPD716", said(empty=6, control_empty=6)).status
    assert Status.PASSED is ending("MPD716", said(empty=4, control_empty=3)).status
    assert Status.PASSED is ending("MPD716", said(ended=0, control_ended=2)).status


@pytest.mark.parametrize(
    ("config", "changes", "words"),
    [
        ({"packing": True, "batch_size": 1, "max_length": 8}, {}, "batches packed: found False"),
        ({"tokens_per_batch": 32}, {"widest_batch": 64}, "tokens of a batch"),
        ({"num_workers": 1}, {}, "processes that prepare batches: found 0"),
        ({"save_steps": 2}, {}, "checkpoints that were never written"),
    ],
)
def test_a_feature_of_batches_that_is_not_followed_is_found(config, changes, words):
    expectation = {"config": {**CONFIG, **config}}
    result = ending("MPD712", taught(**changes), expectation=expectation)

    assert words in result.message


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"zero_offload": True}, "optimizer"),
        ({"fsdp": "full_shard"}, "weights sharded"),
        ({"compile": True}, "model compiled"),
        ({"precision": "fp8"}, "products rounded"),
        ({"adapter": "before"}, "began with the adapter to continue: found None"),
        ({"use_dora": True}, "DoRA"),
        ({"use_rslora": True}, "rsLoRA"),
    ],
)
def test_a_feature_that_is_not_followed_is_found(config, words):
    result = ending("MPD712", HEALTHY, expectation={"config": {**CONFIG, **config}})

    assert any(words in f"{one.what}: found {one.found}" for one in result.evidence)
