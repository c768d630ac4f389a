"""The fashion network: a U-Net F(x [B, 1, 28, 28], time [B], label [B]), see `embedded.unet`.

Each 2x2 square of pixels becomes four channels first, so that the U-Net has two resolutions, 14x14
and 7x7. One layer of self-attention stands at 7x7, where it sees the whole image at little cost.
Learning a schedule calls this network thousands of times, on a laptop. A convolution at 7x7 costs a
quarter of one at 14x14, so most weights are there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..embedded.denoiser import EmbeddedNetwork
from ..embedded.unet import Block, LabelledNetwork, Sizes, start_at_zero

SHAPE = (1, 28, 28)
CLASSES = 10
NULL_LABEL = CLASSES


@dataclass(frozen=True)
class NetworkConfig(Sizes):
    """Sizes of the U-Net; they are stored with the weights.

    channels: at 14x14 and at 7x7.
    blocks: residual blocks at 14x14 on the way down, at 7x7, and at 14x14 on the way up.
    embedding: width of the embedding of time and label.
    frequencies: number of sine and cosine pairs of the time.
    groups: of the group norms.
    heads: of the attention.
    """

    channels: tuple[int, int] = (64, 144)
    blocks: tuple[int, int, int] = (2, 4, 2)
    embedding: int = 160
    frequencies: int = 8
    groups: int = 8
    heads: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.channels) != 2 or len(self.blocks) != 3:
            raise ValueError(f"NetworkConfig: two channels and three blocks are needed, got {self}")
        if any(c % self.groups for c in self.channels) or self.channels[1] % self.heads:
            raise ValueError(
                f"NetworkConfig: channels {self.channels} must be multiples of groups = "
                f"{self.groups}, and the second of heads = {self.heads}"
            )


class Attention(nn.Module):
    """Self-attention over the positions of a map [B, c, h, w], as a residual."""

    def __init__(self, channels: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(groups, channels)
        self.ask = nn.Conv2d(channels, 3 * channels, 1)
        self.leave = nn.Conv2d(channels, channels, 1)
        start_at_zero(self.leave)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, c, h, w] -> the same shape."""
        B, c, h, w = x.shape
        parts = self.ask(self.norm(x)).reshape(B, 3, self.heads, c // self.heads, h * w)
        q, k, v = parts.transpose(-1, -2).unbind(1)  # [B, heads, h*w, c/heads] each
        # written out, because the fused kernel has no second derivative and is not faster here
        weights = (q @ k.transpose(-1, -2) * (c // self.heads) ** -0.5).softmax(-1)
        return x + self.leave((weights @ v).transpose(-1, -2).reshape(B, c, h, w))


class FashionNetwork(LabelledNetwork):
    """The U-Net: (x [B, 1, 28, 28], time [B], label [B] int64 or None) -> [B, 1, 28, 28].

    None stands for null labels.
    """

    def __init__(self, config: NetworkConfig | None = None) -> None:
        c = config or NetworkConfig()
        super().__init__(CLASSES, c.embedding, c.frequencies)
        self.config = c
        (wide, deep), (n_down, n_deep, n_up), e = c.channels, c.blocks, c.embedding
        self.enter = nn.Conv2d(4, wide, 3, padding=1)
        self.down = nn.ModuleList(Block(wide, wide, e, c.groups) for _ in range(n_down))
        self.shrink = nn.Conv2d(wide, deep, 2, stride=2)
        self.middle = nn.ModuleList(Block(deep, deep, e, c.groups) for _ in range(n_deep))
        self.attention = Attention(deep, c.heads, c.groups)
        self.grow = nn.ConvTranspose2d(deep, wide, 2, stride=2)
        self.up = nn.ModuleList(Block(wide, wide, e, c.groups) for _ in range(n_up))
        self.join = nn.Conv2d(2 * wide, wide, 1)
        self.norm, self.leave = nn.GroupNorm(c.groups, wide), nn.Conv2d(wide, 4, 3, padding=1)
        start_at_zero(self.leave)

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """The raw output F [B, 1, 28, 28]; no sample depends on the others of its batch."""
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


NETWORK = EmbeddedNetwork(
    "fashion", Path(__file__).parent, SHAPE, CLASSES, NetworkConfig, FashionNetwork
)
"""The packaged network."""
