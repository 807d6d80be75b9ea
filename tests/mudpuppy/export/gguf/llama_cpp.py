"""llama.cpp itself, reading the vocabularies of tests: a process with a server a file."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from mudpuppy.export.gguf.vocabulary import Vocabulary

SERVERS = """
import sys, xllamacpp
kept = []
for line in sys.stdin:
    given = xllamacpp.CommonParams()
    given.model.path = line.strip()
    given.n_parallel, given.n_ctx, given.warmup, given.port = 1, 64, False, 0
    given.cpuparams.n_threads = 1
    try:
        kept.append(xllamacpp.Server(given))
        print("at", kept[-1].listening_address, flush=True)
    except Exception as error:
        print("no", str(error).replace(chr(10), " "), flush=True)
"""
WIDTH = 32


class Refused(Exception):
    """llama.cpp did not take a file; its process may have ended over it."""


class LlamaCpp:
    """A process that serves any number of files."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVERS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def serve(self, path: Path) -> Served:
        """Load a file.

        Raises:
            Refused: with what llama.cpp said.
        """
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            word, _, rest = line.strip().partition(" ")
            if word == "at":
                return Served(rest)
            if word == "no":
                raise Refused(rest)
        raise Refused("the process ended")

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


class Served:
    """One file, served."""

    def __init__(self, url: str) -> None:
        self.url = url

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        asked = {"content": text, "add_special": add_special, "parse_special": True}
        return self.post("/tokenize", asked)["tokens"]

    def detokenize(self, ids: Sequence[int]) -> str:
        return self.post("/detokenize", {"tokens": list(ids)})["content"]

    def apply_template(self, messages: list[dict[str, str]], **more: Any) -> str:
        return self.post("/apply-template", {"messages": messages, **more})["prompt"]

    def stops_at(self, number: int) -> bool:
        """Return whether an answer that begins with a token is over."""
        asked = {"prompt": [5], "n_predict": 2, "logit_bias": [[number, 1000]], "temperature": 0}
        return self.post("/completion", asked)["stop_type"] == "eos"

    def post(self, path: str, value: Any) -> Any:
        request = urllib.request.Request(
            self.url + path, json.dumps(value).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)


def write_model(path: Path, vocabulary: Vocabulary, name: str = "test") -> Path:
    """Write a Llama of one layer with random weights around a vocabulary."""
    rows, draw = len(vocabulary.tokens), np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH)
    vocabulary.write(writer)
    square, vector = (WIDTH, WIDTH), (WIDTH,)
    shapes = {"token_embd": (rows, WIDTH), "output": (rows, WIDTH), "output_norm": vector}
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes.update({f"blk.0.{part}": square for part in parts})
    shapes.update({"blk.0.attn_norm": vector, "blk.0.ffn_norm": vector})
    for tensor, shape in shapes.items():
        writer.add_tensor(f"{tensor}.weight", draw.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
