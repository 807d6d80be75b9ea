"""What a hostile or careless person hands in: refused with a reason, and never a traceback."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from mudpuppy.cli import main
from mudpuppy.config_check import load_config
from mudpuppy.engine import train
from mudpuppy.errors import ConfigError, OutputError
from mudpuppy.methods.fitting import count_steps
from mudpuppy.preflight import check_output, locked
from mudpuppy.provenance import fingerprint_model, read_provenance
from mudpuppy.tiny import resolve_model

ROW = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}


@pytest.fixture(scope="module")
def base() -> Path:
    return Path(resolve_model("tiny:llama"))


@pytest.fixture
def copied(base: Path, tmp_path: Path) -> Path:
    """A base model that may be spoiled."""
    return Path(shutil.copytree(base, tmp_path / "base"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "chat.jsonl"
    path.write_text((json.dumps(ROW) + "\n") * 4)
    return path


@pytest.fixture
def mud_puppy(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]):
    """Return a function that trains a step on a model and returns exit code and both outputs."""

    def go(model: object, *words: object, output: object = tmp_path / "out"):
        fixed = ["--output", output, "--precision", "fp32", "--max-steps", 1]
        try:
            code = main([str(word) for word in (model, data, *fixed, *words)])
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out, said.err

    return go


def test_a_stray_weights_file_beside_the_model_changes_nothing(base, copied, mud_puppy, tmp_path):
    (copied / "consolidated.safetensors").write_text("version https://git-lfs.github.com/spec/v1")

    code, _, _ = mud_puppy(copied)

    assert 0 == code
    stored = read_provenance(tmp_path / "out")["base"]["fingerprint"]
    assert fingerprint_model(base) == stored == fingerprint_model(copied)


def test_a_fingerprint_that_cannot_be_made_is_told_before_training(
    copied, mud_puppy, tmp_path, monkeypatch
):
    def fail(folder: Path) -> None:
        raise ValueError(f"{folder}: damaged")

    monkeypatch.setattr("mudpuppy.engine.fingerprint_model", fail)

    code, out, _ = mud_puppy(copied)

    assert 0 == code
    assert out.index("no fingerprint of the base model") < out.index("step 1/1")
    assert read_provenance(tmp_path / "out")["base"]["fingerprint"] is None


def test_a_second_run_on_the_same_output_is_refused(mud_puppy, tmp_path):
    output = tmp_path / "out"
    with locked(output):
        code, _, err = mud_puppy("tiny:llama")

    assert 2 == code
    assert "is in use by another run" in err
    assert [] == list(output.iterdir())


def test_a_run_that_was_overtaken_is_refused_before_it_writes(data, tmp_path):
    output = tmp_path / "out"
    settings = {"model": "tiny:llama", "dataset": data, "output": output, "max_steps": 1}
    config = load_config({**settings, "precision": "fp32"})

    def overtake(line: str) -> None:
        if line.startswith("loading"):
            output.mkdir()
            (output / "config.json").write_text("of the other run")

    with pytest.raises(OutputError, match="is not empty"):
        train(config, say=overtake)
    assert ["config.json"] == [path.name for path in output.iterdir()]


def test_the_lock_is_gone_when_a_run_ends_and_a_dead_one_is_no_obstacle(mud_puppy, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / ".lock").touch()

    code, _, _ = mud_puppy("tiny:llama")

    assert 0 == code
    assert not (output / ".lock").exists()


def test_a_lock_that_was_swapped_under_our_hands_is_not_believed(tmp_path, monkeypatch):
    real = fcntl.flock

    def lose(handle, kind):
        real(handle, kind)
        (tmp_path / ".lock").unlink()

    monkeypatch.setattr(fcntl, "flock", lose)
    with pytest.raises(OutputError, match="in use"), locked(tmp_path):
        pass


@pytest.mark.parametrize("name", [".", "/", "~", ".."])
def test_no_hint_offers_to_remove_a_home_or_what_holds_the_working_folder(name, tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "file").write_text("x")
    before = Path.cwd()
    os.chdir(tmp_path / "inside")
    try:
        folder = Path(name).expanduser()
        if not any(folder.iterdir()):
            pytest.skip("the home folder is empty here")
        with pytest.raises(OutputError) as caught:
            check_output(folder)
        assert "rm -r" not in str(caught.value)
        (tmp_path / "a b" / "c").mkdir(parents=True)
        with pytest.raises(OutputError, match=r"rm -r '.*a b'"):
            check_output(tmp_path / "a b")
    finally:
        os.chdir(before)


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from mudpuppy.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_save_that_fails_says_why_and_what_is_left(data, tmp_path, method):
    resolve_model("tiny:llama")
    words = ["tiny:llama", data, "--output", tmp_path / "out", "--method", method]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *map(str, words), "--max-steps", "1", "--lora-r", "64"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert 3 == done.returncode
    assert "Traceback" not in done.stderr
    assert "the run cannot go on: " in done.stderr
    assert f"left in {tmp_path / 'out'}: steps.jsonl\n" in done.stderr
    assert ["steps.jsonl"] == [path.name for path in (tmp_path / "out").iterdir()]


def change(**values: object):
    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return spoil


def write(name: str, text: str):
    def spoil(folder: Path) -> None:
        (folder / name).write_text(text)

    return spoil


def cut(keep: float):
    def spoil(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])

    return spoil


def put_nan(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})


def hold_levels(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = (tensors[name] * 100).to(torch.int8)
    save_file(tensors, path, metadata={"format": "pt"})


SPOILT = {
    "levels without scales": (hold_levels, "up_proj.weight is of the type I8, not one of F64"),
    "narrower than its files": (change(intermediate_size=96), "of config.json [64, 96]"),
    "a list declares": (change(quantization_config=[1]), "quantization_config is no object"),
    "no bytes of weights": (cut(0.0), "the model cannot be loaded"),
    "half of the weights": (cut(0.5), "the model cannot be loaded"),
    "NaN": (put_nan, "model.layers.1.mlp.up_proj.weight is not finite in float32"),
    "config is a list": (write("config.json", "[]"), "cannot be loaded"),
    "config is null": (write("config.json", "null"), "cannot be loaded"),
    "config is torn": (write("config.json", "{"), "cannot be loaded"),
    "no heads": (change(num_attention_heads=0), "cannot be loaded"),
    "list of types": (change(model_type=["llama"]), "cannot be loaded"),
    "unknown type": (change(model_type="\x1b[2Jllama"), "cannot be loaded"),
    "end is a text": (change(eos_token_id="x"), "eos_token_id"),
    "negative size": (change(hidden_size=-3), "cannot be loaded"),
    "tokenizer is torn": (write("tokenizer.json", "{"), "the tokenizer cannot be loaded"),
    "settings are a list": (write("tokenizer_config.json", "[]"), "the tokenizer cannot be loaded"),
    "generation is a list": (write("generation_config.json", "[]"), "cannot be loaded"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_model_is_refused_in_one_line_that_sends_to_the_doctor(
    copied, mud_puppy, tmp_path, name
):
    spoil, expected = SPOILT[name]
    spoil(copied)

    code, _, err = mud_puppy(copied)

    assert 2 == code, err
    assert expected in err
    assert len(err) < 1000
    assert "\x1b" not in err
    assert not (tmp_path / "out").exists()


def test_fields_that_are_not_used_are_told_once(data, mud_puppy):
    message = {"role": "assistant", "content": "x", "name": "ada", "w" * 1000: 1}
    data.write_text((json.dumps({"messages": [message]}) + "\n") * 3)

    code, out, _ = mud_puppy("tiny:llama")

    assert 0 == code
    assert 1 == out.count("not used: name (3), www")
    assert "w" * 100 not in out


def test_a_template_with_control_characters_in_its_message_is_shown_clean(copied, mud_puppy):
    (copied / "chat_template.jinja").write_text("{{ raise_exception('\x1b[2Jboo') }}")

    code, _, err = mud_puppy(copied)

    assert 2 == code
    assert "chat.jsonl:1: the chat template refuses this sample: \\x1b[2Jboo" in err


def test_a_tokenizer_that_is_larger_than_the_model_is_refused(copied, data, mud_puppy):
    tokenizer = AutoTokenizer.from_pretrained(copied)
    tokenizer.add_tokens(["zyzzyva"])
    tokenizer.save_pretrained(copied)
    message = {"role": "assistant", "content": "a zyzzyva"}
    data.write_text(json.dumps({"messages": [message]}))

    code, _, err = mud_puppy(copied)

    assert 2 == code
    assert "the tokenizer gives the id" in err


def test_a_base_beyond_fp16_is_sent_to_another_precision(copied, mud_puppy):
    path = copied / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][0] = 1e6
    save_file(tensors, path, metadata={"format": "pt"})

    code, _, err = mud_puppy(copied, "--precision", "fp16")

    assert 2 == code
    assert "model.norm.weight is not finite in float16" in err
    assert "use --precision bf16 or fp32" in err


def test_a_folder_that_may_not_be_looked_into_is_no_crash(mud_puppy, tmp_path, monkeypatch):
    real = Path.is_dir

    def refuse(path: Path) -> bool:
        if path.name in ("private", "secret"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(Path, "is_dir", refuse)

    code, _, err = mud_puppy(tmp_path / "secret")
    assert (2, True) == (code, "secret cannot be used: Permission denied" in err)
    code, _, err = mud_puppy("tiny:llama", output=tmp_path / "private")
    assert (2, True) == (code, "private cannot be used: Permission denied" in err)


@pytest.mark.parametrize(
    ("epochs", "batch_size", "accumulation"), [(1, 3, 1), (1.5, 1, 3), (2.3, 2, 1), (3, 8, 4)]
)
def test_the_planned_steps_are_those_of_the_trainer(
    data, tmp_path, epochs, batch_size, accumulation
):
    settings = {
        "model": "tiny:llama",
        "dataset": data,
        "precision": "fp32",
        "epochs": epochs,
        "batch_size": batch_size,
        "gradient_accumulation": accumulation,
    }
    config = load_config({**settings, "output": tmp_path / "out"})

    steps = train(config).steps

    assert steps == count_steps(4, config)
    never = load_config({**settings, "output": tmp_path / "never", "warmup_steps": steps})
    with pytest.raises(ConfigError, match=f"--warmup-steps: {steps} warm-up steps are not fewer"):
        train(never)
    assert not (tmp_path / "never").exists()
