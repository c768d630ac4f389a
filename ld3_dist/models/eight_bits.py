"""Weights in eight bits: a quarter of the memory of float32, for networks that do not fit.

Each weight of a linear layer and of a convolution is kept in 8 bits and cast up where it is used,
w ≈ s * w8. Activations and everything else are bfloat16.

    float8    w8 has 4 bits of exponent and 3 of mantissa (e4m3); s = max |w| / 448 of the layer.
              The rounding error is at most 1/16 of the weight, and 2^-10 s near zero.
    int8      w8 is a whole number from -127 to 127; s = max |w| / 127 of each output of the layer.
              The rounding error is at most s / 2.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

Kept = Literal["float8", "int8"]
FLOAT8 = torch.float8_e4m3fn
LARGEST = {"float8": torch.finfo(FLOAT8).max, "int8": 127.0}
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class CastUp(nn.Module):
    """Weights in eight bits, of any shape -> weights to compute with, s * w8."""

    scale: Tensor

    def __init__(self, scale: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.register_buffer("scale", scale.to(torch.float32))

    def forward(self, kept: Tensor) -> Tensor:
        """The weights in the dtype of the computation."""
        return (kept.to(torch.float32) * self.scale).to(self.dtype)


def keep_in_eight_bits(net: nn.Module, kind: Kept) -> nn.Module:
    """Turn the weights of a network's layers into eight bits, in place; frozen.

    A weight that holds only zeros keeps its dtype. Gradients pass to the input as before.
    """
    for module in list(net.modules()):
        if isinstance(module, LAYERS) and not parametrize.is_parametrized(module):
            weight = module.weight.detach()
            scale = _scale(weight.float(), kind)
            if scale.any():
                kept = nn.Parameter(_rounded(weight.float(), scale, kind), requires_grad=False)
                module.weight = kept
                cast = CastUp(scale, weight.dtype)
                parametrize.register_parametrization(module, "weight", cast, unsafe=True)
    return net


def _scale(weight: Tensor, kind: Kept) -> Tensor:
    """s of a layer's weights [outputs, …]: a number, or one for each output [outputs, 1, …]."""
    if kind == "float8":
        return weight.abs().max() / LARGEST[kind]
    largest = weight.abs().flatten(1).amax(1) / LARGEST[kind]
    return largest.view(-1, *[1] * (weight.ndim - 1))


def _rounded(weight: Tensor, scale: Tensor, kind: Kept) -> Tensor:
    scaled = weight / torch.where(scale > 0, scale, 1.0)
    return scaled.to(FLOAT8) if kind == "float8" else scaled.round().to(torch.int8)
