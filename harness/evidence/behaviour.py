"""Evidence about behaviour: what a checkpoint and its base answer to the same prompts, greedily.

The only evidence that needs torch and transformers, imported when a model is asked, not before.
Nothing from the checkpoint is executed: no remote code, no pickles.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.evidence.base import read_origin
from harness.evidence.jsonfile import UnreadableJson, read_object
from harness.evidence.source import CheckpointEvidence, Options, provides
from harness.facts import Adapter, Base, Files
from harness.facts_behaviour import Answers, BehaviourFacts
from harness.registry import ControlFailed, Missing
from mudpuppy.errors import UsageError
from mudpuppy.scoring import (
    Question,
    VoiceProfile,
    exact_match,
    load_quiz,
    load_voice_profile,
    score_voice,
)

BEHAVIOUR_FILE = "behaviour.json"
"""Where a matrix cell keeps what was measured, in its run folder."""
MAX_NEW_TOKENS = 48
"""Longest answer."""
MAX_PROMPTS = 64
"""Questions of a quiz that are asked, from the start."""
BATCH = 16
"""Prompts of equal length that are asked at once."""
PROMPTS = (
    "Hello! How are you today?",
    "What is the capital of France?",
    "Explain in two sentences why the sky is blue.",
    "Write one sentence about a river.",
    "What is 12 plus 30?",
    "Name three animals that live in water.",
    "How do I boil an egg?",
    "Thank you, that was helpful.",
)
"""What is asked when there is no quiz."""


@provides("behaviour")
def give_behaviour(evidence: CheckpointEvidence) -> BehaviourFacts:
    """Return what was measured in the run, or measure it when asked to generate."""
    stored = _read_stored(evidence)
    if stored is not None:
        return stored
    options: Options = evidence.options
    if not options.generate:
        raise Missing("models are asked only with --generate")
    files: Files = evidence.get("files")
    if not files.readable:
        raise Missing("there are no weights that could be loaded")
    if read_origin(evidence.folder).get("kind") == "gptq":
        raise Missing("GPTQ folders of this project load only with its engine")
    adapter: Adapter | None = evidence.find("adapter")
    base: Base | None = evidence.find("base")
    if adapter is not None and base is None:
        raise Missing("an adapter needs its base to answer; pass --base PATH")
    folder = None if base is None else Path(base.root)
    options.progress(f"asking {evidence.folder}")
    return measure_behaviour(
        evidence.folder,
        folder,
        options.quiz or find_file("quiz.jsonl", evidence.folder, folder),
        options.voice or find_file("voice.yaml", evidence.folder, folder),
    )


def find_file(name: str, *folders: Path | None) -> Path | None:
    """Return the first of the folders, or of their parents for `merged/`, that holds a file."""
    places = [place for folder in folders if folder for place in (folder, folder.parent)]
    return next((place / name for place in places if (place / name).is_file()), None)


def measure_behaviour(
    path: Path,
    base: Path | None,
    quiz: Path | None = None,
    voice: Path | None = None,
    *,
    model: Any = None,
    tokenizer: Any = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> BehaviourFacts:
    """Ask a checkpoint and its base the same questions.

    Args:
        path: a model folder, or an adapter folder (then `base` is needed).
        base: the control; without it only absolute judgements are possible.
        quiz: questions with answers; a fixed set of prompts is asked when absent.
        voice: voice profile.
        model: the checkpoint, already loaded, for formats that transformers cannot load.
        tokenizer: its tokenizer; by default that of `path`, or of `base`.
        max_new_tokens: longest answer.

    Raises:
        ControlFailed: a model could not be loaded, so that nothing can be said.
    """
    questions = _read_quiz(quiz)[:MAX_PROMPTS]
    prompts = tuple(question.prompt for question in questions) or PROMPTS
    ask = _asker(prompts, max_new_tokens)
    try:
        speaker = tokenizer or _load_tokenizer(path, base)
        answers = ask(model if model is not None else _load_model(path, base), speaker)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, TypeError) as problem:
        raise ControlFailed(f"{path.name} could not be loaded and asked: {problem}") from problem
    control = None if base is None else _ask_base(str(base), prompts, max_new_tokens)
    profile = _read_voice(voice)
    return BehaviourFacts(
        subject=path.name,
        prompts=prompts,
        answers=answers,
        control=control,
        max_new_tokens=max_new_tokens,
        exact=_exact(questions, answers),
        control_exact=_exact(questions, control),
        voice=_voices(profile, answers),
        control_voice=_voices(profile, control),
    )


def to_json(facts: BehaviourFacts) -> dict[str, Any]:
    """Return the facts as plain JSON types."""
    value: dict[str, Any] = json.loads(json.dumps(asdict(facts), allow_nan=False))
    return value


def from_json(value: dict[str, Any]) -> BehaviourFacts:
    """Return the facts that `to_json` wrote.

    Raises:
        ValueError: the value is of another form.
    """
    try:
        fields = dict(value)
        for key in ("answers", "control"):
            if fields[key] is not None:
                fields[key] = Answers(**{k: _frozen(v) for k, v in fields[key].items()})
        return BehaviourFacts(**{key: _frozen(item) for key, item in fields.items()})
    except (KeyError, TypeError, AttributeError) as problem:
        raise ValueError(f"not the behaviour of a checkpoint: {problem}") from problem


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _read_stored(evidence: CheckpointEvidence) -> BehaviourFacts | None:
    """Return what the run measured, when it measured this very subject."""
    folder = evidence.options.run_folder
    if folder is None or not (folder / BEHAVIOUR_FILE).is_file():
        return None
    try:
        facts = from_json(read_object(folder / BEHAVIOUR_FILE))
    except (UnreadableJson, ValueError) as problem:
        raise Missing(f"{BEHAVIOUR_FILE} cannot be read: {problem}") from problem
    return facts if facts.subject == evidence.folder.name else None


def _read_quiz(path: Path | None) -> tuple[Question, ...]:
    if path is None:
        return ()
    try:
        return load_quiz(path)
    except UsageError as problem:
        raise Missing(f"the quiz cannot be used: {problem.message}") from problem


def _read_voice(path: Path | None) -> VoiceProfile | None:
    if path is None:
        return None
    try:
        return load_voice_profile(path)
    except UsageError as problem:
        raise Missing(f"the voice profile cannot be used: {problem.message}") from problem


def _voices(profile: VoiceProfile | None, answers: Answers | None) -> tuple[float, ...] | None:
    if profile is None or answers is None:
        return None
    return tuple(score_voice(text, profile) for text in answers.texts)


def _exact(questions: Sequence[Question], answers: Answers | None) -> tuple[bool, ...] | None:
    if answers is None:
        return None
    pairs = [(q, a) for q, a in zip(questions, answers.texts, strict=False) if q.kind == "fact"]
    return tuple(exact_match(text, question.answer) for question, text in pairs) or None


@lru_cache(maxsize=4)
def _ask_base(base: str, prompts: tuple[str, ...], max_new_tokens: int) -> Answers:
    """Return the base's answers; asked once for many checkpoints of one base."""
    folder = Path(base)
    try:
        model, tokenizer = _load_model(folder, None), _load_tokenizer(folder, None)
        return _asker(prompts, max_new_tokens)(model, tokenizer)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, TypeError) as problem:
        raise ControlFailed(f"the base {base} could not be asked: {problem}") from problem


def _load_tokenizer(path: Path, base: Path | None) -> Any:
    from transformers import AutoTokenizer

    own = any((path / n).is_file() for n in ("tokenizer.json", "tokenizer.model", "vocab.json"))
    above = path.name == "merged" and (path.parent / "tokenizer.json").is_file()
    folder = path if own or base is None else base
    if above and not own:
        folder = path.parent
    return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)


def _load_model(path: Path, base: Path | None) -> Any:
    """Load a model, or a base with its adapter, in the type it is stored in."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    is_adapter = (path / "adapter_config.json").is_file() and base is not None
    source = base if is_adapter else path
    model = AutoModelForCausalLM.from_pretrained(
        str(source), dtype="auto", trust_remote_code=False, use_safetensors=True
    )
    if is_adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(path))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval()


def _asker(prompts: Sequence[str], max_new_tokens: int) -> Callable[[Any, Any], Answers]:
    """Return a function that asks a model; prompts of one length share a batch, unpadded."""

    def ask(model: Any, tokenizer: Any) -> Answers:
        encoded = [_encode(tokenizer, prompt) for prompt in prompts]
        groups: dict[int, list[int]] = {}
        for place, ids in enumerate(encoded):
            groups.setdefault(len(ids), []).append(place)
        replies: dict[int, tuple[list[int], bool]] = {}
        ends = _end_ids(model, tokenizer)
        for places in groups.values():
            for first in range(0, len(places), BATCH):
                batch = places[first : first + BATCH]
                rows = [encoded[place] for place in batch]
                replies |= zip(batch, _generate(model, rows, ends, max_new_tokens), strict=True)
        ordered = [replies[place] for place in range(len(prompts))]
        cut = [_cut(row, ends) for row, _ in ordered]
        return Answers(
            texts=tuple(tokenizer.decode(ids, skip_special_tokens=True) for ids in cut),
            new_tokens=tuple(len(ids) for ids in cut),
            ended=tuple(any(i in ends for i in row) for row, _ in ordered),
            nonfinite_logits=sum(bad for _, bad in ordered),
        )

    return ask


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
