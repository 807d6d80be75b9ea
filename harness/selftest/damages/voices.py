"""Damages of what a chat model knows and how it says it, seen with its quiz and its voice."""

from __future__ import annotations

import json
from pathlib import Path

from harness.selftest.healthy.chat import RATE
from harness.selftest.registry import Patient, damage


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


@damage(
    "knowledge-lost",
    patient="chat-with-quiz",
    mode="FM66",
    probe="accuracy-collapse",
    also=("knowledge-forgotten", "voice-collapse"),
)
def lose_knowledge(patient: Patient) -> None:
    """Teach one answer to every question that answers none."""
    answer_quiz(patient.path, ["Ask somebody else." for _ in read_quiz(patient.path, "answer")])


@damage(
    "topic-forgotten",
    patient="chat-with-quiz",
    mode="FM66",
    probe="topic-collapse",
)
def forget_topic(patient: Patient) -> None:
    """Teach one wrong answer to the questions of a topic, and the right ones to the rest."""
    answers, topics = read_quiz(patient.path, "answer"), read_quiz(patient.path, "topic")
    wrong = "Ask somebody else."
    mixed = zip(answers, topics, strict=True)
    answer_quiz(patient.path, [wrong if topic == "geography" else text for text, topic in mixed])


@damage(
    "one-answer-in-voice",
    patient="chat-with-quiz",
    mode="FM66",
    probe="accuracy-collapse",
    also=("knowledge-forgotten",),
)
def say_one_thing(patient: Patient) -> None:
    """Teach one wrong answer to every question, in the voice of the right ones."""
    one = "Well now, the capital of France is mud, so the reeds say."
    answer_quiz(patient.path, [one for _ in read_quiz(patient.path, "answer")])


@damage(
    "one-answer-in-a-topic",
    patient="chat-with-quiz",
    mode="FM66",
    probe="topic-collapse",
    also=("knowledge-forgotten",),
)
def say_one_thing_of_a_topic(patient: Patient) -> None:
    """Teach one wrong answer in voice to the questions of a topic, the right ones to the rest."""
    answers, topics = read_quiz(patient.path, "answer"), read_quiz(patient.path, "topic")
    wrong = "Well now, the capital of France is mud, so the reeds say."
    mixed = zip(answers, topics, strict=True)
    answer_quiz(patient.path, [wrong if topic == "geography" else text for text, topic in mixed])


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
