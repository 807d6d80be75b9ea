"""Why a folder offers no weights, in words that say what to examine instead."""

from __future__ import annotations

from pathlib import Path

from harness.evidence.files.inventory import list_files, list_folders
from harness.facts.checkpoint import Files
from harness.registry import Missing

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
"""Endings of weights that only their own program, or torch, can read."""
SHOWN = 4
"""Folders that are named."""


def explain_no_weights(files: Files) -> str:
    """Return why a folder offers no model weights, and where to look."""
    if files.adapter:
        return "the folder holds an adapter, not a model"
    if files.index is not None:
        return f"none of the shards that {files.index.name} names is there"
    return (
        _explain_folders(Path(files.root))
        or _explain_formats(files.names)
        or _explain_rest(files.names)
    )


def _explain_folders(root: Path) -> str:
    """Return which folders inside are checkpoints."""
    held = [name for name in list_folders(root) if _looks_like_one(root / name)]
    if (root / "snapshots").is_dir() and not held:
        return "a model hub's cache lies here, and no revision of it is complete"
    if not held:
        return ""
    if len(held) == 1:
        return (
            f"the folder itself holds no weights, but {held[0]} in it does; examine "
            f"{root / held[0]}"
        )
    more = f" and {len(held) - SHOWN} more" if len(held) > SHOWN else ""
    return (
        "the folder itself holds no weights, but these in it do: "
        f"{', '.join(held[:SHOWN])}{more}; examine one of them, such as {root / held[0]}"
    )


def _looks_like_one(folder: Path) -> bool:
    if folder.name.startswith("models--"):
        return (folder / "snapshots").is_dir()
    try:
        names = list_files(folder)
    except Missing:
        return False
    return any(n.endswith(".safetensors") or n.startswith("pytorch_model") for n in names)


def _explain_formats(names: tuple[str, ...]) -> str:
    pickled = [name for name in names if name.endswith(PICKLES)]
    if pickled:
        return (
            f"the weights, if any, are pickles ({pickled[0]}), which this tool never loads; "
            "convert them to safetensors"
        )
    return ""


def _explain_rest(names: tuple[str, ...]) -> str:
    if not names:
        return "the folder is empty"
    held = [name for name in TOKENIZER_FILES if name in names]
    if held:
        return f"the folder holds a tokenizer ({held[0]}) and no weights"
    if "config.json" in names:
        return "the folder holds config.json and no weights: the copy may be incomplete"
    return f"the folder holds no model weights, only {names[0]}" + (
        f" and {len(names) - 1} more files" if len(names) > 1 else ""
    )
