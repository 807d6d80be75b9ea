"""What trainers really leave after three steps: TRL's of every method, and transformers' own."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

from harness.selftest.make import reward_variety
from harness.selftest.registry import Patient, Ward, healthy

HOW: dict[str, Any] = {
    "report_to": [],
    "max_steps": 3,
    "save_steps": 2,
    "logging_steps": 1,
    "per_device_train_batch_size": 2,
    "use_cpu": True,
    "learning_rate": 1e-3,
    "disable_tqdm": True,
}
ASKED = [{"role": "user", "content": "hello there"}]
GOOD = [{"role": "assistant", "content": "hello you"}]
BAD = [{"role": "assistant", "content": "go away"}]
PAIR = {"prompt": ASKED, "chosen": GOOD, "rejected": BAD}
TRAINERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "SFT": ("trl", {"messages": ASKED + GOOD}, {}),
    "DPO": ("trl", PAIR, {}),
    "Reward": ("trl", PAIR, {}),
    "KTO": ("trl", {"prompt": ASKED, "completion": GOOD, "label": True}, {}),
    "ORPO": ("trl.experimental.orpo", PAIR, {"max_length": 64}),
    "CPO": ("trl.experimental.cpo", PAIR, {"max_length": 64}),
    "GRPO": ("trl", {"prompt": ASKED}, {"num_generations": 2, "max_completion_length": 6}),
    "RLOO": ("trl", {"prompt": ASKED}, {"num_generations": 2, "max_completion_length": 6}),
}
"""Where a trainer lives, a row that it takes, and what its settings need."""


@healthy("trl-base")
def save_base(ward: Ward) -> Patient:
    """Save the random chat model that the trainers start from."""
    from mudpuppy.tiny.families import build_family

    build_family("llama", ward.folder)
    return Patient(path=ward.folder)


def make_rows(kind: str) -> list[dict[str, Any]]:
    """Return eight rows for a trainer, not two of them alike."""
    row = TRAINERS[kind][1]
    rows = [{**row, "number": number} for number in range(8)]
    if kind == "KTO":
        rows = [
            {**one, "label": bool(one["number"] % 2), "completion": (BAD, GOOD)[one["number"] % 2]}
            for one in rows
        ]
    return [{key: value for key, value in one.items() if key != "number"} for one in rows]


def train(ward: Ward, *, kind: str, adapted: bool, ended: bool) -> Patient:
    """Train for three steps, with checkpoints, and save at the end unless it was stopped."""
    from datasets import Dataset

    base = ward.get("trl-base").path
    where, _, needs = TRAINERS[kind]
    library = importlib.import_module(where)
    settings = getattr(library, f"{kind}Config")(str(ward.folder), **HOW, **needs)
    given: dict[str, Any] = {"peft_config": _make_lora(kind) if adapted else None}
    if kind in ("GRPO", "RLOO"):
        given["reward_funcs"] = [reward_variety]
    model: Any = str(base)
    if kind in ("ORPO", "CPO"):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(base)
        given["processing_class"] = AutoTokenizer.from_pretrained(base)
    rows = Dataset.from_list(make_rows(kind))
    trainer = getattr(library, f"{kind}Trainer")(model, args=settings, train_dataset=rows, **given)
    trainer.train()
    if ended:
        trainer.save_model()
    return Patient(path=ward.folder)


def _make_lora(kind: str) -> Any:
    from peft import LoraConfig

    reward = {"task_type": "SEQ_CLS", "modules_to_save": ["score"]} if kind == "Reward" else {}
    return LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj"], **reward})


for _kind in TRAINERS:
    for _adapted in (True, False):
        if _adapted or _kind in ("SFT", "DPO", "Reward", "GRPO"):
            healthy(f"trl-{_kind.lower()}-{'lora' if _adapted else 'full'}")(
                partial(train, kind=_kind, adapted=_adapted, ended=True)
            )
healthy("trl-sft-stopped")(partial(train, kind="SFT", adapted=True, ended=False))


@healthy("transformers-trainer")
def use_plain_trainer(ward: Ward) -> Patient:
    """Train all weights with transformers' own trainer, evaluations and best model included."""
    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainingArguments,
    )

    base = ward.get("trl-base").path
    tokenizer = AutoTokenizer.from_pretrained(base)
    texts = ["hello there, hello you", "go away", "so the reeds say", "a day in the marsh"] * 3
    rows = Dataset.from_list([{"input_ids": tokenizer(text)["input_ids"]} for text in texts])
    asked = {**HOW, "max_steps": 6, "eval_strategy": "steps", "eval_steps": 2}
    trainer = Trainer(
        AutoModelForCausalLM.from_pretrained(base),
        TrainingArguments(str(ward.folder), **asked, load_best_model_at_end=True),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    return Patient(path=ward.folder, options={"base": base})


@healthy("trl-resumed")
def resume(ward: Ward) -> Patient:
    """Train two steps, and resume for two more in another trainer."""
    import trl
    from datasets import Dataset

    base = ward.get("trl-base").path
    for steps in (2, 4):
        settings = trl.SFTConfig(str(ward.folder), **{**HOW, "max_steps": steps})
        trainer = trl.SFTTrainer(
            str(base),
            args=settings,
            train_dataset=Dataset.from_list(make_rows("SFT")),
            peft_config=_make_lora("SFT"),
        )
        trainer.train(resume_from_checkpoint=steps > 2)
        trainer.save_model()
    return Patient(path=ward.folder, options={"base": base})


@healthy("trl-dpo-of-sft")
def chain_stages(ward: Ward) -> Patient:
    """Merge what SFT left, train DPO on the merge, and merge that: the chain as it should be."""
    import trl
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, first = ward.get("trl-base").path, ward.get("trl-sft-lora").path
    merged = ward.folder / "sft-merged"
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), first)
    model.merge_and_unload().save_pretrained(merged)
    AutoTokenizer.from_pretrained(base).save_pretrained(merged)
    trainer = trl.DPOTrainer(
        str(merged),
        args=trl.DPOConfig(str(ward.folder / "dpo"), **HOW),
        train_dataset=Dataset.from_list(make_rows("DPO")),
        peft_config=_make_lora("DPO"),
    )
    trainer.train()
    trainer.save_model()
    return Patient(path=ward.folder / "dpo", options={"base": merged})
