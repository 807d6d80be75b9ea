"""Damages of chats: stop tokens, templates, begin tokens, padding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness.selftest.edit import edit_json
from harness.selftest.healthy.chat_models import STYLES
from harness.selftest.registry import Patient, damage

CONFIG, GENERATION = "config.json", "generation_config.json"
SETTINGS, TOKENIZER, TEMPLATE = "tokenizer_config.json", "tokenizer.json", "chat_template.jinja"
CHATML, HEADERS = "chat-chatml", "chat-headers"
STOPS, SWAPPED, FAILS = "stop-tokens-disagree", "begin-and-end-swapped", "template-fails"


def _edit_template(patient: Patient, old: str, new: str, count: int = -1) -> None:
    path = patient.path / TEMPLATE
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, count), encoding="utf-8")


def _edit_tokenizer(folder: Path, old: str, new: str) -> None:
    """Replace a text in tokenizer.json, wherever it stands."""
    path = folder / TOKENIZER
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


@damage("pad-set-to-end", patient="chat-tuned", mode="FM01", probe="pad-is-eos")
def pad_with_end(patient: Patient) -> None:
    """Set the padding token to the end token, which the base did not."""
    edit_json(patient.path / SETTINGS, pad_token="<|im_end|>")


@damage("pad-is-end-unknown-base", patient=CHATML, mode="FM01", probe="pad-is-eos")
def pad_with_end_alone(patient: Patient) -> None:
    """The same without a base to compare with."""
    edit_json(patient.path / SETTINGS, pad_token="<|im_end|>")


@damage("stops-of-the-base", patient=CHATML, mode="FM03", probe=STOPS)
def keep_base_stops(patient: Patient) -> None:
    """Leave the end of text of the base as the only stop token."""
    edit_json(patient.path / GENERATION, eos_token_id=0)


@damage("stops-miss-end-of-turn", patient=HEADERS, mode="FM03", probe=STOPS)
def miss_end_of_turn(patient: Patient) -> None:
    """Stop at the end of text alone, which chats do not reach."""
    edit_json(patient.path / GENERATION, eos_token_id=1)


@damage("stops-at-a-word", patient=CHATML, mode="FM03", probe=STOPS)
def stop_at_word(patient: Patient) -> None:
    """Write the id of an ordinary piece of text beside the real ones."""
    edit_json(patient.path / GENERATION, eos_token_id=[0, 2, 100])


@damage("config-stops-at-a-word", patient=CHATML, mode="FM03", probe=STOPS)
def config_stops_at_word(patient: Patient) -> None:
    """The same in config.json, which some readers take instead."""
    edit_json(patient.path / CONFIG, eos_token_id=77)


@damage("stops-only-in-config", patient=CHATML, mode="FM03", probe=STOPS)
def lose_generation(patient: Patient) -> None:
    """Lose generation_config.json, beside a config.json with another end."""
    (patient.path / GENERATION).unlink()
    edit_json(patient.path / CONFIG, eos_token_id=0)


@damage("tokenizer-ends-elsewhere", patient="chat-plain-heads", mode="FM03", probe=STOPS)
def move_end(patient: Patient) -> None:
    """Name another end token, which the template then writes."""
    edit_json(patient.path / SETTINGS, eos_token="<unk>")


@damage("stops-nowhere", patient="chat-words-only", mode="FM03", probe=STOPS)
def stop_nowhere(patient: Patient) -> None:
    """Take the end out of both configurations."""
    edit_json(patient.path / GENERATION, eos_token_id=None)
    edit_json(patient.path / CONFIG, eos_token_id=None)


@damage("adapter-ends-elsewhere", patient="tokenizer-beside-adapter", mode="FM03", probe=STOPS)
def move_end_of_adapter(patient: Patient) -> None:
    """Name an end beside an adapter on which its base does not stop."""
    edit_json(patient.path / SETTINGS, eos_token="<|endoftext|>", pad_token="<|im_end|>")


@damage("ids-swapped", patient="chat-instructions", mode="FM03", probe=SWAPPED)
def swap_ids(patient: Patient) -> None:
    """Exchange begin and end in both configurations."""
    for name in (CONFIG, GENERATION):
        edit_json(patient.path / name, eos_token_id=1, bos_token_id=2)


@damage("texts-swapped", patient="chat-plain-heads", mode="FM03", probe=SWAPPED)
def swap_texts(patient: Patient) -> None:
    """Exchange begin and end in the settings of the tokenizer."""
    edit_json(patient.path / SETTINGS, eos_token="<s>", bos_token="</s>")


@damage("template-reads-another-key", patient=CHATML, mode="FM04", probe=FAILS)
def read_another_key(patient: Patient) -> None:
    """Ask for `text` where messages have `content`."""
    _edit_template(patient, "m.content", "(m.text | default(''))")


@damage("template-raises", patient=CHATML, mode="FM04", probe=FAILS)
def raise_in_template(patient: Patient) -> None:
    """Join a text with something that is not there."""
    _edit_template(patient, "m.content", "m.content + suffix.text")


@damage("template-forgets", patient="chat-instructions", mode="FM04", probe=FAILS)
def forget_answers(patient: Patient) -> None:
    """Leave out what the assistant said before."""
    _edit_template(patient, "' ' + m.content + eos_token", "' ' + eos_token")


@damage("template-never-ends", patient=CHATML, mode="FM04", probe=FAILS)
def loop_for_ever(patient: Patient) -> None:
    """Count to 10 ** 15 before the first message."""
    nest = "".join(f"{{% for a{n} in range(99999) %}}" for n in range(3)) + "{% endfor %}" * 3
    _edit_template(patient, "{% for m", nest + "{% for m", 1)


@damage("template-writes-for-ever", patient=CHATML, mode="FM04", probe=FAILS)
def write_for_ever(patient: Patient) -> None:
    """Write a few hundred million characters for one word."""
    _edit_template(patient, "m.content", "m.content * 90000000")


@damage("prompt-cut-off", patient=CHATML, mode="FM04", probe="template-without-prompt")
def cut_prompt(patient: Patient) -> None:
    """Cut the last lines off, with the prompt for the answer."""
    path = patient.path / TEMPLATE
    text = path.read_text(encoding="utf-8")
    path.write_text(text[: text.index("{% if add_generation_prompt")], encoding="utf-8")


@damage("end-cut-out", patient=CHATML, mode="FM02", probe="turn-never-ended")
def cut_end(patient: Patient) -> None:
    """Write no end after a message."""
    _edit_template(patient, "<|im_end|>", "")


@damage("end-variable-cut-out", patient="chat-words-only", mode="FM02", probe="turn-never-ended")
def cut_end_variable(patient: Patient) -> None:
    """Leave `eos_token` out of a template that has no other end."""
    _edit_template(patient, "eos_token + ", "")


@damage("end-cut-from-heads", patient="chat-piped-heads", mode="FM02", probe="turn-never-ended")
def cut_end_from_heads(patient: Patient) -> None:
    """Leave `eos_token` out of a template whose heads are marked."""
    _edit_template(patient, " + eos_token", "")


def _foreign(style: str) -> Any:
    def put(patient: Patient) -> None:
        (patient.path / TEMPLATE).write_text(STYLES[style].template, encoding="utf-8")

    return put


for _own, _other in (
    ("chat-plain-heads", "chatml"),
    ("chat-chatml", "turns"),
    ("chat-turns", "headers"),
    ("chat-headers", "chatml"),
):
    _made = damage(
        f"{_own.removeprefix('chat-')}-with-template-of-{_other}",
        patient=_own,
        mode="FM65",
        probe="template-tokens-split",
    )
    _made(_foreign(_other))


@damage("marker-taken-out", patient=CHATML, mode="FM65", probe="template-tokens-split")
def take_marker_out(patient: Patient) -> None:
    """Rename one of the two markers in the tokenizer."""
    _edit_tokenizer(patient.path, "<|im_start|>", "<|reserved_0|>")


def take_out_of_added(patient: Patient) -> None:
    """Leave the special tokens in the vocabulary, and no longer match them as a whole."""
    edit_json(patient.path / TOKENIZER, added_tokens=[])


for _own in (CHATML, HEADERS, "chat-turns"):
    _name = f"{_own.removeprefix('chat-')}-markers-not-added"
    damage(_name, patient=_own, mode="FM65", probe="template-tokens-split")(take_out_of_added)


@damage("old-template-left", patient=CHATML, mode="FM04", probe="template-twice")
def leave_old_template(patient: Patient) -> None:
    """Leave another template in the settings of the tokenizer."""
    old = STYLES["chatml"].template.replace("m.role + '\\n'", "m.role + ': '")
    edit_json(patient.path / SETTINGS, chat_template=old)


@damage("template-of-base-lost", patient="chat-tuned", mode="FM04", probe="template-lost")
def lose_template(patient: Patient) -> None:
    """Delete the template that the base has."""
    (patient.path / TEMPLATE).unlink()


@damage("template-of-chat-model-lost", patient=CHATML, mode="FM04", probe="template-lost")
def lose_template_alone(patient: Patient) -> None:
    """Delete the template of a model whose end token ends turns."""
    (patient.path / TEMPLATE).unlink()


@damage("begin-written-twice", patient="chat-plain-heads", mode="FM05", probe="begin-twice")
def write_begin_twice(patient: Patient) -> None:
    """Write the begin token twice at the start of a chat."""
    _edit_template(patient, "{% for", "{{ bos_token }}{{ '<s>' }}{% for", 1)


@damage("begin-added-twice", patient="chat-headers", mode="FM05", probe="begin-twice")
def add_begin_twice(patient: Patient) -> None:
    """Let the post-processor add the begin token twice."""
    path = patient.path / TOKENIZER
    value = json.loads(path.read_text(encoding="utf-8"))
    single = value["post_processor"]["single"]
    value["post_processor"]["single"] = [single[0], *single]
    path.write_text(json.dumps(value), encoding="utf-8")


@damage(
    "template-and-tokenizer-begin", patient="chat-plain-heads", mode="FM05", probe="begin-twice"
)
def let_both_begin(patient: Patient) -> None:
    """Write the begin token in the template and let the tokenizer add it too."""
    _edit_template(patient, "{% for", "{{ bos_token }}{% for", 1)
    edit_json(patient.path / SETTINGS, add_bos_token=True)


@damage("padding-side-changed", patient="chat-tuned", mode="FM56", probe="padding-side-changed")
def change_side(patient: Patient) -> None:
    """Save a side that was set for training."""
    edit_json(patient.options["base"] / SETTINGS, padding_side="left")
    edit_json(patient.path / SETTINGS, padding_side="right")


def _count(patient: Patient, **counts: int) -> None:
    """Change what the record says of the labels."""
    path = patient.path / "mudpuppy.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    value["labels"] |= counts
    path.write_text(json.dumps(value), encoding="utf-8")


@damage("end-was-masked", patient="engine-lora", mode="FM01", probe="pad-is-eos")
def mask_end(patient: Patient) -> None:
    """Pad with the end token, and record that few samples taught it."""
    _count(patient, samples=40, samples_ending_in_eos=3, truncated=0)
    edit_json(patient.path / SETTINGS, pad_token="<|end|>")


@damage("everybody-is-user", patient=CHATML, mode="FM04", probe=FAILS)
def make_all_user(patient: Patient) -> None:
    """Write the head of the user before every message."""
    _edit_template(patient, "m.role", "'user'")


@damage("last-message-first", patient=CHATML, mode="FM04", probe=FAILS)
def turn_round(patient: Patient) -> None:
    """Write the messages from the last to the first."""
    _edit_template(patient, "in messages", "in messages[::-1]")


@damage("template-empty", patient=CHATML, mode="FM04", probe=FAILS)
def empty_template(patient: Patient) -> None:
    """Leave a template without a word."""
    (patient.path / TEMPLATE).write_text("\n", encoding="utf-8")
