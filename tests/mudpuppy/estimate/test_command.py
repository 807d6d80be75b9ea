"""`mud-puppy estimate` reads a configuration and no weights, and says what would fit."""

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig

from mudpuppy.cli import main
from mudpuppy.errors import ConfigError
from mudpuppy.estimate.command import parse_memory


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but a config.json."""
    where = tmp_path_factory.mktemp("model")
    LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=300,
    ).save_pretrained(where)
    return where


def test_the_table_names_parts_and_peak(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert 0 == main(["estimate", str(folder), "--method", "full", "--max-length", "64"])

    out = capsys.readouterr().out
    for part in ("weights", "gradients", "optimizer", "activations", "training"):
        assert f"\n{part} " in out
    assert "peak: " in out.splitlines()[-1]
    assert ["config.json"] == [path.name for path in folder.iterdir()]


def test_a_config_file_is_read_as_its_folder(folder: Path, capsys: pytest.CaptureFixture[str]):
    main(["estimate", str(folder), "--format", "json"])
    from_folder = json.loads(capsys.readouterr().out)
    main(["estimate", str(folder / "config.json"), "--format", "json"])

    assert from_folder == json.loads(capsys.readouterr().out)
    assert sum(p["device"] for p in from_folder["parts"]) == from_folder["device_bytes"]


def test_what_does_not_fit_exits_with_1_and_says_what_would(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["estimate", str(folder), "--method", "full", "--batch-size", "64"]
    assert 1 == main([*words, "--memory", "900MB"])
    assert "would fit: --gradient-checkpointing" in capsys.readouterr().out
    assert 0 == main([*words, "--memory", "24GB"])
    assert 1 == main([*words, "--memory", "1MB"])
    assert "nothing that was tried fits" in capsys.readouterr().out


def test_refused_settings_are_refused_here_too(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert 2 == main(["estimate", str(folder), "--method", "lora", "--stream"])
    assert "MP-R" in capsys.readouterr().err


def test_sharding_takes_a_number_of_devices(folder: Path, capsys: pytest.CaptureFixture[str]):
    words = ["estimate", str(folder), "--method", "full", "--fsdp", "full_shard"]
    assert 2 == main(words)
    assert "--devices" in capsys.readouterr().err
    assert 0 == main([*words, "--devices", "8"])
    assert "on the device of each of 8 processes" in capsys.readouterr().out
    assert 2 == main([*words, "--devices", "0"])


@pytest.mark.parametrize("kind", ["auto", "pipeline"])
def test_layers_spread_as_they_fit_are_not_predicted(
    folder: Path, kind: str, capsys: pytest.CaptureFixture[str]
):
    assert 2 == main(["estimate", str(folder), "--method", "lora", "--device-map", kind])
    said = capsys.readouterr()
    assert "not predicted" in said.err
    assert not said.out


@pytest.mark.parametrize("name", ["nowhere/at-all", "/nowhere/at/all"])
def test_a_model_that_is_not_here_is_not_fetched(name: str, capsys: pytest.CaptureFixture[str]):
    assert 2 == main(["estimate", name])
    assert "nothing is downloaded" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model_type": "no-such"}', "{}"])
def test_a_config_that_is_none_is_one_line(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "config.json").write_text(content)

    assert 2 == main(["estimate", str(tmp_path)])
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GB", 24 * 2**30), ("24", 24 * 2**30), ("512 MiB", 2**29), ("1.5g", 1.5 * 2**30)],
)
def test_sizes_are_read(text: str, size: float):
    assert size == parse_memory(text)


@pytest.mark.parametrize("text", ["", "much", "-3GB", "0", "GB", "24 TB"])
def test_what_is_no_size_is_refused(text: str):
    with pytest.raises(ConfigError, match="no size"):
        parse_memory(text)
