"""Load models and ask them, greedily; the only evidence that needs torch, imported when asked.

A loader sees a folder of links to configuration and safetensors files: whatever else a checkpoint
holds, a pickle, a program, an adapter beside whole weights, is not there for it.

    python -P -m harness.evidence.behaviour_models FOLDER

does the job of FOLDER/job.json and writes FOLDER/answers.json.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from harness.evidence.behaviour_child import ANSWERS, JOB, Job
from harness.evidence.files import INDEX_NAME, list_files, read_index
from harness.facts.behaviour import Answers
from harness.registry import ControlFailed, Missing

BATCH = 16
"""Prompts of equal length that are asked at once."""
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""What PEFT may see of an adapter."""
MODEL_SETTINGS = ("config.json", "generation_config.json", INDEX_NAME)
"""What transformers may see of a model beside its safetensors files."""
TOKENIZER_SUFFIXES = (".json", ".txt", ".jinja", ".model", ".tiktoken")
"""Endings of files that tokenizers are made from."""
LOADING_PROBLEMS = (OSError, ValueError, KeyError, RuntimeError, ImportError, TypeError, Missing)
"""What loaders raise for checkpoints that they cannot use."""


def ask_folder(job: Job) -> Answers:
    """Load a checkpoint and ask it.

    Raises:
        ControlFailed: it could not be loaded and asked.
    """
    try:
        tokenizer = _load_tokenizer(job.path, job.base)
        return _ask(_load_model(job.path, job.base), tokenizer, job)
    except LOADING_PROBLEMS as problem:
        text = f"{job.path.name} could not be loaded and asked: {problem}"
        raise ControlFailed(text) from problem


def ask_control(job: Job) -> Answers | None:
    """Load the base of a checkpoint and ask it the same; None when there is no base.

    Raises:
        ControlFailed: it could not be loaded and asked.
    """
    return None if job.base is None else ask_folder(replace(job, path=job.base, base=None))


def ask_here(job: Job, model: Any, tokenizer: Any) -> tuple[Answers, Answers | None]:
    """Ask a model that is loaded already, then its base, in this process.

    Raises:
        ControlFailed: one of the two could not be asked.
    """
    try:
        answers = _ask(model, tokenizer or _load_tokenizer(job.path, job.base), job)
    except LOADING_PROBLEMS as problem:
        raise ControlFailed(f"{job.path.name} could not be asked: {problem}") from problem
    return answers, ask_control(job)


@contextmanager
def _view(folder: Path, is_wanted: Callable[[str], bool]) -> Iterator[str]:
    """Give a folder of links to the wanted files of another."""
    with tempfile.TemporaryDirectory(prefix="mudpuppy-view-") as name:
        for file in list_files(folder):
            if is_wanted(file):
                (Path(name) / file).symlink_to((folder / file).resolve())
        yield name


def _load_tokenizer(path: Path, base: Path | None) -> Any:
    from transformers import AutoTokenizer

    own = any((path / n).is_file() for n in ("tokenizer.json", "tokenizer.model", "vocab.json"))
    above = path.name == "merged" and (path.parent / "tokenizer.json").is_file()
    folder = path if own or base is None else base
    if above and not own:
        folder = path.parent
    with _view(folder, lambda name: name.endswith(TOKENIZER_SUFFIXES)) as view:
        return AutoTokenizer.from_pretrained(view, trust_remote_code=False)


def _load_model(path: Path, base: Path | None) -> Any:
    """Load a model, or a base with its adapter, in the type it is stored in.

    Whole weights count before an adapter that lies beside them: it is not known to belong to them.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    is_adapter = base is not None and not any(_is_weights(name) for name in list_files(path))
    source = base if base is not None and is_adapter else path
    _require_plain_index(source)
    with _view(source, lambda name: name in MODEL_SETTINGS or _is_weights(name)) as view:
        model = AutoModelForCausalLM.from_pretrained(
            view, dtype="auto", trust_remote_code=False, use_safetensors=True
        )
    if is_adapter:
        model = _attach(model, path)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval()


def _attach(model: Any, path: Path) -> Any:
    """Put an adapter on a model.

    Raises:
        ValueError: its weights are no safetensors file.
    """
    from peft import PeftModel

    if not (path / ADAPTER_FILES[1]).is_file():
        raise ValueError(f"there is no {ADAPTER_FILES[1]}, and a pickle is never loaded")
    with _view(path, lambda name: name in ADAPTER_FILES) as view, warnings.catch_warnings():
        # PEFT still asks by the name that transformers has given up
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        return PeftModel.from_pretrained(model, view)


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


def _ask(model: Any, tokenizer: Any, job: Job) -> Answers:
    """Ask a model; prompts of one length share a batch, unpadded."""
    encoded = [_encode(tokenizer, prompt) for prompt in job.prompts]
    groups: dict[int, list[int]] = {}
    for place, ids in enumerate(encoded):
        groups.setdefault(len(ids), []).append(place)
    replies: dict[int, tuple[list[int], bool]] = {}
    ends = _end_ids(model, tokenizer)
    for places in groups.values():
        for first in range(0, len(places), BATCH):
            batch = places[first : first + BATCH]
            rows = [encoded[place] for place in batch]
            replies |= zip(batch, _generate(model, rows, ends, job.max_new_tokens), strict=True)
    ordered = [replies[place] for place in range(len(job.prompts))]
    cut = [_cut(row, ends) for row, _ in ordered]
    return Answers(
        texts=tuple(tokenizer.decode(ids, skip_special_tokens=True) for ids in cut),
        new_tokens=tuple(len(ids) for ids in cut),
        ended=tuple(any(i in ends for i in row) for row, _ in ordered),
        nonfinite_logits=sum(bad for _, bad in ordered),
    )


def _encode(tokenizer: Any, prompt: str) -> list[int]:
    if not tokenizer.chat_template:
        return list(tokenizer(prompt)["input_ids"])
    messages = [{"role": "user", "content": prompt}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return list(ids)


def _end_ids(model: Any, tokenizer: Any) -> list[int]:
    found = [tokenizer.eos_token_id, model.config.eos_token_id]
    found.append(model.generation_config.eos_token_id)
    flat = [i for one in found for i in (one if isinstance(one, (list, tuple)) else [one])]
    return sorted({i for i in flat if type(i) is int})


def _cut(row: list[int], ends: Sequence[int]) -> list[int]:
    stop = next((place for place, number in enumerate(row) if number in ends), len(row))
    return row[:stop]


def _generate(
    model: Any, rows: list[list[int]], ends: list[int], max_new_tokens: int
) -> list[tuple[list[int], bool]]:
    """Return the new tokens of each row, and whether its first logits are not all finite."""
    import torch

    ids = torch.tensor(rows, device=model.device)
    mask = torch.ones_like(ids)
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=mask).logits[:, -1]
        bad = (~torch.isfinite(logits)).any(dim=-1).tolist()
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=ends or None,
            pad_token_id=ends[0] if ends else 0,
        )
    return list(zip(output[:, ids.shape[1] :].tolist(), bad, strict=True))


def main(argv: list[str] | None = None) -> int:
    """Do the job of a folder and write the answers, or the problem, beside it."""
    (name,) = sys.argv[1:] if argv is None else argv
    job = json.loads((Path(name) / JOB).read_text(encoding="utf-8"))
    ask_base = job.pop("ask_base")
    base = None if job["base"] is None else Path(job["base"])
    work = Job(**job | {"path": Path(job["path"]), "base": base, "prompts": tuple(job["prompts"])})
    try:
        control = ask_control(work) if ask_base else None
        found: dict[str, Any] = {
            "answers": asdict(ask_folder(work)),
            "control": None if control is None else asdict(control),
        }
    except ControlFailed as failure:
        found = {"problem": str(failure)}
    (Path(name) / ANSWERS).write_text(json.dumps(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
