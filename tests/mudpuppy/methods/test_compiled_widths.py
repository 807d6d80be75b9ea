"""Where a model is compiled every batch has one of few widths, and the padding changes nothing."""

import pytest
import torch

from mudpuppy.methods.trainers import COMPILED_MULTIPLE
from mudpuppy.tiny import resolve_model
from tests.mudpuppy.methods import pairs, runs

SAMPLES = {
    "full": None,
    "dpo": pairs.pairs,
    "kto": pairs.labelled,
    "orpo": pairs.pairs,
    "rm": pairs.pairs,
    "prm": pairs.solutions,
}


class Widths:
    """A watcher that notes how wide the batches are."""

    def __init__(self):
        self.seen = set()

    def on_prepared(self, model, tokenizer, samples, eos_ids):
        del tokenizer, samples, eos_ids

        def note(module, args, words):
            del module, args
            self.seen.add(words["input_ids"].shape[1])

        self.hook = model.register_forward_pre_hook(note, with_kwargs=True)

    def on_fitted(self, model):
        del model
        self.hook.remove()


@pytest.mark.parametrize("method", SAMPLES)
def test_compiled_batches_share_a_width_and_learn_the_same(method, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)  # the widths alone are asked
    base = resolve_model("tiny:llama")
    samples = SAMPLES[method] and SAMPLES[method]()
    found = {}
    for compiled in (False, True):
        seen = Widths()
        losses, _ = runs.run(
            base,
            tmp_path / f"{method}-{compiled}",
            samples=samples,
            watcher=seen,
            method=method,
            compile=compiled,
            batch_size=2,
        )
        found[compiled] = losses, seen.seen

    assert {width % COMPILED_MULTIPLE for width in found[True][1]} == {0}
    assert len(found[True][1]) <= len(found[False][1])
    assert found[True][0] == pytest.approx(found[False][0], rel=1e-5)
