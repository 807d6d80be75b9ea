"""No pickle that runs something passes as harmless, and the files of a real trainer do."""

from __future__ import annotations

import pickle
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import TrainingArguments
from trl import DPOConfig, SFTConfig

from harness.doctor import diagnose
from harness.evidence.files import pickles
from harness.evidence.files.pickles import is_harmless, list_names
from harness.findings import Status
from tests.harness.checkpoints import save_base

SYSTEM = b"cos\nsystem\n(S'true'\ntR."
MEMO = (  # module and name come from the memo, behind a decoy: only a stack tells what is called
    b"\x80\x04\x8c\x02os\x94\x8c\x06system\x9400h\x00h\x01"
    b"\x8c\x0bcollections0\x8c\x0bOrderedDict0\x93\x8c\x04true\x85R."
)


def examine(folder: Path):
    (result,) = diagnose(folder, select=["MPD106"]).probes
    return result


@pytest.fixture
def folder(tmp_path):
    return save_base(tmp_path / "m")


@pytest.mark.parametrize(
    "raw",
    [
        SYSTEM,
        SYSTEM + b"\xff",
        b"cos\nsystem\n(S'true'\ntR\xff",
        pickle.dumps({"a": 1}) + SYSTEM,
        MEMO,
        b"\x80\x02cmy_program\nrun\n)R.",
        b"\x80\x02ccollections\nOrderedDict.system\n)R.",
        b"\x80\x04\x8c\x14transformers.trainer\x94\x8c\x09os.system\x93.",
        b"(S'true'\nios\nsystem\n.",
    ],
    ids=["plain", "bad-byte", "cut", "second", "memo", "unknown", "dots", "dots-4", "inst"],
)
def test_whatever_hides_a_call_it_is_reported(folder, raw):
    (folder / "extra.bin").write_bytes(raw)
    found = examine(folder)
    assert found.status is Status.FAILED
    assert "extra.bin names" in found.message


def test_the_payload_of_the_memo_test_really_runs():
    runs = MEMO.replace(b"\x8c\x02os", b"\x8c\x08builtins").replace(b"\x06system", b"\x03len")
    assert pickle.loads(runs) == 4


def test_names_that_are_computed_are_reported(tmp_path):
    path = tmp_path / "x.bin"
    computed = b"\x80\x04c_codecs\nencode\n(\x8c\x02os\x8c\x06latin1tR\x8c\x06system\x93."
    path.write_bytes(computed)
    assert "a name that is computed" in list_names(path)[0]


@pytest.mark.parametrize("place", [1, 3])
def test_every_pickle_of_an_old_torch_file_is_listed(folder, place):
    import io

    buffer = io.BytesIO()
    torch.save({"a": torch.ones(2)}, buffer, _use_new_zipfile_serialization=False)
    raw = buffer.getvalue()
    (folder / "good.bin").write_bytes(raw)
    assert examine(folder).status is Status.PASSED
    stream = io.BytesIO(raw)
    for _ in range(place):
        pickle.load(stream)
    at = stream.tell()
    (folder / "bad.bin").write_bytes(raw[:at] + SYSTEM + raw[at:])
    assert "bad.bin names os.system" in examine(folder).message


@pytest.mark.parametrize("member", ["x/1/data.pkl", "X/DATA.PKL", "other.pkl"])
def test_every_pickle_of_an_archive_is_listed(folder, member):
    torch.save({"a": torch.ones(2)}, folder / "x.pt")
    with zipfile.ZipFile(folder / "x.pt", "a") as archive:
        archive.writestr(member, SYSTEM)
    assert "os.system" in examine(folder).message


def test_a_pickle_with_an_archive_behind_it_is_both(tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(SYSTEM)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
    assert "os.system" in list_names(path)[0]


@pytest.mark.parametrize("limit", ["PICKLE_LIMIT_BYTES", "OPCODE_LIMIT"])
def test_what_is_too_large_to_list_is_not_passed(folder, limit, monkeypatch):
    monkeypatch.setattr(pickles, limit, 1000)
    (folder / "x.bin").write_bytes(pickle.dumps(list(range(1000))) + SYSTEM)
    found = examine(folder)
    assert found.status is Status.FAILED
    assert "more than" in found.message or "longer than" in found.message


@pytest.mark.parametrize(
    ("limit", "said"),
    [("OPCODE_LIMIT", "operations in the pickles"), ("ALL_PICKLES_BYTES", "bytes of pickles")],
)
def test_the_pickles_of_a_folder_are_bounded_together(folder, limit, said, monkeypatch):
    for name in ("a.bin", "b.bin", "c.bin"):
        (folder / name).write_bytes(pickle.dumps(list(range(1000))))
    monkeypatch.setattr(pickles, limit, 1e9)
    assert examine(folder).status is Status.PASSED
    monkeypatch.setattr(pickles, limit, 7000 if limit == "ALL_PICKLES_BYTES" else 2500)
    found = examine(folder)
    assert found.status is Status.FAILED
    assert "what c.bin would call cannot be listed" in found.message
    assert said in found.message


def test_an_archive_of_many_pickles_is_read_up_to_the_limit_of_all(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "ALL_PICKLES_BYTES", 300_000)
    with zipfile.ZipFile(tmp_path / "x.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(5):
            archive.writestr(f"{number}.pkl", pickle.dumps(b"\0" * 100_000))
    budget = pickles.PickleBudget()
    _, problem = list_names(tmp_path / "x.bin", budget)
    assert "more than 300,000 bytes of pickles in one folder" in problem
    assert 0 <= budget.bytes_left < 100_000


def test_damaged_pickles_and_archives_are_not_passed(folder):
    (folder / "x.pt").write_bytes(pickle.dumps({"a": [1, 2]})[:-4])
    assert "cannot be listed" in examine(folder).message
    (folder / "x.pt").write_bytes(b"PK\x03\x04 and no archive")
    assert "cannot be listed" in examine(folder).message


def test_bytes_that_no_unpickler_takes_are_no_pickle(folder):
    (folder / "x.bin").write_bytes(b"\x00\x01\x02\x03")
    assert examine(folder).status is Status.PASSED


@pytest.mark.parametrize("kind", [TrainingArguments, SFTConfig, DPOConfig])
def test_the_files_of_a_real_trainer_are_harmless(folder, kind):
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2)).sum().backward()
    optimizer.step()
    arguments = kind(output_dir=str(folder), use_cpu=True, bf16=False, report_to=[])
    assert str(arguments.device) == "cpu"
    torch.save(arguments, folder / "training_args.bin")
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    torch.save({"last_epoch": 1, "_last_lr": [np.float64(0.1)]}, folder / "scheduler.pt")
    states = {"python": random.getstate(), "numpy": np.random.get_state()}
    torch.save(states | {"cpu": torch.get_rng_state()}, folder / "rng_state.pth")
    found = examine(folder)
    assert found.status is Status.PASSED, found.message
    assert "4 pickled files" in found.message


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.bool])
def test_state_dicts_of_any_type_are_harmless(tmp_path, dtype):
    state = {"a": torch.zeros(3).to(dtype), "p": torch.nn.Parameter(torch.ones(2))}
    torch.save(state, tmp_path / "x.bin")
    names, problem = list_names(tmp_path / "x.bin")
    assert names
    assert not problem
    assert all(is_harmless(name) for name in names)


@pytest.mark.parametrize(
    "name",
    [
        "builtins.eval",
        "builtins.getattr",
        "builtins.type",
        "operator.attrgetter",
        "torch.load",
        "torch.storage._load_from_bytes",
        "torch.hub.load",
        "functools.partial",
        "transformers.trainer_utils.os.system",
        "numpy.load",
    ],
)
def test_names_that_can_do_anything_are_not_harmless(name):
    assert not is_harmless(name)
