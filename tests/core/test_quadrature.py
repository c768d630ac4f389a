"""Gauss-Legendre nodes and weights against NumPy's, and against exact integrals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ld3_dist.core.quadrature import RIGHT_HALF, gauss_legendre


@pytest.mark.parametrize("n", RIGHT_HALF)
def test_the_table_is_numpy_s_to_the_last_bit(n: int) -> None:
    x, w = np.polynomial.legendre.leggauss(n)
    nodes, weights = gauss_legendre(n)
    assert torch.equal(nodes, torch.as_tensor((x + 1) / 2))
    assert torch.equal(weights, torch.as_tensor(w / 2))


@pytest.mark.parametrize("n", RIGHT_HALF)
def test_polynomials_are_integrated_exactly(n: int) -> None:
    nodes, weights = gauss_legendre(n)
    for power in range(2 * n):
        assert (weights * nodes**power).sum().item() == pytest.approx(1 / (power + 1), rel=1e-13)
