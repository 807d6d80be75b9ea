"""`temporal finetune`: the document's flags and defaults, the run's folder, and going on."""

from __future__ import annotations

import argparse
import json

import pytest
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mudpuppy.cli import main
from mudpuppy.config_check import load_config
from mudpuppy.errors import OutputError, UsageError
from mudpuppy.pipelines.temporal import finetuning, runs
from mudpuppy.pipelines.temporal.finetuning import choose_output, make_config, warmup_of
from mudpuppy.tiny import resolve_model
from tests.mudpuppy.pipelines.temporal.making_records import FACTS, LATER, mixed
from tests.mudpuppy.pipelines.temporal.test_records import layout

DOCUMENT = {
    "model_name": "Qwen/Qwen2.5-1.5B-Instruct",
    "output_dir": None,
    "dev": False,
    "dev_path": "datasets/dev/dev_subset.jsonl",
    "retain_train": "datasets/retain/retain_train.jsonl",
    "retain_val": "datasets/retain/retain_val.jsonl",
    "unlearn_train": "datasets/unlearn/unlearn_train.jsonl",
    "unlearn_val": "datasets/unlearn/unlearn_val.jsonl",
    "epochs": 3,
    "batch_size": 4,
    "learning_rate": 2e-4,
    "max_seq_length": 512,
    "gradient_accumulation_steps": 4,
    "save_steps": 500,
    "eval_steps": 100,
    "lora_r": 16,
    "lora_alpha": 32,
    "use_4bit": False,
    "use_8bit": False,
    "resume_from_checkpoint": None,
    "resume_latest": False,
    "wandb": False,
}
"""Seed 003, "Phase 2.2", "Command-Line Parameters"."""


def parse(*words):
    parser = argparse.ArgumentParser()
    finetuning.add_arguments(parser)
    return parser.parse_args(words)


def test_flags_and_defaults_are_the_document_s(monkeypatch):
    monkeypatch.delenv("WIKI_DATA", raising=False)
    args = vars(parse())
    assert {name: args[name] for name in DOCUMENT} == DOCUMENT


def test_dashes_mean_the_same_as_underscores():
    one = parse("--gradient_accumulation_steps", "8", "--model_name", "m", "--use_4bit")
    other = parse("--gradient-accumulation-steps", "8", "--model-name", "m", "--use-4bit")
    assert vars(one) == vars(other)


def config_of(*words, count=1000):
    return make_config(parse(*words), runs.OUTPUT_ROOT / "x", False, count)


def test_the_defaults_become_the_engine_s_settings():
    config = config_of()
    assert config.method == "lora"
    assert config.lr_scheduler == "cosine"
    assert (config.epochs, config.batch_size, config.gradient_accumulation) == (3, 4, 4)
    assert (config.learning_rate, config.max_length) == (2e-4, 512)
    assert (config.save_steps, config.eval_steps) == (500, 100)
    assert (config.lora_r, config.lora_alpha) == (16, 32)
    assert config.warmup_steps == 19  # a tenth of 3 * ceil(250 / 4) = 189 steps


def test_4_bits_are_our_own_qlora():
    config = config_of("--use_4bit")
    assert (config.method, config.resolved_quant) == ("qlora", "nf4")


def test_8_bits_are_our_own_int8():
    config = config_of("--use_8bit")
    assert (config.method, config.resolved_quant) == ("qlora", "int8")


def test_wandb_is_where_numbers_go():
    assert config_of("--wandb").report_to == ("wandb",)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--use_4bit", "--use_8bit"], "exclude each other"),
        (["--epochs", "none"], "--epochs: "),
        (["--gradient_accumulation_steps", "0"], "--gradient_accumulation_steps: "),
        (["--max_seq_length", "2"], "--max_seq_length: "),
        (["--lora_r", "-1", "--batch_size", "x"], "--lora_r"),
    ],
)
def test_wrong_values_are_named_by_the_flag_that_was_typed(words, said):
    with pytest.raises(UsageError) as caught:
        config_of(*words)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("steps", "warmup"), [(1, 0), (2, 1), (9, 1), (10, 1), (11, 2), (1000, 100)]
)
def test_the_warm_up_is_a_tenth_and_ends_before_the_run(steps, warmup):
    settings = {"model": "m", "dataset": "d", "output": "o", "max_steps": steps}
    assert warmup_of(load_config(settings), 5) == warmup
    by_epochs = {**settings, "max_steps": None, "epochs": 1, "batch_size": 1}
    assert warmup_of(load_config(by_epochs), steps) == warmup


def test_where_a_run_goes_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output, resumes = choose_output(parse("--model_name", "tiny", "--dev"))
    assert str(output).startswith("output/temporal-tiny-dev-20")
    assert not resumes
    assert choose_output(parse("--output_dir", "o", "--resume_latest")) == (
        tmp_path.relative_to(tmp_path) / "o",
        True,
    )
    checkpoint = "o/checkpoint-5"
    assert choose_output(parse("--resume_from_checkpoint", checkpoint))[0].name == "o"
    with pytest.raises(UsageError, match="name two checkpoints"):
        choose_output(parse("--resume_from_checkpoint", checkpoint, "--resume_latest"))
    with pytest.raises(OutputError, match="of another run"):
        choose_output(parse("--resume_from_checkpoint", checkpoint, "--output_dir", "p"))
    (tmp_path / "o/final").mkdir(parents=True)
    (tmp_path / "o/final/mudpuppy.json").write_text("{}")
    with pytest.raises(OutputError, match="is finished"):
        choose_output(parse("--output_dir", "o", "--resume_latest"))


def words_of(folder, *more):
    """Return a command of four steps on a random model."""
    paths = layout(folder)
    named = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
    words = ["--model_name", "tiny:llama", "--precision", "fp32", "--lora_r", "4", "--max_steps"]
    words += ["4", "--batch_size", "2", "--gradient_accumulation_steps", "1", "--save_steps", "2"]
    return ["temporal", "finetune", *named, *words, "--eval_steps", "2", *more]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Return the folder of a run that has ended."""
    folder = tmp_path_factory.mktemp("run")
    assert main(words_of(folder, "--output_dir", str(folder / "out"))) == 0
    return folder / "out"


def test_a_run_leaves_what_the_document_says(done):
    left = {"checkpoint-2", "checkpoint-4", "final", "train_results.json", "eval_results.json"}
    assert left <= {path.name for path in done.iterdir()}
    final = {path.name for path in (done / "final").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= final


def test_results_have_the_names_of_transformers_save_metrics(done):
    train = json.loads((done / "train_results.json").read_text())
    assert set(train) == {
        "epoch",
        "total_flos",
        "train_loss",
        "train_runtime",
        "train_samples_per_second",
        "train_steps_per_second",
    }
    found = json.loads((done / "eval_results.json").read_text())
    wanted = {"eval_loss", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}
    assert {"epoch", *wanted} <= set(found)
    steps = [json.loads(line) for line in (done / "steps.jsonl").read_text().splitlines()]
    evaluated = {step["step"]: step["eval_loss"] for step in steps if step["eval_loss"] is not None}
    assert list(evaluated) == [2, 4]
    assert found["eval_loss"] == pytest.approx(evaluated[4])


def test_the_adapter_opens_with_peft_and_its_tokenizer_beside_it(done):
    base = AutoModelForCausalLM.from_pretrained(resolve_model("tiny:llama"))
    model = PeftModel.from_pretrained(base, str(done / "final"))
    assert model.peft_config["default"].r == 4
    assert AutoTokenizer.from_pretrained(done / "final").chat_template


def test_a_finished_run_is_not_resumed(done, capsys):
    assert main(words_of(done.parent, "--output_dir", str(done), "--resume_latest")) == 2
    assert "is finished" in capsys.readouterr().err


def test_a_run_that_goes_on_ends_as_if_it_had_not_stopped(done, tmp_path, monkeypatch):
    output = tmp_path / "out"
    from mudpuppy import engine

    def killed(*_, **__):
        raise KeyboardInterrupt

    words = words_of(tmp_path, "--output_dir", str(output))
    with monkeypatch.context() as patched:
        patched.setattr(engine, "_save", killed)
        assert main(words) == 130
    assert main([*words, "--resume_from_checkpoint", str(output / "checkpoint-2")]) == 0
    one, other = (load_file(run / "final/adapter_model.safetensors") for run in (done, output))
    assert one.keys() == other.keys()
    assert all(bool((one[name] == other[name]).all()) for name in one)
    assert (output / "set-aside-checkpoint-4").is_dir()


def test_resuming_what_is_not_there_says_what_to_type(tmp_path, capsys):
    words = words_of(tmp_path, "--output_dir", str(tmp_path / "none"), "--resume_latest")
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "nothing to resume" in said
    assert "--resume_latest" in said
    assert "--save_steps" in said
    assert "--resume;" not in said


def test_a_dev_run_trains_on_the_dev_subset(tmp_path, capsys):
    path = mixed(tmp_path / "dev.jsonl")
    words = ["--dev", "--dev_path", str(path), "--model_name", "tiny:llama", "--precision", "fp32"]
    words += ["--epochs", "1", "--lora_r", "2", "--output_dir", str(tmp_path / "out")]
    assert main(["temporal", "finetune", *words]) == 0
    out = capsys.readouterr().out
    total = len(FACTS) + len(LATER)
    assert f"training on {total - 1} records" in out
    assert "evaluating on 1 records" in out
    assert (tmp_path / "out/final/adapter_config.json").is_file()


def test_missing_files_are_refused_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WIKI_DATA", raising=False)
    assert main(["temporal", "finetune", "--model_name", "tiny:llama"]) == 2
    said = capsys.readouterr().err
    for name in DOCUMENT:
        if name.endswith(("_train", "_val")):
            assert str(DOCUMENT[name]) in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("objective", [one for one in finetuning.OBJECTIVES if one != "refusal"])
def test_every_objective_trains_evaluates_and_is_published(tmp_path, objective, capsys):
    words = words_of(tmp_path, "--output_dir", str(tmp_path / "out"), "--objective", objective)
    assert main([*words, "--max_steps", "2"]) == 0, capsys.readouterr().err
    assert (tmp_path / "out/final/adapter_config.json").is_file()
    assert "eval_loss" in json.loads((tmp_path / "out/eval_results.json").read_text())
