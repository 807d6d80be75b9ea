"""Load models, adapters and tokenizers for asking them; torch is imported when one is loaded.

A loader sees a folder of links to configuration and safetensors files: whatever else a checkpoint
holds, a pickle, a program, an adapter beside whole weights, is not there for it.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.evidence.behaviour.quantised import choose_reader
from harness.evidence.files.inventory import INDEX_NAME, list_files, read_index
from harness.evidence.files.jsonfile import UnreadableJson, read_object
from harness.registry import Missing
from mudpuppy.errors import MudpuppyError

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""What PEFT may see of an adapter."""
MODEL_SETTINGS = ("config.json", "generation_config.json", INDEX_NAME)
"""What transformers may see of a model beside its safetensors files."""
TOKENIZER_SUFFIXES = (".json", ".txt", ".jinja", ".model", ".tiktoken")
"""Endings of files that tokenizers are made from."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""Files without one of which there is no tokenizer."""
SILENT = ("Model", "ForMaskedLM", "ForTokenClassification", "ForQuestionAnswering")
"""Endings of the classes that are no language models."""
LOADING_PROBLEMS = (
    OSError,
    ValueError,
    LookupError,
    RuntimeError,
    ImportError,
    TypeError,
    AttributeError,
    Missing,
    MudpuppyError,
)
"""What loaders raise for checkpoints that they cannot use."""


@dataclass(kw_only=True)
class Loaded:
    """A model that was loaded; `model` is taken out to let it go."""

    model: Any
    """The transformers model, on its device, ready to be asked."""
    new_weights: tuple[str, ...]
    """Parameters that the files do not hold in the model's shape; they are random numbers."""
    scores: bool
    """Whether it gives scores and says nothing."""


def find_tokenizer(path: Path, base: Path | None) -> Path | None:
    """Return the folder that a checkpoint's tokenizer is read from; None where there is none."""
    places = [path, *([path.parent] if path.name == "merged" else []), *([base] if base else [])]
    return next((place for place in places if _has_tokenizer(place)), None)


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def load_tokenizer(folder: Path) -> Any:
    """Load a tokenizer without any code of its folder."""
    from transformers import AutoTokenizer

    with _view(folder, lambda name: name.endswith(TOKENIZER_SUFFIXES)) as view:
        return AutoTokenizer.from_pretrained(view, trust_remote_code=False)


def is_adapter(path: Path) -> bool:
    """Whether a folder is asked as an adapter on its base.

    Whole weights count before an adapter that lies beside them: it is not known to belong to them.
    """
    names = list_files(path)
    has_adapter = any(name.startswith("adapter_") for name in names)
    return has_adapter and not any(_is_weights(name) for name in names)


def load_model(path: Path) -> Loaded:
    """Load a whole model in the type it is stored in.

    Raises:
        ModelError: it is in few bits, and damaged.
        ValueError: its files lead elsewhere, or it is of a kind that neither speaks nor scores.
    """
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    _require_plain_index(path)
    auto_class, scores = _choose_class(path)
    reader = choose_reader(path)
    with _view(path, lambda name: name in MODEL_SETTINGS or _is_weights(name)) as view:
        if reader is not None:  # it opens the declared class itself, and nothing with gaps
            _require_known_class(path)
            return Loaded(model=_place(reader(Path(view))), new_weights=(), scores=scores)
        model, told = auto_class.from_pretrained(
            view,
            dtype="auto",
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    new = {*told.get("missing_keys", ()), *(one[0] for one in told.get("mismatched_keys", ()))}
    if getattr(model, "quantization_method", None) is None:  # those are placed already
        model = _place(model)
    return Loaded(model=model.eval(), new_weights=tuple(sorted(map(str, new))), scores=scores)


def _place(model: Any) -> Any:
    """Return the model on the device that it is asked on."""
    import torch

    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def _require_known_class(path: Path) -> None:
    """Refuse to look up a name of a checkpoint that is no class of a model.

    Raises:
        ValueError: transformers has no model of that name that speaks or scores.
    """
    from transformers.models.auto import modeling_auto as known

    tables: tuple[Any, ...] = (
        known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        known.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        known.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    )
    declared = _declared_class(path)
    if not any(declared in table.values() for table in tables):
        raise ValueError(f"config.json names no class of transformers: {declared[:80]!r}")


def _choose_class(path: Path) -> tuple[Any, bool]:
    """Return transformers' class for what a configuration declares, and whether it is a scorer.

    Raises:
        ValueError: what it declares neither speaks nor scores.
    """
    from transformers import AutoModelForCausalLM as Causal
    from transformers import AutoModelForImageTextToText as Seeing
    from transformers import AutoModelForSequenceClassification as Scoring
    from transformers.models.auto import modeling_auto as known

    declared = _declared_class(path)
    if declared in known.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values():
        return Scoring, True
    if declared in known.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values():
        return Seeing, False
    speaks = declared in known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    answers = (
        *known.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values(),
        *known.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES.values(),
    )
    # Of a model with an encoder, AutoModelForCausalLM would load the other half alone.
    if not speaks and (declared.endswith(SILENT) or declared in answers):
        raise ValueError(f"a {declared[:80]} neither speaks nor scores texts")
    return Causal, False


def _declared_class(path: Path) -> str:
    try:
        named = read_object(path / "config.json").get("architectures")
    except UnreadableJson as problem:
        raise ValueError(f"config.json cannot be read: {problem}") from problem
    return str(named[0]) if isinstance(named, list) and named else ""


def attach(model: Any, path: Path) -> Any:
    """Put an adapter on a model.

    Raises:
        ValueError: its weights are no safetensors file.
    """
    from peft import PeftModel

    with _adapter_view(path) as view:
        return PeftModel.from_pretrained(model, view).eval()


def attach_again(model: Any, path: Path, name: str) -> None:
    """Load the same adapter under another name and make it the active one."""
    with _adapter_view(path) as view:
        model.load_adapter(view, name)
    model.set_adapter(name)
    model.eval()


@contextmanager
def _adapter_view(path: Path) -> Iterator[str]:
    if not (path / ADAPTER_FILES[1]).is_file():
        raise ValueError(f"there is no {ADAPTER_FILES[1]}, and a pickle is never loaded")
    with _view(path, lambda name: name in ADAPTER_FILES) as view, warnings.catch_warnings():
        # PEFT still asks by the name that transformers has given up
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        yield view


@contextmanager
def _view(folder: Path, is_wanted: Callable[[str], bool]) -> Iterator[str]:
    """Give a folder of links to the wanted files of another."""
    with tempfile.TemporaryDirectory(prefix="mudpuppy-view-") as name:
        for file in list_files(folder):
            if is_wanted(file):
                (Path(name) / file).symlink_to((folder / file).resolve())
        yield name


def _is_weights(name: str) -> bool:
    return name.endswith(".safetensors") and not name.startswith("adapter_")


def _require_plain_index(folder: Path) -> None:
    """Refuse an index whose shards are not safetensors files of the folder.

    Raises:
        ValueError: it names something else, which a loader would follow.
    """
    if INDEX_NAME not in list_files(folder) or (folder / "model.safetensors").is_file():
        return
    index = read_index(folder)
    strange = [one for one in index.weight_map.values() if not one.endswith(".safetensors")]
    strange += index.escaping
    if strange or index.problem:
        raise ValueError(f"{INDEX_NAME}: {index.problem or 'it names ' + strange[0][:100]}")
