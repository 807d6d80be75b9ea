"""Parts that can be counted are exact, activations are close, and the seeds' tables are checked."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, T5Config

from mudpuppy.adapters.attach import attach_adapter
from mudpuppy.config import TrainingConfig
from mudpuppy.config_check import load_config
from mudpuppy.errors import ConfigError, ModelError
from mudpuppy.estimate.advice import find_options, fits
from mudpuppy.estimate.predict import ADAM_BYTES, MERGE_BYTES, STEP_BYTES, Prediction, predict
from mudpuppy.memory.arena import ALIGNMENT
from mudpuppy.memory.meter import CountedArena
from mudpuppy.memory.offload import StreamedAdamW
from mudpuppy.memory.streaming import IN_FLIGHT, stream_layers
from mudpuppy.quant.formats import FORMATS
from mudpuppy.quant.linear4bit import replace_linears
from tests.mudpuppy.estimate.live import LiveBytes

GIB = 2**30
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 500,
}


def settings(**more: Any) -> LlamaConfig:
    return LlamaConfig(**{**SMALL, **more})


def config(**more: Any) -> TrainingConfig:
    fixed: dict[str, Any] = {
        "model": "m",
        "dataset": "d.jsonl",
        "output": "o",
        "max_length": 64,
        "batch_size": 2,
    }
    if more["method"] == "grpo":
        fixed |= {"batch_size": 4, "reward_funcs": ["length"]}
    return load_config({**fixed, **more})


def by_part(made: Prediction) -> dict[str, int]:
    return {part.name: part.device + part.host for part in made.parts}


def prepare(model_settings: Any, run: TrainingConfig) -> torch.nn.Module:
    """Make the model as the engine does."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[run.precision]
    held = dtype if run.trains_adapter else torch.float32
    model = AutoModelForCausalLM.from_config(model_settings, dtype=held)
    if run.method == "qlora":
        replace_linears(
            model,
            FORMATS[run.resolved_quant],
            block_size=run.resolved_quant_block_size,
            compute_dtype=dtype,
        )
    return attach_adapter(model, run) if run.trains_adapter else model


def step(model: Any, run: TrainingConfig) -> tuple[torch.optim.Optimizer, int]:
    """Do forward, backward and optimizer step; return the optimizer and the peak of live bytes."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[run.precision]
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    ids = torch.randint(0, 500, (run.batch_size, run.max_length))
    model.train()
    if run.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    with LiveBytes() as live:
        with torch.autocast("cpu", dtype=dtype, enabled=run.precision != "fp32"):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        kept = live.now
        loss.backward()
        optimizer.step()
    return optimizer, kept


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("full", {}),
        ("lora", {"lora_r": 4}),
        ("lora", {"lora_r": 4, "use_dora": True}),
        ("lora", {"lora_target_modules": ["q_proj", "v_proj"]}),
        ("qlora", {"quant_block_size": 48}),
        ("qlora", {"quant": "int4", "quant_block_size": 48}),
        ("qlora", {"quant": "mxfp4"}),
    ],
)
def test_weights_gradients_and_optimizer_are_exact(method: str, more: Any, precision: str):
    run = config(method=method, precision=precision, **more)
    model = prepare(settings(), run)
    optimizer, _ = step(model, run)
    predicted = by_part(predict(settings(), run))

    tensors = [*model.parameters(), *(b for n, b in model.named_buffers() if "inv_freq" not in n)]
    held = sum(one.nbytes for one in tensors)
    assert held == predicted["weights"] + predicted.get("adapter", 0)
    assert predicted["gradients"] == sum(
        one.grad.nbytes for one in model.parameters() if one.grad is not None
    )
    states = [value for state in optimizer.state.values() for value in state.values()]
    assert predicted["optimizer"] == sum(one.nbytes for one in states)


@pytest.mark.parametrize(
    ("method", "precision", "checkpointing"),
    [
        ("full", "fp32", False),
        ("full", "bf16", False),
        ("lora", "bf16", False),
        ("qlora", "bf16", False),
        ("full", "fp32", True),
        ("lora", "bf16", True),
    ],
)
def test_what_a_forward_keeps_is_measured_within_a_factor_of_two(
    method: str, precision: str, checkpointing: bool
):
    run = config(method=method, precision=precision, gradient_checkpointing=checkpointing)
    deep = settings(num_hidden_layers=8)
    _, kept = step(prepare(deep, run), run)
    made = predict(deep, run)
    predicted = by_part(made)["activations"] + by_part(made).get("weight copies", 0)
    if checkpointing:  # after the forward pass no layer is computed again yet
        predicted = made.layout.border * 8 + made.layout.outside.activations
    logits = 4 * 500 * run.batch_size * run.max_length  # of the model's own loss

    assert 0.5 * predicted < kept - logits < 2 * predicted


def test_one_long_run_is_twice_a_short_one():
    short = by_part(predict(settings(), config(method="lora", batch_size=2)))
    long = by_part(predict(settings(), config(method="lora", batch_size=4)))

    assert 2 * short["activations"] == pytest.approx(long["activations"], rel=0.1)
    assert short["weights"] == long["weights"]


def test_tied_weights_count_once():
    tied = by_part(predict(settings(tie_word_embeddings=True), config(method="full")))
    untied = by_part(predict(settings(tie_word_embeddings=False), config(method="full")))

    assert 4 * 500 * 64 == untied["weights"] - tied["weights"]


@pytest.mark.parametrize(
    ("less", "more", "part"),
    [
        ({"gradient_checkpointing": True}, {}, "activations"),
        ({"precision": "bf16"}, {"precision": "fp32"}, "activations"),
        ({"precision": "fp8"}, {"precision": "bf16"}, "weight copies"),
    ],
)
def test_a_setting_takes_less_of_its_part(less: Any, more: Any, part: str):
    both = [by_part(predict(settings(), config(method="full", **one))) for one in (less, more)]

    assert both[0][part] < both[1][part]


def test_streaming_moves_layers_with_gradients_and_moments_to_the_host():
    plain = predict(settings(), config(method="full"))
    streamed = predict(settings(), config(method="full", stream=True))
    layers = plain.layout.trainable_in_layers

    beside = plain.layout.trainable - layers
    steps = STEP_BYTES * plain.layout.trainable_tensors
    slots = 4 * layers  # every tensor here fills its place to the last byte

    assert streamed.device < plain.device
    # of what is in no layer, the masters and a copy of the gradients are on the host as well
    assert (4 + 4 + ADAM_BYTES) * (layers + beside) + steps == streamed.host
    gradients = [one for one in streamed.parts if one.name == "gradients"]
    assert 4 * beside + IN_FLIGHT * slots // 3 == gradients[0].device


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_what_streaming_holds_is_predicted_to_the_byte(slots: int):
    sizes = {"hidden_size": 40, "intermediate_size": 72}  # no tensor fills its place
    run = config(method="full", stream=True, stream_layers=slots, precision="fp32")
    predicted = {part.name: part for part in predict(settings(**sizes), run).parts}
    model = AutoModelForCausalLM.from_config(settings(**sizes)).train()
    arena, ids = CountedArena(), torch.arange(9)[None]
    with stream_layers(model, "cpu", slots=slots, arena=arena) as stream:
        weights = arena.host_bytes
        inside = {p for flat in stream.flats for p in flat.trained.values()}
        beside = sum(p.nbytes for p in model.parameters() if p not in inside)
        optimizer = StreamedAdamW(torch.optim.AdamW(model.parameters()), stream)
        masters = arena.host_bytes - weights
        model(input_ids=ids, labels=ids).loss.backward()
        gradients = arena.host_bytes - weights - masters
        optimizer.step()
        states = arena.host_bytes - weights - gradients

    assert predicted["weights"].host == weights
    assert predicted["weights"].device == beside + arena.peak
    assert predicted["gradients"].host == gradients
    # what is in no layer is filled up to whole places, which the prediction leaves out
    steps = STEP_BYTES * len(list(model.parameters()))
    assert 0 <= states - (predicted["optimizer"].host - steps) < 4 * 3 * ALIGNMENT


def test_zero_offload_leaves_no_moments_on_the_device():
    offloaded = predict(settings(), config(method="full", zero_offload=True))
    optimizer = next(one for one in offloaded.parts if one.name == "optimizer")
    least = ADAM_BYTES * offloaded.layout.trainable
    steps = STEP_BYTES * offloaded.layout.trainable_tensors

    assert 0 == optimizer.device
    assert least + steps <= optimizer.host


@pytest.mark.parametrize(
    ("more", "has_reference"),
    [
        ({"method": "dpo"}, False),
        ({"method": "dpo", "use_peft": False}, True),
        ({"method": "kto", "use_peft": False}, True),
        ({"method": "orpo", "use_peft": False}, False),
        ({"method": "grpo", "use_peft": False}, False),
        ({"method": "grpo", "use_peft": False, "beta": 0.1}, True),
    ],
)
def test_full_weights_are_compared_with_a_second_model(more: Any, has_reference: bool):
    made = by_part(predict(settings(), config(**more)))

    assert has_reference == ("reference" in made)
    if has_reference:
        assert made["weights"] == made["reference"]


def test_generation_holds_keys_and_values():
    run = config(method="grpo", precision="bf16", num_generations=4, max_completion_length=36)
    made = by_part(predict(settings(), run))

    assert 4 * (64 + 36) * 2 * 3 * 2 * 16 * 2 == made["generation"]


@pytest.mark.parametrize("method", ["rm", "prm"])
def test_models_with_a_score_in_place_of_the_head_are_laid_out(method: str):
    made = by_part(predict(settings(), config(method=method)))

    assert "loss" not in made
    assert 0 < made["adapter"] < made["weights"]


def test_a_merge_on_disk_takes_nothing_of_the_device():
    plain = predict(settings(), config(method="qlora"))
    made = predict(settings(), config(method="qlora", merge_lora=True, merge_precision="fp32"))

    assert plain.device == made.device
    (on_disk,) = (one for one in made.merge if one.name == "merge on disk")
    assert made.host == on_disk.host == made.layout.adapter + MERGE_BYTES


@pytest.mark.parametrize("is_pickled", [False, True])
def test_a_merge_in_the_live_model_is_a_peak_of_its_own(tmp_path: Path, is_pickled: bool):
    (tmp_path / "pytorch_model.bin").touch()
    kind = {"method": "qlora", "model": str(tmp_path)} if is_pickled else {"method": "rm"}
    made = predict(settings(), config(merge_lora=True, merge_precision="fp32", **kind))

    merged = next(one for one in made.merge if one.name == "merged")
    assert 4 * made.layout.parameters == merged.device
    assert made.device >= sum(one.device for one in made.merge)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_sharded_run_holds_a_share_of_what_is_sharded(method: str):
    run = config(method=method, precision="bf16")
    whole = by_part(predict(settings(num_hidden_layers=12), run))
    made = predict(
        settings(num_hidden_layers=12), run.model_copy(update={"fsdp": "full_shard"}), devices=4
    )
    shards = by_part(made)

    for part in ("weights", "gradients", "optimizer", *(["adapter"] if method == "lora" else [])):
        assert -(-whole[part] // 4) == shards[part]
    assert whole["activations"] == shards["activations"]
    assert 0 < shards["gathered"] < whole["weights"] + whole["gradients"]
    assert made.host == whole["weights"] + whole.get("adapter", 0)


def test_several_processes_that_do_not_shard_hold_the_gradients_twice():
    one = predict(settings(), config(method="full"))
    made = predict(settings(), config(method="full"), devices=4)

    assert made.device - one.device == by_part(one)["gradients"]


@pytest.mark.parametrize("how", [{"fsdp": "full_shard"}, {"device_map": "auto"}])
def test_how_layers_are_placed_is_predicted_or_refused(how: dict[str, Any]):
    with pytest.raises(ConfigError, match="not predicted: "):
        predict(settings(), config(method="full").model_copy(update=how))


def test_on_a_cpu_everything_is_in_one_memory():
    streamed = predict(settings(), config(method="full", stream=True), on_cpu=True)

    assert 0 == streamed.host
    assert "context" not in by_part(streamed)


def test_random_numbers_and_the_configuration_are_left_alone():
    given = settings()
    before, state = given.to_dict(), torch.random.get_rng_state()
    predict(given, config(method="lora"))

    assert before == given.to_dict()
    assert torch.equal(state, torch.random.get_rng_state())


def test_what_cannot_be_laid_out_is_one_line():
    with pytest.raises(ModelError, match="t5 model cannot be laid out") as raised:
        predict(T5Config(), config(method="lora"))
    assert "\n" not in raised.value.message


def sized(depth: int, **shape: Any) -> Qwen2Config:
    return Qwen2Config(num_hidden_layers=depth, tie_word_embeddings=False, **shape)


QWEN_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
}
QWEN_14B = {**QWEN_7B, "hidden_size": 5120, "intermediate_size": 13824}
QWEN_14B |= {"num_attention_heads": 40, "num_key_value_heads": 8}


def device_bytes(shape: Any, depth: int, run: TrainingConfig) -> tuple[float, float]:
    """Return peak and weights of a deep model in GiB, drawn on from two shallow ones."""
    two, four = (predict(sized(n, **shape), run) for n in (2, 4))
    both = []
    for a, b in ((two.device, four.device), (by_part(two)["weights"], by_part(four)["weights"])):
        both.append((a + (depth - 2) * (b - a) / 2) / GIB)
    return both[0], both[1]


@pytest.mark.parametrize(
    ("shape", "depth", "rank", "batch", "claimed"),
    [(QWEN_7B, 28, 32, 4, 8), (QWEN_7B, 28, 64, 4, 10), (QWEN_14B, 48, 64, 2, 16)],
)
def test_the_table_of_seed_002_holds_for_a_4_bit_base_and_not_for_fp16(
    shape: Any, depth: int, rank: int, batch: int, claimed: int
):
    """Its "VRAM (fp16)" is less than the fp16 weights alone take; it fits QLoRA at 512 tokens."""
    shared = {"lora_r": rank, "batch_size": batch, "max_length": 512}
    _, weights = device_bytes(shape, depth, config(method="lora", precision="fp16", **shared))
    assert weights > 1.4 * claimed

    four_bit = config(method="qlora", precision="fp16", gradient_checkpointing=True, **shared)
    total, _ = device_bytes(shape, depth, four_bit)
    assert total == pytest.approx(claimed, rel=0.35)


def test_seed_002_is_wrong_about_adapter_and_full_fine_tuning():
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    run = config(method="lora", lora_r=64, lora_target_modules=targets)
    two, four = (predict(sized(n, **QWEN_14B), run).layout.trainable for n in (2, 4))
    trainable = two + 46 * (four - two) / 2
    assert trainable > 20 * 4_194_304  # "trainable params: 4,194,304"

    total, _ = device_bytes(QWEN_14B, 48, config(method="full", gradient_checkpointing=True))
    assert total > 2 * 80  # "Full fine-tune 14B model: ~80GB"


def test_the_table_of_seed_003_leaves_room_for_7b():
    """Its columns are upper bounds: about 20 GB in 4 bits, and 56 GB in full precision."""
    shared = {"batch_size": 4, "max_length": 512}
    four_bit, _ = device_bytes(QWEN_7B, 28, config(method="qlora", **shared))
    exact, _ = device_bytes(QWEN_7B, 28, config(method="lora", precision="fp32", **shared))

    assert 0.5 * 20 < four_bit < 1.2 * 20
    assert 0.5 * 56 < exact < 1.2 * 56


def test_options_fit_and_are_not_refused():
    big = settings(num_hidden_layers=2, hidden_size=512, intermediate_size=2048)
    run = config(method="full", max_length=1024, batch_size=8)
    memory = int(0.6 * predict(big, run).device + 0.4 * (600 << 20))
    options = find_options(big, run, memory)

    assert not fits(predict(big, run), memory)
    assert options
    assert all(one.device <= 0.9 * memory for one in options)
    assert "--gradient-checkpointing" in options[0].flags
