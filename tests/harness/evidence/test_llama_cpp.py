"""A real llama.cpp server, with the embedded model as GGUF: healthy, and flooded."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from harness.doctor import Judging
from harness.doctor.served import diagnose_served
from harness.evidence.behaviour.endpoint_client import Endpoint
from harness.findings import Verdict
from mudpuppy.tiny import resolve_model

gguf = pytest.importorskip("gguf", reason="pip install gguf writes the model for llama.cpp")
pytest.importorskip("xllamacpp", reason="pip install xllamacpp brings a llama.cpp server")

TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message.role + '|>' + message.content }}"
    "{% if message.role == 'user' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
SERVER = """
import sys, xllamacpp
given = xllamacpp.CommonParams()
given.model.path = sys.argv[1]
given.n_parallel, given.n_ctx, given.warmup, given.port = 1, 512, False, 0
given.cpuparams.n_threads = 1
server = xllamacpp.Server(given)
print("at", server.listening_address, flush=True)
sys.stdin.read()
"""


def write_gguf(path: Path, *, flooded: bool = False) -> None:
    """Write the embedded model; a flooded one has the end in the place of the first word."""
    source = Path(resolve_model("tiny"))
    config = json.loads((source / "config.json").read_text())
    words = json.loads((source / "tokenizer.json").read_text())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(config["head_dim"])
    special = {one["content"] for one in words["added_tokens"]}
    tokens = sorted(words["model"]["vocab"], key=words["model"]["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    merges = words["model"]["merges"]
    writer.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in merges])
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    for name, values in load_file(source / "model.safetensors").items():
        if flooded and name == "lm_head.weight":
            values[[1, tokens.index("Well")]] = values[[tokens.index("Well"), 1]]
        for part, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if part in name:  # llama.cpp turns pairs of neighbours, transformers halves
                rows, columns = values.shape
                paired = values.reshape(config[heads], 2, rows // config[heads] // 2, columns)
                values = paired.swapaxes(1, 2).reshape(rows, columns)
        writer.add_tensor(_rename(name), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _rename(name: str) -> str:
    whole = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in whole:
        return whole[name]
    _, _, layer, part = name.split(".", 3)
    return f"blk.{layer}.{NAMES[part.removesuffix('.weight')]}.weight"


@contextmanager
def serving(path: Path) -> Iterator[str]:
    command = [sys.executable, "-c", SERVER, str(path)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            line = next((text for text in process.stdout if text.startswith("at ")), "")
            assert line, "the server did not start"
            yield line.split()[1]
        finally:
            process.kill()


def test_a_real_server_with_a_real_model_is_healthy(tmp_path):
    write_gguf(tmp_path / "tiny.gguf")
    with serving(tmp_path / "tiny.gguf") as url:
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
    with serving(tmp_path / "tiny.gguf") as url:
        found = diagnose_served(url)
    assert [result.name for result in found.findings] == ["eos-flood"], found.why
