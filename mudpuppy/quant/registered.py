"""Our quantisers as transformers knows them: it opens, makes and saves models in our 4-bit formats.

Importing this module is all that is needed:

    import mudpuppy.quant.registered
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained("folder/that/we/saved")

and to quantise a 16-bit model while it is read, one tensor at a time:

    from mudpuppy.quant.registered import FourBitConfig

    config = FourBitConfig(format="nf4")
    model = AutoModelForCausalLM.from_pretrained("model", quantization_config=config)
    model.save_pretrained("folder")  # in 4 bits, and its config.json says so

transformers itself finds the place of every tensor: renamed keys, fused experts, tied weights and
several files are its own business, and what it reports as missing or unexpected stays true. Loaded
tensors are quantised in the main thread as they come, so that only one is there in 16 bits.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from contextvars import ContextVar
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.core_model_loading import (
    ConversionOps,
)
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from mudpuppy.base_path import ask_the_doctor, not_finite
from mudpuppy.errors import EngineError, ModelError
from mudpuppy.quant.blocks import replace_module
from mudpuppy.quant.checks import refuse, require_parts
from mudpuppy.quant.codes import PART_MISSING
from mudpuppy.quant.formats.interface import Format, Packed
from mudpuppy.quant.linear4bit import Linear4bit, find_4bit
from mudpuppy.quant.packed_files import (
    OWN_METHOD,
    VERSION,
    forms,
    read_declared,
    read_format,
    require_declared,
    require_values,
)
from mudpuppy.quant.places import choose_layers, find_linear, find_names, group_files

OPENED: ContextVar[str | None] = ContextVar("OPENED", default=None)
"""The folder that is being opened, where transformers is not told it."""


def register(
    method: str, config: type[QuantizationConfigMixin], quantizer: type[HfQuantizer]
) -> None:
    """Tell transformers of a method, once for the process."""
    if method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(method)(config)
        register_quantizer(method)(quantizer)


class EmptyLayers(HfQuantizer):  # type: ignore[misc]  # transformers ships no types
    """Puts empty layers into a model, which transformers then fills from the file."""

    @abstractmethod
    def make_empty(self, name: str, linear: nn.Linear, dtype: torch.dtype) -> nn.Module:
        """Return the empty form of a layer, without its bias; called with `meta` as the device."""

    def put_empty(self, model: nn.Module, names: list[str], dtype: torch.dtype) -> None:
        """Exchange the linear layers `names` of a model that is on `meta`.

        Raises:
            QuantisedModelError: MP-Q01, the model has no such linear layer.
        """
        for name in names:
            linear = find_linear(model, name)
            with torch.device("meta"):
                layer = self.make_empty(name, linear, dtype)
            layer.register_parameter("bias", linear.bias)
            if linear.bias is not None:
                linear.bias.requires_grad_(False)
            # its own init would write to a weight that is only handed out
            cast(Any, layer)._is_hf_initialized = True
            replace_module(model, name, layer)

    @property
    def is_trainable(self) -> bool:
        """False: rounded weights cannot move."""
        return False


class FourBitConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """`quantization_config` of a model in one of our 4-bit formats.

    Args:
        format: name in `mudpuppy.quant.formats.FORMATS`.
        block_size: columns that share a scale; the format's own where None.
        search: further scales to try for every block while quantising.
        modules: names of the layers in 4 bits; of a model that is to be quantised, None stands for
            every linear layer of its decoder blocks.
        odd: those of them with an odd number of inputs, which the levels' shape does not tell.
        version: of the layout.
    """

    def __init__(
        self,
        format: str = "nf4",  # the key in config.json
        block_size: int | None = None,
        search: int = 0,
        modules: list[str] | None = None,
        odd: list[str] | None = None,
        version: int = VERSION,
        **_: Any,
    ) -> None:
        self.quant_method = OWN_METHOD
        self.version = version
        self.format = format
        self.block_size = block_size
        self.search = search
        self.modules = modules
        self.odd = odd
        self.producer = _PRODUCER

    def to_dict(self) -> dict[str, Any]:
        """Return what is written into config.json."""
        made: dict[str, Any] = super().to_dict()
        unsaid = ("search", 0), ("block_size", None), ("odd", None)
        return {key: value for key, value in made.items() if (key, value) not in unsaid}


_PRODUCER = f"mudpuppy {version('mudpuppy')}"


class FourBitQuantizer(EmptyLayers):
    """Opens, makes and saves models in our 4-bit formats."""

    quantization_config: FourBitConfig

    def __init__(self, quantization_config: FourBitConfig, **words: Any) -> None:
        super().__init__(quantization_config, **words)
        self._format, self._block_size = self._read()
        self._wanted: dict[str, str] = {}
        self._dtype = torch.float32
        self._failed: tuple[str, torch.dtype] | None = None
        self._misfit: str | None = None

    def _read(self) -> tuple[Format, int]:
        """Return format and block size.

        Raises:
            QuantisedModelError: MP-Q01, one of them is not known.
        """
        said = self.quantization_config.to_dict()
        if said.get("block_size") is None and not self.pre_quantized:
            form = read_format("quantization_config", said)
            said["block_size"] = self.quantization_config.block_size = form.default_block_size
        return read_declared("quantization_config", said)

    def make_empty(self, name: str, linear: nn.Linear, dtype: torch.dtype) -> nn.Module:
        """Return an empty packed layer."""
        wanted = forms(self._format, linear.out_features, linear.in_features, self._block_size)
        packed = Packed(
            torch.empty(wanted["qweight"].shape, dtype=torch.uint8),
            torch.empty(wanted["scales"].shape, dtype=self._format.scale_dtype),
            linear.in_features,
            self._block_size,
        )
        return Linear4bit.from_packed(packed, self._format, compute_dtype=dtype)

    def _process_model_before_weight_loading(
        self,
        model: nn.Module,
        dtype: torch.dtype | None = None,
        checkpoint_files: list[str] | None = None,
        **_: Any,
    ) -> None:
        self._dtype = torch.get_default_dtype() if dtype is None else dtype
        if not self.pre_quantized:
            names = self.quantization_config.modules or choose_layers(model)
            for name in names:
                find_linear(model, name)
            self._wanted = {f"{name}.weight": name for name in names}
            return
        files = [Path(file) for file in checkpoint_files or () if file.endswith(".safetensors")]
        found = group_files(model, files)
        if found:
            require_declared(str(files[0].parent), self.quantization_config.to_dict(), found)
        names = list(found) or find_names(model, self.quantization_config.modules or [])
        self.put_empty(model, names, self._dtype)
        for name, parts in found.items():
            linear = cast(nn.Linear, model.get_submodule(name))
            wanted = forms(self._format, linear.out_features, linear.in_features, self._block_size)
            seen = {part: (entry.dtype, entry.shape) for part, entry in parts.items()}
            require_parts(f"{files[0].parent}: {name}", seen, wanted)

    def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> None:
        said = cast(Any, model).config._name_or_path or type(model).__name__
        path = OPENED.get() or str(said)
        if self._misfit is not None:
            raise ModelError(f"{path}: {self._misfit}", hint=ask_the_doctor(path))
        if self._failed is not None:
            raise not_finite(path, *self._failed)
        layers = find_4bit(model)
        for name, layer in layers.items():
            require_values(f"{path}: {name}", layer.format, layer.packed, layer.compute_dtype)
            if layer.bias is not None and not hasattr(layer.bias, "_is_hf_initialized"):
                nn.init.zeros_(layer.bias)  # it was not in the file, and transformers says so
        self._describe(layers)

    def _describe(self, layers: Mapping[str, Linear4bit]) -> None:
        config = self.quantization_config
        config.modules = [name for name, layer in layers.items() if layer.is_packed]
        odd = [name for name in config.modules if layers[name].in_features % self._format.per_byte]
        config.odd = odd or None

    def param_needs_quantization(self, model: nn.Module, param_name: str, **_: Any) -> bool:
        """Return whether a tensor is to be quantised as it is loaded."""
        del model
        return param_name in self._wanted

    def get_quantize_ops(self) -> ConversionOps:
        """Return what quantises a tensor."""
        return _Quantise(self)

    def quantise(self, model: nn.Module, name: str, weight: Tensor) -> None:
        """Put the 4-bit form of a loaded weight into the model.

        What is wrong with a weight is told when all are loaded: transformers would swallow it here.
        """
        module = self._wanted[name]
        linear = find_linear(model, module)
        config = self.quantization_config
        if weight.shape != linear.weight.shape:
            self._misfit = self._misfit or (
                f"the tensor {name} has the shape {list(weight.shape)}, and the model of "
                f"config.json {list(linear.weight.shape)}"
            )
            return
        try:
            packed = self._format.quantise(weight, self._block_size, config.search)
        except EngineError:
            in_own = bool(weight.isfinite().all())
            self._failed = self._failed or (name, torch.float32 if in_own else weight.dtype)
            zeros = torch.zeros_like(weight[:, :1]).expand_as(weight)
            packed = self._format.quantise(zeros, self._block_size)
        layer = Linear4bit.from_packed(packed, self._format, compute_dtype=self._dtype)
        layer.register_parameter("bias", linear.bias)
        if linear.bias is not None:
            linear.bias.requires_grad_(False)
        cast(Any, layer)._is_hf_initialized = True
        replace_module(model, module, layer)

    def get_state_dict_and_metadata(self, model: nn.Module) -> tuple[None, dict[str, str]]:
        """Describe the model as it is now, right before it is saved."""
        layers = find_4bit(model)
        for name, layer in layers.items():
            if layer.is_packed and (layer.format, layer.block_size) != (
                self._format,
                self._block_size,
            ):
                raise EngineError(
                    f"{name} is in {layer.format.name} with blocks of {layer.block_size}, and the "
                    f"model in {self._format.name} with blocks of {self._block_size}"
                )
        self._describe(layers)
        return None, {}

    def is_serializable(self) -> bool:
        """Return True."""
        return True

    @property
    def is_trainable(self) -> bool:
        """True: an adapter beside the layers can be trained."""
        return True

    @property
    def is_compileable(self) -> bool:
        """True."""
        return True


class _Quantise(ConversionOps):  # type: ignore[misc]
    """Called by transformers with every tensor that is to be quantised."""

    def __init__(self, quantizer: FourBitQuantizer) -> None:
        self.hf_quantizer = quantizer

    def convert(
        self,
        input_dict: dict[str, Any],
        model: nn.Module | None = None,
        missing_keys: set[str] | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        """Put what is to be in 4 bits into the model, and return the rest."""
        assert model is not None
        left: dict[str, Any] = {}
        for name in list(input_dict):
            value = input_dict.pop(name)
            if not self.hf_quantizer.param_needs_quantization(model, name):
                left[name] = value
                continue
            weight = value[0] if isinstance(value, list) else value
            self.hf_quantizer.quantise(model, name, weight)
            if missing_keys is not None:
                missing_keys.discard(name)
        return left


def describe_packed(model: nn.Module) -> dict[str, Any]:
    """Return what a merge must know of the packed layers of a model; nothing without any."""
    layers = _packed_layers(model)
    if not layers:
        return {}
    first = next(iter(layers.values()))
    quantizer = getattr(model, "hf_quantizer", None)
    config = getattr(quantizer, "quantization_config", None)
    # one that was packed before it came here is merged as it lies: how it was made is not asked
    search = config.search if isinstance(config, FourBitConfig) else 0
    said = first.format.describe(first.block_size, search)
    return {**said, "modules": list(layers)}


def _packed_layers(model: nn.Module) -> dict[str, Linear4bit]:
    return {name: layer for name, layer in find_4bit(model).items() if layer.is_packed}


def declare(model: Any) -> None:
    """Let a live model with packed layers save itself as what it is (`model.save_pretrained`).

    Raises:
        QuantisedModelError: MP-Q02, it has no packed layer.
    """
    layers = find_4bit(model)
    packed = [layer for layer in layers.values() if layer.is_packed]
    if not packed:
        raise refuse(PART_MISSING, type(model).__name__, "no layer is in 4 bits")
    config = FourBitConfig(
        format=packed[0].format.name, block_size=packed[0].block_size, modules=list(layers)
    )
    quantizer = FourBitQuantizer(config, pre_quantized=True)
    quantizer.get_state_dict_and_metadata(model)
    model.hf_quantizer = quantizer
    model.is_quantized = True
    model.quantization_method = OWN_METHOD
    model.config.quantization_config = config


def withdraw(model: Any) -> None:
    """Take back what `declare` or transformers said of a model whose layers are plain now."""
    quantizer = getattr(model, "hf_quantizer", None)
    if isinstance(quantizer, FourBitQuantizer):
        quantizer.remove_quantization_config(model)


register(OWN_METHOD, FourBitConfig, FourBitQuantizer)
