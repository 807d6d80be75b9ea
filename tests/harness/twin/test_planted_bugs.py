"""Every kind of planted bug is found by the probe that is meant for it."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
import transformers
from trl import DPOTrainer, GRPOTrainer

from mudpuppy import engine
from mudpuppy.adapters import shard_merge
from mudpuppy.memory.offload import OffloadedAdamW
from mudpuppy.methods import fitting, preference
from mudpuppy.methods.batching import ChunkedLoss
from tests.harness.twin.runs import findings, run


def shift_labels(patch):
    original = fitting.as_dataset
    shifted = lambda rows: [replace(row, labels=[-100, *row.labels[:-1]]) for row in rows]  # noqa: E731
    patch(fitting, "as_dataset", lambda rows: original(shifted(rows)))


def train_on_prompts(patch):
    original = fitting.as_dataset
    whole = lambda rows: [replace(row, labels=list(row.input_ids)) for row in rows]  # noqa: E731
    patch(fitting, "as_dataset", lambda rows: original(whole(rows)))


def divide_twice(patch):
    original = ChunkedLoss.compute_loss
    patch(
        ChunkedLoss,
        "compute_loss",
        lambda self, *words, **named: (
            original(self, *words, **named) / self.args.gradient_accumulation_steps
        ),
    )


def forget_accumulated(patch):
    original = transformers.Trainer.training_step

    def step(self, model, *words, **named):
        model.zero_grad()
        return original(self, model, *words, **named)

    patch(transformers.Trainer, "training_step", step)


def leak_between_documents(patch):
    @contextmanager
    def attending_to_all(model):
        def blur(module, args, named):
            named.pop("document_lengths", None)
            if "input_ids" in named:
                named["attention_mask"] = torch.ones_like(named["input_ids"])
            return args, named

        hook = model.register_forward_pre_hook(blur, with_kwargs=True)
        yield
        hook.remove()

    patch(engine, "attending_by_document", attending_to_all)


def with_arguments(**changes):
    def plant(patch):
        original = fitting.shared_arguments
        patch(fitting, "shared_arguments", lambda *w, **named: {**original(*w, **named), **changes})

    return plant


def double_alpha(patch):
    original = engine.attach_adapter

    def attach(*words):
        model = original(*words)
        for part in model.modules():
            if isinstance(getattr(part, "scaling", None), dict):
                part.scaling = {name: 2 * value for name, value in part.scaling.items()}
        return model

    patch(engine, "attach_adapter", attach)


def split_by(change):
    def plant(patch):
        original = fitting.split_samples
        patch(fitting, "split_samples", lambda rows, config: change(*original(rows, config)))

    return plant


def swap_answers(patch):
    original = fitting.as_dataset
    swapped = lambda rows: [  # noqa: E731
        replace(row, chosen_ids=row.rejected_ids, rejected_ids=row.chosen_ids) for row in rows
    ]
    patch(fitting, "as_dataset", lambda rows: original(swapped(rows)))


def prefer_the_worse(patch):
    original = DPOTrainer._compute_loss

    def compute(self, model, inputs, return_outputs):
        half = len(inputs["input_ids"]) // 2
        turned = {name: value.roll(half, 0) for name, value in inputs.items()}
        return original(self, model, turned, return_outputs)

    patch(DPOTrainer, "_compute_loss", compute)


def ignore_beta(patch):
    original = preference._make
    patch(
        preference,
        "_make",
        lambda parts, *words: original(
            replace(parts, config=parts.config.model_copy(update={"beta": None})), *words
        ),
    )


def scale_advantages(patch):
    original = GRPOTrainer._generate_and_score_completions

    def generate(self, inputs):
        made = original(self, inputs)
        return {**made, "advantages": made["advantages"] * 0.5 + 0.1}

    patch(GRPOTrainer, "_generate_and_score_completions", generate)


def lose_an_update(patch):
    original = OffloadedAdamW.step

    def step(self, closure=None):
        lost = self.param_groups[0]["params"][0]
        before = lost.detach().clone()
        original(self, closure)
        with torch.no_grad():
            lost.copy_(before)

    patch(OffloadedAdamW, "step", step)


def forget_moments(patch):
    original = torch.optim.AdamW.step

    def step(self, closure=None):
        self.state.clear()
        return original(self, closure)

    step.hooked = True  # the original calls the hooks already
    patch(torch.optim.AdamW, "step", step)


def write_between_steps(patch):
    original = transformers.Trainer.training_step

    def step(self, model, *words, **named):
        with torch.no_grad():
            next(p for p in model.parameters() if p.requires_grad).mul_(1.001)
        return original(self, model, *words, **named)

    patch(transformers.Trainer, "training_step", step)


def keep_the_last(patch):
    patch(transformers.Trainer, "_load_best_model", lambda self: None)


def merge_nothing(patch):
    original = shard_merge.plan_merge

    def plan(*words, **named):
        whole = original(*words, **named)
        return replace(whole, outputs=tuple(replace(o, change=None) for o in whole.outputs))

    patch(shard_merge, "plan_merge", plan)


ACCUMULATED = {"gradient_accumulation": 2, "batch_size": 2}
STOPPING = {"early_stopping": 3, "eval_fraction": 0.25, "eval_steps": 1, "max_steps": 3}
BUGS = [
    ("labels off by one", shift_labels, "MPD725", "lora", {}),
    ("prompts are trained", train_on_prompts, "MPD725", "lora", {}),
    ("loss divided twice", divide_twice, "MPD722", "lora", ACCUMULATED),
    ("accumulation forgotten", forget_accumulated, "MPD723", "lora", ACCUMULATED),
    ("packed rows see each other", leak_between_documents, "MPD722", "full", {"packing": True}),
    (
        "scheduler ignored",
        with_arguments(lr_scheduler_type="linear"),
        "MPD724",
        "lora",
        {"lr_scheduler": "cosine", "max_steps": 3},
    ),
    (
        "warm-up ignored",
        with_arguments(warmup_steps=0),
        "MPD724",
        "lora",
        {"warmup_steps": 1},
    ),
    ("clip missing", with_arguments(max_grad_norm=1e9), "MPD723", "full", {}),
    ("decay ignored", with_arguments(weight_decay=0.0), "MPD724", "full", {"weight_decay": 0.1}),
    ("batch size ignored", with_arguments(per_device_train_batch_size=2), "MPD725", "lora", {}),
    ("alpha doubled", double_alpha, "MPD723", "lora", {}),
    (
        "rows skipped",
        split_by(lambda train, held: (train[:-2], held)),
        "MPD725",
        "lora",
        {"max_steps": None, "epochs": 1},
    ),
    (
        "rows repeated",
        split_by(lambda train, held: ([*train[:-1], train[0]], held)),
        "MPD725",
        "lora",
        {"max_steps": None, "epochs": 1},
    ),
    (
        "held-out rows trained",
        split_by(lambda train, held: ([*held, *train], held)),
        "MPD725",
        "lora",
        STOPPING,
    ),
    ("answers swapped in the rows", swap_answers, "MPD725", "dpo", {}),
    ("answers swapped in the loss", prefer_the_worse, "MPD723", "dpo", {}),
    ("beta ignored", ignore_beta, "MPD722", "ipo", {"beta": 0.5}),
    ("beta ignored", ignore_beta, "MPD723", "dpo", {"beta": 0.5}),
    ("advantages not earned", scale_advantages, "MPD722", "grpo", {}),
    ("an update lost", lose_an_update, "MPD726", "full", {"zero_offload": True}),
    ("moments forgotten", forget_moments, "MPD726", "lora", {}),
    ("weights written between steps", write_between_steps, "MPD726", "lora", {}),
    (
        "the last instead of the best",
        keep_the_last,
        "MPD728",
        "lora",
        {**STOPPING, "learning_rate": 0.9},
    ),
    ("merge does nothing", merge_nothing, "MPD729", "lora", {"merge_lora": True}),
]


@pytest.mark.parametrize(
    ("plant", "code", "method", "settings"),
    [bug[1:] for bug in BUGS],
    ids=[bug[0].replace(" ", "-") + "-" + bug[3] for bug in BUGS],
)
def test_the_probe_meant_for_it_finds_a_planted_bug(
    plant, code, method, settings, tmp_path, monkeypatch
):
    plant(monkeypatch.setattr)

    found = findings(run(tmp_path, method, **settings))

    assert code in found, found


def test_another_order_of_the_rows_is_no_fault(tmp_path, monkeypatch):
    with_arguments(data_seed=99)(monkeypatch.setattr)

    assert not findings(run(tmp_path, "lora", max_steps=None, epochs=2))


def test_the_finding_names_step_expected_and_found(tmp_path, monkeypatch):
    with_arguments(lr_scheduler_type="constant")(monkeypatch.setattr)

    message = findings(run(tmp_path, "lora"))["MPD724"]

    assert message == "learning rate of step 2: found [0.005], asked for 0.0025"
