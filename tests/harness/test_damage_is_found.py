"""Every damage is found by its own probe, and by no other that it does not concern."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from harness.doctor import diagnose
from tests.harness.checkpoints import (
    copy,
    edit_json,
    edit_tensors,
    found_in,
    save_adapter,
    save_base,
    save_merged,
    save_tokenizer,
)

Q0 = "model.layers.0.self_attn.q_proj.weight"
A = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
B = A.replace("lora_A", "lora_B")


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """The undamaged checkpoints by name."""
    root = tmp_path_factory.mktemp("healthy")
    base = save_base(root / "base")
    adapter = save_adapter(root / "adapter", base)
    made = {
        "base": base,
        "adapter": adapter,
        "tied": save_base(root / "tied", "llama-tied"),
        "shards": save_base(root / "shards", max_shard_size="20kB"),
        "merged": save_merged(root / "merged", base, adapter),
        "dora": save_adapter(root / "dora", base, "dora"),
        "qwen3": save_base(root / "qwen3", "qwen3"),
        "bf16": save_base(root / "bf16", "llama", "bf16"),
    }
    save_tokenizer(made["base"], 96)
    return made


def scale(name: str, factor: float) -> Callable[[dict], None]:
    def change(tensors):
        tensors[name] = tensors[name] * factor

    return change


def put(name: str, value: float, *, where: tuple[int, ...] = (0,)) -> Callable[[dict], None]:
    def change(tensors):
        tensors[name][where] = value

    return change


def rename(old: str, new: str) -> Callable[[dict], dict]:
    return lambda tensors: {key.replace(old, new): value for key, value in tensors.items()}


def drop(part: str) -> Callable[[dict], dict]:
    return lambda tensors: {key: value for key, value in tensors.items() if part not in key}


def weights(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


def cut(folder: Path, share: float) -> None:
    path = weights(folder)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("model-*.safetensors"))


def stack(folder: Path) -> None:
    edit_tensors(folder, rename("base_model.model.", "base_model.model.base_model.model."))


def nest(folder: Path) -> None:
    edit_tensors(folder, rename("q_proj.lora", "q_proj.base_layer.lora"))


def zero_tail(tensors: dict) -> None:
    tensor = tensors["model.layers.2.mlp.up_proj.weight"]
    tensor[tensor.shape[0] // 2 :] = 0


class Runs:
    """A pickle that would run a program if it were loaded."""

    def __reduce__(self):
        import os

        return os.system, ("true",)


DAMAGES: dict[str, tuple[str, Callable[..., None], set[str]]] = {
    # files
    "empty-adapter": (
        "adapter",
        lambda f: save_file({}, weights(f)),
        {"weights-file-unreadable"},
    ),
    "no-bytes": ("base", lambda f: weights(f).write_bytes(b""), {"weights-file-unreadable"}),
    "lfs-pointer": (
        "base",
        lambda f: weights(f).write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
        ),
        {"weights-file-unreadable"},
    ),
    "garbage": (
        "base",
        lambda f: weights(f).write_bytes(b"\xff" * 999),
        {"weights-file-unreadable"},
    ),
    "truncated": ("base", lambda f: cut(f, 0.7), {"weights-truncated"}),
    "truncated-by-a-byte": ("adapter", lambda f: cut(f, 0.9999), {"weights-truncated"}),
    "truncated-in-the-header": ("base", lambda f: cut(f, 0.01), {"weights-truncated"}),
    "shard-gone": ("shards", lambda f: shards(f)[1].unlink(), {"shard-missing"}),
    "index-gone": (
        "shards",
        lambda f: (f / "model.safetensors.index.json").unlink(),
        {"index-disagrees"},
    ),
    "index-names-a-ghost": (
        "shards",
        lambda f: _edit_map(f, {"model.ghost.weight": shards(f)[0].name}),
        {"index-disagrees"},
    ),
    "index-leaves-out": ("shards", lambda f: _edit_map(f, {Q0: None}), {"index-disagrees"}),
    "index-escapes": (
        "shards",
        lambda f: _edit_map(f, {"x": "../../etc/passwd"}),
        {"index-disagrees"},
    ),
    "stale-shards": (
        "base",
        lambda f: shutil.copy(weights(f), f / "model-00001-of-00002.safetensors"),
        {"shards-stale"},
    ),
    "pickle-bomb": (
        "base",
        lambda f: (f / "training_args.bin").write_bytes(pickle.dumps(Runs())),
        {"weights-pickled"},
    ),
    "config-garbage": (
        "base",
        lambda f: (f / "config.json").write_text('{"a": '),
        {"config-file-unreadable"},
    ),
    "zero3": (
        "adapter",
        lambda f: edit_tensors(f, lambda t: {k: v[:0].reshape(0) for k, v in t.items()}),
        {"tensors-empty"},
    ),
    # adapter
    "stacked": ("adapter", stack, {"adapter-stacked"}),
    "nested": ("adapter", nest, {"adapter-stacked"}),
    "config-of-the-second-stage": (
        "adapter",
        lambda f: edit_json(f / "adapter_config.json", target_modules=["q_proj"]),
        {"adapter-stacked"},
    ),
    "two-names": (
        "adapter",
        lambda f: edit_tensors(
            f,
            lambda t: {
                k.replace(".weight", f".{'second' if '.1.' in k else 'default'}.weight"): v
                for k, v in t.items()
            },
        ),
        {"adapter-stacked"},
    ),
    "beside-merged": (
        "merged",
        lambda f, healthy: shutil.copy(healthy["adapter"] / "adapter_config.json", f),
        {"adapter-beside-merged-weights"},
    ),
    "untrained": (
        "adapter",
        lambda f: edit_tensors(
            f, lambda t: {k: v * 0 if "lora_B" in k else v for k, v in t.items()}
        ),
        {"adapter-never-trained"},
    ),
    "untrained-dora": (
        "dora",
        lambda f: edit_tensors(
            f, lambda t: {k: v * 0 if "lora_B" in k else v for k, v in t.items()}
        ),
        {"adapter-never-trained"},
    ),
    "one-module-untrained": (
        "adapter",
        lambda f: edit_tensors(f, scale(B, 0.0)),
        {"adapter-never-trained"},
    ),
    "renamed-modules": (
        "adapter",
        lambda f: edit_tensors(f, rename("model.layers", "language_model.layers")),
        {"adapter-keys-dead"},
    ),
    "no-peft-prefix": (
        "adapter",
        lambda f: edit_tensors(f, rename("base_model.model.", "")),
        {"adapter-keys-dead"},
    ),
    "adapter-name-in-keys": (
        "adapter",
        lambda f: edit_tensors(f, rename(".weight", ".default.weight")),
        {"adapter-keys-dead"},
    ),
    "rank-edited": (
        "adapter",
        lambda f: edit_json(f / "adapter_config.json", r=16),
        {"adapter-config-disagrees"},
    ),
    "alpha-zero": (
        "adapter",
        lambda f: edit_json(f / "adapter_config.json", lora_alpha=0),
        {"adapter-config-disagrees"},
    ),
    "half-a-pair": ("adapter", lambda f: edit_tensors(f, drop(B)), {"adapter-config-disagrees"}),
    "layer-hole": (
        "adapter",
        lambda f: edit_tensors(f, drop("layers.1.self_attn.q")),
        {"adapter-layers-missing"},
    ),
    "last-layer-hole": (
        "adapter",
        lambda f: edit_tensors(f, drop("layers.2.")),
        {"adapter-layers-missing"},
    ),
    "compiled-adapter": (
        "adapter",
        lambda f: edit_tensors(f, rename("base_model.model.", "base_model.model._orig_mod.")),
        {"wrapper-prefix-left"},
    ),
    "compiled-outside": (
        "adapter",
        lambda f: edit_tensors(f, rename("base_model.model.", "_orig_mod.base_model.model.")),
        {"wrapper-prefix-left"},
    ),
    # weights
    "compiled-model": (
        "base",
        lambda f: edit_tensors(f, lambda t: {f"_orig_mod.{k}": v for k, v in t.items()}),
        {"wrapper-prefix-left"},
    ),
    "ddp-model": (
        "base",
        lambda f: edit_tensors(f, lambda t: {f"module.{k}": v for k, v in t.items()}),
        {"wrapper-prefix-left"},
    ),
    "fsdp-model": (
        "base",
        lambda f: edit_tensors(f, rename("self_attn.", "_fsdp_wrapped_module.self_attn.")),
        {"wrapper-prefix-left"},
    ),
    "inner-model": (
        "base",
        lambda f: edit_tensors(f, rename("layers.1.", "layers.1.inner.")),
        {"wrapper-prefix-left"},
    ),
    "peft-model-as-model": (
        "base",
        lambda f: edit_tensors(f, rename("q_proj.", "q_proj.base_layer.")),
        {"wrapper-prefix-left"},
    ),
    "nan": ("base", lambda f: edit_tensors(f, put(Q0, float("nan"))), {"weights-nonfinite"}),
    "inf-bf16": ("bf16", lambda f: edit_tensors(f, put(Q0, float("inf"))), {"weights-nonfinite"}),
    "nan-adapter": (
        "adapter",
        lambda f: edit_tensors(f, put(B, float("nan"))),
        {"weights-nonfinite"},
    ),
    "layer-gone": ("base", lambda f: edit_tensors(f, drop("layers.2.")), {"missing-tensors"}),
    "projection-gone": (
        "base",
        lambda f: edit_tensors(f, drop("layers.1.mlp.up_proj")),
        {"missing-tensors"},
    ),
    "norm-gone": (
        "qwen3",
        lambda f: edit_tensors(f, drop("layers.0.self_attn.k_norm")),
        {"missing-tensors"},
    ),
    "head-gone": ("base", lambda f: edit_tensors(f, drop("lm_head")), {"missing-tensors"}),
    "embedding-gone": (
        "tied",
        lambda f: edit_tensors(f, drop("embed_tokens")),
        {"missing-tensors"},
    ),
    "too-many-layers": (
        "base",
        lambda f: edit_json(f / "config.json", num_hidden_layers=5),
        {"missing-tensors"},
    ),
    "overflow": ("base", lambda f: _overflow(f), {"half-precision-overflow"}),
    "zero-matrix": ("base", lambda f: edit_tensors(f, scale(Q0, 0.0)), {"weights-all-zero"}),
    "zero-tail": ("base", lambda f: edit_tensors(f, zero_tail), {"weights-all-zero"}),
    "untied": (
        "tied",
        lambda f: edit_tensors(
            f, lambda t: {**t, "lm_head.weight": t["model.embed_tokens.weight"] + 0.1}
        ),
        {"tied-embedding-diverged"},
    ),
    # config
    "tokens-added": ("base", lambda f: save_tokenizer(f, 97), {"vocabulary-mismatch"}),
    "vocab-edited": (
        "base",
        lambda f: edit_json(f / "config.json", vocab_size=128),
        {"vocabulary-mismatch"},
    ),
    "eos-beyond": (
        "base",
        lambda f: edit_json(f / "config.json", eos_token_id=500),
        {"vocabulary-mismatch"},
    ),
    "quantisation-left": (
        "base",
        lambda f: edit_json(
            f / "config.json",
            quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True},
        ),
        {"quantisation-left-declared"},
    ),
    "quantisation-undeclared": (
        "base",
        lambda f: edit_tensors(f, _quantise),
        {"quantisation-undeclared"},
    ),
}


def _edit_map(folder: Path, changes: dict[str, str | None]) -> None:
    path = folder / "model.safetensors.index.json"
    mapping = json.loads(path.read_text())["weight_map"]
    for key, value in changes.items():
        mapping.pop(key, None)
        if value is not None:
            mapping[key] = value
    edit_json(path, weight_map=mapping)


def _overflow(folder: Path) -> None:
    edit_tensors(folder, put(Q0, 70000.0, where=(0, 0)))
    edit_json(folder / "config.json", dtype="float16")


def _quantise(tensors: dict) -> dict:
    made = {}
    for key, value in tensors.items():
        if "mlp.up_proj.weight" in key:
            made[key.replace("weight", "qweight")] = (value * 100).to(torch.uint8)
            made[key.replace("weight", "scales")] = value.abs().amax(dim=1)
        else:
            made[key] = value
    return made


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damage_is_found_by_its_probe_alone(tmp_path, healthy, name):
    source, damage, expected = DAMAGES[name]
    folder = copy(healthy[source], tmp_path / "damaged")
    damage(folder, healthy) if damage.__code__.co_argcount == 2 else damage(folder)
    assert found_in(folder) == expected


def test_damage_in_one_checkpoint_of_an_output_names_that_checkpoint(tmp_path, healthy):
    out = copy(healthy["adapter"], tmp_path / "out")
    copy(healthy["adapter"], out / "checkpoint-5")
    cut(out / "checkpoint-5", 0.5)
    findings = diagnose(out).findings
    assert [(r.name, r.subject) for r in findings] == [("weights-truncated", "checkpoint-5")]
