"""A chat template of Jinja becomes one of Go that says the same, or none at all."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mudpuppy.export.go_template import NotDerivable, derive
from tests.mudpuppy.export import go_templates

TURN = "'<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n'"
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
TEMPLATES = {
    "chatml": "{% for m in messages %}{{ " + TURN + " }}{% endfor %}" + ASK,
    "default system": (
        "{% if messages[0].role != 'system' %}"
        "{{ '<|im_start|>system\\nYou are a frog.<|im_end|>\\n' }}{% endif %}"
        "{% for m in messages %}{{ " + TURN + " }}{% endfor %}" + ASK
    ),
    "with bos": (
        "{{ bos_token }}{% for m in messages %}{{ '<|h|>' + m.role + '<|/h|>\\n\\n' + "
        "(m.content | trim) + '<|eot|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|h|>assistant<|/h|>\\n\\n' }}{% endif %}"
    ),
    "brackets": (
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}"
        "{% endif %}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + "
        "' [/INST]' }}{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% endif %}"
        "{% endfor %}"
    ),
    "inside the turn": (
        "{{ bos_token }}{% set lead = '' %}{% if messages[0].role == 'system' %}"
        "{% set lead = messages[0].content + '\\n\\n' %}{% set messages = messages[1:] %}"
        "{% endif %}{% for m in messages %}{{ '<turn>' + ('model' if m.role == 'assistant' else "
        "m.role) + '\\n' + (lead if loop.first else '') + m.content + '</turn>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<turn>model\\n' }}{% endif %}"
    ),
    "no system": (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}{{ '<turn>' + m.role + '\\n' + m.content + '</turn>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<turn>assistant\\n' }}{% endif %}"
    ),
    "thoughts are cut": (
        "{% for m in messages %}{% set said = m.content.split('</think>')[-1] %}"
        "{{ '<|im_start|>' + m.role + '\\n' + said + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
    ),
}
UNDERIVABLE = {
    "counts turns": "{% for m in messages %}{{ loop.index ~ m.content ~ '\\n' }}{% endfor %}",
    "last turn alone": "{{ messages[-1].content }}",
    "twice": "{% for m in messages %}{{ m.content + '|' + m.content }}{% endfor %}",
    "shouts": "{% for m in messages %}{{ '<' + (m.content | upper) + '>' }}{% endfor %}",
    "raises": "{{ raise_exception('no') }}",
    "braces": "{% for m in messages %}{{ '{' + '{' + m.content + '<e>' }}{% endfor %}",
    "quotes": "{% for m in messages %}{{ '\"\"\"' + m.content + '<e>' }}{% endfor %}",
    "bell": "{% for m in messages %}{{ '\\x07' + m.content + '<e>' }}{% endfor %}",
    "bos in every turn": (
        "{% for m in messages %}{{ bos_token + m.role + m.content + '<e>' }}{% endfor %}"
    ),
}


def raise_exception(message):
    raise ValueError(message)


def jinja(source, turns, prompt):
    world = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    messages = [{"role": role, "content": words} for role, words in turns]
    words = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": prompt}
    return world.from_string(source).render(
        messages=messages, raise_exception=raise_exception, **words
    )


def conversations(words):
    """Conversations as Ollama hands them on: a system prompt or none, then by turns."""
    turns = st.lists(words, min_size=1, max_size=5).filter(lambda found: len(found) % 2)
    roles = ("user", "assistant")
    return st.tuples(st.none() | words, turns).map(
        lambda made: [
            *([("system", made[0])] if made[0] else []),
            *((roles[place % 2], said) for place, said in enumerate(made[1])),
        ]
    )


WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1).filter(
    lambda text: "</think>" not in text
)


@pytest.mark.parametrize("name", TEMPLATES)
@given(turns=conversations(WORDS))
def test_a_go_template_says_what_the_jinja_template_says(name, turns):
    render = partial(jinja, TEMPLATES[name])
    form, _ = derive(render, bos="<s>", adds_bos=False)
    if form.system is None:
        turns = [one for one in turns if one[0] != "system"]
    assert go_templates.render(form.to_go(), turns) == render(turns, True)


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_the_reader_adds_is_not_written_twice(name):
    render = partial(jinja, TEMPLATES[name])
    form, _ = derive(render, bos="<s>", adds_bos=True)
    for turns in ([("user", "Hello")], [("system", "Be brief."), ("user", "Hello")]):
        if turns[0][0] == "system" and form.system is None:
            continue
        made = go_templates.render(form.to_go(), turns)
        assert made == render(turns, True).removeprefix("<s>")


def test_what_a_template_does_besides_is_known():
    systems = {
        name: derive(partial(jinja, text), bos="<s>", adds_bos=False)
        for name, text in TEMPLATES.items()
    }
    assert {name for name, (_, trims) in systems.items() if trims} == {"with bos"}
    assert {name for name, (form, _) in systems.items() if form.system is None} == {"no system"}
    assert {name for name, (form, _) in systems.items() if form.is_inside} == {"inside the turn"}


@pytest.mark.parametrize("name", UNDERIVABLE)
def test_what_has_no_counterpart_is_not_written(name):
    with pytest.raises(NotDerivable):
        derive(partial(jinja, UNDERIVABLE[name]), bos="<s>", adds_bos=True)[0].to_go()


def test_templates_of_the_wild_are_derived():
    folder = Path(__file__).parents[4] / "shared/data/chat_templates"
    if not folder.is_dir():
        pytest.skip("shared/data is not beside the checkout")
    underivable = set()
    for path in sorted(folder.glob("*.jinja")):
        render = partial(jinja, path.read_text())
        try:
            form, _ = derive(render, bos="<s>", adds_bos=False)
        except NotDerivable:
            underivable.add(path.stem)
            continue
        turns = [("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi."), ("user", "So?")]
        assert go_templates.render(form.to_go(), turns) == render(turns, True), path.stem
    assert not underivable
