"""Preference, KTO and GRPO samples, and short runs on them, for the tests of this folder."""

import weakref
from pathlib import Path
from typing import Any

from mudpuppy.config_check import load_config
from mudpuppy.data.samples import LabelledSample, PreferenceSample, PromptSample, StepsSample
from mudpuppy.engine import train
from mudpuppy.records import RunRecord, StepRecord

TRIPLES = [
    ("Who lives in the pond?", "A mud puppy lives in the pond.", "I do not want to say."),
    ("What does it eat?", "It eats worms.", "It eats cake and drinks tea in the morning."),
    ("When is it awake?", "It is awake at night, when the water is cold.", "At noon."),
    ("Does it bark?", "No.", "Yes, it barks at the moon all night long."),
]


def asked(question: str) -> tuple[dict[str, str], ...]:
    """Return a prompt of one message."""
    return ({"role": "user", "content": question},)


def said(answer: str) -> tuple[dict[str, str], ...]:
    """Return an answer of one message."""
    return ({"role": "assistant", "content": answer},)


def pairs() -> list[PreferenceSample]:
    """Return four pairs."""
    return [
        PreferenceSample(line=i, prompt=asked(q), chosen=said(good), rejected=said(bad))
        for i, (q, good, bad) in enumerate(TRIPLES, start=1)
    ]


def labelled() -> list[LabelledSample]:
    """Return eight labelled answers, the good ones first."""
    return [
        LabelledSample(line=i, prompt=asked(row[0]), completion=said(row[1 + bad]), label=not bad)
        for bad in (False, True)
        for i, row in enumerate(TRIPLES, start=1)
    ]


def prompts() -> list[PromptSample]:
    """Return four prompts with their answers."""
    return [
        PromptSample(line=i, prompt=asked(q), fields={"answer": good})
        for i, (q, good, _) in enumerate(TRIPLES, start=1)
    ]


def solutions() -> list[StepsSample]:
    """Return four solutions in steps."""
    return [
        StepsSample(line=i, prompt=q, steps=(good, bad), labels=(True, False))
        for i, (q, good, bad) in enumerate(TRIPLES, start=1)
    ]


SAMPLES = {
    **dict.fromkeys(("dpo", "ipo", "orpo", "rm"), pairs),
    "kto": labelled,
    "grpo": prompts,
    "prm": solutions,
}
"""Samples by method."""


class Peek:
    """A watcher that keeps what the trainer was given, and what it left on the model."""

    def __init__(self) -> None:
        self.before: dict[str, Any] = {}
        self.after: dict[str, Any] = {}
        self.rows: list[Any] = []
        self.model: Any = None
        self.score: Any = None

    def on_prepared(self, model: Any, tokenizer: Any, samples: Any, eos_ids: Any) -> None:
        """Copy every parameter."""
        del tokenizer, eos_ids
        self.rows = list(samples)
        self.trainable = {n for n, p in model.named_parameters() if p.requires_grad}
        self.before = {n: p.detach().clone() for n, p in model.named_parameters()}

    def on_fitted(self, model: Any) -> None:
        """Copy them again, and what the model says of the first row."""
        import torch

        self.after = {n: p.detach().clone() for n, p in model.named_parameters()}
        self.patched = [n for n, m in model.named_modules() if "forward" in vars(m)]
        self.adapters = sorted(getattr(model, "peft_config", {}))
        self.model = weakref.ref(model)
        dtype = getattr(model, "dtype", torch.float32)
        mixed = dtype != torch.float32 and hasattr(model, "peft_config")  # a head trains in fp32
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=mixed):
            ids = torch.tensor([self.rows[0].input_ids])
            self.score = model.eval()(input_ids=ids).logits.float()


def run(
    model: str, output: Path, method: str, *, samples: Any = None, **settings: Any
) -> tuple[list[StepRecord], RunRecord, Peek]:
    """Train for a few steps; return the steps, the record, and what was seen."""
    given = {
        "model": model,
        "dataset": "unread.jsonl",
        "output": output,
        "method": method,
        "precision": "fp32",
        "max_steps": 3,
        "batch_size": 4,
        "lora_r": 4,
        "learning_rate": 1e-3,
        **settings,
    }
    steps: list[StepRecord] = []
    peek = Peek()
    record = train(
        load_config(given),
        samples=SAMPLES[method]() if samples is None else samples,
        watcher=peek,
        report=lambda step, _: steps.append(step),
    )
    return steps, record, peek
