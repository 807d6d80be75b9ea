import json
from pathlib import Path

from mudpuppy.export.gguf.general import make_provenance
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
