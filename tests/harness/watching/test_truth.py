"""The independent rendering says the same as the engine, for every method and every form."""

import json
from pathlib import Path

import pytest
from transformers import AutoProcessor

from harness.watching.truth import BETTER, IGNORED, PROMPT, WORSE, Rendering, read_truth
from mudpuppy.config_check import load_config
from mudpuppy.data.read import read_dataset
from mudpuppy.loading import open_for_text
from mudpuppy.methods.family import find_family
from mudpuppy.tiny import resolve_model
from scenarios.loader import SHIPPED

DATA = SHIPPED / "data"
CASES = [
    ("lora", "new_facts.jsonl", {}),
    ("lora", "new_facts.jsonl", {"chat_template": False}),
    ("lora", "new_facts.jsonl", {"response_only": False}),
    ("lora", "new_facts.jsonl", {"max_length": 24}),
    ("dpo", "preferences.jsonl", {}),
    ("dpo", "preferences.jsonl", {"chat_template": False}),
    ("dpo", "preferences.jsonl", {"max_length": 32}),
    ("orpo", "preferences.jsonl", {"response_only": False}),
    ("rm", "preferences.jsonl", {}),
    ("kto", "labelled.jsonl", {}),
    ("kto", "labelled.jsonl", {"max_length": 32}),
    ("prm", "steps.jsonl", {}),
    ("grpo", "prompts.jsonl", {}),
    ("grpo", "prompts.jsonl", {"chat_template": False}),
    ("multimodal", "pictures.jsonl", {}),
    ("multimodal", "pictures.jsonl", {"response_only": False}),
]


def render(method: str, name: str, settings: dict, model: str):
    """Return the engine's rows as keys, and the independent rendering."""
    base = resolve_model("tiny:llava" if method == "multimodal" else model)
    more = {"reward_funcs": ["length"]} if method == "grpo" else {}
    config = load_config(
        {
            "model": base,
            "dataset": DATA / name,
            "output": "out",
            "method": method,
            "max_length": 128,
            **more,
            **settings,
        }
    )
    family = find_family(method)
    loaded = open_for_text(base, config, family.form)
    samples = read_dataset(config.dataset, method).samples
    rows = family.render(loaded, samples, config)
    tools = AutoProcessor.from_pretrained(base) if method == "multimodal" else loaded.tokenizer
    truth = read_truth(
        config.dataset,
        method,
        tools,
        loaded.eos_ids,
        max_length=config.max_length,
        chat_template=config.chat_template,
        response_only=config.response_only,
    )
    return [key for row in rows for key in keys_of(row, config)], truth


def keys_of(row, config):
    if hasattr(row, "rejected_ids"):
        for part, answer in ((BETTER, row.chosen_ids), (WORSE, row.rejected_ids)):
            yield key(part, row.prompt_ids, answer, config)
    elif hasattr(row, "completion_ids"):
        yield key(BETTER if row.label else WORSE, row.prompt_ids, row.completion_ids, config)
    elif hasattr(row, "fields"):
        yield PROMPT, tuple(row.input_ids), ()
    else:
        targets = row.judged if hasattr(row, "judged") else row.labels
        yield "", tuple(row.input_ids), (IGNORED, *targets[1:])


def key(part, prompt, answer, config):
    ids = [*prompt, *answer]
    is_whole = config.method == "orpo" and not config.response_only
    start = 1 if is_whole else len(prompt)
    return part, tuple(ids), tuple([IGNORED] * start + ids[start:])


@pytest.mark.parametrize("model", ["tiny:llama", "tiny:qwen3"])
@pytest.mark.parametrize(("method", "name", "settings"), CASES)
def test_engine_and_independent_rendering_agree_on_every_id_and_target(
    method, name, settings, model
):
    keys, truth = render(method, name, settings, model)

    assert keys
    assert set(keys) <= set(truth.expected)
    if "max_length" not in settings:
        assert len(keys) == sum(truth.expected.values())


def test_plain_texts_are_read_too(tmp_path: Path):
    loaded = open_for_text(
        resolve_model("tiny:llama"),
        load_config({"model": "tiny:llama", "dataset": "x", "output": "y"}),
        find_family("lora").form,
    )
    rendering = Rendering("lora", loaded.tokenizer, loaded.eos_ids, tmp_path, max_length=99)
    ((_, ids, targets),) = rendering.render({"prompt": "Who? ", "completion": "A mud puppy."})
    ((_, whole, all_but_first),) = rendering.render({"text": "Water is wet."})

    prompt = [i for i, t in zip(ids, targets, strict=True) if t == IGNORED]
    assert "Who? " == loaded.tokenizer.decode(prompt)
    assert targets[-1] in loaded.eos_ids
    assert whole[1:] == all_but_first[1:]


def test_a_form_that_is_not_read_here_is_no_truth(tmp_path: Path):
    assert read_truth(tmp_path / "x.parquet", "lora", None, frozenset(), max_length=9) is None


def test_a_swapped_pair_is_none_of_the_datasets(tmp_path: Path):
    keys, truth = render("dpo", "preferences.jsonl", {}, "tiny:llama")
    swap = {BETTER: WORSE, WORSE: BETTER}

    assert not any(truth.holds((swap[part], ids, targets)) for part, ids, targets in keys)


def test_a_row_that_the_dataset_has_twice_may_come_twice(tmp_path: Path):
    line = json.loads((DATA / "steps.jsonl").read_text().splitlines()[0])
    path = tmp_path / "twice.jsonl"
    path.write_text(f"{json.dumps(line)}\n" * 2)
    loaded = open_for_text(
        resolve_model("tiny:llama"),
        load_config({"model": "tiny:llama", "dataset": "x", "output": "y"}),
        find_family("prm").form,
    )

    truth = read_truth(path, "prm", loaded.tokenizer, loaded.eos_ids, max_length=99)
    assert [2] == list(truth.expected.values())


@pytest.mark.parametrize("max_length", [24, 128])
def test_only_what_is_longer_than_allowed_counts_as_cut(max_length):
    _, truth = render("lora", "new_facts.jsonl", {"max_length": max_length}, "tiny:llama")
    longest = max(len(ids) for _, ids, _ in truth.expected)

    cut = [one for one in truth.expected if truth.cuts(one)]
    assert bool(cut) is (max_length == 24)
    assert all(len(ids) == max_length for _, ids, _ in cut)
    assert longest <= max_length
