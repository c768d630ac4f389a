"""Weights in float8: a quarter of the memory of float32, for networks that do not fit otherwise.

Each weight of a linear layer and of a convolution is kept as float8 (e4m3: 4 bits of exponent, 3 of
mantissa) with one scale, w ≈ scale * w8, scale = max |w| / 448, and is cast up where it is used.
Activations and everything else are bfloat16. The rounding error of a weight is at most 1/16 of it,
and 2^-10 of the scale near zero.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

KEPT = torch.float8_e4m3fn
LARGEST = torch.finfo(KEPT).max
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class CastUp(nn.Module):
    """Float8 weights of any shape -> weights to compute with, scale * w8."""

    scale: Tensor

    def __init__(self, scale: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.register_buffer("scale", scale.to(torch.float32))

    def forward(self, kept: Tensor) -> Tensor:
        """The weights in the dtype of the computation."""
        return (kept.to(torch.float32) * self.scale).to(self.dtype)


def keep_in_float8(net: nn.Module) -> nn.Module:
    """Turn the weights of a network's layers into float8, in place; frozen.

    A weight that holds only zeros keeps its dtype. Gradients pass to the input as before.
    """
    for module in list(net.modules()):
        if isinstance(module, LAYERS) and not parametrize.is_parametrized(module):
            weight = module.weight.detach()
            scale = weight.abs().max().float() / LARGEST
            if scale > 0:
                kept = (weight.float() / scale).to(KEPT)
                module.weight = nn.Parameter(kept, requires_grad=False)
                cast = CastUp(scale, weight.dtype)
                parametrize.register_parametrization(module, "weight", cast, unsafe=True)
    return net
