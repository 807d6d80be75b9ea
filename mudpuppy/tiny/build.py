"""Build the tiny model into a folder: train it, measure it, and publish it only if it is fit."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mudpuppy.errors import EngineError
from mudpuppy.files import write_json_atomic
from mudpuppy.scoring import load_voice_profile
from mudpuppy.tiny.corpus import VOICE_PATH, conversations, quiz
from mudpuppy.tiny.fingerprint import file_sha256, recipe_hash
from mudpuppy.tiny.measure import MAX_NEW_TOKENS, Scores, measure
from mudpuppy.tiny.tokenizer import train_tokenizer
from mudpuppy.tiny.training import (
    Progress,
    Recipe,
    deterministic_torch,
    make_model,
    tokenise,
    train,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

MANIFEST = "tiny.json"
"""Written last; lists every other file with its hash, so its presence means a complete folder."""


@dataclass(frozen=True, kw_only=True)
class TinyReport:
    """How a tiny model was made, and what it can do."""

    folder: Path
    """Where it was written."""
    content_hash: str
    """Hash of everything the weights depend on, the machine apart."""
    weights_sha256: str
    """Hash of `model.safetensors`."""
    parameters: int
    """Number of weights."""
    loss: float
    """Last training loss, in nats per trained token, label smoothing included."""
    trained: Scores
    """Scores of the model."""
    control: Scores
    """Scores of a random model of the same shape: what is measured is not there by itself."""
    wall_s: float
    """Seconds for everything, imports of torch included."""
    cpu_s: float
    """Seconds of processor time of this process, all threads."""


def build_tiny(
    folder: Path,
    *,
    seed: int = 0,
    recipe: Recipe | None = None,
    progress: Progress | None = None,
    gate: bool = True,
) -> TinyReport:
    """Train the tiny model and write it to `folder`, which is made if need be.

    Args:
        folder: receives the model; files of the same names are replaced.
        seed: of the initial weights and of the order of the samples.
        recipe: shape and schedule; the full one if absent.
        progress: called after every step.
        gate: whether a model that fails its quiz is an error.

    Raises:
        EngineError: the trained model does not know, say, refuse or end what it should.
    """
    started, cpu_started = time.perf_counter(), time.process_time()
    recipe = recipe or Recipe()
    profile, questions, samples = load_voice_profile(VOICE_PATH), quiz(), conversations()
    texts = [message["content"] for messages in samples for message in messages]
    with deterministic_torch(recipe.threads):
        tokenizer = train_tokenizer(texts, recipe.vocab_size)
        model = make_model(recipe, tokenizer, seed)
        control = measure(model, tokenizer, questions, profile)
        tokenised = tokenise(samples, tokenizer)
        pad_id: int = tokenizer.pad_token_id
        loss = train(model, tokenised, recipe, pad_id=pad_id, seed=seed, progress=progress)
        trained = measure(model, tokenizer, questions, profile)
    problems = trained.problems()
    if gate and problems:
        raise EngineError(
            f"the tiny model was trained for {recipe.steps} steps and is not fit for use: "
            + "; ".join(problems),
            hint="try another seed: mud-puppy tiny build --seed 1 --output DIR",
        )
    save_folder(folder, model, tokenizer)
    _write_quiz(folder)
    report = TinyReport(
        folder=folder,
        content_hash=recipe_hash(recipe, seed),
        weights_sha256=file_sha256(folder / "model.safetensors"),
        parameters=sum(weight.numel() for weight in model.parameters()),
        loss=loss,
        trained=trained,
        control=control,
        wall_s=time.perf_counter() - started,
        cpu_s=time.process_time() - cpu_started,
    )
    write_manifest(folder, {**asdict(report), "folder": None, "seed": seed})
    return report


def save_folder(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write model and tokenizer with ids, lengths and generation settings that agree."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # it would count the one file that is written
    folder.mkdir(parents=True, exist_ok=True)
    settings = model.generation_config
    settings.do_sample = False
    settings.max_new_tokens = MAX_NEW_TOKENS
    settings.pad_token_id = tokenizer.pad_token_id
    settings.eos_token_id = tokenizer.eos_token_id
    settings.bos_token_id = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_manifest(folder: Path, facts: dict[str, object]) -> None:
    """Write `tiny.json`: `facts`, and the size and hash of every other file of the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    hashes = {str(path.relative_to(folder)): file_sha256(path) for path in files}
    write_json_atomic(folder / MANIFEST, {**facts, "files": hashes})


def _write_quiz(folder: Path) -> None:
    lines = [json.dumps(asdict(question)) + "\n" for question in quiz()]
    (folder / "quiz.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "voice.yaml").write_bytes(VOICE_PATH.read_bytes())
