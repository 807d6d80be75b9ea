"""The guide's advice by the amount of data, and that command and notes say the same."""

import json

import pytest

from harness.probes import rate_unusual
from mudpuppy.cli import main
from mudpuppy.tuning import advise


@pytest.mark.parametrize(
    ("samples", "ranks", "epochs"),
    [
        (1, (8, 16), (5, 10)),
        (999, (8, 16), (5, 10)),
        (1_000, (32, 64), (3, 5)),
        (9_999.5, (32, 64), (3, 5)),
        (10_000, (128, 256), (1, 3)),
    ],
)
def test_the_table_is_the_guides(samples, ranks, epochs):
    assert (ranks, epochs) == (advise(samples).ranks, advise(samples).epochs)


def test_the_usual_rates_of_the_notes_end_where_the_guide_does():
    assert (1e-3, pytest.approx(1e-5)) == (rate_unusual.HIGHEST, rate_unusual.LOWEST)


def test_the_data_command_says_it_where_lora_can_learn(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"instruction": "a", "output": "b"}) + "\n")
    assert 0 == main(["data", str(path)])
    out = capsys.readouterr().out
    assert "rank 8 to 16, alpha 2 x the rank, 5 to 10 epochs" in out
    assert "0.0001, 0.0002, 0.0005, 0.001 in this order" in out
    assert 0 == main(["data", str(path), "--format", "json"])
    assert {"ranks": [8, 16], "epochs": [5, 10]} == json.loads(capsys.readouterr().out)["advice"]
    path.write_text(json.dumps({"prompt": "a", "answer": "b"}) + "\n")
    assert 0 == main(["data", str(path)])
    assert "advice" not in capsys.readouterr().out
