"""Unlearning and the distance to the base: equivalences of their loss, and what real runs do."""

import json
import math

import pytest
import torch

from mudpuppy.config_check import load_config, unread_settings
from mudpuppy.data.read import read_dataset
from mudpuppy.errors import DatasetError, ModelError, UnsupportedCombination
from mudpuppy.methods import group_loss
from mudpuppy.methods.group_loss import Weights
from mudpuppy.token_scores import TokenScores
from scenarios.loader import SHIPPED
from tests.mudpuppy.methods.runs import run

MODEL = "tiny:llama"
FORGET = SHIPPED / "data/forget.jsonl"


def weights(unlearn="none", weight=1.0, kl=0.0, beta=0.1, most=5.0):
    return Weights(unlearn=unlearn, weight=weight, kl=kl, beta=beta, most=most)


def scored(*, most=4.0):
    torch.manual_seed(5)
    nll = (torch.rand(9) * most).requires_grad_()
    scores = TokenScores(nll=nll, reference_nll=torch.rand(9) * most, kl=torch.rand(9))
    rows = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 3])
    return scores, torch.tensor([True, False, True, False])[rows], rows


def slope(of, scores, forgets, rows):
    scores.nll.grad = None
    of.add_up(scores, forgets, rows).backward()
    return scores.nll.grad.clone()


def test_the_slope_of_ascent_is_minus_that_of_descent_on_forget_rows_alone():
    scores, forgets, rows = scored()

    down, up = (slope(weights(one), scores, forgets, rows) for one in ("none", "gradient-ascent"))

    assert torch.equal(down[forgets], -up[forgets])
    assert torch.equal(down[~forgets], up[~forgets])
    assert torch.equal(torch.ones(9), down)


def test_ascent_ends_where_a_token_is_as_unlikely_as_chance():
    scores, forgets, rows = scored(most=8.0)
    of = weights("gradient-ascent", most=3.0)

    found = slope(of, scores, forgets, rows)

    beyond = (scores.nll > 3.0) & forgets
    assert bool(beyond.any())
    assert float(found[beyond].abs().max()) == 0.0
    far = TokenScores(nll=scores.nll.detach() + 1e6 * forgets)
    least = of.add_up(far, forgets, rows) - far.nll[~forgets].sum()
    assert float(least) == -3.0 * int(forgets.sum())


def test_npo_begins_as_ascent_and_ends_by_itself():
    scores, forgets, rows = scored()
    up = slope(weights("gradient-ascent", weight=2.0), scores, forgets, rows)
    start = TokenScores(nll=scores.nll, reference_nll=scores.nll.detach())

    torch.testing.assert_close(slope(weights("npo", weight=2.0), start, forgets, rows), up)

    far = TokenScores(nll=scores.nll, reference_nll=scores.nll.detach() - 300.0)
    found = slope(weights("npo"), far, forgets, rows)
    assert float(found[forgets].abs().max()) < 1e-6
    assert float(weights("npo").add_up(far, forgets, rows)) >= 0.0


def test_npo_is_the_papers_formula_row_by_row():
    scores, forgets, rows = scored()
    beta = 0.3
    loss = weights("npo", beta=beta).add_up(scores, forgets, rows)

    wanted = float(scores.nll[~forgets].sum())
    for row in (0, 2):
        ours, base = (
            math.exp(-float(x[rows == row].double().sum()))
            for x in (scores.nll, scores.reference_nll)
        )
        wanted += 2 / beta * math.log(1 + (ours / base) ** beta)
    assert math.isclose(float(loss), wanted, rel_tol=1e-5)


def test_the_distance_is_that_of_kept_rows():
    scores, forgets, rows = scored()

    plain, near = (weights(kl=kl).add_up(scores, forgets, rows) for kl in (0.0, 0.5))

    assert math.isclose(float(near - plain), 0.5 * float(scores.kl[~forgets].sum()), rel_tol=1e-5)


def first_loss(folder, name, **settings):
    losses, record = run(MODEL, folder / name, dataset=FORGET, learning_rate=5e-3, **settings)
    return losses, record


def metrics(folder, name):
    lines = (folder / name / "steps.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["metrics"] for line in lines]


def test_with_a_distance_the_first_loss_is_plain_fine_tunings(tmp_path):
    plain, _ = first_loss(tmp_path, "plain")
    near, record = first_loss(tmp_path, "near", retain_kl=2.0)

    assert math.isclose(plain[0], near[0], rel_tol=1e-6)
    assert near[1:] != plain[1:]
    found = metrics(tmp_path, "near")
    assert found[0]["retain_kl"] == 0.0
    assert found[-1]["retain_kl"] > 0.0
    assert record.choices["reference"].value == "the model with the adapter off"


@pytest.mark.parametrize("unlearn", ["gradient-ascent", "npo"])
def test_forget_rows_become_unlikely_and_the_others_likely(tmp_path, unlearn):
    first_loss(tmp_path, "run", unlearn=unlearn, max_steps=12, batch_size=8)

    found = metrics(tmp_path, "run")
    assert found[-1]["forget_nll"] > found[0]["forget_nll"]
    assert found[-1]["retain_nll"] < found[0]["retain_nll"]


@pytest.mark.parametrize("unlearn", ["gradient-ascent", "npo"])
@pytest.mark.parametrize(
    "settings",
    [{"batch_size": 2, "gradient_accumulation": 4}, {"batch_size": 4, "gradient_accumulation": 2}],
)
def test_accumulated_batches_are_one_large_batch(tmp_path, unlearn, settings):
    whole, _ = first_loss(tmp_path, "whole", unlearn=unlearn, retain_kl=0.5, batch_size=8)
    parts, _ = first_loss(tmp_path, "parts", unlearn=unlearn, retain_kl=0.5, **settings)

    assert whole == pytest.approx(parts, rel=1e-4)


@pytest.mark.parametrize("unlearn", ["gradient-ascent", "npo"])
def test_packed_rows_are_the_same_rows(tmp_path, unlearn):
    """All rows in one step, whichever way: three packed rows, or one batch of 24."""
    given = {"unlearn": unlearn, "retain_kl": 0.5, "max_length": 1024, "max_steps": 2}
    plain, _ = first_loss(tmp_path, "plain", batch_size=24, **given)
    packed, _ = first_loss(tmp_path, "packed", packing=True, batch_size=8, **given)

    assert plain == pytest.approx(packed, rel=1e-4)


@pytest.mark.parametrize("settings", [{"method": "full", "learning_rate": 1e-3}, {"adapter": True}])
def test_without_a_fresh_adapter_the_reference_is_a_copy_that_stays(tmp_path, settings):
    if settings.get("adapter"):
        first_loss(tmp_path, "before")
        settings = {"adapter": tmp_path / "before"}
    given = {"learning_rate": 5e-3, **settings}
    losses, record = run(
        MODEL, tmp_path / "run", dataset=FORGET, unlearn="npo", retain_kl=1.0, max_steps=6, **given
    )

    found = metrics(tmp_path, "run")
    assert abs(found[0]["retain_kl"]) < 1e-6
    assert found[-1]["retain_kl"] > 1e-5
    assert "a frozen copy of the model" in record.choices["reference"].value
    assert all(map(math.isfinite, losses))


def test_an_answers_end_is_not_forgotten(tmp_path):
    _, record = first_loss(tmp_path, "run", unlearn="npo")

    assert record.labels is not None
    assert record.labels.samples == 24
    assert record.labels.samples_ending_in_eos == 12
    assert record.labels.eos_tokens == 12


def test_samples_of_pairs_train_by_preference(tmp_path):
    from mudpuppy.data.refusal_pairs import make_pairs

    pairs = make_pairs(read_dataset(FORGET, "lora").samples)

    losses, _ = run(MODEL, tmp_path / "run", dataset=FORGET, samples=pairs, method="dpo")

    assert losses[0] == pytest.approx(math.log(2), rel=1e-4)


def test_a_set_without_marks_is_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(DatasetError, match="no row is to be forgotten"):
        run("tiny:llama", tmp_path / "run", unlearn="npo")
    assert not (tmp_path / "run").exists()


def test_a_router_with_a_loss_of_its_own_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(
        group_loss.GroupObjective,
        "aux_loss_enabled",
        property(lambda _: True, lambda *_: None),
        raising=False,
    )
    with pytest.raises(ModelError, match="router"):
        first_loss(tmp_path, "run", unlearn="gradient-ascent")


def settings(tmp_path, **more):
    return {"model": "tiny", "dataset": FORGET, "output": tmp_path, **more}


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"method": "dpo", "unlearn": "npo"}, "MP-R42"),
        ({"method": "qat", "retain_kl": 1.0}, "MP-R42"),
        ({"unlearn": "npo", "response_only": False}, "MP-R43"),
        ({"method": "full", "unlearn": "npo", "stream": True}, "MP-R44"),
        ({"retain_kl": 1.0, "compile": True}, "MP-R45"),
    ],
)
def test_what_cannot_be_unlearnt_with_is_refused_by_code(tmp_path, more, code):
    with pytest.raises(UnsupportedCombination) as caught:
        load_config(settings(tmp_path, **more))
    assert [code] == list(caught.value.codes)


def test_settings_that_nothing_reads_are_told(tmp_path):
    config = load_config(settings(tmp_path, unlearn_weight=2.0, beta=0.3))
    npo = load_config(settings(tmp_path, unlearn="npo", unlearn_weight=2.0, beta=0.3))

    assert ("beta", "unlearn_weight") == unread_settings(config)
    assert () == unread_settings(npo)
