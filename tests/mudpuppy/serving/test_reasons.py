"""What llama.cpp logs, and how its process ends, becomes a reason and a thing to do."""

from __future__ import annotations

import pytest

from mudpuppy.serving.reasons import explain_end, explain_log

LOG = """\
0.00.041 I srv    load_model: loading model
0.00.043 I llama_model_loader: loaded meta data with 20 key-value pairs
{line}
0.00.044 E llama_model_load_from_file_impl: failed to load model
0.00.044 E srv    load_model: failed to load model, 'x.gguf'
0.00.045 E srv  main: exiting due to model loading error
"""


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "0.00.043 E llama_model_load: error loading model: unknown model architecture: 'frog'",
            "it knows no architecture 'frog'",
        ),
        (
            "0.00.043 E llama_model_load: error loading model: error loading model vocabulary: "
            "unknown pre-tokenizer type: 'frog'",
            "it knows no pre-tokenizer 'frog', so it would cut texts in other places",
        ),
        (
            "0.00.043 E llama_model_load: error loading model: missing tensor 'output.weight'",
            "the tensor output.weight is missing",
        ),
        (
            "0.00.043 E llama_model_load: error loading model: check_tensor_dims: tensor "
            "'token_embd.weight' has wrong shape; expected 64, 512, got 64, 500, 1, 1",
            "the tensor token_embd.weight has the shape 64, 500, 1, 1, and the settings ask for "
            "64, 512",
        ),
        (
            "0.00.043 E llama_model_load: error loading model: tensor 'blk.0.attn_q.weight' data "
            "is not within the file bounds, model is corrupted or incomplete",
            "the file ends before its tensors do: it was copied or written in part",
        ),
        (
            "0.00.043 E llama_model_load: error loading model: error loading model "
            "hyperparameters: key not found in model: llama.context_length",
            "the setting llama.context_length is missing",
        ),
        (
            "0.00.043 E llama_model_load: error loading model: something new",
            "something new",
        ),
        ("0.00.043 E ggml_new: the frog failed", "the frog failed"),
        ("", ""),
    ],
)
def test_the_reason_is_found_among_the_lines(line, said):
    assert explain_log(LOG.format(line=line))[0] == said


def test_a_log_cannot_repaint_the_terminal_or_fill_it():
    reason, _ = explain_log(LOG.format(line="0 E x: error loading model: \x1b[2J" + "a" * 9000))
    assert "\x1b" not in reason
    assert len(reason) <= 400


@pytest.mark.parametrize(
    ("code", "said", "typed"),
    [
        (-11, "SIGSEGV", "mudpuppy-doctor"),
        (-4, "SIGILL", "instructions that the CPU has not"),
        (-9, "SIGKILL", "--ctx-size"),
        (-77, "signal 77", ""),
        (1, "exit code 1", ""),
    ],
)
def test_the_end_of_a_process_is_named(code, said, typed):
    how, hint = explain_end(code)
    assert said in how
    assert typed in hint
