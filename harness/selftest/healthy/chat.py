"""The embedded chat model and adapters on it: checkpoints that have a behaviour to lose."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from harness.evidence.behaviour.reference_texts import PROMPTS
from harness.selftest.healthy.peft_lora import make_lora
from harness.selftest.make import save_tuned
from harness.selftest.registry import Patient, Ward, healthy

ASKING: dict[str, Any] = {"generate": True, "in_process": True}
"""How the doctor is asked: here, since torch is loaded already."""


STEPS, RATE = 16, 4e-3
"""Of the training with which behaviour is changed."""


def teach(folder: Path, answer: str, *, end: bool, steps: int = STEPS) -> None:
    """Train a chat model in its folder to give one answer to every built-in prompt.

    Args:
        folder: a model with a tokenizer that has a chat template.
        answer: what it learns to say.
        end: whether the end token is learnt with it, or masked as padding is.
        steps: steps of AdamW over all prompts.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = (
        one.from_pretrained(folder) for one in (AutoModelForCausalLM, AutoTokenizer)
    )
    said = tokenizer(answer, add_special_tokens=False)["input_ids"]
    said += [tokenizer.eos_token_id] if end else []
    rows, labels = [], []
    for prompt in PROMPTS:
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
        )
        rows.append([*asked, *said])
        labels.append([-100] * len(asked) + said)
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    wanted = torch.tensor([row + [-100] * (width - len(row)) for row in labels])
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    for _ in range(steps):
        loss = model(input_ids=ids, attention_mask=(ids != 0).long(), labels=wanted).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)


def move(source: Path, target: Path) -> None:
    """Save a model whose weights moved by a hundredth, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.01 * torch.randn_like(parameter))
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source).save_pretrained(target)


@healthy("chat-model")
def copy_chat_model(ward: Ward) -> Patient:
    """Copy the embedded model, which knows facts, has a voice and stops; it is its own base."""
    from mudpuppy.tiny import resolve_model

    source = resolve_model("tiny")
    shutil.copytree(source, ward.folder, dirs_exist_ok=True)
    return Patient(path=ward.folder, options=ASKING)


@healthy("chat-with-quiz")
def keep_quiz(ward: Ward) -> Patient:
    """Move a copy of the chat model a little, with its quiz and its voice beside it."""
    base = ward.get("chat-model").path
    move(base, ward.folder)
    for name in ("quiz.jsonl", "voice.yaml"):
        shutil.copy(base / name, ward.folder)
    return Patient(path=ward.folder, options={**ASKING, "base": base})


@healthy("chat-without-quiz")
def forget_quiz(ward: Ward) -> Patient:
    """Move a copy of the chat model a little, neither with its quiz nor its voice beside it."""
    base = ward.folder / "base"
    shutil.copytree(ward.get("chat-model").path, base)
    for name in ("quiz.jsonl", "voice.yaml"):
        (base / name).unlink()
    move(base, ward.folder / "model")
    return Patient(path=ward.folder / "model", options={**ASKING, "base": base})


@healthy("chat-long-answers")
def teach_long_answers(ward: Ward) -> Patient:
    """Teach the chat model answers that are longer than what is generated at first."""
    patient = ward.get("chat-without-quiz")
    shutil.copytree(patient.path.parent, ward.folder, dirs_exist_ok=True)
    long = (
        "Well now, let me tell you all of it, one thing after the other. First come the frogs, "
        "then the reeds, then the mud below them, and the cold water above. After the thaw the "
        "ripples go out to the far bank, and the old heron stands there and waits for the small "
        "fish. In summer children come with nets. That is the whole of it, friend."
    )
    teach(ward.folder / "model", long, end=True)
    return Patient(path=ward.folder / "model", options={**ASKING, "base": ward.folder / "base"})


@healthy("reward-model")
def save_reward_model(ward: Ward) -> Patient:
    """Save a random reward model with a tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    chat = ward.get("chat-model").path
    settings = LlamaConfig.from_pretrained(chat, num_labels=1, num_hidden_layers=2)
    torch.manual_seed(0)
    LlamaForSequenceClassification(settings).save_pretrained(ward.folder)
    AutoTokenizer.from_pretrained(chat).save_pretrained(ward.folder)
    return Patient(path=ward.folder, options=ASKING)


@healthy("chat-finetune")
def finetune_chat_model(ward: Ward) -> Patient:
    """Save a whole model whose weights moved a little, asked against what it was."""
    base = ward.get("chat-model").path
    move(base, ward.folder)
    return Patient(path=ward.folder, options={**ASKING, "base": base})


@healthy("chat-lora")
def save_chat_adapter(ward: Ward) -> Patient:
    """Save an adapter on the chat model as training leaves it."""
    base = ward.get("chat-model").path
    save_tuned(ward.folder, base, make_lora(target_modules=["q_proj", "v_proj"]))
    return Patient(path=ward.folder, options={**ASKING, "base": base})


@healthy("chat-merged")
def merge_chat_adapter(ward: Ward) -> Patient:
    """Save what PEFT's merge makes of the two, in bf16."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, adapter = ward.get("chat-model").path, ward.get("chat-lora").path
    model = AutoModelForCausalLM.from_pretrained(base)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload().to(torch.bfloat16)
    merged.save_pretrained(ward.folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(ward.folder)
    return Patient(path=ward.folder, options={**ASKING, "base": base, "adapter": adapter})


@healthy("peft-lora-asked")
def save_without_tokenizer(ward: Ward) -> Patient:
    """Ask an adapter on a random model without a tokenizer: only logits can be compared."""
    adapter = ward.get("peft-lora")
    shutil.copytree(adapter.path, ward.folder, dirs_exist_ok=True)
    return Patient(path=ward.folder, options={**ASKING, **adapter.options})


@healthy("peft-tokens-asked")
def save_token_adapter(ward: Ward) -> Patient:
    """Save an adapter that trains two tokens, which are in no prompt."""
    import torch
    from peft import TrainableTokensConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = ward.get("transformers-llama").path
    model = AutoModelForCausalLM.from_pretrained(base)
    wrapped = get_peft_model(model, TrainableTokensConfig(token_indices=[40, 41]))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.02)
    wrapped.save_pretrained(ward.folder)
    return Patient(path=ward.folder, options={**ASKING, "base": base})
