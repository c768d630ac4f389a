"""The digits network: a small U-Net F(x, time, label), the raw network in EDM's preconditioning.

    x      [B, 1, 8, 8]   c_in * noisy image        (Karras et al. 2022, arXiv 2206.00364, table 1)
    time   [B]            ln(sigma) / 4
    label  [B]            0 … 9, or NULL_LABEL = 10

It has two resolutions, 8x8 and 4x4. A block is GroupNorm -> SiLU -> conv -> GroupNorm -> FiLM ->
SiLU -> conv, plus a skip. FiLM (Perez et al. 2018, arXiv 1709.07871) scales and shifts channels by
a function of time and label. Everything is smooth (SiLU, no ReLU, no max-pooling), because LD3
differentiates through the network with respect to its input and its time. No layer mixes the
samples of a batch, so that several schedules can share one call.

Learning a schedule calls this network thousands of times, on a laptop. Most of its work is
therefore done at 4x4, where a convolution costs a quarter, and the layers at 8x8 are narrow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 10
NULL_LABEL = CLASSES
LARGEST = 1024
"""The largest size that a weights file may ask for; it bounds the memory that is taken."""


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of the U-Net; they are stored with the weights.

    channels: at 8x8 and at 4x4.
    blocks: residual blocks on the way down at 8x8 and at 4x4; the way up has as many at 8x8.
    embedding: width of the embedding of time and label.
    frequencies: number of sine and cosine pairs of the time.
    groups: of the group norms.
    """

    channels: tuple[int, int] = (48, 128)
    blocks: tuple[int, int] = (1, 2)
    embedding: int = 128
    frequencies: int = 8
    groups: int = 8

    def __post_init__(self) -> None:
        sizes = (*self.channels, *self.blocks, self.embedding, self.frequencies, self.groups)
        if not all(isinstance(size, int) and 1 <= size <= LARGEST for size in sizes):
            raise ValueError(
                f"NetworkConfig: every size must be an integer from 1 to {LARGEST}, got {self}"
            )
        if len(self.channels) != 2 or len(self.blocks) != 2:
            raise ValueError(f"NetworkConfig: two channels and two blocks are needed, got {self}")
        if any(c % self.groups for c in self.channels):
            raise ValueError(
                f"NetworkConfig: channels {self.channels} must be multiples of groups = "
                f"{self.groups}"
            )

    @classmethod
    def from_json(cls, sizes: dict[str, Any]) -> NetworkConfig:
        """The sizes in the JSON of a weights file, where tuples are lists."""
        fields: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in sizes.items()
        }
        return cls(**fields)


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
        nn.init.zeros_(self.conv_2.weight)
        nn.init.zeros_(self.conv_2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x [B, c_in, h, w], embedding [B, e] -> [B, c_out, h, w]."""
        h = self.conv_1(functional.silu(self.norm_1(x)))
        scale, shift = self.film(embedding)[:, :, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, self.norm_2(h), 1 + scale)
        return self.skip(x) + self.conv_2(functional.silu(h))


class DigitsNetwork(nn.Module):
    """The U-Net: (x [B, 1, 8, 8], time [B], label [B] int64 or None) -> [B, 1, 8, 8].

    None stands for null labels.
    """

    frequencies: Tensor

    def __init__(self, config: NetworkConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or NetworkConfig()
        (wide, deep), (n_wide, n_deep), e = c.channels, c.blocks, c.embedding
        # time lies in [-1.6, 1.1], and the shortest period is ~0.4; shorter ones would only make
        # the derivative with respect to time rough
        self.register_buffer(
            "frequencies", torch.logspace(0, math.log2(16), c.frequencies, base=2), persistent=False
        )
        self.time = nn.Linear(2 * c.frequencies, e)
        self.label = nn.Embedding(CLASSES + 1, e)
        self.mix = nn.Linear(e, e)
        self.enter = nn.Conv2d(1, wide, 3, padding=1)
        self.down = nn.ModuleList(Block(wide, wide, e, c.groups) for _ in range(n_wide))
        self.shrink = nn.Conv2d(wide, deep, 2, stride=2)
        self.middle = nn.ModuleList(Block(deep, deep, e, c.groups) for _ in range(n_deep))
        self.grow = nn.ConvTranspose2d(deep, wide, 2, stride=2)
        self.up = nn.ModuleList(Block(2 * wide, wide, e, c.groups) for _ in range(n_wide))
        self.norm, self.leave = nn.GroupNorm(c.groups, wide), nn.Conv2d(wide, 1, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)  # type: ignore[arg-type]

    def embed(self, time: Tensor, label: Tensor | None) -> Tensor:
        """The embedding [B, e] of time [B] and label [B] or None."""
        angle = time[:, None].to(self.time.weight.dtype) * self.frequencies.to(
            self.time.weight.dtype
        )
        if label is None:
            label = torch.full(time.shape, NULL_LABEL, dtype=torch.int64, device=time.device)
        hidden = self.time(torch.cat([angle.sin(), angle.cos()], dim=1)) + self.label(label)
        return functional.silu(self.mix(functional.silu(hidden)))

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """The raw output F [B, 1, 8, 8]; no sample depends on the others of its batch."""
        embedding = self.embed(time, label)
        h = self.enter(x.contiguous(memory_format=torch.channels_last))
        skips = []
        for block in self.down:
            h = block(h, embedding)
            skips.append(h)
        h = self.shrink(h)
        for block in self.middle:
            h = block(h, embedding)
        h = self.grow(h)
        for block in self.up:
            h = block(torch.cat([h, skips.pop()], dim=1), embedding)
        return self.leave(functional.silu(self.norm(h)))
