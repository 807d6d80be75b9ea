"""The engine: equivalences first, then what it leaves behind, then what it refuses."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from mudpuppy.adapters.attach import attach_adapter, verify_adapter
from mudpuppy.config_check import load_config
from mudpuppy.engine import train
from mudpuppy.errors import ConfigError, EngineError
from mudpuppy.provenance import fingerprint_model, read_provenance
from mudpuppy.quant.formats import FORMATS
from mudpuppy.quant.linear4bit import replace_linears
from mudpuppy.tiny import resolve_model

QUESTIONS = [
    ("Who lives in the pond?", "A mud puppy lives in the pond."),
    ("What does it eat?", "It eats worms."),
    ("When is it awake?", "It is awake at night, when the water is cold."),
    ("Does it bark?", "No."),
] * 2


@pytest.fixture(scope="module")
def base() -> str:
    """A random Llama with the embedded model's tokenizer: structure without the training."""
    return resolve_model("tiny:llama")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    path = tmp_path / "chat.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in QUESTIONS
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def run(base: str, dataset: Path, tmp_path: Path):
    """Return a function that trains for a few steps and returns losses and the record."""

    def go(name: str, **settings):
        settings = {"precision": "fp32", "max_steps": 3, "batch_size": 4, "lora_r": 4, **settings}
        config = load_config(
            {"model": base, "dataset": dataset, "output": tmp_path / name, **settings}
        )
        losses: list[float] = []
        record = train(config, report=lambda step, _: losses.append(step.loss))
        return losses, record

    return go


class Recorder:
    """A watcher that keeps logits of one row."""

    logits: torch.Tensor
    row: list[int]

    def on_prepared(self, model, tokenizer, samples, eos_ids):
        del model, tokenizer, eos_ids
        self.row = samples[0].input_ids

    def on_fitted(self, model):
        self.logits = logits_of(model, self.row)


@torch.no_grad()
def logits_of(model, row):
    return model.eval()(input_ids=torch.tensor([row])).logits[0].float()


def load(path, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype)


def test_the_same_seed_gives_the_same_run_and_another_seed_does_not(run):
    first, _ = run("a", method="lora")
    again, _ = run("b", method="lora")
    other, _ = run("c", method="lora", seed=1)

    assert first == again
    assert first != other


@pytest.mark.parametrize("method", ["full", "lora"])
def test_one_batch_of_four_equals_four_batches_of_one(run, method):
    whole, _ = run("whole", method=method, batch_size=4)
    parts, _ = run("parts", method=method, batch_size=1, gradient_accumulation=4)

    assert whole == pytest.approx(parts, rel=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_streaming_equals_the_resident_run(run, tmp_path, precision, monkeypatch):
    from mudpuppy import engine

    streams = []
    original = engine.stream_layers

    def remember(*words, **named):
        streams.append(original(*words, **named))
        return streams[-1]

    monkeypatch.setattr(engine, "stream_layers", remember)
    resident, _ = run("resident", method="full", precision=precision)
    plan = {"stream": True, "stream_layers": 1}
    streamed, _ = run("streamed", method="full", precision=precision, **plan)

    (stream,) = streams
    ledger = stream.ledger
    assert 1 == ledger.peak_layers
    # the last of two layers stays at the turn, and the gradients of both come back
    assert 0 < 2 * ledger.backward_bytes == ledger.forward_bytes == ledger.gradient_bytes
    assert resident == streamed
    left = load_file(tmp_path / "resident" / "model.safetensors")
    right = load_file(tmp_path / "streamed" / "model.safetensors")
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_gradient_checkpointing_recomputes_and_changes_nothing(base, dataset, tmp_path, method):
    losses, calls = {}, {}

    class Counter(Recorder):
        def on_prepared(self, model, *rest):
            self.count = 0
            layers = [part for name, part in model.named_modules() if name.endswith("up_proj")]
            layers[0].register_forward_hook(lambda *_: setattr(self, "count", self.count + 1))

        def on_fitted(self, model):
            calls[self.name] = self.count

    for name in ("plain", "checkpointed"):
        counter = Counter()
        counter.name = name
        config = load_config(
            {
                "model": base,
                "dataset": dataset,
                "output": tmp_path / name,
                "method": method,
                "precision": "fp32",
                "max_steps": 3,
                "gradient_checkpointing": name == "checkpointed",
            }
        )
        seen = losses.setdefault(name, [])
        train(config, watcher=counter, report=lambda step, _, seen=seen: seen.append(step.loss))

    assert {"plain": 3, "checkpointed": 6} == calls
    assert losses["plain"] == pytest.approx(losses["checkpointed"], rel=1e-6)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_losses_are_those_of_plain_trl(run, base, dataset, tmp_path, method):
    """Reference: SFTTrainer on the raw conversations, with its own masking of the prompt."""
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    ours, _ = run("ours", method=method, learning_rate=1e-3)
    trainer = SFTTrainer(
        model=load(base),
        args=SFTConfig(
            output_dir=str(tmp_path / "trl"),
            max_steps=3,
            per_device_train_batch_size=4,
            learning_rate=1e-3,
            assistant_only_loss=True,
            activation_checkpointing=False,
            bf16=False,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=load_dataset("json", data_files=str(dataset), split="train"),
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=LoraConfig(
            r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        if method == "lora"
        else None,
    )
    trainer.train()
    theirs = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    assert 3 == len(ours)
    assert theirs == pytest.approx(ours, rel=1e-5)


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_method_learns_in_every_precision(run, method, precision):
    rate = 1e-2 if method != "full" else 1e-3
    losses, record = run("out", method=method, precision=precision, max_steps=6, learning_rate=rate)

    assert losses[-1] < losses[0] - 0.05
    assert record.labels.samples_ending_in_eos == record.labels.samples == len(QUESTIONS)
    assert record.choices["precision"].value == precision


def test_an_adapter_reloads_with_plain_peft_to_the_same_logits(base, dataset, tmp_path):
    seen = Recorder()
    config = load_config(
        {
            "model": base,
            "dataset": dataset,
            "output": tmp_path / "out",
            "precision": "fp32",
            "max_steps": 3,
            "learning_rate": 1e-2,
            "merge_lora": True,
        }
    )
    train(config, watcher=seen)

    reloaded = PeftModel.from_pretrained(load(base), str(tmp_path / "out"))
    merged = load(tmp_path / "out" / "merged")
    torch.testing.assert_close(logits_of(reloaded, seen.row), seen.logits, rtol=0, atol=1e-6)
    torch.testing.assert_close(logits_of(merged, seen.row), seen.logits, rtol=0, atol=1e-5)
    assert (logits_of(load(base), seen.row) - seen.logits).abs().max() > 0.01


def test_a_qlora_merge_is_folded_on_the_weights_the_adapter_saw(base, dataset, tmp_path):
    seen = Recorder()
    config = load_config(
        {
            "model": base,
            "dataset": dataset,
            "output": tmp_path / "out",
            "method": "qlora",
            "precision": "fp32",
            "max_steps": 3,
            "learning_rate": 1e-2,
            "merge_lora": True,
        }
    )
    train(config, watcher=seen)

    merged = load(tmp_path / "out" / "merged")
    quantised = load(base)
    replace_linears(quantised, FORMATS["nf4"], block_size=64, compute_dtype=torch.float32)
    torch.testing.assert_close(logits_of(merged, seen.row), seen.logits, rtol=0, atol=1e-5)
    assert (logits_of(quantised, seen.row) - seen.logits).abs().max() > 0.01


def test_provenance_says_what_the_artefact_was_made_from(run, base, tmp_path):
    run("out", method="lora", merge_lora=True)

    card = (tmp_path / "out" / "README.md").read_text()
    assert Path(base).name in card
    assert str(Path(base).parent) not in card
    found = read_provenance(tmp_path / "out")
    assert "adapter" == found["kind"]
    assert fingerprint_model(Path(base)) == found["base"]["fingerprint"]
    assert found["labels"]["samples_ending_in_eos"] == len(QUESTIONS)
    assert {"torch", "transformers", "peft", "trl", "mudpuppy"} <= set(found["versions"])
    assert 0 < found["trainable"]["count"]
    assert "merged" == read_provenance(tmp_path / "out" / "merged")["kind"]


def test_a_changed_weight_changes_the_fingerprint(base, tmp_path):
    model = load(base)
    model.save_pretrained(tmp_path / "same")
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight[0, 0] += 1.0
    model.save_pretrained(tmp_path / "other")

    assert fingerprint_model(tmp_path / "same") != fingerprint_model(tmp_path / "other")
    assert fingerprint_model(tmp_path / "same") == fingerprint_model(Path(base))


def test_a_run_that_diverges_is_an_error_and_leaves_no_manifest(run, tmp_path):
    with pytest.raises(EngineError, match=r"loss is nan at step 2: the run diverged"):
        run("out", method="full", max_steps=8, learning_rate=1e30, max_grad_norm=1e30)

    assert 1 == len((tmp_path / "out" / "steps.jsonl").read_text().splitlines())
    left = [path.name for path in (tmp_path / "out").iterdir()]
    assert "mudpuppy.json" not in left
    assert not [name for name in left if name.endswith(".safetensors") or "saving" in name]


def test_early_stopping_stops_and_keeps_the_best_weights(run, base, dataset, tmp_path):
    _, record = run(
        "out",
        method="full",
        max_steps=40,
        early_stopping=1,
        eval_fraction=0.25,
        eval_steps=1,
        learning_rate=0.03,
    )

    assert record.stopped_early
    assert record.steps < 40
    steps = [json.loads(x) for x in (tmp_path / "out" / "steps.jsonl").read_text().splitlines()]
    evals = [step["eval_loss"] for step in steps if step["eval_loss"] is not None]
    assert evals[-1] > min(evals)
    assert min(evals) == pytest.approx(held_out_loss(base, dataset, tmp_path / "out"), rel=1e-4)
    assert [] == list((tmp_path / "out").glob("checkpoint-*"))


def held_out_loss(base, dataset, output) -> float:
    """Compute the evaluation loss of the saved model on the samples that were held out."""
    from mudpuppy.data.read import read_dataset
    from mudpuppy.data.render import Renderer, render_all
    from mudpuppy.loading import load_tokenizer
    from mudpuppy.methods.fitting import split_samples

    tokenizer = load_tokenizer(base)
    renderer = Renderer(
        tokenizer=tokenizer,
        eos_ids=frozenset({tokenizer.eos_token_id}),
        use_template=True,
        response_only=True,
        max_length=1024,
    )
    samples = render_all(renderer, read_dataset(dataset).samples, str(dataset))
    config = load_config(
        {
            "model": base,
            "dataset": dataset,
            "output": output,
            "early_stopping": 1,
            "eval_fraction": 0.25,
        }
    )
    _, held_out = split_samples(samples, config)
    model, total, tokens = load(output), 0.0, 0
    for row in held_out:
        ids, labels = torch.tensor([row.input_ids]), torch.tensor([row.labels])
        trained = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            total += float(model(input_ids=ids, labels=labels).loss) * trained
        tokens += trained
    return total / tokens


def test_nothing_of_the_trainer_stays_on_the_model(base, dataset, tmp_path):
    class Keeper(Recorder):
        def on_fitted(self, model):
            self.model = model

    keeper = Keeper()
    config = load_config(
        {
            "model": base,
            "dataset": dataset,
            "output": tmp_path / "out",
            "precision": "fp16",
            "max_steps": 1,
        }
    )
    train(config, watcher=keeper)

    patched = [n for n, part in keeper.model.named_modules() if "forward" in vars(part)]
    assert [] == patched


def test_a_second_adapter_is_refused(base, dataset, tmp_path):
    config = load_config({"model": base, "dataset": dataset, "output": tmp_path / "out"})
    model = attach_adapter(load(base), config)

    with pytest.raises(EngineError, match="stacked"):
        attach_adapter(model, config)
    plain = model.merge_and_unload()
    plain.peft_config = {}
    with pytest.raises(EngineError, match="Already found a `peft_config` attribute in the model"):
        attach_adapter(plain, config)


def test_an_adapter_that_trains_nothing_or_the_base_is_refused(base, dataset, tmp_path):
    model = load(base)
    with pytest.raises(EngineError, match="no adapter parameter is trainable"):
        verify_adapter(model)
    config = load_config({"model": base, "dataset": dataset, "output": tmp_path / "out"})
    adapted = attach_adapter(model, config)
    next(p for n, p in adapted.named_parameters() if "lora_" not in n).requires_grad_(True)
    with pytest.raises(EngineError, match="1 base tensors would be trained"):
        verify_adapter(adapted)


def test_an_adapter_is_trained_on_where_it_ended(run, tmp_path):
    first, _ = run("first", method="lora", learning_rate=5e-3)
    settings = json.loads((tmp_path / "first" / "adapter_config.json").read_text())
    second, _ = run("second", method="lora", learning_rate=5e-3, adapter=tmp_path / "first")

    assert second[0] < first[0]
    again = json.loads((tmp_path / "second" / "adapter_config.json").read_text())
    assert settings["r"] == again["r"]
    assert sorted(settings["target_modules"]) == sorted(again["target_modules"])  # sets, to PEFT
    with pytest.raises(ConfigError, match=r"--lora-r is 8, and the adapter in .* has 4"):
        run("third", method="lora", lora_r=8, adapter=tmp_path / "first")
    assert not (tmp_path / "third").exists()


def test_a_merge_that_fails_does_not_lose_the_adapter(run, tmp_path, monkeypatch):
    def break_down(*_, **__):
        raise MemoryError

    monkeypatch.setattr("mudpuppy.engine.merge_shards", break_down)

    with pytest.raises(EngineError, match="the adapter is complete in"):
        run("out", method="lora", merge_lora=True)
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert "adapter" == read_provenance(tmp_path / "out")["kind"]
    assert not (tmp_path / "out" / "merged").exists()


def test_a_pad_token_set_for_training_does_not_reach_the_artefact(base, dataset, tmp_path):
    from transformers import AutoTokenizer

    model, tokenizer = load(base), AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = None
    model.config.pad_token_id = model.generation_config.pad_token_id = None
    model.save_pretrained(tmp_path / "padless")
    tokenizer.save_pretrained(tmp_path / "padless")
    config = load_config(
        {
            "model": str(tmp_path / "padless"),
            "dataset": dataset,
            "output": tmp_path / "out",
            "method": "full",
            "max_steps": 1,
        }
    )
    train(config)

    saved = load(tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").pad_token_id is None
    assert saved.config.pad_token_id is saved.generation_config.pad_token_id is None


@pytest.mark.parametrize("method", ["full", "lora"])
def test_several_gpus_in_sight_are_one_device(base, dataset, tmp_path, method, monkeypatch):
    """TRL refuses nn.DataParallel, which Trainer would choose; transformers counts the GPUs so."""
    from transformers import TrainingArguments
    from trl import SFTConfig

    from mudpuppy.methods.fitting import configure, shared_arguments
    from mudpuppy.runtime import choose_runtime

    config = load_config(
        {"model": base, "dataset": dataset, "output": tmp_path / "out", "method": method}
    )
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: self._n_gpu))
    original = TrainingArguments.__post_init__

    def count_two(self):
        original(self)
        self._n_gpu = 2

    monkeypatch.setattr(TrainingArguments, "__post_init__", count_two)

    arguments = shared_arguments(config, choose_runtime(config))

    assert 1 == configure(SFTConfig, arguments).n_gpu


def test_samples_that_teach_nothing_are_counted_and_told(base, dataset, tmp_path):
    long = {"role": "user", "content": "word " * 600}
    answer = {"role": "assistant", "content": "Yes."}
    with dataset.open("a") as handle:
        handle.write("\n" + json.dumps({"messages": [long, answer]}))
    config = load_config(
        {
            "model": base,
            "dataset": dataset,
            "output": tmp_path / "out",
            "max_steps": 1,
            "max_length": 64,
        }
    )
    told: list[str] = []

    record = train(config, say=told.append)

    assert (len(QUESTIONS), 1) == (record.labels.samples, record.labels.dropped)
    assert [line for line in told if line.startswith("left out 1 of 9 samples")]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gptq_keeps_the_precision_it_was_asked_for(run, tmp_path, precision):
    run("out", method="gptq", precision=precision, gptq_group_size=32)

    tensors = load_file(tmp_path / "out" / "gptq" / "model.safetensors")
    wanted = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    assert wanted is tensors["model.embed_tokens.weight"].dtype
    assert "model.layers.0.mlp.up_proj.qweight" in tensors


def test_a_packed_base_counts_with_its_whole_size(run):
    _, plain = run("plain", method="lora")
    _, packed = run("packed", method="qlora")

    assert plain.total_parameters == packed.total_parameters


def test_an_adapter_on_the_head_is_refused(run):
    with pytest.raises(ConfigError, match=r"on the head \(lm_head\) cannot be trained"):
        run("out", method="lora", lora_target_modules=["q_proj", "lm_head"])


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_the_computation_is_in_the_precision_asked_for(base, dataset, tmp_path, method, precision):
    seen = set()

    class Listener(Recorder):
        def on_prepared(self, model, *rest):
            layers = [part for name, part in model.named_modules() if name.endswith("up_proj")]
            layers[0].register_forward_hook(lambda part, args, output: seen.add(output.dtype))

        def on_fitted(self, model):
            self.masters = {p.dtype for p in model.parameters() if p.requires_grad}

    listener = Listener()
    config = load_config(
        {
            "model": base,
            "dataset": dataset,
            "output": tmp_path / "out",
            "method": method,
            "precision": precision,
            "max_steps": 1,
        }
    )
    train(config, watcher=listener)

    wanted = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert {wanted} == seen
    assert {torch.float32} == listener.masters


def test_the_schedule_warmup_and_clipping_are_those_asked_for(run, tmp_path):
    run(
        "out", method="lora", max_steps=4, learning_rate=1e-2, lr_scheduler="cosine", warmup_steps=1
    )

    steps = [json.loads(x) for x in (tmp_path / "out" / "steps.jsonl").read_text().splitlines()]
    rates = [step["learning_rate"] / 1e-2 for step in steps]
    assert rates == pytest.approx([0.0, 1.0, 0.75, 0.25], abs=1e-6)


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_grad_norm", 1e-3), ("weight_decay", 0.5), ("epochs", 0.5), ("seed", 9)],
)
def test_a_setting_of_the_optimizer_changes_the_run(run, name, value):
    settings = {"max_steps": None, "epochs": 2, "method": "full", "learning_rate": 1e-2}
    plain, _ = run("plain", **settings)
    changed, _ = run("changed", **{**settings, name: value})

    assert plain != changed


def test_the_adapter_is_the_one_asked_for(run, tmp_path):
    run("out", lora_r=4, lora_alpha=6, lora_dropout=0.25, lora_target_modules=["q_proj", "v_proj"])

    saved = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (4, 6, 0.25) == (saved["r"], saved["lora_alpha"], saved["lora_dropout"])
    assert {"q_proj", "v_proj"} == set(saved["target_modules"])
    names = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert all(".q_proj." in name or ".v_proj." in name for name in names)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_artefact_carries_tokenizer_template_and_ends_of_its_base(run, base, tmp_path, method):
    run("out", method=method, merge_lora=method == "lora")

    folder = tmp_path / "out" / ("merged" if method == "lora" else "")
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (Path(base) / name).read_text() == (folder / name).read_text()
    ends = [
        json.loads((place / "generation_config.json").read_text())["eos_token_id"]
        for place in (Path(base), folder)
    ]
    assert ends[0] == ends[1]


def test_gptq_uses_the_samples_and_the_grid_asked_for(run, tmp_path):
    _, few = run("few", method="gptq", gptq_group_size=32, calibration_samples=1)
    _, many = run("many", method="gptq", gptq_group_size=32, calibration_samples=8)

    config = json.loads((tmp_path / "many" / "gptq" / "config.json").read_text())
    assert 32 == config["quantization_config"]["group_size"]
    errors = [[x["rtn_error"] for x in r.quantisation["layers"]] for r in (few, many)]
    assert errors[0] != errors[1]


def test_a_sample_is_cut_at_the_positions_of_the_model_whatever_was_asked_for(run, base):
    positions = AutoModelForCausalLM.from_pretrained(base).config.max_position_embeddings

    _, long = run("long", max_length=100 * positions)
    _, short = run("short", max_length=positions)

    assert str(positions) == long.choices["max_length"].value
    assert "max_length" not in short.choices


def test_plain_prompts_are_not_said_to_pass_the_chat_template(base, tmp_path):
    path = tmp_path / "pairs.jsonl"
    row = {"prompt": "Where?", "chosen": " In the pond.", "rejected": " On the moon."}
    path.write_text(json.dumps(row) + "\n")
    settings = {"model": base, "dataset": path, "method": "dpo", "max_steps": 1}
    record = train(load_config({**settings, "output": tmp_path / "out"}))

    assert "not applied" == record.choices["chat_template"].value
    assert "plain texts" in record.choices["chat_template"].reason


def test_an_adapter_of_gpt2_whose_weights_lie_the_other_way_round(base, dataset, tmp_path):
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    folder = tmp_path / "gpt2"
    tokenizer = AutoTokenizer.from_pretrained(base)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes, **ends)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = {"model": str(folder), "dataset": dataset, "output": tmp_path / "out"}
    seen = Recorder()
    more = {"precision": "fp32", "max_steps": 2, "learning_rate": 1e-2, "merge_lora": True}
    train(load_config({**settings, **more}), watcher=seen)

    reloaded = PeftModel.from_pretrained(load(folder), str(tmp_path / "out"))
    merged = load(tmp_path / "out" / "merged")
    torch.testing.assert_close(logits_of(reloaded, seen.row), seen.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits_of(merged, seen.row), seen.logits, rtol=0, atol=1e-5)
    assert (logits_of(load(folder), seen.row) - seen.logits).abs().max() > 1e-3
