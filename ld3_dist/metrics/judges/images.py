"""Images as the networks of judges take them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from ...core.errors import InputError

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of CLIP's training images, channel by channel; BLIP uses the same."""

Fit = Literal["cut", "pad"]
"""An image that is no square is cut at its centre, or gets black borders."""


def pixels(
    x: Tensor,
    side: int,
    fit: Fit = "cut",
    mean: tuple[float, ...] = MEAN,
    std: tuple[float, ...] = STD,
) -> Tensor:
    """Images [B, 1 or 3, H, W] in [-1, 1] -> [B, 3, side, side], resized and normalised.

    Raises InputError for anything else.
    """
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise InputError(f"judges look at images [B, 1 or 3, H, W], got {tuple(x.shape)}")
    x = ((x.float().clamp(-1, 1) + 1) / 2).expand(-1, 3, -1, -1)
    factor = side / (min if fit == "cut" else max)(x.shape[2:])
    size = [max(1, round(n * factor)) for n in x.shape[2:]]
    x = functional.interpolate(x, size=size, mode="bicubic", align_corners=False, antialias=True)
    before = [(side - n) // 2 if n < side else -((n - side) // 2) for n in size]  # < 0: a cut
    after = [side - n - b for n, b in zip(size, before, strict=True)]
    x = functional.pad(x.clamp(0, 1), (before[1], after[1], before[0], after[0]))
    centre, spread = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (mean, std))
    return (x - centre) / spread
