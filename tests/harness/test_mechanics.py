"""Whether layers are streamed is seen, of trained, frozen and packed weights."""

import pytest

from harness.mechanics import MechanicsWatcher
from mudpuppy.memory.streaming import stream_layers
from mudpuppy.quant.formats import FORMATS
from mudpuppy.quant.linear4bit import replace_linears
from tests.mudpuppy.quant.tiny_llama import make_ids, make_llama


@pytest.mark.parametrize("form", ["trained", "frozen", "packed"])
@pytest.mark.parametrize("is_streamed", [False, True])
def test_streaming_is_seen_whatever_the_weights_are(form, is_streamed):
    model = make_llama()
    if form == "packed":
        replace_linears(model, FORMATS["nf4"])
    model.train()
    model.model.layers.requires_grad_(form == "trained")
    stream = stream_layers(model, "cpu") if is_streamed else None
    watcher = MechanicsWatcher(model)
    model(make_ids(), labels=make_ids(), use_cache=False).loss.backward()
    seen = watcher.conclude()
    if stream is not None:
        stream.remove()
    assert seen is not None
    assert seen.streamed is is_streamed
    assert (seen.calls_per_batch > 1) is is_streamed
