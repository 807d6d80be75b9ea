"""Ask a model that lies on this machine, with transformers: whole weights, or an adapter on a base.

Nothing is sampled and nothing is penalised: an answer is the most likely token at every step, as
servers give it at temperature 0. Prompts of equal length share a batch; none is padded.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from jinja2.exceptions import TemplateError
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging

from mudpuppy.adapters.adapter_files import SETTINGS_FILE, WEIGHTS_FILE, read_adapter_settings
from mudpuppy.asking.answers import Answer, OnAnswer
from mudpuppy.asking.generate import cut_at_end, encode, end_ids, generate_all
from mudpuppy.base_path import ask_the_doctor, find_folder
from mudpuppy.errors import ModelError, MudpuppyError, UsageError
from mudpuppy.provenance import fingerprint_model
from mudpuppy.quant import gptq_read, int8
from mudpuppy.quant.opening import Base, open_base, read_base
from mudpuppy.safefile import read_header, weight_files

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""Files without one of which there is no tokenizer."""
MAX_REASON = 300
"""Characters of a library's message that are repeated."""


class LocalAnswerer:
    """A model in memory.

    Args:
        model: of transformers, or of PEFT; on its device, in evaluation mode.
        tokenizer: its tokenizer.
        name: how headings call it.
        identity: what tells it from other models; without one no kept answer is taken for its own.
        system: what the system says before every prompt.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        identity: Mapping[str, str] | None = None,
        system: str | None = None,
    ) -> None:
        self.name = name
        self.model, self.tokenizer = model, tokenizer
        self._system = system
        self.identity: Mapping[str, str] = {
            **(identity or {"object": uuid4().hex}),
            "system": system or "",
        }

    def answer(
        self, prompts: Sequence[str], *, max_tokens: int, on_answer: OnAnswer | None = None
    ) -> list[Answer]:
        """Answer batches of prompts of equal length, in the order of their first prompts.

        Raises:
            UsageError: the chat template takes no such conversation, or a prompt is too long.
        """
        encoded = {place: self._encode(prompt) for place, prompt in enumerate(prompts)}
        self._require_room(encoded)
        ends = end_ids(self.model, self.tokenizer)
        answers: dict[int, Answer] = {}

        def take(rows: dict[int, list[int]], seconds: float) -> None:
            for place, row in rows.items():
                new = cut_at_end(row, ends)
                answers[place] = Answer(
                    text=self.tokenizer.decode(new, skip_special_tokens=True).strip(),
                    ended=len(new) < len(row),
                    tokens=len(new),
                    seconds=seconds / len(rows),
                )
                if on_answer is not None:
                    on_answer(place, answers[place])

        generate_all(self.model, encoded, ends, max_tokens, on_batch=take, repetition_penalty=1.0)
        return [answers[place] for place in range(len(prompts))]

    def _encode(self, prompt: str) -> list[int]:
        try:
            return encode(self.tokenizer, prompt, self._system)
        except TemplateError as error:
            said = " with a system prompt" if self._system is not None else ""
            raise UsageError(
                f"{self.name}: its chat template takes no conversation{said}: {error}",
                hint="ask without a system prompt" if self._system is not None else "",
            ) from error

    def _require_room(self, encoded: Mapping[int, list[int]]) -> None:
        """Refuse prompts that fill the positions the model can tell apart."""
        room = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        longest = max(encoded, key=lambda place: len(encoded[place]), default=None)
        if room is not None and longest is not None and len(encoded[longest]) >= room:
            raise UsageError(
                f"{self.name}: question {longest + 1} has {len(encoded[longest])} tokens, and the "
                f"model has {room} positions",
                hint="shorten the question",
            )


def open_folder(
    model: str | Path,
    *,
    base: str | Path | None = None,
    system: str | None = None,
    precision: str | None = None,
) -> LocalAnswerer:
    """Open a model of this machine; arguments and errors are those of `open_local`."""
    if precision is not None and precision not in DTYPES:
        raise UsageError(f"precision {precision!r} is none of {', '.join(DTYPES)}")
    logging.disable_progress_bar()
    folder = find_folder(str(model))
    adapter = folder if _is_adapter(folder) else None
    if adapter is not None:
        folder = _find_base(adapter, base)
    elif base is not None:
        raise UsageError(
            f"{folder} holds whole weights, which need no base", hint="leave out the base"
        )
    tokenizer = _load_tokenizer([*([adapter] if adapter else []), folder])
    opened = _open_whole(folder, precision)
    opened.to("cuda" if torch.cuda.is_available() else "cpu")
    if adapter is not None:
        opened = _attach(opened, adapter, folder)
    return LocalAnswerer(
        opened.eval(),
        tokenizer,
        name=str(model),
        identity=_identify(folder, adapter, precision),
        system=system,
    )


def _is_adapter(folder: Path) -> bool:
    """Whether a folder is asked as an adapter: whole weights that lie beside one come first."""
    try:
        return (folder / SETTINGS_FILE).is_file() and not weight_files(folder)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{folder} cannot be read: {error}", hint=ask_the_doctor(str(folder))
        ) from error


def _find_base(adapter: Path, base: str | Path | None) -> Path:
    """Return the folder of an adapter's base.

    Raises:
        ModelError: the adapter names none that is there.
    """
    named = base or read_adapter_settings(adapter).get("base_model_name_or_path")
    hint = "name the model that the adapter was trained on"
    if not isinstance(named, str | Path) or not str(named):
        raise ModelError(f"{adapter}: the adapter names no base model", hint=hint)
    try:
        return find_folder(str(named))
    except ModelError as error:
        if base is not None:
            raise
        raise ModelError(f"{adapter}: its base is not here: {error.message}", hint=hint) from error


def _load_tokenizer(folders: Sequence[Path]) -> Any:
    """Load the first tokenizer that is there; none of a folder's code is run."""
    for folder in folders:
        if any((folder / name).is_file() for name in TOKENIZER_FILES):
            try:
                return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
                raise _cannot(folder, "the tokenizer", error) from error
    raise ModelError(
        f"{folders[0]}: there is no tokenizer",
        hint=f"one of {', '.join(TOKENIZER_FILES)} is wanted",
    )


def _open_whole(folder: Path, precision: str | None) -> Any:
    """Open whole weights, whatever they are quantised with."""
    found = read_base(folder)
    if not found.tensors:
        raise ModelError(
            f"{folder}: there are no safetensors weights", hint=ask_the_doctor(str(folder))
        )
    try:
        dtype = DTYPES[precision] if precision else _stored_dtype(folder)
        return _open(found, dtype)
    except MudpuppyError:
        raise
    except (OSError, ValueError, LookupError, RuntimeError, ImportError, TypeError) as error:
        raise _cannot(folder, "the model", error) from error


def _open(found: Base, dtype: torch.dtype) -> Any:
    if found.method == gptq_read.METHOD:
        return gptq_read.load_gptq(found.folder, dtype)
    if (found.method, found.declared.get("format")) == (int8.QUANT_METHOD, int8.FORMAT):
        return int8.load_int8(found.folder)
    model, report = open_base(found, "AutoModelForCausalLM", dtype=dtype)
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"{found.folder}: {len(missing)} tensors are missing and would be random, such as "
            f"{missing[0]}",
            hint=ask_the_doctor(str(found.folder)),
        )
    return model


def _stored_dtype(folder: Path) -> torch.dtype:
    """Return the type that a model's settings declare, fp32 where they declare none."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
    found = getattr(config, "dtype", None)
    return found if isinstance(found, torch.dtype) and found.is_floating_point else torch.float32


def _attach(model: Any, adapter: Path, base: Path) -> Any:
    """Put an adapter on its base; a pickle is never loaded.

    Raises:
        ModelError: it does not fit.
    """
    from peft import PeftModel

    try:
        read_header(adapter / WEIGHTS_FILE)
        with warnings.catch_warnings():
            # PEFT only warns where keys are missing: a dead adapter answers as the base does
            warnings.simplefilter("error", UserWarning)
            # PEFT asks transformers by the old name; it is not our call
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
            return PeftModel.from_pretrained(model, str(adapter))
    except (OSError, ValueError, LookupError, RuntimeError, TypeError, UserWarning) as error:
        reason = " ".join(str(error).split())[:MAX_REASON]
        raise ModelError(
            f"{adapter}: the adapter cannot be put on {base}: {reason}",
            hint=f"see what is wrong with it: mudpuppy-doctor {adapter} --base {base}",
        ) from error


def _identify(folder: Path, adapter: Path | None, precision: str | None) -> dict[str, str]:
    """Return what tells a model from every other."""
    try:
        found = {"model": fingerprint_model(folder) or str(folder), "precision": precision or ""}
        if adapter is not None:
            with (adapter / WEIGHTS_FILE).open("rb") as handle:
                found["adapter"] = hashlib.file_digest(handle, "sha256").hexdigest()
            settings = (adapter / SETTINGS_FILE).read_bytes()
            found["adapter_settings"] = hashlib.sha256(settings).hexdigest()
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} cannot be read: {error}") from error
    return found


def _cannot(folder: Path, what: str, error: Exception) -> ModelError:
    reason = str(error).strip().partition("\n")[0][:MAX_REASON]
    kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
    return ModelError(
        f"{folder}: {what} cannot be loaded: {kind}{reason}", hint=ask_the_doctor(str(folder))
    )
