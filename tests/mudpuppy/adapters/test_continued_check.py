"""Adapters that a run cannot continue are refused by their settings, before a model is loaded."""

import json
import shutil

import pytest

from mudpuppy.adapters.continued_check import require_continuable
from mudpuppy.config_check import load_config
from mudpuppy.errors import ConfigError, ModelError
from mudpuppy.preflight import preflight
from mudpuppy.tiny import resolve_model
from tests.mudpuppy.methods.runs import run

SOUND = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0,
    "target_modules": ["q_proj"],
    "rank_pattern": {r"layers\.1\..*_proj": 2},
    "modules_to_save": None,
}
DAMAGED = [
    *[("r", value) for value in ("4", 4.5, True, 0, None)],
    *[("lora_alpha", value) for value in ("x", None, False)],
    *[("target_modules", value) for value in (3, "([", [3])],
    *[("rank_pattern", value) for value in ([], {"q_proj": "x"}, {"([": 2}, {"(a+)+$": 2})],
    *[("alpha_pattern", value) for value in (3, {"q_proj": None})],
    *[("init_lora_weights", value) for value in ("loftq", "pissa", 3)],
    *[("bias", 3), ("modules_to_save", 3), ("lora_dropout", 1.5), ("use_dora", "yes")],
]


def settings(method="lora", **changes):
    given = {"model": "tiny", "dataset": "d.jsonl", "output": "o", "method": method}
    return load_config({**given, **changes})


def write(folder, quantisation=None, **changes):
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({**SOUND, **changes}))
    if quantisation is not None:
        (folder / "mudpuppy.json").write_text(json.dumps({"quantisation": quantisation}))
    return folder


@pytest.mark.parametrize(("key", "value"), DAMAGED)
def test_damaged_settings_are_named(tmp_path, key, value):
    sound, damaged = write(tmp_path / "sound"), write(tmp_path / "damaged", **{key: value})

    assert require_continuable(sound, settings())["r"] == 4
    with pytest.raises(ModelError, match=rf"adapter_config.json: (the pattern|{key} is)"):
        require_continuable(damaged, settings())


@pytest.mark.parametrize(
    ("task", "right", "wrong"),
    [("CAUSAL_LM", "dpo", "rm"), ("SEQ_CLS", "rm", "prm"), ("TOKEN_CLS", "prm", "lora")],
)
def test_an_adapter_for_another_task_is_refused(tmp_path, task, right, wrong):
    folder = write(tmp_path / "a", task_type=task)

    require_continuable(folder, settings(right))
    with pytest.raises(ModelError, match=f"is for the task '{task}', and --method {wrong}"):
        require_continuable(folder, settings(wrong))


def test_an_adapter_of_4_bit_weights_goes_on_over_the_same(tmp_path):
    folder = write(tmp_path / "a", {"scheme": "int4-symmetric-blockwise", "block_size": 32})

    same = {"quant": "int4", "quant_block_size": 32}
    require_continuable(folder, settings("qlora", **same))
    others = ({"quant_block_size": 32}, {"quant": "int4"}, {**same, "quant_search": 4})
    on_4_bits = [settings("qlora", **more) for more in others]
    for other in (settings("lora"), settings("dpo"), *on_4_bits):
        with pytest.raises(ModelError, match="blocks of 32") as caught:
            require_continuable(folder, other)
        assert "--method qlora --quant int4 --quant-block-size 32" in caught.value.hint
    require_continuable(write(tmp_path / "b", {}), settings("lora"))


def test_preflight_refuses_before_the_dataset_is_read(tmp_path):
    def asked(**changes):
        return settings(output=tmp_path / "out", adapter=tmp_path / "a", **changes)

    write(tmp_path / "a")
    with pytest.raises(ModelError, match="is for the task"):
        preflight(asked(method="rm"))
    with pytest.raises(ConfigError, match=r"--lora-r is 16, and the adapter in .* has 4"):
        preflight(asked(lora_r=16))


@pytest.mark.parametrize("layers", [0, -1])
def test_a_base_without_layers_is_a_mistake(tmp_path, layers):
    base = tmp_path / "base"
    shutil.copytree(resolve_model("tiny:llama"), base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))

    with pytest.raises(ModelError, match="num_hidden_layers = "):
        run(str(base), tmp_path / "out")
