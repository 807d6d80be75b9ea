"""The small checkpoints that are damaged: every kind of file that the doctor reads, by name."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import Any

Files = dict[str, bytes]
"""The files of a folder by their names."""

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "vocab_size": 16,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
    "transformers_version": "5.23.0",
}
SHAPES = {
    "model.embed_tokens.weight": [16, 8],
    "model.layers.0.input_layernorm.weight": [8],
    "model.layers.0.post_attention_layernorm.weight": [8],
    "model.layers.0.self_attn.q_proj.weight": [8, 8],
    "model.layers.0.self_attn.k_proj.weight": [4, 8],
    "model.layers.0.self_attn.v_proj.weight": [4, 8],
    "model.layers.0.self_attn.o_proj.weight": [8, 8],
    "model.layers.0.mlp.gate_proj.weight": [12, 8],
    "model.layers.0.mlp.up_proj.weight": [12, 8],
    "model.layers.0.mlp.down_proj.weight": [8, 12],
    "model.norm.weight": [8],
    "lm_head.weight": [16, 8],
}
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}</s>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ADAPTER_CONFIG = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 2,
    "lora_alpha": 4,
    "lora_dropout": 0.0,
    "target_modules": ["q_proj", "v_proj"],
    "base_model_name_or_path": "org/base",
    "bias": "none",
    "rank_pattern": {},
    "alpha_pattern": {},
    "peft_version": "0.21.2",
}


def pack(shapes: dict[str, list[int]], dtype: str = "BF16") -> bytes:
    """Return a safetensors file whose values are small and all different."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, shape in shapes.items():
        count = 1
        for size in shape:
            count *= size
        raw = b"".join(
            struct.pack("<f", 0.01 + 0.001 * i)[4 - width(dtype) :] for i in range(count)
        )
        entries[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    header = json.dumps(entries).encode()
    return len(header).to_bytes(8, "little") + header + data


def width(dtype: str) -> int:
    """Return the bytes of an element."""
    return {"BF16": 2, "F32": 4}[dtype]


def tokenizer() -> dict[str, Any]:
    """Return a tokenizer of sixteen tokens."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"t{n}": n for n in range(3, 14)}}
    added = [
        {
            "id": n,
            "content": word,
            "special": True,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
        for n, word in ((1, "<s>"), (2, "</s>"), (14, "<|user|>"), (15, "<|assistant|>"))
    ]
    model = {"type": "BPE", "vocab": vocab, "merges": [], "unk_token": "<unk>"}
    return {
        "version": "1.0",
        "model": model,
        "added_tokens": added,
        "pre_tokenizer": {"type": "ByteLevel"},
    }


def state() -> dict[str, Any]:
    """Return the record of a short run."""
    history = [
        {"step": n, "epoch": n / 10, "loss": 3.0 / n, "grad_norm": 1.0, "learning_rate": 1e-4}
        for n in range(1, 13)
    ]
    return {"global_step": 12, "max_steps": 12, "epoch": 1.2, "log_history": history}


def text(value: Any) -> bytes:
    """Return JSON."""
    return json.dumps(value, indent=1).encode()


def model() -> Files:
    """Return a whole model with all that can lie beside it."""
    return {
        "config.json": text(CONFIG),
        "generation_config.json": text(
            {"eos_token_id": [2, 15], "bos_token_id": 1, "do_sample": True, "temperature": 0.7}
        ),
        "tokenizer.json": text(tokenizer()),
        "tokenizer_config.json": text(
            {
                "eos_token": "</s>",
                "bos_token": "<s>",
                "chat_template": TEMPLATE,
                "tokenizer_class": "PreTrainedTokenizerFast",
                "model_max_length": 32,
            }
        ),
        "special_tokens_map.json": text({"eos_token": "</s>"}),
        "chat_template.jinja": TEMPLATE.encode(),
        "model.safetensors": pack(SHAPES),
        "trainer_state.json": text(state()),
        "training_args.bin": pickle.dumps({"learning_rate": 1e-4}),
        "README.md": b"---\nbase_model: org/base\n---\n# Model\n",
    }


def sharded() -> Files:
    """Return a model in two shards."""
    names = list(SHAPES)
    parts = [{n: SHAPES[n] for n in names[:6]}, {n: SHAPES[n] for n in names[6:]}]
    files = {
        f"model-0000{i}-of-00002.safetensors": pack(part, "F32") for i, part in enumerate(parts, 1)
    }
    mapping = {
        n: f"model-0000{i}-of-00002.safetensors" for i, part in enumerate(parts, 1) for n in part
    }
    index = {"metadata": {"total_size": 4000}, "weight_map": mapping}
    return {"config.json": text(CONFIG), "model.safetensors.index.json": text(index), **files}


def adapter() -> Files:
    """Return a LoRA with its provenance."""
    shapes = {}
    for module, rows in (("q_proj", 8), ("v_proj", 4)):
        start = f"base_model.model.model.layers.0.self_attn.{module}"
        shapes |= {f"{start}.lora_A.weight": [2, 8], f"{start}.lora_B.weight": [rows, 2]}
    provenance = {
        "schema_version": 1,
        "kind": "adapter",
        "base": {"path": "org/base"},
        "labels": {"trained_tokens": 3},
    }
    steps = b"".join(
        text({"step": n, "loss": 2.0 / n}).replace(b"\n", b"") + b"\n" for n in range(1, 12)
    )
    return {
        "adapter_config.json": text(ADAPTER_CONFIG),
        "adapter_model.safetensors": pack(shapes, "F32"),
        "mudpuppy.json": text(provenance),
        "steps.jsonl": steps,
        "chat_template.jinja": TEMPLATE.encode(),
    }


def gptq() -> Files:
    """Return a model with one packed layer."""
    shapes: dict[str, list[int]] = dict(SHAPES)
    del shapes["model.layers.0.self_attn.q_proj.weight"]
    start = "model.layers.0.self_attn.q_proj"
    packed = {
        "qweight": ("I32", [1, 8]),
        "qzeros": ("I32", [1, 1]),
        "scales": ("F16", [1, 8]),
        "g_idx": ("I32", [8]),
    }
    raw = pack(shapes)
    length = int.from_bytes(raw[:8], "little")
    entries, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    for key, (dtype, shape) in packed.items():
        size = shape[0] * (shape[1] if len(shape) > 1 else 1) * (2 if dtype == "F16" else 4)
        entries[f"{start}.{key}"] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [len(data), len(data) + size],
        }
        data += (b"\x11\x2c" if dtype == "F16" else b"\x77\0\0\0") * (
            size // (2 if dtype == "F16" else 4)
        )
    header = json.dumps(entries).encode()
    quantisation = {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 8,
        "desc_act": False,
        "sym": True,
        "checkpoint_format": "gptq",
    }
    return {
        "config.json": text({**CONFIG, "quantization_config": quantisation}),
        "model.safetensors": len(header).to_bytes(8, "little") + header + data,
    }


def gguf() -> Files:
    """Return a GGUF file of two tensors."""
    return {"model.gguf": pack_gguf()}


def pack_gguf() -> bytes:
    """Return a small GGUF file, version 3."""

    def string(value: str) -> bytes:
        raw = value.encode()
        return struct.pack("<Q", len(raw)) + raw

    tokens = [*tokenizer()["model"]["vocab"], "<|user|>", "<|assistant|>"]
    keys = [
        string("general.architecture") + struct.pack("<I", 8) + string("llama"),
        string("llama.block_count") + struct.pack("<II", 4, 1),
        string("llama.context_length") + struct.pack("<II", 4, 32),
        string("tokenizer.ggml.model") + struct.pack("<I", 8) + string("gpt2"),
        string("tokenizer.ggml.pre") + struct.pack("<I", 8) + string("llama-bpe"),
        string("tokenizer.ggml.eos_token_id") + struct.pack("<II", 4, 2),
        string("tokenizer.chat_template") + struct.pack("<I", 8) + string(TEMPLATE),
        string("tokenizer.ggml.tokens")
        + struct.pack("<IIQ", 9, 8, len(tokens))
        + b"".join(map(string, tokens)),
    ]
    shapes = {
        "token_embd.weight": [8, 16],
        "output_norm.weight": [8],
        "blk.0.attn_q.weight": [32, 8],
    }
    infos, data = b"", b""
    for name, shape in shapes.items():
        kind = 8 if name.startswith("blk") else 0
        size = 34 * 8 if kind == 8 else 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        infos += (
            string(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        )
        infos += struct.pack("<IQ", kind, len(data))
        data += (b"\x11\x2c\x05\x01" * (size // 4 + 1))[:size]
        data += b"\0" * (-len(data) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(keys)) + b"".join(keys) + infos
    return head + b"\0" * (-len(head) % 32) + data


def pickled() -> Files:
    """Return weights as torch pickles them, in both of its formats."""
    import io

    import torch

    state = {"model.norm.weight": torch.ones(8), "lm_head.weight": torch.randn(16, 8)}
    new, old = io.BytesIO(), io.BytesIO()
    torch.save(state, new)
    torch.save(state, old, _use_new_zipfile_serialization=False)
    return {
        "config.json": text(CONFIG),
        "pytorch_model.bin": new.getvalue(),
        "optimizer.pt": old.getvalue(),
        "rng_state.pth": new.getvalue(),
    }


def make_seeds() -> dict[str, Files]:
    """Return every seed by name."""
    kinds = (model, sharded, adapter, gptq, gguf, pickled)
    return {kind.__name__: kind() for kind in kinds}


def lay_out(files: Files, folder: Path) -> None:
    """Write the files of a seed."""
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
