"""The parts of EDM's U-Nets: resampling convolutions, the residual block, embeddings of time.

A block computes, with a factor s,

    h = conv1(silu(affine(norm1(conv0(silu(norm0(x)))))))
    x = s (h + skip(x))
    x = s (x + proj(attention(qkv(norm2(x)))))         if it has attention

The embedding e [B, E] enters in `affine`, as a shift (DDPM++, NCSN++) or as a scale and a shift
(ADM). Dropout does nothing when sampling and is left out.

Parameters have the names of the published checkpoints (Karras et al. 2022), which load strictly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


class Conv(nn.Module):
    """Convolution [B, c_in, h, w] -> [B, c_out, h', w'], after a filtered resampling by 2.

    Args:
        kernel: odd size; 0 for a resampling alone.
        resample: "up" doubles, "down" halves, "" keeps the resolution.
        taps: the separable low-pass filter, e.g. (1, 1) or (1, 3, 3, 1).
        filter_last: convolve first, on the padded fine grid, then filter and halve ("down" only).
    """

    resample_filter: Tensor

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int,
        resample: str = "",
        taps: tuple[int, ...] = (1, 1),
        filter_last: bool = False,
    ) -> None:
        super().__init__()
        self.resample, self.filter_last = resample, filter_last
        if kernel:
            self.weight = nn.Parameter(
                torch.randn(c_out, c_in, kernel, kernel) / math.sqrt(c_in * kernel**2)
            )
            self.bias = nn.Parameter(torch.zeros(c_out))
        self.kernel = kernel
        if resample:
            line = torch.tensor(taps, dtype=torch.float32)
            self.register_buffer(
                "resample_filter", torch.outer(line, line)[None, None] / line.sum() ** 2
            )

    def forward(self, x: Tensor) -> Tensor:
        """Filter and convolve, or convolve and filter."""
        pad = self.kernel // 2
        if self.filter_last:
            margin = (self.resample_filter.shape[-1] - 1) // 2
            return self._filter(
                functional.conv2d(x, self.weight, self.bias, padding=pad + margin), margin=0
            )
        if self.resample:
            x = self._filter(x, margin=(self.resample_filter.shape[-1] - 1) // 2)
        return functional.conv2d(x, self.weight, self.bias, padding=pad) if self.kernel else x

    def _filter(self, x: Tensor, margin: int) -> Tensor:
        channels = x.shape[1]
        kernel = self.resample_filter.to(x.dtype).expand(channels, 1, -1, -1)
        if self.resample == "up":
            return functional.conv_transpose2d(
                x, 4 * kernel, groups=channels, stride=2, padding=margin
            )
        return functional.conv2d(x, kernel, groups=channels, stride=2, padding=margin)


class Norm(nn.GroupNorm):
    """Group normalisation with at most 32 groups of at least 4 channels."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__(min(32, channels // 4), channels, eps=eps)


class SwappedLinear(nn.Linear):
    """A linear layer whose input may come in another dtype."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, c_in] -> [B, c_out] in the weights' dtype."""
        return super().forward(input.to(self.weight.dtype))


@dataclass(frozen=True)
class BlockStyle:
    """The differences between the blocks of the two families.

    embedding: width of e.
    head: channels per attention head; 0 for one head with all channels.
    scale: factor s after each residual sum.
    eps: of the normalisations.
    adaptive: True if e enters as scale and shift, not as shift alone.
    project: True if resampled skips always have a 1x1 convolution.
    taps: the resampling filter.
    """

    embedding: int
    head: int
    scale: float
    eps: float
    adaptive: bool
    project: bool
    taps: tuple[int, ...]


class Block(nn.Module):
    """Residual block x [B, c_in, h, w], e [B, E] -> [B, c_out, h', w']."""

    def __init__(
        self, c_in: int, c_out: int, style: BlockStyle, resample: str = "", attention: bool = False
    ) -> None:
        super().__init__()
        self.c_in, self.c_out, self.style = c_in, c_out, style
        self.norm0 = Norm(c_in, style.eps)
        self.conv0 = Conv(c_in, c_out, 3, resample, style.taps)
        self.affine = SwappedLinear(style.embedding, c_out * (2 if style.adaptive else 1))
        self.norm1 = Norm(c_out, style.eps)
        self.conv1 = Conv(c_out, c_out, 3)
        self.skip: Conv | None = None
        if c_in != c_out or resample:
            self.skip = Conv(
                c_in, c_out, 1 if style.project or c_in != c_out else 0, resample, style.taps
            )
        self.heads = (c_out // style.head if style.head else 1) if attention else 0
        if self.heads and c_out % self.heads:
            raise ValueError(f"{c_out} channels do not make {self.heads} heads of equal size")
        if self.heads:
            self.norm2 = Norm(c_out, style.eps)
            self.qkv = Conv(c_out, 3 * c_out, 1)
            self.proj = Conv(c_out, c_out, 1)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """x [B, c_in, h, w], e [B, E] -> [B, c_out, h', w']."""
        h = self.conv0(functional.silu(self.norm0(x)))
        modulation = self.affine(e)[:, :, None, None]
        if self.style.adaptive:
            scale, shift = modulation.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm1(h), 1 + scale)
        else:
            h = self.norm1(h + modulation)
        h = self.conv1(functional.silu(h))
        x = (h + (x if self.skip is None else self.skip(x))) * self.style.scale
        return (x + self._attend(x)) * self.style.scale if self.heads else x

    def _attend(self, x: Tensor) -> Tensor:
        # the checkpoints interleave query, key and value channel by channel
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm2(x)).reshape(b, self.heads, c // self.heads, 3, h * w)
        q, k, v = (part.transpose(2, 3) for part in qkv.unbind(3))  # [B, heads, h*w, c / heads]
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(2, 3).reshape(b, c, h, w))


class Positional(nn.Module):
    """time [B] -> [B, c]: cosines and sines at c/2 frequencies from 1 down to (about) 1/10000."""

    def __init__(self, channels: int, endpoint: bool, sine_first: bool) -> None:
        super().__init__()
        self.waves, self.sine_first = channels // 2, sine_first
        self.last = (
            self.waves - 1 if endpoint else self.waves
        )  # True if 1/10000 itself is the last frequency

    def forward(self, time: Tensor) -> Tensor:
        """Embeddings in the dtype of time; half precision would lose the phase of 999 * t."""
        exponent = torch.arange(self.waves, device=time.device, dtype=time.dtype) / self.last
        return _waves(time[:, None] * 10_000.0**-exponent, self.sine_first)


class Fourier(nn.Module):
    """time [B] -> [B, c]: sines and cosines at c/2 random frequencies, stored with the weights."""

    freqs: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 16 * torch.randn(channels // 2))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Fourier:
        # frequencies of up to about 50 must not be rounded to a half-precision network's dtype
        exact = self.freqs
        super()._apply(fn, recurse)
        if self.freqs.dtype.itemsize < exact.dtype.itemsize:
            self.freqs = exact.to(self.freqs.device)
        return self

    def forward(self, time: Tensor) -> Tensor:
        """Embeddings in the dtype of time."""
        return _waves(time[:, None] * (2 * math.pi * self.freqs).to(time.dtype), sine_first=True)


def _waves(angle: Tensor, sine_first: bool) -> Tensor:
    pair = (angle.sin(), angle.cos()) if sine_first else (angle.cos(), angle.sin())
    return torch.cat(pair, dim=1)
