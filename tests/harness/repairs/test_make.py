"""A repaired copy is healthy, has the values of the original, and leaves the original alone."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.doctor import diagnose
from harness.evidence.source import Options
from harness.findings import Verdict
from harness.registry import load_probes
from harness.repairs.draft import NotCertain
from harness.repairs.make import RECEIPT, plan_repairs, write_copy
from harness.repairs.registry import Repair, load_repairs
from harness.selftest.edit import edit_json, edit_tensors, rename_tensors
from harness.selftest.ward import Recovery
from mudpuppy.errors import OutputError


@pytest.fixture(scope="module")
def ward(tmp_path_factory):
    return Recovery(tmp_path_factory.mktemp("ward"))


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def mend(folder: Path, target: Path, **options):
    """Examine, repair, examine again; return the plan and the second diagnosis."""
    plan = plan_repairs(folder, diagnose(folder, **options), Options(**options))
    write_copy(plan, target)
    return plan, diagnose(target, **options)


def wrap(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: {f"_orig_mod.{k}": v for k, v in tensors.items()})


def pickle_weights(folder: Path) -> None:
    (path,) = folder.glob("*.safetensors")
    torch.save(load_file(path), folder / "pytorch_model.bin")
    path.unlink()


class Runs:
    def __reduce__(self):
        return os.system, ("true",)


def add_a_bomb(folder: Path) -> None:
    (folder / "training_args.bin").write_bytes(pickle.dumps(Runs()))


def name_in_keys(folder: Path) -> None:
    rename_tensors(folder, ".weight", ".default.weight")


def untie(folder: Path) -> None:
    edit_json(folder / "config.json", tie_word_embeddings=True)


def leave_quantised(folder: Path) -> None:
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    edit_json(folder / "config.json", quantization_config=config)


def stale_shard(folder: Path) -> None:
    (path,) = folder.glob("*.safetensors")
    shutil.copy(path, folder / "model-00001-of-00002.safetensors")


DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "compiled-model": ("transformers-llama", wrap),
    "compiled-adapter": (
        "peft-lora",
        lambda f: rename_tensors(f, "base_model.model.", "base_model.model._orig_mod."),
    ),
    "ddp": ("transformers-llama", lambda f: edit_tensors(f, _add("module."))),
    "no-prefix": ("peft-lora", lambda f: rename_tensors(f, "base_model.model.", "")),
    "adapter-name": ("peft-lora", name_in_keys),
    "tower": ("peft-lora", lambda f: rename_tensors(f, "model.layers", "language_model.layers")),
    "rank": ("peft-lora", lambda f: edit_json(f / "adapter_config.json", r=16)),
    "tied": ("transformers-llama", untie),
    "quantised": ("transformers-llama", leave_quantised),
    "stale": ("transformers-llama", stale_shard),
    "bomb": ("transformers-llama", add_a_bomb),
}  # fmt: skip


def _add(prefix: str) -> Callable[[dict], dict]:
    return lambda tensors: {prefix + k: v for k, v in tensors.items()}


@pytest.mark.parametrize("name", DAMAGES)
def test_the_repaired_copy_is_healthy_and_the_original_is_as_it_was(ward, tmp_path, name):
    patient_name, damage = DAMAGES[name]
    with ward.copy(patient_name) as patient:
        damage(patient.path)
        before = bytes_of(patient.path)
        broken = diagnose(patient.path, **patient.options)
        plan, after = mend(patient.path, tmp_path / "copy", **patient.options)

        assert broken.verdict is Verdict.SICK
        assert after.verdict is Verdict.HEALTHY, after.why
        assert plan.changes
        assert not plan.unmended
        assert bytes_of(patient.path) == before
        # Not one value is another one.
        old = sorted(v.numpy().tobytes() for v in _loaded(patient.path, name).values())
        new = sorted(v.numpy().tobytes() for v in tensors_of(tmp_path / "copy").values())
        assert new == old
    receipt = json.loads((tmp_path / "copy" / RECEIPT).read_text())
    assert [one["repair"] for one in receipt["changes"]] == [one.repair for one in plan.changes]


def _loaded(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors") if name == "stale" else tensors_of(folder)


def test_pickled_weights_become_safetensors_of_the_same_values(ward, tmp_path):
    with ward.copy("transformers-llama") as patient:
        pickle_weights(patient.path)
        _, after = mend(patient.path, tmp_path / "copy")
        expected = torch.load(patient.path / "pytorch_model.bin", weights_only=True)

    found = tensors_of(tmp_path / "copy")
    assert after.verdict is Verdict.HEALTHY, after.why
    assert not (tmp_path / "copy" / "pytorch_model.bin").exists()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_an_archive_that_would_grow_without_measure_is_refused(ward):
    with ward.copy("transformers-llama") as patient:
        next(iter(patient.path.glob("*.safetensors"))).unlink()
        one = torch.zeros(1000)
        torch.save({f"w{n}": one for n in range(50)}, patient.path / "pytorch_model.bin")
        plan = plan_repairs(patient.path, diagnose(patient.path), Options())

    assert not plan.changes
    assert any("grow" in item.why for item in plan.unmended)


def test_two_tensors_never_get_the_same_name(ward):
    with ward.copy("transformers-llama") as patient:
        edit_tensors(
            patient.path,
            lambda tensors: {**tensors, **{f"module.{k}": v + 1 for k, v in tensors.items()}},
        )
        plan = plan_repairs(patient.path, diagnose(patient.path), Options())

    assert not plan.changes
    assert any("same name" in item.why for item in plan.unmended)


def test_a_repair_that_stops_half_way_leaves_no_half(ward, monkeypatch):
    def half(draft, evidence):
        draft.drop("config.json", "half of a repair")
        raise NotCertain("the other half")

    one = Repair(name="half", mends=("wrapper-prefix-left",), turn=0, apply=half)
    monkeypatch.setattr("harness.repairs.make.load_repairs", lambda: [one])
    with ward.copy("transformers-llama") as patient:
        wrap(patient.path)
        plan = plan_repairs(patient.path, diagnose(patient.path), Options())

    assert not plan.changes
    assert "the other half" in {item.why for item in plan.unmended}


@pytest.mark.parametrize("more", [{"use_rslora": True}, {"rank_pattern": {"q_proj": 4}}])
def test_a_rank_on_which_the_scale_depends_is_left_alone(ward, more):
    with ward.copy("peft-lora") as patient:
        edit_json(patient.path / "adapter_config.json", r=16, **more)
        found = diagnose(patient.path, **patient.options)
        plan = plan_repairs(patient.path, found, Options(**patient.options))

    assert not plan.changes


def test_an_index_is_rebuilt_from_whole_shards_and_not_from_some(ward, tmp_path):
    from transformers import AutoModelForCausalLM

    base = ward.get("transformers-llama").path
    folder = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(folder, max_shard_size="20kB")
    index = folder / "model.safetensors.index.json"
    right = json.loads(index.read_text())["weight_map"]
    index.unlink()

    _, after = mend(folder, tmp_path / "copy")

    assert after.verdict is Verdict.HEALTHY, after.why
    assert json.loads((tmp_path / "copy" / index.name).read_text())["weight_map"] == right
    next(iter(folder.glob("model-00002*"))).unlink()
    plan = plan_repairs(folder, diagnose(folder), Options())
    assert not plan.changes
    assert plan.unmended


def test_an_adapter_config_beside_merged_weights_is_taken_out(ward, tmp_path):
    with ward.copy("peft-merged") as patient:
        shutil.copy(ward.get("peft-lora").path / "adapter_config.json", patient.path)
        _, after = mend(patient.path, tmp_path / "copy", **patient.options)

    assert after.verdict is Verdict.HEALTHY, after.why
    assert not (tmp_path / "copy" / "adapter_config.json").exists()


def test_whole_weights_beside_an_adapter_are_only_parted_where_they_hold_it(ward, tmp_path):
    adapter = ward.get("peft-lora").path
    for name, parted in (("peft-merged", True), ("transformers-llama", False)):
        with ward.copy(name) as patient:
            for file in adapter.glob("adapter_*"):
                shutil.copy(file, patient.path)
            base = ward.get("transformers-llama").path
            found = diagnose(patient.path, base=base)
            plan = plan_repairs(patient.path, found, Options(base=base))
        changed = {change.file for change in plan.changes}
        assert ("adapter_config.json" in changed) is parted


def test_an_adapter_that_cannot_be_told_from_noise_is_left_where_it_is(ward):
    """Nothing that can be resolved proves nothing: the adapter may be all there is of a tuning."""
    with ward.copy("transformers-llama") as patient:
        for file in ward.get("peft-lora").path.glob("adapter_*"):
            shutil.copy(file, patient.path)
        (path,) = patient.path.glob("adapter_model.*")
        save_file({k: v * 1e-9 for k, v in load_file(path).items()}, path, {"format": "pt"})
        base = ward.get("transformers-llama").path
        plan = plan_repairs(patient.path, diagnose(patient.path, base=base), Options(base=base))

    assert not plan.changes


def test_lost_values_are_not_invented(ward, tmp_path):
    with ward.copy("transformers-llama") as patient:
        edit_tensors(patient.path, lambda tensors: {**tensors, **_nan(tensors)})
        plan = plan_repairs(patient.path, diagnose(patient.path), Options())

    assert not plan.changes
    assert [one.name for one in plan.unmended] == ["weights-nonfinite"]


def _nan(tensors: dict) -> dict:
    name = next(iter(tensors))
    return {name: tensors[name] * float("nan")}


def test_a_copy_is_put_where_nothing_is(ward, tmp_path):
    with ward.copy("transformers-llama") as patient:
        wrap(patient.path)
        plan = plan_repairs(patient.path, diagnose(patient.path), Options())
        (tmp_path / "there").mkdir()
        for target in (tmp_path / "there", patient.path / "inside", tmp_path / "no" / "such"):
            with pytest.raises(OutputError):
                write_copy(plan, target)
        assert not (patient.path / "inside").exists()


def test_too_little_room_is_said_before_anything_is_written(ward, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with ward.copy("transformers-llama") as patient:
        wrap(patient.path)
        plan = plan_repairs(patient.path, diagnose(patient.path), Options())
        with pytest.raises(OutputError, match="GB are free"):
            write_copy(plan, tmp_path / "copy")
    assert not list(tmp_path.iterdir())


def test_links_that_lead_out_of_the_folder_are_not_followed(ward, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("not yours")
    with ward.copy("transformers-llama") as patient:
        wrap(patient.path)
        (patient.path / "notes.txt").symlink_to(secret)
        (patient.path / "home").symlink_to(tmp_path)
        plan = plan_repairs(patient.path, diagnose(patient.path), Options())
        skipped = write_copy(plan, tmp_path / "copy")

    assert "notes.txt" in skipped
    assert not (tmp_path / "copy" / "notes.txt").exists()
    assert not (tmp_path / "copy" / "home").exists()


def test_every_repair_mends_findings_that_exist():
    names = {probe.name for probe in load_probes()}

    assert {name for one in load_repairs() for name in one.mends} <= names


KILLED = """
import os, signal, sys
from pathlib import Path
from harness.doctor import diagnose
from harness.evidence.source import Options
from harness.repairs import make
from mudpuppy import files
module, name = {"make": make, "files": files}[sys.argv[3]], sys.argv[4]
root = Path(sys.argv[1])
plan = make.plan_repairs(root, diagnose(root), Options())
setattr(module, name, lambda *given: os.kill(os.getpid(), signal.SIGKILL))
make.write_copy(plan, Path(sys.argv[2]))
"""


@pytest.mark.parametrize(
    ("module", "name"), [("make", "write_json_atomic"), ("files", "fsync_folder")]
)
def test_a_copy_that_was_killed_has_no_name_and_the_next_one_clears_it_away(tmp_path, module, name):
    """Killed before the receipt is written, and when all is written and nothing is durable."""
    folder, target = tmp_path / "model[1]", tmp_path / "copy[1]"
    folder.mkdir()
    save_file({"a.weight": torch.arange(9.0)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    words = [sys.executable, "-c", KILLED, str(folder), str(target), module, name]
    done = subprocess.run(words, check=False)

    assert done.returncode == -signal.SIGKILL
    left = [path.name for path in tmp_path.iterdir() if path != folder]
    assert len(left) == 1
    assert left[0].startswith(".copy[1].")
    assert tensors_of(folder).keys() == {"a.weight"}

    write_copy(plan_repairs(folder, diagnose(folder), Options()), target)
    assert {path.name for path in tmp_path.iterdir()} == {folder.name, target.name}
    assert tensors_of(target).keys() == {"a.weight"}
