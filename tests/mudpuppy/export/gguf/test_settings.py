import json
import subprocess
import sys
from pathlib import Path

import pytest

from mudpuppy.export.gguf.architectures import FAMILIES, find_family
from mudpuppy.export.gguf.architectures.family import Family
from mudpuppy.export.gguf.architectures.rotation import main_rotation
from mudpuppy.export.gguf.refusals import ExportRefused
from mudpuppy.export.gguf.settings import read_settings
from tests.mudpuppy.export.gguf.models import KINDS, LONG, SHAPE, edit_config, make_model


def refusal(folder: Path) -> ExportRefused:
    with pytest.raises(ExportRefused) as caught:
        read_settings(folder)
    return caught.value


def test_an_adapter_is_refused_with_the_line_that_merges_it(tmp_path: Path):
    folder = tmp_path / "pond"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "Qwen/Qwen2.5-0.5B"}')

    error = refusal(folder)

    assert error.code == "MP-X04"
    assert error.hint == f"mud-puppy merge Qwen/Qwen2.5-0.5B {folder} {tmp_path / 'pond-merged'}"


def test_packed_weights_are_refused(tmp_path: Path):
    folder = make_model(tmp_path, "llama")
    edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})

    error = refusal(folder)

    assert error.code == "MP-X04"
    assert "gptq" in str(error)
    assert "mud-puppy merge" in error.hint


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_a_config_that_nobody_can_read_is_refused(text: str, tmp_path: Path):
    (tmp_path / "config.json").write_text(text)

    assert refusal(tmp_path).code == "MP-X03"


def test_a_folder_without_a_model_is_refused(tmp_path: Path):
    assert refusal(tmp_path).code == "MP-X04"


def test_old_settings_of_the_rotation_come_out_as_todays(tmp_path: Path):
    folder = make_model(tmp_path, "llama3")
    today = main_rotation(read_settings(folder))
    rope = json.loads((folder / "config.json").read_text())["rope_parameters"]
    theta = rope.pop("rope_theta")
    edit_config(folder, rope_parameters=None, rope_theta=theta, rope_scaling=rope)

    assert main_rotation(read_settings(folder)) == today


def transformers_settings(folder: Path) -> dict:
    """Return what the converter goes by: the settings as transformers completes them."""
    from transformers import AutoConfig

    found = AutoConfig.from_pretrained(folder).to_dict()
    found = {**found, **found.get("text_config", {})}
    if "original_max_position_embeddings" in found:  # the converter looks beside the rotation, too
        trained = found["original_max_position_embeddings"]
        found["rope_parameters"].setdefault("original_max_position_embeddings", trained)
    return found


SILENT = ["", *sorted(set(FAMILIES[0].defaults) - {"rope_theta"}), "head_dim", "rope_parameters"]


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        (kind, key)
        for kind in KINDS
        for key in SILENT
        # the tables of phi3-long fit one length of the heads
        if (kind, key) not in {("phi3-long", "hidden_size"), ("phi3-long", "num_attention_heads")}
    ],
)
def test_where_config_json_is_silent_metadata_is_as_with_transformers(
    kind: str, key: str, configs: dict[str, dict], tmp_path: Path
):
    silent = {key, "layer_types"} if key == "num_hidden_layers" else {key}
    raw = {name: value for name, value in configs[kind].items() if name not in silent}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    family = find_family(raw)
    theirs = transformers_settings(tmp_path)

    ours = read_settings(tmp_path)

    assert dict(family.describe(ours)) == dict(family.describe(theirs))
    assert ours["tie_word_embeddings"] == theirs["tie_word_embeddings"]
    assert ours.get("sliding_window") == (theirs.get("sliding_window") or None)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.classes[0])
def test_defaults_are_those_of_transformers(family: Family, tmp_path: Path):
    import transformers

    config = getattr(transformers, family.classes[0]).config_class
    bare = {"model_type": config.model_type, "architectures": [family.classes[0]]}
    (tmp_path / "config.json").write_text(json.dumps(bare))
    theirs = transformers_settings(tmp_path)
    ours = read_settings(tmp_path)

    assert dict(family.describe(ours)) == dict(family.describe(theirs))
    for key, value in family.defaults.items():
        if key in theirs and key != "sliding_window":
            assert theirs[key] in (value, [] if value is None else value, ours[key]), key


@pytest.mark.parametrize(
    ("kind", "old"),
    [
        ("llama", {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}),
        ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}),
        ("gemma3", {"rope_theta": 2e6, "rope_local_base_freq": 2e4}),
        ("gemma3", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
        ("phi3", {"rope_theta": 2e4, "rope_scaling": {**LONG, "type": "su"}}),
        ("phi3", {"partial_rotary_factor": 0.5}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 64}),
        ("mixtral", {"head_dim": None}),
    ],
)
def test_settings_of_older_days_give_the_metadata_of_today(
    kind: str, old: dict, configs: dict[str, dict], tmp_path: Path
):
    raw = {**{k: v for k, v in configs[kind].items() if k != "rope_parameters"}, **old}
    if "type" in raw.get("rope_scaling", {}):
        raw["rope_scaling"].pop("rope_type", None)
    (tmp_path / "config.json").write_text(json.dumps(raw))
    family = find_family(raw)

    ours, theirs = read_settings(tmp_path), transformers_settings(tmp_path)

    assert dict(family.describe(ours)) == dict(family.describe(theirs))
    assert list(family.extra(ours)) == list(family.extra(theirs))


@pytest.fixture(scope="module")
def configs() -> dict[str, dict]:
    """config.json of every kind, as save_pretrained writes it."""
    import transformers

    found = {}
    for kind, (name, special) in KINDS.items():
        config = getattr(transformers, f"{name}Config")(**{**SHAPE, **special})
        model = {"Gemma3Text": "Gemma3"}.get(name, name)
        config.architectures = [f"{model}ForCausalLM"]
        found[kind] = json.loads(config.to_json_string())
    return found


def test_no_setting_needs_torch(tmp_path: Path):
    folder = make_model(tmp_path, "qwen3moe")
    code = (
        "import sys; from pathlib import Path\n"
        "from mudpuppy.export.gguf.settings import read_settings\n"
        "from mudpuppy.export.gguf.plan import make_plan\n"
        f"folder = Path({str(folder)!r}); make_plan(folder, read_settings(folder))\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_trained_context_beside_the_rotation_counts_before_the_one_in_it(tmp_path: Path):
    folder = make_model(tmp_path, "qwen2-yarn")
    edit_config(folder, original_max_position_embeddings=64)

    assert main_rotation(read_settings(folder))["original_max_position_embeddings"] == 64


def test_a_mark_before_the_settings_is_told_with_what_to_do(tmp_path: Path):
    folder = make_model(tmp_path, "llama")
    path = folder / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())

    assert "without a BOM" in refusal(folder).hint
