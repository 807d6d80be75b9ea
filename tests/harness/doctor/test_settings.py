"""The doctor's project file: found upwards, not believed in a checkpoint, held to its keys."""

from __future__ import annotations

from datetime import date

import pytest

from harness.doctor.acceptance import Acceptance
from harness.doctor.settings import DoctorSettings, load_settings
from mudpuppy.errors import ConfigError, UsageError

TABLE = """
select = ["MPD2", "FM41"]
fail-on = "high"
depth = "weights"
base = "models/base"
[[accept]]
probe = "MPD106"
reason = "we ship the optimizer"
file = "optimizer.pt"
until = 2027-01-31
"""


def test_a_file_is_found_upwards_and_its_paths_are_its_own(tmp_path):
    (tmp_path / "mudpuppy-doctor.toml").write_text(TABLE)
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    found, remark = load_settings(None, tmp_path / "out", inner)
    assert remark == ""
    assert found.select == ("MPD2", "FM41")
    assert (found.fail_on, found.depth) == ("high", "weights")
    assert found.base == str(tmp_path / "models/base")
    (one,) = found.accept
    assert one == Acceptance(
        probe="MPD106",
        reason="we ship the optimizer",
        file="optimizer.pt",
        until=date(2027, 1, 31),
    )


def test_the_nearest_file_wins_and_a_project_without_a_table_is_passed(tmp_path):
    (tmp_path / "mudpuppy-doctor.toml").write_text('fail-on = "critical"')
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "pyproject.toml").write_text("[tool.ruff]\n")
    (tmp_path / "a" / "pyproject.toml").write_text("not [ toml")
    assert load_settings(None, "x", inner)[0].fail_on == "critical"
    (inner / "pyproject.toml").write_text('[tool.mudpuppy.doctor]\nfail-on = "never"')
    assert load_settings(None, "x", inner)[0].fail_on == "never"


@pytest.mark.parametrize("where", ["", "inner"])
def test_a_file_in_the_checkpoint_is_not_believed(tmp_path, where):
    folder = tmp_path / "stranger" / where
    folder.mkdir(parents=True)
    (folder / "mudpuppy-doctor.toml").write_text('fail-on = "never"')
    found, remark = load_settings(None, tmp_path / "stranger", folder)
    assert found == DoctorSettings()
    assert "was not read" in remark
    file = tmp_path / "stranger" / "model.safetensors"
    file.write_bytes(b"")
    assert load_settings(None, file, folder)[0] == DoctorSettings()
    named = folder / "mudpuppy-doctor.toml"
    assert load_settings(str(named), tmp_path / "stranger")[0].fail_on == "never"


def test_tiny_and_hub_names_are_no_paths(tmp_path):
    file = tmp_path / "mudpuppy-doctor.toml"
    file.write_text('base = "tiny:llama"')
    assert load_settings(str(file), "x")[0].base == "tiny:llama"


def test_a_project_can_set_all_that_a_flag_compares_with(tmp_path):
    file = tmp_path / "mudpuppy-doctor.toml"
    file.write_text('against = "out/sft"\nembeddings = "models/minilm"\nquick = true\n')
    found = load_settings(str(file), "x")[0]
    assert found.against == str(tmp_path / "out/sft")
    assert found.embeddings == str(tmp_path / "models/minilm")
    assert found.quick
    file.write_text("quick = 1\n")
    with pytest.raises(ConfigError, match="'quick' is 1; expected true or false"):
        load_settings(str(file), "x")


def test_all_mistakes_are_told_at_once_with_near_names(tmp_path):
    file = tmp_path / "mudpuppy-doctor.toml"
    file.write_text(
        'slect = ["MPD1"]\nignore = "MPD1"\nfail-on = "worst"\nbase = 3\n'
        '[[accept]]\nprobe = "MPD106"\n'
        '[[accept]]\nprobe = "MPD106"\nreason = " "\n'
        '[[accept]]\nprobe = "MPD106"\nreason = "r"\ntensr = "x"\n'
        '[[accept]]\nprobe = "MPD106"\nreason = "r"\nuntil = "soon"\n'
    )
    with pytest.raises(ConfigError) as failed:
        load_settings(str(file), "x")
    text = str(failed.value)
    for words in (
        "'slect' is no setting; did you mean 'select'",
        "'ignore' is 'MPD1'; expected a list",
        "'fail-on' is 'worst'; expected one of critical, high, medium, note, never",
        "'base' is 3; expected a path",
        "accept 1: 'reason' is missing",
        "accept 2: 'reason' is ' '; expected a text",
        "accept 3: 'tensr' is no setting; did you mean 'tensor'",
        "accept 4: 'until' is 'soon'; expected a day",
    ):
        assert words in text
    assert len(failed.value.problems) == 8


@pytest.mark.parametrize(
    "raw", [b"\xff", b"a = [", b"a = " + b"[" * 5000, b"accept = 3", b"accept = [1]"]
)
def test_what_is_no_settings_file_is_refused(tmp_path, raw):
    file = tmp_path / "mudpuppy-doctor.toml"
    file.write_bytes(raw)
    with pytest.raises(UsageError, match=r"mudpuppy-doctor\.toml"):
        load_settings(str(file), "x")


def test_a_named_file_must_be_there_and_have_the_table(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        load_settings(str(tmp_path / "none.toml"), "x")
    (tmp_path / "pyproject.toml").write_text("[tool]\n")
    with pytest.raises(UsageError, match="has no table"):
        load_settings(str(tmp_path / "pyproject.toml"), "x")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("ours.toml", "#" * 64_001, "larger than 64,000 bytes"),
        ("pyproject.toml", "#" * 256_001, "larger than 256,000 bytes"),
        ("ours.toml", f"x = 1\n{'.'.join(['a'] * 20_000)} = 1", "ours.toml:2 holds more than"),
    ],
)
def test_a_file_that_fills_the_memory_is_refused(tmp_path, name, text, said):
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(UsageError, match=said):
        load_settings(str(file), "x")


def test_many_versions_in_one_line_are_read(tmp_path):
    file = tmp_path / "pyproject.toml"
    needed = ", ".join(f'"lib{number}==1.2.3"' for number in range(300))
    file.write_text(
        f'[project]\ndependencies = [{needed}]\n[tool.mudpuppy.doctor]\nfail-on = "never"\n'
    )
    assert load_settings(str(file), "x")[0].fail_on == "never"
