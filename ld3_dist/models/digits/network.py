"""The digits network: a small U-Net F(x [B, 1, 8, 8], time [B], label [B]), see `embedded.unet`.

It has two resolutions, 8x8 and 4x4. Learning a schedule calls this network thousands of times, on a
laptop. Most of its work is therefore done at 4x4, where a convolution costs a quarter, and the
layers at 8x8 are narrow.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..embedded.denoiser import EmbeddedFlow, EmbeddedNetwork
from ..embedded.unet import Block, LabelledNetwork, Sizes, start_at_zero

SHAPE = (1, 8, 8)
CLASSES = 10
NULL_LABEL = CLASSES


@dataclass(frozen=True)
class NetworkConfig(Sizes):
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
        super().__post_init__()
        if len(self.channels) != 2 or len(self.blocks) != 2:
            raise ValueError(f"NetworkConfig: two channels and two blocks are needed, got {self}")
        if any(c % self.groups for c in self.channels):
            raise ValueError(
                f"NetworkConfig: channels {self.channels} must be multiples of groups = "
                f"{self.groups}"
            )


class DigitsNetwork(LabelledNetwork):
    """The U-Net: (x [B, 1, 8, 8], time [B], label [B] int64 or None) -> [B, 1, 8, 8].

    None stands for null labels.
    """

    def __init__(self, config: NetworkConfig | None = None) -> None:
        c = config or NetworkConfig()
        super().__init__(CLASSES, c.embedding, c.frequencies)
        self.config = c
        (wide, deep), (n_wide, n_deep), e = c.channels, c.blocks, c.embedding
        self.enter = nn.Conv2d(1, wide, 3, padding=1)
        self.down = nn.ModuleList(Block(wide, wide, e, c.groups) for _ in range(n_wide))
        self.shrink = nn.Conv2d(wide, deep, 2, stride=2)
        self.middle = nn.ModuleList(Block(deep, deep, e, c.groups) for _ in range(n_deep))
        self.grow = nn.ConvTranspose2d(deep, wide, 2, stride=2)
        self.up = nn.ModuleList(Block(2 * wide, wide, e, c.groups) for _ in range(n_wide))
        self.norm, self.leave = nn.GroupNorm(c.groups, wide), nn.Conv2d(wide, 1, 3, padding=1)
        start_at_zero(self.leave)

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


NETWORK = EmbeddedNetwork(
    "digits", Path(__file__).parent, SHAPE, CLASSES, NetworkConfig, DigitsNetwork
)
"""The packaged network."""

FLOW = EmbeddedFlow("digits", Path(__file__).parent, SHAPE, CLASSES, NetworkConfig, DigitsNetwork)
"""The packaged network of flow matching, which has the same sizes."""
