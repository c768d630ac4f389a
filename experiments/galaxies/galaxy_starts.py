"""A start grid for the galaxies: a function of a problem that returns knots [N + 1] in float64.

    t_0 … t_{N-1}    equal steps of lambda from t_max down to LAST
    t_N              t_min

An image of a galaxy is mostly sky, which a network knows long before the noise is gone: at t = LAST
sigma is still 0.63, and one last step from there to t_min is enough. `log_snr` spends half of its
steps below that time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ld3_dist.schedule.starts import StartProblem

LAST = 0.5


def leap(problem: StartProblem) -> Tensor:
    """Equal steps of lambda while there is much noise, and a leap at the end."""
    noise = problem.noise
    ends = torch.tensor([noise.t_max, LAST, noise.t_min], dtype=torch.float64)
    first, last = noise.lam(ends[:2]).tolist()
    lam = torch.linspace(first, last, problem.steps, dtype=torch.float64)
    return torch.cat([ends[:1], noise.inverse(lam[1:]), ends[2:]])
