"""Whether a folder holds a checkpoint: weights, or the traces of a run that did not finish."""

from __future__ import annotations

import re
from pathlib import Path

from harness.evidence.files.inventory import list_files
from harness.evidence.files.manifest import read_traces
from harness.registry import Missing

WEIGHT_NAMES = re.compile(
    r"^(adapter_config\.json|adapter_model\.(safetensors|bin)|.*\.safetensors(\.index\.json)?|"
    r"pytorch_model.*\.bin(\.index\.json)?)$"
)
"""Files that make a folder a checkpoint."""


def is_subject(folder: Path) -> bool:
    """Whether there is something to examine in a folder itself."""
    return holds_weights(folder) or _was_run(folder)


def holds_weights(folder: Path) -> bool:
    """Whether a folder has files that belong to weights, readable or not."""
    try:
        return any(WEIGHT_NAMES.match(name) for name in list_files(folder))
    except Missing:
        return False


def _was_run(folder: Path) -> bool:
    """Whether a run of this project wrote into the folder and did not finish."""
    try:
        traces = read_traces(folder, list_files(folder), holds_weights=False)
    except Missing:
        return False
    return traces.is_ours and not traces.finished
