"""The score network of the galaxies: an MLP-mixer s(x, t) ~ grad log p_t(x).

An image x [B, 1, H, W] and a second channel that is t / t_1 everywhere are cut into P squares of
4x4 pixels; each becomes a column of 64 channels, y [B, 64, P]. Four blocks then mix in turn

    y <- y + A(norm_1(y))            A acts along the P squares, the same for every channel
    y <- y + C(norm_2(y^T))^T        C acts along the 64 channels, the same for every square

with A and C multilayer perceptrons of one hidden layer of 512 and ReLU (Tolstikhin et al. 2021,
arXiv 2105.01601), and norms over all of y with a weight and a bias for each of its entries. A last
norm and a transposed convolution of the 4x4 squares lead back to an image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

PATCH, HIDDEN, WIDTH, BLOCKS = 4, 64, 512, 4


class Perceptron(nn.Module):
    """[..., size] -> [..., size], with one hidden layer."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(size, WIDTH), nn.Linear(WIDTH, size)

    def forward(self, y: Tensor) -> Tensor:
        return self.out(self.into(y).relu())


class Block(nn.Module):
    """Mixes the squares, then the channels, of y [B, HIDDEN, P]."""

    def __init__(self, patches: int) -> None:
        super().__init__()
        self.patch_mlp, self.hidden_mlp = Perceptron(patches), Perceptron(HIDDEN)
        self.norm_1 = nn.LayerNorm((HIDDEN, patches))
        self.norm_2 = nn.LayerNorm((patches, HIDDEN))

    def forward(self, y: Tensor) -> Tensor:
        y = y + self.patch_mlp(self.norm_1(y))
        y = y.mT
        return (y + self.hidden_mlp(self.norm_2(y))).mT


class Mixer(nn.Module):
    """The network: x [B, 1, side, side], t [B] -> score [B, 1, side, side].

    Args:
        side: of an image in pixels, a multiple of PATCH.
        t_1: the time by which t is divided.
    """

    def __init__(self, side: int, t_1: float = 10.0) -> None:
        super().__init__()
        self.squares, self.t_1 = side // PATCH, t_1
        patches = self.squares**2
        self.conv_in = nn.Conv2d(2, HIDDEN, PATCH, stride=PATCH)
        self.conv_out = nn.ConvTranspose2d(HIDDEN, 1, PATCH, stride=PATCH)
        self.blocks = nn.ModuleList(Block(patches) for _ in range(BLOCKS))
        self.norm = nn.LayerNorm((HIDDEN, patches))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        time = (t / self.t_1).view(-1, 1, 1, 1).to(x).expand_as(x)
        y = self.conv_in(torch.cat([x, time], 1)).flatten(2)  # [B, HIDDEN, P]
        for block in self.blocks:
            y = block(y)
        y = self.norm(y).unflatten(2, (self.squares, self.squares))
        return self.conv_out(y)
