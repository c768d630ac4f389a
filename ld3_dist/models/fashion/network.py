"""The fashion network: a U-Net F(x, time, label), the raw network inside EDM's preconditioning.

    x [B, 1, 28, 28] = c_in * noisy image,   time [B] = ln(sigma) / 4,   label [B] in 0 … 9, or
                                             NULL_LABEL = 10

Each 2x2 square of pixels becomes four channels first, so that the U-Net has two resolutions, 14x14
and 7x7. A block is GroupNorm -> SiLU -> conv -> GroupNorm -> FiLM -> SiLU -> conv, plus a skip;
FiLM (Perez et al. 2018) scales and shifts channels by a function of time and label. One layer of
self-attention stands at 7x7, where it sees the whole image for little. Everything is smooth (SiLU,
no ReLU, no max-pooling): LD3 differentiates through the network with respect to its input and its
time. No layer mixes samples of a batch, so that several schedules can share one call.

Learning a schedule calls this network thousands of times, on a laptop. A convolution at 7x7 costs a
quarter of one at 14x14, so most weights are there.
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
"""Largest size that a weights file may ask for: a file must not say how much memory is taken."""


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of the U-Net; stored with the weights.

    channels: channels at 14x14 and at 7x7; blocks: residual blocks at 14x14 on the way down, at
    7x7, and at 14x14 on the way up; embedding: width of the time and label embedding; frequencies:
    sine/cosine pairs of the time.
    """

    channels: tuple[int, int] = (64, 144)
    blocks: tuple[int, int, int] = (2, 4, 2)
    embedding: int = 160
    frequencies: int = 8
    groups: int = 8
    heads: int = 4

    def __post_init__(self) -> None:
        sizes = (
            *self.channels,
            *self.blocks,
            self.embedding,
            self.frequencies,
            self.groups,
            self.heads,
        )
        if not all(isinstance(size, int) and 1 <= size <= LARGEST for size in sizes):
            raise ValueError(
                f"NetworkConfig: every size must be an integer from 1 to {LARGEST}, got {self}"
            )
        if len(self.channels) != 2 or len(self.blocks) != 3:
            raise ValueError(f"NetworkConfig: two channels and three blocks are needed, got {self}")
        if any(c % self.groups for c in self.channels) or self.channels[1] % self.heads:
            raise ValueError(
                f"NetworkConfig: channels {self.channels} must be multiples of groups = "
                f"{self.groups}, and the second of heads = {self.heads}"
            )

    @classmethod
    def from_json(cls, sizes: dict[str, Any]) -> NetworkConfig:
        """From the JSON of a weights file, where tuples are lists."""
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
        self.norm_2, self.conv_2 = (
            nn.GroupNorm(groups, c_out),
            nn.Conv2d(c_out, c_out, 3, padding=1),
        )
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)
        nn.init.zeros_(
            self.conv_2.weight
        )  # every block starts as its skip, which steadies early training
        nn.init.zeros_(self.conv_2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x [B, c_in, h, w], embedding [B, e] -> [B, c_out, h, w]."""
        h = self.conv_1(functional.silu(self.norm_1(x)))
        scale, shift = self.film(embedding)[:, :, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, self.norm_2(h), 1 + scale)
        return self.skip(x) + self.conv_2(functional.silu(h))


class Attention(nn.Module):
    """Self-attention over the positions of a map [B, c, h, w], as a residual."""

    def __init__(self, channels: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(groups, channels)
        self.ask = nn.Conv2d(channels, 3 * channels, 1)
        self.leave = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """x [B, c, h, w] -> the same shape."""
        B, c, h, w = x.shape
        parts = self.ask(self.norm(x)).reshape(B, 3, self.heads, c // self.heads, h * w)
        q, k, v = parts.transpose(-1, -2).unbind(1)  # [B, heads, h*w, c/heads] each
        # written out: the fused kernel has no second derivative, and is not faster on 49 positions
        weights = (q @ k.transpose(-1, -2) * (c // self.heads) ** -0.5).softmax(-1)
        return x + self.leave((weights @ v).transpose(-1, -2).reshape(B, c, h, w))


class FashionNetwork(nn.Module):
    """net(x [B, 1, 28, 28], time [B], label [B] int64 or None) -> [B, 1, 28, 28].

    None is the null label.
    """

    frequencies: Tensor

    def __init__(self, config: NetworkConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or NetworkConfig()
        (wide, deep), (n_down, n_deep, n_up), e = c.channels, c.blocks, c.embedding
        # time spans [-1.6, 1.1]; up to one period over ~0.4 of it: finer features would only
        # roughen d/dtime
        self.register_buffer(
            "frequencies", torch.logspace(0, math.log2(16), c.frequencies, base=2), persistent=False
        )
        self.time = nn.Linear(2 * c.frequencies, e)
        self.label = nn.Embedding(CLASSES + 1, e)
        self.mix = nn.Linear(e, e)
        self.enter = nn.Conv2d(4, wide, 3, padding=1)
        self.down = nn.ModuleList(Block(wide, wide, e, c.groups) for _ in range(n_down))
        self.shrink = nn.Conv2d(wide, deep, 2, stride=2)
        self.middle = nn.ModuleList(Block(deep, deep, e, c.groups) for _ in range(n_deep))
        self.attention = Attention(deep, c.heads, c.groups)
        self.grow = nn.ConvTranspose2d(deep, wide, 2, stride=2)
        self.up = nn.ModuleList(Block(wide, wide, e, c.groups) for _ in range(n_up))
        self.join = nn.Conv2d(2 * wide, wide, 1)
        self.norm, self.leave = nn.GroupNorm(c.groups, wide), nn.Conv2d(wide, 4, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)  # type: ignore[arg-type]

    def embed(self, time: Tensor, label: Tensor | None) -> Tensor:
        """time [B], label [B] or None -> [B, e]."""
        angle = time[:, None].to(self.time.weight.dtype) * self.frequencies.to(
            self.time.weight.dtype
        )
        if label is None:
            label = torch.full(time.shape, NULL_LABEL, dtype=torch.int64, device=time.device)
        hidden = self.time(torch.cat([angle.sin(), angle.cos()], dim=1)) + self.label(label)
        return functional.silu(self.mix(functional.silu(hidden)))

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """See the class; every sample of the batch is treated on its own."""
        embedding = self.embed(time, label)
        h = self.enter(functional.pixel_unshuffle(x, 2))
        for block in self.down:
            h = block(h, embedding)
        skip, h = h, self.shrink(h)
        for i, block in enumerate(self.middle):
            h = block(h, embedding)
            if i == (len(self.middle) - 1) // 2:
                h = self.attention(h)
        h = self.join(torch.cat([self.grow(h), skip], dim=1))
        for block in self.up:
            h = block(h, embedding)
        return functional.pixel_shuffle(self.leave(functional.silu(self.norm(h))), 2)
