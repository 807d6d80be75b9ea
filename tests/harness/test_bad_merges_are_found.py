"""A merge that went wrong is found by k, residual and drift, each way by its own probe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.harness.checkpoints import (
    copy,
    edit_json,
    edit_tensors,
    found_in,
    round_int4,
    save_adapter,
    save_base,
    save_merged,
)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    root = tmp_path_factory.mktemp("healthy")
    base = save_base(root / "base")
    adapter = save_adapter(root / "adapter", base)
    return {
        "base": base,
        "adapter": adapter,
        "merged": save_merged(root / "merged", base, adapter),
        "rslora": save_adapter(root / "rslora", base, "rslora"),
    }


def weights(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


def scale(name: str, factor: float) -> Callable[[dict], None]:
    def change(tensors):
        tensors[name] = tensors[name] * factor

    return change


def merge_times(factor: float) -> Callable[[Path, dict], None]:
    def damage(folder, healthy):
        old, new = load_file(weights(healthy["base"])), load_file(weights(healthy["merged"]))
        made = {key: old[key] + factor * (new[key] - old[key]) for key in new}
        save_file(made, weights(folder), {"format": "pt"})

    return damage


def add_noise(part: str, size: float) -> Callable[[dict], None]:
    def change(tensors):
        torch.manual_seed(5)
        for key in tensors:
            if part in key:
                tensors[key] = tensors[key] + size * torch.randn_like(tensors[key])

    return change


LINEAGE: dict[str, tuple[Callable[..., None], set[str]]] = {
    "no-op": (merge_times(0), {"merge-without-effect"}),
    "twice": (merge_times(2), {"merge-applied-twice"}),
    "half": (merge_times(0.5), {"merge-wrongly-scaled"}),
    "four-times": (merge_times(4), {"merge-wrongly-scaled"}),
    "negative": (merge_times(-1), {"merge-wrongly-scaled"}),
    "rounded": (
        lambda f, h: edit_tensors(
            f,
            lambda t: {
                k: round_int4(v) if "q_proj" in k or "v_proj" in k else v for k, v in t.items()
            },
        ),
        {"merge-rounded"},
    ),
    "frozen-norm-moved": (
        lambda f, h: edit_tensors(f, scale("model.layers.1.input_layernorm.weight", 1.05)),
        {"frozen-weights-changed"},
    ),
    "exploded": (
        lambda f, h: edit_tensors(f, scale("model.layers.1.mlp.up_proj.weight", 40.0)),
        {"frozen-weights-changed", "weights-exploded"},
    ),
    "another-revision": (
        lambda f, h: edit_tensors(f, add_noise("model.", 1e-3)),
        {"base-mismatch"},
    ),
}


@pytest.mark.parametrize("name", LINEAGE)
def test_a_bad_merge_is_found_by_its_probe_alone(tmp_path, healthy, name):
    damage, expected = LINEAGE[name]
    folder = copy(healthy["merged"], tmp_path / "damaged")
    damage(folder, healthy)
    assert found_in(folder, base=healthy["base"], adapter=healthy["adapter"]) == expected


def test_a_merge_that_ignores_rslora_is_wrongly_scaled(tmp_path, healthy):
    plain = copy(healthy["rslora"], tmp_path / "plain")
    edit_json(plain / "adapter_config.json", use_rslora=False)
    merged = save_merged(tmp_path / "m", healthy["base"], plain)
    found = found_in(merged, base=healthy["base"], adapter=healthy["rslora"])
    assert found == {"merge-wrongly-scaled"}


def test_a_merge_into_another_base_of_the_same_shapes_is_a_base_mismatch(tmp_path, healthy):
    other = copy(healthy["base"], tmp_path / "other")
    edit_tensors(other, add_noise("", 0.02))
    assert found_in(healthy["merged"], base=other, adapter=healthy["adapter"]) == {"base-mismatch"}


def test_an_adapter_of_another_shape_is_a_base_mismatch(tmp_path, healthy):
    wider = copy(healthy["base"], tmp_path / "wider")
    edit_tensors(wider, lambda t: {k: v.repeat(2, 1) if "q_proj" in k else v for k, v in t.items()})
    assert found_in(healthy["adapter"], base=wider) == {"base-mismatch"}


def test_a_copy_of_the_base_is_no_fine_tune(tmp_path, healthy):
    folder = copy(healthy["base"], tmp_path / "copy")
    assert found_in(folder, base=healthy["base"]) == {"merge-without-effect"}
