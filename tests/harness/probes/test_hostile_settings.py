"""No value that JSON can hold makes a probe of chats, rope, counts or tokenizers crash."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from harness.doctor import diagnose
from harness.findings import Status
from harness.selftest.healthy.chat_models import save_style, write_old_form
from tests.harness.probes.test_chat_probes import AREA, copy

ROUNDS = 25
"""Mutated folders of each file; some thousand were tried by hand."""
STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3.5, -0.0, 1e308, 10**30, "", "x", "<|im_end|>", "\ud800"),
    *([], {}, [[]], [None], {"content": None}, {"content": "</s>"}, [1, "a", None, 2.5]),
    *({"type": "Sequence", "processors": [None, {}]}, float("nan"), "\x1b[31m", "{{", "9" * 400),
)
FILES = (
    *("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"),
    *("special_tokens_map.json", "added_tokens.json"),
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A chat model of the old form, and another one as its base."""
    room = tmp_path_factory.mktemp("hostile")
    for name in ("base", "m"):
        save_style(room / name, "headers")
    write_old_form(room / "m")
    (room / "m" / "added_tokens.json").write_text('{"<|eot_id|>": 2}')
    return room


def mutate(value: Any, chance: random.Random, depth: int = 0) -> Any:
    """Return the value with one part replaced, dropped or doubled."""
    if isinstance(value, dict) and value and (depth == 0 or chance.random() < 0.8):
        key = chance.choice(sorted(value))
        if chance.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: mutate(value[key], chance, depth + 1)}
    if isinstance(value, list) and value and chance.random() < 0.7:
        at = chance.randrange(len(value))
        return [*value[:at], mutate(value[at], chance, depth + 1), *value[at + 1 :]]
    return chance.choice(STRANGE)


@pytest.mark.parametrize("name", FILES)
def test_no_value_crashes_a_probe(pair, tmp_path, name):
    chance = random.Random(name)
    for number in range(ROUNDS):
        folder = copy(pair / "m", tmp_path / str(number))
        value = json.loads((folder / name).read_text())
        for _ in range(chance.choice((1, 1, 2, 4))):
            value = mutate(value, chance)
        (folder / name).write_text(json.dumps(value))
        check(folder, pair / "base")
        check(pair / "m", folder) if name != "config.json" else None


def check(folder: Path, base: Path) -> None:
    results = diagnose(folder, base=base, select=AREA).probes
    crashed = [(r.code, r.reason) for r in results if r.status is Status.CRASHED]
    assert not crashed, crashed
    json.dumps([[e.found, e.expected] for r in results for e in r.evidence], allow_nan=False)
