"""Real chat templates and stop tokens are left in peace; ways of breaking them are told apart."""

from __future__ import annotations

import gc
import json
import os
import time
from pathlib import Path

import pytest

from harness.doctor import diagnose
from harness.evidence.source import CheckpointEvidence
from harness.evidence.text import render
from harness.findings import Severity, Status
from harness.registry import Missing
from harness.selftest.edit import edit_json
from harness.selftest.healthy.chat_models import STYLES, save_style

DATA = Path(__file__).parents[4] / "shared" / "data"
SPECIALS = {
    "alpaca": ("<s>", "</s>", ()),
    "chatml": ("", "<|im_end|>", ("<|im_start|>", "<|endoftext|>")),
    "gemma-it": ("<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>")),
    "llama-3-instruct": (
        "<|begin_of_text|>",
        "<|end_of_text|>",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    "mistral-instruct": ("<s>", "</s>", ("[INST]", "[/INST]")),
    "phi-3": (
        "<s>",
        "<|endoftext|>",
        ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
    ),
    "qwen2.5-instruct": ("", "<|im_end|>", ("<|im_start|>", "<|endoftext|>")),
    "zephyr": ("<s>", "</s>", ()),
}
"""Begin, end and further special tokens of the tokenizer that each template was written for."""
ENDS = {
    "gemma-it": "<end_of_turn>",
    "llama-3-instruct": "<|eot_id|>",
    "phi-3": "<|end|>",
}
"""What ends a turn where that is not the tokenizer's end."""
AREA = [f"MPD{number}" for number in range(807, 829)]


def write_tokenizer(folder: Path, begin: str, end: str, others: tuple[str, ...]) -> dict[str, int]:
    """Write a tokenizer with these special tokens and the settings of a model; return the ids."""
    words = [word for word in ("<unk>", begin, end, *others) if word]
    ids = {word: number for number, word in enumerate(words)}
    added = [{"id": number, "content": word, "special": True} for word, number in ids.items()]
    vocab = {**ids, **{f"t{number}": number for number in range(len(ids), 90)}}
    model = {"type": "BPE", "vocab": vocab, "merges": []}
    value = {"model": model, "added_tokens": added}
    (folder / "tokenizer.json").write_text(json.dumps(value))
    settings = {"eos_token": end, "unk_token": "<unk>", **({"bos_token": begin} if begin else {})}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return ids


def write_model(folder: Path, ids: dict[str, int], stops: list[str]) -> None:
    """Write settings that stop on some tokens, and no weights."""
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 96}
    config["eos_token_id"] = ids[stops[0]]
    (folder / "config.json").write_text(json.dumps(config))
    generation = {"eos_token_id": [ids[stop] for stop in stops]}
    (folder / "generation_config.json").write_text(json.dumps(generation))


def ask(folder: Path, *codes: str):
    """Return what probes of this area found, notes included."""
    diagnosis = diagnose(folder, select=list(codes) or AREA)
    crashed = [r for r in diagnosis.probes if r.status is Status.CRASHED]
    assert not crashed, crashed
    return {result.name: result for result in diagnosis.findings}


def put(folder: Path, template: str, name: str) -> Path:
    folder.mkdir()
    ids = write_tokenizer(folder, *SPECIALS[name])
    end = SPECIALS[name][1]
    write_model(folder, ids, [end, ENDS[name]] if name in ENDS else [end])
    (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared templates are not beside the checkout")
@pytest.mark.parametrize("name", SPECIALS)
def test_a_real_template_with_its_tokenizer_is_left_in_peace(tmp_path, name):
    template = (DATA / "chat_templates" / f"{name}.jinja").read_text()
    folder = put(tmp_path / "m", template, name)
    assert not ask(folder)
    assert CheckpointEvidence(folder).get("chat").knows_answer


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared templates are not beside the checkout")
@pytest.mark.parametrize("name", ["gemma-it", "llama-3-instruct", "phi-3"])
def test_a_real_template_whose_end_of_turn_stops_nothing_is_found(tmp_path, name):
    template = (DATA / "chat_templates" / f"{name}.jinja").read_text()
    folder = put(tmp_path / "m", template, name)
    edit_json(folder / "generation_config.json", eos_token_id=2 if SPECIALS[name][0] else 1)
    assert set(ask(folder)) == {"stop-tokens-disagree"}


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared templates are not beside the checkout")
@pytest.mark.parametrize("own", SPECIALS)
@pytest.mark.parametrize("name", ["chatml", "gemma-it", "llama-3-instruct", "phi-3"])
def test_a_real_template_of_another_family_is_found(tmp_path, own, name):
    template = (DATA / "chat_templates" / f"{name}.jinja").read_text()
    folder = put(tmp_path / "m", template, own)
    end = ENDS.get(name, SPECIALS[name][1])
    has_it = end in SPECIALS[own][2] or end == SPECIALS[own][1]
    assert ("template-tokens-split" in ask(folder)) is not has_it


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared templates are not beside the checkout")
@pytest.mark.parametrize("name", ["chatml", "gemma-it", "llama-3-instruct", "phi-3"])
@pytest.mark.parametrize("kept", ["added", "decoder", "nowhere"])
def test_markers_that_are_only_in_the_vocabulary_are_cut(tmp_path, name, kept):
    """Loaders add those of `added_tokens_decoder` and those with a role again."""
    template = (DATA / "chat_templates" / f"{name}.jinja").read_text()
    folder = put(tmp_path / "m", template, name)
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    if kept != "added":
        edit_json(folder / "tokenizer.json", added_tokens=[])
    if kept == "decoder":
        decoder = {str(one["id"]): {"content": one["content"]} for one in added}
        edit_json(folder / "tokenizer_config.json", added_tokens_decoder=decoder)

    assert ("template-tokens-split" in ask(folder, "MPD813")) is (kept == "nowhere")


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared stop tokens are not beside the checkout")
@pytest.mark.parametrize("path", sorted((DATA / "generation_configs").glob("*.json")), ids=str)
def test_real_stop_tokens_are_left_in_peace(tmp_path, path):
    published = json.loads(path.read_text())
    template = Path(published["chat_template"]).stem
    begin, end, others = SPECIALS[template]
    turn, several = ENDS.get(template, end), published["stop_token_ids"]
    words = [end, *(word for word in others if word not in (turn, end)), turn]
    words = [word for word in words[: len(several) - 1] if word != turn] + [turn]
    folder = tmp_path / "m"
    folder.mkdir()
    ids = write_tokenizer(folder, begin, end, others)
    write_model(folder, ids, words)
    (folder / "chat_template.jinja").write_text(
        (DATA / "chat_templates" / f"{template}.jinja").read_text()
    )
    assert not ask(folder)


@pytest.fixture(scope="module")
def chatml(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat") / "m"
    save_style(folder, "chatml")
    return folder


def copy(source: Path, target: Path) -> Path:
    target.mkdir()
    for one in source.iterdir():
        (target / one.name).write_bytes(one.read_bytes())
    return target


HOSTILE = {
    "counts": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "doubles": "{% set ns = namespace(t='ab') %}{% for i in range(60) %}"
    "{% set ns.t = ns.t ~ ns.t %}{% endfor %}{{ ns.t }}",
    "multiplies": "{{ 'a' * 10 ** 11 }}",
    "centres": "{{ 'x' | center(10 ** 11) }}",
    "recurses": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "climbs": "{{ ().__class__.__bases__[0].__subclasses__() }}",
    "formats": "{{ '{0.__class__}'.format(messages) }}",
    "writes": "{% for a in range(90000) %}{{ 'wordword' }}{% endfor %}",
    "powers": "{{ 9 ** 999999999 }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_ended_and_reported(chatml, tmp_path, name):
    folder = copy(chatml, tmp_path / "m")
    text = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(HOSTILE[name] + text)
    before = time.monotonic()
    found = ask(folder, "MPD810")
    assert time.monotonic() - before < render.PATIENCE_S + 3
    assert set(found) == ({"template-fails"} if name != "formats" else set(found))


def test_a_child_can_neither_write_a_file_nor_outlive_its_time(tmp_path):
    asked = json.dumps({"a": {"messages": []}})
    (answer,) = render.render(("{% for a in range(99999) %}{{ a }}{% endfor %}",), asked)
    assert answer["a"][0] == "raised"
    assert "more than" in answer["a"][1]


def test_what_the_parent_holds_is_not_gone_through_on_the_time_of_a_template():
    parent, thresholds = os.getpid(), gc.get_threshold()

    def take_long(phase: str, info: object) -> None:
        while os.getpid() != parent:  # as a collection does in the fork of a large process
            pass

    gc.callbacks.append(take_long)
    gc.set_threshold(50)
    try:
        (answer,) = render.render(
            ("{% for a in range(2000) %}{{ [[a]] }}{% endfor %}",), json.dumps({"large": {}})
        )
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(take_long)
    assert isinstance(answer, dict), answer
    assert answer["large"][0] == "text"


def test_a_child_that_is_silent_says_why(monkeypatch):
    asked = json.dumps({"silent": {}})
    (answer,) = render.render(
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",), asked
    )
    assert answer == f"it does not end within {render.SECONDS} s"
    monkeypatch.setattr(render, "PATIENCE_S", 0.05)
    with pytest.raises(Missing, match="too busy"):
        render.render(
            ("{% for b in range(99998) %}{% for a in range(99998) %}{% endfor %}{% endfor %}",),
            asked,
        )


def test_templates_that_take_too_long_together_are_given_up(monkeypatch):
    monkeypatch.setattr(render, "BUDGET_S", 0.5)
    asked = json.dumps({"silent": {}})
    endless = [
        f"{{% for a in range(9999{n}) %}}{{% for b in range(99999) %}}{{% endfor %}}{{% endfor %}}"
        for n in range(3)
    ]
    with pytest.raises(Missing, match=r"longer than 0\.5 s to render"):
        render.render(tuple(endless), asked)


def test_rendering_is_that_of_transformers(chatml):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(chatml)
    messages = [{"role": "user", "content": "Quokkaquestion"}]
    wanted = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert CheckpointEvidence(chatml).get("renderings")[0].texts["question"] == wanted


@pytest.mark.parametrize("name", sorted(set(STYLES) - {"words-without-end"}))
def test_the_end_of_every_style_is_found(tmp_path, name):
    folder = tmp_path / "m"
    save_style(folder, name)
    evidence = CheckpointEvidence(folder)
    chat, stops = evidence.get("chat"), evidence.get("stop_tokens")
    ends = [one.number for one in (*chat.ends, chat.next_turn) if one is not None]
    assert stops.effective & set(ends)
    assert not chat.lost or name == "end-and-text"


def test_a_base_model_with_a_template_gets_a_note_and_a_tuned_one_a_finding(chatml, tmp_path):
    folder = copy(chatml, tmp_path / "m")
    edit_json(folder / "config.json", model_type="qwen2", eos_token_id=0)
    edit_json(folder / "generation_config.json", eos_token_id=0)
    edit_json(folder / "tokenizer_config.json", eos_token="<|endoftext|>", pad_token="<|im_start|>")
    assert ask(folder, "MPD808")["stop-tokens-disagree"].severity is Severity.NOTE
    (folder / "trainer_state.json").write_text("{}")
    assert ask(folder, "MPD808")["stop-tokens-disagree"].severity is Severity.HIGH


def test_two_templates_that_write_the_same_are_fine(chatml, tmp_path):
    folder = copy(chatml, tmp_path / "m")
    text = (folder / "chat_template.jinja").read_text()
    edit_json(folder / "tokenizer_config.json", chat_template="{# older #}" + text)
    assert not ask(folder)


def test_a_refusal_by_intent_is_no_fault(chatml, tmp_path):
    folder = copy(chatml, tmp_path / "m")
    (folder / "chat_template.jinja").write_text("{{ raise_exception('only with tools') }}")
    diagnosis = diagnose(folder, select=["MPD810"])
    assert [r.status for r in diagnosis.probes] == [Status.SKIPPED]
    assert "only with tools" in diagnosis.probes[0].reason
