"""The two U-Net families of EDM's checkpoints, as F(x [B, C, h, w], time [B], class vector [B, L]).

    SongUNet       DDPM++ (positional time, plain encoder) and NCSN++ (Fourier time, and a residual
                   path that feeds a filtered, convolved copy of the input into every resolution);
                   Song et al. 2021, arXiv 2011.13456
    DhariwalUNet   ADM; Dhariwal & Nichol 2021, arXiv 2105.05233

Both walk down the resolutions, keeping a list of skips, and up again. Each step of the walk is a
module of `enc` or `dec`. Its name is `{resolution}x{resolution}_{step}`, as in the checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, cat, nn
from torch.nn import functional

from ...core.errors import InputError, unknown
from .blocks import Block, BlockStyle, Conv, Fourier, Norm, Positional, SwappedLinear

_SIZES = {
    "img_resolution": (1, 65_536),
    "in_channels": (1, 65_536),
    "out_channels": (1, 65_536),
    "label_dim": (0, 1_000_000),
    "augment_dim": (0, 65_536),
    "model_channels": (4, 65_536),
    "channel_mult_emb": (1, 1024),
    "num_blocks": (1, 1000),
    "channel_mult_noise": (1, 1024),
}
"""Lowest and highest value of each size."""


@dataclass(frozen=True)
class UNetConfig:
    """Constructor arguments of either U-Net, by the names they have in the checkpoints.

    Raises InputError for values that these networks do not have.
    """

    img_resolution: int
    in_channels: int
    out_channels: int
    label_dim: int = 0
    augment_dim: int = 0
    model_channels: int = 128
    channel_mult: Sequence[int] = (1, 2, 2, 2)
    channel_mult_emb: int = 4
    num_blocks: int = 4
    attn_resolutions: Sequence[int] = (16,)
    embedding_type: str = "positional"
    channel_mult_noise: int = 1
    encoder_type: str = "standard"
    decoder_type: str = "standard"
    resample_filter: Sequence[int] = (1, 1)

    def __post_init__(self) -> None:
        self._check_words()
        self._check_sizes()
        if self.img_resolution >> (len(self.channel_mult) - 1) < 1:
            raise InputError(
                f"U-Net: resolution {self.img_resolution} is too small for "
                f"{len(self.channel_mult)} levels"
            )
        if self.model_channels % 4:
            raise InputError(
                f"U-Net: model_channels={self.model_channels} is no multiple of 4 and makes no "
                f"network"
            )

    def _check_words(self) -> None:
        for key, known in (
            ("embedding_type", ("positional", "fourier")),
            ("encoder_type", ("standard", "residual")),
            ("decoder_type", ("standard",)),
        ):
            value = getattr(self, key)
            if not isinstance(value, str) or value not in known:
                raise unknown(f"{key} of a SongUNet", value, known)

    def _check_sizes(self) -> None:
        for key, (lowest, highest) in _SIZES.items():
            value = getattr(self, key)
            if type(value) is not int or not lowest <= value <= highest:
                raise InputError(
                    f"U-Net: {key}={value!r} must be a whole number from {lowest} to {highest:,}"
                )
        for key, lowest in (("channel_mult", 1), ("attn_resolutions", 0), ("resample_filter", 1)):
            value = getattr(self, key)
            good = isinstance(value, (list, tuple)) and lowest <= len(value) <= 16
            if not good or not all(type(v) is int and 0 < v <= 65_536 for v in value):
                raise InputError(
                    f"U-Net: {key}={value!r} must be a list of {lowest} to 16 whole numbers above 0"
                )

    @property
    def blocks(self) -> int:
        """The least number of residual blocks; each has tensors of its own."""
        return len(self.channel_mult) * (2 * self.num_blocks + 1)

    @property
    def embedding(self) -> int:
        """Width of the embedding e."""
        return self.model_channels * self.channel_mult_emb


class SongUNet(nn.Module):
    """The U-Net of DDPM++ and NCSN++."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = c = config
        taps = tuple(c.resample_filter)
        style = BlockStyle(
            c.embedding, 0, math.sqrt(0.5), 1e-6, adaptive=False, project=True, taps=taps
        )
        width = c.model_channels * c.channel_mult_noise
        self.map_noise = (
            Positional(width, endpoint=True, sine_first=True)
            if c.embedding_type == "positional"
            else Fourier(width)
        )
        self.map_label = SwappedLinear(c.label_dim, width) if c.label_dim else None
        # the network was trained on augmented images and is sampled without augmentation: the zero
        # label adds nothing, and its weights are only kept
        self.map_augment = (
            SwappedLinear(c.augment_dim, width, bias=False) if c.augment_dim else None
        )
        self.map_layer0, self.map_layer1 = (
            SwappedLinear(width, c.embedding),
            SwappedLinear(c.embedding, c.embedding),
        )
        first = c.model_channels
        self.enc, skips, channels = _encoder(c, style, first, residual=c.encoder_type == "residual")
        self.dec, channels = _decoder(c, style, skips, channels, attend_all=False)
        top = f"{c.img_resolution}x{c.img_resolution}"
        self.dec[f"{top}_aux_norm"] = Norm(channels, 1e-6)
        self.dec[f"{top}_aux_conv"] = Conv(channels, c.out_channels, 3)

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """x [B, C, h, w], time [B], label [B, label_dim] -> [B, C', h, w].

        The label is one-hot, or zeros for no class.
        """
        e = self.map_noise(time)
        if self.map_label is not None:
            assert label is not None
            e = e.to(x.dtype) + self.map_label(label * math.sqrt(self.config.label_dim))
        e = functional.silu(self.map_layer1(functional.silu(self.map_layer0(e))))
        skips: list[Tensor] = []
        side = x  # the input, filtered and convolved down alongside (NCSN++)
        for step in self.enc.values():
            if isinstance(step, Block):
                skips.append(x := step(x, e))
            elif not skips:
                skips.append(x := step(x))
            else:
                skips[-1] = x = side = (x + step(side)) * math.sqrt(0.5)
        *blocks, norm, conv = self.dec.values()
        for block in blocks:
            x = _join(block, x, skips, e)
        return conv(functional.silu(norm(x)))


class DhariwalUNet(nn.Module):
    """The U-Net of ADM."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = c = config
        style = BlockStyle(c.embedding, 64, 1.0, 1e-5, adaptive=True, project=False, taps=(1, 1))
        width = c.model_channels
        self.map_noise = Positional(width, endpoint=False, sine_first=False)
        self.map_augment = (
            SwappedLinear(c.augment_dim, width, bias=False) if c.augment_dim else None
        )
        self.map_layer0, self.map_layer1 = (
            SwappedLinear(width, c.embedding),
            SwappedLinear(c.embedding, c.embedding),
        )
        self.map_label = (
            SwappedLinear(c.label_dim, c.embedding, bias=False) if c.label_dim else None
        )
        self.enc, skips, channels = _encoder(c, style, width * c.channel_mult[0], residual=False)
        self.dec, channels = _decoder(c, style, skips, channels, attend_all=True)
        self.out_norm, self.out_conv = Norm(channels, 1e-5), Conv(channels, c.out_channels, 3)

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """The output for the arguments of SongUNet.forward."""
        e = self.map_layer1(functional.silu(self.map_layer0(self.map_noise(time))))
        if self.map_label is not None:
            assert label is not None
            e = e + self.map_label(label)
        e = functional.silu(e)
        skips: list[Tensor] = []
        for step in self.enc.values():
            skips.append(x := step(x, e) if isinstance(step, Block) else step(x))
        for block in self.dec.values():
            x = _join(block, x, skips, e)
        return self.out_conv(functional.silu(self.out_norm(x)))


def _join(block: nn.Module, x: Tensor, skips: list[Tensor], e: Tensor) -> Tensor:
    assert isinstance(block, Block)
    return block(x if x.shape[1] == block.c_in else cat([x, skips.pop()], dim=1), e)


def _encoder(
    c: UNetConfig, style: BlockStyle, first: int, residual: bool
) -> tuple[nn.ModuleDict, list[int], int]:
    """(modules in the order of the walk, channels of the skips they leave, channels at the end)."""
    enc = nn.ModuleDict()
    skips, channels, side = [first], first, c.in_channels
    for level, mult in enumerate(c.channel_mult):
        size = c.img_resolution >> level
        at = f"{size}x{size}"
        if level == 0:
            enc[f"{at}_conv"] = Conv(c.in_channels, first, 3)
        else:
            enc[f"{at}_down"] = Block(channels, channels, style, "down")
            skips.append(channels)
            if residual:
                enc[f"{at}_aux_residual"] = Conv(
                    side, channels, 3, "down", style.taps, filter_last=True
                )
                side = channels
        for i in range(c.num_blocks):
            width = c.model_channels * mult
            enc[f"{at}_block{i}"] = Block(
                channels, width, style, attention=size in c.attn_resolutions
            )
            channels = width
            skips.append(channels)
    return enc, skips, channels


def _decoder(
    c: UNetConfig, style: BlockStyle, skips: list[int], channels: int, attend_all: bool
) -> tuple[nn.ModuleDict, int]:
    """Build the walk up again.

    attend_all: True for attention in every block of a resolution that has it; False for attention
        in its last block alone.
    """
    dec = nn.ModuleDict()
    skips = list(skips)
    for level in reversed(range(len(c.channel_mult))):
        size, width = c.img_resolution >> level, c.model_channels * c.channel_mult[level]
        at = f"{size}x{size}"
        if level == len(c.channel_mult) - 1:
            dec[f"{at}_in0"] = Block(channels, channels, style, attention=True)
            dec[f"{at}_in1"] = Block(channels, channels, style)
        else:
            dec[f"{at}_up"] = Block(channels, channels, style, "up")
        for i in range(c.num_blocks + 1):
            attention = size in c.attn_resolutions and (attend_all or i == c.num_blocks)
            dec[f"{at}_block{i}"] = Block(channels + skips.pop(), width, style, attention=attention)
            channels = width
    return dec, channels
