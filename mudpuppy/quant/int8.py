"""The int8 model: real int8 layers, and the folder they are saved to and loaded from.

The folder is that of compressed-tensors' format `int-quantized` (W8A8, weights by channel,
activations by token or by tensor), which vLLM and, with the package `compressed-tensors`,
transformers read: the weight of a layer is int8, `weight_scale` beside it float32, and so is
`input_scale` where the inputs of a layer share one. Without that package transformers
refuses the folder instead of filling the layers at random, as it would for a method it does not
know. `load_int8` needs no other package.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.utils.quantization_config import QuantizationConfigMixin

from mudpuppy.errors import EngineError, ModelError, shown
from mudpuppy.files import write_json_atomic
from mudpuppy.quant.blocks import find_decoder_layers
from mudpuppy.quant.checks import QuantisedModelError, refuse
from mudpuppy.quant.codes import UNKNOWN_SCHEME
from mudpuppy.quant.declared import find_declared, read_settings
from mudpuppy.quant.fake_quant import find_quantised, ranges_of
from mudpuppy.quant.int8_matrix import (
    BITS,
    Int8Rows,
    multiply,
    quantise_weight,
    relative_error,
    round_rows,
    scheme,
)
from mudpuppy.quant.registered import EmptyLayers, register

QUANT_METHOD = "compressed-tensors"
"""`quant_method` of the folder's `quantization_config`."""
FORMAT = "int-quantized"
"""Layout of the tensors, as compressed-tensors calls it."""
OWN_METHOD = "mudpuppy-int8"
"""The name under which transformers knows our loader while `load_int8` runs."""
_SCALE_BUFFERS = ("weight_scale", "input_scale")
_SCALE, _INPUT_SCALE = ".weight_scale", ".input_scale"


class Int8Linear(nn.Module):
    """A frozen linear layer with an int8 weight; inputs are rounded to int8 as they come.

    Args:
        in_features: columns of the weight.
        out_features: rows of the weight.
        bias: whether there is one.
        static: whether all inputs share a scale that is known; otherwise each token has its own.
    """

    weight: Tensor
    """int8, (out, in)."""
    weight_scale: Tensor
    """float32, (out, 1)."""
    input_scale: Tensor | None
    """float32, (1), or None."""
    bias: nn.Parameter | None
    """(out), or None."""

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool = False, static: bool = False
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("weight", torch.zeros(out_features, in_features, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.ones(out_features, 1, dtype=torch.float32))
        scale = torch.ones(1, dtype=torch.float32) if static else None  # a load may default to half
        self.register_buffer("input_scale", scale)
        values = nn.Parameter(torch.zeros(out_features), requires_grad=False) if bias else None
        self.register_parameter("bias", values)

    @classmethod
    def from_linear(cls, linear: nn.Linear, rows: Int8Rows | None = None) -> Int8Linear:
        """Return the int8 form of `linear`; `rows` are its rounded weight where they are known."""
        ranges = ranges_of(linear)
        rows = quantise_weight(linear.weight, ranges.weight) if rows is None else rows
        layer = cls(linear.in_features, linear.out_features, bias=False)
        layer.weight, layer.weight_scale = rows.levels, rows.scales
        layer.input_scale = None if ranges.input is None else ranges.input.view(1)
        if linear.bias is not None:
            layer.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)
        return layer

    def forward(self, input: Tensor) -> Tensor:
        """Return `input @ weight.T + bias` (..., out) in the dtype of `input`."""
        scale = self.input_scale
        rows = round_rows(
            input.reshape(-1, self.in_features), None if scale is None else scale.view(1, 1)
        )
        result = multiply(rows, Int8Rows(self.weight, self.weight_scale), input.dtype)
        result = result.view(*input.shape[:-1], self.out_features)
        return result if self.bias is None else result + self.bias.to(input.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Int8Linear:
        """Move the layer, but never round its scales."""
        scales = [name for name in _SCALE_BUFFERS if self._buffers[name] is not None]
        self._view_scales(scales, torch.int32)  # integers stay
        try:
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        finally:
            self._view_scales(scales, torch.float32)
        return self

    def _view_scales(self, names: Iterable[str], dtype: torch.dtype) -> None:
        for name in names:
            self._buffers[name] = cast(Tensor, self._buffers[name]).view(dtype)

    def extra_repr(self) -> str:
        """Name the sizes."""
        return f"in_features={self.in_features}, out_features={self.out_features}, int8"


@torch.no_grad()
def quantise_weights(model: nn.Module) -> dict[str, Int8Rows]:
    """Round the weights of the layers that become int8; the model is not changed.

    Raises:
        EngineError: a weight holds a NaN or an infinity (its layer is named).
    """
    found: dict[str, Int8Rows] = {}
    for name, linear in find_quantised(model).items():
        try:
            found[name] = quantise_weight(linear.weight, ranges_of(linear).weight)
        except EngineError as error:
            raise EngineError(f"{name}: {error.message}") from error
    return found


def describe_weights(model: nn.Module, weights: Mapping[str, Int8Rows]) -> dict[str, Any]:
    """Return scheme and error of every layer, for the run's record; the model still is unrounded.

    The error is that of the weights: the norm of what rounding changed over the norm of the weight.
    Matrices of the decoder blocks that are no linear layers (the experts of most mixtures) are not
    rounded, and are named.
    """
    stack = find_decoder_layers(model)
    matrices = {f"{stack.name}.{n}" for n, p in stack.layers.named_parameters() if p.dim() > 1}
    left_out = sorted(matrices - {f"{name}.weight" for name in weights})
    errors = [
        {
            "name": name,
            "error": relative_error(cast(Tensor, model.get_submodule(name).weight), rows),
        }
        for name, rows in weights.items()
    ]
    static = bool(_input_scales(model, weights))
    return {**scheme(static=static), "layers": errors, "left_out": left_out}


def _input_scales(model: nn.Module, weights: Iterable[str]) -> dict[str, Tensor]:
    """Return the scale of the inputs (1) of the layers that have one, by the layers' names."""
    ranges = {name: ranges_of(cast(nn.Linear, model.get_submodule(name))) for name in weights}
    return {name: one.input.view(1) for name, one in ranges.items() if one.input is not None}


def save_int8(
    model: Any,
    tokenizer: Any | None,
    folder: Path,
    weights: Mapping[str, Int8Rows],
    dtype: torch.dtype,
) -> None:
    """Save `model` with the layers of `weights` in int8, everything else in `dtype`.

    Args:
        model: the model with plain layers; it is not changed.
        tokenizer: saved beside it where given.
        folder: made by this call, inside a staging folder (`mudpuppy.saving.staging`).
        weights: what `quantise_weights` returned.
        dtype: of embeddings, norms, biases and the head.
    """
    state = _cast(model.state_dict(), dtype)
    for name, rows in weights.items():
        state[f"{name}.weight"] = rows.levels.contiguous()
        state[f"{name}{_SCALE}"] = rows.scales
    for name, scale in _input_scales(model, weights).items():
        state[f"{name}{_INPUT_SCALE}"] = scale
    model.save_pretrained(folder, state_dict=state)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    path = folder / "config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["quantization_config"] = describe(model, weights)
    settings["dtype"] = str(dtype).removeprefix("torch.")
    if "use_cache" in settings:  # it was off while training only
        settings["use_cache"] = True
    write_json_atomic(path, settings)


def _cast(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the floating tensors in `dtype`; a tied head shares its memory still."""
    made: dict[tuple[int, torch.Size], Tensor] = {}
    for tensor in state.values():
        key = (tensor.data_ptr(), tensor.shape)
        if key not in made:
            made[key] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return {name: made[tensor.data_ptr(), tensor.shape] for name, tensor in state.items()}


def describe(model: nn.Module, weights: Mapping[str, Int8Rows]) -> dict[str, Any]:
    """Return the `quantization_config` of a model whose layers of `weights` are int8."""
    common = {"num_bits": BITS, "type": "int", "symmetric": True}
    static = bool(_input_scales(model, weights))
    by_input = {"strategy": "tensor" if static else "token", "dynamic": not static}
    linears = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    return {
        "quant_method": QUANT_METHOD,
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**common, "strategy": "channel", "dynamic": False},
                "input_activations": {**common, **by_input},
            }
        },
        "ignore": [name for name in linears if name not in weights],
        "producer": f"mudpuppy {version('mudpuppy')}",
    }


class _OwnConfig(QuantizationConfigMixin):  # type: ignore[misc]  # transformers ships no types
    """Names the layers that are int8; lives only while `load_int8` runs."""

    def __init__(self, layers: list[str], static: list[str], **_: Any) -> None:
        self.quant_method = OWN_METHOD
        self.layers = layers
        self.static = static


class _OwnQuantizer(EmptyLayers):
    """Puts empty int8 layers into the model, which transformers then fills from the file."""

    def make_empty(self, name: str, linear: nn.Linear, dtype: torch.dtype) -> nn.Module:
        """Return an empty int8 layer, with a scale for its inputs where the file has one."""
        del dtype
        static = name in self.quantization_config.static
        return Int8Linear(linear.in_features, linear.out_features, static=static)

    def _process_model_before_weight_loading(self, model: nn.Module, **_: Any) -> None:
        self.put_empty(model, self.quantization_config.layers, torch.float32)

    def is_serializable(self) -> bool:
        """Return False: the model is saved by `save_int8` alone."""
        return False


register(OWN_METHOD, _OwnConfig, _OwnQuantizer)


def load_int8(folder: Path) -> Any:
    """Load an int8 model on the CPU; its int8 layers are `Int8Linear`.

    Raises:
        ModelError: the folder holds something else, or tensors are missing.
    """
    layers, static = _read_layers(folder)
    config = AutoConfig.from_pretrained(folder)
    config.quantization_config = {"quant_method": OWN_METHOD, "layers": layers, "static": static}
    kind = getattr(transformers, config.architectures[0])
    model, report = kind.from_pretrained(folder, config=config, output_loading_info=True)
    wrong = sorted(report["missing_keys"]) + sorted(report["unexpected_keys"])
    if wrong:
        raise ModelError(f"{folder}: the tensors do not fit the model, such as {wrong[0]}")
    return model.eval()


def _read_layers(folder: Path) -> tuple[list[str], list[str]]:
    """Check the description of the folder, and return the names of its int8 layers.

    Returns:
        All of them, and those whose inputs share a scale.
    """
    path = folder / "config.json"
    found = find_declared(folder, read_settings(folder))
    if (found.get("quant_method"), found.get("format")) != (QUANT_METHOD, FORMAT):
        raise QuantisedModelError(
            f"{path}: expected quant_method {QUANT_METHOD} and format {FORMAT}, found "
            f"{shown(found.get('quant_method'))} and {shown(found.get('format'))}",
            code=UNKNOWN_SCHEME,
            hint="a model that --method qat wrote lies in OUTPUT/int8",
        )
    given = _has_input_scales(str(path), found)
    keys: list[str] = []
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, "pt") as tensors:
            # not a dict, whatever it looks like
            keys += tensors.keys()
    names, static = (
        [key.removesuffix(end) for key in keys if key.endswith(end)]
        for end in (_SCALE, _INPUT_SCALE)
    )
    if not names:
        raise ModelError(f"{folder}: no int8 layer in its *.safetensors")
    lacking = sorted(set(names) - set(static)) if given else []
    if lacking:
        raise ModelError(f"{folder}: {lacking[0]} has no {_INPUT_SCALE[1:]}, which {path} promises")
    return names, static


def _has_input_scales(where: str, declared: Mapping[str, Any]) -> bool:
    """Return whether a folder declares a scale for the inputs of every layer.

    Raises:
        QuantisedModelError: MP-Q01, it says nothing of them.
    """
    found: Any = declared
    for key in ("config_groups", "group_0", "input_activations"):
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, dict):
        raise refuse(UNKNOWN_SCHEME, where, "config_groups says nothing of input_activations")
    return found.get("dynamic") is False
