"""Linear layers with a frozen weight in 4 or 8 bits that PEFT can adapt and really merge into.

`Linear4bit` has two states. Packed, it holds levels and scales, and every use of the weight
dequantises them. Dense, it is a plain linear layer: writing to the weight makes it so. PEFT merges
by `layer.weight.data += delta`; on a weight that is made anew at each access such a write would be
lost without a word, so the weight that is handed out knows its layer and writes through.

What the levels mean is in `mudpuppy.quant.formats`, how a product is made in
`mudpuppy.quant.product`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NoReturn, cast

import numpy as np
import torch
from torch import Tensor, nn

from mudpuppy.errors import EngineError
from mudpuppy.quant.blocks import find_decoder_layers, find_linears, replace_module
from mudpuppy.quant.formats import FORMATS, Format, Packed
from mudpuppy.quant.kernels.choose import dequantise
from mudpuppy.quant.product import packed_linear


class PackedWeight(torch.Tensor):
    """The dense weight of a packed layer, made for one access; writing to it writes to the layer.

    Caught are an assignment to `data` and every in-place operation of torch on this tensor or its
    `data`, also in lists (`torch._foreach_add_`). `set_` and `swap_tensors` are refused, and NumPy
    gets an array that cannot be written to. A view of it (`weight[0]`, `weight.detach()`, what
    DLPack or a storage hands on) and a copy are plain: writing to those changes nothing.
    """

    _owner: Linear4bit
    _unswappable: weakref.ref[PackedWeight]

    @staticmethod
    def wrap(dense: Tensor, owner: Linear4bit) -> PackedWeight:
        """Return `dense` as the weight of `owner`; the memory is shared."""
        weight = dense.as_subclass(PackedWeight)
        weight._owner = owner
        weight._unswappable = weakref.ref(weight)  # swap_tensors refuses what has one
        return weight

    @property
    def data(self) -> Tensor:
        """The same weight without gradient, still tied to its layer."""
        return PackedWeight.wrap(_plain(self), self._owner)

    @data.setter
    def data(self, value: Tensor) -> None:
        self._owner.set_dense(value)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run `func` on plain tensors, then hand what it wrote in place to the layer."""
        kwargs = dict(kwargs or {})
        own = list(_find_packed((args, tuple(kwargs.values()))))
        with torch._C.DisableTorchFunctionSubclass():
            # an in-place operation raises the version, whatever its name is
            before = [weight._version for weight in own]
            result = func(*args, **kwargs)
            written = [w for w, version in zip(own, before, strict=True) if w._version != version]
        for weight in written:
            weight._owner.set_dense(weight)
        if own and isinstance(result, np.ndarray):
            result.setflags(write=False)
        return result

    def set_(self, *_: Any, **__: Any) -> NoReturn:  # torch shows it to no subclass
        """Refuse new memory, of which the layer would not know.

        Raises:
            EngineError: always.
        """
        raise EngineError(
            "set_ on the weight of a packed layer would be lost",
            hint="assign to it: layer.weight.data = tensor",
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """Return a plain copy: there is one layer that this weight writes to."""
        if id(self) not in memo:
            memo[id(self)] = _plain(self).clone()
        return cast(Tensor, memo[id(self)])


def _find_packed(values: Sequence[Any]) -> Iterator[PackedWeight]:
    """Yield the packed weights among arguments, and in the lists among them."""
    for value in values:
        if isinstance(value, PackedWeight):
            yield value
        elif isinstance(value, list | tuple):
            yield from _find_packed(value)


def _plain(weight: Tensor) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return weight.as_subclass(torch.Tensor).detach()


class Linear4bit(nn.Linear):
    """A frozen linear layer whose weight is packed, until something writes to the weight.

    There is one subclass for every format; `from_linear` and `from_packed` choose it.

    Args:
        packed: the quantised weight.
        bias: kept as it is, frozen.
        compute_dtype: dtype of `weight`, and so of everything that is merged into it.
    """

    format: ClassVar[Format]
    """How the weight is packed."""
    compute_dtype: torch.dtype
    block_size: int

    def __init__(
        self, packed: Packed, *, bias: Tensor | None = None, compute_dtype: torch.dtype
    ) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would allocate a dense weight
        self.in_features = packed.in_features
        self.out_features = packed.qweight.shape[0]
        self.block_size = packed.block_size
        self.compute_dtype = compute_dtype
        # None, not absent: torch then knows the name, and `weight = Parameter` is accepted
        self.register_parameter("weight", None)
        frozen = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.register_parameter("bias", frozen)
        self.register_buffer("qweight", packed.qweight)
        self.register_buffer("scales", packed.scales)

    @staticmethod
    def from_packed(
        packed: Packed, form: Format, *, bias: Tensor | None = None, compute_dtype: torch.dtype
    ) -> Linear4bit:
        """Return a layer of the format's own class with a weight that is packed already."""
        return LINEARS[form.name](packed, bias=bias, compute_dtype=compute_dtype)

    @staticmethod
    def from_linear(
        linear: nn.Linear,
        form: Format,
        *,
        block_size: int | None = None,
        search: int = 0,
        compute_dtype: torch.dtype | None = None,
    ) -> Linear4bit:
        """Quantise the weight of `linear`.

        Args:
            linear: a dense layer.
            form: how its weight is to be held.
            block_size: columns that share a scale; the format's own where None.
            search: further scales to try for every block.
            compute_dtype: that of the weight where None.
        """
        packed = form.quantise(linear.weight, block_size, search)
        dtype = linear.weight.dtype if compute_dtype is None else compute_dtype
        return Linear4bit.from_packed(packed, form, bias=linear.bias, compute_dtype=dtype)

    @property
    def is_packed(self) -> bool:
        """Whether the weight is still packed."""
        return "qweight" in self._buffers

    @property
    def packed(self) -> Packed:
        """The packed weight.

        Raises:
            EngineError: something was written to the weight, so it is dense.
        """
        if not self.is_packed:
            raise EngineError("this layer is dense: something was merged into its weight")
        qweight, scales = self._buffers["qweight"], self._buffers["scales"]
        assert qweight is not None
        assert scales is not None
        return Packed(qweight, scales, self.in_features, self.block_size)

    def __getattr__(self, name: str) -> Any:
        """Hand out the dequantised weight of a packed layer under the name `weight`."""
        if name == "weight" and self.is_packed:
            with torch.inference_mode(False):  # its tensors count no writes
                dense = dequantise(self.format, self.packed, self.compute_dtype)
            return PackedWeight.wrap(dense, self)
        return super().__getattr__(name)

    def set_dense(self, weight: Tensor) -> None:
        """Make the layer dense with `weight` (out, in), whose memory it takes over.

        Raises:
            ValueError: the shape is another one.
        """
        if tuple(weight.shape) != (self.out_features, self.in_features):
            raise ValueError(
                f"weight of shape {tuple(weight.shape)} for a layer of shape "
                f"{(self.out_features, self.in_features)}"
            )
        self.register_parameter("weight", nn.Parameter(_plain(weight), requires_grad=False))

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Register a parameter; a weight replaces the packed form."""
        super().register_parameter(name, param)
        if name == "weight" and param is not None:
            self._buffers.pop("qweight", None)
            self._buffers.pop("scales", None)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Say in the metadata what the levels mean: other formats have tensors of the same form."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.is_packed and hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]]["format"] = self.format.name

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Load levels and scales of the layer's own format; others are an error."""
        form = self.format
        found = getattr(state_dict.get(f"{prefix}scales"), "dtype", form.scale_dtype)
        said = local_metadata.get("format", form.name)
        if self.is_packed and (said, found) != (form.name, form.scale_dtype):
            error_msgs.append(
                f"{prefix}scales are {found} of {said}, and this layer is in {form.name}, whose "
                f"scales are {form.scale_dtype}"
            )
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def forward(self, input: Tensor) -> Tensor:
        """Return `input @ weight.T + bias` in the dtype of `input`, or autocast's."""
        if not self.is_packed:
            return super().forward(input)
        x = _autocast_input(input)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            return packed_linear(x, self.packed, self.format, bias, self.compute_dtype)

    def to_linear(self) -> nn.Linear:
        """Return a plain, frozen linear layer with exactly this weight, in `compute_dtype`.

        A dense layer shares its weight with the result; the bias is always shared.
        """
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        linear.weight = nn.Parameter(_plain(self.weight), requires_grad=False)
        linear.bias = self.bias
        return linear

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Linear4bit:
        """Move the packed data, but never round the scales: a new dtype is for the result."""
        if not self.is_packed:
            return cast(Linear4bit, super()._apply(fn, recurse))  # type: ignore[no-untyped-call]
        scales = self.packed.scales
        probe = torch.empty(0, dtype=self.compute_dtype, device=scales.device)
        self._buffers["scales"] = scales.view(torch.uint8)  # integers keep their dtype
        try:
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        finally:
            moved = self._buffers["scales"]
            self._buffers["scales"] = cast(Tensor, moved).view(scales.dtype)
        self.compute_dtype = fn(probe).dtype
        return self

    def extra_repr(self) -> str:
        """Name the sizes and the state."""
        state = f"block_size={self.block_size}" if self.is_packed else "dense"
        return f"{super().extra_repr()}, {state}, compute_dtype={self.compute_dtype}"


class LinearInt4(Linear4bit):
    """A linear layer in int4."""

    format = FORMATS["int4"]


class LinearNf4(Linear4bit):
    """A linear layer in NF4."""

    format = FORMATS["nf4"]


class LinearMxfp4(Linear4bit):
    """A linear layer in MXFP4."""

    format = FORMATS["mxfp4"]


class LinearInt8(Linear4bit):
    """A linear layer in int8: packed in the same way, with one weight a byte."""

    format = FORMATS["int8"]


class LinearBnbNf4(Linear4bit):
    """A linear layer in bitsandbytes' NF4."""

    format = FORMATS["bnb-nf4"]


class LinearBnbFp4(Linear4bit):
    """A linear layer in bitsandbytes' FP4."""

    format = FORMATS["bnb-fp4"]


LINEARS: dict[str, type[Linear4bit]] = {
    kind.format.name: kind
    for kind in (LinearNf4, LinearInt4, LinearMxfp4, LinearInt8, LinearBnbNf4, LinearBnbFp4)
}
"""The class of every format, by the format's name."""


def _autocast_input(x: Tensor) -> Tensor:
    """Cast `x` as autocast would for `F.linear`: it casts every floating type but float64."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.is_floating_point() and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(kind))
    return x


def find_4bit(model: nn.Module) -> dict[str, Linear4bit]:
    """Return every `Linear4bit` by its name, packed or dense."""
    return {name: m for name, m in model.named_modules() if isinstance(m, Linear4bit)}


def replace_linears(
    model: nn.Module,
    form: Format,
    *,
    block_size: int | None = None,
    search: int = 0,
    compute_dtype: torch.dtype | None = None,
    skip: Sequence[str] = ("lm_head",),
) -> list[str]:
    """Replace the linear layers inside the decoder blocks by 4-bit ones, in place.

    Embeddings, norms and the head lie outside the blocks and stay as they are.

    Args:
        model: a decoder-only language model.
        form: how the weights are to be held.
        block_size: columns that share a scale; the format's own where None.
        search: further scales to try for every block.
        compute_dtype: dtype of the dequantised weights; each layer's own where none is given.
        skip: last names of layers to leave alone.

    Returns:
        The names of the replaced layers, in the model's order.

    Raises:
        EngineError: a weight holds a NaN or an infinity (its layer is named), or the model has no
            decoder blocks. Nothing is replaced then.
    """
    name, layers = find_decoder_layers(model)
    packed: dict[str, Linear4bit] = {}
    for layer_name, linear in find_linears(layers, name, tuple(skip)).items():
        try:
            packed[layer_name] = Linear4bit.from_linear(
                linear, form, block_size=block_size, search=search, compute_dtype=compute_dtype
            )
        except EngineError as error:
            raise EngineError(
                f"{layer_name}: {error.message}, so it cannot be quantised",
                hint="check the base model: mudpuppy-doctor MODEL",
            ) from error
    for layer_name, module in packed.items():
        replace_module(model, layer_name, module)
    return list(packed)


def restore_linears(model: nn.Module) -> list[str]:
    """Replace every `Linear4bit`, packed or dense, by a plain linear layer, in place.

    Returns:
        The names of the replaced layers.
    """
    found = find_4bit(model)
    for name, module in found.items():
        replace_module(model, name, module.to_linear())
    return list(found)
