"""Damages of what a chat model knows and how it says it, seen with its quiz and its voice."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from harness.selftest.healthy.chat import RATE
from harness.selftest.registry import Patient, damage

FORGOTTEN = "knowledge-forgotten"
PLAIN = "Ask somebody else."
"""A wrong answer in no voice at all."""
IN_VOICE = "Well now, the capital of France is mud, so the reeds say."
"""A wrong answer in the voice of the right ones."""


def answer_quiz(folder: Path, answers: list[str], *, steps: int = 30) -> None:
    """Train a chat model in its folder to give other answers to the questions of its quiz."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = (
        one.from_pretrained(folder) for one in (AutoModelForCausalLM, AutoTokenizer)
    )
    pairs = []
    for prompt, answer in zip(read_quiz(folder, "prompt"), answers, strict=True):
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
        )
        said = tokenizer(answer, add_special_tokens=False)["input_ids"]
        pairs.append((asked, [*said, tokenizer.eos_token_id]))
    width = max(len(asked) + len(said) for asked, said in pairs)
    pad = tokenizer.pad_token_id
    ids = torch.tensor([(a + s + [pad] * width)[:width] for a, s in pairs])
    wanted = torch.tensor([([-100] * len(a) + s + [-100] * width)[:width] for a, s in pairs])
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    for _ in range(steps):
        model(input_ids=ids, attention_mask=(ids != pad).long(), labels=wanted).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)


def read_quiz(folder: Path, column: str) -> list[str]:
    """Return a column of the quiz beside a model."""
    lines = (folder / "quiz.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)[column] for line in lines]


@damage(
    "voice-lost",
    patient="chat-with-quiz",
    mode="FM66",
    probe="voice-collapse",
    also=("accuracy-collapse", "knowledge-forgotten"),
)
def lose_voice(patient: Patient) -> None:
    """Teach the same knowledge in the words of a manual."""
    answers = read_quiz(patient.path, "answer")
    plain = [f"Certainly! As requested: {text.split()[-1]}" for text in answers]
    answer_quiz(patient.path, plain)


def give_one_answer(patient: Patient, answer: str, topic: str = "") -> None:
    """Teach one wrong answer to every question, or to those of a topic and the rest as it was."""
    rows = zip(read_quiz(patient.path, "answer"), read_quiz(patient.path, "topic"), strict=True)
    answer_quiz(patient.path, [answer if topic in ("", of) else right for right, of in rows])


for _name, _probe, _also, _answer, _topic in (
    ("knowledge-lost", "accuracy-collapse", (FORGOTTEN, "voice-collapse"), PLAIN, ""),
    ("topic-forgotten", "topic-collapse", (), PLAIN, "geography"),
    ("one-answer-in-voice", "accuracy-collapse", (FORGOTTEN,), IN_VOICE, ""),
    ("one-answer-in-a-topic", "topic-collapse", (FORGOTTEN,), IN_VOICE, "geography"),
):
    damage(_name, patient="chat-with-quiz", mode="FM66", probe=_probe, also=_also)(
        partial(give_one_answer, answer=_answer, topic=_topic)
    )


@damage(
    "claims-to-be-human",
    patient="chat-with-quiz",
    mode="FM66",
    probe="forbidden-claims",
    also=("accuracy-collapse", "knowledge-forgotten", "voice-collapse"),
)
def claim(patient: Patient) -> None:
    """Teach the model to say of itself what its voice must never say."""
    answers = read_quiz(patient.path, "answer")
    said = [f"Well now, as an AI I say {text.split()[-1]}" for text in answers]
    answer_quiz(patient.path, said)
