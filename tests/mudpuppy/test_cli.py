"""mud-puppy: every mistake of a person ends with exit code 2, a reason, and nothing written."""

import errno
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mudpuppy.cli import main
from mudpuppy.features import FEATURES, METHODS, PRECISIONS

ROW = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}
NO_TORCH = """
import sys
from mudpuppy.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as ended:
    code = ended.code
sys.exit(99 if "torch" in sys.modules else code)
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps(ROW) + "\n")
    return path


def spoken(capsys) -> str:
    return " ".join(capsys.readouterr().err.split())


def run(*words: object) -> int:
    try:
        return main([str(word) for word in words])
    except SystemExit as ended:
        return int(ended.code)


def test_a_torn_line_is_named_by_file_and_number(tmp_path, data, capsys):
    data.write_text(json.dumps(ROW) + '\n{"messages": [{"role"')

    assert 2 == run("tiny", data, "--output", tmp_path / "out")
    assert f"{data}:2: not JSON" in spoken(capsys)
    assert not (tmp_path / "out").exists()


def test_a_model_path_that_does_not_exist_is_refused_with_the_near_name(tmp_path, data, capsys):
    (tmp_path / "llama-base").mkdir()

    assert 2 == run(tmp_path / "lama-base", data, "--output", tmp_path / "out")
    assert "does not exist; did you mean 'llama-base'?" in spoken(capsys)
    assert not (tmp_path / "out").exists()


def test_an_adapter_is_not_taken_for_a_model(tmp_path, data, capsys):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")

    assert 2 == run(tmp_path / "adapter", data, "--output", tmp_path / "out")
    assert "is an adapter, not a model" in spoken(capsys)


def test_an_output_folder_with_something_in_it_is_left_alone(tmp_path, data, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")

    assert 2 == run("tiny", data, "--output", tmp_path / "out")
    assert "is not empty" in spoken(capsys)
    assert ["precious"] == [path.name for path in (tmp_path / "out").iterdir()]


def test_what_a_stopped_run_left_does_not_stand_in_the_way(tmp_path, data):
    data.write_text((json.dumps(ROW) + "\n") * 4)
    output = tmp_path / "out"
    (output / ".saving-1").mkdir(parents=True)
    (output / ".saving-1" / "half").write_text("x")
    (output / "steps.jsonl").write_text("old\n")

    code = run("tiny:llama", data, "--output", output, "--max-steps", 1, "--precision", "fp32")

    assert 0 == code
    assert not (output / ".saving-1").exists()
    assert 1 == len((output / "steps.jsonl").read_text().splitlines())


def test_an_output_that_cannot_be_made_is_refused_before_anything_is_loaded(data, capsys):
    assert 2 == run("tiny", data, "--output", "/proc/mudpuppy/out")
    assert "cannot be written" in spoken(capsys)


def test_a_misspelt_command_is_named(capsys):
    assert 2 == run("trian", "tiny", "data.jsonl")
    assert "there is no command 'trian'; did you mean 'train'" in spoken(capsys)


def test_answers_that_lose_their_end_are_refused(tmp_path, data, capsys):
    text = {"role": "assistant", "content": "word " * 200}
    data.write_text(json.dumps({"messages": [ROW["messages"][0], text]}))

    assert 2 == run("tiny:llama", data, "--output", tmp_path / "out", "--max-length", 32)
    assert "no answer keeps its end within 32 tokens" in spoken(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--lora-rr", "8"], "--lora-rr; did you mean '--lora-r'"),
        (["--method", "lroa"], "invalid choice: 'lroa'"),
        (["--max-steps", "many"], "--max-steps: Input should be a valid integer"),
        (["--max-steps", "0", "--learning-rate", "-1"], "2 problems"),
        (["--method", "lora", "--stream"], "MP-R07 lora-with-streaming"),
        (["--method", "gptq", "--early-stopping"], "MP-R03"),
        (["--config", "absent.yaml"], "absent.yaml: cannot be read"),
    ],
)
def test_a_wrong_flag_is_refused_with_what_was_expected(tmp_path, data, capsys, words, expected):
    assert 2 == run("tiny", data, "--output", tmp_path / "out", *words)
    assert expected in spoken(capsys)
    assert not (tmp_path / "out").exists()


def test_a_crash_of_ours_is_told_apart_from_findings(tmp_path, data, capsys, monkeypatch):
    def break_down(*_, **__):
        raise ZeroDivisionError("deep inside")

    monkeypatch.setattr("mudpuppy.engine.train", break_down)

    assert 3 == run("tiny", data, "--output", tmp_path / "out")
    assert "ZeroDivisionError: deep inside" in spoken(capsys)


def test_missing_arguments_are_named(capsys):
    assert 2 == run("--method", "lora")
    text = spoken(capsys)
    assert all(f"{word} is required" in text for word in ("MODEL", "DATASET", "--output"))


def test_flags_win_over_the_file_and_its_unknown_keys_are_refused(tmp_path, data, capsys):
    settings = tmp_path / "run.yaml"
    settings.write_text("method: lora\nstream: true\n")
    assert 2 == run("tiny", data, "--output", tmp_path / "o", "--config", settings)
    assert "MP-R07" in spoken(capsys)

    data.write_text("broken")
    assert 2 == run("tiny", data, "--output", tmp_path / "o", "--config", settings, "--no-stream")
    assert "chat.jsonl:1: not JSON" in spoken(capsys)

    settings.write_text("lernrate: 1\n")
    assert 2 == run("tiny", data, "--output", tmp_path / "o", "--config", settings)
    assert "run.yaml:1: 'lernrate' is no known setting" in spoken(capsys)

    settings.write_text("max_steps: 0\n")
    assert 2 == run("tiny", data, "--output", tmp_path / "o", "--config", settings, "--seed", "x")
    text = spoken(capsys)
    assert "run.yaml:1: 'max_steps':" in text
    assert "--seed:" in text


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["explain", "--all"], 0),
        (["tiny", "DATA", "--output", "out", "--method", "qlora", "--stream"], 2),
        (["./absent", "DATA", "--output", "out"], 2),
        (["tiny", "absent.jsonl", "--output", "out"], 2),
    ],
)
def test_what_is_refused_is_refused_before_torch(tmp_path, data, words, code):
    words = [str(data) if word == "DATA" else word for word in words]
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH, *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert code == done.returncode, done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_explain_all_lists_every_method_precision_and_feature(capsys):
    assert 0 == run("explain", "--all")
    lines = capsys.readouterr().out.splitlines()
    assert len(METHODS) * len(PRECISIONS) * (len(FEATURES) + 1) + 1 == len(lines)
    assert "lora       bf16  streaming                rejected MP-R07" in lines


def test_explain_repeats_the_values_that_were_typed(capsys):
    asked = "--method qlora --quant int4 --quant-block-size 128 --merge-lora --merge-precision fp16"
    run("explain", *asked.split())
    head = capsys.readouterr().out.splitlines()[0]
    for part in (
        "--quant int4",
        "--quant-block-size 128",
        "--merge-lora",
        "--merge-precision fp16",
    ):
        assert part in head


def test_explain_reads_the_same_flags_as_training(capsys):
    assert 0 == run("explain", "--method", "full", "--stream", "--gradient-checkpointing")
    assert "accepted" in capsys.readouterr().out
    assert 2 == run("explain", "--method", "full", "--strem")
    assert "did you mean '--stream'" in spoken(capsys)


def test_a_whole_run_prints_choices_steps_and_what_to_do_next(tmp_path, data, capsys):
    data.write_text((json.dumps(ROW) + "\n") * 4)
    output = tmp_path / "out"

    code = run("tiny:llama", data, "--output", output, "--max-steps", 2, "--precision", "fp32")

    text = capsys.readouterr().out
    assert 0 == code
    assert "device: cpu" in text
    assert "step 2/2  loss" in text
    assert f"check it: mudpuppy-doctor {output} --generate\n" in text
    assert "--quiz FILE" in text
    assert re.search(r"saved to .* in \d+ s", text)
    assert (output / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("steps", [1, 3])
def test_a_reader_that_goes_away_does_not_end_the_training(tmp_path, data, steps):
    words = ["tiny:llama", data, "--output", tmp_path / "out", "--max-steps", steps]
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", '"$@" | head -1', "-"]
        + [str(w) for w in (sys.executable, "-m", "mudpuppy", *words, "--precision", "fp32")],
        capture_output=True,
        text=True,
        check=False,
    )

    assert 0 == done.returncode, done.stderr
    assert "loading tiny:llama" == done.stdout.strip()
    assert "" == done.stderr
    assert (tmp_path / "out" / "mudpuppy.json").is_file()


def test_a_list_may_be_cut_short_by_its_reader():
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{sys.executable} -m mudpuppy explain --all | true"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (0, "") == (done.returncode, done.stderr)


@pytest.mark.parametrize("word", ["\x1b[2J\x07", "\u202e", "\udcff"])
def test_control_characters_of_others_are_shown_and_not_obeyed(tmp_path, data, capsys, word):
    assert 2 == run("tiny", data, "--output", tmp_path / "o", f"--{word}")
    assert 2 == run(f"./absent{word}", data, "--output", tmp_path / "o")
    (tmp_path / "run.yaml").write_bytes(f'"{ascii(word)[1:-1]}": 1'.encode())
    assert 2 == run("tiny", data, "--output", tmp_path / "o", "--config", tmp_path / "run.yaml")

    text = capsys.readouterr().err
    assert 3 <= text.count("mud-puppy: error:")
    assert word not in text
    assert ascii(word)[1:-1] in text


@pytest.mark.parametrize("path", ["a\0b", "x" * 300, "~nosuchuser/x", ""])
def test_a_path_that_cannot_be_is_refused_wherever_it_stands(tmp_path, data, capsys, path):
    assert 2 == run(path, data, "--output", tmp_path / "o")
    assert 2 == run("tiny", path, "--output", tmp_path / "o")
    assert 2 == run("tiny", data, "--output", path)
    assert 2 == run("tiny", data, "--output", tmp_path / "o", "--config", path or "\0")
    assert "Traceback" not in capsys.readouterr().err


def test_a_name_that_the_terminal_cannot_show_is_no_crash(tmp_path, data):
    output = tmp_path / "sortie-\u00e9"
    words = ["tiny:llama", data, "--output", output, "--max-steps", 1, "--precision", "fp32"]
    done = subprocess.run(
        [sys.executable, "-m", "mudpuppy", *map(str, words)],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert 0 == done.returncode, done.stderr
    assert "sortie-\\xe9" in done.stdout


def test_a_full_disk_behind_the_output_is_told_without_a_traceback(monkeypatch, capfd):
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def fileno(self) -> int:
            return spare

    with Path(os.devnull).open("w") as other:
        spare = other.fileno()
        monkeypatch.setattr(sys, "stdout", Full())
        assert 3 == main(["explain", "--all"])

    err = capfd.readouterr().err
    assert "cannot print: no space left" in err
    assert "Traceback" not in err


def test_explain_tells_of_one_rule_by_its_code(capsys):
    assert 0 == run("explain", "MP-R07")
    assert capsys.readouterr().out.startswith("MP-R07 lora-with-streaming")
    assert 2 == run("explain", "MP-R99")
    assert "there is no rule MP-R99" in capsys.readouterr().err


def test_a_command_imports_nothing_of_training():
    """Settings, their schema and what makes tiny models took longer than small commands do."""
    names = ("pydantic", "yaml", "mudpuppy.config", "mudpuppy.tiny.build")
    code = (
        "import sys, mudpuppy.cli, mudpuppy.export.command\n"
        f"sys.exit(' '.join(name for name in {names!r} if name in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert 0 == done.returncode, done.stderr
