"""Load tokenizer and base model in the types that the method needs."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoProcessor, AutoTokenizer, GenerationConfig
from transformers.utils import logging
from transformers.utils.logging import disable_progress_bar

from mudpuppy.base_path import ask_the_doctor, local_folder, not_finite
from mudpuppy.config import TrainingConfig
from mudpuppy.errors import ModelError, MudpuppyError, shown
from mudpuppy.memory.placement import bytes_for_each_byte, place
from mudpuppy.memory.streaming import place_for_streaming
from mudpuppy.quant.declared import read_folder, require_readable
from mudpuppy.quant.formats import find_format
from mudpuppy.quant.formats.selftest import check_round_trip
from mudpuppy.quant.gptq_read import refuse_as_base
from mudpuppy.quant.kernels import choose as kernels
from mudpuppy.quant.lazy_base import LazyBlocks, move_what_is_there
from mudpuppy.quant.opening import open_base, read_base, require_use
from mudpuppy.quant.plain import require_plain
from mudpuppy.quant.registered import FourBitConfig, describe_packed
from mudpuppy.runtime import Runtime

MAX_REASON = 300
"""Characters of a library's message that are repeated."""


@dataclass(frozen=True, kw_only=True)
class ModelForm:
    """How a base model is opened."""

    auto_class: str = "AutoModelForCausalLM"
    """transformers' class that opens the base and, later, the artefact."""
    new_parameters: tuple[str, ...] = ()
    """Beginnings of the names of parameters that the base need not have, such as a score head."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of `from_pretrained`, such as `num_labels`."""
    needs_pad: bool = False
    """Whether the model itself must know the pad id, such as to find the last token of a row."""
    has_processor: bool = False
    """Whether a processor, with the tokenizer inside, stands in the tokenizer's place."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A base model, ready for a method."""

    model: Any
    """The transformers model, on its device."""
    tokenizer: Any
    """Its tokenizer, with a pad token."""
    original_tokenizer: Any
    """The same as the base has it, to be saved: a pad token set for training must not spread."""
    processor: Any = None
    """The processor of text and images, for models that have one; to be saved as it is."""
    eos_ids: frozenset[int]
    """Ids that end a turn: the tokenizer's, the config's and the generation config's."""
    quantisation: Mapping[str, Any]
    """How the 4-bit modules are held, and their names (`modules`); nothing without any."""
    lazy: LazyBlocks | None = None
    """Where the decoder blocks are that are not in memory (gptq)."""


def load(
    path: str, config: TrainingConfig, runtime: Runtime, form: ModelForm | None = None
) -> Loaded:
    """Load the base model.

    Full fine-tuning holds fp32 master weights and computes under autocast; an adapter's frozen base
    is held in the precision itself, and for QLoRA in 4 bits.

    Raises:
        ModelError: the model cannot be loaded, is not finite, or its tokenizer has no EOS token.
    """
    # One line a file is noise beside the lines a step.
    disable_progress_bar()
    form = form or ModelForm()
    folder = local_folder(path)
    if folder is not None:
        require_readable(folder)  # transformers' tokenizers stumble over it first
    processor = _load_processor(path, config.trust_remote_code) if form.has_processor else None
    original = load_tokenizer(path, config.trust_remote_code)
    is_frozen = config.trains_adapter or config.method == "gptq"
    lazy = LazyBlocks() if config.method == "gptq" else None
    model = _load_model(path, runtime.dtype if is_frozen else torch.float32, config, form, lazy)
    quantisation = describe_packed(model)
    if quantisation:
        kernels.allow(config.kernels == "auto")
        runtime.choices["kernels"] = kernels.choose(runtime.device).choice
        # Wrong 4-bit kernels raise nothing: some GPUs had them (engines.md, section 4).
        form_4bit = find_format(quantisation["scheme"])
        check_round_trip(form_4bit, runtime.device, quantisation["block_size"])
    if lazy is not None:
        move_what_is_there(model, runtime.device)
    elif config.stream:
        place_for_streaming(model, runtime.device)
    elif config.device_map is not None:
        factor = bytes_for_each_byte(trains_all=not is_frozen)
        choice = place(model, config.device_map, runtime.device, factor=factor)
        runtime.choices["device_map"] = choice
    elif config.fsdp == "none":  # else the whole model would be on every GPU before it is sharded
        model.to(runtime.device)
    if hasattr(model.config, "use_cache"):  # models of images have it in their text part
        model.config.use_cache = False
    tokenizer = with_pad_token(original)
    if form.needs_pad:
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
        original = tokenizer
    return Loaded(
        model=model,
        tokenizer=tokenizer,
        original_tokenizer=original,
        processor=processor,
        eos_ids=collect_eos_ids(model, tokenizer),
        quantisation=quantisation,
        lazy=lazy,
    )


def open_for_text(path: str, config: TrainingConfig, form: ModelForm) -> Loaded:
    """Open what rendering needs: tokenizer, processor and the ids that end a turn; no weights.

    The model in it is empty (its tensors are on the device `meta`) and cannot compute.

    Raises:
        ModelError: tokenizer, processor or settings cannot be loaded.
    """
    trust = config.trust_remote_code
    processor = _load_processor(path, trust) if form.has_processor else None
    original = load_tokenizer(path, trust)
    auto_class: Any = getattr(transformers, form.auto_class)
    with _blaming(path, "the model's settings"):
        model = _without_weights(path, auto_class, trust, form)
    if model.can_generate():
        with suppress(OSError):  # no generation_config.json: the one made from the config stays
            model.generation_config = GenerationConfig.from_pretrained(path)
    tokenizer = with_pad_token(original)
    return Loaded(
        model=model,
        tokenizer=tokenizer,
        original_tokenizer=original,
        processor=processor,
        eos_ids=collect_eos_ids(model, tokenizer),
        quantisation={},
    )


def _without_weights(path: str, auto_class: Any, trust: bool, form: ModelForm) -> Any:
    """Return the model with all tensors on the device `meta`."""
    with torch.device("meta"):
        settings = AutoConfig.from_pretrained(path, trust_remote_code=trust, **form.settings)
        return auto_class.from_config(settings, trust_remote_code=trust)


def load_tokenizer(path: str, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer as it is.

    Raises:
        ModelError: there is no tokenizer, or it has no EOS token.
    """
    with _blaming(path, "the tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{path}: the tokenizer has no EOS token, so no answer could ever end")
    return tokenizer


def _load_processor(path: str, trust_remote_code: bool) -> Any:
    """Load the processor of text and images."""
    with _blaming(path, "the processor"):
        return AutoProcessor.from_pretrained(path, trust_remote_code=trust_remote_code)


def with_pad_token(tokenizer: Any) -> Any:
    """Return the tokenizer, or a copy with a pad token where it has none."""
    if tokenizer.pad_token_id is not None:
        return tokenizer
    padded = copy.deepcopy(tokenizer)
    # Padding is masked by position, never by id, so EOS stays trained even where it pads.
    padded.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return padded


def _load_model(
    path: str,
    dtype: torch.dtype,
    config: TrainingConfig,
    form: ModelForm,
    lazy: LazyBlocks | None = None,
) -> Any:
    """Load the weights and refuse a checkpoint that does not fill the model.

    With `lazy`, the weights of the decoder blocks stay in their files; it knows where.
    """
    _require_images(path, config, form)
    with _blaming(path, "the model"), _quiet_about_heads(form):
        model, report = _open(path, dtype, config, form, lazy)
        if lazy is not None:
            lazy.take_over(model)
    layers = getattr(model.config.get_text_config(), "num_hidden_layers", 1)
    if isinstance(layers, int) and layers < 1:
        raise ModelError(f"{path}: config.json says num_hidden_layers = {layers}: nothing to train")
    missing = sorted(n for n in report["missing_keys"] if not n.startswith(form.new_parameters))
    if missing:
        # transformers fills these at random and only warns (FM34).
        raise ModelError(
            f"{path}: {len(missing)} tensors are not in the checkpoint and would be random, "
            f"such as {missing[0]}",
            hint=ask_the_doctor(path),
        )
    on_disk = () if lazy is None else lazy.tensors()
    _require_finite(path, chain(model.named_parameters(), model.named_buffers(), on_disk))
    if not hasattr(model, "generation_config"):
        # What ends a turn is told there, whether or not this form of the model can generate.
        with suppress(OSError):
            model.generation_config = GenerationConfig.from_pretrained(path)
    return model


def _open(
    path: str,
    dtype: torch.dtype,
    config: TrainingConfig,
    form: ModelForm,
    lazy: LazyBlocks | None,
) -> Any:
    """Return the model and transformers' report; a base for QLoRA becomes 4-bit on the way."""
    fourbit = None
    if config.method == "qlora":
        fourbit = FourBitConfig(
            format=config.resolved_quant,
            block_size=config.resolved_quant_block_size,
            search=config.quant_search,
        )
    words: dict[str, Any] = {"dtype": dtype, "trust_remote_code": config.trust_remote_code}
    folder = local_folder(path)
    if folder is not None:
        refuse_as_base(folder)
    if folder is not None and (fourbit is not None or read_folder(folder)):
        base = read_base(folder)
        require_use(base, method=config.method, quant=config.quant)
        opened = open_base(base, form.auto_class, fourbit=fourbit, settings=form.settings, **words)
        opened[0].name_or_path = opened[0].config._name_or_path = path
        return opened
    auto_class: Any = getattr(transformers, form.auto_class)
    if fourbit is not None:
        words["quantization_config"] = fourbit
    if folder is not None or lazy is not None:
        empty = _without_weights(path, auto_class, config.trust_remote_code, form)
        if folder is not None:
            require_plain(path, empty, read_base(folder).tensors)
        if lazy is not None:
            words |= lazy.settings(empty)
    return auto_class.from_pretrained(path, output_loading_info=True, **words, **form.settings)


def _require_images(path: str, config: TrainingConfig, form: ModelForm) -> None:
    """Refuse a model of text alone where images are to be read.

    Raises:
        ModelError: transformers knows no form of it that sees.
    """
    if not form.has_processor:
        return
    with _blaming(path, "the model's settings"):
        settings = AutoConfig.from_pretrained(path, trust_remote_code=config.trust_remote_code)
    kinds = getattr(transformers, form.auto_class)._model_mapping
    if type(settings) not in kinds and not getattr(settings, "auto_map", None):
        raise ModelError(
            f"{path}: a {settings.model_type} model reads no images",
            hint="use a model of text and images, or tiny:llava to try; for text alone, another "
            "--method",
        )


@contextmanager
def _quiet_about_heads(form: ModelForm) -> Iterator[None]:
    """Keep transformers from reporting a head that is meant to be new; `report` still tells."""
    verbosity = logging.get_verbosity()
    if form.new_parameters:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


@contextmanager
def _blaming(path: str, what: str) -> Iterator[None]:
    """Turn whatever loading a file of others raises into one line about the model.

    Raises:
        ModelError: with the kind of the error and the first line of its message.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, MudpuppyError):
        raise
    except Exception as error:
        reason = f"{what} cannot be loaded: {_first_line(error)}"
        raise ModelError(f"{path}: {reason}", hint=ask_the_doctor(path)) from error


def _require_finite(path: str, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Refuse a base with NaN or infinity in it: the first step would diverge (FM41)."""
    for name, tensor in tensors:
        if tensor.is_meta:
            continue
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.detach()).all()):
            raise not_finite(path, name, tensor.dtype)


def require_known_ids(path: str, model: Any, rows: Iterable[Sequence[int]]) -> None:
    """Refuse samples with ids that the model has no embedding for.

    Raises:
        ModelError: the tokenizer is larger than the model.
    """
    known = int(model.get_input_embeddings().weight.shape[0])
    largest = max((max(row) for row in rows if row), default=0)
    if largest >= known:
        raise ModelError(
            f"{path}: the tokenizer gives the id {largest}, and the model has {known} embeddings",
            hint=ask_the_doctor(path),
        )


def within_positions(config: TrainingConfig, model: Any) -> TrainingConfig:
    """Return the settings with `max_length` no longer than what the model can tell apart."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(positions, int) or not 0 < positions < config.max_length:
        return config
    return config.model_copy(update={"max_length": positions})


def collect_eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return every id that ends a turn for this model.

    Raises:
        ModelError: one of them is no number.
    """
    found = {tokenizer.eos_token_id}
    for source in (model.config.get_text_config(), getattr(model, "generation_config", None)):
        ids = source.eos_token_id if source is not None else None
        found.update(ids if isinstance(ids, list) else [ids])
    wrong = [token for token in found if not isinstance(token, int | None)]
    if wrong:
        raise ModelError(f"the model's eos_token_id is {shown(wrong[0])}, which is no number")
    return frozenset(token for token in found if token is not None)


def _first_line(error: Exception) -> str:
    """Return kind and first line of an error; the line alone, where its kind says nothing more."""
    line = str(error).strip().partition("\n")[0]
    kind = type(error).__name__
    if not line:
        return kind
    return line[:MAX_REASON] if isinstance(error, OSError) else f"{kind}: {line[:MAX_REASON]}"
