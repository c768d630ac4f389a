"""A solver: DDIM on the network's outputs, extrapolated from the last two of them.

    y_{i+1} = sigma_{i+1} / sigma_i y_i + c_i ((1 + w) m_i - w m_{i-1}),
    c_i = alpha_{i+1} (1 - exp(-h_i)),  h_i = lambda_{i+1} - lambda_i

Its options follow a question mark: `python:extrapolated_solver.py:extrapolated?weight=0.25`.
"""

import torch

from ld3_dist.core.solver import Solver


def extrapolated(weight=0.5):
    """The solver; weight 0 is DDIM."""

    def rule(points):
        carry = torch.diag_embed(points.sigma[:, 1:] / points.sigma[:, :-1])  # [K, N, N]
        c = -points.alpha[:, 1:] * torch.expm1(-points.h)
        w = torch.full_like(c, weight)
        w[:, 0] = 0  # the first step has no output before its own
        return carry, torch.diag_embed(c * (1 + w)) - torch.diag_embed((c * w)[:, 1:], -1)

    return Solver("extrapolated", 1, rule)
