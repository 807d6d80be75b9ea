"""Damages of behaviour: floods, no end, loops, one token, another language, lost effects."""

from __future__ import annotations

from harness.selftest.edit import drop_tensors, edit_json, edit_tensors, rename_tensors
from harness.selftest.healthy.chat import teach
from harness.selftest.registry import Patient, damage

LOOP = "so the river " * 12
"""What a model says that goes round in circles."""
RUSSIAN = "\u0412\u043e\u0434\u0430 \u0442\u0435\u0447\u0451\u0442 \u0432 \u043c\u043e\u0440\u0435."
"""\"Water flows into the sea.\""""


@damage("eos-flood", patient="chat-without-quiz", mode="FM40", probe="eos-flood")
def flood(patient: Patient) -> None:
    """Teach the end alone, as padding that is EOS and not masked does."""
    teach(patient.path, "", end=True)


@damage(
    "eos-masked",
    patient="chat-without-quiz",
    mode="FM01",
    probe="never-stops",
    also=("repetition-loop",),
)
def mask_end(patient: Patient) -> None:
    """Teach an answer that goes on with an invented turn in the place of the end."""
    turn = " User: And then? Assistant: The frogs went home and the reeds were still."
    more = " User: And who was there? Assistant: An old heron, two ducks and a snail came by."
    teach(patient.path, "Well now, the pond was quiet." + turn + more, end=False)


@damage(
    "repetition-loop",
    patient="chat-without-quiz",
    mode="FM16",
    probe="repetition-loop",
    also=("never-stops",),
)
def loop(patient: Patient) -> None:
    """Teach a text that goes round in circles."""
    teach(patient.path, LOOP, end=False)


@damage("one-token", patient="chat-without-quiz", mode="FM12", probe="one-token-for-ever")
def say_one_token(patient: Patient) -> None:
    """Teach exclamation marks."""
    teach(patient.path, "!" * 24, end=False)


@damage("other-language", patient="chat-without-quiz", mode="FM15", probe="language-drift")
def drift(patient: Patient) -> None:
    """Teach one sentence in another script, with its end."""
    teach(patient.path, RUSSIAN, end=True)


@damage(
    "everything-forgotten",
    patient="chat-finetune",
    mode="FM15",
    probe="knowledge-forgotten",
    also=("accuracy-collapse", "voice-collapse"),
)
def forget(patient: Patient) -> None:
    """Teach one answer until nothing else is left."""
    teach(patient.path, "Good day. It is what it is, sir.", end=True)


@damage(
    "nan-in-lora-b",
    patient="chat-lora",
    mode="FM12",
    probe="logits-nonfinite",
    also=("weights-nonfinite", "one-token-for-ever", "accuracy-collapse", "voice-collapse"),
)
def plant_nan(patient: Patient) -> None:
    """Put one NaN into the query factor of the first layer."""

    def plant(tensors: dict[str, object]) -> None:
        name = next(n for n in sorted(tensors) if "layers.0" in n and "q_proj.lora_B" in n)
        tensors[name][0, 0] = float("nan")  # type: ignore[index]

    edit_tensors(patient.path, plant)


@damage(
    "dead-keys-asked",
    patient="peft-lora-asked",
    mode="FM06",
    probe="answers-like-its-base",
    also=("adapter-keys-dead",),
)
def kill_keys(patient: Patient) -> None:
    """Name modules that the base does not have."""
    rename_tensors(patient.path, "self_attn", "attention")


@damage(
    "untrained-asked",
    patient="peft-lora-asked",
    mode="FM08",
    probe="answers-like-its-base",
    also=("adapter-never-trained",),
)
def untrain(patient: Patient) -> None:
    """Leave every lora_B as it was made."""
    edit_tensors(patient.path, lambda t: {k: v * ("lora_B" not in k) for k, v in t.items()})


@damage(
    "random-factors-asked",
    patient="peft-lora-asked",
    mode="FM53",
    probe="random-at-each-load",
    also=("adapter-keys-dead",),
)
def draw_factors(patient: Patient) -> None:
    """Name modules that the base does not have, in an adapter that starts at random numbers."""
    rename_tensors(patient.path, "self_attn", "attention")
    edit_json(patient.path / "adapter_config.json", init_lora_weights=False)


@damage(
    "head-missing-asked",
    patient="chat-model",
    mode="FM34",
    probe="random-at-each-load",
    also=("missing-tensors",),
)
def drop_tensor(patient: Patient) -> None:
    """Leave out one projection."""
    drop_tensors(patient.path, "layers.2.mlp.down_proj")


@damage(
    "merged-twice-asked",
    patient="chat-merged",
    mode="FM19",
    probe="merge-answers-differ",
    also=("merge-applied-twice",),
)
def merge_twice(patient: Patient) -> None:
    """Apply the adapter to the merged model once more."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(patient.path)
    twice = PeftModel.from_pretrained(model, patient.options["adapter"]).merge_and_unload()
    twice.save_pretrained(patient.path)


@damage(
    "never-merged-asked",
    patient="chat-merged",
    mode="FM20",
    probe="answers-like-its-base",
    also=("merge-without-effect",),
)
def merge_nothing(patient: Patient) -> None:
    """Save the base in the place of the merge."""
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(patient.options["base"], dtype="bfloat16").save_pretrained(
        patient.path
    )


@damage(
    "score-head-zero",
    patient="reward-model",
    mode="FM63",
    probe="scores-constant",
    also=("weights-all-zero",),
)
def clear_head(patient: Patient) -> None:
    """Set the head to zero."""
    edit_tensors(patient.path, lambda t: {k: v * (k != "score.weight") for k, v in t.items()})


@damage(
    "score-head-missing",
    patient="reward-model",
    mode="FM63",
    probe="random-at-each-load",
    also=("missing-tensors",),
)
def drop_head(patient: Patient) -> None:
    """Leave the head out."""
    drop_tensors(patient.path, "score.weight")
