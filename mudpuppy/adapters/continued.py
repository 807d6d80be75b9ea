"""Load a saved adapter onto a clean model, to go on training it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn

from mudpuppy.adapters.adapter_files import WEIGHTS_FILE
from mudpuppy.adapters.attach import hold_in_full_precision, require_mergeable, verify_adapter
from mudpuppy.adapters.clean import require_clean
from mudpuppy.adapters.codes import DOES_NOT_FIT
from mudpuppy.adapters.continued_check import require_continuable
from mudpuppy.base_path import local_folder
from mudpuppy.config import TrainingConfig
from mudpuppy.errors import ModelError
from mudpuppy.provenance import fingerprint_model, read_provenance
from mudpuppy.safefile import read_header

_DAMAGE = (
    *(UserWarning, RuntimeError, ValueError, LookupError),
    *(TypeError, AttributeError, ImportError),
)
"""What PEFT raises over settings that are wrong in a way that nobody has checked before."""


def continue_adapter(model: nn.Module, folder: Path, config: TrainingConfig) -> PeftModel:
    """Load the adapter in `folder` onto a clean `model`, trainable and in fp32.

    Rank, targets and kind are the adapter's own. A setting of the run that says otherwise is
    refused, and one that was not typed says nothing.

    Args:
        model: the base the adapter was trained on.
        folder: as PEFT saves it; never unpickled.
        config: the run's settings.

    Raises:
        ModelError: the folder holds no LoRA adapter that can be read.
        ConfigError: the run asks for another rank, scale, kind or other targets.
        ModelError: MP-E01 or MP-E02, the model is not clean. MP-E06, base and adapter do not
            belong together. MP-E03 to MP-E05, the adapter would not be what trains.
    """
    require_clean(model)
    require_continuable(folder, config)
    _require_same_base(model, folder)
    names = _tensor_names(folder)
    with warnings.catch_warnings():
        # PEFT only warns where keys are missing or do not match: a dead adapter (FM06).
        warnings.simplefilter("error", UserWarning)
        # PEFT asks transformers by the old name; it is not our call.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        try:
            adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=True)
        except (
            UserWarning,
            RuntimeError,
            ValueError,
            LookupError,
            TypeError,
            ImportError,
        ) as error:
            raise ModelError(
                f"{DOES_NOT_FIT}: the adapter {folder} does not fit the model: "
                f"{_first_lines(error)}",
                hint="continue it on the base model that its adapter_config.json names",
            ) from error
    _require_all_used(adapted, folder, names)
    hold_in_full_precision(adapted)
    _take_unrounded(adapted, folder)
    require_mergeable(adapted, config)
    verify_adapter(adapted)
    return adapted


def _take_unrounded(adapted: PeftModel, folder: Path) -> None:
    """Take the adapter's tensors once more, now that they are held in fp32.

    PEFT copies a head (`modules_to_save`) from the base, in the base's type, and loads the saved
    one into that: in half precision it would be rounded with every stage.
    """
    set_peft_model_state_dict(adapted, load_file(str(folder / WEIGHTS_FILE)))


def _require_same_base(model: Any, folder: Path) -> None:
    """Refuse a base whose fingerprint is not the one that the adapter was trained on (FM35)."""
    try:
        provenance = read_provenance(folder) or {}
        expected = (provenance.get("base") or {}).get("fingerprint")
        base = local_folder(str(model.config._name_or_path))
        found = fingerprint_model(base) if expected and base is not None else None
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"the base of {folder} cannot be compared: {error}") from error
    if expected and found and expected != found:
        raise ModelError(
            f"{DOES_NOT_FIT}: the adapter {folder} was trained on another base: its fingerprint "
            f"is {str(expected)[:12]}, and that of {base} is {found[:12]}",
            hint="continue it on the base and revision that it was trained on",
        )


def _tensor_names(folder: Path) -> set[str]:
    """Return the names in the adapter's file, which is read and never unpickled.

    Raises:
        ModelError: there is none, or it is damaged.
    """
    try:
        return set(read_header(folder / WEIGHTS_FILE))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{folder}: the adapter's weights cannot be read: {error}",
            hint="pickled weights (adapter_model.bin) are never loaded: save it with safetensors",
        ) from error


def _require_all_used(adapted: PeftModel, folder: Path, names: set[str]) -> None:
    """Refuse an adapter of which a tensor found no place, or of which one is missing."""
    held = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    # PEFT saves the embedding under an adapter too; it is the base's, and loaded over it
    held |= {name for name in names if ".base_layer." in name and name in adapted.state_dict()}
    wrong = sorted(names ^ held)
    if wrong:
        where = "in the file and not in the model" if wrong[0] in names else "not in the file"
        raise ModelError(
            f"{DOES_NOT_FIT}: the adapter {folder} does not fit the model: {len(wrong)} tensors "
            f"have no counterpart, such as {wrong[0]} ({where})",
            hint="continue it on the base model that its adapter_config.json names",
        )


def _first_lines(error: BaseException) -> str:
    """Return the start of a library's message, which may list a thousand names."""
    return " ".join(str(error).split())[:300] or type(error).__name__
