"""Damages of the files of a folder: cut, empty, left over, missing, misnamed, pickled."""

from __future__ import annotations

import json
import pickle
import shutil
from functools import partial
from pathlib import Path

from harness.selftest.edit import cut_file, edit_json, find_weights
from harness.selftest.registry import Patient, damage

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 4968432\n"
INDEX = "model.safetensors.index.json"
Q0 = "model.layers.0.self_attn.q_proj.weight"


def shards(folder: Path) -> list[Path]:
    """Return the shards of a model in their order."""
    return sorted(folder.glob("model*-of-*.safetensors"))


def edit_map(folder: Path, **changes: str | None) -> None:
    """Change what the index says of tensors; None takes one out."""
    path = folder / INDEX
    mapping = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    for name, shard in changes.items():
        mapping.pop(name, None)
        if shard is not None:
            mapping[name] = shard
    edit_json(path, weight_map=mapping)


# --- no weights in the file (FM24, FM44) ---------------------------------------------------------


def empty_file(patient: Patient) -> None:
    """Save no tensor at all, as a sharded optimizer does that gathered nothing: 16 bytes."""
    from safetensors.torch import save_file

    save_file({}, find_weights(patient.path))


def write_pointer(patient: Patient) -> None:
    """Leave the pointer of git-LFS where the weights should be."""
    find_weights(patient.path).write_text(POINTER.format("0" * 64), encoding="ascii")


def erase_bytes(patient: Patient) -> None:
    """Leave a file of no bytes, as a full disk does."""
    find_weights(patient.path).write_bytes(b"")


def write_garbage(patient: Patient) -> None:
    """Leave bytes that are no header."""
    find_weights(patient.path).write_bytes(b"\xff" * 999)


for _patient in ("peft-lora", "peft-lora-dora", "peft-ia3"):
    damage(f"empty-{_patient}", patient=_patient, mode="FM24", probe="weights-file-unreadable")(
        empty_file
    )
for _patient in ("transformers-llama", "peft-lora", "tokenizer-fast"):
    damage(f"pointer-{_patient}", patient=_patient, mode="FM44", probe="weights-file-unreadable")(
        write_pointer
    )
damage("no-bytes", patient="transformers-llama", mode="", probe="weights-file-unreadable")(
    erase_bytes
)
damage("garbage", patient="transformers-llama", mode="", probe="weights-file-unreadable")(
    write_garbage
)


@damage("adapter-file-gone", patient="peft-lora", mode="FM24", probe="adapter-weights-missing")
def remove_adapter(patient: Patient) -> None:
    """Keep the settings of an adapter and lose its weights."""
    find_weights(patient.path).unlink()


@damage(
    "pointer-in-shards", patient="transformers-shards", mode="FM44", probe="weights-file-unreadable"
)
def write_pointer_in_shards(patient: Patient) -> None:
    """Fetch all shards from git-LFS but one."""
    shards(patient.path)[1].write_text(POINTER.format("1" * 64), encoding="ascii")


@damage(
    "weights-linked",
    patient="transformers-llama",
    mode="",
    probe="files-linked-from-elsewhere",
)
def link_weights(patient: Patient) -> None:
    """Move the weights elsewhere and leave a link."""
    weights = find_weights(patient.path)
    place = patient.path.parent / "elsewhere.safetensors"
    weights.rename(place)
    weights.symlink_to(place)


# --- truncated (FM43) ----------------------------------------------------------------------------


def cut(patient: Patient, share: float) -> None:
    """Keep the first share of the weights."""
    cut_file(find_weights(patient.path), share)


def cut_one(patient: Patient, share: float) -> None:
    """Keep the first share of one shard."""
    cut_file(shards(patient.path)[-1], share)


for _name, _patient, _share in (
    ("truncated", "transformers-llama", 0.7),
    ("truncated-bf16", "transformers-bf16", 0.99),
    ("truncated-by-a-byte", "peft-lora", 0.9999),
    ("truncated-in-the-header", "transformers-llama", 0.01),
    ("truncated-merge", "peft-merged", 0.5),
):
    damage(_name, patient=_patient, mode="FM43", probe="weights-truncated")(
        partial(cut, share=_share)
    )
damage("truncated-shard", patient="transformers-shards", mode="FM43", probe="weights-truncated")(
    partial(cut_one, share=0.6)
)


@damage("truncated-checkpoint", patient="trl-sft-lora", mode="FM43", probe="weights-truncated")
def cut_checkpoint(patient: Patient) -> None:
    """Cut the weights of one checkpoint of an output, as a killed run leaves them."""
    cut_file(patient.path / "checkpoint-2/adapter_model.safetensors", 0.5)


# --- index and shards (FM45) ---------------------------------------------------------------------


@damage("shard-gone", patient="transformers-shards", mode="FM45", probe="shard-missing")
def remove_shard(patient: Patient) -> None:
    """Lose a shard."""
    shards(patient.path)[1].unlink()


@damage("last-shard-gone", patient="transformers-shards-bf16", mode="FM45", probe="shard-missing")
def remove_last_shard(patient: Patient) -> None:
    """Lose the last shard, as an interrupted download does."""
    shards(patient.path)[-1].unlink()


@damage(
    "variant-shard-gone", patient="transformers-variant-shards", mode="FM45", probe="shard-missing"
)
def remove_variant_shard(patient: Patient) -> None:
    """Lose a shard of a variant."""
    shards(patient.path)[0].unlink()


@damage("index-gone", patient="transformers-shards", mode="FM45", probe="index-disagrees")
def remove_index(patient: Patient) -> None:
    """Lose the index."""
    (patient.path / INDEX).unlink()


@damage("index-names-a-ghost", patient="transformers-shards", mode="FM45", probe="index-disagrees")
def name_ghost(patient: Patient) -> None:
    """Name a tensor that no shard holds."""
    edit_map(patient.path, **{"model.ghost.weight": shards(patient.path)[0].name})


@damage("index-leaves-out", patient="transformers-shards", mode="FM45", probe="index-disagrees")
def leave_out(patient: Patient) -> None:
    """Leave a tensor out of the index."""
    edit_map(patient.path, **{Q0: None})


@damage(
    "index-points-elsewhere", patient="transformers-shards", mode="FM45", probe="index-disagrees"
)
def point_elsewhere(patient: Patient) -> None:
    """Say of a tensor that it lies in another shard than it does."""
    edit_map(patient.path, **{Q0: shards(patient.path)[-1].name})


@damage("index-escapes", patient="transformers-shards", mode="", probe="index-disagrees")
def escape(patient: Patient) -> None:
    """Name a shard outside of the folder."""
    edit_map(patient.path, x="../../etc/passwd")


@damage("shards-of-an-older-save", patient="transformers-llama", mode="FM45", probe="shards-stale")
def leave_old_shards(patient: Patient) -> None:
    """Leave a shard of an older save beside the new file."""
    shutil.copy(find_weights(patient.path), patient.path / "model-00001-of-00002.safetensors")


@damage("shards-of-two-saves", patient="transformers-shards", mode="FM45", probe="shards-stale")
def leave_more_shards(patient: Patient) -> None:
    """Leave a shard of a save that had more of them."""
    shutil.copy(shards(patient.path)[0], patient.path / "model-00007-of-00009.safetensors")


# --- pickles (FM59) ------------------------------------------------------------------------------


class _Runs:
    """A pickle that would run a program if it were loaded."""

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        import os

        return os.system, ("true",)


def plant_pickle(patient: Patient, name: str) -> None:
    """Put a pickle that runs a program where a trainer leaves its own."""
    (patient.path / name).write_bytes(pickle.dumps(_Runs()))


for _patient, _file in (
    ("transformers-llama", "training_args.bin"),
    ("peft-lora", "optimizer.pt"),
    ("trl-sft-full", "checkpoint-2/scheduler.pt"),
):
    damage(f"pickle-runs-{_patient}", patient=_patient, mode="FM59", probe="weights-pickled")(
        partial(plant_pickle, name=_file)
    )


@damage("pickled-weights-run", patient="transformers-bf16", mode="FM59", probe="weights-pickled")
def pickle_weights(patient: Patient) -> None:
    """Save the weights by torch.save, with a call hidden among them."""
    import torch
    from safetensors.torch import load_file

    path = find_weights(patient.path)
    tensors = load_file(path)
    path.unlink()
    torch.save({**tensors, "extra": _Runs()}, patient.path / "pytorch_model.bin")


@damage("pickled-other-model", patient="transformers-bf16", mode="FM45", probe="shards-stale")
def leave_other_pickle(patient: Patient) -> None:
    """Leave the pickled weights of a deeper model beside the weights."""
    import torch
    from safetensors.torch import load_file

    tensors = load_file(find_weights(patient.path))
    deeper = {
        name.replace(".layers.", ".layers.1"): value.clone()
        for name, value in tensors.items()
        if ".layers." in name
    }
    torch.save({**tensors, **deeper}, patient.path / "pytorch_model.bin")


# --- settings (FM44, FM46) -----------------------------------------------------------------------


def cut_settings(patient: Patient, name: str) -> None:
    """Leave half of a settings file."""
    cut_file(patient.path / name, 0.5)


for _name, _patient in (
    ("config.json", "transformers-llama"),
    ("adapter_config.json", "peft-lora"),
):
    damage(
        f"cut-{_name.partition('.')[0].replace('_', '-')}",
        patient=_patient,
        mode="",
        probe="config-file-unreadable",
    )(partial(cut_settings, name=_name))


@damage(
    "config-is-a-pointer", patient="transformers-llama", mode="FM44", probe="config-file-unreadable"
)
def point_config(patient: Patient) -> None:
    """Leave a pointer of git-LFS in place of the settings."""
    (patient.path / "config.json").write_text(POINTER.format("2" * 64), encoding="ascii")


@damage("config-gone", patient="transformers-llama", mode="FM46", probe="config-missing")
def remove_config(patient: Patient) -> None:
    """Copy the weights by hand, and nothing else."""
    (patient.path / "config.json").unlink()
