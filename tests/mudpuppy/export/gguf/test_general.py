import json
from pathlib import Path
from typing import Any

import gguf
import pytest

from mudpuppy.export.gguf.general import describe_general, make_provenance
from mudpuppy.export.gguf.plan import make_plan
from mudpuppy.export.gguf.refusals import ExportRefused
from mudpuppy.export.gguf.settings import read_settings
from mudpuppy.provenance import fingerprint_model
from tests.mudpuppy.export.gguf.models import make_model


def test_provenance_tells_source_and_training_and_no_path_of_this_machine(tmp_path: Path):
    folder = make_model(tmp_path / "pond", "llama")
    (folder / "mudpuppy.json").write_text(
        json.dumps(
            {
                "kind": "merged",
                "method": "qlora",
                "base": {"name": "/home/me/base", "fingerprint": "f00"},
            }
        )
    )

    found = make_provenance(folder, "q4_k_m", "llama-quantize (/opt/llama.cpp/build)")

    assert found["source"] == {"name": "pond", "fingerprint": fingerprint_model(folder)}
    assert found["trained"] == {"kind": "merged", "method": "qlora"}
    assert found["base"] == {"fingerprint": "f00"}
    assert found["quantiser"] == "llama-quantize"
    assert "/" not in json.dumps(found)


def test_a_damaged_manifest_is_no_reason_to_have_no_file(tmp_path: Path):
    folder = make_model(tmp_path, "llama")
    (folder / "mudpuppy.json").write_text("[")

    assert make_provenance(folder, "f16", "x")["trained"] == {}


def describe(folder: Path) -> dict[str, Any]:
    plan = make_plan(folder, read_settings(folder))
    writer = gguf.GGUFWriter(None, plan.architecture)
    describe_general(writer, folder, plan, "f16")
    return {key: value.value for key, value in writer.kv_data[0].items()}


def test_advice_for_sampling_is_stored_and_what_is_no_number_is_not(tmp_path: Path):
    folder = make_model(tmp_path, "llama")
    (folder / "generation_config.json").write_text(
        json.dumps({"temperature": 0.7, "top_k": "many", "top_p": None, "min_p": True})
    )

    found = {k: v for k, v in describe(folder).items() if k.startswith("general.sampling")}

    assert found == {"general.sampling.temp": 0.7}


def test_a_model_card_says_the_licence(tmp_path: Path):
    folder = make_model(tmp_path / "Pond-7B", "llama")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ntags: [pond]\n---\n# Pond\n")

    found = describe(folder)

    assert found["general.license"] == "apache-2.0"
    assert found["general.tags"] == ["pond"]
    assert found["general.name"] == "Pond 7B"


def test_a_model_card_that_is_damaged_is_refused(tmp_path: Path):
    folder = make_model(tmp_path, "llama")
    (folder / "README.md").write_text("---\nlicense: [\n---\n")

    with pytest.raises(ExportRefused, match=r"README\.md"):
        describe(folder)


def test_a_model_in_a_hubs_cache_is_called_by_its_repository(tmp_path: Path):
    folder = make_model(tmp_path / "models--pond--Newt-1B" / "snapshots" / "0123abcd", "llama")

    assert describe(folder)["general.name"] == "Newt 1B"
