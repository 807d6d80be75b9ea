"""Chat models of many families: templates, stop tokens and rope as the published ones have them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.selftest.edit import Tensors, edit_json, edit_tensors
from harness.selftest.healthy.transformers_tokenizers import save_chat_model, train_bpe
from harness.selftest.registry import Patient, Ward, healthy

_TURNS = "{% for m in messages %}"
_END = "{% endfor %}"
_ASK = "{% if add_generation_prompt %}"
_OR_RAISE = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class Style:
    """How one family writes chats."""

    specials: tuple[str, ...]
    """Special tokens, which get the ids from 0."""
    roles: Mapping[str, str]
    """Special tokens by role."""
    stops: tuple[str, ...]
    """What generation_config.json stops on."""
    template: str
    """The chat template."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Further settings of the model."""
    begins: bool = False
    """Whether the tokenizer writes its begin token before a text."""


STYLES = {
    "chatml": Style(
        specials=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        roles={"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        stops=("<|im_end|>", "<|endoftext|>"),
        template=_TURNS + "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
        f"{_END}{_ASK}{{{{ '<|im_start|>assistant\\n' }}}}{{% endif %}}",
    ),
    "thinking": Style(
        specials=("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"),
        roles={"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        stops=("<|im_end|>", "<|endoftext|>"),
        template=_TURNS + "{{ '<|im_start|>' + m.role + '\\n' }}"
        "{% if m.role == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
        "{{ m.content.split('</think>')[-1].lstrip('\\n') + '<|im_end|>\\n' }}"
        f"{_END}{_ASK}{{{{ '<|im_start|>assistant\\n' }}}}{{% endif %}}",
        config={"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ),
    "headers": Style(
        specials=(
            *("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"),
            *("<|start_header_id|>", "<|end_header_id|>", "<|pad|>"),
        ),
        roles={
            "bos_token": "<|begin_of_text|>",
            "eos_token": "<|end_of_text|>",
            "pad_token": "<|pad|>",
        },
        stops=("<|end_of_text|>", "<|eot_id|>"),
        template="{{ bos_token }}" + _TURNS + "{{ '<|start_header_id|>' + m.role + "
        "'<|end_header_id|>\\n\\n' + m.content + '<|eot_id|>' }}"
        f"{_END}{_ASK}{{{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}}}{{% endif %}}",
        begins=True,
        config={
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "turns": Style(
        specials=("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        roles={"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
        stops=("<eos>", "<end_of_turn>"),
        template=_OR_RAISE + "{{ bos_token }}" + _TURNS + "{{ '<start_of_turn>' + "
        "('model' if m.role == 'assistant' else m.role) + '\\n' + m.content + '<end_of_turn>\\n' }}"
        f"{_END}{_ASK}{{{{ '<start_of_turn>model\\n' }}}}{{% endif %}}",
        begins=True,
    ),
    "instructions": Style(
        specials=("<unk>", "<s>", "</s>", "[INST]", "[/INST]"),
        roles={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        stops=("</s>",),
        template=_OR_RAISE + "{{ bos_token }}" + _TURNS + "{% if m.role == 'user' %}"
        "{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}"
        "{% endif %}" + _END,
        begins=True,
    ),
    "plain-heads": Style(
        specials=("<unk>", "<s>", "</s>"),
        roles={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        stops=("</s>",),
        template=_TURNS + "{{ '<|' + m.role + '|>\\n' + m.content + eos_token + '\\n' }}"
        f"{_END}{_ASK}{{{{ '<|assistant|>\\n' }}}}{{% endif %}}",
    ),
    "words-only": Style(
        specials=("<|endoftext|>",),
        roles=dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
        stops=("<|endoftext|>",),
        template=_TURNS + "{% if m.role == 'assistant' %}{{ '### Response:\\n' + m.content + "
        "eos_token + '\\n\\n' }}{% else %}{{ '### Instruction:\\n' + m.content + '\\n\\n' }}"
        f"{{% endif %}}{_END}{_ASK}{{{{ '### Response:\\n' }}}}{{% endif %}}",
    ),
    "next-role-stops": Style(
        specials=("<|endoftext|>", "[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>"),
        roles={"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        stops=("<|endoftext|>", "<|user|>"),
        template="{{ '[gMASK]<sop>' }}" + _TURNS + "{{ '<|' + m.role + '|>\\n' + m.content }}"
        f"{_END}{_ASK}{{{{ '<|assistant|>' }}}}{{% endif %}}",
    ),
    "end-and-text": Style(
        specials=("<unk>", "<s>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"),
        roles={"bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        stops=("<|endoftext|>", "<|end|>"),
        template=_TURNS + "{% if m.role != 'system' %}{{ '<|' + m.role + '|>\\n' + m.content + "
        "'<|end|>\\n' }}{% endif %}" + _END + _ASK + "{{ '<|assistant|>\\n' }}"
        "{% else %}{{ eos_token }}{% endif %}",
    ),
    "piped-heads": Style(
        specials=("<|endoftext|>", "<|padding|>"),
        roles={"eos_token": "<|endoftext|>", "pad_token": "<|padding|>"},
        stops=("<|endoftext|>",),
        template=_TURNS + "{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}"
        f"{_END}{_ASK}{{{{ '<|assistant|>\n' }}}}{{% endif %}}",
    ),
    "words-without-end": Style(
        specials=("<|endoftext|>", "<|padding|>"),
        roles={"eos_token": "<|endoftext|>", "pad_token": "<|padding|>"},
        stops=("<|endoftext|>",),
        template=_TURNS + "{{ ('' if loop.first else '\n') + (m.role | title) + ': ' + m.content }}"
        f"{_END}{_ASK}{{{{ '\nAssistant:' }}}}{{% endif %}}",
    ),
    "without-speakers": Style(
        specials=("<|endoftext|>",),
        roles=dict.fromkeys(("bos_token", "eos_token"), "<|endoftext|>"),
        stops=("<|endoftext|>",),
        template=_TURNS + "{{ m.content + eos_token }}" + _END,
    ),
    "channels": Style(
        specials=(
            *("<|endoftext|>", "<|start|>", "<|message|>", "<|channel|>"),
            *("<|end|>", "<|return|>", "<|call|>"),
        ),
        roles={"eos_token": "<|return|>", "pad_token": "<|endoftext|>"},
        stops=("<|return|>", "<|endoftext|>", "<|call|>"),
        template="{{ '<|start|>system<|message|>It is ' + strftime_now('%Y-%m-%d') + '<|end|>' }}"
        + _TURNS
        + "{% if m.role == 'assistant' %}{{ '<|start|>assistant<|channel|>final<|message|>' + "
        "m.content + ('<|return|>' if loop.last and not add_generation_prompt else '<|end|>') }}"
        "{% else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}"
        f"{_END}{_ASK}{{{{ '<|start|>assistant' }}}}{{% endif %}}",
    ),
    "system-in-question": Style(
        specials=("<unk>", "<s>", "</s>"),
        roles={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        stops=("</s>",),
        template="{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
        "{% set system = messages[0]['content'] %}{% else %}{% set rest = messages %}"
        "{% set system = false %}{% endif %}{% for m in rest %}"
        "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% if loop.index0 == 0 and system != false %}"
        "{% set text = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + m['content'] %}"
        "{% else %}{% set text = m['content'] %}{% endif %}{% if m['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' + text.strip() + ' [/INST]' }}"
        "{% else %}{{ ' ' + text.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
        begins=True,
    ),
    "parts": Style(
        specials=("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"),
        roles={"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        stops=("<|im_end|>",),
        template=_TURNS + "{{ '<|im_start|>' + m.role + '\\n' }}{% for part in m.content %}"
        "{% if part.type == 'image' %}{{ '<image>' }}{% elif part.type == 'text' %}"
        "{{ part.text }}{% endif %}{% endfor %}{{ '<|im_end|>\\n' }}"
        f"{_END}{_ASK}{{{{ '<|im_start|>assistant\\n' }}}}{{% endif %}}",
    ),
}
"""Ways of writing chats, each with the oddity of a published family."""
NOTES = {
    "headers": ("begin-twice",),
    "turns": ("begin-twice",),
    "instructions": ("begin-twice",),
    "system-in-question": ("begin-twice",),
    "words-without-end": ("turn-never-ended",),
    "next-role-stops": ("pad-is-eos",),
    "end-and-text": ("pad-is-eos", "template-fails"),
}
"""Notes that are right about them."""


def make_style(style: Style) -> Any:
    """Return the tokenizer of a style."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    core = train_bpe(specials=style.specials)
    if style.begins:
        begin = style.roles["bos_token"]
        pair = (begin, core.token_to_id(begin))
        core.post_processor = TemplateProcessing(single=f"{begin} $A", special_tokens=[pair])
    made = PreTrainedTokenizerFast(tokenizer_object=core, **style.roles)
    made.chat_template = style.template
    return made


def save_style(folder: Path, name: str) -> None:
    """Save a random Llama, the tokenizer of a style and what generation stops on."""
    style = STYLES[name]
    tokenizer = make_style(style)
    save_chat_model(folder, tokenizer)
    stops = tokenizer.convert_tokens_to_ids(list(style.stops))
    edit_json(folder / "generation_config.json", eos_token_id=stops)
    if style.config:
        edit_json(folder / "config.json", **style.config)


def _register(name: str) -> None:
    @healthy(f"chat-{name}", notes=NOTES.get(name, ()))
    def build(ward: Ward) -> Patient:
        save_style(ward.folder, name)
        return Patient(path=ward.folder)


for _name in STYLES:
    _register(_name)


@healthy("chat-tuned", notes=("rope-disagrees", "tokenizer-class-changed"))
def save_tuned(ward: Ward) -> Patient:
    """Save a fine-tuned model beside its base, as transformers 4 had written that one."""
    base = ward.folder / "base"
    save_style(base, "thinking")
    write_old_form(base)
    save_style(ward.folder / "tuned", "thinking")
    edit_tensors(ward.folder / "tuned", _train)
    return Patient(path=ward.folder / "tuned", options={"base": base})


def _train(tensors: Tensors) -> Tensors:
    """Return tensors as a short training leaves them."""
    import torch

    torch.manual_seed(3)
    return {key: value + torch.randn_like(value) * 1e-3 for key, value in tensors.items()}


@healthy("chat-old-form")
def save_old(ward: Ward) -> Patient:
    """Write a chat model's files as transformers 4 wrote them."""
    save_style(ward.folder, "thinking")
    write_old_form(ward.folder)
    return Patient(path=ward.folder)


def write_old_form(folder: Path) -> None:
    """Rewrite what transformers 5 saved as transformers 4 did."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rope = config.get("rope_parameters") or {}
    theta = rope.get("rope_theta", 10000.0)
    edit_json(folder / "config.json", rope_parameters=None, rope_theta=theta, torch_dtype="float32")
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokens = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    edit_json(
        folder / "tokenizer_config.json",
        backend=None,
        tokenizer_class="PreTrainedTokenizerFast",
        chat_template=(folder / "chat_template.jinja").read_text(encoding="utf-8"),
        added_tokens_decoder={
            str(one["id"]): {k: v for k, v in one.items() if k != "id"} for one in tokens
        },
    )
    (folder / "chat_template.jinja").unlink()
    named = {k: v for k, v in settings.items() if k.endswith("_token") and isinstance(v, str)}
    (folder / "special_tokens_map.json").write_text(json.dumps(named), encoding="utf-8")
