"""Find the decoder blocks of a model, and exchange the linear layers inside them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import nn

from mudpuppy.errors import EngineError


class DecoderLayers(NamedTuple):
    """The stack of decoder blocks of a model."""

    name: str
    """Dotted name of the list inside the model, such as `model.layers`."""
    layers: nn.ModuleList
    """The blocks, in the order in which they run."""


def find_decoder_layers(model: nn.Module) -> DecoderLayers:
    """Return the decoder blocks of `model`.

    They are the list of modules with the most parameters that lies in no other list: experts are
    lists inside a block, and a vision tower is left out by asking the model for its decoder.

    Raises:
        EngineError: the model has no list of modules.
    """
    lists = _outer_lists(_decoder_of(model)) or _outer_lists(model)
    if not lists:
        raise EngineError(
            f"{type(model).__name__} has no list of decoder layers",
            hint="use a decoder-only language model, such as Llama, Qwen2, Mistral, Gemma or Phi-3",
        )
    layers = max(lists.values(), key=_count_parameters)
    name = next(name for name, module in model.named_modules() if module is layers)
    return DecoderLayers(name, layers)


def _decoder_of(model: nn.Module) -> nn.Module:
    """Return the text decoder of a transformers model, or `model` itself where it names none."""
    if not hasattr(model, "get_decoder"):
        return model
    ask: Any = model.get_decoder
    decoder = ask()
    return decoder if isinstance(decoder, nn.Module) else model


def _outer_lists(root: nn.Module) -> dict[str, nn.ModuleList]:
    """Return the lists of modules under `root` that lie in no other list."""
    found: dict[str, nn.ModuleList] = {}
    for name, module in root.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and len(module) and not inside:
            found[name] = module
    return found


def _count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def find_linears(block: nn.Module, prefix: str, skip: tuple[str, ...] = ()) -> dict[str, nn.Linear]:
    """Return the plain `nn.Linear` layers of `block` by their full names.

    Args:
        block: where to look.
        prefix: dotted name of `block` inside the model, put before every name.
        skip: layers whose last name is one of these are left out.
    """
    # a subclass computes something else (an adapter, a packed layer), so it is left alone
    return {
        f"{prefix}.{name}": module
        for name, module in block.named_modules()
        if type(module) is nn.Linear and name.rpartition(".")[2] not in skip
    }


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` at the dotted `name` of `model`, in the mode of the one that was there."""
    parent_name, _, child = name.rpartition(".")
    parent = model.get_submodule(parent_name)
    module.train(parent.get_submodule(child).training)
    setattr(parent, child, module)


@contextmanager
def computing_as(
    layers: Iterable[nn.Linear], kind: type[nn.Linear], **settings: Any
) -> Iterator[None]:
    """Let plain linear layers compute as `kind`, a subclass, inside the block; `settings` too.

    Their class changes and nothing else: parameters, hooks, optimizers and adapters that hold them
    go on as if nothing had happened, and there is nothing to undo in what is saved.
    """
    changed = list(layers)
    for layer in changed:
        layer.__class__ = kind
        vars(layer).update(settings)
    try:
        yield
    finally:
        for layer in changed:
            layer.__class__ = nn.Linear
            for name in settings:
                del vars(layer)[name]
