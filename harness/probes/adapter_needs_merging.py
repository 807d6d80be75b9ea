"""An adapter with parts that most servers of adapters cannot take.

What it does: looks for whole tensors that the adapter replaces (`modules_to_save`), for factors on
the embedding or the output head, and for rows of tokens that were trained alone.

Why it is bad: servers that put adapters on a running base take factors of linear layers and refuse
or drop the rest; new tokens are dead then (FM28): vllm#9280, vllm#4186.

Example: `lm_head.weight` in the adapter, 500 MB of it: served with `--enable-lora` it is left out.

What to do: merge the adapter into its base before it is served. With PEFT it works as it is.
"""

from __future__ import annotations

from harness.facts.adapters import EMBEDDINGS, HEADS
from harness.facts.checkpoint import Adapter
from harness.findings import Evidence, Finding, Severity, agree
from harness.registry import NotApplicable, probe


@probe("MPD208", modes=["FM28"], severity=Severity.NOTE)
def check(adapter: Adapter) -> Finding | str:
    """List what is more than factors of linear layers inside the model."""
    if not adapter.is_lora or not (adapter.pairs or adapter.replaced):
        raise NotApplicable("the adapter holds no LoRA factors")
    names = [p.module for p in adapter.pairs if p.is_embedding or _is_outer(p.module)]
    names += [name for name in adapter.replaced if _is_outer(name.rpartition(".")[0])]
    if not names:
        return "it changes nothing but layers inside the model"
    return Finding(
        message=f"{agree(len(names), 'part of the adapter is', 'parts of the adapter are')} of the "
        f"embedding or the head, such as {names[0]}: servers that load adapters leave them out",
        evidence=tuple(Evidence(what="embedding or head", tensor=name) for name in names),
        cause="target_modules, modules_to_save or trainable_token_indices name embedding or head",
        remedy="merge the adapter into its base before it is served",
    )


def _is_outer(module: str) -> bool:
    return module.rpartition(".")[2] in (*EMBEDDINGS, *HEADS)
