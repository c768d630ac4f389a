"""Gauss-Legendre quadrature.

    int_0^1 f(s) ds ~ sum_{k=1}^n w_k f(s_k)        exact for polynomials of degree 2n - 1

(Abramowitz & Stegun 1964, section 25.4.30.) The numbers are a table because `core` runs where only
PyTorch is installed, and PyTorch has no function for them.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

RIGHT_HALF: dict[int, tuple[tuple[float, float], ...]] = {
    16: (
        (0.09501250983763744, 0.18945061045506864),
        (0.2816035507792589, 0.18260341504492364),
        (0.45801677765722737, 0.16915651939500265),
        (0.6178762444026438, 0.1495959888165767),
        (0.755404408355003, 0.12462897125553407),
        (0.8656312023878318, 0.0951585116824926),
        (0.9445750230732326, 0.062253523938647456),
        (0.9894009349916499, 0.027152459411754176),
    ),
    32: (
        (0.048307665687738324, 0.09654008851472766),
        (0.1444719615827965, 0.09563872007927471),
        (0.23928736225213706, 0.09384439908080451),
        (0.33186860228212767, 0.09117387869576378),
        (0.42135127613063533, 0.08765209300440378),
        (0.5068999089322294, 0.08331192422694671),
        (0.5877157572407623, 0.07819389578707023),
        (0.6630442669302152, 0.07234579410884834),
        (0.7321821187402897, 0.06582222277636168),
        (0.7944837959679424, 0.058684093478535565),
        (0.84936761373257, 0.05099805926237609),
        (0.8963211557660521, 0.042835898022226836),
        (0.9349060759377397, 0.034273862913021765),
        (0.9647622555875064, 0.025392065309262024),
        (0.9856115115452684, 0.016274394730905743),
        (0.9972638618494816, 0.007018610009470506),
    ),
}  # fmt: skip
"""The positive nodes on [-1, 1] and their weights, by n; the negative ones mirror them."""


@cache
def gauss_legendre(n: int = 32) -> tuple[Tensor, Tensor]:
    """Nodes s_k and weights w_k on [0, 1], float64 [n] each, for n = 16 and 32.

    With n = 32 the integral of e^-lam over any step of a schedule is exact to rounding.
    """
    x, w = torch.tensor(RIGHT_HALF[n], dtype=torch.float64).unbind(1)
    return (torch.cat([-x.flip(0), x]) + 1) / 2, torch.cat([w.flip(0), w]) / 2
