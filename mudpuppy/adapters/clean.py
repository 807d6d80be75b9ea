"""Prove that a model is clean: no trace of an adapter, and base tensors as they should be."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from mudpuppy.adapters.codes import BASE_CHANGED, LEFT_BEHIND, NOT_CLEAN, STACKED
from mudpuppy.errors import EngineError

INERT_HOOKS = "transformers.utils.output_capturing"
"""transformers leaves hooks of its own once hidden states were asked for, as vision models do; they
do nothing but while it collects them."""
NUM_SHOWN = 3
"""Names that a message lists."""
LEFTOVERS = ("peft_config", "_hf_peft_config_loaded")
"""Attributes that an adapter which went may leave on the model."""
_BLOCK_BYTES = 1 << 22


def adapter_parts(model: nn.Module) -> list[str]:
    """Return the names of all modules and parameters that belong to an adapter.

    A module inside an adapter's module is not named again.
    """
    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper, PeftModel)
    found: list[str] = []
    for name, part in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found if outer)
        if isinstance(part, kinds) and not inside:
            found.append(name)
    parameters = [name for name, _ in model.named_parameters() if ".lora_" in f".{name}"]
    return found or parameters


def require_clean(model: nn.Module) -> None:
    """Refuse a model that an earlier adapter left traces in.

    Raises:
        EngineError: MP-E01, it is a PEFT model or holds adapter layers: attaching to it would stack
            adapters (FM17). MP-E02, it carries the settings of one that went (FM21).
    """
    parts = adapter_parts(model)
    if isinstance(model, PeftModel) or parts:
        raise EngineError(
            f"the model already has adapter layers ({len(parts)}, such as {parts[:1]}); a second "
            "adapter on top would be stacked",
            code=STACKED,
            hint="merge and unload the first adapter before attaching another",
        )
    left = [name for name in LEFTOVERS if _has(model, name)]
    if left:
        raise EngineError(
            f"Already found a `{left[0]}` attribute in the model: an adapter was unloaded and its "
            "configuration stayed behind",
            code=LEFT_BEHIND,
            hint=f"delete the attribute: del model.{left[0]}",
        )


def _has(model: nn.Module, name: str) -> bool:
    # transformers defines `_hf_peft_config_loaded = False` on the class
    return getattr(model, name, False) is not False


def verify_clean(model: nn.Module, expected: Mapping[str, Tensor | str] | None = None) -> None:
    """Check that no adapter is left on `model`, and that its tensors are the expected ones.

    Args:
        model: what `merge_adapter` or `unload_adapter` returned.
        expected: every tensor of the model by its name, or its `digest`, bit for bit. Without it
            only the traces are looked for.

    Raises:
        EngineError: MP-E07, a trace of the adapter, a hook, or a tensor that is not contiguous.
            MP-E08, a tensor is missing, new, or another one than expected.
    """
    problems = list(_traces(model))
    if problems:
        raise EngineError(
            f"the model is not clean: {'; '.join(problems[:NUM_SHOWN])}",
            code=NOT_CLEAN,
            hint="this model cannot be trusted: load the base again",
        )
    if expected is not None:
        _compare(model, expected)


def _traces(model: nn.Module) -> Iterator[str]:
    """Yield what an adapter left, one sentence each."""
    parts = adapter_parts(model)
    if parts:
        yield f"{len(parts)} adapter parts are left, such as {parts[0] or type(model).__name__}"
    for name in LEFTOVERS:
        if _has(model, name):
            yield f"the attribute `{name}` is left"
    for name, part in model.named_modules():
        before = (part._forward_pre_hooks, part._backward_pre_hooks)
        tables = (*before, part._forward_hooks, part._backward_hooks)
        hooks = [hook for table in tables for hook in table.values()]
        if any(getattr(hook, "__module__", "") != INERT_HOOKS for hook in hooks):
            yield f"the module {name or type(part).__name__} still has a hook"
    for name, tensor in model.state_dict().items():
        if not tensor.is_contiguous():
            # some kernels are silently wrong on strided weights (seed 004, FM55)
            yield f"the tensor {name} is not contiguous"


def _compare(model: nn.Module, expected: Mapping[str, Tensor | str]) -> None:
    """Raise EngineError where the tensors of the model are not those expected."""
    found = model.state_dict()
    wrong = sorted(expected.keys() ^ found.keys())
    if not wrong:
        wrong = [name for name, tensor in found.items() if not _is(tensor, expected[name])]
    if wrong:
        raise EngineError(
            f"{len(wrong)} of {len(expected)} base tensors are not what they should be, such as "
            f"{', '.join(wrong[:NUM_SHOWN])}",
            code=BASE_CHANGED,
            hint="this model cannot be trusted: load the base again",
        )


def _is(tensor: Tensor, expected: Tensor | str) -> bool:
    if isinstance(expected, str):
        return digest(tensor) == expected
    same = tensor.dtype == expected.dtype and tensor.shape == expected.shape
    return same and digest(tensor) == digest(expected)


@torch.no_grad()
def digest(tensor: Tensor) -> str:
    """Return a hash of type, shape and every bit of a tensor, made in blocks of 4 MB."""
    made = hashlib.blake2b(f"{tensor.dtype}{tuple(tensor.shape)}".encode(), digest_size=16)
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    for block in torch.split(flat, _BLOCK_BYTES):
        made.update(block.cpu().numpy().data)
    return made.hexdigest()


def digests(model: nn.Module) -> dict[str, str]:
    """Return the digest of every tensor of a clean model: what `verify_clean` expects later."""
    return {name: digest(tensor) for name, tensor in model.state_dict().items()}
