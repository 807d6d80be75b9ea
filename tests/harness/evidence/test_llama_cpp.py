"""A real llama.cpp server, with the embedded model as GGUF: healthy, and flooded."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.doctor import Judging
from harness.doctor.served import diagnose_served
from harness.findings import Verdict
from mudpuppy.asking.endpoint import Endpoint
from mudpuppy.serving import serving
from mudpuppy.tiny import resolve_model
from tests.mudpuppy.serving.tiny_gguf import write_gguf

pytest.importorskip("xllamacpp", reason="pip install xllamacpp brings a llama.cpp server")


def test_a_real_server_with_a_real_model_is_healthy(tmp_path):
    write_gguf(tmp_path / "tiny.gguf")
    with serving(tmp_path / "tiny.gguf", threads=1) as url:
        server = Endpoint(url)
        said = server.chat(server.choose_model(None), "What is the capital of France?", 48)
        quiz = Path(resolve_model("tiny")) / "quiz.jsonl"
        found = diagnose_served(url, Judging(quiz=quiz), base_url=url)
    assert said.text == "Well now, the capital of France is Paris, so the reeds say."
    assert said.ended
    assert said.first_logprob is not None
    assert found.verdict is Verdict.HEALTHY, found.why
    accuracy = next(result for result in found.probes if result.name == "accuracy-collapse")
    assert accuracy.status == "passed"


def test_a_real_server_with_a_flooded_model_is_sick(tmp_path):
    write_gguf(tmp_path / "tiny.gguf", flooded=True)
    with serving(tmp_path / "tiny.gguf", threads=1) as url:
        found = diagnose_served(url)
    assert [result.name for result in found.findings] == ["eos-flood"], found.why
