"""A linear layer that computes with GPTQ's values and remembers their packed form."""

from __future__ import annotations

import torch
from torch import nn

from mudpuppy.errors import EngineError
from mudpuppy.quant.gptq_pack import GptqTensors, dequantise_gptq


class GptqLinear(nn.Linear):
    """A linear layer whose frozen `weight` is the dequantised value of `tensors`.

    The state dict is that of a plain linear layer: the packed form is kept beside it, on the host.

    Args:
        linear: the layer to take the place of; its bias and its weight's dtype are kept.
        tensors: the packed weight.
        bits: width of a level.
    """

    def __init__(self, linear: nn.Linear, tensors: GptqTensors, bits: int) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        values = dequantise_gptq(tensors, bits, linear.weight.dtype)
        self.weight = nn.Parameter(values, requires_grad=False)
        self.bias = linear.bias
        self.bits = bits
        self.tensors = GptqTensors(*(tensor.cpu() for tensor in tensors))

    def check_unchanged(self, name: str) -> None:
        """Check that the weight still is what the packed form says.

        Raises:
            EngineError: it was changed since; saving would lose that.
        """
        values = dequantise_gptq(self.tensors, self.bits, self.weight.dtype)
        if not torch.equal(values, self.weight.detach().cpu()):
            raise EngineError(f"{name}: the weight was changed after it was quantised")
