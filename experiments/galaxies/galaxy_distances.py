"""Distances between galaxies: functions of two sets of images [B, 1, H, W] that return [B].

    pixel_l2     mean (x_a - x_b)^2        of the samples as the networks have them
    asinh_l2     mean (u_a - u_b)^2        of u = asinh(x / SOFTENING), as images are looked at

In the first the core of a galaxy counts most, in the second its faint outskirts do.
"""

from __future__ import annotations

import math

from galaxies import BLACK, SOFTENING, WHITE, from_image
from torch import Tensor

RANGE = math.asinh(WHITE / SOFTENING) - math.asinh(BLACK / SOFTENING)


def pixel_l2(a: Tensor, b: Tensor) -> Tensor:
    """The mean squared difference of the networks' own pixels."""
    return (from_image(a) - from_image(b)).square().flatten(1).mean(1)


def asinh_l2(a: Tensor, b: Tensor) -> Tensor:
    """The mean squared difference of the stretched pixels."""
    return ((a - b) * RANGE / 2).square().flatten(1).mean(1)
