"""Parts of the embedded U-Nets F(x, time, label), the raw networks in EDM's preconditioning.

    x      [B, 1, h, w]   c_in * noisy image        (Karras et al. 2022, arXiv 2206.00364, table 1)
    time   [B]            ln(sigma) / 4
    label  [B]            0 … classes - 1, or the null label `classes`

A block is GroupNorm -> SiLU -> conv -> GroupNorm -> FiLM -> SiLU -> conv, plus a skip. FiLM (Perez
et al. 2018, arXiv 1709.07871) scales and shifts channels by a function of time and label.
Everything is smooth (SiLU, no ReLU, no max-pooling), because LD3 differentiates through the network
with respect to its input and its time. No layer mixes the samples of a batch, so that several
schedules can share one call.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

LARGEST = 1024
"""The largest size that a weights file may ask for; it bounds the memory that is taken."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a network; they are stored with its weights. A subclass adds the fields."""

    def __post_init__(self) -> None:
        sizes: list[Any] = []
        for field in fields(self):
            value = getattr(self, field.name)
            sizes += value if isinstance(value, tuple) else [value]
        if not all(isinstance(size, int) and 1 <= size <= LARGEST for size in sizes):
            raise ValueError(
                f"{type(self).__name__}: every size must be an integer from 1 to {LARGEST}, got "
                f"{self}"
            )

    @classmethod
    def from_json(cls, sizes: dict[str, Any]) -> Self:
        """The sizes in the JSON of a weights file, where tuples are lists."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in sizes.items()})


class Block(nn.Module):
    """Residual block [B, c_in, h, w] -> [B, c_out, h, w], modulated by an embedding [B, e]."""

    def __init__(self, c_in: int, c_out: int, embedding: int, groups: int) -> None:
        super().__init__()
        self.norm_1, self.conv_1 = nn.GroupNorm(groups, c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.film = nn.Linear(embedding, 2 * c_out)
        self.norm_2 = nn.GroupNorm(groups, c_out)
        self.conv_2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)
        # every block starts as its skip, which steadies early training
        start_at_zero(self.conv_2)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x [B, c_in, h, w], embedding [B, e] -> [B, c_out, h, w]."""
        h = self.conv_1(functional.silu(self.norm_1(x)))
        scale, shift = self.film(embedding)[:, :, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, self.norm_2(h), 1 + scale)
        return self.skip(x) + self.conv_2(functional.silu(h))


class LabelledNetwork(nn.Module):
    """A network of x, time and label: it embeds time and label together. A subclass uses them.

    Args:
        classes: number of labels; one more stands for no label.
        width: width e of the embedding.
        frequencies: number of sine and cosine pairs of the time.
    """

    frequencies: Tensor

    def __init__(self, classes: int, width: int, frequencies: int) -> None:
        super().__init__()
        self.null_label = classes
        # time lies in [-1.6, 1.1], and the shortest period is ~0.4; shorter ones would only make
        # the derivative with respect to time rough
        self.register_buffer(
            "frequencies", torch.logspace(0, math.log2(16), frequencies, base=2), persistent=False
        )
        self.time = nn.Linear(2 * frequencies, width)
        self.label = nn.Embedding(classes + 1, width)
        self.mix = nn.Linear(width, width)

    def embed(self, time: Tensor, label: Tensor | None) -> Tensor:
        """The embedding [B, e] of time [B] and label [B]; None stands for null labels."""
        dtype = self.time.weight.dtype
        angle = time[:, None].to(dtype) * self.frequencies.to(dtype)
        if label is None:
            label = torch.full(time.shape, self.null_label, dtype=torch.int64, device=time.device)
        hidden = self.time(torch.cat([angle.sin(), angle.cos()], dim=1)) + self.label(label)
        return functional.silu(self.mix(functional.silu(hidden)))


def start_at_zero(conv: nn.Conv2d) -> None:
    """Set the weights and biases of a convolution to zero."""
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
