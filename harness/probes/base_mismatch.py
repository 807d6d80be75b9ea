"""The checkpoint belongs to another base model.

What it does: compares adapter and merged model with the base that is named: shapes, the fingerprint
stored while training, tensors that training did not touch, and what is left over after the
adapter's change is taken away. Where no adapter is known, any tensor may have been trained; then
it looks whether the matrices have anything in common with the base's at all.

Why it is bad: an adapter is a difference. On another model or another revision of the same name the
shapes may fit and the result is slightly to badly wrong (FM35).

Example: k = 1.002, residual 4.9, and `model.embed_tokens.weight` differs from the base by 140 %
though training never touched it.

What to do: pass the base that was used, with `--base`; fetch the right revision. The run's
mudpuppy.json, or base_model_name_or_path and revision in adapter_config.json, name it.
"""

from __future__ import annotations

from harness.facts.merges import BaseFit
from harness.findings import Evidence, Finding, Severity
from harness.registry import probe


@probe("MPD405", modes=["FM35"], severity=Severity.HIGH)
def check(base_fit: BaseFit) -> Finding | str:
    """Weigh everything that ties a checkpoint to its base."""
    fit = base_fit
    evidence = [
        Evidence(what="shape that does not fit", tensor=name, found=text)
        for name, text in fit.shapes.items()
    ]
    if fit.fingerprint_differs:
        evidence.append(
            Evidence(
                what="fingerprint of the base",
                file="mudpuppy.json",
                found=fit.found_fingerprint[:16],
                expected=fit.stored_fingerprint[:16],
            )
        )
    evidence += [
        Evidence(
            what="distance from the base, though not trained",
            tensor=one.name,
            found=min(one.relative, 1e9),
            expected=f"at most {one.tolerance:.2g}",
        )
        for one in fit.moved
    ]
    evidence += [
        Evidence(
            what="cosine of the angle to the base's",
            tensor=one.name,
            found=round(one.cosine, 4),
            expected="above 0.9 after training",
        )
        for one in fit.unrelated
    ]
    if not evidence:
        return _say_what_fits(fit)
    first = evidence[0]
    return Finding(
        message=f"this is not the base it was made from ({fit.base}, named by {fit.named_by}): "
        f"{first.what}" + (f" in {first.tensor}" if first.tensor else ""),
        evidence=tuple(evidence),
        cause="another model or revision of the same name, or an adapter trained on a merged model",
        remedy="pass the folder of the base that was used with --base, or fetch its revision",
    )


def _say_what_fits(fit: BaseFit) -> str:
    """Return what was compared, and no more: values say little where any may have been trained."""
    if fit.frozen:
        return f"{fit.frozen} tensors that were not trained are those of the base {fit.base}"
    if fit.adapter_alone:
        return f"the shapes of {fit.compared} adapted modules fit the base {fit.base}"
    return f"{fit.compared} tensors have the shapes of the base {fit.base} and resemble its values"
