"""The embedded model as a GGUF file, and damaged copies, written by the gguf package alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from mudpuppy.tiny import resolve_model

gguf = pytest.importorskip("gguf", reason="pip install gguf writes the model for llama.cpp")

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


def write_gguf(
    path: Path,
    *,
    flooded: bool = False,
    architecture: str = "llama",
    pre: str = "gpt-2",
    without: str = "",
) -> None:
    """Write the embedded model.

    Args:
        path: the file.
        flooded: whether the end stands in the place of the first word.
        architecture: what it says it is.
        pre: how it says that texts are cut.
        without: a tensor that is left out.
    """
    source = Path(resolve_model("tiny"))
    config = json.loads((source / "config.json").read_text())
    words = json.loads((source / "tokenizer.json").read_text())
    writer = gguf.GGUFWriter(path, architecture)
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
    writer.add_tokenizer_pre(pre)
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
        if _rename(name) != without:
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
