"""What a GGUF file says of itself beside its architecture: name, size, file type, provenance."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mudpuppy.export.gguf.refusals import ExportRefused
from mudpuppy.export.gguf.tensors import Plan
from mudpuppy.provenance import (
    PROVENANCE_SCHEMA_VERSION,
    fingerprint_model,
    read_provenance,
)

PROVENANCE_KEY = "mudpuppy.provenance"
"""Key of a JSON text with what `mudpuppy.json` says beside a folder. It is in the file, since a
GGUF file travels alone; readers skip keys that they do not know."""
FILE_TYPES = {
    "f32": "ALL_F32",
    "f16": "MOSTLY_F16",
    "bf16": "MOSTLY_BF16",
    "q8_0": "MOSTLY_Q8_0",
    "q6_k": "MOSTLY_Q6_K",
    "q5_k_m": "MOSTLY_Q5_K_M",
    "q4_k_m": "MOSTLY_Q4_K_M",
    "q4_k_s": "MOSTLY_Q4_K_S",
    "q3_k_m": "MOSTLY_Q3_K_M",
}
"""Names of `gguf.LlamaFileType`."""
SNAPSHOT = re.compile(r"models--(?:.+--)?(?P<name>.+)/snapshots/[^/]+$")
"""Where a hub's cache keeps a revision of a model."""

PATH = re.compile(r" \([^()]*[/\\][^()]*\)")
"""A path in brackets: whoever gets the file need not know this machine's folders."""


def describe_general(
    writer: Any, folder: Path, plan: Plan, quant: str, *, name: Callable[[str], str] = str
) -> None:
    """Give a writer the metadata of llama.cpp's converter, in its order, without the tokenizer.

    Names, authors and licences come from the model card, the settings and the folder's name, as
    the `gguf` package finds them.

    Args:
        writer: a `gguf.GGUFWriter` that knows the tensors.
        folder: of the model.
        plan: of the file.
        quant: as `--quant` calls it.
        name: makes the name that is stored, since llama.cpp reads more than a name in some.
    """
    import gguf

    logging.getLogger("gguf.gguf_writer").setLevel(logging.ERROR)
    total, shared, each, experts = writer.get_total_parameter_count()
    in_cache = SNAPSHOT.search(folder.as_posix())
    named = gguf.Metadata.id_to_title(in_cache["name"]) if in_cache else None
    try:
        found = gguf.Metadata.load(None, folder, named, total)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ExportRefused(
            "MP-X03",
            f"{folder}: README.md or generation_config.json cannot be read: {reason}",
            hint="mend or remove the lines between --- and --- at the top of README.md",
        ) from error
    _drop_odd_sampling(found)
    found.name = name(found.name or folder.name)
    if found.size_label is None and total > 0:
        found.size_label = gguf.size_label(total, shared, each, experts)
    writer.add_type(gguf.GGUFType.MODEL)
    found.set_gguf_meta_model(writer)
    for method, value in plan.metadata:
        made = gguf.RopeScalingType(value) if method == "rope_scaling_type" else value
        getattr(writer, f"add_{method}")(made)
    writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[quant]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _drop_odd_sampling(found: Any) -> None:
    """Forget advice for sampling that is no number of the kind that the file has for it."""
    for name, value in vars(found).items():
        if not name.startswith("sampling_") or value is None:
            continue
        is_whole = name.removeprefix("sampling_") in ("top_k", "penalty_last_n", "mirostat")
        kinds = int if is_whole else (int, float)
        is_odd = isinstance(value, bool) or not isinstance(value, kinds) or abs(value) >= 2**31
        if name != "sampling_sequence" and is_odd:
            setattr(found, name, None)


def describe_provenance(writer: Any, folder: Path, quant: str, quantiser: str) -> None:
    """Say in the file what it was made from, and by what; no path of this machine."""
    writer.add_string(PROVENANCE_KEY, json.dumps(make_provenance(folder, quant, quantiser)))


def make_provenance(folder: Path, quant: str, quantiser: str) -> Mapping[str, Any]:
    """Return the story of a file: its source, and what that source's own manifest says of it."""
    try:
        own = read_provenance(folder) or {}
    except (OSError, ValueError):
        own = {}  # a damaged manifest is no reason to have no file
    base = own.get("base")
    return {
        "schema_version": PROVENANCE_SCHEMA_VERSION,
        "kind": "gguf",
        "quant": quant,
        "quantiser": PATH.sub("", quantiser),
        "source": {"name": folder.name, "fingerprint": fingerprint_model(folder)},
        "trained": {key: own[key] for key in ("kind", "method", "precision") if own.get(key)},
        "base": {"fingerprint": base.get("fingerprint")} if isinstance(base, dict) else None,
        "versions": {
            name: found for name in ("mudpuppy", "gguf") if (found := _version(name)) is not None
        },
    }


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None
