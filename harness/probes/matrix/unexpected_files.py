"""The folder of the run holds a file too many, or one too few.

What it does: lists every file below the output folder once the run had ended, hidden ones too, and
compares with what the artefacts that were promised consist of.

Why it is bad: a checkpoint, a staging folder or a lock that stays behind is taken for a result, or
keeps the next run out (FM43, FM45); a pickle such as training_args.bin runs code when it is opened;
a weight file or a tokenizer too few is a model that others cannot open.

Example: checkpoint-2/ is still there after the run, and is uploaded with the adapter.

What to do: remove what is too much; save again what is missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from harness.findings import Evidence, Finding, Severity
from harness.observations import Observations
from harness.registry import Missing, probe

TEXT = r"(tokenizer.*\.json|tokenizer\.model|vocab\.json|merges\.txt|special_tokens_map\.json)"
OPTIONAL = rf"({TEXT}|added_tokens\.json|chat_template\.(jinja|json)|.*processor_config\.json)"
"""Files of tokenizers and processors, as transformers writes them."""
WEIGHTS = r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
MODEL = rf"(config\.json|generation_config\.json|{WEIGHTS}|{OPTIONAL}|mudpuppy\.json)"
ADAPTER = rf"(adapter_config\.json|adapter_model\.safetensors|README\.md|{OPTIONAL}|mudpuppy\.json)"
EVENTS = r"(runs/.*events\.out\.tfevents\..*|wandb/.*)"
FORMS = {"adapter": ("", ADAPTER), "model": ("", MODEL)}
NEEDED = {
    "adapter": ("adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json"),
    "gptq": ("config.json", "tokenizer_config.json", "mudpuppy.json"),
}
"""Files without which an artefact is none; those of a model are the same as GPTQ's."""
PACKED = {"gptq": r"(quantize_config\.json)", "int8": r"(quantize_config\.json)"}
"""What formats of quantised weights add."""


@probe("MPD714", modes=("FM18", "FM43", "FM45", "FM59"), severity=Severity.CRITICAL)
def check(observations: Observations) -> Finding | str:
    """Fail when a file is there that belongs to no artefact, or one is not there."""
    files = observations.files
    if observations.ending != "trained" or files is None:
        raise Missing("the run did not end by saving")
    promised = observations.expected_artefacts
    allowed = [re.compile(pattern) for pattern in _patterns(observations)]
    strange = [name for name in files if not any(one.fullmatch(name) for one in allowed)]
    absent = [name for one in promised for name in _needed(one) if name not in files]
    absent += [f"{_folder(one)}weights" for one in promised if not _has_weights(one, files)]
    if not strange and not absent:
        return f"{len(files)} files, each of them part of {', '.join(promised)}"
    first = f"{strange[0]} belongs to no artefact" if strange else f"{absent[0]} is not there"
    more = len(strange) + len(absent) - 1
    return Finding(
        message=first + (f" (and {more} more)" if more else ""),
        evidence=(
            *(Evidence(what="file too many", file=name) for name in strange[:5]),
            *(Evidence(what="file too few", file=name) for name in absent[:5]),
        ),
        cause="something was not removed when the run ended, or was never saved",
        remedy="remove what is too much, or save again what is missing",
    )


def _folder(artefact: str) -> str:
    return "" if artefact in ("adapter", "model") else f"{artefact}/"


def _patterns(observations: Observations) -> Iterator[str]:
    for one in observations.expected_artefacts:
        _, form = FORMS.get(one, ("", MODEL))
        yield rf"{_folder(one)}({form}|{PACKED[one]})" if one in PACKED else _folder(one) + form
    if set(observations.expected_artefacts) == {"gptq"}:
        yield r"mudpuppy\.json"
    if (
        observations.run.get("config", {}).get("report_to")
        or observations.logged_losses is not None
    ):
        yield EVENTS


def _needed(artefact: str) -> list[str]:
    names = NEEDED.get(artefact, NEEDED["gptq"])
    return [_folder(artefact) + name for name in names] + ["mudpuppy.json"]


def _has_weights(artefact: str, files: tuple[str, ...]) -> bool:
    """Return whether a file of weights lies directly in the artefact's folder."""
    folder = _folder(artefact)
    inside = [name[len(folder) :] for name in files if name.startswith(folder)]
    return any(name.endswith(".safetensors") and "/" not in name for name in inside)
