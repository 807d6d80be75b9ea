"""Open artefacts by other people's code, in an interpreter that never sees this project's engine.

    python -m harness.trials.foreign TASKS.json ANSWERS.jsonl

Nothing of `mudpuppy` is imported here. A line is written before each reader begins and another when
it has ended, so that a reader that takes the process down is known by the line that is missing.
"""

from __future__ import annotations

import json
import re
import sys
import traceback
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

SENTENCES = (
    "What is the capital of Italy?",
    "Well now, the pond is deep.",
    "  two  spaces\n\tand a tab, ümläuts, 漢字 and 🐸",
    "<|im_start|>user\nhello<|im_end|>\n",
)
"""Texts whose ids must be the same."""
KERNELS_MISSING = re.compile(
    r"requires (optimum|gptqmodel)|gptqmodel version should be|^GPU is required to quantize"
    r"|No module named '(optimum|gptqmodel)"
)
"""What transformers and Python say where the kernels for GPTQ are not installed."""
Answer = dict[str, Any]
Reader = Callable[[dict[str, Any]], Answer]


class NotHere(Exception):
    """Raised by a reader that cannot be tried on this machine; the message says why."""


def main(argv: list[str] | None = None) -> int:
    """Do every task and write down what came of it."""
    tasks_file, answers_file = sys.argv[1:] if argv is None else argv
    tasks = json.loads(Path(tasks_file).read_text(encoding="utf-8"))
    with Path(answers_file).open("a", encoding="utf-8") as answers:
        for number, task in enumerate(tasks):
            print(f"{task['artefact']}: {task['reader']}", flush=True)
            _note(answers, {"number": number, "started": True})
            _note(answers, {"number": number, **read(task)})
    ours = sorted(name for name in sys.modules if name.partition(".")[0] == "mudpuppy")
    if ours:
        print(f"no foreign reader: {', '.join(ours[:3])} was imported", file=sys.stderr)
    return int(bool(ours))


def _note(answers: Any, line: dict[str, Any]) -> None:
    answers.write(json.dumps(line) + "\n")
    answers.flush()


def read(task: dict[str, Any]) -> Answer:
    """Do one task; whatever the reader raises is its answer."""
    package, reader = READERS[task["reader"]]
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:
        return {"reader": package, "ending": "not-run", "detail": f"{package} is not installed"}
    named = {"reader": f"{package} {version}"}
    try:
        return {**named, **reader(task)}
    except NotHere as error:
        return {**named, "ending": "not-run", "detail": str(error)}
    except Exception as error:  # noqa: BLE001 - a reader that refuses is what is looked for
        traceback.print_exc()
        line = str(error).strip().partition("\n")[0][:300]
        return {**named, "ending": "refused", "detail": f"{type(error).__name__}: {line}"}


def _transformers(task: dict[str, Any]) -> Answer:
    """Open a whole model by plain transformers."""
    return _compare(_open(task, task["folder"]), task)


def _peft(task: dict[str, Any]) -> Answer:
    """Put an adapter on its base by plain PEFT."""
    from peft import PeftModel

    base = _open(task, task["base"], may_lack=task["settings"])
    return _compare(PeftModel.from_pretrained(base, task["folder"]), task)


def _gptq(task: dict[str, Any]) -> Answer:
    """Open a GPTQ model by transformers' own loader, which needs others' kernels."""
    try:
        return _compare(_open(task, task["folder"]), task)
    except (ImportError, RuntimeError) as error:
        words = str(error)
        if KERNELS_MISSING.search(words):
            raise NotHere(words.partition("\n")[0]) from error
        raise


def _gguf(task: dict[str, Any]) -> Answer:
    """Read a GGUF file by llama.cpp's own package."""
    files = sorted(Path(task["folder"]).glob("**/*.gguf"))
    if not files:
        raise NotHere("the engine exports no GGUF yet")
    import gguf

    for path in files:
        reader = gguf.GGUFReader(path)
        if not reader.tensors:
            return {"ending": "disagrees", "detail": f"{path.name} holds no tensor"}
    return {"ending": "agrees", "detail": f"{len(files)} files"}


def _open(task: dict[str, Any], folder: str, *, may_lack: Any = None) -> Any:
    """Return a model with every weight from the files; `may_lack` allows a new head."""
    import torch
    import transformers

    kind = getattr(transformers, task["auto_class"])
    model, told = kind.from_pretrained(
        folder,
        dtype=getattr(torch, task["dtype"]),
        use_safetensors=True,
        output_loading_info=True,
        **(may_lack or {}),
    )
    wrong = {name: sorted(map(str, told[name])) for name in ("missing_keys", "mismatched_keys")}
    if not may_lack and any(wrong.values()):
        raise ValueError(f"made up: {[*wrong['missing_keys'], *wrong['mismatched_keys']][:5]}")
    return model


def _compare(model: Any, task: dict[str, Any]) -> Answer:
    """Return how far the logits are from those of the trained model."""
    import numpy as np
    import torch

    model.eval()
    worst, scale = 0.0, 0.0
    with np.load(task["reference"]) as stored, torch.no_grad():
        count = sum(name.startswith("plain") for name in stored.files)
        if not count:
            raise RuntimeError(f"{task['reference']} holds no logits to compare with")
        for index in range(count):
            ids = torch.tensor(stored[f"in{index}.input_ids"])
            expected = stored[f"plain{index}"]
            logits = model(input_ids=ids).logits[0].float().numpy()
            if logits.shape != expected.shape or not np.isfinite(logits).all():
                detail = f"logits of shape {logits.shape}, or not finite; expected {expected.shape}"
                return {"ending": "disagrees", "detail": detail}
            worst = max(worst, float(np.abs(logits - expected).max()))
            scale = max(scale, float(np.abs(expected).max()))
    relative = worst / max(scale, 1e-12)
    return {
        "ending": "agrees" if relative <= task["tolerance"] else "disagrees",
        "detail": f"logits of {count} rows",
        "difference": relative,
        "tolerance": task["tolerance"],
    }


def _safetensors(task: dict[str, Any]) -> Answer:
    """Read every tensor of every file, and hold the index against them."""
    from safetensors import safe_open

    folder = Path(task["folder"])
    names: dict[str, str] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118 - it is no dictionary
                tensor = handle.get_tensor(name)
                if tensor.is_floating_point() and not tensor.float().isfinite().all():
                    return {"ending": "disagrees", "detail": f"{name} is not finite"}
                names[name] = path.name
    index = folder / "model.safetensors.index.json"
    if index.is_file() and json.loads(index.read_text(encoding="utf-8"))["weight_map"] != names:
        return {"ending": "disagrees", "detail": "the index names other tensors than the files"}
    if not names:
        raise ValueError("there is no tensor")
    return {"ending": "agrees", "detail": f"{len(names)} tensors"}


def _tokenizer(task: dict[str, Any]) -> Answer:
    """Compare ids and chat template with the base's."""
    from transformers import AutoTokenizer

    mine, theirs = (AutoTokenizer.from_pretrained(task[name]) for name in ("folder", "base"))
    for text in SENTENCES:
        if mine(text)["input_ids"] != theirs(text)["input_ids"]:
            return {"ending": "disagrees", "detail": f"other ids than the base's for {text!r}"}
    if mine.chat_template != theirs.chat_template:
        return {"ending": "disagrees", "detail": "another chat template than the base's"}
    return {"ending": "agrees", "detail": f"the base's ids for {len(SENTENCES)} texts"}


def _card(task: dict[str, Any]) -> Answer:
    """Parse the model card as the hub does."""
    from huggingface_hub import ModelCard

    data = ModelCard.load(Path(task["folder"]) / "README.md").data.to_dict()
    if data.get("library_name") != "peft":  # a base that lies on a disk has no name to be told
        return {"ending": "disagrees", "detail": "the card does not say library_name: peft"}
    return {"ending": "agrees", "detail": f"says {', '.join(sorted(data))}"}


def _tensorboard(task: dict[str, Any]) -> Answer:
    """Compare the losses that TensorBoard reads with those of steps.jsonl."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lines = Path(task["steps"]).read_text(encoding="utf-8").splitlines()
    wanted = {s["step"]: s["loss"] for s in map(json.loads, lines) if s["loss"] is not None}
    folders = {path.parent for path in Path(task["folder"]).rglob("events.out.tfevents.*")}
    found: dict[int, float] = {}
    for folder in folders:
        events = EventAccumulator(str(folder))
        events.Reload()
        if "train/loss" in events.Tags()["scalars"]:
            found |= {event.step: event.value for event in events.Scalars("train/loss")}
    off = [n for n, loss in wanted.items() if abs(found.get(n, 1e9) - loss) > 1e-4 * abs(loss)]
    if off or not wanted or len(found) != len(wanted):
        detail = f"{len(found)} losses against {len(wanted)} of steps.jsonl, {len(off)} differ"
        return {"ending": "disagrees", "detail": detail}
    return {"ending": "agrees", "detail": f"{len(found)} losses, as in steps.jsonl"}


READERS: dict[str, tuple[str, Reader]] = {
    "transformers": ("transformers", _transformers),
    "peft": ("peft", _peft),
    "gptq": ("transformers", _gptq),
    "gguf": ("gguf", _gguf),
    "safetensors": ("safetensors", _safetensors),
    "tokenizer": ("transformers", _tokenizer),
    "card": ("huggingface_hub", _card),
    "tensorboard": ("tensorboard", _tensorboard),
}
"""Readers by name: the package whose code it is, and the function."""


if __name__ == "__main__":
    raise SystemExit(main())
