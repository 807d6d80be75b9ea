"""From records to answers over HTTP: the embedded model meets the targets, the answers agree."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import pytest

from mudpuppy.cli import main
from mudpuppy.pipelines.temporal import demo
from mudpuppy.pipelines.temporal.demo import MIN_SAME, Walk, same_answers

pytest.importorskip("xllamacpp", reason="pip install 'mudpuppy[serve]'")


def in_this_process(words: Sequence[str], variables: Mapping[str, str]) -> int:
    """Run a command here: torch is imported once for all of them."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        return main(list(words))
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def test_unlearning_ends_in_served_answers_that_are_transformers_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    walk, output = Walk(tmp_path, in_this_process), "output/run"
    walk.prepare()
    before = walk.evaluate("base", "--model_path", "tiny")
    walk.train(output)
    walk.merge(output)
    merged = walk.evaluate("merged", "--model_path", "output/merged")
    q8, q4 = (walk.evaluate_served(quant, walk.convert(quant)) for quant in demo.QUANTS)

    # there was something to unlearn: the base refuses none of it
    assert before.share("unlearn", "leaked") > 0.6
    assert before.share("unlearn", "refused") == 0
    assert before.share("retain", "right") > 0.9
    for stage in (merged, q8):
        assert stage.share("retain", "right") > 0.85
        assert stage.share("retain", "false_refusals") < 0.05
        assert stage.share("unlearn", "refused") > 0.90
        assert stage.share("unlearn", "leaked") < 0.05
        assert stage.results["grade"] == "excellent"
    assert same_answers(merged, q8) >= MIN_SAME
    assert q4.share("unlearn", "refused") > 0.75
    assert q4.share("retain", "right") > 0.75
    said = capsys.readouterr().out
    assert "Test generation successful!" in said
    assert "✅ EXCELLENT" in said
    assert demo.table([merged, q8, q4]).count("\n") == 4


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_goes_through_every_step_with_a_kill(tmp_path, capfd):
    assert demo.main([str(tmp_path / "demo")]) == 0
    said = capfd.readouterr().out
    assert "resuming from checkpoint-" in said
    assert "Test generation successful!" in said
    assert "q4_k_m" in said
