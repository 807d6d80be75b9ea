"""A run is predicted by its longest row, and a model that cannot be laid out does not stop it."""

from types import SimpleNamespace

import torch
from transformers import LlamaConfig, T5Config

from mudpuppy.config_check import load_config
from mudpuppy.data.render_pairs import PairRow
from mudpuppy.estimate.record import predict_run

CONFIG = load_config({"model": "m", "dataset": "d.jsonl", "output": "o", "method": "full"})
CPU = torch.device("cpu")


def row(length: int) -> SimpleNamespace:
    return SimpleNamespace(input_ids=[0] * length)


def model(settings: object) -> SimpleNamespace:
    return SimpleNamespace(config=settings)


def small() -> LlamaConfig:
    return LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=100,
    )


def test_the_longest_row_counts_and_not_the_bound():
    said: list[str] = []
    long = predict_run(model(small()), CONFIG, [row(8), row(64)], CPU, said.append)
    short = predict_run(model(small()), CONFIG, [row(8), row(16)], CPU, said.append)

    assert 3 * short["activations"] < long["activations"] < 5 * short["activations"]
    assert long["weights"] == short["weights"]
    assert [] == said


def test_of_a_pair_the_longer_answer_counts():
    config = CONFIG.model_copy(update={"method": "dpo", "use_peft": False})

    def run(chosen: int, rejected: int) -> dict[str, int]:
        pair = PairRow(
            prompt_ids=[1] * 4,
            chosen_ids=[2] * chosen,
            rejected_ids=[3] * rejected,
            truncated=False,
        )
        return predict_run(model(small()), config, [pair], CPU, lambda _: None)

    assert run(12, 60) == run(60, 12) == run(60, 60)
    assert 3 * run(12, 12)["activations"] < run(12, 60)["activations"]


def test_what_cannot_be_laid_out_is_told_and_costs_nothing_else():
    said: list[str] = []

    assert {} == predict_run(model(T5Config()), CONFIG, [row(8)], CPU, said.append)
    assert said[0].startswith("no prediction of the memory: a t5 model")
