"""Bugs in forgetting rows, and in keeping others near the untrained model."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from harness.mutants.form import change_rows, change_settings, mutant, part, replaces


@mutant("lora-ascent", caught_by="MPD722")
def ascent_is_descent() -> None:
    """Lose the minus: the rows to forget are learnt by heart."""

    @replaces(part("methods.group_loss:Weights"), "_forget")
    def forget(original: Any, self: Any, *words: Any) -> Any:
        return -original(self, *words)


@mutant("lora-ascent", "lora-npo", caught_by="MPD722")
def kept_rows_ascended() -> None:
    """Mix the groups up in the loss: what was to be kept is forgotten."""

    @replaces(part("methods.group_loss:Weights"), "add_up")
    def add_up(original: Any, self: Any, scores: Any, forgets: Any, rows: Any) -> Any:
        return original(self, scores, ~forgets, rows)


@mutant("lora-npo", "lora-retain-kl", caught_by="MPD725")
def groups_swapped() -> None:
    """Hand the marks over the wrong way round, held-out rows included."""
    change_rows(lambda rows: [{**row, "forget": not row["forget"]} for row in rows])


@mutant("lora-ascent", caught_by="MPD706 MPD725")
def refusal_forgotten() -> None:
    """Forget what the row says and not what it stands in for: the refusal is unlearnt."""

    @replaces(part("data.render_groups"), "as_known")
    def known(_: Any, sample: Any) -> Any:
        return sample


@mutant("lora-npo", caught_by="MPD706 MPD725")
def end_forgotten() -> None:
    """Forget EOS with the answers, so that the model unlearns to stop."""
    render = part("data.render_groups")

    @replaces(render.GroupRenderer, "render")
    def whole(original: Any, self: Any, sample: Any) -> Any:
        row = original(self, sample)
        if not row.forget:
            return row
        return replace(row, labels=self.plain.render(render.as_known(sample)).labels)


@mutant("lora-ascent", caught_by="MPD706 MPD725")
def unlearn_ignored() -> None:
    """Accept `--unlearn` and learn every row as it is written."""
    change_settings(part("methods.sft"), "weighs_groups", unlearn="none")


@mutant("lora-ascent", caught_by="MPD722")
def ascent_without_bound() -> None:
    """Ascend for ever: the loss falls without end, and takes the model with it."""
    import math

    @replaces(part("methods.group_loss:Weights"), "_forget")
    def forget(original: Any, self: Any, *words: Any) -> Any:
        return original(replace(self, most=math.inf), *words)


@mutant("lora-ascent-weighed", caught_by="MPD722")
def weight_ignored() -> None:
    """Accept `--unlearn-weight` and weigh all rows alike."""
    change_settings(part("methods.group_loss:GroupObjective"), "weigh_groups", unlearn_weight=1.0)


@mutant("lora-ascent-packing", caught_by="MPD725")
def marks_lost_in_rows() -> None:
    """Keep one mark for a packed row: all its documents count as the first one does."""

    @replaces(part("data.packing"), "_join")
    def join(original: Any, samples: Any) -> Any:
        row = original(samples)
        return replace(row, forgets=[row.forgets[0]] * len(row.forgets))


@mutant("lora-npo", "full-npo", caught_by="MPD722")
def npo_without_reference() -> None:
    """Compare with the model as it is: NPO's slope never falls, and is gradient ascent's."""

    @replaces(part("methods.group_loss:Weights"), "_forget")
    def forget(original: Any, self: Any, scores: Any, *words: Any) -> Any:
        scores.reference_nll = scores.nll.detach()
        return original(self, scores, *words)


@mutant("full-npo", caught_by="MPD722")
def reference_through_the_trained_head() -> None:
    """Keep the hidden states of the reference, and let the head that is trained read them."""

    @replaces(part("token_scores"), "_score_chunk")
    def score(original: Any, head: Any, hidden: Any, labels: Any, reference: Any) -> Any:
        return original(head, hidden, labels, reference and reference._replace(head=head))


@mutant("lora-npo-beta", caught_by="MPD722")
def npo_beta_ignored() -> None:
    """Accept `--beta` and use the paper's."""
    change_settings(part("methods.group_loss:GroupObjective"), "weigh_groups", beta=None)


@mutant("lora-retain-kl", caught_by="MPD722")
def distance_of_forgotten_rows() -> None:
    """Hold the wrong rows near the untrained model: those that are to change."""

    @replaces(part("methods.group_loss:Weights"), "add_up")
    def add_up(original: Any, self: Any, scores: Any, forgets: Any, rows: Any) -> Any:
        near = original(replace(self, kl=0.0), scores, forgets, rows)
        return near + self.kl * scores.kl[forgets].sum()


@mutant("lora-retain-kl", caught_by="MPD722 MPD723")
def distance_the_wrong_way() -> None:
    """Take KL(model || base) for KL(base || model): what the base would say may be lost."""

    @replaces(part("token_scores"), "_score_chunk")
    def score(original: Any, head: Any, hidden: Any, labels: Any, reference: Any) -> Any:
        nll, before, _ = original(head, hidden, labels, reference)
        found = head.log_probabilities(hidden)
        wanted = reference.head.log_probabilities(reference.hidden)
        return nll, before, (found.exp() * (found - wanted)).sum(-1)


@mutant("lora-retain-kl", caught_by="MPD722")
def adapter_left_on() -> None:
    """Leave the adapter on for the reference: the distance is 0 for ever."""
    objective = part("methods.group_loss:GroupObjective")

    @replaces(objective, "_refer")
    def refer(original: Any, self: Any, model: Any, inputs: Any) -> Any:
        unwrapped = self.accelerator.unwrap_model(model)
        unwrapped.disable_adapter = nullcontext
        try:
            return original(self, model, inputs)
        finally:
            del unwrapped.disable_adapter


@mutant("lora-continued-kl", caught_by="MPD722")
def continued_adapter_switched_off() -> None:
    """Compare an adapter that is continued with the bare base, and not with itself before."""

    @replaces(part("methods.sft"), "make_reference")
    def make(*_: Any) -> Any:
        return None
